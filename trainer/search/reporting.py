"""A trial of a search, as its workers see it: a training job whose evaluations are handed on as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.errors import DataError
from trainer.protocol import names
from trainer.protocol.message import Message
from trainer.spec import metric_keys
from trainer.spec.job import JobSpec
from trainer.spec.pretrain import PretrainSpec

if TYPE_CHECKING:
    from trainer.tracking.tracker import Tracker

Report = Callable[[Mapping[str, float]], None]
"""Takes an evaluation with its epoch; does not come back where the trial is to end there."""


class TrialOf(Message):
    """The search that a trial is of."""

    run_id: str
    """The search's MLflow run."""
    attempt: int
    """The search's."""
    number: int
    """The trial's."""
    metrics: tuple[str, ...]
    """What is sought."""


class Reporting:
    """A recorder that hands each evaluation on, with the newest of all other metrics and the epoch."""

    def __init__(self, tracker: Tracker, spec: JobSpec, metrics: Sequence[str], report: Report) -> None:
        """``metrics`` must be among what is handed on."""
        if not isinstance(spec, PretrainSpec):
            raise TypeError(f"a trial of kind {spec.kind}")
        self._tracker, self._epochs, self._wanted, self._report = tracker, spec.optimization.epochs, metrics, report
        self._newest: dict[str, float] = {}
        self._steps = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises `DataError` where an evaluation does not measure what is sought."""
        self._tracker.log(step, metrics)
        self._newest |= metrics
        if step == 0 or metric_keys.RECONSTRUCTION_RATIO not in metrics:
            return
        missing = [metric for metric in self._wanted if metric not in self._newest]
        if missing:
            raise DataError(
                f"objective.metric: {missing[0]} is not measured here, the dataset has no labels: "
                f"seek {metric_keys.RECONSTRUCTION_RATIO}, or give base.evaluation.dataset one with labels"
            )
        self._tracker.settle()  # what others read of this trial is not behind what its search knows
        self._report(self._newest | {metric_keys.EPOCH: step * self._epochs / self._steps})

    def tag(self, tags: Mapping[str, str]) -> None:
        if names.TAG_STEPS in tags:
            self._steps = int(tags[names.TAG_STEPS])
        self._tracker.tag(tags)
