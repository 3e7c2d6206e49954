"""The Hugging Face Hub's protocol: each route and each refusal by itself, and the real client on top of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from backbone_files import CONFIG, FILES, WEIGHTS, Registry, commit_of, sha256
from conftest import Clients, token_of
from fastapi.testclient import TestClient
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from service_fakes import problem
from sqlalchemy import delete

from service.db.tables import RegistryCheck

HUB = "/hf"
FOLDER = {"config.json", "model.safetensors", "README.md", "card/curves.png"}


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    """Two versions of `digits`; the first is the champion."""
    made = Registry(database, mlflow, root)
    for number in (1, 2):
        made.add(number=number, files=FILES | {"hf/config.json": CONFIG + b"\n" * number})
    made.set_alias("digits", "champion", 1)
    return made


def refused(answer: Any, status: int, code: str, error_code: str) -> Any:
    """A refusal as both kinds of clients read it."""
    body = problem(answer, status, code)
    assert answer.headers["x-error-code"] == error_code
    assert answer.headers["x-error-message"].startswith(body["detail"][:20])
    return answer


# --- routes -----------------------------------------------------------------------------------------------------------


def test_head_of_a_file_says_all_that_clients_need(api, registry):
    head = api.head(f"{HUB}/rcmae/digits/resolve/main/model.safetensors")
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in ("x-repo-commit", "etag", "content-length", "accept-ranges")} == {
        "x-repo-commit": commit_of(registry.folder("digits", 1)), "etag": f'"{sha256(WEIGHTS)}"',
        "content-length": str(len(WEIGHTS)), "accept-ranges": "bytes",
    }  # fmt: skip
    assert "x-xet-hash" not in head.headers
    whole = api.get(f"{HUB}/rcmae/digits/resolve/main/model.safetensors?download=true")
    assert (whole.status_code, whole.content) == (200, WEIGHTS)
    part = api.get(f"{HUB}/rcmae/digits/resolve/main/model.safetensors", headers={"Range": "bytes=100-"})
    assert (part.status_code, part.content) == (206, WEIGHTS[100:])


def test_a_repository_for_each_format(api, registry):
    for repo, data in (("digits", CONFIG + b"\n"), ("digits-mae", FILES["hf-mae/config.json"]), ("digits-timm", b"{}")):
        assert api.get(f"{HUB}/rcmae/{repo}/resolve/v1/config.json").content == data
        assert api.get(f"{HUB}/rcmae/{repo}/resolve/v1/README.md").content == FILES["README.md"]
        assert api.get(f"{HUB}/rcmae/{repo}/resolve/v1/card/curves.png").content == FILES["card/curves.png"]
    for path in ("spec.json", "hf/config.json", "timm/config.json", "SHA256SUMS", "unlisted.txt", ""):
        answer = api.get(f"{HUB}/rcmae/digits/resolve/main/{path}")
        refused(answer, 404, "entry_not_found", "EntryNotFound")
        assert answer.headers["x-repo-commit"] == commit_of(registry.folder("digits", 1))


def test_a_format_s_own_card_is_that_of_its_repository(api, registry):
    registry.add("cards", files=FILES | {"timm/README.md": b"# For timm\n"})
    assert api.get(f"{HUB}/rcmae/cards-timm/resolve/main/README.md").content == b"# For timm\n"
    assert api.get(f"{HUB}/rcmae/cards/resolve/main/README.md").content == FILES["README.md"], (
        "as before there were any"
    )


def test_every_form_of_a_revision(api, registry):
    commits = {number: commit_of(registry.folder("digits", number)) for number in (1, 2)}
    assert commits[1] != commits[2]
    expected = {"main": 1, "champion": 1, "v1": 1, "v2": 2, commits[1]: 1, commits[2]: 2}
    for revision, number in expected.items():
        answer = api.head(f"{HUB}/rcmae/digits/resolve/{revision}/config.json")
        assert answer.headers["x-repo-commit"] == commits[number], revision
        assert api.get(f"{HUB}/api/models/rcmae/digits/revision/{revision}").json()["sha"] == commits[number]
    registry.delete_alias("digits", "champion")
    assert api.head(f"{HUB}/rcmae/digits/resolve/main/config.json").headers["x-repo-commit"] == commits[2]
    for revision in (
        "none",
        "v3",
        "v",
        "v-1",
        "V1",
        "1",
        "0" * 40,
        commits[1][:39],
        commits[1].upper(),
        "v" + "9" * 40,
    ):
        for path in (f"rcmae/digits/resolve/{revision}/config.json", f"api/models/rcmae/digits/revision/{revision}"):
            refused(api.get(f"{HUB}/{path}"), 404, "revision_not_found", "RevisionNotFound")


def test_a_commit_stays_when_its_version_is_no_longer_the_newest_and_ends_with_it(api, registry):
    commit = commit_of(registry.folder("digits", 2))
    assert api.get(f"{HUB}/api/models/rcmae/digits/tree/{commit}").status_code == 200
    registry.add(number=3)
    assert api.get(f"{HUB}/api/models/rcmae/digits/tree/{commit}").status_code == 200
    assert api.delete("/v1/backbones/digits/versions/2").status_code == 200
    refused(api.get(f"{HUB}/api/models/rcmae/digits/tree/{commit}"), 404, "revision_not_found", "RevisionNotFound")


def test_a_model_lists_its_files(api, registry):
    model = api.get(f"{HUB}/api/models/rcmae/digits-timm").json()
    assert (model["id"], model["sha"]) == ("rcmae/digits-timm", commit_of(registry.folder("digits", 1)))
    assert (model["library_name"], model["private"]) == ("timm", True)
    assert {file["rfilename"] for file in model["siblings"]} == FOLDER
    assert api.get(f"{HUB}/api/models/rcmae/digits").json()["library_name"] == "transformers"


@pytest.mark.usefixtures("registry")
def test_a_tree_with_and_without_what_lies_in_folders(api):
    flat = {entry["path"]: entry for entry in api.get(f"{HUB}/api/models/rcmae/digits/tree/main").json()}
    assert {path: entry["type"] for path, entry in flat.items()} == {
        "README.md": "file", "card": "directory", "config.json": "file", "model.safetensors": "file",
    }  # fmt: skip
    assert flat["model.safetensors"]["size"] == len(WEIGHTS)
    assert flat["model.safetensors"]["lfs"]["oid"] == sha256(WEIGHTS)
    assert len(flat["model.safetensors"]["oid"]) == 40
    deep = api.get(f"{HUB}/api/models/rcmae/digits/tree/main?recursive=true&expand=false").json()
    assert {entry["path"] for entry in deep if entry["type"] == "file"} == FOLDER
    below = api.get(f"{HUB}/api/models/rcmae/digits/tree/main/card").json()
    assert [entry["path"] for entry in below] == ["card/curves.png"]
    refused(api.get(f"{HUB}/api/models/rcmae/digits/tree/main/none"), 404, "entry_not_found", "EntryNotFound")


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "repo", ["rcmae/none", "rcmae/none-timm", "others/digits", "rcmae/digits-mae-timm", "rcmae/-timm"]
)
def test_what_is_no_repository(api, repo):
    for path in (f"{repo}/resolve/main/config.json", f"api/models/{repo}", f"api/models/{repo}/tree/main"):
        refused(api.get(f"{HUB}/{path}"), 404, "repo_not_found", "RepoNotFound")


@pytest.mark.usefixtures("registry")
def test_what_is_no_route_is_no_repository_either(api):
    for path in ("api/datasets/rcmae/digits", "rcmae/digits/blob/main/x", "api/models/rcmae/digits/resolve"):
        answer = api.get(f"{HUB}/{path}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
    assert api.post(f"{HUB}/api/repos/create", json={"name": "x"}).status_code == 404
    assert api.put(f"{HUB}/api/models/rcmae/digits").status_code == 405


@pytest.mark.parametrize("path", ["a%0d%0aX-Evil:%201", "%00", "%7f%1b[31m", "é%F0%9F%A6%86", "x" * 5000])
def test_what_is_asked_for_cannot_break_the_headers_of_its_refusal(api, registry, path):
    registry.add()
    for url in (
        f"rcmae/digits/resolve/main/{path}",
        f"rcmae/{path}/resolve/main/x",
        f"api/models/rcmae/digits/tree/{path}",
    ):
        answer = api.get(f"{HUB}/{url}")
        assert answer.status_code == 404
        assert "x-evil" not in answer.headers
        message = answer.headers["x-error-message"]
        assert message.isascii()
        assert message.isprintable()
        assert len(message) <= 1000


def test_a_version_without_a_format_is_no_revision_of_its_repository(api, registry):
    registry.add("old", files={"hf/config.json": CONFIG})
    assert api.head(f"{HUB}/rcmae/old/resolve/main/config.json").status_code == 200
    answer = api.head(f"{HUB}/rcmae/old-timm/resolve/main/config.json")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    assert "timm" in answer.headers["x-error-message"]


@pytest.mark.usefixtures("registry")
def test_without_a_valid_token_all_is_gated_and_nothing_is_told(clients: Clients):
    for header in (None, "Bearer wrong-token-0123456789", "Basic YTpi", token_of("admin")):
        headers = {"Authorization": header} if header else {}
        for repo in ("digits", "none"):
            for path in (f"rcmae/{repo}/resolve/main/config.json", f"api/models/rcmae/{repo}/tree/main"):
                answer = refused(
                    clients.anonymous.get(f"{HUB}/{path}", headers=headers), 401, "unauthorized", "GatedRepo"
                )
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "HF_TOKEN" in answer.headers["x-error-message"]
                assert "x-repo-commit" not in answer.headers
        head = clients.anonymous.head(f"{HUB}/rcmae/digits/resolve/main/config.json", headers=headers)
        assert (head.status_code, head.headers["x-error-code"]) == (401, "GatedRepo")


@pytest.mark.usefixtures("registry")
def test_versions_that_are_not_read_yet_are_told_as_such(api, database):
    with database.session() as session:
        session.execute(delete(RegistryCheck))  # as after an upgrade
    answer = api.get(f"{HUB}/rcmae/digits/resolve/main/config.json")
    problem(answer, 503, "unavailable")
    assert "x-error-code" not in answer.headers
    assert "is reading the registered versions" in answer.headers["x-error-message"]


# --- the real client --------------------------------------------------------------------------------------------------


class Bridge(httpx2.BaseTransport):
    """Requests of the hub's client, answered by the application without a socket."""

    def __init__(self, app: Any) -> None:
        self._client = TestClient(app, base_url="http://hub.test", follow_redirects=False)
        self.asked: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(f"{request.method} {request.url.raw_path.decode()}")
        headers = [(name, value) for name, value in request.headers.items() if name.lower() != "host"]
        found = self._client.request(request.method, str(request.url), headers=headers, content=request.read())
        return httpx2.Response(found.status_code, headers=list(found.headers.multi_items()), content=found.content)


