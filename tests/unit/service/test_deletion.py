"""Deleting a job: told beforehand, invisible at once, and removed whole however often that is interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from service_fakes import SPEC, job_of, problem, spec_with
from service_world import World
from sqlalchemy import select

from service.adapters.mlflow_connection import MlflowUnreachable
from service.adapters.ray_cluster import ClusterUnreachable
from service.adapters.storage import Artifacts, OutsideRoot, StorageUnreachable
from service.auth.caller import Caller
from service.auth.scopes import Role
from service.db.tables import Attempt, Event, Job
from service.jobs.service import delete_job
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason


def finished(world: World, root: Path, register_as: str | None = "digits", **fields: Any) -> str:
    """A job of two attempts, 11 bytes in 3 files, and a registered version of 5 bytes in 1."""
    job_id = world.running(spec=spec_with(register_as=register_as), **fields)
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST), ray="FAILED")
    world.rounds()
    world.due(job_id)
    world.rounds()
    world.run_attempt(job_id, 2)
    if register_as:
        model = root / "models" / f"m-{job_id}" / "artifacts"
        (model / "hf").mkdir(parents=True)
        (model / "hf" / "model").write_bytes(b"12345")
        world.mlflow.register(register_as, len(world.mlflow.registered) + 1, job_id, model)
    world.end_attempt(job_id, Outcome(state="succeeded"), 2)
    world.rounds()
    assert world.state(job_id) == "succeeded"
    folder = Path(job_of(world.database, job_id).artifact_uri)
    for file in folder.rglob("*.json"):
        file.unlink()
    for name, data in (("checkpoints/a2/1/weights", b"123456"), ("images/a.png", b"123"), ("attempts/1/x", b"12")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return job_id


def left_of(world: World, root: Path, job_id: str) -> list[str]:
    """Everything that still knows of a job."""
    with world.database.read() as session:
        rows = [
            *session.scalars(select(Job.id).where(Job.id == job_id)),
            *session.scalars(select(Event.job_id).where(Event.job_id == job_id)),
            *session.scalars(select(Attempt.job_id).where(Attempt.job_id == job_id)),
        ]
    versions = [version.name for version in world.mlflow.registered if version.tags[names.TAG_JOB] == job_id]
    everywhere = [*world.mlflow.runs, *world.ray.jobs, *(str(path) for path in root.rglob("*"))]
    return rows + versions + [name for name in everywhere if job_id in name]


def invisible(served: TestClient, job_id: str) -> None:
    for path in ("", "/spec", "/events", "/attempts", "/logs", "/metrics", "/images"):
        problem(served.get(f"/v1/jobs/{job_id}{path}"), 404, "job_not_found")
    for verb in ("cancel", "pause", "resume", "retry", "stop"):
        problem(served.post(f"/v1/jobs/{job_id}/{verb}"), 404, "job_not_found")
    problem(served.patch(f"/v1/jobs/{job_id}", json={"notes": "x"}), 404, "job_not_found")
    for query in ("", "?preview=true", "?with_backbones=true"):
        problem(served.delete(f"/v1/jobs/{job_id}{query}"), 404, "job_not_found")
    assert job_id not in [job["id"] for job in served.get("/v1/jobs").json()["items"]]
    assert served.get("/v1/backbones").json()["items"] == []


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_preview_names_what_would_go_and_deletes_nothing(world, served, root):
    job_id = finished(world, root)
    before = left_of(world, root, job_id)
    for _ in range(2):
        answer = served.delete(f"/v1/jobs/{job_id}?preview=true")
        assert answer.status_code == 200
        assert answer.json() == {
            "job_id": job_id,
            "run_id": f"run-{job_id}",
            "artifact_uri": str(root / f"run-{job_id}" / "artifacts"),
            "files": 4,
            "bytes": 16,
            "backbones": [{"name": "digits", "version": 1}],
        }
    world.rounds(2)
    assert left_of(world, root, job_id) == before
    assert served.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded"


def test_a_job_that_never_ran_has_nothing_to_go(world, served):
    job_id = world.add(state="cancelled")
    told = served.delete(f"/v1/jobs/{job_id}").json()
    assert (told["run_id"], told["artifact_uri"], told["files"], told["bytes"]) == (None, None, 0, 0)
    world.rounds()
    with world.database.read() as session:
        assert session.get(Job, job_id) is None


@pytest.mark.parametrize("query", ["?preview=true", "?with_backbones=true"])
def test_what_would_go_cannot_be_told_while_the_storage_is_away(world, served, root, query):
    job_id = finished(world, root)
    root.rename(root.with_name("unmounted"))
    problem(served.delete(f"/v1/jobs/{job_id}{query}"), 503, "unavailable")
    assert served.get(f"/v1/jobs/{job_id}").status_code == 200


def test_a_job_is_deleted_while_mlflow_is_away_and_removed_when_it_is_back(world, served, root):
    job_id = finished(world, root)
    world.mlflow.reachable = False
    assert served.delete(f"/v1/jobs/{job_id}?preview=true").json()["backbones"] == [{"name": "digits", "version": 1}]
    problem(served.delete(f"/v1/jobs/{job_id}"), 409, "backbones_would_go")
    assert served.delete(f"/v1/jobs/{job_id}?with_backbones=true").status_code == 200
    invisible(served, job_id)
    world.rounds(2)
    world.mlflow.reachable = True
    world.rounds()
    assert left_of(world, root, job_id) == []


def test_a_job_that_others_control_is_not_deleted(world, served, root):
    job_id = finished(world, root, owner="bob")
    for query in ("?preview=true", "?with_backbones=true"):
        problem(served.delete(f"/v1/jobs/{job_id}{query}"), 404, "job_not_found")
    assert world.state(job_id) == "succeeded"


# --- what goes --------------------------------------------------------------------------------------------------------


def test_a_version_goes_only_where_that_is_said(world, served, root):
    job_id = finished(world, root)
    detail = problem(served.delete(f"/v1/jobs/{job_id}"), 409, "backbones_would_go")["detail"]
    assert "digits version 1" in detail
    assert "with_backbones=true" in detail
    world.rounds()
    assert world.state(job_id) == "succeeded"
    assert len(world.mlflow.registered) == 1
    answer = served.delete(f"/v1/jobs/{job_id}?with_backbones=true")
    assert answer.status_code == 200
    assert answer.json()["backbones"] == [{"name": "digits", "version": 1}]
    invisible(served, job_id)
    world.rounds()
    assert left_of(world, root, job_id) == []


def test_what_others_left_stays(world, served, root):
    gone, kept = finished(world, root), finished(world, root)
    before = left_of(world, root, kept)
    assert served.delete(f"/v1/jobs/{gone}?with_backbones=true").status_code == 200
    world.rounds(2)
    assert left_of(world, root, gone) == []
    assert left_of(world, root, kept) == before
    assert [version.version for version in world.mlflow.registered] == [2]


def test_a_version_that_somebody_else_took_out_is_no_obstacle(world, served, root):
    job_id = finished(world, root)
    world.mlflow.registered.clear()
    world.compare_versions()
    told = served.delete(f"/v1/jobs/{job_id}", params={"with_backbones": True}).json()
    assert ([each["version"] for each in told["backbones"]], told["files"]) == ([1], 4), "its files are still there"
    world.rounds()
    assert left_of(world, root, job_id) == []


def test_the_key_of_a_deleted_job_is_free_again(world, served):
    key = {"Idempotency-Key": "nightly"}
    first = served.post("/v1/jobs", json=SPEC, headers=key).json()["id"]
    served.post(f"/v1/jobs/{first}/cancel")
    assert served.delete(f"/v1/jobs/{first}").status_code == 200
    again = served.post("/v1/jobs", json=spec_with(seed=1), headers=key)
    assert again.status_code == 201, "also before the controller has removed what it left"
    assert again.json()["id"] != first
    world.rounds()
    assert world.state(again.json()["id"]) == "starting"


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["ray", "mlflow", "storage"])
def test_what_is_away_delays_the_removal_and_nothing_else(world, served, root, part):
    job_id = finished(world, root)
    assert served.delete(f"/v1/jobs/{job_id}?with_backbones=true").status_code == 200
    if part == "storage":
        there = root.rename(root.with_name("unmounted"))
    else:
        getattr(world, part).reachable = False
    world.rounds(3)
    with world.database.read() as session:
        assert session.get(Job, job_id) is not None
    problem(served.get(f"/v1/jobs/{job_id}"), 404, "job_not_found")
    if part == "storage":
        there.rename(root)
    else:
        getattr(world, part).reachable = True
    other = world.running()
    world.rounds()
    assert left_of(world, root, job_id) == []
    assert world.state(other) == "running"


CALLS = ["versions_of_job", "delete", "delete_version", "delete", "delete_run", "delete", "delete"]
"""What removing a job of two attempts with a version does, in this order."""


class Interruption:
    """Counts what a removal does, and cuts one of it off."""

    def __init__(self, world: World) -> None:
        self.calls: list[str] = []
        self.at, self.when = 0, "before"
        for part, error in (
            (world.mlflow, MlflowUnreachable),
            (world.context.app.artifacts, StorageUnreachable),
            (world.ray, ClusterUnreachable),
        ):
            for name in set(CALLS):
                if hasattr(part, name):
                    setattr(part, name, self._watched(name, getattr(part, name), error))

    def _watched(self, name: str, original: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            cut = len(self.calls) == self.at
            if cut and self.when == "before":
                raise error("cut off")
            found = original(*args)
            if cut:
                raise error("cut off")
            return found

        return call


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_removal_cut_off_at_any_call_is_finished_later(world, root, when):
    cut = Interruption(world)
    for at in range(len(CALLS) + 1):
        job_id = finished(world, root)
        delete_job(world.app_state, Caller("alice", Role.SUBMITTER), job_id, with_backbones=True)
        cut.calls, cut.at, cut.when = [], at, when
        world.rounds()
        assert cut.calls[: at or None] == CALLS[: at or None]
        assert bool(left_of(world, root, job_id)) == bool(at)
        cut.at = 0
        world.rounds()
        assert left_of(world, root, job_id) == []
    world.rounds(2)


@pytest.mark.both_databases
def test_another_controller_finishes_a_removal(world, root, settings, ray, mlflow):
    job_id = finished(world, root)
    delete_job(world.app_state, Caller("alice", Role.SUBMITTER), job_id, with_backbones=True)
    Interruption(world).at = 5
    world.rounds()
    world.context.lease.release()
    World(settings, world.database, ray, mlflow).rounds()
    assert left_of(world, root, job_id) == []


# --- what can never go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{root}", "{root}/", "file://{root}", "{root}/run/..", "{root}/run/../", "{root}/."])
def test_the_artifact_root_itself_is_never_deleted(root, form):
    (root / "run").mkdir()
    (root / "run" / "weights").write_bytes(b"1")
    with pytest.raises(OutsideRoot):
        Artifacts(str(root)).delete(form.format(root=root))
    assert (root / "run" / "weights").exists()


@pytest.mark.parametrize("form", ["{root}/..", "{root}/../beside", "/", "{root}-beside"])
def test_nothing_outside_the_artifact_root_is_deleted(root, form):
    for beside in (root.with_name("beside"), root.with_name("artifacts-beside")):
        beside.mkdir()
    with pytest.raises(OutsideRoot):
        Artifacts(str(root)).delete(form.format(root=root))
    assert root.with_name("beside").exists()
    assert root.with_name("artifacts-beside").exists()


def test_a_link_to_the_outside_is_deleted_and_what_it_leads_to_stays(root, tmp_path):
    outside = tmp_path / "datasets"
    outside.mkdir()
    (outside / "image.png").write_bytes(b"1")
    run = root / "run" / "artifacts"
    run.mkdir(parents=True)
    (run / "data").symlink_to(outside)
    Artifacts(str(root)).delete(str(run))
    assert not run.exists()
    assert (outside / "image.png").exists()


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_files_that_are_not_ours_stay_while_their_job_goes(world, served, root, tmp_path, where):
    """The artifact root was moved, or somebody wrote nonsense into the registry."""
    folder = root if where == "root" else tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"1")
    job_id = world.add(state="failed", spec=spec_with(register_as="digits"), artifact_uri=str(folder))
    world.mlflow.register("digits", 1, job_id, folder)
    world.compare_versions()
    assert served.delete(f"/v1/jobs/{job_id}?with_backbones=true").status_code == 200
    other = world.add()
    world.rounds()
    assert (folder / "weights").exists()
    assert left_of(world, root, job_id) == []
    assert world.state(other) == "starting"


def test_a_deleted_folder_takes_the_empty_one_around_it_along(root):
    for run in ("a", "b"):
        (root / "1" / run / "artifacts").mkdir(parents=True)
    artifacts = Artifacts(str(root))
    artifacts.delete(str(root / "1" / "a" / "artifacts"))
    assert sorted(path.name for path in (root / "1").iterdir()) == ["b"]
    artifacts.delete(str(root / "1" / "a" / "artifacts"))
    (root / "only").mkdir()
    artifacts.delete(str(root / "only"))
    artifacts.delete(str(root / "1"))
    assert list(root.iterdir()) == []
