"""Changes to searches that requests make.

Each change is one transaction on the search's job. Ray, and the study in its own database, are asked before it begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

from service.auth.caller import Caller, sha256
from service.auth.scopes import Scope
from service.context.app_state import AppState
from service.db.tables import Addition, Job
from service.http.problems import ApiProblem
from service.jobs import lineage
from service.jobs.lifecycle import edit, transition
from service.jobs.reading import view
from service.jobs.schemas import JobView
from service.jobs.service import change_job
from service.jobs.state import State
from service.jobs.submission import check_backbone_names, stored_key
from service.searches import analysis, reading, repository
from service.searches.claims import Claim, claimed
from service.searches.promotion import promote_trial
from service.searches.reading import Search
from service.searches.schemas import PointsBody, PromoteBody, SearchPatch, SearchView, TrialPage, TrialState, TrialView
from trainer.protocol import names
from trainer.spec.base import Problem, SpecError
from trainer.spec.cluster import ClusterShape, plural
from trainer.spec.plan import resolve
from trainer.spec.search import SearchSpec, parse_point
from trainer.spec.search_sections import PromoteSpec
from trainer.spec.space import Point

CLOSED: Final = (State.FAILED, State.CANCELLING, State.CANCELLED)
"""States in which a search accepts no trials: it has to be retried first."""
COPIED: Final = (names.TRIAL_SEED, names.TRIAL_REPEAT_OF)
"""Attributes that the retry of a trial copies from it."""
ADDED_AT_ONCE: Final = 10
"""Points added between two looks at the claim."""


# --- the budget -------------------------------------------------------------------------------------------------------


def patch(app_state: AppState, caller: Caller, job_id: str, body: SearchPatch) -> SearchView:
    """Change the budget of a search; one that has succeeded continues where the new budget allows more trials.

    Raises the API's 503 where the concurrency changes and Ray is unreachable.
    """
    changes = body.model_dump(include=body.model_fields_set)
    shape = app_state.ray.shape() if "concurrency" in changes else None
    found = Search.load(app_state, caller, job_id)
    ended = analysis.counted(trial for trial in found.trials if analysis.state_of(trial).ended)

    def change(session: Session, job: Job) -> None:
        before = SearchSpec.parse(repository.must_be_search(app_state.kinds, job).spec)
        values = {name: value for name, value in changes.items() if getattr(before.budget, name) != value}
        after = SearchSpec.parse(_with_budget(job.spec, values))
        more_trials = after.trials > before.trials
        more_hours = "max_hours" in values and (values["max_hours"] or 1e9) > (before.budget.max_hours or 1e9)
        succeeded = job.state == State.SUCCEEDED
        continues = (
            succeeded and after.trials > ended and (more_trials or more_hours or (job.draining and "trials" in changes))
        )
        message = _write_budget(job, before, values, shape)
        if more_trials or continues:
            job.draining = False
        _continue_or_note(session, job, continues, f"{message}." if message else "", caller.owner)

    change_job(app_state, caller, job_id, change, **changes)
    return reading.show(app_state, caller, job_id)


def _with_budget(document: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    return {**document, "budget": document["budget"] | values}


def _write_budget(job: Job, before: SearchSpec, values: Mapping[str, object], shape: ClusterShape | None) -> str:
    """Change a search's budget, limiting its resolved concurrency to ``shape``; returns in words what has changed."""
    if not values:
        return ""
    changed = [f"{name} from {getattr(before.budget, name)} to {value}" for name, value in values.items()]
    job.spec = _with_budget(job.spec, values)
    if job.resolved_spec:
        document = _with_budget(job.resolved_spec, values)
        if shape and "concurrency" in values:
            document = resolve(SearchSpec.parse(document), shape).model_dump(mode="json")
            fitting = document["budget"]["concurrency"]
            changed += [f"of which {fitting} fit on the cluster"] if fitting != values["concurrency"] else []
        job.resolved_spec = document
    return f"Changed {', '.join(changed)}"


def _continue_or_note(session: Session, job: Job, continues: bool, message: str, actor: str) -> None:
    """Queue a search that had ended, or only append an event; without effect where nothing has changed."""
    if continues:
        job.failures = 0
        lineage.reset(job)
        transition(session, job, State.QUEUED, None, f"{message} The search continues.".strip(), actor)
    elif message:
        edit(session, job, {"draining": job.draining}, message, actor)


# --- adding trials ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdempotentRequest:
    """A request that adds trials and has an idempotency key, so that it may be repeated."""

    search_id: str
    owner: str
    key: str
    """As it is stored."""
    body_sha256: str

    def row(self, session: Session) -> Addition | None:
        """The row that records it, if it has added its trials."""
        return session.get(Addition, (self.search_id, self.owner, self.key))

    def new_row(self, numbers: list[int]) -> Addition:
        """The row that records it with the trials that it has added."""
        return Addition(
            search_id=self.search_id,
            owner=self.owner,
            idempotency_key=self.key,
            body_sha256=self.body_sha256,
            numbers=numbers,
        )

    @property
    def mark(self) -> str:
        """The attribute by which its trials are found in the study."""
        return sha256(json.dumps([self.owner, self.key, self.body_sha256]))


