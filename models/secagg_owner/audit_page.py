"""`report.html` of an audit: one file that needs nothing else, for people who decide.

Verdicts first, each with what to change; then each audit with its plot and its figures. Every
number stands in audit.json too. Plots need matplotlib (extra `audit`); without it the page has
none, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from types import ModuleType
from typing import Any

_CSS = """
:root { --ink:#1c2733; --faint:#6b7a89; --line:#e4e9ee; --good:#0f766e; --bad:#c62828;
        --paper:#ffffff; --ground:#f4f6f8 }
* { box-sizing:border-box }
body { margin:0; background:var(--ground); color:var(--ink);
       font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif }
main { max-width:1020px; margin:0 auto; padding:2.2rem 1.4rem 4rem }
h1 { font-size:1.75rem; margin:0 0 .2rem; letter-spacing:-.01em }
h2 { font-size:1.15rem; margin:0 0 .6rem }
p { margin:.4rem 0 .8rem; max-width:46rem } .lead { color:var(--faint); margin-bottom:1.4rem }
section { background:var(--paper); border:1px solid var(--line); border-radius:12px;
          padding:1.3rem 1.5rem; margin:0 0 1.1rem }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums;
        font-size:.9rem; margin:.4rem 0 .7rem }
th { text-align:right; font-weight:600; color:var(--faint); font-size:.8rem;
     border-bottom:1px solid var(--line); padding:.35rem .55rem; vertical-align:bottom }
td { text-align:right; padding:.38rem .55rem; border-bottom:1px solid var(--line) }
th:first-child, td:first-child, th.text, td.text { text-align:left }
td.good { color:var(--good); font-weight:600 } td.bad { color:var(--bad); font-weight:600 }
svg { width:100%; height:auto; display:block; margin:.3rem 0 .6rem }
.note { color:var(--faint); font-size:.85rem } .alarm { border-color:var(--bad) }
code { font:.88em ui-monospace,Menlo,Consolas,monospace; background:var(--ground);
       border-radius:4px; padding:.08em .3em } .wide { overflow-x:auto }
