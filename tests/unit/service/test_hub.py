"""The Hugging Face Hub's protocol: each route and each refusal by itself, and the real client on top of them."""

from __future__ import annotations

import shutil
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
from service_fakes import add_job, problem, spec_with
from sqlalchemy import delete

from service.auth.caller import Caller
from service.backbones import registry as backbones
from service.backbones.hub.repositories import front_matter
from service.backbones.registry import Backbone
from service.context.app_state import AppState
from service.db.tables import Job, RegistryCheck
from service.http.paging import write_cursor

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
    expected = {"main": 1, "champion": 1, "v1": 1, "v2": 2, "1": 1, "2": 2, "latest": 2, commits[1]: 1, commits[2]: 2}
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
        "3",
        "refs%2Fpr%2F1",
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
    routes = ("", "/tree/main", "/refs", "/commits/main", "/auth-check")
    for path in (f"{repo}/resolve/main/config.json", *(f"api/models/{repo}{route}" for route in routes)):
        refused(api.get(f"{HUB}/{path}"), 404, "repo_not_found", "RepoNotFound")


@pytest.mark.usefixtures("registry")
def test_a_route_that_does_not_exist_is_told_as_such(api):
    """Not as a repository that does not exist, of which clients say that the token may lack a right."""
    for path in (
        "api/models/rcmae/digits/xet-read-token/main",
        "api/models-tags-by-type",
        "rcmae/digits/settings/x",
        "",
    ):
        answer = api.get(f"{HUB}/{path}")
        found = problem(answer, 404, "not_found")
        assert f"this hub has no route /{path}" in found["detail"] == answer.headers["x-error-message"]
        assert "x-error-code" not in answer.headers


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("digits/resolve/main/config.json", "write rcmae/digits"),
        ("api/models/digits", "write rcmae/digits"),
        ("api/models/digits/revision/main", "write rcmae/digits"),
        ("api/datasets/rcmae/digits", "this hub has models only"),
        ("datasets/rcmae/digits/resolve/main/x", "this hub has models only"),
        ("api/spaces/rcmae/digits/tree/main", "this hub has models only"),
    ],
)
def test_a_name_that_can_be_no_repository_of_this_hub_is_corrected(api, path, told):
    answer = refused(api.get(f"{HUB}/{path}"), 404, "repo_not_found", "RepoNotFound")
    assert told in answer.headers["x-error-message"]


@pytest.mark.usefixtures("registry")
def test_whoever_writes_is_told_that_the_hub_is_read_only(api):
    for method, path in (
        ("POST", "api/repos/create"), ("DELETE", "api/repos/delete"), ("POST", "api/models/rcmae/digits/commit/main"),
        ("PUT", "api/models/rcmae/digits/settings"), ("POST", "api/models/rcmae/digits/tag/v1"),
        ("PUT", "api/models/rcmae/digits"), ("POST", "rcmae/digits.git/info/lfs/objects/batch"),
    ):  # fmt: skip
        answer = api.request(method, f"{HUB}/{path}", json={})
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD"
        assert "read-only" in answer.headers["x-error-message"]
        assert "x-error-code" not in answer.headers


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


# --- descriptions and lists -------------------------------------------------------------------------------------------


CARD = b"""---
license: mit
tags:
- own
datasets:
- s3://sets/digits
---
# A backbone
"""


@pytest.fixture
def many(database, mlflow, root) -> Registry:
    """`digits` in all formats, of two versions; `eggs` of an older service, which has no tag for its formats."""
    made = Registry(database, mlflow, root)
    formats = {f"{form}/config.json": form.encode() for form in ("timm", "hf", "hf-mae", "onnx", "torch_export")}
    for number in (1, 2):
        files = formats | {"README.md": CARD, "spec.json": str(number).encode(), "timm/README.md": b"# Its own\n"}
        tags = {"formats": "timm,hf,hf-mae,onnx,torch_export", "method": "rc_mae", "network": "teacher"}
        made.add(number=number, files=files, **tags)
    made.add("eggs")
    return made


