"""What the searches' routes change. A change is one transaction on the search's job; the study, which is in a database
of its own, and Ray are asked before it, never in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from optuna.trial import FrozenTrial
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.adapters.ray_cluster import ClusterUnreachable
from service.auth import Caller, Role
from service.db import Job
from service.deps import Parts
from service.errors import ApiProblem, unavailable
from service.jobs import lineage
from service.jobs.lifecycle import edit, transition
from service.jobs.reading import view
from service.jobs.schemas import JobView, State
from service.jobs.service import changed
from service.searches import reading, repository
from service.searches import trials as made
from service.searches.promotion import promote_trial
from service.searches.reading import Search
from service.searches.schemas import (
    PointsBody,
    PromoteBody,
    SearchPatch,
    SearchView,
    TrialPage,
    TrialState,
    TrialView,
)
from trainer.spec import names
from trainer.spec.base import Problem, SpecError
from trainer.spec.plan import ClusterShape, plural, resolve
from trainer.spec.search import Point, PromoteSpec, SearchSpec, parse_point

OVER: Final = (State.FAILED, State.CANCELLING, State.CANCELLED)
"""States in which a search takes no trials: it has to be retried first."""
KEPT: Final = (names.TRIAL_SEED, names.TRIAL_REPEAT_OF)
"""Attributes that a trial has in common with the one that it tries again."""


# --- the budget -------------------------------------------------------------------------------------------------------


def patch(parts: Parts, caller: Caller, job_id: str, body: SearchPatch) -> SearchView:
    """Change the budget; raises 503 where the concurrency changes and Ray does not say what fits.

    A search that has succeeded goes on where that leaves it something to do.
    """
    wanted = body.model_dump(include=body.model_fields_set)
    shape = _shape(parts) if "concurrency" in wanted else None
    found = Search.load(parts, caller, job_id)
    ended = sum(made.state_of(trial).ended and not made.is_repeat(trial) for trial in found.trials)

    def change(session: Session, job: Job) -> None:
        before = SearchSpec.parse(repository.must_be_search(job).spec)
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

    changed(parts, caller, job_id, change, **wanted)
    return reading.show(parts, caller, job_id)


def _shape(parts: Parts) -> ClusterShape:
    try:
        return parts.ray.shape()
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


def add_points(parts: Parts, caller: Caller, job_id: str, body: PointsBody) -> TrialPage:
    """Let chosen points be tried before the algorithm's own; raises 409 where the budget has no room for them."""
    found = Search.load(parts, caller, job_id)
    caller.must_control(found.job.owner)
    points = [found.spec.stored(point) for point in _parsed(found.spec, body)]
    _must_take_trials(found.job)
    if not body.beyond_budget and (found.job.draining or found.job.state == State.SUCCEEDED):
        text = f"{job_id} makes no other trial: raise its number of trials first, or say beyond_budget"
        raise ApiProblem(409, "not_allowed_in_state", text)
    beyond = len(points) if body.beyond_budget else 0
    _must_have_room(found, len(points), beyond)
    numbers = _enqueue(parts, caller, found, points, {}, beyond, f"Added {plural(len(points), 'trial')}")
    return TrialPage(items=_views(parts, caller, job_id, numbers))


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
    parts: Parts,
    caller: Caller,
    found: Search,
    points: list[dict[str, Any]],
    attributes: Mapping[str, Any],
    beyond: int,
    message: str,
) -> list[int]:
    """Add trials to the study, then say so in the search's events; gives their numbers.

    In this order: of trials that wait without an event nothing is lost, of an event without its trials all is.
    ``beyond`` is by how many the budget rises; a search that has succeeded goes on with them.
    """
    job_id = found.job.id
    parts.studies.make(job_id, found.spec)
    numbers = parts.studies.enqueue(job_id, points, attributes)

    def change(session: Session, job: Job) -> None:
        _must_take_trials(job)
        before = SearchSpec.parse(job.spec)
        values = {"trials": before.budget.trials + beyond} if beyond else {}
        told = _write_budget(job, before, values, None)
        job.draining = job.draining and not beyond
        said = f"{message}: {', '.join(map(str, numbers))}."
        _go_on_or_note(session, job, job.state == State.SUCCEEDED, f"{said} {told}." if told else said, caller.owner)

    changed(parts, caller, job_id, change, trials=numbers)
    return numbers


def _views(parts: Parts, caller: Caller, job_id: str, numbers: list[int]) -> list[TrialView]:
    found = Search.load(parts, caller, job_id)
    return found.views(parts, caller, [found.trial(number) for number in numbers])


# --- one trial --------------------------------------------------------------------------------------------------------


def stop_trial(parts: Parts, caller: Caller, job_id: str, number: int) -> TrialView:
    """Let a running trial end at its next step with what it has reached; asked again, nothing changes."""
    found, trial = _controlled(parts, caller, job_id, number)

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

    changed(parts, caller, job_id, change, trial=number)
    return _views(parts, caller, job_id, [number])[0]


def retry_trial(parts: Parts, caller: Caller, job_id: str, number: int) -> TrialView:
    """A new trial with the values and the seed of a failed one, beyond the budget, or the one that is under way."""
    found, trial = _controlled(parts, caller, job_id, number)
    if made.state_of(trial) is not TrialState.FAILED:
        raise _refused_trial(found, number, "tried again: that is for trials that have failed")
    if made.infeasible(trial):
        raise _refused_trial(found, number, "tried again: its values are no spec, and would be none again")
    for other in found.trials:
        if other.user_attrs.get(names.TRIAL_RETRY_OF) == number and not made.state_of(other).ended:
            return _views(parts, caller, job_id, [other.number])[0]
    _must_take_trials(found.job)
    beyond = 0 if made.is_repeat(trial) else 1  # no budget counts repeats
    _must_have_room(found, beyond, beyond)
    kept = {name: trial.user_attrs[name] for name in KEPT if name in trial.user_attrs}
    attributes = kept | {names.TRIAL_RETRY_OF: number}
    message = f"Trial {number} is tried again"
    (new,) = _enqueue(parts, caller, found, [dict(trial.params)], attributes, beyond, message)
    return _views(parts, caller, job_id, [new])[0]


def _controlled(parts: Parts, caller: Caller, job_id: str, number: int) -> tuple[Search, FrozenTrial]:
    """A trial of a search that the caller may change; raises the API's 403 and 404."""
    found = Search.load(parts, caller, job_id)
    caller.must_control(found.job.owner)
    return found, found.trial(number)


def _refused_trial(found: Search, number: int, why: str) -> ApiProblem:
    state = made.state_of(found.trial(number))
    return ApiProblem(409, "not_allowed_in_state", f"trial {number} of {found.job.id} is {state} and cannot be {why}")


def promote(parts: Parts, caller: Caller, job_id: str, number: int, body: PromoteBody) -> tuple[JobView, bool]:
    """The job that a trial becomes; False where the same promotion has made it before."""
    caller.must_be(Role.SUBMITTER)
    found = Search.load(parts, caller, job_id)
    trial = found.trial(number)
    wanted = PromoteSpec(overrides=body.overrides, register_as=body.register_as)

    def promoted() -> tuple[JobView, bool]:
        with parts.database.session() as session:
            search = repository.search(session, job_id, caller)
            job, new = promote_trial(session, parts.settings, search, trial, wanted, caller.owner)
            if new:
                caller.record(session, job_id, trial=number, job=job.id)
            return view(job), new

    try:
        job, new = promoted()
    except IntegrityError:  # the same came twice at once, and the other one was first
        job, new = promoted()
    if new:
        parts.reconciler.wake()
    return job, new
