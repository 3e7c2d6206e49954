"""A job's life cycle: the verbs of the API, the transitions between states, and the functions that write changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog
from sqlalchemy import event
from sqlalchemy.orm import Session

from service import counters
from service.db.tables import Event, Job, now, write_labels
from service.jobs.state import State
from trainer.protocol.outcome import Reason
from trainer.spec.base import SpecError

log = structlog.get_logger()

S = State


class Verb(StrEnum):
    """What a request can ask of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    STOP = "stop"
    DELETE = "delete"
    PATCH_PRIORITY = "patch_priority"
    PATCH_NOTES = "patch_notes"

    @property
    def done(self) -> str:
        """The past participle, to complete "the job cannot be …"."""
        return _DONE[self]


_DONE: Final = {
    Verb.CANCEL: "cancelled",
    Verb.PAUSE: "paused",
    Verb.RESUME: "resumed",
    Verb.RETRY: "retried",
    Verb.STOP: "stopped",
    Verb.DELETE: "deleted",
    Verb.PATCH_PRIORITY: "given a new priority",
    Verb.PATCH_NOTES: "given new notes",
}


class Effect(StrEnum):
    """What a verb does where it does not move the job to another state."""

    SAME = "same"
    """Succeed without a change."""
    REFUSED = "refused"
    GONE = "gone"
    EDIT = "edit"
    DRAIN = "drain"
    """Let the running trials finish; then the search has succeeded."""


def _row(default: State | Effect, **states: State | Effect) -> dict[State, State | Effect]:
    return {state: states.get(state.value, default) for state in State}


EFFECTS: Final[dict[Verb, dict[State, State | Effect]]] = {
    Verb.CANCEL: _row(
        S.CANCELLING,
        queued=S.CANCELLED,
        paused=S.CANCELLED,
        cancelling=Effect.SAME,
        succeeded=Effect.REFUSED,
        failed=Effect.REFUSED,
        cancelled=Effect.REFUSED,
    ),
    Verb.PAUSE: _row(
        Effect.REFUSED,
        queued=S.PAUSED,
        starting=S.PAUSING,
        running=S.PAUSING,
        recovering=S.PAUSING,
        pausing=Effect.SAME,
        paused=Effect.SAME,
    ),
    Verb.RESUME: _row(Effect.REFUSED, paused=S.QUEUED),
    Verb.RETRY: _row(Effect.REFUSED, failed=S.QUEUED, cancelled=S.QUEUED),
    Verb.STOP: _row(
        Effect.REFUSED,
        queued=S.SUCCEEDED,
        starting=Effect.DRAIN,
        running=Effect.DRAIN,
        recovering=Effect.DRAIN,
        paused=S.SUCCEEDED,
    ),
    Verb.DELETE: _row(Effect.REFUSED, succeeded=Effect.GONE, failed=Effect.GONE, cancelled=Effect.GONE),
    Verb.PATCH_PRIORITY: _row(Effect.EDIT, succeeded=Effect.REFUSED, failed=Effect.REFUSED, cancelled=Effect.REFUSED),
    Verb.PATCH_NOTES: _row(Effect.EDIT),
}
"""The effect of each verb in each state."""

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    S.QUEUED: frozenset({S.STARTING, S.PAUSED, S.CANCELLED, S.SUCCEEDED, S.FAILED}),
    S.STARTING: frozenset(
        {S.RUNNING, S.RECOVERING, S.PAUSING, S.CANCELLING, S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELLED}
    ),
    S.RUNNING: frozenset({S.RECOVERING, S.PAUSING, S.CANCELLING, S.PAUSED, S.SUCCEEDED, S.FAILED, S.CANCELLED}),
    S.RECOVERING: frozenset({S.STARTING, S.PAUSING, S.CANCELLING, S.SUCCEEDED, S.FAILED}),
    S.PAUSING: frozenset({S.PAUSED, S.CANCELLING, S.SUCCEEDED, S.FAILED}),
    S.PAUSED: frozenset({S.QUEUED, S.CANCELLED, S.SUCCEEDED}),
    S.CANCELLING: frozenset({S.CANCELLED, S.SUCCEEDED}),
    S.SUCCEEDED: frozenset({S.QUEUED}),  # only a search that gets more trials
    S.FAILED: frozenset({S.QUEUED}),
    S.CANCELLED: frozenset({S.QUEUED}),
}
"""The changes of state there are."""


CANCELLED: Final = "Cancelled. Retry the job to {continuation}."
PAUSED: Final = "Paused. Resume the job to {continuation}."
"""Messages of jobs that a person ended; `JobKind.continuation` completes them."""

RUN_STATUS: Final = {
    S.SUCCEEDED: "FINISHED",
    S.FAILED: "FAILED",
    S.CANCELLED: "KILLED",
    S.PAUSED: "SCHEDULED",
}
"""Status of a job's MLflow run while no attempt is under way."""


