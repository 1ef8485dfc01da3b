"""The report's sections on training: whether it learnt, and which data the tenants held.

One wording for each task; the tables and plots are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from secagg_demo import plots
from secagg_demo.comparison import CENTRAL, WHOLE, Comparison
from secagg_demo.pieces import card, cell, heads
from secagg_demo.results import DemoResult


def learning_cards(comparison: Comparison) -> list[str]:
    """The figures that a reader looks for first."""
    measure, means = comparison.measure, comparison.means
    share, helped, count = (
        comparison.recovered_of_full, len(comparison.helped), len(comparison.results)
    )  # fmt: skip
    if measure.kept:
        gap = means[measure.kept] - means[measure.made]
        return [
            card(f"{100 * share:.0f}%", "of what fine-tuning the full model would gain, reached "
                 "without anybody's text or the owner's weights leaving", good=share >= 0.8),
            card(f"{gap:.3f}", "nats a byte by which the emulator that tenants hold is worse than "
                 "the plug-in, tuned alike", good=gap > 0),
        ]  # fmt: skip
    gain = comparison.gain_of(measure.made)
    return [
        card(f"{100 * gain:.1f}%", "less pinball loss than the forecaster as it was, without "
             "anybody's series leaving", good=gain > 0),
        card(f"{helped} of {count}", "companies for which the federation's forecaster is better "
             "than the one as it was", good=helped == count),
    ]  # fmt: skip


def learnt(comparison: Comparison) -> str:
    """The section of tables and plots."""
    return (
        f"<section><h2>Did it learn?</h2>{_question(comparison)}{plots.rows_as_bars(comparison)}"
        f"{_answer(comparison)}{_table(comparison)}"
        "<p>Local-only tuning may well win on its own data; on everybody's it has "
        f"{comparison.means['local_only_on_all']:.3f}.</p>"
        f"{plots.losses_by_arm(comparison)}"
        f"<h2>Loss over rounds</h2><p>{_over_rounds(comparison)} on every tenant's test data, and "
        "where two other arms ended (dashed). Each plot has its own "
        f"scale.</p>{plots.losses_over_rounds(comparison)}</section>"
    )


def held(result: DemoResult) -> str:
    """The section on the tenants' data."""
    match result.task:
        case "text":
            return _texts(result)
        case "timeseries":
            return _series(result)


def _question(comparison: Comparison) -> str:
    if comparison.measure.kept:
        return (
            "<p>The five rows of Offsite-Tuning, beside local-only and centralised tuning: loss on "
            "the tenants' held-out test files, in nats a byte, lower is better. One seed; "
            "<code>secagg experiment five-rows</code> has intervals.</p>"
        )
    return (
        "<p>Loss on the latest values of the companies' series, which nobody trained on: the mean "
        "pinball loss of nine quantiles of the next values, in units of each history's standard "
        "deviation, lower is better, from origins that roll over each series' test part. "
        "Zero-shot is the forecaster as everybody has it; seasonal naive is no model at all, every "
        "value as it was a season ago, give or take what that has missed so far. One seed; "
        "<code>secagg experiment timeseries</code> has intervals.</p>"
    )


def _answer(comparison: Comparison) -> str:
    full, central = 100 * comparison.recovered_of_full, 100 * comparison.recovered
    if comparison.measure.kept:
        verdict = (
            "The plug-in is better than the full model was, and better than what tenants could "
            "keep (the tuned emulator): working together pays, and keeping the emulator does not."
            if comparison.protects
            else "<b>The order that protects the owner does not hold</b>: the plug-in has to be "
            "better than the full model was and than the tuned emulator."
        )
        return (
            f"<p>{verdict}</p><p>The plug-in recovers <b>{full:.1f}%</b> of the mean gain of "
            "fine-tuning every layer of the full model in the same rounds, which nobody could do "
            f"without its weights, and <b>{central:.1f}%</b> of what tuning the emulator's edges "
            "on all text in one place gains.</p>"
        )
    others = [one.tenant for one in comparison.results if one.tenant not in comparison.helped]
    verdict = (
        "The federation's forecaster is better than the one as it was for every company."
        if not others
        else "<b>The federation's forecaster is not better than the one as it was for "
        f"{escape(', '.join(others))}</b>."
    )
    made, full_gain, central_gain = (
        100 * comparison.gain_of(arm) for arm in (comparison.measure.made, WHOLE, CENTRAL)
    )
    return (
        f"<p>{verdict} In the mean it takes <b>{made:.1f}%</b> off the loss; all weights tuned in "
        f"the same rounds without protection take off {full_gain:.1f}%, and tuning on all series "
        f"in one place {central_gain:.1f}%.</p>"
    )


def _over_rounds(comparison: Comparison) -> str:
    if comparison.measure.kept:
        return "The full model with each round's version plugged in,"
    return "The forecaster with each round's version in it,"


def _table(comparison: Comparison) -> str:
    columns = tuple(arm for arm in plots.ARM_NAMES if arm in comparison.measure.arms)
    rows = []
    for result in comparison.results:
        values = [result.losses[column] for column in columns]
        cells = [cell(f"{value:.3f}", "best" if value == min(values) else "") for value in values]
        rows.append(f"<tr><td>{escape(result.tenant)}</td>{''.join(cells)}</tr>")
    total = "".join(cell(f"{comparison.means[column]:.3f}") for column in columns)
    head = heads("tenant", *(plots.ARM_NAMES[column] for column in columns))
    return (
        f'<div class="wide"><table>{head}'
        f'{"".join(rows)}<tr class="total"><td>mean</td>{total}</tr></table></div>'
    )  # fmt: skip


def _texts(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(text['tenant'])}</td>{cell(escape(text['source']), 'text')}"
        + "".join(cell(f"{text['files'][split]:,}") for split in ("train", "validation", "test"))
        + cell(f"{sum(text['bytes'].values()) / 1e6:.1f}")
        + "</tr>"
        for text in result.holdings
    )
    head = heads("tenant", "source of", "train files", "validation files", "test files", "MB")
    return (
        "<section><h2>The tenants' private text</h2><p>Each tenant holds the Python source of one "
        "installed package, split by whole file. None of it was in the base's pretraining text, "
        "which is the standard library. All hashes, training files included, stand in "
        f"<code>texts.json</code>.</p><table>{head}{rows}</table>"
        f"{''.join(map(_files, result.holdings))}</section>"
    )


def _files(text: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(file['path'])}</code></td>{cell(split, 'text')}"
        f"{cell(str(file['bytes']))}{cell('<code>' + file['sha256'][:16] + '</code>')}</tr>"
        for split, files in text["listing"].items()
        if split != "train"
        for file in files
    )
    return (
        f"<details><summary>{escape(text['tenant'])}: files and SHA-256</summary>"
        f"<table>{rows}</table></details>"
    )


def _series(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(one['tenant'])}</td>{cell(escape(one['source']), 'text')}"
        f"{cell(str(one['series']))}"
        + "".join(cell(f"{one['values'][split]:,}") for split in ("train", "validation", "test"))
        + "</tr>"
        for one in result.holdings
    )
    head = heads("tenant", "data sets", "series", "train values", "validation values",
                 "test values")  # fmt: skip
    return (
        "<section><h2>The companies' private series</h2><p>Each company holds real series that "
        "come inside installed libraries, each split by time: the latest values are the test part. "
        "None of them was in the forecaster's pretraining. Sources, licences and hashes stand in "
        f"<code>series.json</code>.</p><table>{head}{rows}</table>"
        f"{''.join(map(_channels, result.holdings))}</section>"
    )


def _channels(holding: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(one['name'])}</td>{cell(escape(one['frequency']), 'text')}"
        f"{cell(escape(one['unit']), 'text')}{cell(str(one['season']))}{cell(str(one['values']))}"
        f"{cell(escape(one['source']), 'text')}"
        f"{cell('<code>' + one['sha256'][:16] + '</code>')}</tr>"
        for one in holding["listing"]
    )
    head = heads("series", "frequency", "unit", "season", "values", "from", "SHA-256")
    return (
        f"<details><summary>{escape(holding['tenant'])}: series</summary>"
        f'<div class="wide"><table>{head}{rows}</table></div></details>'
    )
