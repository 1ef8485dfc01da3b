"""What survives a restart: rounds, announcements, events, uploads' progress, model versions.

SQLAlchemy 2 Core over SQLite in WAL mode with full synchronisation (PostgreSQL later, by URL).
Everything that one message causes is written in one transaction and only then told to anybody, so
that no tenant hears what a restarted coordinator would not know. An announcement (U1, U2, U3) is
written once per round and another value in its place is refused: an honest restart must not
equivocate.

One process owns the data directory (`exclusive`). Writers take turns; readers do not wait.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, Engine, RowMapping, create_engine, delete, event, func, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import SQLAlchemyError

from secagg.errors import ConfigError, Step, UsageError
from secagg.messages import BODIES
from secagg_coordinator import schema
from secagg_coordinator.records import (
    EventRecord,
    ExclusionRecord,
    Opened,
    Outcome,
    RoundRecord,
    StepRecord,
    UploadRecord,
    VersionRecord,
)
from secagg_wire.signed_manifest import ManifestSignature

EVENT_PAGE = 64
NO_ROUND = b""
_MIGRATIONS = Path(__file__).parent / "migrations"


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the data directory for this process.

    Raises:
        ConfigError: it cannot be written, or another coordinator has it.
    """
    handle = _open_lock(directory)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(
            f"another coordinator runs on {directory}; stop it or give this one its own data"
        ) from None
    finally:
        handle.close()


def _open_lock(directory: Path) -> IO[bytes]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return (directory / "coordinator.lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"cannot write the data directory {directory}: {error.strerror}"
        ) from None


class Store:
    """The database. Every method is one transaction unless it is given one by `writing`."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._turn = threading.Lock()

    @classmethod
    def open(cls, directory: Path) -> Store:
        """The database in `directory`, brought up to this version's schema.

        Raises:
            ConfigError: it cannot be opened or migrated.
        """
        store = cls(f"sqlite:///{directory / 'coordinator.sqlite'}")
        try:
            store.migrate()
        except SQLAlchemyError as error:
            raise ConfigError(f"cannot open the database in {directory}: {_cause(error)}") from None
        return store

    def migrate(self) -> None:
        """Run the migrations that are missing."""
        config = AlembicConfig()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """One transaction: durable as a whole when the block ends, or not at all."""
        with self._turn, self._engine.begin() as connection:
            yield Transaction(connection)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    def events_after(self, tenant: str, after: int) -> tuple[EventRecord, ...]:
        """The tenant's next events, at most `EVENT_PAGE` of them."""
        query = (
            select(schema.events.c.id, schema.payloads.c.data)
            .join(schema.payloads, schema.events.c.payload == schema.payloads.c.id)
            .where(schema.events.c.tenant == tenant, schema.events.c.id > after)
            .order_by(schema.events.c.id)
            .limit(EVENT_PAGE)
        )
        with self._reading() as connection:
            return tuple(EventRecord(number, data) for number, data in connection.execute(query))

    def last_event_id(self, tenant: str) -> int:
        """The tenant's newest event, 0 for none."""
        query = select(func.max(schema.events.c.id)).where(schema.events.c.tenant == tenant)
        with self._reading() as connection:
            return connection.execute(query).scalar() or 0

    def highest_round_number(self) -> int:
        """0 where no round was ever opened."""
        with self._reading() as connection:
            return connection.execute(select(func.max(schema.rounds.c.round_number))).scalar() or 0

    def round(self, context: bytes) -> RoundRecord | None:
        """One round, with all that belongs to it."""
        with self._reading() as connection:
            row = (
                connection.execute(select(schema.rounds).where(schema.rounds.c.context == context))
                .mappings()
                .first()
            )
            return None if row is None else _round(connection, row)

    def rounds(self, limit: int = 0) -> tuple[RoundRecord, ...]:
        """All rounds, or the newest `limit`, newest first."""
        query = select(schema.rounds).order_by(
            schema.rounds.c.opened_at_ms.desc(), schema.rounds.c.round_number.desc()
        )
        with self._reading() as connection:
            rows = connection.execute(query.limit(limit) if limit else query).mappings().all()
            return tuple(_round(connection, row) for row in rows)

    def running(self) -> tuple[bytes, ...]:
        """Contexts of the rounds that have not ended."""
        query = select(schema.rounds.c.context).where(schema.rounds.c.outcome == "running")
        with self._reading() as connection:
            return tuple(connection.execute(query).scalars())

    def versions(self) -> tuple[VersionRecord, ...]:
        """All model versions, oldest first."""
        query = select(schema.versions).order_by(schema.versions.c.version)
        with self._reading() as connection:
            return tuple(_version(row) for row in connection.execute(query).mappings())

    def version(self, number: int) -> VersionRecord | None:
        """One model version; the newest for 0."""
        query = select(schema.versions).order_by(schema.versions.c.version.desc()).limit(1)
        if number:
            query = query.where(schema.versions.c.version == number)
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
            return None if row is None else _version(row)

    def version_of(self, manifest_sha256: bytes) -> VersionRecord | None:
        """The version with this manifest."""
        query = select(schema.versions).where(schema.versions.c.manifest_sha256 == manifest_sha256)
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
            return None if row is None else _version(row)

    def disputes(self) -> dict[str, int]:
        """How often each tenant was party to a dispute over shares, in all rounds so far."""
        with self._reading() as connection:
            rows = connection.execute(select(schema.disputes)).mappings()
            return {row["tenant"]: row["times"] for row in rows}


