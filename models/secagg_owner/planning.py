"""From the owner's configuration to a round's plan: sizes, scheme, and why that scheme.

`scheme = "auto"` leaves the choice to `secagg.choice`: the same rule by which `secagg plan` shows
both. A scheme whose packages are not installed here is none that is possible: the owner has to
open and to recompute sums.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from secagg.choice import choose_scheme
from secagg.costs import TYPICAL, UnitCosts, units_from_json
from secagg.encoding import Quantiser
from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg.layout import Layout
from secagg.plan import RoundPlan, Scheme
from secagg.scheme import scheme_of
from secagg_owner.config import Round


def plan_round(
    wanted: Round,
    roster: Roster,
    *,
    round_number: int,
    layout: Layout,
    clip: float,
    model_digest: bytes,
) -> tuple[RoundPlan, tuple[str, ...]]:
    """The plan of the next round, and why it has this scheme.

    Raises:
        ConfigError: no honest tenant could accept such a plan, or a package is missing.
    """
    make = partial(
        RoundPlan.create,
        roster,
        round_number=round_number,
        layout=layout,
        quantiser=Quantiser(clip, wanted.value_bits),
        model_digest=model_digest,
        cohort=wanted.cohort or None,
        max_colluders=wanted.max_colluders,
        share_threshold=wanted.share_threshold,
        min_survivors=wanted.min_survivors,
        max_weight=wanted.max_weight,
        suite=wanted.suite,
        neighbours=wanted.neighbours,
        dropout=wanted.dropout,
        packing=wanted.packing,
        security=wanted.security,
        deadlines=wanted.deadlines.deadlines(),
    )

    def workable(*, scheme: Scheme) -> RoundPlan:
        plan = make(scheme=scheme)
        scheme_of(plan)  # its packages are here
        return plan

    if wanted.scheme != "auto":
        return workable(scheme=wanted.scheme), (f"{wanted.scheme}: named by round.scheme",)
    choice = choose_scheme(workable, dropout=wanted.dropout, units=_units(wanted.unit_costs))
    return choice.plan, choice.reasons


def _units(path: Path | None) -> UnitCosts:
    if path is None:
        return TYPICAL
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"round.unit_costs {path}: {error}") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"round.unit_costs {path}: not what `secagg bench units` prints")
    return units_from_json(facts)
