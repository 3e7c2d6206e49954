"""What webhooks hear of versions and their aliases."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from service.db.tables import BackboneVersion
from service.events.outbox import emit
from service.events.types import EventType
from service.jobs.version_tags import formats_of, metrics_of
from trainer.protocol import names


def tell(session: Session, event: EventType, version: BackboneVersion, **more: Any) -> None:
    """Tell webhooks of an event about a version."""
    tags = version.tags
    data = {
        "name": version.name,
        "version": version.version,
        **more,
        "owner": version.owner,
        "job_id": version.job_id,
        "trained_by": version.trained_by,
        "created_at": version.created_at.isoformat(),
        "method": tags.get(names.TAG_METHOD),
        "origin": tags.get(names.TAG_ORIGIN),
        "formats": formats_of(tags),
        "metrics": metrics_of(tags),
        "dataset_fingerprint": tags.get(names.TAG_DATASET),
        "hub": {"repo_id": f"rcmae/{version.name}", "revision": f"v{version.version}"},
        "urls": urls(version.name, None if event is EventType.VERSION_DELETED else version.version),
    }
    emit(session, event, data, backbone=version.name)


def urls(name: str, number: int | None) -> dict[str, str]:
    """Paths of a version's page, its entry in the API and its repository; of its backbone without a number."""
    if number is None:
        return {"page": f"/backbones/{name}", "api": f"/v1/backbones/{name}", "hub": f"/hf/api/models/rcmae/{name}"}
    return {
        "page": f"/backbones/{name}?version={number}",
        "api": f"/v1/backbones/{name}/versions/{number}",
        "hub": f"/hf/api/models/rcmae/{name}/revision/v{number}",
    }
