"""The searcher: which trial runs next, and the record of each trial in the search's study."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from trainer.attempt.commands import CommandListener
from trainer.attempt.outcome import outcome_after
from trainer.errors import DataError
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Action, SearchOrders
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.parameters import parameters
from trainer.protocol.request import AttemptRequest
from trainer.search.drawing import Drawing
from trainer.search.kept import KeptCheckpoints
from trainer.search.record import SearchRecord, has_failed, ranked
from trainer.search.running_trial import RunningTrial
from trainer.search.same_point import SamePoint
from trainer.search.trial import REQUEST, TRIAL, TrialContext
from trainer.search.trial_storage import STUDIES
from trainer.spec import metric_keys
from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.plan import resolve
from trainer.spec.search import SearchSpec, epochs_of
from trainer.spec.space import Point
from trainer.storage import Store
from trainer.tracking.channels import LAST_GENERATION, SearchChannel
from trainer.tracking.trials import TrialRuns

STORE_SECONDS: Final = 10.0
"""How often the elapsed time is stored."""
RESUMABLE: Final = frozenset({Reason.STORAGE_ERROR, Reason.NODE_LOST, Reason.PREEMPTED, Reason.STALLED})
"""Failures that say nothing of a trial's values: it resumes from its checkpoint. So does one that left no outcome."""
UNCHARGED: Final = frozenset({Reason.NODE_LOST, Reason.PREEMPTED})
"""Those of them that do not count against `retry.max_failures`, as for jobs."""
STATUS: Final = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}
"""What MLflow shows as the status of an ended trial's run."""


