"""What a tenant remembers in its own SQLite: rounds, model versions with evaluations and decisions,
alarms, an audit log.

The ledger is a database of its own (secagg/sqlite_ledger.py), since it alone decides what may be
said. Losing this one loses convenience and history, never a guarantee. No secret stands here; the
figures are about private text and stay here.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secagg.errors import ConfigError
from secagg.plan import RoundPlan
from secagg_wire.manifest import Origin

_VERSION = 4
_SCHEMA = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE round (
    context BLOB PRIMARY KEY, number TEXT NOT NULL, plan BLOB NOT NULL,
    adapter_version INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    begun_at REAL NOT NULL, ended_at REAL, sum_root BLOB, transcript BLOB
);
CREATE TABLE version (
    digest BLOB PRIMARY KEY, number INTEGER NOT NULL, fetched_at REAL NOT NULL,
    checked TEXT NOT NULL
);
CREATE TABLE evaluation (
    digest BLOB NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (digest, name)
);
CREATE TABLE draw (
    context BLOB NOT NULL, sum_root BLOB NOT NULL, leaves TEXT NOT NULL,
    PRIMARY KEY (context, sum_root)
);
CREATE TABLE admission (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, digest BLOB NOT NULL, passed INTEGER NOT NULL,
    report TEXT NOT NULL
);
CREATE TABLE decision (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, digest BLOB NOT NULL, verdict TEXT NOT NULL,
    decided_by TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE alarm (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, direction TEXT NOT NULL, since INTEGER NOT NULL
);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, event TEXT NOT NULL, detail TEXT NOT NULL
);
"""
# Versions of a tenant that could not recompute yet stay accepted.
_FROM_1 = """
ALTER TABLE round ADD COLUMN sum_root BLOB;
ALTER TABLE round ADD COLUMN transcript BLOB;
ALTER TABLE version ADD COLUMN checked TEXT NOT NULL DEFAULT 'before';
CREATE TABLE draw (
    context BLOB NOT NULL, sum_root BLOB NOT NULL, leaves TEXT NOT NULL,
    PRIMARY KEY (context, sum_root)
);
"""
_FROM_2 = """
CREATE TABLE admission (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, digest BLOB NOT NULL, passed INTEGER NOT NULL,
    report TEXT NOT NULL
);
"""
_FROM_3 = """
CREATE TABLE IF NOT EXISTS decision (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, digest BLOB NOT NULL, verdict TEXT NOT NULL,
    decided_by TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS alarm (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, direction TEXT NOT NULL, since INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class OfferedRound:
    """A round that this tenant was asked to take part in."""

    plan: RoundPlan
    adapter_version: int


class TenantStore:
    """One SQLite file. Calls are short and come from one thread."""

    def __init__(self, path: Path) -> None:
        self._database = _open(path)

    def close(self) -> None:
        """Give the file back."""
        self._database.close()

    @property
    def event_cursor(self) -> int:
        """The last event of the coordinator that was dealt with."""
        row = self._one("SELECT value FROM setting WHERE name = 'event_cursor'")
        return 0 if row is None else int(row[0])

    @event_cursor.setter
    def event_cursor(self, event_id: int) -> None:
        self._write("INSERT OR REPLACE INTO setting VALUES ('event_cursor', ?)", str(event_id))

    def begin_round(self, offered: OfferedRound) -> None:
        """Remember an offer; the same again changes nothing."""
        plan = offered.plan
        self._write(
            "INSERT OR IGNORE INTO round (context, number, plan, adapter_version, state, begun_at) "
            "VALUES (?, ?, ?, ?, 'offered', ?)",
            plan.context, str(plan.round_number), plan.encode(), offered.adapter_version,
            time.time(),
        )  # fmt: skip

    def set_round(self, context: bytes, state: str, reason: str = "") -> None:
        """`joined`, `answered`, `opened`, `aborted`, `refused` or `given up`, with the reason."""
        ended = None if state in ("joined", "answered") else time.time()
        self._write(
            "UPDATE round SET state = ?, reason = ?, ended_at = ? WHERE context = ?",
            state, reason[:400], ended, context,
        )  # fmt: skip

    def round(self, context: bytes) -> OfferedRound | None:
        """A round by its context."""
        row = self._one("SELECT plan, adapter_version FROM round WHERE context = ?", context)
        return None if row is None else OfferedRound(RoundPlan.decode(row[0]), row[1])

    def round_state(self, context: bytes) -> str | None:
        """The state last set, None for a round never offered."""
        row = self._one("SELECT state FROM round WHERE context = ?", context)
        return None if row is None else str(row[0])

    def announce_sum(self, claim: Origin) -> None:
        """What the coordinator says that a round has opened; the first word stands."""
        self._write(
            "UPDATE round SET sum_root = ?, transcript = ? WHERE context = ? AND sum_root IS NULL",
            claim.sum_root, claim.transcript_sha256, claim.context,
        )  # fmt: skip

    def announced(self, context: bytes) -> Origin | None:
        """What was announced of a round, None where nothing was heard."""
        row = self._one(
            "SELECT sum_root, transcript FROM round WHERE context = ? AND sum_root IS NOT NULL",
            context,
        )
        return None if row is None else Origin(context, *row)

    def announced_in(self, number: int) -> Origin | None:
        """The same by round number."""
        row = self._one(
            "SELECT context, sum_root, transcript FROM round "
            "WHERE number = ? AND sum_root IS NOT NULL ORDER BY begun_at DESC",
            str(number),
        )
        return None if row is None else Origin(*row)

    def newest_opened(self) -> int:
        """The highest number of a round with a model that was opened as far as is known; or 0."""
        rows = self._database.execute(
            "SELECT number FROM round WHERE adapter_version > 0 AND state IN ('answered', 'opened')"
        )
        return max((int(number) for (number,) in rows), default=0)

    def rounds_with_model(self) -> list[bytes]:
        """Contexts of all rounds that trained a model, newest first."""
        rows = self._database.execute(
            "SELECT context FROM round WHERE adapter_version > 0 ORDER BY begun_at DESC"
        )
        return [context for (context,) in rows]

    def drawn(self, claim: Origin) -> tuple[int, ...]:
        """The leaves that were drawn to recompute a claimed sum, in this process or before."""
        row = self._one(
            "SELECT leaves FROM draw WHERE context = ? AND sum_root = ?",
            claim.context, claim.sum_root,
        )  # fmt: skip
        return () if row is None else tuple(json.loads(row[0]))

    def draw(self, claim: Origin, leaves: Sequence[int]) -> None:
        """Remember a draw, before anybody hears of it."""
        self._write(
            "INSERT OR REPLACE INTO draw VALUES (?, ?, ?)",
            claim.context, claim.sum_root, json.dumps(list(leaves)),
        )  # fmt: skip

    def add_version(self, digest: bytes, number: int, checked: str) -> None:
        """A version was accepted: `checked` says by what; its files' hashes are right."""
        self._write(
            "INSERT INTO version VALUES (?, ?, ?, ?) "
            "ON CONFLICT (digest) DO UPDATE SET checked = excluded.checked",
            digest, number, time.time(), checked,
        )  # fmt: skip

    def checked(self, digest: bytes) -> str | None:
        """By what a version was accepted, None for one that was not."""
        row = self._one("SELECT checked FROM version WHERE digest = ?", digest)
        return None if row is None else str(row[0])

    def add_evaluation(self, digest: bytes, figures: Mapping[str, float]) -> None:
        """Figures on this tenant's own held-out text."""
        for name, value in figures.items():
            self._write(
                "INSERT OR REPLACE INTO evaluation VALUES (?, ?, ?, ?)",
                digest, name, value, time.time(),
            )  # fmt: skip

    def evaluated(self, digest: bytes) -> bool:
        """Whether there are figures for this version."""
        return self._one("SELECT 1 FROM evaluation WHERE digest = ?", digest) is not None

    def digest_of(self, number: int) -> bytes | None:
        """The accepted version with this number, the one fetched last where there are several."""
        row = self._one(
            "SELECT digest FROM version WHERE number = ? ORDER BY fetched_at DESC", number
        )
        return None if row is None else bytes(row[0])

    def number_of(self, digest: bytes) -> int:
        """An accepted version's number, 0 for one that was not accepted."""
        row = self._one("SELECT number FROM version WHERE digest = ?", digest)
        return 0 if row is None else int(row[0])

    def add_decision(self, digest: bytes, verdict: str, decided_by: str, reason: str) -> None:
        """`approved`, `rejected`, `undecided` or `rolled back`; the last word on a version counts.

        The reason has figures on private data: it stands here and nowhere else.
        """
        with self._together():
            self._write(
                "INSERT INTO decision (at, digest, verdict, decided_by, reason) "
                "VALUES (?, ?, ?, ?, ?)",
                time.time(), digest, verdict, decided_by, reason,
            )  # fmt: skip
            self.audit(
                "version_decided", digest=digest.hex(), verdict=verdict, decided_by=decided_by
            )

    def decision(self, digest: bytes) -> str | None:
        """The last word on a version."""
        row = self._one(
            "SELECT verdict FROM decision WHERE digest = ? ORDER BY id DESC LIMIT 1", digest
        )
        return None if row is None else str(row[0])

    def approved(self) -> bytes | None:
        """The version whose approval is the latest of those that still stand."""
        row = self._one(
            "SELECT digest FROM decision WHERE verdict = 'approved' "
            "AND id IN (SELECT max(id) FROM decision GROUP BY digest) ORDER BY id DESC LIMIT 1"
        )
        return None if row is None else bytes(row[0])

    def add_alarm(self, direction: str, since: int) -> None:
        """The losses of new data changed, about `since` windows before."""
        self._write(
            "INSERT INTO alarm (at, direction, since) VALUES (?, ?, ?)",
            time.time(), direction, since,
        )  # fmt: skip

    def add_admission(self, digest: bytes, passed: bool, report: Mapping[str, object]) -> None:
        """An emulator package was examined: its manifest's digest, and the whole report."""
        self._write(
            "INSERT INTO admission (at, digest, passed, report) VALUES (?, ?, ?, ?)",
            time.time(), digest, passed, json.dumps(report, sort_keys=True),
        )  # fmt: skip
        self.audit("emulator_admitted" if passed else "emulator_refused", digest=digest.hex())

    def last_admission(self) -> dict[str, Any] | None:
        """The report of the last emulator that was examined, or None."""
        row = self._one("SELECT report FROM admission ORDER BY id DESC LIMIT 1")
        return None if row is None else dict(json.loads(row[0]))

    def audit(self, event: str, **detail: object) -> None:
        """Append to the audit log."""
        self._write(
            "INSERT INTO audit (at, event, detail) VALUES (?, ?, ?)",
            time.time(), event, json.dumps(detail, sort_keys=True),
        )  # fmt: skip

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Both or nothing: on a full disk a decision without its audit row would be made twice."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _one(self, statement: str, *values: object) -> Any:
        return self._database.execute(statement, values).fetchone()

    def _write(self, statement: str, *values: object) -> None:
        self._database.execute(statement, values)


