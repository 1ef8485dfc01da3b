"""What every transport must do, as claims that run against anybody's implementation.

A transport is given as a function that runs one round: it starts the aggregator, carries bytes
between it and the tenants until the round has ended, and returns. It may use processes, sockets
and real time; plans here have short deadlines.

    @pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
    def test_transport(claim):
        claim(run_over_my_transport)

Covered so far: whole rounds, resumable uploads, refused messages, tenants that are never heard of.
Authentication is the transport's own and not covered: whoever it says sent a message, did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from secagg.aggregator import Aggregator
from secagg.plan import Deadlines, RoundPlan
from secagg.spool import MemorySpool
from secagg.testing.cohorts import cohort, make_tenants
from secagg.testing.invariants import InvariantBroken, require
from secagg.testing.tenant import SimulatedTenant

RunRound = Callable[[Aggregator, Mapping[str, SimulatedTenant]], None]


class SilentTenant(SimulatedTenant):
    """Joins and is never heard of again."""

    def receive(self, message: bytes) -> list[bytes]:
        """Say nothing."""
        return []


class ChattyTenant(SimulatedTenant):
    """Says nonsense before, and repeats itself after, every right answer."""

    def receive(self, message: bytes) -> list[bytes]:
        """The answer, in bad company."""
        answer = super().receive(message)
        return [b"\x01nonsense", *answer, *answer]


def an_honest_round_opens_exactly(run: RunRound) -> None:
    """Every byte arrives as it was sent."""
    _run(run, length=50)


def uploads_of_several_leaves_arrive_whole(run: RunRound) -> None:
    """Nothing of a vector's size passes in one message, and nothing of it is lost."""
    _run(run, length=150_000)


def a_tenant_that_falls_silent_is_a_dropout(run: RunRound) -> None:
    """Deadlines pass, and the round goes on without it."""
    survivors = _run(run, length=50, kinds={"t001": SilentTenant})
    require("t001" not in survivors, "a silent tenant is no survivor")


def refused_and_repeated_messages_harm_nobody(run: RunRound) -> None:
    """An error goes back to its sender, and its next message is taken."""
    survivors = _run(run, length=50, kinds={"t002": ChattyTenant})
    require("t002" in survivors, "a refused message does not end its sender's round")


TRANSPORT_CLAIMS: tuple[Callable[[RunRound], None], ...] = (
    an_honest_round_opens_exactly,
    uploads_of_several_leaves_arrive_whole,
    a_tenant_that_falls_silent_is_a_dropout,
    refused_and_repeated_messages_harm_nobody,
)


def _run(
    run: RunRound, *, length: int, kinds: Mapping[str, type[SimulatedTenant]] | None = None
) -> tuple[str, ...]:
    members = cohort(4)
    deadlines = Deadlines(3_000, 3_000, 3_000, 10_000, 3_000, 3_000)
    plan: RoundPlan = replace(members.plan(length), deadlines=deadlines)
    tenants = make_tenants(members, plan, kinds=kinds)
    aggregator = Aggregator(plan, members.roster, spool=MemorySpool())
    run(aggregator, tenants)
    result = aggregator.result
    if result is None:
        raise InvariantBroken("the round did not open")
    levels = [tenants[name].levels for name in result.survivors]
    expected = np.sum([level for level in levels if level is not None], axis=0)
    require(np.array_equal(result.level_sum, expected), "the opened sum is not the survivors'")
    return result.survivors
