"""Tenants that share a process: each a real `Party`, with as little kept as can be.

The same code hosts them beside the coordinator and in Ray's workers (`on_ray.py`), which is why
both give the same sums. What a tenant in earnest keeps and these do not: the upload until the round
has ended (no reply is lost here), sealed states older than the newest, and rounds that are over.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg.errors import SecaggError, UsageError
from secagg.identity import Roster
from secagg.ledger import Entry, check_entry, check_join, check_leaves, check_spent
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.testing.randomness import SeededRandomness
from secagg_embed.party import Contribution, MemoryRounds, Party
from secagg_embed.plain import trained_pair
from secagg_embed.simulation.report import Cause
from secagg_embed.simulation.tenants import Population, TenantInfo, copied, remembering
from secagg_embed.tensors import Tensors, difference, require_model
from secagg_embed.wire import Reply

Train = Callable[[TenantInfo, dict[str, Any], int], tuple[Mapping[str, Any], int]]
"""`train(tenant, arrays, round) -> (arrays, examples)`: the whole trained arrays, as many as came.

`arrays` are a copy that may be changed. `examples` is the tenant's weight, at most the plan's.
"""


class TrainingFailed(UsageError):
    """`train` raised; says where, and what."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the coordinator's side gives everybody in one round."""

    round: int
    arrays: Tensors


@dataclass(frozen=True, slots=True)
class Training:
    """What one tenant knows of its contribution and never sends; a simulation sees it all.

    `levels`, (d,) int32, is what it encoded, if the simulation checks sums.
    """

    seconds: float
    weight: int
    examples: int
    clipped: int
    levels: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one tenant made of one request. `reply` is None where it failed, for `problem`."""

    reply: Reply | None
    cpu_s: float = 0.0
    training: Training | None = None
    problem: str = ""
    cause: Cause = Cause.TRAINING


class Seat(Protocol):
    """Something that answers requests in a tenant's place."""

    def answer(self, request: bytes, given: Given | None) -> Answer:
        """The answer; an `OSError` means that it never came."""


class MakeSeats(Protocol):
    """Makes the seats of some tenants, in whatever process they are to live in."""

    def __call__(self, names: Sequence[str]) -> Mapping[str, Seat]:
        """One seat for each name."""


@dataclass(frozen=True)
class Job:
    """What a process needs to host tenants: everything but their names, and nothing secret."""

    population: Population
    roster: bytes
    policy: Policy
    train: Train
    check: bool = False
    remember: bool = True

    def __call__(self, names: Sequence[str]) -> dict[str, Seat]:
        """See `MakeSeats`."""
        roster = Roster.decode(self.roster)
        roster = remembering(roster) if self.remember else roster
        return {name: TenantSeat(self, name, roster) for name in names}


class TenantSeat:
    """One tenant: a party that is closed after every answer, and the user's training."""

    def __init__(self, job: Job, name: str, roster: Roster) -> None:
        self._info = job.population.info(name)
        self._train = job.train
        self._training_cpu_s = 0.0
        self._trained = (0.0, 0, 0)
        self._party = SimulatedParty(
            job.population.identity(name),
            roster,
            policy=job.policy,
            ledger=LeanLedger(),
            rounds=_NoUploads(),
            randomness=SeededRandomness(f"simulation {job.population.seed} tenant {name}"),
        )
        self._party.record_levels = job.check

    def answer(self, request: bytes, given: Given | None) -> Answer:
        """See `Seat`."""
        self._party.noticed, self._training_cpu_s = None, 0.0
        begun = time.thread_time()
        try:
            reply = self._party.answer(request, lambda plan: self._contribute(plan, given))
        except SecaggError as error:
            return Answer(None, self._cpu_s(begun), problem=str(error))
        finally:
            self._party.close()  # the input goes; the sealed state in the ledger stays
        return Answer(reply, self._cpu_s(begun), self._training())

    def _cpu_s(self, begun: float) -> float:
        return time.thread_time() - begun - self._training_cpu_s

    def _training(self) -> Training | None:
        if self._party.noticed is None:
            return None
        clipped, levels = self._party.noticed
        seconds, weight, examples = self._trained
        return Training(seconds, weight, examples, clipped, levels)

    def _contribute(self, plan: RoundPlan, given: Given | None) -> Contribution:
        if given is None:
            raise UsageError("the tenants have agreed, and no arrays were given to train on")
        require_model(plan, given.arrays)
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            returned = self._train(self._info, copied(given.arrays), given.round)
        except Exception as error:
            raise TrainingFailed(f"train raised {_shown(error)}") from error
        finally:
            self._training_cpu_s = time.thread_time() - cpu
        after, examples = trained_pair(returned)
        weight = min(examples, plan.max_weight)
        self._trained = time.perf_counter() - wall, weight, examples
        return Contribution(difference(after, given.arrays, plan.layout), weight)


