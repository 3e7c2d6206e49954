"""Reading log chunks piece by piece while they grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from service_fakes import add_job, problem

from service.http import paging


class Writer:
    """Writes an attempt's chunks as the trainer does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        attempt: int,
        source: str,
        chunk: int,
        *messages: str,
        end: str = "\n",
        level: str = "info",
        time: float = 1.5,
    ) -> None:
        file = self.folder / f"attempts/{attempt}/logs/{source}.{chunk:04d}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"time": time, "level": level, "source": source, "message": m}) for m in messages]
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


def test_lines_of_a_level_and_those_above_it(logs, read):
    for level in ("debug", "info", "warning", "error"):
        logs.write(1, "driver", 1, level, level=level)
    assert read(level="debug")[0] == ["debug", "info", "warning", "error"]
    assert read(level="warning")[0] == ["warning", "error"]
    assert read(level="error")[0] == ["error"]


def test_text_is_found_in_whatever_case(logs, read):
    logs.write(1, "driver", 1, "Größe 3", "größer", "other", 'a "quoted" \\ word')
    assert read(search="GRÖSSE 3")[0] == ["Größe 3"]
    assert read(search="GRÖ")[0] == ["Größe 3", "größer"]
    assert read(search='"QUOTED" \\')[0] == ['a "quoted" \\ word']
    assert read(search="none of it")[0] == []
    assert read(search="größe", level="error")[0] == []


def test_filters_neither_lose_nor_repeat_over_pages(logs, read):
    for chunk in (1, 2, 3):
        logs.write(1, "driver", chunk, *(f"{'odd' if n % 2 else 'even'} {chunk}-{n}" for n in range(7)))
    seen, cursor = [], None
    for _ in range(6):
        lines, cursor = read(cursor, search="odd", limit=2)
        seen += lines
    assert seen == read(search="odd")[0]
    assert len(seen) == 9


