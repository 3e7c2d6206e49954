"""No database transaction is open while Ray, MLflow or the storage are asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from optuna.trial import TrialState
from search_files import SEARCH
from service_fakes import SPEC, FakeMlflow, FakeRay, add_job, job_of, spec_with

from service.adapters.ray_cluster import RayState, Submission
from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.db.database import Database
from service.db.tables import Attempt
from service.jobs import repository
from service.jobs.lifecycle import Verb
from trainer.protocol import names
from trainer.protocol.outcome import Outcome
from trainer.spec.search import SearchSpec

pytestmark = pytest.mark.both_databases

PARTS: dict[type, set[str]] = {
    FakeRay: {"shape", "placements", "submissions", "submit", "state", "stop", "delete", "log_tail"},
    FakeMlflow: {
        "make_run", "run", "command", "fence", "end_run", "open_runs", "delete_run", "delete_version", "histories",
        "versions_of_job", "folders", "all_versions", "all_models", "set_alias", "delete_alias",
    },
    Artifacts: {"file", "read", "sizes", "folders", "files", "delete", "piece"},
}  # fmt: skip
"""Everything that is asked of them, but for readiness."""


class Watch:
    """Open transactions of each thread, and what was asked meanwhile."""

    def __init__(self) -> None:
        self._open = threading.local()
        self.asked: set[tuple[type, str]] = set()
        self.wrong: list[str] = []

    def transactions(self, original: Callable[[Database], Any]) -> Callable[[Database], Any]:
        """Around what every transaction of a database goes through."""

        @contextmanager
        def reached(database: Database) -> Iterator[None]:
            self._open.count = getattr(self._open, "count", 0) + 1
            try:
                with original(database):
                    yield
            finally:
                self._open.count -= 1

        return reached

    def question(self, part: type, name: str) -> Callable[..., Any]:
        original = getattr(part, name)

        def call(*args: Any, **named: Any) -> Any:
            self.asked.add((part, name))
            if getattr(self._open, "count", 0):
                self.wrong.append(f"{part.__name__}.{name}")
            return original(*args, **named)

        return call


@pytest.fixture
def watch(monkeypatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(Database, "_connection_errors", watch.transactions(Database._connection_errors))
    for part, found in PARTS.items():
        for name in found:
            monkeypatch.setattr(part, name, watch.question(part, name))
    return watch


def test_a_transaction_that_is_open_is_noticed(watch, world):
    job_id = add_job(world.database)
    with world.database.read() as session:
        repository.get(session, job_id)
        world.ray.shape()
    assert watch.wrong == ["FakeRay.shape"]


def test_no_transaction_is_open_while_ray_mlflow_or_the_storage_are_asked(watch, world, served, root):
    """A job's whole life, with everything that people look at, all sweeps and its deletion."""

    def get(path: str) -> None:
        assert served.get(path).status_code == 200, path

    assert served.post("/v1/jobs/plan", json=SPEC).status_code == 200
    job_id = world.running(spec=spec_with(register_as="digits"))
    world.silent(job_id, 500)
    world.rounds()
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds()
    world.due(job_id)
    world.rounds()
    world.run_attempt(job_id, 2)
    world.verb(job_id, Verb.PAUSE)
    world.rounds()
    world.end_attempt(job_id, Outcome(state="paused"), 2)
    world.rounds()
    world.verb(job_id, Verb.RESUME)
    world.rounds()
    world.run_attempt(job_id, 3)
    model = root / "models" / "m-1"
    (model / "hf").mkdir(parents=True)
    for file in ("spec.json", "hf/config.json"):
        (model / file).write_text("{}")
    (model / "SHA256SUMS").write_text(f"{'0' * 64}  spec.json\n{'0' * 64}  hf/config.json\n")
    world.mlflow.register("digits", 1, job_id, model)
    world.mlflow.register("digits", 2, job_id, model.with_name("m-2"))
    world.end_attempt(job_id, Outcome(state="succeeded"), 3)
    world.rounds()
    assert world.state(job_id) == "succeeded"
    world.mlflow.register("digits", 3, job_id, model.with_name("m-3"))
    world.compare_versions()

    folder = root / f"run-{job_id}" / "artifacts"
    for file in ("images/reconstruction_00000001.png", f"{names.checkpoint_folder(1)}/00000001/student.safetensors"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_bytes(b"1")
    (folder / names.log_folder(1)).mkdir(parents=True)
    (folder / names.log_folder(1) / "driver.0001.jsonl").write_text(
        '{"time":1,"level":"info","source":"driver","message":"a"}\n'
    )
    for view in ("", "/events", "/attempts", "/logs", "/metrics", "/metrics?key=train/loss", "/images", "/spec"):
        get(f"/v1/jobs/{job_id}{view}")
    get(f"/v1/jobs/{job_id}/images/reconstruction_00000001.png")
    for path in ("", "/digits", "/digits/versions/1", "/digits/versions/1/files/spec.json"):
        get(f"/v1/backbones{path}")
    assert served.put("/v1/backbones/digits/aliases/best", json={"version": 1}).status_code == 200
    get("/hf/api/models/rcmae/digits/tree/best")
    get("/v1/backbones/digits/versions/best/archive?format=hf")
    assert served.delete("/v1/backbones/digits/aliases/best").status_code == 200

    for number in (2, 3):
        assert served.delete(f"/v1/backbones/digits/versions/{number}").status_code == 200
    world.rounds()
    assert [version.version for version in world.mlflow.registered] == [1]
    sweep_everything(world, job_id)
    assert served.delete(f"/v1/jobs/{job_id}?preview=true").status_code == 200
    assert served.delete(f"/v1/jobs/{job_id}?with_backbones=true").status_code == 200
    world.rounds()
    with world.database.read() as session:
        assert repository.deleted(session) == []
    assert watch.wrong == []
    assert {(part, name) for part, found in PARTS.items() for name in found} - watch.asked == set()


def test_no_transaction_is_open_while_a_study_is_asked(watch, monkeypatch, clients, searches):
    """All that people can ask of a search and do to it."""
    for name in ("make", "study", "trials", "seconds", "enqueue"):
        monkeypatch.setattr(Studies, name, watch.question(Studies, name))
    job_id = searches.add(resolved_spec=SearchSpec.parse(SEARCH).model_dump(mode="json"))
    failed, running = searches.trial(job_id, TrialState.FAIL), searches.trial(job_id, TrialState.RUNNING)
    place = f"/v1/searches/{job_id}"
    reads = ["", "/trials", "/trials.csv", "/plots/history"]
    for path in reads + [f"/trials/{running}{of_run}" for of_run in ("", "/logs", "/images", "/metrics")]:
        assert clients.alice.get(f"{place}{path}").status_code == 200, path
    assert clients.alice.patch(place, json={"concurrency": 1, "trials": 9}).status_code == 200
    assert clients.alice.post(f"{place}/trials", json={"points": [{}]}).status_code == 201
    for path, status in ((f"{running}/stop", 200), (f"{failed}/retry", 200), (f"{failed}/promote", 201)):
        assert clients.alice.post(f"{place}/trials/{path}").status_code == status, path
    assert watch.wrong == []


def sweep_everything(world: Any, job_id: str) -> None:
    """As if the job had ended long ago and left something for every sweep."""
    long_ago = datetime.now(UTC) - timedelta(days=9)
    with world.database.session() as session:
        repository.get(session, job_id).ended_at = long_ago
        session.get(Attempt, (job_id, 1)).ended_at = long_ago
    world.ray.records[f"{job_id}-a1"] = Submission(RayState.FAILED, long_ago)
    world.mlflow.runs[f"run-{job_id}"].status = "RUNNING"
    world.sweep()
    assert world.ray.deleted == [f"{job_id}-a1"]
    assert world.mlflow.runs[f"run-{job_id}"].status == "FINISHED"
    assert job_of(world.database, job_id).state == "succeeded"
