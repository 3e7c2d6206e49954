"""The searcher: which trial runs next, and the record of each trial in the search's study."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from trainer.attempt.commands import CommandListener
from trainer.attempt.outcome import outcome_after
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Action, SearchOrders
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest
from trainer.search.running_trial import RunningTrial
from trainer.search.study import STUDIES, ask, connect, open_study, ranked, tell
from trainer.search.trial import REQUEST, TRIAL, TrialContext
from trainer.spec import metric_keys
from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape
from trainer.spec.plan import resolve
from trainer.spec.search import SearchSpec
from trainer.spec.space import Point
from trainer.storage import Store
from trainer.tracking.channels import LAST_GENERATION, SearchChannel
from trainer.tracking.trials import TrialRuns

STORE_SECONDS: Final = 10.0
"""How often the elapsed time is stored."""
RESUMABLE: Final = frozenset({Reason.STORAGE_ERROR, Reason.NODE_LOST, Reason.PREEMPTED})
"""Failures that say nothing of a trial's values: it resumes from its checkpoint."""
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
        self._study: Study = open_study(spec, request.job_id, connect())
        self.running: dict[str, RunningTrial] = {}
        """By Ray Tune's id of the trial."""
        self._to_resume: list[int] = []
        """Numbers of interrupted trials that are to resume."""
        self._started_at = self._stored_at = time.monotonic()
        attributes = STUDIES.call("read the trials", lambda: self._study.user_attrs)
        self._earlier_seconds = float(attributes.get(names.STUDY_SECONDS, 0.0))
        self._swept = set(attributes.get(names.STUDY_SWEPT, ()))
        """Ended trials whose checkpoints have been removed."""
        self._adopt_running_trials()
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
            if self._to_resume:
                return self._resume_trial(trial_id, self._to_resume.pop(0))
            while self._may_start_new_trial(orders) or (not self.running and self._enqueue_repeats(orders)):
                configuration = self._start_new_trial(trial_id)
                if configuration is not None:
                    return configuration
        return None if self.running else Searcher.FINISHED

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
        """All trials of the study, by number."""
        trials: list[FrozenTrial] = STUDIES.call("read the trials", lambda: self._study.get_trials(deepcopy=False))
        return trials

    def _may_start_new_trial(self, orders: SearchOrders) -> bool:
        if orders.draining or self._out_of_time(orders):
            return False
        trials = self.trials()
        if _failed(trials) > orders.max_failed:
            return False
        # A point that a user has added counts against the budget; a repeat or a retry does not.
        begun = [t for t in trials if t.state is not TrialState.WAITING and not names.BEYOND_BUDGET & set(t.user_attrs)]
        waits = any(t.state is TrialState.WAITING and names.BEYOND_BUDGET & set(t.user_attrs) for t in trials)
        return len(begun) < orders.trials or waits

    def _out_of_time(self, orders: SearchOrders) -> bool:
        return orders.max_hours is not None and self.elapsed_seconds() >= 3600 * orders.max_hours

    def elapsed_seconds(self) -> float:
        """How long this attempt and earlier ones have run trials."""
        return self._earlier_seconds + time.monotonic() - self._started_at

    def _store_elapsed_time(self) -> None:
        if time.monotonic() - self._stored_at < STORE_SECONDS:
            return
        self._stored_at = time.monotonic()
        seconds = round(self.elapsed_seconds(), 1)
        STUDIES.call("store the elapsed time", lambda: self._study.set_user_attr(names.STUDY_SECONDS, seconds))

    def _adopt_running_trials(self) -> None:
        """Resume trials that the study records as running because an earlier attempt ended meanwhile."""
        known = {running.number for running in self.running.values()} | set(self._to_resume)
        self._to_resume += [
            trial.number for trial in self.trials() if trial.state is TrialState.RUNNING and trial.number not in known
        ]

    def _start_new_trial(self, trial_id: str) -> dict[str, Any] | None:
        """A new trial's configuration; None if its values are not a valid spec, in which case it has failed."""
        created, point = STUDIES.call("create a trial", lambda: ask(self._study, self._spec))
        return self._configure(trial_id, self.trials()[created.number], point)

    def _resume_trial(self, trial_id: str, number: int) -> dict[str, Any] | None:
        trial = self.trials()[number]
        return self._configure(trial_id, trial, self._spec.point(trial.params))

    def _configure(self, trial_id: str, trial: FrozenTrial, point: Point) -> dict[str, Any] | None:
        number, attributes = trial.number, trial.user_attrs
        try:
            spec = resolve(self._spec.at(point, attributes.get(names.TRIAL_SEED)), ClusterShape(()))
        except SpecError as error:
            self._end_trial(number, TrialState.FAIL, Reason.INFEASIBLE, str(error))
            return None
        shown = {path: str(value) for path, value in point.items()}
        recorded_run = attributes.get(names.TRIAL_RUN)
        run_id, folder = self._runs.open(number, f"{self._spec.name}-{number}", shown, recorded_run)
        if recorded_run not in {None, run_id}:
            logger.warning(
                "Trial %d starts over in a new MLflow run: %s was removed, with its checkpoints", number, recorded_run
            )
        starts = [*attributes.get(names.TRIAL_ATTEMPTS, ()), len(attributes.get(names.TRIAL_ATTEMPTS, ())) + 1]
        self._set_attributes(
            number, {names.TRIAL_RUN: run_id, names.TRIAL_FOLDER: folder, names.TRIAL_ATTEMPTS: starts}
        )
        running = RunningTrial(number, point, starts[-1], Store(folder), run_id)
        running.repeat = names.TRIAL_REPEAT_OF in attributes
        running.reported = set(trial.intermediate_values)
        self.running[trial_id] = running
        search_request = self._request
        trial_request = AttemptRequest(
            job_id=search_request.job_id, attempt=running.start, run_id=run_id,
            tracking_uri=search_request.tracking_uri, artifact_uri=folder, request_id=search_request.request_id,
            dataset_roots=search_request.dataset_roots, spec=spec,
        )  # fmt: skip
        context = TrialContext(
            run_id=search_request.run_id, attempt=search_request.attempt, number=number,
            metrics=tuple(each.metric for each in self._spec.objectives), epochs=spec.optimization.epochs,
        )  # fmt: skip
        logger.info("Trial %d %s: %s", number, "resumes" if running.start > 1 else "starts", shown)
        return {REQUEST: trial_request.model_dump_json(), TRIAL: context.model_dump_json()}

    def _enqueue_repeats(self, orders: SearchOrders) -> bool:
        """Add the best trials again with other seeds, after all others have ended; returns whether any were added."""
        repeats = self._spec.repeats
        if not repeats.best or orders.draining or self._out_of_time(orders):
            return False
        trials = self.trials()
        existing = {(t.user_attrs.get(names.TRIAL_REPEAT_OF), t.user_attrs.get(names.TRIAL_SEED)) for t in trials}
        added = False
        best = [trial for trial in ranked(trials, self._spec.objectives[0]) if trial.state is TrialState.COMPLETE]
        for trial in best[: repeats.best]:
            base = self._spec.at(self._spec.point(trial.params)).seed
            for each in range(1, repeats.seeds + 1):
                seed = (base + each) % 2**32
                if (trial.number, seed) in existing:
                    continue
                attributes = {names.TRIAL_REPEAT_OF: trial.number, names.TRIAL_SEED: seed}
                STUDIES.call("add a repeat", partial(self._study.enqueue_trial, trial.params, user_attrs=attributes))
                added = True
        return added

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
        if len(self._spec.objectives) == 1:
            value = metrics[self._spec.objectives[0].metric]
            storage, identity = self._study._storage, self._storage_id(running.number)  # noqa: SLF001 - Optuna's Trial does so
            STUDIES.call("store a value", lambda: storage.set_trial_intermediate_value(identity, epoch, value))
        self._set_attributes(running.number, {names.TRIAL_EPOCH: epoch, names.TRIAL_METRICS: metrics})
        running.reported.add(epoch)

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
            self._remove_checkpoints()
        except Exception as failure:  # noqa: BLE001 - as above
            self._abort(failure)

    def _outcome_of(self, running: RunningTrial) -> Outcome | None:
        name = names.outcome_file(running.start)
        return Outcome.model_validate_json(running.store.read(name)) if running.store.exists(name) else None

    def _record_end(self, running: RunningTrial, outcome: Outcome | None, error: bool) -> None:
        """Record in the study how a trial ended, if it has."""
        if outcome is None and not error:
            if running.stop_reason is None:  # Ray Tune itself is ending: the next attempt resumes the trial
                return
            self._end_trial(running.number, TrialState.PRUNED, None, running.stop_reason, run_id=running.run_id)
        elif outcome is None or outcome.state == "failed":
            self._record_failure(running, outcome)
        elif outcome.state == "succeeded":
            values = [running.newest[each.metric] for each in self._spec.objectives]
            self._end_trial(running.number, TrialState.COMPLETE, None, "", values, run_id=running.run_id)
        else:
            self._record_stop(running, "pause" if outcome.state == "paused" else "cancel")

    def _record_stop(self, running: RunningTrial, action: Action) -> None:
        """Record that a trial obeyed the search's command, or a user's command to stop this trial alone."""
        command, stopped_by_user = self._channel.read_command_patiently(), running.number in self.orders.stopped
        if command and command.generation == LAST_GENERATION:
            self._trial_action = "cancel"  # a later attempt has begun, and the running trials belong to it
        elif stopped_by_user and (command is None or command.action == "pause"):
            self._end_trial(
                running.number, TrialState.PRUNED, Reason.CANCELLED_BY_USER, "Stopped by a user.", run_id=running.run_id
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
        allowed = self._spec.base_spec.retry.max_failures
        if (outcome is None or reason in RESUMABLE) and running.start <= allowed and not self.requested_action():
            logger.warning("Trial %d resumes from its last checkpoint: %s", running.number, message)
            self._to_resume.append(running.number)
        elif self.requested_action() == "pause":
            return
        else:
            self._end_trial(running.number, TrialState.FAIL, reason, message, run_id=running.run_id)

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
        self._set_attributes(number, attributes | ({names.TRIAL_REASON: reason.value} if reason else {}))
        tell(self._study, number, state, values)
        if run_id:
            self._runs.end(run_id, STATUS[state])
        logger.info("Trial %d is %s. %s", number, state.name.lower(), message)

    def _set_attributes(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial in the study."""
        storage, identity = self._study._storage, self._storage_id(number)  # noqa: SLF001 - the public API needs a live `Trial`
        for key, value in attributes.items():
            STUDIES.call("store a trial's attributes", partial(storage.set_trial_user_attr, identity, key, value))

    def _storage_id(self, number: int) -> int:
        study = self._study
        identity: int = STUDIES.call(
            "read a trial",
            lambda: study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number),  # noqa: SLF001
        )
        return identity

    def _remove_checkpoints(self) -> None:
        """Remove the checkpoints of ended trials, except those of the best."""
        trials = self.trials()
        kept = {trial.number for trial in ranked(trials, self._spec.objectives[0])[: self._spec.keep]}
        ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in kept | self._swept]
        for trial in ended:
            folder = trial.user_attrs.get(names.TRIAL_FOLDER)
            if folder is not None:
                Store(folder).delete(names.CHECKPOINTS)
            self._swept.add(trial.number)
        if ended:
            swept = sorted(self._swept)
            STUDIES.call(
                "store which checkpoints were removed", lambda: self._study.set_user_attr(names.STUDY_SWEPT, swept)
            )

    def epochs_of(self, running: RunningTrial) -> float:
        """A trial's full length in epochs."""
        searched = running.point.get("optimization.epochs")
        return float(searched if searched is not None else self._spec.base_spec.optimization.epochs)

    # -- The end of the attempt

    def outcome(self) -> Outcome:
        """How this attempt ended."""
        action, orders = self.requested_action(), self.orders
        if action:
            return outcome_after(action)
        trials = self.trials()
        failed = _failed(trials)
        if failed > orders.max_failed:
            last = max(filter(_has_failed, trials), key=lambda trial: str(trial.datetime_complete))
            text = (
                f"{failed} trials failed, and budget.max_failed is {orders.max_failed}. The last was trial "
                f"{last.number}: {last.user_attrs.get(names.TRIAL_MESSAGE, '')}"
            )
            return Outcome(state="failed", reason=Reason.TRIALS_FAILED, message=text)
        return outcome_after(None)


def _is_metric(key: str, value: object) -> bool:
    return "/" in key and isinstance(value, int | float) and not key.startswith("config/")


def _failed(trials: Sequence[FrozenTrial]) -> int:
    return sum(map(_has_failed, trials))


def _has_failed(trial: FrozenTrial) -> bool:
    """Whether a trial failed by an error of its own, rather than by invalid values or the end of its search."""
    return trial.state is TrialState.FAIL and trial.user_attrs.get(names.TRIAL_REASON) not in {
        Reason.INFEASIBLE, Reason.CANCELLED_BY_USER, Reason.PREEMPTED,
    }  # fmt: skip
