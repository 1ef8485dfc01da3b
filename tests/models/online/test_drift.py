"""Drift detection keeps its stated rate whatever the losses look like, and notices a change."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from secagg.errors import ConfigError
from secagg_models.online.drift import (
    DriftLimits,
    DriftState,
    observe,
    observe_all,
    restarted,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]
LIMITS = DriftLimits(windows_per_false_alarm=200, memory=128)

KINDS: dict[str, Draw] = {
    "normal": lambda g, n: 3 + g.normal(size=n),
    "log-normal": lambda g, n: np.exp(g.normal(size=n)),
    "heavy-tailed": lambda g, n: g.standard_t(2, size=n),
    "bimodal": lambda g, n: g.normal(size=n) * 0.1 + 5 * g.integers(0, 2, size=n),
}


@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms_come_at_the_stated_rate_whatever_the_distribution(kind: str) -> None:
    losses = KINDS[kind](np.random.default_rng(1), 8000)
    _, alarms = observe_all(DriftState(), losses, LIMITS)
    # 40 are expected; the count is about Poisson, and warm-ups after alarms take some windows.
    assert 22 <= len(alarms) <= 60, len(alarms)


@pytest.mark.parametrize("direction", ["worse", "better"])
def test_a_change_of_one_deviation_is_noticed_within_thirty_windows(direction: str) -> None:
    limits, sign = DriftLimits(), 1 if direction == "worse" else -1
    for seed in range(5):
        generator = np.random.default_rng(seed)
        state = restarted(generator.normal(size=200))
        _, alarms = observe_all(state, sign * 1.0 + generator.normal(size=40), limits)
        assert alarms
        assert alarms[0].direction == direction
        assert alarms[0].since <= 35


def test_after_an_alarm_the_new_losses_are_the_reference() -> None:
    generator = np.random.default_rng(3)
    state = restarted(generator.normal(size=200))
    state, alarms = observe_all(state, 5 + generator.normal(size=300), DriftLimits())
    assert len(alarms) == 1
    assert min(state.reference[alarms[0].since :]) > 0


def test_losses_seen_one_by_one_with_restarts_between_alarm_as_they_do_in_one_go() -> None:
    generator = np.random.default_rng(4)
    losses = np.concatenate([generator.normal(size=80), 2 + generator.normal(size=40)])
    whole, alarms = observe_all(DriftState(), losses, LIMITS)
    state, heard = DriftState(), []
    for loss in losses:
        state = DriftState.from_json(json.loads(json.dumps(state.to_json())))
        state, alarm = observe(state, float(loss), LIMITS)
        heard += [] if alarm is None else [alarm]
    assert (state, heard) == (whole, alarms)


def test_a_loss_that_is_not_finite_counts_as_the_worst_and_the_state_still_goes_to_disk() -> None:
    state = restarted(range(30))
    state, alarms = observe_all(state, [float("nan")] * 12, DriftLimits())
    assert alarms
    assert alarms[0].direction == "worse"
    assert DriftState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_a_constant_loss_never_alarms() -> None:
    assert observe_all(DriftState(), [1.0] * 2000, LIMITS)[1] == []


def test_limits_and_states_that_make_no_sense_are_refused() -> None:
    for wrong in ({"windows_per_false_alarm": 3}, {"shift": 0.0}, {"warmup": 600}):
        with pytest.raises(ConfigError):
            DriftLimits(**wrong)
    with pytest.raises(ConfigError, match="unreadable"):
        DriftState.from_json({"reference": "x"})


def test_a_state_does_not_print_losses() -> None:
    assert "0.125" not in repr(restarted([0.125]))
