"""Following a job over a real HTTP server: what comes, once each, whoever reads and whatever is away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import token_of
from fastapi import FastAPI
from service_fakes import add_job, job_of, problem

from service.access import open_responses
from service.app import create_app
from service.auth.caller import sha256
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Token, now
from service.http import paging
from service.jobs import repository, stream
from service.jobs.lifecycle import transition
from service.jobs.state import State
from service.jobs.updates import UpdateSource

LIMIT_S = 20.0
START_S = 180.0
"""For a process of the service to begin to answer."""
BUFFER = 64 * 1024
"""Bytes: what a test does not read soon waits in the server, not in the network."""
CLIENT = httpx.Client(
    timeout=LIMIT_S,
    transport=httpx.HTTPTransport(
        socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)],
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    ),
)


@dataclass(frozen=True)
class Event:
    kind: str
    data: Any
    id: str | None


class Job:
    """A running job that a test moves and lets log."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder, self.logged = database, folder, 0
        folder.mkdir(parents=True)
        self.id = add_job(database, "running", artifact_uri=str(folder), attempts=1)

    def log(self, *messages: str, attempt: int = 1, source: str = "rank-0", level: str = "info") -> None:
        file = self.folder / f"attempts/{attempt}/logs/{source}.0001.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            for message in messages:
                self.logged += 1
                line = {"time": float(self.logged), "level": level, "source": source, "message": message}
                out.write(json.dumps(line) + "\n")

    def move(self, state: State, message: str = "") -> None:
        with self.database.session() as session:
            transition(session, repository.get(session, self.id), state, None, message, "controller")

    def set(self, **fields: Any) -> None:
        with self.database.session() as session:
            job = repository.get(session, self.id)
            for name, value in fields.items():
                setattr(job, name, value)


class Stream:
    """An open stream."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.seen: list[Event] = []
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        return (event for event in self._all() if event.kind != "comment")

    def _all(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                yield Event("comment", line[1:].strip(), None)
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                event = Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
                self.seen.append(event)
                yield event
                fields = {}

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        return next(event for event in self if wanted(event))

    def until_comment(self, word: str) -> None:
        next(event for event in self._all() if event.kind == "comment" and word in event.data)

    def until_line(self, message: str) -> Event:
        return self.until(lambda event: message in messages([event]))

    def until_kind(self, kind: str) -> Event:
        return self.until(lambda event: event.kind == kind)

    def rest(self) -> list[Event]:
        return list(self)


def messages(events: list[Event]) -> list[str]:
    return [line["message"] for event in events if event.kind == "log" for line in event.data["lines"]]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        app.state.streams.close()
        server.should_exit = True
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@contextmanager
def following(url: str, job_id: str, last: str | None = None, owner: str = "alice", **query: Any) -> Iterator[Stream]:
    headers = {"Authorization": f"Bearer {token_of(owner)}"} | ({"Last-Event-ID": last} if last else {})
    with CLIENT.stream("GET", f"{url}/v1/jobs/{job_id}/stream", headers=headers, params=query) as answer:
        assert answer.status_code == 200, answer.read()
        yield Stream(answer)


def eventually(look: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not look():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"POLL_S": 0.03, "IDLE_POLL_S": 0.05, "LONGEST_PAUSE_S": 0.1}.items():
        monkeypatch.setattr(stream, name, seconds)


@pytest.fixture
def job(database: Database, root: Path) -> Job:
    return Job(database, root / "run")


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture
def replica(settings, ray, mlflow) -> Iterator[str]:
    """Another process's application over the same database and files."""
    app = create_app(settings)
    app.state.app_state = replace(app.state.app_state, ray=ray, mlflow=mlflow)
    with serving(app) as url:
        yield url


