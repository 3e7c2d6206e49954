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
from trainer import tracking
from trainer.errors import StorageError
from trainer.tracking import Tracker

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
    assert {key: value for key, value in found.tags.items() if key.startswith("rcmae")} == {
        "rcmae.notice": "", "rcmae.checkpoint": "a",
    }  # fmt: skip
    assert found.metrics == {"train/loss": 0.5}


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
