"""A search under Ray Tune: one attempt is a fresh `Tuner` over the search's study, which is all that is remembered.

Trials that were running when an attempt ended go on under their own numbers in the next one, from their checkpoints.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.train._internal.session import get_session
from ray.tune import PlacementGroupFactory, RunConfig, TuneConfig, TuneError, Tuner
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from trainer.attempt.control import Control
from trainer.attempt.evidence import how_it_died, reason_of
from trainer.attempt.outcome import settle_outcome, write_outcome
from trainer.attempt.workers import fit, work
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Action, Command, SearchOrders
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest
from trainer.search.reporting import TrialOf
from trainer.search.study import ask, asked, connect, open_study, ranked, tell
from trainer.spec import metric_keys
from trainer.spec.base import SpecError
from trainer.spec.job import JobSpec
from trainer.spec.plan import ClusterShape, resolve, resources_of
from trainer.spec.search import Point, SearchSpec
from trainer.storage import Store
from trainer.tracking.tracker import LAST_GENERATION, Tracker, command_in, orders_in

REQUEST, TRIAL = "request", "trial"
END_SECONDS: Final = "60"
"""A trial that was told to end at a report has so long to put its things in order before its process is ended."""
MOST_PENDING: Final = 16
NOTE_SECONDS: Final = 10.0
"""How late the time that was spent is noted."""
GOES_ON: Final = frozenset({Reason.STORAGE_ERROR, Reason.NODE_LOST, Reason.PREEMPTED})
"""Ends of a trial that say nothing of its values: it goes on from its checkpoint."""
STATUS: Final = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}
"""What MLflow shows of an ended trial's run."""


class TrialFailed(Exception):
    """A trial has left its outcome; Ray Tune is told that it failed."""


def run_search(request: AttemptRequest, store: Store) -> Outcome | None:
    """One attempt of a search; gives how it failed, or None where its outcome is stored."""
    spec = request.spec
    if not isinstance(spec, SearchSpec):
        raise TypeError(f"a spec of kind {spec.kind}")
    tracker = Tracker(request.tracking_uri, request.run_id, request.job_id, request.attempt, request.since_attempt)
    line = SearchLine(tracker, request.attempt)
    control = Control(line, request.attempt)
    try:
        search = StudySearch(request, spec, tracker, line, control)
        control.start()
        with tempfile.TemporaryDirectory(prefix="rcmae-tmp-") as folder:
            _tune(spec, search, folder)
        if search.error:
            raise search.error
        tracker.close()
    finally:
        control.stop()
    outcome = search.outcome()
    if outcome.state == "failed":
        return outcome
    write_outcome(store, request.attempt, outcome)
    return None


def _tune(spec: SearchSpec, search: StudySearch, folder: str) -> None:
    """Ray Tune's part; ``folder`` takes its records, of which nothing is kept."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(min(MOST_PENDING, spec.budget.concurrency))
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "100000000"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial may be told to leave before it has measured
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # it would print a table for every trial
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the study and our own lines say what there is to say
    # Ray Tune would hand S3's credentials on, and Ray shows to everybody what is handed on: nodes have their own.
    # Without the address what frees a dead trial's workers finds no cluster where a machine has two.
    handed_on = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = handed_on | {"RAY_ADDRESS"}
    tuner = Tuner(
        tune.with_resources(run_trial, _resources(spec)),
        tune_config=TuneConfig(
            search_alg=search, scheduler=make_scheduler(spec, search), num_samples=-1,
            # One that waits for workers elsewhere cannot be told to stop: it ends with its process, and they with it.
            reuse_actors=_trains_itself(spec),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(name="search", storage_path=folder, verbose=0),
    )  # fmt: skip
    try:
        tuner.fit()
    except TuneError as error:  # its text is a traceback
        logger.exception("Ray Tune failed")
        raise RuntimeError(f"Ray Tune: {str(error).strip().splitlines()[-1]}") from error


def _trains_itself(spec: JobSpec) -> bool:
    """Whether a trial's own process is its one worker; more of them have processes beside it."""
    return int(resources_of(spec).workers) == 1


