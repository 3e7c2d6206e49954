"""What the jobs' routes change, and the plan. A change is one transaction, in which nothing waits for Ray, MLflow or
the storage: what those have to say is asked before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowUnreachable
from service.adapters.ray_cluster import ClusterUnreachable
from service.auth.caller import Caller, Role
from service.context.app_state import AppState
from service.context.kind import JobKind
from service.db.tables import Job, now
from service.http.problems import ApiProblem, spec_problem, unavailable
from service.jobs import lineage, repository
from service.jobs.deletion import preview
from service.jobs.lifecycle import EFFECTS, Effect, Verb, delete, edit, transition
from service.jobs.queueing import running_entries, waiting_entries
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
from service.jobs.submission import insert, kept_key
from service.queue.scheduler import Limits, fits
from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.spec.base import Problem
from trainer.spec.job import JobSpec, parse_spec
from trainer.spec.plan import ClusterShape, gang, parameters, resolve

log = structlog.get_logger()

Answer = TypeVar("Answer")

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


def submit(parts: AppState, caller: Caller, spec: JobSpec, key: str | None) -> tuple[JobView, bool]:
    """A new job, or the one this key made before; True where it is new."""
    caller.must_be(Role.SUBMITTER)
    key = kept_key(key) if key else None
    kind = parts.kinds[spec.kind]
    with parts.database.read() as session:
        # What a job was made from may be gone by now: it is not looked for again.
        if earlier := _made_before(session, caller, spec, key):
            return earlier, False
    dataset_uri = kind.check(parts, caller, spec).dataset_uri
    with parts.database.session() as session:
        if earlier := _made_before(session, caller, spec, key):  # the same key came twice at once
            return earlier, False
        kind.schedule(session, spec)
        job = insert(session, caller.owner, spec, dataset_uri, key)
        caller.record(session, job.id, kind=job.kind, name=job.name)
        submitted = view(job)
    parts.wake.set()
    return submitted, True


def _made_before(session: Session, caller: Caller, spec: JobSpec, key: str | None) -> JobView | None:
    """The job that a key made before; raises 422 where it was made of another spec."""
    earlier = repository.by_idempotency_key(session, caller.owner, key) if key else None
    if earlier is None:
        return None
    if earlier.body_sha256 != spec.sha256():
        text = f"this Idempotency-Key made {earlier.id} of another spec: use a new key"
        raise ApiProblem(422, "idempotency_key_reused", text)
    return view(earlier)


def plan(parts: AppState, caller: Caller, spec: JobSpec) -> PlanView:
    """What a spec would need on the cluster as it is, and when it would start; raises 503 where Ray does not say."""
    kind = parts.kinds[spec.kind]
    trained = kind.check(parts, caller, spec).trained
    shape, placements = _cluster(parts)
    resolved = resolve(spec, shape)
    with parts.database.read() as session:
        steps = kind.schedule(session, resolved)
        jobs, active = repository.waiting(session), repository.active(session)
    queue = waiting_entries(jobs, shape, parts.kinds)
    taken = running_entries(active, placements)
    when, why = fits(resolved, caller.owner, list(queue.values()), taken, shape, now(), Limits.of(parts.settings))
    needs = gang(resolved)
    encoder, decoder = parameters(trained.model)
    return PlanView(
        spec=resolved.model_dump(mode="json"),
        parameters=Parameters(encoder=encoder, decoder=decoder),
        steps=Steps(**vars(steps)) if steps else None,
        memory_per_worker_bytes=kind.memory_per_worker(resolved, trained, shape),
        gang=Gang(cpus=needs.all_cpus, gpus=needs.all_gpus),
        fits=when,
        message=f"{why} {kind.plan_note(spec, resolved)}".strip(),
    )


def _cluster(parts: AppState) -> tuple[ClusterShape, dict[str, list[str]]]:
    """What there is, and where what runs was placed; raises 503 where Ray does not say."""
    try:
        return parts.ray.shape(), parts.ray.placements()
    except ClusterUnreachable as error:
        raise unavailable("Ray", error) from error


def apply_verb(parts: AppState, caller: Caller, job_id: str, verb: Verb, body: ResumeBody | None = None) -> JobView:
    """Do what a person asked for; raises 409 where the job's state does not allow it, and changes nothing then."""

    def change(session: Session, job: Job) -> JobView:
        kind = parts.kinds[job.kind]
        if verb is Verb.STOP and not kind.has_trials:
            raise _not_for_kind(job, verb)
        effect = _effect(job, verb)
        if effect is Effect.DRAIN and not job.draining:
            edit(session, job, {"draining": True}, "Starts no other trial; those that run finish.", caller.owner)
        elif isinstance(effect, State):
            reason, told = TOLD.get(effect, (None, ""))
            transition(
                session, job, effect, reason, _prepared(parts.settings, kind, job, verb, body) or told, caller.owner
            )
        elif effect not in {Effect.SAME, Effect.DRAIN}:
            raise _refused(job, verb)
        return view(job)

    return changed(parts, caller, job_id, change)


