"""Backbones over REST: lists, aliases, deletion, single files and archives."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from backbone_files import FILES, WEIGHTS, Registry, commit_of, compare_with_mlflow, sha256, write
from conftest import token_of
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from service_fakes import add_job, job_of, problem, spec_with
from service_world import World
from sqlalchemy import event

from service.adapters.storage import Artifacts
from service.auth.caller import Caller
from service.auth.scopes import Role
from service.backbones import service
from service.backbones.archive import Archive
from service.db.tables import BackboneVersion, Job
from service.http.paging import write_cursor
from trainer.protocol import names
from trainer.protocol.outcome import Outcome

BASE = "/v1/backbones"


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def names_of(api: TestClient, **query: str) -> list[str]:
    answer = api.get(BASE, params=query)
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["items"]]


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_version_tells_what_it_is_and_where_it_comes_from(api, registry):
    registry.add(
        metrics={"eval/linear_top1": 0.75, "eval/reconstruction_ratio": 0.25}, attempt="2", checkpoint_step="480",
        dataset_fingerprint="abc", method="rc_mae", epochs="12.5", code_version="0.1.0", network="teacher",
        formats="timm,hf,hf-mae", spec_sha256="0" * 64,
    )  # fmt: skip
    job_id = registry.jobs["digits"]
    (summary,) = api.get(f"{BASE}/digits").json()["details"]
    assert (summary["job_id"], summary["trained_by"], summary["attempt"]) == (job_id, job_id, 2)
    assert (summary["checkpoint_step"], summary["method"], summary["epochs"]) == (480, "rc_mae", 12.5)
    assert summary["dataset_fingerprint"] == "abc"
    assert (summary["code_version"], summary["network"]) == ("0.1.0", "teacher")
    assert summary["formats"] == ["timm", "hf", "hf-mae"]
    assert summary["metrics"] == {"eval/linear_top1": 0.75, "eval/reconstruction_ratio": 0.25}
    version = api.get(f"{BASE}/digits/versions/1").json()
    assert set(summary) < set(version)
    assert {file["path"] for file in version["files"]} == {*FILES, "SHA256SUMS"}


def test_tags_that_say_no_number_are_passed_over(api, registry):
    registry.add(**{"metric.eval/linear_top1": "high", "metric.eval/knn_top1": "nan", "attempt": "x" * 9,
                    "checkpoint_step": "9" * 400})  # fmt: skip
    (summary,) = api.get(f"{BASE}/digits").json()["details"]
    assert (summary["metrics"], summary["attempt"], summary["checkpoint_step"]) == ({}, None, None)


def test_filters_narrow_to_backbones_with_a_version_that_fits_all(api, registry):
    registry.add("cats", method="rc_mae", dataset_fingerprint="aaa", network="teacher", formats="timm,hf")
    registry.add("cats", 2, method="mae", dataset_fingerprint="aaa", network="student", formats="hf,onnx")
    registry.add("dogs", method="rc_mae", dataset_fingerprint="bbb", network="teacher", formats="timm")
    registry.set_alias("dogs", "best", 1)
    for query, found in (
        ({}, ["cats", "dogs"]),
        ({"name_contains": "AT"}, ["cats"]),
        ({"method": "rc_mae"}, ["cats", "dogs"]),
        ({"method": "mae", "network": "teacher"}, []),
        ({"method": "mae", "format": "onnx"}, ["cats"]),
        ({"dataset": "bbb"}, ["dogs"]),
        ({"dataset": "builtin://digits"}, ["cats", "dogs"]),
        ({"job": registry.jobs["dogs"]}, ["dogs"]),
        ({"alias": "best"}, ["dogs"]),
        ({"alias": "worst"}, []),
    ):
        assert names_of(api, **query) == found, query
    (item,) = api.get(BASE, params={"method": "mae"}).json()["items"]
    assert (item["versions"], item["latest_version"], item["main_version"]) == ([2], 2, 2)
    problem(api.get(BASE, params={"format": "pickle"}), 422, "parameter_invalid")


@pytest.mark.both_databases
def test_sorted_by_the_result_of_what_would_be_pulled(api, registry):
    registry.add("a", metrics={"eval/linear_top1": 0.5})
    registry.add("b", metrics={"eval/linear_top1": 0.9})
    registry.add("b", 2, metrics={"eval/linear_top1": 0.1})
    registry.add("c", metrics={"eval/knn_top1": 0.9})
    registry.add("d", metrics={"eval/linear_top1": -1e-300})
    assert names_of(api, sort="-eval/linear_top1") == ["a", "b", "d", "c"]
    assert names_of(api, sort="eval/linear_top1") == ["d", "b", "a", "c"]
    registry.set_alias("b", "champion", 1)
    assert names_of(api, sort="-eval/linear_top1") == ["b", "a", "d", "c"]
    assert names_of(api, sort="-updated_at")[0] == "b"
    for wrong in ("eval", "--eval/x", "-", "eval/linear top1", "name;drop"):
        problem(api.get(BASE, params={"sort": wrong}), 422, "parameter_invalid")


@pytest.mark.both_databases
@pytest.mark.parametrize("sort", [None, "-eval/linear_top1", "eval/linear_top1", "updated_at"])
def test_pages_give_each_once_whatever_the_order(api, registry, sort):
    for number, name in enumerate("fbdaec"):
        registry.add(name, metrics={"eval/linear_top1": number // 2 / 3} if name not in "fe" else None)
    query = {"sort": sort} if sort else {}
    whole, found, cursor = names_of(api, **query), [], ""
    while cursor is not None:
        page = api.get(BASE, params=query | {"limit": "2"} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["items"]) <= 2
        found += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert found == whole
    assert sorted(whole) == list("abcdef")


@pytest.mark.both_databases
def test_a_page_reads_its_own_backbones_and_a_filter_finds_those_that_come_later(api, registry):
    """A registry of thousands of versions is not read whole for each page of fifty."""
    for number in range(12):
        registry.add(f"b-{number:02}", method="rc-mae" if number > 9 else "mae")
    read: list[str] = []

    def loaded(row: BackboneVersion, _: object) -> None:
        read.append(row.name)

    event.listen(BackboneVersion, "load", loaded)
    try:
        first = api.get(BASE, params={"limit": "2"}).json()
        assert [item["name"] for item in first["items"]] == ["b-00", "b-01"]
        assert read == ["b-00", "b-01", "b-02"]
        second = api.get(BASE, params={"limit": "2", "cursor": first["next_cursor"]}).json()
        assert [item["name"] for item in second["items"]] == ["b-02", "b-03"]
        read.clear()
        assert names_of(api, name_contains="B-1") == read == ["b-10", "b-11"]
    finally:
        event.remove(BackboneVersion, "load", loaded)
    assert names_of(api, limit="1", method="rc-mae") == ["b-10"]
    assert names_of(api, name_contains="_") == []


@pytest.mark.both_databases
def test_a_cursor_of_another_order_or_of_nobody_is_refused(api, registry):
    for name in "abc":
        registry.add(name)
    cursor = api.get(BASE, params={"limit": "1"}).json()["next_cursor"]
    problem(api.get(BASE, params={"cursor": cursor, "sort": "updated_at"}), 422, "parameter_invalid")
    no_name = write_cursor([None, False, 0.0, "a\0\ud800"])
    no_value = write_cursor([None, False, 10**400, "a"])
    for wrong in ("x", "W10", "WzEsMl0", "e30", no_name, no_value):
        problem(api.get(BASE, params={"cursor": wrong}), 422, "parameter_invalid")


def test_what_lies_elsewhere_is_not_listed_either(api, database, registry, mlflow, tmp_path):
    registry.add()
    outside = write(tmp_path / "outside", FILES)
    mlflow.register("digits", 2, registry.jobs["digits"], outside)
    compare_with_mlflow(database, mlflow)
    assert api.get(BASE).json()["items"][0]["versions"] == [1]
    assert api.get(f"{BASE}/digits/versions/latest").json()["version"] == 1
    registry.set_alias("digits", "champion", 2)
    assert api.get(f"{BASE}/digits").json()["aliases"] == {}
    assert api.get(f"{BASE}/digits/versions/main").json()["version"] == 1
    problem(api.put(f"{BASE}/digits/aliases/best", json={"version": 2}), 404, "version_not_found")


def test_a_version_of_a_job_that_publishes_names_both_jobs(api, database, mlflow, root):
    trained = add_job(database, "succeeded")
    spec = {"kind": "publish", "job": trained, "register_as": "late", "name": "x"}
    publishing = add_job(database, "succeeded", kind="publish")
    with database.session() as session:
        session.get(Job, publishing).spec = spec
    mlflow.register("late", 1, publishing, write(root / "late", FILES))
    compare_with_mlflow(database, mlflow)
    shown = api.get(f"{BASE}/late/versions/1").json()
    assert (shown["job_id"], shown["trained_by"]) == (publishing, trained)
    for job_id in (trained, publishing):
        assert names_of(api, job=job_id) == ["late"]


# --- references -------------------------------------------------------------------------------------------------------


def test_a_version_is_found_by_number_latest_main_alias_or_commit(api, registry):
    for number in (1, 2, 3):
        registry.add(number=number)
    registry.set_alias("digits", "champion", 2)
    registry.set_alias("digits", "tiny-best", 1)
    commit = commit_of(registry.folder("digits", 1))
    named = {"1": 1, "v1": 1, "latest": 3, "main": 2, "champion": 2, "tiny-best": 1, "03": 3, commit: 1}
    for reference, number in named.items():
        assert api.get(f"{BASE}/digits/versions/{reference}").json()["version"] == number
        assert api.get(f"{BASE}/digits/versions/{reference}/files/spec.json").content == str(number).encode()
    for reference in ("4", "0", "-1", "none", "v4", "vv1", "V1", "9" * 30, "0" * 40, "%EF%BC%91", "1.0"):
        problem(api.get(f"{BASE}/digits/versions/{reference}"), 404, "version_not_found")
    registry.delete_alias("digits", "champion")
    assert api.get(f"{BASE}/digits/versions/main").json()["version"] == 3


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_an_alias_is_set_moved_and_removed_and_each_is_audited(clients, registry):
    for number in (1, 2):
        registry.add(number=number)
    for number in (1, 2):
        shown = clients.alice.put(f"{BASE}/digits/aliases/champion", json={"version": number})
        assert shown.status_code == 200
        assert shown.json()["aliases"] == {"champion": number}
        assert shown.json()["main_version"] == number
        assert [each["aliases"] for each in shown.json()["details"]] == [["champion"], []][:: 1 if number == 2 else -1]
    assert clients.alice.delete(f"{BASE}/digits/aliases/champion").json()["aliases"] == {}
    problem(clients.alice.delete(f"{BASE}/digits/aliases/champion"), 404, "alias_not_found")
    lines = clients.admin.get("/v1/audit").json()["items"]
    assert [(line["action"], line["target"], line["status"]) for line in lines] == [
        ("backbone.unalias", "digits", 404), ("backbone.unalias", "digits", 200), ("backbone.alias", "digits", 200),
        ("backbone.alias", "digits", 200),
    ]  # fmt: skip
    assert lines[2]["detail"] == {"alias": "champion", "version": 2, "before": 1}


@pytest.mark.parametrize(
    "alias",
    [
        "main",
        "latest",
        "v1",
        "v20260301",
        "1",
        "a" * 40,
        "0" * 40,
        "Best",
        "-best",
        "a b",
        "a.b",
        "é",
        "x" * 64,
        "a%2Fb",
    ],
)
def test_what_means_something_else_is_no_alias(api, registry, mlflow, alias):
    registry.add()
    assert api.put(f"{BASE}/digits/aliases/{alias}", json={"version": 1}).status_code in {404, 422}
    assert mlflow.named.get("digits", {}) == {}


@pytest.mark.parametrize(
    "body", [{}, {"version": "1"}, {"version": 0}, {"version": 2**31}, {"version": 1, "x": 1}, [], None]
)
def test_the_body_of_an_alias_is_checked(api, registry, mlflow, body):
    registry.add()
    answer = api.put(f"{BASE}/digits/aliases/best", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert mlflow.named.get("digits", {}) == {}


def test_an_alias_needs_a_version_that_is_there(api, registry):
    problem(api.put(f"{BASE}/digits/aliases/best", json={"version": 1}), 404, "backbone_not_found")
    registry.add()
    problem(api.put(f"{BASE}/digits/aliases/best", json={"version": 2}), 404, "version_not_found")


def test_an_alias_of_another_owners_version_is_not_taken_away(clients, registry, mlflow, database, root):
    registry.add(owner="bob")
    own = add_job(database, "succeeded", owner="alice", spec=spec_with(register_as="digits"))
    mlflow.register("digits", 2, own, write(root / "own", FILES))
    compare_with_mlflow(database, mlflow)
    registry.set_alias("digits", "champion", 1)
    problem(clients.alice.put(f"{BASE}/digits/aliases/champion", json={"version": 2}), 403, "forbidden")
    problem(clients.alice.delete(f"{BASE}/digits/aliases/champion"), 403, "forbidden")
    assert mlflow.named.get("digits", {}) == {"champion": 1}
    assert clients.alice.put(f"{BASE}/digits/aliases/mine", json={"version": 2}).status_code == 200
    assert clients.operator.put(f"{BASE}/digits/aliases/champion", json={"version": 2}).status_code == 200


# --- deletion ---------------------------------------------------------------------------------------------------------


def test_a_preview_tells_what_would_go_and_deletes_nothing(served, world, registry):
    registry.add()
    answer = served.delete(f"{BASE}/digits/versions/1?preview=true")
    assert answer.json() == {
        "name": "digits", "version": 1, "job_id": registry.jobs["digits"],
        "artifact_uri": f"file://{registry.folder('digits', 1)}", "files": len(FILES) + 2,
        "bytes": sum(file.stat().st_size for file in registry.folder("digits", 1).rglob("*") if file.is_file()),
        "used_by": [], "aliases": [], "kept": "",
    }  # fmt: skip
    world.rounds()
    assert served.get(f"{BASE}/digits/versions/1").status_code == 200


def test_a_deleted_version_is_gone_at_once_and_its_files_soon(served, world, registry, mlflow):
    for number in (1, 2):
        registry.add(number=number)
    assert served.delete(f"{BASE}/digits/versions/2").status_code == 200
    problem(served.get(f"{BASE}/digits/versions/2"), 404, "version_not_found")
    problem(served.get(f"{BASE}/digits/versions/2/files/spec.json"), 404, "version_not_found")
    problem(served.delete(f"{BASE}/digits/versions/2"), 404, "version_not_found")
    problem(served.put(f"{BASE}/digits/aliases/best", json={"version": 2}), 404, "version_not_found")
    assert served.get(f"{BASE}/digits").json()["versions"] == [1]
    assert registry.folder("digits", 2).exists()
    world.rounds()
    assert not registry.folder("digits", 2).exists()
    assert registry.folder("digits", 1).exists()
    assert [version.version for version in mlflow.registered] == [1]
    world.compare_versions()
    problem(served.get(f"{BASE}/digits/versions/2"), 404, "version_not_found")


def test_a_version_that_an_alias_stands_for_is_kept(served, world, registry):
    registry.add()
    registry.set_alias("digits", "champion", 1)
    detail = problem(served.delete(f"{BASE}/digits/versions/1"), 409, "version_has_alias")["detail"]
    assert "digits@champion" in detail
    assert f"DELETE {BASE}/digits/aliases/champion" in detail
    assert served.delete(f"{BASE}/digits/versions/1?preview=true").json()["aliases"] == ["champion"]
    job = registry.jobs["digits"]
    problem(served.delete(f"/v1/jobs/{job}?with_backbones=true"), 409, "version_has_alias")
    world.rounds()
    assert served.get(f"{BASE}/digits/versions/1").status_code == 200
    assert served.delete(f"{BASE}/digits/aliases/champion").status_code == 200
    assert served.delete(f"{BASE}/digits/versions/1").status_code == 200


@pytest.mark.parametrize("part", ["mlflow", "storage"])
def test_a_deletion_is_finished_when_what_it_needs_is_back(served, world, registry, mlflow, root, part):
    registry.add()
    assert served.delete(f"{BASE}/digits/versions/1").status_code == 200
    there = root.rename(root.with_name("unmounted")) if part == "storage" else None
    mlflow.reachable = part != "mlflow"
    world.rounds(3)
    assert len(mlflow.registered) == 1
    mlflow.reachable = True
    if there:
        there.rename(root)
    world.rounds()
    assert mlflow.registered == []
    assert not registry.folder("digits", 1).exists()


def test_who_reads_while_a_version_is_deleted_gets_all_of_a_file_or_a_clear_no(served, world, registry):
    registry.add()
    with served.stream("GET", f"{BASE}/digits/versions/1/files/hf/model.safetensors") as answer:
        assert served.delete(f"{BASE}/digits/versions/1").status_code == 200
        world.rounds()
        assert b"".join(answer.iter_bytes()) in {WEIGHTS, b""}
    rest = {"Range": "bytes=100-", "If-Range": f'"{sha256(WEIGHTS)}"'}
    problem(served.get(f"{BASE}/digits/versions/1/files/hf/model.safetensors", headers=rest), 404, "version_not_found")


def test_a_job_names_its_versions_for_as_long_as_they_are_there(world, served, mlflow, root):
    job_id = world.running(spec=spec_with(register_as="digits"))
    mlflow.register("digits", 1, job_id, write(root / "m-1", FILES))
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    result = served.get(f"/v1/jobs/{job_id}").json()["result"]
    assert result["backbones"] == [{"name": "digits", "version": 1}]
    assert result["backbone"] == {"name": "digits", "version": 1}
    assert served.delete(f"{BASE}/digits/versions/1").status_code == 200
    world.rounds()
    result = served.get(f"/v1/jobs/{job_id}").json()["result"]
    assert (result["backbones"], result["backbone"]) == ([], None)
    assert job_of(world.database, job_id).state == "succeeded"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(registry) -> str:
    registry.add()
    return f"{BASE}/digits/versions/1/files/hf/model.safetensors"


@pytest.mark.parametrize(
    ("known", "status"),
    [("{etag}", 304), ('"x", {etag}', 304), ("W/{etag}", 304), ("*", 304), ('"x"', 200), ("{digest}", 200), ("", 200)],
)
def test_what_is_known_already_is_not_sent_again(api, weights, known, status):
    digest = sha256(WEIGHTS)
    header = {"If-None-Match": known.format(etag=f'"{digest}"', digest=digest)}
    for answer in (api.get(weights, headers=header), api.get(weights, headers=header | {"Range": "bytes=0-9"})):
        assert answer.status_code == (304 if status == 304 else answer.status_code)
        assert (answer.status_code == 304) == (status == 304)
        assert answer.headers["etag"] == f'"{digest}"'
        assert answer.status_code != 304 or answer.content == b""
    assert api.head(weights, headers=header).status_code == status


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1), ("bytes=0-", 0, 10240), ("bytes=10239-", 10239, 10240), ("bytes=-1", 10239, 10240),
        ("bytes=-99999", 0, 10240), ("bytes=5-99999999999", 5, 10240), ("bytes = 1 - 2", 1, 3),
    ],
)  # fmt: skip
def test_a_range_gives_that_part(api, weights, wanted, start, stop):
    answer = api.get(weights, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, WEIGHTS[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(WEIGHTS)}"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize(
    "wanted", ["bytes=10240-", "bytes=99999-100000", "bytes=-0", "bytes=" + "9" * 18 + "-", "bytes=9-5"]
)
def test_a_range_outside_is_refused(api, weights, wanted):
    answer = api.get(weights, headers={"Range": wanted})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(WEIGHTS)}")


@pytest.mark.parametrize(
    "wanted",
    ["bytes=0-1,5-6", "lines=0-1", "bytes=a-b", "bytes=-", "bytes", "", "bytes=1", "bytes=--5", "bytes=0x1-",
     "bytes=" + "9" * 5000 + "-", "bytes=0-" + "9" * 5000, "bytes=²-"],
)  # fmt: skip
def test_a_range_that_is_none_is_passed_over(api, weights, wanted):
    answer = api.get(weights, headers={"Range": wanted.encode("latin-1")})
    assert (answer.status_code, answer.content) == (200, WEIGHTS)


def test_head_tells_what_get_would(api, weights):
    for url in (weights, f"{BASE}/digits/versions/1/archive", f"{BASE}/digits/versions/1/archive?format=hf"):
        for headers in ({}, {"Range": "bytes=7-70"}, {"If-None-Match": "*"}, {"Range": "bytes=999999999-"}):
            get, head = api.get(url, headers=headers), api.head(url, headers=headers)
            assert head.status_code == get.status_code
            assert head.content == b""
            told = [{k: v for k, v in answer.headers.items() if k != "x-request-id"} for answer in (get, head)]
            assert told[0] == told[1]


def test_links_in_a_version_that_lead_out_are_no_files(api, registry, tmp_path):
    registry.add()
    (tmp_path / "secret.txt").write_text("secret")
    folder = registry.folder("digits", 1)
    (folder / "hf/config.json").unlink()
    (folder / "hf/config.json").symlink_to(tmp_path / "secret.txt")
    answer = api.get(f"{BASE}/digits/versions/1/files/hf/config.json")
    problem(answer, 404, "file_not_found")
    assert "hf/config.json" not in {file["path"] for file in api.get(f"{BASE}/digits/versions/1").json()["files"]}
    problem(api.get(f"{BASE}/digits/versions/1/archive?format=hf"), 404, "file_not_found")


def test_the_sums_are_served_and_right(api, registry):
    registry.add()
    sums = api.get(f"{BASE}/digits/versions/1/files/SHA256SUMS").text
    for line in sums.splitlines():
        digest, _, path = line.partition("  ")
        assert sha256(api.get(f"{BASE}/digits/versions/1/files/{path}").content) == digest


# --- archives ---------------------------------------------------------------------------------------------------------


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def test_an_archive_holds_all_of_a_version_or_one_format_with_card_and_sums(api, registry):
    registry.add(number=3)
    whole = api.get(f"{BASE}/digits/versions/3/archive")
    assert whole.headers["content-type"] == "application/x-tar"
    assert whole.headers["content-disposition"] == 'attachment; filename="digits-v3.tar"'
    found = unpacked(whole.content)
    assert set(found) == {f"digits-v3/{path}" for path in (*FILES, "SHA256SUMS")}
    assert found["digits-v3/timm/model.safetensors"] == WEIGHTS[::-1]
    one = unpacked(api.get(f"{BASE}/digits/versions/latest/archive?format=hf").content)
    beside = ("README.md", "card/curves.png", "SHA256SUMS")
    assert set(one) == {f"digits-v3/{path}" for path in ("hf/config.json", "hf/model.safetensors", *beside)}
    detail = problem(api.get(f"{BASE}/digits/versions/3/archive?format=onnx"), 404, "format_not_found")["detail"]
    assert "timm, hf, hf-mae" in detail
    problem(api.get(f"{BASE}/digits/versions/3/archive?format=zip"), 422, "parameter_invalid")


def test_an_archive_is_the_same_bytes_each_time_and_goes_on_where_it_broke(api, registry):
    registry.add()
    url = f"{BASE}/digits/versions/1/archive"
    whole = api.get(url)
    etag = whole.headers["etag"]
    assert int(whole.headers["content-length"]) == len(whole.content)
    rest = api.get(url, headers={"Range": "bytes=3000-", "If-Range": etag})
    assert (rest.status_code, rest.content) == (206, whole.content[3000:])
    assert api.get(f"{url}?format=hf").headers["etag"] != etag


@given(data=st.data())
def test_any_part_of_an_archive_is_that_part_of_it(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("archive")
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 511, 512, 513, 2000]), min_size=1, max_size=4))
    for number, size in enumerate(sizes):
        (root / f"{number}").write_bytes(bytes([number + 1]) * size)
    artifacts = Artifacts(str(root.parent))
    long = "n" * 120
    members = [(f"{long}/{number}", artifacts.file(str(root), f"{number}")) for number in range(len(sizes))]
    made = Archive(members, datetime(2026, 3, 1, tzinfo=UTC))
    whole = b"".join(made.pieces(0, made.size))
    assert len(whole) == made.size
    assert [len(content) for content in unpacked(whole).values()] == sizes
    start = data.draw(st.integers(0, made.size))
    stop = data.draw(st.integers(start, made.size))
    assert b"".join(made.pieces(start, stop)) == whole[start:stop]


# --- signed links -----------------------------------------------------------------------------------------------------


def test_a_link_into_s3_is_sent_in_place_of_the_bytes_where_that_is_wanted(app, registry, monkeypatch):
    registry.add()
    etag = f'"{sha256(WEIGHTS)}"'
    app_state = app.state.app_state
    settings = app_state.settings.model_copy(update={"presigned_downloads": True, "presigned_s": 120})
    app.state.app_state = replace(app_state, settings=settings)
    asked = []
    monkeypatch.setattr(
        Artifacts, "link", lambda _, file, seconds: asked.append((file.size, seconds)) or "https://s3/x?y=z"
    )
    api = TestClient(app, headers={"Authorization": f"Bearer {token_of('viewer')}"}, follow_redirects=False)
    url = f"{BASE}/digits/versions/1/files/hf/model.safetensors"
    answer = api.get(url)
    assert (answer.status_code, answer.headers["location"], answer.content) == (302, "https://s3/x?y=z", b"")
    assert answer.headers["etag"] == etag
    assert asked == [(len(WEIGHTS), 120)]
    assert api.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert (api.head(url).status_code, api.head(url).headers["content-length"]) == (200, str(len(WEIGHTS)))
    picture = api.get(f"{BASE}/digits/versions/1/files/card/curves.png")
    assert (picture.status_code, picture.content) == (200, FILES["card/curves.png"]), "a page shows it"
    problem(TestClient(app, follow_redirects=False).get(url), 401, "unauthorized")
    hub = api.head("/hf/rcmae/digits/resolve/main/model.safetensors")
    assert (hub.status_code, hub.headers["location"]) == (302, "https://s3/x?y=z")
    assert (hub.headers["x-linked-size"], hub.headers["x-linked-etag"]) == (str(len(WEIGHTS)), etag)
    assert len(hub.headers["x-repo-commit"]) == 40


def test_files_on_a_disk_are_streamed_whatever_is_set(app, registry):
    registry.add()
    app_state = app.state.app_state
    app.state.app_state = replace(
        app_state, settings=app_state.settings.model_copy(update={"presigned_downloads": True})
    )
    api = TestClient(app, headers={"Authorization": f"Bearer {token_of('viewer')}"}, follow_redirects=False)
    assert api.get(f"{BASE}/digits/versions/1/files/hf/model.safetensors").content == WEIGHTS


def test_no_path_leads_out_of_a_version(api, registry, root: Path):
    registry.add()
    (root / "beside.txt").write_text("secret")
    for path in (
        "..%2F..%2Fbeside.txt",
        "%2e%2e/%2e%2e/beside.txt",
        "hf/..%2F..%2F..%2F..%2Fbeside.txt",
        "unlisted.txt",
    ):
        for base in (f"{BASE}/digits/versions/1/files", "/hf/rcmae/digits/resolve/main"):
            answer = api.get(f"{base}/{path}")
            assert answer.status_code == 404, (base, path)
            assert "secret" not in answer.text


@pytest.mark.both_databases
def test_versions_deleted_at_once_are_all_removed_in_one_round(world: World, registry):

    for number in (1, 2, 3):
        registry.add(number=number)
        service.delete_version(world.app_state, Caller("alice", Role.SUBMITTER), "digits", number)
    world.rounds()
    assert world.mlflow.registered == []
    assert names.BACKBONE_SUMS not in {file.name for file in registry.folder("digits", 1).parent.parent.rglob("*")}


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (spec_with(register_as="cats-onnx"), "register_as"),
        ({"kind": "search", "base": spec_with(register_as="cats-torch_export"),
          "scheduler": {"name": "none"},
          "space": {"optimization.base_lr": {"type": "float", "low": 1e-4, "high": 1e-2}}}, "base.register_as"),
    ],
)  # fmt: skip
def test_a_new_backbone_cannot_have_the_name_of_another_one_s_repository(api, document, field):
    for path in ("/v1/jobs", "/v1/jobs/plan"):
        (found,) = problem(api.post(path, json=document), 422, "spec_invalid")["problems"]
        assert found["field"] == field
        assert "must not end in" in found["message"]


def test_a_backbone_that_has_such_a_name_from_before_gets_new_versions(api, registry):
    registry.add("cats-onnx")
    assert api.post("/v1/jobs", json=spec_with(register_as="cats-onnx")).status_code == 201
