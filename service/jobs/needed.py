"""Jobs that have not ended and that need a registered version, because their spec names it as their network.

A spec names the version itself, also where a name or an alias was submitted: what it meant then is written into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import BackboneVersion, Job
from service.http.problems import ApiProblem
from service.jobs.state import UNENDED


def by_version(session: Session, name: str) -> Mapping[int, Sequence[Job]]:
    """The jobs that need a version of a backbone, by its number, the oldest first."""
    subject = Job.spec["backbone"].as_string()
    query = select(Job).where(Job.state.in_(UNENDED), subject.startswith(f"{name}:", autoescape=True))
    needed: dict[int, list[Job]] = {}
    for job in session.scalars(query.order_by(Job.created_at, Job.id)):
        number = str(job.spec["backbone"]).removeprefix(f"{name}:")
        if number.isdecimal():
            needed.setdefault(int(number), []).append(job)
    return needed


def keeps(session: Session, version: BackboneVersion) -> str:
    """Why a version that jobs need is not deleted, and what to do first; empty for one that no job needs."""
    jobs = by_version(session, version.name).get(version.version, ())
    if not jobs:
        return ""
    listed = ", ".join(f"{job.id} ({job.kind}, {job.state}, of {job.owner})" for job in jobs)
    return (
        f"{version.name}:{version.version} is needed by {listed}, which would fail without it: first wait for its end, "
        "or cancel it"
    )


def must_not_be(session: Session, version: BackboneVersion, what: str = "") -> None:
    """Raises the API's 409 for a version that a job needs. ``what``: what the deletion is part of."""
    if kept := keeps(session, version):
        raise ApiProblem(409, "version_needed", f"{what}{kept}")
