"""Registered versions and their aliases: the rows that everything reads. MLflow gives versions their numbers.

Every function works inside its caller's transaction. Only one write transaction is open at a time, so a version cannot
get an alias while it is being deleted, nor the other way round: the second of two requests sees what the first did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.adapters.mlflow_registry import Version
from service.adapters.mlflow_store import MlflowStore
from service.db.tables import BackboneAlias, BackboneVersion, Job, RegistryCheck, now
from service.http.problems import unavailable
from service.jobs import work
from service.jobs.work import Work
from trainer.protocol import names


class VersionState(StrEnum):
    """The state of a registered version."""

    READY = "ready"
    GONE = "gone"
    """Somebody deleted it in MLflow: it is shown and cannot be pulled, and is ready again if MLflow has it again."""
    DELETING = "deleting"
    """Somebody deleted it here: it is hidden, and the controller removes its files and its entry in MLflow."""
    REMOVED = "removed"
    """The controller has removed it. The row stays as long as the job, in case a backup of MLflow's database brings the
    version back there, without its files."""


SHOWN = (VersionState.READY, VersionState.GONE)


@dataclass(frozen=True)
class Registered:
    """A version as MLflow has it, with the folder of its files; None if no logged model backs it."""

    version: Version
    folder: str | None


def registered_by(job: Job, mlflow: MlflowStore) -> list[Registered]:
    """The versions that a job has registered in MLflow, oldest first. Raises `MlflowUnreachable`."""
    name = job.spec.get("register_as")
    versions = mlflow.versions_of_job(name, job.id) if name else []
    folders = mlflow.folders(versions) if versions else {}
    return [Registered(version, folders.get(version.source)) for version in versions]


def belongs(job: Job, version: Version) -> bool:
    """Whether a version is one of a job's: anybody who can reach MLflow can register anything there."""
    named_so = job.spec.get("register_as") == version.name
    return named_so and version.tags.get(names.TAG_JOB) == job.id


# --- reading ----------------------------------------------------------------------------------------------------------


def must_be_read(session: Session) -> None:
    """Raises the API's 503 as long as MLflow's versions have never been read whole, as after an upgrade."""
    if session.get(RegistryCheck, 1) is None:
        text = "the controller is reading the registered versions, for the first time since the upgrade"
        raise unavailable("MLflow's registry", text)


def shown(session: Session, backbones: Sequence[str]) -> Sequence[BackboneVersion]:
    """The versions of some backbones that are shown, by name and number."""
    query = select(BackboneVersion).where(BackboneVersion.name.in_(backbones), BackboneVersion.state.in_(SHOWN))
    return session.scalars(query.order_by(BackboneVersion.name, BackboneVersion.version)).all()


def shown_backbones(session: Session, contains: str, after: str, limit: int) -> Sequence[str]:
    """The first names after another one, in the database's order, of backbones with a version that is shown.

    ``contains``: a part of the names, in upper or lower case; empty for all of them.
    """
    query = select(BackboneVersion.name).where(BackboneVersion.state.in_(SHOWN), BackboneVersion.name > after)
    if contains:
        query = query.where(BackboneVersion.name.icontains(contains, autoescape=True))
    return session.scalars(query.distinct().order_by(BackboneVersion.name).limit(limit)).all()


@dataclass(frozen=True)
class Known:
    """What the comparison with MLflow needs of a row."""

    state: VersionState
    source: str
    tags: dict[str, str]


def known(session: Session) -> dict[tuple[str, int], Known]:
    """All versions in any state, by name and number."""
    query = select(
        BackboneVersion.name,
        BackboneVersion.version,
        BackboneVersion.state,
        BackboneVersion.source,
        BackboneVersion.tags,
    )
    rows = session.execute(query)
    return {(name, version): Known(VersionState(state), source, tags) for name, version, state, source, tags in rows}


def aliases(session: Session, backbones: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
    """The versions of all aliases, or of some backbones', by the backbone's name and the alias."""
    query = select(BackboneAlias).order_by(BackboneAlias.name, BackboneAlias.alias)
    found: dict[str, dict[str, int]] = {}
    for row in session.scalars(query if backbones is None else query.where(BackboneAlias.name.in_(backbones))):
        found.setdefault(row.name, {})[row.alias] = row.version
    return found


def shown_of_job(session: Session, job_id: str) -> Sequence[BackboneVersion]:
    """The versions that a job registered and that are shown, by name and number."""
    query = select(BackboneVersion).where(BackboneVersion.job_id == job_id, BackboneVersion.state.in_(SHOWN))
    return session.scalars(query.order_by(BackboneVersion.name, BackboneVersion.version)).all()


def aliases_of(session: Session, version: BackboneVersion) -> list[str]:
    """The aliases that point at a version, sorted."""
    query = select(BackboneAlias.alias).where(
        BackboneAlias.name == version.name, BackboneAlias.version == version.version
    )
    return sorted(session.scalars(query))


def deleting(session: Session, job_id: str | None = None) -> Sequence[BackboneVersion]:
    """Deleted versions, or a job's, that are not removed yet; the oldest deletion first."""
    query = select(BackboneVersion).where(BackboneVersion.state == VersionState.DELETING)
    if job_id is not None:
        query = query.where(BackboneVersion.job_id == job_id)
    return session.scalars(query.order_by(BackboneVersion.deleted_at)).all()


# --- changing ---------------------------------------------------------------------------------------------------------


def add(session: Session, job: Job, registered: Registered, named: Mapping[str, int]) -> bool:
    """Add a version of a job, if it is not there yet; returns whether it was added.

    ``named`` are MLflow's aliases of the backbone: those of a version that was unknown so far are taken over, unless
    the service has an alias of that name. If MLflow has reused the number of another version, because its registered
    model was deleted as a whole, the new version replaces the old row with its aliases, unless that is being deleted.
    """
    version = registered.version
    row = session.get(BackboneVersion, (version.name, version.version))
    if row is not None and (row.source == version.source or row.state == VersionState.DELETING):
        return False
    if row is not None:
        session.delete(row)
        session.flush()
    session.add(
        BackboneVersion(
            name=version.name,
            version=version.version,
            state=VersionState.READY,
            job_id=job.id,
            owner=job.owner,
            trained_by=str(job.spec.get("job") or job.id),  # a publishing job names it in its spec
            dataset_uri=job.dataset_uri,
            source=version.source,
            folder=registered.folder,
            tags=dict(version.tags),
            created_at=version.created_at,
        )
    )
    for alias in [alias for alias, number in named.items() if number == version.version]:
        if session.get(BackboneAlias, (version.name, alias)) is None:
            session.flush()
            session.add(BackboneAlias(name=version.name, alias=alias, version=version.version))
    work.add(session, Work.SIGN_VERSIONS, [""])
    return True


def point(session: Session, name: str, alias: str, number: int) -> None:
    """Point an alias at a version, whatever it pointed at before."""
    session.merge(BackboneAlias(name=name, alias=alias, version=number))


def delete(version: BackboneVersion) -> None:
    """Hide a version; the controller removes it later."""
    version.state, version.deleted_at = VersionState.DELETING, now()


def removed(session: Session, version: BackboneVersion) -> None:
    """Record that a deleted version has been removed completely."""
    session.execute(
        update(BackboneVersion)
        .where(BackboneVersion.name == version.name, BackboneVersion.version == version.version)
        .where(BackboneVersion.state == VersionState.DELETING)
        .values(state=VersionState.REMOVED, tags={})
    )


def checked(session: Session) -> None:
    """Record that the rows have just been compared with all versions in MLflow."""
    session.merge(RegistryCheck(id=1, checked_at=now()))
