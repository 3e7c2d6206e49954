"""What the loop does between steps once in a while: log, evaluate, save.

Every rank asks and runs each of them in the same order. Evaluations are shared by all ranks, and what only rank 0 does
comes last, before the ranks agree on saving. In both, ranks wait for each other in `Agreement`'s patient group, not in
a collective of the training group, whose time-out ends the attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from trainer.agreement import Agreement
from trainer.evaluation.evaluator import Evaluator
from trainer.logger import logger
from trainer.protocol.command import Action
from trainer.spec.plan import Schedule
from trainer.tracking.activity import ActivityTracker
from trainer.tracking.interface import Recorder
from trainer.training.checkpoint import Committed
from trainer.training.meter import Meter
from trainer.training.saving import Savable, Saver
from trainer.training.state import TrainState


class Progress(Savable[Any], Protocol):
    """The state of a training, and how far it has come."""

    step: int
    """Optimiser steps done."""
    saved_at: int | None
    """The step of the newest checkpoint, whose upload may still be under way."""


Record = Callable[[int, Mapping[str, float]], None]
"""Records metrics of a step. It neither blocks nor fails."""
S_contra = TypeVar("S_contra", contravariant=True)


class PeriodicWork(Protocol[S_contra]):
    """Every rank calls both methods at the same steps."""

    def due(self, step: int) -> bool: ...

    def run(self, state: S_contra) -> None: ...


def epoch_due(every_epochs: int, step: int, schedule: Schedule) -> bool:
    """Whether ``step`` ends so many epochs, or training."""
    return step % (every_epochs * schedule.steps_per_epoch) == 0 or step == schedule.steps


class Log:
    """Records the losses and rates of the latest step.

    Steps are counted from the epoch's start, so that a resumed run logs the same ones.
    """

    def __init__(self, meter: Meter, record: Record | None, schedule: Schedule, start: int) -> None:
        self._meter, self._record, self._start = meter, record, start
        self._steps_per_epoch = schedule.steps_per_epoch
        self._every = max(1, min(20, schedule.steps_per_epoch // 10))

    def due(self, step: int) -> bool:
        return step > self._start and step % self._steps_per_epoch % self._every == 0

    def run(self, state: Progress) -> None:
        metrics = self._meter.read(state.step, state.saved_at)
        if self._record:
            self._record(state.step, metrics)


class Evaluate:
    """Measures the networks on held-out images, on all ranks together; rank 0 records what they find."""

    def __init__(
        self,
        evaluator: Evaluator,
        recorder: Recorder | None,
        meter: Meter,
        tracker: ActivityTracker,
        schedule: Schedule,
        every_epochs: int,
        start: int,
    ) -> None:
        self._evaluator, self._recorder, self._meter, self._schedule = evaluator, recorder, meter, schedule
        self._tracker, self._every_epochs, self._start = tracker, every_epochs, start

    def due(self, step: int) -> bool:
        resumed_here = 0 < self._start == step  # this step was evaluated before its checkpoint was taken
        return not resumed_here and epoch_due(self._every_epochs, step, self._schedule)

    def run(self, state: TrainState) -> None:
        with self._meter.paused(), self._tracker.during("evaluating"):
            state.metrics = self._evaluator.evaluate(state.student, state.backbone, state.step)
            state.evaluated_at = state.step
            if self._recorder:
                shown = ", ".join(f"{key} {value:.4g}" for key, value in state.metrics.items())
                logger.info("Evaluation at step %d: %s", state.step, shown)
                self._recorder.log(state.step, state.metrics)  # a search may stop its trial for good here


class Save:
    """Takes a checkpoint when one is due, at a command, and at the end of training."""

    def __init__(
        self,
        saver: Saver[Any] | None,
        requested_action: Callable[[], Action | None],
        agree: Agreement,
        meter: Meter,
        tracker: ActivityTracker,
        schedule: Schedule,
        every_epochs: int,
        state: Progress,
    ) -> None:
        self._saver, self._requested_action, self._agree = saver, requested_action, agree
        self._meter, self._tracker, self._schedule = meter, tracker, schedule
        self._every_epochs, self._start, self._saved_at = every_epochs, state.step, state.saved_at
        self.action: Action | None = None
        """The command that the ranks agreed to obey, unless training was complete anyway."""
        self.ended = False
        """Whether the ranks agreed that training ends at this step."""

    def due(self, step: int) -> bool:
        """Agree with the other ranks on commands and on a checkpoint at this step."""
        ready = self._saver is not None and step > self._start and self._ready(self._saver, step)
        action, ready = self._agree(self._requested_action(), ready)
        complete = step == self._schedule.steps
        self.ended = complete or action is not None
        self.action = None if complete else action
        return ready or (self.ended and step != self._saved_at)

    def _ready(self, saver: Saver[Any], step: int) -> bool:
        """Whether a checkpoint is to be taken now; if so, the upload of the one before it has ended.

        Rank 0 waits for that upload here, while the others wait for its word in the patient group.
        """
        due = saver.due(epoch_due(self._every_epochs, step, self._schedule))
        if due:
            with self._meter.paused(), self._tracker.during("storing"):
                saver.wait()
        return due

    def run(self, state: Progress) -> None:
        with self._meter.paused(), self._tracker.during("storing"):
            self._meter.check(state.step, state.saved_at)
            state.saved_at = self._saved_at = state.step
            if self._saver:
                self._saver.save(state)

    def finish(self) -> Committed:
        """The last checkpoint, once it is stored; the other ranks wait for it in the patient group."""
        self._tracker.enter("storing")
        return self._agree.share(self._saver.finish() if self._saver else None)
