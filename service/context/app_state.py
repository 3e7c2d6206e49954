"""What routes are given: the application's state, and who calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster
from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.auth.caller import Caller, caller_by_id, caller_of
from service.auth.sessions import Sessions
from service.context.kind import Kinds
from service.db.database import Database
from service.settings import Settings


@dataclass(frozen=True)
class AppState:
    """What requests are answered with, and jobs are run with."""

    settings: Settings
    database: Database
    ray: RayCluster
    mlflow: MlflowStore
    artifacts: Artifacts
    studies: Studies
    kinds: Kinds
    wake: threading.Event = field(default_factory=threading.Event)
    """Set where a request leaves something to do: a controller in this process then looks at once."""


def parts(request: Request) -> AppState:
    found: AppState = request.app.state.parts
    return found


def caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))],
) -> Caller:
    """By the request's token, or by the session of a browser that sends none."""
    sessions: Sessions = request.app.state.sessions
    database = parts(request).database
    if credentials is None and (token_id := sessions.token_id(request)):
        found = caller_by_id(database, token_id, request.state.trail)
        sessions.check_csrf(request, token_id)
        return found
    header = f"{credentials.scheme} {credentials.credentials}" if credentials else None
    return caller_of(database, header, request.state.trail)


async def _given(request: Request) -> AppState:
    """Not a plain function: that would be called on a thread."""
    return parts(request)


StateDep = Annotated[AppState, Depends(_given)]
CallerDep = Annotated[Caller, Depends(caller)]
