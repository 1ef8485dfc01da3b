"""The forecaster: causal, equivariant, honest about what is missing; read strictly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg_models import updates
from secagg_models.base import load_base, model_digest
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.series.batch import SeriesBatch, scale_of
from secagg_models.series.forecaster import (
    Forecaster,
    ForecasterShape,
    load_forecaster,
    pinball,
    quantiles_after,
    save_forecaster,
    series_losses,
)

SHAPE = ForecasterShape(
    width=16, layers=3, heads=2, intermediate=24, patch=4, context=32, horizon=8,
    quantiles=(0.1, 0.5, 0.9),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Forecaster:
    torch.manual_seed(1)
    return Forecaster(SHAPE).train(False).requires_grad_(False)


def walk(seed: int, count: int = 5, length: int = 40) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal((count, length)).cumsum(1)
    return torch.from_numpy(values.astype(np.float32))


def test_a_forecast_that_is_no_number_is_not_a_perfect_one() -> None:
    broken = Forecaster(SHAPE).requires_grad_(False)
    broken.head.weight.fill_(torch.nan)
    values = walk(3)
    values[0, 32:] = torch.nan
    losses = series_losses(broken, SeriesBatch(values, 32, 32))
    assert losses[0].item() == 0  # nothing was asked for
    assert losses[1:].isnan().all()


def test_a_history_of_any_numbers_is_taken_and_of_another_shape_refused(model: Forecaster) -> None:
    history = torch.arange(40).unsqueeze(0)
    wanted = quantiles_after(model, history.float())
    assert torch.equal(quantiles_after(model, history), wanted)
    assert torch.equal(quantiles_after(model, history.double()), wanted)
    for other in (history[0], history[:, :0]):
        with pytest.raises(ConfigError, match=r"wanted \(series, values\)"):
            quantiles_after(model, other)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    factor=st.floats(1e-2, 1e3),
    shift=st.floats(-1e2, 1e2),
    length=st.integers(9, 60),
)
def test_a_forecast_follows_the_unit_of_its_history(
    model: Forecaster, seed: int, factor: float, shift: float, length: int
) -> None:
    history = walk(seed, 2, length)
    moved = quantiles_after(model, factor * history + shift)
    expected = factor * quantiles_after(model, history) + shift
    assert torch.allclose(moved, expected, atol=2e-3 * factor + 1e-3, rtol=2e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 16), patch=st.integers(1, 7), jump=st.floats(-50, 50))
def test_no_position_sees_what_comes_later(
    model: Forecaster, seed: int, patch: int, jump: float
) -> None:
    values = walk(seed)[:, :32]
    later = values.clone()
    later[:, patch * SHAPE.patch :] += jump
    before = slice(0, patch)
    assert torch.equal(model(values)[:, before], model(later)[:, before])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 16), scored=st.integers(2, 7), jump=st.floats(-50, 50))
def test_a_score_depends_on_nothing_beyond_its_own_horizon(
    model: Forecaster, seed: int, scored: int, jump: float
) -> None:
    values = walk(seed)
    later = values.clone()
    later[:, scored * SHAPE.patch + SHAPE.horizon :] += jump
    scores = [
        series_losses(model, SeriesBatch(v, 32, scored * SHAPE.patch))[:, 0]
        for v in (values, later)
    ]
    assert torch.equal(*scores)


def test_measuring_scores_the_end_of_the_history_alone(model: Forecaster) -> None:
    batch = SeriesBatch(walk(3), 32, 32)
    losses = series_losses(model, batch)
    scale = scale_of(batch.values[:, :32])
    guesses = scale.normalised(quantiles_of_raw(model, batch).flatten(1)).reshape(5, 8, 3)
    truth = scale.normalised(batch.values[:, 32:])
    by_hand = pinball(guesses, truth, torch.tensor(SHAPE.quantiles)).mean(1, keepdim=True)
    assert losses.shape == (5, 1)
    assert torch.allclose(losses, by_hand, atol=1e-5)


def quantiles_of_raw(model: Forecaster, batch: SeriesBatch) -> torch.Tensor:
    """Unsorted, since a random model's quantiles cross."""
    scale = scale_of(batch.values[:, : batch.context])
    return scale.raw(model(scale.normalised(batch.values[:, : batch.context]))[:, -1])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=9),
    st.floats(-100, 100),
)
def test_pinball_is_the_mean_over_levels_of_twice_the_quantile_loss(
    guesses: list[float], truth: float
) -> None:
    levels = [(i + 1) / (len(guesses) + 1) for i in range(len(guesses))]
    slow = [
        2 * (q * (truth - g) if truth >= g else (1 - q) * (g - truth))
        for q, g in zip(levels, guesses, strict=True)
    ]
    fast = pinball(
        torch.tensor(guesses, dtype=torch.float64),
        torch.tensor(truth, dtype=torch.float64),
        torch.tensor(levels, dtype=torch.float64),
    )
    assert float(fast) == pytest.approx(sum(slow) / len(slow), abs=1e-9)


