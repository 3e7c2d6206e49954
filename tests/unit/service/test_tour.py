"""The README's tour of the code follows what a real job does, from its submission to the pulled backbone."""

from __future__ import annotations

import inspect
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest
from conftest import token_of
from mlflow_files import tracking_store
from service_world import World

from service.adapters.mlflow_store import MlflowStore
from service.adapters.ray_cluster import RayCluster
from service.client.sdk import Client
from trainer import main
from trainer.attempt import worker, workers
from trainer.protocol.request import ATTEMPT_VARIABLE
from trainer.tracking.history import HistoryReader

ROOT = Path(main.__file__).parents[1]
OURS = (f"{ROOT}/service/", f"{ROOT}/trainer/")
SPEC: dict[str, Any] = {
    "kind": "pretrain",
    "dataset": {"uri": "builtin://digits"},
    "model": {
        "img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 32, "depth": 1, "num_heads": 4,
        "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4,
    },
    "optimization": {"epochs": 1, "global_batch_size": 300},
    "evaluation": {"probes": []},
    "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
    "export": {"formats": ["timm"]},
    "register_as": "toured",
}  # fmt: skip


class Stop(NamedTuple):
    """One file of the tour."""

    file: str
    names: list[str]
    """The functions and classes that it names, the first one in its turn."""


def tour() -> list[Stop]:
    chapter = (ROOT / "README.md").read_text().partition("\n## A tour: ")[2].partition("\n## ")[0]
    items = re.findall(r"^\d+\. \[`(.+?)`\]\((.+?)\), (`.+?`(?:, `.+?`)*): ", chapter, flags=re.MULTILINE)
    assert len(items) == len(re.findall(r"^\d+\. ", chapter, flags=re.MULTILINE)), "an item has another form"
    assert all(shown == target for shown, target, _ in items)
    return [Stop(file, re.findall(r"`(.+?)`", names)) for file, _, names in items]


class Calls:
    """Which functions of ours were called, in the order of their first calls."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], int] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(OURS)
        if event == "call" and ours and code.co_flags & inspect.CO_OPTIMIZED:  # a class's body, at its import, is not
            self._first.setdefault((code.co_filename, code.co_qualname), len(self._first))

    def first(self, file: str, name: str) -> int | None:
        """The turn of a function, or of a class's first method; None where the job never called it."""
        found = [
            turn
            for (path, called), turn in self._first.items()
            if path == str(ROOT / file) and (called == name or called.startswith(f"{name}."))
        ]
        return min(found, default=None)


@contextmanager
def recorded() -> Iterator[Calls]:
    """The calls of this thread, and of those that it starts meanwhile."""
    calls, before = Calls(), (sys.getprofile(), threading.getprofile())
    threading.setprofile(calls)
    sys.setprofile(calls)
    try:
        yield calls
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])


class RayHead:
    """Answers the service as a Ray head of one node does, and keeps what it was given."""

    def __init__(self) -> None:
        self.submitted: dict[str, Any] = {}
        self.status = "RUNNING"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        node = {"node_id": "n", "node_ip": "127.0.0.1", "state": "ALIVE", "resources_total": {"CPU": 2.0}}
        listed = {"/api/v0/nodes": [node], "/api/v0/placement_groups": []}
        if request.method == "POST":
            self.submitted = json.loads(request.content)
            return httpx.Response(200, json={})
        if request.url.path in listed:
            return httpx.Response(200, json={"data": {"result": {"result": listed[request.url.path]}}})
        return httpx.Response(200, json=[] if request.url.path == "/api/jobs/" else {"status": self.status})


class OneWorker:
    """Ray Train with one worker, in this process."""

    def __init__(self, work: Callable[[dict[str, Any]], None], train_loop_config: dict[str, Any], **_: object) -> None:
        self._work, self._config = work, train_loop_config

    def fit(self) -> None:
        self._work(self._config)


@pytest.fixture
def head() -> RayHead:
    return RayHead()


@pytest.fixture
def world(settings, database, root, tmp_path, head) -> Iterator[World]:
    """A reconciler over the real adapters, MLflow's records in a file, and what plays Ray's head."""
    ray = RayCluster("http://ray.test", None, "python3")
    ray.close()
    ray._http = httpx.Client(base_url="http://ray.test", transport=httpx.MockTransport(head))
    with tracking_store(tmp_path, root / "1") as uri:
        yield World(settings, database, ray, MlflowStore(uri))


@pytest.fixture
def attempt(monkeypatch, tmp_path, head) -> Iterator[Callable[[], int]]:
    """Runs what the head was given as the driver of an attempt, with its worker beside it in this process."""
    monkeypatch.setattr(workers, "join_cluster", lambda: None)
    monkeypatch.setattr(workers, "_Trainer", OneWorker)
    alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: alone)
    monkeypatch.setattr(worker, "record_worker", lambda *_: None)
    monkeypatch.setattr(HistoryReader, "_curve", lambda *_: [])  # of MLflow's server alone
    monkeypatch.setenv("RCMAE_CACHE_DIR", str(tmp_path / "cache"))
    on_stop = {number: signal.getsignal(number) for number in main.STOP_SIGNALS}

    def run() -> int:
        monkeypatch.setenv(ATTEMPT_VARIABLE, head.submitted["runtime_env"]["env_vars"][ATTEMPT_VARIABLE])
        return main.main()

    yield run
    for number, handler in on_stop.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_reaches_the_files_of_the_tour_in_its_order(world, served, head, attempt, tmp_path):
    client = Client("http://testserver", token_of("alice"))
    client.close()
    client._connection._http = served
    with recorded() as calls:
        job = client.submit(SPEC)
        world.rounds(2)  # it starts, and is looked at
        assert attempt() == 0
        head.status = "SUCCEEDED"
        world.rounds()
        client.pull("toured", tmp_path / "pulled", form="timm")
    assert client.job(job.id).state == "succeeded"
    assert (tmp_path / "pulled" / "model.safetensors").is_file()

    stops = tour()
    assert len({stop.file for stop in stops}) == len(stops), "a file is named twice"
    turns = {f"{stop.file}: {name}": calls.first(stop.file, name) for stop in stops for name in stop.names}
    assert [name for name, turn in turns.items() if turn is None] == [], "the job never called it"
    in_turn = sorted(stops, key=lambda stop: turns[f"{stop.file}: {stop.names[0]}"])
    assert [stop.file for stop in stops] == [stop.file for stop in in_turn]
