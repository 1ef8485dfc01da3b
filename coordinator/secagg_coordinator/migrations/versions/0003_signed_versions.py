"""The owner's signature over a version's manifest; NULL in versions that were published before."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = {
    "owner": sa.String(length=63),
    "owner_public_key": sa.LargeBinary(length=32),
    "owner_signature": sa.LargeBinary(length=64),
}


def upgrade() -> None:
    """Bring the schema up."""
    with op.batch_alter_table("versions", schema=None) as batch_op:
        for name, kind in _COLUMNS.items():
            batch_op.add_column(sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    """Take it back."""
    with op.batch_alter_table("versions", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.drop_column(name)