def add_points(
    app_state: AppState, caller: Caller, job_id: str, body: PointsBody, key: str | None
) -> tuple[TrialPage, bool]:
    """Add trials with chosen points; returns them, and False where a request with this key had added them before.

    Raises the API's 409 where the budget has no room for them, and 503 while other requests add trials for long.
    """
    with app_state.database.read() as session:
        job = repository.visible_search(session, app_state.kinds, job_id, caller)
    caller.must(Scope.JOBS, job.owner)
    spec = SearchSpec.parse(job.spec)
    points = [spec.stored(point) for point in _parsed(spec, body)]
    digest = sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True))
    once = IdempotentRequest(job_id, caller.owner, stored_key(key), digest) if key else None
    with claimed(app_state.database, job_id) as claim:
        numbers = _numbers_added(app_state, once) if once else None
        new = numbers is None
        if numbers is None:
            numbers = _add(app_state, caller, claim, points, body.beyond_budget, once)
    return TrialPage(items=_views(app_state, caller, job_id, numbers)), new


def _numbers_added(app_state: AppState, once: IdempotentRequest) -> list[int] | None:
    """The trials that a request added before; None where it has to add them now."""
    with app_state.database.read() as session:
        earlier = once.row(session)
    if earlier is None:
        return None
    if earlier.body_sha256 != once.body_sha256:
        text = f"this Idempotency-Key was used for other trials of {once.search_id}: use a new key"
        raise ApiProblem(422, "idempotency_key_reused", text)
    return earlier.numbers


def _add(
    app_state: AppState,
    caller: Caller,
    claim: Claim,
    points: list[dict[str, Any]],
    beyond_budget: bool,
    once: IdempotentRequest | None,
) -> list[int]:
    """Add trials with these values; returns their numbers, with those that an interrupted request had already added."""
    found = Search.load(app_state, caller, claim.search_id)
    attributes = {names.TRIAL_ADDED_BY: once.mark} if once else {}
    already = [t.number for t in found.trials if once and t.user_attrs.get(names.TRIAL_ADDED_BY) == once.mark]
    remaining = points[len(already) :]
    _must_take_trials(found.job)
    if not beyond_budget and (found.job.draining or found.job.state == State.SUCCEEDED):
        text = f"{found.job.id} starts no more trials: raise its number of trials first, or set beyond_budget"
        raise ApiProblem(409, "not_allowed_in_state", text)
    beyond = len(points) if beyond_budget else 0
    _must_have_room(found, len(remaining), beyond)
    numbers = already + _enqueue(app_state, claim, found, remaining, attributes)
    message = f"Added {plural(len(points), 'trial')}"
    _record_added(app_state, caller, claim, numbers, message, beyond=beyond, resume_stopped=beyond_budget, once=once)
    return numbers


def _parsed(spec: SearchSpec, body: PointsBody) -> list[Point]:
    """The points of a request; raises `SpecError` at `points.<index>.<path>`."""
    points, problems = [], list[Problem]()
    for index, point in enumerate(body.points):
        try:
            points.append(parse_point(spec, point))
        except SpecError as error:
            for each in error.problems:
                path = each.field.removeprefix("params.")
                location = f"points.{index}.{path}", f"/points/{index}/{path}"
                problems.append(Problem(*location, each.value, each.message))
    if problems:
        raise SpecError(problems)
    return points


def _must_have_room(found: Search, count: int, beyond: int) -> None:
    """Raises the API's 409 where the budget, raised by ``beyond``, has no room for ``count`` more trials."""
    job, spec = found.job, found.spec
    budget = SearchSpec.parse(_with_budget(job.spec, {"trials": spec.budget.trials + beyond}))
    room = max(0, budget.trials - analysis.counted(found.trials))
    if room < count:
        no_more_points = budget.trials < budget.budget.trials
        advice = (
            "its space has no more points: promote trials, or submit another search"
            if no_more_points
            else "set beyond_budget"
        )
        text = f"{job.id} has room for {room} more of its {plural(budget.trials, 'trial')}, not for {count}: {advice}"
        raise ApiProblem(409, "budget_spent", text)


def _must_take_trials(job: Job) -> None:
    if State(job.state) in CLOSED:
        raise ApiProblem(409, "not_allowed_in_state", f"{job.id} is {job.state} and accepts no trials: retry it first")


def _enqueue(
    app_state: AppState, claim: Claim, found: Search, points: list[dict[str, Any]], attributes: Mapping[str, Any]
) -> list[int]:
    """Add waiting trials to the study; returns their numbers.

    This precedes the event: trials without an event still run, but an event without its trials would be wrong.
    """
    app_state.studies.make(found.job.id, found.spec)
    numbers: list[int] = []
    for first in range(0, len(points), ADDED_AT_ONCE):
        claim.renew()
        numbers += app_state.studies.enqueue(found.job.id, points[first : first + ADDED_AT_ONCE], attributes)
    return numbers


