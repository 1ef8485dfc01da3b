"""Print what a cohort of N can withstand, and what a round costs.

Nothing here talks to anybody: it makes a plan with protocol.md's defaults and reads it out, for the
complete graph and, where holders are fewer than half of the cohort, for a sparse one; and both
schemes side by side. Byte counts are those of the messages' own encoders, without dropouts. CPU is
a model (see `secagg.costs`) with the unit costs of one machine; `secagg bench units > FILE`
measures those of another for --units, and `secagg bench masking` and `ckks` measure rounds.

  secagg plan --tenants 5
  secagg plan --tenants 100 --scheme ckks --committee 30 --length 1000000
  secagg plan --tenants 40 --scheme auto --dropout 0.2 --units units.json
  secagg plan --tenants 1000 --corrupt 0.1 --dropout 0.1
  secagg plan --tenants 100 --colluders 10 --value-bits 16 --length 1000000 --format json
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from secagg import graph
from secagg.choice import Choice, MakePlan, choose_scheme
from secagg.ckks import parameters as ckks_parameters
from secagg.ckks.parameters import (
    MAX_MODULUS_BITS,
    PACKINGS,
    SECURITIES,
    TAIL,
    Packing,
    Parameters,
    Security,
)
from secagg.costs import (
    TYPICAL,
    UnitCosts,
    coordinator_cost,
    neighbours,
    tenant_cost,
    units_from_json,
)
from secagg.encoding import Quantiser, ring_bits_needed
from secagg.errors import ConfigError, Step
from secagg.layout import Layout
from secagg.plan import (
    COMMITTEE_ABOVE,
    COMPLETE_UP_TO,
    GUARD_BITS,
    MIN_SURVIVORS,
    SCHEMES,
    SUITES,
    RoundPlan,
    Scheme,
    Suite,
    committee_of,
    committee_shares,
    quorum,
    shares,
)
from secagg.plan_text import in_words
from secagg.scheme import leaf_places, upload_bytes
from secagg.traffic import everybodys_bytes, traffic

_DIGEST = bytes(32)


def main(argv: list[str]) -> int:
    """Run `secagg plan ...`."""
    options = _parser().parse_args(argv)
    f = _colluders(options)
    if not 0 <= options.dropout < 1:
        raise ConfigError(f"--dropout is a fraction from 0 to 1, not {options.dropout}")
    units = TYPICAL if options.units is None else _read_units(options.units)
    make = partial(
        plan_for, options.tenants, f, options.value_bits, options.length, options.max_weight,
        neighbours=options.neighbours, dropout=options.dropout, suite=options.suite,
        packing=options.packing, security=options.security, committee=options.committee,
    )  # fmt: skip
    plan = _chosen(make, options.scheme, options.dropout, units)
    facts = describe(plan, options.dropout)
    facts["graphs"] = {
        name: describe_graph(one, options.dropout, units)
        for name, one in _graphs(plan, options.dropout).items()
    }
    facts |= describe_schemes(make, options.dropout, units)
    print(json.dumps(facts) if options.format == "json" else in_words(facts))
    return 0


def _chosen(make: MakePlan, scheme: str, dropout: float, units: UnitCosts) -> RoundPlan:
    if scheme == "auto":
        return choose_scheme(make, dropout=dropout, units=units).plan
    return make(scheme="ckks" if scheme == "ckks" else "masking")


def _read_units(path: Path) -> UnitCosts:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--units {path}: {error}") from None
    if not isinstance(facts, dict):
        raise ConfigError(f"--units {path}: not the JSON object of `secagg bench units`")
    return units_from_json(facts)


def plan_for(
    tenants: int,
    colluders: int | None,
    value_bits: int,
    length: int,
    max_weight: int,
    *,
    neighbours: int | None = None,
    dropout: float = 0.1,
    suite: Suite = "x25519-mlkem768",
    scheme: Scheme = "masking",
    packing: Packing = "coefficients",
    security: Security = "quantum",
    committee: int = 0,
) -> RoundPlan:
    """The default plan of a cohort of this size, for members that do not exist.

    `committee`: how many of them the roster would list as one.

    Raises:
        ConfigError: no such round is possible; names the clause.
    """
    f = max(0, tenants - 1) // 3 if colluders is None else colluders
    q, members = quorum(tenants, f), max(tenants, 1)
    cohort = tuple(f"tenant-{i:05d}" for i in range(min(tenants, 1 << 20)))
    listed = cohort[: max(0, committee)]
    ring_bits = max(8, ring_bits_needed(value_bits, members, GUARD_BITS))
    weight_bits = max(8, ring_bits_needed(max_weight.bit_length() + 1, members, GUARD_BITS))
    parameters = None
    if scheme == "ckks":
        k, t = committee_shares(tenants, f, len(committee_of(cohort, listed)), len(listed))
        parameters = ckks_parameters.choose(
            n=members, length=length, ring_bits=ring_bits, weight_ring_bits=weight_bits,
            holders=k, packing=packing, security=security,
        )  # fmt: skip
    else:
        k, t = shares(tenants, f, neighbours, dropout)
    return RoundPlan(
        roster_digest=_DIGEST,
        round_number=1,
        cohort=cohort,
        model_digest=_DIGEST,
        layout=Layout.flat(length),
        quantiser=Quantiser(1.0, value_bits),
        max_colluders=f,
        share_count=k,
        share_threshold=t,
        min_survivors=max(q, f + 2, MIN_SURVIVORS),
        ring_bits=ring_bits,
        max_weight=max_weight,
        weight_ring_bits=weight_bits,
        scheme=scheme,
        suite=suite,
        committee=listed,
        ckks=parameters,
    )


def describe(plan: RoundPlan, dropout: float = 0.1) -> dict[str, Any]:
    """The plan that would be made, as JSON values."""
    return {
        "scheme": plan.scheme,
        "tenants": plan.n,
        "colluders": plan.max_colluders,
        "suite": plan.suite,
        "quorum": plan.quorum,
        "share_count": plan.share_count,
        "share_threshold": plan.share_threshold,
        "min_survivors": plan.min_survivors,
        "may_be_silent_from": {step.label: lost for step, lost in dropouts(plan).items()},
        "value_bits": plan.quantiser.value_bits,
        "ring_bits": plan.ring_bits,
        "length": plan.layout.size,
        "dropout": dropout,
        "upload_bytes_per_value": upload_bytes(plan) / plan.layout.size,
        "graph": _graph_of(plan),
    }


def _graph_of(plan: RoundPlan) -> str:
    if plan.scheme == "ckks":
        return "committee"
    return "complete" if plan.complete else "sparse"


def describe_schemes(make: MakePlan, dropout: float, units: UnitCosts) -> dict[str, Any]:
    """Both schemes side by side, and which of them is the cheaper, as JSON values."""
    schemes: dict[str, Any] = {}
    for scheme in SCHEMES:
        try:
            plan = make(scheme=scheme)
        except ConfigError as error:
            schemes[scheme] = {"possible": False, "reason": str(error)}
            continue
        schemes[scheme] = {
            "possible": True,
            **describe_graph(plan, dropout, units),
            "bits_per_value": 8 * upload_bytes(plan) / plan.layout.size,
            **({} if plan.ckks is None else describe_ckks(plan, plan.ckks)),
        }
    chosen = choose_scheme(make, dropout=dropout, units=units)
    return {"schemes": schemes, "choice": _choice_facts(chosen)}


def _choice_facts(choice: Choice) -> dict[str, Any]:
    critical = {name: round(one.critical_s, 6) for name, one in choice.figures.items()}
    return {
        "scheme": choice.scheme,
        "critical_path_s": critical,
        "reasons": list(choice.reasons),
    }


def describe_ckks(plan: RoundPlan, parameters: Parameters) -> dict[str, Any]:
    """The ring, its security, its room, and what the committee stands, as JSON values."""
    n, holders, t = plan.n, plan.share_count, plan.share_threshold
    return {
        "packing": parameters.packing,
        "security": parameters.security,
        "degree": parameters.degree,
        "modulus_bits": list(parameters.modulus_bits),
        "log2_q": round(math.log2(parameters.modulus), 2),
        "max_log2_q": MAX_MODULUS_BITS[parameters.security][parameters.degree],
        "digits": parameters.digits(n, plan.ring_bits),
        "polynomials": len(leaf_places(plan)),
        "margin_bits": parameters.margin_bits(n),
        "scale_bits": parameters.scale_bits(n),
        "most_noise": TAIL * n,
        "committee": holders,
        "wrong_sums_corrected": (holders - t) // 2,
        "wrong_sums_noticed": holders - t,
    }


def describe_graph(plan: RoundPlan, dropout: float, units: UnitCosts = TYPICAL) -> dict[str, Any]:
    """What one graph guarantees and costs, as JSON values; in `ckks` a member of the committee."""
    bytes_by_step = traffic(plan)
    up = sum(one.up for one in bytes_by_step.values())
    down = sum(one.down for one in bytes_by_step.values())
    silent, everybody = math.floor(dropout * plan.n), everybodys_bytes(plan)
    tenant, coordinator = tenant_cost(plan, units), coordinator_cost(plan, silent, units)
    return {
        "share_count": plan.share_count,
        "share_threshold": plan.share_threshold,
        "masks": round(neighbours(plan) + 1, 1) if plan.ckks is None else 0,
        "guarantee": guarantee_of(plan, silent),
        "bytes": {step.label: {"up": t.up, "down": t.down} for step, t in bytes_by_step.items()},
        "bytes_up": up,
        "bytes_down": down,
        "coordinator_bytes_in": everybody.up,
        "coordinator_bytes_out": everybody.down,
        "tenant_cpu_s": _cpu(tenant),
        "coordinator_cpu_s": _cpu(coordinator),
    }


def guarantee_of(plan: RoundPlan, silent: int) -> dict[str, Any]:
    """In figures what the coordinator and f colluders learn: see docs/sparse-graphs.md."""
    least_honest = plan.least - plan.max_colluders
    if plan.same_holders:  # one quorum, one U3: see docs/protocol.md
        return {"one_sum": "certain", "honest_in_a_sum": least_honest}
    given = graph.guarantee(
        plan.n, plan.max_colluders, plan.share_count, plan.share_threshold, plan.least
    )
    opens = graph.opens_bits(plan.n, plan.share_count, plan.share_threshold, silent)
    return {
        "one_sum": _chance(given.one_sum_bits),
        "honest_in_a_sum": least_honest,
        "colluding_holders": given.colluding_neighbours,
        "security_bits": graph.SECURITY_BITS,
        "smallest_part": given.smallest_part,
        "opens": _chance(opens),
    }


def _chance(bits: float) -> str:
    return "certain" if bits == math.inf else f"certain but for 2^-{bits:.0f}"


def dropouts(plan: RoundPlan) -> dict[Step, int]:
    """How many tenants may say nothing from this step on, and the round still opens.

    Until U3 stands, who is left must meet the quorum, `min_survivors` and the threshold; then
    `quorum` signatures and at last `share_threshold` answers are needed. On a sparse graph these
    are counts as well; whether everybody keeps enough holders is a matter of chance (`opens_bits`).
    The silent may be anybody: in a committee all of them may be members.
    """
    before = plan.n - plan.least
    signing = plan.n - max(plan.quorum, plan.share_threshold)
    answering = plan.n - plan.share_threshold if plan.complete else signing
    if plan.scheme == "ckks":
        answering = plan.share_count - plan.share_threshold
        before, signing = min(before, answering), min(signing, answering)
    early = dict.fromkeys(list(Step)[: Step.CONSISTENCY_CHECK], before)
    return early | {Step.CONSISTENCY_CHECK: signing, Step.UNMASK: answering}


def _colluders(options: argparse.Namespace) -> int | None:
    colluders: int | None = options.colluders
    corrupt: float | None = options.corrupt
    if corrupt is None:
        return colluders
    if not 0 <= corrupt < 1:
        raise ConfigError(f"--corrupt is a fraction from 0 to 1, not {corrupt}")
    return math.floor(corrupt * int(options.tenants) + 1e-9)


def _graphs(plan: RoundPlan, dropout: float) -> dict[str, RoundPlan]:
    """The plan itself, and the same cohort on the other graph where that works."""
    if plan.scheme == "ckks":
        return {_graph_of(plan): plan}
    graphs = {"complete" if plan.complete else "sparse": plan}
    other = plan.n if not plan.complete else None
    try:
        if other is None:
            silent = math.ceil(dropout * plan.n)
            other, _ = graph.choose(plan.n, plan.max_colluders, silent)
            if 2 * other > plan.n:  # nearly everybody: no graph that anybody would want
                return graphs
        graphs["sparse" if plan.complete else "complete"] = plan_for(
            plan.n, plan.max_colluders, plan.quantiser.value_bits, plan.layout.size,
            plan.max_weight, neighbours=other, dropout=dropout, suite=plan.suite,
        )  # fmt: skip
    except ConfigError:
        pass  # a small cohort has no sparse graph
    return dict(sorted(graphs.items()))


def _cpu(cost: Any) -> dict[str, float]:
    parts = {part: getattr(cost, part) for part in cost.__dataclass_fields__}
    return {name: round(value, 6) for name, value in (parts | {"total": cost.total}).items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tenants", type=int, required=True, metavar="N")
    colluders = parser.add_mutually_exclusive_group()
    colluders.add_argument("--colluders", type=int, metavar="F", help="default: floor((N - 1) / 3)")
    colluders.add_argument("--corrupt", type=float, metavar="X", help="colluders as a fraction")
    parser.add_argument(
        "--dropout", type=float, default=0.1, metavar="X",
        help="fraction that may be silent, colluders among them (default 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--neighbours", type=int, metavar="K",
        help=f"holders of each tenant's shares (default: all up to {COMPLETE_UP_TO} tenants)",
    )  # fmt: skip
    parser.add_argument(
        "--scheme", choices=(*SCHEMES, "auto"), default=SCHEMES[0],
        help="whose plan is read out in full (default masking); auto: the cheaper one's",
    )  # fmt: skip
    parser.add_argument("--packing", choices=PACKINGS, default=PACKINGS[0], help="of ckks")
    parser.add_argument("--security", choices=SECURITIES, default=SECURITIES[0], help="of ckks")
    parser.add_argument(
        "--committee", type=int, default=0, metavar="C",
        help=f"tenants that the roster lists as ckks committee; needed above {COMMITTEE_ABOVE}",
    )  # fmt: skip
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument("--value-bits", type=int, default=16, metavar="B")
    parser.add_argument("--length", type=int, default=1_000_000, metavar="D")
    parser.add_argument("--max-weight", type=int, default=1, metavar="W")
    parser.add_argument(
        "--units", type=Path, metavar="FILE",
        help="what `secagg bench units` printed (default: the costs of one server)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser
