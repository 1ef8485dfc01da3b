"""Drift: noticed how soon at which rate of false alarms, recovered from how, forgetting how much.

Three parts, each with its own job for a seed: detectors on streams of losses (drift_streams.py);
five companies whose series change while rounds go on, and versions of known worth that companies
judge (both drift_rounds.py). What an alarm or a verdict rests on never leaves a tenant.

Not here: drift of some companies and not of others, and slow drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from secagg_demo.experiments import drift_rounds, drift_streams, page
from secagg_demo.experiments.drift_rounds import ARMS, DRIFT_EPOCH
from secagg_demo.experiments.drift_streams import MADE, PERIODS, REAL, STATED, delays, rates
from secagg_demo.experiments.frame import (
    Cell,
    Finding,
    Interval,
    Job,
    Report,
    Results,
    Summary,
    Table,
    above_zero,
    difference,
    interval,
)

NAME = "drift"
TITLE = "Drift: noticed, recovered from, forgotten"
QUESTION = (
    "How soon does a tenant notice that its data have changed, at which rate of false alarms, "
    "against a fixed schedule; do rounds on new data recover what was lost; what is forgotten; and "
    "are harmful versions rejected?"
)
SIZES = ("quick", "default", "large")
SEEDS = 3

SCALES: Final[Mapping[str, Mapping[str, int]]] = {
    "quick": {
        "quiet": 400, "repeats": 1, "epochs": DRIFT_EPOCH + 3, "pretraining": 60, "steps": 2,
        "candidates": 3,
    },
    "default": {
        "quiet": 3000, "repeats": 7, "epochs": 12, "pretraining": 150, "steps": 8,
        "candidates": 10,
    },
    "large": {
        "quiet": 20_000, "repeats": 30, "epochs": 24, "pretraining": 400, "steps": 16,
        "candidates": 20,
    },
}  # fmt: skip
_PARTS: Final = ("recovery", "streams", "versions")
_MARGIN = 0.01
_OURS = f"ranks, 1 in {STATED[2]}"
_FIXED, _AS_OFTEN = (f"schedule, every {PERIODS[place]}" for place in (1, 4))


def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
    """One process for each part and seed."""
    return [
        Job(f"{part} {seed}", f"{__name__}:measure", {"part": part, "size": size, "seed": seed})
        for part in _PARTS
        for seed in seeds
    ]


def measure(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """A job: one part for one seed."""
    size, seed = SCALES[arguments["size"]], int(arguments["seed"])
    device, done = arguments["device"], 0
    match arguments["part"]:
        case "streams":
            return drift_streams.measure(size, seed, report)
        case "recovery":
            run, of = drift_rounds.recovery, len(ARMS) * size["epochs"]
        case _:
            run, of = drift_rounds.versions, size["candidates"] + 2

    def tick() -> None:
        nonlocal done
        done += 1
        report(done, of)

    return run(size, seed, device, tick)


# ------------------------------------------------------------------------------- summarising


def summarise(size: str, results: Results) -> Summary:
    """Tables of detectors, arms and verdicts; curves of losses through the change."""
    parts = {
        part: [result for name, result in results.items() if name.split()[0] == part]
        for part in _PARTS
    }
    streams, recovery, versions = (parts[part] for part in ("streams", "recovery", "versions"))
    judged = [each for result in versions for each in result["judged"]]
    return Summary(
        [
            _alarm_table(streams), _delay_table(streams), _arm_table(recovery),
            _verdict_table(judged),
        ],
        [
            *_about_alarms(streams), *_about_delays(streams), *_about_recovery(recovery),
            *_about_versions(judged, versions),
        ],
        {
            "losses": _loss_plot(recovery),
            "delay against false alarms": _trade_plot(streams),
        },
        {"drift_epoch": DRIFT_EPOCH + 1, "margin": _MARGIN},
        _HOW.format(epochs=SCALES[size]["epochs"], change=DRIFT_EPOCH + 1, **_SIZES_IN_WORDS),
    )  # fmt: skip


_SIZES_IN_WORDS: Final = {
    "companies": drift_rounds.COMPANIES,
    "new": drift_rounds.NEW,
    "history": drift_rounds.HISTORY,
}
_HOW = (
    "Detectors: independent losses of three distributions, losses that depend on the one before "
    "(correlation 0.5), and the shipped base's losses on 400 windows of networkx's Python files "
    "followed by 100 of torch's C++ headers, shuffled and in the order of the files. A change is a "
    "shift by so many deviations; a change that is never noticed counts as the 300 (of text: 100) "
    "windows that follow it. `ranks, 1 in N` is secagg's detector with a stated rate of one false "
    "alarm in N windows; river's detectors have their defaults. Recovery: {companies} companies "
    "with two series each, {history} values at first and {new} more in each of {epochs} epochs; "
    "from epoch {change} on the season of all series is another one. A small forecaster trained in "
    "the job on the first season serves at first; each epoch's loss (pinball, normalised) is "
    "measured before anything of it is trained on. Versions: candidates made with noise of many "
    "sizes, by further honest rounds, and by rounds on poisoned series; how much worse each one "
    "truly is, is measured on 300 windows that no company has. A seed draws series, losses, "
    "weights and noise."
)


def _names(streams: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(streams[0])


def _alarm_table(streams: Sequence[Mapping[str, Any]]) -> Table:
    kinds = (*MADE, *REAL)
    rows: list[list[Cell]] = [
        [name, *(interval(rates(streams, name, kind)) for kind in kinds)]
        for name in _names(streams)
    ]
    return Table("False alarms per 1000 windows without a change", ["detector", *kinds], rows)


def _delay_table(streams: Sequence[Mapping[str, Any]]) -> Table:
    measured = list(streams[0][_OURS]["delay"])
    rows: list[list[Cell]] = [
        [name, *(interval(delays(streams, name, what)) for what in measured)]
        for name in _names(streams)
    ]
    return Table(
        "Windows until a change is noticed (median over repeats; shift in deviations)",
        ["detector", *measured],
        rows,
    )


def _about_alarms(streams: Sequence[Mapping[str, Any]]) -> list[Finding]:
    stated = 1000 / STATED[2]
    found = {kind: interval(rates(streams, _OURS, kind)) for kind in (*MADE, *REAL)}
    independent = [found[kind] for kind in MADE[:3]]
    files, shuffled = found[REAL[1]], found[REAL[0]]
    return [
        Finding(
            "Of independent losses the stated rate of false alarms holds, whatever their "
            "distribution",
            all(each.low <= stated for each in independent),
            f"stated {stated:g} per 1000; "
            + ", ".join(f"{kind}: {page.in_words(found[kind])}" for kind in MADE[:3])
            + ".",
        ),
        Finding(
            "It holds of losses that depend on each other, too",
            found["dependent"].low <= stated,
            f"correlation 0.5: {page.in_words(found['dependent'])} per 1000.",
        ),
        Finding(
            "Shuffling the windows that arrived together, as nodes do, keeps windows of one file "
            "from alarming by being alike",
            above_zero(difference(
                rates(streams, _OURS, REAL[1]), rates(streams, _OURS, REAL[0])
            )),
            f"text in file order: {page.in_words(files)} per 1000; shuffled: "
            f"{page.in_words(shuffled)}.",
        ),
    ]  # fmt: skip


def _about_delays(streams: Sequence[Mapping[str, Any]]) -> list[Finding]:
    sooner = difference(
        delays(streams, _FIXED, "normal 1"), delays(streams, _OURS, "normal 1")
    )  # fmt: skip
    as_often = difference(
        delays(streams, _AS_OFTEN, "normal 1"), delays(streams, _OURS, "normal 1")
    )  # fmt: skip
    found = [
        Finding(
            "A change by one deviation is noticed sooner than by a fixed schedule that acts as "
            "often without need",
            above_zero(as_often),
            f"{_AS_OFTEN} (after 300 at the latest, where counting ends) later by "
            f"{page.in_words(as_often)} windows.",
        ),
        Finding(
            "It is noticed sooner even than by a schedule that acts twenty times as often",
            above_zero(sooner),
            f"{_OURS}: {page.in_words(interval(delays(streams, _OURS, 'normal 1')))} windows; "
            f"{_FIXED}: {page.in_words(interval(delays(streams, _FIXED, 'normal 1')))}.",
        ),
    ]
    rivals = [name for name in _names(streams) if name.startswith("river")]
    if rivals:
        gains = {
            name: difference(delays(streams, name, "normal 1"), delays(streams, _OURS, "normal 1"))
            for name in rivals
        }
        found.append(
            Finding(
                "It is noticed sooner than by river's detectors with their defaults",
                _all_above(list(gains.values())),
                "; ".join(f"{name} later by {page.in_words(gain)}" for name, gain in gains.items())
                + " windows; their false alarms stand in the table.",
            )
        )
    return found


def _below(found: Interval, limit: float) -> bool | None:
    if found.high <= limit:
        return True
    return False if found.low > limit else None


def _all_above(gains: Sequence[Interval]) -> bool | None:
    verdicts = {above_zero(gain) for gain in gains}
    if False in verdicts:
        return False
    return None if None in verdicts else True


# ---------------------------------------------------------------------------------- recovery


def _late(recovery: Sequence[Mapping[str, Any]], arm: str) -> list[float]:
    """The loss in the last three epochs, by seed."""
    return [fmean(result[arm]["fresh"][-3:]) for result in recovery]


def _calm(recovery: Sequence[Mapping[str, Any]], arm: str) -> list[float]:
    """The loss before the change, by seed."""
    return [fmean(result[arm]["fresh"][:DRIFT_EPOCH]) for result in recovery]


def _struck(recovery: Sequence[Mapping[str, Any]], arm: str) -> list[float]:
    """The loss in the first epoch of the change, by seed."""
    return [float(result[arm]["fresh"][DRIFT_EPOCH]) for result in recovery]


def _forgotten(recovery: Sequence[Mapping[str, Any]], arm: str) -> list[float]:
    """How much the loss on remembered windows rose from the change to the end, by seed."""
    return [result[arm]["old"][-1] - result[arm]["old"][DRIFT_EPOCH] for result in recovery]


def _alarms_before(recovery: Sequence[Mapping[str, Any]], arm: str) -> int:
    return sum(epoch <= DRIFT_EPOCH for result in recovery for epoch, _ in result[arm]["alarms"])


def _companies_that_noticed(recovery: Sequence[Mapping[str, Any]], arm: str) -> int:
    """Companies that alarmed in the first epoch of the change."""
    return sum(
        epoch == DRIFT_EPOCH + 1 for result in recovery for epoch, _ in result[arm]["alarms"]
    )


def _arm_table(recovery: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = [
        [
            arm,
            *(interval(of(recovery, arm)) for of in (_calm, _struck, _late, _forgotten)),
            interval([float(result[arm]["rounds"]) for result in recovery]),
        ]
        for arm in ARMS
    ]
    return Table(
        "Loss on what comes, and on what is remembered",
        ["arm", "before the change", "epoch of the change", "last three epochs",
         "rise on remembered windows", "rounds"],
        rows,
    )  # fmt: skip


def _about_recovery(recovery: Sequence[Mapping[str, Any]]) -> list[Finding]:
    companies = drift_rounds.COMPANIES * len(recovery)
    noticed = _companies_that_noticed(recovery, "online")
    gain = difference(_late(recovery, "no rounds"), _late(recovery, "online"))
    split = difference(_late(recovery, "ordinary split"), _late(recovery, "online"))
    alarm = difference(_late(recovery, "on alarm"), _late(recovery, "online"))
    forgotten = interval(_forgotten(recovery, "online"))
    return [
        Finding(
            "Every company notices in the epoch of the change",
            noticed == companies,
            f"{noticed} of {companies} (12 windows of each company an epoch); "
            f"{_alarms_before(recovery, 'online')} alarms in the {DRIFT_EPOCH} epochs before.",
        ),
        Finding(
            "Rounds on data read anew recover from the change",
            above_zero(gain),
            f"last three epochs, no rounds less online: {page.in_words(gain)}.",
        ),
        Finding(
            "Training on all but the newest tenth recovers more than the ordinary split in time",
            above_zero(split),
            f"ordinary split less online: {page.in_words(split)}: the ordinary split keeps the "
            "newest 30% from training.",
        ),
        Finding(
            "Rounds that do not wait for alarms recover at least as well as rounds on alarm",
            alarm.low > -0.05,
            f"on alarm less online: {page.in_words(alarm)}; rounds on alarm alone would show "
            "everybody when somebody's data change.",
        ),
        Finding(
            "What was known before the change is kept: its loss rises by at most a tenth",
            _below(forgotten, 0.1 * fmean(_calm(recovery, "online"))),
            f"the loss on remembered windows rose by {page.in_words(forgotten)}, from "
            f"{fmean(_calm(recovery, 'online')):.3f}.",
        ),
    ]


# ---------------------------------------------------------------------------------- versions


def _shares(judged: Sequence[Mapping[str, Any]], windows: str) -> list[Cell]:
    verdicts = [verdict for each in judged for verdict in each["verdicts"][windows]]
    if not verdicts:
        return ["none", "none", "none"]
    return [
        verdicts.count(verdict) / len(verdicts) for verdict in ("approved", "undecided", "rejected")
    ]


def _classes(judged: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    noise = [each for each in judged if each["kind"] == "noise"]
    return {
        "noise, at most 1% worse": [each for each in noise if each["worse"] <= _MARGIN],
        "noise, 1 to 5% worse": [each for each in noise if _MARGIN < each["worse"] <= 0.05],
        "noise, over 5% worse": [each for each in noise if each["worse"] > 0.05],
        "further honest rounds": [each for each in judged if each["kind"] == "honest rounds"],
        "poisoned rounds": [each for each in judged if each["kind"] == "poisoned rounds"],
    }


def _verdict_table(judged: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for label, some in _classes(judged).items():
        if some:
            worse = fmean(each["worse"] for each in some)
            rows += [
                [label, len(some), worse, int(windows), *_shares(some, windows)]
                for windows in some[0]["verdicts"]
            ]
    return Table(
        "Verdicts on versions of known worth (margin 1%, shares of companies' verdicts)",
        ["version", "how many", "truly worse by", "windows", "approved", "undecided", "rejected"],
        rows,
    )


def _about_versions(
    judged: Sequence[Mapping[str, Any]], versions: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    harmful = [each for each in judged if each["worse"] > _MARGIN]
    sound = [each for each in judged if each["worse"] <= _MARGIN]
    wrongly_in = {windows: _shares(harmful, windows)[0] for windows in ("16", "64")}
    wrongly_out = {windows: _shares(sound, windows)[2] for windows in ("16", "64")}
    return [
        Finding(
            "At most 5% of the verdicts on harmful versions approve them",
            _at_most(wrongly_in.values(), 0.05),
            f"false approvals on 16 windows: {_percent(wrongly_in['16'])}, on 64: "
            f"{_percent(wrongly_in['64'])} of {5 * len(harmful)} verdicts.",
        ),
        Finding(
            "At most 5% of the verdicts on versions that are not worse reject them",
            _at_most(wrongly_out.values(), 0.05),
            f"false rejections on 16 windows: {_percent(wrongly_out['16'])}, on 64: "
            f"{_percent(wrongly_out['64'])} of {5 * len(sound)} verdicts; the rest of the sound "
            "ones that were not approved is undecided.",
        ),
        Finding(
            "Rolling back gives the very same losses, bit for bit",
            all(result["rollback"] for result in versions),
            f"{len(versions)} lines of versions.",
        ),
    ]


def _at_most(shares: Any, limit: float) -> bool | None:
    numbers = [share for share in shares if isinstance(share, float)]
    return all(share <= limit for share in numbers) if numbers else None


def _percent(share: Cell) -> str:
    return f"{100 * share:.1f}%" if isinstance(share, float) else "none measured"


# ------------------------------------------------------------------------------------- plots


def _loss_plot(recovery: Sequence[Mapping[str, Any]]) -> Any:
    epochs = range(1, 1 + len(recovery[0][ARMS[0]]["fresh"]))
    curves = {
        arm: [interval([result[arm]["fresh"][at - 1] for result in recovery]) for at in epochs]
        for arm in ARMS
    }
    return page.curves_plot(
        list(epochs), curves, ("epoch", "pinball on what came, before it is trained on"),
        f"The season changes in epoch {DRIFT_EPOCH + 1}",
    )  # fmt: skip


def _trade_plot(streams: Sequence[Mapping[str, Any]]) -> Any:
    lines = {
        "ranks (ours)": [f"ranks, 1 in {stated}" for stated in reversed(STATED)],
        "fixed schedule": [f"schedule, every {period}" for period in reversed(PERIODS)],
    }
    places = {
        label: [max(0.1, fmean(rates(streams, name, "normal"))) for name in names]
        for label, names in lines.items()
    }
    curves = {
        label: [interval(delays(streams, name, "normal 1")) for name in names]
        for label, names in lines.items()
    }
    return page.curves_plot(
        places, curves, ("false alarms per 1000 windows", "windows until noticed"),
        "A change by one deviation", log_x=True,
    )  # fmt: skip
