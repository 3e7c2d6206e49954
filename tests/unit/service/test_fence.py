"""A controller that has lost its lease, and does not know it, changes nothing: not outside of the database either."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from service_fakes import FakeRun, job_of
from service_world import World
from sqlalchemy import update
from test_search_controller import SEARCH, begin

from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster, RayState, Submission
from service.adapters.storage import Artifacts
from service.adapters.studies import Studies
from service.controller.fence import READS
from service.controller.lease import LeaseLost
from service.db.tables import Attempt, Lease
from service.jobs import repository
from service.jobs.lifecycle import Verb, delete
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason

pytestmark = pytest.mark.both_databases

LONG_AGO = datetime(2025, 6, 1, tzinfo=UTC)


def taken_over(world: World, part: object, read: str) -> None:
    """Another process takes the lease as soon as this one has read that, and this one is not told."""
    original = getattr(part, read)

    def then(*given: Any) -> Any:
        found = original(*given)
        with world.database.session() as session:
            session.execute(update(Lease).values(holder="another-host/1/0000"))
        return found

    setattr(part, read, then)


def all_there_is(world: World, root: Path, search: str | None = None) -> dict[str, Any]:
    """Everything outside of the database that a controller can change."""
    trials = world.studies.trials(search) if search else []
    return {
        "runs": {run_id: (run.status, dict(run.tags)) for run_id, run in world.mlflow.runs.items()},
        "commands": len(world.mlflow.commands),
        "submissions": (set(world.ray.jobs), len(world.ray.requests)),
        "stopped": list(world.ray.stopped),
        "records": (set(world.ray.records), list(world.ray.deleted)),
        "versions": list(world.mlflow.registered),
        "files": sorted(str(path) for path in root.rglob("*")),
        "trials": [trial.state for trial in trials],
    }


def starts(world: World, _: Path) -> str | None:
    world.add()
    taken_over(world, world.ray, "shape")
    return None


def starts_a_search(world: World, _: Path) -> str | None:
    world.add(spec=SEARCH)
    taken_over(world, world.ray, "shape")
    return None


def pauses(world: World, _: Path) -> str | None:
    job_id = world.running()
    world.verb(job_id, Verb.PAUSE)
    taken_over(world, world.ray, "submissions")
    return None


def stops_a_silent_one(world: World, _: Path) -> str | None:
    job_id = world.running()
    world.rounds()
    world.silent(job_id, 500)
    taken_over(world, world.ray, "submissions")
    return None


def submits_again(world: World, _: Path) -> str | None:
    job_id = world.add()
    world.rounds()
    with world.database.session() as session:
        session.get(Attempt, (job_id, 1)).accepted = False
    world.ray.jobs.clear()
    taken_over(world, world.mlflow, "run")
    return None


def ends(world: World, _: Path) -> str | None:
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR))
    taken_over(world, world.mlflow, "run")
    return None


def closes_trials(world: World, _: Path) -> str | None:
    job_id = world.running(spec=SEARCH)
    begin(world, job_id)
    world.verb(job_id, Verb.CANCEL)
    world.rounds()
    world.end_attempt(job_id, Outcome(state="cancelled"))
    taken_over(world, world.mlflow, "run")
    return job_id


def removes(world: World, root: Path) -> str | None:
    job_id = world.running(spec=SEARCH)
    begin(world, job_id)
    world.verb(job_id, Verb.CANCEL)
    world.rounds()
    world.end_attempt(job_id, Outcome(state="cancelled"))
    world.rounds()
    assert any(root.rglob("*"))
    with world.database.session() as session:
        delete(repository.get(session, job_id))
    taken_over(world, world.mlflow, "trial_runs")
    return job_id


def sweeps_records(world: World, _: Path) -> str | None:
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR))
    world.rounds()
    world.ray.jobs.clear()
    world.ray.records[f"{job_id}-a1"] = Submission(RayState.FAILED, LONG_AGO)
    taken_over(world, world.ray, "submissions")
    return None


def sweeps_runs(world: World, _: Path) -> str | None:
    world.mlflow.runs["run-job-gone"] = FakeRun("/nowhere", {}, started_at=LONG_AGO)
    taken_over(world, world.mlflow, "open_runs")
    return None


def sweeps_checkpoints(world: World, _: Path) -> str | None:
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.DATA_ERROR))
    world.rounds()
    half = Path(job_of(world.database, job_id).artifact_uri) / names.checkpoint_folder(1) / "00000010"
    half.mkdir(parents=True)
    (half / "weights").write_bytes(b"1")
    with world.database.session() as session:
        session.get(Attempt, (job_id, 1)).ended_at = datetime.now(UTC) - timedelta(hours=9)
    taken_over(world, world.context.app.artifacts, "folders")
    return None


SCENES: tuple[Callable[[World, Path], str | None], ...] = (
    starts, starts_a_search, pauses, stops_a_silent_one, submits_again, ends, closes_trials, removes, sweeps_records,
    sweeps_runs, sweeps_checkpoints,
)  # fmt: skip


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_a_lease_that_is_taken_in_the_middle_of_it_ends_all_effects(world, root, scene):
    search = scene(world, root)
    before = all_there_is(world, root, search)
    swept = scene.__name__.startswith("sweeps")
    try:
        if swept:
            world.sweep()
        else:
            world.rounds(2)
    except LeaseLost:
        pass
    assert all_there_is(world, root, search) == before
    assert not world.context.lease.held(), "it knows by now"


@pytest.mark.parametrize("adapter", [RayCluster, MlflowStore, Artifacts, Studies])
def test_whatever_is_not_known_to_change_nothing_is_fenced(adapter):
    """A method that is added one day is an effect until somebody has thought about it."""
    effects = {
        RayCluster: {"submit", "stop", "delete"},
        MlflowStore: {"make_run", "command", "order", "fence", "end_run", "delete_run", "delete_version"},
        Artifacts: {"delete", "write", "probe"},
        Studies: {"make", "enqueue", "close_trials", "delete"},
    }[adapter]
    methods = {name for name, found in inspect.getmembers(adapter, callable) if not name.startswith("_")}
    assert effects <= methods - READS
