"""what the control loop looks for is found by indexes, what takes long is a row, and a job's row has a revision"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

PARTIAL = {
    "ix_job_deleted": ("job", ["deleted_at"], "deleted_at IS NOT NULL"),
    "ix_attempt_unswept": ("attempt", ["ended_at"], "swept_at IS NULL"),
}
SUBMISSIONS = "ix_attempt_submission_id"
LOOKED_UP = (["kind", "due_at"], ["lock_token"])


def upgrade() -> None:
    op.add_column("job", sa.Column("revision", sa.Integer(), server_default="1", nullable=False))
    for name, (table, columns, condition) in PARTIAL.items():
        where = sa.text(condition)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
    op.create_index(op.f(SUBMISSIONS), "attempt", ["submission_id"])
    op.create_table(
        "work_item",
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=300), nullable=False),
        sa.Column("due_at", sa.DateTime(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("lock_token", sa.String(length=32), nullable=True),
        sa.Column("locked_by", sa.String(length=200), nullable=True),
        sa.Column("lock_expires_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("kind", "target", name=op.f("pk_work_item")),
    )
    for columns in LOOKED_UP:
        op.create_index(op.f(f"ix_work_item_{'_'.join(columns)}"), "work_item", columns)
    _settle_ended_searches()


def _settle_ended_searches() -> None:
    """Searches that a request has ended and that the loop has not settled yet: it found them by reading all of them."""
    job = sa.table(
        "job", *(sa.column(name) for name in ("id", "kind", "state", "deleted_at")), sa.column("progress", sa.JSON),
        sa.column("result", sa.JSON(none_as_null=True)),
    )  # fmt: skip
    no_result = sa.and_(job.c.state == "succeeded", job.c.result.is_(None))
    open_trials = job.c.progress[("trials", "running")].as_integer() > 0
    ended = sa.and_(job.c.kind == "search", job.c.state.in_(["succeeded", "failed", "cancelled"]))
    moment = datetime.now(UTC).replace(tzinfo=None)
    columns = ("kind", "target", "due_at", "message", "failures")
    item = sa.table("work_item", *(sa.column(name) for name in columns))
    values = (sa.literal("settle"), job.c.id, sa.literal(moment, sa.DateTime()), sa.literal(""), sa.literal(0))
    found = sa.select(*values).where(ended, job.c.deleted_at.is_(None), sa.or_(no_result, open_trials))
    op.execute(item.insert().from_select(columns, found))


def downgrade() -> None:
    op.drop_table("work_item")
    op.drop_index(op.f(SUBMISSIONS), "attempt")
    for name, (table, _, _) in PARTIAL.items():
        op.drop_index(name, table)
    with op.batch_alter_table("job") as batch_op:
        batch_op.drop_column("revision")
