"""Cohorts, inputs and whole rounds for tests, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from secagg.aggregator import Aggregator
from secagg.ckks.parameters import Packing
from secagg.encoding import Quantiser, Values
from secagg.identity import Identity, IdentitySeed, Member, Roster
from secagg.layout import Layout
from secagg.ledger import Ledger, MemoryLedger
from secagg.plan import RoundPlan, Scheme, Suite
from secagg.policy import Policy
from secagg.secret import SealKey
from secagg.spool import MemorySpool
from secagg.testing.faults import Fault
from secagg.testing.network import SimulatedNetwork
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant

MODEL = bytes(range(32))
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Cohort:
    """Identities (sorted by name, so that position is index) and the roster that lists them."""

    identities: tuple[Identity, ...]
    roster: Roster

    @property
    def names(self) -> tuple[str, ...]:
        """Tenant ids in index order."""
        return tuple(identity.tenant for identity in self.identities)

    def identity(self, tenant: str) -> Identity:
        """One identity by its tenant id."""
        return self.identities[self.names.index(tenant)]

    def plan(
        self,
        length: int = 8,
        *,
        round_number: int = 1,
        clip: float = 1.0,
        value_bits: int = 16,
        max_weight: int = 100,
        max_colluders: int | None = None,
        share_threshold: int | None = None,
        min_survivors: int | None = None,
        cohort: tuple[str, ...] | None = None,
        neighbours: int | None = None,
        suite: Suite = "x25519-mlkem768",
        scheme: Scheme = "masking",
        packing: Packing = "coefficients",
    ) -> RoundPlan:
        """A plan over this roster, with protocol.md's defaults where nothing is said."""
        return RoundPlan.create(
            self.roster,
            round_number=round_number,
            layout=Layout.flat(length),
            quantiser=Quantiser(clip, value_bits),
            model_digest=MODEL,
            cohort=cohort,
            max_colluders=max_colluders,
            share_threshold=share_threshold,
            min_survivors=min_survivors,
            max_weight=max_weight,
            neighbours=neighbours,
            suite=suite,
            scheme=scheme,
            packing=packing,
        )


@lru_cache(maxsize=64)
def cohort(n: int, seed: int = 0, committee: int = 0) -> Cohort:
    """`n` tenants t000, t001, ... with keys from `seed`; the first `committee` are the roster's."""
    identities = tuple(
        Identity(name, IdentitySeed(identity_seed(name, seed)))
        for name in (f"t{number:03}" for number in range(n))
    )
    members = tuple(map(Member.create, identities))
    listed = tuple(identity.tenant for identity in identities[:committee])
    return Cohort(identities, Roster.create(members, listed))


def identity_seed(tenant: str, seed: int = 0) -> bytes:
    """The private Ed25519 key of a tenant of `cohort` (32 bytes): of no use to anybody."""
    return SeededRandomness(f"identity {seed} {tenant}")(32)


def policy_for(plan: RoundPlan) -> Policy:
    """The strictest policy in f, survivors, scheme, suite and graph that takes part in `plan`."""
    return Policy(
        plan.roster_digest,
        max_colluders=plan.max_colluders,
        min_survivors=plan.min_survivors,
        schemes=(plan.scheme,),
        packings=() if plan.ckks is None else (plan.ckks.packing,),
        securities=() if plan.ckks is None else (plan.ckks.security,),
        committee_corrupt=0 if plan.ckks is None else (plan.share_threshold - 1) / plan.share_count,
        suites=(plan.suite,),
        complete_up_to=plan.n if plan.complete else 0,
        sparse_corrupt=plan.max_colluders / plan.n,
        model_digests=frozenset({plan.model_digest}),
        layout_digests=frozenset({plan.layout.digest}),
    )


def make_tenants(
    members: Cohort,
    plan: RoundPlan,
    *,
    seed: int = 0,
    vectors: Mapping[str, Values] | Sequence[Values] | None = None,
    weights: Mapping[str, int] | Sequence[int] | None = None,
    policy: Policy | None = None,
    ledgers: Mapping[str, Ledger] | None = None,
    kinds: Mapping[str, type[SimulatedTenant]] | None = None,
    record_levels: bool = True,
) -> dict[str, SimulatedTenant]:
    """One honest tenant for each member of the plan's cohort; `kinds` replaces some of them."""
    inputs = _by_name(plan, vectors)
    shares = _by_name(plan, weights)
    tenants: dict[str, SimulatedTenant] = {}
    for name in plan.cohort:
        # The plan's context is in the name: another round never repeats a round's secrets.
        draw = SeededRandomness(f"tenant {seed} {name} {plan.context.hex()}")
        kind = (kinds or {}).get(name, SimulatedTenant)
        tenants[name] = kind(
            identity=members.identity(name),
            roster=members.roster,
            policy=policy or policy_for(plan),
            ledger=(ledgers or {}).get(name) or MemoryLedger(),
            seal_key=SealKey(draw(32)),
            vector=inputs.get(name, draw.uniform(plan.layout.size, plan.quantiser.clip)),
            weight=shares.get(name, 1 + draw.below(plan.max_weight)),
            randomness=draw,
            record_levels=record_levels,
        )
    return tenants


def make_round(
    n: int = 5,
    length: int = 8,
    *,
    seed: int = 0,
    faults: Iterable[Fault] = (),
    plan: RoundPlan | None = None,
    vectors: Mapping[str, Values] | Sequence[Values] | None = None,
    weights: Mapping[str, int] | Sequence[int] | None = None,
    ledgers: Mapping[str, Ledger] | None = None,
    policy: Policy | None = None,
    kinds: Mapping[str, type[SimulatedTenant]] | None = None,
    aggregator: Callable[..., Aggregator] = Aggregator,
    piece_bytes: int = 1 << 18,
    jitter: SeededRandomness | None = None,
    record_levels: bool = True,
) -> SimulatedNetwork:
    """A round of `n` honest tenants and one aggregator, ready to `run()`.

    `aggregator` and `kinds` put deviating parties in place of honest ones.
    """
    members = cohort(n)
    chosen = members.plan(length) if plan is None else plan
    tenants = make_tenants(
        members, chosen, seed=seed, vectors=vectors, weights=weights, policy=policy,
        ledgers=ledgers, kinds=kinds, record_levels=record_levels,
    )  # fmt: skip
    return SimulatedNetwork(
        aggregator(chosen, members.roster, spool=MemorySpool()),
        tenants.values(),
        faults=faults,
        piece_bytes=piece_bytes,
        jitter=jitter,
    )


def _by_name(plan: RoundPlan, values: Mapping[str, _T] | Sequence[_T] | None) -> Mapping[str, _T]:
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return values
    return dict(zip(plan.cohort, values, strict=True))
