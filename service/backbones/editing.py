"""Changes to the descriptions, labels and owners of backbones and versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.adapters.mlflow_connection import MlflowUnreachable
from service.auth.caller import Caller, has_valid_token
from service.auth.scopes import Scope
from service.backbones import copies, registry, service
from service.backbones.schemas import BackboneDetailView, BackbonePatch, VersionPatch, VersionSummaryView
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, RegisteredBackbone
from service.http.problems import not_found, spec_problem
from trainer.spec.base import Problem

log = structlog.get_logger()


def patch(state: AppState, caller: Caller, name: str, body: BackbonePatch) -> BackboneDetailView:
    """Change a backbone's description, labels or owner. Raises the API's 403 and 404, and 422 for an unknown owner."""
    known = registry.backbone(state, caller, name)
    with state.database.session() as session:
        row = session.get(RegisteredBackbone, name)
        if row is None:
            raise not_found("backbone", name)
        caller.must(Scope.BACKBONES, row.owner)
        if body.owner is not None and body.owner != row.owner:
            _must_have_token(session, body.owner)
        caller.record(session, name, **_apply(row, body.model_dump(exclude_unset=True)))
    _copy(state, name, None)
    return service.detail(registry.again(state, known))


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


def _must_have_token(session: Session, owner: str) -> None:
    """Raises the API's 422 for somebody without a valid token: a typing error would leave a backbone with nobody."""
    if not session.scalar(select(has_valid_token(owner))):
        text = "nobody of this name has a valid token: name the owner of one, or make them a token first"
        raise spec_problem([Problem("owner", "/owner", owner, text)])


def _copy(state: AppState, name: str, number: int | None) -> None:
    """Copy what has changed to MLflow; if that fails, the controller's next comparison with MLflow does it."""
    try:
        copies.describe(state, name, number)
    except MlflowUnreachable as error:
        log.warning("texts_not_copied", backbone=name, version=number, detail=str(error))
