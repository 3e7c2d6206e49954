"""Ray's REST interface at its edges, and MLflow over a real store."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow.entities import Metric
from mlflow.protos.service_pb2 import GetMetricHistoryBulkInterval
from mlflow.tracking import MlflowClient
from mlflow.utils.proto_json_utils import message_to_json
from mlflow_files import copy_run, remove_for_good, tracking_store
from scripted_server import Answer, Asked, ScriptedServer
from service_fakes import SPEC

from service.adapters import ray_cluster
from service.adapters.mlflow_connection import MlflowRefused, MlflowUnreachable
from service.adapters.mlflow_runs import EXPERIMENT, HISTORIES, SAMPLE
from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import LOG_TAIL, ClusterUnreachable, Machine, RayCluster, RayState, Submission
from trainer.protocol import names
from trainer.protocol.command import Command
from trainer.protocol.request import ATTEMPT_VARIABLE, AttemptRequest
from trainer.spec.cluster import ClusterShape, NodeShape
from trainer.spec.pretrain import PretrainSpec

REQUEST = AttemptRequest(
    job_id="job-a", attempt=1, run_id="r", tracking_uri="http://m", artifact_uri="/a", spec=PretrainSpec.parse(SPEC)
)
CALLS: dict[str, Callable[[RayCluster], object]] = {
    "ping": lambda ray: ray.ping(),
    "shape": lambda ray: ray.shape(),
    "submissions": lambda ray: ray.submissions(),
    "placements": lambda ray: ray.placements(),
    "delete": lambda ray: ray.delete("job-a-a1"),
    "submit": lambda ray: ray.submit("job-a-a1", REQUEST),
}

# --- Ray --------------------------------------------------------------------------------------------------------------


def cluster(answer: Callable[[httpx.Request], httpx.Response], token_file: Path | None = None) -> RayCluster:
    """A cluster whose head answers as this function does."""
    ray = RayCluster("http://ray.test", token_file, "python3")
    ray.close()
    ray._http = httpx.Client(base_url="http://ray.test", transport=httpx.MockTransport(answer))
    return ray


def always(status: int, **content: object) -> RayCluster:
    return cluster(lambda _: httpx.Response(status, **content))


def with_log(text: str, node: str | None = "node-1") -> RayCluster:
    """A cluster where every submission's driver has this log."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/api/jobs/"):
            return httpx.Response(200, json={"status": "FAILED", "driver_node_id": node})
        return httpx.Response(200, text=text)

    return cluster(answer)


def refusing(error: type[httpx.HTTPError]) -> RayCluster:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error("no answer", request=request)

    return cluster(answer)