@pytest.fixture
def bridge(app) -> Iterator[Bridge]:
    made = Bridge(app)
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=made, follow_redirects=True))
    yield made
    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(lambda: httpx2.Client(follow_redirects=True))


@pytest.fixture
def arguments(tmp_path) -> dict[str, Any]:
    return {"endpoint": "http://hub.test/hf", "token": token_of("viewer"), "cache_dir": tmp_path / "cache"}


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("revision", [None, "v2", "champion"])
def test_a_snapshot_is_had_with_the_hubs_own_client(registry, arguments, revision):
    folder = Path(huggingface_hub.snapshot_download("rcmae/digits", revision=revision, **arguments))
    number = 2 if revision == "v2" else 1
    assert folder.name == commit_of(registry.folder("digits", number))
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert set(files) == FOLDER
    assert files["model.safetensors"] == WEIGHTS
    assert files["config.json"] == CONFIG + b"\n" * number


def test_a_snapshot_by_commit_asks_for_no_name(registry, arguments, bridge):
    commit = commit_of(registry.folder("digits", 2))
    folder = huggingface_hub.snapshot_download("rcmae/digits-timm", revision=commit, **arguments)
    assert (Path(folder) / "model.safetensors").read_bytes() == WEIGHTS[::-1]
    assert all(commit in asked for asked in bridge.asked)


