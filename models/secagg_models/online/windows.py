"""Windows on a tenant's own disk, and their losses one by one.

The memory is a fixed set of early windows: each version's loss on it says what is being forgotten.
A file holds plain arrays (npz without objects) and is as private as the data: mode 0600.

Not here: which windows are kept (the caller's held-out ones, once), and when they are measured.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.labelled import LabelledBatch
from secagg_models.online.decision import Losses
from secagg_models.series.batch import SeriesBatch

Windows = train.Batch
_PIECE = 16


@torch.no_grad()
def window_losses(model: Any, windows: Windows, precision: train.Precision = "auto") -> Losses:
    """The mean loss of each window, (B,) float64; the same at every call."""
    train.use_fast_attention(model)
    was_training = model.training
    model.eval()
    parts = []
    for part in split(windows, _PIECE):
        losses = train.item_losses(model, part, precision).double()
        parts.append(losses.reshape(len(losses), -1).mean(1).cpu())
    model.train(was_training)
    return np.asarray(torch.cat(parts).numpy(), np.float64)


def with_truth(windows: Windows) -> NDArray[np.bool_]:
    """(B,) whether there is anything in a window to measure by; all of a series may be missing."""
    match windows:
        case SeriesBatch():
            return np.asarray(windows.with_truth.numpy(), np.bool_)
        case _:
            return np.ones(len(windows), np.bool_)


def split(windows: Windows, size: int) -> list[Windows]:
    """Consecutive pieces of at most `size` windows."""
    match windows:
        case torch.Tensor():
            return list(torch.split(windows, size))
        case _:
            return list(windows.split(size))


def save_windows(path: Path, windows: Windows) -> None:
    """Keep them durably, for the owner of the file alone."""
    passing = path.with_name(f"{path.name}.new")
    descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        np.savez(file, **_arrays(windows))
        file.flush()
        os.fsync(file.fileno())
    os.replace(passing, path)


def load_windows(path: Path) -> Windows:
    """Inverse of `save_windows`.

    Raises:
        ConfigError: the file is missing or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return _windows({name: file[name] for name in file.files})
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ConfigError(f"{path} holds no windows: {error}; remove it to begin anew") from None


def _arrays(windows: Windows) -> dict[str, Any]:
    match windows:
        case torch.Tensor():
            return {"tokens": windows.numpy()}
        case LabelledBatch(ids, mask, labels):
            return {"ids": ids.numpy(), "mask": mask.numpy(), "labels": labels.numpy()}
        case SeriesBatch(values, context, scored_from):
            sizes = np.array([context, scored_from])
            return {"values": values.numpy(), "sizes": sizes}


def _windows(arrays: dict[str, Any]) -> Windows:
    if "tokens" in arrays:
        return torch.from_numpy(arrays["tokens"])
    if "values" in arrays:
        context, scored_from = map(int, arrays["sizes"])
        return SeriesBatch(torch.from_numpy(arrays["values"]), context, scored_from)
    return LabelledBatch(*(torch.from_numpy(arrays[name]) for name in ("ids", "mask", "labels")))
