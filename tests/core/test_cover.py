"""Who leaves when deliveries are disputed: few, and those with the longer record."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.cover import minimum_cover

PAIRS = st.sets(
    st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] != pair[1]),
    max_size=12,
)


def nothing(index: int) -> tuple[int, int]:
    return 0, 0


def meets(cover: set[int], pairs: set[tuple[int, int]]) -> bool:
    return all(dealer in cover or holder in cover for dealer, holder in pairs)


@given(PAIRS)
@settings(max_examples=60)
def test_the_cover_meets_every_pair_and_no_smaller_set_does(pairs: set[tuple[int, int]]) -> None:
    cover = minimum_cover(pairs, nothing)
    assert meets(cover, pairs)
    smaller = combinations(range(10), len(cover) - 1) if cover else ()
    assert not any(meets(set(chosen), pairs) for chosen in smaller)


def test_nobody_leaves_without_a_dispute() -> None:
    assert minimum_cover(set(), nothing) == set()


@pytest.mark.parametrize("heavy", [1, 2])
def test_of_two_that_dispute_the_heavier_leaves(heavy: int) -> None:
    assert minimum_cover({(1, 2)}, lambda index: (int(index == heavy), 0)) == {heavy}
    assert minimum_cover({(1, 2)}, lambda index: (0, int(index == heavy))) == {heavy}


def test_past_disputes_weigh_more_than_complaints() -> None:
    assert minimum_cover({(1, 2)}, lambda index: (1, 0) if index == 2 else (0, 9)) == {2}


def test_among_sets_of_one_size_the_heavier_one_leaves() -> None:
    square = {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert minimum_cover(square, lambda index: (index % 2, 0)) == {1, 3}
    assert minimum_cover(square, lambda index: (1 - index % 2, 0)) == {0, 2}


def test_a_large_dispute_is_covered_by_who_has_most_of_it() -> None:
    """Over fourteen candidates: one accuser of twenty others leaves alone."""
    star = {(other, 20) for other in range(20)}
    assert minimum_cover(star, nothing) == {20}
    two = star | {(other, 21) for other in range(20)}
    assert minimum_cover(two, nothing) == {20, 21}
    assert minimum_cover(set(star), nothing) == {20}
    assert len(star) == 20


def test_a_large_dispute_is_settled_by_weight_and_then_by_the_smaller_index() -> None:
    apart = {(2 * pair, 2 * pair + 1) for pair in range(10)}
    assert minimum_cover(apart, nothing) == {2 * pair for pair in range(10)}
    odd = minimum_cover(apart, lambda index: (index % 2, 0))
    assert odd == {2 * pair + 1 for pair in range(10)}
    complaints = minimum_cover(apart, lambda index: (0, index % 2))
    assert complaints == odd


def test_fourteen_candidates_are_still_covered_exactly() -> None:
    """Greedy would take the hub, which the smallest cover of this graph does without."""
    spokes = {(0, other) for other in range(1, 7)}
    leaves = {(other, other + 6) for other in range(1, 7)} | {(1, 13)}
    assert len({index for pair in spokes | leaves for index in pair}) == 14
    assert minimum_cover(spokes | leaves, nothing) == set(range(1, 7))
    assert len(minimum_cover(spokes | leaves | {(2, 14)}, nothing)) == 7
