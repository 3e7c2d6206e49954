"""Changes to the descriptions, labels and owners of backbones and versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from service.adapters.mlflow_connection import MlflowUnreachable
from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.backbones import copies, registry, service, visibility
from service.backbones.schemas import BackboneDetailView, BackbonePatch, VersionPatch, VersionSummaryView
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, RegisteredBackbone
from service.http.problems import not_found

log = structlog.get_logger()


def patch(state: AppState, caller: Caller, name: str, body: BackbonePatch) -> BackboneDetailView:
    """Change a backbone. Raises the API's 403 and 404, and 422 for an unknown owner or reader, and for what would hide
    it from an approver of its champion.
    """
    known = registry.backbone(state, caller, name)
    with state.database.session() as session:
        row = session.get(RegisteredBackbone, name)
        if row is None:
            raise not_found("backbone", name)
        caller.must(Scope.BACKBONES, row.owner)
        if body.owner is not None and body.owner != row.owner:
            visibility.must_have_token(session, "owner", body.owner)
        detail = _apply(row, body.model_dump(exclude_unset=True, exclude={"visibility", "readers"}))
        seen = visibility.change(session, row, body.visibility, body.readers)
        if seen:
            visibility.must_show_to_approvers(session, row, "readers", seen.get("readers", body.readers))
        elif "owner" in detail["changed"]:
            visibility.must_show_to_approvers(session, row, "owner", row.owner)
        caller.record(session, name, **detail | seen | {"changed": sorted([*detail["changed"], *seen])})
    _copy(state, name, None)
    return service.detail(state, caller, registry.again(state, known))


def patch_version(state: AppState, caller: Caller, name: str, number: int, body: VersionPatch) -> VersionSummaryView:
    """Change a version's description or labels. Raises the API's 403 and 404."""
    known = registry.find(state, caller, name, str(number))
    with state.database.session() as session:
        version = service.shown_now(session, known)
        caller.must(Scope.BACKBONES, *service.owners(session, version.row))
        detail = _apply(version.row, body.model_dump(exclude_unset=True))
        caller.record(session, name, version=number, **detail)
    _copy(state, name, number)
    backbone = registry.backbone(state, caller, name)
    return (backbone.numbered(number) or known).summary(backbone.aliases)


def _apply(row: RegisteredBackbone | BackboneVersion, values: Mapping[str, Any]) -> dict[str, Any]:
    """Change columns; returns what the audit log tells: the new values, of a description only that it changed."""
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    detail: dict[str, Any] = {"changed": sorted(changed)}
    if "labels" in changed:
        detail["labels"] = changed["labels"]
    if "owner" in changed:
        detail |= {"owner": changed["owner"], "before": row.owner}
    for name, value in changed.items():
        setattr(row, name, value)
    return detail


def _copy(state: AppState, name: str, number: int | None) -> None:
    """Copy what has changed to MLflow; if that fails, the controller's next comparison with MLflow does it."""
    try:
        copies.describe(state, name, number)
    except MlflowUnreachable as error:
        log.warning("texts_not_copied", backbone=name, version=number, detail=str(error))