def names_of(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [model["id"].removeprefix("rcmae/") for model in answer.json()]


DIGITS = ["digits", "digits-mae", "digits-timm", "digits-onnx", "digits-torch_export"]
EGGS = ["eggs", "eggs-mae", "eggs-timm"]


@pytest.mark.usefixtures("many")
def test_a_model_says_what_every_generation_of_clients_needs(api):
    model = api.get(f"{HUB}/api/models/rcmae/digits").json()
    assert {"_id", "id", "modelId", "author", "sha", "createdAt", "lastModified", "siblings", "usedStorage"} < set(
        model
    )
    assert (model["downloads"], model["likes"], model["gated"], model["disabled"]) == (0, 0, False, False)
    assert model["cardData"] == {"license": "mit", "tags": ["own"], "datasets": ["s3://sets/digits"]}
    assert {"own", "license:mit", "rc_mae", "teacher", "transformers", "v2"} <= set(model["tags"])
    assert model["usedStorage"] == sum(sibling["size"] for sibling in model["siblings"])
    libraries = {name: api.get(f"{HUB}/api/models/rcmae/{name}").json()["library_name"] for name in DIGITS}
    assert list(libraries.values()) == ["transformers", "transformers", "timm", "onnx", "pytorch"]
    assert "cardData" not in api.get(f"{HUB}/api/models/rcmae/eggs").json()


@pytest.mark.usefixtures("many")
def test_only_what_is_asked_for_is_expanded(api):
    for query in ("expand=likes&expand=sha&expand=gguf", "expand[]=likes&expand[]=sha"):
        model = api.get(f"{HUB}/api/models/rcmae/digits?{query}").json()
        assert set(model) == {"_id", "id", "modelId", "likes", "sha"}
        (first, *_) = api.get(f"{HUB}/api/models?{query}").json()
        assert first == model
    assert "siblings" in api.get(f"{HUB}/api/models/rcmae/digits?expand=true").json()


@pytest.mark.usefixtures("many")
def test_a_format_s_own_card_stands_for_the_version_s(api):
    assert api.get(f"{HUB}/rcmae/digits-timm/raw/main/README.md").content == b"# Its own\n"
    assert "cardData" not in api.get(f"{HUB}/api/models/rcmae/digits-timm").json()
    assert api.get(f"{HUB}/rcmae/digits-onnx/raw/v1/README.md").content == CARD


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("---\na: 1\n---\n# x", {"a": 1}),
        ("---\n---\n", {}),
        ("# x\n---\na: 1\n---\n", {}),
        ("---\na: [\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\na: &x [1]\nb: [*x, *x]\n---\n", {}),
        ("---\na: 2025-02-30\n---\n", {}),
        ("---\na: !!python/object/apply:os.getcwd []\n---\n", {}),
    ],
)
def test_a_front_matter_is_read_or_left_out(text, values):
    assert front_matter(text) == values


@pytest.mark.usefixtures("many")
def test_models_are_listed_and_filtered(api):
    assert names_of(api.get(f"{HUB}/api/models")) == [*DIGITS, *EGGS]
    for query, found in {
        "search=EGGS": EGGS,
        "search=s-timm": ["digits-timm", "eggs-timm"],
        "author=rcmae&limit=2": DIGITS[:2],
        "author=others": [],
        "filter=timm": ["digits-timm", "eggs-timm"],
        "filter=rc_mae&filter=transformers": DIGITS[:2],
        "filter=rc_mae,onnx": ["digits-onnx"],
        "filter=no-such-tag": [],
        "pipeline_tag=text-generation": [],
        "library=pytorch&pipeline_tag=image-feature-extraction": ["digits-torch_export"],
        "gated=false&search=eggs": EGGS,
        "gated=True": [],
        "inference=warm": [],
        "apps=vllm": [],
        "sort=id&direction=-1": [*DIGITS, *EGGS][::-1],
        "sort=lastModified&direction=-1&search=-mae": ["digits-mae", "eggs-mae"],
    }.items():
        assert names_of(api.get(f"{HUB}/api/models?{query}")) == found, query
    told = problem(api.get(f"{HUB}/api/models?sort=beauty"), 422, "parameter_invalid")
    assert "use one of id, lastModified" in told["detail"]
    problem(api.get(f"{HUB}/api/models?num_parameters=min:1B"), 422, "parameter_invalid")


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    "query", ["", "&sort=id&direction=-1", "&sort=lastModified", "&sort=createdAt&direction=1&full=true"]
)
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_every_page_of_a_list_leads_to_the_next(api, query, limit):
    whole = names_of(api.get(f"{HUB}/api/models?limit=1000{query}"))
    assert len(whole) == 8
    found, url = [], f"http://testserver{HUB}/api/models?limit={limit}{query}"
    while url:
        answer = api.get(url)
        page = names_of(answer)
        assert len(page) == limit or "next" not in answer.links
        found += page
        url = answer.links.get("next", {}).get("url")
    assert found == whole
    for wrong in ("nonsense", write_cursor(["id", 10**400, "digits", 0])):
        problem(api.get(f"{HUB}/api/models?sort=id&direction=1&cursor={wrong}"), 422, "parameter_invalid")