def test_what_stands_behind_a_gap_counts_nothing(model: Forecaster) -> None:
    values = walk(5)
    values[:, 10:13] = float("nan")
    values[:, 36] = float("nan")
    losses = series_losses(model, SeriesBatch(values, 32, 16))
    assert torch.isfinite(losses).all()
    nothing = torch.full((1, 40), float("nan"))
    assert float(series_losses(model, SeriesBatch(nothing, 32, 32)).sum()) == 0


def test_a_history_without_an_own_scale_still_has_a_finite_forecast(model: Forecaster) -> None:
    for history in (torch.zeros(1, 20), torch.full((1, 20), 7e8), torch.full((1, 5), 1e-20)):
        assert torch.isfinite(quantiles_after(model, history)).all()


def test_what_follows_a_history_of_zeros_is_measured_in_its_own_unit() -> None:
    scale = scale_of(torch.tensor([[0.0, 0.0, 0.0], [float("nan")] * 3, [5.0, 5.0, 5.0]]))
    assert scale.scale.flatten().tolist() == [1.0, 1.0, 5.0]
    assert scale.location.flatten().tolist() == [0.0, 0.0, 5.0]


def test_a_short_history_is_a_padded_one(model: Forecaster) -> None:
    history = walk(2, 3, 10)
    padded = torch.nn.functional.pad(history, (2, 0), value=float("nan"))
    assert torch.equal(quantiles_after(model, history), quantiles_after(model, padded))


@pytest.mark.parametrize(
    "shape",
    [LoraShape(2, 1.0, ("q_proj", "v_proj")), EdgesShape((0, 2)), EdgesShape((0, 2), True)],
    ids=["lora", "edges", "edges and the rest"],
)
def test_every_kind_of_update_starts_from_the_forecaster_as_it_is(
    shape: updates.UpdateShape,
) -> None:
    torch.manual_seed(1)
    fresh = Forecaster(SHAPE).train(False).requires_grad_(False)
    batch = SeriesBatch(walk(1), 32, 16)
    before = series_losses(fresh, batch)
    update = updates.start(fresh, shape, 1)
    attached = updates.attach(fresh, update)
    assert torch.allclose(series_losses(attached, batch), before, atol=1e-6)
    assert {"head.weight", "head.bias"} <= {
        name.removeprefix("base_model.") for name in update.trained
    }


def test_a_folder_gives_back_the_forecaster_bit_for_bit(model: Forecaster, tmp_path: Path) -> None:
    save_forecaster(model, tmp_path)
    loaded = load_base(str(tmp_path))
    assert loaded.digest == model_digest(model.state_dict())
    assert loaded.tokenizer is None
    assert loaded.model.shape == SHAPE


def test_what_is_no_forecaster_is_named(model: Forecaster, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no forecaster can be read"):
        load_forecaster(tmp_path / "nowhere")
    save_forecaster(model, tmp_path)
    config = tmp_path / "config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps(written | {"layers": 2}))
    with pytest.raises(ConfigError, match="do not fit its sizes"):
        load_forecaster(tmp_path)
    config.write_text(json.dumps(written | {"width": "wide"}))
    with pytest.raises(ConfigError, match="whole numbers"):
        load_forecaster(tmp_path)
    config.write_text(json.dumps(written | {"model_type": "llama"}))
    with pytest.raises(ConfigError, match="holds no forecaster"):
        load_forecaster(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    config.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="no forecaster can be read"):
        load_forecaster(tmp_path)


def test_sizes_that_the_weights_do_not_have_cost_no_memory(
    model: Forecaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_forecaster(model, tmp_path)
    config = tmp_path / "config.json"
    written = json.loads(config.read_text())

    def takes_none(tensor: torch.Tensor, **_: object) -> None:
        assert tensor.is_meta

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", takes_none)
    for name, size in (
        ("layers", 10**9),
        ("layers", 1000),
        ("horizon", 1 << 19),
        ("context", 1 << 40),
    ):
        config.write_text(json.dumps(written | {name: size}))
        with pytest.raises(ConfigError, match=r"do not fit its sizes|whole numbers"):
            load_forecaster(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    bad = Forecaster(SHAPE)
    with torch.no_grad():
        bad.head.bias[0] = float("nan")
    save_forecaster(bad, tmp_path)
    with pytest.raises(ConfigError, match="not finite"):
        load_forecaster(tmp_path)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (lambda: SeriesBatch(walk(1), 30, 28), "whole patches"),
        (lambda: SeriesBatch(walk(1, 2, 60), 48, 48), "takes up to 32"),
        (lambda: SeriesBatch(walk(1), 40, 40), "nothing to predict"),
        (lambda: SeriesBatch(walk(1), 32, 36), "scored from"),
    ],
)
def test_windows_of_other_sizes_are_named(model: Forecaster, batch: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        series_losses(model, batch())  # type: ignore[operator]


@pytest.mark.parametrize(
    "sizes", [{"width": 18}, {"context": 30}, {"quantiles": (0.5, 0.5)}, {"layers": 0}]
)
def test_sizes_that_do_not_go_together_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="forecaster"):
        ForecasterShape(**{"patch": 4, "context": 32, "heads": 2} | sizes)  # type: ignore[arg-type]