def test_a_profile_goes_to_the_attempt_by_name(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(200, json={})

    for profile, expected in (("lab", "lab"), (None, None)):
        ray = cluster(answer)
        ray._s3_profile = profile
        ray.submit("job-a-a1", REQUEST)
        assert json.loads(sent[-1])["runtime_env"]["env_vars"].get("AWS_PROFILE") == expected
        assert b"hidden" not in sent[-1]


ERRORS = [httpx.ConnectError, httpx.ReadTimeout, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"])
def test_a_submission_has_rays_status(status):
    assert always(200, json={"status": status}).state("job-a-a1") is RayState(status)


def test_only_a_clear_no_means_absent():
    assert always(404, text="Job job-a-a1 does not exist").state("job-a-a1") is RayState.ABSENT
    for code in (401, 403, 429, 500, 502, 503, 504, 302):
        assert always(code, text="no").state("job-a-a1") is RayState.UNKNOWN
    for error in ERRORS:
        assert refusing(error).state("job-a-a1") is RayState.UNKNOWN


def test_somebody_elses_answer_says_nothing_of_a_job():
    assert always(404, text="<h1>404 page not found</h1>").state("job-a-a1") is RayState.UNKNOWN
    assert always(200, text="<h1>Welcome</h1>").state("job-a-a1") is RayState.UNKNOWN
    assert always(200, json={"status": "COFFEE"}).state("job-a-a1") is RayState.UNKNOWN
    with pytest.raises(ClusterUnreachable, match="not a response of Ray"):
        always(200, text="<h1>Welcome</h1>").shape()


def test_a_port_where_nothing_listens_is_unknown_too():
    ray = RayCluster("http://127.0.0.1:1", None, "python3")
    assert ray.state("job-a-a1") is RayState.UNKNOWN
    with pytest.raises(ClusterUnreachable, match=r"127\.0\.0\.1:1"):
        ray.shape()
    ray.close()


@pytest.mark.parametrize("call", CALLS)
def test_a_cluster_out_of_reach_is_said_to_be(call):
    for error in ERRORS:
        with pytest.raises(ClusterUnreachable):
            CALLS[call](refusing(error))
    with pytest.raises(ClusterUnreachable, match="500"):
        CALLS[call](always(500, text="down"))


def test_an_attempt_is_submitted_whole_and_without_secrets(tmp_path):
    token = tmp_path / "token"
    token.write_text("rays-own-token\n")
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={"submission_id": "job-a-a1"})

    ray = cluster(answer, token)
    ray.submit("job-a-a1", REQUEST)
    (request,) = sent
    assert (request.method, request.url.path) == ("POST", "/api/jobs/")
    assert request.headers["authorization"] == "Bearer rays-own-token"
    body = json.loads(request.content)
    assert body["submission_id"] == "job-a-a1"
    assert body["entrypoint"] == "exec python3 -m trainer.main"
    variables = body["runtime_env"]["env_vars"]
    assert AttemptRequest.model_validate_json(variables[ATTEMPT_VARIABLE]) == REQUEST
    assert variables["RAY_JOB_STOP_SIGNAL"] == "SIGINT", "SIGTERM is notice: a deaf attempt is not to be waited for"
    assert "rays-own-token" not in request.content.decode()
    token.write_text("the-next-token")
    ray.ping()
    assert sent[1].headers["authorization"] == "Bearer the-next-token"


def test_an_id_that_exists_is_an_unclear_answer_and_the_state_tells():
    taken: set[str] = set()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            identity = json.loads(request.content)["submission_id"]
            if identity in taken:
                return httpx.Response(500, text=f"Job with submission_id {identity} already exists")
            taken.add(identity)
            return httpx.Response(200, json={})
        identity = request.url.path.rpartition("/")[2]
        if identity not in taken:
            return httpx.Response(404, text=f"Job {identity} does not exist")
        return httpx.Response(200, json={"status": "RUNNING"})

    ray = cluster(answer)
    assert ray.state("job-a-a1") is RayState.ABSENT
    ray.submit("job-a-a1", REQUEST)
    with pytest.raises(ClusterUnreachable, match="already exists"):
        ray.submit("job-a-a1", REQUEST)
    assert ray.state("job-a-a1") is RayState.RUNNING


def test_the_clusters_shape_is_that_of_its_living_nodes():
    nodes = [
        {
            "state": "ALIVE",
            "resources_total": {"CPU": 8.0, "GPU": 2.0, "memory": 1e9},
            "node_id": "a",
            "node_ip": "::1",
        },
        {"state": "DEAD", "resources_total": {"CPU": 64.0, "GPU": 8.0}, "node_id": "b", "node_ip": "::2"},
        {"state": "ALIVE", "resources_total": {"CPU": 4.0}, "node_id": "c", "node_ip": "::3"},
        {"state": "ALIVE", "resources_total": {}, "node_id": "d", "node_ip": "::4"},
    ]
    shape = always(200, json={"data": {"result": {"result": nodes}}}).shape()
    assert shape.nodes == (NodeShape(8, 2, "a", "::1"), NodeShape(4, 0, "c", "::3"), NodeShape(0, 0, "d", "::4"))
    assert (shape.cpus, shape.gpus) == (12, 2)
    assert always(200, json={"data": {"result": {"result": []}}}).shape() == ClusterShape(())


def test_machines_are_told_with_their_gpus_model_and_what_ray_says_of_dead_ones():
    nodes = [
        {
            "state": "ALIVE",
            "state_message": None,
            "resources_total": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0},
            "node_id": "a",
            "node_ip": "::1",
        },
        {"state": "DEAD", "state_message": "Drained.", "resources_total": {}, "node_id": "b", "node_ip": "::2"},
    ]
    assert always(200, json={"data": {"result": {"result": nodes}}}).machines() == [
        Machine(NodeShape(8, 2, "a", "::1"), alive=True, gpu_model="H100"),
        Machine(NodeShape(0, 0, "b", "::2"), alive=False, message="Drained."),
    ]


