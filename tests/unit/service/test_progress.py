"""What a job's progress says: of the newest attempt alone, with the rate as measured; and its checkpoints."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from service_fakes import add_job, attempts_of, job_of, spec_with
from structlog.testing import capture_logs

from service.adapters.mlflow_runs import RunView
from service.db.tables import Attempt
from service.jobs.lifecycle import Verb
from service.jobs.progress import gpu_hours, progress_of
from service.jobs.schemas import RetryBody
from trainer.protocol import names
from trainer.protocol.checkpoint import Damage, FileRecord, Manifest
from trainer.protocol.outcome import Outcome
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys
from trainer.spec.pretrain import PretrainSpec

pytestmark = pytest.mark.both_databases

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
SPEC = PretrainSpec.parse(spec_with()).model_dump(mode="json")


def newest(samples: float, rate: float | None = None, attempt: int = 1, **values: float) -> Newest:
    found = {metric_keys.SAMPLES: samples, metric_keys.EPOCH: samples / 640, **values}
    return Newest(attempt=attempt, step=round(samples / 64), values=found, images_per_s=rate)


def tell(world: Any, job_id: str, told: Newest) -> None:
    run = world.mlflow.runs[f"run-{job_id}"]
    run.tags |= {names.TAG_NEWEST: told.model_dump_json(), names.TAG_STEPS: "20"}
    world.rounds()


def test_the_end_is_foretold_from_what_was_measured():
    measured = newest(640, 32.0, **{metric_keys.IMAGES_PER_S: 100.0, metric_keys.DATA_WAIT_FRACTION: 0.25})
    progress = progress_of(SPEC, measured, "20", [1])
    assert (progress.step, progress.steps, progress.images_per_s, progress.data_wait_fraction) == (10, 20, 100.0, 0.25)
    assert progress.eta_s == 20.0, "by the clock, and not at the rate of training alone"
    assert progress_of(SPEC, newest(640), "20", [1]).eta_s is None, "nothing was measured yet"
    assert progress_of(SPEC, measured, None, [1]).eta_s is None, "the number of steps is not known yet"
    assert progress_of(SPEC, measured, "20", [2]).eta_s is None, "measured by an attempt that has ended"
    assert progress_of(SPEC, measured, "20", []).eta_s is None
    assert progress_of(SPEC, newest(640, 0.0), "20", [1]).eta_s is None
    assert progress_of(SPEC, newest(1280, 32.0), "20", []).eta_s == 0.0
    assert progress_of(SPEC, newest(1344, 32.0), "20", [1]).eta_s == 0.0, "never negative"
    assert progress_of(SPEC, Newest(attempt=1, step=0, values={"eval/x": 1.0}), "20", [1]) is None


def test_gpu_hours_are_those_of_every_attempt():
    def attempt(gpus: int | None, hours: float | None) -> Attempt:
        ended = None if hours is None else NOON + timedelta(hours=hours)
        return Attempt(gpus=gpus, started_at=NOON, ended_at=ended)

    later = NOON + timedelta(hours=2)
    assert gpu_hours([attempt(4, 0.5), attempt(8, 1.25), attempt(2, None)], later) == 2 + 10 + 4
    assert gpu_hours([attempt(0, 1), attempt(None, 1)], later) == 0.0
    assert gpu_hours([attempt(1, None)], NOON - timedelta(seconds=5)) == 0.0, "clocks may differ"
    assert gpu_hours([], later) == 0.0


def test_the_newest_metrics_of_a_running_job_are_kept(world):
    job_id = world.running()
    assert job_of(world.database, job_id).progress is None
    tell(world, job_id, newest(640, 32.0, **{metric_keys.LOSS: 0.5}))
    job = job_of(world.database, job_id)
    assert job.metrics[metric_keys.LOSS] == 0.5
    assert (job.progress["step"], job.progress["eta_s"], job.progress["gpu_hours"]) == (10, 20.0, 0.0)
    assert attempts_of(world.database, job_id)[0].gpus == 0


def test_an_attempt_that_went_back_is_told_as_it_is(world):
    """MLflow's own last values are those of the highest step, which another attempt had reached."""
    job_id = world.running()
    tell(world, job_id, newest(1216, 32.0))
    world.mlflow.runs[f"run-{job_id}"].metrics[metric_keys.SAMPLES] = 1216.0
    world.end_attempt(job_id, None, ray="FAILED")
    world.rounds()
    assert world.state(job_id) == "recovering"
    assert job_of(world.database, job_id).progress["eta_s"] is None
    world.due(job_id)
    world.rounds()
    world.run_attempt(job_id, 2)
    assert job_of(world.database, job_id).progress["step"] == 19
    tell(world, job_id, newest(704, attempt=2))
    assert (job_of(world.database, job_id).progress["step"], world.state(job_id)) == (11, "running")
    assert job_of(world.database, job_id).progress["eta_s"] is None, "one record measures nothing"
    tell(world, job_id, newest(768, 64.0, attempt=2))
    assert job_of(world.database, job_id).progress["eta_s"] == 8.0


