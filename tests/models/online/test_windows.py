"""Windows of every kind come back from disk as they were, readable by their owner alone."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.labelled import LabelledBatch
from secagg_models.online.windows import (
    Windows,
    load_windows,
    save_windows,
    window_losses,
    with_truth,
)
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.forecaster import Forecaster, ForecasterShape

TOKENS = torch.arange(24).reshape(4, 6)
LABELLED = LabelledBatch(TOKENS, torch.ones_like(TOKENS), torch.tensor([0, 1, 0, 1]))
SERIES = SeriesBatch(torch.tensor([[1.0, float("nan"), 3.0, 4.0, 5.0]]), 4, 2)


@pytest.mark.parametrize("windows", [TOKENS, LABELLED, SERIES], ids=["tokens", "labels", "series"])
def test_windows_come_back_as_they_were_and_are_private(windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "memory.npz"
    save_windows(path, windows)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = load_windows(path)
    assert type(again) is type(windows)
    match windows, again:
        case torch.Tensor(), torch.Tensor():
            assert torch.equal(windows, again)
        case LabelledBatch(), LabelledBatch():
            assert torch.equal(windows.labels, again.labels)
            assert torch.equal(windows.input_ids, again.input_ids)
        case SeriesBatch(), SeriesBatch():
            assert torch.equal(windows.values.nan_to_num(-1), again.values.nan_to_num(-1))
            assert (again.context, again.scored_from) == (4, 2)
        case _:
            pytest.fail("another kind came back")


def test_a_file_that_holds_no_windows_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "memory.npz"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ConfigError, match="remove it"):
        load_windows(path)


def test_losses_of_windows_average_to_the_evaluation_and_do_not_depend_on_their_company() -> None:
    torch.manual_seed(1)
    shape = ForecasterShape(width=8, layers=1, heads=2, intermediate=8, context=32, horizon=8)
    model = Forecaster(shape).eval()
    values = torch.randn(20, 40, generator=torch.Generator().manual_seed(2))
    windows = SeriesBatch(values, 32, 32)
    losses = window_losses(model, windows, "float32")
    direct = train.item_losses(model, windows, "float32").detach()
    assert losses.shape == (20,)
    np.testing.assert_allclose(losses.mean(), float(direct.mean()), rtol=1e-5)
    alone = window_losses(model, SeriesBatch(values[3:4], 32, 32), "float32")
    np.testing.assert_allclose(alone[0], losses[3], rtol=1e-5)


def test_a_window_whose_future_is_missing_has_nothing_to_measure_by() -> None:
    values = torch.zeros(3, 6)
    values[0, 4:] = torch.nan
    values[1, :5] = torch.nan
    assert with_truth(SeriesBatch(values, 4, 4)).tolist() == [False, True, True]
    assert with_truth(torch.zeros(2, 5, dtype=torch.int64)).all()
