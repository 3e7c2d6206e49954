"""MLflow as a server that may be unreachable."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from mlflow.exceptions import MlflowException

from trainer.patience import Dependency


def _is_temporary(error: Exception) -> bool:
    """Whether MLflow was unreachable or overloaded, rather than refusing the request."""
    if not isinstance(error, MlflowException):
        return False
    status = error.get_http_status_code()  # type: ignore[no-untyped-call]  # MLflow leaves it untyped
    return bool(status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS)


MLFLOW: Final = Dependency("MLflow", (MlflowException,), _is_temporary)