def test_no_model_is_lost_between_pages_whatever_the_databases_order(api, registry, monkeypatch):
    """A Postgres whose collation passes over `-` at first, as en_US does, has a-c after ab."""
    for name in ("ab", "a-c", "ad"):
        registry.add(name, formats="hf")
    ordered = backbones.backbones

    def as_in_en_us(state: AppState, caller: Caller, contains: str, after: str, *more: Any) -> list[Backbone]:
        found = sorted(ordered(state, caller, contains, "", *more), key=lambda each: each.name.replace("-", ""))
        return [each for each in found if each.name.replace("-", "") > after.replace("-", "")]

    monkeypatch.setattr(backbones, "backbones", as_in_en_us)
    found, url = [], f"http://testserver{HUB}/api/models?limit=1&search=/a"
    while url:
        answer = api.get(url)
        found += names_of(answer)
        url = answer.links.get("next", {}).get("url")
    assert found == ["ab", "a-c", "ad"]


def test_a_list_without_what_only_files_say_reads_no_storage(api, registry, root):
    registry.add("spam", formats="hf,timm")
    shutil.rmtree(root / "models" / "spam-1")
    assert names_of(api.get(f"{HUB}/api/models?search=spam")) == ["spam", "spam-timm"]


def test_a_backbone_from_before_an_ending_keeps_its_name(api, database, registry):
    registry.add("old", formats="hf,onnx", files={"hf/config.json": b"1", "onnx/model.onnx": b"2"})
    job_id = registry.jobs["old-onnx"] = add_job(database, "succeeded", spec=spec_with(register_as="later"))
    with database.session() as session:
        session.get_one(Job, job_id).spec = spec_with(register_as="old-onnx")
    registry.add("old-onnx", formats="hf,onnx", files={"hf/config.json": b"3", "onnx/model.onnx": b"4"})
    for repo, file, data in (
        ("old", "config.json", b"1"),
        ("old-onnx", "config.json", b"3"),
        ("old-onnx-onnx", "model.onnx", b"4"),
    ):
        assert api.get(f"{HUB}/rcmae/{repo}/resolve/main/{file}").content == data
    assert names_of(api.get(f"{HUB}/api/models?search=old")) == ["old", "old-onnx", "old-onnx-onnx"]


# --- history, paths and the caller ------------------------------------------------------------------------------------


def test_refs_are_the_names_of_all_versions(api, registry):
    commits = {number: commit_of(registry.folder("digits", number)) for number in (1, 2)}
    found = api.get(f"{HUB}/api/models/rcmae/digits-timm/refs?include_prs=1").json()
    assert {ref["name"]: ref["targetCommit"] for ref in found["branches"]} == {
        "main": commits[1],
        "champion": commits[1],
    }
    assert {ref["ref"]: ref["targetCommit"] for ref in found["tags"]} == {
        f"refs/tags/v{number}": commit for number, commit in commits.items()
    }
    assert (found["converts"], found["pullRequests"]) == ([], [])


