"""What lists of backbones can be sorted by, besides evaluation results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from service.backbones.schemas import BackboneView

BY_TIME: Final = "updated_at"
VALUES: Final[Mapping[str, Callable[[BackboneView], float | None]]] = {
    BY_TIME: lambda view: view.updated_at.timestamp(),
    "downloads": lambda view: view.downloads,
    "last_used_on": lambda view: view.last_used_on.toordinal() if view.last_used_on else None,
    "bytes": lambda view: view.bytes,
}
KEYS: Final = rf"-?({'|'.join(VALUES)}|[a-z]+/[A-Za-z0-9_./-]{{1,200}})"
"""What `sort` may be, as a regular expression."""
