"""Work that takes long: several workers, locks that expire, and trouble that stays with what it is about."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from live import poll
from service_fakes import FakeRun, job_of, spec_with
from service_world import World
from sqlalchemy import select, update
from test_search_controller import SEARCH, begin, complete, run_of

from service.adapters.storage import Artifacts, StorageRefused, StorageUnreachable
from service.controller import queue
from service.controller.context import CLAIM
from service.controller.lease import LeaseLost
from service.db.tables import Job, WorkItem, now
from service.jobs import repository, work
from service.jobs.lifecycle import Verb, delete
from service.jobs.work import Work
from trainer.protocol.outcome import Outcome, Reason

pytestmark = pytest.mark.both_databases

LIMIT_S = 120


def ended(world: World) -> str:
    """A job that has ended, with a file."""
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR))
    world.rounds()
    return job_id


def deleted(world: World, job_id: str) -> str:
    """As somebody deletes it."""
    with world.database.session() as session:
        delete(repository.get(session, job_id))
    return job_id


def there(world: World, job_id: str) -> bool:
    with world.database.read() as session:
        return session.get(Job, job_id) is not None


def items(world: World, kind: Work) -> list[WorkItem]:
    with world.database.read() as session:
        return list(session.scalars(select(WorkItem).where(WorkItem.kind == kind.value)))


def holding(monkeypatch: pytest.MonkeyPatch, job_id: str) -> tuple[threading.Event, threading.Event]:
    """Makes the deletion of a job's files last until the second event is set; the first one says that it has begun."""
    entered, done, original = threading.Event(), threading.Event(), Artifacts.delete

    def slow(artifacts: Artifacts, folder: str) -> None:
        if job_id in folder:
            entered.set()
            assert done.wait(LIMIT_S)
        original(artifacts, folder)

    monkeypatch.setattr(Artifacts, "delete", slow)
    return entered, done


def test_one_slow_removal_holds_up_no_other_and_no_end_of_a_job(world, monkeypatch):
    slow, quick, running = ended(world), ended(world), world.running()
    entered, done = holding(monkeypatch, slow)
    deleted(world, slow)
    world.reconciler.start()
    try:
        assert entered.wait(LIMIT_S)
        deleted(world, quick)
        world.end_attempt(running, Outcome(state="failed", reason=Reason.DATA_ERROR))
        poll(lambda: (there(world, quick), world.state(running)), lambda seen: seen == (False, "failed"), LIMIT_S)
        assert there(world, slow)
        done.set()
        poll(lambda: there(world, slow), lambda still: not still, LIMIT_S)
    finally:
        done.set()
        world.reconciler.stop()


