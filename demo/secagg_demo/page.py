"""`report.html`: one file that needs nothing else, for people.

The page says what was claimed, what was measured, and where to look it up. Every number in it
stands in report.json or in the evidence folder too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from secagg_demo import plots
from secagg_demo.comparison import Comparison
from secagg_demo.evidence import RoundEvidence, load_levels, load_planes, round_folder
from secagg_demo.results import DemoResult, Mission, RoundResult
from secagg_demo.uniformity import RingWords

_SCHEMES = {
    "masking": "Every tenant added masks to its update that it shares with the other tenants, and "
    "one of its own. In the sum the shared ones cancel; the survivors' answers take out the rest.",
    "ckks": "Every tenant encrypted its update under a CKKS key that it drew for this round alone, "
    "and shared that key among the tenants. The ciphertexts were added as they were; the tenants "
    "then released sums of their shares, which open the sum over the survivors and nothing else. "
    "No key that anybody but its tenant ever holds opens a single ciphertext.",
}
_LEFT_OUT = {
    "masking": "; its mask seed was rebuilt from the survivors' shares",
    "ckks": "; its key is in no sum of shares that was released",
}
_BEFORE = {
    "masking": "before the masks of all survivors cancelled in the sum",
    "ckks": "before the ciphertexts of all survivors were added and their sum was opened",
}
_CAVEAT = {
    "masking": "",
    "ckks": " For ciphertexts it rests on RLWE: a histogram would not tell a packed polynomial "
    "from a ciphertext.",
}
_TEXT_COLUMNS = frozenset({"tenant", "source of"})
_CSS = """
:root { --ink:#1c2733; --faint:#6b7a89; --line:#e4e9ee; --good:#0f766e; --bad:#c62828;
        --paper:#ffffff; --ground:#f4f6f8; }
* { box-sizing:border-box }
body { margin:0; background:var(--ground); color:var(--ink);
       font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif }
main { max-width:1020px; margin:0 auto; padding:2.2rem 1.4rem 4rem }
h1 { font-size:1.75rem; margin:0 0 .2rem; letter-spacing:-.01em }
h2 { font-size:1.15rem; margin:0 0 .6rem }
p { margin:.4rem 0 .8rem; max-width:46rem } .lead { color:var(--faint); margin-bottom:1.4rem }
section { background:var(--paper); border:1px solid var(--line); border-radius:12px;
          padding:1.3rem 1.5rem; margin:0 0 1.1rem }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(165px,1fr)); gap:.8rem;
         margin:0 0 1.1rem }
.card { background:var(--paper); border:1px solid var(--line); border-radius:12px;
        padding:.9rem 1.1rem }
.card b { display:block; font-size:1.6rem; letter-spacing:-.02em; line-height:1.2 }
.card span { color:var(--faint); font-size:.83rem; line-height:1.35; display:block;
             margin-top:.15rem }
.good b, td.good { color:var(--good) } .bad b, td.bad { color:var(--bad) }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums;
        font-size:.9rem; margin:.4rem 0 .7rem }
th { text-align:right; font-weight:600; color:var(--faint); font-size:.8rem;
     border-bottom:1px solid var(--line); padding:.35rem .55rem; vertical-align:bottom }
td { text-align:right; padding:.38rem .55rem; border-bottom:1px solid var(--line) }
th:first-child, td:first-child { text-align:left } td.text, th.text { text-align:left }
table.pairs td:first-child { width:14rem; color:var(--faint) }
tr.total td { font-weight:600; border-bottom:none } td.best { font-weight:700 }
svg { width:100%; height:auto; display:block; margin:.3rem 0 .6rem }
.note { color:var(--faint); font-size:.85rem } .alarm { border-color:var(--bad) }
code { font:.88em ui-monospace,Menlo,Consolas,monospace; background:var(--ground);
       border-radius:4px; padding:.08em .3em } .wide { overflow-x:auto }