def test_a_job_that_begins_again_shows_nothing_of_before(world):
    job_id = world.running()
    tell(world, job_id, newest(640, 32.0))
    world.verb(job_id, Verb.CANCEL)
    world.end_attempt(job_id, Outcome(state="cancelled"))
    world.rounds()
    assert world.verb(job_id, Verb.RETRY, RetryBody(from_scratch=True)) == "queued"
    world.rounds()
    world.run_attempt(job_id, 2)
    job = job_of(world.database, job_id)
    assert (job.progress, job.metrics) == (None, None)
    tell(world, job_id, newest(64, attempt=2))
    assert job_of(world.database, job_id).progress["step"] == 1


def test_a_run_without_metrics_has_no_newest():
    assert RunView({}, {}).newest() is None


class Run:
    """Checkpoints as the trainer leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, attempt: int, step: int, ratio: float | None = None, committed: bool = True) -> None:
        folder = self.folder / f"checkpoints/a{attempt}/{step:08d}"
        folder.mkdir(parents=True)
        (folder / "student.safetensors").write_bytes(b"x" * 100)
        files = {"student.safetensors": FileRecord(size=100, sha256="")}
        metrics = {} if ratio is None else {metric_keys.RECONSTRUCTION_RATIO: ratio}
        if committed:
            manifest = Manifest(attempt=attempt, step=step, metrics=metrics, files=files)
            (folder / "manifest.json").write_text(manifest.model_dump_json())


@pytest.fixture
def run(root: Path) -> Run:
    return Run(root / "run")


def test_checkpoints_that_count_are_listed_newest_first(api, database, run):
    run.add(1, 9, 0.2)
    run.add(2, 26, 0.5)
    run.add(2, 52, 0.4)
    run.add(2, 78)
    run.add(2, 80, committed=False)
    run.add(10, 79, 0.6)
    job_id = add_job(
        database, "running", artifact_uri=str(run.folder), since_attempt=2, attempts=10, dataset_images=1797
    )
    items = api.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    assert [(c["attempt"], c["step"], c["best"]) for c in items] == [
        (10, 79, False), (2, 78, False), (2, 52, True), (2, 26, False),
    ]  # fmt: skip
    assert items[2]["path"] == "checkpoints/a2/00000052"
    assert items[2]["metrics"] == {metric_keys.RECONSTRUCTION_RATIO: 0.4}
    assert items[2]["epoch"] == pytest.approx(52 / 25, rel=0.2)
    assert items[2]["bytes"] > 100
    made = datetime.fromisoformat(items[2]["created_at"])
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_job_without_checkpoints_has_none(api, database, run):
    for fields in ({}, {"artifact_uri": str(run.folder)}):
        job_id = add_job(database, **fields)
        assert api.get(f"/v1/jobs/{job_id}/checkpoints").json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("text", ["{", "", '{"attempt": 1}'])
def test_a_damaged_manifest_hides_no_other_checkpoint_and_is_named(api, database, run, text):
    run.add(1, 8)
    run.add(1, 9)
    (run.folder / "checkpoints/a1/00000009/manifest.json").write_text(text)
    job_id = add_job(database, "running", artifact_uri=str(run.folder), attempts=1)
    with capture_logs() as logs:
        items = api.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    assert [each["path"] for each in items] == ["checkpoints/a1/00000008"]
    (line,) = [each for each in logs if each["event"] == "checkpoint_damaged"]
    assert (line["job_id"], line["path"]) == (job_id, "checkpoints/a1/00000009")


def test_a_checkpoint_that_an_attempt_found_damaged_is_not_listed(api, database, run):
    run.add(1, 8, 0.5)
    run.add(1, 9, 0.2)
    damage = Damage(attempt=2, why="student.safetensors: missing or not what the manifest says")
    (run.folder / "checkpoints/a1/00000009" / names.DAMAGE).write_text(damage.model_dump_json())
    job_id = add_job(database, "running", artifact_uri=str(run.folder), attempts=2)
    items = api.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    assert [(each["path"], each["best"]) for each in items] == [("checkpoints/a1/00000008", True)]
