"""The experiment on windows: its attacker has power, its worlds are as told, it summarises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from secagg_demo.experiments import surprise
from secagg_demo.experiments.surprise_gain import BAND, BEFORE, SPECIALIST
from secagg_demo.experiments.surprise_transcript import (
    ADMITTED,
    POLICIES,
    VIEWS,
    _ridge,
    auc,
    auc_interval,
    transcript_job,
)
from secagg_demo.experiments.surprise_worlds import KINDS, RARE, Chains, planted


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_attacker_finds_what_is_there_and_nothing_in_noise() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(400) % 2
    noise = generator.normal(size=(400, 5))
    told = noise + labels[:, None] * np.array([1.0, 0, 0, 0, 0])
    for views, least, most in ((told, 0.7, 1.0), (noise, 0.4, 0.6), (np.ones((400, 3)), 0.5, 0.5)):
        scores = _ridge(views[:200], labels[:200], views[200:])
        assert least <= auc(labels[200:], scores) <= most


def test_intervals_of_auc_lie_around_it() -> None:
    labels = [0, 1] * 20
    halves = [[float(label) for label in labels[:20]]] * 2
    assert auc_interval([(labels, halves)]) == (1.0, 1.0, 1.0)
    mean, low, high = auc_interval([(labels, np.random.default_rng(1).random((2, 20)).tolist())])
    assert low < mean < high


def test_a_planted_world_holds_what_it_says() -> None:
    world = planted(Chains.drawn(1))
    share = (world.kinds == KINDS.index(RARE)).mean()
    assert share == pytest.approx(world.shares[RARE], abs=0.02)
    assert len(world.rare_stream.ids) == share * world.tuning.size
    assert not np.array_equal(world.tuning, planted(Chains.drawn(2)).tuning)


def test_views_on_tenants_count_the_same_work_and_tell_of_the_choice_only_inside() -> None:
    found = transcript_job({"seed": 1, "tenants": 8, "device": "cpu"}, lambda done, of: None)
    for policy in POLICIES:
        assert all(least == most for least, most in found[policy]["work"].values())
        labels, halves = found[policy]["labels"], found[policy]["scores"][ADMITTED]
        assert auc_interval([(labels, halves)])[0] > 0.9


def test_a_summary_names_what_holds_and_what_does_not() -> None:
    results: dict[str, Any] = {}
    for seed in (101, 102, 103):
        arms = {arm: _arm(0.1, 1.5 + seed / 1e5) for arm in surprise._PLANTED_ARMS}
        arms |= {BEFORE: _arm(0.0, 1.7), SPECIALIST: _arm(1.0, 3.0)}
        arms[BAND] = _arm(0.8 + seed / 1e5, 1.505)
        for world in ("planted", "real"):
            results[f"{world} {seed}"] = {"arms": arms}
        transcript = {
            "labels": [0, 1] * 8, "work": {"windows": [48.0, 48.0]},
            "scores": {view: [[0.0] * 8] * 2 for view in VIEWS},
        }  # fmt: skip
        results[f"transcript {seed}"] = dict.fromkeys(POLICIES, transcript)
    summary = surprise.summarise("default", results)
    held = {finding.claim: finding.holds for finding in summary.findings}
    assert held["The band raises recall of the planted rare regime at equal windows"] is True
    assert held["The average loss is not worse (planted)"] is True
    assert held["The signal 'loss gap' raises recall as well (planted)"] is False
    assert held["The same classifier finds the rare windows in what does not leave"] is False
    assert any(claim.endswith("chance does under band") and holds for claim, holds in held.items())


def test_every_seed_measures_both_worlds_and_the_transcript() -> None:
    names = [job.name for job in surprise.jobs("quick", [1, 2])]
    assert len(names) == len(set(names)) == 6


def _arm(recall: float, average: float) -> dict[str, Any]:
    return {
        "recall": recall, "average": average, "signal": average, "seconds": 1.0, "reached": 0.5,
        "loss": dict.fromkeys(KINDS, average), "drawn": dict.fromkeys(KINDS, 0.1),
    }  # fmt: skip
