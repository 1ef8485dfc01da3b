"""The round plan: one frozen value that fixes everything the parties must agree on.

`context = SHA-256(canonical(plan))` enters every signature, key derivation, AEAD and expansion of
the round: a message of another round, model or layout does not verify, and tenants that were
shown different plans produce masks that do not cancel (protocol.md, "Before a round").

A plan is checked twice: here, that it can work at all (`ConfigError`), and in `policy.py`, that
this participant is willing to take part in it (`PolicyRefused`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar, get_args

from secagg import graph
from secagg.canonical import Reader, Writer
from secagg.ckks import parameters as ckks_parameters
from secagg.ckks.parameters import Packing, Parameters, Security
from secagg.encoding import Quantiser, ring_bits_needed
from secagg.errors import ConfigError, MalformedMessage
from secagg.identity import Roster, sha256
from secagg.layout import Layout

Scheme = Literal["masking", "ckks"]
Suite = Literal["x25519-mlkem768", "x25519"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
SUITES: tuple[Suite, ...] = get_args(Suite)
MAX_COHORT = 1 << 14
COMPLETE_UP_TO = 256
COMMITTEE_ABOVE = 64
MAX_COMMITTEE = 256
MIN_SURVIVORS = 3
GUARD_BITS = 4
_MAX_LENGTH = 1 << 36
_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each step may take, in milliseconds from its own beginning."""

    advertise_keys_ms: int = 600_000
    share_keys_ms: int = 60_000
    acknowledge_ms: int = 60_000
    masked_input_ms: int = 600_000
    consistency_check_ms: int = 60_000
    unmask_ms: int = 60_000

    def __post_init__(self) -> None:
        if any(not 0 < value < 1 << 32 for value in self.steps):
            raise ConfigError("plan: every deadline is between 1 ms and 2^32 ms")

    @property
    def steps(self) -> tuple[int, ...]:
        """The six deadlines in step order, in milliseconds."""
        return (
            self.advertise_keys_ms, self.share_keys_ms, self.acknowledge_ms,
            self.masked_input_ms, self.consistency_check_ms, self.unmask_ms,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NoNoise:
    """No differential privacy: the sum itself is exact, and says what a sum says."""


@dataclass(frozen=True)
class RoundPlan:
    """Everything that one round depends on; two plans that differ in anything are two rounds.

    `cohort` is U0, sorted; a participant's index is its position in it. `quorum` and the default
    thresholds follow from `n` and `max_colluders` (f): q = floor((n + f) / 2) + 1. `share_count`
    is k: n on the complete graph, where each participant holds a share of every other's secrets
    and keeps one of its own; below n on a sparse graph, where each participant draws k holders.
    In scheme `ckks`, which has no graph, it is the size of the committee that holds the shares: the
    cohort up to 64 participants, above that the members of the roster's list that are in it.
    """

    roster_digest: bytes
    round_number: int
    cohort: tuple[str, ...]
    model_digest: bytes
    layout: Layout
    quantiser: Quantiser
    max_colluders: int
    share_count: int
    share_threshold: int
    min_survivors: int
    ring_bits: int
    max_weight: int = 1
    weight_ring_bits: int = 8
    guard_bits: int = GUARD_BITS
    scheme: Scheme = "masking"
    suite: Suite = "x25519-mlkem768"
    committee: tuple[str, ...] = ()
    rotation_seed: bytes = b""
    noise: NoNoise = NoNoise()
    deadlines: Deadlines = Deadlines()
    ckks: Parameters | None = None

    @classmethod
    def create(
        cls,
        roster: Roster,
        *,
        round_number: int,
        layout: Layout,
        quantiser: Quantiser,
        model_digest: bytes,
        cohort: tuple[str, ...] | None = None,
        max_colluders: int | None = None,
        share_threshold: int | None = None,
        min_survivors: int | None = None,
        max_weight: int = 1,
        neighbours: int | None = None,
        dropout: float = 0.1,
        suite: Suite = "x25519-mlkem768",
        scheme: Scheme = "masking",
        packing: Packing = "coefficients",
        security: Security = "quantum",
        deadlines: Deadlines | None = None,
    ) -> RoundPlan:
        """A plan with the default sizes: f = floor((n - 1) / 3), t = q, |U3| >= max(q, f + 2, 3).

        `neighbours` is k. Up to 256 participants it defaults to n, the complete graph. Above, k and
        t are the smallest that open, but for one round in a million, when a fraction `dropout` is
        silent, and that keep `graph.guarantee` (docs/sparse-graphs.md).

        `packing` and `security` are of scheme `ckks` (`secagg.ckks.parameters`), whose committee of
        c above 64 participants has t = floor((c + floor((c - 1) / 3)) / 2) + 1, whoever of it is in
        the cohort.

        Raises:
            ConfigError: no honest participant could accept such a plan; the message says why.
        """
        names = tuple(sorted(cohort if cohort is not None else (m.tenant for m in roster.members)))
        if strangers := [name for name in names if name not in roster]:
            raise ConfigError(f"plan: {strangers[:5]} are not in the roster; enrol them first")
        n = len(names)
        f = (n - 1) // 3 if max_colluders is None else max_colluders
        q = quorum(n, f)
        committee = committee_of(names, roster.committee)
        if scheme == "ckks":
            k, t = committee_shares(n, f, len(committee), len(roster.committee))
        else:
            k, t = shares(n, f, neighbours, dropout)
        ring_bits = max(8, ring_bits_needed(quantiser.value_bits, n, GUARD_BITS))
        weight_bits = max(8, ring_bits_needed(max_weight.bit_length() + 1, n, GUARD_BITS))
        return cls(
            roster_digest=roster.digest,
            round_number=round_number,
            cohort=names,
            model_digest=model_digest,
            layout=layout,
            quantiser=quantiser,
            max_colluders=f,
            share_count=k,
            share_threshold=t if share_threshold is None else share_threshold,
            min_survivors=max(q, f + 2, MIN_SURVIVORS) if min_survivors is None else min_survivors,
            ring_bits=ring_bits,
            max_weight=max_weight,
            weight_ring_bits=weight_bits,
            scheme=scheme,
            suite=suite,
            committee=roster.committee,
            deadlines=deadlines or Deadlines(),
            ckks=None
            if scheme != "ckks"
            else ckks_parameters.choose(
                n=n, length=layout.size, ring_bits=ring_bits, weight_ring_bits=weight_bits,
                holders=k, packing=packing, security=security,
            ),
        )  # fmt: skip

    def __post_init__(self) -> None:
        for clause, holds, cure in _clauses(self):
            if not holds:
                raise ConfigError(f"plan: it is required that {clause}; {cure}")

    @property
    def n(self) -> int:
        """|U0|, the size of the cohort."""
        return len(self.cohort)

    @property
    def complete(self) -> bool:
        """Whether every participant holds a share of every other's secrets."""
        return self.share_count == self.n

    @cached_property
    def same_holders(self) -> tuple[int, ...]:
        """Who holds shares of everybody; empty on a sparse graph, with holders of one's own."""
        if self.scheme == "ckks":
            return committee_of(self.cohort, self.committee)
        return tuple(range(self.n)) if self.complete else ()

    @property
    def quorum(self) -> int:
        """q = floor((n + f) / 2) + 1: two quorums share an honest participant."""
        return quorum(self.n, self.max_colluders)

    @property
    def least(self) -> int:
        """The smallest |U1|, |U2| and |U3| with which the round may go on.

        On the complete graph t is among them: there the members of a set are holders of shares of
        all of it.
        """
        holders = self.share_threshold if self.complete else 0
        return max(self.quorum, self.min_survivors, holders)

    @property
    def vectors(self) -> tuple[tuple[int, int], ...]:
        """(length, ring width in bits) of each protected vector: the delta, then the weight."""
        return ((self.layout.size, self.ring_bits), (1, self.weight_ring_bits))

    @cached_property
    def context(self) -> bytes:
        """SHA-256 of the canonical bytes (32 bytes)."""
        return sha256(self.encode())

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.cohort)}

    def index(self, tenant: str) -> int | None:
        """The participant's index, or None for a stranger."""
        return self._index.get(tenant)

    def next_round(self, round_number: int, **changes: object) -> RoundPlan:
        """This plan for a later round."""
        return replace(self, round_number=round_number, **changes)  # type: ignore[arg-type]

    def encode(self) -> bytes:
        """Canonical bytes."""
        w = Writer().tag("plan").tag(self.suite).tag(self.scheme)
        w.fixed(self.roster_digest, 32).u64(self.round_number)
        w.u32(self.n)
        for tenant in self.cohort:
            w.text(tenant)
        w.u32(self.max_colluders).u32(self.share_count).u32(self.share_threshold)
        w.u32(self.quorum).u32(self.min_survivors)
        w.u32(len(self.committee))
        for tenant in self.committee:
            w.text(tenant)
        w.fixed(self.model_digest, 32)
        self.layout.write(w)
        w.f64(self.quantiser.clip).u8(self.quantiser.value_bits).blob(self.rotation_seed)
        w.u64(self.max_weight).u8(self.weight_ring_bits).u8(self.ring_bits).u8(self.guard_bits)
        w.tag("no noise")
        for deadline in self.deadlines.steps:
            w.u32(deadline)
        if self.ckks is not None:
            self.ckks.write(w)
        return w.finish()

    @classmethod
    def decode(cls, data: bytes) -> RoundPlan:
        """Inverse of `encode`.

        Raises:
            MalformedMessage: not a plan's canonical bytes, or a plan that cannot work.
        """
        try:
            return _read_plan(Reader(data, "plan"))
        except ConfigError as error:
            raise MalformedMessage(f"malformed plan: {error}") from None


