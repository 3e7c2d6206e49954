"""Read requests for searches: the job comes from the database, its trials from the study, the rest from their runs.

The study, MLflow and the storage are read outside of any transaction.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from optuna.trial import FrozenTrial

from service.adapters.mlflow_connection import MlflowUnreachable
from service.adapters.mlflow_runs import RunView
from service.auth.caller import Caller
from service.context.app_state import AppState
from service.context.kind import Kinds
from service.db.tables import Job, now
from service.http.paging import bad_cursor, read_cursor, write_cursor
from service.http.problems import ApiProblem, not_found
from service.http.schemas import Page
from service.jobs import metric_curves, reading
from service.jobs.log_files import LogFiles
from service.jobs.logs import LogFilter, Logs, page
from service.jobs.output_schemas import ImageView, LogPage, MetricsView
from service.jobs.schemas import SearchProgress
from service.jobs.state import State
from service.searches import analysis, repository
from service.searches.schemas import (
    BudgetView,
    Difference,
    Intermediate,
    SearchView,
    TrialDetail,
    TrialPage,
    TrialProgress,
    TrialState,
    TrialView,
)
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.spec.search import SearchSpec
from trainer.spec.space import CategoricalParameter

log = structlog.get_logger()

NEWEST_FIRST: Final = "-number"
PARAMETER_PREFIX: Final = "param:"
ROWS: Final = 200
"""Rows of CSV in one piece."""


@dataclass(frozen=True)
class Search:
    """A search with its trials, at one moment."""

    job: Job
    spec: SearchSpec
    """The submitted spec with the present budget."""
    trials: Sequence[FrozenTrial]
    """By number; empty before the study was created."""
    moment: datetime

    @classmethod
    def load(cls, app_state: AppState, caller: Caller, job_id: str) -> Search:
        """Raises the API's 404 and 409, and `StudiesUnreachable`."""
        with app_state.database.read() as session:
            job = repository.visible_search(session, app_state.kinds, job_id, caller)
        return cls.of(app_state, job)

    @classmethod
    def of(cls, app_state: AppState, job: Job) -> Search:
        """Raises `StudiesUnreachable`. No transaction may be open."""
        return cls(job, SearchSpec.parse(job.spec), app_state.studies.trials(job.id), now())

    def trial(self, number: int) -> FrozenTrial:
        """Raises the API's 404."""
        if number >= len(self.trials):
            raise not_found("trial", f"{self.job.id}/{number}")
        return self.trials[number]

    def views(self, app_state: AppState, caller: Caller, trials: Sequence[FrozenTrial]) -> list[TrialView]:
        """Views of some of its trials. Opens a transaction."""
        with app_state.database.read() as session:
            jobs = repository.promoted_jobs(session, self.job.id, caller, [trial.number for trial in trials])
        front = {trial.number for trial in analysis.best(self.trials, self.spec)}
        runs = _running(app_state, trials)
        return [
            TrialView(**self.fields(trial, front, jobs) | self._life(trial, runs, app_state.kinds)) for trial in trials
        ]

    def _life(self, trial: FrozenTrial, runs: Mapping[str, RunView], kinds: Kinds) -> dict[str, Any]:
        """How far a running trial is, and its last sign of life, from its run; ``runs`` has them by their ids."""
        attributes = trial.user_attrs
        run, starts = runs.get(attributes.get(names.TRIAL_RUN, "")), attributes.get(names.TRIAL_ATTEMPTS, [])
        if run is None:
            return {}
        beats = [beat for start in starts if (beat := run.heartbeat(start)) is not None]
        newest, spec, steps = run.newest(), analysis.spec_of(trial, self.spec), run.tags.get(names.TAG_STEPS)
        progress = kinds[spec.kind].trial_progress(spec, newest, steps, starts[-1:]) if newest and spec else None
        return {
            "progress": progress and {name: progress.get(name) for name in TrialProgress.model_fields},
            "heartbeat_at": datetime.fromtimestamp(max(beats), UTC) if beats else None,
        }

    def fields(self, trial: FrozenTrial, front: set[int], jobs: Mapping[int, list[str]]) -> dict[str, Any]:
        """The fields of a `TrialView`; ``front`` are the best trials, ``jobs`` those promoted from each trial."""
        attributes = trial.user_attrs
        return {
            "number": trial.number,
            "state": analysis.state_of(trial),
            "reason": attributes.get(names.TRIAL_REASON),
            "message": attributes.get(names.TRIAL_MESSAGE, ""),
            "values": analysis.values_of(trial, self.spec),
            "params": analysis.point_of(trial, self.spec),
            "epoch": attributes.get(names.TRIAL_EPOCH),
            "best": trial.number in front,
            "repeat_of": attributes.get(names.TRIAL_REPEAT_OF),
            "retry_of": attributes.get(names.TRIAL_RETRY_OF),
            "copy_of": attributes.get(names.TRIAL_COPY_OF),
            "started_at": analysis.started(trial),
            "ended_at": analysis.ended(trial),
            "duration_s": analysis.duration(trial, self.moment),
            "run_id": attributes.get(names.TRIAL_RUN),
            "promoted": jobs.get(trial.number, []),
        }


