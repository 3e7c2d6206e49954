"""What is checked of a search before it is a job, and what can be said of it then."""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.db.database import Database
from service.db.tables import Job
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.submission import below, check_places, schedule
from service.settings import Settings
from trainer.protocol.names import STUDY_VARIABLE
from trainer.spec.base import Problem, SpecError
from trainer.spec.job import Kind
from trainer.spec.plan import Schedule, plural
from trainer.spec.search import SearchSpec

"""The kind of job that a search is."""
BATCH: Final = "optimization.global_batch_size"


def check_search(settings: Settings, database: Database, caller: Caller, spec: SearchSpec) -> None:
    """Raises `SpecError` where a search cannot be made here."""
    if settings.study_url is None:
        text = f"searches are not set up on this service: set {STUDY_VARIABLE}, or submit trials as jobs of their own"
        raise SpecError([Problem("kind", "/kind", Kind.SEARCH, text)])
    check_base(settings, spec)
    with database.read() as session:
        for index, earlier in enumerate(spec.warm_start):
            why = _cannot_learn_from(session, caller, spec, earlier)
            if why:
                raise SpecError([Problem(f"warm_start.{index}", f"/warm_start/{index}", earlier, why)])


def check_base(settings: Settings, spec: SearchSpec) -> None:
    """Raises `SpecError` where the trials' datasets lie where none may."""
    try:
        check_places(settings, spec.base_spec)
    except SpecError as error:
        raise below("base", error) from error


def _cannot_learn_from(session: Session, caller: Caller, spec: SearchSpec, earlier: str) -> str | None:
    """Why a search cannot go by the trials of an earlier one; None where it can."""
    try:
        job: Job = repository.seen(session, earlier, caller)
    except ApiProblem as error:
        return f"{error.detail}: name an earlier search of yours"
    if job.kind != Kind.SEARCH:
        return f"is a {job.kind} job: name a search"
    other = SearchSpec.parse(job.spec)
    if set(other.space) != set(spec.space):
        return f"is over another space: {', '.join(sorted(other.space))}"
    if other.objectives != spec.objectives:
        sought = ", ".join(f"{each.metric} ({each.mode})" for each in other.objectives)
        return f"has another objective: {sought}"
    return None


def trial_schedule(session: Session, spec: SearchSpec) -> Schedule | None:
    """Steps of a trial, where the number of images is known and the batch is the same for all.

    Raises `SpecError` where one batch does not fit.
    """
    if BATCH in spec.space:
        return None
    try:
        return schedule(session, spec.base_spec)
    except SpecError as error:
        raise below("base", error) from error


def how_many(spec: SearchSpec, resolved: SearchSpec) -> str:
    """How many trials there are, in all and at a time, and why fewer than were asked for; for people."""
    wanted, fitting = spec.budget.concurrency, resolved.budget.concurrency
    told = f"It makes {plural(spec.trials, 'trial')}"
    if spec.algorithm.name == "grid":
        told += f" of the grid's {spec.grid_size}"
    told += f", {fitting} at a time."
    if fitting < wanted:
        told += f" {wanted} were asked for: the cluster has room for {plural(fitting, 'trial')} of this size."
    return told
