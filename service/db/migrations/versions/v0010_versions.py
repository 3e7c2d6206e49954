"""registered versions and their aliases as rows; deleted versions become some of them"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# The job's removal deletes its versions too, so rows of removed jobs have nothing left to delete.
TAKE_OVER = """
INSERT INTO backbone_version
    (name, version, state, job_id, owner, trained_by, dataset_uri, source, folder, tags, created_at, deleted_at)
SELECT d.name, d.version, 'deleting', d.job_id, j.owner, j.id, j.dataset_uri, d.source, d.folder, '{}', d.deleted_at,
    d.deleted_at
FROM deleted_version AS d JOIN job AS j ON j.id = d.job_id
"""
GIVE_BACK = """
INSERT INTO deleted_version (name, version, job_id, source, folder, deleted_at)
SELECT name, version, job_id, source, folder, deleted_at FROM backbone_version
WHERE state = 'deleting' AND folder IS NOT NULL
"""
HAS_JOBS = "SELECT id FROM job LIMIT 1"


def upgrade() -> None:
    op.create_table(
        "backbone_version",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("trained_by", sa.String(length=32), nullable=False),
        sa.Column("dataset_uri", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_backbone_version_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_backbone_version")),
    )
    op.create_index(op.f("ix_backbone_version_job_id"), "backbone_version", ["job_id"])
    op.create_index(op.f("ix_backbone_version_state_deleted_at"), "backbone_version", ["state", "deleted_at"])
    op.create_table(
        "backbone_alias",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("alias", sa.String(length=256), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["backbone_version.name", "backbone_version.version"],
            name=op.f("fk_backbone_alias_name_version"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("name", "alias", name=op.f("pk_backbone_alias")),
    )
    op.create_table(
        "registry_check",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("checked_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registry_check")),
    )
    op.execute(TAKE_OVER)
    if op.get_bind().execute(sa.text(HAS_JOBS)).first() is None:  # then MLflow has no version for the service to read
        checks = sa.table("registry_check", sa.column("id"), sa.column("checked_at", sa.DateTime))
        op.execute(checks.insert().values(id=1, checked_at=datetime.now(UTC).replace(tzinfo=None)))
    op.drop_table("deleted_version")


def downgrade() -> None:
    op.create_table(
        "deleted_version",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_deleted_version")),
    )
    op.execute(GIVE_BACK)
    op.drop_table("registry_check")
    op.drop_table("backbone_alias")
    op.drop_table("backbone_version")
