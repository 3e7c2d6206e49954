"""Compares the rows of registered versions with MLflow, and removes deleted versions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.adapters.mlflow_registry import Model, Version
from service.backbones import copies
from service.controller.context import ACTOR, ControllerContext
from service.controller.dependencies import Refused
from service.controller.queue import Task
from service.db.tables import BackboneVersion, Job, RegisteredBackbone, now
from service.jobs import aliases, evaluations, lineage, repository, version_tags, versions, visibility
from service.jobs.lifecycle import note
from service.jobs.schemas import BackboneRef
from service.jobs.state import State
from service.jobs.versions import Known, Registered, VersionState
from trainer.protocol import names

log = structlog.get_logger()

BATCH: Final = 200
"""Versions that one transaction adds or changes."""
PAUSES: Final = 20
"""A check is followed by a pause of at least this many times its own duration: MLflow lists all versions for it."""

Key = tuple[str, int]
"""A version's name and number."""
Models = Mapping[str, Model]
"""What MLflow has of each backbone, by its name."""
NONE: Final = Model()
"""A backbone that MLflow does not have."""


def compare_versions(context: ControllerContext) -> timedelta:
    """Compare all rows with MLflow; returns the pause before the next comparison. Raises `Unavailable`."""
    began = time.monotonic()
    check(context)
    took_s = time.monotonic() - began
    return timedelta(seconds=max(context.app.settings.sweep_interval_s, PAUSES * took_s))


def describe_version(context: ControllerContext, task: Task) -> None:
    """Copy what is new of one version to MLflow: the next comparison does what fails here. Raises `Unavailable`."""
    name, _, number = task.target.rpartition("/")
    _copy_texts(context, name, int(number))


def check(context: ControllerContext) -> None:
    """Compare all rows with MLflow: add what is only there, mark what is only here, and reset copies that differ.

    The rows are read first: what is recorded after that is not missing in MLflow, however old MLflow's list is.
    Raises `Unavailable`.
    """
    with context.app.database.read() as session:
        known = versions.known(session)
    with context.dependencies.mlflow.call():
        listed = context.app.mlflow.all_versions()
        models = context.app.mlflow.all_models()
    _update(context, known, listed)
    _describe_backbones(context, models)
    _add(context, known, listed, models)
    _reset_aliases(context, models)
    _reset_texts(context, listed, models)
    with context.write() as session:
        versions.checked(session)


def _update(context: ControllerContext, known: Mapping[Key, Known], listed: Sequence[Version]) -> None:
    """Give rows that are shown the state and tags that their versions have in MLflow.

    A version that nobody has described here takes over its description in MLflow.
    """
    theirs = {(version.name, version.version, version.source): version for version in listed}
    changes: list[tuple[Key, Known, Known]] = []
    for key, before in known.items():
        found = theirs.get((*key, before.source))
        after = _after(before, found) if found else replace(before, state=VersionState.GONE)
        if before.state in versions.SHOWN and after != before:
            changes.append((key, before, after))
    for begin in range(0, len(changes), BATCH):
        with context.write() as session:
            for key, before, after in changes[begin : begin + BATCH]:
                _change(session, key, before, after)


def _after(before: Known, found: Version) -> Known:
    description = (found.description or None) if before.description is None else before.description
    return replace(before, state=VersionState.READY, tags=version_tags.own_tags(found.tags), description=description)


def _change(session: Session, key: Key, before: Known, after: Known) -> None:
    row = session.get(BackboneVersion, key)
    if row is None or (row.state, row.source) != (before.state, before.source):
        return  # somebody has deleted it meanwhile
    if after.state != before.state:
        log.warning("version_state", backbone=row.name, version=row.version, state=after.state, before=before.state)
    if after.state == VersionState.READY != before.state:
        row.counted_since = now()  # while it was gone, nobody could download it
        row.begin_anew()
    row.state, row.tags = after.state, after.tags
    if row.description is None:
        row.description = after.description