def test_the_last_lines_are_the_latest_of_all_sources(logs, read):
    for n in range(5):
        logs.write(1, "driver", 1, f"old {n}", time=n)
        logs.write(2, "driver", 1 + n // 2, f"driver {n}", time=100 + n)
        logs.write(2, "rank-0", 1, f"rank {n}", time=100.5 + n)
    assert read(tail=3)[0] == ["rank 3", "driver 4", "rank 4"]
    assert read(tail=11)[0][:2] == ["old 4", "driver 0"]
    assert len(read(tail=5000)[0]) == 15
    assert read(tail=2, source="driver")[0] == ["driver 3", "driver 4"]
    assert read(tail=2, search="OLD")[0] == ["old 3", "old 4"]
    assert read(tail=2, attempt=1)[0] == ["old 3", "old 4"]


def test_what_comes_after_the_last_lines_follows_their_cursor(logs, read):
    logs.write(1, "driver", 1, "a", "b", time=1)
    logs.write(2, "driver", 1, "c", time=2)
    logs.write(2, "rank-0", 1, "d", "half", end="", time=3)
    for tail, expected in ((2, ["c", "d"]), (0, [])):
        lines, cursor = read(tail=tail)
        assert lines == expected
        assert read(cursor)[0] == []
    logs.write(2, "rank-0", 1, time=4)
    logs.write(2, "driver", 2, "e", time=5)
    logs.write(2, "rank-1", 1, "f", time=6)
    assert sorted(read(cursor)[0]) == ["e", "f", "half"]


def test_a_page_from_the_end_takes_no_cursor(api, logs, read):
    logs.write(1, "driver", 1, "a")
    answer = api.get(f"/v1/jobs/{read.job_id}/logs", params={"tail": 1, "cursor": read()[1]})
    assert answer.json()["detail"].startswith("tail:")
    problem(answer, 422, "parameter_invalid")


def test_a_page_says_whether_more_is_there_now(api, logs, read, monkeypatch):
    def more(**query: Any) -> tuple[int, bool]:
        body = api.get(f"/v1/jobs/{read.job_id}/logs", params=query).json()
        return len(body["items"]), body["more"]

    logs.write(1, "driver", 1, *(f"line {n}" for n in range(10)))
    assert more(limit=4) == (4, True)
    assert more() == (10, False)
    assert more(search="nothing like it") == (0, False)
    monkeypatch.setattr("service.jobs.logs.READ_AT_MOST", 100)
    assert more(search="nothing like it") == (0, True)
    monkeypatch.setattr("service.jobs.logs.READ_AT_MOST", 2**20)
    monkeypatch.setattr("service.jobs.logs.RETURN_AT_MOST", 100)
    assert more() == (2, True)


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_chunks_are_read_in_pieces_forwards_and_from_the_end(logs, read, monkeypatch, piece):
    monkeypatch.setattr("service.jobs.log_files.PIECE", piece)
    messages = ["short", "x" * 200, "ä" * 30, "", "end"]
    logs.write(1, "driver", 1, *messages)
    logs.write(1, "driver", 2, *messages, end="")
    whole = messages + messages[:-1]
    assert read()[0] == whole
    assert read(tail=9)[0] == whole
    assert read(tail=3)[0] == whole[-3:]
    assert read(read(tail=0)[1])[0] == []


def test_chunks_are_in_order_beyond_four_digits(logs, read):
    for chunk in (9999, 10000, 10001):
        logs.write(1, "driver", chunk, str(chunk))
    assert read()[0] == ["9999", "10000", "10001"]
    assert read(tail=2)[0] == ["10000", "10001"]


def test_a_damaged_line_is_shown_and_stops_nothing(api, logs, read):
    logs.write(1, "driver", 1, "a")
    with (logs.folder / "attempts/1/logs/driver.0001.jsonl").open("ab") as file:
        file.write(b"\x00 damaged \xff\n")
    logs.write(1, "driver", 1, "b")
    lines = api.get(f"/v1/jobs/{read.job_id}/logs").json()["items"]
    assert [line["message"] for line in lines] == ["a", "\x00 damaged \\xff", "b"]
    assert lines[1]["level"] == "warning"


def test_a_whole_log_is_downloaded_over_its_chunks(api, logs, read, monkeypatch):
    monkeypatch.setattr("service.jobs.log_files.PIECE", 50)
    url = f"/v1/jobs/{read.job_id}/logs/1/rank-0"
    for chunk in (1, 2, 3):
        logs.write(1, "rank-0", chunk, *(f"{chunk}-{n}" for n in range(4)))
    logs.write(1, "rank-1", 1, "another's")
    whole = api.get(url)
    assert whole.status_code == 200
    assert whole.headers["content-type"] == "application/x-ndjson"
    assert f"{read.job_id}-a1-rank-0.jsonl" in whole.headers["content-disposition"]
    assert [json.loads(line)["message"] for line in whole.text.splitlines()] == read(source="rank-0")[0]
    size = len(whole.content)
    for first, last in ((0, 10), (100, 400), (size - 5, size - 1)):
        part = api.get(url, headers={"Range": f"bytes={first}-{last}"})
        assert (part.status_code, part.content) == (206, whole.content[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert api.get(url, headers={"Range": f"bytes={size}-"}).status_code == 416
    head = api.head(url)
    assert (head.content, head.headers["content-length"], head.headers["accept-ranges"]) == (b"", str(size), "bytes")
    problem(api.get(f"/v1/jobs/{read.job_id}/logs/1/rank-9"), 404, "log_not_found")
    problem(api.get(f"/v1/jobs/{read.job_id}/logs/2/rank-0"), 404, "log_not_found")


@pytest.fixture(scope="module")
def large_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 MB of one attempt: two ranks' chunks, each with one line to look for."""
    folder = tmp_path_factory.mktemp("large") / "run"
    writer = Writer(folder)
    for rank in (0, 1):
        line = json.dumps({"time": 1.0, "level": "info", "source": f"rank-{rank}", "message": "y" * 900}) + "\n"
        full = line * (256 * 1024 // len(line) + 1)
        for chunk in range(1, 401):
            writer.write(1, f"rank-{rank}", chunk, f"needle {chunk}", time=float(chunk))
            with (folder / f"attempts/1/logs/rank-{rank}.{chunk:04d}.jsonl").open("a") as file:
                file.write(full)
    return folder


READ_ALL = """
import resource, sys
from service.adapters.storage import Artifacts
from service.jobs.log_files import LogFiles, whole
from service.jobs.log_marks import Mark
from service.jobs.logs import Logs, LogFilter

def peak():  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = sys.argv[1]
artifacts = Artifacts(folder.rpartition("/")[0])
logs = Logs(LogFiles(artifacts, folder), [1])
logs.read(Mark(), LogFilter(), 1)
before = peak()
found, mark, pages = [], Mark(), 0
while pages == 0 or mark.until:
    batch = logs.read(mark, LogFilter(search="needle"), 500)
    found += [each.line.message for each in batch.lines]
    mark, pages = batch.stop, pages + 1
assert found == [f"needle {n}" for n in range(1, 401)] * 2, len(found)
assert pages > 3, "one request looks through a part alone"
assert logs.read(logs.last(3, LogFilter(level="error")), LogFilter(level="error"), 5).lines == []
assert len(logs.read(logs.last(5000, LogFilter()), LogFilter(), 5000).lines) > 1000
log = whole(artifacts, folder, 1, "rank-1")
assert sum(len(piece) for piece in log.pieces(0, log.size)) == log.size > 100_000_000
print(peak() - before)
"""


def test_two_hundred_megabytes_are_read_in_bounded_memory(large_log):
    assert sum(file.stat().st_size for file in large_log.rglob("*.jsonl")) > 200_000_000
    read = subprocess.run([sys.executable, "-c", READ_ALL, large_log], capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert int(read.stdout) < 40_000_000


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
    positions = (3, [1], [1, "x"], [1, 2, 3], [1, -1], [None, 1], [1.5, 1], [True, 1])
    keys = ("driver", "0/driver", "x/driver", "1/")
    wrong = [*({"1/driver": position} for position in positions), *({key: [1, 1]} for key in keys)]
    passes = (
        [1, {}, "name", [1, {}, None], None, None, 0],
        [1, {}, None, [0, {}, None], None, None, 0],
        [1, {}, None, [1, {"1/driver": 3}, None], None, None, 0],
        [1, {}, None, [1, {}, "../../etc/passwd"], None, None, 0],
        [1, {}, None, [1, {}, None], [1, "driver", 1], None, 0],
        [1, {}, None, [1, {}, None], [1, "driver", 1, 1], ["x"], 0],
        [1, {}, None, [1, {}, None], None, None, -1],
        [1, {}, None, [1, {}, None], None, None],
    )
    for parts in ([], ["x"], [{}, {}], [0, {}], [1], [1, []], [1, {}, 3], *([1, read] for read in wrong), *passes):
        answer = api.get(f"/v1/jobs/{read.job_id}/logs", params={"cursor": paging.write_cursor(parts)})
        assert (answer.status_code, answer.json()["code"]) == (422, "parameter_invalid"), parts
    assert api.get(f"/v1/jobs/{read.job_id}/logs", params={"cursor": "nonsense"}).status_code == 422


def test_logs_outside_the_artifact_root_are_never_read(api, database, tmp_path):
    Writer(tmp_path / "elsewhere").write(1, "driver", 1, "secret")
    job_id = add_job(database, "running", artifact_uri=str(tmp_path / "elsewhere"), attempts=1)
    answer = api.get(f"/v1/jobs/{job_id}/logs")
    assert answer.status_code >= 400
    assert "secret" not in answer.text
