"""retention rules of backbones, and what they need to know of versions"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retention_rule",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("expire_unused_days", sa.Integer(), nullable=False),
        sa.Column("keep_newest", sa.Integer(), nullable=False),
        sa.Column("set_by", sa.String(length=100), nullable=False),
        sa.Column("set_at", sa.DateTime(), nullable=False),
        sa.Column("decided_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["backbone.name"], name=op.f("fk_retention_rule_name"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_retention_rule")),
    )
    # Nobody knows who downloaded what before, so each version counts as used until now. So do those that a process of
    # the earlier release still adds, which does not know the column.
    upgraded_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    with op.batch_alter_table("backbone_version") as batch:
        batch.add_column(sa.Column("counted_since", sa.DateTime(), server_default=upgraded_at, nullable=False))
        batch.add_column(sa.Column("unnamed_at", sa.DateTime(), nullable=True))
        batch.add_column(sa.Column("expires_at", sa.DateTime(), nullable=True))
        batch.add_column(sa.Column("unneeded_since", sa.DateTime(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("backbone_version") as batch:
        batch.drop_column("unneeded_since")
        batch.drop_column("expires_at")
        batch.drop_column("unnamed_at")
        batch.drop_column("counted_since")
    op.drop_table("retention_rule")
