"""What the jobs' routes do. A request is one transaction; nothing here waits for Ray or MLflow, but the plan and the
views that show their data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowUnreachable
from service.adapters.ray_cluster import ClusterUnreachable
from service.auth import Caller, Role
from service.db import Attempt, Event, Job, now
from service.deps import Parts
from service.errors import ApiProblem, not_found, unavailable
from service.jobs import repository
from service.jobs.lifecycle import EFFECTS, Effect, StaleState, Verb, delete, edit, transition
from service.jobs.logs import read_logs
from service.jobs.removal import preview
from service.jobs.repository import Filters
from service.jobs.scheduler import fits
from service.jobs.schemas import (
    AttemptView,
    Deletion,
    EventView,
    Gang,
    ImageView,
    JobView,
    LogView,
    MetricsView,
    Page,
    Parameters,
    PatchBody,
    PlanView,
    Point,
    ResumeBody,
    RetryBody,
    State,
    Steps,
)
from service.jobs.starting import limits, running, waiting
from trainer.spec import names
from trainer.spec.dataset import DIGITS, DIGITS_IMAGES
from trainer.spec.job import Reason
from trainer.spec.plan import Schedule, gang, memory_per_worker, parameters, resolve
from trainer.spec.pretrain import PretrainSpec

log = structlog.get_logger()

Answer = TypeVar("Answer")

TOLD = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, "Cancelled. Retry it to go on from the last checkpoint."),
    State.CANCELLING: (
        Reason.CANCELLED_BY_USER,
        "Its attempt ends: while it trains, at the next step with a checkpoint.",
    ),
    State.PAUSED: (Reason.PAUSED_BY_USER, "Paused. Resume it to go on from the last checkpoint."),
    State.PAUSING: (Reason.PAUSED_BY_USER, "Its attempt ends: while it trains, at the next step with a checkpoint."),
}


def submit(parts: Parts, caller: Caller, spec: PretrainSpec, key: str | None) -> tuple[JobView, bool]:
    """A new job, or the one this key made before; True where it is new."""
    caller.must_be(Role.SUBMITTER)
    try:
        made, new = _submit(parts, caller, spec, key)
    except IntegrityError:  # the same key came twice at once, and the other one was first
        made, new = _submit(parts, caller, spec, key)
    if new:
        parts.reconciler.wake()
    return made, new


def _submit(parts: Parts, caller: Caller, spec: PretrainSpec, key: str | None) -> tuple[JobView, bool]:
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
        return view(job), True


def plan(parts: Parts, caller: Caller, spec: PretrainSpec) -> PlanView:
    """What a spec would need on the cluster as it is, and when it would start; raises 503 where Ray does not say."""
    try:
        shape, placements = parts.ray.shape(), parts.ray.placements()
    except ClusterUnreachable as error:
        raise unavailable("Ray", error) from error
    resolved = resolve(spec, shape)
    with parts.database.read() as session:
        schedule = _schedule(session, resolved)
        jobs, active = repository.waiting(session), repository.active(session)
    queue = [waiting(job, shape) for job in jobs]
    taken = running(active, placements)
    when, why = fits(resolved, caller.owner, queue, taken, shape, now(), limits(parts.settings))
    micro_batch = resolved.optimization.micro_batch_size
    least = 1 if micro_batch == "auto" else micro_batch  # a GPU's is settled on the worker, by its memory
    bf16 = bool(resolved.resources.gpus_per_worker) and resolved.optimization.precision != "fp32"
    bf16 = bf16 or resolved.optimization.precision == "bf16"
    needs = gang(resolved)
    encoder, decoder = parameters(resolved.model)
    return PlanView(
        spec=resolved.model_dump(mode="json"),
        parameters=Parameters(encoder=encoder, decoder=decoder),
        steps=Steps(**vars(schedule)) if schedule else None,
        memory_per_worker_bytes=memory_per_worker(resolved.model, resolved.method, least, bf16),
        gang=Gang(cpus=needs.all_cpus, gpus=needs.all_gpus),
        fits=when,
        message=why,
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


def apply_verb(parts: Parts, caller: Caller, job_id: str, verb: Verb, body: ResumeBody | None = None) -> JobView:
    """Do what a person asked for; raises 409 where the job's state does not allow it, and changes nothing then."""
    if verb is Verb.STOP:
        raise _not_for_kind(parts, job_id, verb)

    def change(session: Session, job: Job) -> JobView:
        effect = _effect(job, verb)
        if effect is Effect.SAME:
            return view(job)
        if not isinstance(effect, State):
            raise _refused(job, verb)
        reason, message = TOLD.get(effect, (None, "Resumed."))
        if verb is Verb.RETRY:
            job.failures = job.restarts = 0
            job.not_before, job.result = None, None
            message = "Retried."
            if isinstance(body, RetryBody) and body.from_scratch:
                job.since_attempt, job.progress = job.attempts + 1, None
                message = "Retried from scratch."
        if body and body.resources:
            _change_resources(job, body.resources)
            message += f" Resources: {', '.join(f'{name} {value}' for name, value in body.resources.items())}."
        transition(session, job, effect, reason, message, caller.owner)
        return view(job)

    return _changed(parts, caller, job_id, change)


