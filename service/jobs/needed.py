"""Jobs that need a registered version or another job: their spec names it as what they measure, use or publish.

A spec names the version itself, also where a name or an alias was submitted: what it meant then is written into it. A
paused job keeps nothing from being deleted, or somebody could keep it for ever; what it needs is looked for when it is
resumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from service.db.tables import BackboneVersion, Job
from service.http.problems import ApiProblem
from service.jobs.state import UNENDED, State

NEEDING: Final = tuple(state for state in UNENDED if state is not State.PAUSED)
"""States of jobs that keep what they need."""
SPECS: Final = ((), ("base",))
"""Where in a document a spec lies: it is the document, or the base of a search."""


def by_version(session: Session, name: str) -> Mapping[int, Sequence[Job]]:
    """The jobs that need a version of a backbone, by its number, the oldest first."""
    subjects = [Job.spec[(*place, "backbone")].as_string() for place in SPECS]
    named = or_(*(subject.startswith(f"{name}:", autoescape=True) for subject in subjects))
    needed: dict[int, list[Job]] = {}
    for job in session.scalars(_needing().where(named)):
        number = str(job.spec.get("base", job.spec)["backbone"]).removeprefix(f"{name}:")
        if number.isdecimal():
            needed.setdefault(int(number), []).append(job)
    return needed


def keeps(session: Session, version: BackboneVersion) -> str:
    """Why a version that jobs need is not deleted, and what to do first; empty for one that no job needs."""
    return _kept(f"{version.name}:{version.version}", by_version(session, version.name).get(version.version, ()))


def must_not_be(session: Session, version: BackboneVersion, what: str = "") -> None:
    """Raises the API's 409 for a version that a job needs. ``what``: what the deletion is part of."""
    if kept := keeps(session, version):
        raise ApiProblem(409, "version_needed", f"{what}{kept}")


def job_must_not_be(session: Session, job: Job) -> None:
    """Raises the API's 409 for a job whose checkpoints or result another job needs."""
    needed = [Job.spec["job"].as_string() == job.id]  # of a job that publishes
    for place in SPECS:
        needed.append(Job.spec[(*place, "backbone", "job")].as_string() == job.id)
        # One of the protocols may name an evaluation.
        needed.append(Job.spec[(*place, "protocols")].as_string().contains(f'"{job.id}"', autoescape=True))
    others = [each for each in session.scalars(_needing().where(or_(*needed))) if each.id != job.id]
    if kept := _kept(job.id, others):
        raise ApiProblem(409, "job_needed", kept)


def _needing() -> Select[Job]:
    return select(Job).where(Job.state.in_(NEEDING)).order_by(Job.created_at, Job.id)


def _kept(what: str, jobs: Iterable[Job]) -> str:
    listed = ", ".join(f"{job.id} ({job.kind}, {job.state}, of {job.owner})" for job in jobs)
    advice = "which would fail without it: first wait for its end, or pause or cancel it"
    return f"{what} is needed by {listed}, {advice}" if listed else ""
