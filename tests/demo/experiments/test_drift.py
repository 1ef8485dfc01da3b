"""The drift experiment: its streams change where they say, its arms see what a node would see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from secagg_demo.experiments import drift, drift_rounds, drift_streams
from secagg_demo.experiments.drift_rounds import ARMS, DRIFT_EPOCH, HISTORY, NEW
from secagg_demo.experiments.drift_streams import MADE, REAL


@pytest.mark.parametrize("kind", ["normal", "log-normal", "dependent"])
def test_made_losses_have_unit_deviation(kind: str) -> None:
    losses = drift_streams.made(kind, np.random.default_rng(1), 20_000)
    assert 0.9 < losses.std() < 1.1


def test_a_delay_counts_from_the_change_and_a_miss_to_the_end() -> None:
    assert drift_streams.delay([3, 12, 20], 10, 50) == 2
    assert drift_streams.delay([3], 10, 50) == 40
    every = drift_streams.detectors()["schedule, every 25"]
    assert every(np.zeros(80)) == [24, 49, 74]


def test_the_season_of_every_company_changes_in_the_same_epoch() -> None:
    people = drift_rounds.companies(1, 10)
    change = HISTORY + NEW * DRIFT_EPOCH
    for company in people:
        for values in company.values:
            assert _season(values[:change]) == 8
            assert _season(values[change:]) == 13


def _season(values: np.ndarray) -> int:
    power = np.abs(np.fft.rfft(values - values.mean())) ** 2
    return round(len(values) / int(power.argmax()))


def test_new_values_reach_training_sooner_by_the_split_for_growing_series() -> None:
    company = drift_rounds.companies(1, 10)[0]
    ordinary = drift_rounds.training_part(company, 8, newest=False)
    growing = drift_rounds.training_part(company, 8, newest=True)
    change = HISTORY + NEW * DRIFT_EPOCH
    assert ordinary.end[0] < change < growing.end[0]


def canned(seed: int) -> dict[str, Mapping[str, Any]]:
    """Made results, less than what a run gives."""
    epochs = 8
    delays = {f"{kind} 1": 10.0 for kind in MADE} | dict.fromkeys(REAL, 5.0)
    streams = {
        name: {"false": dict.fromkeys((*MADE, *REAL), 1.0), "delay": delays}
        for name in drift_streams.detectors()
    }
    arm = {
        "fresh": [0.2] * DRIFT_EPOCH + [1.0 + seed / 100] * (epochs - DRIFT_EPOCH),
        "old": [0.2] * (epochs + 1), "alarms": [[DRIFT_EPOCH + 1, 0]], "rounds": epochs,
    }  # fmt: skip
    better = arm | {"fresh": [*arm["fresh"][:-3], 0.4, 0.4, 0.4]}  # type: ignore[index]
    verdicts = {"16": ["undecided"] * 5, "64": ["approved"] * 4 + ["rejected"]}
    judged = [
        {"kind": kind, "worse": worse, "triggered": 0.0, "verdicts": verdicts}
        for kind, worse in (("noise", 0.0), ("noise", 0.2), ("poisoned rounds", 0.5))
    ]
    return {
        f"streams {seed}": streams,
        f"recovery {seed}": {name: better if name == "online" else arm for name in ARMS},
        f"versions {seed}": {"judged": judged, "rollback": True},
    }


def test_findings_follow_the_figures() -> None:
    summary = drift.summarise("default", canned(1) | canned(2))
    verdicts = {found.claim: found.holds for found in summary.findings}
    assert verdicts["Rounds on data read anew recover from the change"]
    assert verdicts["Every company notices in the epoch of the change"] is False
    assert verdicts["At most 5% of the verdicts on harmful versions approve them"] is False
    assert verdicts["Rolling back gives the very same losses, bit for bit"]
    assert len(summary.tables) == 4
    assert summary.plots.keys() == {"losses", "delay against false alarms"}


def test_every_part_is_a_job_for_every_seed() -> None:
    names = [job.name for job in drift.jobs("quick", [1, 2])]
    assert sorted(names) == sorted(
        f"{part} {seed}" for part in ("recovery", "streams", "versions") for seed in (1, 2)
    )


def test_every_arm_begins_with_the_same_model_bit_for_bit() -> None:
    size = {"epochs": 2, "pretraining": 3, "steps": 1}
    found = drift_rounds.recovery(size, 1, "cpu", lambda: None)
    # Nothing has been trained before the first look.
    assert len({result["fresh"][0] for result in found.values()}) == 1
    assert len({result["fresh"][1] for result in found.values()}) > 1
