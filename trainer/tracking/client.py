"""MLflow as a server that may be unreachable."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from mlflow.exceptions import MlflowException

from trainer.logger import logger
from trainer.patience import Dependency


def _is_temporary(error: Exception) -> bool:
    """Whether MLflow was unreachable or overloaded, rather than refusing the request."""
    if not isinstance(error, MlflowException):
        return False
    status = error.get_http_status_code()  # type: ignore[no-untyped-call]  # MLflow leaves it untyped
    return bool(status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS)


def show(what: str, request: Callable[[], object]) -> None:
    """Make a request for something that only MLflow's pages show: a refusal is a warning, and nothing else fails.

    Raises MLflow's error if MLflow was unreachable or overloaded.
    """
    try:
        request()
    except MlflowException as error:
        if _is_temporary(error):
            raise
        logger.warning("MLflow's pages will not show %s: %s", what, error)


MLFLOW: Final = Dependency("MLflow", (MlflowException,), _is_temporary)
