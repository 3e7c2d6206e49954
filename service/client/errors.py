"""What can go wrong between a client and the service, and which of it passes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import httpx

from trainer.spec.base import Problem

Answer = TypeVar("Answer")

PASSING_STATUSES: Final = frozenset({429, 502, 503, 504})
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
        self.retry_after_s = 0.0
        """Seconds that the service asks to be left alone for."""

    @classmethod
    def of(cls, response: httpx.Response) -> ApiError:
        """From an answer that is an error, whether the service or something before it gave it."""
        error = cls._of_body(response)
        error.retry_after_s = _seconds(response.headers.get("Retry-After", ""))
        return error

    @classmethod
    def _of_body(cls, response: httpx.Response) -> ApiError:
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


def _seconds(retry_after: str) -> float:
    """Of a `Retry-After`, which is a number of seconds or a date; 0 for none, and for one that is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


class Patience:
    """How long one waits for a service that is away, and how long between two tries.

    Away is: no connection, or a status that passes. ``tell`` hears why, from the second try on that fails, and None
    when the service is back.
    """

    def __init__(self, limit_s: float, url: str, tell: Callable[[Exception | None], None] | None = None) -> None:
        self._limit_s, self._url, self._tell = limit_s, url, tell
        self._tries = 0
        self.renew()

    def renew(self) -> None:
        """The service has shown life: everything begins anew."""
        if self._tell and self._tries > 1:
            self._tell(None)
        self._end, self._pause, self._tries = time.monotonic() + self._limit_s, FIRST_PAUSE_S, 0

    def wait(self, error: httpx.TransportError | ApiError) -> None:
        """Until the next try. Raises what cannot pass, or has not passed in time; `ConnectionFailed` for no answer."""
        told = error if isinstance(error, ApiError) else self._unanswered(error)
        passes = not isinstance(error, ApiError) or error.status in PASSING_STATUSES
        pause = max(self._pause, told.retry_after_s if isinstance(told, ApiError) else 0.0)
        if not passes or time.monotonic() + pause > self._end:
            raise told from (None if told is error else error)
        self._tries += 1
        if self._tell and self._tries > 1:
            self._tell(told)
        time.sleep(pause * random.uniform(1.0, 1.5))  # noqa: S311 - spreads clients, keeps no secret
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)

    def _unanswered(self, error: httpx.TransportError) -> ConnectionFailed:
        return ConnectionFailed(f"{self._url} does not answer: {error or type(error).__name__}")


def patiently(ask: Callable[[], Answer], patience_s: float, url: str) -> Answer:
    """The answer; asks again, with growing pauses, for ``patience_s`` seconds while the service is away.

    Raises as `Patience.wait`.
    """
    patience = Patience(patience_s, url)
    while True:
        try:
            return ask()
        except (httpx.TransportError, ApiError) as error:
            patience.wait(error)