def _resources(spec: SearchSpec) -> PlacementGroupFactory:
    """Of a trial's own process."""
    if not _trains_itself(spec):
        return PlacementGroupFactory([{"memory": 1}])  # a byte: Ray takes no empty one, and a CPU may not be left
    resources = resources_of(spec)
    return PlacementGroupFactory([{"CPU": float(resources.cpus_per_worker), "GPU": float(resources.gpus_per_worker)}])


# --- a trial ----------------------------------------------------------------------------------------------------------


def run_trial(config: Mapping[str, str]) -> None:
    """One trial, in a process that others may have used before; leaves its outcome as a job's attempt does.

    A single worker trains right here; several have processes of their own.
    """
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = END_SECONDS  # read in this process, after this function
    request = AttemptRequest.model_validate_json(config[REQUEST])
    trial = TrialOf.model_validate_json(config[TRIAL])
    store, failed = Store(request.artifact_uri), None
    gc.collect()  # what a trial before left in this process goes, and memory of a GPU with the tensors in it
    if "torch" in sys.modules and not gc.get_freeze_count():
        gc.freeze()  # one that is not the first: torch and all else that is here stays, and is looked past from here on
    try:
        if _trains_itself(request.spec):
            work(request, 0, 1, trial, lambda metrics: tune.report(dict(metrics)))
        else:
            session: Any = get_session()
            queue = session._get_or_create_inter_actor_queue()  # noqa: SLF001 - as Ray's own callback for this
            failed = fit(request, store, trial, queue)
    except Exception as error:  # noqa: BLE001 - whatever it is, the outcome says so
        reason, message = reason_of(error, f"trial {trial.number}", store.uri)
        failed = Outcome(state="failed", reason=reason, message=message)
    if failed:
        settle_outcome(store, request.attempt, failed)
        raise TrialFailed(failed.message)


# --- the search -------------------------------------------------------------------------------------------------------


class SearchLine:
    """A search's line to the control plane: a job's, and its orders beside the commands."""

    def __init__(self, tracker: Tracker, attempt: int) -> None:
        self._tracker, self._attempt = tracker, attempt
        self.orders: SearchOrders | None = None
        """The newest; None before there are any."""

    def read_command(self) -> Command | None:
        tags = self._tracker.tags()
        self.orders = orders_in(tags) or self.orders
        return command_in(tags, self._attempt)

    def look(self) -> Command | None:
        """The same as it is now, however long MLflow is away; raises `StorageError` where it stays so."""
        tags = self._tracker.tags_in_time()
        self.orders = orders_in(tags) or self.orders
        return command_in(tags, self._attempt)

    def acknowledge(self, command: Command) -> None:
        self._tracker.acknowledge(command)

    def heartbeat(self) -> None:
        self._tracker.heartbeat()


class _Live:
    """A trial that Ray Tune knows of."""

    def __init__(self, number: int, point: Point, start: int, store: Store, run_id: str) -> None:
        self.number, self.point, self.start, self.store, self.run_id = number, point, start, store, run_id
        self.repeat = False
        self.reported: set[int] = set()
        """Epochs that the study knows of."""
        self.last: Mapping[str, float] = {}
        """The newest evaluation."""
        self.stopped: str | None = None
        """Why the scheduler stopped it."""
        self.died: str | None = None
        """What Ray says of its process's death."""