def _running(app_state: AppState, trials: Sequence[FrozenTrial]) -> dict[str, RunView]:
    """The runs of those trials that are running, by their ids; none while MLflow is unreachable."""
    run_ids = [
        trial.user_attrs[names.TRIAL_RUN]
        for trial in trials
        if analysis.state_of(trial) is TrialState.RUNNING and names.TRIAL_RUN in trial.user_attrs
    ]
    try:
        return app_state.mlflow.views(run_ids)
    except MlflowUnreachable as error:  # the trials themselves are in the study
        log.warning("trials_progress_unknown", detail=str(error))
        return {}


# --- the search -------------------------------------------------------------------------------------------------------


def spec_of(app_state: AppState, caller: Caller, job_id: str) -> tuple[str, SearchSpec]:
    """A search's id and spec; raises the API's 404 and 409."""
    with app_state.database.read() as session:
        job = repository.visible_search(session, app_state.kinds, job_id, caller)
    return job.id, SearchSpec.parse(job.spec)


def show(app_state: AppState, caller: Caller, job_id: str) -> SearchView:
    """A search with its best trials so far."""
    found = Search.load(app_state, caller, job_id)
    job, spec, seconds = found.job, found.spec, app_state.studies.seconds(job_id)
    with app_state.database.read() as session:
        jobs = repository.promoted_jobs(session, job_id, caller)
    best = analysis.best(found.trials, spec)
    front = {trial.number for trial in best}
    progress = SearchProgress.model_validate(job.progress) if job.progress else None
    return SearchView(
        id=job.id,
        name=job.name,
        state=State(job.state),
        reason=job.reason,
        message=job.message,
        owner=job.owner,
        objectives=[each.model_dump() for each in spec.objectives],
        algorithm=spec.algorithm.name,
        scheduler=spec.scheduler.name,
        space={path: parameter.model_dump(mode="json", exclude_none=True) for path, parameter in spec.space.items()},
        budget=BudgetView(
            trials=spec.trials,
            concurrency=job.run_spec["budget"]["concurrency"],
            concurrency_wanted=spec.budget.concurrency,
            max_failed=spec.budget.max_failed,
            max_hours=spec.budget.max_hours,
        ),
        trials=analysis.counts(found.trials),
        draining=job.draining,
        best=[TrialView(**found.fields(trial, front, jobs)) for trial in best],
        repeats=analysis.repeats(found.trials, spec),
        grid_size=spec.size,
        elapsed_s=seconds,
        eta_s=analysis.eta(found.trials, spec, seconds, job.draining) if job.state == State.RUNNING else None,
        gpu_hours=progress.gpu_hours if progress else 0.0,
        promoted={str(number): job_ids for number, job_ids in jobs.items()},
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )


# --- its trials -------------------------------------------------------------------------------------------------------


