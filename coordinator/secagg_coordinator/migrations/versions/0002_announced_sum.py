"""The root of an opened sum, as it was announced; NULL in rounds that ended before."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema up."""
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.add_column(sa.Column("sum_root", sa.LargeBinary(length=32), nullable=True))


def downgrade() -> None:
    """Take it back."""
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.drop_column("sum_root")