class StudySearch(OptunaSearch):
    """The searcher: hands out trials as far as the orders go, and records in the study what becomes of them.

    Nothing of it is stored: Ray Tune's own records could not be gone on from, and would hold the database's URL.
    """

    def __init__(
        self, request: AttemptRequest, spec: SearchSpec, tracker: Tracker, line: SearchLine, control: Control
    ) -> None:
        self._request, self._spec, self._tracker, self._line, self._control = request, spec, tracker, line, control
        first = spec.objectives[0]
        Searcher.__init__(self, first.metric, first.mode)
        self._study: Study = open_study(spec, request.job_id, connect())
        self.live: dict[str, _Live] = {}
        """By Ray Tune's own id."""
        self._waiting: list[int] = []
        """Numbers of trials that ran before, and are to go on."""
        self._since = self._noted = time.monotonic()
        notes = asked("a question", lambda: self._study.user_attrs)
        self._before = float(notes.get(names.STUDY_SECONDS, 0.0))
        self._swept = set(notes.get(names.STUDY_SWEPT, ()))
        """Ended trials whose checkpoints are gone."""
        self._adopt()
        self._left: Action | None = None
        """What trials were told to leave by: they may hear of it first."""
        self.error: Exception | None = None
        """What ends this attempt: raised by whoever runs it, as Ray Tune goes on after an error of a searcher."""

    def __deepcopy__(self, memo: dict[int, Any]) -> StudySearch:
        """Ray Tune copies what it is given: there is one record."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Tune pickles what it is given into its own records, from which nobody goes on."""
        return (dict, ())

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:  # noqa: ARG002
        return True

    # -- Handing out

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; None where none may start now, `FINISHED` where none will."""
        try:
            return self._suggest(trial_id)
        except Exception as error:  # noqa: BLE001 - Ray Tune would only log it
            self._give_up(error)
            return Searcher.FINISHED

    def _give_up(self, error: Exception) -> None:
        logger.error("The search cannot go on: %s", error)
        self.error = self.error or error

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._note_time()
        orders, ends = self.orders, self.wanted() or self.error
        if not ends and len(self.live) < orders.concurrency:
            if self._waiting:
                return self._go_on(trial_id, self._waiting.pop(0))
            while self._may_begin(orders) or (not self.live and self._enqueue_repeats(orders)):
                begun = self._begin(trial_id)
                if begun is not None:
                    return begun
        return None if self.live else Searcher.FINISHED

    def wanted(self) -> Action | None:
        """What this attempt was told to end by."""
        return self._control.wanted() or self._left

    @property
    def orders(self) -> SearchOrders:
        """What this search is to do now."""
        spec, budget = self._spec, self._spec.budget
        return self._line.orders or SearchOrders(
            trials=spec.trials, concurrency=budget.concurrency, max_failed=budget.max_failed, max_hours=budget.max_hours
        )

    def trials(self) -> list[FrozenTrial]:
        """All that the study knows of, by number."""
        found: list[FrozenTrial] = asked("a question", lambda: self._study.get_trials(deepcopy=False))
        return found

    def _may_begin(self, orders: SearchOrders) -> bool:
        if orders.draining or self._out_of_time(orders):
            return False
        trials = self.trials()
        if _failed(trials) > orders.max_failed:
            return False
        # A point that somebody chose waits within the budget; a repeat or another try beyond it.
        begun = [t for t in trials if t.state is not TrialState.WAITING and not names.BEYOND_BUDGET & set(t.user_attrs)]
        waits = any(t.state is TrialState.WAITING and names.BEYOND_BUDGET & set(t.user_attrs) for t in trials)
        return len(begun) < orders.trials or waits

    def _out_of_time(self, orders: SearchOrders) -> bool:
        return orders.max_hours is not None and self.seconds() >= 3600 * orders.max_hours

    def seconds(self) -> float:
        """For how long attempts have run trials."""
        return self._before + time.monotonic() - self._since

    def _note_time(self) -> None:
        if time.monotonic() - self._noted < NOTE_SECONDS:
            return
        self._noted = time.monotonic()
        seconds = round(self.seconds(), 1)
        asked("the time spent", lambda: self._study.set_user_attr(names.STUDY_SECONDS, seconds))

    def _adopt(self) -> None:
        """Trials that run by the study and not here are to go on here."""
        known = {live.number for live in self.live.values()} | set(self._waiting)
        self._waiting += [
            trial.number for trial in self.trials() if trial.state is TrialState.RUNNING and trial.number not in known
        ]

    def _begin(self, trial_id: str) -> dict[str, Any] | None:
        """A new trial's configuration; None for one whose values are no spec: it has failed."""
        made, point = asked("a new trial", lambda: ask(self._study, self._spec))
        return self._start(trial_id, self.trials()[made.number], point)

    def _go_on(self, trial_id: str, number: int) -> dict[str, Any] | None:
        trial = self.trials()[number]
        return self._start(trial_id, trial, self._spec.point(trial.params))

    def _start(self, trial_id: str, trial: FrozenTrial, point: Point) -> dict[str, Any] | None:
        number, attributes = trial.number, trial.user_attrs
        try:
            spec = resolve(self._spec.at(point, attributes.get(names.TRIAL_SEED)), ClusterShape(()))
        except SpecError as error:
            self._end(number, TrialState.FAIL, Reason.INFEASIBLE, str(error))
            return None
        shown = {path: str(value) for path, value in point.items()}
        run_id, folder = self._tracker.trial_run(number, f"{self._spec.name}-{number}", shown)
        starts = [*attributes.get(names.TRIAL_ATTEMPTS, ()), len(attributes.get(names.TRIAL_ATTEMPTS, ())) + 1]
        self._note(number, {names.TRIAL_RUN: run_id, names.TRIAL_FOLDER: folder, names.TRIAL_ATTEMPTS: starts})
        live = _Live(number, point, starts[-1], Store(folder), run_id)
        live.repeat = names.TRIAL_REPEAT_OF in attributes
        live.reported = set(trial.intermediate_values)
        self.live[trial_id] = live
        mine = self._request
        own = AttemptRequest(
            job_id=mine.job_id, attempt=live.start, run_id=run_id, tracking_uri=mine.tracking_uri, artifact_uri=folder,
            request_id=mine.request_id, dataset_roots=mine.dataset_roots, spec=spec,
        )  # fmt: skip
        of = TrialOf(
            run_id=mine.run_id, attempt=mine.attempt, number=number,
            metrics=tuple(each.metric for each in self._spec.objectives),
        )  # fmt: skip
        logger.info("Trial %d %s: %s", number, "goes on" if live.start > 1 else "begins", shown)
        return {REQUEST: own.model_dump_json(), TRIAL: of.model_dump_json()}

    def _enqueue_repeats(self, orders: SearchOrders) -> bool:
        """The best trials once more with other seeds, once all others have ended; whether there are any to run."""
        wanted = self._spec.repeats
        if not wanted.best or orders.draining or self._out_of_time(orders):
            return False
        trials = self.trials()
        there = {(t.user_attrs.get(names.TRIAL_REPEAT_OF), t.user_attrs.get(names.TRIAL_SEED)) for t in trials}
        added = False
        best = [trial for trial in ranked(trials, self._spec.objectives[0]) if trial.state is TrialState.COMPLETE]
        for trial in best[: wanted.best]:
            base = self._spec.at(self._spec.point(trial.params)).seed
            for each in range(1, wanted.seeds + 1):
                seed = (base + each) % 2**32
                if (trial.number, seed) in there:
                    continue
                notes = {names.TRIAL_REPEAT_OF: trial.number, names.TRIAL_SEED: seed}
                asked("a repeat", partial(self._study.enqueue_trial, trial.params, user_attrs=notes))
                added = True
        return added

    # -- Recording

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An evaluation, after which the trial goes on."""
        if metric_keys.EPOCH not in result:
            return
        try:
            self._record(self.live[trial_id], result)
        except Exception as error:  # noqa: BLE001 - Ray Tune would take it for the trial's own
            self._give_up(error)

    def _record(self, live: _Live, result: Mapping[str, Any]) -> None:
        epoch = round(float(result[metric_keys.EPOCH]))
        measured = {key: float(value) for key, value in result.items() if _is_metric(key, value)}
        live.last = measured
        if epoch in live.reported:  # a trial that went on measures again what it had measured
            return
        if len(self._spec.objectives) == 1:
            value = measured[self._spec.objectives[0].metric]
            storage, identity = self._study._storage, self._identity(live.number)  # noqa: SLF001 - Optuna's Trial does so
            asked("a value", lambda: storage.set_trial_intermediate_value(identity, epoch, value))
        self._note(live.number, {names.TRIAL_EPOCH: epoch, names.TRIAL_METRICS: measured})
        live.reported.add(epoch)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended, or its process has."""
        live = self.live.pop(trial_id, None)
        if live is None:
            return
        try:
            # The report at which the scheduler stopped it has not been seen by anybody else.
            if result and metric_keys.EPOCH in result:
                self._record(live, result)
            self._settle(live, self._outcome_of(live), error)
            self._remove_checkpoints()
        except Exception as failure:  # noqa: BLE001 - as above
            self._give_up(failure)

    def _outcome_of(self, live: _Live) -> Outcome | None:
        name = names.outcome_file(live.start)
        return Outcome.model_validate_json(live.store.read(name)) if live.store.exists(name) else None

    def _settle(self, live: _Live, outcome: Outcome | None, error: bool) -> None:
        """What a trial's end means for it."""
        if outcome is None and not error:
            if live.stopped is None:  # nobody ended it but Ray Tune, which ends: the next attempt goes on with it
                return
            self._end(live.number, TrialState.PRUNED, None, live.stopped, run_id=live.run_id)
        elif outcome is None or outcome.state == "failed":
            self._failed(live, outcome)
        elif outcome.state == "succeeded":
            values = [live.last[each.metric] for each in self._spec.objectives]
            self._end(live.number, TrialState.COMPLETE, None, "", values, run_id=live.run_id)
        else:
            self._was_told(live, "pause" if outcome.state == "paused" else "cancel")

    def _was_told(self, live: _Live, action: Action) -> None:
        """A trial has obeyed: its search's command, or one of its own."""
        command, by_hand = self._line.look(), live.number in self.orders.stopped
        if command and command.generation == LAST_GENERATION:
            self._left = "cancel"  # a later attempt has begun, and running trials are its own
        elif by_hand and (command is None or command.action == "pause"):
            self._end(live.number, TrialState.PRUNED, Reason.CANCELLED_BY_USER, "Stopped by hand.", run_id=live.run_id)
        else:
            self._left = command.action if command else action
            if self._left == "cancel":
                told = "The search was cancelled."
                self._end(live.number, TrialState.PRUNED, Reason.CANCELLED_BY_USER, told, run_id=live.run_id)

    def _failed(self, live: _Live, outcome: Outcome | None) -> None:
        """One whose process is gone, or whose node or storage was, goes on from its checkpoint; others have failed."""
        died = f"its process {live.died or 'died without a word'}"
        reason = outcome.reason if outcome and outcome.reason else Reason.WORKER_FAILED
        message = outcome.message if outcome else died
        allowed = self._spec.base_spec.retry.max_failures
        if (outcome is None or reason in GOES_ON) and live.start <= allowed and not self.wanted():
            logger.warning("Trial %d goes on from its last checkpoint: %s", live.number, message)
            self._waiting.append(live.number)
        elif self.wanted() == "pause":
            return
        else:
            self._end(live.number, TrialState.FAIL, reason, message, run_id=live.run_id)

    def _end(
        self,
        number: int,
        state: TrialState,
        reason: Reason | None,
        message: str,
        values: Sequence[float] | None = None,
        run_id: str | None = None,
    ) -> None:
        notes: dict[str, Any] = {names.TRIAL_MESSAGE: message} if message else {}
        self._note(number, notes | ({names.TRIAL_REASON: reason.value} if reason else {}))
        tell(self._study, number, state, values)
        if run_id:
            self._tracker.end_trial_run(run_id, STATUS[state])
        logger.info("Trial %d is %s. %s", number, state.name.lower(), message)

    def _note(self, number: int, notes: Mapping[str, Any]) -> None:
        """Attributes of a trial in the study."""
        storage, identity = self._study._storage, self._identity(number)  # noqa: SLF001 - for trials that have no object
        for key, value in notes.items():
            asked("a note", partial(storage.set_trial_user_attr, identity, key, value))

    def _identity(self, number: int) -> int:
        study = self._study
        found: int = asked(
            "a question",
            lambda: study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number),  # noqa: SLF001
        )
        return found

    def _remove_checkpoints(self) -> None:
        """Of ended trials only the best keep theirs."""
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
            asked("what was removed", lambda: self._study.set_user_attr(names.STUDY_SWEPT, swept))

    def epochs_of(self, live: _Live) -> float:
        """All that a trial is to have."""
        own = live.point.get("optimization.epochs")
        return float(own if own is not None else self._spec.base_spec.optimization.epochs)

    # -- The end

    def outcome(self) -> Outcome:
        """How this attempt ended."""
        wanted, orders = self.wanted(), self.orders
        if wanted:
            return Outcome(state="paused" if wanted == "pause" else "cancelled")
        trials = self.trials()
        failed = _failed(trials)
        if failed > orders.max_failed:
            last = max(filter(_has_failed, trials), key=lambda trial: str(trial.datetime_complete))
            said = last.user_attrs.get(names.TRIAL_MESSAGE, "")
            text = f"{failed} trials failed, budget.max_failed is {orders.max_failed}; the last, {last.number}: {said}"
            return Outcome(state="failed", reason=Reason.TRIALS_FAILED, message=text)
        return Outcome(state="succeeded")


