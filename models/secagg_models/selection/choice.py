"""Sources of windows for training: the surprise band, and uniform draws as its control.

A round of the band draws its candidates once, scores them under the reference where its signal has
one, and then, at the beginning of each of `scorings` equal stretches of the round, under the model
as it is by then; each stretch's windows are drawn at once. Everything that costs time happens a
number of times that signal and numbers of the band fix: K x S windows trained, and `scorings` x
candidates forward passes beside one for the reference, whatever is found.

Draws follow from the training's seed, the pool's name and a secret. The seed is the owner's, and
without a secret of the tenant's own an owner could try seeds until a window in a certain place is
drawn in every round. An experiment has none, so that it can be repeated.

The reference is the model at the round's first step unless `refer` was called with another version
in it. Whoever sometimes has another must call it in every round: that it was called would show.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_models.selection.band import Band, dealt, ranks_within
from secagg_models.selection.pool import Rows, WindowPool
from secagg_models.selection.quarantine import recurring
from secagg_models.selection.score import (
    LatentError,
    Loss,
    LossGap,
    Signal,
    latent_errors,
    window_losses,
)
from secagg_models.selection.state import BandState
from secagg_models.series.batch import SeriesBatch
from secagg_models.train import TrainingConfig, WindowSource


class Uniform(WindowSource):
    """Windows of the pool, drawn uniformly: no scores, no memory, the same cap."""

    def __init__(self, pool: WindowPool, cap: int = 2) -> None:
        self.pool = pool
        self.drawn: Rows = np.zeros(0, np.int64)
        """What this round trains on, step after step."""
        self._cap = cap
        self._first: int | None = None

    def batch_at(self, model: Any, config: TrainingConfig, step: int) -> torch.Tensor | SeriesBatch:
        """See `train.WindowSource`."""
        if self._first != config.first_step or step == config.first_step:
            self._first, total = config.first_step, config.steps * config.batch
            room = np.full(len(self.pool), _cap(self._cap, total, len(self.pool)))
            everything = np.arange(len(self.pool))
            generator = _generator(self.pool, config, config.first_step)
            self.drawn = dealt(everything, everything * 0, room, total, 0.0, generator)
        at = (step - config.first_step) * config.batch
        return self.pool.batch(self.drawn[at : at + config.batch])


class SurpriseBand(WindowSource):
    """See the module's docstring. One object serves one round; its `state` goes to the next."""

    def __init__(
        self,
        pool: WindowPool,
        band: Band | None = None,
        signal: Signal | None = None,
        state: BandState | None = None,
        secret: bytes = b"",
    ) -> None:
        self.pool = pool
        self.band = Band() if band is None else band
        self.drawn: Rows = np.zeros(0, np.int64)
        """What this round trains on so far, step after step. Private, like the state."""
        self._signal = Loss() if signal is None else signal
        known = BandState.fresh(pool.keys) if state is None else state.carried_to(pool.keys)
        self._state = known.copy()
        self._secret = secret
        self._candidates: Rows = np.zeros(0, np.int64)
        self._reference: NDArray[np.float32] = np.zeros(0, np.float32)
        self._room: NDArray[np.int64] = np.zeros(0, np.int64)

    def __repr__(self) -> str:
        return "<SurpriseBand, redacted>"

    @property
    def state(self) -> BandState:
        """What is to be kept for the next round."""
        return BandState(
            **{
                name: getattr(self._state, name) for name in BandState.__slots__ if name != "rounds"
            },
            rounds=self._state.rounds + 1,
        )

    def refer(self, model: Any, config: TrainingConfig) -> None:
        """Begin a round with the model as it is now for reference."""
        total = config.steps * config.batch
        generator = _generator(self.pool, config, config.first_step, self._secret)
        size = max(1, round(self.band.candidates * total))
        everything = np.arange(len(self.pool))
        room = np.full(len(everything), _cap(1, size, len(everything)))
        self._candidates = dealt(
            everything, self._strata(everything), room, size, self.band.floor, generator
        )
        self._room = np.full(len(everything), _cap(self.band.cap, total, len(everything)))
        self.drawn = np.zeros(0, np.int64)
        match self._signal:
            case Loss():
                pass
            case LossGap():
                self._reference = window_losses(model, self.pool, self._candidates, config)
            case LatentError(ridge=ridge):
                self._reference = latent_errors(model, self.pool, self._candidates, config, ridge)

    def batch_at(self, model: Any, config: TrainingConfig, step: int) -> torch.Tensor | SeriesBatch:
        """See `train.WindowSource`."""
        if not len(self._candidates):
            self.refer(model, config)
        done = step - config.first_step
        bounds = [config.steps * part // self.band.scorings for part in range(self.band.scorings)]
        if done in bounds:
            later = [bound for bound in bounds if bound > done]
            self._draw(model, config, step, (later[0] if later else config.steps) - done)
        return self.pool.batch(self.drawn[done * config.batch : (done + 1) * config.batch])

    def _draw(self, model: Any, config: TrainingConfig, step: int, steps: int) -> None:
        """Choose the windows of the next `steps` steps."""
        candidates = self._candidates
        generator = _generator(self.pool, config, step + 1, self._secret)
        losses = window_losses(model, self.pool, candidates, config)
        ranks = ranks_within(self._scores(losses), self.pool.strata[candidates], generator)
        low, high = self.band.edges(step / config.schedule.total_steps)
        self._remember(losses, ranks, low, high)
        self._release(generator)
        state, total = self._state, steps * config.batch
        released = state.released[candidates]
        inside = ((ranks >= low) & (ranks <= high)) | released
        inside &= state.rests_until[candidates] <= state.rounds
        uniform = math.ceil(self.band.uniform * total)
        everything = np.arange(len(self.pool))
        chosen = self._take(np.unique(candidates[inside]), total - uniform, generator)
        # Where the band is too small, the rest comes from everywhere: the count stays the same.
        rest = self._take(everything, total - len(chosen), generator, floor=0.0)
        drawn = generator.permutation(np.concatenate([chosen, rest]))
        self.drawn = np.concatenate([self.drawn, drawn])
        np.add.at(state.trained, drawn, 1)

    def _take(
        self, rows: Rows, count: int, generator: np.random.Generator, floor: float | None = None
    ) -> Rows:
        share = self.band.floor if floor is None else floor
        taken = dealt(rows, self._strata(rows), self._room[rows], count, share, generator)
        np.subtract.at(self._room, taken, 1)
        return taken

    def _strata(self, rows: Rows) -> NDArray[np.int64]:
        """Released windows are a stratum of their own: a regime that recurs has its floor."""
        own = self.pool.strata[rows]
        return np.where(self._state.released[rows], self.pool.strata.max() + 1, own)

    def _scores(self, losses: NDArray[np.float32]) -> NDArray[np.float32]:
        match self._signal:
            case Loss():
                return losses
            case LossGap():
                return losses - self._reference
            case LatentError():
                return self._reference

    def _remember(
        self, losses: NDArray[np.float32], ranks: NDArray[np.float64], low: float, high: float
    ) -> None:
        """Losses, who waits above the band, and who rests since training does not help it."""
        state, rows = self._state, self._candidates
        state.first[rows] = np.where(np.isnan(state.first[rows]), losses, state.first[rows])
        state.last[rows] = losses
        state.waiting[rows] = (ranks > high) & ~state.released[rows]
        stuck = state.trained[rows] >= self.band.patience
        stuck &= ranks >= low
        stuck &= ~(losses <= (1 - self.band.least_gain) * state.first[rows])
        state.rests_until[rows] = np.where(
            stuck, state.rounds + 1 + self.band.rest, state.rests_until[rows]
        )
        state.released[rows] &= ~stuck
        state.trained[rows] = np.where(stuck, 0, state.trained[rows])

    def _release(self, generator: np.random.Generator) -> None:
        band, state = self.band, self._state
        found = recurring(
            self.pool, state.waiting | state.released, self._candidates, band.recurrences,
            band.nearness, generator,
        )  # fmt: skip
        state.released[found] = True
        state.waiting[found] = False


def _cap(cap: int, total: int, windows: int) -> int:
    """The cap, or as much more as it takes to draw `total` from so few windows."""
    return max(cap, -(-total // windows))


def _generator(
    pool: WindowPool, config: TrainingConfig, step: int, secret: bytes = b""
) -> np.random.Generator:
    own = [int.from_bytes(secret, "big")] if secret else []
    return np.random.default_rng([config.seed, step, zlib.crc32(pool.name.encode()), *own])
