"""How this tenant's windows are chosen, as configured, and what is remembered of them.

The memory is `data/selection.npz`: as private as the data, mode 0600, never sent or logged. Nothing
here can fail for a reason that lies in the data or in the memory: a round that this tenant declined
for one would tell of it.
"""

from __future__ import annotations

import os
from pathlib import Path

from secagg.errors import PolicyRefused
from secagg_models.block_weights import BlockWeights
from secagg_models.selection.band import Band
from secagg_models.selection.choice import SurpriseBand
from secagg_models.selection.pool import pool_of
from secagg_models.selection.score import LatentError, Loss, LossGap, Signal
from secagg_models.selection.state import load_state, save_state
from secagg_models.series.stream import SeriesStream
from secagg_models.text import TokenStream
from secagg_models.updates import Update
from secagg_tenant.config import ModelTraining

MEMORY_FILE = "selection.npz"
_SECRET_BYTES = 16


def refuse_unsuited(config: ModelTraining, update: Update) -> None:
    """Raises: PolicyRefused for a version whose windows cannot be scored or clipped here."""
    if isinstance(update, BlockWeights):
        if config.windows != "uniform":
            reason = "a block alone gives no losses to choose by; use windows = 'uniform'"
            raise PolicyRefused("training.windows", reason)
        if config.per_window_clip is not None:
            raise PolicyRefused("training.per_window_clip", "a block's windows are not clipped")


def source_of(
    config: ModelTraining, stream: TokenStream | SeriesStream, context: int, memory: Path | None
) -> TokenStream | SeriesStream | SurpriseBand:
    """What a round's training takes its windows from."""
    match config.windows:
        case "uniform":
            return stream
        case "surprise-band":
            pool = pool_of(stream, context)
            signal, state = _signal_of(config), None if memory is None else load_state(memory)
            # Two scorings: at the first the model still is the reference, and no gap has opened.
            band = Band(scorings=2) if isinstance(signal, LossGap) else Band()
            # Drawn anew: nobody knows which windows a round scored, or asks for the same again.
            return SurpriseBand(pool, band, signal, state, os.urandom(_SECRET_BYTES))


def remember(source: TokenStream | SeriesStream | SurpriseBand, memory: Path | None) -> None:
    """Keep what the band has learnt of its windows for the next round."""
    if memory is not None and isinstance(source, SurpriseBand):
        save_state(source.state, memory)


def _signal_of(config: ModelTraining) -> Signal:
    match config.surprise:
        case "loss":
            return Loss()
        case "loss-gap":
            return LossGap()
        case "latent-error":
            return LatentError()
