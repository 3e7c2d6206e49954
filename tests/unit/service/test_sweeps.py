"""What is left behind and removed once it is old enough: Ray's records, unfinished checkpoints, open runs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from service_fakes import FakeRun, attempts_of, job_of
from service_world import World

from service.adapters.ray_cluster import RayState, Submission
from service.adapters.storage import Artifacts
from service.db.tables import Attempt
from service.jobs import repository
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason
from trainer.storage import Store

pytestmark = pytest.mark.both_databases

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SECOND = timedelta(seconds=1)
PARTS = ["ray", "mlflow", "storage"]


def ago(age: timedelta) -> datetime:
    return datetime.now(UTC) - age


def ended(world: World, age: timedelta, outcome: Outcome | None = None) -> str:
    """A job whose one attempt ended so long ago."""
    job_id = world.running()
    world.end_attempt(job_id, outcome or Outcome(state="failed", reason=Reason.DATA_ERROR))
    world.rounds()
    with world.database.session() as session:
        repository.get(session, job_id).ended_at = ago(age)
        session.get(Attempt, (job_id, 1)).ended_at = ago(age)
    return job_id


def away(world: World, part: str, root: Path) -> Callable[[], object]:
    """Take one of the parts away; call what it gives to bring it back."""
    if part == "storage":
        there = root.rename(root.with_name("unmounted"))
        return lambda: there.rename(root)
    setattr(getattr(world, part), "reachable", False)  # noqa: B010
    return lambda: setattr(getattr(world, part), "reachable", True)


# --- Ray's records ----------------------------------------------------------------------------------------------------


def record(world: World, identity: str, age: timedelta | None, state: str = "FAILED") -> None:
    world.ray.jobs.pop(identity, None)
    world.ray.records[identity] = Submission(RayState(state), ago(age) if age is not None else None)


def test_rays_records_of_our_ended_attempts_go_after_a_day(world, swept):
    old, young = ended(world, 2 * DAY), ended(world, DAY)
    running = world.running()
    record(world, f"{old}-a1", DAY + SECOND)
    record(world, f"{young}-a1", DAY - 60 * SECOND)
    record(world, "somebody-elses", 9 * DAY)
    record(world, f"{running}-a1", None, "RUNNING")
    (line,) = swept()
    assert (line["event"], line["submission_id"]) == ("swept_ray_record", f"{old}-a1")
    assert line["ended_at"]
    assert world.ray.deleted == [f"{old}-a1"]
    assert swept() == []


def test_rays_record_of_an_attempt_that_has_not_been_settled_stays(world, swept):
    """Ray says that it ended long ago, and MLflow is away: nobody knows yet how it ended."""
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="succeeded"))
    record(world, f"{job_id}-a1", 3 * DAY, "SUCCEEDED")
    world.mlflow.reachable = False
    assert swept() == []
    world.mlflow.reachable = True
    swept()
    assert world.state(job_id) == "succeeded"
    assert world.ray.deleted == [f"{job_id}-a1"]


# --- unfinished checkpoints -------------------------------------------------------------------------------------------


def checkpoint(world: World, job_id: str, name: str, finished: bool, number: int = 1) -> Path:
    """What an attempt stored, with its manifest or killed before."""
    folder = Path(job_of(world.database, job_id).artifact_uri) / names.checkpoint_folder(number) / name
    folder.mkdir(parents=True)
    (folder / "student.safetensors").write_bytes(b"weights")
    if finished:
        (folder / names.MANIFEST).write_text("{}")
    else:
        (folder / ".manifest-being-written").write_text("{")
    return folder


def test_unfinished_checkpoints_go_an_hour_after_their_attempt_and_are_looked_for_once(world, swept):
    job_id = ended(world, HOUR + SECOND)
    whole = checkpoint(world, job_id, "00000010", finished=True)
    half = checkpoint(world, job_id, "00000020", finished=False)
    hidden = checkpoint(world, job_id, ".00000030.part", finished=False)
    beside = whole.parent / ".validate_storage_marker"
    beside.write_text("")
    lines = swept()
    assert {line["event"] for line in lines} == {"swept_unfinished_checkpoint"}
    assert [(line["job_id"], line["attempt"], line["folder"]) for line in lines] == [
        (job_id, 1, ".00000030.part"),
        (job_id, 1, "00000020"),
    ]
    assert (whole / names.MANIFEST).exists()
    assert (whole / "student.safetensors").exists()
    assert beside.exists()
    assert not half.exists()
    assert not hidden.exists()
    again = checkpoint(world, job_id, "00000040", finished=False)
    assert swept() == []
    assert again.exists()


def test_what_the_trainer_leaves_when_it_is_killed_while_it_stores_goes(world, swept):
    job_id = ended(world, HOUR + SECOND)
    store = Store(job_of(world.database, job_id).artifact_uri)
    place = f"{names.checkpoint_folder(1)}/00000012"

    def killed() -> None:
        with store.new_folder(place) as directory:
            (directory / "student.safetensors").write_bytes(b"half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert store.names(place) == ["student.safetensors"]
    assert [line["folder"] for line in swept()] == ["00000012"]
    assert store.names(names.CHECKPOINTS) in ([], ["a1"])


@pytest.mark.parametrize("state", ["younger", "running"])
def test_unfinished_checkpoints_stay_while_somebody_may_store_them(world, swept, state):
    job_id = ended(world, HOUR - 60 * SECOND) if state == "younger" else world.running()
    half = checkpoint(world, job_id, "00000020", finished=False)
    assert swept() == []
    assert half.exists()
    assert attempts_of(world.database, job_id)[0].swept_at is None


def test_a_running_attempt_keeps_its_own_while_those_of_the_one_before_go(world, swept):
    job_id = world.running()
    world.end_attempt(job_id, Outcome(state="failed", reason=Reason.NODE_LOST))
    world.rounds()
    with world.database.session() as session:
        session.get(Attempt, (job_id, 1)).ended_at = ago(2 * HOUR)
    world.due(job_id)
    world.rounds()
    world.run_attempt(job_id, 2)
    before = checkpoint(world, job_id, "00000020", finished=False)
    own = checkpoint(world, job_id, "00000020", finished=False, number=2)
    assert [line["attempt"] for line in swept()] == [1]
    assert (before.exists(), own.exists()) == (False, True)
    assert world.state(job_id) == "running"


def test_a_job_whose_folder_is_none_of_ours_is_passed_over_once(world, swept, tmp_path):
    """Its artifacts lie below a root of before: nothing there is touched, and others are swept."""
    strange, other = ended(world, 3 * HOUR), ended(world, 2 * HOUR)
    elsewhere = tmp_path / "elsewhere"
    half = checkpoint(world, other, "00000020", finished=False)
    with world.database.session() as session:
        repository.get(session, strange).artifact_uri = str(elsewhere)
    kept = elsewhere / names.checkpoint_folder(1) / "00000020"
    kept.mkdir(parents=True)
    assert [line["job_id"] for line in swept()] == [other]
    assert kept.exists()
    assert not half.exists()
    assert attempts_of(world.database, strange)[0].swept_at is not None


def test_unfinished_checkpoints_in_s3_go_too(s3, use_s3, world, swept):
    use_s3(s3.environment())
    root = f"{s3.bucket('service')}/{uuid.uuid4().hex}/artifacts"
    job_id = ended(world, HOUR + SECOND)
    with world.database.session() as session:
        repository.get(session, job_id).artifact_uri = f"{root}/run"
    world.reconciler.sweeps._context = replace(world.context, app=replace(world.app_state, artifacts=Artifacts(root)))
    fs, folder = s3.filesystem(), f"{root}/run/{names.checkpoint_folder(1)}"
    for name in ("00000010/student.safetensors", f"00000010/{names.MANIFEST}", "00000020/student.safetensors"):
        fs.pipe_file(f"{folder}/{name}", b"x")
    assert [line["folder"] for line in swept()] == ["00000020"]
    left = {path.rpartition("checkpoints/")[2] for path in fs.find(folder)}
    assert left == {"a1/00000010/student.safetensors", f"a1/00000010/{names.MANIFEST}"}


# --- open runs --------------------------------------------------------------------------------------------------------


def test_runs_that_are_nobodys_any_more_are_closed(world, swept):
    done = {
        state: ended(world, HOUR + SECOND, Outcome(state=state, reason=reason))
        for state, reason in (("succeeded", None), ("failed", Reason.DATA_ERROR))
    }
    young, running, paused = ended(world, HOUR - 60 * SECOND), world.running(), world.running()
    with world.database.session() as session:
        repository.get(session, paused).state = "paused"
    world.mlflow.runs["run-job-gone"] = FakeRun("/nowhere", {}, started_at=ago(HOUR + SECOND))
    world.mlflow.runs["run-job-to-come"] = FakeRun("/nowhere", {}, started_at=ago(HOUR - 60 * SECOND))
    for run in world.mlflow.runs.values():
        run.status = "RUNNING"
    world.mlflow.runs[f"run-{done['failed']}"].status = "SCHEDULED"  # it was cancelled or failed while it was paused
    lines = [line for line in swept() if line["event"] == "swept_open_run"]
    closed = {line["job_id"]: line["status"] for line in lines}
    assert closed == {done["succeeded"]: "FINISHED", done["failed"]: "FAILED", "job-gone": "KILLED"}
    for job_id in (*done.values(), "job-gone"):
        assert world.mlflow.runs[f"run-{job_id}"].status == closed[job_id]
    for job_id in (young, running, paused, "job-to-come"):
        assert world.mlflow.runs[f"run-{job_id}"].status == "RUNNING"


# --- sweeps that cannot be made ---------------------------------------------------------------------------------------


def all_left(world: World) -> tuple[str, Path]:
    """A job that left something for every sweep."""
    job_id = ended(world, 2 * DAY)
    record(world, f"{job_id}-a1", 2 * DAY)
    world.mlflow.runs[f"run-{job_id}"].status = "RUNNING"
    return job_id, checkpoint(world, job_id, "00000020", finished=False)


SWEEPS = {"ray": "swept_ray_record", "storage": "swept_unfinished_checkpoint", "mlflow": "swept_open_run"}


@pytest.mark.parametrize("part", PARTS)
def test_a_sweep_that_cannot_be_made_now_is_made_later_and_disturbs_no_other(world, swept, root, part):
    all_left(world)
    back = away(world, part, root)
    assert {line["event"] for line in swept()} == set(SWEEPS.values()) - {SWEEPS[part]}
    back()
    assert {line["event"] for line in swept()} == {SWEEPS[part]}
    assert swept() == []


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_goes_away_in_the_middle_of_a_sweep_stops_no_job(world, swept, root, part):
    all_left(world)
    method = {"ray": (world.ray, "submissions"), "mlflow": (world.mlflow, "open_runs")}
    if part == "storage":
        method["storage"] = (world.context.app.artifacts, "folders")
    target, name = method[part]
    original = getattr(target, name)

    def goes_away(*args: Any) -> Any:
        found = original(*args)
        away(world, part, root)
        return found

    setattr(target, name, goes_away)
    swept()
    setattr(target, name, original)
    if part == "storage":
        root.with_name("unmounted").rename(root)
    else:
        getattr(world, part).reachable = True
    job_id = world.running()
    assert {line["event"] for line in swept()} == {SWEEPS[part]}
    assert world.state(job_id) == "running"


def test_sweeps_are_made_now_and_then(world, swept):
    all_left(world)
    assert len(swept()) == 3
    calls = []
    original = world.ray.submissions
    world.ray.submissions = lambda: calls.append(1) or original()
    world.rounds(5)
    assert calls == [], "the interval has not passed"


@pytest.mark.parametrize("broken", ["ray_records", "unfinished_checkpoints", "open_runs"])
def test_an_error_in_one_sweep_leaves_the_others_and_the_round(world, swept, broken):
    """Of a kind that nobody expects."""
    all_left(world)

    def fail(*_: object) -> None:
        raise RuntimeError("not expected")

    part = {"ray_records": world.ray, "unfinished_checkpoints": world.context.app.artifacts, "open_runs": world.mlflow}
    name = {"ray_records": "submissions", "unfinished_checkpoints": "folders", "open_runs": "open_runs"}[broken]
    setattr(part[broken], name, fail)
    assert len({line["event"] for line in swept()}) == 2
