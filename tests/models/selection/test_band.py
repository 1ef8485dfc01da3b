"""The pure part: ranks, edges, and that what is dealt is exact whatever the data are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg_models.selection.band import Band, dealt, ranks_within


@st.composite
def hands(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, float, int]:
    n = draw(st.integers(1, 40))
    strata = np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), np.int64)
    room = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int64)
    count = draw(st.integers(0, 60))
    floor = draw(st.floats(0, 1))
    return np.arange(n) * 7, strata, room, count, floor, draw(st.integers(0, 99))


@settings(max_examples=150, deadline=None)
@given(hands())
def test_exactly_as_many_are_dealt_as_are_asked_for_while_there_is_room(hand: tuple) -> None:  # type: ignore[type-arg]
    rows, strata, room, count, floor, seed = hand
    chosen = dealt(rows, strata, room, count, floor, np.random.default_rng(seed))
    assert len(chosen) == min(count, room.sum())
    taken = np.bincount(chosen // 7, minlength=len(rows))
    assert (taken <= room).all()


@settings(max_examples=150, deadline=None)
@given(hands())
def test_every_stratum_gets_its_floor_while_it_lasts(hand: tuple) -> None:  # type: ignore[type-arg]
    rows, strata, room, count, floor, seed = hand
    chosen = dealt(rows, strata, room, count, floor, np.random.default_rng(seed))
    present = np.unique(strata)
    for stratum in present:
        inside = strata == stratum
        quota = min(int(floor * count) // len(present), room[inside].sum())
        assert np.isin(chosen // 7, np.flatnonzero(inside)).sum() >= quota


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_ranks_lie_between_0_and_1_and_follow_the_scores_within_strata(
    scores: list[float], strata: int, seed: int
) -> None:
    values = np.array(scores, np.float32)
    places = np.arange(len(values)) % strata
    ranks = ranks_within(values, places, np.random.default_rng(seed))
    assert ((ranks > 0) & (ranks < 1)).all()
    # What is not a number comes last, as if it had never been scored.
    plain = np.where(np.isfinite(values), values, -np.inf)
    for stratum in range(strata):
        inside = places == stratum
        if inside.sum() >= 8:
            order = np.argsort(ranks[inside])
            assert (np.diff(plain[inside][order]) >= 0).all() or np.isinf(plain[inside]).any()


def test_a_stratum_that_is_always_loud_takes_no_more_of_the_band_than_a_quiet_one() -> None:
    scores = np.concatenate([np.arange(50), 1000 + np.arange(50)]).astype(np.float32)
    strata = np.repeat([0, 1], 50)
    ranks = ranks_within(scores, strata, np.random.default_rng(1))
    low, high = Band().edges(0.0)
    inside = (ranks >= low) & (ranks <= high)
    assert inside[:50].sum() == inside[50:].sum() == 30


def test_the_band_rises_over_the_training() -> None:
    band = Band()
    assert band.edges(0.0) == pytest.approx((0.3, 0.9))
    assert band.edges(0.5) == pytest.approx((0.4, 0.935))
    assert band.edges(1.0) == band.edges(7.0) == pytest.approx((0.5, 0.97))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"uniform": 0.1}, "uniform"),
        ({"start": (0.9, 0.3)}, "surprise band"),
        ({"cap": 0}, "cap"),
        ({"floor": 1.5}, "floor"),
    ],
)
def test_numbers_that_would_put_windows_out_of_reach_are_refused(
    values: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        Band(**values)  # type: ignore[arg-type]
