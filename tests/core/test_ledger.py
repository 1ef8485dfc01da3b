"""The claims that every ledger must meet, and that they are claims: a bad ledger fails them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from secagg.ledger import Entry, Ledger, MemoryLedger
from secagg.sqlite_ledger import SqliteLedger
from secagg.testing.invariants import InvariantBroken
from secagg.testing.ledger_conformance import LEDGER_CLAIMS

Claim = Callable[[Ledger], None]


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger()
    else:
        with SqliteLedger(tmp_path / "ledger") as opened:
            yield opened


@pytest.mark.parametrize("claim", LEDGER_CLAIMS)
def test_our_ledgers_meet_every_claim(claim: Claim, ledger: Ledger) -> None:
    """C30, C31, C32, C34."""
    claim(ledger)


class ForgetsRounds(MemoryLedger):
    def last_round(self, identity: bytes) -> int:
        return 0


class TakesAnything(MemoryLedger):
    def commit(self, identity: bytes, context: bytes, entry: Entry) -> None:
        self._round(identity, context).entries.append(entry)


class SpendsTwice(MemoryLedger):
    def spend(self, identity: bytes, input_digest: bytes, context: bytes) -> None:
        pass


class OverwritesLeaves(MemoryLedger):
    def record_leaves(
        self, identity: bytes, context: bytes, first: int, hashes: Sequence[bytes]
    ) -> None:
        self._round(identity, context).leaves[first:] = list(hashes)


class NeverCloses(MemoryLedger):
    def close(self, identity: bytes, context: bytes) -> None:
        pass


class OneForAll(MemoryLedger):
    def _account(self, identity: bytes):  # type: ignore[no-untyped-def]
        return super()._account(b"everybody")


@pytest.mark.parametrize(
    "bad", [ForgetsRounds, TakesAnything, SpendsTwice, OverwritesLeaves, NeverCloses, OneForAll]
)
def test_a_bad_ledger_fails_a_claim(bad: type[MemoryLedger]) -> None:
    failed = []
    for claim in LEDGER_CLAIMS:
        try:
            claim(bad())
        except InvariantBroken:
            failed.append(claim.__name__)
    assert failed