def patch(parts: Parts, caller: Caller, job_id: str, body: PatchBody) -> JobView:
    """Change what people may change; raises 409 where the job's state does not allow it, and changes nothing then."""
    wanted = body.model_dump(include=body.model_fields_set)

    def change(session: Session, job: Job) -> JobView:
        values = {name: value for name, value in wanted.items() if getattr(job, name) != value}
        if "priority" in values and _effect(job, Verb.PATCH_PRIORITY) is not Effect.EDIT:
            raise _refused(job, Verb.PATCH_PRIORITY)
        if values:
            told = ", ".join(f"{name} from {getattr(job, name)!r} to {value!r}" for name, value in values.items())
            edit(session, job, values, f"Changed {told}.", caller.owner)
        return view(job)

    return _changed(parts, caller, job_id, change)


def deletion(parts: Parts, caller: Caller, job_id: str) -> Deletion:
    """What would go with a job; raises 409 where it cannot be deleted now."""
    with parts.database.read() as session:
        job = repository.get(session, job_id)
    caller.must_control(job.owner)
    if _effect(job, Verb.DELETE) is not Effect.GONE:
        raise _refused(job, Verb.DELETE)
    try:
        return preview(job, parts.mlflow, parts.artifacts)
    except MlflowUnreachable as error:
        raise unavailable("MLflow", error) from error


def delete_job(parts: Parts, caller: Caller, job_id: str, with_backbones: bool) -> Deletion:
    """Delete a job with all that it left; raises 409 where backbones would go that were not named."""
    going = deletion(parts, caller, job_id)
    if going.backbones and not with_backbones:
        made = ", ".join(f"{backbone.name} version {backbone.version}" for backbone in going.backbones)
        text = f"{job_id} made {made}, which would go with it: say with_backbones=true to delete that too"
        raise ApiProblem(409, "backbones_would_go", text)

    def change(session: Session, job: Job) -> Deletion:
        if _effect(job, Verb.DELETE) is not Effect.GONE:
            raise _refused(job, Verb.DELETE)
        delete(session, job)
        log.info("job_deleted", job_id=job.id, name=job.name, owner=job.owner, actor=caller.owner)
        return going

    return _changed(parts, caller, job_id, change)


def _changed(parts: Parts, caller: Caller, job_id: str, change: Callable[[Session, Job], Answer]) -> Answer:
    """One transaction on one job, made again where somebody else was faster."""
    while True:
        with parts.database.session() as session:
            job = repository.get(session, job_id)
            caller.must_control(job.owner)
            try:
                answer = change(session, job)
            except StaleState:
                session.rollback()
                continue
        parts.reconciler.wake()
        return answer


def _effect(job: Job, verb: Verb) -> State | Effect:
    return EFFECTS[verb][State(job.state)]


def _refused(job: Job, verb: Verb) -> ApiProblem:
    allowed = [state.value for state, found in EFFECTS[verb].items() if found is not Effect.REFUSED]
    text = f"{job.id} is {job.state} and cannot be {verb.done}: that is for jobs that are {', '.join(allowed)}"
    return ApiProblem(409, "not_allowed_in_state", text)


def _not_for_kind(parts: Parts, job_id: str, verb: Verb) -> ApiProblem:
    job = show(parts, job_id)
    text = f"{job_id} is a {job.kind} job, and only searches can be {verb.done}: pause it, or cancel it"
    return ApiProblem(409, "not_for_this_kind", text)


def _change_resources(job: Job, changes: Mapping[str, object]) -> None:
    """Run on other resources from the next attempt on; raises the spec's error where they do not fit it."""
    spec = PretrainSpec.parse(job.spec | {"resources": job.spec["resources"] | changes})
    job.spec, job.resolved_spec = spec.model_dump(mode="json"), None


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
