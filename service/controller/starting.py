"""Starts attempts: a job that the scheduler admits gets a run, an attempt in the database, and then a Ray job."""

from __future__ import annotations

from datetime import datetime

import structlog

from service.adapters.storage import Artifacts, StorageUnreachable
from service.context.app_state import AppState
from service.controller.context import ACTOR, ControllerContext, StaleState, isolated_job
from service.controller.dependencies import Unavailable
from service.controller.kind import CannotStart
from service.db.tables import Attempt, Job
from service.jobs import repository
from service.jobs.lifecycle import transition
from service.jobs.queueing import running_entries, waiting_entries
from service.jobs.state import State
from service.queue.scheduler import Limits, admit
from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.protocol.request import AttemptRequest, Source
from trainer.spec.job import JobSpec, parse_spec
from trainer.spec.plan import gang

log = structlog.get_logger()

RUN_REPLACED = (
    "Its MLflow run was removed, and a new one takes its place: the attempt resumes from the job's checkpoints, or "
    "starts over if they were removed too."
)


def start_waiting(context: ControllerContext, moment: datetime) -> None:
    """Give every job that waits at this moment an attempt, or a message that says why it waits."""
    with context.app.database.read() as session:
        jobs = repository.waiting(session)
        if not jobs:  # as in most rounds
            return
        active = repository.active(session)
    try:
        with context.dependencies.ray.call():
            shape, placements = context.app.ray.shape(), context.app.ray.placements()
    except Unavailable as error:
        for job in jobs:
            with isolated_job(job):
                context.set_message(job, f"Waits for the cluster: {error}.")
        return
    by_id = {job.id: job for job in jobs}
    queue = waiting_entries(jobs, shape, context.kinds)
    taken = running_entries(active, placements)
    for admission in admit(list(queue.values()), taken, shape, moment, Limits.of(context.app.settings)):
        job = by_id[admission.job_id]
        with isolated_job(job):
            if admission.start:
                _start_or_fail(context, job, queue[job.id].spec, admission.message)
            else:
                context.set_message(job, admission.message, admission.reason)


def _start_or_fail(context: ControllerContext, loaded: Job, spec: JobSpec, explanation: str) -> None:
    """Start an attempt; a job that cannot start any more fails."""
    try:
        _start(context, loaded, spec, explanation)
    except CannotStart as error:
        with context.write() as session:
            job = repository.get(session, loaded.id)
            transition(session, job, State.FAILED, error.reason, str(error), ACTOR)


def _start(context: ControllerContext, loaded: Job, spec: JobSpec, explanation: str) -> None:
    """Start the next attempt of a job that was admitted with its resolved ``spec``; raises `CannotStart`."""
    number = loaded.attempts + 1
    kind = context.kinds[loaded.kind]
    with context.app.database.read() as session:
        kind.source(session, spec)
    kind.prepare(context, loaded, spec)
    with context.explain_waiting(loaded, "Waits for MLflow, which stores the job's run:"):
        run_id, artifact_uri = _prepare_run(context, loaded, spec, number)
    if loaded.run_id not in {None, run_id}:
        explanation = f"{explanation} {RUN_REPLACED}"
        log.warning("run_replaced", job_id=loaded.id, attempt=number, removed=loaded.run_id, run_id=run_id)
    with context.write() as session:
        job = repository.get(session, loaded.id)
        if job.state not in {State.QUEUED, State.RECOVERING} or job.attempts != loaded.attempts:
            raise StaleState(f"job {job.id} is {job.state} now")
        if job.run_spec != loaded.run_spec:  # a request has changed its budget or resources
            raise StaleState(f"the spec of job {job.id} has changed")
        job.resolved_spec = spec.model_dump(mode="json")
        job.run_id, job.artifact_uri, job.attempts = run_id, loaded.artifact_uri or artifact_uri, number
        identity = names.submission_id(job.id, number)
        needs = gang(spec)
        resources = {"workers": needs.workers, "gpus": needs.all_gpus}
        session.add(Attempt(job_id=job.id, number=number, submission_id=identity, state="submitted", **resources))
        transition(session, job, State.STARTING, None, f"Attempt {number} starts. {explanation}", ACTOR)
        request = attempt_request(context.app, job, number, kind.source(session, spec))
    with context.dependencies.ray.call():
        context.app.ray.submit(identity, request)
    log.info("attempt_submitted", job_id=loaded.id, attempt=number)


def _prepare_run(context: ControllerContext, job: Job, spec: JobSpec, number: int) -> tuple[str, str]:
    """Open the job's run and bind it to this attempt: an earlier attempt that still lives reads that and ends.

    Raises `CannotStart` for a run whose files lie outside the artifact root.
    """
    kind = context.kinds[job.kind]
    tags = {names.TAG_SPEC: spec.sha256(), **kind.run_tags(spec)}
    with context.opening_runs, context.dependencies.mlflow.call():
        run_id, artifact_uri = context.app.mlflow.make_run(job.id, job.name, tags, job.run_id)
        _require_below_root(context.app.artifacts, job.artifact_uri or artifact_uri, artifact_uri)
        if job.attempts:
            context.app.mlflow.end_run(run_id, "RUNNING")
        kind.write_orders(context, run_id, job, spec)
        context.app.mlflow.fence(run_id, number)
    return run_id, artifact_uri


def _require_below_root(artifacts: Artifacts, *folders: str) -> None:
    """MLflow records absolute paths: in a copy of a state folder they lead to the original's files."""
    for folder in folders:
        try:
            if artifacts.holds(folder):
                continue
        except StorageUnreachable:  # it lies below the root, whose disk is not mounted
            continue
        raise CannotStart(
            f"The files of its MLflow run lie in {folder}, outside the artifact root {artifacts.root}: the state "
            "folder was copied or moved, or the artifact root was changed. Undo that, then retry.",
            Reason.STORAGE_ERROR,
        )


def attempt_request(app_state: AppState, job: Job, attempt: int, source: Source | None = None) -> AttemptRequest:
    """The request that an attempt starts with; ``source`` is for a job that publishes."""
    if not job.run_id or not job.artifact_uri:
        raise ValueError(f"job {job.id} has no run yet")
    return AttemptRequest(
        job_id=job.id,
        attempt=attempt,
        run_id=job.run_id,
        tracking_uri=app_state.mlflow.url,
        artifact_uri=job.artifact_uri,
        since_attempt=job.since_attempt,
        request_id=job.request_id,
        dataset_roots=app_state.settings.dataset_roots,
        stall_limit_s=app_state.settings.stall_limit_s,
        source=source,
        spec=parse_spec(job.run_spec),
    )
