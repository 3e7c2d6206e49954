"""Registered versions and their aliases: the rows that everything reads. MLflow gives versions their numbers.

Every function works inside its caller's transaction. Only one write transaction is open at a time, so a version cannot
get an alias while it is being deleted, nor the other way round: the second of two requests sees what the first did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import ColumnElement, Select, and_, or_, select, update
from sqlalchemy import delete as delete_rows
from sqlalchemy.orm import Session

from service.adapters.mlflow_registry import Version
from service.adapters.mlflow_store import MlflowStore
from service.auth.caller import Caller
from service.auth.scopes import Scope, named, roles_with
from service.auth.sight import ALL, OWNERS
from service.db.tables import (
    BackboneAlias,
    BackboneVersion,
    Job,
    RegisteredBackbone,
    RegistryCheck,
    VersionUse,
    folded,
    now,
)
from service.events.outbox import forget_unseen
from service.events.types import EventType
from service.http.problems import ApiProblem, unavailable
from service.jobs import aliases, work
from service.jobs.registering import registered_name, registration, type_of
from service.jobs.version_events import tell
from service.jobs.version_tags import own_tags
from service.jobs.work import Work
from trainer.protocol import names
from trainer.protocol.names import TAG_FINE_TUNED_FROM
from trainer.spec.subject import reference


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
    name = registered_name(job)
    versions = mlflow.versions_of_job(name, job.id) if name else []
    folders = mlflow.folders(versions) if versions else {}
    return [Registered(version, folders.get(version.source)) for version in versions]


def belongs(job: Job, version: Version) -> bool:
    """Whether a version is one of a job's: anybody who can reach MLflow can register anything there."""
    return registered_name(job) == version.name and version.tags.get(names.TAG_JOB) == job.id


# --- reading ----------------------------------------------------------------------------------------------------------


def have_been_read(session: Session) -> bool:
    """Whether MLflow's versions have ever been read whole; they have not after an upgrade."""
    return session.get(RegistryCheck, 1) is not None


def must_be_read(session: Session) -> None:
    """Raises the API's 503 as long as MLflow's versions have never been read whole."""
    if not have_been_read(session):
        text = "the controller is reading the registered versions, for the first time since the upgrade"
        raise unavailable("MLflow's registry", text)


def shown(session: Session, backbones: Sequence[str]) -> Sequence[BackboneVersion]:
    """The versions of some backbones that are shown, by name and number."""
    query = select(BackboneVersion).where(BackboneVersion.name.in_(backbones), BackboneVersion.state.in_(SHOWN))
    return session.scalars(query.order_by(BackboneVersion.name, BackboneVersion.version)).all()


def following(
    session: Session, query: Select[BackboneVersion], after: tuple[str, int], limit: int
) -> Sequence[BackboneVersion]:
    """The first versions of a query after a name and number, by name and number."""
    row, (name, number) = BackboneVersion, after
    query = query.where(or_(row.name > name, and_(row.name == name, row.version > number)))
    return session.scalars(query.order_by(row.name, row.version).limit(limit)).all()


def owned_by(owner: str) -> ColumnElement[bool]:
    """Whether somebody owns a version or its backbone."""
    return or_(BackboneVersion.owner == owner, RegisteredBackbone.owner == owner)


def with_words(words: Iterable[str]) -> list[ColumnElement[bool]]:
    """Whether each of some words is in the name, dataset, a description or a label of a version or its backbone."""
    columns = (BackboneVersion.search_text, RegisteredBackbone.search_text)
    return [or_(*(column.contains(folded(word), autoescape=True) for column in columns)) for word in words]


def has_words(words: Iterable[str], version: BackboneVersion, backbone: RegisteredBackbone) -> bool:
    """The same of rows that were read."""
    text = f"{version.search_text}\n{backbone.search_text}"
    return all(folded(word) in text for word in words)


def with_labels(labels: Iterable[tuple[str, str]]) -> list[ColumnElement[bool]]:
    """What rows meet that have each of some labels, and perhaps others: `has_labels` tells them apart."""
    return with_words(f"{name}:{value}" for name, value in labels)


def has_labels(labels: Iterable[tuple[str, str]], version: BackboneVersion, backbone: RegisteredBackbone) -> bool:
    """Whether a version or its backbone has each of some labels."""
    return {*labels} <= {*version.labels.items(), *backbone.labels.items()}


def backbones(session: Session, names: Iterable[str] | None = None) -> dict[str, RegisteredBackbone]:
    """The rows of all backbones, or of some, by name, whoever sees them: for the controller."""
    query = select(RegisteredBackbone)
    rows = session.scalars(query if names is None else query.where(RegisteredBackbone.name.in_(names)))
    return {row.name: row for row in rows}


