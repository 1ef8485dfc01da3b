"""Windows drawn uniformly, or from a surprise band: what it gains, and what it gives away.

Gain: recall of a rare regime and average loss at equal windows, on planted worlds (surprise_gain.py
has the arms, surprise_worlds.py the data) and on real text. Secrecy: a classifier on everything
that leaves the tenant (surprise_transcript.py). The band's numbers are the library's defaults; they
were chosen on planted worlds of seeds 1 and 2, which no table here contains.

Not here: tenants that lie about their choice, and what an opened sum says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from secagg_demo.experiments import page
from secagg_demo.experiments.frame import (
    Cell,
    Finding,
    Interval,
    Job,
    Results,
    Summary,
    Table,
    difference,
    interval,
)
from secagg_demo.experiments.surprise_gain import (
    BAND,
    BEFORE,
    CLIPPED,
    GAP,
    LATENT,
    MORE,
    SPECIALIST,
    UNIFORM,
)
from secagg_demo.experiments.surprise_transcript import (
    ADMITTED,
    DELTA,
    POLICIES,
    SECONDS,
    SEEN,
    VIEWS,
    auc_interval,
)

NAME = "surprise"
TITLE = "Uniform windows against a surprise band"
QUESTION = (
    "Does choosing windows by surprise raise the recall of rare regimes at equal windows without "
    "making the average worse, and does anything that leaves the tenant tell of them?"
)
SIZES = ("quick", "default", "large")
SEEDS = 5

MARGIN: Final = 0.01
"""Of the average loss under uniform draws: what counts as not worse."""

_FIRST_SEED = 100  # 1 and 2 served to choose the band's numbers
_WORLDS: Final = ("planted", "real")
_SCALES: Final[Mapping[str, Mapping[str, Any]]] = {
    "quick": {
        "planted": {"rounds": 2, "steps": 6, "batch": 8, "lr": 0.003},
        "real": {"rounds": 1, "steps": 2, "batch": 4, "lr": 0.004},
        "tenants": 12,
    },
    "default": {
        "planted": {"rounds": 6, "steps": 20, "batch": 8, "lr": 0.003},
        "real": {"rounds": 6, "steps": 16, "batch": 8, "lr": 0.004},
        "tenants": 192,
    },
    "large": {
        "planted": {"rounds": 12, "steps": 20, "batch": 8, "lr": 0.003},
        "real": {"rounds": 12, "steps": 16, "batch": 8, "lr": 0.004},
        "tenants": 400,
    },
}
_PLANTED_ARMS: Final = (UNIFORM, MORE, BAND, GAP, LATENT)
_REAL_ARMS: Final = (UNIFORM, BAND)
_HERE = "secagg_demo.experiments"


def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
    """For each seed both worlds with all their arms, and the views on tenants."""
    scale, found = _SCALES[size], []
    arms = {"planted": _PLANTED_ARMS, "real": _REAL_ARMS}
    if size == "large":
        arms = {"planted": (*_PLANTED_ARMS, CLIPPED), "real": (UNIFORM, MORE, BAND, LATENT)}
    for seed in (_FIRST_SEED + seed for seed in seeds):
        for world in _WORLDS:
            values = {"seed": seed, "scale": scale[world], "arms": list(arms[world])}
            found.append(Job(f"{world} {seed}", f"{_HERE}.surprise_gain:{world}_job", values))
        values = {"seed": seed, "tenants": scale["tenants"]}
        function = f"{_HERE}.surprise_transcript:transcript_job"
        found.append(Job(f"transcript {seed}", function, values))
    return found


def summarise(size: str, results: Results) -> Summary:
    """Two tables of gains, one of what a classifier makes of views on a tenant."""
    by_world = {
        world: [each["arms"] for name, each in results.items() if name.split()[0] == world]
        for world in _WORLDS
    }
    aucs = {policy: _aucs(policy, results) for policy in POLICIES}
    findings = [
        *(finding for world in _WORLDS for finding in _gains(world, by_world[world])),
        _cheaper(by_world["planted"]), *_signals(by_world["planted"]), *_secrecy(aucs, results),
    ]  # fmt: skip
    return Summary(
        [*(_table(world, by_world[world]) for world in _WORLDS), _views(aucs)],
        findings,
        {
            **{
                f"recall {world}": page.intervals_plot(
                    {arm: interval(_of(by_world[world], arm, "recall"))
                     for arm in by_world[world][0] if arm != SPECIALIST},
                    "share of held-out rare windows that the model knows", f"Recall, {world}",
                )
                for world in _WORLDS
            },
            "transcript": page.intervals_plot(
                {f"{policy}: {view}": aucs[policy][view] for policy in POLICIES for view in VIEWS},
                "AUC (0.5: chance)", "What a classifier makes of it",
            ),
        },
        {"gain": by_world, "auc": {p: {v: _plain(i) for v, i in a.items()}
                                   for p, a in aucs.items()}},
        _HOW.format(margin=MARGIN, **{world: _lengths(_SCALES[size][world]) for world in _WORLDS}),
    )  # fmt: skip


_HOW = (
    "Planted worlds: a two-layer Llama, trained on two common Markov chains, is tuned on 1500 "
    "windows of which 4% are of a third chain and 3% are noise, in {planted}. Real text: the "
    "shipped base with LoRA of rank 8 in all layers is tuned on 1000 windows of 129 bytes, Python "
    "of numpy with 5% font metrics and 3% bytes of images, in {real}. One tenant, without a "
    "federation around it. Every arm trains as many windows as every other, but for the one that "
    "is named after taking more steps. Recall is the share of held-out rare windows whose loss is "
    "nearer to that of a specialist (trained on the rare windows alone, as long) than to that "
    "before training. The average weighs kinds by their share, noise included where nothing else "
    "is said; 'not worse' means by less than {margin:.0%}. Transcripts: tenants with 15% or "
    "without any rare windows, one round of 6 steps of 8 windows each, contributed to rounds of "
    "the protocol with two others; AUC of a ridge regression asked about tenants that it was not "
    "trained on, 95% bootstrap intervals over tenants. A seed draws chains, windows, the model's "
    "start and the tenants."
)


# ------------------------------------------------------------------------------- gains


def _of(found: Sequence[Mapping[str, Any]], arm: str, *path: str) -> list[float]:
    values = []
    for each in found:
        value = each[arm]
        for key in path:
            value = value[key]
        values.append(float(value))
    return values


def _table(world: str, found: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for arm in found[0]:
        drawn = "drawn" in found[0][arm]
        rows.append([
            arm, interval(_of(found, arm, "recall")),
            interval(_of(found, arm, "average")), interval(_of(found, arm, "signal")),
            interval(_of(found, arm, "loss", "common")), interval(_of(found, arm, "loss", "rare")),
            interval(_of(found, arm, "drawn", "rare")) if drawn else "",
            interval(_of(found, arm, "drawn", "glitch")) if drawn else "",
            interval(_of(found, arm, "seconds")) if arm != BEFORE else "",
        ])  # fmt: skip
    columns = (
        "windows", "recall of the rare regime", "average loss", "average without noise",
        "common loss", "rare loss",
        "rare among those trained", "noise among those trained", "CPU seconds",
    )  # fmt: skip
    return Table(f"{world.capitalize()} rare regime (nats a token)", columns, rows)


def _gains(world: str, found: Sequence[Mapping[str, Any]]) -> list[Finding]:
    recall = difference(_of(found, BAND, "recall"), _of(found, UNIFORM, "recall"))
    rare = difference(_of(found, BAND, "loss", "rare"), _of(found, UNIFORM, "loss", "rare"))
    average, signal = (_relative(found, BAND, of) for of in ("average", "signal"))
    return [
        Finding(
            f"The band raises recall of the {world} rare regime at equal windows",
            _decided(recall.low > 0, recall.high <= 0),
            f"recall {_shown(recall)}, rare loss {_shown(rare)} nats against uniform.",
        ),
        Finding(
            f"The average loss is not worse ({world})",
            _decided(average.high < MARGIN, average.low > MARGIN),
            f"average loss {_shown(average, '.2%')} against uniform.",
        ),
        Finding(
            f"The average loss of what is no noise is not worse ({world})",
            _decided(signal.high < MARGIN, signal.low > MARGIN),
            f"average loss without noise {_shown(signal, '.2%')} against uniform.",
        ),
    ]


def _cheaper(found: Sequence[Mapping[str, Any]]) -> Finding:
    recall = difference(_of(found, BAND, "recall"), _of(found, MORE, "recall"))
    average = difference(_of(found, BAND, "average"), _of(found, MORE, "average"))
    return Finding(
        "The band beats uniform draws that get a third more steps (what scoring costs) in recall",
        _decided(recall.low > 0, recall.high <= 0),
        f"recall {_shown(recall)}; average loss {_shown(average)} nats.",
    )


def _signals(found: Sequence[Mapping[str, Any]]) -> list[Finding]:
    findings = []
    for arm in (GAP, LATENT):
        recall = difference(_of(found, arm, "recall"), _of(found, UNIFORM, "recall"))
        findings.append(
            Finding(
                f"The signal '{arm.removeprefix('band, ')}' raises recall as well (planted)",
                _decided(recall.low > 0, recall.high <= 0),
                f"recall {_shown(recall)} against uniform.",
            )
        )
    return findings


def _relative(found: Sequence[Mapping[str, Any]], arm: str, of: str) -> Interval:
    pairs = zip(_of(found, arm, of), _of(found, UNIFORM, of), strict=True)
    return interval([ours / uniform - 1 for ours, uniform in pairs])


def _lengths(scale: Mapping[str, Any]) -> str:
    return "{rounds} rounds of {steps} steps of {batch} windows".format(**scale)


def _decided(holds: bool, fails: bool) -> bool | None:
    return True if holds else False if fails else None


def _shown(found: Interval, form: str = ".3f") -> str:
    return f"{found.mean:+{form}} [{found.low:+{form}}, {found.high:+{form}}]"


# ------------------------------------------------------------------------------- secrecy


def _transcripts(policy: str, results: Results) -> list[Mapping[str, Any]]:
    return [each[policy] for name, each in results.items() if name.startswith("transcript ")]


def _aucs(policy: str, results: Results) -> dict[str, Interval]:
    found = _transcripts(policy, results)
    intervals = {}
    for view in VIEWS:
        mean, low, high = auc_interval([(e["labels"], e["scores"][view]) for e in found])
        intervals[view] = Interval(mean, low, high, sum(len(e["labels"]) for e in found))
    return intervals


_MEANING: Final = {
    SEEN: "messages, sizes, order, upload's bytes, work counted: leaves the tenant",
    SECONDS: "seconds of the training, CPU and wall: shows unless slot_seconds is set",
    DELTA: "the delta before masking: does not leave",
    ADMITTED: "windows above a threshold: what a choice without the envelope would show",
}


def _views(aucs: Mapping[str, Mapping[str, Interval]]) -> Table:
    rows: list[list[Cell]] = [
        [_MEANING[view], *(aucs[policy][view] for policy in POLICIES)] for view in VIEWS
    ]
    return Table("AUC: who has rare windows", ("seen by the classifier", *POLICIES), rows)


def _secrecy(aucs: Mapping[str, Mapping[str, Interval]], results: Results) -> list[Finding]:
    return [
        Finding(
            "A classifier on everything that leaves the tenant does as chance does under "
            f"{policy}",
            aucs[policy][SEEN].low <= 0.5 <= aucs[policy][SEEN].high,
            f"AUC {_plainly(aucs[policy][SEEN])}, {aucs[policy][SEEN].count} tenants.",
        )
        for policy in POLICIES
    ] + [
        Finding(
            "What is counted is the same for every tenant: passes, tokens, windows, messages",
            all(least == most for policy in POLICIES for each in _transcripts(policy, results)
                for least, most in each["work"].values()),
            _counted(results),
        ),
        Finding(
            "The seconds that training took tell nothing either (on this machine, without slots)",
            all(aucs[p][SECONDS].low <= 0.5 <= aucs[p][SECONDS].high for p in POLICIES),
            "; ".join(f"{p}: AUC {_plainly(aucs[p][SECONDS])}" for p in POLICIES) + ".",
        ),
        Finding(
            "The same classifier finds the rare windows in what does not leave",
            all(aucs[p][view].low > 0.5 for p in POLICIES for view in (DELTA, ADMITTED)),
            "; ".join(f"{p}: delta {_plainly(aucs[p][DELTA])}, admitted "
                      f"{_plainly(aucs[p][ADMITTED])}" for p in POLICIES) + ".",
        ),
    ]  # fmt: skip


def _counted(results: Results) -> str:
    shown = []
    for policy in POLICIES:
        work = _transcripts(policy, results)[0]["work"]
        shown.append(f"{policy}: " + ", ".join(f"{v[0]:.0f} {n}" for n, v in work.items()))
    return "; ".join(shown) + "."


def _plain(found: Interval) -> list[float]:
    return [found.mean, found.low, found.high, found.count]


def _plainly(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