RECORDS = [
    {
        "type": "SUBMISSION",
        "submission_id": "job-a-a1",
        "job_id": "02000000",
        "status": "RUNNING",
        "end_time": None,
        "metadata": {"job_id": "job-a", "attempt": "1"},
    },
    {
        "type": "SUBMISSION",
        "submission_id": "other",
        "job_id": None,
        "status": "FAILED",
        "end_time": 1750000000250,
        "metadata": None,
    },
    {"type": "DRIVER", "submission_id": None, "job_id": "01000000", "status": "RUNNING", "end_time": None},
]


def test_rays_records_are_listed_with_their_ends():
    assert always(200, json=RECORDS).submissions() == {
        "job-a-a1": Submission(RayState.RUNNING, None, "02000000"),
        "other": Submission(RayState.FAILED, datetime(2025, 6, 15, 15, 6, 40, 250000, tzinfo=UTC)),
    }
    assert always(200, json=[]).submissions() == {}


def test_workers_are_found_on_their_nodes():
    def group(driver: str, state: str, *nodes: str | None) -> dict[str, object]:
        bundles = [{"node_id": node, "unit_resources": {"CPU": 2.0}} for node in nodes]
        return {"creator_job_id": driver, "state": state, "bundles": bundles}

    groups = [
        group("02000000", "CREATED", "n1", "n1", "n2"),
        group("02000000", "REMOVED", "n3"),
        group("01000000", "CREATED", "n4"),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        found = {"data": {"result": {"result": groups}}}
        return httpx.Response(200, json=RECORDS if request.url.path == "/api/jobs/" else found)

    assert cluster(answer).placements() == {"job-a-a1": ["n1", "n1", "n2"]}
    groups[0] = group("02000000", "PENDING", None, None, None)
    assert cluster(answer).placements() == {}


@pytest.mark.parametrize("name", ["shape", "submissions", "placements"])
@pytest.mark.parametrize("body", ["<html>", "[3]", "{}", '{"data": null}', '[{"submission_id": "a", "status": "NEW"}]'])
def test_a_list_that_is_not_rays_is_said_to_be_none(name, body):
    with pytest.raises(ClusterUnreachable, match="not a response of Ray"):
        CALLS[name](always(200, text=body))


def test_only_what_has_ended_can_be_deleted():
    always(200, json={"deleted": True}).delete("job-a-a1")
    always(404, text="Job job-a-a1 does not exist").delete("job-a-a1")
    with pytest.raises(ClusterUnreachable, match="non-terminal state RUNNING"):
        always(500, text="RuntimeError: it is in a non-terminal state RUNNING.").delete("job-a-a1")
    with pytest.raises(ClusterUnreachable, match="404"):
        always(404, text="no such page").delete("job-a-a1")


def test_stopping_what_has_ended_or_is_gone_is_no_error():
    for code in (200, 400, 404):
        always(code, json={"stopped": False}).stop("job-a-a1")
    with pytest.raises(ClusterUnreachable):
        refusing(httpx.ReadTimeout).stop("job-a-a1")


def test_the_end_of_a_log_is_short_and_never_in_the_way():
    tail = with_log("x" * 9000 + "the end\n").log_tail("job-a-a1")
    assert tail.endswith("the end")
    assert len(tail) == LOG_TAIL
    line = json.dumps({"time": 1.5, "level": "info", "source": "driver", "message": "Trial 1 ends.", "job_id": "job-a"})
    mixed = "".join(f"{line}\nno JSON {number}\n" for number in range(1000))
    assert with_log(mixed).log_tail("a").endswith("\nTrial 1 ends.\nno JSON 998\nTrial 1 ends.\nno JSON 999")
    assert with_log(mixed).log_tail("a").startswith(("Trial 1 ends.", "no JSON "))
    assert with_log("").log_tail("job-a-a1") == ""
    assert with_log("of another", node=None).log_tail("job-a-a1") == "", "it has ended before it had a driver"
    assert "could not be read" in refusing(httpx.ReadTimeout).log_tail("job-a-a1")
    assert "could not be read" in always(500).log_tail("job-a-a1")
    assert "not a response of Ray" in always(200, text="<html>").log_tail("job-a-a1")


@pytest.fixture
def head() -> Iterator[ScriptedServer]:
    """A real server in the place of Ray's head."""
    made = ScriptedServer()
    made.on("GET", "/api/jobs/job-a-a1", Answer(body={"driver_node_id": "node-1"}))
    yield made
    made.close()


def test_a_huge_log_is_not_held_in_memory(head):
    """Its last line alone may be that long."""
    block = b"x" * 2**20
    head.routes["GET", "/api/v0/logs/file"] = lambda _: Answer(pieces=[b"begin\n", *[block] * 200, b"\nthe end\n"])
    ray = RayCluster(head.url, None, "python3")
    tracemalloc.start()
    try:
        tail = ray.log_tail("job-a-a1")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        ray.close()
    assert tail.endswith("the end")
    assert peak < 20 * 2**20
    assert head.asked[1].query == {
        "node_id": ["node-1"], "filename": ["job-driver-job-a-a1.log"], "lines": ["1000"],
    }  # fmt: skip


def test_a_log_that_comes_too_slowly_is_given_up_on(head, monkeypatch):
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            time.sleep(0.05)
            yield b"x\n"

    head.routes["GET", "/api/v0/logs/file"] = lambda _: Answer(pieces=pieces())
    ray = RayCluster(head.url, None, "python3")
    monkeypatch.setattr(ray_cluster, "ANSWER_S", 0.3)
    assert ray.log_tail("job-a-a1") == "(its log could not be read: Ray has not sent it in 0.3 s)"
    ray.close()


# --- MLflow -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking store in a file."""
    folder = tmp_path_factory.mktemp("mlflow")
    with tracking_store(folder, folder / "artifacts") as uri:
        yield uri


@pytest.fixture
def store(uri: str) -> MlflowStore:
    return MlflowStore(uri)


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


def test_a_job_has_one_run_however_often_it_is_asked_for(store, client):
    first = store.make_run("job-a", "digits", {names.TAG_METHOD: "mae"})
    assert store.make_run("job-a", "digits", {names.TAG_METHOD: "mae"}) == first
    other = store.make_run("job-b", "digits", {})
    assert other != first
    run = client.get_run(first[0])
    assert run.info.run_name == "digits"
    assert run.info.artifact_uri == first[1]
    tags = store.run(first[0]).tags
    assert (tags[names.TAG_JOB], tags[names.TAG_METHOD]) == ("job-a", "mae")
    store.ping()


def test_a_jobs_run_is_the_one_that_is_known_and_else_the_oldest_with_its_tag(store, client):
    first = store.make_run("job-copied", "digits", {})
    copy = copy_run(client, first[0])
    assert store.make_run("job-copied", "digits", {}) == first, "its answer was lost"
    assert store.make_run("job-copied", "digits", {}, first[0]) == first
    assert store.make_run("job-copied", "digits", {}, copy)[0] == copy, "what is known counts"


def test_a_run_that_was_removed_for_good_is_replaced_once_and_by_none_of_its_copies(store, client):
    first, _ = store.make_run("job-replaced", "digits", {})
    copy = copy_run(client, first)
    remove_for_good(client, first)
    second, _ = store.make_run("job-replaced", "digits", {}, first)
    assert second not in {first, copy}
    copy_run(client, second)
    assert store.make_run("job-replaced", "digits", {}, first)[0] == second, "its answer was lost"
    remove_for_good(client, second)
    third, _ = store.make_run("job-replaced", "digits", {}, second)
    assert store.run(third).tags[names.TAG_REPLACES] == second


def test_a_run_has_all_parameters_once_whatever_a_later_attempt_brings(store, client):
    params = {f"model.part_{number}": str(number) for number in range(150)}
    run_id, _ = store.make_run("job-p", "digits", {}, None, params)
    assert (
        store.make_run("job-p", "digits", {}, run_id, params | {"model.part_0": "7", "model.added": "1"})[0] == run_id
    )
    assert client.get_run(run_id).data.params == params | {"model.added": "1"}


def test_a_run_shows_commands_heartbeats_and_its_end(store, client):
    run_id, _ = store.make_run("job-run", "digits", {})
    assert store.run(run_id).heartbeat(1) is None
    assert store.run(run_id).observed() is None
    command = Command(attempt=1, generation=2, action="pause")
    store.command(run_id, command)
    client.set_tag(run_id, names.heartbeat(1), "12.5")
    client.set_tag(run_id, names.heartbeat(10), "99.5")
    view = store.run(run_id)
    assert (view.heartbeat(1), view.heartbeat(10), view.heartbeat(2)) == (12.5, 99.5, None)
    client.set_tag(run_id, names.TAG_OBSERVED, view.tags[names.TAG_COMMAND])
    assert store.run(run_id).observed() == command
    for status in ("FINISHED", "RUNNING", "KILLED", "FAILED"):
        store.end_run(run_id, status)
        assert client.get_run(run_id).info.status == status


@pytest.fixture
def served(client: MlflowClient) -> Iterator[MlflowStore]:
    """MLflow's own store behind HTTP: what the client has no method for."""
    server = ScriptedServer()

    def sample(asked: Asked) -> Answer:
        (key,), (most,) = asked.query["metric_key"], asked.query["max_results"]
        store: Any = client._tracking_client.store
        found = store.get_metric_history_bulk_interval(asked.query["run_ids"], key, int(most), None, None)
        response = GetMetricHistoryBulkInterval.Response(metrics=[metric.to_proto() for metric in found])
        return Answer(200, message_to_json(response).encode())

    server.routes["GET", HISTORIES] = sample
    yield MlflowStore(server.url)
    server.close()


def test_the_latest_value_of_each_step_counts(store, client, served):
    (one, _), (other, _) = (store.make_run(name, "digits", {}) for name in ("job-history", "job-other"))
    logged = [(1, 0.9, 100), (2, 0.8, 200), (3, 0.7, 300), (2, 0.6, 400), (3, 0.5, 500), (0, 0.4, 600), (2, 9.0, 150)]
    for step, value, at in logged:
        client.log_metric(one, "train/loss", value, timestamp=at, step=step)
    client.log_metric(other, "train/loss", math.nan, timestamp=700, step=5)
    found = served.histories([one, other], "train/loss")
    assert [(p.step, p.value) for p in found[one]] == [(0, 0.4), (1, 0.9), (2, 0.6), (3, 0.5)]
    assert [p.time.timestamp() for p in found[one]] == [0.6, 0.1, 0.4, 0.5]
    assert [(p.step, math.isnan(p.value)) for p in found[other]] == [(5, True)]
    assert served.histories([one], "train/none") == {one: []}
    assert served.histories([], "train/loss") == {}


def test_of_a_long_curve_mlflow_gives_a_sample_with_its_ends(store, client, served):
    run_id, _ = store.make_run("job-long", "digits", {})
    for begin in range(0, 6000, 1000):
        client.log_batch(run_id, [Metric("train/loss", float(n), n, n) for n in range(begin, begin + 1000)])
    (found,) = served.histories([run_id], "train/loss").values()
    assert len(found) <= SAMPLE
    assert (found[0].step, found[-1].step) == (0, 5999)
    assert max(later.step - point.step for point, later in pairwise(found)) <= 4


def test_versions_come_by_number_and_by_job(store, client):
    assert store.versions_of_job("cats", "job-1") == []
    for name in ("cats", "dogs"):
        client.create_registered_model(name)
    for number in range(1, 12):
        client.create_model_version("cats", f"/models/{number}", tags={names.TAG_JOB: f"job-{number}"})
    client.create_model_version("dogs", "/models/d")
    (found,) = store.versions_of_job("cats", "job-3")
    assert (found.name, found.version, found.tags[names.TAG_JOB]) == ("cats", 3, "job-3")
    assert store.versions_of_job("cats", "job-12") == store.versions_of_job("dogs", "job-3") == []
    own = [(v.name, v.version) for v in store.all_versions() if v.name in {"cats", "dogs"}]
    assert own == [*(("cats", number) for number in range(1, 12)), ("dogs", 1)]
    assert store.versions_of_job("ca'ts", "job-'1") == []


def test_aliases_are_set_moved_removed_and_listed(store, client):
    for name in ("fish", "frogs"):
        client.create_registered_model(name)
        for number in (1, 2):
            client.create_model_version(name, f"/models/{number}")
    for number in (1, 2):
        store.set_alias("fish", "champion", number)
        assert store.all_models()["fish"].aliases == {"champion": number}
    store.set_alias("frogs", "tiny-best", 1)
    store.set_alias("frogs", "other", 1)
    found = store.all_models()
    assert (found["fish"].aliases, found["frogs"].aliases) == ({"champion": 2}, {"other": 1, "tiny-best": 1})
    for _ in range(2):
        store.delete_alias("fish", "champion")
        assert store.all_models()["fish"].aliases == {}
    store.delete_alias("unknown", "champion")
    with pytest.raises(MlflowUnreachable):
        store.set_alias("fish", "champion", 9)


def test_descriptions_and_labels_are_written_changed_and_removed_and_other_tags_stay(store, client):
    client.create_registered_model("bees", tags={"theirs": "x"}, description="by hand")
    client.create_model_version("bees", "/models/1", tags={names.TAG_JOB: "job-1"})

    def found(number: int | None) -> tuple[str, dict[str, str], dict[str, str]]:
        versions = {version.version: version for version in store.all_versions() if version.name == "bees"}
        thing = store.all_models()["bees"] if number is None else versions[number]
        others = {key: value for key, value in thing.tags.items() if key not in thing.copies}
        return thing.description, thing.copies, others

    team, odd = f"{names.TAG_LABEL}team", f"{names.TAG_LABEL}rcmae.job_id"
    result = f"{names.TAG_EVALUATED}eval/linear_top1_1pct"
    for number, others in ((None, {"theirs": "x"}), (1, {names.TAG_JOB: "job-1"})):
        first = {team: "vision", odd: "x", result: "0.9000 on CIFAR-10, job-1"}
        store.describe("bees", number, "Bees.\nMany.", first)
        assert found(number) == ("Bees.\nMany.", first, others)
        store.describe("bees", number, None, {team: "sound"})
        assert found(number) == ("Bees.\nMany.", {team: "sound"}, others)
        store.describe("bees", number, "", {})
        assert found(number) == ("", {}, others)
    store.describe("bees", 1, "x" * names.DESCRIPTION_LENGTH, {names.TAG_LABEL + "n" * 63: "v" * 63})
    for name, number in (("bees", 2), ("wasps", None)):
        with pytest.raises(MlflowRefused):
            store.describe(name, number, "x", {})


def test_a_version_that_is_deleted_takes_its_aliases_along_and_its_number_never_comes_again(store, client):
    client.create_registered_model("snails")
    client.create_model_version("snails", "/models/1")
    store.set_alias("snails", "champion", 1)
    store.delete_version("snails", 1, "/models/1")
    assert store.all_models()["snails"].aliases == {}
    client.create_model_version("snails", "/models/2")
    assert [version.version for version in store.all_versions() if version.name == "snails"] == [2]


def test_only_logged_models_have_a_folder(store, client, monkeypatch):
    monkeypatch.setattr("service.adapters.mlflow_registry.MODELS_PER_REQUEST", 2)
    client.create_registered_model("birds")
    folders = []
    for experiment in (client.get_experiment_by_name(EXPERIMENT).experiment_id, client.create_experiment("of-others")):
        for _ in range(2):
            model = client.create_logged_model(experiment, name="backbone")
            client.create_model_version("birds", f"models:/{model.model_id}")
            folders.append(model.artifact_location)
    versions = [version for version in store.all_versions() if version.name == "birds"]
    assert [store.folders(versions)[version.source] for version in versions] == folders, "in several requests"
    others = ("models:/m-unknown", "models:/m-'", "models:/birds/1", "/somewhere/else", "s3://bucket/m")
    assert store.folders([replace(versions[0], source=source) for source in others]) == {}
    assert store.folders([]) == {}


def test_a_server_out_of_reach_is_said_to_be(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = MlflowStore("http://rcmae:secret@127.0.0.1:1")
    calls: list[Callable[[], object]] = [
        store.ping,
        lambda: store.make_run("job-a", "a", {}),
        lambda: store.run("r"),
        lambda: store.command("r", Command(attempt=1, generation=1, action="cancel")),
        lambda: store.end_run("r", "FAILED"),
        lambda: store.histories(["r"], "train/loss"),
        store.all_models,
        lambda: store.set_alias("cats", "champion", 1),
        lambda: store.delete_alias("cats", "champion"),
        lambda: store.describe("cats", None, "furry", {}),
        lambda: store.versions_of_job("cats", "job-a"),
        store.all_versions,
    ]
    for call in calls:
        with pytest.raises(MlflowUnreachable, match=r"^Connection refused at 127\.0\.0\.1:1$"):
            call()


def test_an_address_that_is_none_is_said_without_its_password():
    with pytest.raises(MlflowUnreachable, match=r"^Invalid url: http://\*\*\*@127\.0\.0\.1:70000/"):
        MlflowStore("http://rcmae:secret@127.0.0.1:70000").ping()


def test_what_the_server_refuses_is_said_too(store):
    with pytest.raises(MlflowUnreachable, match="0123"):
        store.command("0123456789abcdef0123456789abcdef", Command(attempt=1, generation=1, action="cancel"))