details { margin:.5rem 0 } summary { cursor:pointer; color:var(--faint); font-size:.88rem }
"""


def write_page(result: DemoResult, folder: Path) -> Path:
    """Draw `report.html` from the result and the evidence beside it."""
    path = folder / "report.html"
    path.write_text(render(result, folder / "evidence"), encoding="utf-8")
    return path


def render(result: DemoResult, evidence: Path) -> str:
    """The whole page."""
    parts = [
        _abort(result),
        _cards(result),
        *([] if result.comparison is None else [_evaluation(result.comparison)]),
        *([] if result.mission is None else [_mission(result.mission)]),
        _timeline(result),
        _rounds(result),
        _protection(result),
        _secrecy(result, evidence),
        *([_texts(result)] if result.texts else []),
        _parameters(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>secagg demonstration</title><style>{_CSS}</style></head><body><main>"
        f"<h1>Secure aggregation, shown</h1>{_lead(result)}{''.join(parts)}</main></body></html>\n"
    )


def _lead(result: DemoResult) -> str:
    tenants = len(result.rounds[0].evidence.cohort) if result.rounds else 0
    return (
        f'<p class="lead">{tenants} tenants, a coordinator and a model owner, each a process of '
        "its own, talked over mutual TLS. Every tenant kept its text and its model update to "
        "itself; the coordinator learnt sums, and this page checks that against the evidence.</p>"
    )


def _abort(result: DemoResult) -> str:
    entry = result.aborted
    if entry is None:
        return ""
    return (
        f'<section class="alarm"><h2>Round {entry.evidence.round_number} was aborted, and nothing '
        f"was opened</h2><p>{escape(entry.reason)}</p>"
        f"<p>{_names(entry.killed)} had been killed. Too few tenants were left to open a sum that "
        "hides each of them, so the coordinator ended the round; there is no "
        "<code>opened_sum.npy</code> for it. That is the intended end of such a round.</p>"
        "</section>"
    )


def _cards(result: DemoResult) -> str:
    opened = [entry for entry in result.rounds if entry.outcome == "opened"]
    exact = sum(entry.evidence.exact_sum is True for entry in opened)
    cards = [
        _card(f"{exact} of {len(opened)}", "opened sums equal the sum of what the survivors "
              "encoded, integer by integer", good=exact == len(opened) > 0),
    ]  # fmt: skip
    if result.comparison is not None:
        share = result.comparison.recovered_of_full
        cards.append(
            _card(f"{100 * share:.0f}%", "of what fine-tuning the full model would gain, reached "
                  "without anybody's text or the owner's weights leaving", good=share >= 0.8)
        )  # fmt: skip
        gap = result.comparison.means["emulator_fine_tuned"] - result.comparison.means["plug_in"]
        cards.append(_card(f"{gap:.3f}", "nats a byte by which the emulator that tenants hold is "
                           "worse than the plug-in, tuned alike", good=gap > 0))  # fmt: skip
    if opened and opened[0].evidence.held:
        p = opened[0].evidence.held[0].upload.high_bits_p
        cards.append(_card(f"p = {p:.2f}", "what the coordinator held for one tenant, against "
                           "uniform noise (chi-square)", good=p > 0.001))  # fmt: skip
        size = opened[0].evidence.upload_bytes_per_value or 0.0
        cards.append(_card(f"{8 * size:.2f}", "bits uploaded for each value of the update, under "
                           f"scheme {opened[0].evidence.scheme}"))  # fmt: skip
    cards.append(_card(f"{result.seconds / 60:.1f} min", "in all, on this machine"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(figure: str, text: str, *, good: bool | None = None) -> str:
    mood = "" if good is None else " good" if good else " bad"
    return f'<div class="card{mood}"><b>{escape(figure)}</b><span>{escape(text)}</span></div>'


def _mission(mission: Mission) -> str:
    """What left the owner, what the audit said of it, and what tenants checked."""
    emulator, audit = mission.emulator, mission.audit
    rows = "".join(
        f"<tr><td>{escape(str(verdict['clause']))}</td>"
        f"{_td(escape(str(verdict['outcome'])), _mood(verdict['outcome']))}"
        f"{_td(escape(str(verdict['sentence'])), 'text')}</tr>"
        for verdict in audit["verdicts"]
    )
    facts = {
        "layers of the full model": emulator["layers"],
        "edge layers, which leave as they are": 2 * emulator["edge"],
        "middle layers that stay, distilled": len(emulator["kept"]),
        "the full model, SHA-256 over tensors": emulator["full_digest"],
        "the emulator": emulator["emulator_digest"],
        "its manifest, signed by the owner": emulator["manifest_sha256"],
    }
    if mission.plug_in is not None:
        facts["the full model with the last version in it"] = mission.plug_in["digest"]
    return (
        "<section><h2>What left the owner?</h2><p>The owner keeps its full model. Tenants get an "
        "emulator: the outer layers as they are, fewer and distilled ones between them. They tune "
        "the outer layers against it; the owner plugs the protected sum into the full model.</p>"
        f"{_pairs(facts)}"
        "<h2>Does the emulator protect the weights?</h2><p>The audit that every package passes "
        "before it leaves, clause by clause; the whole of it is in "
        f'<code>audit/report.html</code>.</p><div class="wide"><table>'
        f"{_head('clause', 'outcome', 'source of')}{rows}</table></div>"
        f"<p>{len(mission.admissions)} tenants held the package against the owner's key and the "
        "pinned digest, found no code in it and no layer that looks made to carry their text "
        "through an update. That is what those checks found, not a proof of harmlessness.</p>"
        "</section>"
    )


def _mood(outcome: str) -> str:
    return {"pass": "good", "fail": "bad"}.get(outcome, "")


def _evaluation(comparison: Comparison) -> str:
    columns = tuple(plots.ARM_NAMES)
    rows = []
    for result in comparison.results:
        values = [getattr(result, column) for column in columns]
        cells = [_td(f"{value:.3f}", "best" if value == min(values) else "") for value in values]
        rows.append(f"<tr><td>{escape(result.tenant)}</td>{''.join(cells)}</tr>")
    total = "".join(_td(f"{comparison.means[column]:.3f}") for column in columns)
    head = _head("tenant", *(plots.ARM_NAMES[column] for column in columns))
    verdict = (
        "The plug-in is better than the full model was, and better than what tenants could keep "
        "(the tuned emulator): working together pays, and keeping the emulator does not."
        if comparison.protects
        else "<b>The order that protects the owner does not hold</b>: the plug-in has to be better "
        "than the full model was and than the tuned emulator."
    )
    return (
        "<section><h2>Did it learn?</h2><p>The five rows of Offsite-Tuning, beside local-only and "
        "centralised tuning: loss on the tenants' held-out test files, in nats a byte, lower is "
        f"better. One seed; <code>secagg experiment five-rows</code> has intervals.</p>"
        f"{plots.five_rows(comparison)}<p>{verdict}</p>"
        f"<p>The plug-in recovers <b>{100 * comparison.recovered_of_full:.1f}%</b> of the mean "
        "gain of fine-tuning every layer of the full model in the same rounds, which nobody could "
        f"do without its weights, and <b>{100 * comparison.recovered:.1f}%</b> of what tuning the "
        "emulator's edges on all text in one place gains.</p>"
        f'<div class="wide"><table>{head}'
        f'{"".join(rows)}<tr class="total"><td>mean</td>{total}</tr></table></div>'
        "<p>Local-only tuning may well win on its own text; on everybody's text it has "
        f"{comparison.means['local_only_on_all']:.3f}.</p>"
        f"{plots.losses_by_arm(comparison)}"
        "<h2>Loss over rounds</h2><p>The full model with each round's version plugged in, on every "
        "tenant's test text, and where two other arms ended (dashed). Each plot has its own "
        f"scale.</p>{plots.losses_over_rounds(comparison)}</section>"
    )  # fmt: skip


def _timeline(result: DemoResult) -> str:
    if not result.timeline.spans:
        return ""
    return (
        "<section><h2>What happened when</h2><p>The coordinator's lane shows the six steps of each "
        "round; the tenants' lanes show training and uploads. A cross is a SIGKILL. The two lowest "
        "lanes train the comparison's arms, at a lower priority, in the time that is left.</p>"
        f"{plots.timeline(result.timeline)}</section>"
    )


def _rounds(result: DemoResult) -> str:
    rows = []
    for entry in result.rounds:
        evidence = entry.evidence
        exact = {True: "equal", False: "DIFFERENT", None: "nothing opened"}[evidence.exact_sum]
        mood = {True: "good", False: "bad", None: ""}[evidence.exact_sum]
        size = evidence.upload_bytes_per_value
        rows.append(
            f"<tr><td>{evidence.round_number}</td>{_td(evidence.scheme)}"
            f"{_td(f'{len(entry.survivors)} of {len(evidence.cohort)}')}"
            f"{_td(_names(entry.killed) or 'none')}{_td(exact, mood)}"
            f"{_td({True: 'holds', False: 'FAILS', None: '-'}[entry.transcript_holds])}"
            f"{_td('-' if size is None else f'{size:.4f}')}"
            f"{_td('-' if size is None else f'{8 * size:.2f}')}"
            f"{_td(f'{sum(entry.seconds.values()):.1f}')}</tr>"
        )
    head = _head(
        "round", "scheme", "survivors", "killed", "opened sum against the survivors' encoded sum",
        "signed transcript", "bytes a value", "bits a value", "seconds",
    )  # fmt: skip
    return (
        "<section><h2>Was the sum exact?</h2><p>Each tenant wrote down what it encoded (for this "
        "demonstration only). The sum that the coordinator opened is compared with the sum over "
        "the survivors, all integers of it.</p>"
        f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
        f"{_exclusions(result.rounds)}"
        f"{_step_table(result.rounds)}"
        '<p class="note">To recompute all of it without this project\'s code, see '
        "<code>evidence/README.txt</code>. Step 0 includes the tenants' training.</p></section>"
    )


def _exclusions(rounds: Sequence[RoundResult]) -> str:
    items = [
        f"<li>round {entry.evidence.round_number}: <b>{escape(one.tenant)}</b> left in step "
        f"<code>{escape(one.step)}</code> ({escape(one.reason)})"
        + (_LEFT_OUT[entry.evidence.scheme] if entry.outcome == "opened"
           and one.step == "masked_input" else "") + "</li>"
        for entry in rounds for one in entry.excluded
    ]  # fmt: skip
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _protection(result: DemoResult) -> str:
    evidence = next((entry.evidence for entry in result.rounds if entry.evidence.held), None)
    if evidence is None:
        return ""
    return (
        f"<section><h2>How were the updates protected?</h2><p>{_SCHEMES[evidence.scheme]}</p>"
        f"{_pairs(_scheme_facts(evidence))}</section>"
    )


def _scheme_facts(evidence: RoundEvidence) -> dict[str, Any]:
    facts: dict[str, Any] = {"scheme": evidence.scheme, "key agreement": evidence.suite}
    ckks = evidence.parameters
    if ckks:
        facts |= {
            "ring": f"degree N = {ckks['degree']:,}, log2 Q = {ckks['log2_modulus']} over "
            f"{len(ckks['primes'])} primes of {', '.join(map(str, ckks['modulus_bits']))} bits",
            "security": f"128 bits, {ckks['security']} column of the HE standard v1.1",
            "packing": f"{ckks['packing']}, {ckks['digits']} values in a coefficient above "
            f"{ckks['margin_bits']} bits for the errors",
            "ciphertexts of an upload": f"{ckks['polynomials']} of {ckks['polynomial_bytes']:,} "
            f"bytes, {ckks['values_of_a_polynomial']:,} values each",
        }
    facts["a value"] = f"{evidence.ring_bits} bits wide in the sum"
    facts["on the wire"] = f"{evidence.bits_per_value:.2f} bits a value"
    return facts


def _step_table(rounds: Sequence[RoundResult]) -> str:
    steps = list(dict.fromkeys(step for entry in rounds for step in entry.seconds))
    rows = "".join(
        f"<tr><td>{entry.evidence.round_number}</td>"
        + "".join(
            _td(f"{entry.seconds[step]:.2f}" if step in entry.seconds else "-") for step in steps
        )
        + "</tr>"
        for entry in rounds
    )
    head = _head("round", *(step.replace("_", " ") for step in steps))
    return (
        f"<details><summary>seconds of each step</summary><table>{head}{rows}</table></details>"
        if steps
        else ""
    )


def _secrecy(result: DemoResult, evidence: Path) -> str:
    shown = next((entry for entry in result.rounds if entry.evidence.held), None)
    if shown is None:
        return ""
    folder = round_folder(evidence, shown.evidence.round_number)
    held, form = shown.evidence.held[0], shown.evidence.form
    plane, levels = load_planes(folder, held.tenant, form)[0], load_levels(folder, held.tenant)
    in_words = isinstance(form, RingWords)
    pictures = plots.as_pictures(levels, plane, same_places=in_words)
    rows = "".join(
        f"<tr><td>{entry.evidence.round_number}</td>{_td(escape(one.tenant), 'text')}"
        f"{_td(f'{one.upload.high_bits_p:.3f}')}{_td(f'{one.upload.low_bits_p:.3f}')}"
        f"{_td(f'{one.upload.high_bits_chi_square:.0f}')}"
        f"{_td(f'{one.encoded.high_bits_chi_square:,.0f}')}</tr>"
        for entry in result.rounds
        for one in entry.evidence.held
    )
    bins = "highest 8 bits" if in_words else "256 parts of each prime&#39;s range"
    head = _head("round", "tenant", f"p, {bins}", "p, lowest 8 bits",
                 "chi-square (255 expected)", "chi-square of what it hides")  # fmt: skip
    return (
        "<section><h2>What did the coordinator hold?</h2><p>The upload of "
        f"<b>{escape(held.tenant)}</b> in round {shown.evidence.round_number}: "
        f"{shown.evidence.length:,} values of {shown.evidence.ring_bits} bits, exactly as received."
        " Left, what hides in it; right, what the coordinator could look at "
        f"{_BEFORE[shown.evidence.scheme]}.</p>"
        f"{plots.encoded_and_uploaded(held, levels, form)}{pictures}"
        f"<details open><summary>chi-square against uniform, every upload</summary>"
        f"<table>{head}{rows}</table></details>"
        '<p class="note">An honest p is itself uniform between 0 and 1: about one in a hundred is '
        "below 0.01. A large p proves nothing by itself; the proof is the protocol's."
        f"{_CAVEAT[shown.evidence.scheme]}</p></section>"
    )


def _texts(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(text['tenant'])}</td>{_td(escape(text['source']), 'text')}"
        + "".join(_td(f"{text['files'][split]:,}") for split in ("train", "validation", "test"))
        + _td(f"{sum(text['bytes'].values()) / 1e6:.1f}")
        + "</tr>"
        for text in result.texts
    )
    head = _head("tenant", "source of", "train files", "validation files", "test files", "MB")
    listings = "".join(
        f"<details><summary>{escape(text['tenant'])}: files and SHA-256</summary><table>"
        + "".join(
            f"<tr><td><code>{escape(file['path'])}</code></td>{_td(split, 'text')}"
            f"{_td(str(file['bytes']))}{_td('<code>' + file['sha256'][:16] + '</code>')}</tr>"
            for split, files in text["listing"].items()
            if split != "train"
            for file in files
        )
        + "</table></details>"
        for text in result.texts
    )
    return (
        "<section><h2>The tenants' private text</h2><p>Each tenant holds the Python source of one "
        "installed package, split by whole file. None of it was in the base's pretraining text, "
        "which is the standard library. All hashes, training files included, stand in "
        f"<code>texts.json</code>.</p><table>{head}{rows}</table>{listings}</section>"
    )


def _parameters(result: DemoResult) -> str:
    recipe = result.parameters.get("recipe", {})
    others = {name: value for name, value in result.parameters.items() if name != "recipe"}
    return (
        f"<section><h2>Parameters</h2>{_pairs(others)}"
        f"<details><summary>the training recipe, the same for all arms</summary>{_pairs(recipe)}"
        "</details><details><summary>seconds by part of the run</summary>"
        f"{_pairs({name: f'{took:.1f}' for name, took in result.seconds_by_part.items()})}"
        "</details></section>"
    )


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>{_td(escape(_short(value)), 'text')}</tr>"
        for name, value in values.items()
    )
    return f'<table class="pairs">{rows}</table>'


def _short(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{name} {_short(item)}" for name, item in value.items())
        case list() | tuple():
            return ", ".join(map(_short, value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _head(*names: str) -> str:
    cells = (
        f'<th class="text">{name}</th>' if name in _TEXT_COLUMNS else f"<th>{name}</th>"
        for name in names
    )
    return f"<tr>{''.join(cells)}</tr>"


def _td(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _names(names: Iterable[str]) -> str:
    return escape(", ".join(names))
