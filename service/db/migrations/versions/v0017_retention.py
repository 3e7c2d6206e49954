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
        sa.ForeignKeyConstraint(["name"], ["backbone.name"], name=op.f("fk_retention_rule_name"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_retention_rule")),
    )
    with op.batch_alter_table("backbone_version") as batch:
        batch.add_column(sa.Column("counted_since", sa.DateTime(), nullable=True))
        batch.add_column(sa.Column("unnamed_at", sa.DateTime(), nullable=True))
        batch.add_column(sa.Column("expires_at", sa.DateTime(), nullable=True))
        batch.add_column(sa.Column("unneeded_since", sa.DateTime(), nullable=True))
    # Nobody knows who downloaded what before: until now each version counts as used.
    versions = sa.table("backbone_version", sa.column("counted_since", sa.DateTime()))
    op.execute(versions.update().values(counted_since=datetime.now(UTC).replace(tzinfo=None)))
    with op.batch_alter_table("backbone_version") as batch:
        batch.alter_column("counted_since", existing_type=sa.DateTime(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("backbone_version") as batch:
        batch.drop_column("unneeded_since")
        batch.drop_column("expires_at")
        batch.drop_column("unnamed_at")
        batch.drop_column("counted_since")
    op.drop_table("retention_rule")
