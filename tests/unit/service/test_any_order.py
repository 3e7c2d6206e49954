"""People, the reconciler, Ray, MLflow and the storage in any order: what is always true of jobs, and how they end."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from service_fakes import FakeMlflow, FakeRay, spec_with
from service_world import World
from sqlalchemy import select

from service.adapters.ray_cluster import RayState, Submission
from service.adapters.storage import StorageUnreachable
from service.auth.caller import Caller
from service.auth.scopes import Role
from service.db.database import Database
from service.db.tables import Attempt, Base, Event, Job
from service.http.problems import ApiProblem
from service.jobs import reading, service
from service.jobs.lifecycle import POLICIES, TRANSITIONS, Verb
from service.jobs.listing import Filters
from service.jobs.schemas import PatchBody, ResumeBody, RetryBody
from service.jobs.state import State
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.command import Command
from trainer.protocol.outcome import Outcome, Reason
from trainer.spec.pretrain import PretrainSpec

pytestmark = pytest.mark.both_databases

MAX_FAILURES = 1
CALLERS = [Caller("alice", Role.SUBMITTER), Caller("bob", Role.SUBMITTER), Caller("olga", Role.OPERATOR)]
SPECS = [
    spec_with(retry={"max_failures": MAX_FAILURES}, register_as=None),
    spec_with(retry={"max_failures": MAX_FAILURES}, register_as="digits"),
]
BODIES: dict[Verb, list[ResumeBody | None]] = {
    Verb.RESUME: [None, ResumeBody(resources={"workers": 2, "cpus_per_worker": 1})],
    Verb.RETRY: [None, RetryBody(from_scratch=True), RetryBody(resources={"workers": "auto"})],
}
OUTCOMES = [
    *(Outcome(state="failed", reason=reason, message="It failed.") for reason in POLICIES),
    Outcome(state="succeeded"),
    None,
]
LATER, ENOUGH_ROUNDS = timedelta(hours=1), 60


def allowed(refusals: set[int], call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What a request answers; None where it is refused with one of these statuses."""
    try:
        return call(*args, **named)
    except StorageUnreachable:
        status = 503
    except ApiProblem as problem:
        status = problem.status
    assert status in refusals
    return None


class Process:
    """An attempt as it runs on the cluster, whatever Ray's head knows of it."""

    def __init__(self, job_id: str, number: int) -> None:
        self.job_id, self.number, self.beats = job_id, number, 0


