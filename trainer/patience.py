"""Retrying while a server or a disk is unreachable."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from trainer.errors import StorageError
from trainer.logger import logger

PATIENCE_SECONDS: Final = 300.0
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 10.0

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


def retry(
    attempt: Callable[[], T],
    errors: type[E] | tuple[type[E], ...],
    seconds: float,
    failure: Callable[[E], StorageError],
    is_temporary: Callable[[E], bool] = lambda _: True,
) -> T:
    """The result of ``attempt``, which is repeated with growing pauses while it raises one of ``errors``.

    Raises ``failure(error)`` for the last error once ``seconds`` have passed since the first one, and at once for an
    error that is not temporary. ``attempt`` must be safe to repeat.
    """
    deadline: float | None = None
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return attempt()
        except errors as error:
            storage_error = failure(error)
            if not is_temporary(error):
                raise storage_error from error
            now = time.monotonic()
            if deadline is None:
                deadline = now + seconds
                logger.warning("Trying again for up to %.0f s: %s", seconds, storage_error)
            if now + pause > deadline:
                raise storage_error from error
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class Dependency:
    """A server that an attempt cannot do without, such as MLflow."""

    def __init__(
        self,
        name: str,
        errors: tuple[type[Exception], ...],
        is_temporary: Callable[[Exception], bool] = lambda _: True,
        describe: Callable[[Exception], str] = str,
    ) -> None:
        """``errors`` are what its client raises; ``describe`` turns one into text that is safe to show."""
        self._name, self._errors, self._is_temporary, self._describe = name, errors, is_temporary, describe

    def call(self, action: str, request: Callable[[], T]) -> T:
        """The answer to ``request``, which must be safe to repeat.

        Temporary errors are retried for five minutes. Raises `StorageError` after that, and at once for any other
        error. ``action`` completes the sentence "MLflow could not …".
        """
        return retry(
            request,
            self._errors,
            PATIENCE_SECONDS,
            failure=lambda error: StorageError(f"{self._name} could not {action}: {self._describe(error)}"),
            is_temporary=self._is_temporary,
        )
