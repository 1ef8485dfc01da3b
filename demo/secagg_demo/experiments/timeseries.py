"""Forecasts without training, and after federated training: how good, for whom, at what cost.

Two parts. The shipped forecaster against seasonal-naive, ETS and ARIMA on real series that it never
saw (timeseries_zero_shot.py): nothing is drawn there, so intervals are over data sets. And five
companies that fine-tune it together (timeseries_tenants.py), over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
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
    above_zero,
    difference,
    interval,
)
from secagg_demo.experiments.timeseries_tenants import (
    ARMS,
    BASE,
    CENTRAL,
    DISTURBANCES,
    FEDERATED,
    LOCAL,
    PRETRAINED,
    UNOWNED,
)
from secagg_demo.experiments.timeseries_zero_shot import (
    ARIMA,
    ETS,
    METHODS,
    MODEL,
    NAIVE,
    SEASONAL,
)
from secagg_models.recipe import SeriesRecipe
from secagg_models.series.real import COMPANIES

NAME = "timeseries"
TITLE = "Time series: forecasts without training, and after federated training"
QUESTION = (
    "Does the forecaster beat simple and statistical forecasts on series that it never saw, and "
    "what does fine-tuning in a federation add for each company, in rare regimes, on its worst "
    "series, for events and under interventions, and what is forgotten?"
)
SIZES = ("quick", "default", "large")
SEEDS = 3

# Pieces of about the same time.
_PIECES: Final = (
    ("elnino", "elec-equip", "airpassengers", "wineind", "ausbeer", "woolyrnq", "austres"),
    ("co2", "sunspots", "sunspots-monthly", "taylor", "lynx", "nile", "seattle-temps"),
    ("seattle-weather",),
    ("macrodata", "us-employment"),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """What a size means. Rates come from a grid on what precedes the test parts, split anew."""

    recipe: SeriesRecipe
    origins: int
    rates: Mapping[str, float] = field(
        default_factory=lambda: {FEDERATED: 1.5e-3, LOCAL: 1.5e-3, CENTRAL: 1.5e-3}
    )


_DEFAULT = SeriesRecipe(
    rounds=4, steps_per_round=12, batch=16, rank=8, warmup_steps=4, server_rate=2.0, test_windows=80
)
SCALES: Final[Mapping[str, Scale]] = {
    "quick": Scale(
        replace(_DEFAULT, rounds=1, steps_per_round=2, batch=4, test_windows=10), origins=1
    ),
    "default": Scale(_DEFAULT, origins=5),
    "large": Scale(replace(_DEFAULT, rounds=8, steps_per_round=24, test_windows=240), origins=12),
}
_QUICK_PIECES: Final = (("airpassengers", "ausbeer", "nile"),)


def jobs(size: str, seeds: Sequence[int]) -> list[Job]:
    """Four pieces of held-out series, and a process for each seed of the companies."""
    scale = SCALES[size]
    base = scale.recipe.base
    return [
        Job(
            f"companies {seed}",
            f"{__name__}_tenants:measure",
            {
                "recipe": asdict(replace(scale.recipe, seed=seed)),
                "rates": dict(scale.rates),
                "base": base,
            },
        )
        for seed in seeds
    ] + [
        Job(
            f"held-out {place}",
            f"{__name__}_zero_shot:measure",
            {"datasets": piece, "base": base, "origins": scale.origins},
        )
        for place, piece in enumerate(_QUICK_PIECES if size == "quick" else _PIECES, 1)
    ]


def summarise(size: str, results: Results) -> Summary:
    """Tables of both parts, and what they show."""
    scores = {
        name: scored
        for job, result in results.items() if job.startswith("held-out")
        for name, scored in result.items()
    }  # fmt: skip
    seeds = Seeds([result for job, result in results.items() if job.startswith("companies")])
    zero_shot = ZeroShot(scores)
    return Summary(
        [*zero_shot.tables(), *company_tables(seeds)],
        [*zero_shot.findings(), *company_findings(seeds)],
        {
            "zero shot": page.intervals_plot(
                {m: zero_shot.relative(m, "pinball") for m in METHODS if m != SEASONAL},
                "pinball over the seasonal-naive forecast's (geometric mean over data sets)",
                "Held-out series",
            ),
            "companies": page.intervals_plot(
                {
                    f"{company}, {arm}": interval(seeds.pinball(arm, company))
                    for company in COMPANIES
                    for arm in ARMS
                },
                "pinball, in units of the history's deviation",
                "Five companies' test parts",
            ),
        },
        {"zero_shot": scores},
        _how(SCALES[size]),
    )


def _how(scale: Scale) -> str:
    recipe = scale.recipe
    rates = ", ".join(f"{arm} {rate:g}" for arm, rate in scale.rates.items())
    owners = "; ".join(f"{name}: {', '.join(owned)}" for name, owned in COMPANIES.items())
    return (
        f"Held-out series: {scale.origins} rolling origins over each one's last fifth, 24 steps "
        "ahead, nine quantiles. The forecaster has never seen any of them and looks back 256 "
        "values; ETS and ARIMA (statsmodels, chosen by AICc) are fitted on the latest five seasons "
        "(at least 512 values). Figures are divided by the seasonal-naive error before that fifth "
        "(MASE; the scaled pinball loss likewise); the season of a seasonally adjusted series is "
        "1. Series of one data set are averaged before anything else. San Francisco's hourly "
        "temperatures were in the pretraining: Seattle's are the nearest relative that is held "
        "out.\n\n"
        f"Companies: {owners}. LoRA of rank {recipe.rank} in every layer, "
        f"{recipe.rounds} rounds of {recipe.steps_per_round} steps of {recipe.batch} windows, "
        f"server rate {recipe.server_rate:g}; each "
        f"alone and all in one place take as many steps (rates: {rates}). Split by time: training "
        "never sees what is "
        "measured. Pinball in units of the history's deviation. Top-decile regimes: the tenth of "
        "a company's windows whose future strays farthest from the history, whatever the forecast. "
        "Events: steps above the history's mean by 1.28 deviations, foretold where the median is. "
        "Interventions: a level shift of two deviations 16 steps before the forecast, which the "
        "future keeps; the latest 24 values missing; one value eight deviations off. A seed draws "
        "training windows and LoRA's A; test windows are always the same."
    )


# ------------------------------------------------------------------------------- zero-shot


@dataclass(frozen=True, slots=True, eq=False)
class ZeroShot:
    """Scores by series and method."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]

    def datasets(self) -> dict[str, list[str]]:
        """Series by data set."""
        found: dict[str, list[str]] = {}
        for name in self.scores:
            found.setdefault(name.partition(".")[0], []).append(name)
        return dict(sorted(found.items()))

    def mean(self, dataset: str, method: str, figure: str) -> float:
        """Over a data set's series."""
        return fmean(self.scores[name][method][figure] for name in self.datasets()[dataset])

    def logs(self, method: str, figure: str, against: str = SEASONAL) -> list[float]:
        """By data set: the logarithm of a method's figure over another's, mean over its series."""
        return [
            fmean(
                math.log(self.scores[n][method][figure] / self.scores[n][against][figure])
                for n in names
            )
            for names in self.datasets().values()
        ]

    def relative(self, method: str, figure: str, against: str = SEASONAL) -> Interval:
        """The geometric mean over data sets of that ratio, with its interval."""
        found = interval(self.logs(method, figure, against))
        return Interval(
            math.exp(found.mean), math.exp(found.low),
            math.exp(min(found.high, 100.0)), found.count,
        )  # fmt: skip

    def wins(self, against: str, figure: str) -> tuple[int, int]:
        """Series on which the forecaster is better, of all."""
        won = sum(s[MODEL][figure] < s[against][figure] for s in self.scores.values())
        return won, len(self.scores)

    def dataset_wins(self, against: str, figure: str) -> tuple[int, int]:
        """Data sets on which the forecaster is better by the mean logarithm, of all."""
        logs = self.logs(MODEL, figure, against)
        return sum(log < 0 for log in logs), len(logs)

    def tables(self) -> list[Table]:
        """By data set, and over all of them."""
        by_dataset: list[Sequence[Cell]] = [
            (f"{dataset} ({len(names)})" if len(names) > 1 else dataset,
             *(self.mean(dataset, method, "pinball") for method in METHODS),
             self.mean(dataset, MODEL, "mase"), self.mean(dataset, SEASONAL, "mase"))
            for dataset, names in self.datasets().items()
        ]  # fmt: skip
        overall: list[Sequence[Cell]] = []
        for method in METHODS:
            values = [scores[method] for scores in self.scores.values()]
            overall.append(
                (method, *(self._relative_cell(method, f) for f in ("pinball", "mase")),
                 fmean(v["weighted"] for v in values), fmean(v["coverage"] for v in values))
            )  # fmt: skip
        return [
            Table(
                "Zero-shot: scaled pinball by data set",
                ("data set (series)", *METHODS, "MASE, zero-shot", "MASE, seasonal-naive"),
                by_dataset,
            ),
            Table(
                "Zero-shot: over data sets, relative to the seasonal-naive forecast",
                ("method", "pinball", "MASE", "weighted quantile loss", "coverage of 80%"),
                overall,
            ),
        ]

    def _relative_cell(self, method: str, figure: str) -> Cell:
        return 1.0 if method == SEASONAL else self.relative(method, figure)

    def findings(self) -> list[Finding]:
        """Against every method."""
        found = []
        for against in (SEASONAL, NAIVE, ETS, ARIMA):
            won, of = self.wins(against, "pinball")
            sets, all_sets = self.dataset_wins(against, "pinball")
            by_mase, _ = self.wins(against, "mase")
            ratio = self.relative(MODEL, "pinball", against)
            found.append(
                Finding(
                    f"Zero-shot, the forecaster beats {against} on most held-out series",
                    _most(2 * won > of, 2 * sets > all_sets),
                    f"by pinball on {won} of {of} series and {sets} of {all_sets} data sets, by "
                    f"MASE on {by_mase} series; pinball over {against}'s: {page.in_words(ratio)}.",
                )
            )
        return found