@pytest.mark.usefixtures("registry")
def test_a_file_is_had_once_and_then_known(arguments, bridge):
    paths = [huggingface_hub.hf_hub_download("rcmae/digits", "model.safetensors", **arguments) for _ in range(2)]
    assert Path(paths[0]).read_bytes() == WEIGHTS
    assert paths[0] == paths[1]
    assert sum(asked.startswith("GET") for asked in bridge.asked) == 1


@pytest.mark.usefixtures("bridge", "registry")
def test_the_api_of_the_hubs_client(arguments):
    hub = huggingface_hub.HfApi(endpoint=arguments["endpoint"], token=arguments["token"])
    info = hub.model_info("rcmae/digits", files_metadata=True)
    assert {sibling.rfilename for sibling in info.siblings} == FOLDER
    assert info.last_modified.year == 2025
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs.sha256) for sibling in info.siblings}
    assert sizes["model.safetensors"] == (len(WEIGHTS), sha256(WEIGHTS))
    assert hub.file_exists("rcmae/digits", "config.json")
    assert not hub.file_exists("rcmae/digits", "tokenizer.json")
    assert hub.repo_exists("rcmae/digits")
    assert not hub.repo_exists("rcmae/none")
    assert {entry.path for entry in hub.list_repo_tree("rcmae/digits")} == {
        "README.md", "card", "config.json", "model.safetensors",
    }  # fmt: skip


@pytest.mark.usefixtures("bridge", "registry")
@pytest.mark.parametrize(
    ("repo", "file", "revision", "error"),
    [
        ("rcmae/digits", "tokenizer.json", None, EntryNotFoundError),
        ("rcmae/digits", "config.json", "v9", RevisionNotFoundError),
        ("rcmae/none", "config.json", None, RepositoryNotFoundError),
    ],
)
def test_what_is_missing_is_told_by_the_hubs_own_errors(arguments, repo, file, revision, error):
    with pytest.raises(error):
        huggingface_hub.hf_hub_download(repo, file, revision=revision, **arguments)


@pytest.mark.usefixtures("bridge", "registry")
@pytest.mark.parametrize("token", [False, "rcmae_wrong-token"])
def test_without_a_token_the_client_says_what_to_set(arguments, token):
    with pytest.raises((GatedRepoError, LocalEntryNotFoundError)) as told:
        huggingface_hub.hf_hub_download("rcmae/digits", "config.json", **arguments | {"token": token})
    errors = [told.value, told.value.__cause__]
    assert any(isinstance(error, HfHubHTTPError) and "HF_TOKEN" in str(error) for error in errors)