class Transaction:
    """Writes that become durable together; made by `Store.writing`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin_round(
        self, context: bytes, *, plan: bytes, round_number: int, adapter_version: int
    ) -> None:
        """A new round."""
        self._insert(
            schema.rounds, context=context, plan=plan, round_number=round_number,
            adapter_version=adapter_version, outcome="running", opened_at_ms=now_ms(), survivors=[],
        )  # fmt: skip

    def announce(self, context: bytes, name: str, data: bytes) -> None:
        """Fix U1, U2 or U3 of a round.

        Raises:
            UsageError: another value stands there: this coordinator runs on an old state.
        """
        table = schema.announcements
        where = (table.c.context == context, table.c.name == name)
        standing = self._connection.execute(select(table.c.data).where(*where)).scalar()
        if standing is None:
            self._insert(table, context=context, name=name, data=data)
        elif standing != data:
            raise UsageError(f"{name} of this round was announced with another value before")

    def tell(self, context: bytes, payload: bytes, recipients: Iterable[str]) -> None:
        """An event for each recipient; the payload is kept once."""
        number = self._insert(schema.payloads, context=context, data=payload)
        rows = [{"tenant": tenant, "context": context, "payload": number} for tenant in recipients]
        if rows:
            self._connection.execute(schema.events.insert(), rows)

    def record_submission(self, context: bytes, tenant: str, label: str, digest: bytes) -> None:
        """An accepted message."""
        self._insert(schema.submissions, context=context, tenant=tenant, label=label, digest=digest)

    def record_conflict(
        self, context: bytes, tenant: str, label: str, message: bytes, digests: tuple[bytes, bytes]
    ) -> None:
        """A refused second message; `digests` are those of the refused and the accepted one.

        One proof is enough: later ones in the same place are not kept, so that nobody can fill
        the disk with them.
        """
        table = schema.conflicts
        place = (table.c.context == context, table.c.tenant == tenant, table.c.label == label)
        if self._connection.execute(select(table.c.id).where(*place)).first() is not None:
            return
        self._insert(
            table, context=context, tenant=tenant, label=label, message=message,
            digest=digests[0], accepted_digest=digests[1],
        )  # fmt: skip

    def record_upload(self, context: bytes, upload: UploadRecord) -> None:
        """An upload's progress."""
        values = {"committed_size": upload.committed_size, "complete": upload.complete}
        self._connection.execute(
            sqlite_insert(schema.uploads)
            .values(context=context, tenant=upload.tenant, **values)
            .on_conflict_do_update(index_elements=["context", "tenant"], set_=values)
        )

    def record_step(self, context: bytes, record: StepRecord) -> None:
        """A step that has ended."""
        self._insert(
            schema.steps, context=context, step=int(record.step), seconds=record.seconds,
            bytes_received=record.bytes_received, bytes_sent=record.bytes_sent,
        )  # fmt: skip

    def advance(self, context: bytes, step: Step) -> None:
        """The round has come to `step`."""
        self._update_round(context, step=int(step))

    def record_exclusion(self, context: bytes, exclusion: ExclusionRecord) -> None:
        """A participant left; the first reason stands."""
        self._connection.execute(
            sqlite_insert(schema.exclusions)
            .values(
                context=context, tenant=exclusion.tenant, step=int(exclusion.step),
                reason=exclusion.reason,
            )
            .on_conflict_do_nothing()
        )  # fmt: skip

    def finish_round(self, context: bytes, opened: Opened, transcript_sha256: bytes) -> None:
        """The sum is open, and on disk."""
        self._update_round(
            context, outcome="opened", ended_at_ms=now_ms(), survivors=list(opened.survivors),
            total_weight=opened.total_weight, length=opened.length,
            level_sum_sha256=opened.level_sum_sha256, sum_root=opened.sum_root,
            transcript_sha256=transcript_sha256,
        )  # fmt: skip
        self._forget_events(context)

    def abort_round(self, context: bytes, reason: str, transcript_sha256: bytes = b"") -> None:
        """The round is over and nothing is open."""
        self._update_round(
            context, outcome="aborted", ended_at_ms=now_ms(), reason=reason,
            transcript_sha256=transcript_sha256,
        )  # fmt: skip
        self._forget_events(context)

    def add_version(
        self, manifest: bytes, manifest_sha256: bytes, total_size: int,
        signature: ManifestSignature | None = None,
    ) -> int:  # fmt: skip
        """A model version whose files are in place; returns its number."""
        return self._insert(
            schema.versions, manifest=manifest, manifest_sha256=manifest_sha256,
            total_size=total_size, published_at_ms=now_ms(), **_signature_values(signature),
        )  # fmt: skip

    def sign_version(self, version: int, signature: ManifestSignature) -> None:
        """The owner's signature over a version that is there already; the newest stands."""
        self._connection.execute(
            schema.versions.update()
            .where(schema.versions.c.version == version)
            .values(**_signature_values(signature))
        )

    def record_disputes(self, disputes: Mapping[str, int]) -> None:
        """How often each tenant has been party to a dispute by now."""
        for tenant, times in disputes.items():
            self._connection.execute(
                sqlite_insert(schema.disputes)
                .values(tenant=tenant, times=times)
                .on_conflict_do_update(index_elements=["tenant"], set_={"times": times})
            )

    def _forget_events(self, context: bytes) -> None:
        # A tenant that comes back needs to hear how the round ended, not how it went.
        for table in (schema.events, schema.payloads):
            self._connection.execute(delete(table).where(table.c.context == context))

    def _update_round(self, context: bytes, **values: object) -> None:
        self._connection.execute(
            schema.rounds.update().where(schema.rounds.c.context == context).values(**values)
        )

    def _insert(self, table: Any, **values: object) -> int:
        key = self._connection.execute(table.insert().values(**values)).inserted_primary_key
        return cast(int, key[0]) if key is not None else 0


