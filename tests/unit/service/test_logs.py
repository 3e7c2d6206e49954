"""Reading log chunks piece by piece while they grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from service_fakes import add_job

from service.jobs import repository


class Writer:
    """Writes an attempt's chunks as the trainer does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, attempt: int, source: str, chunk: int, *messages: str, end: str = "\n") -> None:
        file = self.folder / f"attempts/{attempt}/logs/{source}.{chunk:04d}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"time": 1.5, "level": "info", "source": source, "message": m}) for m in messages]
        with file.open("a") as stream:
            stream.write("\n".join(lines) + end)


@pytest.fixture
def logs(root: Path) -> Writer:
    return Writer(root / "run")


@pytest.fixture
def read(api, database, logs):
    """Reads a page: its messages and its cursor."""
    job_id = add_job(database, "running", artifact_uri=f"file://{logs.folder}", attempts=2)

    def page(cursor: str | None = None, **query: Any) -> tuple[list[str], str]:
        given = query | ({"cursor": cursor} if cursor else {})
        answer = api.get(f"/v1/jobs/{job_id}/logs", params=given)
        assert answer.status_code == 200, answer.text
        return [line["message"] for line in answer.json()["items"]], answer.json()["next_cursor"]

    page.job_id = job_id
    return page


def test_lines_come_by_attempt_then_source_then_chunk(api, logs, read):
    logs.write(2, "driver", 1, "e")
    logs.write(1, "rank-0", 2, "d")
    logs.write(1, "rank-0", 1, "b", "c")
    logs.write(1, "driver", 1, "a")
    assert read()[0] == ["a", "b", "c", "d", "e"]
    assert read(attempt=1)[0] == ["a", "b", "c", "d"]
    assert read(source="rank-0")[0] == ["b", "c", "d"]
    assert read(attempt=2, source="rank-0")[0] == []
    assert read(attempt=9)[0] == []
    first = api.get(f"/v1/jobs/{read.job_id}/logs").json()["items"][0]
    assert first == {"time": 1.5, "level": "info", "source": "driver", "message": "a", "attempt": 1}


def test_a_cursor_stays_good_while_logs_grow(logs, read):
    logs.write(1, "driver", 1, "a")
    logs.write(1, "rank-0", 1, "b")
    seen, cursor = read()
    assert seen == ["a", "b"]
    assert read(cursor)[0] == []
    logs.write(1, "driver", 1, "c")
    logs.write(1, "rank-0", 2, "d")
    logs.write(1, "rank-1", 1, "e")
    logs.write(2, "driver", 1, "f")
    more, cursor = read(cursor)
    assert sorted(more) == ["c", "d", "e", "f"]
    assert read(cursor)[0] == []
    logs.write(1, "driver", 1, "g")
    assert read(cursor)[0] == ["g"]


def test_an_unfinished_line_waits(logs, read):
    logs.write(1, "driver", 1, "a")
    logs.write(1, "driver", 1, "half", end="")
    seen, cursor = read()
    assert seen == ["a"]
    assert read(cursor)[0] == []
    logs.write(1, "driver", 1)
    assert read(cursor)[0] == ["half"]


@pytest.mark.parametrize("limit", [1, 5, 12])
def test_pages_have_neither_gaps_nor_repeats(logs, read, limit):
    for source in ("driver", "rank-0"):
        for chunk in (1, 2, 3):
            logs.write(1, source, chunk, *(f"{source}-{chunk}-{n}" for n in range(2)))
    whole = read()[0]
    assert len(whole) == 12
    seen: list[str] = []
    cursor = None
    for _ in range(13):
        lines, cursor = read(cursor, limit=limit)
        assert len(lines) <= limit
        seen += lines
    assert seen == whole


def test_what_is_no_log_chunk_is_passed_over(logs, read):
    logs.write(1, "driver", 1, "a")
    folder = logs.folder / "attempts/1/logs"
    (folder / "notes.txt").write_text("no\n")
    (folder / "driver.0002.jsonl.tmp").write_text("no\n")
    (folder / "driver.last.jsonl").write_text("no\n")
    (folder / "rank-0.0001.jsonl").write_text("")
    assert read()[0] == ["a"]


def test_an_unknown_cursor_is_refused(api, logs, read):
    logs.write(1, "driver", 1, "a")
    positions = (3, [1], [1, "x"], [1, 2, 3], [1, -1], [None, 1], [1.5, 1])
    for parts in ([], ["x"], [{}, {}], *([{"1/driver": position}] for position in positions)):
        answer = api.get(f"/v1/jobs/{read.job_id}/logs", params={"cursor": repository.write_cursor(parts)})
        assert (answer.status_code, answer.json()["code"]) == (422, "parameter_invalid"), parts
    assert api.get(f"/v1/jobs/{read.job_id}/logs", params={"cursor": "nonsense"}).status_code == 422


def test_logs_outside_the_artifact_root_are_never_read(api, database, tmp_path):
    Writer(tmp_path / "elsewhere").write(1, "driver", 1, "secret")
    job_id = add_job(database, "running", artifact_uri=str(tmp_path / "elsewhere"), attempts=1)
    answer = api.get(f"/v1/jobs/{job_id}/logs")
    assert answer.status_code >= 400
    assert "secret" not in answer.text