def listing(
    app_state: AppState,
    caller: Caller,
    job_id: str,
    states: Sequence[TrialState],
    sort: str,
    limit: int,
    cursor: str | None,
) -> TrialPage:
    """A page of trials, sorted; trials without a value to sort by come last."""
    found = Search.load(app_state, caller, job_id)
    order = Order.of(sort, found)
    selected = [trial for trial in found.trials if not states or analysis.state_of(trial) in states]
    keyed = sorted(((order.sort_key(trial), trial) for trial in selected), key=lambda each: each[0])
    if cursor:
        last = _read_sort_key(cursor, sort)
        keyed = [each for each in keyed if each[0] > last]
    following = write_cursor([sort, *keyed[limit - 1][0]]) if len(keyed) > limit else None
    views = found.views(app_state, caller, [trial for _, trial in keyed[:limit]])
    return TrialPage(items=views, next_cursor=following)


SortKey = tuple[bool, float, int]
"""Whether the value to sort by is missing, that value, and the trial's number."""


@dataclass(frozen=True)
class Order:
    """How a list of trials is sorted."""

    search: Search
    key: str
    sign: int
    """-1 for descending order."""

    @classmethod
    def of(cls, sort: str, search: Search) -> Order:
        """Parse a sort expression; raises the API's 422 for an unknown parameter."""
        key = sort.removeprefix("-")
        path = key.removeprefix(PARAMETER_PREFIX)
        if key != path and path not in search.spec.space:
            known = ", ".join(search.spec.space)
            raise ApiProblem(
                422, "parameter_invalid", f"sort: {path!r} is not a parameter of this search, which has {known}"
            )
        return cls(search, key, -1 if sort.startswith("-") else 1)

    def sort_key(self, trial: FrozenTrial) -> SortKey:
        value = self._value(trial)
        return value is None, self.sign * (value or 0.0), self.sign * trial.number

    def _value(self, trial: FrozenTrial) -> float | None:
        match self.key:
            case "number":
                return 0.0  # the sort key ends with it anyway
            case "value":
                values = analysis.values_of(trial, self.search.spec)
                return values[0] if values else None
            case "epoch":
                epoch: float | None = trial.user_attrs.get(names.TRIAL_EPOCH)
                return epoch
            case "duration":  # a running trial's would differ on the next page
                return analysis.duration(trial, self.search.moment) if analysis.ended(trial) else None
            case "started":
                start = analysis.started(trial)
                return start.timestamp() if start else None
        return self._of_parameter(trial, self.key.removeprefix(PARAMETER_PREFIX))

    def _of_parameter(self, trial: FrozenTrial, path: str) -> float | None:
        """A numeric value itself, or the index of any other value among the choices."""
        point, parameter = analysis.point_of(trial, self.search.spec), self.search.spec.space[path]
        if path not in point:
            return None
        if isinstance(parameter, CategoricalParameter) and not all(map(_is_number, parameter.choices)):
            return float(parameter.choices.index(point[path]))
        return float(point[path])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_sort_key(cursor: str, sort: str) -> SortKey:
    match read_cursor(cursor):
        case [before, bool(missing), float(value) | int(value), int(number)] if before == sort:
            return missing, float(value), number
    raise bad_cursor(cursor)


def detail(app_state: AppState, caller: Caller, job_id: str, number: int) -> TrialDetail:
    """One trial with everything that is known of it."""
    found = Search.load(app_state, caller, job_id)
    trial = found.trial(number)
    (view,) = found.views(app_state, caller, [trial])
    spec = analysis.spec_of(trial, SearchSpec.parse(found.job.run_spec))
    finite = {step: value for step, value in trial.intermediate_values.items() if math.isfinite(value)}
    return TrialDetail(
        **view.model_dump(),
        intermediate=[Intermediate(epoch=step, value=value) for step, value in sorted(finite.items())],
        metrics=analysis.metrics_of(trial),
        difference=_difference(found, trial),
        attempts=trial.user_attrs.get(names.TRIAL_ATTEMPTS, []),
        spec=spec.model_dump(mode="json") if spec else {},
    )


def _difference(found: Search, trial: FrozenTrial) -> dict[str, Difference]:
    """Parameters whose values differ from those of the best trial; empty where there is none."""
    leader = analysis.leader(found.trials, found.spec)
    if leader is None:
        return {}
    own, best = analysis.point_of(trial, found.spec), analysis.point_of(leader, found.spec)
    pairs = {path: (own.get(path), best.get(path)) for path in found.spec.space}
    return {path: Difference(value=one, best=two) for path, (one, two) in pairs.items() if one != two}


