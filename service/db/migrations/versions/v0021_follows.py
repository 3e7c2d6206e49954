"""which job an evaluation follows"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("follows", sa.String(length=32), nullable=True))
    op.create_index(op.f("ix_job_follows"), "job", ["follows"], unique=True)


def downgrade() -> None:
    op.drop_index(op.f("ix_job_follows"), table_name="job")
    op.drop_column("job", "follows")
