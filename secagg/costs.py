"""What a round costs in CPU, from counts of its operations and what one of each takes.

A model, and no measurement: `secagg bench` measures rounds. The unit costs below are those of one
core of an AMD EPYC server (AES and SHA instructions, AVX-512) under CPython 3.11, cryptography 50
and numpy 2, chosen so that rounds of 5 to 100 tenants come out as measured; other machines differ
by a factor, and the larger part of a cost mostly stays the larger part. `secagg.calibration`
measures single operations on the machine that it runs on, without the wire around them.

Counted are arithmetic, hashes, signatures and keys, for both schemes; sockets, disks and training
are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from secagg.ckks.parameters import Parameters
from secagg.errors import ConfigError
from secagg.plan import RoundPlan
from secagg.prg import word_dtype
from secagg.scheme import leaf_places


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """CPU seconds of one operation, with what Python adds around it.

    A residue is one of the N x L numbers of a ciphertext of degree N with L primes.
    """

    mask_byte: float = 1 / 7.5e9
    """One byte of keystream, made and added."""
    tenant_value: float = 12e-9
    """One coordinate digested, quantised, packed and hashed."""
    coordinator_value: float = 3.5e-9
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
    prepared_value: float = 7e-9
    """`ckks`: one coordinate digested and quantised."""
    encrypted_residue: float = 10e-9
    """`ckks`: encoded, encrypted, packed and hashed."""
    added_residue: float = 2.8e-9
    """`ckks`: received, hashed, checked to be below its prime, and added."""
    decrypted_residue: float = 8e-9
    """`ckks`: of the sum, decrypted and decoded."""
    slot: float = 400e-9
    """`ckks`, packing slots: one slot of a vector encoded, or of a sum decoded, by SEAL."""
    key_term: float = 0.4e-9
    """`ckks`: one term of evaluating or interpolating one coefficient's polynomial."""
    key_element: float = 10e-9
    """`ckks`: one element of a share packed and sealed, or opened and checked, and added."""
    relayed_element: float = 10e-9
    """`ckks`: one element of a sealed share received, hashed and sent on by the coordinator."""


TYPICAL = UnitCosts()
"""See the module's docstring."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of one role, by what they go into."""

    masks: float
    values: float
    signatures: float
    keys: float
    shares: float
    ciphertexts: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        own = self.masks + self.values + self.ciphertexts
        return own + self.signatures + self.keys + self.shares


def neighbours(plan: RoundPlan) -> float:
    """With how many others a participant shares a mask: all, or the mean of the drawn union."""
    if plan.scheme == "ckks":
        return 0
    if plan.complete:
        return plan.n - 1
    k, others = plan.share_count, plan.n - 1
    return 2 * k - k * k / others


def tenant_cost(plan: RoundPlan, unit: UnitCosts = TYPICAL) -> Cost:
    """One tenant that survives; all others are there until U2. In a `ckks` committee: a member."""
    if plan.ckks is not None:
        return _encrypting(plan, plan.ckks, unit)
    k, t = plan.share_count, plan.share_threshold
    others, pads = neighbours(plan), _pads(plan)
    sealed = k - plan.complete
    hybrid = plan.suite != "x25519"
    exchanges = unit.exchange * (2 * sealed + others)
    kem = hybrid * (sealed + pads) * (unit.encapsulation + unit.decapsulation)
    return Cost(
        masks=(others + 1) * _mask_bytes(plan) * unit.mask_byte,
        values=plan.layout.size * unit.tenant_value,
        signatures=_tenant_signatures(plan) * unit.signature,
        keys=exchanges + kem,
        shares=2 * k * t * unit.share_step + 2 * sealed * unit.leaf,
    )


def coordinator_cost(plan: RoundPlan, silent: int, unit: UnitCosts = TYPICAL) -> Cost:
    """The coordinator, when `silent` tenants stop answering between U2 and their uploads."""
    if plan.ckks is not None:
        return _adding(plan, plan.ckks, silent, unit)
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


def _encrypting(plan: RoundPlan, parameters: Parameters, unit: UnitCosts) -> Cost:
    n, k, t, degree = plan.n, plan.share_count, plan.share_threshold, parameters.degree
    one = unit.exchange + (plan.suite != "x25519") * unit.encapsulation
    other = unit.exchange + (plan.suite != "x25519") * unit.decapsulation
    return Cost(
        masks=0.0,
        values=plan.layout.size * unit.prepared_value,
        signatures=_tenant_signatures(plan) * unit.signature,
        keys=(k - 1) * one + (n - 1) * other,
        # Dealt to k at t terms an element; received of n, checked by four combinations, added.
        shares=degree * (k * t * unit.key_term + (k + n) * unit.key_element) + (k + n) * unit.leaf,
        ciphertexts=_residues(plan, parameters) * unit.encrypted_residue + _slots(plan, unit),
    )


def _adding(plan: RoundPlan, parameters: Parameters, silent: int, unit: UnitCosts) -> Cost:
    n, k, t = plan.n, plan.share_count, plan.share_threshold
    survivors, residues = n - silent, _residues(plan, parameters)
    answers = max(t, k - silent)
    return Cost(
        masks=0.0,
        values=0.0,
        signatures=(3 * n + 3 * survivors) * unit.signature,
        keys=0.0,
        shares=n * k * (2 * unit.leaf + parameters.degree * unit.relayed_element)
        + parameters.degree * (answers * unit.key_element + t * (1 + answers - t) * unit.key_term),
        ciphertexts=residues * (survivors * unit.added_residue + unit.decrypted_residue)
        + _slots(plan, unit),
    )


def _tenant_signatures(plan: RoundPlan) -> int:
    return 4 * (plan.n - 1) + plan.quorum


def _residues(plan: RoundPlan, parameters: Parameters) -> int:
    """Of one upload."""
    return len(leaf_places(plan)) * parameters.degree * len(parameters.modulus_bits)


def _slots(plan: RoundPlan, unit: UnitCosts) -> float:
    slots = plan.ckks is not None and plan.ckks.packing == "slots"
    return sum(place.count for place in leaf_places(plan)) * unit.slot if slots else 0.0


def _pads(plan: RoundPlan) -> float:
    """Pads that one participant seals, on average; it opens as many."""
    return (plan.n - 1) / 2 if plan.complete else plan.share_count


def _mask_bytes(plan: RoundPlan) -> int:
    return plan.layout.size * word_dtype(plan.ring_bits).itemsize


def units_to_json(units: UnitCosts) -> dict[str, float]:
    """Seconds by name, as `secagg bench units` prints them."""
    return asdict(units)


def units_from_json(facts: Mapping[str, object]) -> UnitCosts:
    """Inverse of `units_to_json`; names that are left out have their defaults.

    Raises:
        ConfigError: a name that is none, or a cost that is no positive number.
    """
    known = {one.name for one in fields(UnitCosts)}
    if unknown := sorted(facts.keys() - known):
        raise ConfigError(f"unit costs: {unknown[:5]} are none; `secagg bench units` prints all")
    costs: dict[str, float] = {}
    for name, value in facts.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ConfigError(f"unit costs: {name} is {value!r}, not seconds between 0 and 1")
        costs[name] = float(value)
    return UnitCosts(**costs)
