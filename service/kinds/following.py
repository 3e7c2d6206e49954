"""Evaluations that follow a pretraining by themselves, as `evaluation.after` of its spec asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.caller import Caller, has_valid_token
from service.auth.scopes import Role, Scope, roles_with
from service.controller.context import ACTOR, ControllerContext
from service.db.tables import Event, Job
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.lifecycle import note
from service.jobs.state import State
from service.jobs.submission import check_roots, insert
from service.jobs.versions import Registered
from service.kinds.evaluate import check_reference, counted
from service.kinds.run_report import RunReport
from service.kinds.subjects import TRAINED
from trainer.spec.base import SpecError
from trainer.spec.formats import WEIGHTS_FORMATS
from trainer.spec.job import parse_pretrain
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.subject import CheckpointRef

log = structlog.get_logger()

AFTER: Final = "evaluation.after."


@dataclass(frozen=True)
class PretrainReport(RunReport):
    """What a pretraining has done, and the evaluation that follows it."""

    def settled(self, session: Session, context: ControllerContext, job: Job) -> None:
        """Add what was registered; of a job that has succeeded, submit the evaluation, in the same transaction.

        A pretraining succeeds once, so one evaluation follows it. Where it cannot be submitted, the job's message says
        why.
        """
        super().settled(session, context, job)
        if job.state != State.SUCCEEDED:
            return
        try:
            follower = _submit(session, context, job, self.registered)
        except (ApiProblem, SpecError) as error:
            why = error.detail if isinstance(error, ApiProblem) else str(error)
            note(session, job, job.reason, f"{job.message} No evaluation follows it: {why}", ACTOR)
            log.warning("no_evaluation_follows", job_id=job.id, detail=why)
        else:
            if follower:
                log.info("evaluation_follows", job_id=job.id, follower=follower.id)


def check_following(session: Session, caller: Caller, spec: PretrainSpec, path: str = AFTER) -> None:
    """Raises the spec's error where the evaluation that is to follow names what the caller does not see."""
    following = spec.following(TRAINED)
    if following:
        check_reference(session, caller, following, path, listed=isinstance(spec.evaluation.after, tuple))


def told(spec: PretrainSpec) -> str:
    """What a plan says of the evaluation that follows; empty where none does."""
    following = spec.following(TRAINED)
    if following is None:
        return ""
    version = bool(spec.register_as) and _has_weights(spec)
    what = f"the version of {spec.register_as} that it registers" if version else "its last checkpoint"
    images = following.dataset.title or following.dataset.uri
    return f"An evaluation of {what} follows it, on {images}: {counted(following)}."


def _submit(session: Session, context: ControllerContext, job: Job, registered: Sequence[Registered]) -> Job | None:
    """Submit the evaluation that a job's spec asks for; None where it asks for none.

    Raises `SpecError` and the API's problem of the spec where it is not allowed any more.
    """
    spec = parse_pretrain(job.run_spec)
    following = spec.following(_subject(session, job, spec, registered))
    if following is None:
        return None
    # Both may have been changed since the job was submitted.
    following = following.model_copy(update={"labels": dict(job.labels), "priority": job.priority})
    settings = context.app.settings
    check_roots(settings, {f"{AFTER}dataset": following.dataset, f"{AFTER}test": following.test})
    check_reference(session, _owner(session, job), following, AFTER, listed=isinstance(spec.evaluation.after, tuple))
    follower = insert(session, job.owner, following, following.dataset.uri, None, follows=job.id)
    message = f"{follower.id} follows it: an evaluation of {following.name.removeprefix('evaluate-')}."
    session.add(Event(job_id=job.id, state=job.state, reason=job.reason, message=message, actor=ACTOR))
    return follower


def _subject(session: Session, job: Job, spec: PretrainSpec, registered: Sequence[Registered]) -> str | CheckpointRef:
    """The version that a job has registered, if weights can be read from it, or else its last checkpoint."""
    if registered and _has_weights(spec):
        version = registered[-1].version
        return f"{version.name}:{version.version}"
    attempt = repository.last_attempt(session, job)
    return CheckpointRef(job=job.id, checkpoint=attempt.checkpoint if attempt else None)


def _has_weights(spec: PretrainSpec) -> bool:
    return bool({*spec.export.formats} & {*WEIGHTS_FORMATS})


def _owner(session: Session, job: Job) -> Caller:
    """A job's owner, who sees other people's jobs if a token of theirs did so after the job was submitted."""
    sees_all = has_valid_token(Job.owner, roles_with([Scope.SUBMIT, Scope.READ_JOBS]), Job.created_at)
    found = session.scalar(select(Job.id).where(Job.id == job.id, sees_all))
    return Caller(job.owner, Role.OPERATOR if found else Role.SUBMITTER)