@dataclass(frozen=True)
class Known:
    """What the comparison with MLflow needs of a row."""

    state: VersionState
    source: str
    tags: dict[str, str]
    description: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def known(session: Session) -> dict[tuple[str, int], Known]:
    """All versions in any state, by name and number."""
    query = select(
        BackboneVersion.name,
        BackboneVersion.version,
        BackboneVersion.state,
        BackboneVersion.source,
        BackboneVersion.tags,
        BackboneVersion.description,
        BackboneVersion.labels,
    )
    return {
        (row.name, row.version): Known(VersionState(row.state), row.source, row.tags, row.description, row.labels)
        for row in session.execute(query)
    }


def shown_of_job(session: Session, job_id: str) -> Sequence[BackboneVersion]:
    """The versions that a job registered and that are shown, by name and number."""
    query = select(BackboneVersion).where(BackboneVersion.job_id == job_id, BackboneVersion.state.in_(SHOWN))
    return session.scalars(query.order_by(BackboneVersion.name, BackboneVersion.version)).all()


def types_of(session: Session, names: Iterable[str]) -> dict[str, str | None]:
    """Whether the versions of some backbones are classifiers or backbones, by name; names without versions have none.

    The newest version that is shown decides.
    """
    return {row.name: type_of(row.tags) for row in shown(session, [*names])}


def fine_tuned_from(
    session: Session, name: str, conditions: Iterable[ColumnElement[bool]]
) -> Sequence[BackboneVersion]:
    """The classifiers that were fine-tuned from versions of a backbone and that are shown, by name and number.

    ``conditions``: what of them a caller sees, as `service.auth.sight.seen` gives it.
    """
    base = BackboneVersion.tags[TAG_FINE_TUNED_FROM].as_string()
    query = select(BackboneVersion).join(RegisteredBackbone, RegisteredBackbone.name == BackboneVersion.name)
    query = query.where(BackboneVersion.state.in_(SHOWN), base.startswith(f"{name}:", autoescape=True), *conditions)
    return session.scalars(query.order_by(BackboneVersion.name, BackboneVersion.version)).all()


def deleting(session: Session, job_id: str | None = None) -> Sequence[BackboneVersion]:
    """Deleted versions, or a job's, that are not removed yet; the oldest deletion first."""
    query = select(BackboneVersion).where(BackboneVersion.state == VersionState.DELETING)
    if job_id is not None:
        query = query.where(BackboneVersion.job_id == job_id)
    return session.scalars(query.order_by(BackboneVersion.deleted_at)).all()


# --- changing ---------------------------------------------------------------------------------------------------------


def add(session: Session, job: Job, registered: Registered, named: Mapping[str, int], *, told: bool = True) -> bool:
    """Add a version of a job, if it is not there yet; returns whether it was added.

    It begins with the labels of its job, and with the job's notes as its description. The first version of a backbone
    makes the job's owner that of the backbone.

    ``named`` are MLflow's aliases of the backbone: those of a version that was unknown so far are taken over, unless
    the service has an alias of that name, or it is `champion` and the backbone has a rule for it. If MLflow has reused
    the number of another version, because its registered model was deleted as a whole, the new version replaces the old
    row with its aliases, unless that is being deleted.
    ``told``: whether webhooks hear of it, as they do not of versions that were registered long before.
    """
    version = registered.version
    row = session.get(BackboneVersion, (version.name, version.version))
    if row is not None and (row.source == version.source or row.state == VersionState.DELETING):
        return False
    if row is not None:
        _remove_replaced(session, row, told=told)
        session.delete(row)
        session.flush()
    added = row_of(job, registered)
    added.description = _notes(session, job) or version.description or None
    added.labels = _labels(session, job)
    session.add(added)
    if session.get(RegisteredBackbone, version.name) is None:
        # What MLflow may still say of deleted versions' backbone is not taken over as this one's description.
        former = select(BackboneVersion.version).where(BackboneVersion.name == version.name)
        former = former.where(BackboneVersion.state.not_in(SHOWN)).limit(1)
        description = None if session.scalar(former) is None else ""
        session.add(
            RegisteredBackbone(
                name=version.name,
                owner=job.owner,
                description=description,
                visibility=_first_visibility(session, job),
                created_at=version.created_at,
            )
        )
        session.flush()  # the next version of it finds the row
    if told:
        tell(session, EventType.VERSION_REGISTERED, added)
    session.flush()
    for alias in [alias for alias, number in named.items() if number == version.version]:
        aliases.take_over(session, added, alias, told=told)
    for kind in (Work.SIGN_VERSIONS, Work.MEASURE_VERSIONS):
        work.add(session, kind, [""])
    return True


def row_of(job: Job, registered: Registered) -> BackboneVersion:
    """A row for a version of a job, without what people write of it."""
    version = registered.version
    return BackboneVersion(
        name=version.name,
        version=version.version,
        state=VersionState.READY,
        job_id=job.id,
        owner=job.owner,
        trained_by=str(job.spec.get("job") or job.id),  # a publishing job names it in its spec
        dataset_uri=job.dataset_uri,
        source=version.source,
        folder=registered.folder,
        tags=own_tags(version.tags),
        created_at=version.created_at,
    )


