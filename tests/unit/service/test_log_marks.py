"""Log lines come once each, by marks of bounded size: whatever is stored late, and wherever a reader comes back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_fakes import add_job, problem

from service.adapters.storage import Artifacts, StorageUnreachable
from service.db.database import Database
from service.http import paging
from service.jobs import log_files, log_marks, repository, stream, updates
from trainer.protocol.names import LOG_POSITIONS, log_folder

LONGEST = 1000
"""Characters of a cursor and of an event's id."""


class Ranks:
    """Ranks of a running job that store their lines as the trainer does, or half of one, and late."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self.folder, self.attempts = database, folder, 1
        self.job_id = add_job(database, "running", artifact_uri=str(folder), attempts=1)
        self.stored: dict[tuple[int, str], list[str]] = {}
        """Every whole line, by attempt and source."""
        self._chunks: dict[tuple[int, str], int] = {}
        self._halves: dict[tuple[int, str], str] = {}

    def begin_attempt(self) -> None:
        """Nothing is written any more by the attempts before the last two."""
        self._end_halves(self.attempts - 1)
        self.attempts += 1
        with self._database.session() as session:
            repository.get(session, self.job_id).attempts = self.attempts

    def store(
        self, attempt: int, source: str, count: int, time: float, *, half: bool = False, roll: bool = False
    ) -> None:
        key = attempt, source
        lines = self.stored.setdefault(key, [])
        text = self._halves.pop(key, "")
        if roll and not text:
            self._chunks[key] = self._chunks.get(key, 1) + 1
        for n in range(count):
            message = f"{attempt}/{source}: {len(lines)} {'x' * (n * 7)}"
            line = json.dumps({"time": time, "level": "info", "source": source, "message": message})
            text += line + "\n"
            lines.append(message)
        if half and count:
            self._halves[key], text = text[-9:], text[:-9]
        file = self.folder / f"{log_folder(attempt)}/{source}.{self._chunks.get(key, 1):04d}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(text)

    def end(self) -> None:
        self._end_halves(self.attempts)

    def _end_halves(self, until_attempt: int) -> None:
        for attempt, source in list(self._halves):
            if attempt <= until_attempt:
                self.store(attempt, source, 0, 0.0)


class Pages:
    """Who asks for page after page, with a cursor and nothing else to remember."""

    def __init__(self, api: TestClient, job_id: str, limit: int) -> None:
        self._api, self._path, self._limit = api, f"/v1/jobs/{job_id}/logs", limit
        self.cursor, self.longest, self.lines = "", 0, list[dict[str, Any]]()

    def read(self) -> bool:
        """One page; whether there is more."""
        answer = self._api.get(self._path, params={"limit": self._limit, "cursor": self.cursor})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        self.lines += page["items"]
        self.cursor = page["next_cursor"] or self.cursor
        self.longest = max(self.longest, len(self.cursor))
        return page["more"]


class Follower:
    """Who follows a stream that breaks after some events, and goes on from the last one's id."""

    def __init__(self, api: TestClient, job_id: str, tail: str = "all") -> None:
        self._api, self._path, self._tail = api, f"/v1/jobs/{job_id}/stream", tail
        self.last, self.longest, self.lines = "", 0, list[dict[str, Any]]()

    def read(self, events: int | None = None) -> None:
        """So many events, or all that there are now."""
        headers = {"Last-Event-ID": self.last} if self.last else {}
        answer = self._api.get(self._path, params={"once": True, "tail": self._tail}, headers=headers)
        assert answer.status_code == 200, answer.text
        for kind, data, identity in list(_events(answer.text))[:events]:
            self.lines += data["lines"] if kind == "log" else []
            self.last = identity
            self.longest = max(self.longest, len(identity))


def _events(text: str) -> Iterator[tuple[str, Any, str]]:
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            yield fields["event"], json.loads(fields["data"]), fields["id"]


def by_source(lines: list[dict[str, Any]]) -> dict[tuple[int, str], list[str]]:
    found: dict[tuple[int, str], list[str]] = {}
    for line in lines:
        found.setdefault((line["attempt"], line["source"]), []).append(line["message"])
    return found


