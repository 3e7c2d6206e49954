"""Following a job's stream over everything that can happen to a connection."""

from __future__ import annotations

import io
import json
import re
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text
from scripted_server import Answer, Asked, ScriptedServer, event, job, line, problem, sent, streamed

from service import cli
from service.client import errors, progress, streaming
from service.client.errors import ApiError, ClientError, ConnectionFailed
from service.client.sdk import Client
from service.jobs.output_schemas import LogBatch, MetricsTick
from service.jobs.schemas import EventView, JobView
from service.jobs.state import State

PATH = "/v1/jobs/job-1/stream"
END = sent("end", {}, "end")
LIMIT_S = 20.0
"""For what must happen, so that a test that fails also ends."""


@pytest.fixture
def client(server):
    with Client(server.url, "secret", patience_s=5) as made:
        yield made


def run(*arguments: str) -> int:
    """The exit status of the console script."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_wherever_their_bytes_are_parted(server, client, size):
    message = "naïve \N{LLAMA}"
    data = b": hello\r\n\r\n" + sent("job", job("running", name=message), 1).replace(b"\n", b"\r\n")
    data += b": still here\n\n" + sent("event", event(1, "running", message), 2) + b"retry: 10\n\n" + END
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    server.on("GET", PATH, streamed(pieces))
    found_job, found_event = client.stream("job-1")
    assert (found_job.name, found_event.message) == (message, message)


def test_an_update_is_there_before_the_next_one_is_sent(server, client):
    taken = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield sent("job", job("running"), 1)
        assert taken.wait(LIMIT_S)
        yield END

    server.on("GET", PATH, streamed(pieces()))
    updates = client.stream("job-1")
    assert next(updates).state is State.RUNNING
    taken.set()
    assert list(updates) == []


def test_a_service_that_only_says_it_is_there_is_not_away(server, client, monkeypatch):
    """A queued job may have no news for days; what counts is how long nothing at all came before a connection broke."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(errors.time, "monotonic", lambda: clock.now)

    def quiet() -> Iterator[bytes]:
        yield sent("job", job("queued"), "a")
        for _ in range(10):
            clock.now += 15
            yield b": still here\n\n"

    server.on("GET", PATH, streamed(quiet()), streamed([sent("job", job("succeeded"), "b"), END]))
    states = [update.state for update in client.stream("job-1", away_limit_s=60)]
    assert states == [State.QUEUED, State.SUCCEEDED]


def test_updates_are_typed_and_what_is_new_is_left_out(server, client):
    pieces = [
        sent("job", job("running"), 1), b": still here\n\n", sent("event", event(1, "running", "It trains."), 2),
        sent("metrics", {"step": 5, "values": {"train/loss": 0.5}}, 3), sent("weather", {"rain": True}, 4),
        sent("log", {"lines": [line(1), line(2)]}, 5), END,
    ]  # fmt: skip
    server.on("GET", PATH, streamed(pieces))
    found = list(client.stream("job-1", logs=True, level="warning", source="rank-0", tail="all", once=True))
    assert [type(update) for update in found] == [JobView, EventView, MetricsTick, LogBatch]
    assert found[0].state is State.RUNNING
    assert found[2].values == {"train/loss": 0.5}
    assert [entry.message for entry in found[3].lines] == ["Line 1.", "Line 2."]
    (asked,) = server.asked
    assert asked.query == {
        "logs": ["true"],
        "level": ["warning"],
        "source": ["rank-0"],
        "tail": ["all"],
        "once": ["true"],
    }
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in asked.headers


class Told:
    """A stream of numbered events that the service breaks after ever more bytes."""

    def __init__(self, count: int) -> None:
        self.events = [sent("event", event(number, "running", "x" * number), f"c{number}") for number in range(count)]
        self.connections = 0

    def __call__(self, asked: Asked) -> Answer:
        self.connections += 1
        last = asked.headers.get("last-event-id")
        after = int(last.removeprefix("c")) + 1 if last else 0
        rest = b"".join(self.events[after:]) + END
        if self.connections % 5 == 4:
            return problem(503, "unavailable", "restarting")
        return streamed([rest[: self.connections * 37]])


def test_breaks_at_any_byte_lose_and_repeat_nothing(server, client):
    told = Told(60)
    server.routes["GET", PATH] = told
    assert [update.id for update in client.stream("job-1")] == list(range(60))
    assert told.connections > 20


def test_a_connection_that_goes_silent_is_left_for_another(server, client, monkeypatch):
    monkeypatch.setattr(streaming, "SILENCE_S", 0.1)
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        yield sent("job", job("running"), "a")
        over.wait(LIMIT_S)

    server.on("GET", PATH, streamed(silent()), streamed([sent("job", job("succeeded"), "b"), END]))
    assert [update.state for update in client.stream("job-1")] == [State.RUNNING, State.SUCCEEDED]
    over.set()
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "a"]


