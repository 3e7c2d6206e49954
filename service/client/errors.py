"""Errors of requests to the service, and retries of those that may pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import httpx
from pydantic import ValidationError

from service.http.schemas import View
from trainer.spec.base import Problem

Result = TypeVar("Result")

TRANSIENT_STATUSES: Final = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses after which the same request may succeed; any other error is final."""
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 4.0


class ClientError(Exception):
    """Base of the client's errors; the message says what happened."""


class ConnectionFailed(ClientError):
    """The service did not answer, even after retries."""


class UnacceptableAnswer(ClientError):
    """The server sent what a client must not follow, read or keep. Repeating the request would not help."""


class DownloadError(UnacceptableAnswer):
    """The downloaded files are not what the service has."""


class _FieldProblem(View):
    """An entry of `problems` in an error response."""

    field: str = ""
    pointer: str = ""
    value: Any = None
    message: str = ""


class _ErrorBody(View):
    """The body of an error response."""

    code: str
    detail: str = ""
    problems: list[_FieldProblem] | None = None
    request_id: str | None = None


class ApiError(ClientError):
    """The service refused a request, or failed to handle it."""

    def __init__(
        self, status: int, code: str, detail: str, problems: Sequence[Problem] = (), request_id: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        """HTTP status."""
        self.code = code
        """Stable identifier of the error, for programs."""
        self.detail = detail
        self.problems = tuple(problems)
        """Each rejected field or parameter, with what to do about it."""
        self.request_id = request_id
        """Identifies the request in the service's log."""
        self.retry_after_s = 0.0
        """Seconds to wait before the next request, from `Retry-After`."""

    @classmethod
    def of(cls, response: httpx.Response, text: bytes) -> ApiError:
        """From an error response with the body ``text``, of the service itself or of a proxy in front of it."""
        error = cls._of_body(response, text)
        error.retry_after_s = _seconds(response.headers.get("Retry-After", ""))
        return error

    @classmethod
    def _of_body(cls, response: httpx.Response, text: bytes) -> ApiError:
        status = response.status_code
        try:
            body = _ErrorBody.model_validate_json(text)
        except ValidationError:
            excerpt = text.decode(errors="replace").strip()[:200] or response.reason_phrase
            return cls(status, "unexpected_answer", f"HTTP {status}: {excerpt}")
        problems = [Problem(each.field, each.pointer, each.value, each.message) for each in body.problems or ()]
        return cls(status, body.code, body.detail, problems, body.request_id)


def _seconds(retry_after: str) -> float:
    """The wait that a `Retry-After` asks for, as a number of seconds or a date; 0 without a valid one."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


class Patience:
    """Retries while the service is unreachable: for how long, and with what pauses.

    Unreachable means that there is no connection, or that the answer has a transient status. From the second failure
    on, ``tell`` is called with the reason, and with None when the service is back.
    """

    def __init__(self, limit_s: float, url: str, tell: Callable[[Exception | None], None] | None = None) -> None:
        self._limit_s, self._url, self._tell = limit_s, url, tell
        self._tries = 0
        self.renew()

    def renew(self) -> None:
        """The service is alive: start counting from here."""
        if self._tell and self._tries > 1:
            self._tell(None)
        self._end, self._pause, self._tries = time.monotonic() + self._limit_s, FIRST_PAUSE_S, 0

    def wait(self, error: httpx.TransportError | ApiError) -> None:
        """Sleep until the next try.

        Raises the error, as `ConnectionFailed` where there was no answer, if it is permanent or time is up.
        """
        failure = error if isinstance(error, ApiError) else self._no_answer(error)
        transient = not isinstance(error, ApiError) or error.status in TRANSIENT_STATUSES
        pause = max(self._pause, failure.retry_after_s if isinstance(failure, ApiError) else 0.0)
        if not transient or time.monotonic() + pause > self._end:
            raise failure from (None if failure is error else error)
        self._tries += 1
        if self._tell and self._tries > 1:
            self._tell(failure)
        time.sleep(pause * random.uniform(1.0, 1.5))  # noqa: S311 - spreads the load; not a secret
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)

    def _no_answer(self, error: httpx.TransportError) -> ConnectionFailed:
        return ConnectionFailed(f"{self._url} does not answer: {error or type(error).__name__}")


def with_retries(call: Callable[[], Result], patience_s: float, url: str) -> Result:
    """The result of ``call``, which is repeated for ``patience_s`` seconds while the service is unreachable.

    Raises the same errors as `Patience.wait`.
    """
    patience = Patience(patience_s, url)
    while True:
        try:
            return call()
        except (httpx.TransportError, ApiError) as error:
            patience.wait(error)
