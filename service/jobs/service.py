"""What the jobs' routes do. A request is one transaction; nothing here waits for Ray or MLflow, but the plan and the
views that show their data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowUnreachable
from service.adapters.ray_cluster import ClusterUnreachable
from service.auth import Caller, Role
from service.db import Attempt, Event, Job
from service.deps import Parts
from service.errors import ApiProblem, not_found, unavailable
from service.jobs import repository
from service.jobs.lifecycle import EFFECTS, Effect, StaleState, Verb, transition
from service.jobs.logs import read_logs
from service.jobs.repository import Filters
from service.jobs.schemas import (
    AttemptView,
    EventView,
    Gang,
    ImageView,
    JobView,
    LogView,
    MetricsView,
    Page,
    Parameters,
    PlanView,
    Point,
    State,
    Steps,
)
from trainer.spec import names
from trainer.spec.dataset import DIGITS, DIGITS_IMAGES
from trainer.spec.job import Reason
from trainer.spec.plan import Schedule, gang, impossible, memory_per_worker, parameters, resolve
from trainer.spec.pretrain import PretrainSpec

TOLD = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, "Cancelled. Retry it to go on from the last checkpoint."),
    State.CANCELLING: (Reason.CANCELLED_BY_USER, "Stops at the next step, with a checkpoint."),
    State.PAUSED: (Reason.PAUSED_BY_USER, "Paused. Resume it to go on from the last checkpoint."),
    State.PAUSING: (Reason.PAUSED_BY_USER, "Stops at the next step, with a checkpoint."),
}


def submit(parts: Parts, caller: Caller, spec: PretrainSpec, key: str | None) -> tuple[JobView, bool]:
    """A new job, or the one this key made before; True where it is new."""
    caller.must_be(Role.SUBMITTER)
    digest = spec.sha256()
    with parts.database.session() as session:
        earlier = repository.by_idempotency_key(session, caller.owner, key) if key else None
        if earlier:
            if earlier.body_sha256 != digest:
                text = f"Idempotency-Key {key!r} made {earlier.id} of another spec: use a new key"
                raise ApiProblem(422, "idempotency_key_reused", text)
            return view(earlier), False
        _schedule(session, spec)
        job = Job(
            id=repository.new_id(),
            kind=spec.kind,
            name=spec.name,
            state=State.QUEUED.value,
            owner=caller.owner,
            priority=spec.priority,
            labels=dict(spec.labels),
            spec=spec.model_dump(mode="json"),
            dataset_uri=spec.dataset.uri,
            idempotency_key=key,
            body_sha256=digest,
        )
        session.add(job)
        session.flush()
        session.add(Event(job_id=job.id, state=job.state, message="Submitted.", actor=caller.owner))
        made = view(job)
    parts.reconciler.wake()
    return made, True


def plan(parts: Parts, spec: PretrainSpec) -> PlanView:
    """What a spec would need on the cluster as it is; raises 503 where Ray does not say."""
    try:
        shape = parts.ray.shape()
    except ClusterUnreachable as error:
        raise unavailable("Ray", error) from error
    resolved = resolve(spec, shape)
    with parts.database.read() as session:
        schedule = _schedule(session, resolved)
    micro_batch = resolved.optimization.micro_batch_size
    least = 1 if micro_batch == "auto" else micro_batch  # a GPU's is settled on the worker, by its memory
    bf16 = bool(resolved.resources.gpus_per_worker) and resolved.optimization.precision != "fp32"
    bf16 = bf16 or resolved.optimization.precision == "bf16"
    never, needs = impossible(resolved, shape), gang(resolved)
    encoder, decoder = parameters(resolved.model)
    return PlanView(
        spec=resolved.model_dump(mode="json"),
        parameters=Parameters(encoder=encoder, decoder=decoder),
        steps=Steps(**vars(schedule)) if schedule else None,
        memory_per_worker_bytes=memory_per_worker(resolved.model, resolved.method, least, bf16),
        gang=Gang(cpus=needs.all_cpus, gpus=needs.all_gpus),
        possible=never is None,
        message=never or f"{resolved.resources.workers} workers of the cluster's {shape.cpus} CPUs, {shape.gpus} GPUs",
    )


def _schedule(session: Session, spec: PretrainSpec) -> Schedule | None:
    """Steps where the number of images is known; raises the spec's error where one batch does not fit."""
    images = DIGITS_IMAGES if spec.dataset.uri == DIGITS else repository.images_of(session, spec.dataset.uri)
    return Schedule.of(spec, images) if images else None


def show(parts: Parts, job_id: str) -> JobView:
    with parts.database.read() as session:
        return view(repository.get(session, job_id))


