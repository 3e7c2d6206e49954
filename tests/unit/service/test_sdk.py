"""The typed client against a real HTTP server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from scripted_server import Answer, Asked, ScriptedServer, deletion, job, problem

from service.client import errors
from service.client.errors import ApiError, ClientError, ConnectionFailed, DownloadError
from service.client.sdk import Client
from service.jobs.state import State
from trainer.spec.job import parse_spec

SPEC = {"kind": "pretrain", "dataset": {"uri": "builtin://digits"}}


@pytest.fixture
def server():
    made = ScriptedServer()
    yield made
    made.close()


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setattr(errors, "FIRST_PAUSE_S", 0.01)
    with Client(server.url, "secret", patience_s=5) as made:
        yield made


def test_submit_sends_the_spec_the_token_and_a_key(server, client):
    server.on("POST", "/v1/jobs", Answer(201, job()))
    assert client.submit(SPEC).id == "job-1"
    assert client.submit(parse_spec(SPEC), "my-key").state is State.QUEUED
    first, second = server.asked
    assert first.body == SPEC
    assert second.body["optimization"]["epochs"] == 1600
    assert first.headers["authorization"] == "Bearer secret"
    assert len(first.headers["idempotency-key"]) == 32
    assert second.headers["idempotency-key"] == "my-key"


def test_submit_is_repeated_with_the_same_key_while_the_service_is_away(server, client):
    server.on("POST", "/v1/jobs", Answer(503, b"restarting"), problem(502, "unavailable", "soon"), Answer(201, job()))
    assert client.submit(SPEC).id == "job-1"
    assert len(server.asked) == 3
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1


def test_a_read_survives_a_connection_that_breaks(server, client):
    server.on("GET", "/v1/jobs/job-1", Answer(200, job(), cut_after=10), Answer(200, job("running")))
    assert client.job("job-1").state is State.RUNNING


def test_a_verb_is_not_repeated(server, client):
    server.on("POST", "/v1/jobs/job-1/cancel", problem(503, "unavailable", "soon"))
    with pytest.raises(ApiError, match="soon"):
        client.cancel("job-1")
    assert len(server.asked) == 1


@pytest.mark.parametrize("verb", ["resume", "retry"])
def test_a_job_goes_on_on_other_resources(server, client, verb):
    server.on("POST", f"/v1/jobs/job-1/{verb}", Answer(200, job()))
    getattr(client, verb)("job-1", resources={"workers": 4, "cpus_per_worker": "auto"})
    getattr(client, verb)("job-1")
    assert [asked.body for asked in server.asked] == [{"resources": {"workers": 4, "cpus_per_worker": "auto"}}, None]


def test_patch_sends_what_is_given_and_is_repeated(server, client):
    server.on("PATCH", "/v1/jobs/job-1", problem(503, "unavailable", "soon"), Answer(200, job(notes="mine")))
    assert client.patch("job-1", notes="mine").notes == "mine"
    client.patch("job-1", priority=0, labels={})
    assert [asked.body for asked in server.asked] == [
        {"notes": "mine"},
        {"notes": "mine"},
        {"priority": 0, "labels": {}},
    ]


def test_backbones_are_found_and_described_as_over_rest(server, client):
    version = {"name": "digits", "version": 3, "created_at": "2026-01-02T03:04:05Z", "job_id": "job-1"}
    backbone = {"name": "digits", "latest_version": 3, "versions": [3], "updated_at": "2026-01-02T03:04:05Z"}
    server.on("GET", "/v1/backbones", Answer(200, {"items": [backbone], "next_cursor": None}))
    server.on("PATCH", "/v1/backbones/digits", *[Answer(200, backbone), problem(503, "unavailable", "soon")] * 2)
    server.on("PATCH", "/v1/backbones/digits/versions/3", Answer(200, version | {"labels": {"a": "b"}}))
    found = client.backbones(search="shelf x", labels={"team": "vision"}, filters=["eval/a > 1"], owner="alice")
    assert [each.name for each in found] == ["digits"]
    assert server.asked[0].query == {
        "search": ["shelf x"], "label": ["team:vision"], "filter": ["eval/a > 1"], "owner": ["alice"], "limit": ["100"]
    }  # fmt: skip
    client.patch_backbone("digits", description="", labels={})
    with pytest.raises(ApiError, match="soon"):  # not again: the second time it may no longer be the caller's
        client.patch_backbone("digits", owner="bob")
    assert client.patch_version("digits", 3, labels={"a": "b"}).labels == {"a": "b"}
    bodies = [{"description": "", "labels": {}}, {"owner": "bob"}, {"labels": {"a": "b"}}]
    assert [asked.body for asked in server.asked[1:]] == bodies


def test_a_deletion_is_looked_at_again_and_made_once(server, client):
    away = problem(503, "unavailable", "soon")
    server.on("DELETE", "/v1/jobs/job-1", away, Answer(200, deletion(("digits", 2))), away)
    going = client.deletion_preview("job-1")
    assert (going.files, going.backbones[0].name, going.backbones[0].version) == (1200, "digits", 2)
    with pytest.raises(ApiError, match="soon"):
        client.delete("job-1", with_backbones=True)
    queries = [{"preview": ["true"]}, {"preview": ["true"]}, {"with_backbones": ["true"]}]
    assert [asked.query for asked in server.asked] == queries


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("POST", "/v1/tokens", lambda client: client.create_token("viewer")),
        ("POST", "/v1/tokens/tok-1/rotate", lambda client: client.rotate_token("tok-1")),
        ("POST", "/v1/jobs/job-1/retry", lambda client: client.retry("job-1")),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_what_may_not_be_repeated_is_sent_once(server, client, method, path, call, status):
    busy = problem(status, "unavailable", "soon")
    busy.headers["Retry-After"] = "0"
    server.on(method, path, busy)
    with pytest.raises(ApiError, match="soon"):
        call(client)
    assert len(server.asked) == 1


def test_a_token_is_revoked_also_when_the_service_is_away_for_a_moment(server, client):
    token = {
        "id": "tok-1", "name": "", "owner": "me", "role": "viewer", "state": "revoked", "expires_at": None,
        "created_at": "2026-01-02T03:04:05Z", "last_used_at": None, "revoked_at": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    server.on("DELETE", "/v1/tokens/tok-1", problem(503, "unavailable", "soon"), Answer(200, token))
    assert client.revoke_token("tok-1").state == "revoked"


def _in_an_hour() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(
    ("status", "retry_after", "least", "most"),
    [
        (429, "2", 2, 3),
        (503, "2", 2, 3),
        (503, "soon", 0, 1),
        (503, "", 0, 1),
        (503, "Thu, 01 Jan 1970 00:00:00 GMT", 0, 1),
    ],
)
def test_the_time_that_the_service_asks_for_is_given(server, client, monkeypatch, status, retry_after, least, most):
    pauses: list[float] = []
    monkeypatch.setattr(errors.time, "sleep", pauses.append)
    busy = problem(status, "unavailable", "soon")
    busy.headers["Retry-After"] = retry_after
    server.on("GET", "/v1/jobs/job-1", busy, Answer(200, job()))
    assert client.job("job-1").id == "job-1"
    (pause,) = pauses
    assert least <= pause <= most


@pytest.mark.parametrize("retry_after", ["3600", _in_an_hour()], ids=["seconds", "date"])
def test_more_time_than_there_is_patience_is_told_at_once(server, client, retry_after):
    busy = problem(503, "unavailable", "in an hour")
    busy.headers["Retry-After"] = retry_after
    server.on("GET", "/v1/jobs/job-1", busy)
    with pytest.raises(ApiError, match="in an hour") as caught:
        client.job("job-1")
    assert 1800 < caught.value.retry_after_s <= 3600
    assert len(server.asked) == 1


LOG = b"".join(b'{"message":"Line %d."}\n' % number for number in range(20_000))
LOG_PATH = "/v1/jobs/job-1/logs/2/rank-0"


def _ranges(server: ScriptedServer, content: bytes, *cuts: int) -> None:
    """A log of which each connection brings so many bytes more, and the last one the rest."""
    remaining = list(cuts)

    def route(asked: Asked) -> Answer:
        cut = remaining.pop(0) if remaining else None
        wanted = asked.headers.get("range")
        if wanted is None:
            return Answer(200, content, cut_after=cut)
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        part = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return Answer(206, content[first:], {"Content-Range": part}, cut_after=cut)

    server.routes["GET", LOG_PATH] = route


def test_a_log_s_download_goes_on_where_it_broke(server, client, tmp_path):
    _ranges(server, LOG, 70_000, 0, 100_000)
    seen: list[tuple[int, int]] = []
    out = tmp_path / "deep" / "rank-0.jsonl"
    assert client.download_log("job-1", 2, "rank-0", out, lambda *told: seen.append(told)) == len(LOG)
    assert out.read_bytes() == LOG
    assert list(out.parent.iterdir()) == [out]
    assert seen == sorted(seen)
    assert seen[-1] == (len(LOG), len(LOG))
    assert [asked.headers.get("range") for asked in server.asked] == [
        None, "bytes=70000-", "bytes=70000-", "bytes=170000-",
    ]  # fmt: skip


def test_a_log_is_brought_anew_where_parts_are_not_served(server, client, tmp_path):
    server.on("GET", LOG_PATH, Answer(200, LOG, cut_after=1000), Answer(200, LOG))
    client.download_log("job-1", 2, "rank-0", tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == LOG


@pytest.mark.parametrize(
    "answers",
    [
        (
            Answer(200, LOG, cut_after=1000),
            Answer(206, LOG[500:], {"Content-Range": f"bytes 500-{len(LOG)}/{len(LOG)}"}),
        ),
        (Answer(200, headers={"Content-Type": "application/x-ndjson"}, pieces=[LOG]),),
        (problem(404, "log_not_found", "there is no such log"),),
        (Answer(200, LOG, cut_after=1000), problem(416, "range", "no such part")),
    ],
)
def test_a_log_s_download_that_fails_leaves_nothing(server, client, tmp_path, answers):
    server.on("GET", LOG_PATH, *answers)
    with pytest.raises(ClientError):
        client.download_log("job-1", 2, "rank-0", tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


def test_a_log_s_download_touches_nothing_that_is_there(server, client, tmp_path):
    (tmp_path / "log").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        client.download_log("job-1", 2, "rank-0", tmp_path / "log")
    assert server.asked == []


def test_no_server_is_a_connection_failure():
    gone = ScriptedServer()
    gone.close()
    with Client(gone.url, "secret", patience_s=0) as client, pytest.raises(ConnectionFailed, match="does not answer"):
        client.job("job-1")


def test_an_error_carries_everything_the_service_says(server, client):
    found = [{"field": "optimization.epochs", "pointer": "/optimization/epochs", "value": -1, "message": "must be > 0"}]
    server.on("POST", "/v1/jobs", problem(422, "spec_invalid", "optimization.epochs: must be > 0", found))
    with pytest.raises(ApiError) as caught:
        client.submit(SPEC)
    error = caught.value
    assert (error.status, error.code, error.request_id) == (422, "spec_invalid", "r-1")
    assert (error.problems[0].field, error.problems[0].value) == ("optimization.epochs", -1)
    assert len(server.asked) == 1


def test_an_answer_that_is_not_the_services_is_an_error_too(server, client):
    server.on("GET", "/v1/jobs/job-1", Answer(418, b"<h1>a teapot</h1>"))
    with pytest.raises(ApiError, match="418: <h1>a teapot"):
        client.job("job-1")
    server.on("GET", "/v1/jobs/job-1", Answer(200, b"<h1>Sign in</h1>"))
    with pytest.raises(ClientError, match="this client cannot read the answer"):
        client.job("job-1")


def test_jobs_goes_through_the_pages_with_the_filters(server, client):
    pages = {None: ([job(id="a"), job(id="b")], "next"), "next": ([job(id="c")], None)}

    def listing(asked: Asked) -> Answer:
        items, cursor = pages[asked.query.get("cursor", [None])[0]]
        return Answer(200, {"items": items, "next_cursor": cursor})

    server.routes["GET", "/v1/jobs"] = listing
    found = client.jobs(states=[State.RUNNING, State.QUEUED], labels={"team": "vision"}, page_size=2)
    assert [item.id for item in found] == ["a", "b", "c"]
    for asked in server.asked:
        assert asked.query["state"] == ["running", "queued"]
        assert asked.query["label"] == ["team:vision"]
        assert asked.query["limit"] == ["2"]
        assert "owner" not in asked.query


def test_a_misspelt_filter_of_log_lines_is_refused(server, client):
    with pytest.raises(TypeError, match="by levle"):
        client.logs("job-1", levle="error")
    assert server.asked == []


def test_wait_returns_the_ended_job_and_gives_up_in_time(server, client):
    server.on("GET", "/v1/jobs/job-1", Answer(200, job("running")), Answer(200, job("failed")))
    assert client.wait("job-1", poll_s=0.01).state is State.FAILED
    away = [problem(503, "unavailable", "soon")] * 3
    server.on("GET", "/v1/jobs/job-1", Answer(200, job("running")), *away, Answer(200, job("succeeded")))
    with Client(server.url, "secret", patience_s=0) as hasty:
        assert hasty.wait("job-1", poll_s=0.01).state is State.SUCCEEDED
    server.on("GET", "/v1/jobs/job-1", Answer(200, job("running")))
    with pytest.raises(TimeoutError, match="job-1 is running"):
        client.wait("job-1", timeout_s=0.05, poll_s=0.01)


def test_this_machine_is_asked_past_a_proxy(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.on("GET", "/v1/jobs/job-1", Answer(200, job()))
    with Client(server.url, "secret", patience_s=0) as client:
        assert client.job("job-1").id == "job-1"


WEIGHTS, CONFIG = b"\x00\x01" * 300_000, b"{}"


def _version(server: ScriptedServer, files: dict[str, bytes], sums: dict[str, str] | None = None) -> None:
    listed = []
    for path, content in files.items():
        url = f"/v1/backbones/digits/versions/3/files/{path}"
        digest = (sums or {}).get(path, hashlib.sha256(content).hexdigest())
        listed.append({"path": path, "size": len(content), "sha256": digest, "url": url})
        server.on("GET", url, Answer(200, content))
    date = "2026-01-02T03:04:05Z"
    body = {"name": "digits", "version": 3, "created_at": date, "job_id": "job-1", "tags": {}, "files": listed}
    for reference in ("3", "main"):
        server.on("GET", f"/v1/backbones/digits/versions/{reference}", Answer(200, body))


def test_pull_brings_one_folder_of_the_latest_version(server, client, tmp_path):
    _version(server, {"hf/model.safetensors": WEIGHTS, "hf/config.json": CONFIG, "spec.json": b"{}"})
    seen: list[tuple[int, int]] = []
    version = client.pull("digits", tmp_path / "a" / "out", progress=lambda done, total: seen.append((done, total)))
    out = tmp_path / "a" / "out"
    assert version.version == 3
    sums = {"model.safetensors": WEIGHTS, "config.json": CONFIG}
    listed = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sums.items())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == sums | {"SHA256SUMS": listed.encode()}
    assert seen == sorted(seen)
    assert seen[-1] == (len(WEIGHTS) + len(CONFIG), len(WEIGHTS) + len(CONFIG))
    assert list(out.parent.iterdir()) == [out]


def test_pull_starts_a_file_again_when_the_connection_breaks(server, client, tmp_path):
    _version(server, {"hf/model.safetensors": WEIGHTS})
    url = "/v1/backbones/digits/versions/3/files/hf/model.safetensors"
    server.on("GET", url, Answer(200, WEIGHTS, cut_after=1000), Answer(503, b""), Answer(200, WEIGHTS))
    client.pull("digits", tmp_path / "out", version=3)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("files", "sums", "message"),
    [
        ({"hf/config.json": CONFIG, "hf/model.safetensors": WEIGHTS}, {"hf/model.safetensors": "0" * 64}, "sha256"),
        ({"hf/config.json": CONFIG, "hf/../../evil": b"x"}, {}, "outside"),
        ({"onnx/model.onnx": b"x"}, {}, "no format 'hf'; it has onnx"),
    ],
)
def test_a_pull_that_fails_leaves_nothing(server, client, tmp_path, files, sums, message):
    _version(server, files, sums)
    with pytest.raises(DownloadError, match=message):
        client.pull("digits", tmp_path / "deep" / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "deep" / "out").exists()


def test_pull_does_not_touch_what_is_there(server, client, tmp_path):
    _version(server, {"hf/config.json": CONFIG})
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        client.pull("digits", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_base_install_is_enough_for_client_and_command_line():
    """Neither imports what only the extras have."""
    extras = (
        "alembic boto3 fastapi fsspec mlflow numpy PIL psutil pydantic_settings ray s3fs safetensors sklearn sqlalchemy"
        " starlette structlog torch uvicorn"
    )
    program = (
        "import sys\n"
        f"for name in {extras.split()!r}: sys.modules[name] = None\n"
        "import rcmae, trainer.spec.plan, service.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.home(), check=False)
    assert done.returncode == 0, done.stderr
