"""The record of a search: its trials in the study, as one attempt reads and writes them.

Every request is tried again while the database is unreachable, and safe to repeat. All raise `StorageError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.search.study import distribution, open_study
from trainer.search.trial_storage import STUDIES, connect, template
from trainer.spec.search import SearchSpec
from trainer.spec.space import Point

TAKEN: Final = (names.TRIAL_EPOCH, names.TRIAL_METRICS, names.TRIAL_REASON)
"""Attributes that a trial takes from the one that it copies."""


class SearchRecord:
    """The trials of a search."""

    def __init__(self, spec: SearchSpec, name: str, attempt: int) -> None:
        """``name`` is the study's; ``attempt`` is the search's, of which there is one at a time."""
        self._spec, self._attempt = spec, attempt
        self._storage = connect()
        self.study: Study = open_study(spec, name, self._storage)
        self._cached = self.study._storage  # noqa: SLF001 - Optuna's cache of ended trials, in front of the storage
        self._created = 0
        """Trials that this attempt has created."""

    # -- Reading

    def trials(self) -> list[FrozenTrial]:
        """All trials that have begun, by number."""
        trials: list[FrozenTrial] = STUDIES.call("read the trials", lambda: self.study.get_trials(deepcopy=False))
        return trials

    def trial(self, number: int) -> FrozenTrial:
        """A trial that has begun."""
        identity = self._identity(number)
        trial: FrozenTrial = STUDIES.call("read a trial", lambda: self._cached.get_trial(identity))
        return trial

    def attribute(self, name: str) -> Any:
        """An attribute of the study; None if it has no such one."""
        return STUDIES.call("read the study", lambda: self.study.user_attrs).get(name)

    def _identity(self, number: int) -> int:
        identity: int = STUDIES.call(
            "read a trial",
            lambda: self._cached.get_trial_id_from_study_id_trial_number(self.study._study_id, number),  # noqa: SLF001
        )
        return identity

    # -- Trials that begin

    def begin_waiting(self, beyond_budget_only: bool) -> FrozenTrial | None:
        """Begin the trial that has waited the longest; None if none waits."""
        study_id = self.study._study_id  # noqa: SLF001 - it has no other
        waiting = STUDIES.call(
            "read the waiting trials", lambda: self._storage.next_waiting(study_id, beyond_budget_only)
        )
        if waiting is None:
            return None
        STUDIES.call("begin a waiting trial", lambda: self._storage.begin(waiting))
        self.trials()  # so that Optuna's cache has it
        trial: FrozenTrial = STUDIES.call("read a trial", lambda: self._cached.get_trial(waiting))
        return trial

    def create(self) -> FrozenTrial:
        """Begin a new trial, whose values are not chosen yet."""
        self._created += 1
        return self._create("create a trial", template(TrialState.RUNNING, f"attempt {self._attempt}: {self._created}"))

    def add_repeat(self, repeated: FrozenTrial, seed: int) -> None:
        """Add a waiting trial that repeats another one with another seed."""
        self._create(
            "add a repeat",
            template(
                TrialState.WAITING,
                f"repeat of {repeated.number} with seed {seed}",
                system_attrs={"fixed_params": dict(repeated.params)},
                user_attrs={names.TRIAL_REPEAT_OF: repeated.number, names.TRIAL_SEED: seed},
            ),
        )

    def _create(self, action: str, trial: FrozenTrial) -> FrozenTrial:
        study_id = self.study._study_id  # noqa: SLF001 - it has no other
        identity = STUDIES.call(action, lambda: self._cached.create_new_trial(study_id, template_trial=trial))
        created: FrozenTrial = STUDIES.call("read a trial", lambda: self._cached.get_trial(identity))
        return created

    def store_point(self, trial: FrozenTrial, point: Point) -> None:
        """Store a trial's values; those it has already stay."""
        for path, value in self._spec.stored(point).items():
            kind = distribution(self._spec.space[path])
            stored = partial(self._cached.set_trial_param, trial._trial_id, path, kind.to_internal_repr(value), kind)  # noqa: SLF001
            STUDIES.call("store a trial's values", stored)

    # -- What trials report

    def set_attributes(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial that has not ended."""
        identity = self._identity(number)
        for key, value in attributes.items():
            STUDIES.call("store a trial's attributes", partial(self._cached.set_trial_user_attr, identity, key, value))

    def report(self, number: int, epoch: int, value: float) -> None:
        """Store the first objective at an evaluation."""
        identity = self._identity(number)
        STUDIES.call("store a value", lambda: self._cached.set_trial_intermediate_value(identity, epoch, value))

    def end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Record a trial's end, unless it has one already."""
        final_values = list(values) if values is not None else None
        STUDIES.call(
            f"record the end of trial {number}",
            lambda: self.study.tell(number, final_values, state=state, skip_if_finished=True),
        )

    def end_like(self, number: int, original: FrozenTrial, message: str) -> None:
        """End a trial as a copy of another one, as that has ended and with its values."""
        for epoch, value in original.intermediate_values.items():
            self.report(number, epoch, value)
        taken = {key: original.user_attrs[key] for key in TAKEN if key in original.user_attrs}
        self.set_attributes(number, taken | {names.TRIAL_COPY_OF: original.number, names.TRIAL_MESSAGE: message})
        self.end(number, original.state, original.values if original.state is TrialState.COMPLETE else None)

    def set_attribute(self, name: str, value: Any) -> None:
        """Set an attribute of the study."""
        STUDIES.call("store how far the search is", lambda: self.study.set_user_attr(name, value))


def costs(trial: FrozenTrial, spec: SearchSpec) -> list[float] | None:
    """An ended trial's objectives, with signs such that less is better.

    None for a repeat or a copy, a failed trial, and one without evaluations or without all objectives.
    """
    if not names.WITHOUT_OWN_RESULT.isdisjoint(trial.user_attrs):
        return None
    if trial.state is TrialState.COMPLETE:
        values: list[float] = list(trial.values)
    elif trial.state is TrialState.PRUNED and trial.intermediate_values and len(spec.objectives) == 1:
        values = [trial.intermediate_values[max(trial.intermediate_values)]]
    else:
        return None
    if not all(map(math.isfinite, values)):
        return None
    return [-value if each.mode == "max" else value for value, each in zip(values, spec.objectives, strict=True)]


def ranked(trials: Sequence[FrozenTrial], spec: SearchSpec) -> list[FrozenTrial]:
    """Ended trials that have a value, the best first by the first objective."""
    rated = [(cost[0], trial.number, trial) for trial in trials if (cost := costs(trial, spec)) is not None]
    return [trial for _, _, trial in sorted(rated, key=lambda each: each[:2])]


def has_failed(trial: FrozenTrial) -> bool:
    """Whether a trial failed by an error of its own, rather than by invalid values or the end of its search."""
    return (
        trial.state is TrialState.FAIL
        and names.TRIAL_COPY_OF not in trial.user_attrs
        and trial.user_attrs.get(names.TRIAL_REASON)
        not in {Reason.INFEASIBLE, Reason.CANCELLED_BY_USER, Reason.PREEMPTED}
    )


def ends_alike(trial: FrozenTrial) -> bool:
    """Whether a trial of the same point ends as this one has ended: this one has a value, or is invalid.

    Nothing is known of the point if this one failed otherwise, or was stopped before its first evaluation.
    """
    if trial.state is TrialState.FAIL:
        return bool(trial.user_attrs.get(names.TRIAL_REASON) == Reason.INFEASIBLE)
    return trial.state is not TrialState.PRUNED or names.TRIAL_METRICS in trial.user_attrs