def test_the_present_once(api, job):
    job.set(metrics={"train/loss": 0.5}, progress={"epoch": 1.0, "epochs": 2, "step": 7})
    job.move(State.PAUSING, "Pausing.")
    job.log("a", "b")
    answer = api.get(f"/v1/jobs/{job.id}/stream", params={"once": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    events = Stream(answer).rest()
    assert kinds(events) == ["job", "event", "metrics", "log", "end"]
    assert events[0].data == api.get(f"/v1/jobs/{job.id}").json()
    assert events[1].data == api.get(f"/v1/jobs/{job.id}/events").json()["items"][0]
    assert events[2].data == {"step": 7, "values": {"train/loss": 0.5}}
    assert events[3].data == {"lines": api.get(f"/v1/jobs/{job.id}/logs").json()["items"]}
    assert events[4].data == {}


def test_lines_are_chosen(api, job):
    def once(**query: Any) -> list[str]:
        answer = api.get(f"/v1/jobs/{job.id}/stream", params={"once": True} | query)
        assert answer.status_code == 200, answer.text
        return messages(Stream(answer).rest())

    job.log(*(f"line {n}" for n in range(300)))
    job.log("bad", level="error", source="driver")
    assert once() == [*(f"line {n}" for n in range(201, 300)), "bad"]
    assert once(tail=2) == ["line 299", "bad"]
    assert once(tail=0) == []
    assert len(once(tail="all")) == 301
    assert once(level="warning") == once(source="driver") == ["bad"]
    assert once(logs=False) == []
    assert once(tail=1, source="rank-0") == ["line 299"]
    assert once(search="INE 29", tail="all") == ["line 29", *(f"line {n}" for n in range(290, 300))]
    job.set(attempts=2)
    job.log("again", attempt=2)
    assert once(attempt=2) == ["again"]
    assert once(attempt=1, tail=1) == ["bad"]


def test_what_cannot_be_followed_is_refused(clients, job):
    path = f"/v1/jobs/{job.id}/stream"
    for wrong in ("nonsense", paging.write_cursor([1]), paging.write_cursor(["", -1, "", None])):
        answer = clients.alice.get(path, headers={"Last-Event-ID": wrong})
        assert "Last-Event-ID" in problem(answer, 422, "parameter_invalid")["detail"]
        problem(clients.alice.get(path, params={"after": wrong}), 422, "parameter_invalid")
    problem(clients.alice.get("/v1/jobs/job-none/stream"), 404, "job_not_found")
    problem(clients.bob.get(path), 404, "job_not_found")
    problem(clients.anonymous.get(path), 401, "unauthorized")
    for query in ({"tail": -1}, {"tail": "some"}, {"level": "loud"}, {"once": "perhaps"}, {"attempt": 0}):
        problem(clients.alice.get(path, params=query), 422, "parameter_invalid")


@pytest.mark.both_databases
def test_changes_come_as_they_happen_until_the_end(url, job):
    with following(url, job.id) as stream_:
        assert stream_.until_kind("job").data["state"] == "running"
        job.log("a")
        stream_.until_line("a")
        job.set(metrics={"train/loss": 0.5})
        assert stream_.until_kind("metrics").data["values"] == {"train/loss": 0.5}
        job.move(State.PAUSING)
        job.move(State.PAUSED)
        stream_.until(lambda event: event.kind == "job" and event.data["state"] == "paused")
        job.log("still open")
        stream_.until_line("still open")
        job.move(State.CANCELLED)
        job.log("the last one")
        rest = stream_.rest()
        assert kinds(rest)[-1] == "end"
        assert "the last one" in messages(stream_.seen)
        told = [event.data["state"] for event in stream_.seen if event.kind == "event"]
        assert told == ["pausing", "paused", "cancelled"]


def test_an_ended_job_is_told_with_all_its_lines(url, job):
    job.log(*(f"line {n}" for n in range(2500)))
    job.move(State.FAILED)
    with following(url, job.id, tail="all") as stream_:
        events = stream_.rest()
    assert messages(events) == [f"line {n}" for n in range(2500)]
    assert all(len(event.data["lines"]) <= 200 for event in events if event.kind == "log")
    assert kinds(events)[-1] == "end"


@pytest.mark.both_databases
def test_a_reader_who_comes_back_loses_and_repeats_nothing(url, replica, job):
    """Cut after every few events, and on with another process each time, while the job logs and changes."""
    ended = threading.Event()

    def work() -> None:
        for n in range(150):
            job.log(f"rank {n}", source="rank-0")
            job.log(f"driver {n}", source="driver")
            job.log(f"next {n}", source="rank-0", attempt=2)
            if n % 10 == 0:
                job.set(notes=f"{n}", metrics={"train/loss": float(n)})
            if n == 50:
                job.set(attempts=2)
            time.sleep(0.005)
        job.move(State.RECOVERING)
        job.move(State.FAILED)
        ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    seen: list[Event] = []
    first, last, cuts = None, None, 0
    while "end" not in kinds(seen):
        header, address = (
            (None, {"after": last} if last else {}) if cuts % 3 else (last, {"after": first} if first else {})
        )
        with following((url, replica)[cuts % 2], job.id, header, tail="all", **address) as stream_:
            for count, event in enumerate(stream_):
                seen.append(event)
                first, last = first or event.id, event.id
                if count == cuts % 4 and not ended.is_set():
                    break
        cuts += 1
    worker.join()
    assert cuts > 3
    found = messages(seen)
    expected = [f"{source} {n}" for n in range(150) for source in ("rank", "driver", "next")]
    assert sorted(found) == sorted(expected)
    for source in ("rank", "driver", "next"):
        assert [line for line in found if line.startswith(source)] == [f"{source} {n}" for n in range(150)]
    assert [event.data["state"] for event in seen if event.kind == "event"] == ["recovering", "failed"]
    ticks = [event.data["values"]["train/loss"] for event in seen if event.kind == "metrics"]
    assert ticks == sorted(set(ticks))
    jobs = [event.data for event in seen if event.kind == "job"]
    assert all(one != other for one, other in pairwise(jobs))


def test_hundreds_of_ranks_are_followed_over_every_break_by_short_ids(url, replica, job):
    """Two attempts of 128 ranks, which all log: proxies refuse requests with headers of some thousand characters."""
    job.set(attempts=2)
    places = [(attempt, f"rank-{rank}") for attempt in (1, 2) for rank in range(128)]
    seen: list[Event] = []
    for n in range(6):
        with following((url, replica)[n % 2], job.id, seen[-1].id if seen else None, tail="all") as stream_:
            for attempt, source in places:
                job.log(f"{attempt}/{source}: {n}", attempt=attempt, source=source)
            seen += islice(stream_, 1 + n % 3)
    job.move(State.FAILED)
    with following(url, job.id, seen[-1].id) as stream_:
        seen += stream_.rest()
    assert max(len(event.id) for event in seen) < 1000
    found = messages(seen)
    assert len(found) == 6 * len(places)
    for attempt, source in places:
        mine = f"{attempt}/{source}: "
        assert [line for line in found if line.startswith(mine)] == [f"{mine}{n}" for n in range(6)]


@pytest.mark.both_databases
def test_the_last_lines_of_an_attempt_that_still_ends_beside_the_next_come_too(url, job):
    job.set(attempts=2)
    job.log("begins", attempt=2)
    with following(url, job.id) as open_:
        open_.until_line("begins")
        for n in range(3):  # the poller's first look may still find the first of them on its own
            job.log(f"late {n}", attempt=1)
            open_.until_line(f"late {n}")


def test_a_slow_reader_holds_nobody_and_misses_nothing(url, job, monkeypatch):
    monkeypatch.setattr(stream, "BACKLOG", 2)
    reads: list[stream.Reader] = []
    own = stream.Reader._read

    async def counted(reader: stream.Reader, *until: Any) -> Any:
        reads.append(reader)
        return await own(reader, *until)

    monkeypatch.setattr(stream.Reader, "_read", counted)
    with following(url, job.id, tail="all") as slow, following(url, job.id, tail="all") as quick:
        slow.until_kind("job")
        quick.until_kind("job")
        eventually(lambda: len(set(reads)) == 2)
        expected = [f"{n} {'x' * 10_000}" for n in range(200)]
        for begin in range(0, 200, 20):
            job.log(*expected[begin : begin + 20])
            quick.until_line(expected[begin + 19])
        job.move(State.FAILED)
        quick.rest()
        assert messages(quick.seen) == expected
        reads.clear()
        assert "end" in kinds(slow.rest())
        assert messages(slow.seen) == expected
        assert reads, "it was too slow for what is kept, and read for itself"


def test_fifty_readers_have_one_poller(app, url, job, monkeypatch):
    looks: list[UpdateSource] = []
    since = UpdateSource.since

    def counted(source: UpdateSource, *cursor: Any) -> Any:
        looks.append(source)
        return since(source, *cursor)

    monkeypatch.setattr(UpdateSource, "since", counted)
    streams: stream.Streams = app.state.streams
    together, lines = threading.Barrier(51), list[list[str]]()

    def read() -> None:
        with following(url, job.id) as stream_:
            stream_.until_kind("job")
            stream_.until_line("hello")
            together.wait(LIMIT_S)
            stream_.until_line("world")
            lines.append(messages(stream_.seen))

    readers = [threading.Thread(target=read) for _ in range(50)]
    for reader in readers:
        reader.start()
    eventually(lambda: streams.readers == 50)
    job.log("hello")
    together.wait(LIMIT_S)
    (hub,) = streams.hubs.values()

    def settled() -> bool:
        """All have come to the present, and wait for the poller."""
        looks.clear()
        time.sleep(0.2)
        return bool(looks) and all(look is hub.source for look in looks)

    eventually(settled)
    job.log("world")
    for reader in readers:
        reader.join(LIMIT_S)
    assert lines == [["hello", "world"]] * 50
    assert looks
    assert all(look is hub.source for look in looks), "each reader reads what the poller found"
    eventually(lambda: streams.hubs == {})
    time_of_last = len(looks)
    time.sleep(0.2)
    assert len(looks) == time_of_last, "nobody reads, nobody looks"


def test_a_revoked_token_ends_its_stream(url, job, database, monkeypatch):
    monkeypatch.setattr(open_responses, "LOOK_S", 0.1)
    with following(url, job.id) as alice, following(url, job.id, owner="operator") as operator:
        alice.until_kind("job")
        operator.until_kind("job")
        with database.session() as session:
            session.get(Token, sha256(token_of("alice"))).revoked_at = now()
        assert "end" not in kinds(alice.rest()), "the job has not ended"
        job.log("not for everybody")
        operator.until_line("not for everybody")
    assert "not for everybody" not in messages(alice.seen)


def test_a_deleted_job_ends_its_stream(url, job):
    job.move(State.FAILED)
    job.move(State.QUEUED)
    with following(url, job.id) as stream_:
        stream_.until_kind("job")
        job.set(deleted_at=now())
        assert kinds(stream_.rest())[-1] == "end"


def test_a_database_that_is_away_for_a_moment_ends_no_stream(app, url, job, monkeypatch):
    database = app.state.app_state.database
    with following(url, job.id) as stream_:
        stream_.until_kind("job")

        def away() -> Any:
            raise DatabaseUnreachable("connection refused")

        with monkeypatch.context() as broken:
            broken.setattr(database, "read", away)
            job.log("written meanwhile")
            stream_.until_comment("the database cannot be reached")
        job.move(State.PAUSING)
        stream_.until_line("written meanwhile")
        job.move(State.CANCELLING)
        job.move(State.CANCELLED)
        assert kinds(stream_.rest())[-1] == "end"


def test_a_storage_that_is_away_leaves_the_job_and_loses_no_line(api, url, job, root):
    job.log("before")
    away = root.with_name("away")
    root.rename(away)
    problem(api.get(f"/v1/jobs/{job.id}/stream", params={"once": True}), 503, "unavailable")
    with following(url, job.id) as stream_:
        stream_.until_comment("the artifact storage cannot be reached")
        job.move(State.PAUSING)
        stream_.until(lambda event: event.kind == "job" and event.data["state"] == "pausing")
        away.rename(root)
        job.log("after")
        job.move(State.PAUSED)
        stream_.until_line("after")
        assert messages(stream_.seen) == ["before", "after"]


def test_logs_elsewhere_are_not_served_and_the_job_is(api, database, tmp_path):
    job = Job(database, tmp_path / "elsewhere")
    job.log("secret")
    answer = api.get(f"/v1/jobs/{job.id}/stream", params={"once": True})
    assert kinds(Stream(answer).rest()) == ["job", "end"]
    assert "secret" not in answer.text


def test_silence_is_told_from_death(url, job, monkeypatch):
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    with following(url, job.id) as stream_:
        stream_.until_kind("job")
        stream_.until_comment("ping")
        job.log("still there")
        stream_.until_line("still there")


def test_streams_end_with_their_process(tmp_path, empty_file, root):
    """Without a limit of its own uvicorn waits for ever for what does not end."""
    path = tmp_path / "rcmae.db"
    path.write_bytes(empty_file.read_bytes())
    database = Database(f"sqlite:///{path}")
    job = Job(database, root / "run")
    environment = {
        "RCMAE_DATABASE_URL": f"sqlite:///{path}",
        "RCMAE_ARTIFACT_ROOT": str(root),
        "RCMAE_RECONCILE": "false",
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app"]
        server = subprocess.Popen(
            [*command, "--fd", str(listener.fileno())], pass_fds=[listener.fileno()], env=os.environ | environment
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            assert CLIENT.get(f"{url}/healthz", timeout=START_S).is_success
            with following(url, job.id) as stream_:
                stream_.until_kind("job")
                server.send_signal(signal.SIGTERM)
                assert "end" not in kinds(stream_.rest())
            assert server.wait(START_S) in {0, -signal.SIGTERM}
        finally:
            server.kill()
            server.wait()
    assert job_of(database, job.id).state == "running"
    database.close()
