"""Reading an attempt's log chunks, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from service.adapters.storage import Artifacts
from service.jobs.repository import bad_cursor, read_cursor, write_cursor
from service.jobs.schemas import LogView, Page
from trainer.spec.names import log_folder


def read_logs(
    artifacts: Artifacts, folder: str, attempts: Sequence[int], source: str | None, cursor: str | None, limit: int
) -> Page[LogView]:
    """Lines by attempt, then source, then chunk. A chunk is small, and one at a time is in memory.

    The cursor names the bytes read of each source, so it stays good while the logs grow: at the end it is given again
    and later answers with what came since. Of a chunk only what is new is fetched, and nothing where it has not grown.
    """
    read: dict[str, list[int]] = _positions(cursor)
    items: list[LogView] = []
    for attempt, name, chunk, size in _chunks(artifacts, folder, attempts):
        key = f"{attempt}/{name}"
        at_chunk, at_byte = read.get(key, [1, 0])
        if (source and name != source) or chunk < at_chunk:
            continue
        first = at_byte if chunk == at_chunk else 0
        data = b""
        if size > first:
            data = artifacts.read(folder, f"{log_folder(attempt)}/{name}.{chunk:04d}.jsonl", first) or b""
        lines = data.split(b"\n")[:-1]  # what follows the last line end is still being written
        room = lines[: limit - len(items)]
        items += [LogView.model_validate_json(line[:-1] + b',"attempt":%d}' % attempt) for line in room]
        read[key] = [chunk, first + sum(len(line) + 1 for line in room)]
        if len(items) >= limit:
            break
    return Page[LogView](items=items, next_cursor=write_cursor([read]))


def _chunks(artifacts: Artifacts, folder: str, attempts: Sequence[int]) -> Iterator[tuple[int, str, int, int]]:
    """Attempt, source, number and bytes of every chunk, in order."""
    for attempt in attempts:
        for file, size in sorted(artifacts.sizes(folder, log_folder(attempt)).items()):
            name, _, rest = file.partition(".")
            number, _, ending = rest.partition(".")
            if ending == "jsonl" and number.isdecimal():
                yield attempt, name, int(number), size


def _positions(cursor: str | None) -> dict[str, list[int]]:
    if not cursor:
        return {}
    match read_cursor(cursor):
        case [dict(found)] if all(map(_is_position, found.values())):
            return found
    raise bad_cursor(cursor)


def _is_position(value: object) -> bool:
    """Whether this is a chunk's number and a number of bytes."""
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) and number >= 0 for number in value)
    )
