"""sessions of the dashboard"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "browser_session",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("token_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["token.id"], name=op.f("fk_browser_session_token_id")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_browser_session")),
    )
    for column in ("token_id", "seen_at"):
        op.create_index(op.f(f"ix_browser_session_{column}"), "browser_session", [column])


def downgrade() -> None:
    op.drop_table("browser_session")
