"""What a durable ledger adds to the claims of test_ledger.py: SIGKILL survived, others kept out."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secagg import sqlite_ledger
from secagg.errors import ConfigError, SpentInput, StaleState, UsageError
from secagg.ledger import Act, Entry, Ledger
from secagg.sqlite_ledger import RoundKeyFiles, SqliteLedger

ME = b"m" * 32
FIRST, SECOND = b"1" * 32, b"2" * 32


def entry(act: Act, message: bytes = b"message", state: bytes = b"sealed") -> Entry:
    return Entry(act, bytes(32), message, state)


def joined(ledger: Ledger, context: bytes = FIRST, round_number: int = 1) -> Ledger:
    ledger.join(ME, context, round_number)
    return ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    with SqliteLedger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_a_refused_change_leaves_no_trace(ledger: SqliteLedger) -> None:
    joined(ledger, round_number=3)
    with pytest.raises(StaleState):
        ledger.join(ME, SECOND, 3)
    ledger.commit(ME, FIRST, entry(Act.JOINED))


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


COMMIT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from secagg.ledger import Entry
from secagg.sqlite_ledger import SqliteLedger
ledger = SqliteLedger(Path(sys.argv[1]))
ledger.join(b"m" * 32, b"1" * 32, 1)
ledger.commit(b"m" * 32, b"1" * 32, Entry(0, bytes(32), b"said", b"sealed"))
ledger.spend(b"m" * 32, b"x" * 32, b"1" * 32)
ledger.record_leaves(b"m" * 32, b"1" * 32, 0, [b"l" * 32])
ledger._database.execute("BEGIN IMMEDIATE")
ledger._database.execute("DELETE FROM entry")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_was_returned_survives_sigkill_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert run(COMMIT_AND_DIE, path).returncode == -signal.SIGKILL
    with SqliteLedger(path) as ledger:
        assert ledger.live(ME) == FIRST
        assert ledger.entries(ME, FIRST) == (Entry(0, bytes(32), b"said", b"sealed"),)
        assert ledger.leaves(ME, FIRST) == (b"l" * 32,)
        with pytest.raises(SpentInput):
            ledger.spend(ME, b"x" * 32, SECOND)


OPEN = """
import sys
from pathlib import Path
from secagg.errors import UsageError
from secagg.sqlite_ledger import SqliteLedger
try:
    SqliteLedger(Path(sys.argv[1]))
except UsageError as error:
    print(error)
"""


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with SqliteLedger(path):
        assert f"in use by process {os.getpid()}" in run(OPEN, path).stdout
        with pytest.raises(UsageError, match="in use"):
            SqliteLedger(path)
    assert run(OPEN, path).stdout == ""


def test_everything_is_there_again_after_reopening(tmp_path: Path) -> None:
    with SqliteLedger(tmp_path / "ledger.sqlite") as ledger:
        joined(ledger).commit(ME, FIRST, entry(Act.JOINED))
    with SqliteLedger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.entries(ME, FIRST) == (entry(Act.JOINED),)
        assert ledger.last_round(ME) == 1


def test_erased_states_are_gone_from_the_files(ledger: SqliteLedger, tmp_path: Path) -> None:
    state = os.urandom(64)
    joined(ledger).commit(ME, FIRST, entry(Act.JOINED, state=state))
    ledger.close(ME, FIRST)
    assert not [path for path in tmp_path.iterdir() if state in path.read_bytes()]


def test_files_that_are_no_ledger_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        SqliteLedger(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="version 99"):
        SqliteLedger(path)


def test_a_round_key_is_private_comes_once_and_is_overwritten(tmp_path: Path) -> None:
    keys = RoundKeyFiles(tmp_path / "keys")
    key = keys.create(FIRST)
    path = tmp_path / "keys" / f"{FIRST.hex()}.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.load(FIRST) == key
    with pytest.raises(UsageError):
        keys.create(FIRST)
    other_name = tmp_path / "hard-link"
    os.link(path, other_name)
    raw = path.read_bytes()
    keys.destroy(FIRST)
    keys.destroy(FIRST)
    assert keys.load(FIRST) is None
    assert other_name.read_bytes() != raw


def test_keys_of_forgotten_rounds_are_destroyed(tmp_path: Path) -> None:
    keys = RoundKeyFiles(tmp_path / "keys")
    keys.create(FIRST), keys.create(SECOND)
    keys.destroy_all(keep=SECOND)
    assert keys.load(FIRST) is None
    assert keys.load(SECOND) is not None


def test_a_folder_in_the_ledgers_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").mkdir()
    with pytest.raises(ConfigError, match="cannot be used as a ledger: unable to open"):
        SqliteLedger(tmp_path / "ledger.sqlite")


def test_where_there_are_no_advisory_locks_sqlite_keeps_a_second_one_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: no fcntl, and no directory that can be synchronised."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(sqlite_ledger, "_POSIX", False)
    monkeypatch.setattr(sqlite_ledger, "_BUSY_S", 0)
    with SqliteLedger(tmp_path / "ledger.sqlite") as first:
        joined(first)
        with pytest.raises(ConfigError, match="cannot be used as a ledger: database is locked"):
            SqliteLedger(tmp_path / "ledger.sqlite")
    with SqliteLedger(tmp_path / "ledger.sqlite") as again:
        assert again.last_round(ME) == 1
    keys = RoundKeyFiles(tmp_path / "keys")
    keys.create(FIRST)
    keys.destroy(FIRST)
    assert not list((tmp_path / "keys").glob("*.key"))


def test_a_directory_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(ConfigError, match="for the ledger: Not a directory; give a directory"):
        SqliteLedger(tmp_path / "file" / "ledger.sqlite")
