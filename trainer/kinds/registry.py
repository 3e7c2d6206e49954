"""The kinds of job that an attempt can run. A kind is one module with a function `run`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, cast

from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec.job import Kind
from trainer.storage import Store

Run = Callable[[AttemptRequest, Store], Outcome]
"""Runs one attempt of a job on the cluster; ``store`` is the run's artifact folder. The outcome may not be stored yet.

Raises a `TrainingError` whose reason says what went wrong.
"""

MODULES: Final[dict[str, str]] = {
    Kind.EMBED: "trainer.kinds.embed",
    Kind.EVALUATE: "trainer.kinds.evaluate",
    Kind.IMPORT: "trainer.kinds.importing",
    Kind.INSPECT: "trainer.kinds.inspect",
    Kind.PRETRAIN: "trainer.kinds.pretrain",
    Kind.PUBLISH: "trainer.kinds.publish",
    Kind.SEARCH: "trainer.kinds.search",
}
"""Imported only when needed: a search needs Ray Tune and Optuna, which take a driver seconds to import."""


def find_run(kind: str) -> Run:
    """The function that runs an attempt of this kind."""
    return cast(Run, importlib.import_module(MODULES[kind]).run)
