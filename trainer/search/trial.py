"""One trial's process: it does the same work as a job's worker, and reports each evaluation to the search."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from trainer.attempt import preemption
from trainer.attempt.commands import CommandChannel, CommandListener
from trainer.attempt.evidence import diagnose
from trainer.attempt.outcome import settle_outcome
from trainer.attempt.worker import Connection, Work, Worker, run_worker
from trainer.attempt.workers import run_workers
from trainer.errors import DataError
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.message import Message
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest
from trainer.spec import metric_keys
from trainer.spec.job import JobSpec
from trainer.storage import Store
from trainer.tracking.interface import UsedDataset

if TYPE_CHECKING:
    from trainer.tracking.recorder import RunRecorder

REQUEST, TRIAL = "request", "trial"
"""Keys of a trial's configuration in Ray Tune: JSON of an `AttemptRequest` and of a `TrialContext`."""
STOP_SECONDS: Final = 60
"""How long a trial that is stopped at a report has to clean up before its process is killed."""

MEMORY_ADVICE: Final = "Lower optimization.micro_batch_size, or use nodes with more memory"
EVALUATION_MEMORY_ADVICE: Final = "Lower micro_batch_size of its protocols, or use nodes with more memory"

Report = Callable[[Mapping[str, float]], None]
"""Reports an evaluation and its epoch to the search; raises `SystemExit` if the trial is to end there."""


class TrialFailed(Exception):
    """A trial has failed and stored its outcome; raised so that Ray Tune knows."""


class ObjectiveNotMeasured(DataError):
    """No trial of the search can measure an objective on these data."""


class TrialContext(Message):
    """The search that a trial belongs to."""

    run_id: str
    """The search's MLflow run."""
    attempt: int
    """The search's attempt."""
    number: int
    """The trial's number."""
    metrics: tuple[str, ...]
    """The objectives."""
    epochs: int
    """The trial's full length."""
    evaluates: bool = False
    """Whether the trial is an evaluation, which reports its result alone; a training reports each evaluation."""
    stall_limit_s: float | None = None
    """The longest time between two steps of training; None: no limit."""


def run_trial(config: Mapping[str, str], work: Work) -> None:
    """Run one trial, in a process that may have run others; it leaves an outcome as a job's attempt does.

    A single worker runs in this very process; several workers have processes of their own.
    """
    # Imported here: workers in processes of their own share this module and do without Ray Tune.
    from ray import tune  # noqa: PLC0415
    from ray.train._internal.session import get_session  # noqa: PLC0415

    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(STOP_SECONDS)  # read in this process after this function returns
    request = AttemptRequest.model_validate_json(config[REQUEST])
    context = TrialContext.model_validate_json(config[TRIAL])
    store, failure = Store(request.artifact_uri), None
    work = partial(do_trial, work=work)
    _release_memory()
    try:
        if runs_in_process(request.spec):
            report = partial(_report_here, tune.report)
            with preemption.watching(request, 0):
                run_worker(request, 0, 1, work, partial(connect_trial, context=context, report=report))
        else:
            session: Any = get_session()
            queue = session._get_or_create_inter_actor_queue()  # noqa: SLF001 - as Ray's own callback does
            connect = partial(connect_trial, context=context, report=queue.put)
            outcome = run_workers(request, store, work, connect, nested=True)
            failure = outcome if outcome.state == "failed" else None
    except Exception as error:  # noqa: BLE001 - the outcome must report any error
        reason, message = diagnose(error, f"trial {context.number}", store.uri)
        failure = Outcome(state="failed", reason=reason, message=message)
    if failure and failure.reason is Reason.OUT_OF_MEMORY:  # of a job the service says what to do
        advice = EVALUATION_MEMORY_ADVICE if context.evaluates else MEMORY_ADVICE
        failure = failure.model_copy(update={"message": f"{failure.message}. {advice}"})
    if failure:
        settle_outcome(store, request.attempt, failure)
        raise TrialFailed(failure.message)


def do_trial(worker: Worker, work: Work) -> Outcome:
    """What every worker of a trial does: ``work``. Where an objective cannot be measured, it stores the outcome itself,
    because only the error's text would reach the process that stores the outcome of other failures.
    """
    try:
        return work(worker)
    except ObjectiveNotMeasured as error:
        failure = Outcome(state="failed", reason=error.reason, message=str(error), concerns_all_trials=True)
        settle_outcome(worker.store, worker.request.attempt, failure)
        raise


def runs_in_process(spec: JobSpec) -> bool:
    """Whether a trial has one worker, which then runs in the trial's own process."""
    return int(spec.worker_resources.workers) == 1


