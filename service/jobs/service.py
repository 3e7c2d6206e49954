"""What the jobs' routes change, and the plan. A change is one transaction, in which nothing waits for Ray, MLflow or
the storage: what those have to say is asked before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import structlog
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowUnreachable
from service.adapters.ray_cluster import ClusterUnreachable
from service.auth.caller import Caller, Role
from service.context.app_state import Parts
from service.controller.removal import preview
from service.controller.starting import limits, queue_of, running
from service.db.tables import Job, now
from service.http.problems import ApiProblem, spec_problem, unavailable
from service.jobs import lineage, repository
from service.jobs.lifecycle import EFFECTS, Effect, Verb, delete, edit, transition
from service.jobs.reading import view
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
from service.jobs.submission import check_places, insert, kept_key, schedule
from service.kinds.publish import trained_by
from service.kinds.search_checks import check_base, check_search, how_many, trial_schedule
from service.queue.scheduler import fits
from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.spec.base import Problem
from trainer.spec.job import JobSpec, Kind, parse_spec
from trainer.spec.plan import ClusterShape, Schedule, gang, memory_per_worker, parameters, resolve
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishSpec
from trainer.spec.search import SearchSpec

log = structlog.get_logger()

Answer = TypeVar("Answer")

WEIGHTS: Final = 12
"""Bytes a parameter while a checkpoint is published: what is read, what is written, and a copy to compare."""
TOLD: Final[dict[State, tuple[Reason | None, str]]] = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, "Cancelled. Retry it to go on from the last checkpoint."),
    State.CANCELLING: (
        Reason.CANCELLED_BY_USER,
        "Its attempt ends: while it trains, at the next step with a checkpoint.",
    ),
    State.PAUSED: (Reason.PAUSED_BY_USER, "Paused. Resume it to go on from the last checkpoint."),
    State.PAUSING: (Reason.PAUSED_BY_USER, "Its attempt ends: while it trains, at the next step with a checkpoint."),
    State.SUCCEEDED: (None, "Stopped: it makes no other trial. More trials let it go on."),
}


def submit(parts: Parts, caller: Caller, spec: JobSpec, key: str | None) -> tuple[JobView, bool]:
    """A new job, or the one this key made before; True where it is new."""
    caller.must_be(Role.SUBMITTER)
    key = kept_key(key) if key else None
    digest = spec.sha256()
    dataset_uri = _checked(parts, caller, spec, key)
    with parts.database.session() as session:
        earlier = repository.by_idempotency_key(session, caller.owner, key) if key else None
        if earlier:
            if earlier.body_sha256 != digest:
                text = f"this Idempotency-Key made {earlier.id} of another spec: use a new key"
                raise ApiProblem(422, "idempotency_key_reused", text)
            return view(earlier), False
        _steps(session, spec)
        job = insert(session, caller.owner, spec, dataset_uri, key)
        caller.record(session, job.id, kind=job.kind, name=job.name)
        submitted = view(job)
    parts.reconciler.wake()
    return submitted, True


def _checked(parts: Parts, caller: Caller, spec: JobSpec, key: str | None) -> str:
    """Raises the spec's error where it cannot be done here; gives the URI of the dataset that it is about."""
    if isinstance(spec, PretrainSpec):
        check_places(parts.settings, spec)
        return spec.dataset.uri
    with parts.database.read() as session:
        if key and repository.by_idempotency_key(session, caller.owner, key):
            return ""  # nothing new is made: what it asked for then may be gone by now
    if isinstance(spec, SearchSpec):
        check_search(parts.settings, parts.database, caller, spec)
        return spec.base_spec.dataset.uri
    return trained_by(parts.database, parts.artifacts, caller, spec)[0].dataset_uri


def _steps(session: Session, spec: JobSpec) -> Schedule | None:
    """Of training, or of each trial; None where they are not known or differ. Raises the spec's error."""
    if isinstance(spec, SearchSpec):
        return trial_schedule(session, spec)
    return schedule(session, spec) if isinstance(spec, PretrainSpec) else None


def plan(parts: Parts, caller: Caller, spec: JobSpec) -> PlanView:
    """What a spec would need on the cluster as it is, and when it would start; raises 503 where Ray does not say."""
    if isinstance(spec, PublishSpec):
        _, trained = trained_by(parts.database, parts.artifacts, caller, spec)
    else:
        _checked(parts, caller, spec, None)
        trained = spec.base_spec if isinstance(spec, SearchSpec) else spec
    shape, placements = _cluster(parts)
    resolved = resolve(spec, shape)
    with parts.database.read() as session:
        steps = _steps(session, resolved)
        jobs, active = repository.waiting(session), repository.active(session)
    queue = queue_of(jobs, shape)
    taken = running(active, placements)
    when, why = fits(resolved, caller.owner, list(queue.values()), taken, shape, now(), limits(parts.settings))
    needs = gang(resolved)
    encoder, decoder = parameters(trained.model)
    if isinstance(spec, SearchSpec) and isinstance(resolved, SearchSpec):
        memory = _memory(resolve(resolved.base_spec, shape))
        why = f"{why} {how_many(spec, resolved)}"
    else:
        memory = _memory(resolved) if isinstance(resolved, PretrainSpec) else WEIGHTS * (encoder + decoder)
    return PlanView(
        spec=resolved.model_dump(mode="json"),
        parameters=Parameters(encoder=encoder, decoder=decoder),
        steps=Steps(**vars(steps)) if steps else None,
        memory_per_worker_bytes=memory,
        gang=Gang(cpus=needs.all_cpus, gpus=needs.all_gpus),
        fits=when,
        message=why,
    )


