"""requests that add trials hold the search meanwhile; an addition is recorded when it is complete"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "search_claim",
        sa.Column("search_id", sa.String(length=32), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["search_id"], ["job.id"], name=op.f("fk_search_claim_search_id_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("search_id", name=op.f("pk_search_claim")),
    )
    op.execute(sa.text("DELETE FROM addition WHERE numbers IS NULL"))
    with op.batch_alter_table("addition") as addition:
        addition.drop_column("begun_at")
        addition.alter_column("numbers", existing_type=sa.JSON(), nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("addition") as addition:
        addition.add_column(
            sa.Column("begun_at", sa.DateTime(), nullable=False, server_default=sa.text("CURRENT_TIMESTAMP"))
        )
        addition.alter_column("numbers", existing_type=sa.JSON(), nullable=True)
    with op.batch_alter_table("addition") as addition:
        addition.alter_column("begun_at", existing_type=sa.DateTime(), server_default=None)
    op.drop_table("search_claim")
