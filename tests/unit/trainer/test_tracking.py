"""The run in MLflow, over a connection that comes and goes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mlflow.entities import LifecycleStage
from mlflow.tracking import MlflowClient
from mlflow_files import copy_run, remove_for_good, tracking_store
from s3_server import FaultProxy

from service.embedded import processes
from trainer import patience
from trainer.errors import LossNotFinite, StorageError
from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.names import TAG_SEARCH, heartbeat
from trainer.protocol.progress import Newest
from trainer.protocol.request import AttemptRequest
from trainer.spec.metric_keys import SAMPLES
from trainer.spec.pretrain import PretrainSpec
from trainer.tracking import history, registry
from trainer.tracking.channels import LAST_GENERATION, TrialChannel
from trainer.tracking.history import HistoryReader
from trainer.tracking.interface import UsedDataset
from trainer.tracking.recorder import RunRecorder
from trainer.tracking.registry import About, BackboneRegistry
from trainer.tracking.trials import TrialRuns

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


def about(run: str, tags: dict[str, str] | None = None) -> About:
    """What a version's pages in MLflow say."""
    return About(tags or {}, run, {"optimization.base_lr": "0.00015"}, {"eval/linear_top1": 0.5}, 20)


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
def recorder(proxy, run) -> RunRecorder:
    return RunRecorder(proxy.endpoint, run, 1)


@pytest.fixture
def backbones(proxy, monkeypatch) -> BackboneRegistry:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.endpoint)  # MLflow's registry looks logged models up there
    return BackboneRegistry(proxy.endpoint, "job-a", 1)


@pytest.fixture
def backbone(tmp_path) -> Path:
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone/weights").write_bytes(b"1")
    return tmp_path / "backbone"


def versions(server: str, name: str) -> list[int]:
    return [int(found.version) for found in MlflowClient(server).search_model_versions(f"name = '{name}'")]


def test_metrics_and_tags_wait_for_an_mlflow_that_is_away(recorder, proxy, server, run):
    proxy.close()
    recorder.tag({"rcmae.notice": "one", "rcmae.checkpoint": "a"})
    recorder.log(1, {"train/loss": 0.5})
    recorder.tag({"rcmae.notice": ""})
    proxy.open()
    recorder.close()
    found = MlflowClient(server).get_run(run).data
    newest = Newest(attempt=1, step=1, values={"train/loss": 0.5})
    assert {key: value for key, value in found.tags.items() if key.startswith("rcmae")} == {
        "rcmae.notice": "", "rcmae.checkpoint": "a", "rcmae.newest": newest.model_dump_json(),
    }  # fmt: skip
    assert found.metrics == {"train/loss": 0.5}


def test_a_metric_that_is_not_finite_means_that_training_has_diverged(recorder):
    with pytest.raises(LossNotFinite, match="not finite at step 7: train/grad_norm"):
        recorder.log(7, {"train/loss": 0.5, "train/grad_norm": float("inf")})


def test_very_many_curves_do_not_keep_the_newest_values_back(recorder, server, run):
    recorder.log(3, {"eval/knn_top1": 0.5})
    for number in range(400):
        recorder.log_curve(7, {f"train/loss/finetune-backbone-{number}": 1.0})
    recorder.log(4, {"eval/linear_top1": 0.6})
    recorder.drain()
    found = MlflowClient(server).get_run(run).data
    newest = Newest.model_validate_json(found.tags["rcmae.newest"])
    assert (newest.step, newest.values) == (4, {"eval/knn_top1": 0.5, "eval/linear_top1": 0.6})
    assert found.metrics["train/loss/finetune-backbone-399"] == 1.0


def test_the_newest_values_are_those_of_this_attempt(recorder, server, run):
    """Also where an earlier one had come further, whose values MLflow goes on to show as the last."""
    MlflowClient(server).log_metric(run, "train/loss", 0.1, step=99)

    def newest() -> Newest:
        recorder.send()
        return Newest.model_validate_json(MlflowClient(server).get_run(run).data.tags["rcmae.newest"])

    recorder.log(1, {"train/loss": 0.9, SAMPLES: 64.0})
    first = newest()
    assert (first.attempt, first.step, first.images_per_s) == (1, 1, None), "one record measures nothing"
    time.sleep(0.1)
    recorder.log(2, {"train/loss": 0.8, SAMPLES: 128.0})
    rate = newest().images_per_s
    assert rate is not None
    assert 0 < rate < 640
    recorder.log(2, {"eval/linear_top1": 0.5})
    assert newest().values == {"train/loss": 0.8, SAMPLES: 128.0, "eval/linear_top1": 0.5}
    assert newest().images_per_s == rate


