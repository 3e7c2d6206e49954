"""Alembic's entry point: runs migrations on the connection that `service.db.database` provides."""

from typing import Literal

from alembic import context

from service.db.name_index import NAME_INDEX
from service.db.tables import Base, UtcTime


def plain_types(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Renders our types as SQLAlchemy's own, so that migrations do not depend on our classes."""
    return "sa.DateTime()" if kind == "type" and isinstance(item, UtcTime) else False


def in_migrations(_item: object, name: str | None, *_: object) -> bool:
    """Whether something in the database is the migrations' work."""
    return name != NAME_INDEX


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    render_item=plain_types,
    include_object=in_migrations,
)
context.run_migrations()