def _most(of_series: bool, of_datasets: bool) -> bool | None:
    """Undecided where most series say one thing, and most data sets another."""
    return of_series if of_series == of_datasets else None


# ------------------------------------------------------------------------------- companies


@dataclass(frozen=True, slots=True, eq=False)
class Seeds:
    """What every seed's companies measured."""

    results: Sequence[Mapping[str, Any]]

    def values(self, arm: str, company: str, *path: str) -> list[float]:
        """One figure of a company under an arm, by seed."""
        found = []
        for result in self.results:
            value: Any = result["companies"][arm][company]
            for key in path:
                value = value[key]
            found.append(float(value))
        return found

    def pinball(self, arm: str, company: str) -> list[float]:
        """By seed."""
        return self.values(arm, company, "pinball")

    def mean(self, arm: str, *path: str) -> list[float]:
        """Mean over companies, by seed."""
        columns = [self.values(arm, company, *path) for company in COMPANIES]
        return [fmean(row) for row in zip(*columns, strict=True)]

    def worst(self, arm: str, company: str) -> list[float]:
        """The loss of the series that costs this company most under this arm, by seed."""
        return [
            max(result["companies"][arm][company]["by_series"].values()) for result in self.results
        ]

    def mean_worst(self, arm: str) -> list[float]:
        """Mean over companies, by seed."""
        columns = [self.worst(arm, company) for company in COMPANIES]
        return [fmean(row) for row in zip(*columns, strict=True)]

    def f1(self, arm: str) -> list[float]:
        """Events of all companies together, by seed."""
        found = []
        for result in self.results:
            counts = [each["events"] for each in result["companies"][arm].values()]
            hits, false, missed = (sum(c[k] for c in counts) for k in ("hits", "false", "missed"))
            found.append(2 * hits / max(1, 2 * hits + false + missed))
        return found

    def others(self, arm: str, kind: str) -> list[float]:
        """Loss on series that no company owns, by seed."""
        return [float(result["others"][arm][kind]) for result in self.results]


