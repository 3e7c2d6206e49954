"""Starts attempts: a job that the scheduler admits gets a run, an attempt in the database, and then a Ray job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from service.adapters.ray_cluster import Submission
from service.adapters.storage import Artifacts, StorageUnreachable
from service.context.app_state import AppState
from service.controller.context import ACTOR, ControllerContext, StaleState, isolated_job
from service.controller.dependencies import Unavailable
from service.controller.kind import NOTHING, CannotStart, Reads
from service.db.tables import Attempt, Job
from service.jobs import repository
from service.jobs.lifecycle import refused_spec, transition
from service.jobs.queueing import running_entry, waiting_entry
from service.jobs.state import State
from service.queue.scheduler import Limits, Running, Waiting, admit
from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.protocol.parameters import parameters
from trainer.protocol.request import AttemptRequest
from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import JobSpec, parse_spec
from trainer.spec.plan import gang

log = structlog.get_logger()

RUN_REPLACED = (
    "Its MLflow run was removed, and a new one takes its place: the attempt resumes from the job's checkpoints, or "
    "starts over if they were removed too."
)


@dataclass(frozen=True)
class _Known:
    """A waiting job as it was at one revision of its row."""

    revision: int
    job: Job
    """Its reason and message are those of the row, also after the loop has changed them."""
    entry: Waiting | None
    """For the scheduler; None where its spec is no longer valid."""


class Starts:
    """Gives waiting jobs attempts. What it has read and decided it remembers until something changes."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context
        self._limits = Limits.of(context.app.settings)
        self._known: dict[str, _Known] = {}
        """The jobs that wait now."""
        self._shape: ClusterShape | None = None
        """The cluster that their specs are resolved for."""
        self._running: dict[tuple[str, int], Running | None] = {}
        """What live attempts hold, without their nodes, which change; None where a spec cannot be read."""
        self._decided: object = None
        """What the last decisions were made of, as long as they hold."""
        self._holds_until: datetime | None = None

    def run(
        self,
        moment: datetime,
        live: Sequence[tuple[Job, Attempt | None]],
        waiting: Mapping[str, int],
        records: Mapping[str, Submission] | None,
    ) -> None:
        """Give every job that waits at this moment an attempt, or a message that says why it waits.

        ``waiting`` has the revisions of their rows, ``records`` Ray's submissions: None where it is unavailable.
        """
        if not waiting:  # as in most rounds
            self._known.clear()
            self._decided = None
            return
        try:
            shape, placements = self._cluster(records)
        except Unavailable as error:
            self._decided = None
            self._read(waiting, self._shape)
            text = f"Waits for the cluster: {error}."
            self._explain([(known, None, text) for known in self._known.values()])
            return
        taken = self._taken(live, placements)
        decided = (dict(waiting), shape, taken)
        if decided == self._decided and (self._holds_until is None or moment < self._holds_until):
            return
        self._read(waiting, shape)
        entries = [known.entry for known in self._known.values() if known.entry]
        admissions = admit(entries, taken, shape, moment, self._limits)
        self._decided = None
        explained = [(self._known[a.job_id], a.reason, a.message) for a in admissions if not a.start]
        self._explain([*explained, *self._refused()])
        starting = [admission for admission in admissions if admission.start]
        for admission in starting:
            known = self._known[admission.job_id]
            with isolated_job(known.job):
                self._start(known, admission.message)
        if not starting:
            self._decided, self._holds_until = decided, holds_until(entries, moment, self._limits)

    def _cluster(self, records: Mapping[str, Submission] | None) -> tuple[ClusterShape, dict[str, list[str]]]:
        with self._context.dependencies.ray.call():
            return self._context.app.ray.shape(), self._context.app.ray.placements(records)

    def _taken(
        self, live: Sequence[tuple[Job, Attempt | None]], placements: Mapping[str, Sequence[str]]
    ) -> list[Running]:
        """What live attempts hold. An attempt's spec is read once."""
        held: dict[tuple[str, int], Running | None] = {}
        taken = []
        for job, attempt in live:
            if attempt is None or attempt.ended_at is not None:
                continue
            key = (job.id, attempt.number)
            entry = held[key] = self._running[key] if key in self._running else running_entry(job)
            if entry:
                taken.append(replace(entry, nodes=tuple(placements.get(attempt.submission_id, ()))))
        self._running = held
        return taken

    def _read(self, waiting: Mapping[str, int], shape: ClusterShape | None) -> None:
        """Read the rows that have changed, and resolve specs anew where the cluster has; None before it was seen."""
        kinds = self._context.kinds
        if shape is not None and shape != self._shape:
            for job_id, known in self._known.items():
                self._known[job_id] = replace(known, entry=waiting_entry(known.job, shape, kinds))
            self._shape = shape
        same = {id_: k for id_, k in self._known.items() if waiting.get(id_) == k.revision}
        with self._context.app.database.read() as session:
            for job in repository.waiting_jobs(session, [job_id for job_id in waiting if job_id not in same]):
                entry = waiting_entry(job, shape, kinds) if shape is not None else None
                same[job.id] = _Known(job.revision, job, entry)
        self._known = same

    def _explain(self, explained: Sequence[tuple[_Known, Reason | None, str]]) -> None:
        """Say why jobs wait, in one transaction; without effect where their rows say so already.

        The reason applies to queued jobs; recovering ones keep theirs.
        """
        changed = []
        for known, reason, message in explained:
            job = known.job
            said = (reason if job.state == State.QUEUED else job.reason, message)
            if said != (job.reason, job.message):
                changed.append(repository.Explanation(job.id, known.revision, *said))
        if not changed:
            return
        with self._context.write() as session:
            repository.explain_waiting(session, changed)
        for each in changed:
            job = self._known[each.job_id].job
            job.reason, job.message = each.reason, each.message

    def _refused(self) -> list[tuple[_Known, Reason | None, str]]:
        """Why jobs wait whose stored specs this version refuses. They are not failed: another version may take them."""
        refused: list[tuple[_Known, Reason | None, str]] = []
        for known in self._known.values():
            try:
                if known.entry is None:
                    self._context.kinds[known.job.kind].spec_to_resolve(known.job)
            except SpecError as error:
                refused.append((known, Reason.SPEC_ERROR, f"Cannot start. {refused_spec(error)}"))
        return refused

    def _start(self, known: _Known, explanation: str) -> None:
        if known.entry:
            _start_or_fail(self._context, known.job, known.entry.spec, explanation)


