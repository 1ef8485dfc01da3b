"""Five companies fine-tune the forecaster: in rounds, each alone, and with all series in one place.

LoRA in every layer; the head stays as it was pretrained, which was better on earlier data. The mean
of rounds is plain here, since what the protocol adds is measured elsewhere (`secagg experiment
tenants`, `secagg demo`).

What is measured on a company's test part: pinball in units of the history's deviation, over all
windows, over the tenth whose future lies farthest from its past ("top-decile regimes"), and by
series; how well excursions are foretold ("events"); and what disturbances of the history cost
("interventions"). Forgetting is measured on real series that no company owns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_demo.experiments.frame import Report
from secagg_models import arms, lora, updates
from secagg_models.base import load_base
from secagg_models.recipe import SeriesRecipe
from secagg_models.series.baselines import Numbers
from secagg_models.series.batch import scale_of
from secagg_models.series.forecaster import quantiles_after
from secagg_models.series.metrics import pinball_of
from secagg_models.series.real import (
    COMPANIES,
    company_series,
    held_out_series,
    pretraining_series,
)
from secagg_models.series.stream import SeriesStream, real_as_series, stream_of
from secagg_models.text import Split
from secagg_models.updates import Update

BASE, FEDERATED, LOCAL, CENTRAL = "zero-shot", "federated", "each alone", "all in one place"
ARMS: Final = (BASE, FEDERATED, LOCAL, CENTRAL)
UNOWNED: Final = "held-out, owned by nobody"
PRETRAINED: Final = "pretrained on"
EVENT: Final = 1.28
"""An excursion: this many of the history's deviations above its mean, 10% of a normal's values."""
_SHIFT, _SHIFTED = 2.0, 16
_GAP, _SPIKE, _SPIKE_BEFORE = 24, 8.0, 4
DISTURBANCES: Final = ("level shift", "gap", "spike")


def measure(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """One seed: every arm's figures by company, and what was forgotten."""
    recipe = SeriesRecipe(**arguments["recipe"])
    trained = train_arms(recipe, arguments["rates"], arguments["base"], arguments["device"], report)
    held_out = streams_of("test", trained.model.shape.horizon)
    by_arm: dict[str, dict[str, Any]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for name, stream in held_out.items():
            updates.install(trained.model, trained.update(arm, name))
            by_arm[arm][name] = figures(trained.model, stream, recipe)
    return {"companies": by_arm, "others": forgetting(trained, recipe)}


def streams_of(split: Split, horizon: int) -> dict[str, SeriesStream]:
    """One part of every company's series."""
    return {
        name: stream_of(name, real_as_series(company_series(name)), split, horizon)
        for name in COMPANIES
    }


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The model with LoRA in it, and what each arm put there: one update, or one by company."""

    model: Any
    shared: Mapping[str, Update]
    local: Mapping[str, Update]

    def update(self, arm: str, company: str) -> Update:
        """What this company forecasts with."""
        return self.local[company] if arm == LOCAL else self.shared[arm]


def train_arms(
    recipe: SeriesRecipe, rates: Mapping[str, float], base: str, device: str, report: Report
) -> Trained:
    """All arms from the same start, with the same number of steps, each at its own rate."""
    model = load_base(base).model.to(device)
    start = lora.draw_adapter(model, recipe.shape(), recipe.seed)
    model = updates.attach(model, start)
    streams = streams_of("train", model.shape.horizon)
    of = 3 * len(streams)
    federated: Update = start
    in_rounds = replace(recipe, lr=rates[FEDERATED])
    for index in range(recipe.rounds):
        federated = round_of(model, federated, list(streams.values()), in_rounds, index)
        report(len(streams) * (index + 1) // recipe.rounds, of)
    local = {}
    for place, (name, stream) in enumerate(streams.items(), len(streams) + 1):
        local[name] = arms.local_only(model, start, stream, recipe, rates[LOCAL])
        report(place, of)
    central = arms.centralised(model, start, list(streams.values()), recipe, rates[CENTRAL])
    report(of, of)
    return Trained(model, {BASE: start, FEDERATED: federated, CENTRAL: central}, local)


def round_of(
    model: Any, update: Update, streams: Sequence[SeriesStream], recipe: SeriesRecipe, index: int
) -> Update:
    """Everybody trains from the same version; the next one is the plain mean's."""
    deltas = [
        arms.federated_round(model, update, stream, recipe, recipe.lr, index) for stream in streams
    ]
    mean = arms.plain_mean(deltas, [1.0] * len(deltas))
    return updates.next_round(update, mean, recipe.server_rate)


# ------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Histories (n, C), truth (n, H), each history's mean and deviation (n, 1), whose they are."""

    histories: Numbers
    truth: Numbers
    mean: Numbers
    deviation: Numbers
    names: tuple[str, ...]

    def losses(self, guesses: Numbers, levels: Sequence[float]) -> Numbers:
        """(n,) pinball in units of the undisturbed history's deviation."""
        losses = pinball_of(guesses, self.truth, levels) / self.deviation
        known = np.isfinite(losses)
        return np.asarray(np.nan_to_num(losses).sum(1) / np.maximum(known.sum(1), 1))


def windows_of(stream: SeriesStream, limit: int, context: int) -> Windows:
    """A stream's test windows."""
    places = stream.held_out_places(limit)
    values = stream.cut(places, context).values
    scale = scale_of(values[:, :context])
    return Windows(
        values[:, :context].numpy().astype(np.float64),
        values[:, context:].numpy().astype(np.float64),
        scale.location.numpy().astype(np.float64),
        scale.scale.numpy().astype(np.float64),
        tuple(stream.series[row].name for row, _ in places),
    )


def figures(model: Any, stream: SeriesStream, recipe: SeriesRecipe) -> dict[str, Any]:
    """Everything that is said about one company and one arm."""
    levels = model.shape.quantiles
    windows = windows_of(stream, recipe.test_windows, recipe.context)
    guesses = predicted(model, windows.histories)
    losses = windows.losses(guesses, levels)
    rare = top_decile(windows)
    names = np.array(windows.names)
    return {
        "pinball": float(losses.mean()),
        "top_decile": float(losses[rare].mean()),
        "by_series": {
            name: float(losses[names == name].mean()) for name in dict.fromkeys(windows.names)
        },
        "events": event_counts(windows, guesses[..., model.shape.median]),
        "disturbed": {
            kind: float(disturbed_losses(model, windows, kind).mean()) for kind in DISTURBANCES
        },
    }


@torch.no_grad()
def predicted(model: Any, histories: Numbers) -> Numbers:
    """(n, H, Q) in raw units."""
    made = quantiles_after(model, torch.from_numpy(histories.astype(np.float32)))
    return made.cpu().numpy().astype(np.float64)


def top_decile(windows: Windows) -> NDArray[np.int64]:
    """The places of the tenth of the windows whose future strays farthest from the history."""
    apart = np.nanmax(np.abs(windows.truth - windows.mean) / windows.deviation, axis=1)
    return np.argsort(-apart)[: max(1, round(len(apart) / 10))]


def event_counts(windows: Windows, median: Numbers) -> dict[str, int]:
    """How many excursions were foretold, foretold in vain, and missed, step by step."""
    threshold = windows.mean + EVENT * windows.deviation
    known = np.isfinite(windows.truth)
    happened, foretold = windows.truth > threshold, median > threshold
    return {
        "hits": int((happened & foretold & known).sum()),
        "false": int((~happened & foretold & known).sum()),
        "missed": int((happened & ~foretold & known).sum()),
    }


def disturbed_losses(model: Any, windows: Windows, kind: str) -> Numbers:
    """Losses after an intervention: a new level (which the future keeps), a gap, or a glitch."""
    histories, truth = windows.histories.copy(), windows.truth
    match kind:
        case "level shift":
            histories[:, -_SHIFTED:] += _SHIFT * windows.deviation
            truth = truth + _SHIFT * windows.deviation
        case "gap":
            histories[:, -_GAP:] = np.nan
        case _:
            histories[:, -_SPIKE_BEFORE] += _SPIKE * windows.deviation[:, 0]
    after = Windows(histories, truth, windows.mean, windows.deviation, windows.names)
    return after.losses(predicted(model, histories), model.shape.quantiles)


def forgetting(trained: Trained, recipe: SeriesRecipe) -> dict[str, dict[str, float]]:
    """By arm: pinball on series that no company owns; alone, the mean of the companies' models."""
    owned = {dataset for datasets in COMPANIES.values() for dataset in datasets}
    horizon = trained.model.shape.horizon
    unowned = [one for one in held_out_series() if one.dataset not in owned]
    seen = [one for one in pretraining_series() if len(one.values) >= 4 * horizon]
    streams = {
        UNOWNED: stream_of("unowned", real_as_series(unowned), "test", horizon),
        PRETRAINED: stream_of("pretrained", real_as_series(seen), "test", horizon),
    }
    levels = trained.model.shape.quantiles
    found: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for name, stream in streams.items():
        windows = windows_of(stream, 2 * recipe.test_windows, recipe.context)
        for arm in ARMS:
            losses = []
            for update in trained.local.values() if arm == LOCAL else [trained.shared[arm]]:
                updates.install(trained.model, update)
                guesses = predicted(trained.model, windows.histories)
                losses.append(float(windows.losses(guesses, levels).mean()))
            found[arm][name] = sum(losses) / len(losses)
    return found