@dataclass(frozen=True)
class Policy:
    """How the controller handles a reason of failure."""

    retried: bool
    charged: bool
    """Whether the failure counts against the spec's `retry.max_failures`."""
    advice: str
    """A sentence for the user: what to do, or what happens next, where `{continuation}` stands for how it continues."""


POLICIES: Final[dict[Reason, Policy]] = {
    Reason.WORKER_FAILED: Policy(True, True, "See the logs of its ranks."),
    Reason.START_FAILED: Policy(True, True, "Check that the trainer is installed on the Ray nodes."),
    Reason.OUT_OF_MEMORY: Policy(True, True, "Lower optimization.micro_batch_size, or use larger nodes."),
    Reason.STORAGE_ERROR: Policy(True, True, "Check the artifact storage and its free space."),
    Reason.DEADLINE_EXCEEDED: Policy(True, True, "Its logs show where it hung."),
    Reason.STALLED: Policy(
        True,
        True,
        "Its logs show what each rank did last: look for a GPU or a network that hangs, or for data that is late. "
        "If single steps take that long, raise RCMAE_STALL_LIMIT_S.",
    ),
    Reason.NODE_LOST: Policy(True, False, "It will {continuation}."),
    Reason.CLUSTER_LOST: Policy(True, False, "It will {continuation}."),
    Reason.PREEMPTED: Policy(True, False, "It will {continuation}."),
    Reason.LOSS_NOT_FINITE: Policy(False, False, "Change the spec and submit it as a new job."),
    Reason.DATA_ERROR: Policy(False, False, "Fix the data that it reads, then retry the job."),
    Reason.SPEC_ERROR: Policy(False, False, "Change the spec and submit it as a new job."),
    Reason.TRIALS_FAILED: Policy(
        False,
        False,
        "Look at the failed trials, then retry the search; raise budget.max_failed to tolerate more failures.",
    ),
}
"""The policy of each reason that can end an attempt."""


def refused_spec(error: SpecError) -> str:
    """The message of a job whose stored spec this version refuses, although another one has accepted it."""
    why = "; ".join(str(problem).rstrip(".") for problem in error.problems)
    return f"This version of rcmae refuses its spec: {why}. {POLICIES[Reason.SPEC_ERROR].advice}"


def transition(session: Session, job: Job, to: State, reason: Reason | None, message: str, actor: str) -> None:
    """Move a job to another state and append the event. Nothing else writes a state.

    ``job`` was read in this transaction, so nobody else can have moved it since. Raises `ValueError` for a transition
    that `TRANSITIONS` does not list.
    """
    before, moment = State(job.state), now()
    if to not in TRANSITIONS[before]:
        raise ValueError(f"a job cannot move from {before} to {to}")
    values: dict[str, object] = {"state": to.value, "reason": reason.value if reason else None, "message": message}
    values["ended_at"] = moment if to.terminal else None
    if to is S.RUNNING and job.started_at is None:
        values["started_at"] = moment
    if to in {S.QUEUED, S.RECOVERING}:
        values["waiting_since"] = moment
    if to is S.QUEUED:  # somebody asked for it: the back-off after earlier failures ends
        values |= {"restarts": 0, "not_before": None}
    _write(job, values)
    session.add(Event(job_id=job.id, time=moment, state=to.value, reason=reason, message=message, actor=actor))
    fields = structlog.contextvars.get_contextvars() | {  # of this job: the transaction may be about others too
        "job_id": job.id,
        "attempt": job.attempts,
        "before": before,
        "state": to,
        "reason": reason,
        "actor": actor,
    }

    def committed(_: Session) -> None:
        counters.TRANSITIONS.labels(before.value, to.value, reason or counters.NONE).inc()
        log.info("job_moved", **fields)

    event.listen(session, "after_commit", committed, once=True)


def edit(session: Session, job: Job, values: Mapping[str, object], message: str, actor: str) -> None:
    """Change columns of a job without moving it to another state, and append the event."""
    _write(job, values)
    if "labels" in values:
        write_labels(session.connection(), job)
    session.add(Event(job_id=job.id, state=job.state, reason=job.reason, message=message, actor=actor))


def delete(job: Job) -> None:
    """Hide a job from the API; the controller then removes its data and its row."""
    _write(job, {"deleted_at": now(), "idempotency_key": None})


def _write(job: Job, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        setattr(job, name, value)


def note(session: Session, job: Job, reason: str | None, message: str, actor: str) -> None:
    """Set the reason and message of a job whose state stays, and append the event; without effect where they are set
    already.
    """
    if (job.reason, job.message) != (reason, message):
        edit(session, job, {"reason": reason, "message": message}, message, actor)


def explain(job: Job, reason: str | None, message: str) -> None:
    """Set the reason and message of a job whose state stays: what it waits for now, which is no part of its history."""
    _write(job, {"reason": reason, "message": message})