def test_what_a_dead_process_leaves_is_taken_up_once_its_lock_has_expired(world, settings, ray, mlflow):
    job_id = deleted(world, ended(world))
    world.reconciler.removals.fill()
    (claimed,) = world.reconciler.removals._claim({Work.REMOVE_JOB: 1}, now())
    assert claimed.target == job_id
    world.context.lease._mine = False  # killed, with the work in its hands
    after = World(settings, world.database, ray, mlflow)
    after.rounds(2)
    assert there(after, job_id), "its lock still holds"
    with after.database.session() as session:
        session.execute(update(WorkItem).values(lock_expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    after.rounds()
    assert not there(after, job_id)
    assert items(after, Work.REMOVE_JOB) == []


def test_a_worker_whose_lock_was_taken_over_changes_nothing_any_more(world):
    """Of this same process: it hung for so long that its lock had expired."""
    job_id = deleted(world, ended(world))
    folder = Path(job_of_deleted(world, job_id).artifact_uri)
    world.reconciler.removals.fill()
    (first,) = world.reconciler.removals._claim({Work.REMOVE_JOB: 1}, now())
    with world.database.session() as session:
        session.execute(update(WorkItem).values(lock_expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    (second,) = world.reconciler.removals._claim({Work.REMOVE_JOB: 1}, now())
    reset = CLAIM.set(first.token)
    try:
        with pytest.raises(LeaseLost, match="another worker"):
            world.context.delete_files(job_id, str(folder))
        with pytest.raises(LeaseLost, match="another worker"), world.context.write():
            pytest.fail("it may not write")
    finally:
        CLAIM.reset(reset)
    assert folder.exists()
    world.reconciler.removals._work_on(second)
    assert not folder.exists()
    assert not there(world, job_id)


def job_of_deleted(world: World, job_id: str) -> Job:
    with world.database.read() as session:
        job = session.get(Job, job_id)
        assert job is not None
        return job


def test_a_lock_lasts_as_long_as_its_work(world, monkeypatch):
    job_id = ended(world)
    entered, done = holding(monkeypatch, job_id)
    monkeypatch.setattr(work, "LOCK_S", 3.0)
    monkeypatch.setattr(queue, "RENEW_EVERY_S", 0.0)
    deleted(world, job_id)
    world.reconciler.start()
    try:
        assert entered.wait(LIMIT_S)
        (before,) = items(world, Work.REMOVE_JOB)
        (after,) = poll(
            lambda: items(world, Work.REMOVE_JOB),
            lambda found: found[0].lock_expires_at > before.lock_expires_at,
            LIMIT_S,
        )
        assert after.lock_token == before.lock_token
    finally:
        done.set()
        world.reconciler.stop()


def test_a_controller_that_stops_gives_back_what_it_has_not_done(world, settings, ray, mlflow, monkeypatch):
    job_id = ended(world)
    entered, done = holding(monkeypatch, job_id)
    monkeypatch.setattr("service.controller.loop.STOP_S", 0.5)
    deleted(world, job_id)
    world.reconciler.start()
    assert entered.wait(LIMIT_S)
    world.reconciler.stop()
    (item,) = items(world, Work.REMOVE_JOB)
    assert item.lock_token is None
    done.set()
    poll(world.reconciler.removals._tokens, lambda left: not left, LIMIT_S)
    monkeypatch.undo()
    after = World(settings, world.database, ray, mlflow)
    after.rounds()
    assert not there(after, job_id)


@pytest.mark.parametrize("clock", ["set back by a day", "set forward by a day, or suspended for one"])
def test_a_clock_that_is_set_takes_no_work_from_those_who_do_it(world, monkeypatch, clock):
    """A suspended laptop sees its clock jump too, and renews the lock only later: its own seconds did not pass."""
    job_id = ended(world)
    entered, done = holding(monkeypatch, job_id)
    deleted(world, job_id)
    removals = world.reconciler.removals
    removals.run()
    assert entered.wait(LIMIT_S)
    try:
        (before,) = items(world, Work.REMOVE_JOB)
        day = timedelta(days=1)
        with world.database.session() as session:
            expiry = before.lock_expires_at + (day if clock == "set back by a day" else -day)
            session.execute(update(WorkItem).where(WorkItem.target == job_id).values(lock_expires_at=expiry))
        assert removals._claim({Work.REMOVE_JOB: 1}, now()) == []
        assert items(world, Work.REMOVE_JOB)[0].lock_token == before.lock_token
    finally:
        done.set()
        poll(removals._tokens, lambda left: not left, LIMIT_S)
    assert not there(world, job_id)


def test_a_clock_that_is_set_back_leaves_no_work_for_tomorrow(world, settings, ray, mlflow):
    """What was to wait for seconds, or was locked for seconds, by a clock that was a day ahead."""
    first, second = world.running(), world.running()
    for job_id in (first, second):
        world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR))
    world.reconciler.round()
    (claimed,) = world.reconciler.work._claim({Work.ATTEMPT: 1}, now())
    tomorrow = now() + timedelta(days=1)
    with world.database.session() as session:
        mine = WorkItem.target == claimed.target
        session.execute(update(WorkItem).where(mine).values(lock_expires_at=tomorrow))
        session.execute(update(WorkItem).where(~mine, WorkItem.kind == "attempt").values(due_at=tomorrow))
    world.context.lease._mine = False  # it ended with its work in its hands
    after = World(settings, world.database, ray, mlflow)
    after.reconciler.work.run_all()
    assert (after.state(first), after.state(second)) == ("failed", "failed")


def hanging(part: object, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Semaphore, threading.Event]:
    """Makes all calls of a method last until the event is set; the semaphore counts them."""
    entered, done, original = threading.Semaphore(0), threading.Event(), getattr(part, name)

    def slow(*given: Any) -> Any:
        entered.release()
        assert done.wait(LIMIT_S)
        return original(*given)

    monkeypatch.setattr(part, name, slow)
    return entered, done


def test_removals_that_hang_hold_up_no_other_kind_of_work(world, monkeypatch):
    jobs = [ended(world) for _ in range(queue.THREADS + 1)]
    entered, done = hanging(world.mlflow, "delete_run", monkeypatch)
    for job_id in jobs:
        deleted(world, job_id)
    world.mlflow.runs["run-job-gone"] = FakeRun("/nowhere", {}, started_at=datetime(2025, 6, 1, tzinfo=UTC))
    world.reconciler.start()
    try:
        for _ in range(queue.THREADS):
            assert entered.acquire(timeout=LIMIT_S)
        with world.database.session() as session:
            session.execute(update(WorkItem).where(WorkItem.kind == "sweep_runs").values(due_at=now()))
        world.mlflow.runs["run-job-gone"].status = "RUNNING"
        poll(lambda: world.mlflow.runs["run-job-gone"].status, lambda status: status == "KILLED", LIMIT_S)
        assert all(there(world, job_id) for job_id in jobs)
    finally:
        done.set()
        world.reconciler.stop()


def test_studies_that_hang_hold_up_no_end_of_an_attempt(world, monkeypatch):
    world.ray.cpus = 40
    searches = [world.running(spec=SEARCH) for _ in range(queue.THREADS)]
    other = world.running()
    entered, done = hanging(world.studies, "trials", monkeypatch)
    world.reconciler.start()
    try:
        for _ in searches:
            assert entered.acquire(timeout=LIMIT_S)
        world.end_attempt(other, Outcome(state="failed", reason=Reason.DATA_ERROR))
        poll(lambda: world.state(other), lambda state: state == "failed", LIMIT_S)
    finally:
        done.set()
        world.reconciler.stop()


# --- trouble ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes the removal of folders whose path has this in it fail, as a disk does."""

    def refuse(part: str, number: int) -> None:
        original = LocalFileSystem.rm

        def rm(fs: LocalFileSystem, path: str, *given: Any, **named: Any) -> Any:
            if part in path:
                raise OSError(number, "it is refused", path)
            return original(fs, path, *given, **named)

        monkeypatch.setattr(LocalFileSystem, "rm", rm)

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY])
def test_a_folder_that_cannot_be_removed_concerns_its_own_job_alone(world, refusing, monkeypatch, number):
    stuck, other, running = ended(world), ended(world), world.running()
    refusing(stuck, number)
    for job_id in (stuck, other):
        deleted(world, job_id)
    world.end_attempt(running, Outcome(state="failed", reason=Reason.DATA_ERROR))
    world.rounds(2)
    assert (there(world, stuck), there(world, other), world.state(running)) == (True, False, "failed")
    assert world.context.dependencies.storage.error is None
    (item,) = items(world, Work.REMOVE_JOB)
    assert item.target == stuck
    assert f"run-{stuck}" in item.message
    assert item.failures == 2
    monkeypatch.undo()
    world.rounds()
    assert not there(world, stuck)


