"""downloads of versions, by token and day, and the space that a version uses"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "version_use",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("token_id", sa.String(length=32), nullable=False),
        sa.Column("export_format", sa.String(length=16), nullable=False),
        sa.Column("downloaded", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["backbone_version.name", "backbone_version.version"],
            name=op.f("fk_version_use_name_version"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("name", "version", "day", "token_id", "export_format", name=op.f("pk_version_use")),
    )
    op.create_index(op.f("ix_version_use_day"), "version_use", ["day"])
    with op.batch_alter_table("backbone_version") as batch:
        batch.add_column(sa.Column("bytes", sa.BigInteger(), nullable=True))
        batch.add_column(sa.Column("downloads", sa.Integer(), server_default="0", nullable=False))
        batch.add_column(sa.Column("last_used_on", sa.Date(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("backbone_version") as batch:
        batch.drop_column("last_used_on")
        batch.drop_column("downloads")
        batch.drop_column("bytes")
    op.drop_table("version_use")
