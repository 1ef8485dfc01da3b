"""Print what a cohort of N can withstand, and what a round costs.

Nothing here talks to anybody: it makes a plan with protocol.md's defaults and reads it out, for the
complete graph and, where holders are fewer than half of the cohort, for a sparse one. Byte counts
are those of the messages' own encoders, without dropouts. CPU is a model (see `secagg.costs`):
measure with `secagg bench`.

  secagg plan --tenants 5
  secagg plan --tenants 1000 --corrupt 0.1 --dropout 0.1
  secagg plan --tenants 100 --colluders 10 --value-bits 16 --length 1000000 --format json
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from typing import Any

from secagg import graph
from secagg.costs import coordinator_cost, neighbours, tenant_cost
from secagg.encoding import Quantiser, ring_bits_needed
from secagg.errors import ConfigError, Step
from secagg.layout import Layout
from secagg.plan import (
    COMPLETE_UP_TO,
    GUARD_BITS,
    MIN_SURVIVORS,
    SUITES,
    RoundPlan,
    Suite,
    quorum,
    shares,
)
from secagg.scheme import upload_bytes
from secagg.traffic import traffic

_DIGEST = bytes(32)


def main(argv: list[str]) -> int:
    """Run `secagg plan ...`."""
    options = _parser().parse_args(argv)
    f = _colluders(options)
    if not 0 <= options.dropout < 1:
        raise ConfigError(f"--dropout is a fraction from 0 to 1, not {options.dropout}")
    plan = plan_for(
        options.tenants, f, options.value_bits, options.length, options.max_weight,
        neighbours=options.neighbours, dropout=options.dropout, suite=options.suite,
    )  # fmt: skip
    facts = describe(plan, options.dropout)
    facts["graphs"] = {
        name: describe_graph(one, options.dropout)
        for name, one in _graphs(plan, options.dropout).items()
    }
    print(json.dumps(facts) if options.format == "json" else _in_words(facts))
    return 0


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
) -> RoundPlan:
    """The default plan of a cohort of this size, for members that do not exist.

    Raises:
        ConfigError: no such round is possible; names the clause.
    """
    f = max(0, tenants - 1) // 3 if colluders is None else colluders
    q, members = quorum(tenants, f), max(tenants, 1)
    k, t = shares(tenants, f, neighbours, dropout)
    return RoundPlan(
        roster_digest=_DIGEST,
        round_number=1,
        cohort=tuple(f"tenant-{i:05d}" for i in range(min(tenants, 1 << 20))),
        model_digest=_DIGEST,
        layout=Layout.flat(length),
        quantiser=Quantiser(1.0, value_bits),
        max_colluders=f,
        share_count=k,
        share_threshold=t,
        min_survivors=max(q, f + 2, MIN_SURVIVORS),
        ring_bits=max(8, ring_bits_needed(value_bits, members, GUARD_BITS)),
        max_weight=max_weight,
        weight_ring_bits=max(8, ring_bits_needed(max_weight.bit_length() + 1, members, GUARD_BITS)),
        suite=suite,
    )


def describe(plan: RoundPlan, dropout: float = 0.1) -> dict[str, Any]:
    """The plan that would be made, as JSON values."""
    return {
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
        "graph": "complete" if plan.complete else "sparse",
    }


def describe_graph(plan: RoundPlan, dropout: float) -> dict[str, Any]:
    """What one graph guarantees and costs, as JSON values."""
    bytes_by_step = traffic(plan)
    up = sum(one.up for one in bytes_by_step.values())
    down = sum(one.down for one in bytes_by_step.values())
    silent = math.floor(dropout * plan.n)
    tenant, coordinator = tenant_cost(plan), coordinator_cost(plan, silent)
    return {
        "share_count": plan.share_count,
        "share_threshold": plan.share_threshold,
        "masks": round(neighbours(plan) + 1, 1),
        "guarantee": guarantee_of(plan, silent),
        "bytes": {step.label: {"up": t.up, "down": t.down} for step, t in bytes_by_step.items()},
        "bytes_up": up,
        "bytes_down": down,
        "coordinator_bytes_in": plan.n * up,
        "coordinator_bytes_out": plan.n * down,
        "tenant_cpu_s": _cpu(tenant),
        "coordinator_cpu_s": _cpu(coordinator),
    }


def guarantee_of(plan: RoundPlan, silent: int) -> dict[str, Any]:
    """In figures what the coordinator and f colluders learn: see docs/sparse-graphs.md."""
    least_honest = plan.least - plan.max_colluders
    if plan.complete:
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
    """
    before = plan.n - plan.least
    signing = plan.n - max(plan.quorum, plan.share_threshold)
    early = dict.fromkeys(list(Step)[: Step.CONSISTENCY_CHECK], before)
    answering = plan.n - plan.share_threshold if plan.complete else signing
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