def test_a_disk_that_is_away_is_no_refusal(root, refusing):
    (root / "1" / "a").mkdir(parents=True)
    refusing("/1/", errno.EIO)
    with pytest.raises(StorageUnreachable) as raised:
        Artifacts(str(root)).delete(str(root / "1" / "a"))
    assert not isinstance(raised.value, StorageRefused)


def test_failures_are_tried_again_after_longer_and_longer_pauses(world, refusing):
    stuck = ended(world)
    refusing(stuck, errno.EACCES)
    deleted(world, stuck)
    pauses = []
    for _ in range(8):
        world.rounds()
        (item,) = items(world, Work.REMOVE_JOB)
        pauses.append(item.due_at > now())
    assert item.failures == 8
    assert pauses[-1]


def test_a_removal_in_pieces_that_fails_again_and_again_pauses_for_longer(world, refusing, monkeypatch):
    monkeypatch.setattr(queue, "SLICE_S", 0.0)
    search = search_of(world, 2)
    for number in range(2):
        (Path(world.mlflow.runs[run_of(search, number)].artifact_uri) / "weights").write_bytes(b"1")
    refusing("trial", errno.EACCES)
    deleted(world, search)
    seen = []
    for _ in range(9):
        world.rounds()
        (item,) = items(world, Work.REMOVE_JOB)
        seen.append(item.failures)
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 3]


# --- searches ---------------------------------------------------------------------------------------------------------


def search_of(world: World, trials: int) -> str:
    job_id = world.running(spec=SEARCH | {"budget": {"trials": trials, "concurrency": 1}})
    for number in range(trials):
        complete(world, job_id, 0.1 * number)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    return job_id


def test_a_search_is_removed_in_pieces_between_which_others_have_their_turn(world, monkeypatch):
    monkeypatch.setattr(queue, "SLICE_S", 0.0)
    search, single = search_of(world, 4), ended(world)
    for job_id in (search, single):
        deleted(world, job_id)
    left = []
    for _ in range(6):
        world.reconciler.removals.run_all((Work.REMOVE_JOB,))
        left.append((sum(run_of(search, n) in world.mlflow.runs for n in range(4)), there(world, search)))
        assert not there(world, single)
    assert left == [(3, True), (2, True), (1, True), (0, True), (0, False), (0, False)]
    assert world.studies.study(search) is None