def table(app_state: AppState, caller: Caller, job_id: str) -> Iterator[str]:
    """All trials as CSV with a header, by number, in pieces of bounded size."""
    found = Search.load(app_state, caller, job_id)
    metrics, paths = [each.metric for each in found.spec.objectives], list(found.spec.space)
    header = ["number", "state", "reason", *metrics, "epoch", "started", "ended", "duration_s", *paths]
    return _written(header, [_row(found, trial, paths) for trial in found.trials])


def _row(found: Search, trial: FrozenTrial, paths: Sequence[str]) -> list[Any]:
    values: Sequence[float | None] = analysis.values_of(trial, found.spec) or [None] * len(found.spec.objectives)
    start, end, point = analysis.started(trial), analysis.ended(trial), analysis.point_of(trial, found.spec)
    return [
        trial.number,
        analysis.state_of(trial).value,
        trial.user_attrs.get(names.TRIAL_REASON),
        *values,
        trial.user_attrs.get(names.TRIAL_EPOCH),
        start.isoformat() if start else None,
        end.isoformat() if end else None,
        analysis.duration(trial, found.moment),
        *(_cell(point.get(path)) for path in paths),
    ]


def _cell(value: Any) -> Any:
    """Text and numbers as they are, other values as JSON."""
    return value if value is None or isinstance(value, str) or _is_number(value) else json.dumps(value)


def _written(header: Sequence[str], rows: Sequence[Iterable[Any]]) -> Iterator[str]:
    for start in range(0, max(1, len(rows)), ROWS):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if start == 0:
            writer.writerow(header)
        writer.writerows(rows[start : start + ROWS])
        yield text.getvalue()


# --- the runs of trials ---------------------------------------------------------------------------------------


def _run(app_state: AppState, caller: Caller, job_id: str, number: int) -> tuple[str | None, str | None, list[int]]:
    """A trial's run, its artifact folder and the numbers of its starts; raises the API's 404."""
    attributes = Search.load(app_state, caller, job_id).trial(number).user_attrs
    return (
        attributes.get(names.TRIAL_RUN),
        attributes.get(names.TRIAL_FOLDER),
        sorted(attributes.get(names.TRIAL_ATTEMPTS, [])),
    )


def logs(
    app_state: AppState,
    caller: Caller,
    job_id: str,
    number: int,
    log_filter: LogFilter,
    cursor: str | None,
    limit: int,
    tail: int | None,
) -> LogPage:
    _, folder, attempts = _run(app_state, caller, job_id, number)
    if not folder:
        return LogPage(items=[])
    return page(Logs(LogFiles(app_state.artifacts, folder), attempts), log_filter, cursor, limit, tail)


def images(app_state: AppState, caller: Caller, job_id: str, number: int) -> Page[ImageView]:
    found = Search.load(app_state, caller, job_id)
    trial = found.trial(number)
    spec, metric_curves = analysis.spec_of(trial, found.spec), analysis.metrics_of(trial)
    epoch, samples, per_epoch = metric_curves.get(metric_keys.EPOCH), metric_curves.get(metric_keys.SAMPLES), None
    if spec and spec.images_per_step and epoch and samples:
        per_epoch = round(samples / spec.images_per_step / epoch)
    folder = trial.user_attrs.get(names.TRIAL_FOLDER)
    return reading.image_views(app_state.artifacts, folder, f"/v1/searches/{job_id}/trials/{number}", per_epoch)


def image(app_state: AppState, caller: Caller, job_id: str, number: int, name: str) -> bytes:
    _, folder, _ = _run(app_state, caller, job_id, number)
    return reading.image_bytes(app_state.artifacts, folder, name)


def curves(
    app_state: AppState, caller: Caller, job_id: str, number: int, keys: Sequence[str], points: int
) -> MetricsView:
    """A trial's curves by key; raises the API's 503 where MLflow is unreachable."""
    run_id, _, _ = _run(app_state, caller, job_id, number)
    by_run = metric_curves.curves(app_state, {run_id: None}, keys, points) if run_id else {}
    return MetricsView(series=by_run.get(run_id or "", {key: [] for key in keys}))
