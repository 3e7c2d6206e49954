"""Trials of a point that another trial has already: they end as that one ends, or are trained as its retry."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from trainer.logger import logger
from trainer.protocol import names
from trainer.search.record import SearchRecord, ends_alike


class SamePoint:
    """Knows which trials wait for the end of another one of the same point.

    None of this is stored: a new attempt chooses the points of trials that have not started again, and so finds the
    same trials waiting.
    """

    def __init__(self, record: SearchRecord) -> None:
        self._record = record
        self._waiting: dict[int, list[int]] = {}
        """Trials that wait, by the number of the other one."""

    def must_train(self, number: int, original: int) -> bool:
        """Whether a trial has to be trained, as the retry of the one of the same point; if not, it ends as that one has
        ended, or waits for its end.
        """
        other = self._record.trial(original)
        if not other.state.is_finished():
            self._wait(number, original)
            return False
        if ends_alike(other):
            self._copy(number, other)
            return False
        self._retry(number, original)
        return True

    def release(self, original: FrozenTrial) -> int | None:
        """What becomes of the trials that waited for one that has ended: they end alike, or the first of them has to be
        trained, and is returned, and the others wait for that.
        """
        waiting = self._waiting.pop(original.number, [])
        if not waiting:
            return None
        if ends_alike(original):
            for number in waiting:
                self._copy(number, original)
            return None
        retry, *others = waiting
        self._retry(retry, original.number)
        for number in others:
            self._wait(number, retry)
        return retry

    def _wait(self, number: int, original: int) -> None:
        message = f"Waits for trial {original}, which has the same values."
        self._record.set_attributes(number, {names.TRIAL_MESSAGE: message})
        self._waiting.setdefault(original, []).append(number)

    def _copy(self, number: int, original: FrozenTrial) -> None:
        message = f"Not trained: it has the same values as trial {original.number}, and ended alike."
        self._record.end_like(number, original, message)
        logger.info("Trial %d is %s. %s", number, original.state.name.lower(), message)

    def _retry(self, number: int, original: int) -> None:
        self._record.set_attributes(number, {names.TRIAL_RETRY_OF: original, names.TRIAL_MESSAGE: ""})
