"""The run in MLflow, over a connection that comes and goes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mlflow.tracking import MlflowClient
from s3_server import FaultProxy

from service.embedded import processes
from trainer.errors import StorageError
from trainer.protocol.progress import Newest
from trainer.spec.metric_keys import SAMPLES
from trainer.tracking import tracker as tracking
from trainer.tracking.tracker import Tracker

START_SECONDS = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """A real MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
    (port,) = processes.free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--allowed-hosts", "*"),
        *("--no-serve-artifacts", "--default-artifact-root", str(folder / "artifacts")),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
    end = time.monotonic() + START_SECONDS
    while not answers(url):
        assert server.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.2)
    yield url
    os.killpg(server.pid, 9)
    server.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def proxy(server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(server)
    yield proxy
    proxy.close()


@pytest.fixture
def run(server) -> str:
    client = MlflowClient(server)
    found = client.get_experiment_by_name("tests")
    experiment = found.experiment_id if found else client.create_experiment("tests")
    return client.create_run(experiment).info.run_id


@pytest.fixture
def tracker(proxy, run, monkeypatch) -> Tracker:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.endpoint)  # its registry looks logged models up there
    return Tracker(proxy.endpoint, run, "job-a", 1)


@pytest.fixture
def backbone(tmp_path) -> Path:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone/weights").write_bytes(b"1")
    return tmp_path / "backbone"


def versions(server: str, name: str) -> list[int]:
    return [int(found.version) for found in MlflowClient(server).search_model_versions(f"name = '{name}'")]


def test_metrics_and_tags_wait_for_an_mlflow_that_is_away(tracker, proxy, server, run):
    proxy.close()
    tracker.tag({"rcmae.notice": "one", "rcmae.checkpoint": "a"})
    tracker.log(1, {"train/loss": 0.5})
    tracker.tag({"rcmae.notice": ""})
    proxy.open()
    tracker.close()
    found = MlflowClient(server).get_run(run).data
    newest = Newest(attempt=1, step=1, values={"train/loss": 0.5})
    assert {key: value for key, value in found.tags.items() if key.startswith("rcmae")} == {
        "rcmae.notice": "", "rcmae.checkpoint": "a", "rcmae.newest": newest.model_dump_json(),
    }  # fmt: skip
    assert found.metrics == {"train/loss": 0.5}


def test_the_newest_values_are_those_of_this_attempt(tracker, server, run):
    """Also where an earlier one had come further, whose values MLflow goes on to show as the last."""
    MlflowClient(server).log_metric(run, "train/loss", 0.1, step=99)

    def newest() -> Newest:
        tracker.flush()
        return Newest.model_validate_json(MlflowClient(server).get_run(run).data.tags["rcmae.newest"])

    tracker.log(1, {"train/loss": 0.9, SAMPLES: 64.0})
    first = newest()
    assert (first.attempt, first.step, first.images_per_s) == (1, 1, None), "one record measures nothing"
    time.sleep(0.1)
    tracker.log(2, {"train/loss": 0.8, SAMPLES: 128.0})
    rate = newest().images_per_s
    assert rate is not None
    assert 0 < rate < 640
    tracker.log(2, {"eval/linear_top1": 0.5})
    assert newest().values == {"train/loss": 0.8, SAMPLES: 128.0, "eval/linear_top1": 0.5}
    assert newest().images_per_s == rate


def test_a_run_tells_its_curves_up_to_a_step(tracker, server, run):
    """Of a step that a later attempt logged again the latest value; what was logged a moment ago is there already."""
    client = MlflowClient(server)
    for moment, value in ((1, 0.9), (3, 0.7), (2, 0.8)):
        client.log_metric(run, "train/loss", value, timestamp=moment, step=10)
    client.log_metric(run, "train/loss", 0.1, step=21)
    tracker.tag({"rcmae.total_steps": "40"})
    tracker.log(20, {"train/loss": 0.5, "eval/linear_top1": 0.25})
    found = tracker.history(run, ["train/loss", "eval/linear_top1", "train/grad_norm"], 20)
    assert found.curves == {"train/loss": [(10, 0.7), (20, 0.5)], "eval/linear_top1": [(20, 0.25)]}
    assert found.tags["rcmae.total_steps"] == "40"
    tracker.close()


