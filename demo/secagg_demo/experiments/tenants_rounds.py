"""Rounds of the real protocol in one process, with tenants that vanish at a chosen moment.

Every party is the core's own, with keys from the operating system; the messages cross a queue as
bytes. Not here: a network, its authentication, and time (who is silent is said, not waited for):
`secagg demo` has those.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg import (
    Aborted,
    Aggregator,
    Dispatch,
    Identity,
    Layout,
    Member,
    MemoryLedger,
    MemorySpool,
    Participant,
    Policy,
    Quantiser,
    Roster,
    RoundPlan,
    Send,
    UsageError,
)

QUANTISER = Quantiser(clip=0.5, value_bits=16)


class Leaves(Enum):
    """When a tenant vanishes."""

    NEVER_CAME = "never came"
    BEFORE_UPLOAD = "before its upload"
    DURING_UPLOAD = "during its upload"


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What a round opened, and whether it is to the last level the sum of what survivors encoded.

    `mean` is (d,) float64; `error` the largest deviation from the survivors' plain mean, in levels.
    """

    mean: NDArray[np.float64]
    survivors: tuple[str, ...]
    exact: bool
    error: float


@dataclass(slots=True, eq=False)
class Federation:
    """Tenants with identities and ledgers that outlive a round."""

    names: Sequence[str]
    identities: dict[str, Identity] = field(init=False)
    ledgers: dict[str, MemoryLedger] = field(init=False)
    roster: Roster = field(init=False)
    rounds: int = 0

    def __post_init__(self) -> None:
        self.identities = {name: Identity.generate(name, os.urandom) for name in self.names}
        self.ledgers = {name: MemoryLedger() for name in self.names}
        self.roster = Roster.create(tuple(map(Member.create, self.identities.values())))

    def mean_of(
        self,
        deltas: Mapping[str, NDArray[np.float32]],
        layout: Layout,
        model_digest: bytes,
        lost: Mapping[str, Leaves],
    ) -> Opened:
        """Run one round. Who never came needs no delta.

        Raises: RoundAborted where more are lost than the plan allows; nothing is opened then.
        """
        self.rounds += 1
        plan = RoundPlan.create(
            self.roster, round_number=self.rounds, layout=layout, quantiser=QUANTISER,
            model_digest=model_digest, max_weight=1,
        )  # fmt: skip
        return _Round(plan, self, lost).run(deltas)


class _Round:
    """One round over a queue."""

    def __init__(self, plan: RoundPlan, tenants: Federation, lost: Mapping[str, Leaves]) -> None:
        policy = Policy(tenants.roster.digest, max_colluders=plan.max_colluders)
        self.plan, self.lost = plan, lost
        self.aggregator = Aggregator(plan, tenants.roster, spool=MemorySpool())
        self.participants = {
            name: Participant(
                plan, identity=tenants.identities[name], roster=tenants.roster, policy=policy,
                ledger=tenants.ledgers[name],
            )
            for name in plan.cohort
        }  # fmt: skip
        self.queue: deque[tuple[str, bytes]] = deque()

    def run(self, deltas: Mapping[str, NDArray[np.float32]]) -> Opened:
        self.aggregator.start(0.0)
        for name, participant in self.participants.items():
            if self.lost.get(name) is Leaves.NEVER_CAME:
                self.carry_down(self.aggregator.on_silence(name, 0.0))
            else:
                self.carry_up(name, participant.start())
        while self.queue:
            name, message = self.queue.popleft()
            participant = self.participants[name]
            self.carry_up(name, participant.receive(message))
            if participant.ready:
                self.upload(name, participant, deltas.get(name))
        return self.opened(deltas)

    def upload(
        self, name: str, participant: Participant, delta: NDArray[np.float32] | None
    ) -> None:
        if delta is None or self.lost.get(name) is Leaves.BEFORE_UPLOAD:
            self.carry_down(self.aggregator.on_silence(name, 0.0))
            return
        self.carry_up(name, participant.submit(delta, 1))
        offset = 0
        for piece in participant.upload():
            if self.lost.get(name) is Leaves.DURING_UPLOAD:
                self.aggregator.absorb(name, offset, piece[: len(piece) // 2])
                self.carry_down(self.aggregator.on_silence(name, 0.0))
                return
            offset = self.aggregator.absorb(name, offset, piece)
        self.carry_up(name, participant.finish_upload())

    def carry_up(self, name: str, outputs: Sequence[Any]) -> None:
        for output in outputs:
            if isinstance(output, Send):
                self.carry_down(self.aggregator.receive(name, output.message, 0.0))

    def carry_down(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            if isinstance(output, Dispatch):
                self.queue.append((output.recipient, output.message))
            elif isinstance(output, Aborted):
                raise output.error

    def opened(self, deltas: Mapping[str, NDArray[np.float32]]) -> Opened:
        result = self.aggregator.result
        if result is None:
            raise UsageError("the round stands still: somebody is silent and nobody said so")
        levels = [self.participants[name].encoded_levels() for name in result.survivors]
        plain = np.mean([deltas[name].astype(np.float64) for name in result.survivors], axis=0)
        error = np.abs(result.mean() - plain).max() / self.plan.quantiser.scale
        exact = bool((result.level_sum == np.sum(levels, axis=0)).all())
        return Opened(result.mean(), result.survivors, exact, float(error))
