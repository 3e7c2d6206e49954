"""the index of job lists covers searches by name"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BEFORE, AFTER = "ix_job_created_at_id", "ix_job_created_at_id_deleted_at_name"


def upgrade() -> None:
    op.create_index(op.f(AFTER), "job", ["created_at", "id", "deleted_at", "name"])
    op.drop_index(op.f(BEFORE), "job")


def downgrade() -> None:
    op.create_index(op.f(BEFORE), "job", ["created_at", "id"])
    op.drop_index(op.f(AFTER), "job")