"""
_ATTACKS = {
    "heal": "train the whole emulator",
    "duplicate": "repeat layers to the full depth, then train",
    "outputs": "train towards the plugged-in model's outputs",
}
_OUTCOMES = {"pass": "good", "fail": "bad", "not run": ""}


def render(audit: Mapping[str, Any]) -> str:
    """The whole page, from the JSON of an audit."""
    plots, note = _plots()
    results = audit["results"]
    parts = [
        _verdicts(audit),
        note,
        _verbatim(results["verbatim"], audit["split"], plots),
        _ordering(results["ordering"], plots),
        _upgrade(results["upgrade"], plots),
        _recovery(results["recovery"], plots),
        _release(results["release"], plots),
        _about(audit),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit of an emulator</title><style>{_CSS}</style></head><body><main>"
        f"<h1>Does this emulator protect the model?</h1>{_lead(audit)}{''.join(parts)}"
        "</main></body></html>\n"
    )


def _plots() -> tuple[ModuleType | None, str]:
    try:
        from secagg_owner import audit_plots
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None, (
            '<p class="note">There are no plots: matplotlib is not installed '
            "(<code>pip install 'secagg[audit]'</code>).</p>"
        )
    return audit_plots, ""


def _lead(audit: Mapping[str, Any]) -> str:
    split = audit["split"]
    middle = split["layers"] - 2 * split["edge"]
    return (
        f'<p class="lead">{split["layers"]} layers, of which the first and last {split["edge"]} '
        f"ship as they are and {len(split['kept'])} of {middle} between them stay. "
        f"Package <code>{audit['manifest_digest'][:16]}</code>, full model "
        f"<code>{audit['full_digest'][:16]}</code>.</p>"
    )


def _verdicts(audit: Mapping[str, Any]) -> str:
    rows = [
        (f"<code>{escape(v['clause'])}</code>", (v["outcome"], _OUTCOMES[v["outcome"]]),
         (escape(v["sentence"]), "text"))
        for v in audit["verdicts"]
    ]  # fmt: skip
    passes = audit["passes"]
    title = "It may leave" if passes else "It may not leave"
    return (
        f'<section class="{"" if passes else "alarm"}">'
        f"<h2>{title}</h2><p>Against the owner's policy, clause by clause. A clause that was not "
        "run has not passed.</p>"
        f"{_table(('clause', '', ''), rows)}</section>"
    )


def _verbatim(found: Mapping[str, Any], split: Mapping[str, Any], plots: Any) -> str:
    rows = [
        ("shipped middle, matrices", f"{found['middle_parameters']:,}",
         _percent(found["middle_share"])),
        ("in it, neurons and heads", f"{found['middle_parameters']:,}",
         _percent(found["units_share"])),
        ("in it, vectors (bit-identical)", f"{found['middle_vectors']:,}",
         _percent(found["middle_vectors_identical"] / max(1, found["middle_vectors"]))),
        ("all layers, edges included", f"{found['layers_parameters']:,}",
         _percent(found["layers_share"])),
    ]  # fmt: skip
    return _section(
        "1. What is verbatim",
        f"A matrix is verbatim if it equals one of the full model or has a cosine above "
        f"{found['threshold']:g} with it, in any order of neurons and heads. Embeddings and heads "
        f"ship as well ({found['outside_layers']:,} parameters) and are not counted. Below: mean "
        "cosine of shipped middle layers with all layers of the full model.",
        (plots.nearness(found, split) if plots else "")
        + _table(("", "parameters", "verbatim"), rows),
    )


def _ordering(found: Mapping[str, Any] | None, plots: Any) -> str:
    if found is None:
        return _missing("2. Order of qualities")
    rows = [
        ("plug-in against full zero-shot", _interval(found["gain"])),
        ("plug-in against tuned emulator", _interval(found["gap"])),
    ]
    return _section(
        "2. Order of qualities",
        "Tuning pays if the plug-in beats the full model untuned; the emulator protects if the "
        "plug-in beats the tuned emulator too. Losses on held-out parts of the tuning text; "
        "differences are paired by seed.",
        (plots.order(found) if plots else "")
        + _table(("better by (nats)", "mean and 95% interval"), rows),
    )


def _upgrade(found: Mapping[str, Any] | None, plots: Any) -> str:
    if found is None:
        return _missing("3. Upgrade attacks")
    rows = [
        (_ATTACKS[point["attack"]], f"{point['tokens']:,}", f"{point['loss']:.4f}",
         _percent(point["recovery"]), _saved(point))
        for point in found["points"]
    ]  # fmt: skip
    head = ("attack", "tokens", "held-out loss", "of the gap recovered", "tokens saved")
    return _section(
        "3. Upgrade attacks",
        f"The emulator has {found['emulator_loss']:.4f} nats and the full model "
        f"{found['full_loss']:.4f} on the owner's held-out text. An attacker with text like the "
        "owner's gets this far; tokens saved are against training the same architecture from "
        "scratch.",
        (plots.upgrades(found) if plots else "") + _table(head, rows),
    )


def _saved(point: Mapping[str, Any]) -> str:
    if point["saved"] is None:
        return "not measured"
    return f"{'at least ' if point['at_least'] else ''}{point['saved']:,}"


def _recovery(found: Mapping[str, Any] | None, plots: Any) -> str:
    if found is None or not found["likenesses"]:
        return _missing("4. Hidden layers")
    rows = [
        ("cosine of weights", _interval(found["cosine_excess"])),
        ("CKA of what layers add", _interval(found["cka_excess"])),
    ]
    return _section(
        "4. Hidden layers",
        f"Repeated to the full depth and healed on {found['tokens']:,} tokens, does the emulator "
        "arrive at the layers that were dropped? The null is the same attack from a random middle, "
        "so zero excess means nothing was found.",
        (plots.hidden(found) if plots else "")
        + _table(("excess over the null", "mean and 95% interval over seeds"), rows),
    )


def _release(found: Mapping[str, Any] | None, plots: Any) -> str:
    if found is None:
        return _missing("5. All packages together")
    rows = [
        ("packages of this owner, this one included", str(found["releases"])),
        ("earlier ones of this model", str(found["related"])),
        ("with another subset of layers", str(len(found["others"]))),
        ("that come closer to the originals together", str(len(found["closer"]))),
        ("layers shown or brought near by any",
         f"{len(found['shown_layers'])} of {found['layers']}"),
        ("of all layers' parameters verbatim in any", _percent(found["layers_share"])),
    ]  # fmt: skip
    return _section(
        "5. All packages together",
        "Another subset of layers, or a second distillation of the same, adds to what the first "
        "package gave away.",
        (plots.releases(found) if plots else "") + _table(("", ""), rows),
    )


def _about(audit: Mapping[str, Any]) -> str:
    texts = [
        (escape(str(part["part"])), (escape(str(part["source"])), "text"),
         f"{part.get('files', part.get('passages', 0)):,}", f"{part.get('bytes', 0):,}")
        for part in audit["texts"].get("parts", [])
    ]  # fmt: skip
    seconds = [(escape(name), f"{value:.1f}") for name, value in audit["seconds"].items()]
    figures = audit["figures"]
    return _section(
        "How it was measured",
        f"Budget {escape(figures['budget'])}, {figures['seeds']} seeds. What no audit shows is "
        "that there is no better attack.",
        _table(("text", "source", "files or passages", "bytes"), texts)
        + _table(("part", "seconds"), seconds),
    )


def _missing(title: str) -> str:
    return _section(title, "This was not audited.", "")


def _section(title: str, words: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{words}</p>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str | tuple[str, str]]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _cell(cell: str | tuple[str, str]) -> str:
    text, kind = (cell, "") if isinstance(cell, str) else cell
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _interval(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:+.4f} (one seed has no interval)"
    return f"{value['mean']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"