def _engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": 30.0})

    @event.listens_for(engine, "connect")
    def _durable(connection: Any, _record: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or type(error).__name__)


def _round(connection: Connection, row: RowMapping) -> RoundRecord:
    def rows(table: Any, order: str) -> Sequence[RowMapping]:
        query = select(table).where(table.c.context == row["context"]).order_by(table.c[order])
        return connection.execute(query).mappings().all()

    return RoundRecord(
        context=row["context"],
        round_number=row["round_number"],
        adapter_version=row["adapter_version"],
        plan=row["plan"],
        outcome=cast(Outcome, row["outcome"]),
        reason=row["reason"],
        step=Step(row["step"]),
        opened_at_ms=row["opened_at_ms"],
        ended_at_ms=row["ended_at_ms"],
        opened=_opened(row),
        transcript_sha256=row["transcript_sha256"],
        steps=tuple(_step(r) for r in rows(schema.steps, "step")),
        exclusions=tuple(
            ExclusionRecord(r["tenant"], Step(r["step"]), r["reason"])
            for r in rows(schema.exclusions, "tenant")
        ),
        uploads=tuple(
            UploadRecord(r["tenant"], r["committed_size"], r["complete"])
            for r in rows(schema.uploads, "tenant")
        ),
        answered=_answered(rows(schema.submissions, "tenant")),
    )


def _opened(row: RowMapping) -> Opened:
    return Opened(
        tuple(row["survivors"]), row["total_weight"], row["length"], row["level_sum_sha256"],
        row["sum_root"] or b"",
    )  # fmt: skip


def _step(row: RowMapping) -> StepRecord:
    return StepRecord(Step(row["step"]), row["seconds"], row["bytes_received"], row["bytes_sent"])


def _answered(submissions: Sequence[RowMapping]) -> dict[Step, tuple[str, ...]]:
    answered: dict[Step, tuple[str, ...]] = {}
    for row in submissions:
        if row["label"] != "upload_header":  # the commitment answers step 3
            step = BODIES[row["label"]].STEP
            answered[step] = (*answered.get(step, ()), row["tenant"])
    return answered


def _version(row: RowMapping) -> VersionRecord:
    return VersionRecord(
        row["version"], row["manifest"], row["manifest_sha256"], row["total_size"],
        row["published_at_ms"], _signature(row),
    )  # fmt: skip


def _signature_values(signature: ManifestSignature | None) -> dict[str, object]:
    if signature is None:
        return {}
    return {
        "owner": signature.owner,
        "owner_public_key": signature.public_key,
        "owner_signature": signature.signature,
    }


def _signature(row: RowMapping) -> ManifestSignature | None:
    if row["owner_signature"] is None:
        return None
    return ManifestSignature(row["owner"], row["owner_public_key"], row["owner_signature"])
