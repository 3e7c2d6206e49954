"""backbones as rows, with descriptions and labels of their own and of their versions"""

import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# A backbone belongs to whoever registered the oldest of the versions that are shown.
OLDEST = """
SELECT name, owner, created_at FROM backbone_version AS v
WHERE state IN ('ready', 'gone') AND version = (
    SELECT MIN(version) FROM backbone_version AS w WHERE w.name = v.name AND w.state IN ('ready', 'gone')
)
"""
TEXTS = "SELECT name, version, dataset_uri FROM backbone_version"
FILL = "UPDATE backbone_version SET search_text = :text WHERE name = :name AND version = :version"


def upgrade() -> None:
    op.create_table(
        "backbone",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("labels", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("search_text", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_backbone")),
    )
    with op.batch_alter_table("backbone_version") as batch:
        batch.add_column(sa.Column("description", sa.Text(), nullable=True))
        batch.add_column(sa.Column("labels", sa.JSON(), server_default="{}", nullable=False))
        batch.add_column(sa.Column("search_text", sa.Text(), server_default="", nullable=False))
    op.execute(f"INSERT INTO backbone (name, owner, created_at) {OLDEST}")
    connection = op.get_bind()
    rows = [
        {"name": name, "version": version, "text": _folded(f"{name}\n{dataset_uri}")}
        for name, version, dataset_uri in connection.execute(sa.text(TEXTS))
    ]
    if rows:
        connection.execute(sa.text(FILL), rows)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def downgrade() -> None:
    with op.batch_alter_table("backbone_version") as batch:
        batch.drop_column("search_text")
        batch.drop_column("labels")
        batch.drop_column("description")
    op.drop_table("backbone")
