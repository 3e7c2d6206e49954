"""Artifacts in S3: served as from a disk, and told as out of reach where they are."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from backbone_files import compare_with_mlflow
from conftest import token_of
from fastapi.testclient import TestClient
from live import poll
from service_fakes import add_job, problem, spec_with

from service.adapters import storage
from service.adapters.storage import Artifacts, OutsideRoot, StorageUnreachable
from service.app import attach
from trainer.protocol.names import log_folder

WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def root(s3) -> str:
    """An artifact root of the test's own; the service's other fixtures take it from here."""
    return f"{s3.bucket('service')}/{uuid.uuid4().hex}/artifacts"


@pytest.fixture
def put(s3, root) -> Callable[[str, bytes], None]:
    """Writes an object below the root, or beside it."""
    fs = s3.filesystem()
    return lambda name, data: fs.pipe_file(f"{root}/{name}".replace("artifacts/../", ""), data)


@pytest.fixture
def artifacts(s3, s3_proxy, use_s3, root) -> Artifacts:
    use_s3(s3.environment(s3_proxy.endpoint))
    return Artifacts(root)


@pytest.fixture
def folder(put, root) -> str:
    """A version's folder with its checksums, and secrets beside it."""
    files = {"hf/model.safetensors": WEIGHTS, "hf/config.json": b"{}", "spec.json": b'{"a": 1}', "with space.txt": b"x"}
    for name, data in files.items():
        put(f"model/{name}", data)
    put("model/SHA256SUMS", "".join(f"{hashlib.sha256(d).hexdigest()}  {n}\n" for n, d in files.items()).encode())
    put("model/unlisted.txt", b"secret")
    put("beside.txt", b"secret")
    put("../outside.txt", b"secret")
    return f"{root}/model"


@pytest.fixture
def app(app, artifacts):
    """Its artifacts lie in S3."""
    state = app.state.app_state
    settings = state.settings.model_copy(update={"artifact_root": artifacts.root})
    attach(app, replace(state, settings=settings, artifacts=artifacts), None)
    return app


