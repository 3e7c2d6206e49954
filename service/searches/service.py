"""What the searches' routes change. A change is one transaction on the search's job; the study, which is in a database
of its own, and Ray are asked before it, never in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

from service.adapters.ray_cluster import ClusterUnreachable
from service.auth.caller import Caller, Role, sha256
from service.context.app_state import AppState
from service.db.tables import Addition, Job, now
from service.http.problems import ApiProblem, unavailable
from service.jobs import lineage
from service.jobs.lifecycle import edit, transition
from service.jobs.reading import view
from service.jobs.schemas import JobView, State
from service.jobs.service import change_job
from service.jobs.submission import stored_key
from service.searches import reading, repository
from service.searches import trials as made
from service.searches.promotion import promote_trial
from service.searches.reading import Search
from service.searches.schemas import PointsBody, PromoteBody, SearchPatch, SearchView, TrialPage, TrialState, TrialView
from trainer.protocol import names
from trainer.spec.base import Problem, SpecError
from trainer.spec.cluster import ClusterShape, plural
from trainer.spec.plan import resolve
from trainer.spec.search import PromoteSpec, SearchSpec, parse_point
from trainer.spec.space import Point

OVER: Final = (State.FAILED, State.CANCELLING, State.CANCELLED)
"""States in which a search takes no trials: it has to be retried first."""
KEPT: Final = (names.TRIAL_SEED, names.TRIAL_REPEAT_OF)
"""Attributes that a trial has in common with the one that it tries again."""
LONGEST_ADDING: Final = timedelta(seconds=60)
"""Whoever adds trials for longer is taken to have died on the way."""


# --- the budget -------------------------------------------------------------------------------------------------------


def patch(app_state: AppState, caller: Caller, job_id: str, body: SearchPatch) -> SearchView:
    """Change the budget; raises 503 where the concurrency changes and Ray does not say what fits.

    A search that has succeeded goes on where that leaves it something to do.
    """
    wanted = body.model_dump(include=body.model_fields_set)
    shape = _shape(app_state) if "concurrency" in wanted else None
    found = Search.load(app_state, caller, job_id)
    ended = made.counted(trial for trial in found.trials if made.state_of(trial).ended)

    def change(session: Session, job: Job) -> None:
        before = SearchSpec.parse(repository.must_be_search(app_state.kinds, job).spec)
        values = {name: value for name, value in wanted.items() if getattr(before.budget, name) != value}
        after = SearchSpec.parse(_with_budget(job.spec, values))
        more = after.trials > before.trials
        longer = "max_hours" in values and (values["max_hours"] or 1e9) > (before.budget.max_hours or 1e9)
        over = job.state == State.SUCCEEDED
        again = over and after.trials > ended and (more or longer or (job.draining and "trials" in wanted))
        told = _write_budget(job, before, values, shape)
        if more or again:
            job.draining = False
        _go_on_or_note(session, job, again, f"{told}." if told else "", caller.owner)

    change_job(app_state, caller, job_id, change, **wanted)
    return reading.show(app_state, caller, job_id)


def _shape(app_state: AppState) -> ClusterShape:
    try:
        return app_state.ray.shape()
    except ClusterUnreachable as error:
        raise unavailable("Ray", error) from error


def _with_budget(document: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    return {**document, "budget": document["budget"] | values}


def _write_budget(job: Job, before: SearchSpec, values: Mapping[str, object], shape: ClusterShape | None) -> str:
    """Change a search's budget, of which as many trials at a time run as fit; says in words what has changed."""
    if not values:
        return ""
    told = [f"{name} from {getattr(before.budget, name)} to {value}" for name, value in values.items()]
    job.spec = _with_budget(job.spec, values)
    if job.resolved_spec:
        document = _with_budget(job.resolved_spec, values)
        if shape and "concurrency" in values:
            document = resolve(SearchSpec.parse(document), shape).model_dump(mode="json")
            fitting = document["budget"]["concurrency"]
            told += [f"of which {fitting} fit on the cluster"] if fitting != values["concurrency"] else []
        job.resolved_spec = document
    return f"Changed {', '.join(told)}"


def _go_on_or_note(session: Session, job: Job, again: bool, message: str, actor: str) -> None:
    """Queue a search that had ended, or say only what has changed; nothing where nothing has."""
    if again:
        job.failures = job.restarts = 0
        job.not_before = None
        lineage.reset(job)
        transition(session, job, State.QUEUED, None, f"{message} The search goes on.".strip(), actor)
    elif message:
        edit(session, job, {"draining": job.draining}, message, actor)


# --- trials that somebody wants ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Once:
    """A request that adds trials and may come again, as it has an idempotency key."""

    search_id: str
    owner: str
    key: str
    """As it is kept."""
    body_sha256: str

    def row(self, session: Session) -> Addition | None:
        """What is known of it."""
        return session.get(Addition, (self.search_id, self.owner, self.key))

    @property
    def mark(self) -> str:
        """What its trials carry in the study."""
        return sha256(json.dumps([self.owner, self.key, self.body_sha256]))


