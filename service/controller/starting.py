"""Starting attempts: whom the scheduler admits gets a run, an attempt in the database, and then a Ray job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from service.controller.context import ACTOR, Control, StaleState, guarded
from service.controller.dependencies import Away
from service.db.tables import Attempt, Job, now
from service.jobs import repository
from service.jobs.lifecycle import note, transition
from service.jobs.schemas import State
from service.kinds.publish import SourceGone
from service.kinds.publish import source as source_of
from service.kinds.search import orders, to_resolve
from service.queue.scheduler import Limits, Running, Waiting, admit
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.protocol.request import AttemptRequest, Source
from trainer.spec.job import JobSpec, parse_spec
from trainer.spec.plan import ClusterShape, gang, resolve
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search import SearchSpec

log = structlog.get_logger()


def start_waiting(control: Control) -> None:
    """Give every waiting job an attempt, or the reason why it waits."""
    with control.database.read() as session:
        jobs = repository.waiting(session)
        if not jobs:  # as in most rounds
            return
        active = repository.active(session)
    try:
        with control.needs.ray.asked():
            shape, placements = control.ray.shape(), control.ray.placements()
    except Away as error:
        for job in jobs:
            with guarded(job):
                _tell(control, job, None, f"Waits for the cluster: {error}.")
        return
    by_id = {job.id: job for job in jobs}
    queue = queue_of(jobs, shape)
    taken = running(active, placements)
    for admission in admit(list(queue.values()), taken, shape, now(), limits(control.settings)):
        job = by_id[admission.job_id]
        with guarded(job):
            if admission.start:
                _start_or_end(control, job, queue[job.id].spec, admission.message)
            else:
                _tell(control, job, admission.reason, admission.message)


def running(active: Sequence[tuple[Job, Attempt | None]], placements: Mapping[str, Sequence[str]]) -> list[Running]:
    """What attempts under way take, and on which nodes, by their submissions."""
    found = []
    for job, attempt in active:
        if attempt and attempt.ended_at is None:
            with guarded(job):
                needs, nodes = gang(parse_spec(job.run_spec)), placements.get(attempt.submission_id, ())
                found.append(Running(job.id, job.owner, needs, nodes))
    return found


def queue_of(jobs: Sequence[Job], shape: ClusterShape) -> dict[str, Waiting]:
    """Jobs that wait, by id; one whose spec cannot be read any more is logged and left out."""
    queue: dict[str, Waiting] = {}
    for job in jobs:
        with guarded(job):
            queue[job.id] = waiting(job, shape)
    return queue


def waiting(job: Job, shape: ClusterShape) -> Waiting:
    """A job as the scheduler sees it."""
    return Waiting(
        job_id=job.id,
        owner=job.owner,
        spec=resolve(to_resolve(job), shape),
        priority=job.priority,
        since=job.waiting_since,
        not_before=job.not_before,
        recovering=job.state == State.RECOVERING,
    )


def limits(settings: Settings) -> Limits:
    """What the operator has set."""
    return Limits(running_per_user=settings.running_per_user, passing_s=settings.passing_s)


def _tell(control: Control, loaded: Job, reason: Reason | None, message: str) -> None:
    with control.write() as session:
        job = repository.get(session, loaded.id)
        if job.state == State.QUEUED:
            note(session, job, reason, message, ACTOR)
        elif job.state == State.RECOVERING:  # why it recovers stays
            note(session, job, job.reason, message, ACTOR)


def _start_or_end(control: Control, loaded: Job, spec: JobSpec, how: str) -> None:
    """A job that can no longer do what it was to do ends instead."""
    try:
        _start(control, loaded, spec, how)
    except SourceGone as error:
        with control.write() as session:
            job = repository.get(session, loaded.id)
            transition(session, job, State.FAILED, Reason.DATA_ERROR, str(error), ACTOR)


def _start(control: Control, loaded: Job, spec: JobSpec, how: str) -> None:
    """The next attempt of a job that was admitted with its resolved ``spec``."""
    number = loaded.attempts + 1
    with control.database.read() as session:
        source_of(session, spec)
    if isinstance(spec, SearchSpec):
        try:
            with control.needs.studies.asked():
                control.studies.make(loaded.id, spec)
        except Away as error:
            _tell(control, loaded, None, f"Waits for the studies' database, which keeps its trials: {error}.")
            raise
    try:
        run_id, artifact_uri = _prepare_run(control, loaded, spec, number)
    except Away as error:
        _tell(control, loaded, None, f"Waits for MLflow, which keeps its run: {error}.")
        raise
    if loaded.run_id not in {None, run_id}:
        how = f"{how} Its MLflow run was removed, with its checkpoints: it begins again, in a new one."
    with control.write() as session:
        job = repository.get(session, loaded.id)
        if job.state not in {State.QUEUED, State.RECOVERING} or job.attempts != loaded.attempts:
            raise StaleState(f"job {job.id} is {job.state} now")
        if job.run_spec != loaded.run_spec:  # somebody has changed a search's budget, or the resources
            raise StaleState(f"job {job.id} is to run another spec now")
        job.resolved_spec = spec.model_dump(mode="json")
        job.run_id, job.artifact_uri, job.attempts = run_id, artifact_uri, number
        identity = names.submission_id(job.id, number)
        needs = gang(spec)
        taken = {"workers": needs.workers, "gpus": needs.all_gpus}
        session.add(Attempt(job_id=job.id, number=number, submission_id=identity, state="submitted", **taken))
        transition(session, job, State.STARTING, None, f"Attempt {number} starts. {how}", ACTOR)
        request = attempt_request(
            job, number, control.mlflow.url, control.settings.dataset_roots, source_of(session, spec)
        )
    with control.needs.ray.asked():
        control.ray.submit(identity, request)
    log.info("attempt_submitted", job_id=loaded.id, attempt=number)


def _prepare_run(control: Control, job: Job, spec: JobSpec, number: int) -> tuple[str, str]:
    """The job's run, open and bound to this attempt: one of before that still lives reads that and leaves."""
    tags = {names.TAG_SPEC: spec.sha256()}
    if isinstance(spec, PretrainSpec):
        tags |= {names.TAG_METHOD: spec.method.name, names.TAG_EPOCHS: str(spec.optimization.epochs)}
    with control.needs.mlflow.asked():
        run_id, artifact_uri = control.mlflow.make_run(job.id, job.name, tags)
        if job.attempts:
            control.mlflow.end_run(run_id, "RUNNING")
        if isinstance(spec, SearchSpec):
            control.mlflow.order(run_id, orders(job, spec))
        control.mlflow.fence(run_id, number)
    return run_id, artifact_uri


def attempt_request(
    job: Job,
    attempt: int,
    tracking_uri: str,
    dataset_roots: tuple[str, ...] | None = None,
    source: Source | None = None,
) -> AttemptRequest:
    """Everything an attempt is told; ``source`` is for a job that publishes."""
    if not job.run_id or not job.artifact_uri:
        raise ValueError(f"job {job.id} has no run yet")
    return AttemptRequest(
        job_id=job.id,
        attempt=attempt,
        run_id=job.run_id,
        tracking_uri=tracking_uri,
        artifact_uri=job.artifact_uri,
        since_attempt=job.since_attempt,
        request_id=job.request_id,
        dataset_roots=dataset_roots,
        source=source,
        spec=parse_spec(job.run_spec),
    )