def _release_memory() -> None:
    """Free what the previous trial has left in this process, on the GPU too."""
    gc.collect()
    if "torch" in sys.modules and not gc.get_freeze_count():
        gc.freeze()  # not the first trial: torch and other modules stay, so later collections can skip them


def _report_here(tune_report: Callable[[dict[str, Any]], None], metrics: Mapping[str, float]) -> None:
    """Report to Ray Tune from a trial's own process."""
    try:
        tune_report(dict(metrics))
    except SystemExit:
        logger.info("The scheduler stops this trial here: other trials do better")
        raise


def connect_trial(request: AttemptRequest, context: TrialContext, report: Report) -> Connection:
    """A trial's connection: it records in its own run, and obeys its search's commands."""
    # Imported here: MLflow takes three seconds, and only rank 0 needs it.
    from trainer.tracking.channels import TrialChannel  # noqa: PLC0415
    from trainer.tracking.recorder import RunRecorder  # noqa: PLC0415

    recorder = RunRecorder(request.tracking_uri, request.run_id, request.attempt)
    channel = TrialChannel(request, context.run_id, context.attempt, context.number)
    return Connection(TrialRecorder(recorder, context, report), TrialListener(channel, request, context))


class TrialListener(CommandListener):
    """A trial's listener: it hears the commands of the search, and ends the trial's process if training stands still.

    The service watches the heartbeats of the search alone, and Ray Tune waits for a trial as long as its process lives.
    """

    def __init__(self, channel: CommandChannel, request: AttemptRequest, context: TrialContext) -> None:
        super().__init__(channel, context.attempt, request.attempt)
        self._request, self._limit_s = request, context.stall_limit_s

    def _poll(self) -> None:
        activity = self.activity()
        stall = activity.stall(self._limit_s) if activity and self._limit_s else None
        if stall:
            self._end_process(stall)
        super()._poll()

    def _end_process(self, message: str) -> None:
        """End this process with the outcome `stalled`: the thread that hangs cannot be ended otherwise."""
        logger.error("%s", message)
        killer = threading.Timer(STOP_SECONDS, os._exit, (1,))  # if the storage hangs as well
        killer.daemon = True
        killer.start()
        try:
            store, attempt = Store(self._request.artifact_uri), self._request.attempt
            settle_outcome(store, attempt, Outcome(state="failed", reason=Reason.STALLED, message=message))
        finally:
            os._exit(1)


class TrialRecorder:
    """A recorder that also reports each evaluation, with the newest value of every metric and the epoch."""

    def __init__(self, recorder: RunRecorder, context: TrialContext, report: Report) -> None:
        self._recorder, self._context, self._report = recorder, context, report
        self._newest: dict[str, float] = {}
        self._total_steps = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises `ObjectiveNotMeasured` if an evaluation lacks an objective, `SystemExit` if the trial is to end."""
        self._recorder.log(step, metrics)
        self._newest |= metrics
        if not self._is_result(metrics):
            return
        self._check_measures(step)
        if step == 0:
            return
        self._recorder.try_to_send()  # so that the run in MLflow is not behind what the search knows
        epoch = step * self._context.epochs / self._total_steps
        try:
            self._report(self._newest | {metric_keys.EPOCH: epoch})
        except SystemExit:
            self._recorder.close()
            raise

    def _is_result(self, metrics: Mapping[str, float]) -> bool:
        """Whether metrics are those of an evaluation as a whole. What a job of kind `evaluate` logs before its end
        counts the measurements so far, and may lack some.
        """
        if self._context.evaluates:
            return metric_keys.SAMPLES not in metrics
        return metric_keys.RECONSTRUCTION_RATIO in metrics

    def log_curve(self, step: int, metrics: Mapping[str, float]) -> None:
        self._recorder.log_curve(step, metrics)

    def _check_measures(self, step: int) -> None:
        """Before the first step an evaluation has no metrics of training, but all others."""
        for metric in self._context.metrics:
            if metric not in self._newest and (step or metric.startswith(metric_keys.EVALUATION)):
                raise ObjectiveNotMeasured(
                    f"objective.metric: {metric} cannot be measured, because the dataset has no labels or "
                    f"base.evaluation.probes leaves it out: use {metric_keys.RECONSTRUCTION_RATIO}, or give "
                    "base.evaluation.dataset a dataset with labels"
                )

    def tag(self, tags: Mapping[str, str]) -> None:
        if names.TAG_STEPS in tags:
            self._total_steps = int(tags[names.TAG_STEPS])
        self._recorder.tag(tags)

    def use(self, datasets: Sequence[UsedDataset]) -> None:
        self._recorder.use(datasets)

    def drain(self) -> None:
        self._recorder.drain()

    def close(self) -> None:
        self._recorder.close()
