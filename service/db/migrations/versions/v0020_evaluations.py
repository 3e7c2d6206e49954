"""what evaluations have found"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluation",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("trained_by", sa.String(length=32), nullable=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("train_uri", sa.Text(), nullable=False),
        sa.Column("train_title", sa.Text(), nullable=False),
        sa.Column("train_fingerprint", sa.String(length=200), nullable=False),
        sa.Column("train_images", sa.Integer(), nullable=False),
        sa.Column("test_uri", sa.Text(), nullable=False),
        sa.Column("test_title", sa.Text(), nullable=False),
        sa.Column("test_fingerprint", sa.String(length=200), nullable=False),
        sa.Column("test_images", sa.Integer(), nullable=False),
        sa.Column("held_out", sa.Double(), nullable=True),
        sa.Column("pooling", sa.String(length=16), nullable=False),
        sa.Column("layer", sa.String(length=16), nullable=False),
        sa.Column("classes", sa.Integer(), nullable=False),
        sa.Column("mce", sa.Double(), nullable=True),
        sa.Column("document", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_evaluation_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["backbone_version.name", "backbone_version.version"],
            name=op.f("fk_evaluation_name_version"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_evaluation")),
    )
    op.create_index(op.f("ix_evaluation_name_version"), "evaluation", ["name", "version"])
    op.create_index(op.f("ix_evaluation_trained_by"), "evaluation", ["trained_by"])
    op.create_index(op.f("ix_evaluation_finished_at_job_id"), "evaluation", ["finished_at", "job_id"])
    op.create_table(
        "evaluation_score",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=250), nullable=False),
        sa.Column("protocol", sa.String(length=64), nullable=False),
        sa.Column("share", sa.Double(), nullable=True),
        sa.Column("weights", sa.String(length=16), nullable=False),
        sa.Column("top1", sa.Double(), nullable=False),
        sa.Column("seeds", sa.Integer(), nullable=False),
        sa.Column("seeds_low", sa.Double(), nullable=True),
        sa.Column("seeds_high", sa.Double(), nullable=True),
        sa.Column("test_low", sa.Double(), nullable=False),
        sa.Column("test_high", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["evaluation.job_id"], name=op.f("fk_evaluation_score_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_evaluation_score")),
    )
    op.create_index(op.f("ix_evaluation_score_key_top1"), "evaluation_score", ["key", "top1"])


def downgrade() -> None:
    op.drop_table("evaluation_score")
    op.drop_table("evaluation")
