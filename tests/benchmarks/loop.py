"""What a round of the control loop costs with many jobs in the database, and whether what takes long delays it.

``python tests/benchmarks/loop.py [sqlite] [postgres] [--jobs N] [--waiting W] [--running R] [--trials T]``. Real
databases and a real study; Ray and MLflow are stand-ins in this process that take as long as real ones for each
request, without using a CPU. Prints tables in Markdown. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import insert, text

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "unit" / "service"))
import api
from live import poll
from many_trials import SPEC as SEARCH
from many_trials import write_trials
from postgres_server import postgres_server
from service_fakes import SPEC, FakeMlflow, FakeRay, FakeRun

from service.adapters.ray_cluster import RayState, Submission
from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.app import configure_logs
from service.auth.caller import Caller, Role
from service.context.app_state import AppState
from service.controller.context import ControllerContext
from service.controller.lease import Lease
from service.controller.loop import Reconciler
from service.db.database import Database
from service.db.tables import Attempt, Job, now
from service.jobs import repository
from service.jobs.lifecycle import Verb, delete
from service.jobs.service import apply_verb
from service.kinds.registry import KINDS
from service.settings import Settings
from trainer.protocol import names
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys
from trainer.spec.job import parse_spec

RAY_S = {"state": 0.004, "submissions": 0.03, "placements": 0.02, "shape": 0.02, "submit": 0.05, "delete": 0.02}
MLFLOW_S = {"run": 0.012, "views": 0.06, "make_run": 0.05, "command": 0.01, "end_run": 0.02, "delete_run": 0.02}
"""Seconds of one request, as measured on an embedded stack of two cores."""
ROUNDS = 8
RECORDS = 500
"""Ray's records of attempts that ended within a day."""
STEADY_S = 20.0
PAUSES = 6
LIMIT_S = 240


def slow(part: Any, seconds: dict[str, float]) -> Any:
    """The same stand-in, which takes as long as a real one."""
    for name, length in seconds.items():
        setattr(part, name, _delayed(getattr(part, name), length))
    return part


