"""A client against a server that means harm: nothing too much is written, and the token goes nowhere else."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from listed_version import BASE, CONFIG, FILES, HEAVY, WEIGHTS, part_of, serve, sha256
from scripted_server import Answer, Asked, ScriptedServer, job, problem, streamed

from service.client import streaming
from service.client.errors import ApiError, ClientError, ConnectionFailed, DownloadError, UnacceptableAnswer
from service.client.sdk import Client

LISTING = "/v1/backbones/digits/versions/main"
MORE = b"x" * 2**20


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, "secret", timeout_s=5, patience_s=0.3) as made:
        yield made


@pytest.fixture
def other() -> Iterator[ScriptedServer]:
    """Another server, which the hostile one wants the client to talk to."""
    made = ScriptedServer()
    yield made
    made.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "to" / "digits"


def listed(path: str = "hf/config.json", **over: Any) -> dict[str, Any]:
    return {"path": path, "size": len(CONFIG), "sha256": sha256(CONFIG), "url": f"{BASE}/files/hf/config.json"} | over


def nothing_written(out: Path) -> bool:
    return not any(path.is_file() for path in out.parent.rglob("*"))


# --- no more bytes than listed ----------------------------------------------------------------------------------------


def honest_length(body: bytes) -> Answer:
    return Answer(200, body)


def lying_length(body: bytes) -> Answer:
    """The length that is listed, and the chunks of a longer file, which count for every HTTP library."""
    chunks = [b"%x\r\n%s\r\n" % (len(body), body), b"0\r\n\r\n"]
    return Answer(headers={"Content-Length": str(len(WEIGHTS)), "Transfer-Encoding": "chunked"}, pieces=chunks)


def no_length(body: bytes) -> Answer:
    return Answer(pieces=[body])


def bomb(body: bytes) -> Answer:
    """As many bytes as are listed, and more when they are unpacked."""
    packed = gzip.compress(body)
    return Answer(200, packed + bytes(len(WEIGHTS) - len(packed)), {"Content-Encoding": "gzip"})


@pytest.mark.parametrize("answer", [honest_length, lying_length, no_length, bomb])
def test_no_byte_more_is_written_than_the_version_lists(server, client, out, answer: Callable[[bytes], Answer]):
    serve(server)
    plain = b"" if answer is not bomb else MORE
    server.on("GET", HEAVY, answer(plain + MORE))
    reported = [0]
    with pytest.raises(UnacceptableAnswer):
        client.pull("digits", out, progress=lambda done, _: reported.append(done))
    assert max(reported) <= len(WEIGHTS) + len(CONFIG)
    assert nothing_written(out)
    assert sum(asked.path == HEAVY for asked in server.asked) == 1, "a refusal is final"


def test_a_version_that_the_disk_has_no_room_for_is_refused_before_the_first_byte(server, client, out):
    serve(server, files=[listed(), listed("hf/huge.bin", size=10**18)])
    with pytest.raises(OSError, match=r"the version has 1\d{18} bytes, and \d+ are free"):
        client.pull("digits", out)
    assert [asked.path for asked in server.asked] == [LISTING]


def test_a_listing_of_too_many_files_is_refused(server, client, out):
    serve(server, files=[listed(f"hf/{number}") for number in range(10_001)])
    with pytest.raises(DownloadError, match="more than 10000 files"):
        client.pull("digits", out)
    assert nothing_written(out)


@pytest.mark.parametrize("status", [200, 500])
def test_an_endless_answer_is_not_held_in_memory(server, client, out, status):
    sent = [0]

    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            sent[0] += 1
            yield b" " * 2**20

    server.routes["GET", LISTING] = lambda _: Answer(status, pieces=pieces())
    with pytest.raises(ClientError, match="sent more than" if status == 200 else "HTTP 500"):
        client.pull("digits", out)
    assert sent[0] < 200, "the client hung up before the end"


def test_a_compressed_answer_is_refused(server, client):
    server.on("GET", "/v1/jobs/job-1", Answer(200, gzip.compress(b" " * 2**20), {"Content-Encoding": "gzip"}))
    with pytest.raises(UnacceptableAnswer, match="Content-Encoding 'gzip'"):
        client.job("job-1")
    assert [asked.headers["accept-encoding"] for asked in server.asked] == ["identity"]


def test_an_event_without_an_end_is_not_held_in_memory(server, client, monkeypatch):
    monkeypatch.setattr(streaming, "ANSWER_BYTES", 2**20)
    server.on("GET", "/v1/jobs/job-1/stream", streamed([b"data: ", *[b"x" * 2**16] * 100]))
    with pytest.raises(UnacceptableAnswer, match="without an event"):
        list(client.stream("job-1"))


def test_a_list_whose_page_leads_to_itself_ends(server, client):
    server.on("GET", "/v1/jobs", Answer(200, {"items": [job()], "next_cursor": "c"}))
    with pytest.raises(UnacceptableAnswer, match="names itself as the next"):
        list(zip(range(5), client.jobs(), strict=False))


# --- the token --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["{other}/steal", "//{host}/steal", "https://{host}/steal", "steal", "/a b", "/a\n"])
def test_a_listed_url_is_a_path_on_the_server(server, other, client, out, url):
    url = url.format(other=other.url, host=other.url.removeprefix("http://"))
    serve(server, files=[listed(url=url)])
    with pytest.raises(DownloadError, match="not a path on this server"):
        client.pull("digits", out)
    assert [asked.path for asked in server.asked] == [LISTING]
    assert other.asked == []


@pytest.mark.parametrize("call", [
    lambda client, out: client.pull("digits", out),
    lambda client, _: client.wait("job-1"),
    lambda client, _: client.cancel("job-1"),
    lambda client, _: list(client.stream("job-1")),
])  # fmt: skip
def test_no_call_with_the_token_is_redirected(server, other, client, out, call):
    away = Answer(307, b"", {"Location": f"{other.url}/steal"})
    for method, path in [("GET", LISTING), ("GET", "/v1/jobs/job-1"), ("POST", "/v1/jobs/job-1/cancel"),
                         ("GET", "/v1/jobs/job-1/stream")]:  # fmt: skip
        server.on(method, path, away)
    with pytest.raises(UnacceptableAnswer, match=f"redirects to '{other.url}/steal'.*set RCMAE_URL"):
        call(client, out)
    assert len(server.asked) == 1
    assert other.asked == []


def test_the_token_is_for_one_origin_whatever_address_a_call_is_given(other, client):
    with pytest.raises(UnacceptableAnswer, match=f"another server, {other.url}"):
        client._connection.request("GET", f"{other.url}/v1/jobs")
    assert other.asked == []


def test_a_storage_must_not_lead_on(server, other, client, out):
    serve(server)
    server.on("GET", HEAVY, Answer(302, b"", {"Location": f"{other.url}/link"}))
    other.on("GET", "/link", Answer(302, b"moved", {"Location": f"{server.url}{HEAVY}"}))
    with pytest.raises(UnacceptableAnswer, match=f"storage at {other.url} redirects"):
        client.pull("digits", out)
    assert [asked.path for asked in other.asked] == ["/link"]
    assert "authorization" not in other.asked[0].headers


@pytest.mark.parametrize("location", ["file:///etc/passwd", "http://", "{self}/v1/jobs", "/elsewhere"])
def test_a_redirect_to_no_storage_is_refused(server, client, out, location):
    serve(server)
    server.on("GET", HEAVY, Answer(302, b"", {"Location": location.format(self=server.url)}))
    with pytest.raises(UnacceptableAnswer, match="redirects to"):
        client.pull("digits", out)
    assert server.asked[-1].path == HEAVY
    assert nothing_written(out)


def test_a_signed_link_keeps_the_encryption(other, client):
    """The signature in it is a secret too."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"Location": f"{other.url}/link?signature=s"}, request=request)

    connection = client._connection
    connection._http = httpx.Client(base_url="https://service.test", transport=httpx.MockTransport(answer))
    with (
        pytest.raises(UnacceptableAnswer, match=r"is not encrypted.*RCMAE_PRESIGNED_DOWNLOADS"),
        connection.file(HEAVY, {}),
    ):
        pass
    assert other.asked == []


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("hf/nul\0.bin", "a control character"),
        ("hf/bell\a.bin", "a control character"),
        ("hf/two\nlines", "a control character"),
        ("hf/turned\u202egnp.exe", "a control character"),
        ("hf//config.json", "an empty part"),
        ("hf/./config.json", "an empty part"),
        ("hf/what?.json", "Windows does not allow"),
        ("hf/trailing. ", "Windows does not allow"),
        ("hf/NUL", "Windows reserves"),
        ("hf/com1.json", "Windows reserves"),
        ("hf/aux/config.json", "Windows reserves"),
        (f"hf/{'x' * 251}", "a name of more than 250 bytes"),
        (f"hf/{'é' * 126}", "a name of more than 250 bytes"),
        (f"hf/{'x/' * 500}x", "a path of more than 1000 bytes"),
    ],
)
def test_a_name_that_cannot_be_written_everywhere_is_refused_by_name(server, client, out, path, why):
    serve(server, files=[listed(), listed(path)])
    with pytest.raises(DownloadError, match=why) as refused:
        client.pull("digits", out)
    assert repr(path) in str(refused.value)
    assert [asked.path for asked in server.asked] == [LISTING]
    assert nothing_written(out)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("hf/config.json", "hf/Config.JSON", "differ in case alone"),
        ("hf/caf\u00e9", "hf/cafe\u0301", "differ in case alone"),
        ("hf/sub", "hf/SUB/config.json", "cannot both exist"),
        ("hf/config.json", "hf/config.json.part", "cannot both exist"),
        ("hf/config.json", "hf/config.json", "lists a file twice"),
    ],
)
def test_two_names_for_one_place_are_refused(server, client, out, first, second, why):
    serve(server, files=[listed(first), listed(second)])
    with pytest.raises(DownloadError, match=why):
        client.pull("digits", out)
    assert nothing_written(out)


