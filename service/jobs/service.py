"""Changes to jobs that requests make, and the plan of a spec.

Each change is one transaction. Ray, MLflow and the storage are asked before it begins, so that it never waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.auth.scopes import Scope
from service.context.app_state import AppState
from service.context.kind import JobKind
from service.db.tables import Job, now
from service.http.problems import ApiProblem, spec_problem
from service.jobs import lineage, needed, repository, work
from service.jobs.deletion import delete_versions, preview
from service.jobs.lifecycle import CANCELLED, EFFECTS, PAUSED, Effect, Verb, delete, edit, transition
from service.jobs.queueing import running_entries, waiting_entries
from service.jobs.reading import view
from service.jobs.schemas import Deletion, Gang, JobView, Parameters, PatchBody, PlanView, ResumeBody, RetryBody, Steps
from service.jobs.state import State
from service.jobs.submission import check_backbone_names, insert, stored_key, visibility_kept, with_fixed
from service.jobs.work import Work
from service.queue.scheduler import Limits, fits
from service.settings import Settings
from trainer.protocol.outcome import Reason
from trainer.spec.base import Problem
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import JobSpec, parse_spec
from trainer.spec.plan import gang, resolve

log = structlog.get_logger()

Answer = TypeVar("Answer")
"""What a change returns."""

ENDING: Final = "The attempt is ending: a training attempt writes a checkpoint at its next step first."
REQUESTED: Final[dict[State, tuple[Reason | None, str]]] = {
    State.CANCELLED: (Reason.CANCELLED_BY_USER, CANCELLED),
    State.CANCELLING: (
        Reason.CANCELLED_BY_USER,
        ENDING,
    ),
    State.PAUSED: (Reason.PAUSED_BY_USER, PAUSED),
    State.PAUSING: (Reason.PAUSED_BY_USER, ENDING),
    State.SUCCEEDED: (None, "Stopped: the search starts no more trials. Raise its number of trials to continue it."),
}
"""Reason and message of a job that a request moves to a state; `{continuation}` stands for how it continues."""


def submit(app_state: AppState, caller: Caller, spec: JobSpec, key: str | None) -> tuple[JobView, bool]:
    """Submit a spec; returns the job, and False where the idempotency key had submitted it before.

    Raises the spec's error where the service cannot run it, and the API's 422 for a key that came with another spec.
    """
    caller.must_have(Scope.SUBMIT)
    key = stored_key(key) if key else None
    kind = app_state.kinds[spec.kind]
    with app_state.database.read() as session:
        # Before the spec is checked: the dataset or job that an earlier request named may be gone by now.
        if earlier := _job_of_key(session, caller, spec, key):
            return earlier, False
    subject = kind.check(app_state, caller, spec)
    with app_state.database.session() as session:
        if earlier := _job_of_key(session, caller, spec, key):  # two requests with the same key came at once
            return earlier, False
        check_backbone_names(session, caller, spec.model_dump(mode="json"))
        kind.schedule(session, spec)
        job = insert(session, caller.owner, spec, subject.dataset_uri, key, fixed=subject.fixed)
        caller.record(session, job.id, kind=job.kind, name=job.name)
        submitted = view(session, job)
    app_state.wake.set()
    return submitted, True


def _job_of_key(session: Session, caller: Caller, spec: JobSpec, key: str | None) -> JobView | None:
    """The job that a key has submitted before; raises the API's 422 where that was another spec."""
    earlier = repository.by_idempotency_key(session, caller.owner, key) if key else None
    if earlier is None:
        return None
    if earlier.body_sha256 != spec.sha256():
        text = f"this Idempotency-Key was used for {earlier.id}, which has another spec: use a new key"
        raise ApiProblem(422, "idempotency_key_reused", text)
    return view(session, earlier)


