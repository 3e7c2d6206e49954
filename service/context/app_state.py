"""Dependencies that routes declare: the application's state and the authenticated caller."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer, SecurityScopes

from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster
from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.auth import sessions
from service.auth.caller import Caller, bearer_token, caller_of
from service.auth.scopes import Scope
from service.context.kind import Kinds
from service.db.database import Database
from service.http.routing import identified_by
from service.settings import Settings


@dataclass(frozen=True)
class AppState:
    """The adapters and settings that requests and the controller share."""

    settings: Settings
    database: Database
    ray: RayCluster
    mlflow: MlflowStore
    artifacts: Artifacts
    studies: Studies
    kinds: Kinds
    wake: threading.Event = field(default_factory=threading.Event)
    """Set when a request leaves work for the controller: one in this process then starts its next round at once."""


def app_state_of(request: Request) -> AppState:
    found: AppState = request.app.state.app_state
    return found


def _identify(request: Request) -> None:
    """Store the caller of a request, known by its token, or by its browser session where it sends no token.

    Raises the API's 401 without a valid token, and for a change by a session that lacks the page's CSRF token.
    """
    database, header = app_state_of(request).database, request.headers.get("Authorization")
    found = None if bearer_token(header) else sessions.caller_of_session(database, request, request.state.trail)
    if found:
        sessions.check_csrf(request)
    request.state.caller = found or caller_of(database, header, request.state.trail)


@identified_by(_identify)
async def caller(
    request: Request,
    needed: SecurityScopes,
    _: Annotated[object, Security(HTTPBearer(auto_error=False))],  # for the API's description
) -> Caller:
    """The caller of a route, whom it has identified. Raises the API's 403 if a declared scope is missing."""
    found: Caller = request.state.caller
    for scope in needed.scopes:
        found.must_have(Scope(scope))
    return found


async def _app_state(request: Request) -> AppState:
    """Declared async so that FastAPI does not run it on a thread."""
    return app_state_of(request)


StateDep = Annotated[AppState, Depends(_app_state)]

# The caller of a route, which has the scopes that the route declares by this.
MayReadJobs = Annotated[Caller, Security(caller, scopes=[Scope.READ_OWN_JOBS])]
MaySubmit = Annotated[Caller, Security(caller, scopes=[Scope.SUBMIT])]
MayPromote = Annotated[Caller, Security(caller, scopes=[Scope.SUBMIT, Scope.READ_OWN_JOBS])]
MayControlJobs = Annotated[Caller, Security(caller, scopes=[Scope.OWN_JOBS])]
MayReadBackbones = Annotated[Caller, Security(caller, scopes=[Scope.READ_OWN_BACKBONES])]
MayChangeBackbones = Annotated[Caller, Security(caller, scopes=[Scope.OWN_BACKBONES])]
MayReadEvaluations = Annotated[Caller, Security(caller, scopes=[Scope.READ_OWN_JOBS, Scope.READ_OWN_BACKBONES])]
MayReadCluster = Annotated[Caller, Security(caller, scopes=[Scope.READ_CLUSTER])]
MayReadTokens = Annotated[Caller, Security(caller, scopes=[Scope.READ_OWN_TOKENS])]
MayManageTokens = Annotated[Caller, Security(caller, scopes=[Scope.OWN_TOKENS])]
MayReadWebhooks = Annotated[Caller, Security(caller, scopes=[Scope.READ_OWN_WEBHOOKS])]
MayManageWebhooks = Annotated[Caller, Security(caller, scopes=[Scope.OWN_WEBHOOKS])]
MayReadAudit = Annotated[Caller, Security(caller, scopes=[Scope.READ_AUDIT])]