def add_points(
    app_state: AppState, caller: Caller, job_id: str, body: PointsBody, key: str | None
) -> tuple[TrialPage, bool]:
    """Let chosen points be tried before the algorithm's own; False where a request with this key has added them.

    Raises 409 where the budget has no room for them, and 503 while the same request is being answered elsewhere.
    """
    found = Search.load(app_state, caller, job_id)
    caller.must_control(found.job.owner)
    points = [found.spec.stored(point) for point in _parsed(found.spec, body)]
    digest = sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True))
    once = Once(job_id, caller.owner, stored_key(key), digest) if key else None
    numbers = _begun(app_state, once) if once else None
    new = numbers is None
    if numbers is None:
        try:
            numbers = _add(app_state, caller, job_id, points, body.beyond_budget, once)
        except Exception:
            if once:  # the key is free again: what was refused may be asked for anew
                _forget(app_state, once)
            raise
    return TrialPage(items=_views(app_state, caller, job_id, numbers)), new


def _begun(app_state: AppState, once: Once) -> list[int] | None:
    """The trials that a request has added; None where it is to add them now."""
    with app_state.database.session() as session:
        earlier = once.row(session)
        if earlier is None:
            session.add(
                Addition(
                    search_id=once.search_id, owner=once.owner, idempotency_key=once.key,
                    body_sha256=once.body_sha256,
                )
            )  # fmt: skip
        elif earlier.body_sha256 != once.body_sha256:
            text = f"this Idempotency-Key added other trials to {once.search_id}: use a new key"
            raise ApiProblem(422, "idempotency_key_reused", text)
        elif earlier.numbers is not None:
            return earlier.numbers
        elif now() - earlier.begun_at < LONGEST_ADDING:
            raise ApiProblem(503, "unavailable", "the same request is being answered now. Try again shortly")
        else:
            earlier.begun_at = now()
    return None


def _forget(app_state: AppState, once: Once) -> None:
    with app_state.database.session() as session:
        row = once.row(session)
        if row is not None and row.numbers is None:
            session.delete(row)


def _add(
    app_state: AppState,
    caller: Caller,
    job_id: str,
    points: list[dict[str, Any]],
    beyond_budget: bool,
    once: Once | None,
) -> list[int]:
    """Numbers of new trials with these values, among them those that an earlier try of the same request has left."""
    found = Search.load(app_state, caller, job_id)
    attributes = {names.TRIAL_ADDED_BY: once.mark} if once else {}
    there = [t.number for t in found.trials if once and t.user_attrs.get(names.TRIAL_ADDED_BY) == once.mark]
    left = points[len(there) :]
    _must_take_trials(found.job)
    if not beyond_budget and (found.job.draining or found.job.state == State.SUCCEEDED):
        text = f"{job_id} makes no other trial: raise its number of trials first, or say beyond_budget"
        raise ApiProblem(409, "not_allowed_in_state", text)
    beyond = len(points) if beyond_budget else 0
    _must_have_room(found, len(left), beyond)
    numbers = there + _enqueue(app_state, found, left, attributes)
    told = f"Added {plural(len(points), 'trial')}"
    _tell(app_state, caller, job_id, numbers, told, beyond=beyond, undrained=beyond_budget, once=once)
    return numbers


def _parsed(spec: SearchSpec, body: PointsBody) -> list[Point]:
    """Raises `SpecError` at `points.<index>.<path>`."""
    points, problems = [], list[Problem]()
    for index, point in enumerate(body.points):
        try:
            points.append(parse_point(spec, point))
        except SpecError as error:
            for each in error.problems:
                path = each.field.removeprefix("params.")
                place = f"points.{index}.{path}", f"/points/{index}/{path}"
                problems.append(Problem(*place, each.value, each.message))
    if problems:
        raise SpecError(problems)
    return points


def _must_have_room(found: Search, count: int, beyond: int) -> None:
    """Raises the API's 409 where trials would never be tried, by a budget of ``beyond`` more than now."""
    job, spec = found.job, found.spec
    budget = SearchSpec.parse(_with_budget(job.spec, {"trials": spec.budget.trials + beyond}))
    room = max(0, budget.trials - made.counted(found.trials))
    if room < count:
        grid = budget.trials < budget.budget.trials
        more = "a grid has no more: promote trials, or submit another search" if grid else "say beyond_budget"
        text = f"{job.id} has room for {room} more of its {plural(budget.trials, 'trial')}, not for {count}: {more}"
        raise ApiProblem(409, "budget_spent", text)


def _must_take_trials(job: Job) -> None:
    if State(job.state) in OVER:
        raise ApiProblem(409, "not_allowed_in_state", f"{job.id} is {job.state} and takes no trials: retry it first")


