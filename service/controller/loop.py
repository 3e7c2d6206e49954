"""The control loop: load what waits and runs, observe, decide, act, write. No transaction is open during I/O."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Final

import structlog

from service.adapters.ray_cluster import RayState
from service.controller.attempts import Attempts, Change
from service.controller.context import ControllerContext, isolated_job
from service.controller.deliveries import Deliveries
from service.controller.lease import LeaseLost
from service.controller.observing import Glance, Observer
from service.controller.queue import Queue, Task
from service.controller.removal import Removals
from service.controller.retention import expire_versions
from service.controller.signatures import sign_versions
from service.controller.sizes import measure_versions
from service.controller.starting import Starts
from service.controller.sweeps import Sweeps
from service.controller.versions import compare_versions, describe_version
from service.controller.worker import Worker
from service.counters import ROUND_SECONDS
from service.db.database import DatabaseUnreachable
from service.db.tables import Attempt, Job, now
from service.jobs import repository, work
from service.jobs.state import State
from service.jobs.work import Work

log = structlog.get_logger()

STOP_S = 8.0
"""Longest wait for the work under way when the controller is stopped."""
LONGEST_PAUSE: Final = timedelta(seconds=10)
"""Between two looks at an attempt that cannot be ended yet, as while MLflow is away."""
LONGEST_SWEEP_PAUSE: Final = timedelta(hours=1)
"""Between two sweeps of one kind, where the settings ask for no longer one."""
PASSES: Final = (Work.COMPARE_VERSIONS, Work.SIGN_VERSIONS, Work.MEASURE_VERSIONS, Work.EXPIRE_VERSIONS)
"""Work without a target that is done again and again."""


class Reconciler:
    """The control loop over all jobs, on a thread of its own; what takes long is left to the workers of two queues."""

    def __init__(self, context: ControllerContext) -> None:
        self._context = context
        self.observer = Observer(context)
        self._attempts, self._starts = Attempts(context, self.observer), Starts(context)
        self.sweeps, removals, deliveries = Sweeps(context), Removals(context), Deliveries(context)
        self.work = Queue(
            "work",
            context,
            {Work.ATTEMPT: self._look_closely, Work.TRIALS: self._attempts.read_trials, Work.SETTLE: self._settle},
            find=lambda _: {},
            longest_pause=LONGEST_PAUSE,
        )
        self.removals = Queue(
            "removals",
            context,
            {
                Work.REMOVE_JOB: removals.job,
                Work.REMOVE_VERSION: removals.version,
                Work.SWEEP_CHECKPOINTS: self.sweeps.unfinished_checkpoints,
                Work.FIND_CHECKPOINTS: self.sweeps.find_checkpoints,
                Work.SWEEP_RECORDS: self.sweeps.ray_records,
                Work.SWEEP_RUNS: self.sweeps.open_runs,
                Work.COMPARE_VERSIONS: lambda _: compare_versions(context),
                Work.DESCRIBE_VERSION: lambda task: describe_version(context, task),
                Work.DELIVER: deliveries.deliver,
                Work.SWEEP_DELIVERIES: deliveries.sweep,
                Work.SIGN_VERSIONS: lambda task: sign_versions(context, task),
                Work.EXPIRE_VERSIONS: lambda task: expire_versions(context, task),
                Work.MEASURE_VERSIONS: lambda task: measure_versions(context, task),
            },
            find=lambda session: {
                **removals.find(session),
                **self.sweeps.find(session),
                **deliveries.find(session),
                **{kind: [""] for kind in PASSES},
            },
            longest_pause=max(LONGEST_SWEEP_PAUSE, timedelta(seconds=context.app.settings.sweep_interval_s)),
        )
        self._queues = (self.work, self.removals)
        """Two, so that ends of attempts never wait for removals."""
        self._loop = self._worker("reconciler", self._timed_round, context.app.wake)
        self._workers = (self._loop, *(self._worker(queue.name, queue.run, queue.wake) for queue in self._queues))

    def _worker(self, name: str, work: Callable[[], None], wake: threading.Event) -> Worker:
        return Worker(name, self._context.lease, work, self._context.app.settings.poll_interval_s, wake)

    @property
    def context(self) -> ControllerContext:
        """Its adapters and lease."""
        return self._context

    def start(self) -> None:
        for worker in self._workers:
            worker.start()
        self._context.lease.start(lambda: self.stuck() is None)

    def stop(self) -> None:
        """End after the present round, and give up the lease so that another process can take over at once."""
        until = time.monotonic() + STOP_S
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
        for queue in self._queues:
            queue.stop(max(0.0, until - time.monotonic()))
        self._context.lease.release()

    def lag(self) -> float:
        """Seconds since the last round."""
        return time.monotonic() - self._loop.finished_at

    def stuck(self) -> float | None:
        """Seconds since the last round, where that is too long; None otherwise."""
        age = self.lag()
        return age if age > self._context.app.settings.stuck_after_s or not self._loop.alive else None

    def _timed_round(self) -> None:
        with ROUND_SECONDS.time():
            self.round()
        self._context.lease.finished_round()
        self.removals.wake.set()  # people may have deleted something

    def round(self) -> None:
        """Advance every job once, leaving to workers what takes long: a round reads what indexes find, and writes what
        has changed.
        """
        began = now()
        with self._context.app.database.read() as session:
            live, waiting = repository.live(session), repository.waiting_revisions(session)
            there = work.targets(session, (Work.ATTEMPT, Work.TRIALS))
        glance = self.observer.glance(live, jobs_wait=bool(waiting))
        self._add_work(self._advance(live, glance), there)
        self._starts.run(began, live, waiting, glance.records)

    def _advance(self, live: Sequence[tuple[Job, Attempt | None]], glance: Glance) -> list[tuple[Work, str]]:
        """Take the steps of attempts that go on, and write them at once. Returns what workers are to look at."""
        self._attempts.forget_others({job.id for job, _ in live})
        changes: list[Change] = []
        found: list[tuple[Work, str]] = []
        for job, attempt in live:
            with isolated_job(job):
                state = glance.state(attempt) if attempt and attempt.ended_at is None else RayState.ABSENT
                if attempt is None or state.ended or state is RayState.ABSENT:
                    found.append((Work.ATTEMPT, job.id))
                    continue
                if self._context.kinds[job.kind].has_trials:
                    found.append((Work.TRIALS, job.id))
                observation = self.observer.observe(job, attempt, state, glance.views.get(job.run_id or ""))
                change = self._attempts.glance(job, attempt, observation)
                changes += [change] if change else []
        self._write(changes)
        return found

    def _add_work(self, found: Sequence[tuple[Work, str]], there: Collection[tuple[str, str]]) -> None:
        new = [(kind, target) for kind, target in found if (kind.value, target) not in there]
        if new:
            with self._context.write() as session:
                for kind, target in new:
                    work.add(session, kind, [target])
            self.work.wake.set()

    def _look_closely(self, task: Task) -> timedelta | None:
        pause = self._attempts.look_closely(task.target)
        self._context.app.wake.set()  # the resources of an attempt that has ended are free
        return pause

    def _settle(self, task: Task) -> None:
        """Settle a job that a request has ended."""
        with self._context.app.database.read() as session:
            job = session.get(Job, task.target)
        if job and job.deleted_at is None and State(job.state).terminal:
            self._context.kinds[job.kind].settle_ended(self._context, job)

    def _write(self, changes: Sequence[Change]) -> None:
        """Write all changes in one transaction; where one of them cannot be written, each in one of its own."""
        if not changes:
            return
        try:
            self._attempts.write(changes)
        except (DatabaseUnreachable, LeaseLost):
            raise
        except Exception:  # of one job: the others are written
            log.exception("changes_not_written", jobs=len(changes))
            for change in changes:
                with isolated_job(change.job):
                    self._attempts.write([change])
