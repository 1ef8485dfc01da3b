"""A whole round in one call, over whatever carries bytes between you: for each side, one function.

    result = run_round(coordinated, ask)             # the coordinator; `ask` is your transport
    await run_round_async(coordinated, ask_one)      # the same, all tenants at once
    for request in link:                             # a tenant; `link` is your transport
        link.send(reply_to(party, request, train, model))

What a transport owes, and what these calls leave to the host, is in docs/embedding.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

from secagg.errors import ConfigError, SecaggError, UsageError
from secagg.plan import RoundPlan
from secagg.result import Result
from secagg_embed.exchange import CoordinatedRound, Requests
from secagg_embed.party import Contribution, Party, examples_in
from secagg_embed.tensors import Tensors, difference, require_model
from secagg_embed.wire import Deliver, Offer, decode_request, unable

log = logging.getLogger("secagg_embed")

_GOODBYE_S = 10.0

Ask = Callable[[Requests], Iterable[tuple[str, bytes]]]
"""Carry each request to its tenant; yield (tenant, reply) as they come, leave out who is silent."""

AskOne = Callable[[str, bytes], Awaitable[bytes]]
"""Carry one request to one tenant and return its reply; raise where that fails."""

Train = Callable[[RoundPlan], tuple[Tensors, int]]
"""Your training: the tensors afterwards, and the weight (number of examples)."""


def run_round(coordinated: CoordinatedRound, ask: Ask, *, attempts: int = 2) -> Result:
    """One round over a transport that carries many requests at once.

    Whoever has not answered after `attempts` is a dropout. The tenants are told how it ended.

    Raises:
        RoundAborted, ProtocolError: nothing was opened; says why, and who left and why.
        UsageError: `ask` returned something else than pairs.
    """
    _require_some(attempts)
    requests = coordinated.begin()
    while requests:
        for _ in range(attempts):
            asked = {name: requests[name] for name in coordinated.waiting}
            for tenant, reply in _pairs(ask(asked)):
                coordinated.take(tenant, reply)
            if not coordinated.waiting:
                break
        requests = coordinated.close()
    for _ in _pairs(ask(coordinated.endings())):
        pass
    return coordinated.outcome()


async def run_round_async(
    coordinated: CoordinatedRound, ask: AskOne, *, attempts: int = 2, timeout_s: float = 600
) -> Result:
    """One round over a transport with a connection to each tenant, all asked at once.

    A tenant has `timeout_s` for each answer, which in the fourth exchange includes its training.

    Raises:
        RoundAborted, ProtocolError: nothing was opened; says why, and who left and why.
    """

    async def reach(tenant: str, request: bytes, tries: int, wait_s: float) -> None:
        for _ in range(tries):
            try:
                async with asyncio.timeout(wait_s):
                    reply = await ask(tenant, request)
            except Exception as error:
                expected = isinstance(error, OSError | EOFError)  # TimeoutError is one
                log.warning(
                    "%r was not reached: %s", tenant, type(error).__name__, exc_info=not expected
                )
                continue
            if coordinated.take(tenant, reply):
                return

    async def exchange(requests: Requests, tries: int, wait_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for tenant, request in requests.items():
                group.create_task(reach(tenant, request, tries, wait_s))

    _require_some(attempts)
    requests = coordinated.begin()
    while requests:
        await exchange(requests, attempts, timeout_s)
        requests = coordinated.close()
    await exchange(coordinated.endings(), 1, min(timeout_s, _GOODBYE_S))
    return coordinated.outcome()


def reply_to(
    party: Party, request: bytes, train: Train, before: Tensors, settings: bytes = b""
) -> bytes:
    """A tenant's reply to any request, with the training where it belongs.

    `train(plan)` returns the tensors after training and how many examples they were trained on;
    `before` are those that the coordinator sent, with its `settings`: they must be the plan's model
    (`model_digest`), and what leaves is the difference, protected. A weight above the plan's
    largest counts as the largest.

    What goes wrong while training leaves the round: it is logged here, with the traceback of what
    your code raised, and the coordinator hears that it did. Whoever wants the exception calls
    `Party.answer`.
    """

    def contribute(plan: RoundPlan) -> Contribution:
        require_model(plan, before, settings)  # before anything is trained on them
        after, examples = trained_pair(train(plan))
        require_model(plan, before, settings)  # training in place would leave no difference
        vector = difference(after, before, plan.layout)
        return Contribution(vector, min(examples, plan.max_weight))

    if not party.expects_training(request):
        return party.answer(request).encode()
    try:
        return party.answer(request, contribute).encode()
    except SecaggError as error:
        log.error("%r trains nothing in this round, and has left it: %s", party.tenant, error)
    except Exception:
        log.exception("%r trains nothing in this round, and has left it", party.tenant)
    return refusing(request)


def trained_pair(returned: object) -> tuple[Tensors, int]:
    """What a training has to return: the tensors by name, and from how many examples.

    Raises:
        ConfigError: it returned something else; says what.
    """
    match returned:
        case (Mapping() as after, examples):
            if (count := examples_in(examples)) is not None:
                return after, count
            raise ConfigError(
                f"train returned {type(examples).__name__} as its number of examples, and it is no "
                "whole number of 1 or more; a tenant without data takes no part: leave it out"
            )
        case _:
            raise ConfigError(
                f"train returned {type(returned).__name__}; it returns (arrays, examples), where "
                "arrays maps every name to its trained array"
            )


def refusing(request: bytes) -> bytes:
    """The reply of a tenant that cannot go on, to the request in which that showed.

    It says that, and no more (`unable`): a coordinator that hears it need not wait.
    """
    match decode_request(request):
        case Deliver(context=context):
            return unable(context).encode()
        case Offer(plan=plan):
            return unable(RoundPlan.decode(plan).context).encode()
        case _:
            raise ConfigError("only an offer or a round's message can be declined")


def _require_some(attempts: object) -> None:
    if not isinstance(attempts, int) or attempts < 1:
        raise ConfigError(f"attempts is {attempts!r}; a tenant is asked once at least")


def _pairs(given: object) -> Iterator[tuple[str, bytes]]:
    """What `ask` returned, one by one: a transport without the right form would be all silence."""
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise UsageError(
            f"ask returned a {type(given).__name__}; it yields (tenant, reply), one for each that "
            "answered (a coroutine for one tenant is for run_round_async)"
        )
    for one in given:
        match one:
            case (tenant, reply):
                yield tenant, reply
            case _:
                raise UsageError(f"ask yielded a {type(one).__name__}, and no (tenant, reply)")