def is_taken(session: Session, registered: Registered) -> bool:
    """Whether another version has the number of one, because MLflow has given it again."""
    row = session.get(BackboneVersion, (registered.version.name, registered.version.version))
    return row is not None and row.source != registered.version.source


def _first_visibility(session: Session, job: Job) -> str:
    """Who sees a backbone whose first version a job registers.

    A published checkpoint follows the job that trained it, if its own spec does not say; if that job is deleted, it
    is its owners' alone, who can open it. A classifier follows the backbone that it was fine-tuned from in the same
    way, and is open to all if it was fine-tuned from weights that are not registered.
    """
    # Older specs have no such field.
    wanted: str | None = (registration(job.spec).get("export") or {}).get("visibility", ALL)
    if wanted is not None:
        return wanted
    if "backbone" in job.spec:
        fine_tuned = job.spec["backbone"]
        base = session.get(RegisteredBackbone, reference(fine_tuned).name) if isinstance(fine_tuned, str) else None
        return ALL if not isinstance(fine_tuned, str) or (base and base.visibility == ALL) else OWNERS
    source = session.get(Job, job.spec["job"])
    return _first_visibility(session, source) if source else OWNERS


def _labels(session: Session, job: Job) -> dict[str, str]:
    source = _trained(session, job)
    return (source.labels if source else {}) | job.labels


def _notes(session: Session, job: Job) -> str:
    source = _trained(session, job)
    return (job.notes or (source.notes if source else ""))[: names.DESCRIPTION_LENGTH]


def _trained(session: Session, job: Job) -> Job | None:
    """The job whose checkpoint a job publishes, if the same owner's: what others write of theirs stays with them."""
    source = session.get(Job, job.spec["job"]) if job.spec.get("job") else None
    return source if source and source.owner == job.owner else None


def must_not_be_the_last(session: Session, caller: Caller, version: BackboneVersion) -> None:
    """Raises the API's 403 for the last version that is shown of somebody else's backbone: with it go the backbone's
    owner, its rules and who sees it, which its owner decides.
    """
    backbone = session.get(RegisteredBackbone, version.name)
    if backbone is None or caller.may(Scope.BACKBONES, backbone.owner) or _others(session, version):
        return
    text = (
        f"{version.name}:{version.version} is the last version of {version.name}, which is {backbone.owner}'s: its "
        f"owner, its rules and who sees it would go with it. Ask {backbone.owner}, or somebody with the scope "
        f"{Scope.BACKBONES}, which a token of the role {named(roles_with([Scope.BACKBONES]))} has"
    )
    raise ApiProblem(403, "forbidden", text)


def _others(session: Session, version: BackboneVersion) -> bool:
    """Whether the backbone of a version has others that are shown."""
    query = select(BackboneVersion.version).where(BackboneVersion.name == version.name)
    query = query.where(BackboneVersion.version != version.version, BackboneVersion.state.in_(SHOWN))
    return session.scalar(query.limit(1)) is not None


def delete(session: Session, version: BackboneVersion, actor: str, reason: str | None = None) -> None:
    """Hide a version; the controller removes it later. With the last one that is shown, the backbone's row goes.

    ``reason``: why, of a version that a retention rule deletes.
    """
    tell(session, EventType.VERSION_DELETED, version, actor=actor, reason=reason)  # while it is known who sees it
    hide(session, version)


def hide(session: Session, version: BackboneVersion) -> None:
    """Hide a version of which no webhook has heard, as `delete` does, and forget who has used it."""
    backbone = session.get(RegisteredBackbone, version.name)
    last = backbone is not None and not _others(session, version)
    if last:
        forget_unseen(session, version.name)
    version.state, version.deleted_at = VersionState.DELETING, now()
    of_version = VersionUse.name == version.name, VersionUse.version == version.version
    session.execute(delete_rows(VersionUse).where(*of_version))
    session.flush()
    if last:
        session.delete(backbone)
        session.flush()


def _remove_replaced(session: Session, version: BackboneVersion, *, told: bool) -> None:
    """Remove a version's aliases, and tell webhooks of that and that the version is gone for good."""
    for alias in aliases.of_version(session, version):
        aliases.unpoint(session, session.get_one(BackboneAlias, (version.name, alias)), None, told=told)
    if told and version.state in SHOWN:
        tell(session, EventType.VERSION_DELETED, version, actor=None, reason=None)
    session.flush()


def removed(session: Session, version: BackboneVersion) -> None:
    """Record that a deleted version has been removed completely."""
    session.execute(
        update(BackboneVersion)
        .where(BackboneVersion.name == version.name, BackboneVersion.version == version.version)
        .where(BackboneVersion.state == VersionState.DELETING, BackboneVersion.source == version.source)
        .values(state=VersionState.REMOVED, tags={}, description=None, labels={}, search_text="")
    )


def checked(session: Session) -> None:
    """Record that the rows have just been compared with all versions in MLflow."""
    session.merge(RegistryCheck(id=1, checked_at=now()))