def _cluster(parts: Parts) -> tuple[ClusterShape, dict[str, list[str]]]:
    """What there is, and where what runs was placed; raises 503 where Ray does not say."""
    try:
        return parts.ray.shape(), parts.ray.placements()
    except ClusterUnreachable as error:
        raise unavailable("Ray", error) from error


def _memory(resolved: PretrainSpec) -> int:
    """Bytes that one worker takes."""
    optimization = resolved.optimization
    micro_batch = optimization.micro_batch_size
    least = 1 if micro_batch == "auto" else micro_batch  # a GPU's is settled on the worker, by its memory
    bf16 = bool(resolved.resources.gpus_per_worker) and optimization.precision != "fp32"
    return memory_per_worker(resolved.model, resolved.method, least, bf16 or optimization.precision == "bf16")


def apply_verb(parts: Parts, caller: Caller, job_id: str, verb: Verb, body: ResumeBody | None = None) -> JobView:
    """Do what a person asked for; raises 409 where the job's state does not allow it, and changes nothing then."""

    def change(session: Session, job: Job) -> JobView:
        if verb is Verb.STOP and job.kind != Kind.SEARCH:
            raise _not_for_kind(job, verb)
        effect = _effect(job, verb)
        if effect is Effect.DRAIN and not job.draining:
            edit(session, job, {"draining": True}, "Starts no other trial; those that run finish.", caller.owner)
        elif isinstance(effect, State):
            reason, told = TOLD.get(effect, (None, ""))
            transition(session, job, effect, reason, _prepared(parts.settings, job, verb, body) or told, caller.owner)
        elif effect not in {Effect.SAME, Effect.DRAIN}:
            raise _refused(job, verb)
        return view(job)

    return changed(parts, caller, job_id, change)


def _prepared(settings: Settings, job: Job, verb: Verb, body: ResumeBody | None) -> str:
    """Change what goes with a verb that moves a job; says what, where that is to be told."""
    message = ""
    if verb is Verb.STOP:
        job.draining = True
    if verb in {Verb.RESUME, Verb.RETRY}:
        _check_again(settings, parse_spec(job.spec))
        message = "Resumed."
    if verb is Verb.RETRY:
        job.draining = False
        job.failures = job.restarts = 0
        job.not_before = None
        lineage.reset(job)
        message = "Retried."
        if isinstance(body, RetryBody) and body.from_scratch:
            _may_begin_again(job)
            job.since_attempt, job.progress, job.metrics = job.attempts + 1, None, None
            message = "Retried from scratch."
    if body and body.resources:
        _change_resources(job, body.resources)
        message += f" Resources: {', '.join(f'{name} {value}' for name, value in body.resources.items())}."
    return message


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

    return changed(parts, caller, job_id, change)


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

    return changed(parts, caller, job_id, change)


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


def changed(
    parts: Parts, caller: Caller, job_id: str, change: Callable[[Session, Job], Answer], **detail: object
) -> Answer:
    """One transaction on one job that the caller controls.

    ``detail`` goes into the audit log beside the job's id.
    """
    with parts.database.session() as session:
        job = repository.seen(session, job_id, caller)
        caller.must_control(job.owner)
        answer = change(session, job)
        caller.record(session, job_id, **detail)
    parts.reconciler.wake()
    return answer


def _effect(job: Job, verb: Verb) -> State | Effect:
    return EFFECTS[verb][State(job.state)]


def _refused(job: Job, verb: Verb) -> ApiProblem:
    allowed = [state.value for state, found in EFFECTS[verb].items() if found is not Effect.REFUSED]
    text = f"{job.id} is {job.state} and cannot be {verb.done}: that is for jobs that are {', '.join(allowed)}"
    return ApiProblem(409, "not_allowed_in_state", text)


def _not_for_kind(job: Job, verb: Verb) -> ApiProblem:
    text = f"{job.id} is a {job.kind} job, and only searches can be {verb.done}: pause it, or cancel it"
    return ApiProblem(409, "not_for_this_kind", text)


def _check_again(settings: Settings, spec: JobSpec) -> None:
    """Of a job that is queued once more: what is allowed may have changed."""
    if isinstance(spec, SearchSpec):
        check_base(settings, spec)
    elif isinstance(spec, PretrainSpec):
        check_places(settings, spec)


def _may_begin_again(job: Job) -> None:
    """Raises the API's 422 for a search, whose trials stay."""
    if job.kind == Kind.SEARCH:
        text = "a search goes on from the trials it has: retry it without this, or submit its spec as a new one"
        raise spec_problem([Problem("from_scratch", "/from_scratch", True, text)])


def _change_resources(job: Job, changes: Mapping[str, object]) -> None:
    """Run on other resources from the next attempt on; raises the spec's error where they do not fit it."""
    if job.kind == Kind.SEARCH:  # they are each trial's
        base = job.spec["base"]
        document = job.spec | {"base": base | {"resources": {**(base.get("resources") or {}), **changes}}}
    else:
        document = job.spec | {"resources": job.spec["resources"] | changes}
    job.spec, job.resolved_spec = parse_spec(document).model_dump(mode="json"), None
