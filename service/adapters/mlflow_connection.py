"""A connection to MLflow: its client, its settings and its errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

# By default the client waits 120 seconds for a response; the reconciler must not block that long. Requests are never
# retried here: if the response to a creation is lost, a retry would create the thing twice.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient
from requests import RequestException

from service.adapters.breaker import Gated, Unreachable
from trainer.spec.masking import masked

T = TypeVar("T")

PAGE = 1000
"""Items that one request lists."""
REFUSALS = {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}
"""MLflow's errors for a removed run, and for a change to a deleted one."""


class MlflowUnreachable(Unreachable):
    """MLflow did not respond, or refused the request."""

    dependency: ClassVar[str] = "MLflow"


class MlflowRefused(MlflowUnreachable):
    """MLflow responded that the object does not exist or cannot be changed; other requests may succeed."""


class MlflowConnection(Gated):
    """One MLflow server. Every method raises `MlflowUnreachable` if it fails."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = MlflowClient(url)

    def ping(self) -> None:
        """Check that MLflow responds."""
        self._call(lambda: self._client.search_experiments(max_results=1))

    def _call(self, request: Callable[[], T]) -> T:
        with self._gate():
            try:
                return request()
            except MlflowException as error:
                kind = MlflowRefused if error.error_code in REFUSALS else MlflowUnreachable
                raise kind(_reason(error, self.url)) from error


def _reason(error: MlflowException, url: str) -> str:
    """Why a request failed, in one line. Of a failed connection it is the system's own reason: MLflow's error repeats
    those of the three libraries between them.
    """
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and not isinstance(cause, RequestException):
            return f"{cause.strerror or cause} at {urlsplit(url).netloc.rpartition('@')[2]}"
        cause = cause.__cause__ or cause.__context__
    return str(masked(str(error).splitlines()[0]))[:300]


@contextmanager
def absence_allowed() -> Iterator[None]:
    """Ignores MLflow's error that the object of a lookup or a deletion does not exist."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise


def quoted(text: str) -> str:
    """Text for use between single quotes in a search filter."""
    return text.replace("'", "''")


def utc_time(milliseconds: int) -> datetime:
    """A moment from milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
