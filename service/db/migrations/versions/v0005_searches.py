"""orders to searches, and the trials that jobs were promoted from"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("job") as table:
        table.add_column(sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False))
        table.add_column(sa.Column("stopped_trials", sa.JSON(), nullable=True))
        table.add_column(sa.Column("search_id", sa.String(length=32), nullable=True))
        table.add_column(sa.Column("trial", sa.Integer(), nullable=True))
        table.create_index(op.f("ix_job_search_id_trial"), ["search_id", "trial"])


def downgrade() -> None:
    with op.batch_alter_table("job") as table:
        table.drop_index(op.f("ix_job_search_id_trial"))
        for column in ("trial", "search_id", "stopped_trials", "draining"):
            table.drop_column(column)
