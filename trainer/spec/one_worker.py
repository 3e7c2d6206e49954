"""What the specs of all jobs of one worker have in common."""

from __future__ import annotations

from typing import Any

from trainer.spec.base import Document
from trainer.spec.cluster import ClusterShape


class OneWorkerDocument(Document):
    """The spec of a job whose only worker does everything."""

    @property
    def concurrent_runs(self) -> int:
        """One worker does everything."""
        return 1

    def resolved_sections(self, cluster: ClusterShape) -> dict[str, Any]:  # noqa: ARG002 - the signature of every kind
        """None: there is no `auto` value to fill in."""
        return {}
