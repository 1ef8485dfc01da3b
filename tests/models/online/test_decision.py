"""Versions are approved when they are shown not to be worse, and rejected when they are."""

from __future__ import annotations

import numpy as np
import pytest

from secagg.errors import ConfigError
from secagg_models.online.decision import NonInferiority, judge

RULE = NonInferiority(margin=0.01)


def losses(generator: np.random.Generator, count: int = 32) -> np.ndarray:
    """Windows differ from each other far more than versions do."""
    return 2 + generator.gamma(2.0, 0.5, size=count)


def test_the_same_version_is_approved() -> None:
    old = losses(np.random.default_rng(0))
    assert judge(old, old.copy(), RULE).verdict == "approved"


def test_what_pairing_shows_is_decided_though_windows_differ_widely() -> None:
    generator = np.random.default_rng(1)
    old = losses(generator)
    noise = 0.02 * generator.normal(size=len(old))
    assert judge(old, old - 0.1 + noise, RULE).verdict == "approved"
    assert judge(old, old + 0.15 + noise, RULE).verdict == "rejected"


def test_noise_as_large_as_the_margin_leaves_it_undecided() -> None:
    generator = np.random.default_rng(2)
    old = losses(generator, 12)
    assert judge(old, old + 0.3 * generator.normal(size=12), RULE).verdict == "undecided"


def test_a_version_exactly_a_margin_worse_is_rarely_approved() -> None:
    generator = np.random.default_rng(3)
    approved = 0
    for _ in range(300):
        old = losses(generator, 24)
        new = old * 1.01 + 0.05 * generator.normal(size=24)
        approved += judge(old, new, RULE).verdict == "approved"
    assert approved / 300 <= 0.09  # 5% stated, for known quantiles of the mean


def test_few_windows_decide_nothing() -> None:
    old = np.ones(7)
    assert judge(old, old - 0.5, RULE).verdict == "undecided"


def test_a_version_that_is_not_finite_is_rejected() -> None:
    old = np.ones(10)
    new = np.full(10, np.nan)
    assert judge(old, new, RULE).verdict == "rejected"


def test_a_judgement_is_the_same_at_every_call_and_does_not_print_losses() -> None:
    generator = np.random.default_rng(4)
    old = losses(generator)
    first, second = judge(old, old * 1.001, RULE), judge(old, old * 1.001, RULE)
    assert first == second
    assert f"{first.before:.4f}" not in repr(first)
    assert f"{first.before:.4f}" in first.reason


def test_losses_of_other_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="paired"):
        judge(np.ones(9), np.ones(10), RULE)
    with pytest.raises(ConfigError, match="roll back"):
        judge(np.full(9, np.inf), np.ones(9), RULE)
    for wrong in ({"margin": -1.0}, {"confidence": 1.0}):
        with pytest.raises(ConfigError):
            NonInferiority(**wrong)  # type: ignore[arg-type]