def read_report(path: Path) -> dict[str, list[dict[str, object]]]:
    """Rounds, versions with their figures, and the audit log's end, for `secagg tenant status`.

    Raises:
        ConfigError: there is no such database.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist: this tenant has not joined yet")
    with closing(_open(path)) as database:
        return {name: list(_rows(database, query)) for name, query in _REPORT.items()}


_REPORT = {
    "rounds": "SELECT number, lower(hex(context)) AS context, state, reason, adapter_version, "
    "begun_at, ended_at, lower(hex(sum_root)) AS sum_root FROM round ORDER BY begun_at",
    "versions": "SELECT v.number, lower(hex(v.digest)) AS digest, v.fetched_at, v.checked, "
    "e.name, e.value "
    "FROM version v LEFT JOIN evaluation e ON e.digest = v.digest ORDER BY v.number, e.name",
    "admissions": "SELECT lower(hex(digest)) AS digest, at, passed, "
    "json_extract(report, '$.owner') AS owner FROM admission ORDER BY id",
    "decisions": "SELECT v.number, lower(hex(d.digest)) AS digest, d.at, d.verdict, d.decided_by, "
    "d.reason FROM decision d LEFT JOIN version v ON v.digest = d.digest ORDER BY d.id",
    "alarms": "SELECT at, direction, since FROM alarm ORDER BY id",
    "audit": "SELECT * FROM (SELECT * FROM audit ORDER BY id DESC LIMIT 200) ORDER BY id",
}


def _rows(database: sqlite3.Connection, query: str) -> Iterator[dict[str, object]]:
    cursor = database.execute(query)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


def _open(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, isolation_level=None, timeout=5)
        database.execute("PRAGMA journal_mode = WAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        for older, step in ((1, _FROM_1), (2, _FROM_2), (3, _FROM_3)):
            if version == older:
                version = older + 1
                database.executescript(
                    f"BEGIN EXCLUSIVE; {step} PRAGMA user_version = {version}; COMMIT"
                )
        if version == 0:
            database.executescript(
                f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT"
            )
    except sqlite3.Error as error:
        raise ConfigError(f"{path} cannot be used as this tenant's database: {error}") from None
    if version not in (0, _VERSION):
        raise ConfigError(f"{path} is of version {version}; this program writes {_VERSION}")
    return database