def _is_metric(key: str, value: object) -> bool:
    return "/" in key and isinstance(value, int | float) and not key.startswith("config/")


def _failed(trials: Sequence[FrozenTrial]) -> int:
    return sum(map(_has_failed, trials))


def _has_failed(trial: FrozenTrial) -> bool:
    """By an error of its own: values that are no spec are none, nor is the end of a search that was under way."""
    return trial.state is TrialState.FAIL and trial.user_attrs.get(names.TRIAL_REASON) not in {
        Reason.INFEASIBLE, Reason.CANCELLED_BY_USER, Reason.PREEMPTED,
    }  # fmt: skip


# --- schedulers -------------------------------------------------------------------------------------------------------


def make_scheduler(spec: SearchSpec, search: StudySearch) -> TrialScheduler:
    """Who decides which trials are stopped early; one that begins again knows what was measured before."""
    if spec.scheduler.name == "none":
        return _Plain(search)
    return Asha(spec, search) if spec.scheduler.name == "asha" else Median(spec, search)


class _Watching:
    """What all of ours do: leave alone what is at its end or a repeat, and note why a trial was stopped or died."""

    _search: StudySearch

    def _decided(self, trial: TuneTrial, result: Mapping[str, Any], decide: Any) -> str:
        """``decide`` is the scheduler's own decision."""
        live = self._search.live.get(trial.trial_id)
        if live is None or live.repeat or metric_keys.EPOCH not in result:
            return str(TrialScheduler.CONTINUE)
        action = str(decide())
        epoch = float(result[metric_keys.EPOCH])
        if action == TrialScheduler.STOP and epoch >= self._search.epochs_of(live):
            return str(TrialScheduler.CONTINUE)  # it is done, and stores its last checkpoint
        if action == TrialScheduler.STOP:
            live.stopped = self._why(epoch, float(result[str(self._search.metric)]))
        return action

    def _why(self, epoch: float, value: float) -> str:
        raise NotImplementedError

    def _note_death(self, trial: TuneTrial) -> None:
        live = self._search.live.get(trial.trial_id)
        if live is not None:
            live.died = how_it_died(str(trial.get_pickled_error()))


