"""A real S3 server, SeaweedFS, and a proxy that makes it fail in every way a network can."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import EndpointConnectionError
from s3fs import S3FileSystem

from service.embedded import processes

ACCESS_KEY, SECRET_KEY = "tests-access-key", "tests-secret-key"
START_SECONDS = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server. `endpoint` and `environment` are what a user would be given."""

    endpoint: str

    def environment(self, endpoint: str | None = None, **changed: str) -> dict[str, str]:
        """The variables with which everything finds it; ``endpoint`` is another way to it, a `FaultProxy`'s."""
        nowhere = str(Path(os.devnull) / "none")
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": nowhere,  # the user's own say nothing here
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        } | changed

    def filesystem(self) -> S3FileSystem:
        """s3fs as it is, without what the product adds, to look at what lies there."""
        return S3FileSystem(
            endpoint_url=self.endpoint, key=ACCESS_KEY, secret=SECRET_KEY, use_listings_cache=False,
            client_kwargs={"region_name": "us-east-1"},
        )  # fmt: skip

    def bucket(self, name: str) -> str:
        """Make a bucket where there is none of that name; gives its URI."""
        fs = self.filesystem()
        if not fs.exists(name):
            fs.mkdir(name)
        return f"s3://{name}"


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server with one pair of keys, its files in a folder of its own; it takes three seconds."""
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    port, *others = processes.free_ports(8)
    names = ("s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    ports = dict(zip((*names, "filer.port", "filer.port.grpc"), others, strict=True))
    command = [
        str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        "-volume.max=0", "-master.volumeSizeLimitMB=64",
        "-s3", f"-s3.port={port}", f"-s3.config={folder}/identities.json", "-s3.iam=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",  # S3 makes no bucket by itself either
        *(f"-{name}={number}" for name, number in ports.items()),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        # Its own logs go where temporary files go.
        environment = os.environ | {"TMPDIR": str(folder)}
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _wait_until_up(server, endpoint, folder / "log")
        yield S3Server(endpoint)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(folder)
        for number in (port, *others):  # it puts its sockets there, whatever it is told, and leaves them
            for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                left.unlink()


def _wait_until_up(server: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    """It answers requests before it can store: up is when a bucket can be made."""
    end = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            S3Server(endpoint).filesystem().mkdir("first")
        except (OSError, EndpointConnectionError):
            assert time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.1)
        else:
            return


@dataclass
class Faults:
    """What a proxy does to requests; zero is nothing. May be changed while it runs."""

    fail_every: int = 0
    """Every nth request is answered with `status`."""
    status: int = 503
    cut_every: int = 0
    """Of every nth request the connection is cut: in the middle of the answer's body, or before an upload's answer."""
    delay_s: float = 0.0
    seen: int = 0
    """Requests so far."""
    done: int = 0
    """Requests that were failed or cut so far."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str | None:
        with self.lock:
            self.seen += 1
            for name, every in (("fail", self.fail_every), ("cut", self.cut_every)):
                if every and self.seen % every == 0:
                    self.done += 1
                    return name
        return None


class FaultProxy:
    """An HTTP proxy in front of an S3 server, in threads. `close` refuses connections until `open`."""

    def __init__(self, endpoint: str) -> None:
        self.faults = Faults()
        self._upstream = urlsplit(endpoint).netloc
        (self._port,) = processes.free_ports(1)
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._server: _Server | None = None
        self.open()

    def open(self) -> None:
        self._server = _Server(self._port, self._upstream, self.faults)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """As a server that has died: nobody listens, and what was open is reset."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.reset()
            self._server = None

    @contextlib.contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Closed from now on, open again after so many seconds or at the end, whichever comes later."""
        self.close()
        timer = threading.Timer(seconds, self.open)
        timer.start()
        try:
            yield
        finally:
            timer.join()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, upstream: str, faults: Faults) -> None:
        self.upstream, self.faults = upstream, faults
        self._sockets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end in the middle are what this is for."""

    def reset(self) -> None:
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _relay(self) -> None:
        faults = self.server.faults
        body = self._body()
        fault = faults.next()
        time.sleep(faults.delay_s)
        if fault == "fail":
            self._fail(faults.status)
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", "connection", "transfer-encoding", "content-length"}:
                    upstream.putheader(name, value)
            if body or self.command in {"PUT", "POST", "PATCH"}:
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            self._answer(upstream.getresponse(), fault == "cut")
        finally:
            upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _relay  # noqa: N815 - names that http.server looks for

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, answer: http.client.HTTPResponse, cut: bool) -> None:
        content = answer.read()
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if cut and self.command != "GET":
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        if size is not None and answer.status not in {204, 304}:
            self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def _fail(self, status: int) -> None:
        code = {500: "InternalError", 503: "SlowDown"}[status]
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Made by a test</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing."""