@pytest.mark.parametrize("over", [{"size": -1}, {"sha256": "A" * 64}, {"sha256": "x\r\nX-Evil: 1"}])
def test_a_file_that_is_described_as_none_can_be_is_refused(server, client, out, over):
    serve(server, files=[listed(**over)])
    with pytest.raises(DownloadError, match="the service names a file"):
        client.pull("digits", out)
    assert [asked.path for asked in server.asked] == [LISTING]


# --- retries and patience ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 409, 500])
def test_a_refused_file_is_not_requested_again(server, out, status):
    serve(server)
    server.on("GET", HEAVY, problem(status, "refused", "no"))
    with Client(server.url, "secret", patience_s=60) as client, pytest.raises(ClientError, match="no"):
        client.pull("digits", out)
    assert sum(asked.path == HEAVY for asked in server.asked) == 1


@pytest.mark.parametrize("status", [408, 425, 429])
def test_a_server_that_asks_for_another_try_gets_it(server, out, status):
    serve(server)
    left = [problem(status, "later", "later")]
    server.routes["GET", HEAVY] = lambda asked: left.pop() if left else part_of(WEIGHTS, asked)
    with Client(server.url, "secret", patience_s=60) as client:
        client.pull("digits", out)
    assert (out / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_always_starts_over_is_not_requested_for_ever(server, client, out):
    """No connection brings anything that an earlier one had not."""
    serve(server)
    cut = [1000] * 12
    server.routes["GET", HEAVY] = lambda _: Answer(200, WEIGHTS, cut_after=cut.pop() if cut else None)
    with pytest.raises(ConnectionFailed):
        client.pull("digits", out)
    assert cut, "the client gave up"


def slowly(data: bytes) -> Iterator[bytes]:
    for number in range(len(data)):
        time.sleep(0.02)
        yield data[number : number + 1]


@pytest.mark.parametrize("slow", [LISTING, f"{BASE}/files/hf/config.json"])
def test_a_server_that_trickles_bytes_is_given_up_on(server, out, slow):
    config = b"{" + b" " * 198 + b"}"
    serve(server, FILES | {"hf/config.json": config})
    whole = server.routes["GET", slow]

    def trickled(asked: Asked) -> Answer:
        body = config if slow != LISTING else b" " * 200 + str_of(whole(asked))
        return Answer(headers={"Content-Length": str(len(body))}, pieces=slowly(body))

    server.routes["GET", slow] = trickled
    with (
        Client(server.url, "secret", timeout_s=0.5, patience_s=0.3) as client,
        pytest.raises(ConnectionFailed, match=r"sent less than 65536 bytes in 0\.5 s"),
    ):
        client.pull("digits", out)


def str_of(answer: Answer) -> bytes:
    return httpx.Request("POST", "http://x", json=answer.body).content


@pytest.mark.parametrize("body", [
    b'{"code": 5, "problems": 7}', b'{"code": "c", "problems": [3]}', b'{"code": "c", "detail": ' + b"[" * 100_000,
])  # fmt: skip
def test_an_error_with_an_odd_body_is_still_an_error(server, client, body):
    server.on("GET", "/v1/jobs/job-1", Answer(422, body))
    with pytest.raises(ApiError, match="HTTP 422"):
        client.job("job-1")
