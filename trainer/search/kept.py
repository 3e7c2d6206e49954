"""Which trials keep their checkpoints: those that have not ended, and the best of those that have."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from trainer.protocol import names
from trainer.search.record import SearchRecord, costs
from trainer.spec.search import SearchSpec
from trainer.spec.search_sections import pareto_front
from trainer.storage import Store


class KeptCheckpoints:
    """Removes the checkpoints of ended trials that are not among the best.

    The study has the numbers of all trials that may have checkpoints: few, however many trials there are.
    """

    def __init__(self, record: SearchRecord, spec: SearchSpec, trials: Sequence[FrozenTrial]) -> None:
        """``trials`` are those that have begun."""
        self._record, self._spec = record, spec
        stored = record.attribute(names.STUDY_HELD)
        self._held = {trial.number for trial in trials} if stored is None else set(stored)
        """Numbers of the trials that may have checkpoints."""
        self._ended = {trial.number: trial for trial in trials if self._has_ended_held(trial)}
        """Those of them that have ended."""

    def _has_ended_held(self, trial: FrozenTrial) -> bool:
        return trial.number in self._held and trial.state.is_finished()

    def hold(self, number: int) -> None:
        """Note that a trial may have checkpoints from now on."""
        if number not in self._held:
            self._held.add(number)
            self._store()

    def keep_best(self, ended: FrozenTrial) -> None:
        """Remove the checkpoints of a trial that has ended, or of those that it beats."""
        if ended.number not in self._held:
            return
        self._ended[ended.number] = ended
        removed = self._ended.keys() - self._best()
        for number in removed:
            folder = self._ended.pop(number).user_attrs.get(names.TRIAL_FOLDER)
            if folder is not None:
                Store(folder).delete(names.CHECKPOINTS)
                Store(folder).delete(names.TRAININGS)
        if removed:
            self._held -= removed
            self._store()

    def _best(self) -> set[int]:
        """The best ``keep`` of the trials that have ended; with several objectives, at least the Pareto front.

        Trials without checkpoints need no look: better ones of these have taken their places.
        """
        rated = {number: cost for number, trial in self._ended.items() if (cost := costs(trial, self._spec))}
        front = pareto_front(rated) if len(self._spec.objectives) > 1 else []
        others = sorted(rated.keys() - set(front), key=lambda number: (rated[number], number))
        return {*front, *others[: max(0, self._spec.keep - len(front))]}

    def _store(self) -> None:
        self._record.set_attribute(names.STUDY_HELD, sorted(self._held))
