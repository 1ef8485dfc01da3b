"""The experiment on time series: what its figures mean, and that both parts reach a page."""

import math
from dataclasses import asdict, replace
from importlib import import_module

import numpy as np
import pytest
import torch

from secagg_demo.experiments import page, timeseries
from secagg_demo.experiments import timeseries_tenants as tenants
from secagg_models.series.forecaster import Forecaster, ForecasterShape, save_forecaster
from secagg_models.series.metrics import Score
from secagg_models.series.real import COMPANIES


@pytest.fixture(scope="module")
def forecaster_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("forecaster")
    shape = ForecasterShape(width=16, layers=1, heads=2, intermediate=16)
    save_forecaster(Forecaster(shape), folder)
    return folder


def windows(histories, truth) -> tenants.Windows:
    histories = np.array(histories, float)
    n = len(histories)
    return tenants.Windows(
        histories, np.array(truth, float), np.zeros((n, 1)), np.ones((n, 1)), ("a",) * n
    )


def test_the_regimes_that_count_as_rare_are_those_that_stray_farthest():
    truth = np.zeros((20, 3))
    truth[7, 1], truth[3, 2] = -9, 5
    assert tenants.top_decile(windows(np.zeros((20, 8)), truth)).tolist() == [7, 3]


def test_events_are_counted_step_by_step_and_missing_truth_is_none():
    given = windows(np.zeros((1, 8)), [[2, 2, 0, 0, np.nan]])
    counts = tenants.event_counts(given, np.array([[2.0, 0, 2, 0, 2]]))
    assert counts == {"hits": 1, "false": 1, "missed": 1}


def test_a_forecaster_that_repeats_the_latest_value_follows_a_level_shift_and_trips_on_a_gap():
    class Repeats:
        shape = replace(ForecasterShape(), horizon=2, quantiles=(0.5,))

        def parameters(self):
            return iter([torch.zeros(1)])

        def __call__(self, values):
            latest = values[:, -1].nan_to_num()
            return latest[:, None, None, None].expand(-1, values.shape[1] // 8, 2, 1)

    given = windows(np.tile(np.linspace(-1, 1, 32), (2, 1)), np.ones((2, 2)))
    model = Repeats()
    assert tenants.disturbed_losses(model, given, "level shift") == pytest.approx(0, abs=1e-5)
    assert tenants.disturbed_losses(model, given, "gap").min() > 0.5


def test_ratios_are_geometric_means_over_data_sets_not_over_series():
    def scored(pinball):
        return asdict(Score(pinball, pinball, pinball, 0.8))

    one = {m: scored(1.0) for m in timeseries.METHODS}
    better = one | {timeseries.MODEL: scored(0.25)}
    found = timeseries.ZeroShot({"a.x": better, "a.y": better, "a.z": better, "b": one})
    assert found.relative(timeseries.MODEL, "pinball").mean == pytest.approx(math.sqrt(0.25))
    assert found.wins(timeseries.SEASONAL, "pinball") == (3, 4)
    assert found.dataset_wins(timeseries.SEASONAL, "pinball") == (1, 2)


def test_both_parts_run_and_reach_a_page(forecaster_folder, tmp_path):
    results = {}
    for job in timeseries.jobs("quick", [1]):
        module, _, function = job.function.partition(":")
        arguments = {**job.arguments, "base": str(forecaster_folder), "device": "cpu"}
        if "datasets" in arguments:
            arguments["datasets"] = ["nile"]
        steps = []
        run = getattr(import_module(module), function)
        results[job.name] = run(arguments, lambda done, of, steps=steps: steps.append((done, of)))
        assert steps[-1][0] == steps[-1][1]
    summary = timeseries.summarise("quick", results)
    companies = results["companies 1"]["companies"]
    assert set(companies) == set(tenants.ARMS)
    assert all(set(by_company) == set(COMPANIES) for by_company in companies.values())
    assert companies[tenants.FEDERATED] != companies[tenants.BASE]
    held = [found.claim for found in summary.findings]
    assert len(held) == len(set(held)) == 14
    assert all(
        page.in_words(cell) for table in summary.tables for row in table.rows for cell in row
    )
    for name, plot in summary.plots.items():
        plot(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


def test_every_held_out_series_is_measured_once():
    measured = [one for piece in timeseries._PIECES for one in piece]
    assert len(measured) == len(set(measured))
    held_out = {one.dataset for one in import_module("secagg_models.series.real").held_out_series()}
    assert set(measured) == held_out