class StudySearch(OptunaSearch):
    """The searcher: starts trials as the orders allow, and records their results in the study.

    Its own state is never stored: no attempt resumes from Ray Tune's records, and they would hold the database's URL.
    """

    def __init__(
        self,
        request: AttemptRequest,
        spec: SearchSpec,
        runs: TrialRuns,
        channel: SearchChannel,
        listener: CommandListener,
    ) -> None:
        self._request, self._spec, self._runs, self._channel, self._listener = request, spec, runs, channel, listener
        first = spec.objectives[0]
        Searcher.__init__(self, first.metric, first.mode)
        self.record = SearchRecord(spec, request.job_id, request.attempt)
        self.running: dict[str, RunningTrial] = {}
        """By Ray Tune's id of the trial."""
        self._started_at = self._stored_at = time.monotonic()
        self._earlier_seconds = float(self.record.attribute(names.STUDY_SECONDS) or 0.0)
        trials = self.trials()
        self._kept = KeptCheckpoints(self.record, spec, trials)
        self._drawing = Drawing(self.record, spec, trials)
        self._begun = sum(names.BEYOND_BUDGET.isdisjoint(trial.user_attrs) for trial in trials)
        """Trials that have begun and count against the budget."""
        self._failed = sum(map(has_failed, trials))
        self._measured = any(names.TRIAL_METRICS in trial.user_attrs for trial in trials)
        """Whether any trial has had an evaluation."""
        self._same_point = SamePoint(self.record)
        self._to_resume = [trial.number for trial in trials if trial.state is TrialState.RUNNING]
        """Numbers of trials that have begun and are to start now: an attempt ended meanwhile, or they have waited."""
        self._trial_action: Action | None = None
        """The command that a trial obeyed: a trial may read it before the search does."""
        self.error: Exception | None = None
        """The error that ends this attempt. `run_search` raises it, because Ray Tune ignores errors of a searcher."""

    def __deepcopy__(self, memo: dict[int, Any]) -> StudySearch:
        """This object itself: Ray Tune copies its searcher, and two copies would diverge."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """An empty dict: Ray Tune pickles its searcher into its own records, from which no attempt resumes."""
        return (dict, ())

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:  # noqa: ARG002
        return True

    # -- Starting trials

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; None if none may start now, `FINISHED` if none will."""
        try:
            return self._suggest(trial_id)
        except Exception as error:  # noqa: BLE001 - Ray Tune would only log it
            self._abort(error)
            return Searcher.FINISHED

    def _abort(self, error: Exception) -> None:
        logger.error("The search cannot continue: %s", error)
        self.error = self.error or error

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._store_elapsed_time()
        orders, ending = self.orders, self.requested_action() or self.error
        if not ending and len(self.running) < orders.concurrency:
            while (trial := self._next_trial(orders)) is not None:
                configuration = self._configuration(trial_id, trial)
                if configuration is not None:
                    return configuration
        return None if self.running else Searcher.FINISHED

    def _next_trial(self, orders: SearchOrders) -> FrozenTrial | None:
        """A trial to run now: an interrupted one, one that waits, a new one, or a repeat; None if there is none."""
        if self._to_resume:
            return self.record.trial(self._to_resume.pop(0))
        if orders.draining or self._out_of_time(orders) or self._failed > orders.max_failed:
            return None
        # A point that a user has added counts against the budget; a repeat, a retry or a copy does not.
        spent = self._begun >= orders.trials
        trial = self.record.begin_waiting(beyond_budget_only=spent)
        if trial is None and not spent and not self._drawing.exhausted:
            trial = self.record.create()
        if trial is None and not self.running and self._add_repeats():
            trial = self.record.begin_waiting(beyond_budget_only=True)
        if trial is not None:
            self._begun += names.BEYOND_BUDGET.isdisjoint(trial.user_attrs)
        return trial

    def requested_action(self) -> Action | None:
        """The command that ends this attempt; None while there is none."""
        return self._listener.requested_action() or self._trial_action

    @property
    def orders(self) -> SearchOrders:
        """The search's current orders."""
        spec, budget = self._spec, self._spec.budget
        return self._channel.orders or SearchOrders(
            trials=spec.trials, concurrency=budget.concurrency, max_failed=budget.max_failed, max_hours=budget.max_hours
        )

    def trials(self) -> list[FrozenTrial]:
        """All trials that have begun, by number."""
        return self.record.trials()

    def _out_of_time(self, orders: SearchOrders) -> bool:
        return orders.max_hours is not None and self.elapsed_seconds() >= 3600 * orders.max_hours

    def elapsed_seconds(self) -> float:
        """How long this attempt and earlier ones have run trials."""
        return self._earlier_seconds + time.monotonic() - self._started_at

    def _store_elapsed_time(self) -> None:
        if time.monotonic() - self._stored_at < STORE_SECONDS:
            return
        self._stored_at = time.monotonic()
        self.record.set_attribute(names.STUDY_SECONDS, round(self.elapsed_seconds(), 1))

    def _configuration(self, trial_id: str, trial: FrozenTrial) -> dict[str, Any] | None:
        """What a trial's process is to do; None if it has ended, or waits for another trial, and so needs none."""
        started = names.TRIAL_ATTEMPTS in trial.user_attrs
        point = self._spec.point(trial.params) if started else self._choose_point(trial)
        return None if point is None else self._configure(trial_id, trial, point)

    def _choose_point(self, trial: FrozenTrial) -> Point | None:
        """Choose and store the values of a trial before its first start; None if it has no need to start.

        An attempt may have died here, or while the trial waited, so it may have some values or all. It gets no run
        before it has all.
        """
        point = STUDIES.call("choose a trial's values", lambda: self._drawing.point(trial))
        self.record.store_point(trial, point)
        tried_by = self._drawing.tried_by(point)
        if tried_by is not None and names.TRIED_AGAIN.isdisjoint(trial.user_attrs):
            self._begun -= names.BEYOND_BUDGET.isdisjoint(trial.user_attrs)
            if not self._same_point.must_train(trial.number, tried_by):
                return None
        self._drawing.record(point, trial)
        return point

    def _configure(self, trial_id: str, trial: FrozenTrial, point: Point) -> dict[str, Any] | None:
        """As `_configuration`, for a trial that has a point."""
        number, attributes = trial.number, trial.user_attrs
        try:
            spec = resolve(self._spec.at(point, attributes.get(names.TRIAL_SEED)), ClusterShape(()))
        except SpecError as error:
            self._end_trial(number, TrialState.FAIL, Reason.INFEASIBLE, str(error))
            return None
        recorded_run = attributes.get(names.TRIAL_RUN)
        params = parameters(spec.model_dump(mode="json"))
        run_id, folder = self._runs.open(number, f"{self._spec.name}-{number}", params, recorded_run)
        if recorded_run not in {None, run_id}:
            logger.warning(
                "Trial %d starts over in a new MLflow run: %s was removed, with its checkpoints", number, recorded_run
            )
        starts = [*attributes.get(names.TRIAL_ATTEMPTS, ()), len(attributes.get(names.TRIAL_ATTEMPTS, ())) + 1]
        self._kept.hold(number)
        self.record.set_attributes(
            number, {names.TRIAL_RUN: run_id, names.TRIAL_FOLDER: folder, names.TRIAL_ATTEMPTS: starts}
        )
        running = RunningTrial(number, point, starts[-1], Store(folder), run_id)
        running.repeat = names.TRIAL_REPEAT_OF in attributes
        running.reported = set(trial.intermediate_values)
        running.newest = attributes.get(names.TRIAL_METRICS, {})
        self.running[trial_id] = running
        search_request = self._request
        trial_request = AttemptRequest(
            job_id=search_request.job_id, attempt=running.start, run_id=run_id,
            tracking_uri=search_request.tracking_uri, artifact_uri=folder, request_id=search_request.request_id,
            dataset_roots=search_request.dataset_roots, source=search_request.source,
            reference_uri=search_request.reference_uri, spec=spec,
        )  # fmt: skip
        context = TrialContext(
            run_id=search_request.run_id, attempt=search_request.attempt, number=number,
            metrics=tuple(each.metric for each in self._spec.objectives), epochs=epochs_of(spec),
            evaluates=isinstance(spec, EvaluateSpec), stall_limit_s=search_request.stall_limit_s,
        )  # fmt: skip
        logger.info("Trial %d %s: %s", number, "resumes" if running.start > 1 else "starts", point)
        return {REQUEST: trial_request.model_dump_json(), TRIAL: context.model_dump_json()}

    def _add_repeats(self) -> bool:
        """Add the best trials again with other seeds, after all others have ended; returns whether any were added."""
        repeats = self._spec.repeats
        if not repeats.best:
            return False
        trials = self.trials()
        existing = {(t.user_attrs.get(names.TRIAL_REPEAT_OF), t.user_attrs.get(names.TRIAL_SEED)) for t in trials}
        missing = []
        best = [trial for trial in ranked(trials, self._spec) if trial.state is TrialState.COMPLETE]
        for trial in best[: repeats.best]:
            base = self._spec.at(self._spec.point(trial.params)).seed
            seeds = [(base + each * self._spec.seeds_of_trial) % 2**32 for each in range(1, repeats.seeds + 1)]
            missing += [(trial, seed) for seed in seeds if (trial.number, seed) not in existing]
        for trial, seed in missing:
            self.record.add_repeat(trial, seed)
        return bool(missing)

    # -- Recording results

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an evaluation of a trial that continues."""
        if metric_keys.EPOCH not in result:
            return
        try:
            self._record(self.running[trial_id], result)
        except Exception as error:  # noqa: BLE001 - Ray Tune would blame the trial for it
            self._abort(error)

    def _record(self, running: RunningTrial, result: Mapping[str, Any]) -> None:
        epoch = round(float(result[metric_keys.EPOCH]))
        metrics = {key: float(value) for key, value in result.items() if _is_metric(key, value)}
        running.newest = metrics
        if epoch in running.reported:  # a resumed trial repeats some evaluations
            return
        # The metrics first: a trial that resumes does not report an epoch again of which the study has the value.
        self.record.set_attributes(running.number, {names.TRIAL_EPOCH: epoch, names.TRIAL_METRICS: metrics})
        if len(self._spec.objectives) == 1:
            self.record.report(running.number, epoch, metrics[self._spec.objectives[0].metric])
        running.reported.add(epoch)
        self._measured = True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial, or of its process."""
        running = self.running.pop(trial_id, None)
        if running is None:
            return
        try:
            # If the scheduler stopped it at this report, `on_trial_result` was not called for it.
            if result and metric_keys.EPOCH in result:
                self._record(running, result)
            self._record_end(running, self._outcome_of(running), error)
        except Exception as failure:  # noqa: BLE001 - as above
            self._abort(failure)

    def _outcome_of(self, running: RunningTrial) -> Outcome | None:
        name = names.outcome_file(running.start)
        return Outcome.model_validate_json(running.store.read(name)) if running.store.exists(name) else None

    def _record_end(self, running: RunningTrial, outcome: Outcome | None, error: bool) -> None:
        """Record in the study how a trial ended, if it has."""
        if running.stop_reason is not None and not error:  # whatever came of its process since
            self._end_trial(running.number, TrialState.PRUNED, None, running.stop_reason, run_id=running.run_id)
        elif outcome is None and not error:
            return  # Ray Tune itself is ending: the next attempt resumes the trial
        elif outcome is None or outcome.state == "failed":
            self._record_failure(running, outcome)
        elif outcome.state == "succeeded":
            self._record_success(running)
        else:
            self._record_stop(running, "pause" if outcome.state == "paused" else "cancel")

    def _record_success(self, running: RunningTrial) -> None:
        """Record the values of a trial that has trained to its end. One that resumed there has reported them before."""
        metrics = [each.metric for each in self._spec.objectives]
        missing = [metric for metric in metrics if metric not in running.newest]
        if missing:
            message = f"It ran to its end, but no evaluation with {' and '.join(missing)} is known: retry it."
            self._end_trial(running.number, TrialState.FAIL, Reason.WORKER_FAILED, message, run_id=running.run_id)
            return
        values = [running.newest[metric] for metric in metrics]
        self._end_trial(running.number, TrialState.COMPLETE, None, "", values, run_id=running.run_id)

    def _record_stop(self, running: RunningTrial, action: Action) -> None:
        """Record that a trial obeyed the search's command, or a user's command to stop this trial alone."""
        command, stopped_by_user = self._channel.read_command_patiently(), running.number in self.orders.stopped
        if command and command.generation == LAST_GENERATION:
            self._trial_action = "cancel"  # a later attempt has begun, and the running trials belong to it
        elif stopped_by_user and (command is None or command.action == "pause"):
            self._end_trial(
                running.number, TrialState.PRUNED, Reason.STOPPED_BY_USER, "Stopped by hand.", run_id=running.run_id
            )
        else:
            self._trial_action = command.action if command else action
            if self._trial_action == "cancel":
                message = "The search was cancelled."
                self._end_trial(
                    running.number, TrialState.PRUNED, Reason.CANCELLED_BY_USER, message, run_id=running.run_id
                )

    def _record_failure(self, running: RunningTrial, outcome: Outcome | None) -> None:
        """A trial that lost its process, node or storage resumes from its checkpoint; any other has failed."""
        reason = outcome.reason if outcome and outcome.reason else Reason.WORKER_FAILED
        message = outcome.message if outcome else f"its process {running.death or 'died without a message'}"
        resumable, action = outcome is None or reason in RESUMABLE, self.requested_action()
        if action == "pause":
            return  # the next attempt resumes it
        if not action and resumable and (reason in UNCHARGED or self._charge(running.number)):
            logger.warning("Trial %d resumes from its last checkpoint: %s", running.number, message)
            self._to_resume.append(running.number)
            return
        self._end_trial(running.number, TrialState.FAIL, reason, message, run_id=running.run_id)
        if outcome and self._concerns_all_trials(outcome):
            self._abort(DataError(f"trial {running.number}: {message}"))

    def _concerns_all_trials(self, outcome: Outcome) -> bool:
        """Whether every other trial would fail like the one that left this outcome.

        All trials have the same data. The model decides which images can be used, and how much memory they need.
        """
        if self._measured or outcome.reason is not Reason.DATA_ERROR:
            return False
        return outcome.concerns_all_trials or not any(path.startswith("model.") for path in self._spec.space)

    def _charge(self, number: int) -> bool:
        """Count a failure against a trial's `retry.max_failures`; returns whether it may resume."""
        failures = self.record.trial(number).user_attrs.get(names.TRIAL_FAILURES, 0) + 1
        self.record.set_attributes(number, {names.TRIAL_FAILURES: failures})
        return bool(failures <= self._spec.base_spec.retry.max_failures)

    def _end_trial(
        self,
        number: int,
        state: TrialState,
        reason: Reason | None,
        message: str,
        values: Sequence[float] | None = None,
        run_id: str | None = None,
    ) -> None:
        attributes: dict[str, Any] = {names.TRIAL_MESSAGE: message} if message else {}
        self.record.set_attributes(number, attributes | ({names.TRIAL_REASON: reason.value} if reason else {}))
        self.record.end(number, state, values)
        if run_id:
            self._runs.end(run_id, STATUS[state])
        logger.info("Trial %d is %s. %s", number, state.name.lower(), message)
        ended = self.record.trial(number)
        self._failed += has_failed(ended)
        retry = self._same_point.release(ended)
        if retry is not None:
            self._to_resume.append(retry)
        self._kept.keep_best(ended)

    def epochs_of(self, running: RunningTrial) -> float:
        """A trial's full length in epochs."""
        searched = running.point.get("optimization.epochs")
        return float(searched if searched is not None else self._spec.epochs)

    # -- The end of the attempt

    def outcome(self) -> Outcome:
        """How this attempt ended."""
        action, orders = self.requested_action(), self.orders
        if action:
            return outcome_after(action)
        if self._failed > orders.max_failed:
            last = max(filter(has_failed, self.trials()), key=lambda trial: str(trial.datetime_complete))
            text = (
                f"{self._failed} trials failed, and budget.max_failed is {orders.max_failed}. The last was trial "
                f"{last.number}: {last.user_attrs.get(names.TRIAL_MESSAGE, '')}"
            )
            return Outcome(state="failed", reason=Reason.TRIALS_FAILED, message=text)
        return outcome_after(None)


def _is_metric(key: str, value: object) -> bool:
    return "/" in key and isinstance(value, int | float) and not key.startswith("config/")
