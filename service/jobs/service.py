"""What the jobs' routes change, and the plan. A change is one transaction, in which nothing waits for Ray, MLflow or
the storage: what those have to say is asked before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowUnreachable
from service.adapters.ray_cluster import ClusterUnreachable
from service.auth import Caller, Role, sha256
from service.db import Event, Job, now
from service.deps import Parts
from service.errors import ApiProblem, spec_problem, unavailable
from service.jobs import lineage, repository
from service.jobs.lifecycle import EFFECTS, Effect, StaleState, Verb, delete, edit, transition
from service.jobs.publishing import trained_by
from service.jobs.reading import show, view
from service.jobs.removal import preview
from service.jobs.scheduler import fits
from service.jobs.schemas import (
    Deletion,
    Gang,
    JobView,
    Parameters,
    PatchBody,
    PlanView,
    ResumeBody,
    RetryBody,
    State,
    Steps,
)
from service.jobs.starting import limits, queue_of, running
from service.observability.requests import current_request_id
from service.settings import Settings
from trainer.spec.dataset import DIGITS, DIGITS_IMAGES, misplaced
from trainer.spec.job import JobSpec, Reason, parse_spec
from trainer.spec.plan import Schedule, gang, memory_per_worker, parameters, resolve
from trainer.spec.pretrain import PretrainSpec

log = structlog.get_logger()

Answer = TypeVar("Answer")

WEIGHTS: Final = 12
"""Bytes a parameter while a checkpoint is published: what is read, what is written, and a copy to compare."""
HASHED = "sha256:"
"""Begins every idempotency key that is kept."""
TOLD = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, "Cancelled. Retry it to go on from the last checkpoint."),
    State.CANCELLING: (
        Reason.CANCELLED_BY_USER,
        "Its attempt ends: while it trains, at the next step with a checkpoint.",
    ),
    State.PAUSED: (Reason.PAUSED_BY_USER, "Paused. Resume it to go on from the last checkpoint."),
    State.PAUSING: (Reason.PAUSED_BY_USER, "Its attempt ends: while it trains, at the next step with a checkpoint."),
}


def submit(parts: Parts, caller: Caller, spec: JobSpec, key: str | None) -> tuple[JobView, bool]:
    """A new job, or the one this key made before; True where it is new."""
    caller.must_be(Role.SUBMITTER)
    # People put into it what they like: it is compared and never shown.
    key = f"{HASHED}{sha256(key)}" if key else None
    try:
        made, new = _submit(parts, caller, spec, key)
    except IntegrityError:  # the same key came twice at once, and the other one was first
        made, new = _submit(parts, caller, spec, key)
    if new:
        parts.reconciler.wake()
    return made, new


def _submit(parts: Parts, caller: Caller, spec: JobSpec, key: str | None) -> tuple[JobView, bool]:
    digest = spec.sha256()
    dataset_uri = _checked(parts, caller, spec, key)
    with parts.database.session() as session:
        earlier = repository.by_idempotency_key(session, caller.owner, key) if key else None
        if earlier:
            if earlier.body_sha256 != digest:
                text = f"this Idempotency-Key made {earlier.id} of another spec: use a new key"
                raise ApiProblem(422, "idempotency_key_reused", text)
            return view(earlier), False
        if isinstance(spec, PretrainSpec):
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
            dataset_uri=dataset_uri,
            idempotency_key=key,
            body_sha256=digest,
            request_id=current_request_id(),
        )
        session.add(job)
        session.flush()
        session.add(Event(job_id=job.id, state=job.state, message="Submitted.", actor=caller.owner))
        caller.record(session, job.id, kind=job.kind, name=job.name)
        return view(job), True


def _checked(parts: Parts, caller: Caller, spec: JobSpec, key: str | None) -> str:
    """Raises the spec's error where it cannot be done here; gives the URI of the dataset that it is about."""
    if isinstance(spec, PretrainSpec):
        _check_places(parts.settings, spec)
        return spec.dataset.uri
    with parts.database.read() as session:
        if key and repository.by_idempotency_key(session, caller.owner, key):
            return ""  # nothing new is made: what it asked for then may be gone by now
    return trained_by(parts.database, parts.artifacts, caller, spec)[0].dataset_uri


def plan(parts: Parts, caller: Caller, spec: JobSpec) -> PlanView:
    """What a spec would need on the cluster as it is, and when it would start; raises 503 where Ray does not say."""
    if isinstance(spec, PretrainSpec):
        _check_places(parts.settings, spec)
        trained = spec
    else:
        _, trained = trained_by(parts.database, parts.artifacts, caller, spec)
    try:
        shape, placements = parts.ray.shape(), parts.ray.placements()
    except ClusterUnreachable as error:
        raise unavailable("Ray", error) from error
    resolved = resolve(spec, shape)
    with parts.database.read() as session:
        schedule = _schedule(session, resolved) if isinstance(resolved, PretrainSpec) else None
        jobs, active = repository.waiting(session), repository.active(session)
    queue = queue_of(jobs, shape)
    taken = running(active, placements)
    when, why = fits(resolved, caller.owner, list(queue.values()), taken, shape, now(), limits(parts.settings))
    needs = gang(resolved)
    encoder, decoder = parameters(trained.model)
    memory = _memory(resolved) if isinstance(resolved, PretrainSpec) else WEIGHTS * (encoder + decoder)
    return PlanView(
        spec=resolved.model_dump(mode="json"),
        parameters=Parameters(encoder=encoder, decoder=decoder),
        steps=Steps(**vars(schedule)) if schedule else None,
        memory_per_worker_bytes=memory,
        gang=Gang(cpus=needs.all_cpus, gpus=needs.all_gpus),
        fits=when,
        message=why,
    )


