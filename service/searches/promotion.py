"""Promotes a trial of a search to a job of the kind that the trial is.

This module needs only a transaction, the settings and the kinds of jobs, as both the API and the controller promote
trials.
"""

from __future__ import annotations

import json

from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session

from service.auth.caller import sha256
from service.context.kind import Kinds
from service.db.tables import Event, Job
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.schemas import PromotedFrom
from service.jobs.submission import insert, stored_key
from service.searches.analysis import point_of, spec_of
from service.settings import Settings
from trainer.spec.base import Problem, SpecError
from trainer.spec.search import SearchSpec
from trainer.spec.search_sections import PromoteSpec
from trainer.spec.space import BaseSpec, parse_base


def promote_trial(
    session: Session,
    settings: Settings,
    kinds: Kinds,
    search: Job,
    trial: FrozenTrial,
    promote: PromoteSpec,
    owner: str,
) -> tuple[Job, bool]:
    """Promote a trial in the caller's transaction; returns the job, and False where the same promotion had created it.

    Raises the API's 409 for a trial whose values do not form a valid spec or are not all known yet, and `SpecError` at
    `overrides.<path>` for a spec that cannot run.
    """
    key = stored_key(f"promotion:{_digest(search, trial, promote)}")
    earlier = repository.by_idempotency_key(session, owner, key)
    if earlier:
        return earlier, False
    spec = _promoted(search, trial, promote)
    try:
        kind = kinds[spec.kind]
        kind.recheck(session, settings, spec)
        kind.schedule(session, spec)
    except SpecError as error:
        raise _at_overrides(error, promote) from error
    job = insert(session, owner, spec, spec.dataset.uri, key, PromotedFrom(search=search.id, trial=trial.number))
    message = f"Trial {trial.number} was promoted to {job.id}."
    session.add(Event(job_id=search.id, state=search.state, reason=search.reason, message=message, actor=owner))
    return job, True


def _digest(search: Job, trial: FrozenTrial, promote: PromoteSpec) -> str:
    """Identifies a promotion."""
    return sha256(json.dumps([search.id, trial.number, promote.overrides, promote.register_as], sort_keys=True))


def _promoted(search: Job, trial: FrozenTrial, promote: PromoteSpec) -> BaseSpec:
    spec = SearchSpec.parse(search.spec)
    if spec_of(trial, spec) is None:
        text = f"trial {trial.number} of {search.id} cannot be promoted: its values are invalid, or not all known yet"
        raise ApiProblem(409, "trial_not_settled", text)
    try:
        document = spec.promoted(point_of(trial, spec), promote, spec.base.get("resources") or {})
        return parse_base(document)
    except SpecError as error:
        raise _at_overrides(error, promote) from error


def _at_overrides(error: SpecError, promote: PromoteSpec) -> SpecError:
    """The same problems, at the paths of the request's overrides."""
    return SpecError([_moved(problem, promote) for problem in error.problems])


def _moved(problem: Problem, promote: PromoteSpec) -> Problem:
    field = problem.field
    if field == "register_as" and promote.register_as is not None:
        return problem
    for path in promote.overrides:
        if field == path or field.startswith(f"{path}.") or path.startswith(f"{field}."):
            return Problem(f"overrides.{path}", f"/overrides/{path}", problem.value, problem.message)
    return Problem("overrides", "/overrides", problem.value, f"{field}: {problem.message}")
