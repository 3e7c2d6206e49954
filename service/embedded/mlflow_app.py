"""MLflow's server with a password, as `mlflow server --app-name rcmae` runs it (an entry point of this package).

Other users of the machine can reach its port on the loopback interface. MLflow's own login would need a package and a
database more, for rights that are not used here.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from pathlib import Path
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.embedded.folder import MLFLOW_PASSWORD_VARIABLE, MLFLOW_USER

OPEN_TO_ALL: Final = "/health"
"""For the supervisor; it says `OK`."""


class Guard:
    """Lets requests pass that carry the password: as the password of any user, as browsers and MLflow's client send it,
    or as a bearer token.
    """

    def __init__(self, app: ASGIApp, password: str) -> None:
        self._app, self._password = app, password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] in {"http", "websocket"} and scope["path"] != OPEN_TO_ALL
        if not guarded or self._knows_password(dict(scope["headers"]).get(b"authorization", b"")):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            told = (
                f"log in as {MLFLOW_USER}, with the password in the file mlflow-password of the stack's state folder\n"
            )
            headers = {"WWW-Authenticate": 'Basic realm="MLflow", charset="UTF-8"', "Cache-Control": "no-store"}
            await PlainTextResponse(told, 401, headers)(scope, receive, send)

    def _knows_password(self, header: bytes) -> bool:
        scheme, _, value = header.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(value, self._password)


def create_app() -> Guard:
    """MLflow's application behind the password in the file that the environment names."""
    from mlflow.server.fastapi_app import app  # noqa: PLC0415 - MLflow asks whether this is a function, without it

    return Guard(app, Path(os.environ[MLFLOW_PASSWORD_VARIABLE]).read_text().strip())
