"""requests that add trials to a search, by their idempotency keys"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "addition",
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("begun_at", sa.DateTime(), nullable=False),
        sa.Column("numbers", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["search_id"], ["job.id"], name=op.f("fk_addition_search_id_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("search_id", "owner", "idempotency_key", name=op.f("pk_addition")),
    )


def downgrade() -> None:
    op.drop_table("addition")
