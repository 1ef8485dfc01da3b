"""The stateful machines of test_stateful.py and test_stateful_coordinator.py, in scheme `ckks`.

Below the default thresholds as well: t > f is all that one sum needs, since U3 is unique by its
quorum. Whatever was mixed, the coalition knows the sum over one agreed U3, or nothing
(`secagg.testing.knowledge`).
"""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from secagg.plan import RoundPlan
from secagg.testing import cohort
from tests.core.test_stateful import RoundMachine
from tests.core.test_stateful_coordinator import LyingCoordinator


def small_plans() -> Iterator[RoundPlan]:
    """Rings of degree 2048. n = 8 with t = 4 and f = 2 tells two wrong sums from six right ones."""
    yield cohort(4).plan(3, round_number=2, scheme="ckks", suite="x25519")
    yield cohort(5).plan(3, round_number=2, scheme="ckks", packing="slots")
    yield cohort(5).plan(3, round_number=2, scheme="ckks", suite="x25519", share_threshold=2)
    yield cohort(7).plan(3, round_number=2, scheme="ckks", suite="x25519", share_threshold=3)
    yield cohort(8).plan(3, round_number=2, scheme="ckks", suite="x25519", share_threshold=4)


PLANS = list(small_plans())


class CkksRound(RoundMachine):
    """Honest coordinator, any network, up to f tenants that deviate."""

    plans = PLANS


class CkksLyingCoordinator(LyingCoordinator):
    """Any coordinator with up to f tenants that lie for it."""

    plans = PLANS


TestCkksRound = CkksRound.TestCase
TestCkksRound.settings = settings(max_examples=20, stateful_step_count=25)
TestCkksLyingCoordinator = CkksLyingCoordinator.TestCase
TestCkksLyingCoordinator.settings = settings(max_examples=20, stateful_step_count=14)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [CkksRound, CkksLyingCoordinator])
def test_many_more_rounds(machine: type[CkksRound | CkksLyingCoordinator]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=400, stateful_step_count=30))
