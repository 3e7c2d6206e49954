"""Waiting for a server that is unreachable for a while."""

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
        deadline, pause, warned = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE_SECONDS, False
        while True:
            try:
                return request()
            except self._errors as error:
                text = self._describe(error)
                if not self._is_temporary(error) or time.monotonic() + pause > deadline:
                    raise StorageError(f"{self._name} could not {action}: {text}") from error
                if not warned:
                    logger.warning("%s could not %s; retrying: %s", self._name, action, text)
                warned = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
