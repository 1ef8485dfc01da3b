"""The ledger: what this identity has already said, kept outside any state that can be copied.

Pure steps cannot stop a caller from replaying an old state: two processes, a killed one, a restored
backup. The ledger can. It is durable, exclusive to one process and compare-and-set; a `Participant`
writes each answer into it before it hands the answer out, so that per (identity, context, act)
there is one answer at most, ever (protocol.md, "Ledger"; checks C30 to C35).

`MemoryLedger` is for tests and simulations: it forgets with its process. Nodes use
`secagg.sqlite_ledger.SqliteLedger`; other hosts implement the `Ledger` protocol and run
`secagg.testing`'s ledger conformance tests on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol

from secagg.errors import SpentInput, StaleState
from secagg.records import U8, Digest


class Act(IntEnum):
    """What a participant does once per round, in this order."""

    JOINED = 0
    DEALT = 1
    ACKNOWLEDGED = 2
    UPLOAD_BEGUN = 3
    UPLOAD_COMMITTED = 4
    SIGNED_SURVIVORS = 5
    ANSWERED = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One act.

    `request` is the SHA-256 of the message that was answered (zeros where there is none), `message`
    the exact bytes that were sent, `state` the participant's sealed state after it (empty if its
    host keeps exported states itself).
    """

    act: U8
    request: Digest
    message: bytes
    state: bytes = b""


class Ledger(Protocol):
    """See the module's docstring. `identity` is the 32-byte public key."""

    def last_round(self, identity: bytes) -> int:
        """The highest round number joined, 0 for none."""

    def join(self, identity: bytes, context: bytes, round_number: int) -> None:
        """Make `context` the one live round.

        Raises:
            StaleState: `round_number` is not above the highest joined.
        """

    def commit(self, identity: bytes, context: bytes, entry: Entry) -> None:
        """Record the next act; recording the same one again does nothing.

        Raises:
            StaleState: `context` is not live, the act is not the next one, or it was done
                differently before: this caller runs on an old or copied state.
        """

    def entries(self, identity: bytes, context: bytes) -> tuple[Entry, ...]:
        """All acts of a round, in order."""

    def spend(self, identity: bytes, input_digest: bytes, context: bytes) -> None:
        """Mark an input as leaving under `context`; again under the same context is fine.

        Raises:
            SpentInput: it left under another context.
        """

    def record_leaves(
        self, identity: bytes, context: bytes, first: int, hashes: Sequence[bytes]
    ) -> None:
        """Record the upload's leaf hashes from index `first`, without gaps.

        Raises:
            StaleState: another hash stands at one of these places, there is a gap, or there are
                new ones and the round is not live.
        """

    def leaves(self, identity: bytes, context: bytes) -> tuple[bytes, ...]:
        """The leaf hashes recorded so far."""

    def close(self, identity: bytes, context: bytes) -> None:
        """End the round: erase its sealed states and refuse further commits."""


def check_join(last_round: int, round_number: int) -> None:
    """Round numbers rise strictly, whatever the session (C30)."""
    if round_number <= last_round:
        raise StaleState(
            f"round {round_number} is not after round {last_round}, which this identity has joined"
        )


def check_entry(standing: Sequence[Entry], live: bool, entry: Entry) -> bool:
    """Whether `entry` is new and may be appended to `standing` (C32).

    False means that the same answer stands there already.
    """
    if entry.act < len(standing):
        old = standing[entry.act]
        if (old.request, old.message) == (entry.request, entry.message):
            return False
        raise StaleState(
            f"act {Act(entry.act).name} was done differently before: this state is old or a copy"
        )
    if not live or entry.act > len(standing):
        raise StaleState(
            f"act {Act(entry.act).name} cannot be recorded: the round is not live or one is missing"
        )
    return True


def check_leaves(
    standing: Sequence[bytes], live: bool, first: int, hashes: Sequence[bytes]
) -> list[bytes]:
    """The hashes that are new; old ones must be the same, new ones of a live round (C34)."""
    if first > len(standing):
        raise StaleState("leaf hashes before these are missing")
    old = list(standing[first : first + len(hashes)])
    if old != list(hashes[: len(old)]):
        raise StaleState(
            "an upload chunk differs from the one recorded: the input, the rounding or the masks "
            "changed since; the round must be abandoned"
        )
    fresh = list(hashes[len(old) :])
    if fresh and not live:
        raise StaleState("the round is not live: nothing more of its upload may leave")
    return fresh


@dataclass(slots=True)
class _Round:
    entries: list[Entry] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Account:
    last_round: int = 0
    live: bytes = b""
    rounds: dict[bytes, _Round] = field(default_factory=dict)
    spent: dict[bytes, bytes] = field(default_factory=dict)


class MemoryLedger:
    """A ledger for tests and simulations; it does not survive its process."""

    def __init__(self) -> None:
        self._accounts: dict[bytes, _Account] = {}

    def _account(self, identity: bytes) -> _Account:
        return self._accounts.setdefault(identity, _Account())

    def _round(self, identity: bytes, context: bytes) -> _Round:
        return self._account(identity).rounds.setdefault(context, _Round())

    def last_round(self, identity: bytes) -> int:
        """See `Ledger`."""
        return self._account(identity).last_round

    def join(self, identity: bytes, context: bytes, round_number: int) -> None:
        """See `Ledger`."""
        account = self._account(identity)
        check_join(account.last_round, round_number)
        account.last_round, account.live = round_number, context

    def commit(self, identity: bytes, context: bytes, entry: Entry) -> None:
        """See `Ledger`."""
        standing = self._round(identity, context).entries
        if check_entry(standing, self._account(identity).live == context, entry):
            standing.append(entry)

    def entries(self, identity: bytes, context: bytes) -> tuple[Entry, ...]:
        """See `Ledger`."""
        return tuple(self._round(identity, context).entries)

    def spend(self, identity: bytes, input_digest: bytes, context: bytes) -> None:
        """See `Ledger`."""
        check_spent(self._account(identity).spent.setdefault(input_digest, context), context)

    def record_leaves(
        self, identity: bytes, context: bytes, first: int, hashes: Sequence[bytes]
    ) -> None:
        """See `Ledger`."""
        standing = self._round(identity, context).leaves
        live = self._account(identity).live == context
        standing += check_leaves(standing, live, first, hashes)

    def leaves(self, identity: bytes, context: bytes) -> tuple[bytes, ...]:
        """See `Ledger`."""
        return tuple(self._round(identity, context).leaves)

    def close(self, identity: bytes, context: bytes) -> None:
        """See `Ledger`."""
        account = self._account(identity)
        if account.live == context:
            account.live = b""
        entries = self._round(identity, context).entries
        entries[:] = [replace(entry, state=b"") for entry in entries]


def check_spent(spent_under: bytes, context: bytes) -> None:
    """An input leaves in one round only (C31)."""
    if spent_under != context:
        raise SpentInput(
            "this input has left in an earlier round, which counts as opened; "
            "train a fresh delta and submit that"
        )