def company_tables(seeds: Seeds) -> list[Table]:
    """By company, and every other figure by arm."""
    by_company: list[Sequence[Cell]] = [
        (company, *(interval(seeds.pinball(arm, company)) for arm in ARMS)) for company in COMPANIES
    ]
    by_company.append(("mean", *(interval(seeds.mean(arm, "pinball")) for arm in ARMS)))
    figures: Mapping[str, Mapping[str, Sequence[float]]] = {
        "top-decile regimes, pinball": {arm: seeds.mean(arm, "top_decile") for arm in ARMS},
        "worst series, pinball": {arm: seeds.mean_worst(arm) for arm in ARMS},
        "events, F1": {arm: seeds.f1(arm) for arm in ARMS},
        **{
            f"after a {kind}, pinball": {arm: seeds.mean(arm, "disturbed", kind) for arm in ARMS}
            for kind in DISTURBANCES
        },
        **{
            f"others' series ({kind}), pinball": {arm: seeds.others(arm, kind) for arm in ARMS}
            for kind in (UNOWNED, PRETRAINED)
        },
    }
    return [
        Table("Companies: pinball on their test parts", ("company", *ARMS), by_company),
        Table(
            "Companies: what else changes (mean over companies)",
            ("figure", *ARMS),
            [(name, *(interval(by_arm[arm]) for arm in ARMS)) for name, by_arm in figures.items()],
        ),
    ]


