"""leases, heartbeats, notes, deletion; the resolved spec beside the submitted one"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=True),
        sa.Column("beat", sa.Integer(), nullable=False),
        sa.Column("beat_at", sa.DateTime(), nullable=False),
        sa.Column("round_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.add_column(sa.Column("heartbeat", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("heartbeat_at", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("workers", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("swept_at", sa.DateTime(), nullable=True))
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(sa.Column("resolved_spec", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("notes", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("waiting_since", sa.DateTime(), nullable=True))
        batch_op.add_column(sa.Column("deleted_at", sa.DateTime(), nullable=True))
    # Until now the spec of an admitted job was overwritten with the resolved one: copy it to its own column.
    op.execute("UPDATE job SET resolved_spec = spec WHERE resolved")
    op.execute("UPDATE job SET waiting_since = created_at")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.alter_column("waiting_since", existing_type=sa.DateTime(), nullable=False)
        batch_op.alter_column("notes", existing_type=sa.Text(), server_default=None)
        batch_op.drop_column("resolved")


def downgrade() -> None:
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.add_column(sa.Column("resolved", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE job SET spec = resolved_spec, resolved = true WHERE resolved_spec IS NOT NULL")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.alter_column("resolved", existing_type=sa.Boolean(), server_default=None)
        batch_op.drop_column("deleted_at")
        batch_op.drop_column("waiting_since")
        batch_op.drop_column("notes")
        batch_op.drop_column("resolved_spec")
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.drop_column("swept_at")
        batch_op.drop_column("workers")
        batch_op.drop_column("heartbeat_at")
        batch_op.drop_column("heartbeat")
    op.drop_table("lease")
