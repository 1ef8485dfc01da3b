"""What every ledger must do, as claims that run against anybody's implementation.

    @pytest.mark.parametrize("claim", LEDGER_CLAIMS)
    def test_ledger(claim, tmp_path):
        with MyLedger(tmp_path / "ledger") as ledger:
            claim(ledger)

Each claim takes a fresh, empty ledger and raises `InvariantBroken` where it does not hold. That a
ledger survives a killed process and keeps a second process out cannot be shown in one process:
`secagg.sqlite_ledger`'s own tests show how.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from secagg.errors import SecaggError, SpentInput, StaleState
from secagg.ledger import Act, Entry, Ledger
from secagg.testing.invariants import InvariantBroken, require

_ME, _OTHER = b"m" * 32, b"o" * 32
_FIRST, _SECOND = b"1" * 32, b"2" * 32
_LEAVES = tuple(bytes([number]) * 32 for number in range(4))


def round_numbers_rise_strictly(ledger: Ledger) -> None:
    """Joining again under the same or a smaller number is refused (C30)."""
    require(ledger.last_round(_ME) == 0, "an empty ledger has joined round 0")
    ledger.join(_ME, _FIRST, 7)
    require(ledger.last_round(_ME) == 7, "the joined round is remembered")
    for number in (7, 6, 0):
        _refused(StaleState, partial(ledger.join, _ME, _SECOND, number))
    require(ledger.last_round(_ME) == 7, "a refused join changes nothing")
    ledger.join(_ME, _SECOND, (1 << 64) - 1)
    require(ledger.last_round(_ME) == (1 << 64) - 1, "64-bit round numbers fit")


def acts_come_in_order_and_once(ledger: Ledger) -> None:
    """No act is left out; the same one again does nothing; a different one is refused (C32)."""
    ledger.join(_ME, _FIRST, 1)
    _refused(StaleState, lambda: ledger.commit(_ME, _FIRST, _entry(Act.DEALT)))
    for act in Act:
        ledger.commit(_ME, _FIRST, _entry(act))
        ledger.commit(_ME, _FIRST, _entry(act))
        _refused(StaleState, partial(ledger.commit, _ME, _FIRST, _entry(act, b"other")))
        other_request = Entry(act, b"r" * 32, b"message")
        _refused(StaleState, partial(ledger.commit, _ME, _FIRST, other_request))
    entries = ledger.entries(_ME, _FIRST)
    require([entry.act for entry in entries] == list(Act), "entries come back in order")
    require(
        all((entry.message, entry.state) == (b"message", b"sealed") for entry in entries),
        "entries come back with their exact bytes",
    )


def one_round_is_live(ledger: Ledger) -> None:
    """A later round ends the earlier one."""
    ledger.join(_ME, _FIRST, 1)
    ledger.commit(_ME, _FIRST, _entry(Act.JOINED))
    ledger.join(_ME, _SECOND, 2)
    _refused(StaleState, lambda: ledger.commit(_ME, _FIRST, _entry(Act.DEALT)))
    ledger.commit(_ME, _SECOND, _entry(Act.JOINED))
    require(len(ledger.entries(_ME, _FIRST)) == 1, "the earlier round's acts stay")


def rounds_that_were_not_joined_take_no_acts(ledger: Ledger) -> None:
    """Committing needs a joined round."""
    _refused(StaleState, lambda: ledger.commit(_ME, _FIRST, _entry(Act.JOINED)))
    require(ledger.entries(_ME, _FIRST) == (), "nothing is recorded")


def a_closed_round_keeps_messages_and_no_states(ledger: Ledger) -> None:
    """Closing erases sealed states and refuses further acts; what was said stays known."""
    ledger.join(_ME, _FIRST, 1)
    ledger.commit(_ME, _FIRST, _entry(Act.JOINED))
    ledger.close(_ME, _FIRST)
    ledger.close(_ME, _FIRST)
    _refused(StaleState, lambda: ledger.commit(_ME, _FIRST, _entry(Act.DEALT)))
    (entry,) = ledger.entries(_ME, _FIRST)
    require((entry.message, entry.state) == (b"message", b""), "the state is erased, alone")
    require(ledger.last_round(_ME) == 1, "a closed round's number is not given again")
    _refused(StaleState, lambda: ledger.join(_ME, _SECOND, 1))


def closing_one_round_leaves_another_alone(ledger: Ledger) -> None:
    """A late end of an earlier round does not end the live one."""
    ledger.join(_ME, _FIRST, 1)
    ledger.commit(_ME, _FIRST, _entry(Act.JOINED))
    ledger.join(_ME, _SECOND, 2)
    ledger.close(_ME, _FIRST)
    ledger.commit(_ME, _SECOND, _entry(Act.JOINED))
    require(ledger.entries(_ME, _SECOND)[0].state == b"sealed", "the live round keeps its state")


def an_input_is_spent_once(ledger: Ledger) -> None:
    """Under one round as often as needed, under another never (C31)."""
    ledger.spend(_ME, b"x" * 32, _FIRST)
    ledger.spend(_ME, b"x" * 32, _FIRST)
    _refused(SpentInput, lambda: ledger.spend(_ME, b"x" * 32, _SECOND))
    _refused(SpentInput, lambda: ledger.spend(_ME, b"x" * 32, _SECOND))
    ledger.spend(_ME, b"x" * 32, _FIRST)
    ledger.spend(_ME, b"y" * 32, _SECOND)


def leaves_stand_once_recorded(ledger: Ledger) -> None:
    """Leaf hashes are appended without gaps and never change (C34)."""
    ledger.join(_ME, _FIRST, 1)
    ledger.record_leaves(_ME, _FIRST, 0, _LEAVES[:2])
    _refused(StaleState, lambda: ledger.record_leaves(_ME, _FIRST, 3, _LEAVES[3:]))
    changed = [_LEAVES[0], _LEAVES[3], _LEAVES[2]]
    _refused(StaleState, lambda: ledger.record_leaves(_ME, _FIRST, 0, changed))
    require(ledger.leaves(_ME, _FIRST) == _LEAVES[:2], "a refused batch leaves nothing behind")
    ledger.record_leaves(_ME, _FIRST, 1, _LEAVES[1:])
    ledger.record_leaves(_ME, _FIRST, 0, _LEAVES)
    require(ledger.leaves(_ME, _FIRST) == _LEAVES, "overlapping batches join")
    require(ledger.leaves(_ME, _SECOND) == (), "rounds are apart")


def nothing_more_leaves_after_the_end(ledger: Ledger) -> None:
    """A round that was left, or never joined, takes no new leaves; old ones stand (C34)."""
    _refused(StaleState, lambda: ledger.record_leaves(_ME, _FIRST, 0, _LEAVES[:1]))
    ledger.join(_ME, _FIRST, 1)
    ledger.record_leaves(_ME, _FIRST, 0, _LEAVES[:2])
    ledger.close(_ME, _FIRST)
    ledger.record_leaves(_ME, _FIRST, 0, _LEAVES[:2])
    _refused(StaleState, lambda: ledger.record_leaves(_ME, _FIRST, 0, _LEAVES))
    require(ledger.leaves(_ME, _FIRST) == _LEAVES[:2], "what was recorded stands")


def identities_are_apart(ledger: Ledger) -> None:
    """One file may serve several identities."""
    ledger.join(_ME, _FIRST, 5)
    ledger.commit(_ME, _FIRST, _entry(Act.JOINED))
    require(ledger.last_round(_OTHER) == 0, "rounds are counted for each identity")
    require(ledger.entries(_OTHER, _FIRST) == (), "acts belong to one identity")
    ledger.spend(_ME, b"x" * 32, _FIRST)
    ledger.spend(_OTHER, b"x" * 32, _SECOND)
    ledger.record_leaves(_ME, _FIRST, 0, _LEAVES)
    require(ledger.leaves(_OTHER, _FIRST) == (), "leaves belong to one identity")


LEDGER_CLAIMS: tuple[Callable[[Ledger], None], ...] = (
    round_numbers_rise_strictly,
    acts_come_in_order_and_once,
    one_round_is_live,
    rounds_that_were_not_joined_take_no_acts,
    a_closed_round_keeps_messages_and_no_states,
    closing_one_round_leaves_another_alone,
    an_input_is_spent_once,
    leaves_stand_once_recorded,
    nothing_more_leaves_after_the_end,
    identities_are_apart,
)


def _entry(act: Act, message: bytes = b"message") -> Entry:
    return Entry(act, bytes(32), message, b"sealed")


def _refused(error: type[SecaggError], act: Callable[[], None]) -> None:
    try:
        act()
    except error:
        return
    raise InvariantBroken(f"{error.__name__} was due")
