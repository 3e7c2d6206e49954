"""Downloads, last use and space: what is counted, how often, where it is shown, and to whom."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
import structlog
from backbone_files import FILES, WEIGHTS, Registry, sha256, write
from command_line import rcmae
from conftest import Clients, token_of
from fastapi.testclient import TestClient
from huggingface_hub import HfApi
from service_fakes import add_job, problem, spec_with
from service_world import World
from sqlalchemy import Engine, event, func, select
from structlog.testing import capture_logs

from service.adapters.storage import Artifacts, StorageRefused
from service.adapters.studies import Studies
from service.app import attach, build_app
from service.auth import trail
from service.context.app_state import AppState
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import BackboneVersion, VersionUse
from service.jobs.work import Work
from service.kinds.registry import KINDS
from service.settings import Settings

DIGITS = "/v1/backbones/digits"
BASE = f"{DIGITS}/versions/1"
FILE = f"{BASE}/files/hf/model.safetensors"
HUB = "/hf/rcmae/digits"
FORMATS = {
    "onnx/model.onnx": b"graph",
    "onnx/model.onnx.data": b"weights",
    "onnx/signature.json": b"{}",
    "torch_export/model.pt2": b"program",
}
MEASURED = sum(map(len, FILES.values()))


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


@pytest.fixture
def on(monkeypatch) -> Callable[[int], None]:
    """Sets the day of a month on which downloads happen."""
    return lambda day: monkeypatch.setattr(
        "service.backbones.use.now", lambda: datetime(2031, 1, day, 23, 59, tzinfo=UTC)
    )


def use_of(api: TestClient, name: str = "digits", number: int = 1) -> tuple[int, str | None]:
    version = api.get(f"/v1/backbones/{name}/versions/{number}").json()
    return version["downloads"], version["last_used_on"]


def pull(api: TestClient, path: str = FILE, **headers: str) -> None:
    assert api.get(path, headers=headers).status_code in {200, 206}


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        FILE,
        f"{BASE}/files/timm/model.safetensors",
        f"{BASE}/files/onnx/model.onnx",
        f"{BASE}/files/onnx/model.onnx.data",
        f"{BASE}/files/torch_export/model.pt2",
        f"{BASE}/archive",
        f"{BASE}/archive?format=timm",
        f"{HUB}/resolve/main/model.safetensors",
        f"{HUB}-onnx/resolve/v1/model.onnx",
        f"{HUB}/raw/main/model.safetensors",
    ],
)
def test_whoever_gets_weights_is_counted(api, registry, on, path):
    registry.add(files=FILES | FORMATS)
    on(5)
    pull(api, path)
    assert use_of(api) == (1, "2031-01-05")


def test_a_part_of_the_weights_is_a_download_and_a_link_to_them_too(app, api, registry, monkeypatch):
    registry.add()
    pull(api, Range="bytes=0-9")
    assert use_of(api)[0] == 1
    state = app.state.app_state
    app.state.app_state = replace(state, settings=state.settings.model_copy(update={"presigned_downloads": True}))
    monkeypatch.setattr(Artifacts, "link", lambda *_: "https://s3/x")
    bob = TestClient(app, headers={"Authorization": f"Bearer {token_of('bob')}"}, follow_redirects=False)
    assert bob.head(f"{HUB}/resolve/main/model.safetensors").status_code == 302
    assert use_of(api)[0] == 1, "whoever only asks for the size gets nothing"
    assert bob.get(f"{HUB}/resolve/main/model.safetensors").status_code == 302
    assert use_of(api)[0] == 2


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("HEAD", f"{BASE}/files/hf/config.json", {}, 200),
        ("HEAD", f"{HUB}/resolve/main/none.json", {}, 404),
        ("GET", FILE, {"Range": "bytes=99999999-"}, 416),
        ("GET", FILE, {"Authorization": "Bearer none"}, 401),
        ("GET", f"{BASE}/files/timm/none.safetensors", {}, 404),
        ("GET", f"{BASE}/archive?format=onnx", {}, 404),
        ("GET", f"{BASE}/files/README.md", {}, 200),
        ("GET", f"{BASE}/files/card/curves.png", {}, 200),
        ("GET", f"{BASE}/files/hf/config.json", {}, 200),
        ("GET", f"{BASE}/files/SHA256SUMS", {}, 200),
        ("GET", "/hf/api/models/rcmae/digits", {}, 200),
        ("GET", BASE, {}, 200),
    ],
)
def test_what_gives_no_weights_is_not(api, registry, method, path, headers, status):
    registry.add()
    assert api.request(method, path, headers=headers).status_code == status
    assert use_of(api) == (0, None)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("HEAD", FILE, {}, 200),
        ("HEAD", f"{BASE}/archive", {}, 200),
        ("GET", FILE, {"If-None-Match": f'"{sha256(WEIGHTS)}"'}, 304),
        ("HEAD", f"{HUB}/resolve/main/model.safetensors", {}, 200),
        ("HEAD", f"{HUB}/resolve/v1/config.json", {}, 200),
        ("GET", f"{HUB}/resolve/main/config.json", {}, 200),
        ("GET", f"{HUB}/resolve/main/model.safetensors", {"If-None-Match": f'"{sha256(WEIGHTS)}"'}, 304),
    ],
)
def test_whoever_asks_for_what_it_has_uses_the_version_and_downloads_nothing(
    clients, registry, on, method, path, headers, status
):
    """As clients do that load from their caches."""
    registry.add()
    on(5)
    assert clients.bob.request(method, path, headers=headers).status_code == status
    assert use_of(clients.alice) == (0, "2031-01-05")
    assert clients.alice.get("/hf/api/models/rcmae/digits?expand=downloadsAllTime").json()["downloadsAllTime"] == 0
    (user,) = clients.alice.get(f"{BASE}/users").json()["items"]
    assert (user["owner"], user["downloads"], user["last_used_on"]) == ("bob", 0, "2031-01-05")


@pytest.mark.both_databases
def test_a_token_that_only_asks_writes_once_a_day_and_once_more_if_it_downloads(clients, registry, on):
    registry.add()
    versions: list[tuple[int, str | None]] = []
    with changes() as written:
        for day, path in (
            (5, "config.json"), (5, "model.safetensors"), (5, "README.md"), (6, "config.json")
        ):  # fmt: skip
            on(day)
            assert clients.bob.head(f"{HUB}/resolve/main/{path}").status_code == 200
        assert clients.bob.head(f"{HUB}-timm/resolve/main/config.json").status_code == 200
        versions.append(use_of(clients.alice))
        asked = len(written)
        pull(clients.bob, f"{HUB}/resolve/main/model.safetensors")
        pull(clients.bob, f"{HUB}/resolve/main/model.safetensors", Range="bytes=0-9")
        versions.append(use_of(clients.alice))
    assert (asked, len(written)) == (2, 3)
    assert versions == [(0, "2031-01-06"), (1, "2031-01-06")]
    (user,) = clients.alice.get(f"{BASE}/users").json()["items"]
    assert (user["downloads"], user["last_used_on"], user["formats"]) == (1, "2031-01-06", ["hf"])


@contextmanager
def changes() -> Iterator[list[str]]:
    """The statements that change uses of versions."""
    found: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith(("INSERT INTO version_use", "UPDATE version_use")):
            found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_hub_client_that_loads_from_its_cache_uses_the_version(address, served, registry, on, tmp_path):
    """A nightly job with a pinned revision: it sends a HEAD, and has the weights."""
    registry.add()
    hub = HfApi(endpoint=f"{address}/hf", token=token_of("alice"))

    def load() -> None:
        for name in ("config.json", "model.safetensors"):
            hub.hf_hub_download("rcmae/digits", name, revision="v1", cache_dir=tmp_path)

    on(5)
    load()
    on(9)
    load()
    assert use_of(served) == (1, "2031-01-09")


@pytest.mark.both_databases
def test_a_download_is_recorded_when_it_begins(app, registry, database, monkeypatch):
    """However long its body takes: nobody deletes the version meanwhile."""
    registry.add()
    monkeypatch.setattr("service.adapters.storage.PIECE", 8)
    real, seen, first = Artifacts.piece, [], threading.Event()

    def recorded() -> bool:
        with database.read() as session:
            return session.get_one(BackboneVersion, ("digits", 1)).downloads == 1

    def piece(self: Artifacts, *arguments: Any) -> bytes:
        if first.is_set() and not seen:
            seen.append(eventually(recorded))
        first.set()
        return real(self, *arguments)

    monkeypatch.setattr(Artifacts, "piece", piece)
    api = TestClient(app, headers={"Authorization": f"Bearer {token_of('bob')}"})
    assert api.get(FILE).content == WEIGHTS
    assert seen == [True]


def eventually(is_so: Callable[[], bool]) -> bool:
    """Whether something becomes true within five seconds."""
    end = time.monotonic() + 5
    while not (found := is_so()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_the_first_byte_does_not_wait_for_the_record(app, registry, monkeypatch):
    registry.add()
    monkeypatch.setattr("service.adapters.storage.PIECE", 8)
    real_piece, real_use, read, sent = Artifacts.piece, trail.record_use, [], threading.Event()

    def piece(self: Artifacts, *arguments: Any) -> bytes:
        read.append(1)
        if len(read) > 1:
            sent.set()  # the first piece is on its way
        return real_piece(self, *arguments)

    waited: list[bool] = []

    def slow(database: Database, *given: Any) -> bool:
        if given[-1] is not None:
            waited.append(sent.wait(10))
        return real_use(database, *given)

    monkeypatch.setattr(Artifacts, "piece", piece)
    monkeypatch.setattr("service.access.uses.record_use", slow)
    api = TestClient(app, headers={"Authorization": f"Bearer {token_of('bob')}"})
    assert api.get(FILE).content == WEIGHTS
    assert waited == [True]
    assert use_of(api)[0] == 1


def test_a_download_while_the_same_is_being_recorded_is_not_lost_if_that_fails(app, registry, monkeypatch):
    registry.add()
    real, began, other = trail.record_use, threading.Event(), threading.Event()
    tried: list[bool] = []

    def fails_once(database: Database, *given: Any) -> bool:
        if given[-1] is None:
            return real(database, *given)
        began.set()
        assert tried or other.wait(10)
        tried.append(len(tried) > 0 and real(database, *given))
        return tried[-1]

    monkeypatch.setattr("service.access.uses.record_use", fails_once)
    monkeypatch.setattr(trail, "now", lambda: datetime(2031, 1, 1, 12, tzinfo=UTC))  # one minute for all requests
    headers = {"Authorization": f"Bearer {token_of('bob')}"}
    TestClient(app, headers=headers).get(BASE)
    first = threading.Thread(target=lambda: pull(TestClient(app, headers=headers)))
    first.start()
    assert began.wait(10)
    pull(TestClient(app, headers=headers))
    other.set()
    first.join()
    assert tried == [False, True]
    assert use_of(TestClient(app, headers=headers))[0] == 1


def test_a_process_that_remembers_too_much_forgets_earlier_days_first(api, app, registry, on, monkeypatch):
    registry.add()
    monkeypatch.setattr("service.access.uses.KEPT", 2)
    for day, path in ((5, FILE), (6, FILE), (6, f"{BASE}/archive")):
        on(day)
        pull(api, path)
    assert {use.day.day for _, use in app.state.uses._known} == {6}
    assert len(app.state.uses._known) == 2


def test_weights_that_cannot_be_read_are_not_downloaded(app, registry, monkeypatch):
    registry.add()
    api = TestClient(app, headers={"Authorization": f"Bearer {token_of('alice')}"}, raise_server_exceptions=False)
    with monkeypatch.context() as patched:
        patched.setattr(Artifacts, "piece", lambda *_: (_ for _ in ()).throw(StorageRefused("no")))
        assert api.get(FILE).status_code >= 500
    assert use_of(api) == (0, None)


# --- how often --------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_each_token_counts_once_a_day_for_a_version(clients, registry, on):
    for number in (1, 2):
        registry.add(number=number)
    on(5)
    for start in (0, 10):
        pull(clients.alice, Range=f"bytes={start}-{start + 9}")
    pull(clients.alice, f"{BASE}/files/timm/model.safetensors")
    pull(clients.alice, f"{BASE}/archive")
    assert use_of(clients.alice) == (1, "2031-01-05"), "whatever it downloads of it"
    on(6)
    pull(clients.alice)
    on(4)
    pull(clients.bob)
    assert use_of(clients.alice) == (3, "2031-01-06")
    pull(clients.bob, f"{DIGITS}/versions/2/files/hf/model.safetensors")
    assert use_of(clients.alice, number=2) == (1, "2031-01-04")
    shown = clients.alice.get(DIGITS).json()
    assert (shown["downloads"], shown["last_used_on"]) == (4, "2031-01-06")


def test_a_download_that_is_counted_already_writes_nothing(clients, app, registry, monkeypatch):
    registry.add()
    monkeypatch.setattr(trail, "now", lambda: datetime(2031, 1, 1, 12, tzinfo=UTC))  # one minute for all requests
    pull(clients.alice)
    began = []
    real = Database.session

    @contextmanager
    def session(self: Database) -> Any:
        began.append(1)
        with real(self) as made:
            yield made

    monkeypatch.setattr(Database, "session", session)
    for _ in range(5):
        pull(clients.alice)
    assert not began
    monkeypatch.setattr("service.access.uses.KEPT", 1)
    pull(clients.alice, f"{BASE}/archive")
    pull(clients.alice)  # forgotten meanwhile, but the database knows
    assert len(began) == 2
    assert len(app.state.uses._known) == 1
    assert use_of(clients.alice)[0] == 1


@pytest.mark.both_databases
def test_processes_that_share_a_database_count_one(app, settings: Settings, ray, mlflow, registry, database):
    """Requests that come at the same time to two of them, each with a memory of its own."""
    registry.add()
    other = build_app(settings.body_limit_bytes)
    studies = Studies(settings.study_url)
    state = AppState(
        settings, Database(settings.database_url), ray, mlflow, Artifacts(settings.artifact_root), studies, KINDS
    )
    attach(other, state, None)
    headers = {"Authorization": f"Bearer {token_of('alice')}"}
    at_once = threading.Barrier(6)

    def get(api: TestClient) -> None:
        at_once.wait()
        pull(api)

    threads = [threading.Thread(target=get, args=(TestClient(each, headers=headers),)) for each in (app, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(VersionUse)) == 1
        assert session.get_one(BackboneVersion, ("digits", 1)).downloads == 1


def test_a_download_goes_on_while_the_database_takes_no_writes_and_is_counted_later(clients, registry, monkeypatch):
    registry.add()
    monkeypatch.setattr(trail, "log", structlog.get_logger())  # a cached logger cannot be captured

    def busy(*_: object, **__: object) -> None:
        raise DatabaseUnreachable("busy")

    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(Database, "session", busy)
        assert clients.alice.get(FILE).content == WEIGHTS
    (line,) = [line for line in lines if line["event"] == "use_not_recorded" and line["use"]]
    assert (line["log_level"], line["detail"], line["use"].name) == ("warning", "busy", "digits")
    assert use_of(clients.alice) == (0, None)
    pull(clients.alice)
    assert use_of(clients.alice)[0] == 1


def test_a_browser_counts_as_the_token_that_it_logged_in_with(clients, browsers, registry):
    registry.add()
    pull(browsers.alice, f"{BASE}/archive")
    assert use_of(clients.alice)[0] == 1
    pull(clients.alice, f"{BASE}/archive")
    assert use_of(clients.alice)[0] == 1


@pytest.mark.both_databases
def test_a_revoked_token_keeps_its_downloads_and_a_removed_version_none(clients, world, registry, mlflow, database):
    for number in (1, 2, 3):
        registry.add(number=number)
    made = clients.admin.post("/v1/tokens", json={"owner": "dora", "role": "viewer"}).json()
    for number in (1, 2, 3):
        path = f"{DIGITS}/versions/{number}/files/hf/model.safetensors"
        pull(clients.anonymous, path, Authorization=f"Bearer {made['token']}")
    clients.admin.delete(f"/v1/tokens/{made['id']}")
    (user,) = clients.alice.get(f"{BASE}/users").json()["items"]
    assert (user["owner"], user["downloads"], user["formats"], use_of(clients.alice)[0]) == ("dora", 1, ["hf"], 1)
    assert clients.alice.delete(f"{DIGITS}/versions/2").status_code == 200
    world.reconciler.removals.run_all((Work.REMOVE_VERSION,))
    mlflow.registered[:] = [each for each in mlflow.registered if each.version != 3]
    second = add_job(database, "succeeded", spec=spec_with(register_as="digits"))
    mlflow.register("digits", 3, second, write(registry.folder("digits", 9), FILES))
    world.compare_versions()
    assert use_of(clients.alice, number=3) == (0, None), "another version that MLflow gave the number"
    with database.read() as session:
        assert session.scalars(select(VersionUse.version)).all() == [1]


# --- who sees it ------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_who_used_a_version_is_told_to_those_who_may_delete_it(clients: Clients, registry, on):
    registry.add(owner="alice")
    on(5)
    pull(clients.viewer)
    pull(clients.bob)
    on(6)
    for path in (FILE, f"{BASE}/files/timm/model.safetensors", f"{BASE}/archive"):
        pull(clients.bob, path)
    expected = [
        {"owner": "bob", "downloads": 2, "last_used_on": "2031-01-06", "formats": ["all", "hf", "timm"]},
        {"owner": "viewer", "downloads": 1, "last_used_on": "2031-01-05", "formats": ["hf"]},
    ]
    for client in (clients.alice, clients.operator, clients.admin):
        assert client.get(f"{DIGITS}/versions/latest/users").json()["items"] == expected
        deletion = client.delete(BASE, params={"preview": "true"}).json()
        assert deletion["used_by"] == expected
    for client in (clients.bob, clients.viewer):
        problem(client.get(f"{BASE}/users"), 403, "forbidden")
        assert use_of(client) == (3, "2031-01-06"), "how often is no secret"
    problem(clients.alice.get(f"{DIGITS}/versions/9/users"), 404, "version_not_found")


def test_the_pages_show_use_and_space_and_to_owners_who_it_was(browsers, registry, world, on):
    registry.add()
    registry.add("cats", owner="bob")
    measure(world)
    on(5)
    pull(browsers.bob)
    size = browsers.alice.get(BASE).json()["bytes"]
    told = f"{size / 1024:.1f} KiB"
    for browser in (browsers.alice, browsers.viewer):
        text = browser.get("/backbones").text
        assert all(f'href="/backbones?sort=-{key}"' in text for key in ("downloads", "last_used_on", "bytes"))
        assert "2031-01-05" in text
        assert told in text
        shown = browser.get("/backbones/digits").text
        assert 'Downloaded <span class="num">1</span> time, last used on 2031-01-05' in shown
        assert told in shown
        assert ('id="users"' in shown) == (browser is browsers.alice)
        assert "Nobody has downloaded it" in browser.get("/backbones/cats").text
    assert "bob</bdi>, last on 2031-01-05" in browsers.alice.get("/backbones/digits/delete?version=1").text
    assert f"Yours: {told} in 1 version<" in browsers.alice.get("/backbones").text
    assert "bob</bdi>: " in browsers.operator.get("/backbones").text
    assert "bob</bdi>: " not in browsers.alice.get("/backbones").text
    downloads = browsers.alice.get("/backbones?sort=-downloads").text
    assert downloads.index('id="backbone-digits"') < downloads.index('id="backbone-cats"')


def test_the_command_line_shows_them(address, served, registry, world, capsys):  # noqa: ARG001 - the service runs
    registry.add()
    registry.add("cats")
    measure(world)
    pull(served)
    today = datetime.now(UTC).date().isoformat()
    status, told, _ = rcmae(capsys, "backbones", "list", "--sort", "-downloads", "--json")
    assert (status, [each["downloads"] for each in json.loads(told)]) == (0, [1, 0])
    for arguments in (("list",), ("show", "digits"), ("show", "digits:1"), ("users", "digits:1")):
        status, told, _ = rcmae(capsys, "backbones", *arguments)
        assert (status, today in told) == (0, True), arguments
    assert "alice" in told
    status, told, _ = rcmae(capsys, "backbones", "space")
    assert status == 0
    assert told.split()[-5:-1] == ["alice", "2", "2", f"{2 * (served.get(BASE).json()['bytes']) / 1024:.1f}"]
    _, told, _ = rcmae(capsys, "backbones", "delete", "digits:1", "--preview")
    assert f"alice (last on {today})" in told


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_lists_are_sorted_by_use_and_space_and_pages_give_each_once(clients, registry, world, on):
    for name in "abcd":
        registry.add(name, files=FILES | {"hf/extra": b"x" * (10 if name in "cd" else 10_000 * (name == "b"))})
    measure(world)
    registry.add("e")
    for day, name in ((5, "b"), (6, "b"), (7, "c")):
        on(day)
        pull(clients.bob, f"/v1/backbones/{name}/versions/1/archive")
    for sort, order in (
        ("-downloads", "bcade"), ("downloads", "adecb"), ("-last_used_on", "cbade"), ("last_used_on", "bcade"),
        ("-bytes", "bcdae"), ("bytes", "acdbe"),
    ):  # fmt: skip
        found, cursor = "", ""
        while cursor is not None:
            query = {"sort": sort, "limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = clients.alice.get("/v1/backbones", params=query).json()
            found, cursor = found + "".join(item["name"] for item in page["items"]), page["next_cursor"]
        # Equal ones are sorted by name.
        assert found == order, sort
    problem(clients.alice.get("/v1/backbones?sort=-likes"), 422, "parameter_invalid")


@pytest.mark.both_databases
def test_the_hub_counts_each_format_of_the_last_days_and_of_all_time(clients, registry, monkeypatch):
    registry.add(formats="timm,hf")
    registry.add("eggs", formats="hf")
    days = {8: date(2031, 1, 8), 20: date(2031, 1, 20)}
    for number, day in days.items():
        moment = datetime(day.year, day.month, number, tzinfo=UTC)
        monkeypatch.setattr("service.backbones.use.now", lambda moment=moment: moment)
        pull(clients.alice)
    pull(clients.bob, f"{HUB}-timm/resolve/main/model.safetensors")
    pull(clients.bob, f"{BASE}/archive")  # of all formats: of none of the repositories
    monkeypatch.setattr("service.backbones.use.now", lambda: datetime(2031, 2, 7, tzinfo=UTC))
    api = clients.alice
    shown = {name: api.get(f"/hf/api/models/rcmae/{name}").json() for name in ("digits", "digits-timm", "eggs")}
    assert {name: (model["downloads"], model["likes"]) for name, model in shown.items()} == {
        "digits": (1, 0), "digits-timm": (1, 0), "eggs": (0, 0),
    }  # fmt: skip
    assert "downloadsAllTime" not in shown["digits"]
    expanded = api.get("/hf/api/models/rcmae/digits?expand=downloadsAllTime").json()
    assert (expanded["downloadsAllTime"], "downloads" in expanded) == (2, False)
    listed = api.get("/hf/api/models?sort=downloads&expand=downloadsAllTime&expand=downloads").json()
    assert [(each["id"], each["downloads"], each["downloadsAllTime"]) for each in listed] == [
        ("rcmae/digits-timm", 1, 1), ("rcmae/digits", 1, 2), ("rcmae/eggs", 0, 0),
    ]  # fmt: skip


def test_the_hubs_client_reads_the_downloads_it_has_made(address, registry, served, tmp_path):
    registry.add(formats="timm,hf")
    hub = HfApi(endpoint=f"{address}/hf", token=token_of("alice"))
    assert hub.model_info("rcmae/digits").downloads == 0
    hub.hf_hub_download("rcmae/digits", "config.json", cache_dir=tmp_path)
    hub.snapshot_download("rcmae/digits", cache_dir=tmp_path)
    hub.snapshot_download("rcmae/digits", cache_dir=tmp_path)
    assert use_of(served)[0] == 1
    assert hub.model_info("rcmae/digits", expand=["downloadsAllTime"]).downloads_all_time == 1
    assert [(each.id, each.downloads) for each in hub.list_models(sort="downloads")] == [
        ("rcmae/digits", 1), ("rcmae/digits-timm", 0)
    ]  # fmt: skip


# --- space ------------------------------------------------------------------------------------------------------------


def measure(world: World) -> None:
    """One pass of the controller's worker, whatever pause it would make."""
    world._later((Work.MEASURE_VERSIONS,))
    world.reconciler.removals.run_all((Work.MEASURE_VERSIONS,))


