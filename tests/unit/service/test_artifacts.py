"""Files that are served: only those of our jobs and backbones, below the artifact root."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from backbone_files import compare_with_mlflow
from service_fakes import add_job, spec_with

from service.adapters.storage import Artifacts, OutsideRoot, StorageUnreachable, StoredFile
from service.jobs import repository

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def folder(root: Path) -> Path:
    """A version's folder with its checksums, and a secret beside it."""
    folder = root / "model"
    files = {"hf/model.safetensors": WEIGHTS, "hf/config.json": b"{}", "spec.json": b'{"a": 1}', "with space.txt": b"x"}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    (folder / "SHA256SUMS").write_text(sums)
    (folder / "unlisted.txt").write_text("secret")
    (root / "beside.txt").write_text("secret")
    return folder


# --- the folder of artifacts ------------------------------------------------------------------------------------------


def test_files_below_a_folder_are_found(root, folder):
    artifacts = Artifacts(str(root))
    for uri in (str(folder), f"file://{folder}"):
        assert artifacts.read(uri, "spec.json") == b'{"a": 1}'
        assert artifacts.file(uri, "hf/config.json").size == 2
        assert b"".join(artifacts.file(uri, "hf/model.safetensors").pieces(5, 9000)) == WEIGHTS[5:9000]
        assert artifacts.sizes(uri, "hf") == {"config.json": 2, "model.safetensors": len(WEIGHTS)}
    assert artifacts.sizes(str(folder), "none") == {}
    assert ("hf/model.safetensors", len(WEIGHTS)) in artifacts.files(str(folder))


def test_a_small_file_is_written_whole_below_its_folder(root, folder):
    artifacts = Artifacts(str(root))
    for data in (b"first", b"second"):
        artifacts.write(str(folder), "new/file", data)
        assert artifacts.read(str(folder), "new/file") == data
    assert artifacts.sizes(str(folder), "new") == {"file": 6}
    with pytest.raises(OutsideRoot):
        artifacts.write(str(folder), "../beside.txt", b"other")
    assert (root / "beside.txt").read_text() == "secret"
    with pytest.raises(StorageUnreachable):
        artifacts.write(str(root / "deleted"), "new/file", b"")


@pytest.mark.parametrize(
    "name",
    [
        "../beside.txt",
        "hf/../../beside.txt",
        "hf/../spec.json",
        "..",
        "",
        ".",
        "/",
        "/etc/passwd",
        "//etc/passwd",
        "spec.json\x00.png",
        "\x00",
        "hf",
        "none",
        "spec.json/x",
        "x" * 5000,
        "..\\beside.txt",
    ],
)
def test_names_that_lead_elsewhere_are_no_files(root, folder, name):
    artifacts = Artifacts(str(root))
    assert artifacts.file(str(folder), name) is None
    assert artifacts.read(str(folder), name) is None


def test_links_that_lead_out_are_no_files(root, folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (folder / "sibling.txt").symlink_to(root / "beside.txt")
    (folder / "dir").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "inside.txt").symlink_to(folder / "spec.json")
    artifacts = Artifacts(str(root))
    for name in ("link.txt", "sibling.txt", "dir/secret.txt", "loop"):
        assert artifacts.file(str(folder), name) is None
    assert artifacts.read(str(folder), "inside.txt") == b'{"a": 1}'
    listed = {name for name, _ in artifacts.files(str(folder))}
    assert listed.isdisjoint({"link.txt", "sibling.txt", "dir/secret.txt", "loop"})


def test_folders_outside_the_root_are_refused(root, folder, tmp_path):
    artifacts = Artifacts(str(root))
    (tmp_path / "artifacts-too").mkdir()
    (root / "out").symlink_to(tmp_path)
    for outside in ("/", "/etc", str(tmp_path), f"{folder}/../..", f"{root}-too", f"file://{root}/../", f"{root}/out"):
        with pytest.raises(OutsideRoot):
            artifacts.file(outside, "passwd")
        with pytest.raises(OutsideRoot):
            artifacts.sizes(outside)
        with pytest.raises(OutsideRoot):
            artifacts.files(outside)


