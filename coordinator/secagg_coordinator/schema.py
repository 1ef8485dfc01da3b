"""The coordinator's tables, as SQLAlchemy 2 Core knows them; `migrations/` makes them.

Digests and contexts are raw bytes, times are milliseconds since the Unix epoch, sets of names are
JSON arrays. What is of model size (uploads, sums, files of versions) lies on disk, not here.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()
# SQLite counts rows in INTEGER columns alone; other databases need the wider type.
_Id = BigInteger().with_variant(Integer, "sqlite")


def _context() -> Column[bytes]:
    return Column("context", LargeBinary(32), ForeignKey("rounds.context"), primary_key=True)


rounds = Table(
    "rounds", metadata,
    Column("context", LargeBinary(32), primary_key=True),
    Column("round_number", BigInteger, nullable=False),
    Column("adapter_version", BigInteger, nullable=False),
    Column("plan", LargeBinary, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("step", Integer, nullable=False, default=0),
    Column("opened_at_ms", BigInteger, nullable=False),
    Column("ended_at_ms", BigInteger, nullable=False, default=0),
    Column("survivors", JSON, nullable=False),
    Column("total_weight", BigInteger, nullable=False, default=0),
    Column("length", BigInteger, nullable=False, default=0),
    Column("transcript_sha256", LargeBinary(32), nullable=False, default=b""),
    Column("level_sum_sha256", LargeBinary(32), nullable=False, default=b""),
    Column("sum_root", LargeBinary(32)),
)  # fmt: skip

steps = Table(
    "steps", metadata,
    _context(),
    Column("step", Integer, primary_key=True),
    Column("seconds", Float, nullable=False),
    Column("bytes_received", BigInteger, nullable=False),
    Column("bytes_sent", BigInteger, nullable=False),
)  # fmt: skip

exclusions = Table(
    "exclusions", metadata,
    _context(),
    Column("tenant", String(255), primary_key=True),
    Column("step", Integer, nullable=False),
    Column("reason", Text, nullable=False),
)  # fmt: skip

# U1, U2, U3: written before they are first told to anybody, one each per round, never replaced.
announcements = Table(
    "announcements", metadata,
    _context(),
    Column("name", String(16), primary_key=True),
    Column("data", LargeBinary, nullable=False),
)  # fmt: skip

submissions = Table(
    "submissions", metadata,
    _context(),
    Column("tenant", String(255), primary_key=True),
    Column("label", String(32), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
)  # fmt: skip

# A second, different message in the same place: both digests, and the refused bytes.
conflicts = Table(
    "conflicts", metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("context", LargeBinary(32), ForeignKey("rounds.context"), nullable=False),
    Column("tenant", String(255), nullable=False),
    Column("label", String(32), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("accepted_digest", LargeBinary(32), nullable=False),
    Column("message", LargeBinary, nullable=False),
)  # fmt: skip

uploads = Table(
    "uploads", metadata,
    _context(),
    Column("tenant", String(255), primary_key=True),
    Column("committed_size", BigInteger, nullable=False),
    Column("complete", Boolean, nullable=False),
)  # fmt: skip

# Most messages go to the whole cohort: their bytes are kept once.
payloads = Table(
    "payloads", metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("context", LargeBinary(32), nullable=False),
    Column("data", LargeBinary, nullable=False),
)  # fmt: skip

events = Table(
    "events", metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("tenant", String(255), nullable=False),
    Column("context", LargeBinary(32), nullable=False),
    Column("payload", _Id, ForeignKey("payloads.id"), nullable=False),
    Index("events_of_tenant", "tenant", "id"),
    sqlite_autoincrement=True,
)  # fmt: skip

versions = Table(
    "versions", metadata,
    Column("version", _Id, primary_key=True, autoincrement=True),
    Column("manifest", LargeBinary, nullable=False),
    Column("manifest_sha256", LargeBinary(32), nullable=False, unique=True),
    Column("total_size", BigInteger, nullable=False),
    Column("published_at_ms", BigInteger, nullable=False),
    Column("owner", String(63)),
    Column("owner_public_key", LargeBinary(32)),
    Column("owner_signature", LargeBinary(64)),
    sqlite_autoincrement=True,
)  # fmt: skip

disputes = Table(
    "disputes", metadata,
    Column("tenant", String(255), primary_key=True),
    Column("times", Integer, nullable=False),
)  # fmt: skip
