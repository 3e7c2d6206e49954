"""What Schemathesis must not do to itself."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

OWN = os.environ["RCMAE_TEST_TOKEN_ID"]
STREAMS = {"/v1/jobs/{job_id}/stream", "/v1/stream"}
OPEN_ENDED = {None, False, "false", "0", "no", "off", "f", "n"}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001 - Schemathesis' form
    """Ending the token that it uses would end the test: every answer after that is 401. Streams would never end."""
    if (case.path_parameters or {}).get("token_id") == OWN:
        case.path_parameters["token_id"] = "tok-00000000000000"
    once = (case.query or {}).get("once")
    if case.operation.path in STREAMS and isinstance(once, str | bool | None) and once in OPEN_ENDED:
        case.query = {**(case.query or {}), "once": True}  # that of a job that has not ended would be waited for