STORE = st.tuples(
    st.booleans(),  # by the attempt before the last, which may still be ending
    st.sampled_from([f"rank-{n}" for n in range(12)]),
    st.integers(0, 5),
    st.integers(-100, 100),  # their times have nothing to do with when they are stored
    st.booleans(),
    st.booleans(),
)
STEPS = st.lists(st.one_of(STORE, STORE, st.just("attempt"), st.integers(0, 6)), max_size=40)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=STEPS,
    short=st.sampled_from([45, 60, 200, 540]),
    piece=st.sampled_from([17, 64, 2**20]),
    limit=st.integers(1, 9),
)
def test_every_line_comes_once_whatever_is_late(api, database, root, monkeypatch, steps, short, piece, limit):
    """Steps are lines that are stored, a new attempt, and readers who come back for a page or so many events."""
    for module, name, value in (
        (log_marks, "SHORT", short),
        (log_files, "PIECE", piece),
        (updates, "LINES", limit),
        (stream, "BATCH", 2),
    ):
        monkeypatch.setattr(module, name, value)
    ranks = Ranks(database, root / f"run-{len(list(root.iterdir()))}")
    pages, follower = Pages(api, ranks.job_id, limit), Follower(api, ranks.job_id)
    for step in steps:
        match step:
            case "attempt":
                ranks.begin_attempt()
            case int(events):
                log_files._saved.cache_clear()  # as in another process
                pages.read()
                follower.read(events)
            case before, source, count, time, half, roll:
                ranks.store(max(1, ranks.attempts - before), source, count, time, half=half, roll=roll)
    ranks.end()
    while pages.read():
        pass
    follower.read()
    expected = {key: lines for key, lines in ranks.stored.items() if lines}
    assert by_source(pages.lines) == expected
    assert by_source(follower.lines) == expected


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_marks_are_short_however_many_ranks_and_attempts(api, database, root):
    """100 attempts of 1,024 ranks; each of those in the last two is somewhere else."""
    ranks, chance = Ranks(database, root / "run"), random.Random(8)

    def log(attempts: Iterable[int], ranks_of_each: int) -> None:
        for attempt in attempts:
            for rank in chance.sample(range(1024), ranks_of_each):
                ranks.store(
                    attempt, f"rank-{rank}", chance.randrange(1, 4), chance.random(), roll=chance.random() < 0.1
                )

    log([1], 1024)
    for attempt in range(2, 101):
        ranks.begin_attempt()
        if attempt < 99:  # as the first one
            (ranks.folder / log_folder(attempt)).parent.mkdir()
            (ranks.folder / log_folder(attempt)).symlink_to(ranks.folder / log_folder(1))
    ranks.stored.clear()
    pages = Pages(api, ranks.job_id, 1000)
    for _ in range(3):
        assert pages.read()
    assert pages.lines[-1]["attempt"] > 1
    follower = Follower(api, ranks.job_id, tail="0")
    follower.read()
    log((99, 100), 1024)
    for events in range(6):
        follower.read(events)
        log((99, 100), 30)
    follower.read()
    assert by_source(follower.lines) == ranks.stored
    latest = Pages(api, ranks.job_id, 1500)
    latest.cursor = api.get(f"/v1/jobs/{ranks.job_id}/logs", params={"tail": 1500}).json()["next_cursor"]
    log((99, 100), 200)
    while latest.read():
        pass
    assert max(follower.longest, pages.longest, latest.longest) < LONGEST


def test_each_file_is_read_once_and_each_folder_listed_where_a_page_needs_it(api, database, root, monkeypatch):
    """Of 12 attempts of 20 ranks, 40 lines a page."""
    ranks = Ranks(database, root / "run")
    for attempt in range(1, 13):
        for rank in range(20):
            ranks.store(attempt, f"rank-{rank}", 2, 1.0)
        if attempt < 12:
            ranks.begin_attempt()
    listed, fetched = list[str](), list[str]()
    sizes, read = Artifacts.sizes, Artifacts.read

    def counted_sizes(artifacts: Artifacts, folder: str, below: str = "") -> dict[str, int]:
        listed.append(below)
        return sizes(artifacts, folder, below)

    def counted_read(artifacts: Artifacts, folder: str, name: str, *bounds: int) -> bytes | None:
        fetched.append(name)
        return read(artifacts, folder, name, *bounds)

    monkeypatch.setattr(Artifacts, "sizes", counted_sizes)
    monkeypatch.setattr(Artifacts, "read", counted_read)
    pages, count = Pages(api, ranks.job_id, 40), 1
    while pages.read():
        count += 1
    assert by_source(pages.lines) == ranks.stored
    assert len([name for name in fetched if LOG_POSITIONS not in name]) <= 12 * 20 + count
    assert len(listed) <= 4 * count
    listed.clear()
    fetched.clear()
    assert not pages.read()
    assert len(listed) == 2, "earlier attempts are final"
    assert not [name for name in fetched if LOG_POSITIONS not in name]


@pytest.fixture
def ranks(database: Database, root: Path) -> Ranks:
    return Ranks(database, root / "run")


def test_the_last_lines_of_many_ranks_come_once_over_a_break(api, ranks, monkeypatch):
    monkeypatch.setattr(stream, "BATCH", 2)
    for rank in range(60):
        ranks.store(1, f"rank-{rank}", 2, float(rank))
    follower = Follower(api, ranks.job_id, tail="5")
    follower.read(2)
    assert len(follower.lines) == 2
    follower.read()
    expected = [message for rank in (57, 58, 59) for message in ranks.stored[1, f"rank-{rank}"]][1:]
    assert [line["message"] for line in follower.lines] == expected