def test_commits_are_the_versions_up_to_a_revision(api, registry):
    registry.add(number=3)
    commits = [commit_of(registry.folder("digits", number)) for number in (3, 2, 1)]
    for revision, found in {"v3": commits, "latest": commits, commits[1]: commits[1:], "main": commits[2:]}.items():
        answer = api.get(f"{HUB}/api/models/rcmae/digits/commits/{revision}")
        assert [commit["id"] for commit in answer.json()] == found
        assert answer.headers["x-total-count"] == str(len(found))
    assert answer.json()[0]["authors"] == [{"user": "alice"}]
    first = api.get(f"{HUB}/api/models/rcmae/digits/commits/v3?limit=2")
    second = api.get(first.links["next"]["url"])
    assert [commit["id"] for commit in first.json() + second.json()] == commits
    assert "next" not in second.links
    answer = api.get(f"{HUB}/api/models/rcmae/digits/commits/none")
    refused(answer, 404, "revision_not_found", "RevisionNotFound")


@pytest.mark.usefixtures("registry")
def test_paths_are_described_as_a_form_or_json_asks(api):
    url = f"{HUB}/api/models/rcmae/digits/paths-info/main"
    paths = ["config.json", "card", "card/curves.png", "none"]
    plain = api.post(url, data={"paths": paths, "expand": "False"}).json()
    assert [(entry["path"], entry["type"]) for entry in plain] == [
        ("config.json", "file"), ("card", "directory"), ("card/curves.png", "file"),
    ]  # fmt: skip
    assert "lastCommit" not in plain[0]
    expanded = api.post(url, json={"paths": paths, "expand": True}).json()
    assert [entry["path"] for entry in expanded] == [entry["path"] for entry in plain]
    assert expanded[0]["lastCommit"]["title"] == "Version 1 of digits"
    assert api.post(url, data={"paths": "config.json"}).json() == plain[:1]
    for body in ({"paths": []}, {"paths": [1]}, {"paths": {"a": 1}}, {}, ["config.json"], None):
        problem(api.post(url, json=body), 422, "body_invalid")
    problem(api.post(url, content=b"{", headers={"Content-Type": "application/json"}), 422, "json_invalid")


@pytest.mark.usefixtures("registry")
def test_a_tree_tells_which_version_its_entries_come_from(api):
    for entry in api.get(f"{HUB}/api/models/rcmae/digits/tree/v2?recursive=True&expand=True").json():
        assert entry["lastCommit"]["title"] == "Version 2 of digits"


@pytest.mark.usefixtures("registry")
def test_the_caller_and_what_it_may_read(clients):
    for owner in ("viewer", "bob"):
        me = getattr(clients, owner).get(f"{HUB}/api/whoami-v2").json()
        assert (me["name"], me["type"], [org["name"] for org in me["orgs"]]) == (owner, "user", ["rcmae"])
        assert me["auth"]["accessToken"] == {"displayName": f"rcmae-{owner}", "role": "read"}
    refused(clients.anonymous.get(f"{HUB}/api/whoami-v2"), 401, "unauthorized", "GatedRepo")
    assert clients.viewer.get(f"{HUB}/api/models/rcmae/digits/auth-check").json() == {}


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("rcmae/digits", "/backbones/digits"),
        ("rcmae/digits-timm", "/backbones/digits"),
        ("rcmae/digits-torch_export/tree/main", "/backbones/digits"),
        ("rcmae/digits/tree/v1", "/backbones/digits?version=v1"),
        ("rcmae/digits-mae/blob/1/config.json", "/backbones/digits?version=1"),
        ("rcmae/digits/tree/latest/card", "/backbones/digits?version=latest"),
    ],
)
def test_a_browser_gets_the_page_of_the_backbone(browsers, path, page):
    answer = browsers.viewer.get(f"{HUB}/{path}")
    assert (answer.status_code, answer.headers["location"]) == (302, page)
    assert "<h1" in browsers.viewer.get(page).text
    login = browsers.anonymous.get(f"{HUB}/{path}")
    assert (login.status_code, login.headers["location"]) == (303, f"/login?next={HUB}/{path}")


@pytest.mark.usefixtures("many")
def test_a_browser_is_told_of_a_backbone_that_does_not_exist(browsers):
    answer = browsers.viewer.get(f"{HUB}/rcmae/none")
    assert answer.status_code == 404
    assert "there is no repo" in answer.text
    commit = browsers.viewer.get(f"{HUB}/api/models/rcmae/digits/revision/v1").json()["sha"]
    assert "digits" in browsers.viewer.get(f"/backbones/digits?version={commit}").text


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
