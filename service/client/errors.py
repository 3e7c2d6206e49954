"""What can go wrong between a client and the service, and which of it passes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import httpx

from trainer.spec.base import Problem

Answer = TypeVar("Answer")

PASSING_STATUSES: Final = frozenset({502, 503, 504})
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 4.0


class ClientError(Exception):
    """Any failure of the client; the text says what happened."""


class ConnectionFailed(ClientError):
    """The service did not answer, also after further tries."""


class ApiError(ClientError):
    """The service refused a request, or failed."""

    def __init__(
        self, status: int, code: str, detail: str, problems: Sequence[Problem] = (), request_id: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        """HTTP status."""
        self.code = code
        """Stable name of the error, for programs."""
        self.detail = detail
        self.problems = tuple(problems)
        """Each failing field of a spec or parameter, with what to do."""
        self.request_id = request_id
        """Finds the request in the service's log."""

    @classmethod
    def of(cls, response: httpx.Response) -> ApiError:
        """From an answer that is an error, whether the service or something before it gave it."""
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict) or "code" not in body:
            text = response.text.strip()[:200] or response.reason_phrase
            return cls(response.status_code, "unexpected_answer", f"HTTP {response.status_code}: {text}")
        found = [
            Problem(str(p.get("field", "")), str(p.get("pointer", "")), p.get("value"), str(p.get("message", "")))
            for p in body.get("problems") or ()
        ]
        return cls(response.status_code, body["code"], str(body.get("detail", "")), found, body.get("request_id"))


def patiently(ask: Callable[[], Answer], patience_s: float, url: str) -> Answer:
    """The answer; asks again, with growing pauses, for ``patience_s`` seconds while the service is away.

    Away is: no connection, or a status that passes. Raises what the last try raised, `ConnectionFailed` for no answer.
    """
    end, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except httpx.TransportError as error:
            if time.monotonic() + pause > end:
                raise ConnectionFailed(f"{url} does not answer: {error or type(error).__name__}") from error
        except ApiError as error:
            if error.status not in PASSING_STATUSES or time.monotonic() + pause > end:
                raise
        time.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads clients, keeps no secret
        pause = min(2 * pause, LONGEST_PAUSE_S)
