"""What every ledger refuses, whatever it keeps its entries in."""

from dataclasses import replace

import pytest

from secagg.errors import SpentInput, StaleState
from secagg.ledger import (
    Act,
    Entry,
    check_entry,
    check_join,
    check_leaves,
    check_spent,
)

FIRST = Entry(Act.JOINED, bytes(32), b"said", b"sealed")
SECOND = Entry(Act.DEALT, bytes(32), b"dealt")


def test_round_numbers_rise() -> None:
    """C30."""
    check_join(3, 4)
    for number in (3, 2, 0):
        with pytest.raises(StaleState, match=f"round {number} is not after round 3"):
            check_join(3, number)


def test_the_next_act_is_new_and_the_same_one_again_is_not() -> None:
    """C32."""
    assert check_entry((), True, FIRST)
    assert check_entry((FIRST,), True, SECOND)
    assert not check_entry((FIRST,), True, FIRST)
    assert not check_entry((FIRST, SECOND), False, FIRST)
    assert not check_entry((FIRST,), False, replace(FIRST, state=b"sealed again"))


def test_an_act_is_done_once_in_order_and_in_a_live_round() -> None:
    """C32."""
    for other in (replace(FIRST, message=b"other"), replace(FIRST, request=b"r" * 32)):
        with pytest.raises(StaleState, match="act JOINED was done differently before"):
            check_entry((FIRST,), True, other)
    with pytest.raises(StaleState, match="act DEALT cannot be recorded"):
        check_entry((), True, SECOND)
    with pytest.raises(StaleState, match="act DEALT cannot be recorded"):
        check_entry((FIRST,), False, SECOND)


def test_recorded_leaves_stay_what_they_are_and_new_ones_follow_without_a_gap() -> None:
    """C34."""
    a, b, c, d = (letter * 32 for letter in (b"a", b"b", b"c", b"d"))
    assert check_leaves((), True, 0, [a, b]) == [a, b]
    assert check_leaves((a, b), True, 2, [c]) == [c]
    assert check_leaves((a, b), True, 1, [b, c, d]) == [c, d]
    assert check_leaves((a, b, c), True, 0, [a, b]) == []
    assert check_leaves((a, b, c), False, 1, [b]) == []
    with pytest.raises(StaleState, match="before these are missing"):
        check_leaves((a,), True, 2, [c])
    for hashes in ([b], [a, c], [c, c, d]):
        with pytest.raises(StaleState, match="differs from the one recorded"):
            check_leaves((a, b), True, 0, hashes)
    with pytest.raises(StaleState, match="not live"):
        check_leaves((a,), False, 0, [a, b])


def test_an_input_leaves_under_one_context() -> None:
    """C31."""
    check_spent(b"c" * 32, b"c" * 32)
    with pytest.raises(SpentInput, match="has left in an earlier round"):
        check_spent(b"c" * 32, b"d" * 32)