def bytes_in(registry: Registry, name: str, number: int) -> int:
    return sum(file.stat().st_size for file in registry.folder(name, number).rglob("*") if file.is_file())


@pytest.mark.both_databases
def test_each_version_is_measured_once_and_its_backbone_has_the_sum(world, served, registry, monkeypatch):
    listed = []
    real = Artifacts.files
    monkeypatch.setattr(Artifacts, "files", lambda self, folder: (listed.append(folder), real(self, folder))[1])
    monkeypatch.setattr("service.controller.passes.BATCH", 2)
    for number in range(1, 6):
        registry.add(number=number, files=FILES | {"hf/extra": b"x" * number})
    assert served.get(DIGITS).json()["bytes"] is None, "nobody has added them up"
    for _ in range(4):
        measure(world)
    assert len(listed) == 5
    detail = served.get(DIGITS).json()
    sizes = {each["version"]: each["bytes"] for each in detail["details"]}
    assert sizes == {number: bytes_in(registry, "digits", number) for number in range(1, 6)}
    assert detail["bytes"] == sum(sizes.values())
    registry.add(number=6)
    world.reconciler.removals.run_all((Work.MEASURE_VERSIONS,))  # due at once, without the pause of the last pass
    assert served.get(f"{DIGITS}/versions/6").json()["bytes"] == bytes_in(registry, "digits", 6)