def plan(app_state: AppState, caller: Caller, spec: JobSpec) -> PlanView:
    """What a spec needs on the present cluster, and when it would start; raises `ClusterUnreachable`."""
    kind = app_state.kinds[spec.kind]
    subject = kind.check(app_state, caller, spec)
    shape, placements = _cluster(app_state)
    resolved = resolve(with_fixed(spec, subject.fixed), shape)
    with app_state.database.read() as session:
        check_backbone_names(session, caller, spec.model_dump(mode="json"))
        kept = visibility_kept(session, spec.model_dump(mode="json"), subject.trained)
        steps = kind.schedule(session, resolved)
        warned = kind.plan_warnings(session, resolved)
        jobs, live = repository.waiting(session), repository.live(session)
    queue = waiting_entries(jobs, shape, app_state.kinds)
    taken = running_entries(live, placements)
    when, why = fits(resolved, caller.owner, list(queue.values()), taken, shape, now(), Limits.of(app_state.settings))
    needs = gang(resolved)
    network = subject.trained.model.parameters if subject.trained else None
    return PlanView(
        spec=resolved.model_dump(mode="json"),
        parameters=Parameters(encoder=network[0], decoder=network[1]) if network else None,
        steps=Steps(**vars(steps)) if steps else None,
        memory_per_worker_bytes=kind.memory_per_worker(resolved, subject, shape),
        gang=Gang(cpus=needs.all_cpus, gpus=needs.all_gpus),
        points=kind.points(spec),
        fits=when,
        warnings=[*warned, *kept],
        message=f"{why} {kind.plan_note(spec, resolved)}".strip(),
    )


def _cluster(app_state: AppState) -> tuple[ClusterShape, dict[str, list[str]]]:
    """The cluster, and the nodes of each running submission; raises `ClusterUnreachable`."""
    return app_state.ray.shape(), app_state.ray.placements()


def apply_verb(app_state: AppState, caller: Caller, job_id: str, verb: Verb, body: ResumeBody | None = None) -> JobView:
    """Apply a verb to a job; raises the API's 409, and changes nothing, where its state or kind does not allow it."""

    def change(session: Session, job: Job) -> JobView:
        kind = app_state.kinds[job.kind]
        if verb is Verb.STOP and kind.stop_refused:
            text = f"{job.id} is a {job.kind} job and cannot be {verb.done}: {kind.stop_refused}"
            raise ApiProblem(409, "not_for_this_kind", text)
        effect = _effect(job, verb)
        if effect is Effect.DRAIN and not job.draining:
            edit(
                session,
                job,
                {"draining": True},
                "The search starts no more trials; running trials finish.",
                caller.owner,
            )
        elif isinstance(effect, State):
            reason, message = REQUESTED.get(effect, (None, ""))
            continuation = kind.continuation(repository.has_checkpoint(session, job))
            message = message.format(continuation=continuation)
            message = _change_with_verb(session, app_state.settings, kind, job, verb, body) or message
            transition(session, job, effect, reason, message, caller.owner)
            if effect.terminal and kind.has_trials:
                work.add(session, Work.SETTLE, [job.id])
        elif effect not in {Effect.SAME, Effect.DRAIN}:
            raise _refused(job, verb)
        return view(session, job)

    return change_job(app_state, caller, job_id, change)


def _change_with_verb(
    session: Session, settings: Settings, kind: JobKind[Any], job: Job, verb: Verb, body: ResumeBody | None
) -> str:
    """Change what a verb changes besides the state; returns the event's message, empty where `REQUESTED` has one."""
    message = ""
    if verb is Verb.STOP:
        job.draining = True
    if verb in {Verb.RESUME, Verb.RETRY}:
        kind.recheck(session, settings, parse_spec(job.spec))
        message = "Resumed."
    if verb is Verb.RETRY:
        job.draining = False
        job.failures = 0
        lineage.reset(job)
        message = "Retried."
        if isinstance(body, RetryBody) and body.from_scratch:
            _check_from_scratch(kind)
            job.since_attempt, job.progress, job.metrics = job.attempts + 1, None, None
            message = "Retried from scratch."
    if body and body.resources:
        _change_resources(kind, job, body.resources)
        message += f" Resources: {', '.join(f'{name} {value}' for name, value in body.resources.items())}."
    return message


