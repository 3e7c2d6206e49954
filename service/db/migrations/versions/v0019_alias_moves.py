"""the history of aliases, and a rule for each backbone's champion"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

METRIC = "rcmae.metric."


def upgrade() -> None:
    with op.batch_alter_table("backbone") as batch:
        batch.add_column(sa.Column("champion_rule", sa.JSON(), nullable=True))
    moves = op.create_table(
        "alias_move",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("alias", sa.String(length=256), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("before", sa.Integer(), nullable=True),
        sa.Column("actor", sa.String(length=100), nullable=True),
        sa.Column("token_id", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["backbone.name"], name=op.f("fk_alias_move_name"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_move")),
    )
    op.create_index(op.f("ix_alias_move_name_id"), "alias_move", ["name", "id"])
    for move in _earlier_moves(op.get_bind()):
        op.execute(moves.insert().values(move))


def _earlier_moves(connection: sa.Connection) -> list[dict[str, Any]]:
    """The moves of before the upgrade, oldest first: without them no champion could be restored."""
    tables = sa.MetaData()
    tables.reflect(connection, only=["audit", "backbone", "backbone_version", "backbone_alias"])
    backbone, row, alias = (tables.tables[name] for name in ("backbone", "backbone_version", "backbone_alias"))
    known = connection.execute(sa.select(backbone.c.name, backbone.c.created_at))
    since = {each.name: each.created_at for each in known}
    columns = (row.c.name, row.c.version, row.c.source, row.c.tags, row.c.created_at)
    versions = {(each.name, each.version): each for each in connection.execute(sa.select(*columns))}
    moves = [
        move
        for move in _audited(connection, tables.tables["audit"])
        if move["name"] in since and move["moved_at"] >= since[move["name"]]  # not of an earlier one of that name
    ]
    last = {move["name"]: move["version"] for move in moves if move["alias"] == "champion"}
    champions = sa.select(alias.c.name, alias.c.version).where(alias.c.alias == "champion").order_by(alias.c.name)
    for name, version in connection.execute(champions):  # as one that was found in MLflow
        if name in since and last.get(name) != version:
            moves.append(
                {"name": name, "alias": "champion", "version": version, "before": last.get(name), "actor": None}
                | {"token_id": None, "reason": "", "moved_at": datetime.now(UTC).replace(tzinfo=None)}
            )
    return [move | _of_version(versions.get((move["name"], move["version"])), move["moved_at"]) for move in moves]


def _audited(connection: sa.Connection, audit: sa.Table) -> list[dict[str, Any]]:
    """The moves that the audit log tells of."""
    actions = ("backbone.alias", "backbone.unalias")
    lines = sa.select(audit).where(audit.c.action.in_(actions), audit.c.status == 200).order_by(audit.c.id)
    moves = []
    for line in connection.execute(lines):
        detail: Mapping[str, Any] = line.detail or {}
        set_to, before = detail.get("version"), detail.get("before")
        if line.action == "backbone.unalias":
            set_to, before = None, set_to
        if "alias" in detail and set_to != before:  # what is where it was to be did not move
            moves.append(
                {"name": line.target, "alias": detail["alias"], "version": set_to, "before": before}
                | {"actor": line.actor, "token_id": line.token_id, "reason": detail.get("reason", "")}
                | {"moved_at": line.time}
            )
    return moves


def _of_version(version: Any, moved_at: datetime) -> dict[str, Any]:
    """Source and results of the version that an alias was set to, if that is the one which has its number now.

    ``version`` is the row of that number, if there is one.
    """
    if version is None or version.created_at > moved_at:
        return {"source": None, "metrics": None}
    tags = version.tags or {}
    metrics = {key.removeprefix(METRIC): _number(text) for key, text in tags.items() if key.startswith(METRIC)}
    return {"source": version.source, "metrics": {key: value for key, value in metrics.items() if value is not None}}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def downgrade() -> None:
    op.drop_table("alias_move")
    with op.batch_alter_table("backbone") as batch:
        batch.drop_column("champion_rule")