def _delayed(method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return method(*given, **named)

    return call


@dataclass
class Bench:
    """A controller over a full database."""

    url: str
    folder: Path
    waiting: int
    running: int
    beats: float = 1e9
    live: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        root = self.folder / "artifacts"
        root.mkdir(parents=True)
        self.studies_url = f"sqlite:///{self.folder / 'studies.db'}"
        patience = dict.fromkeys(("heartbeat_limit_s", "start_limit_s", "command_deadline_s", "stuck_after_s"), 1e6)
        settings = Settings(
            database_url=self.url, study_url=self.studies_url, artifact_root=str(root), reconcile=False, **patience
        )
        self.database = Database(self.url)
        self.ray, self.mlflow = FakeRay(cpus=2 * self.running + 1), FakeMlflow(root)
        self.ray.records = {f"old-{n}": Submission(RayState.SUCCEEDED, now(), f"{n:08}") for n in range(RECORDS)}
        self._insert()
        slow(self.ray, RAY_S)
        slow(self.mlflow, MLFLOW_S)
        lease = Lease(self.database, 3600, standby=True)
        lease.tick()
        self.state = AppState(
            settings, self.database, self.ray, self.mlflow, Artifacts(str(root)), Studies(self.studies_url), KINDS
        )
        self.reconciler = Reconciler(ControllerContext(self.state, KINDS, lease))

    def _insert(self) -> None:
        spec = parse_spec(SPEC)
        document, moment = spec.model_dump(mode="json"), now()
        common = {
            "kind": "pretrain", "name": "digits", "owner": "alice", "priority": 0, "labels": {}, "spec": document,
            "dataset_uri": SPEC["dataset"]["uri"], "body_sha256": spec.sha256(), "created_at": moment, "notes": "",
            "message": "", "draining": False, "failures": 0, "restarts": 0, "since_attempt": 1,
        }  # fmt: skip
        rows, attempts = [], []
        for number in range(self.waiting + self.running):
            identity, live = f"job-loop{number:010}", number >= self.waiting
            rows.append(
                common
                | {"id": identity, "state": "running" if live else "queued", "attempts": int(live)}
                | {
                    "waiting_since": moment + timedelta(milliseconds=number),
                    "run_id": f"run-{identity}" if live else None,
                }
                | {"artifact_uri": f"{self.mlflow.root}/run-{identity}/artifacts" if live else None}
                | {"resolved_spec": document if live else None}
            )
            if live:
                self.live.append(identity)
                attempts.append(
                    {"job_id": identity, "number": 1, "submission_id": f"{identity}-a1", "state": "running"}
                    | {"accepted": True, "workers": 1, "gpus": 0, "started_at": moment, "message": "", "generation": 0}
                )
                self.ray.jobs[f"{identity}-a1"] = RayState.RUNNING
                self.mlflow.runs[f"run-{identity}"] = FakeRun(rows[-1]["artifact_uri"], {names.TAG_STEPS: "1000"})
        with self.database.session() as session:
            session.execute(text("UPDATE job SET state = 'succeeded' WHERE state IN ('queued', 'running', 'paused')"))
            session.execute(text("UPDATE job SET result = '{}' WHERE result IS NULL AND state = 'succeeded'"))
            session.execute(text("UPDATE attempt SET ended_at = started_at WHERE ended_at IS NULL"))
            session.execute(text("UPDATE attempt SET swept_at = ended_at"))
            session.execute(insert(Job), rows)
            session.execute(insert(Attempt), attempts)
        with self.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
        self.progress()

    def progress(self) -> None:
        """Every running job makes a step and says so."""
        self.beats += 5
        step = int(self.beats) % 1000
        for identity in self.live:
            values = {metric_keys.SAMPLES: 64.0 * step, metric_keys.LOSS: 1 / (1 + step), metric_keys.EPOCH: step / 100}
            run = self.mlflow.runs[f"run-{identity}"]
            run.tags[names.heartbeat(1)] = str(self.beats)
            run.tags[names.TAG_NEWEST] = Newest(attempt=1, step=step, values=values).model_dump_json()

    def add_search(self, trials: int) -> str:
        """A search that has ended, with the runs and files of its trials."""
        identity = repository.new_id()
        write_trials(self.studies_url, identity, trials)
        for number in range(trials):
            folder = self.mlflow.root / f"trial-{number}" / "artifacts"
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(b"1" * 1000)
            self.mlflow.runs[f"trial-{identity}-{number}"] = FakeRun(str(folder), {names.TAG_TRIAL_OF: identity})
        values = {
            "kind": "search", "name": "many", "state": "cancelled", "owner": "alice", "priority": 0, "labels": {},
            "spec": SEARCH.model_dump(mode="json"), "dataset_uri": "s3://datasets/cifar10", "body_sha256": "0" * 64,
            "ended_at": now(),
        }  # fmt: skip
        with self.database.session() as session:
            session.add(Job(id=identity, **values))
        return identity

    @contextmanager
    def started(self) -> Iterator[None]:
        self.reconciler.start()
        try:
            yield
        finally:
            self.reconciler.stop()

    def close(self) -> None:
        self.state.studies.close()
        self.database.close()


def rounds(bench: Bench, change: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Seconds and seconds of CPU of some rounds."""
    walls, cpus = [], []
    for _ in range(ROUNDS):
        change()
        wall, cpu = time.perf_counter(), time.process_time()
        bench.reconciler.round()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


def one_cpu_comes_and_goes(bench: Bench) -> Callable[[], None]:
    """Then every waiting job has another number in its message."""

    def change() -> None:
        bench.progress()
        bench.ray.cpus = 2 * bench.running + (1 if bench.ray.cpus == 2 * bench.running else 0)

    return change


def row(what: str, walls: list[float], cpus: list[float]) -> None:
    say(
        f"| {what} | {statistics.median(walls):.3f} | {max(walls):.3f} | {1000 * statistics.median(cpus):.0f} | "
        f"{1000 * max(cpus):.0f} |"
    )


def events(bench: Bench) -> int:
    with bench.database.read() as session:
        return int(session.scalar(text("SELECT count(*) FROM event")) or 0)


def measure(name: str, url: str, options: argparse.Namespace) -> None:
    begin = time.monotonic()
    api.fill(url, options.jobs)
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
        bench = Bench(url, Path(folder), options.waiting, options.running)
        say(f"## {name}: {options.jobs:,} jobs, {options.waiting:,} waiting, {options.running} running\n")
        sys.stderr.write(f"filled in {time.monotonic() - begin:.0f} s\n")
        bench.reconciler.round()
        bench.reconciler.round()
        before = events(bench)
        say("| a round | seconds, median | most | ms of CPU, median | most |\n|---|---|---|---|---|")
        row("nothing changes", *rounds(bench, lambda: None))
        row("every running job made a step", *rounds(bench, bench.progress))
        row("the same, and a CPU comes or goes", *rounds(bench, one_cpu_comes_and_goes(bench)))
        say(f"\nEvents written by these {3 * ROUNDS} rounds: {events(bench) - before:,}.\n")
        with bench.started():
            steady()
            pauses(bench, options.trials)
        bench.close()


def steady() -> None:
    """The whole controller, with all that it does beside its rounds, while nothing changes."""
    time.sleep(3)
    wall, cpu = time.monotonic(), time.process_time()
    time.sleep(STEADY_S)
    spent, passed = time.process_time() - cpu, time.monotonic() - wall
    say(f"The whole controller, all threads, while nothing changes: {100 * spent / passed:.1f} % of a core.\n")


def pauses(bench: Bench, trials: int) -> None:
    """How long it takes from a request to pause until the attempt is told, before and during a large deletion."""
    idle = [told(bench, identity) for identity in bench.live[:PAUSES]]
    search = bench.add_search(trials)
    lags: list[float] = []
    done = threading.Event()
    threading.Thread(target=watch, args=(bench, lags, done), daemon=True).start()
    begin = time.monotonic()
    with bench.database.session() as session:
        delete(repository.get(session, search))
    poll(lambda: trials_left(bench), lambda left: left < trials, LIMIT_S)
    busy = [told(bench, identity) for identity in bench.live[PAUSES : 2 * PAUSES]]
    left = trials_left(bench)
    gone = poll(lambda: is_gone(bench, search), lambda gone: gone or time.monotonic() - begin > LIMIT_S, 2 * LIMIT_S)
    took = f"took {time.monotonic() - begin:.0f} s" if gone else f"had not ended after {LIMIT_S} s"
    done.set()
    say("| from a request to pause until the attempt is told | seconds, median | most |\n|---|---|---|")
    say(f"| nothing else to do | {statistics.median(idle):.2f} | {max(idle):.2f} |")
    say(f"| while a search of {trials:,} trials is removed | {statistics.median(busy):.2f} | {max(busy):.2f} |")
    say(f"\nThe removal {took} ({left:,} trials were left after the pauses); the longest time without a finished round")
    say(f"was {max(lags):.1f} s meanwhile.\n")


def told(bench: Bench, identity: str) -> float:
    """Seconds from the request to pause a job until its attempt can read it."""
    begin = time.monotonic()
    apply_verb(bench.state, Caller("alice", Role.SUBMITTER), identity, Verb.PAUSE)
    tags = bench.mlflow.runs[f"run-{identity}"].tags
    while '"pause"' not in tags.get(names.TAG_COMMAND, "") and time.monotonic() - begin < LIMIT_S:
        time.sleep(0.005)
    return time.monotonic() - begin


def trials_left(bench: Bench) -> int:
    return sum(run_id.startswith("trial-") for run_id in list(bench.mlflow.runs))


def is_gone(bench: Bench, identity: str) -> bool:
    with bench.database.read() as session:
        return session.get(Job, identity) is None


def watch(bench: Bench, lags: list[float], done: threading.Event) -> None:
    while not done.wait(0.05):
        lags.append(bench.reconciler.lag())


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="*", metavar="sqlite|postgres", help="both by default")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--running", type=int, default=50)
    parser.add_argument("--trials", type=int, default=3000)
    options = parser.parse_args()
    wanted = options.databases or ["sqlite", "postgres"]
    configure_logs()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    say(f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLAlchemy {version('sqlalchemy')}.\n")
    if "sqlite" in wanted:
        with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
            measure("SQLite", f"sqlite:///{folder}/rcmae.db", options)
    if "postgres" in wanted:
        with postgres_server() as server:
            measure("Postgres", f"{server.url('loop')}?options=-c%20statement_timeout%3D600s", options)


if __name__ == "__main__":
    main()
