"""What a benchmark works on: inputs that anybody can draw again, and who falls silent.

Tenant i of n contributes d levels of B bits, drawn by

    m = 2**(B - 1) - 1
    numpy.random.default_rng(seed * 1000003 + i).integers(-m, m, d, numpy.int64, endpoint=True)

as real numbers: each level times 2**(1 - B), which float32 holds exactly (above 25 bits: float64).
The quantiser's grid is that very grid (clip = m * 2**(1 - B), just below 1) and every weight is 1
of 1, so stochastic rounding, which no seed may decide, finds nothing to round: the sum is known.
The last floor(n * dropout) tenants are silent once U2 is agreed. The sum that opens is the
sum of the others' levels; its name is SHA-256 over it as little-endian int64.

A numpy generator makes test data here and nothing else: keys, masks and rounding come from the
operating system.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.parameters import Packing, Security
from secagg.encoding import Quantiser, Values
from secagg.errors import ConfigError
from secagg.identity import Identity, Member, Roster
from secagg.layout import Layout
from secagg.plan import RoundPlan, Scheme, Suite

_SEED_STRIDE = 1_000_003
_BLOCK = 1 << 20
_FLOAT32_LEVEL_BITS = 25
_PLANNED_DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Workload:
    """One round's size and inputs."""

    tenants: int
    length: int
    dropout: float
    value_bits: int
    seed: int
    suite: Suite | None = None
    """None: the plan's default."""
    neighbours: int | None = None
    """None: the plan's default."""
    colluders: int | None = None
    """None: the plan's default."""
    scheme: Scheme = "masking"
    packing: Packing = "coefficients"
    security: Security = "quantum"
    committee: int = 0
    """How many tenants, the first ones, the roster lists as a committee."""
    like: RoundPlan | None = None
    """Whose ring and widths a plan of scheme `ckks` has; None: its own."""

    @property
    def quantiser(self) -> Quantiser:
        """The grid that the inputs lie on."""
        step = 2.0 ** (1 - self.value_bits)
        return Quantiser((2 ** (self.value_bits - 1) - 1) * step, self.value_bits)

    @property
    def silent(self) -> int:
        """How many tenants say nothing from masked_input on; they are the last ones."""
        # A dropout such as 0.29 is a little less in binary: 0.29 * 100 must still be 29.
        return math.floor(round(self.tenants * self.dropout, 6))

    @property
    def survivors(self) -> range:
        """The indices of the others."""
        return range(self.tenants - self.silent)

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ConfigError: no such round is possible, or it could not open after the dropouts.
        """
        plan = self.plan(self.roster(tuple(self.identities())))
        most = plan.n - max(plan.least, plan.share_threshold)
        if not 0 <= self.silent <= most:
            raise ConfigError(
                f"a dropout of {self.dropout} silences {self.silent} of {self.tenants} tenants; "
                f"such a cohort opens after 0 to {most} silent ones"
            )

    def identities(self) -> Iterator[Identity]:
        """Fresh ones for all tenants."""
        for index in range(self.tenants):
            yield Identity.generate(f"tenant-{index:05d}", os.urandom)

    def roster(self, identities: tuple[Identity, ...]) -> Roster:
        """All of them, and the committee."""
        committee = tuple(one.tenant for one in identities[: self.committee])
        return Roster.create(tuple(map(Member.create, identities)), committee)

    def plan(self, roster: Roster) -> RoundPlan:
        """The default plan for this cohort but for what is chosen, with the inputs' grid."""
        chosen: dict[str, Any] = {
            "suite": self.suite,
            "neighbours": self.neighbours,
            "max_colluders": self.colluders,
        }
        plan = RoundPlan.create(
            roster,
            round_number=1,
            layout=Layout.flat(self.length),
            quantiser=self.quantiser,
            model_digest=bytes(32),
            dropout=max(_PLANNED_DROPOUT, self.dropout),
            scheme=self.scheme,
            packing=self.packing,
            security=self.security,
            **{name: value for name, value in chosen.items() if value is not None},
        )
        if self.like is None:
            return plan
        return replace(
            plan,
            ckks=self.like.ckks,
            ring_bits=self.like.ring_bits,
            weight_ring_bits=self.like.weight_ring_bits,
        )

    def warm_up(self) -> Workload:
        """A small round that needs everything that this one needs.

        In scheme `ckks` it has the same ring and a whole polynomial besides the last one: kernels
        are compiled and tables made, as in a node that is not in its first round.
        """
        small = Workload(tenants=3, length=1000, dropout=0.0, value_bits=16, seed=0)
        if self.scheme != "ckks":
            return small
        plan = self.plan(self.roster(tuple(self.identities())))
        assert plan.ckks is not None  # noqa: S101  a plan of this scheme has them
        return replace(
            small,
            length=1000 + plan.ckks.leaf_values(3, plan.ring_bits),
            value_bits=self.value_bits,
            scheme=self.scheme,
            like=plan,
        )

    def values(self, index: int) -> Values:
        """The input of one tenant: (d,) float32 or float64."""
        exact = np.float32 if self.value_bits <= _FLOAT32_LEVEL_BITS else np.float64
        values: Values = np.empty(self.length, exact)
        start = 0
        for levels in self._levels(index):
            part = values[start : start + len(levels)]
            np.multiply(levels, self.quantiser.scale, out=part, casting="same_kind")
            start += len(levels)
        return values

    def is_sum(self, level_sum: NDArray[np.int64]) -> bool:
        """Whether this is the sum of the survivors' levels, drawn anew."""
        drawn = [self._levels(index) for index in self.survivors]
        for start in range(0, self.length, _BLOCK):
            opened = level_sum[start : start + _BLOCK]
            expected = np.zeros(min(_BLOCK, self.length - start), np.int64)
            for levels in drawn:  # one block at a time: a thousand tenants' would fill the memory
                expected += next(levels)
            if not np.array_equal(opened, expected):
                return False
        return len(level_sum) == self.length

    def _levels(self, index: int) -> Iterator[NDArray[np.int64]]:
        """In blocks, which are the same numbers as one draw of them all."""
        rng = np.random.default_rng(self.seed * _SEED_STRIDE + index)
        most = self.quantiser.max_level
        for start in range(0, self.length, _BLOCK):
            count = min(_BLOCK, self.length - start)
            yield rng.integers(-most, most, count, np.int64, endpoint=True)


def sum_digest(level_sum: NDArray[np.int64]) -> str:
    """SHA-256 over a sum as little-endian int64, in hex."""
    return hashlib.sha256(level_sum.astype("<i8", copy=False).data).hexdigest()
