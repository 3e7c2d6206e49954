"""token expiry, the audit log, request ids of jobs, GPU-hours and the newest metrics"""

import hashlib
import re

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

COUNTED = sa.text("dataset_images IS NOT NULL")
HASHED = re.compile(r"sha256:[0-9a-f]{64}")
APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER audit_no_{verb} BEFORE {verb} ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for verb in ("update", "delete")
    ],
    "postgresql": [
        (
            "CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        ),
        (
            "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit "
            "FOR EACH ROW EXECUTE FUNCTION audit_append_only()"
        ),
        (
            "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()"
        ),
    ],
}
"""Triggers with which the database refuses to change or delete an entry."""
LABEL_EVERY_JOB = {
    "sqlite": (
        "INSERT INTO label (job_id, name, value, created_at) "
        "SELECT job.id, found.key, found.value, job.created_at FROM job, json_each(job.labels) AS found"
    ),
    "postgresql": (
        "INSERT INTO label (job_id, name, value, created_at) "
        "SELECT job.id, found.key, found.value, job.created_at FROM job, json_each_text(job.labels) AS found"
    ),
}


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("time", sa.DateTime(), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("token_id", sa.String(length=32), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_actor_id"), ["actor", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_target_id"), ["target", "id"], unique=False)
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.add_column(sa.Column("id", sa.String(length=32), nullable=True))
        batch_op.add_column(sa.Column("name", sa.String(length=100), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("expires_at", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("last_used_at", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("revoked_at", sa.DateTime(), nullable=True))
    op.execute("UPDATE token SET id = 'tok-' || substr(sha256, 1, 14)")
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.alter_column("id", existing_type=sa.String(length=32), nullable=False)
        batch_op.alter_column("name", existing_type=sa.String(length=100), server_default=None)
        batch_op.create_unique_constraint(batch_op.f("uq_token_id"), ["id"])
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(sa.Column("request_id", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("metrics", sa.JSON(), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_job_state_kind_deleted_at_waiting_since"),
            ["state", "kind", "deleted_at", "waiting_since"],
            unique=False,
        )
        batch_op.drop_index(batch_op.f("ix_job_state"))
        batch_op.drop_index(batch_op.f("ix_job_dataset_uri"))
        batch_op.create_index(
            batch_op.f("ix_job_dataset_uri_created_at"),
            ["dataset_uri", "created_at"],
            unique=False,
            sqlite_where=COUNTED,
            postgresql_where=COUNTED,
        )
        for column in ("state", "owner"):
            batch_op.create_index(
                batch_op.f(f"ix_job_{column}_created_at_id"), [column, "created_at", "id"], unique=False
            )
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gpus", sa.Integer(), nullable=True))
    _hash_idempotency_keys()
    _label_every_job()


def _label_every_job() -> None:
    op.create_table(
        "label",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("value", sa.String(length=63), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_label_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "name", name=op.f("pk_label")),
    )
    with op.batch_alter_table("label", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_label_name_value_created_at_job_id"), ["name", "value", "created_at", "job_id"], unique=False
        )
    op.execute(LABEL_EVERY_JOB[op.get_bind().dialect.name])


def _hash_idempotency_keys() -> None:
    """Replaces the keys with their hashes, by which a repeated request still finds its job.

    A key that an earlier upgrade hashed, before a downgrade, has the prefix `sha256:` and is left alone.
    """
    job = sa.table("job", sa.column("id", sa.String), sa.column("idempotency_key", sa.String))
    keys = sa.select(job.c.id, job.c.idempotency_key).where(job.c.idempotency_key.is_not(None))
    connection = op.get_bind()
    for job_id, key in connection.execute(keys).all():
        if HASHED.fullmatch(key) is None:
            hashed = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
            connection.execute(job.update().where(job.c.id == job_id).values(idempotency_key=hashed))


def downgrade() -> None:
    op.drop_table("label")
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.drop_column("gpus")
    with op.batch_alter_table("job", schema=None) as batch_op:
        for column in ("state", "owner"):
            batch_op.drop_index(batch_op.f(f"ix_job_{column}_created_at_id"))
        batch_op.create_index(batch_op.f("ix_job_state"), ["state"], unique=False)
        batch_op.drop_index(batch_op.f("ix_job_dataset_uri_created_at"))
        batch_op.create_index(batch_op.f("ix_job_dataset_uri"), ["dataset_uri"], unique=False)
        batch_op.drop_index(batch_op.f("ix_job_state_kind_deleted_at_waiting_since"))
        batch_op.drop_column("metrics")
        batch_op.drop_column("request_id")
    # An older service ignores expiry: an expired or revoked token must not become valid again.
    op.execute("DELETE FROM token WHERE revoked_at IS NOT NULL OR expires_at IS NOT NULL")
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_token_id"), type_="unique")
        for name in ("revoked_at", "last_used_at", "expires_at", "name", "id"):
            batch_op.drop_column(name)
    op.drop_table("audit")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_append_only()")