def test_what_was_sorted_together_is_sorted_together_again_after_a_break(api, ranks, monkeypatch):
    monkeypatch.setattr(updates, "LINES", 4)
    monkeypatch.setattr(stream, "BATCH", 2)
    ranks.store(1, "rank-0", 4, 9.0)
    ranks.store(1, "rank-1", 4, 1.0)
    follower = Follower(api, ranks.job_id)
    follower.read(2)
    assert len(follower.lines) == 2
    follower.read()
    assert by_source(follower.lines) == ranks.stored


def test_cursors_of_the_release_before_are_read(api, ranks):
    """They name every source, with the chunk and the bytes that were read."""
    ranks.store(1, "driver", 2, 1.0)
    ranks.store(1, "rank-0", 1, 1.0)
    file = ranks.folder / f"{log_folder(1)}/driver.0001.jsonl"
    first = len(file.read_bytes().splitlines(keepends=True)[0])
    mark = [1, {"1/driver": [1, first]}]
    expected = {(1, "driver"): ranks.stored[1, "driver"][1:], (1, "rank-0"): ranks.stored[1, "rank-0"]}
    pages, follower = Pages(api, ranks.job_id, 9), Follower(api, ranks.job_id)
    pages.cursor = paging.write_cursor(mark)
    pages.read()
    follower.last = paging.write_cursor(["", 0, "", mark])
    follower.read()
    assert by_source(pages.lines) == by_source(follower.lines) == expected


def test_positions_that_nobody_saved_are_refused(api, ranks):
    ranks.store(1, "driver", 1, 1.0)
    mark = [1, {}, "a" * 16]
    cursor, last = paging.write_cursor(mark), paging.write_cursor(["", 0, "", mark])
    problem(api.get(f"/v1/jobs/{ranks.job_id}/logs", params={"cursor": cursor}), 422, "parameter_invalid")
    answer = api.get(f"/v1/jobs/{ranks.job_id}/stream", headers={"Last-Event-ID": last})
    assert "Last-Event-ID" in problem(answer, 422, "parameter_invalid")["detail"]


def test_positions_that_cannot_be_saved_now_lose_nothing(api, ranks, monkeypatch):
    for rank in range(100):
        ranks.store(1, f"rank-{rank}", 1, 1.0)
    path, query = f"/v1/jobs/{ranks.job_id}", {"once": True}
    with monkeypatch.context() as full:

        def refused(*_: Any) -> None:
            raise StorageUnreachable("No space left on device")

        full.setattr(Artifacts, "write", refused)
        for answer in (api.get(f"{path}/logs"), api.get(f"{path}/stream", params=query)):
            assert "No space left" in problem(answer, 503, "unavailable")["detail"]
    pages, follower = Pages(api, ranks.job_id, 200), Follower(api, ranks.job_id)
    pages.read()
    follower.read()
    assert by_source(pages.lines) == by_source(follower.lines) == ranks.stored


def test_a_process_that_does_not_see_yet_what_another_saw_waits(api, ranks):
    for rank in range(3):
        ranks.store(1, f"rank-{rank}", 2, 1.0)
    pages = Pages(api, ranks.job_id, 2)
    pages.read()
    file = ranks.folder / f"{log_folder(1)}/rank-1.0001.jsonl"
    whole = file.read_bytes()
    query = {"cursor": pages.cursor}
    file.write_bytes(whole[: whole.index(b"\n") + 1])
    problem(api.get(f"/v1/jobs/{ranks.job_id}/logs", params=query), 503, "unavailable")
    file.unlink()
    problem(api.get(f"/v1/jobs/{ranks.job_id}/logs", params=query), 503, "unavailable")
    file.write_bytes(whole)
    while pages.read():
        pass
    assert by_source(pages.lines) == ranks.stored


def test_a_chunk_that_ends_while_its_folder_is_listed_is_read_to_its_end(api, ranks, monkeypatch):
    """A listing of many files takes time: the next chunk may be in it, and the chunk before as it was earlier."""
    ranks.store(1, "driver", 1, 1.0)
    pages = Pages(api, ranks.job_id, 9)
    pages.read()
    earlier = (ranks.folder / f"{log_folder(1)}/driver.0001.jsonl").stat().st_size
    ranks.store(1, "driver", 2, 1.0)
    ranks.store(1, "driver", 1, 1.0, roll=True)
    sizes = Artifacts.sizes

    def listed(artifacts: Artifacts, folder: str, below: str = "") -> dict[str, int]:
        return sizes(artifacts, folder, below) | {"driver.0001.jsonl": earlier}

    with monkeypatch.context() as slow:
        slow.setattr(Artifacts, "sizes", listed)
        pages.read()
    pages.read()
    assert by_source(pages.lines) == ranks.stored
