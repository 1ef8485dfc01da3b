"""How surprising a window is to the model, as numbers that never leave the tenant.

Three signals. `Loss`: the loss under the model as it is now. `LossGap`: that less the loss under
the reference, the last approved global update; it cancels what is merely hard, and ranks low what
the training at hand learns quickly, a rare regime among it (docs/surprise-band.md has figures).
`LatentError`: how badly the frozen encoder's state over a window's second half follows from that
over its first, by a ridge regression over the windows at hand, each predicted without itself (the
idea of joint-embedding prediction, LeCun 2022, section 4, with a linear predictor); it does not
change while an update is trained.

Every function asks for exactly one forward pass per row, in pieces of the training's own batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secagg_models import families, train
from secagg_models.selection.pool import Rows, WindowPool


@dataclass(frozen=True, slots=True)
class Loss:
    """loss(current)."""


@dataclass(frozen=True, slots=True)
class LossGap:
    """loss(current) - loss(reference)."""


@dataclass(frozen=True, slots=True)
class LatentError:
    """Of the reference's encoder; `ridge` weighs the penalty against the features' variance."""

    ridge: float = 0.1


Signal = Loss | LossGap | LatentError


@torch.no_grad()
def window_losses(
    model: Any, pool: WindowPool, rows: Rows, config: train.TrainingConfig
) -> NDArray[np.float32]:
    """(rows,) mean loss of each window."""
    pieces = [
        train.item_losses(model, pool.batch(part), config.precision).mean(1).cpu().numpy()
        for part in _pieces(rows, config.batch)
    ]
    return np.concatenate(pieces).astype(np.float32)


@torch.no_grad()
def latent_errors(
    model: Any, pool: WindowPool, rows: Rows, config: train.TrainingConfig, ridge: float
) -> NDArray[np.float32]:
    """(rows,) norms of what the second half's state has beyond what the first half's predicts."""
    found: list[torch.Tensor] = []

    def keep(_: object, __: object, output: Any) -> None:
        hidden = families.hidden_of(output).float()
        half = hidden.shape[1] // 2
        found.append(torch.stack([hidden[:, :half].mean(1), hidden[:, half:].mean(1)], 1).cpu())

    hook = families.layers_of(model)[-1].register_forward_hook(keep)
    try:
        for part in _pieces(rows, config.batch):
            train.item_losses(model, pool.batch(part), config.precision)
    finally:
        hook.remove()
    states = torch.cat(found).double().numpy()
    return _left_out_errors(states[:, 0], states[:, 1], ridge)


def _left_out_errors(
    given: NDArray[np.float64], wanted: NDArray[np.float64], ridge: float
) -> NDArray[np.float32]:
    """Errors of ridge regression, each row predicted from all others (Allen 1974's PRESS).

    NaN for rows that are not finite, which say nothing about the others.
    """
    finite = np.isfinite(given.sum(1) + wanted.sum(1))
    given, wanted = np.where(finite[:, None], given, 0), np.where(finite[:, None], wanted, 0)
    given = (given - given.mean(0)) / (given.std(0) + 1e-9)
    given = np.concatenate([given, np.ones((len(given), 1))], 1)
    gram = given.T @ given + ridge * len(given) * np.eye(given.shape[1])
    hat = given @ np.linalg.solve(gram, given.T)
    errors = (wanted - hat @ wanted) / (1 - np.diag(hat))[:, None]
    return np.where(finite, np.linalg.norm(errors, axis=1), np.nan).astype(np.float32)


def _pieces(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