def _prepared(settings: Settings, kind: JobKind[Any], job: Job, verb: Verb, body: ResumeBody | None) -> str:
    """Change what goes with a verb that moves a job; says what, where that is to be told."""
    message = ""
    if verb is Verb.STOP:
        job.draining = True
    if verb in {Verb.RESUME, Verb.RETRY}:
        kind.check_again(settings, parse_spec(job.spec))
        message = "Resumed."
    if verb is Verb.RETRY:
        job.draining = False
        job.failures = job.restarts = 0
        job.not_before = None
        lineage.reset(job)
        message = "Retried."
        if isinstance(body, RetryBody) and body.from_scratch:
            _may_begin_again(kind)
            job.since_attempt, job.progress, job.metrics = job.attempts + 1, None, None
            message = "Retried from scratch."
    if body and body.resources:
        _change_resources(kind, job, body.resources)
        message += f" Resources: {', '.join(f'{name} {value}' for name, value in body.resources.items())}."
    return message


def patch(parts: AppState, caller: Caller, job_id: str, body: PatchBody) -> JobView:
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


def deletion(parts: AppState, caller: Caller, job_id: str) -> Deletion:
    """What would go with a job; raises 409 where it cannot be deleted now."""
    with parts.database.read() as session:
        job = repository.seen(session, job_id, caller)
    caller.must_control(job.owner)
    if _effect(job, Verb.DELETE) is not Effect.GONE:
        raise _refused(job, Verb.DELETE)
    try:
        return preview(parts, job)
    except MlflowUnreachable as error:
        raise unavailable("MLflow", error) from error


def delete_job(parts: AppState, caller: Caller, job_id: str, with_backbones: bool) -> Deletion:
    """Delete a job with all that it left; raises 409 where backbones would go that were not named."""
    going = deletion(parts, caller, job_id)
    if going.backbones and not with_backbones:
        made = ", ".join(f"{backbone.name} version {backbone.version}" for backbone in going.backbones)
        text = f"{job_id} made {made}, which would go with it: say with_backbones=true to delete that too"
        raise ApiProblem(409, "backbones_would_go", text)
    _must_have_no_alias(parts, going)

    def change(_: Session, job: Job) -> Deletion:
        if _effect(job, Verb.DELETE) is not Effect.GONE:
            raise _refused(job, Verb.DELETE)
        delete(job)
        log.info("job_deleted", job_id=job.id, name=job.name, owner=job.owner, actor=caller.owner)
        return going

    return changed(parts, caller, job_id, change)


def _must_have_no_alias(parts: AppState, going: Deletion) -> None:
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
    parts: AppState, caller: Caller, job_id: str, change: Callable[[Session, Job], Answer], **detail: object
) -> Answer:
    """One transaction on one job that the caller controls.

    ``detail`` goes into the audit log beside the job's id.
    """
    with parts.database.session() as session:
        job = repository.seen(session, job_id, caller)
        caller.must_control(job.owner)
        answer = change(session, job)
        caller.record(session, job_id, **detail)
    parts.wake.set()
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


def _may_begin_again(kind: JobKind[Any]) -> None:
    """Raises the API's 422 for a kind that cannot start from scratch."""
    if kind.from_scratch_refused:
        raise spec_problem([Problem("from_scratch", "/from_scratch", True, kind.from_scratch_refused)])


def _change_resources(kind: JobKind[Any], job: Job, changes: Mapping[str, object]) -> None:
    """Run on other resources from the next attempt on; raises the spec's error where they do not fit it."""
    document = kind.with_resources(job.spec, changes)
    job.spec, job.resolved_spec = parse_spec(document).model_dump(mode="json"), None