def quorum(n: int, f: int) -> int:
    """q = floor((n + f) / 2) + 1: any two sets of q among n share more than f members."""
    return (n + f) // 2 + 1


def shares(n: int, f: int, neighbours: int | None, dropout: float) -> tuple[int, int]:
    """The default (k, t): see `RoundPlan.create`."""
    if not 3 <= n <= MAX_COHORT:
        return n, quorum(n, f)  # no cohort at all: the clauses say so
    if neighbours == n or (neighbours is None and n <= COMPLETE_UP_TO):
        return n, quorum(n, f)
    if neighbours is None:
        return graph.choose(n, f, math.ceil(dropout * n))
    return neighbours, graph.threshold(n, f, neighbours)


def committee_of(cohort: tuple[str, ...], named: tuple[str, ...]) -> tuple[int, ...]:
    """The indices of those who hold the shares of scheme `ckks`: never drawn by anybody."""
    if len(cohort) <= COMMITTEE_ABOVE:
        return tuple(range(len(cohort)))
    members = frozenset(named)
    return tuple(index for index, tenant in enumerate(cohort) if tenant in members)


def committee_shares(n: int, f: int, size: int, named: int) -> tuple[int, int]:
    """The default (k, t) of scheme `ckks`; see `RoundPlan.create`.

    `named` is how many the roster names: t follows from them all. From those in the cohort it would
    follow from whoever chooses cohorts.
    """
    return size, quorum(n, f) if n <= COMMITTEE_ABOVE else quorum(named, max(0, named - 1) // 3)


def _share_clauses(plan: RoundPlan) -> tuple[tuple[str, bool, str], ...]:
    n, f, k, t = plan.n, plan.max_colluders, plan.share_count, plan.share_threshold
    if plan.scheme == "ckks":
        size = len(plan.same_holders)
        return (
            (
                f"k = {k} is the size of the committee, {size}",
                0 < k == size,
                f"list a committee in the roster: the cohort has more than {COMMITTEE_ABOVE}",
            ),
            (f"k = {k} is at most {MAX_COMMITTEE}", k <= MAX_COMMITTEE, "name fewer in the roster"),
            (f"0 < t = {t} <= k = {k}", 0 < t <= k, "choose the threshold by `secagg plan`"),
            (
                f"t = {t} is above f = {f}",
                t > f or k < n,
                "colluders alone could open; raise the threshold",
            ),
        )
    if plan.complete:
        return (
            (f"t = {t} is at most n = {n}", 0 < t <= n, "lower the threshold"),
            (f"t = {t} is above f = {f}", t > f, "colluders alone could open; raise the threshold"),
            (f"2t = {2 * t} is above n + f = {n + f}", 2 * t > n + f, "raise the threshold"),
        )
    if not 0 < t <= k < n or f < 0:
        return ((f"0 < t = {t} <= k = {k} < n = {n}", False, "choose k and t by `secagg plan`"),)
    given = graph.guarantee(n, f, k, t, plan.least)
    c, bits = given.colluding_neighbours, graph.SECURITY_BITS
    return (
        (f"t = {t} is above the {c} holders that may collude", t > c, "raise the threshold"),
        (f"2t = {2 * t} is above k + c = {k + c}", 2 * t > k + c, "raise the threshold"),
        (
            f"honest survivors make one sum but for 2^-{bits} (here 2^-{given.one_sum_bits:.0f})",
            given.one_sum_bits >= bits,
            "draw more neighbours",
        ),
    )


def _clauses(plan: RoundPlan) -> tuple[tuple[str, bool, str], ...]:
    """(what must hold, whether it does, the cure) for every clause of a workable plan (C29)."""
    n, f = plan.n, plan.max_colluders
    value_room = ring_bits_needed(plan.quantiser.value_bits, max(n, 1), plan.guard_bits)
    weight_room = ring_bits_needed(plan.max_weight.bit_length() + 1, max(n, 1), plan.guard_bits)
    return (
        (
            "the roster and model digests are SHA-256",
            len(plan.roster_digest) == len(plan.model_digest) == 32,
            "give 32 bytes each",
        ),
        (f"the suite is one of {SUITES}", plan.suite in SUITES, "choose a suite that is built"),
        (
            f"the scheme is one of {SCHEMES}",
            plan.scheme in SCHEMES,
            "choose a scheme that is built",
        ),
        (
            "the round number has 64 bits and is not 0",
            0 < plan.round_number < 1 << 64,
            "count rounds from 1",
        ),
        (
            "the cohort is sorted and unique",
            list(plan.cohort) == sorted(set(plan.cohort)),
            "sort it",
        ),
        (
            f"the cohort has 3 to {MAX_COHORT} participants",
            3 <= n <= MAX_COHORT,
            "a sum over fewer hides nothing",
        ),
        ("0 <= f", f >= 0, "colluders are counted from 0"),
        *_share_clauses(plan),
        (
            f"min_survivors = {plan.min_survivors} is at least f + 2 = {f + 2}",
            plan.min_survivors >= f + 2,
            "raise it",
        ),
        (
            f"the quorum {plan.quorum} and min_survivors {plan.min_survivors} fit in n = {n}",
            plan.least <= n,
            "lower f or enlarge the cohort",
        ),
        (
            f"guard_bits = {plan.guard_bits} is at least {GUARD_BITS}",
            plan.guard_bits >= GUARD_BITS,
            "raise it",
        ),
        (
            f"ring_bits = {plan.ring_bits} is 8 to 64 and holds {value_room} bits",
            max(8, value_room) <= plan.ring_bits <= 64,
            "widen the ring or lower value_bits",
        ),
        ("max_weight is 1 to 2^40", 0 < plan.max_weight <= 1 << 40, "cap the weights"),
        (
            f"weight_ring_bits = {plan.weight_ring_bits} is 8 to 64 and holds {weight_room} bits",
            max(8, weight_room) <= plan.weight_ring_bits <= 64,
            "widen it",
        ),
        (
            f"the vector has at most {_MAX_LENGTH} coordinates",
            plan.layout.size <= _MAX_LENGTH,
            "split it",
        ),
        ("the rotation seed is empty", not plan.rotation_seed, "rotations are not built yet"),
        *_ckks_clauses(plan),
    )


def _ckks_clauses(plan: RoundPlan) -> tuple[tuple[str, bool, str], ...]:
    if plan.ckks is None or plan.scheme != "ckks":
        with_parameters = (plan.scheme == "ckks") == (plan.ckks is not None)
        return (("scheme ckks, and no other, has parameters", with_parameters, "name them"),)
    return plan.ckks.clauses(plan.n, plan.ring_bits, plan.weight_ring_bits)


def _read_plan(reader: Reader) -> RoundPlan:
    reader.tag("plan")
    suite = _one_of(reader, SUITES)
    scheme = _one_of(reader, SCHEMES)
    roster_digest, round_number = reader.fixed(32), reader.u64()
    cohort = tuple(reader.text() for _ in range(reader.count(MAX_COHORT)))
    f, k, t, q, least = (reader.u32() for _ in range(5))
    committee = tuple(reader.text() for _ in range(reader.count(MAX_COHORT)))
    model_digest, layout = reader.fixed(32), Layout.read(reader)
    quantiser, rotation_seed = Quantiser(reader.f64(), reader.u8()), reader.blob(32)
    max_weight, weight_ring_bits = reader.u64(), reader.u8()
    ring_bits, guard_bits = reader.u8(), reader.u8()
    reader.tag("no noise")
    deadlines = Deadlines(*(reader.u32() for _ in range(6)))
    parameters = Parameters.read(reader) if scheme == "ckks" else None
    reader.end()
    plan = RoundPlan(
        roster_digest=roster_digest, round_number=round_number, cohort=cohort,
        model_digest=model_digest, layout=layout, quantiser=quantiser, max_colluders=f,
        share_count=k, share_threshold=t, min_survivors=least, ring_bits=ring_bits,
        max_weight=max_weight, weight_ring_bits=weight_ring_bits, guard_bits=guard_bits,
        scheme=scheme, suite=suite, committee=committee,
        rotation_seed=rotation_seed, deadlines=deadlines, ckks=parameters,
    )  # fmt: skip
    if q != plan.quorum:
        raise reader.error("the quorum does not follow from the cohort and f")
    return plan


def _one_of(reader: Reader, allowed: tuple[_Name, ...]) -> _Name:
    data = reader.blob(64)
    for name in allowed:
        if data == name.encode():
            return name
    raise reader.error(f"expected one of {allowed}")
