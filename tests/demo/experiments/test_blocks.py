"""Experiment `blocks`: what its arms cost by count, and that a small one runs to its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secagg_demo.experiments import blocks
from secagg_demo.experiments.blocks_arms import ARMS, layer_passes, measure
from secagg_models.blocks.objective import MIXED, PREFIX, PURE
from secagg_models.blocks.partition import partition
from secagg_models.series.forecaster import Forecaster, ForecasterShape, save_forecaster


def test_pure_blocks_make_as_many_layer_passes_as_end_to_end_and_the_others_more() -> None:
    layers = partition(12, 3)
    assert layer_passes(layers, PURE) == 3 * 12
    assert layer_passes(layers, PREFIX) == 3 * 12 + 0 + 4 + 8
    ordinary = [
        12 + 8 + 2 * 4,
        12 + 4 + 2 * 4,
        12 + 0 + 2 * 4,
    ]  # all, later, own
    assert layer_passes(layers, MIXED) == layer_passes(layers, PREFIX) + sum(ordinary)


def test_every_arm_of_a_small_forecaster_is_measured_and_summarised(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = ForecasterShape(
        width=16, layers=3, heads=2, intermediate=24, patch=8, context=32, horizon=8
    )
    save_forecaster(Forecaster(shape), tmp_path)
    [job] = [j for j in blocks.jobs("quick", [1]) if j.name == "series 1"]
    small = {"companies": ["climate"], "context": 32, "forecaster": str(tmp_path), "device": "cpu"}
    reported: list[int] = []
    found = measure({**job.arguments, **small}, lambda done, _: reported.append(done))
    assert list(found["arms"]) == list(ARMS)
    assert reported == list(range(len(ARMS) + 1))
    json.dumps(found, allow_nan=False)
    summary = blocks.summarise("quick", {"series 1": found})
    assert [len(table.rows) for table in summary.tables] == [len(ARMS), 4]
    assert len(summary.findings) == 5
    summary.plots["series sampled"](tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


@pytest.mark.parametrize("size", blocks.SIZES)
def test_every_model_has_a_job_for_each_seed(size: str) -> None:
    names = {job.name for job in blocks.jobs(size, [1, 2])}
    assert names == {f"{model} {seed}" for model in blocks.UNITS for seed in (1, 2)}
