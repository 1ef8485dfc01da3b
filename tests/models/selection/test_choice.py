"""The constant envelope, and that within it windows are chosen as they should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from secagg_models import families, lora, train
from secagg_models.selection.band import Band
from secagg_models.selection.choice import SurpriseBand, Uniform
from secagg_models.selection.pool import SeriesPool, TokenPool
from secagg_models.selection.score import (
    LatentError,
    Loss,
    LossGap,
    Signal,
    latent_errors,
    window_losses,
)
from secagg_models.selection.state import BandState
from secagg_models.series.stream import Series, stream_of
from secagg_models.text import TokenStream
from tests.models.selection.chosen import CONTEXT, TRAINING, round_of, streams


@pytest.mark.parametrize(
    ("signal", "options"),
    [
        (Loss(), {"operations": True}),
        (LossGap(), {}),
        (LatentError(), {"per_window_clip": 0.5}),
    ],
)
def test_whatever_the_data_are_a_training_looks_the_same_from_outside(
    tiny_model: Any, adapter: lora.Adapter, signal: Signal, options: dict[str, Any]
) -> None:
    """Same forward passes of the same sizes in the same order, same operations, same windows."""
    model = lora.attach(tiny_model, adapter)
    seen = [
        round_of(model, adapter, SurpriseBand(TokenPool(s, CONTEXT), Band(), signal), **options)
        for s in streams().values()
    ]
    assert all(outside == seen[0] for outside in seen)
    assert seen[0].trained == TRAINING.steps * TRAINING.batch


def test_what_a_tenant_remembers_changes_nothing_that_shows(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    model = lora.attach(tiny_model, adapter)
    pool = TokenPool(streams()["glitches"], CONTEXT)
    fresh = SurpriseBand(pool)
    first = round_of(model, adapter, fresh)
    state = fresh.state
    for changed in (
        state,
        _with(state, waiting=np.ones(len(pool), bool)),
        _with(state, released=np.ones(len(pool), bool)),
        _with(state, rests_until=np.full(len(pool), 99)),
    ):
        assert round_of(model, adapter, SurpriseBand(pool, state=changed)) == first


def test_fewer_windows_than_a_round_trains_still_make_a_whole_round(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    model = lora.attach(tiny_model, adapter)
    for windows in (1, 3):
        pool = TokenPool(streams(windows)["noise"], CONTEXT)
        for source in (SurpriseBand(pool), Uniform(pool)):
            assert round_of(model, adapter, source).trained == 20


def test_no_window_is_drawn_more_often_than_the_cap(tiny_model: Any, adapter: lora.Adapter) -> None:
    model = lora.attach(tiny_model, adapter)
    pool = TokenPool(streams()["glitches"], CONTEXT)
    for source in (SurpriseBand(pool, Band(cap=1, scorings=2)), Uniform(pool, cap=1)):
        round_of(model, adapter, source)
        assert np.bincount(source.drawn).max() == 1


def test_an_owner_that_tries_seeds_does_not_aim_at_a_window(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    model, pool = lora.attach(tiny_model, adapter), TokenPool(streams()["noise"], CONTEXT)

    def drawn(seed: int, secret: bytes) -> list[int]:
        source = SurpriseBand(pool, secret=secret)
        source.batch_at(model, replace(TRAINING, seed=seed), 0)
        return source.drawn.tolist()

    aimed = next(seed for seed in range(100) if drawn(seed, b"").count(0) == 2)
    assert drawn(aimed, b"own") == drawn(aimed, b"own")
    assert sum(0 in drawn(aimed, bytes([secret])) for secret in range(1, 21)) < 15


def test_losses_that_are_no_numbers_stop_nothing(tiny_model: Any, adapter: lora.Adapter) -> None:
    model = lora.attach(tiny_model, adapter)
    pool = TokenPool(streams()["noise"], CONTEXT)
    band = SurpriseBand(pool)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    drawn = [band.batch_at(model, TRAINING, step) for step in range(TRAINING.steps)]
    assert all(isinstance(batch, torch.Tensor) and len(batch) == 4 for batch in drawn)


def test_a_window_whose_state_is_no_number_says_nothing_about_the_others(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, rows = TokenPool(streams()["rare"], CONTEXT), np.arange(20)
    whole = families.hidden_of

    def spoilt(output: Any) -> torch.Tensor:
        """As an encoder that overflows wherever a rare window is."""
        hidden = whole(output).clone()
        hidden[0] = torch.inf
        return hidden

    monkeypatch.setattr(families, "hidden_of", spoilt)
    errors = latent_errors(tiny_model, pool, rows, TRAINING, 0.1)
    broken = np.arange(20) % TRAINING.batch == 0
    assert np.isnan(errors[broken]).all()
    assert np.isfinite(errors[~broken]).all()


def test_a_regime_that_recurs_is_released_and_glitches_stay_in_quarantine(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    """Common text that the model knows, a rare regime, and single glitches."""
    model = lora.attach(tiny_model, adapter)
    generator = np.random.default_rng(4)
    kinds = np.zeros(200, np.int64)
    kinds[20::20], kinds[5::25] = 1, 2
    rows = np.full((200, CONTEXT + 1), 100) + generator.integers(0, 2, (200, CONTEXT + 1))
    rows[kinds == 1] = 200 + np.arange(CONTEXT + 1) % 3
    rows[kinds == 2] = generator.integers(3, 259, ((kinds == 2).sum(), CONTEXT + 1))
    pool = TokenPool(TokenStream("t", rows.ravel().astype(np.int32), 1.0), CONTEXT)
    common = TokenPool(TokenStream("c", rows[kinds == 0].ravel().astype(np.int32), 1.0), CONTEXT)
    train.train_update(model, adapter, [Uniform(common)], _longer(40))
    known = lora.add_delta(adapter, _delta(model, adapter))
    state, drawn = None, []
    for number in range(4):
        source = SurpriseBand(pool, Band(candidates=8.0), state=state)
        train.train_update(model, known, [source], _longer(5, 5 * number))
        state = source.state
        drawn.append(source.drawn)
    assert state is not None
    assert state.released[kinds == 1].all()
    assert not state.released[kinds == 2].any()
    trained = kinds[np.concatenate(drawn)]
    assert (trained == 1).mean() > (kinds == 1).mean() * 1.5
    assert (trained == 2).mean() < (kinds == 2).mean()


def test_windows_that_stay_surprising_without_improving_rest(
    tiny_model: Any, adapter: lora.Adapter
) -> None:
    model = lora.attach(tiny_model, adapter)
    pool = TokenPool(streams()["noise"], CONTEXT)
    state = BandState.fresh(pool.keys)
    losses = window_losses(model, pool, np.arange(len(pool)), TRAINING)
    stuck = _with(
        state, trained=np.full(len(pool), 5), first=losses, released=np.ones(len(pool), bool)
    )
    source = SurpriseBand(pool, Band(start=(0.0, 1.0), end=(0.0, 1.0), candidates=3.0), state=stuck)
    source.batch_at(model, TRAINING, 0)
    assert (source.state.rests_until == 1 + Band().rest).all()
    assert not source.state.released.any()


def test_each_windows_gradient_is_clipped_by_itself(tiny_model: Any, adapter: lora.Adapter) -> None:
    """With a wide clip nothing changes; with a narrow one no window counts more than another."""
    model = lora.attach(tiny_model, adapter)
    pool = TokenPool(streams()["glitches"], CONTEXT)
    plain, wide, narrow = (
        _after(model, adapter, pool, clip) for clip in (None, 1e6, 1e-6)
    )  # fmt: skip
    assert all(torch.allclose(plain[name], wide[name], atol=1e-5) for name in plain)
    assert any(not torch.allclose(plain[name], narrow[name], atol=1e-4) for name in plain)


def test_series_are_chosen_from_within_channel_and_season(tiny_model: Any) -> None:
    values = np.sin(np.arange(400) / 3).astype(np.float32)
    stream = stream_of("s", [Series("a", values, 12), Series("b", values * 2, 1)], "train", 6)
    pool = SeriesPool(stream, 32)
    assert len(np.unique(pool.strata)) == 5  # four parts of a season, and one series without
    batch = pool.batch(np.arange(3))
    assert batch.values.shape == (3, 38)
    assert pool.signatures(np.arange(len(pool))).shape[0] == len(pool)
    assert np.isfinite(pool.signatures(np.arange(len(pool)))).all()


def _with(state: BandState, **changes: Any) -> BandState:
    copied = state.copy()
    for name, values in changes.items():
        getattr(copied, name)[:] = values
    return copied


def _longer(steps: int, first: int = 0) -> train.TrainingConfig:
    return train.TrainingConfig(
        steps=steps, batch=4, context=CONTEXT, lr=0.02, schedule=train.Schedule(100), seed=3,
        first_step=first, precision="float32",
    )  # fmt: skip


def _delta(model: Any, adapter: lora.Adapter) -> dict[str, torch.Tensor]:
    state = lora.trainable_state(model, adapter.shape.extra)
    return {name: state[name] - start for name, start in adapter.trained.items()}


def _after(
    model: Any, adapter: lora.Adapter, pool: TokenPool, clip: float | None
) -> dict[str, torch.Tensor]:
    train.train_update(model, adapter, [Uniform(pool)], TRAINING, per_window_clip=clip)
    return lora.trainable_state(model, adapter.shape.extra)