class AnyOrder(RuleBasedStateMachine):
    """A service whose world does anything that it may do."""

    def __init__(self, fresh: Callable[[], Settings]) -> None:
        super().__init__()
        self.settings = fresh()
        self.root = Path(self.settings.artifact_root)
        self.database = Database(self.settings.database_url)
        self.ray, self.mlflow = FakeRay(), FakeMlflow(self.root)
        self.world = World(self.settings, self.database, self.ray, self.mlflow)
        self.processes: dict[str, Process] = {}
        """Those that live, by submission."""
        self.jobs: list[str] = []
        """Those that were not deleted."""
        self.deleted: list[str] = []
        self.ended: dict[str, Any] = {}
        """What is to stay of jobs that have ended."""
        self.runs: dict[str, str] = {}
        self.retried_at: dict[str, int] = {}
        """Attempts that a job had when it was retried."""
        self.forgotten: set[str] = set()
        """Submissions that Ray took and has forgotten; those that it took again since are no more among them."""
        self.showed_life: set[str] = set()
        self.wrong: list[str] = []
        """What went wrong inside the reconciler, which takes no notice of it."""
        self.ray.submit = self.submitted(self.ray.submit)  # type: ignore[method-assign]

    def submitted(self, submit: Callable[..., None]) -> Callable[..., None]:
        """A submission makes a process, once; made again it was forgotten, and never showed life."""

        def call(submission_id: str, request: Any) -> None:
            before = len(self.ray.requests)
            try:
                submit(submission_id, request)
            finally:
                if len(self.ray.requests) > before:
                    earlier = sum(
                        names.submission_id(r.job_id, r.attempt) == submission_id for r in self.ray.requests[:-1]
                    )
                    others = [p.number for p in self.processes.values() if p.job_id == request.job_id]
                    if earlier and submission_id not in self.forgotten:
                        self.wrong.append(f"{submission_id} was submitted twice")
                    if submission_id in self.showed_life:
                        self.wrong.append(f"{submission_id} was submitted again after it had run")
                    if others:
                        self.wrong.append(f"attempts {others} live while {submission_id} starts")
                    self.forgotten.discard(submission_id)
                    self.processes[submission_id] = Process(request.job_id, request.attempt)

        return call

    # --- people -------------------------------------------------------------------------------------------------------

    @initialize()
    def first(self) -> None:
        self.submit(SPECS[0], 0)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(spec=st.sampled_from(SPECS), priority=st.integers(-1, 1))
    def submit(self, spec: dict[str, Any], priority: int) -> None:
        parsed = PretrainSpec.parse(spec | {"priority": priority})
        job, new = service.submit(self.world.app_state, CALLERS[0], parsed, f"key-{len(self.jobs) + len(self.deleted)}")
        assert new
        self.jobs.append(job.id)

    def a_job(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.jobs), label="job")

    @precondition(lambda self: self.jobs)
    @rule(
        data=st.data(),
        verb=st.sampled_from([Verb.CANCEL, Verb.PAUSE, Verb.RESUME, Verb.RETRY, Verb.STOP]),
        caller=st.sampled_from(CALLERS),
    )
    def ask(self, data: st.DataObject, verb: Verb, caller: Caller) -> None:
        job_id, body = self.a_job(data), data.draw(st.sampled_from(BODIES.get(verb, [None])), label="body")
        before = reading.show(self.world.app_state, CALLERS[0], job_id)
        after = allowed({404, 409}, service.apply_verb, self.world.app_state, caller, job_id, verb, body)
        if after is None:
            assert reading.show(self.world.app_state, CALLERS[0], job_id) == before
        elif verb is Verb.RETRY:
            self.retried_at[job_id] = after.attempts
            del self.ended[job_id]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), caller=st.sampled_from(CALLERS), priority=st.integers(-1, 1))
    def patch(self, data: st.DataObject, caller: Caller, priority: int) -> None:
        body = PatchBody(priority=priority, notes=f"now {priority}")
        allowed({404, 409}, service.patch, self.world.app_state, caller, self.a_job(data), body)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.ended)), label="job")
        refusals = set() if self.mlflow.reachable and self.root.exists() else {503}
        if allowed(refusals, service.delete_job, self.world.app_state, CALLERS[0], job_id, with_backbones=True):
            self.jobs.remove(job_id)
            self.deleted.append(job_id)
            del self.ended[job_id]

    # --- the controller -----------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def rounds(self, count: int) -> None:
        self.world.rounds(count)

    @rule(gently=st.booleans())
    def restart(self, gently: bool) -> None:
        """By another process; the one before gives its lease back, or dies, or only thinks that it lives."""
        before = self.world
        if gently:
            before.context.lease.release()
        self.world = World(self.settings, self.database, self.ray, self.mlflow)
        assert self.world.context.lease.held()
        if not gently and self.jobs:
            job_id = self.jobs[0]
            with pytest.raises(Exception, match="another process"), before.context.write():
                raise AssertionError(f"two controllers write {job_id}")

    # --- the cluster --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        self.show_life(data.draw(st.sampled_from(sorted(self.processes)), label="attempt"))

    def show_life(self, identity: str) -> None:
        process = self.processes[identity]
        process.beats += 1
        if self.ray.jobs.get(identity) is RayState.PENDING:
            self.ray.jobs[identity] = RayState.RUNNING
        if self.mlflow.reachable:
            self.mlflow.beat(process.job_id, process.number, time.time())
            self.showed_life.add(identity)

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def end(self, data: st.DataObject, outcome: Outcome | None) -> None:
        identity = data.draw(st.sampled_from(sorted(self.processes)), label="attempt")
        if self.root.exists():
            self.leave(identity, outcome)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.processes)), label="attempt")
        if self.root.exists():
            self.do_as_told(identity)

    def do_as_told(self, identity: str) -> bool:
        """End as the newest command of the run says, or as Ray was asked."""
        process = self.processes[identity]
        text = self.mlflow.runs[f"run-{process.job_id}"].tags.get(names.TAG_COMMAND)
        command = Command.model_validate_json(text) if text else None
        told = command is not None and command.attempt == process.number
        if command and told:
            self.leave(identity, Outcome(state="cancelled" if command.action == "cancel" else "paused"))
        elif identity in self.ray.stopped:
            self.leave(identity, Outcome(state="failed", reason=Reason.PREEMPTED, message="Stopped."))
        return identity not in self.processes

    def leave(self, identity: str, outcome: Outcome | None) -> None:
        """The process ends; Ray notes it unless it has forgotten it."""
        process = self.processes.pop(identity)
        if outcome:
            run = self.mlflow.runs[f"run-{process.job_id}"]
            file = Path(run.artifact_uri) / names.outcome_file(process.number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(outcome.model_dump_json())
            self.showed_life.add(identity)
            if outcome.state == "succeeded":
                self.register(process.job_id)
        if identity in self.ray.jobs:
            fine = outcome is not None and outcome.state != "failed"
            self.ray.jobs[identity] = RayState.SUCCEEDED if fine else RayState.FAILED

    def register(self, job_id: str) -> None:
        spec = reading.show(self.world.app_state, CALLERS[0], job_id).spec
        if spec["register_as"] and self.mlflow.reachable and not self.mlflow.versions_of_job("digits", job_id):
            number = len(self.mlflow.models) + 1
            folder = self.root / "models" / f"m-{job_id}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights").write_bytes(b"w")
            self.mlflow.register("digits", number, job_id, folder)

    @rule(kept=st.booleans())
    def head_restarts(self, kept: bool) -> None:
        """Ray forgets everything; processes that have begun may live on for a while."""
        self.forgotten |= set(self.ray.jobs)
        self.ray.jobs.clear()
        self.ray.records.clear()
        lost = [i for i, process in self.processes.items() if not kept or process.beats == 0]
        for identity in lost:
            del self.processes[identity]

    @rule(reachable=st.booleans())
    def ray_comes_or_goes(self, reachable: bool) -> None:
        self.ray.reachable = reachable

    @rule()
    def an_answer_is_lost(self) -> None:
        self.ray.answers_lost = 1

    @rule(reachable=st.booleans())
    def mlflow_comes_or_goes(self, reachable: bool) -> None:
        self.mlflow.reachable = reachable

    @rule(reachable=st.booleans())
    def storage_comes_or_goes(self, reachable: bool) -> None:
        away = self.root.with_name("unmounted")
        if reachable and away.exists():
            away.rename(self.root)
        elif not reachable and self.root.exists():
            self.root.rename(away)

    # --- time ---------------------------------------------------------------------------------------------------------

    @rule()
    def back_off_passes(self) -> None:
        with self.database.session() as session:
            for job in session.scalars(select(Job).where(Job.not_before.is_not(None))):
                job.not_before = datetime(2020, 1, 1, tzinfo=UTC)

    @rule()
    def nobody_shows_life_for_an_hour(self) -> None:
        """Processes that Ray has forgotten end; those that it knows may hang."""
        for identity in [i for i in self.processes if i not in self.ray.jobs]:
            del self.processes[identity]
        with self.database.session() as session:
            for attempt in session.scalars(select(Attempt).where(Attempt.ended_at.is_(None))):
                attempt.heartbeat_at = attempt.heartbeat_at and attempt.heartbeat_at - LATER
                attempt.commanded_at = attempt.commanded_at and attempt.commanded_at - LATER
                attempt.stop_asked_at = attempt.stop_asked_at and attempt.stop_asked_at - LATER
                attempt.started_at -= LATER
        self.world.nothing_changes(LATER.total_seconds())
        self.world.context.dependencies.mlflow._since = time.monotonic() - 1e6

    @rule()
    def ray_notes_ends(self) -> None:
        """Its records of what has ended are old enough to be swept."""
        ended = {i: state for i, state in self.ray.jobs.items() if state.ended}
        self.ray.records |= {i: Submission(state, datetime(2020, 1, 1, tzinfo=UTC)) for i, state in ended.items()}

    # --- always -------------------------------------------------------------------------------------------------------

    @invariant()
    def every_job_is_sound(self) -> None:
        assert not self.wrong
        with self.database.read() as session:
            for job in session.scalars(select(Job).where(Job.id.in_(self.jobs))):
                events = list(session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.id)))
                query = select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)
                self.states_follow_the_table(job, events)
                self.attempts_come_one_by_one(job, list(session.scalars(query)))
                self.a_job_has_one_run(job)
                self.what_has_ended_stays(job)

    def states_follow_the_table(self, job: Job, events: list[Event]) -> None:
        states = [State(event.state) for event in events]
        assert states[0] is State.QUEUED
        for before, after in itertools.pairwise(states):
            assert after == before or after in TRANSITIONS[before], states
        assert events[-1].state == job.state
        assert job.state == State.QUEUED or events[-1].reason == job.reason, "why it waits in the queue is no event"

    def attempts_come_one_by_one(self, job: Job, attempts: list[Attempt]) -> None:
        assert [attempt.number for attempt in attempts] == list(range(1, job.attempts + 1))
        assert len({attempt.submission_id for attempt in attempts}) == len(attempts)
        for before, after in itertools.pairwise(attempts):
            assert before.ended_at is not None, "two attempts at a time"
            assert before.ended_at <= after.started_at + LATER * 100
        live = [attempt for attempt in attempts if attempt.ended_at is None]
        assert bool(live) <= (job.state in {"starting", "running", "pausing", "cancelling"}), job.state
        if job.state in {"starting", "running"}:
            assert live
        since = self.retried_at.get(job.id, 0)
        ends = [(a.state, a.reason) for a in attempts if a.number > since and a.ended_at]
        # A hung attempt that is told to leave may do so as if it had been cancelled.
        charged = [
            state for state, reason in ends if state == "cancelled" or (reason and POLICIES[Reason(reason)].charged)
        ]
        assert job.failures <= min(len(charged), MAX_FAILURES + 1), ends

    def a_job_has_one_run(self, job: Job) -> None:
        if job.run_id:
            assert self.runs.setdefault(job.id, job.run_id) == job.run_id
            if job.state in {"starting", "running", "recovering"}:
                assert self.mlflow.runs[job.run_id].status == "RUNNING"

    def what_has_ended_stays(self, job: Job) -> None:
        if State(job.state).terminal:
            stays = (job.state, job.reason, job.message, job.ended_at, job.result, job.attempts, job.failures)
            assert self.ended.setdefault(job.id, stays) == stays
        else:
            assert job.id not in self.ended

    @invariant()
    def deleted_jobs_are_seen_nowhere(self) -> None:
        listed = {job.id for job in reading.listing(self.world.app_state, Filters(), 100, None).items}
        assert listed == set(self.jobs)
        for job_id in self.deleted[-1:]:
            for read in (reading.show, reading.attempts):
                with pytest.raises(ApiProblem, match="there is no job"):
                    read(self.world.app_state, CALLERS[0], job_id)

    # --- in the end ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.everything_ends_well()
        finally:
            self.database.close()

    def everything_ends_well(self) -> None:
        self.ray.reachable = self.mlflow.reachable = True
        self.storage_comes_or_goes(reachable=True)
        for _ in range(ENOUGH_ROUNDS):
            self.back_off_passes()
            self.world.rounds()
            for identity in list(self.processes):
                if not self.do_as_told(identity):
                    if self.ray.jobs.get(identity) is RayState.RUNNING:
                        self.leave(identity, Outcome(state="succeeded"))
                    else:
                        self.show_life(identity)
            self.nobody_shows_life_for_an_hour()
            states = [reading.show(self.world.app_state, CALLERS[0], job_id).state for job_id in self.jobs]
            if all(state.terminal or state is State.PAUSED for state in states) and not self.remains():
                break
        assert all(state.terminal or state is State.PAUSED for state in states), states
        assert not self.remains()
        self.every_job_is_sound()
        self.no_run_is_left_open()

    def remains(self) -> list[str]:
        """What is left of deleted jobs."""
        with self.database.read() as session:
            left = [
                *session.scalars(select(Job.id).where(Job.id.in_(self.deleted))),
                *session.scalars(select(Event.job_id).where(Event.job_id.in_(self.deleted))),
                *session.scalars(select(Attempt.job_id).where(Attempt.job_id.in_(self.deleted))),
            ]
        everywhere = [*self.mlflow.runs, *self.ray.jobs, *(str(path) for path in self.root.rglob("*"))]
        everywhere += [version.tags[names.TAG_JOB] for version in self.mlflow.registered]
        return left + [name for name in everywhere if any(job_id in name for job_id in self.deleted)]

    def no_run_is_left_open(self) -> None:
        assert {run.status for run in self.mlflow.runs.values()} <= {"FINISHED", "FAILED", "KILLED", "SCHEDULED"}


def test_jobs_stay_sound_whatever_happens_and_end_well(database_url, tmp_path):
    count = iter(range(1_000_000))
    sqlite = database_url.startswith("sqlite")

    def fresh() -> Settings:
        folder = tmp_path / f"try-{next(count)}"
        root = folder / "artifacts"
        root.mkdir(parents=True)
        url = database_url
        if sqlite:
            shutil.copy(database_url.removeprefix("sqlite:///"), folder / "rcmae.db")
            url = f"sqlite:///{folder}/rcmae.db"
        else:
            database = Database(url)
            with database.session() as session:
                for table in reversed(Base.metadata.sorted_tables):
                    session.execute(table.delete())
            database.close()
        return Settings(
            database_url=url, artifact_root=str(root), reconcile=False, unfinished_kept_s=0, sweep_interval_s=1e-6
        )

    run_state_machine_as_test(
        lambda: AnyOrder(fresh),
        settings=settings(
            max_examples=30 if sqlite else 6,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to make a failure smaller takes minutes
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