def listing(parts: Parts, filters: Filters, limit: int, cursor: str | None) -> Page[JobView]:
    with parts.database.read() as session:
        jobs, following = repository.page(session, filters, limit, cursor)
        return Page[JobView](items=[view(job) for job in jobs], next_cursor=following)


def apply_verb(parts: Parts, caller: Caller, job_id: str, verb: Verb, from_scratch: bool = False) -> JobView:
    """Do what a person asked for; raises 409 where the job's state does not allow it."""
    while True:
        with parts.database.session() as session:
            job = repository.get(session, job_id)
            caller.must_control(job.owner)
            effect = EFFECTS[verb][State(job.state)]
            if effect is Effect.SAME:
                return view(job)
            if not isinstance(effect, State):
                allowed = [state.value for state, found in EFFECTS[verb].items() if found is not Effect.REFUSED]
                text = f"a {job.state} job cannot be told to {verb}: it must be {' or '.join(allowed)}"
                raise ApiProblem(409, "not_allowed_in_state", text)
            reason, message = TOLD.get(effect, (None, "Resumed." if verb is Verb.RESUME else "Retried."))
            if verb is Verb.RETRY:
                job.failures = job.restarts = 0
                job.not_before, job.result = None, None
                if from_scratch:
                    job.since_attempt, job.progress = job.attempts + 1, None
                    message = "Retried from scratch."
            try:
                transition(session, job, effect, reason, message, caller.owner)
            except StaleState:
                session.rollback()
                continue
            changed = view(job)
        parts.reconciler.wake()
        return changed


def events(parts: Parts, job_id: str, cursor: str | None, limit: int) -> Page[EventView]:
    after = repository.read_number(cursor) if cursor else 0
    with parts.database.read() as session:
        repository.get(session, job_id)
        found = repository.events(session, job_id, after, limit + 1)
        items = [EventView.model_validate(event, from_attributes=True) for event in found[:limit]]
        following = repository.write_cursor([items[-1].id]) if len(found) > limit else None
        return Page[EventView](items=items, next_cursor=following)


def attempts(parts: Parts, job_id: str) -> Page[AttemptView]:
    with parts.database.read() as session:
        repository.get(session, job_id)
        found: list[Attempt] = repository.attempts(session, job_id)
        return Page[AttemptView](items=[AttemptView.model_validate(a, from_attributes=True) for a in found])


def logs(
    parts: Parts, job_id: str, attempt: int | None, source: str | None, cursor: str | None, limit: int
) -> Page[LogView]:
    with parts.database.read() as session:
        job = repository.get(session, job_id)
    if not job.artifact_uri:
        return Page[LogView](items=[])
    numbers = [attempt] if attempt else list(range(1, job.attempts + 1))
    return read_logs(parts.artifacts, job.artifact_uri, numbers, source, cursor, limit)


def metrics(parts: Parts, job_id: str, keys: Sequence[str]) -> MetricsView:
    with parts.database.read() as session:
        job = repository.get(session, job_id)
    if not job.run_id:
        return MetricsView(series={})
    try:
        wanted = keys or [key for key in parts.mlflow.run(job.run_id).metrics if not key.startswith("rcmae/")]
        points = {key: parts.mlflow.history(job.run_id, key) for key in wanted}
    except MlflowUnreachable as error:
        raise unavailable("MLflow", error) from error
    return MetricsView(
        series={key: [Point.model_validate(p, from_attributes=True) for p in found] for key, found in points.items()}
    )


def images(parts: Parts, job_id: str) -> Page[ImageView]:
    with parts.database.read() as session:
        job = repository.get(session, job_id)
    found = parts.artifacts.sizes(job.artifact_uri, names.IMAGES) if job.artifact_uri else {}
    pictures = [name for name in sorted(found) if name.startswith("reconstruction_") and name.endswith(".png")]
    return Page[ImageView](
        items=[
            ImageView(
                step=int(name.removeprefix("reconstruction_").removesuffix(".png")),
                name=name,
                url=f"/v1/jobs/{job_id}/images/{quote(name)}",
            )
            for name in pictures
        ]
    )


def image(parts: Parts, job_id: str, name: str) -> bytes:
    """A picture's bytes: they are small."""
    with parts.database.read() as session:
        job = repository.get(session, job_id)
    wanted = job.artifact_uri is not None and name.endswith(".png")
    data = parts.artifacts.read(job.artifact_uri or "", f"{names.IMAGES}/{name}") if wanted else None
    if data is None:
        raise not_found("image", name)
    return data


def view(job: Job) -> JobView:
    """A job as the API shows it."""
    fields: dict[str, Any] = {name: getattr(job, name) for name in JobView.model_fields} | {"spec": job.run_spec}
    return JobView.model_validate(fields)