@pytest.mark.parametrize(
    ("endpoint", "host"), [(None, "http://inner:8333"), ("https://s3.example.org", "https://s3.example.org")]
)
def test_signed_links_are_of_the_endpoint_that_clients_reach(monkeypatch, endpoint, host):
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("ENDPOINT_URL", "http://inner:8333")):
        monkeypatch.setenv(f"AWS_{name}", value)
    artifacts = Artifacts("s3://bucket/art", public_endpoint=endpoint)
    file = StoredFile(artifacts, "bucket/art/a b/model.safetensors", 5, datetime.now(UTC), "1")
    link = urlsplit(artifacts.link(file, 120))
    assert (f"{link.scheme}://{link.netloc}", link.path) == (host, "/bucket/art/a%20b/model.safetensors")
    query = parse_qs(link.query)
    assert (query["X-Amz-Expires"], query["X-Amz-Algorithm"]) == (["120"], ["AWS4-HMAC-SHA256"])
    assert artifacts.holds("s3://bucket/art/m")
    assert not any(map(artifacts.holds, ("s3://bucket/art", "s3://bucket/artful/m", "s3://other/art/m", "/etc")))


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_jobs_pictures_are_listed_and_served(api, database, root):
    images = root / "run" / "images"
    images.mkdir(parents=True)
    for name in ("reconstruction_00000020.png", "reconstruction_00000003.png", "notes.txt", "other.png"):
        (images / name).write_bytes(b"\x89PNG" + name.encode())
    (images.parent / "spec.png").write_text("secret")
    job_id = add_job(database, "running", artifact_uri=str(images.parent))
    items = api.get(f"/v1/jobs/{job_id}/images").json()["items"]
    assert [(item["step"], item["epoch"]) for item in items] == [(3, None), (20, None)]
    with database.session() as session:  # counted by the attempt: 640 train in ten steps an epoch
        repository.get(session, job_id).dataset_images = 711
    assert [item["epoch"] for item in api.get(f"/v1/jobs/{job_id}/images").json()["items"]] == [0.3, 2.0]
    answer = api.get(items[0]["url"])
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == b"\x89PNGreconstruction_00000003.png"
    for name in ("notes.txt", "none.png", "..%2Fspec.png", "%2Fetc%2Fpasswd", "a%00.png"):
        answer = api.get(f"/v1/jobs/{job_id}/images/{name}")
        assert answer.status_code == 404, name
        assert "secret" not in answer.text


# --- backbones --------------------------------------------------------------------------------------------------------


@pytest.fixture
def job_id(database) -> str:
    return add_job(database, "succeeded", spec=spec_with(register_as="digits"))


@pytest.fixture
def url(database, mlflow, folder, job_id) -> str:
    """Where the files of the first version of backbone `digits` are."""
    mlflow.register("digits", 1, job_id, f"file://{folder}")
    compare_with_mlflow(database, mlflow)
    return "/v1/backbones/digits/versions/1/files"


