"""The ledger of a node: SQLite, one process, durable before it returns; and the keys beside it.

`SqliteLedger` implements `secagg.ledger.Ledger` (protocol.md, "Ledger"; checks C30 to C34). Every
change is one `BEGIN IMMEDIATE` transaction that reads, checks and writes, in WAL mode with
`synchronous = FULL`: what was returned survives SIGKILL and power loss as far as the disk tells
the truth. A lock file beside the database keeps a second process out.

The database holds sealed states only. The key that seals a round lives in a file of its own
(`RoundKeyFiles`), which is overwritten and unlinked when the round ends and must never reach a
backup: a copy of the database then opens nothing. Overwriting is best effort on copy-on-write
file systems and flash.

This module is the one place of the core that opens files; `import secagg` does not load it.
Connections may pass between threads, but only one thread at a time may call.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from secagg.errors import ConfigError, UsageError
from secagg.ledger import Entry, check_entry, check_join, check_leaves, check_spent
from secagg.secret import Randomness, SealKey

_POSIX = os.name == "posix"
_BUSY_S = 5
_VERSION = 1
_SCHEMA = """
CREATE TABLE account (
    identity BLOB PRIMARY KEY, last_round BLOB NOT NULL, live BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE entry (
    identity BLOB, context BLOB, act INTEGER, request BLOB NOT NULL, message BLOB NOT NULL,
    state BLOB NOT NULL, PRIMARY KEY (identity, context, act)
);
CREATE TABLE leaf (
    identity BLOB, context BLOB, place INTEGER, hash BLOB NOT NULL,
    PRIMARY KEY (identity, context, place)
) WITHOUT ROWID;
CREATE TABLE spent (
    identity BLOB, input BLOB, context BLOB NOT NULL, PRIMARY KEY (identity, input)
) WITHOUT ROWID;
"""


class LedgerInUse(UsageError):
    """Another process, or another object of this one, has the ledger open; it may be free soon."""


class SqliteLedger:
    """A durable ledger in one SQLite file, for the one process that has it open.

    Raises:
        LedgerInUse: another process, or another object of this one, has it open.
        ConfigError: the file cannot be used as a ledger.
    """

    def __init__(self, path: Path) -> None:
        self._lock = _ProcessLock(path.with_name(path.name + ".lock"))
        try:
            self._database = _open(path)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_file()

    def close_file(self) -> None:
        """Give the file back; the ledger can be opened again."""
        self._database.close()
        self._lock.release()

    def last_round(self, identity: bytes) -> int:
        """See `Ledger`."""
        return self._account(identity)[0]

    def join(self, identity: bytes, context: bytes, round_number: int) -> None:
        """See `Ledger`."""
        with self._changing():
            check_join(self.last_round(identity), round_number)
            self._database.execute(
                "INSERT OR REPLACE INTO account VALUES (?, ?, ?)",
                (identity, round_number.to_bytes(8), context),
            )

    def live(self, identity: bytes) -> bytes:
        """The context of the live round, empty for none: where a restarted host looks first."""
        return self._account(identity)[1]

    def commit(self, identity: bytes, context: bytes, entry: Entry) -> None:
        """See `Ledger`."""
        with self._changing():
            standing = self.entries(identity, context)
            if check_entry(standing, self.live(identity) == context, entry):
                self._database.execute(
                    "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)",
                    (identity, context, entry.act, entry.request, entry.message, entry.state),
                )

    def entries(self, identity: bytes, context: bytes) -> tuple[Entry, ...]:
        """See `Ledger`."""
        rows = self._database.execute(
            "SELECT act, request, message, state FROM entry "
            "WHERE identity = ? AND context = ? ORDER BY act",
            (identity, context),
        )
        return tuple(Entry(*row) for row in rows)

    def spend(self, identity: bytes, input_digest: bytes, context: bytes) -> None:
        """See `Ledger`."""
        with self._changing():
            row = self._database.execute(
                "SELECT context FROM spent WHERE identity = ? AND input = ?",
                (identity, input_digest),
            ).fetchone()
            if row is not None:
                check_spent(row[0], context)
                return
            self._database.execute(
                "INSERT INTO spent VALUES (?, ?, ?)", (identity, input_digest, context)
            )

    def record_leaves(
        self, identity: bytes, context: bytes, first: int, hashes: Sequence[bytes]
    ) -> None:
        """See `Ledger`."""
        with self._changing():
            standing = self.leaves(identity, context)
            fresh = check_leaves(standing, self.live(identity) == context, first, hashes)
            self._database.executemany(
                "INSERT INTO leaf VALUES (?, ?, ?, ?)",
                [
                    (identity, context, place, leaf)
                    for place, leaf in enumerate(fresh, len(standing))
                ],
            )

    def leaves(self, identity: bytes, context: bytes) -> tuple[bytes, ...]:
        """See `Ledger`."""
        rows = self._database.execute(
            "SELECT hash FROM leaf WHERE identity = ? AND context = ? ORDER BY place",
            (identity, context),
        )
        return tuple(row[0] for row in rows)

    def close(self, identity: bytes, context: bytes) -> None:
        """See `Ledger`."""
        with self._changing():
            self._database.execute(
                "UPDATE account SET live = x'' WHERE identity = ? AND live = ?", (identity, context)
            )
            self._database.execute(
                "UPDATE entry SET state = x'' WHERE identity = ? AND context = ?",
                (identity, context),
            )
        # Erased states must not live on in the write-ahead log.
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _account(self, identity: bytes) -> tuple[int, bytes]:
        row = self._database.execute(
            "SELECT last_round, live FROM account WHERE identity = ?", (identity,)
        ).fetchone()
        return (0, b"") if row is None else (int.from_bytes(row[0]), row[1])

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One transaction: durable when it ends, gone without a trace when it raises."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


class RoundKeyFiles:
    """One random seal key for each round, each in a file of its own (mode 0600)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        # Backup tools that follow the Cache Directory Tagging Specification pass this folder by.
        tag = directory / "CACHEDIR.TAG"
        tag.write_bytes(
            b"Signature: 8a477f597d28d172789f06886806bc55\n# Keys that no backup may hold.\n"
        )

    def create(self, context: bytes, randomness: Randomness = os.urandom) -> SealKey:
        """A fresh key for this round.

        Raises:
            UsageError: the round has one already.
        """
        raw = randomness(SealKey.LENGTH or 32)
        try:
            descriptor = os.open(self._path(context), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise UsageError(
                "this round has a key already; load it, or destroy it and leave the round"
            ) from None
        _write_through(descriptor, raw)
        self._sync()
        return SealKey(raw)

    def load(self, context: bytes) -> SealKey | None:
        """The round's key; None where it is gone (then its states are too)."""
        try:
            raw = self._path(context).read_bytes()
        except FileNotFoundError:
            return None
        return SealKey(raw) if len(raw) == SealKey.LENGTH else None

    def destroy(self, context: bytes) -> None:
        """Overwrite and unlink the round's key; nothing happens when it is gone already."""
        self._destroy(self._path(context))

    def destroy_all(self, keep: bytes = b"") -> None:
        """Destroy every key but that of the round `keep`."""
        for path in self._directory.glob("*.key"):
            if path != self._path(keep):
                self._destroy(path)

    def _destroy(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            size = max(path.stat().st_size, SealKey.LENGTH or 32)
            _write_through(os.open(path, os.O_WRONLY), os.urandom(size))
            path.unlink()
            self._sync()

    def _path(self, context: bytes) -> Path:
        return self._directory / f"{context.hex()}.key"

    def _sync(self) -> None:
        if _POSIX:
            _synchronise_and_close(os.open(self._directory, os.O_RDONLY))


class _ProcessLock:
    """An advisory lock that ends with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        try:
            _exclusive_lock()(self._file)
        except OSError:
            holder = path.read_text("ascii", "replace")[:20].strip() or "unknown"
            os.close(self._file)
            raise LedgerInUse(
                f"the ledger {path.with_suffix('')} is in use by process {holder}; an identity "
                "runs in one process at a time: stop that one, or use another state directory"
            ) from None
        os.truncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._file)


def _exclusive_lock() -> Callable[[int], None]:
    try:
        import fcntl
    except ImportError:
        return lambda descriptor: None  # there SQLite's own exclusive mode keeps others out (_open)
    return lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot use {path.parent} for the ledger: {error.strerror}; give a directory that "
            "this user may write to"
        ) from None


def _open(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
        )
    except sqlite3.OperationalError as error:
        raise ConfigError(f"{path} cannot be used as a ledger: {error}") from None
    try:
        path.chmod(0o600)
        if not _POSIX:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA secure_delete = ON")
        _create(database, path)
    except sqlite3.DatabaseError as error:
        database.close()
        raise ConfigError(f"{path} cannot be used as a ledger: {error}") from None
    except ConfigError:
        database.close()
        raise
    return database


def _create(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.executescript(
            f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT"
        )
    elif version != _VERSION:
        raise ConfigError(
            f"{path} is a ledger of version {version} and this program writes {_VERSION}; "
            "run the program that wrote it"
        )


def _write_through(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
    _synchronise_and_close(descriptor)


def _synchronise_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