def holds_until(waiting: Sequence[Waiting], moment: datetime, limits: Limits) -> datetime | None:
    """When the scheduler may decide otherwise although nothing has changed; None for never."""
    passing = timedelta(seconds=limits.passing_s)
    ends = [end for job in waiting for end in (job.since + passing, job.not_before) if end and end > moment]
    return min(ends, default=None)


def _start_or_fail(context: ControllerContext, loaded: Job, spec: JobSpec, explanation: str) -> None:
    """Start an attempt; a job that cannot start any more fails."""
    try:
        _start(context, loaded, spec, explanation)
    except CannotStart as error:
        with context.write() as session:
            transition(session, _unchanged(session, loaded), State.FAILED, error.reason, str(error), ACTOR)


def _unchanged(session: Session, loaded: Job) -> Job:
    """The row of a waiting job; raises `StaleState` where a request has ended or changed it."""
    job = session.get(Job, loaded.id)
    if job is None or job.revision != loaded.revision:
        raise StaleState(f"job {loaded.id} is {job.state if job else 'removed'} now")
    return job


def _start(context: ControllerContext, loaded: Job, spec: JobSpec, explanation: str) -> None:
    """Start the next attempt of a job that was admitted with its resolved ``spec``; raises `CannotStart`."""
    number = loaded.attempts + 1
    kind = context.kinds[loaded.kind]
    with context.app.database.read() as session:
        kind.reads(session, spec)
    kind.prepare(context, loaded, spec)
    with context.explain_waiting(loaded, "Waits for MLflow, which stores the job's run:"):
        run_id, artifact_uri = _prepare_run(context, loaded, spec, number)
    if loaded.run_id not in {None, run_id}:
        explanation = f"{explanation} {RUN_REPLACED}"
        log.warning("run_replaced", job_id=loaded.id, attempt=number, removed=loaded.run_id, run_id=run_id)
    with context.write() as session:
        job = _unchanged(session, loaded)
        job.resolved_spec = spec.model_dump(mode="json")
        job.run_id, job.artifact_uri, job.attempts = run_id, loaded.artifact_uri or artifact_uri, number
        identity = names.submission_id(job.id, number)
        needs = gang(spec)
        resources = {"workers": needs.workers, "gpus": needs.all_gpus}
        session.add(Attempt(job_id=job.id, number=number, submission_id=identity, state="submitted", **resources))
        transition(session, job, State.STARTING, None, f"Attempt {number} starts. {explanation}", ACTOR)
        request = attempt_request(context.app, job, number, kind.reads(session, spec))
    with context.dependencies.ray.call():
        context.app.ray.submit(identity, request)
    log.info("attempt_submitted", job_id=loaded.id, attempt=number)


def _prepare_run(context: ControllerContext, job: Job, spec: JobSpec, number: int) -> tuple[str, str]:
    """Open the job's run and bind it to this attempt: an earlier attempt that still lives reads that and ends.

    Raises `CannotStart` for a run whose files lie outside the artifact root.
    """
    kind = context.kinds[job.kind]
    tags = {names.TAG_SPEC: spec.sha256(), names.TAG_USER: job.owner, **kind.run_tags(spec)}
    params = parameters(spec.model_dump(mode="json"))
    with context.opening_runs, context.dependencies.mlflow.call():
        run_id, artifact_uri = context.app.mlflow.make_run(job.id, job.name, tags, job.run_id, params)
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


def attempt_request(app_state: AppState, job: Job, attempt: int, reads: Reads = NOTHING) -> AttemptRequest:
    """The request that an attempt starts with; ``reads``: what it reads of other jobs."""
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
        **reads._asdict(),
        spec=parse_spec(job.run_spec),
    )