def company_findings(seeds: Seeds) -> list[Finding]:
    """Who gains, against what, where, and what is lost."""
    return [
        _every_company(seeds),
        _against(seeds, LOCAL, "The federation beats each company alone, mean over companies"),
        _against(seeds, CENTRAL, "The federation reaches all series in one place"),
        _improved("Top-decile regimes improve", *(
            seeds.mean(arm, "top_decile") for arm in (BASE, FEDERATED)
        )),
        _improved("Each company's worst series improves, mean over companies", *(
            seeds.mean_worst(arm) for arm in (BASE, FEDERATED)
        )),
        _events(seeds),
        *(
            _improved(f"Forecasts after a {kind} improve", *(
                seeds.mean(arm, "disturbed", kind) for arm in (BASE, FEDERATED)
            ))
            for kind in DISTURBANCES
        ),
        _forgotten(seeds),
    ]  # fmt: skip


def _every_company(seeds: Seeds) -> Finding:
    gains = {
        company: difference(seeds.pinball(BASE, company), seeds.pinball(FEDERATED, company))
        for company in COMPANIES
    }
    verdicts = [above_zero(gain) for gain in gains.values()]
    return Finding(
        "Federated fine-tuning improves on zero-shot for every company",
        False if False in verdicts else None if None in verdicts else True,
        "; ".join(f"{company} gains {page.in_words(gain)}" for company, gain in gains.items())
        + ".",
    )


def _against(seeds: Seeds, arm: str, claim: str) -> Finding:
    ahead = difference(seeds.mean(arm, "pinball"), seeds.mean(FEDERATED, "pinball"))
    companies = {
        company: difference(seeds.pinball(arm, company), seeds.pinball(FEDERATED, company))
        for company in COMPANIES
    }
    better = [company for company, found in companies.items() if found.low > 0]
    worse = [company for company, found in companies.items() if found.high < 0]
    return Finding(
        claim,
        above_zero(ahead),
        f"{arm} less federated: {page.in_words(ahead)}; better federated: "
        f"{', '.join(better) or 'nobody'}; better {arm}: {', '.join(worse) or 'nobody'}.",
    )


def _improved(claim: str, before: Sequence[float], after: Sequence[float]) -> Finding:
    gain = difference(before, after)
    return Finding(
        claim,
        above_zero(gain),
        f"zero-shot {page.in_words(interval(before))}, federated {page.in_words(interval(after))}.",
    )


def _events(seeds: Seeds) -> Finding:
    gain = difference(seeds.f1(FEDERATED), seeds.f1(BASE))
    return Finding(
        "More events are foretold",
        above_zero(gain),
        f"F1 {page.in_words(interval(seeds.f1(BASE)))} zero-shot, "
        f"{page.in_words(interval(seeds.f1(FEDERATED)))} federated.",
    )


def _forgotten(seeds: Seeds) -> Finding:
    losses = {
        arm: {
            kind: difference(seeds.others(arm, kind), seeds.others(BASE, kind))
            for kind in (UNOWNED, PRETRAINED)
        }
        for arm in (FEDERATED, LOCAL)
    }
    verdicts = [above_zero(found) for found in losses[FEDERATED].values()]
    return Finding(
        "Nothing is forgotten: series that no company owns are forecast no worse",
        False if True in verdicts else None if None in verdicts else True,
        "; ".join(
            f"{arm} less zero-shot, {kind}: {page.in_words(found)}"
            for arm, by_kind in losses.items()
            for kind, found in by_kind.items()
        )
        + ".",
    )