def test_a_run_tells_its_curves_up_to_a_step(recorder, server, run):
    """Of a step that a later attempt logged again the latest value; what was logged a moment ago is there already."""
    client = MlflowClient(server)
    for moment, value in ((1, 0.9), (3, 0.7), (2, 0.8)):
        client.log_metric(run, "train/loss", value, timestamp=moment, step=10)
    client.log_metric(run, "train/loss", 0.1, step=21)
    recorder.tag({"rcmae.total_steps": "40"})
    recorder.log(20, {"train/loss": 0.5, "eval/linear_top1": 0.25})
    recorder.drain()
    found = HistoryReader(server).read(run, ["train/loss", "eval/linear_top1", "train/grad_norm"], 20)
    assert found.curves == {"train/loss": [(10, 0.7), (20, 0.5)], "eval/linear_top1": [(20, 0.25)]}
    assert found.tags["rcmae.total_steps"] == "40"
    recorder.close()


def test_a_long_curve_is_told_by_some_of_its_points(recorder, server, run):
    for first in range(0, 6000, 1000):
        for step in range(first, first + 1000):
            recorder.log(step, {"train/loss": float(step)})
        recorder.send()
    points = HistoryReader(server).read(run, ["train/loss"], 4999).curves["train/loss"]
    assert 1000 < len(points) <= history.CURVE_POINTS + 2
    assert (points[0], points[-1]) == ((0, 0.0), (4999, 4999.0))
    recorder.close()


def test_a_question_about_a_run_waits_for_an_mlflow_that_is_away(recorder, proxy, run):
    recorder.log(1, {"train/loss": 0.5})
    with proxy.away(4):
        recorder.drain()
    with proxy.away(4):
        assert HistoryReader(proxy.endpoint).read(run, ["train/loss"], 1).curves == {"train/loss": [(1, 0.5)]}
    recorder.close()


def test_a_version_is_of_the_run_that_trained_it(proxy, server, run, backbone, monkeypatch):
    """Also where another job publishes it."""
    client = MlflowClient(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.endpoint)
    publisher = BackboneRegistry(proxy.endpoint, "job-p", 1)
    tags = {"rcmae.metric.eval/linear_top1": "0.5", "rcmae.source_job_id": "job-a"}
    assert publisher.register("lent", backbone, about(run, tags)) == 1
    (version,) = client.search_model_versions("name = 'lent' AND tags.`rcmae.metric.eval/linear_top1` = '0.5'")
    assert version.run_id == run
    assert version.tags == tags | {"rcmae.job_id": "job-p", "rcmae.attempt": "1"}


def test_a_version_s_page_in_mlflow_has_the_spec_and_the_evaluation(backbones, proxy, server, run, backbone):
    """Each once, although of every second request the answer is lost."""
    client = MlflowClient(server)
    proxy.faults.cut_every = 2
    assert backbones.register("described", backbone, about(run)) == 1
    proxy.faults.cut_every = 0
    model = client.get_logged_model(client.get_model_version("described", "1").source.removeprefix("models:/"))
    assert model.params == {"optimization.base_lr": "0.00015"}
    assert [(metric.key, metric.value, metric.step) for metric in model.metrics] == [("eval/linear_top1", 0.5, 20)]


def test_a_version_of_a_run_that_was_deleted_in_mlflow_is_registered(backbones, server, run, backbone):
    """Its page lacks the evaluation, which MLflow keeps with the run."""
    client = MlflowClient(server)
    client.delete_run(run)
    try:
        assert backbones.register("orphan", backbone, about(run)) == 1
    finally:
        client.restore_run(run)
    model = client.get_logged_model(client.get_model_version("orphan", "1").source.removeprefix("models:/"))
    assert model.status == "READY"
    assert not model.metrics


def test_datasets_that_mlflow_refuses_hold_up_no_metrics(recorder, server, run):
    recorder.use([UsedDataset("training", "x" * 900, "y" * 70_000, "abc", 5)])
    recorder.log(1, {"train/loss": 0.5})
    recorder.close()
    found = MlflowClient(server).get_run(run)
    assert found.data.metrics["train/loss"] == 0.5
    assert found.inputs.dataset_inputs == []


def test_a_long_name_of_a_dataset_is_cut(recorder, server, run):
    recorder.use([UsedDataset("training", "x" * 900, "s3://data/photos", "abc", 5)])
    recorder.close()
    (used,) = MlflowClient(server).get_run(run).inputs.dataset_inputs
    assert used.dataset.name == "x" * 500


def test_a_run_s_page_in_mlflow_has_its_datasets_once(recorder, proxy, server, run):
    fingerprint = "0123456789abcdef" * 4
    used = [
        UsedDataset("training", "photos", "s3://data/photos", fingerprint, 500),
        UsedDataset("evaluation", "digits", "builtin://digits", fingerprint, 1797),
    ]
    with proxy.away(4):
        recorder.use(used)
        recorder.drain()
    recorder.use(used)  # as the next attempt does
    recorder.close()
    inputs = MlflowClient(server).get_run(run).inputs.dataset_inputs
    shown = {
        (found.tags[0].value, found.dataset.name, found.dataset.digest, json.loads(found.dataset.source)["uri"])
        for found in inputs
    }
    assert len(inputs) == 2
    assert shown == {
        ("training", "photos", fingerprint[:36], "s3://data/photos"),
        ("evaluation", "digits", fingerprint[:36], "builtin://digits"),
    }


def test_closing_gives_up_in_the_end(recorder, proxy, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 2.0)
    proxy.close()
    recorder.log(1, {"train/loss": 0.5})
    with pytest.raises(StorageError, match="could not store the last metrics and tags"):
        recorder.close()