def test_a_long_curve_is_told_by_some_of_its_points(tracker, run):
    for first in range(0, 6000, 1000):
        for step in range(first, first + 1000):
            tracker.log(step, {"train/loss": float(step)})
        tracker.flush()
    points = tracker.history(run, ["train/loss"], 4999).curves["train/loss"]
    assert 1000 < len(points) <= tracking.SAMPLE + 2
    assert (points[0], points[-1]) == ((0, 0.0), (4999, 4999.0))
    tracker.close()


def test_a_question_about_a_run_waits_for_an_mlflow_that_is_away(tracker, proxy, run):
    tracker.log(1, {"train/loss": 0.5})
    with proxy.away(4):
        assert tracker.history(run, ["train/loss"], 1).curves == {"train/loss": [(1, 0.5)]}
    tracker.close()


def test_a_version_is_of_the_run_that_trained_it(proxy, server, run, backbone, monkeypatch):
    """Also where another job publishes it."""
    client = MlflowClient(server)
    other = client.create_run(client.get_run(run).info.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.endpoint)
    publisher = Tracker(proxy.endpoint, other, "job-p", 1)
    tags = {"rcmae.metric.eval/linear_top1": "0.5", "rcmae.source_job_id": "job-a"}
    assert publisher.register("lent", backbone, tags, run) == 1
    publisher.close()
    (version,) = client.search_model_versions("name = 'lent' AND tags.`rcmae.metric.eval/linear_top1` = '0.5'")
    assert version.run_id == run
    assert version.tags == tags | {"rcmae.job_id": "job-p", "rcmae.attempt": "1"}


def test_closing_gives_up_in_the_end(tracker, proxy, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 2.0)
    proxy.close()
    tracker.log(1, {"train/loss": 0.5})
    with pytest.raises(StorageError, match="did not take the last metrics and tags"):
        tracker.close()


def test_a_registration_waits_for_an_mlflow_that_is_away(tracker, proxy, server, backbone):
    with proxy.away(4):
        assert tracker.register("away", backbone, {"k": "v"}) == 1
    assert versions(server, "away") == [1]
    assert tracker.register("away", backbone, {"k": "v"}) == 1, "a later attempt finds it"
    tracker.close()


def test_a_job_that_begins_again_from_scratch_makes_a_new_version(tracker, proxy, server, run, backbone):
    assert tracker.register("again", backbone, {}) == 1
    tracker.close()
    for attempt, since, version in ((2, 1, 1), (3, 3, 2), (4, 3, 2)):
        later = Tracker(proxy.endpoint, run, "job-a", attempt, since)
        assert later.register("again", backbone, {}) == version
        later.close()
    assert sorted(versions(server, "again")) == [1, 2]


def test_answers_that_are_lost_make_no_second_version(tracker, proxy, server, backbone):
    """Of every second request the answer is lost after MLflow has done what it asks for, creations too."""
    proxy.faults.cut_every = 2
    assert tracker.register("lost", backbone, {"k": "v"}) == 1
    assert proxy.faults.done > 3
    proxy.faults.cut_every = 0
    tracker.close()
    assert versions(server, "lost") == [1]


def test_the_answer_to_the_version_s_own_creation_is_lost(tracker, server, backbone, monkeypatch):
    create, made = tracker._client.create_model_version, []

    def lose(*args, **kwargs):
        made.append(create(*args, **kwargs))
        raise tracking.MlflowException("the connection was cut")

    monkeypatch.setattr(tracker._client, "create_model_version", lose)
    assert tracker.register("own", backbone, {}) == 1
    assert len(made) == 1
    assert versions(server, "own") == [1]
    tracker.close()


def test_a_refusal_is_no_absence(tracker, backbone):
    with pytest.raises(StorageError, match="MLflow did not take the backbone 'a/b'"):
        tracker.register("a/b", backbone, {})
    tracker.close()


def test_the_client_sends_nothing_twice_by_itself():
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
