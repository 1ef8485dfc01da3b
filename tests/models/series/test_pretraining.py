"""What the forecaster is pretrained on: drawn from a seed alone, finite, with a history."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secagg_models.series import synthetic
from secagg_models.series.forecaster import ForecasterShape, series_losses
from secagg_models.series.pretrain import LEAST_HISTORY, PretrainConfig, draw_batch, pretrain

SMALL = ForecasterShape(width=16, layers=1, heads=2, intermediate=16, context=64, horizon=8)


@pytest.mark.parametrize("kind", [kind for kind, _ in synthetic.KINDS])
def test_every_kind_gives_finite_series_that_vary(kind: synthetic.Kind) -> None:
    values = kind(np.random.default_rng(1), 40, 120)
    assert values.shape == (40, 120)
    assert np.isfinite(values).all()
    assert (values.std(1) > 0).mean() > 0.9


def test_series_are_a_function_of_the_seed() -> None:
    first, again, other = (
        synthetic.draw(np.random.default_rng(seed), 16, 60) for seed in (1, 1, 2)
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_every_window_has_a_history_before_it_is_scored() -> None:
    config = PretrainConfig(batch=32, real_share=0.5)
    real = [[np.arange(30, dtype=np.float32)], [np.arange(500, dtype=np.float32)]]
    for step in range(30):
        batch = draw_batch(SMALL, config, real, step)
        history = batch.values[:, : batch.scored_from]
        assert int((~torch.isnan(history)).sum(1).min()) >= LEAST_HISTORY // 2
        assert torch.equal(
            torch.nan_to_num(batch.values),
            torch.nan_to_num(draw_batch(SMALL, config, real, step).values),
        )


def test_a_short_pretraining_lowers_its_loss() -> None:
    def loss(steps: int) -> float:
        config = PretrainConfig(steps=steps, batch=16, warmup_steps=2, lr=5e-3)
        model = pretrain(SMALL, config, [], torch.device("cpu"))
        with torch.no_grad():
            unseen = draw_batch(SMALL, PretrainConfig(batch=64), [], 10_000)
            return float(series_losses(model, unseen).mean())

    assert loss(40) < 0.9 * loss(1)
