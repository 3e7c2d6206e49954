"""who sees a backbone"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("backbone") as batch:
        batch.add_column(sa.Column("visibility", sa.String(length=16), server_default="all", nullable=False))
    with op.batch_alter_table("webhook_delivery") as batch:
        batch.add_column(sa.Column("backbone", sa.String(length=256), nullable=True))
    rows = sa.table("webhook_delivery", sa.column("type"), sa.column("data", sa.JSON()), sa.column("backbone"))
    of_backbones = sa.or_(rows.c.type.like("version.%"), rows.c.type.like("alias.%"))
    op.execute(rows.update().where(of_backbones).values(backbone=rows.c.data["name"].as_string()))
    op.create_table(
        "backbone_reader",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("reader", sa.String(length=100), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["backbone.name"], name=op.f("fk_backbone_reader_name"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", "reader", name=op.f("pk_backbone_reader")),
    )


def downgrade() -> None:
    op.drop_table("backbone_reader")
    with op.batch_alter_table("webhook_delivery") as batch:
        batch.drop_column("backbone")
    with op.batch_alter_table("backbone") as batch:
        batch.drop_column("visibility")
