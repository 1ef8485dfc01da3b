"""`scheme = "auto"`: which scheme a round runs under, and why.

    from functools import partial
    choice = choose_scheme(partial(RoundPlan.create, roster, round_number=7, ...), dropout=0.1)
    choice.plan, choice.scheme, choice.reasons

The cheaper one wins, and cheaper is the time on the critical path of a round, all tenants working
at once and the coordinator after them:

    the busiest tenant's CPU + its bytes up and down at a stated bandwidth + the coordinator's CPU

because that is what everybody waits for: CPU alone would never say that a ciphertext is longer than
a masked vector, and bytes alone not that masks cost with every neighbour and dropout. CPU is the
model of `secagg.costs` with the given unit costs, and all on one core; bytes are those of the
messages' encoders. The coordinator's own link is left out, and the bandwidth is the tenant's.
Given the same arguments the choice is the same; `masking` wins a tie.

Deliberately not here: what a tenant's policy allows, beyond `allowed`; noise; a choice for any
other purpose, such as going on to compute on encrypted sums (name packing `slots` for that).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from secagg.costs import TYPICAL, UnitCosts, coordinator_cost, tenant_cost
from secagg.errors import ConfigError
from secagg.plan import SCHEMES, RoundPlan, Scheme
from secagg.traffic import traffic

BYTES_PER_SECOND = 125e6
"""1 Gbit/s: tenants of a federation of institutions sit on links of their own."""


class MakePlan(Protocol):
    """Makes the plan of one round under the scheme that it is given."""

    def __call__(self, *, scheme: Scheme) -> RoundPlan:
        """Raises: ConfigError where the scheme cannot do it, such as without a committee."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one scheme would cost."""

    tenant_cpu_s: float
    coordinator_cpu_s: float
    bytes_up: int
    bytes_down: int
    transfer_s: float

    @property
    def critical_s(self) -> float:
        """What is compared; see the module's docstring."""
        return self.tenant_cpu_s + self.transfer_s + self.coordinator_cpu_s


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen plan, the figures of each scheme that was possible, and sentences to print."""

    plan: RoundPlan
    figures: Mapping[Scheme, Figures]
    reasons: tuple[str, ...]

    @property
    def scheme(self) -> Scheme:
        """What was chosen."""
        return self.plan.scheme


def choose_scheme(
    make: MakePlan,
    *,
    dropout: float = 0.1,
    units: UnitCosts = TYPICAL,
    allowed: Sequence[Scheme] = SCHEMES,
    bytes_per_second: float = BYTES_PER_SECOND,
) -> Choice:
    """The cheaper of the schemes in `allowed` that `make` can make a plan for.

    `dropout` is the fraction of the cohort that is expected to fall silent before its upload.

    Raises:
        ConfigError: there is none; says what each one lacks.
    """
    plans: dict[Scheme, RoundPlan] = {}
    refused: list[str] = []
    for scheme in SCHEMES:
        if scheme not in allowed:
            refused.append(f"{scheme}: not allowed")
            continue
        try:
            plans[scheme] = make(scheme=scheme)
        except ConfigError as error:
            refused.append(f"{scheme}: not possible ({error})")
    if not plans:
        raise ConfigError(f"no scheme can run this round; {'; '.join(refused)}")
    figures = {
        scheme: figures_of(plan, dropout, units, bytes_per_second) for scheme, plan in plans.items()
    }
    best = min(plans, key=lambda scheme: figures[scheme].critical_s)
    reasons = (*_compared(plans, figures, dropout, bytes_per_second, best), *refused)
    return Choice(plans[best], figures, reasons)


def figures_of(
    plan: RoundPlan,
    dropout: float,
    units: UnitCosts = TYPICAL,
    bytes_per_second: float = BYTES_PER_SECOND,
) -> Figures:
    """What is compared of one plan."""
    steps = traffic(plan).values()
    up, down = sum(one.up for one in steps), sum(one.down for one in steps)
    return Figures(
        tenant_cost(plan, units).total,
        coordinator_cost(plan, math.floor(dropout * plan.n), units).total,
        up,
        down,
        (up + down) / bytes_per_second,
    )


def _compared(
    plans: Mapping[Scheme, RoundPlan],
    figures: Mapping[Scheme, Figures],
    dropout: float,
    bytes_per_second: float,
    best: Scheme,
) -> list[str]:
    plan = plans[best]
    why = f"n = {plan.n:,}, d = {plan.layout.size:,}, {100 * dropout:g}% silent after U2"
    lines = [
        f"{best}: {why}: "
        + ("the only scheme that is possible" if len(plans) == 1 else "the shorter critical path")
        + f" (tenant CPU + bytes at {bytes_per_second * 8e-9:g} Gbit/s + coordinator CPU)"
    ]
    return lines + [
        f"{scheme}: {_ms(one.critical_s)} = tenant {_ms(one.tenant_cpu_s)} + "
        f"{one.bytes_up:,} B up and {one.bytes_down:,} B down {_ms(one.transfer_s)} + "
        f"coordinator {_ms(one.coordinator_cpu_s)}"
        for scheme, one in figures.items()
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