def patch(app_state: AppState, caller: Caller, job_id: str, body: PatchBody) -> JobView:
    """Change a job's priority, labels or notes; raises the API's 409, and changes nothing, where its state forbids."""
    changes = body.model_dump(include=body.model_fields_set)

    def change(session: Session, job: Job) -> JobView:
        values = {name: value for name, value in changes.items() if getattr(job, name) != value}
        if "priority" in values and _effect(job, Verb.PATCH_PRIORITY) is not Effect.EDIT:
            raise _refused(job, Verb.PATCH_PRIORITY)
        if values:
            changed = ", ".join(f"{name} from {getattr(job, name)!r} to {value!r}" for name, value in values.items())
            edit(session, job, values, f"Changed {changed}.", caller.owner)
        return view(session, job)

    return change_job(app_state, caller, job_id, change)


def deletion(app_state: AppState, caller: Caller, job_id: str) -> Deletion:
    """What deleting a job would remove; raises the API's 409 where its state forbids that."""
    with app_state.database.read() as session:
        job = repository.visible_job(session, job_id, caller)
    caller.must(Scope.JOBS, job.owner)
    if _effect(job, Verb.DELETE) is not Effect.GONE:
        raise _refused(job, Verb.DELETE)
    return preview(app_state, job)


def delete_job(app_state: AppState, caller: Caller, job_id: str, with_backbones: bool) -> Deletion:
    """Delete a job with everything that it left behind.

    Raises the API's 409 where registered versions would be deleted without ``with_backbones``, one has an alias, or
    another job needs it or one of them.
    """
    removed = deletion(app_state, caller, job_id)

    def change(session: Session, job: Job) -> Deletion:
        if _effect(job, Verb.DELETE) is not Effect.GONE:
            raise _refused(job, Verb.DELETE)
        needed.job_must_not_be(session, job)
        deleted = delete_versions(session, caller, job, with_backbones)
        delete(job)
        log.info("job_deleted", job_id=job.id, name=job.name, owner=job.owner, actor=caller.owner)
        return removed.model_copy(update={"backbones": deleted})

    return change_job(app_state, caller, job_id, change)


def change_job(
    app_state: AppState, caller: Caller, job_id: str, change: Callable[[Session, Job], Answer], **detail: object
) -> Answer:
    """Run ``change`` in one transaction on a job that the caller controls; ``detail`` goes into the audit log.

    Raises the API's 404 for a job that the caller may not see, and 403 for one that it does not control.
    """
    with app_state.database.session() as session:
        job = repository.visible_job(session, job_id, caller)
        caller.must(Scope.JOBS, job.owner)
        answer = change(session, job)
        caller.record(session, job_id, **detail)
    app_state.wake.set()
    return answer


def _effect(job: Job, verb: Verb) -> State | Effect:
    return EFFECTS[verb][State(job.state)]


def _refused(job: Job, verb: Verb) -> ApiProblem:
    allowed = [state.value for state, found in EFFECTS[verb].items() if found is not Effect.REFUSED]
    text = f"{job.id} is {job.state} and cannot be {verb.done}: only {', '.join(allowed)} jobs can be"
    return ApiProblem(409, "not_allowed_in_state", text)


def _check_from_scratch(kind: JobKind[Any]) -> None:
    """Raises the API's 422 for a kind of job that cannot start from scratch."""
    if kind.from_scratch_refused:
        raise spec_problem([Problem("from_scratch", "/from_scratch", True, kind.from_scratch_refused)])


def _change_resources(kind: JobKind[Any], job: Job, changes: Mapping[str, object]) -> None:
    """Change the resources of the next attempt; raises the spec's error where they do not fit the spec."""
    document = kind.with_resources(job.spec, changes)
    job.spec, job.resolved_spec = parse_spec(document).model_dump(mode="json"), None