def test_a_version_that_cannot_be_measured_holds_up_no_other(world, served, registry, monkeypatch):
    for number in (1, 2, 3):
        registry.add(number=number)
    for file in registry.folder("digits", 2).rglob("*.*"):
        file.unlink()
    (registry.folder("digits", 2) / "SHA256SUMS").unlink()
    real = Artifacts.files

    def refuses(self: Artifacts, folder: str) -> list[tuple[str, int]]:
        if "digits-1" in folder:
            raise StorageRefused("not this one")
        return real(self, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Artifacts, "files", refuses)
        measure(world)
        assert [each["bytes"] is None for each in served.get(DIGITS).json()["details"]] == [False, True, True]
    write(registry.folder("digits", 2), FILES)
    measure(world)
    assert all(each["bytes"] for each in served.get(DIGITS).json()["details"])


@pytest.mark.both_databases
def test_an_owner_sees_what_its_backbones_take_and_an_operator_what_everybody_s_do(clients, registry, world):
    registry.add("cats", owner="alice")
    registry.add("cats", 2, owner="alice")
    registry.add("dogs", owner="bob")
    measure(world)
    registry.add("dogs", 2, owner="bob")
    cats, dogs = (sum(bytes_in(registry, name, number) for number in numbers) for name, numbers in
                  (("cats", (1, 2)), ("dogs", (1,))))  # fmt: skip
    of_alice = {"owner": "alice", "backbones": 1, "versions": 2, "bytes": cats, "unmeasured": 0}
    of_bob = {"owner": "bob", "backbones": 1, "versions": 2, "bytes": dogs, "unmeasured": 1}
    assert clients.alice.get("/v1/backbone-space").json()["items"] == [of_alice]
    assert clients.bob.get("/v1/backbone-space").json()["items"] == [of_bob]
    assert clients.operator.get("/v1/backbone-space").json()["items"] == [of_alice, of_bob]
    problem(clients.viewer.get("/v1/backbone-space"), 403, "forbidden")
