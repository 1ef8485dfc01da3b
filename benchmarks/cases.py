"""The rounds that are measured: a table beside the peers, cost against n, d and dropout, and scheme
against scheme."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secagg.plan import COMMITTEE_ABOVE

OURS, CKKS = "secagg", "secagg-ckks"
FLOWER, FEDAVG, NVFLARE = "flower", "fedavg", "nvflare"
PEERS = (FLOWER, FEDAVG, NVFLARE)
COMMITTEE = 30
"""Who holds the shares of scheme `ckks` where that may not be the whole cohort."""


@dataclass(frozen=True, slots=True)
class Case:
    """One size of round. `colluders` None: the plan's default."""

    tenants: int
    length: int
    dropout: float = 0.0
    value_bits: int = 16
    colluders: int | None = None

    @classmethod
    def parse(cls, text: str) -> Case:
        """N:D[:DROPOUT[:VALUE_BITS[:COLLUDERS]]]."""
        fields = [*text.split(":"), "", "", ""]
        return cls(
            int(fields[0]),
            int(float(fields[1])),
            float(fields[2] or 0),
            int(fields[3] or 16),
            int(fields[4]) if fields[4] else None,
        )

    @property
    def key(self) -> str:
        """What `parse` reads."""
        colluders = "" if self.colluders is None else self.colluders
        return f"{self.tenants}:{self.length}:{self.dropout}:{self.value_bits}:{colluders}"

    @property
    def silent(self) -> int:
        """How many tenants say nothing from masked_input on."""
        return int(round(self.tenants * self.dropout, 6))

    @property
    def committee(self) -> int:
        """How many tenants the roster lists as the committee of scheme `ckks`."""
        return COMMITTEE if self.tenants > COMMITTEE_ABOVE else 0

    def __str__(self) -> str:
        bits = f", {self.value_bits} bits" if self.value_bits != 16 else ""
        sparse = f", f = {self.colluders}" if self.colluders is not None else ""
        dropout = f", dropout {self.dropout:.0%}" if self.dropout else ""
        return f"n = {self.tenants:,}, d = {self.length:,}{dropout}{bits}{sparse}"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rounds that differ in one thing. `name` is n, d or dropout, or `schemes`: ours alone,
    against n."""

    name: str
    title: str
    cases: tuple[Case, ...]

    def of(self, case: Case) -> float:
        """Where a case stands on the axis."""
        places = {"d": case.length, "dropout": case.dropout}
        return places.get(self.name, case.tenants)


@dataclass(frozen=True, slots=True)
class Programme:
    """What one run of the benchmark measures, in about `budget_s` seconds.

    `most_work` is the largest n * d, and `most_tenants` the largest n, for which a peer is asked.
    """

    budget_s: float
    turns: int
    table: tuple[Case, ...]
    sweeps: tuple[Sweep, ...]
    most_tenants: dict[str, int]
    most_work: dict[str, float]
    most_encrypted: int = 100
    """The largest n for which scheme `ckks` is measured."""

    def cases(self) -> Iterator[Case]:
        """Every case once, from the least work to the most."""
        named = [*self.table, *(case for sweep in self.sweeps for case in sweep.cases)]
        yield from sorted(dict.fromkeys(named), key=_work)

    def ours(self, case: Case) -> Iterator[str]:
        """Which of our schemes take part in a case."""
        yield OURS
        if case.tenants <= self.most_encrypted:
            yield CKKS

    def peers(self, case: Case) -> Iterator[str]:
        """Which peers take part in a case."""
        compared = [sweep.cases for sweep in self.sweeps if sweep.name != "schemes"]
        if not any(case in cases for cases in (self.table, *compared)):
            return
        for peer in PEERS:
            fits = case.tenants <= self.most_tenants[peer]
            if fits and case.tenants * case.length <= self.most_work[peer]:
                yield peer


def _work(case: Case) -> float:
    pairs = case.tenants * min(case.tenants, 200)
    return pairs * (case.length + 200_000)


def _by_n(length: int, *tenants: int) -> Sweep:
    # Above 256 tenants a plan is sparse, and cheap only if fewer than a third collude.
    cases = tuple(Case(n, length, colluders=n // 10 if n > 256 else None) for n in tenants)
    return Sweep("n", f"d = {length:,}, nobody silent", cases)


def _by_scheme(length: int, *tenants: int) -> Sweep:
    cases = tuple(Case(n, length) for n in tenants)
    return Sweep("schemes", f"d = {length:,}, nobody silent", cases)


def _by_d(n: int, *lengths: int) -> Sweep:
    return Sweep("d", f"n = {n}, nobody silent", tuple(Case(n, length) for length in lengths))


def _by_dropout(n: int, length: int, *dropouts: float) -> Sweep:
    cases = tuple(Case(n, length, dropout) for dropout in dropouts)
    return Sweep("dropout", f"n = {n}, d = {length:,}", cases)


QUICK = Programme(
    budget_s=100,
    turns=1,
    table=(Case(10, 100_000), Case(10, 1_000_000)),
    sweeps=(
        _by_n(10_000, 5, 10, 20),
        _by_d(10, 10_000, 100_000, 1_000_000),
        _by_dropout(10, 100_000, 0.0, 0.1, 0.2, 0.3),
        _by_scheme(100_000, 5, 10, 20),
    ),
    most_tenants={FLOWER: 20, FEDAVG: 20, NVFLARE: 20},
    most_work={FLOWER: 1e7, FEDAVG: 1e7, NVFLARE: 1e7},
)

USUAL = Programme(
    budget_s=900,
    turns=3,
    table=(
        Case(10, 100_000),
        Case(10, 1_000_000),
        Case(10, 1_000_000, 0.2),
        Case(20, 1_000_000),
        Case(10, 10_000_000),
        Case(50, 1_000_000, 0.2),
    ),
    sweeps=(
        _by_n(100_000, 5, 10, 20, 50, 100, 250, 1000),
        _by_d(10, 10_000, 100_000, 1_000_000, 10_000_000),
        _by_dropout(20, 1_000_000, 0.0, 0.1, 0.2, 0.3),
        _by_scheme(1_000_000, 5, 10, 20, 40, 60, 100),
    ),
    most_tenants={FLOWER: 50, FEDAVG: 100, NVFLARE: 100},
    most_work={FLOWER: 1e8, FEDAVG: 1e8, NVFLARE: 2e7},
)

FULL = Programme(
    budget_s=float("inf"),
    turns=5,
    table=USUAL.table,
    sweeps=(
        _by_n(100_000, 5, 10, 20, 50, 100, 250, 1000),
        _by_d(10, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
        _by_dropout(20, 1_000_000, 0.0, 0.1, 0.2, 0.3),
        _by_scheme(1_000_000, 5, 10, 20, 40, 60, 100),
    ),
    most_tenants={FLOWER: 100, FEDAVG: 100, NVFLARE: 100},
    most_work={FLOWER: 1e8, FEDAVG: 1e9, NVFLARE: 1e8},
)
