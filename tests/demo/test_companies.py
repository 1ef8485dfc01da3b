"""Companies and their series: none lies at two tenants, and naive losses have the same unit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secagg.errors import ConfigError
from secagg_demo import companies
from secagg_demo.comparison import TUNES_FORECASTER, Found
from secagg_demo.console import Narrator
from secagg_demo.nodes import series_owner, series_training
from secagg_demo.rolling import forecaster_loss, rolling_places, seasonal_naive_loss
from secagg_demo.settings import Settings
from secagg_demo.show import task_of
from secagg_models import train
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.recipe import Recipe, SeriesRecipe
from secagg_models.series.baselines import seasonal_naive
from secagg_models.series.folder import series_of_folder
from secagg_models.series.forecaster import Forecaster, ForecasterShape
from secagg_models.series.stream import Series, stream_of

LEVELS = (0.1, 0.5, 0.9)


@pytest.mark.parametrize("tenants", [3, 5, 8])
def test_no_series_lies_at_two_tenants(tenants: int) -> None:
    held = companies.assign(tenants)
    names = [one.name for tenant in held for one in tenant.series]
    assert len(held) == len({tenant.tenant for tenant in held}) == tenants
    assert len(names) == len(set(names))
    assert all(tenant.series for tenant in held)


def test_more_tenants_than_series_are_refused() -> None:
    with pytest.raises(ConfigError, match="too large for --task timeseries"):
        companies.assign(100)


def test_a_companys_folder_holds_its_series_bit_for_bit(tmp_path: Path) -> None:
    held = companies.assign(5)[0]
    companies.lay_out(held, tmp_path)
    read = {one.name: one for one in series_of_folder(tmp_path)}
    assert read.keys() == {one.name for one in held.series}
    for one in held.series:
        assert np.array_equal(read[one.name].values, one.values, equal_nan=True)
        assert read[one.name].season == one.season
    listed = companies.summary(held, 24)
    assert listed["series"] == len(held.series)
    assert all(one["targets"]["test"] > 0 for one in listed["listing"])


class _SeasonalNaive(nn.Module):
    """A forecaster's interface around forecasts that were made outside of it."""

    def __init__(self, forecasts: torch.Tensor, shape: ForecasterShape) -> None:
        super().__init__()
        self.shape, self._forecasts = shape, nn.Parameter(forecasts)
        self.config = shape.encoder_config()
        self.encoder = nn.Identity()
        self.encoder.config = self.config  # type: ignore[assignment]
        self.config._attn_implementation = "query_chunked"

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        places = values.shape[1] // self.shape.patch
        return self._forecasts[:, None].expand(-1, places, -1, -1)


def test_the_naive_loss_is_in_the_forecasters_unit() -> None:
    drawn = np.random.default_rng(1).normal(size=(2, 200)).cumsum(1).astype(np.float32)
    drawn[0, 150:155] = math.nan
    stream = stream_of("x", [Series(f"s{i}", v, 4) for i, v in enumerate(drawn)], "test", 8)
    shape = ForecasterShape(
        width=16, layers=1, heads=2, intermediate=16, patch=8, context=64, horizon=8,
        quantiles=LEVELS,
    )  # fmt: skip
    places = rolling_places(stream, 100)
    windows = stream.cut(places, 64).values[:, :64].double().numpy()
    middle, apart = np.nanmean(windows, 1), np.nanstd(windows, 1)
    forecasts = [
        (seasonal_naive(drawn[row][:origin], 4, 8, LEVELS) - middle[n]) / apart[n]
        for n, (row, origin) in enumerate(places)
    ]
    model = _SeasonalNaive(torch.tensor(np.array(forecasts), dtype=torch.float32), shape)
    losses = train.item_losses(model, stream.cut(places, 64), "float32").detach()
    expected = float(losses.double().mean())
    assert seasonal_naive_loss(stream, LEVELS, 64, 100) == pytest.approx(expected, rel=1e-4)


def test_origins_roll_over_the_whole_test_part_and_stay_in_it() -> None:
    series = [Series("long", np.zeros(400, np.float32)), Series("short", np.zeros(100, np.float32))]
    stream = stream_of("x", series, "test", 8)
    places = rolling_places(stream, 20)
    for row in (0, 1):
        origins = places[places[:, 0] == row, 1]
        assert len(set(origins)) == len(origins) == 10
        assert (origins[0], origins[-1]) == (stream.first[row], stream.end[row] - 8)
    assert len(rolling_places(stream, 1)) == 2
    assert len(rolling_places(stream, 10_000)) == len(stream.places())


def test_a_forecaster_is_measured_on_every_window_once() -> None:
    drawn = np.random.default_rng(1).normal(size=(1, 300)).cumsum(1).astype(np.float32)
    stream = stream_of("x", [Series("s", drawn[0])], "test", 8)
    torch.manual_seed(1)
    model = Forecaster(
        ForecasterShape(width=16, layers=1, heads=2, intermediate=16, context=64, horizon=8)
    )
    windows = stream.cut(rolling_places(stream, 50), 64)
    whole = train.item_losses(model, windows, "float32").detach()
    found = forecaster_loss(model, stream, 64, 50, "float32")
    assert found == pytest.approx(float(whole.double().mean()), rel=1e-5)


def test_a_task_goes_with_its_own_recipe(tmp_path: Path) -> None:
    settings = Settings(task="timeseries", rounds=2, seed=7, out=tmp_path)
    task = task_of(settings, None, Narrator())
    assert (task.name, task.recipe.rounds, task.recipe.seed) == ("timeseries", 2, 7)
    with pytest.raises(ConfigError, match="no recipe of kind Recipe"):
        task_of(settings, Recipe(), Narrator())
    with pytest.raises(ConfigError, match="--task is one of"):
        Settings(task="images")  # type: ignore[arg-type]


def test_a_tenants_rows_are_its_own_losses_and_everybodys() -> None:
    found = Found(
        zero={"forecaster": {"a": 1.0, "b": 2.0}, "seasonal_naive": {"a": 3.0, "b": 4.0}},
        full={"full": {"a": 0.5, "b": 1.5}},
        federated={"forecaster": {"a": 0.6, "b": 1.6}},
        own={"a": {"a": 0.7, "b": 2.7}, "b": {"a": 1.7, "b": 1.7}},
        central={"a": 0.4, "b": 1.4},
    )
    assert TUNES_FORECASTER.told("a", found) == {
        "zero_shot": 1.0, "seasonal_naive": 3.0, "full_fine_tuned": 0.5, "federated": 0.6,
        "local_only": 0.7, "local_only_on_all": pytest.approx(1.7), "centralised": 0.4,
    }  # fmt: skip


@pytest.mark.parametrize("update", ["lora", "edges"])
def test_the_owners_file_asks_for_what_the_comparison_tunes(update: str) -> None:
    shape = ForecasterShape(width=16, layers=2, heads=2, intermediate=24)
    recipe = SeriesRecipe(update=update, rank=3)
    written = series_owner(1, recipe)["model"]
    model = Forecaster(shape)
    match recipe.shape_in(model):
        case LoraShape(rank=rank, targets=targets):
            assert (written["kind"], written["rank"]) == ("lora", rank)
            assert written["targets"] == targets
        case EdgesShape(layers=layers, embeddings=True):
            assert written == {"kind": "edges", "base": "shipped-series"}
            assert layers == (0, 1)


def test_a_company_trains_on_its_own_folder_alone() -> None:
    assert series_training("series")["series"] == "series"