def _describe_backbones(context: ControllerContext, models: Models) -> None:
    """Give backbones that nobody has described here their descriptions in MLflow."""
    with context.app.database.read() as session:
        described = {
            name: text
            for name, row in versions.backbones(session).items()
            if row.description is None and (text := models.get(name, NONE).description)
        }
    if described:
        with context.write() as session:
            for name, row in versions.backbones(session, list(described)).items():
                if row.description is None:
                    row.description = described[name]


def _add(context: ControllerContext, known: Mapping[Key, Known], listed: Sequence[Version], models: Models) -> None:
    """Add versions of our jobs that have no row: those of an older database, or of an attempt that failed later."""
    unknown = [
        version
        for version in listed
        if names.TAG_JOB in version.tags
        and ((row := known.get((version.name, version.version))) is None or row.source != version.source)
    ]
    for begin in range(0, len(unknown), BATCH):
        batch = unknown[begin : begin + BATCH]
        ids = list({version.tags[names.TAG_JOB] for version in batch})
        with context.app.database.read() as session:
            ours = _of_jobs(session, repository.jobs_by_id(session, ids), batch)
        if not ours:
            continue
        with context.dependencies.mlflow.call():
            folders = context.app.mlflow.folders([version for _, version in ours])
        with context.write() as session:
            ours = _of_jobs(session, repository.jobs_by_id(session, ids), batch)  # some jobs may be deleted by now
            read = versions.have_been_read(session)
            added = 0
            for job, version in ours:
                registered = Registered(version, folders.get(version.source))
                theirs = models.get(version.name, NONE).aliases
                # The first reading after an upgrade finds versions of long ago too: those of jobs that have ended.
                ended = State(job.state).terminal
                if versions.add(session, job, registered, theirs, told=read or not ended):
                    added += 1
                    if ended:
                        _joined(session, context, job, version)
        if added:
            log.info("versions_added", count=added, last=f"{ours[-1][1].name}:{ours[-1][1].version}")


def _of_jobs(session: Session, jobs: Mapping[str, Job], batch: Sequence[Version]) -> list[tuple[Job, Version]]:
    """Those versions that belong to one of these jobs and may join their backbone, each with its job."""
    found = [(jobs.get(version.tags[names.TAG_JOB]), version) for version in batch]
    ours = [(job, version) for job, version in found if job and versions.belongs(job, version)]
    closed = visibility.closed_to(session, {job.id for job, _ in ours})
    return [(job, version) for job, version in ours if job.id not in closed]


def _joined(session: Session, context: ControllerContext, job: Job, version: Version) -> None:
    """List a version that has joined after its job's end in the job's result, and no longer say that it has not."""
    lineage.add(session, context.kinds, job, [BackboneRef(name=version.name, version=version.version)])
    joined = f"Version {version.version} of {version.name} is served now."
    message = job.message.replace(visibility.not_joined(version.name), joined)
    note(session, job, job.reason, message, ACTOR)


def _reset_aliases(context: ControllerContext, models: Models) -> None:
    """Make MLflow's aliases of our versions follow our rows; aliases of other versions are left alone."""
    with context.app.database.read() as session:
        wanted = aliases.of_backbones(session)
        found = session.execute(select(BackboneVersion.name, BackboneVersion.version, BackboneVersion.state))
        states = {(name, number): state for name, number, state in found}
    for name in sorted({name for name, _ in states}):
        ours, theirs = wanted.get(name, {}), models.get(name, NONE).aliases
        for alias in sorted({*ours, *theirs}):
            number, there = ours.get(alias), theirs.get(alias)
            state = states.get((name, number if number is not None else there or 0))
            if number == there or state is None or (number is not None and state != VersionState.READY):
                continue
            log.warning("alias_reset", backbone=name, alias=alias, mlflow=there, version=number)
            try:
                with context.dependencies.mlflow.call():
                    copies.follow(context.app, name, alias)
            except Refused as error:  # the others are reset
                log.warning("alias_not_reset", backbone=name, alias=alias, detail=str(error))


