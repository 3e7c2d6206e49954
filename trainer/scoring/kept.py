"""What an evaluation has measured so far: a file for each unit in the run's artifact folder, so that a resumed attempt
goes on with the next one."""

from __future__ import annotations

import json
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from trainer.errors import DataError, StorageError
from trainer.evaluation.ranks import Ranks
from trainer.protocol.evaluation import Measured
from trainer.protocol.message import Message
from trainer.spec.measurements import Unit
from trainer.storage import Store

UNITS: Final = "measurements"
"""Folder of the results of units in the run's artifact folder. Only attempts read it."""


class UnitResult(Message):
    """What a unit has measured."""

    attempt: int
    data: str
    """Identity of the images, the classes and the network that it is about."""
    measured: Measured
    confusion: list[tuple[int, int, int]] = Field(default_factory=list)
    """Test images by true and predicted class, where there are any; only of the backbone's own weights."""
    by_severity: dict[int, float] = Field(default_factory=dict)
    """Of a corruption: accuracy by severity."""
    seconds: float


def sparse(confusion: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """The entries of a confusion matrix that are not zero: row, column, count."""
    rows, columns = np.nonzero(confusion)
    return list(zip(rows.tolist(), columns.tolist(), confusion[rows, columns].tolist(), strict=True))


def dense(entries: list[tuple[int, int, int]], classes: int) -> NDArray[np.int64]:
    """The confusion matrix (C, C) with these entries."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for row, column, count in entries:
        matrix[row, column] = count
    return matrix


class Kept:
    """The results of units, the same on every rank; rank 0 reads and writes their files."""

    def __init__(
        self, store: Store, attempt: int, since_attempt: int, data: str, results: dict[str, UnitResult]
    ) -> None:
        self._store, self.attempt, self.since_attempt, self.data = store, attempt, since_attempt, data
        self.results = results

    @classmethod
    def read(cls, store: Store, attempt: int, since_attempt: int, data: str, ranks: Ranks) -> Kept:
        """The results of this attempt's predecessors since ``since_attempt``. Every rank calls this.

        Raises `DataError` if they are about other images, and `StorageError` for a file that is damaged.
        """
        read = ranks.collect(lambda: _read(store, since_attempt, data) if ranks.rank == 0 else {})
        return cls(store, attempt, since_attempt, data, read[0])

    def __contains__(self, unit: Unit) -> bool:
        return unit.name in self.results

    def keep(self, unit: Unit, result: UnitResult, *, write: bool) -> None:
        """Take in a unit's result; ``write`` on one rank."""
        self.results[unit.name] = result
        if write:
            self._store.write(f"{UNITS}/{unit.name}.json", result.model_dump_json().encode())

    def made(self, measured: Measured, seconds: float, **more: object) -> UnitResult:
        """A result of this attempt."""
        return UnitResult.model_validate(
            {"attempt": self.attempt, "data": self.data, "measured": measured, "seconds": seconds, **more}
        )


def _read(store: Store, since_attempt: int, data: str) -> dict[str, UnitResult]:
    found: dict[str, UnitResult] = {}
    for file in store.names(UNITS):
        if not file.endswith(".json"):
            continue
        place = f"{UNITS}/{file}"
        try:
            result = UnitResult.model_validate_json(store.read(place))
        except (ValidationError, json.JSONDecodeError) as error:
            raise StorageError(f"{store.uri}/{place} is damaged: delete it, and retry the job: {error}") from error
        if result.attempt < since_attempt:
            continue  # the job began again from scratch
        if result.data != data:
            raise DataError(
                "dataset: the images, their classes or the network have changed since the job's first measurements: "
                "put them back, or retry from scratch"
            )
        found[file.removesuffix(".json")] = result
    return found
