"""What `secagg plan` found, as text: one cohort's figures, its graphs, and both schemes."""

from __future__ import annotations

import textwrap
from typing import Any

from secagg.plan import COMMITTEE_ABOVE, COMPLETE_UP_TO


def in_words(facts: dict[str, Any]) -> str:
    """Everything that `secagg plan` found, for people."""
    lost = facts["may_be_silent_from"]
    own = facts["graphs"][facts["graph"]]
    lines = [
        f"cohort             n = {facts['tenants']}",
        f"colluders          f = {facts['colluders']}  (may side with a cheating coordinator)",
        f"scheme                 {facts['scheme']}",
        f"suite                  {facts['suite']}",
        f"graph                  {facts['graph']}  ({_GRAPHS_IN_WORDS[facts['graph']]})",
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
    return "\n".join([*lines, "", *_comparison(facts), "", *_schemes_in_words(facts)])


_GRAPHS_IN_WORDS = {
    "complete": f"complete up to {COMPLETE_UP_TO} tenants",
    "sparse": f"complete up to {COMPLETE_UP_TO} tenants",
    "committee": f"the whole cohort up to {COMMITTEE_ABOVE} tenants, else a list in the roster",
}


def _schemes_in_words(facts: dict[str, Any]) -> list[str]:
    """Both schemes side by side, the ring of `ckks`, and which is the cheaper and why."""
    possible = {name: one for name, one in facts["schemes"].items() if one["possible"]}
    percent = f"{100 * facts['dropout']:g}% silent after U2"
    rows: list[tuple[str, list[str]]] = [
        ("scheme", list(possible)),
        ("(k, t)", [f"({s['share_count']}, {s['share_threshold']})" for s in possible.values()]),
        ("bits a value", [f"{s['bits_per_value']:.2f}" for s in possible.values()]),
        ("a tenant, bytes up", [f"{s['bytes_up']:,}" for s in possible.values()]),
        ("a tenant, bytes down", [f"{s['bytes_down']:,}" for s in possible.values()]),
        ("a tenant, CPU s (model)", [_seconds(s["tenant_cpu_s"]) for s in possible.values()]),
        (f"coordinator, {percent}", [_seconds(s["coordinator_cpu_s"]) for s in possible.values()]),
    ]
    lines = [f"{name:34}" + "".join(f"{cell:>22}" for cell in cells) for name, cells in rows]
    if "ckks" in possible:
        lines += ["", *_ckks_in_words(possible["ckks"])]
    return [*lines, "", "the cheaper one", *(f"  {one}" for one in facts["choice"]["reasons"])]


def _ckks_in_words(ring: dict[str, Any]) -> list[str]:
    sizes, c, t = ring["modulus_bits"], ring["committee"], ring["share_threshold"]
    return [
        _row("ckks ring", f"degree {ring['degree']}, {len(sizes)} primes of {min(sizes)} to "
             f"{max(sizes)} bits, {ring['polynomials']} polynomials"),
        _row("security", f"log2 Q = {ring['log2_q']} of at most {ring['max_log2_q']} "
             f"(HE standard v1.1, 128 bits, {ring['security']})"),
        _row("packing", f"{ring['packing']}, {ring['digits']} to a coefficient or slot"),
        _room(ring),
        _row("committee", f"c = {c}, of which t = {t} open; fewer learn nothing"),
        _row("wrong sums", f"e = floor((c - t) / 2) = {ring['wrong_sums_corrected']} of {c} "
             f"answers are corrected, {ring['wrong_sums_noticed']} noticed"),
    ]  # fmt: skip


def _room(ring: dict[str, Any]) -> str:
    if ring["packing"] == "slots":
        return _row("scale", f"2^{ring['scale_bits']}: errors move a slot by less than 1/2")
    most = f"{ring['most_noise']:,}"
    return _row("noise margin", f"{ring['margin_bits']} bits for errors that sum to {most} at most")


def _row(name: str, words: str) -> str:
    return f"{name:23}{words}"


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
