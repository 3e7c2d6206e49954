"""Positions in a job's logs, as log cursors and the ids of a stream's events encode them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Position = tuple[int, int]
"""A chunk's number and a byte offset in that chunk. Positions in one source's log sort in reading order."""
Positions = Mapping[str, Position]
"""By `<attempt>/<source>`."""
LineEnd = tuple[int, str, int, int]
"""An attempt, a source, and the position where one of its lines ends. They sort in reading order."""

START: Final[Position] = (0, 0)
SHORT: Final = 540
"""Characters of JSON that a mark may take before its positions are saved to a file instead. This keeps an event's id
below 1,000 characters: proxies refuse requests whose headers are longer than a few thousand."""


@dataclass(frozen=True)
class Extent:
    """A part of a job's logs: everything up to a position in each source.

    A log has up to a thousand sources, and a client cannot carry a position for each. So an extent may name a file of
    positions in the run's folder, with the few that differ from it.
    """

    since: int = 1
    """Attempts before this one are included whole."""
    changes: Positions = field(default_factory=dict)
    """Positions that differ from `saved`. Nothing is included of a source that neither names."""
    saved: str | None = None
    """Name of the file of positions."""

    @classmethod
    def of(cls, value: Any) -> Extent | None:
        """From JSON; None for anything that `as_json` does not return."""
        match value:
            case [int(since), dict(changes), *rest] if since >= 1 and _is_name_or_none(*rest):
                found = {key: _position(key, at) for key, at in changes.items()}
                known = {key: at for key, at in found.items() if at}
                return cls(since, known, *rest) if len(known) == len(found) else None
        return None

    def as_json(self) -> list[Any]:
        """As JSON."""
        return [self.since, self.changes, self.saved] if self.saved else [self.since, self.changes]


@dataclass(frozen=True)
class Mark:
    """A place in a job's logs.

    Logs are read in passes. A pass begins where the one before ended, at `read`. It goes `until` where each log ended
    when the pass began, source by source, so a single line says how far the pass has come. What is logged meanwhile is
    left to the next pass, however old its time stamps are.
    """

    read: Extent = field(default_factory=Extent)
    """What earlier passes have read."""
    until: Extent | None = None
    """Where the present pass ends; None between passes."""
    last: LineEnd | None = None
    """The last line that the present pass has read."""
    batch_end: LineEnd | None = None
    """Last line of the batch under way, whose lines are delivered by time; None where the batch ends the pass."""
    delivered: int = 0
    """Lines of that batch that were delivered; 0 where no batch is under way."""

    @classmethod
    def of(cls, value: Any) -> Mark | None:
        """From JSON; None for anything that `as_json` does not return."""
        match value:
            case [_, _] | [_, _, _]:
                read = Extent.of(value)
                return Mark(read) if read else None
            case [_, _, _, [_, dict(delta), _] as end, last, batch_end, int(delivered)] if delivered >= 0:
                lines = [_line(each) for each in (last, batch_end) if each is not None]
                read = Extent.of(value[:3])
                until = _end_from(read, end, delta) if read else None
                if read and until and None not in lines:
                    return Mark(read, until, _line(last), _line(batch_end), delivered)
        return None

    def as_json(self) -> list[Any]:
        """As JSON."""
        if self.until is None:
            return self.read.as_json()
        read, until = self.read, self.until
        delta = _difference(_comparable(read, until.since, until.saved), until.changes)
        end = [until.since, delta, until.saved]
        return [read.since, read.changes, read.saved, end, self.last, self.batch_end, self.delivered]

    @property
    def is_short(self) -> bool:
        """Whether it fits into a cursor or an event's id."""
        return len(json.dumps(self.as_json(), separators=(",", ":"))) <= SHORT


def attempt_of(key: str) -> int:
    return int(key.partition("/")[0])


def since(attempt: int, positions: Positions) -> Positions:
    """The positions of an attempt and of later ones."""
    return {key: at for key, at in positions.items() if attempt_of(key) >= attempt}


def _comparable(read: Extent, attempt: int, saved: str | None) -> Positions:
    """The changes that the end of a pass is encoded relative to."""
    return since(attempt, read.changes) if read.saved == saved else {}


def _difference(before: Positions, after: Positions) -> dict[str, Position | None]:
    """The changes that turn ``before`` into ``after``; None for a key to remove."""
    keys = sorted(before.keys() | after.keys())
    return {key: after.get(key) for key in keys if before.get(key) != after.get(key)}


def _end_from(read: Extent, end: list[Any], delta: dict[str, Any]) -> Extent | None:
    """The end of a pass, decoded from its JSON."""
    bare = Extent.of([end[0], {key: at for key, at in delta.items() if at is not None}, end[2]])
    if bare is None:
        return None
    before = _comparable(read, bare.since, bare.saved)
    kept = {key: at for key, at in before.items() if key not in delta}
    return Extent(bare.since, {**kept, **bare.changes}, bare.saved)


def _position(key: str, value: Any) -> Position | None:
    """A valid position of an attempt's source; None for anything else."""
    if re.fullmatch(r"[1-9][0-9]{0,8}/.+", key) and isinstance(value, list) and len(value) == 2:
        number, size = value
        if _is_count(number) and _is_count(size):
            return number, size
    return None


def _line(value: Any) -> LineEnd | None:
    match value:
        case [attempt, str(source), number, size] if all(_is_count(each) for each in (attempt, number, size)):
            return attempt, source, number, size
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_name_or_none(*rest: Any) -> bool:
    match rest:
        case () | (None,):
            return True
        case (str(name),):
            return re.fullmatch(r"[A-Za-z0-9_-]{16}", name) is not None
    return False