def _in_words(facts: dict[str, Any]) -> str:
    lost = facts["may_be_silent_from"]
    own = facts["graphs"][facts["graph"]]
    lines = [
        f"cohort             n = {facts['tenants']}",
        f"colluders          f = {facts['colluders']}  (may side with a cheating coordinator)",
        f"suite                  {facts['suite']}",
        f"graph                  {facts['graph']}  (complete up to {COMPLETE_UP_TO} tenants)",
        f"quorum             q = {facts['quorum']}  (signatures over one survivor set)",
        f"holders            k = {facts['share_count']}  (of each tenant's shares)",
        f"threshold          t = {facts['share_threshold']}  (shares that open)",
        f"least survivors        {facts['min_survivors']}",
        f"ring                   {facts['ring_bits']} bits for {facts['value_bits']}-bit values",
        f"a value up             {facts['upload_bytes_per_value']:.3f} bytes",
        "",
        f"{'step':20}{'may be silent from':>20}{'bytes up':>16}{'bytes down':>16}",
    ]
    for step, moved in own["bytes"].items():
        lines.append(f"{step:20}{lost[step]:>20}{moved['up']:>16,}{moved['down']:>16,}")
    lines.append(f"{'in all':40}{own['bytes_up']:>16,}{own['bytes_down']:>16,}")
    return "\n".join([*lines, "", *_comparison(facts)])


def _comparison(facts: dict[str, Any]) -> list[str]:
    """Both graphs side by side: guarantee, bytes and CPU by role."""
    graphs = facts["graphs"]
    percent = f"{100 * facts['dropout']:g}% silent after U2"
    rows: list[tuple[str, list[str]]] = [
        ("", list(graphs)),
        ("(k, t)", [f"({g['share_count']}, {g['share_threshold']})" for g in graphs.values()]),
        ("one sum", [g["guarantee"]["one_sum"] for g in graphs.values()]),
        ("honest members of it", [str(g["guarantee"]["honest_in_a_sum"]) for g in graphs.values()]),
        ("masks of a tenant", [f"{g['masks']:g}" for g in graphs.values()]),
        ("a tenant, bytes up", [f"{g['bytes_up']:,}" for g in graphs.values()]),
        ("a tenant, bytes down", [f"{g['bytes_down']:,}" for g in graphs.values()]),
        ("coordinator, bytes in", [f"{g['coordinator_bytes_in']:,}" for g in graphs.values()]),
        ("coordinator, bytes out", [f"{g['coordinator_bytes_out']:,}" for g in graphs.values()]),
        ("a tenant, CPU s (model)", [_seconds(g["tenant_cpu_s"]) for g in graphs.values()]),
        (f"coordinator, {percent}", [_seconds(g["coordinator_cpu_s"]) for g in graphs.values()]),
    ]
    lines = [f"{name:34}" + "".join(f"{cell:>22}" for cell in cells) for name, cells in rows]
    if "sparse" in graphs:
        lines += ["", *_sparse_in_words(graphs["sparse"]["guarantee"])]
    return lines


def _sparse_in_words(given: dict[str, Any]) -> list[str]:
    words = f"""
        The sparse graph's guarantee is weaker, and against colluders fixed before holders are
        drawn: but for 2^-{given["security_bits"]} a round no tenant has more than
        {given["colluding_holders"]} colluding holders, and then every sum that opens has at least
        {given["smallest_part"]} honest members, whoever drops out; that honest survivors make one
        single sum is {given["one_sum"]}, that each keeps enough holders is {given["opens"]}.
        """
    return textwrap.wrap(" ".join(words.split()), 90)


def _seconds(cpu: dict[str, float]) -> str:
    return f"{cpu['total']:.3g}"


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
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0])
    parser.add_argument("--value-bits", type=int, default=16, metavar="B")
    parser.add_argument("--length", type=int, default=1_000_000, metavar="D")
    parser.add_argument("--max-weight", type=int, default=1, metavar="W")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser
