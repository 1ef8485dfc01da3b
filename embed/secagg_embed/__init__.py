"""secagg inside federations that people already run: Flower, NVFLARE, a simulation, any loop.

A round is a series of exchanges (`secagg_embed.exchange`): one side has a request for every tenant,
each tenant has one reply. Whatever carries requests and replies can carry a round.

    CoordinatedRound, Terms         the side that starts rounds
    Party, Contribution             a tenant; `Party.open` takes its folder
    run_round, run_round_async      a whole round over your transport
    layout_of, model_digest, ...    named NumPy arrays and PyTorch tensors

`secagg_embed.flower`, `.nvflare` and `.simulation` are adapters, each with an extra of its own;
`secagg_embed.testing` holds other adapters to the same claims.
"""

from secagg_embed.exchange import CoordinatedRound, Requests, hello, read_hello
from secagg_embed.folder import TenantFolder, make_tenants
from secagg_embed.party import Contribution, MemoryRounds, Party, Rounds
from secagg_embed.plain import refusing, reply_to, run_round, run_round_async
from secagg_embed.tensors import (
    added,
    difference,
    flatten,
    layout_of,
    model_digest,
    require_model,
    unflatten,
)
from secagg_embed.terms import Terms, next_round_number
from secagg_embed.wire import Reply, RoundEnding, declining, decode_request, unable

__all__ = [
    "Contribution",
    "CoordinatedRound",
    "MemoryRounds",
    "Party",
    "Reply",
    "Requests",
    "RoundEnding",
    "Rounds",
    "TenantFolder",
    "Terms",
    "added",
    "declining",
    "decode_request",
    "difference",
    "flatten",
    "hello",
    "layout_of",
    "make_tenants",
    "model_digest",
    "next_round_number",
    "read_hello",
    "refusing",
    "reply_to",
    "require_model",
    "run_round",
    "run_round_async",
    "unable",
    "unflatten",
]