def test_a_restart_is_told_once_it_lasts_and_once_it_is_over(server, client):
    cut, told = threading.Event(), []
    outage = server.away()

    def first() -> Iterator[bytes]:
        yield sent("job", job("running"), "a")
        cut.wait(LIMIT_S)

    def tell(error: Exception | None) -> None:
        told.append(error)
        if len(told) == 2:
            outage.__exit__(None, None, None)

    server.on("GET", PATH, streamed(first()), streamed([sent("job", job("succeeded"), "b"), END]))
    states = []
    for update in client.stream("job-1", tell=tell):
        states.append(update.state)
        if not cut.is_set():
            outage.__enter__()
            cut.set()
    assert states == [State.RUNNING, State.SUCCEEDED]
    assert len(told) >= 3
    assert all(isinstance(error, ConnectionFailed) for error in told[:-1])
    assert told[-1] is None


def test_patience_ends_with_what_was_wrong(server, client):
    server.on("GET", PATH, streamed([sent("job", job("running"), "a")]), Answer(503, b"restarting"))
    updates = client.stream("job-1", away_limit_s=0.2)
    assert next(updates).state is State.RUNNING
    with pytest.raises(ApiError, match="503: restarting"):
        next(updates)
    assert len(server.asked) > 2
    with server.away(), pytest.raises(ConnectionFailed, match=f"{server.url} does not answer"):
        next(client.stream("job-1", away_limit_s=0.2))


@pytest.mark.parametrize(("status", "code"), [(401, "unauthorized"), (404, "job_not_found"), (500, "internal_error")])
def test_what_is_refused_is_not_asked_again(server, client, status, code):
    server.on("GET", PATH, streamed([sent("job", job("running"), "a")]), problem(status, code, "no"))
    updates = client.stream("job-1")
    next(updates)
    with pytest.raises(ApiError) as refused:
        next(updates)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert len(server.asked) == 2


