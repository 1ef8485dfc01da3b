"""What a round costs in CPU, from counts of its operations and what one of each takes.

A model, and no measurement: `secagg bench` measures. The unit costs are those of one core of an
AMD EPYC server (AES and SHA instructions, AVX-512) under CPython 3.11, cryptography 50 and numpy 2;
other machines differ by a factor, and the larger part of a cost stays the larger part.
"""

from __future__ import annotations

from dataclasses import dataclass

from secagg.plan import RoundPlan
from secagg.prg import word_dtype


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """CPU seconds of one operation, with what Python adds around it."""

    mask_byte: float = 1 / 7.5e9
    """One byte of keystream, made and added."""
    tenant_value: float = 9e-9
    """One coordinate quantised, packed and hashed."""
    coordinator_value: float = 5e-9
    """One coordinate of one upload received, hashed and added."""
    opened_value: float = 4e-9
    """One coordinate of the sum decoded."""
    signature: float = 125e-6
    """One signed record of another party read, and its Ed25519 signature verified."""
    exchange: float = 45e-6
    """One X25519 exchange with its HKDF."""
    encapsulation: float = 75e-6
    """One ML-KEM-768 encapsulation to a fresh public key, with its HKDF."""
    decapsulation: float = 60e-6
    """One ML-KEM-768 decapsulation, with its HKDF."""
    leaf: float = 25e-6
    """One share leaf written, hashed, sent and read, by one party."""
    share_step: float = 80e-9
    """One step of evaluating, or one term of interpolating, a polynomial."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of one role, by what they go into."""

    masks: float
    values: float
    signatures: float
    keys: float
    shares: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.masks + self.values + self.signatures + self.keys + self.shares


def neighbours(plan: RoundPlan) -> float:
    """With how many others a participant shares a mask: all, or the mean of the drawn union."""
    if plan.complete:
        return plan.n - 1
    k, others = plan.share_count, plan.n - 1
    return 2 * k - k * k / others


def tenant_cost(plan: RoundPlan, unit: UnitCosts = UnitCosts()) -> Cost:
    """One tenant that survives; all others are there until U2."""
    n, k, t = plan.n, plan.share_count, plan.share_threshold
    others, pads = neighbours(plan), _pads(plan)
    sealed = k - plan.complete
    hybrid = plan.suite != "x25519"
    exchanges = unit.exchange * (2 * sealed + others)
    kem = hybrid * (sealed + pads) * (unit.encapsulation + unit.decapsulation)
    return Cost(
        masks=(others + 1) * _mask_bytes(plan) * unit.mask_byte,
        values=plan.layout.size * unit.tenant_value,
        signatures=(4 * (n - 1) + plan.quorum) * unit.signature,
        keys=exchanges + kem,
        shares=2 * k * t * unit.share_step + 2 * sealed * unit.leaf,
    )


def coordinator_cost(plan: RoundPlan, silent: int, unit: UnitCosts = UnitCosts()) -> Cost:
    """The coordinator, when `silent` tenants stop answering between U2 and their uploads."""
    n, k, t = plan.n, plan.share_count, plan.share_threshold
    survivors = n - silent
    rebuilt = silent * neighbours(plan) * survivors / n
    hybrid = plan.suite != "x25519"
    return Cost(
        masks=(survivors + rebuilt) * _mask_bytes(plan) * unit.mask_byte,
        values=plan.layout.size * (survivors * unit.coordinator_value + unit.opened_value),
        signatures=(3 * n + 3 * survivors) * unit.signature,
        keys=rebuilt * (unit.exchange + hybrid * unit.decapsulation),
        shares=n * (2 * k * unit.leaf + t * t * unit.share_step),
    )


def _pads(plan: RoundPlan) -> float:
    """Pads that one participant seals, on average; it opens as many."""
    return (plan.n - 1) / 2 if plan.complete else plan.share_count


def _mask_bytes(plan: RoundPlan) -> int:
    return plan.layout.size * word_dtype(plan.ring_bits).itemsize
