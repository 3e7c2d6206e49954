"""A real HTTP server whose answers a test writes down."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    """What goes back; a `bytes` body goes as it is, anything else as JSON."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    pieces: Iterable[bytes] | None = None
    """In place of a body: sent one by one as they are made; their end closes the connection."""


Route = Callable[[Asked], Answer]


class ScriptedServer:
    """Answers by (method, path); remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.routes: dict[tuple[str, str], Route] = {}
        self._port = 0
        self._start()

    def _start(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                parts = urlsplit(self.path)
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = json.loads(text) if text else None
                asked = Asked(self.command, parts.path, parse_qs(parts.query), headers, body)
                server.asked.append(asked)
                route = server.routes.get((self.command, parts.path))
                self.reply(route(asked) if route else problem(404, "not_found", f"no route {asked.path}"))

            def reply(self, answer: Answer) -> None:
                if answer.pieces is not None:
                    self.send_pieces(answer.pieces, answer)
                    return
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in ({"Content-Length": str(len(body))} | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: answer.cut_after])
                if answer.cut_after is not None:
                    self.close_connection = True

            def send_pieces(self, pieces: Iterable[bytes], answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the reader may have left
                    for piece in pieces:
                        self.wfile.write(piece)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def on(self, method: str, path: str, *answers: Answer) -> None:
        """Give these answers in turn, and the last one from then on."""
        remaining = list(answers)

        def route(_: Asked) -> Answer:
            return remaining.pop(0) if len(remaining) > 1 else remaining[0]

        self.routes[method, path] = route

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens on the port meanwhile; what is being answered goes on."""
        self.close()
        yield
        self._start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def problem(status: int, code: str, detail: str, problems: list[dict[str, Any]] | None = None) -> Answer:
    """An error as the service words it."""
    body = {"status": status, "code": code, "detail": detail, "problems": problems or [], "request_id": "r-1"}
    return Answer(status, body)


def streamed(pieces: Iterable[bytes]) -> Answer:
    """Server-sent events."""
    return Answer(headers={"Content-Type": "text/event-stream; charset=utf-8"}, pieces=pieces)


def sent(name: str, body: Any, number: int | str = "") -> bytes:
    """One server-sent event."""
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(body)}\n\n".encode()


def event(number: int, state: str, message: str) -> dict[str, Any]:
    """Something that happened to `job-1`."""
    return {
        "id": number, "time": "2026-01-02T03:04:05Z", "state": state, "reason": None, "message": message,
        "actor": "controller",
    }  # fmt: skip


def line(number: int, **over: Any) -> dict[str, Any]:
    """A line of a log."""
    return {
        "time": float(number), "level": "info", "source": "rank-0", "attempt": 1, "message": f"Line {number}.",
    } | over  # fmt: skip


def job(state: str = "queued", **over: Any) -> dict[str, Any]:
    """A job as the service shows it."""
    return {
        "id": "job-1", "kind": "pretrain", "name": "digits", "state": state, "reason": None, "message": "",
        "owner": "me", "priority": 0, "labels": {}, "notes": "", "progress": None, "created_at": "2026-01-02T03:04:05Z",
        "started_at": None,
        "ended_at": None, "attempts": 0, "run_id": None, "spec": {}, "result": None,
    } | over  # fmt: skip


def deletion(*backbones: tuple[str, int]) -> dict[str, Any]:
    """What goes with `job-1`, as the service shows it."""
    return {
        "job_id": "job-1", "run_id": "run-1", "artifact_uri": "file:///art/1/run-1/artifacts", "files": 1200,
        "bytes": 3 * 2**20, "backbones": [{"name": name, "version": version} for name, version in backbones],
    }  # fmt: skip


SPACE = {
    "method.teacher.momentum": {"type": "float", "low": 0.9, "high": 0.9999, "log": False, "step": None, "when": None},
    "optimization.base_lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True, "step": None, "when": None},
}


def trial(number: int, state: str = "complete", **over: Any) -> dict[str, Any]:
    """A trial of `job-1` as the service shows it."""
    return {
        "number": number, "state": state, "reason": None, "message": "", "values": [0.9123456789],
        "params": {"method.teacher.momentum": 0.99612345678, "optimization.base_lr": 2e-5}, "epoch": 20.0,
        "best": False, "repeat_of": None, "retry_of": None, "started_at": "2026-01-02T03:04:05Z",
        "ended_at": "2026-01-02T03:05:10Z", "duration_s": 65.0, "run_id": f"run-{number}", "promoted": [],
    } | over  # fmt: skip


def search(**over: Any) -> dict[str, Any]:
    """The search `job-1` as the service shows it."""
    budget = {"trials": 32, "concurrency": 2, "concurrency_wanted": 4, "max_failed": 8, "max_hours": None}
    return {
        "id": "job-1", "name": "tune [1]", "state": "running", "reason": None, "message": "", "owner": "me",
        "objectives": [{"metric": "eval/linear_top1", "mode": "max"}], "algorithm": "tpe", "scheduler": "asha",
        "space": SPACE, "budget": budget,
        "trials": {"waiting": 0, "running": 2, "complete": 9, "pruned": 4, "failed": 1}, "draining": False,
        "best": [trial(7, best=True)], "repeats": [], "grid_size": None, "elapsed_s": 3725.0, "eta_s": 600.0,
        "gpu_hours": 0.0, "promoted": {}, "created_at": "2026-01-02T03:04:05Z", "started_at": None, "ended_at": None,
    } | over  # fmt: skip


def search_progress(**over: Any) -> dict[str, Any]:
    """How far that search is, as its job shows it."""
    return {
        "trials": search()["trials"], "budget": 32, "best_trial": 7, "best_value": 0.9123456789, "eta_s": 600.0,
        "gpu_hours": 0.0,
    } | over  # fmt: skip