def test_a_service_that_asks_for_time_gets_it(server, client, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(errors.time, "sleep", pauses.append)
    busy = problem(429, "too_many_streams", "later")
    busy.headers["Retry-After"] = "3"
    server.on("GET", PATH, busy, streamed([sent("job", job("succeeded"), "a"), END]))
    assert [update.state for update in client.stream("job-1")] == [State.SUCCEEDED]
    assert len(pauses) == 1
    assert pauses[0] >= 3


def test_a_page_is_no_stream(server, client):
    server.on("GET", PATH, Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html"}))
    with pytest.raises(ClientError, match=f"{PATH} answered text/html in place of text/event-stream"):
        next(client.stream("job-1"))
    assert len(server.asked) == 1


def test_an_update_that_cannot_be_read_is_named(server, client):
    server.on("GET", PATH, streamed([sent("job", {"id": "job-1"}, "a")]))
    with pytest.raises(ClientError, match="'job' that this client cannot read"):
        next(client.stream("job-1"))


# -- The command line

RUNNING = {
    "epoch": 3.5, "epochs": 10, "step": 42, "images_per_s": 321.4, "data_wait_fraction": 0.042, "loss": 0.91234,
    "eta_s": 75,
}  # fmt: skip


def _life(server: ScriptedServer, last: str) -> None:
    """A job that runs and ends, while connections break and the service restarts."""
    server.on("POST", "/v1/jobs", Answer(201, job()))
    server.on(
        "GET",
        PATH,
        streamed(
            [sent("job", job("running", progress=RUNNING), 1), sent("event", event(1, "running", "It trains."), 2)]
        ),
        *[Answer(503, b"restarting")] * 3,
        streamed([sent("event", event(2, last, "That is all."), 3), sent("job", job(last, message="That is all."), 4)]),
        streamed([END]),
    )


@pytest.mark.parametrize(("last", "status"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_following_survives_a_restart_and_tells_how_it_ended(server, tmp_path, capsys, last, status):
    (tmp_path / "spec.yaml").write_text("kind: pretrain\ndataset: {uri: builtin://digits}\n")
    _life(server, last)
    assert run("submit", str(tmp_path / "spec.yaml"), "--follow", "--json") == status
    shown, told = capsys.readouterr()
    assert json.loads(shown)["state"] == last
    assert "epoch 3.5/10  loss 0.9123  321 images/s  data wait 4%  ETA 1 m 15 s" in told
    assert told.count("It trains.") == told.count("That is all.") == 1
    assert told.count("waiting for the service") == told.count("the service is back") == 1
    assert [asked.headers.get("last-event-id") for asked in server.asked[1:]] == [None, "2", "2", "2", "2", "4"]


def test_following_a_paused_job_ends_where_it_pauses(server, capsys):
    """Also where the event of it has not come yet, as after a break of the connection."""
    over = threading.Event()

    def paused() -> Iterator[bytes]:
        yield sent("event", event(1, "running", "It trains."), 1)
        yield sent("job", job("paused"), 2)
        over.wait(LIMIT_S)

    server.on("GET", PATH, streamed(paused()))
    events = [event(1, "running", "It trains."), event(2, "paused", "It rests.")]
    server.on("GET", "/v1/jobs/job-1/events", Answer(200, {"items": events, "next_cursor": None}))
    assert run("jobs", "wait", "job-1") == 1
    over.set()
    told = capsys.readouterr().err
    assert told.count("It trains.") == told.count("It rests.") == 1


def test_ctrl_c_ends_the_following_and_not_the_job(server, capsys):
    # A shell ignores SIGINT for what it runs in the background, these tests perhaps.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()

    def interrupting() -> Iterator[bytes]:
        yield sent("job", job("running"), 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        over.wait(LIMIT_S)

    for arguments in (("wait", "job-1"), ("logs", "job-1", "--follow")):
        server.on("GET", PATH, streamed(interrupting()))
        assert run("jobs", *arguments) == 130
        told = capsys.readouterr().err
        assert "job job-1 goes on" in told
        assert "rcmae jobs cancel job-1" in told
    over.set()
    assert {asked.method for asked in server.asked} == {"GET"}


def test_a_service_that_will_not_be_back_in_time_ends_the_following(server, capsys):
    away = Answer(503, b"restarting", {"Retry-After": "86400"})
    server.on("GET", PATH, streamed([sent("job", job("running"), 1)]), away)
    assert run("jobs", "wait", "job-1") == 1
    assert "HTTP 503: restarting" in capsys.readouterr().err


def test_logs_are_followed_with_every_line_once(server, capsys):
    pieces = [sent("log", {"lines": [line(1), line(2)]}, 1), sent("log", {"lines": [line(3)]}, 2)]
    server.on("GET", PATH, streamed(pieces), streamed([sent("log", {"lines": [line(4, attempt=2)]}, 3), END]))
    chosen = ("--attempt", "2", "--search", "Line", "--source", "rank-0", "--level", "info", "--tail", "9")
    assert run("jobs", "logs", "job-1", "--follow", "--json", *chosen) == 0
    shown = [json.loads(text)["message"] for text in capsys.readouterr().out.splitlines()]
    assert shown == ["Line 1.", "Line 2.", "Line 3.", "Line 4."]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "2"]
    wanted = {"logs": "true", "attempt": "2", "search": "Line", "source": "rank-0", "level": "info", "tail": "9"}
    assert [asked.query for asked in server.asked] == [{name: [value] for name, value in wanted.items()}] * 2


@pytest.mark.parametrize("width", [40, 60, 90, 200])
def test_the_bar_fits_the_terminal(server, client, width):
    message = "a message that is longer than most terminals are wide, " * 3
    pieces = [sent("event", event(1, "running", message), 1), sent("job", job("running", progress=RUNNING), 2)]
    server.on("GET", PATH, streamed([*pieces, sent("job", job("succeeded", progress=RUNNING), 3), END]))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    assert progress.follow(client, "job-1", console).state is State.SUCCEEDED
    shown = screen.getvalue()
    assert message.strip() in shown
    bars = [Text.from_ansi(line).plain for line in re.split(r"[\r\n]+", shown) if "epoch 3.5/10" in line]
    assert bars
    assert all(len(bar) <= width for bar in bars)
    assert all(("data wait 4%" in bar) == (width >= 90) for bar in bars)


def test_following_a_job_tells_why_it_waits_each_time_that_changes(server, client):
    """That is in the job, and no event."""
    waits = [job("queued", message=f"Waits for {what}.") for what in ("room", "room", "MLflow")]
    pieces = [
        *(sent("job", job("queued", message="Retried."), 1), sent("event", event(1, "queued", "Retried."), 2)),
        *(sent("job", each, number) for number, each in enumerate(waits, 3)),
        *(sent("event", event(2, "starting", "It starts."), 6), sent("job", job("succeeded", message="Done."), 7), END),
    ]
    server.on("GET", PATH, streamed(pieces))
    screen = io.StringIO()
    progress.follow(client, "job-1", Console(file=screen, width=200))
    lines = [line.split(maxsplit=2)[2] for line in screen.getvalue().splitlines()]
    assert [line for line in lines if "Waits" in line] == ["queued  Waits for room.", "queued  Waits for MLflow."]
