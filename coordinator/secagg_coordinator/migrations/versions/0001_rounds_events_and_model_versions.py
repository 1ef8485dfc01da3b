"""Rounds, events and model versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema up."""
    op.create_table(
        "disputes",
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
    )
    op.create_table(
        "payloads",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "rounds",
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("round_number", sa.BigInteger(), nullable=False),
        sa.Column("adapter_version", sa.BigInteger(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("survivors", sa.JSON(), nullable=False),
        sa.Column("total_weight", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("transcript_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("level_sum_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("context"),
    )
    op.create_table(
        "versions",
        sa.Column(
            "version",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("manifest_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("total_size", sa.BigInteger(), nullable=False),
        sa.Column("published_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
        sa.UniqueConstraint("manifest_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "announcements",
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["context"],
            ["rounds.context"],
        ),
        sa.PrimaryKeyConstraint("context", "name"),
    )
    op.create_table(
        "conflicts",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("label", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("accepted_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["context"],
            ["rounds.context"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("payload", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["payload"],
            ["payloads.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index("events_of_tenant", ["tenant", "id"], unique=False)

    op.create_table(
        "exclusions",
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["context"],
            ["rounds.context"],
        ),
        sa.PrimaryKeyConstraint("context", "tenant"),
    )
    op.create_table(
        "steps",
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("bytes_received", sa.BigInteger(), nullable=False),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["context"],
            ["rounds.context"],
        ),
        sa.PrimaryKeyConstraint("context", "step"),
    )
    op.create_table(
        "submissions",
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("label", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["context"],
            ["rounds.context"],
        ),
        sa.PrimaryKeyConstraint("context", "tenant", "label"),
    )
    op.create_table(
        "uploads",
        sa.Column("context", sa.LargeBinary(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("committed_size", sa.BigInteger(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["context"],
            ["rounds.context"],
        ),
        sa.PrimaryKeyConstraint("context", "tenant"),
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_table("uploads")
    op.drop_table("submissions")
    op.drop_table("steps")
    op.drop_table("exclusions")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("events_of_tenant")

    op.drop_table("events")
    op.drop_table("conflicts")
    op.drop_table("announcements")
    op.drop_table("versions")
    op.drop_table("rounds")
    op.drop_table("payloads")
    op.drop_table("disputes")