def test_a_registration_waits_for_an_mlflow_that_is_away(backbones, proxy, server, run, backbone):
    with proxy.away(4):
        assert backbones.register("away", backbone, about(run, {"k": "v"})) == 1
    assert versions(server, "away") == [1]
    assert backbones.register("away", backbone, about(run, {"k": "v"})) == 1, "a later attempt finds it"


def test_a_job_that_begins_again_from_scratch_makes_a_new_version(backbones, proxy, server, run, backbone):
    assert backbones.register("again", backbone, about(run)) == 1
    for attempt, since, version in ((2, 1, 1), (3, 3, 2), (4, 3, 2)):
        later = BackboneRegistry(proxy.endpoint, "job-a", attempt, since)
        assert later.register("again", backbone, about(run)) == version
    assert sorted(versions(server, "again")) == [1, 2]


def test_answers_that_are_lost_make_no_second_version(backbones, proxy, server, run, backbone):
    """Of every second request the answer is lost after MLflow has done what it asks for, creations too."""
    proxy.faults.cut_every = 2
    assert backbones.register("lost", backbone, about(run, {"k": "v"})) == 1
    assert proxy.faults.done > 3
    proxy.faults.cut_every = 0
    assert versions(server, "lost") == [1]


def test_the_answer_to_the_version_s_own_creation_is_lost(backbones, server, run, backbone, monkeypatch):
    create, made = backbones._client.create_model_version, []

    def lose(*args, **kwargs):
        made.append(create(*args, **kwargs))
        raise registry.MlflowException("the connection was cut")

    monkeypatch.setattr(backbones._client, "create_model_version", lose)
    assert backbones.register("own", backbone, about(run)) == 1
    assert len(made) == 1
    assert versions(server, "own") == [1]


def test_a_refusal_is_no_absence(backbones, run, backbone):
    with pytest.raises(StorageError, match="MLflow could not register the backbone 'a/b'"):
        backbones.register("a/b", backbone, about(run))


def test_the_client_sends_nothing_twice_by_itself():
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_version_that_others_made_with_the_jobs_tags_is_not_taken_for_the_jobs(backbones, server, run, backbone):
    client = MlflowClient(server)
    stray = client.create_logged_model(client.get_run(run).info.experiment_id, name="stray")
    client.create_registered_model("strays")
    client.create_model_version(
        "strays", f"models:/{stray.model_id}", tags={"rcmae.job_id": "job-a"}, model_id=stray.model_id
    )
    assert backbones.register("strays", backbone, about(run)) == 2
    client.copy_model_version("models:/strays/2", "strays")
    assert backbones.register("strays", backbone, about(run)) == 2, "a later attempt finds it"


@pytest.mark.parametrize("fate", ["there", "deleted", "gone"])
def test_a_trials_run_is_the_one_that_is_known_and_else_the_oldest_with_its_tags(tmp_path, fate):
    with tracking_store(tmp_path, tmp_path / "artifacts") as uri:
        client = MlflowClient(uri)
        search = client.create_run(client.create_experiment("searches")).info.run_id
        runs = TrialRuns(uri, search, "job-s")
        first = runs.open(3, "s-3", {"lr": "0.1"}, None)
        copy = copy_run(client, first[0])
        assert runs.open(3, "s-3", {"lr": "0.1"}, None) == first, "its answer was lost"
        if fate == "deleted":
            client.delete_run(first[0])
        elif fate == "gone":
            remove_for_good(client, first[0])
        found = runs.open(3, "s-3", {"lr": "0.1"}, first[0])
        assert runs.open(3, "s-3", {"lr": "0.1"}, first[0]) == found
        run = client.get_run(found[0])
    assert found[0] != copy
    assert (found == first) == (fate != "gone")
    assert (run.info.lifecycle_stage, run.info.status) == (LifecycleStage.ACTIVE, "RUNNING")
    assert run.data.params == {"lr": "0.1"}


def test_a_trial_hears_its_search_and_shows_its_life_in_its_own_run(tmp_path):
    with tracking_store(tmp_path, tmp_path / "artifacts") as uri:
        client = MlflowClient(uri)
        experiment = client.create_experiment("searches")
        search, trial = (client.create_run(experiment).info.run_id for _ in range(2))
        spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "builtin://digits"}})
        request = AttemptRequest(job_id="job-s", attempt=2, run_id=trial, tracking_uri=uri, artifact_uri="x", spec=spec)
        channel = TrialChannel(request, search, 7, 3)
        before = round(time.time(), 3)
        channel.heartbeat(None)
        assert channel.read_command() is None
        orders = SearchOrders(trials=9, concurrency=1, max_failed=0, stopped=(3,))
        client.set_tag(search, TAG_SEARCH, orders.model_dump_json())
        assert channel.read_command() == Command(attempt=7, generation=LAST_GENERATION, action="cancel")
        own, searches = (client.get_run(run).data.tags for run in (trial, search))
    assert heartbeat(2) not in searches
    assert float(own[heartbeat(2)]) >= before
