"""lists of one owner's jobs in one state, which are what a submitter sees, are read from an index"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_job_owner_state_created_at_id"), "job", ["owner", "state", "created_at", "id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_job_owner_state_created_at_id"), table_name="job")