class _Plain(_Watching, FIFOScheduler):
    """None is stopped."""

    def __init__(self, search: StudySearch) -> None:
        FIFOScheduler.__init__(self)
        self._search = search

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._note_death(trial)
        super().on_trial_error(tune_controller, trial)


class Asha(_Watching, AsyncHyperBandScheduler):
    """Asynchronous successive halving, whose rungs are filled from the study when it begins again."""

    def __init__(self, spec: SearchSpec, search: StudySearch) -> None:
        objective = spec.objectives[0]
        AsyncHyperBandScheduler.__init__(
            self, time_attr=metric_keys.EPOCH, metric=objective.metric, mode=objective.mode, max_t=spec.epochs,
            grace_period=spec.grace_epochs, reduction_factor=spec.scheduler.reduction_factor, stop_last_trials=False,
        )  # fmt: skip
        self._search, self._factor = search, spec.scheduler.reduction_factor
        for trial in search.trials():
            if trial.state.is_finished() and names.TRIAL_REPEAT_OF not in trial.user_attrs:
                self._replay(f"trial {trial.number}", trial)

    def _replay(self, name: str, trial: FrozenTrial) -> None:
        for epoch, value in sorted(trial.intermediate_values.items()):
            named: Any = SimpleNamespace(trial_id=name)
            self._brackets[0].on_result(named, epoch, (self._metric_op or 1.0) * value)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        live = self._search.live.get(trial.trial_id)
        if live and not live.repeat:
            self._replay(trial.trial_id, self._search.trials()[live.number])

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decide = super().on_trial_result
        return self._decided(trial, result, lambda: decide(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._note_death(trial)
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:  # noqa: ARG002
        """What it reported last has been looked at."""
        self._trial_info.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:  # noqa: ARG002
        self._trial_info.pop(trial.trial_id, None)

    def _why(self, epoch: float, value: float) -> str:
        return (
            f"Stopped by asha at epoch {epoch:g} with {value:.6g}: not in the best 1/{self._factor} of those that had "
            "come so far"
        )


class Median(_Watching, MedianStoppingRule):
    """Stops what is worse than the median of the others; knows those of before when it begins again."""

    def __init__(self, spec: SearchSpec, search: StudySearch) -> None:
        objective = spec.objectives[0]
        MedianStoppingRule.__init__(
            self,
            time_attr=metric_keys.EPOCH,
            metric=objective.metric,
            mode=objective.mode,
            grace_period=spec.grace_epochs,
        )
        self._search = search
        for trial in search.trials():
            if trial.state.is_finished() and names.TRIAL_REPEAT_OF not in trial.user_attrs:
                self._replay(f"trial {trial.number}", trial)

    def _replay(self, key: Any, trial: FrozenTrial) -> None:
        known = sorted(trial.intermediate_values.items())
        if known:  # it takes nobody without a result
            self._results[key] = [{metric_keys.EPOCH: epoch, self._metric: value} for epoch, value in known]

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        super().on_trial_add(tune_controller, trial)
        live = self._search.live.get(trial.trial_id)
        if live and not live.repeat:
            self._replay(trial, self._search.trials()[live.number])

    def _on_insufficient_samples(self, tune_controller: Any, trial: TuneTrial, time: float) -> str:  # noqa: ARG002
        """Ray's own would set it aside for those that wait."""
        return str(TrialScheduler.CONTINUE)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decide = super().on_trial_result
        return self._decided(trial, result, lambda: decide(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._note_death(trial)
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """What it reported last has been looked at."""

    def _why(self, epoch: float, value: float) -> str:
        return f"Stopped by median at epoch {epoch:g} with {value:.6g}: the median of the others is better"