def _memory(resolved: PretrainSpec) -> int:
    """Bytes that one worker takes."""
    optimization = resolved.optimization
    micro_batch = optimization.micro_batch_size
    least = 1 if micro_batch == "auto" else micro_batch  # a GPU's is settled on the worker, by its memory
    bf16 = bool(resolved.resources.gpus_per_worker) and optimization.precision != "fp32"
    return memory_per_worker(resolved.model, resolved.method, least, bf16 or optimization.precision == "bf16")


def _check_places(settings: Settings, spec: PretrainSpec) -> None:
    """Raises the spec's error where a dataset lies where none may."""
    named = ((spec.dataset, "dataset"), (spec.evaluation.dataset, "evaluation.dataset"))
    wrong = [misplaced(dataset, field, settings.dataset_roots) for dataset, field in named if dataset]
    found = [problem for problem in wrong if problem]
    if found:
        raise spec_problem(found)


def _schedule(session: Session, spec: PretrainSpec) -> Schedule | None:
    """Steps where the number of images is known; raises the spec's error where one batch does not fit."""
    images = DIGITS_IMAGES if spec.dataset.uri == DIGITS else repository.images_of(session, spec.dataset.uri)
    return Schedule.of(spec, images) if images else None


def apply_verb(parts: Parts, caller: Caller, job_id: str, verb: Verb, body: ResumeBody | None = None) -> JobView:
    """Do what a person asked for; raises 409 where the job's state does not allow it, and changes nothing then."""
    if verb is Verb.STOP:
        raise _not_for_kind(parts, caller, job_id, verb)

    def change(session: Session, job: Job) -> JobView:
        effect = _effect(job, verb)
        if effect is Effect.SAME:
            return view(job)
        if not isinstance(effect, State):
            raise _refused(job, verb)
        if effect is State.QUEUED:
            spec = parse_spec(job.spec)
            if isinstance(spec, PretrainSpec):
                _check_places(parts.settings, spec)
        reason, message = TOLD.get(effect, (None, "Resumed."))
        if verb is Verb.RETRY:
            job.failures = job.restarts = 0
            job.not_before = None
            lineage.reset(job)
            message = "Retried."
            if isinstance(body, RetryBody) and body.from_scratch:
                job.since_attempt, job.progress, job.metrics = job.attempts + 1, None, None
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
        job = repository.seen(session, job_id, caller)
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
    _must_have_no_alias(parts, going)

    def change(session: Session, job: Job) -> Deletion:
        if _effect(job, Verb.DELETE) is not Effect.GONE:
            raise _refused(job, Verb.DELETE)
        delete(session, job)
        log.info("job_deleted", job_id=job.id, name=job.name, owner=job.owner, actor=caller.owner)
        return going

    return _changed(parts, caller, job_id, change)


def _must_have_no_alias(parts: Parts, going: Deletion) -> None:
    """Raises 409 where an alias stands for a version that would go."""
    for backbone in going.backbones:
        try:
            aliases = parts.mlflow.aliases(backbone.name)
        except MlflowUnreachable as error:
            raise unavailable("MLflow", error) from error
        named = sorted(alias for alias, number in aliases.items() if number == backbone.version)
        if named:
            text = (
                f"{backbone.name} version {backbone.version}, which would go with it, is {backbone.name}@{named[0]}: "
                "let that stand for another version, or remove it, first"
            )
            raise ApiProblem(409, "version_has_alias", text)


def _changed(parts: Parts, caller: Caller, job_id: str, change: Callable[[Session, Job], Answer]) -> Answer:
    """One transaction on one job, made again where somebody else was faster."""
    while True:
        with parts.database.session() as session:
            job = repository.seen(session, job_id, caller)
            caller.must_control(job.owner)
            try:
                answer = change(session, job)
            except StaleState:
                session.rollback()
                continue
            caller.record(session, job_id)
        parts.reconciler.wake()
        return answer


def _effect(job: Job, verb: Verb) -> State | Effect:
    return EFFECTS[verb][State(job.state)]


def _refused(job: Job, verb: Verb) -> ApiProblem:
    allowed = [state.value for state, found in EFFECTS[verb].items() if found is not Effect.REFUSED]
    text = f"{job.id} is {job.state} and cannot be {verb.done}: that is for jobs that are {', '.join(allowed)}"
    return ApiProblem(409, "not_allowed_in_state", text)


def _not_for_kind(parts: Parts, caller: Caller, job_id: str, verb: Verb) -> ApiProblem:
    job = show(parts, caller, job_id)
    caller.must_control(job.owner)
    text = f"{job_id} is a {job.kind} job, and only searches can be {verb.done}: pause it, or cancel it"
    return ApiProblem(409, "not_for_this_kind", text)


def _change_resources(job: Job, changes: Mapping[str, object]) -> None:
    """Run on other resources from the next attempt on; raises the spec's error where they do not fit it."""
    spec = parse_spec(job.spec | {"resources": job.spec["resources"] | changes})
    job.spec, job.resolved_spec = spec.model_dump(mode="json"), None