def _shown(error: Exception) -> str:
    """The error in one line, with where in the user's code it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


class SimulatedParty(Party):
    """A party that tells its simulation what a tenant in earnest keeps to itself."""

    record_levels = False
    noticed: tuple[int, NDArray[np.int32] | None] | None = None

    def _warn_of_clipping(self, participant: Participant) -> None:
        """Count, in place of a line in the log for each of hundreds."""
        levels = participant.encoded_levels().astype(np.int32) if self.record_levels else None
        self.noticed = participant.saturated, levels


class _NoUploads(MemoryRounds):
    """Keeps no upload: hundreds of models would fill the memory, and no reply is lost here."""

    def keep_reply(self, context: bytes, reply: Reply) -> None:
        """See `Rounds`."""


@dataclass(slots=True)
class LeanLedger:
    """A ledger of one identity in one process that knows the last round alone.

    What it refuses is what any ledger refuses; what it forgets, nobody here asks again.
    """

    _last_round: int = 0
    _live: bytes = b""
    _context: bytes = b""
    _entries: list[Entry] = field(default_factory=list)
    _leaves: list[bytes] = field(default_factory=list)
    _spent: dict[bytes, bytes] = field(default_factory=dict)

    def last_round(self, identity: bytes) -> int:
        """See `Ledger`."""
        return self._last_round

    def join(self, identity: bytes, context: bytes, round_number: int) -> None:
        """See `Ledger`."""
        check_join(self._last_round, round_number)
        self._last_round, self._live, self._context = round_number, context, context
        self._entries, self._leaves = [], []

    def commit(self, identity: bytes, context: bytes, entry: Entry) -> None:
        """See `Ledger`."""
        standing = self._entries if context == self._context else []
        if check_entry(standing, self._live == context, entry):
            self._forget_states()
            self._entries.append(entry)

    def entries(self, identity: bytes, context: bytes) -> tuple[Entry, ...]:
        """See `Ledger`."""
        return tuple(self._entries) if context == self._context else ()

    def spend(self, identity: bytes, input_digest: bytes, context: bytes) -> None:
        """See `Ledger`."""
        check_spent(self._spent.setdefault(input_digest, context), context)

    def record_leaves(
        self, identity: bytes, context: bytes, first: int, hashes: Sequence[bytes]
    ) -> None:
        """See `Ledger`."""
        standing = self._leaves if context == self._context else []
        standing += check_leaves(standing, self._live == context, first, hashes)

    def leaves(self, identity: bytes, context: bytes) -> tuple[bytes, ...]:
        """See `Ledger`."""
        return tuple(self._leaves) if context == self._context else ()

    def close(self, identity: bytes, context: bytes) -> None:
        """See `Ledger`."""
        if self._live == context:
            self._live = b""
        if context == self._context:
            self._forget_states()

    def _forget_states(self) -> None:
        self._entries = [Entry(e.act, e.request, e.message) for e in self._entries]


class Shard:
    """Some of the tenants in one process."""

    def __init__(self, make: MakeSeats, names: Sequence[str]) -> None:
        self._seats = make(names)
        self._given: Given | None = None

    def begin(self, given: Given) -> None:
        """What holds for the round that follows."""
        self._given = given

    def answer(self, tenant: str, request: bytes) -> Answer:
        """One tenant's answer; a lost connection is an answer that never came."""
        try:
            return self._seats[tenant].answer(request, self._given)
        except OSError as error:
            return Answer(None, problem=str(error) or type(error).__name__, cause=Cause.WORKER)

    def answers(self, requests: Iterable[tuple[str, bytes]]) -> list[tuple[str, Answer]]:
        """Several tenants' answers, one after the other."""
        return [(tenant, self.answer(tenant, request)) for tenant, request in requests]