@pytest.mark.usefixtures("url")
def test_a_version_shows_its_files(api, folder, job_id):
    (shown,) = api.get("/v1/backbones").json()["items"]
    assert (shown["name"], shown["latest_version"], shown["versions"]) == ("digits", 1, [1])
    detail = api.get("/v1/backbones/digits").json()
    assert [each["version"] for each in detail.pop("details")] == [1]
    assert detail == shown | {"champion_rule": None, "classifiers": []}
    version = api.get("/v1/backbones/digits/versions/1").json()
    assert (version["name"], version["version"], version["job_id"]) == ("digits", 1, job_id)
    files = {file["path"]: file for file in version["files"]}
    assert set(files) == {"hf/model.safetensors", "hf/config.json", "spec.json", "with space.txt", "SHA256SUMS"}
    assert files["hf/model.safetensors"]["size"] == len(WEIGHTS)
    for path, file in files.items():
        data = api.get(file["url"]).content
        assert data == (folder / path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"]


def test_a_file_can_be_had_whole_in_part_or_not_at_all(api, url):
    weights = f"{url}/hf/model.safetensors"
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    whole = api.get(weights)
    assert (whole.status_code, whole.content) == (200, WEIGHTS)
    assert whole.headers["etag"] == f'"{digest}"'
    assert whole.headers["content-length"] == str(len(WEIGHTS))
    assert whole.headers["accept-ranges"] == "bytes"
    head = api.head(weights)
    assert (head.status_code, head.content) == (200, b"")
    assert {h: head.headers[h] for h in ("etag", "content-length")} == {
        "etag": whole.headers["etag"],
        "content-length": str(len(WEIGHTS)),
    }
    part = api.get(weights, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, WEIGHTS[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(WEIGHTS)}"
    rest = api.get(weights, headers={"Range": "bytes=10000-", "If-Range": f'"{digest}"'})
    assert (rest.status_code, rest.content) == (206, WEIGHTS[10000:])
    changed = api.get(weights, headers={"Range": "bytes=10000-", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, WEIGHTS)
    assert api.get(weights, headers={"Range": f"bytes={len(WEIGHTS)}-"}).status_code == 416


@pytest.mark.parametrize(
    "path",
    ["unlisted.txt", "none", "hf", "..%2Fbeside.txt", "%2e%2e/beside.txt", "%2Fetc%2Fpasswd", "a%00", ""],
)
def test_only_files_in_the_checksums_are_served(api, url, path):
    answer = api.get(f"{url}/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


def test_checksums_that_name_files_elsewhere_serve_nothing(api, folder, url):
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write("0" * 64 + "  ../beside.txt\n" + "0" * 64 + "  /etc/passwd\n")
    for path in ("..%2Fbeside.txt", "%2Fetc%2Fpasswd"):
        assert api.get(f"{url}/{path}").status_code == 404
    listed = {file["path"] for file in api.get("/v1/backbones/digits/versions/1").json()["files"]}
    assert listed.isdisjoint({"../beside.txt", "/etc/passwd"})


def test_versions_that_are_not_of_our_jobs_are_not_served(api, database, mlflow, folder):
    other = add_job(database, "succeeded", spec=spec_with(register_as="other"))
    unnamed = add_job(database, "succeeded")
    for number, job_id in enumerate((None, "job-unknown", other, unnamed), start=1):
        mlflow.register("digits", number, job_id, folder)
        compare_with_mlflow(database, mlflow)
        assert api.get(f"/v1/backbones/digits/versions/{number}").status_code == 404
        assert api.get(f"/v1/backbones/digits/versions/{number}/files/spec.json").status_code == 404
    assert api.get("/v1/backbones").json()["items"] == []
    assert api.get("/v1/backbones/digits").status_code == 404


def test_versions_whose_files_lie_elsewhere_are_not_served(api, database, mlflow, job_id, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "spec.json").write_text("secret")
    (outside / "SHA256SUMS").write_text("0" * 64 + "  spec.json\n")
    mlflow.register("digits", 1, job_id, outside)
    version = mlflow.register("digits", 2, job_id, outside)
    del mlflow.models[version.source]
    compare_with_mlflow(database, mlflow)
    for number in (1, 2, 3):
        for path in ("", "/files/spec.json"):
            answer = api.get(f"/v1/backbones/digits/versions/{number}{path}")
            assert answer.status_code == 404
            assert "secret" not in answer.text


def test_a_version_without_checksums_has_no_files(api, folder, url):
    (folder / "SHA256SUMS").unlink()
    assert api.get("/v1/backbones/digits/versions/1").json()["files"] == []
    assert api.get(f"{url}/spec.json").status_code == 404