def _reset_texts(context: ControllerContext, listed: Sequence[Version], models: Models) -> None:
    """Make MLflow's descriptions, labels and results of our backbones and versions follow our rows."""
    with context.app.database.read() as session:
        rows, backbones = versions.known(session), versions.backbones(session)
        results = evaluations.in_words(session)
    differing: list[tuple[str, int | None]] = [
        (name, None) for name, row in backbones.items() if name in models and _differs(row, models[name], {})
    ]
    for version in listed:
        row = rows.get((version.name, version.version))
        key = (version.name, version.version)
        ready = row and (row.state, row.source) == (VersionState.READY, version.source)
        if row and ready and _differs(row, version, results.get(key, {})):
            differing.append(key)
    for name, number in differing:
        _copy_texts(context, name, number)


def _copy_texts(context: ControllerContext, name: str, number: int | None) -> None:
    log.info("texts_copied", backbone=name, version=number)
    try:
        with context.dependencies.mlflow.call():
            copies.describe(context.app, name, number)
    except Refused as error:  # the others are copied
        log.warning("texts_not_copied", backbone=name, version=number, detail=str(error))


def _differs(ours: Known | RegisteredBackbone, theirs: Version | Model, results: Mapping[str, str]) -> bool:
    """Whether a description, a label or a result in words differs; a description of None is not compared."""
    described = ours.description is not None and ours.description != theirs.description
    return described or copies.copied(ours.labels, results) != theirs.copies


# --- removal ----------------------------------------------------------------------------------------------------------


def remove_versions(context: ControllerContext, job: Job) -> None:
    """Remove all versions of a deleted job, including those that an attempt has registered after its deletion.

    One whose number another version has here, which MLflow has lost, is removed without taking its row: the last row of
    a backbone takes its owner and its rules with it.
    """
    with context.dependencies.mlflow.call():
        registered = versions.registered_by(job, context.app.mlflow)
    with context.write() as session:
        others = [each for each in registered if versions.is_taken(session, each)]
        for each in registered:
            if each not in others:
                versions.add(session, job, each, {}, told=False)  # nobody ever saw it
        for version in versions.shown_of_job(session, job.id):
            versions.hide(session, version)
        deleted = versions.deleting(session, job.id)
    for version in [*deleted, *(versions.row_of(job, each) for each in others)]:
        remove_version(context, version)


def _forget_backbone(context: ControllerContext, name: str) -> None:
    """Remove what MLflow has copied of a backbone without any version: the next one of that name begins anew.

    The description stays if versions of others are left there, whose description it may be.
    """
    with context.app.database.read() as session:
        if versions.backbones(session, [name]):
            return
    try:
        with context.dependencies.mlflow.call():
            others = context.app.mlflow.versions_of(name)
            context.app.mlflow.describe(name, None, None if others else "", {})
    except Refused as error:  # somebody has deleted the registered model
        log.info("backbone_not_in_mlflow", backbone=name, detail=str(error))


def remove_version(context: ControllerContext, deleted: BackboneVersion) -> None:
    """Remove a deleted version: its files, then its entry in MLflow. The row tells last, so that it can be repeated."""
    if deleted.folder:
        context.delete_files(deleted.job_id, deleted.folder)
    with context.dependencies.mlflow.call():
        context.app.mlflow.delete_version(deleted.name, deleted.version, deleted.source)
    _forget_backbone(context, deleted.name)
    with context.write() as session:
        lineage.drop(session, context.kinds, deleted.job_id, BackboneRef(name=deleted.name, version=deleted.version))
        versions.removed(session, deleted)
    log.info("version_removed", backbone=deleted.name, version=deleted.version, job_id=deleted.job_id)