def test_a_trial_whose_files_cannot_be_removed_keeps_no_other_from_going(world, refusing, monkeypatch):
    monkeypatch.setattr(queue, "SLICE_S", 0.0)
    search = search_of(world, 3)
    for number in range(3):
        (Path(world.mlflow.runs[run_of(search, number)].artifact_uri) / "weights").write_bytes(b"1")
    refusing(run_of(search, 1), errno.EACCES)
    deleted(world, search)
    world.rounds(5)
    assert [run_of(search, number) in world.mlflow.runs for number in range(3)] == [False, True, False]
    assert there(world, search)
    (item,) = items(world, Work.REMOVE_JOB)
    assert run_of(search, 1) in item.message
    monkeypatch.undo()
    world.rounds(3)
    assert not there(world, search)


def test_a_round_reads_no_study(world, monkeypatch):
    """It takes time with thousands of trials; a worker reads it."""
    job_id = world.running(spec=SEARCH)
    complete(world, job_id, 0.5)

    def fail(*_: object) -> None:
        pytest.fail("the loop reads a study")

    for name in ("study", "trials", "seconds"):
        monkeypatch.setattr(world.studies, name, fail)
    world.reconciler.round()
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.reconciler.round()
    monkeypatch.undo()
    world.rounds()
    assert world.state(job_id) == "succeeded"
    assert job_of(world.database, job_id).progress["trials"]["complete"] == 1
    assert items(world, Work.TRIALS) == [] or world.rounds() is None
    assert items(world, Work.TRIALS) == []


def test_what_was_read_of_a_search_before_its_end_does_not_replace_its_final_progress(world):
    job_id = world.running(spec=SEARCH)
    begin(world, job_id)
    seconds, ended_meanwhile = world.studies.seconds, []

    def meanwhile(search: str) -> float:
        """The trials have been read: now a second worker ends the search."""
        if not ended_meanwhile:
            ended_meanwhile.append(True)
            world.verb(job_id, Verb.CANCEL)
            world.end_attempt(job_id, Outcome(state="cancelled"))
            world.reconciler._attempts.look_closely(job_id)
            assert world.state(job_id) == "cancelled"
        return seconds(search)

    world.studies.seconds = meanwhile
    assert world.reconciler._attempts.read_trials(queue.Task(job_id, "", "")) is None
    assert ended_meanwhile
    assert job_of(world.database, job_id).progress["trials"]["running"] == 0


def test_a_search_that_ends_again_while_its_first_end_is_settled_is_settled_again(world):
    job_id = world.running(spec=SEARCH)
    complete(world, job_id, 0.5)
    world.verb(job_id, Verb.PAUSE)
    world.rounds()
    world.end_attempt(job_id, Outcome(state="paused"))
    world.rounds()
    world.verb(job_id, Verb.CANCEL)
    (first,) = world.reconciler.work._claim({Work.SETTLE: 1}, now())
    world.verb(job_id, Verb.RETRY)
    world.verb(job_id, Verb.CANCEL)
    world.reconciler.work._work_on(first)
    (item,) = items(world, Work.SETTLE)
    assert item.lock_token is None
    world.rounds()
    assert items(world, Work.SETTLE) == []


@pytest.mark.parametrize("what", ["log_tail", "versions_of_job"])
def test_a_round_waits_for_no_log_and_no_registry(world, monkeypatch, what):
    job_id = world.running(spec=spec_with(register_as="digits"))
    part = world.ray if what == "log_tail" else world.mlflow
    asked, done, original = threading.Event(), threading.Event(), getattr(part, what)

    def slow(*given: Any) -> Any:
        asked.set()
        assert done.wait(LIMIT_S)
        return original(*given)

    monkeypatch.setattr(part, what, slow)
    world.end_attempt(job_id, Outcome(state="succeeded") if what == "versions_of_job" else None)
    if what == "log_tail":
        world.end_attempt(job_id, None, ray="FAILED")
    world.reconciler.start()
    try:
        assert asked.wait(LIMIT_S)
        other = world.add()
        world.app_state.wake.set()
        poll(lambda: world.state(other), lambda state: state == "starting", LIMIT_S)
        assert world.state(job_id) == "running"
    finally:
        done.set()
        poll(lambda: world.state(job_id), lambda state: state != "running", LIMIT_S)
        world.reconciler.stop()


def test_two_requests_that_meet_a_worker_find_one_end(world):
    """A job is cancelled while a worker ends its attempt: what the worker saw is no longer true, and it looks again."""
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.WORKER_FAILED))
    end_run, cancelled = world.mlflow.run, []

    def meanwhile(run_id: str) -> Any:
        if not cancelled:
            cancelled.append(world.verb(job_id, Verb.CANCEL))
        return end_run(run_id)

    world.mlflow.run = meanwhile
    world.rounds(2)
    assert cancelled == ["cancelling"]
    assert world.state(job_id) == "cancelled"