@pytest.fixture
def url(mlflow, database, folder) -> str:
    job_id = add_job(database, "succeeded", spec=spec_with(register_as="digits"))
    mlflow.register("digits", 1, job_id, folder)
    compare_with_mlflow(database, mlflow)
    return "/v1/backbones/digits/versions/1/files"


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_below_a_folder_are_found(artifacts, folder):
    assert artifacts.read(folder, "spec.json") == b'{"a": 1}'
    assert artifacts.read(folder, "spec.json", 5) == b" 1}"[-3:]
    found = artifacts.file(folder, "hf/model.safetensors")
    assert found.size == len(WEIGHTS)
    assert b"".join(found.pieces(5, 900_000)) == WEIGHTS[5:900_000]
    assert artifacts.sizes(folder, "hf") == {"config.json": 2, "model.safetensors": len(WEIGHTS)}
    assert artifacts.sizes(folder, "none") == {}
    assert artifacts.folders(artifacts.root) == ["model"]
    assert ("hf/model.safetensors", len(WEIGHTS)) in artifacts.files(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../beside.txt", "hf/../../beside.txt", "hf/../spec.json", "..", "", ".", "/", "/beside.txt", "//beside.txt",
        "spec.json\x00.png", "\x00", "hf", "hf/", "none", "spec.json/x", "x" * 5000, "..\\beside.txt",
        "spec.json?versionId=1",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_no_files(artifacts, folder, name):
    assert artifacts.file(folder, name) is None
    assert artifacts.read(folder, name) is None


def test_a_small_file_is_written_whole_below_its_folder(artifacts, folder):
    for data in (b"first", b"second"):
        artifacts.write(folder, "new/file", data)
        assert artifacts.read(folder, "new/file") == data
    with pytest.raises(OutsideRoot):
        artifacts.write(folder, "../beside.txt", b"other")
    assert artifacts.read(artifacts.root, "beside.txt") == b"secret"


def test_folders_outside_the_root_are_refused(artifacts, folder, root):
    bucket = root.partition("/artifacts")[0]
    for outside in (
        "/", "/etc", "s3://", bucket, f"{folder}/../..", f"{root}/../artifacts", f"{root}-too", f"{root}//model/",
        root.replace("s3://", "file://"), root.removeprefix("s3://"), f"{root}/./model",
    ):  # fmt: skip
        for looks in (artifacts.sizes, artifacts.files, artifacts.folders, lambda f: artifacts.file(f, "outside.txt")):
            with pytest.raises(OutsideRoot):
                looks(outside)


def test_a_large_file_is_never_in_memory_whole(artifacts, folder, monkeypatch):
    monkeypatch.setattr(storage, "PIECE", 100_000)
    sizes = [len(piece) for piece in artifacts.file(folder, "hf/model.safetensors").pieces(0, len(WEIGHTS))]
    assert max(sizes) == 100_000
    assert sum(sizes) == len(WEIGHTS)


@pytest.mark.parametrize(
    "fault", [{"fail_every": 2, "status": 503}, {"fail_every": 3, "status": 500}, {"cut_every": 3}]
)
def test_faults_in_passing_are_not_noticed(artifacts, folder, s3_proxy, fault, monkeypatch):
    monkeypatch.setattr(storage, "PIECE", 200_000)
    for name, value in fault.items():
        setattr(s3_proxy.faults, name, value)
    found = artifacts.file(folder, "hf/model.safetensors")
    assert b"".join(found.pieces(0, found.size)) == WEIGHTS
    assert artifacts.sizes(folder)["spec.json"] == 8
    assert s3_proxy.faults.done >= 2


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_a_file_can_be_had_whole_in_part_or_not_at_all(api, url):
    weights, size = f"{url}/hf/model.safetensors", len(WEIGHTS)
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    whole = api.get(weights)
    assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, WEIGHTS, etag)
    head = api.head(weights)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    for wanted, start, stop in (("100-199", 100, 200), ("1000000-", 1_000_000, size), ("-24", size - 24, size)):
        part = api.get(weights, headers={"Range": f"bytes={wanted}", "If-Range": etag})
        assert (part.status_code, part.content) == (206, WEIGHTS[start:stop])
        assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
        assert part.headers["content-length"] == str(stop - start)
    beyond = api.get(weights, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    assert api.get(weights, headers={"Range": "bytes=9-5"}).status_code in {200, 416}
    changed = api.get(weights, headers={"Range": "bytes=1-2", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, WEIGHTS)
    several = api.get(weights, headers={"Range": "bytes=0-1,5-6"})
    assert (several.status_code, several.content) == (200, WEIGHTS)


def test_a_signed_link_gives_the_bytes_to_who_has_no_token(app, url):
    parts = app.state.app_state
    app.state.app_state = replace(parts, settings=parts.settings.model_copy(update={"presigned_downloads": True}))
    api = TestClient(app, headers={"Authorization": f"Bearer {token_of('viewer')}"}, follow_redirects=False)
    answer = api.get(f"{url}/hf/model.safetensors")
    assert (answer.status_code, answer.content) == (302, b"")
    link = answer.headers["location"]
    assert "X-Amz-Signature=" in link
    assert httpx.get(link).content == WEIGHTS
    part = httpx.get(link, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, WEIGHTS[5:10])
    signature = link.partition("X-Amz-Signature=")[2].partition("&")[0]
    assert httpx.get(link.replace(signature, "0" * len(signature))).status_code == 403
    hub = api.head("/hf/rcmae/digits/resolve/main/model.safetensors")
    assert (hub.status_code, hub.headers["x-linked-size"]) == (302, str(len(WEIGHTS)))


@pytest.mark.usefixtures("folder")
def test_a_version_shows_its_files_and_no_others(api, url, put):
    put("model/SHA256SUMS", b"0" * 64 + b"  ../beside.txt\n" + b"0" * 64 + b"  spec.json\n")
    shown = api.get("/v1/backbones/digits/versions/1").json()
    assert [file["path"] for file in shown["files"]] == ["spec.json", "SHA256SUMS"]
    for path in ("..%2Fbeside.txt", "unlisted.txt", "hf", ""):
        answer = api.get(f"{url}/{path}")
        assert answer.status_code == 404, path
        assert "secret" not in answer.text


def test_a_version_elsewhere_in_the_bucket_is_not_served(api, mlflow, database, root):
    job_id = add_job(database, "succeeded", spec=spec_with(register_as="digits"))
    mlflow.register("digits", 1, job_id, root.removesuffix("/artifacts"))
    compare_with_mlflow(database, mlflow)
    assert api.get("/v1/backbones/digits/versions/1/files/outside.txt").status_code == 404


def test_pictures(api, database, put, root):
    put("run/images/reconstruction_00000020.png", b"\x89PNG20")
    put("run/images/notes.txt", b"no")
    job_id = add_job(database, "running", artifact_uri=f"{root}/run")
    (item,) = api.get(f"/v1/jobs/{job_id}/images").json()["items"]
    assert (item["step"], api.get(item["url"]).content) == (20, b"\x89PNG20")
    assert api.get(f"/v1/jobs/{job_id}/images/notes.txt").status_code == 404


def test_files_that_a_job_leaves_for_people(api, database, put, root):
    put("run/embeddings/part-00000.parquet", WEIGHTS)
    put("run/checkpoints/a1/00000001/manifest.json", b"secret")
    job_id = add_job(database, "succeeded", artifact_uri=f"{root}/run")
    (item,) = api.get(f"/v1/jobs/{job_id}/files").json()["items"]
    assert (item["path"], item["bytes"]) == ("embeddings/part-00000.parquet", len(WEIGHTS))
    rest = api.get(item["url"], headers={"Range": "bytes=900000-", "If-Range": item["etag"]})
    assert (rest.status_code, rest.content) == (206, WEIGHTS[900_000:])
    put("run/embeddings/part-00000.parquet", WEIGHTS[::-1])
    assert api.head(item["url"]).headers["ETag"] != item["etag"]


def test_logs_that_have_not_grown_are_not_fetched_again(api, database, put, root, s3_proxy):
    def line(message: str) -> bytes:
        return json.dumps({"time": 1.5, "level": "info", "source": "driver", "message": message}).encode() + b"\n"

    whole = b"".join(line(f"line {n}") for n in range(1000))
    put(f"run/{log_folder(1)}/driver.0001.jsonl", whole)
    put(f"run/{log_folder(1)}/rank-0.0001.jsonl", line("rank"))
    job_id = add_job(database, "running", artifact_uri=f"{root}/run", attempts=1)

    def page(cursor: str) -> tuple[list[str], str, int]:
        before = s3_proxy.faults.seen
        answer = api.get(f"/v1/jobs/{job_id}/logs", params={"cursor": cursor, "limit": 5000}).json()
        return [item["message"] for item in answer["items"]], answer["next_cursor"], s3_proxy.faults.seen - before

    first, cursor, asked = page("")
    assert first == [*(f"line {n}" for n in range(1000)), "rank"]
    assert asked == 3
    assert page(cursor) == ([], cursor, 1)
    put(f"run/{log_folder(1)}/driver.0001.jsonl", whole + line("new"))
    assert page(cursor)[0] == ["new"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_logs_of_many_ranks_are_read_on_from_what_is_saved_in_the_bucket(api, database, put, root):
    """Chunks grow, and others follow them, while readers come back with nothing but a cursor or an event's id."""

    def line(rank: int, n: int) -> bytes:
        message = f"{rank}: {n}"
        return json.dumps({"time": 1.5, "level": "info", "source": f"rank-{rank}", "message": message}).encode() + b"\n"

    job_id = add_job(database, "running", artifact_uri=f"{root}/run", attempts=1)
    paged, followed, cursor, last = list[str](), list[str](), "", ""
    for n in range(4):
        for rank in range(24):  # two lines to a chunk
            data = line(rank, n) if n % 2 == 0 else line(rank, n - 1) + line(rank, n)
            put(f"run/{log_folder(1)}/rank-{rank}.{1 + n // 2:04d}.jsonl", data)
        page = api.get(f"/v1/jobs/{job_id}/logs", params={"cursor": cursor}).json()
        paged += [item["message"] for item in page["items"]]
        cursor = page["next_cursor"]
        headers = {"Last-Event-ID": last} if last else {}
        answer = api.get(f"/v1/jobs/{job_id}/stream", params={"once": True, "tail": "all"}, headers=headers)
        fields = [row.partition(": ") for row in answer.text.splitlines()]
        batches = [json.loads(value)["lines"] for name, _, value in fields if name == "data" and '"lines"' in value]
        followed += [each["message"] for batch in batches for each in batch]
        last = [value for name, _, value in fields if name == "id"][-1]
        assert max(len(cursor), len(last)) < 1000
    for rank in range(24):
        mine = [f"{rank}: {n}" for n in range(4)]
        assert [message for message in paged if message.startswith(f"{rank}: ")] == mine
        assert [message for message in followed if message.startswith(f"{rank}: ")] == mine


# --- out of reach -----------------------------------------------------------------------------------------------------


def every_answer(api: TestClient, job_id: str) -> list[httpx.Response]:
    base = "/v1/backbones/digits/versions/1"
    paths = (f"/v1/jobs/{job_id}/logs", f"/v1/jobs/{job_id}/images", f"/v1/jobs/{job_id}/images/a.png", base)
    return [api.get(path) for path in (*paths, f"{base}/files/spec.json")]


@pytest.mark.usefixtures("url")
def test_a_storage_that_is_away_is_told_until_it_is_back(api, clients, database, root, s3_proxy):
    job_id = add_job(database, "running", artifact_uri=f"{root}/run", attempts=1)
    s3_proxy.close()
    for answer in every_answer(api, job_id):
        assert "AWS_ENDPOINT_URL" in problem(answer, 503, "unavailable")["detail"]
    # A busy machine may take longer to find out than one question waits: the next one has the answer.
    poll(
        lambda: clients.anonymous.get("/readyz").json()["reasons"],
        lambda reasons: any(reason.startswith(f"storage: {root}: cannot be reached") for reason in reasons),
    )
    s3_proxy.open()
    # For seconds after it was away, requests are refused without asking it.
    poll(
        lambda: [answer.status_code for answer in every_answer(api, job_id)],
        lambda found: found == [200, 200, 404, 200, 200],
    )
    assert not any(reason.startswith("storage") for reason in clients.anonymous.get("/readyz").json()["reasons"])


def operations(artifacts: Artifacts):
    folder = f"{artifacts.root}/run"
    return [
        lambda: artifacts.file(folder, "x"), lambda: artifacts.read(folder, "x"), lambda: artifacts.sizes(folder),
        lambda: artifacts.folders(folder), artifacts.ping, artifacts.probe,
    ]  # fmt: skip


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_told_and_not_shown(s3, use_s3, root, variable):
    use_s3(s3.environment(**{variable: "a-wrong-one"}))
    for fails in operations(Artifacts(root)):
        with pytest.raises(
            StorageUnreachable, match=f"{root}.*the credentials were refused.*AWS_ACCESS_KEY_ID"
        ) as told:
            fails()
        assert "a-wrong-one" not in str(told.value)


def test_a_missing_bucket_is_told_and_never_made(s3, use_s3):
    use_s3(s3.environment())
    for fails in operations(Artifacts("s3://nobody-made-this-either/artifacts")):
        with pytest.raises(StorageUnreachable, match=r"s3://nobody-made-this-either.*: there is no such bucket"):
            fails()
    assert not s3.filesystem().exists("nobody-made-this-either")


def test_an_endpoint_with_a_password_is_not_shown(s3, use_s3, root):
    use_s3(s3.environment("http://somebody:hidden@127.0.0.1:1"))
    with pytest.raises(StorageUnreachable) as told:
        Artifacts(root).ping()
    assert "hidden" not in str(told.value)


def test_a_probe_leaves_nothing(artifacts, root):
    artifacts.probe()
    assert artifacts.sizes(root) == {}


def test_a_profile_counts_more_than_the_environment(s3, use_s3, root, put, tmp_path):
    settings = s3.environment()
    (tmp_path / "keys").write_text(
        f"[lab]\naws_access_key_id = {settings['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {settings['AWS_SECRET_ACCESS_KEY']}\n"
    )
    wrong = {"AWS_SECRET_ACCESS_KEY": "a-wrong-one", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys")}
    use_s3(s3.environment(**wrong))
    put("run/x", b"1")
    assert Artifacts(root, "lab").read(f"{root}/run", "x") == b"1"
    with pytest.raises(StorageUnreachable, match=r"could not be found.*RCMAE_S3_PROFILE"):
        Artifacts(root, "other").read(f"{root}/run", "x")
