"""A training function that goes wrong costs its tenant its place, visibly, and nobody else's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from secagg_embed.simulation import (
    Cause,
    RoundReport,
    Simulation,
    TenantInfo,
    TrainingFailed,
    quiet,
)
from secagg_embed.terms import Terms

Returned = tuple[Any, Any]
Wrong = Callable[[dict[str, Any]], Any]


def right(arrays: dict[str, Any]) -> Returned:
    return {name: array + np.float32(0.1) for name, array in arrays.items()}, 3


def raises(arrays: dict[str, Any]) -> Returned:
    raise RuntimeError("the loader found no file")


def with_nan(arrays: dict[str, Any]) -> Returned:
    arrays["w"][1] = np.nan
    return arrays, 3


def reshaped(arrays: dict[str, Any]) -> Returned:
    return {"w": arrays["w"].reshape(2, 2)}, 3


def renamed(arrays: dict[str, Any]) -> Returned:
    return {"v": arrays["w"]}, 3


def simulate(wrong: Wrong, who: tuple[int, ...] = (2,), **options: Any) -> Simulation:
    def train(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> Returned:
        return wrong(arrays) if tenant.index in who else right(arrays)  # type: ignore[no-any-return]

    return Simulation(
        tenants=5, train=train, start={"w": np.zeros(4, np.float32)}, check=True, progress=quiet,
        **{"terms": Terms(clip=0.5, max_weight=10), **options},
    )  # fmt: skip


def one_round(wrong: Wrong, **options: Any) -> RoundReport:
    (report,) = simulate(wrong, **options).rounds(1)
    return report


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (raises, "train raised RuntimeError: the loader found no file"),
        (with_nan, "1 of 4 values are NaN or infinite"),
        (reshaped, "(2, 2)"),
        (renamed, "missing ['w']"),
        (lambda arrays: arrays, "train returned dict"),
        (lambda arrays: ([1.0], 3), "arrays maps every name"),
        (lambda arrays: (arrays, 0), "no whole number of 1 or more"),
        (lambda arrays: (arrays, 2.5), "no whole number of 1 or more"),
        (lambda arrays: (arrays, None), "NoneType as its number of examples"),
    ],
)
def test_one_tenants_failure_costs_it_its_place_alone(wrong: Wrong, said: str) -> None:
    report = one_round(wrong)
    assert report.survivors == ("t000", "t001", "t003", "t004")
    assert report.exact is True
    (left,) = report.left
    assert (left.tenant, left.step.label, left.cause) == ("t002", "masked_input", Cause.TRAINING)
    assert said in left.reason
    assert "1 its training failed" in str(report)


def test_what_the_loader_said_comes_with_its_place_in_the_users_code() -> None:
    (left,) = one_round(raises).left
    assert "test_training.py:" in left.reason
    assert "in raises" in left.reason


def test_a_tenant_that_failed_is_back_in_the_next_round() -> None:
    first = [True]

    def once(arrays: dict[str, Any]) -> Returned:
        if first:
            first.clear()
            raise RuntimeError("not yet")
        return right(arrays)

    lost, whole = simulate(once).rounds(2)
    assert len(lost.survivors) == 4
    assert len(whole.survivors) == 5


def test_nobodys_training_succeeding_is_the_error_of_the_round() -> None:
    everybody = tuple(range(5))
    with pytest.raises(TrainingFailed, match="nobody's training succeeded: t000") as raised:
        one_round(raises, who=everybody)
    assert "the loader found no file" in str(raised.value)
    (report,) = simulate(raises, who=everybody).rounds(1, keep_going=True)
    assert isinstance(report.error, TrainingFailed)
    assert report.training.tenants == 0


def test_weights_above_the_plans_largest_are_counted() -> None:
    report = one_round(right, terms=Terms(clip=0.5, max_weight=2))
    assert report.training.capped == 5
    assert report.total_weight == 10


def test_what_the_clip_cuts_is_told() -> None:
    report = one_round(right, terms=Terms(clip=0.01, max_weight=3))
    assert report.training.clipped == 1.0
    assert "the clip cut 1e+02% of the coordinates" in str(report)


def test_changing_the_arrays_in_place_changes_nobody_elses() -> None:
    def in_place(arrays: dict[str, Any]) -> Returned:
        arrays["w"] += np.float32(0.1)
        return arrays, 3

    simulation = simulate(in_place, who=tuple(range(5)))
    next(simulation.rounds(1))
    assert np.allclose(simulation.arrays["w"], 0.1, atol=1e-3)
