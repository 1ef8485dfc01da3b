"""One tenant's training in rounds, with windows drawn uniformly or from the surprise band.

Every arm trains the same number of windows from the same start, and is measured on the same
held-out windows by kind. Recall counts the held-out windows of the rare regime that the model has
come to know: those whose loss is nearer to that of a specialist, trained on the rare windows alone
as long, than to that before training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_demo.experiments.frame import Report
from secagg_demo.experiments.surprise_worlds import (
    GLITCH,
    KINDS,
    RARE,
    Chains,
    World,
    planted,
    planted_start,
    real,
)
from secagg_models import train, updates
from secagg_models.base import load_base
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.recipe import Recipe
from secagg_models.selection.band import Band
from secagg_models.selection.choice import SurpriseBand, Uniform
from secagg_models.selection.pool import pool_of
from secagg_models.selection.score import LatentError, Loss, LossGap
from secagg_models.selection.state import BandState

BEFORE, SPECIALIST = "before training", "specialist"
UNIFORM, MORE = "uniform", "uniform, a third more steps"
BAND, GAP, LATENT = "band, loss", "band, loss gap", "band, latent error"
CLIPPED = "band, loss, windows clipped"

_SIGNALS: Final[Mapping[str, tuple[Band, Loss | LossGap | LatentError]]] = {
    BAND: (Band(), Loss()),
    GAP: (Band(scorings=2), LossGap()),
    LATENT: (Band(), LatentError()),
    CLIPPED: (Band(), Loss()),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """One tenant's rounds."""

    rounds: int
    steps: int
    batch: int
    lr: float
    clip: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Arena:
    """What all arms of a job share: the world, the model with the update in it, the start."""

    world: World
    model: Any
    start: updates.Update
    scale: Scale
    seed: int

    def losses(self, update: updates.Update) -> NDArray[np.float64]:
        """(held out,) mean loss of each held-out window."""
        updates.install(self.model, update)
        rows = torch.from_numpy(self.world.held_out.astype(np.int64))
        with torch.no_grad():
            found = [
                train.token_loss(self.model, part).mean(1).cpu() for part in torch.split(rows, 32)
            ]
        return torch.cat(found).double().numpy()

    def trained(self, arm: str) -> tuple[updates.Update, NDArray[np.int64], float]:
        """The update after all rounds, what was drawn, and CPU seconds."""
        update, state, drawn = self.start, None, []
        steps = self.scale.steps + (self.scale.steps // 3 if arm == MORE else 0)
        began = time.process_time()
        for number in range(self.scale.rounds):
            source = self._source(arm, state)
            config = train.TrainingConfig(
                steps=steps, batch=self.scale.batch, context=self.world.context,
                lr=self.scale.lr, schedule=train.Schedule(steps * self.scale.rounds),
                seed=self.seed, first_step=number * steps,
            )  # fmt: skip
            train.train_update(
                self.model, update, [source], config,
                per_window_clip=self.scale.clip if arm == CLIPPED else None,
            )  # fmt: skip
            state = source.state if isinstance(source, SurpriseBand) else None
            drawn.append(source.drawn)
            delta = updates.delta_of(updates.state(self.model, update), update)
            update = updates.next_round(update, delta)
        return update, np.concatenate(drawn), time.process_time() - began

    def _source(self, arm: str, state: BandState | None) -> Uniform | SurpriseBand:
        stream = self.world.rare_stream if arm == SPECIALIST else self.world.stream
        pool = pool_of(stream, self.world.context)
        if arm in _SIGNALS:
            band, signal = _SIGNALS[arm]
            return SurpriseBand(pool, band, signal, state)
        return Uniform(pool, cap=self.scale.steps * self.scale.batch if arm == SPECIALIST else 2)


def planted_job(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """All arms on a planted world."""
    seed = int(arguments["seed"])
    chains = Chains.drawn(seed)
    model = planted_start(chains, seed).to(arguments["device"])
    start = updates.start(model, EdgesShape((0, 1)), seed)
    return _all_arms(
        Arena(planted(chains), updates.attach(model, start), start, Scale(**arguments["scale"]),
              seed), arguments["arms"], report,
    )  # fmt: skip


def real_job(arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """All arms on real text with the shipped base and LoRA in all layers."""
    seed = int(arguments["seed"])
    model = load_base().model.to(arguments["device"])
    recipe = Recipe()
    start = updates.start(model, LoraShape(8, recipe.scaling, recipe.targets), seed)
    return _all_arms(
        Arena(real(seed), updates.attach(model, start), start, Scale(**arguments["scale"]), seed),
        arguments["arms"], report,
    )  # fmt: skip


def _all_arms(arena: Arena, arms: list[str], report: Report) -> dict[str, Any]:
    before = arena.losses(arena.start)
    found = {BEFORE: _measured(arena.world, before, None, 0.0)}
    rare = arena.world.held_out_kinds == KINDS.index(RARE)
    losses = {BEFORE: before}
    for number, arm in enumerate([SPECIALIST, *arms]):
        update, drawn, seconds = arena.trained(arm)
        losses[arm] = arena.losses(update)
        found[arm] = _measured(
            arena.world, losses[arm], None if arm == SPECIALIST else drawn, seconds
        )
        report(number + 1, len(arms) + 1)
    known = (before[rare].mean() + losses[SPECIALIST][rare].mean()) / 2
    for arm, each in losses.items():
        found[arm]["recall"] = float((each[rare] <= known).mean())
    return {"arms": found, "known": float(known)}


def _measured(
    world: World, losses: NDArray[np.float64], drawn: NDArray[np.int64] | None, seconds: float
) -> dict[str, Any]:
    by_kind = {
        kind: float(losses[world.held_out_kinds == number].mean())
        for number, kind in enumerate(KINDS)
    }
    found: dict[str, Any] = {"loss": by_kind, "seconds": seconds}
    found["average"] = _average(world, by_kind, KINDS)
    found["signal"] = _average(world, by_kind, [kind for kind in KINDS if kind != GLITCH])
    if drawn is not None:
        kinds = world.kinds[drawn]
        found["drawn"] = {k: float((kinds == number).mean()) for number, k in enumerate(KINDS)}
        rare = np.flatnonzero(world.kinds == KINDS.index(RARE))
        found["reached"] = float(np.isin(rare, drawn).mean())
    return found


def _average(world: World, losses: Mapping[str, float], kinds: Sequence[str]) -> float:
    """The mean loss of these kinds, weighed by their shares."""
    whole = sum(world.shares[kind] for kind in kinds)
    return sum(world.shares[kind] * losses[kind] for kind in kinds) / whole