def _record_added(
    app_state: AppState,
    caller: Caller,
    claim: Claim,
    numbers: list[int],
    message: str,
    *,
    beyond: int = 0,
    resume_stopped: bool,
    once: IdempotentRequest | None = None,
) -> None:
    """Append an event that names added trials; a search that has succeeded continues with them.

    ``beyond`` raises the budget; with ``resume_stopped``, a stopped search starts trials again.
    """

    def change(session: Session, job: Job) -> None:
        claim.must_hold(session)
        _must_take_trials(job)
        if once:
            session.add(once.new_row(numbers))
        before = SearchSpec.parse(job.spec)
        values = {"trials": before.budget.trials + beyond} if beyond else {}
        budget = _write_budget(job, before, values, None)
        job.draining = job.draining and not resume_stopped
        added = f"{message}: {', '.join(map(str, numbers))}."
        _continue_or_note(
            session, job, job.state == State.SUCCEEDED, f"{added} {budget}." if budget else added, caller.owner
        )

    change_job(app_state, caller, claim.search_id, change, trials=numbers)


def _views(app_state: AppState, caller: Caller, job_id: str, numbers: list[int]) -> list[TrialView]:
    found = Search.load(app_state, caller, job_id)
    return found.views(app_state, caller, [found.trial(number) for number in numbers])


# --- one trial --------------------------------------------------------------------------------------------------------


def stop_trial(app_state: AppState, caller: Caller, job_id: str, number: int) -> TrialView:
    """Stop a running trial at its next step; it keeps its last value. A repeated request changes nothing."""
    found, trial = _controlled(app_state, caller, job_id, number)

    def change(session: Session, job: Job) -> None:
        if analysis.state_of(trial) is not TrialState.RUNNING:
            raise _refused_trial(found, number, "stopped: only running trials can be")
        if State(job.state).terminal:
            text = f"{job.id} is {job.state}: its trials have ended or are being closed"
            raise ApiProblem(409, "not_allowed_in_state", text)
        stopped = job.stopped_trials or []
        if number not in stopped:
            values = {"stopped_trials": [*stopped, number]}
            edit(session, job, values, f"Trial {number} was told to stop.", caller.owner)

    change_job(app_state, caller, job_id, change, trial=number)
    return _views(app_state, caller, job_id, [number])[0]


def retry_trial(app_state: AppState, caller: Caller, job_id: str, number: int) -> TrialView:
    """Retry a failed trial: returns a new trial with its values and seed, beyond the budget, or the retry under way.

    Raises the API's 503 while other requests add trials for long.
    """
    _controlled(app_state, caller, job_id, number)
    with claimed(app_state.database, job_id) as claim:
        found, trial = _controlled(app_state, caller, job_id, number)
        if analysis.state_of(trial) is not TrialState.FAILED:
            raise _refused_trial(found, number, "retried: only failed trials can be")
        if analysis.infeasible(trial):
            raise _refused_trial(found, number, "retried: its values are invalid, and would be again")
        new = _retry_under_way(found, number)
        if new is None:
            _must_take_trials(found.job)
            copied = {name: trial.user_attrs[name] for name in COPIED if name in trial.user_attrs}
            attributes = copied | {names.TRIAL_RETRY_OF: number}
            (new,) = _enqueue(app_state, claim, found, [dict(trial.params)], attributes)
            _record_added(app_state, caller, claim, [new], f"Retried trial {number}", resume_stopped=True)
    return _views(app_state, caller, job_id, [new])[0]


def _retry_under_way(found: Search, number: int) -> int | None:
    """The number of the trial that retries another one and has not ended yet."""
    for trial in found.trials:
        if trial.user_attrs.get(names.TRIAL_RETRY_OF) == number and not analysis.state_of(trial).ended:
            return trial.number
    return None


def _controlled(app_state: AppState, caller: Caller, job_id: str, number: int) -> tuple[Search, FrozenTrial]:
    """A trial of a search that the caller may change; raises the API's 403 and 404."""
    found = Search.load(app_state, caller, job_id)
    caller.must(Scope.JOBS, found.job.owner)
    return found, found.trial(number)


def _refused_trial(found: Search, number: int, why: str) -> ApiProblem:
    state = analysis.state_of(found.trial(number))
    return ApiProblem(409, "not_allowed_in_state", f"trial {number} of {found.job.id} is {state} and cannot be {why}")


def promote(app_state: AppState, caller: Caller, job_id: str, number: int, body: PromoteBody) -> tuple[JobView, bool]:
    """Promote a trial; returns the job, and False where the same promotion had created it before."""
    caller.must_have(Scope.SUBMIT)
    found = Search.load(app_state, caller, job_id)
    trial = found.trial(number)
    promotion = PromoteSpec(overrides=body.overrides, register_as=body.register_as)
    with app_state.database.session() as session:
        search = repository.visible_search(session, app_state.kinds, job_id, caller)
        check_backbone_names(session, caller, promotion.model_dump(mode="json"))
        job, new = promote_trial(session, app_state.settings, app_state.kinds, search, trial, promotion, caller.owner)
        if new:
            caller.record(session, job_id, trial=number, job=job.id)
        promoted = view(session, job)
    if new:
        app_state.wake.set()
    return promoted, new
