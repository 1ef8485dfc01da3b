"""`report.html`: one file that needs nothing else, for people.

The page says what was claimed, what was measured, and where to look it up. Every number in it
stands in report.json or in the evidence folder too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from secagg_demo import plots
from secagg_demo.evidence import RoundEvidence, load_levels, load_planes, round_folder
from secagg_demo.learning import held, learning_cards, learnt
from secagg_demo.pieces import card, cell, heads, listed, pairs
from secagg_demo.results import DemoResult, Mission, RoundResult
from secagg_demo.settings import TaskName
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
_DATA: Mapping[TaskName, str] = {"text": "text", "timeseries": "time series"}
_CAVEAT = {
    "masking": "",
    "ckks": " For ciphertexts it rests on RLWE: a histogram would not tell a packed polynomial "
    "from a ciphertext.",
}
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
        *([] if result.comparison is None else [learnt(result.comparison)]),
        *([] if result.mission is None else [_mission(result.mission)]),
        _timeline(result),
        _rounds(result),
        _protection(result),
        _secrecy(result, evidence),
        *([held(result)] if result.holdings else []),
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
        f"its own, talked over mutual TLS. Every tenant kept its {_DATA[result.task]} and its "
        "model update to itself; the coordinator learnt sums, and this page checks that against "
        "the evidence.</p>"
    )


def _abort(result: DemoResult) -> str:
    entry = result.aborted
    if entry is None:
        return ""
    return (
        f'<section class="alarm"><h2>Round {entry.evidence.round_number} was aborted, and nothing '
        f"was opened</h2><p>{escape(entry.reason)}</p>"
        f"<p>{listed(entry.killed)} had been killed. Too few tenants were left to open a sum that "
        "hides each of them, so the coordinator ended the round; there is no "
        "<code>opened_sum.npy</code> for it. That is the intended end of such a round.</p>"
        "</section>"
    )


def _cards(result: DemoResult) -> str:
    opened = [entry for entry in result.rounds if entry.outcome == "opened"]
    exact = sum(entry.evidence.exact_sum is True for entry in opened)
    cards = [
        card(f"{exact} of {len(opened)}", "opened sums equal the sum of what the survivors "
              "encoded, integer by integer", good=exact == len(opened) > 0),
    ]  # fmt: skip
    if result.comparison is not None:
        cards += learning_cards(result.comparison)
    if opened and opened[0].evidence.held:
        p = opened[0].evidence.held[0].upload.high_bits_p
        cards.append(card(f"p = {p:.2f}", "what the coordinator held for one tenant, against "
                           "uniform noise (chi-square)", good=p > 0.001))  # fmt: skip
        size = opened[0].evidence.upload_bytes_per_value or 0.0
        cards.append(card(f"{8 * size:.2f}", "bits uploaded for each value of the update, under "
                           f"scheme {opened[0].evidence.scheme}"))  # fmt: skip
    cards.append(card(f"{result.seconds / 60:.1f} min", "in all, on this machine"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _mission(mission: Mission) -> str:
    """What left the owner, what the audit said of it, and what tenants checked."""
    emulator, audit = mission.emulator, mission.audit
    rows = "".join(
        f"<tr><td>{escape(str(verdict['clause']))}</td>"
        f"{cell(escape(str(verdict['outcome'])), _mood(verdict['outcome']))}"
        f"{cell(escape(str(verdict['sentence'])), 'text')}</tr>"
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
        f"{pairs(facts)}"
        "<h2>Does the emulator protect the weights?</h2><p>The audit that every package passes "
        "before it leaves, clause by clause; the whole of it is in "
        f'<code>audit/report.html</code>.</p><div class="wide"><table>'
        f"{heads('clause', 'outcome', 'source of')}{rows}</table></div>"
        f"<p>{len(mission.admissions)} tenants held the package against the owner's key and the "
        "pinned digest, found no code in it and no layer that looks made to carry their text "
        "through an update. That is what those checks found, not a proof of harmlessness.</p>"
        "</section>"
    )


def _mood(outcome: str) -> str:
    return {"pass": "good", "fail": "bad"}.get(outcome, "")


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
            f"<tr><td>{evidence.round_number}</td>{cell(evidence.scheme)}"
            f"{cell(f'{len(entry.survivors)} of {len(evidence.cohort)}')}"
            f"{cell(listed(entry.killed) or 'none')}{cell(exact, mood)}"
            f"{cell({True: 'holds', False: 'FAILS', None: '-'}[entry.transcript_holds])}"
            f"{cell('-' if size is None else f'{size:.4f}')}"
            f"{cell('-' if size is None else f'{8 * size:.2f}')}"
            f"{cell(f'{sum(entry.seconds.values()):.1f}')}</tr>"
        )
    head = heads(
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
        f"{pairs(_scheme_facts(evidence))}</section>"
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
            cell(f"{entry.seconds[step]:.2f}" if step in entry.seconds else "-") for step in steps
        )
        + "</tr>"
        for entry in rounds
    )
    head = heads("round", *(step.replace("_", " ") for step in steps))
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
        f"<tr><td>{entry.evidence.round_number}</td>{cell(escape(one.tenant), 'text')}"
        f"{cell(f'{one.upload.high_bits_p:.3f}')}{cell(f'{one.upload.low_bits_p:.3f}')}"
        f"{cell(f'{one.upload.high_bits_chi_square:.0f}')}"
        f"{cell(f'{one.encoded.high_bits_chi_square:,.0f}')}</tr>"
        for entry in result.rounds
        for one in entry.evidence.held
    )
    bins = "highest 8 bits" if in_words else "256 parts of each prime&#39;s range"
    head = heads("round", "tenant", f"p, {bins}", "p, lowest 8 bits",
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


def _parameters(result: DemoResult) -> str:
    recipe = result.parameters.get("recipe", {})
    others = {name: value for name, value in result.parameters.items() if name != "recipe"}
    return (
        f"<section><h2>Parameters</h2>{pairs(others)}"
        f"<details><summary>the training recipe, the same for all arms</summary>{pairs(recipe)}"
        "</details><details><summary>seconds by part of the run</summary>"
        f"{pairs({name: f'{took:.1f}' for name, took in result.seconds_by_part.items()})}"
        "</details></section>"
    )