def _enqueue(
    app_state: AppState, found: Search, points: list[dict[str, Any]], attributes: Mapping[str, Any]
) -> list[int]:
    """Add trials to the study; gives their numbers.

    Before it is told: of trials that wait without an event nothing is lost, of an event without its trials all is.
    """
    app_state.studies.make(found.job.id, found.spec)
    return app_state.studies.enqueue(found.job.id, points, attributes)


def _tell(
    app_state: AppState,
    caller: Caller,
    job_id: str,
    numbers: list[int],
    message: str,
    *,
    beyond: int = 0,
    undrained: bool,
    once: Once | None = None,
) -> None:
    """Say in the search's events which trials were added; a search that has succeeded goes on with them.

    ``beyond`` is by how many the budget rises; where it is ``undrained``, a search that was stopped makes trials again.
    """

    def change(session: Session, job: Job) -> None:
        _must_take_trials(job)
        row = once.row(session) if once else None
        if row is not None:
            row.numbers = numbers
        before = SearchSpec.parse(job.spec)
        values = {"trials": before.budget.trials + beyond} if beyond else {}
        told = _write_budget(job, before, values, None)
        job.draining = job.draining and not undrained
        said = f"{message}: {', '.join(map(str, numbers))}."
        _go_on_or_note(session, job, job.state == State.SUCCEEDED, f"{said} {told}." if told else said, caller.owner)

    change_job(app_state, caller, job_id, change, trials=numbers)


def _views(app_state: AppState, caller: Caller, job_id: str, numbers: list[int]) -> list[TrialView]:
    found = Search.load(app_state, caller, job_id)
    return found.views(app_state, caller, [found.trial(number) for number in numbers])


# --- one trial --------------------------------------------------------------------------------------------------------


def stop_trial(app_state: AppState, caller: Caller, job_id: str, number: int) -> TrialView:
    """Let a running trial end at its next step with what it has reached; asked again, nothing changes."""
    found, trial = _controlled(app_state, caller, job_id, number)

    def change(session: Session, job: Job) -> None:
        if made.state_of(trial) is not TrialState.RUNNING:
            raise _refused_trial(found, number, "stopped: that is for trials that are running")
        if State(job.state).terminal:
            text = f"{job.id} is {job.state}: its trials have ended, or are about to be closed"
            raise ApiProblem(409, "not_allowed_in_state", text)
        stopped = job.stopped_trials or []
        if number not in stopped:
            values = {"stopped_trials": [*stopped, number]}
            edit(session, job, values, f"Trial {number} was told to stop.", caller.owner)

    change_job(app_state, caller, job_id, change, trial=number)
    return _views(app_state, caller, job_id, [number])[0]


def retry_trial(app_state: AppState, caller: Caller, job_id: str, number: int) -> TrialView:
    """A new trial with the values and the seed of a failed one, beyond the budget, or the one that is under way."""
    found, trial = _controlled(app_state, caller, job_id, number)
    if made.state_of(trial) is not TrialState.FAILED:
        raise _refused_trial(found, number, "tried again: that is for trials that have failed")
    if made.infeasible(trial):
        raise _refused_trial(found, number, "tried again: its values are no spec, and would be none again")
    for other in found.trials:
        if other.user_attrs.get(names.TRIAL_RETRY_OF) == number and not made.state_of(other).ended:
            return _views(app_state, caller, job_id, [other.number])[0]
    _must_take_trials(found.job)
    kept = {name: trial.user_attrs[name] for name in KEPT if name in trial.user_attrs}
    (new,) = _enqueue(app_state, found, [dict(trial.params)], kept | {names.TRIAL_RETRY_OF: number})
    _tell(app_state, caller, job_id, [new], f"Trial {number} is tried again", undrained=True)
    return _views(app_state, caller, job_id, [new])[0]


def _controlled(app_state: AppState, caller: Caller, job_id: str, number: int) -> tuple[Search, FrozenTrial]:
    """A trial of a search that the caller may change; raises the API's 403 and 404."""
    found = Search.load(app_state, caller, job_id)
    caller.must_control(found.job.owner)
    return found, found.trial(number)


def _refused_trial(found: Search, number: int, why: str) -> ApiProblem:
    state = made.state_of(found.trial(number))
    return ApiProblem(409, "not_allowed_in_state", f"trial {number} of {found.job.id} is {state} and cannot be {why}")


def promote(app_state: AppState, caller: Caller, job_id: str, number: int, body: PromoteBody) -> tuple[JobView, bool]:
    """The job that a trial becomes; False where the same promotion has made it before."""
    caller.must_be(Role.SUBMITTER)
    found = Search.load(app_state, caller, job_id)
    trial = found.trial(number)
    wanted = PromoteSpec(overrides=body.overrides, register_as=body.register_as)
    with app_state.database.session() as session:
        search = repository.search(session, app_state.kinds, job_id, caller)
        job, new = promote_trial(session, app_state.settings, search, trial, wanted, caller.owner)
        if new:
            caller.record(session, job_id, trial=number, job=job.id)
        promoted = view(job)
    if new:
        app_state.wake.set()
    return promoted, new
