"""Where a reader is in a job's logs: what a log cursor says, and the id of a stream's event."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Position = tuple[int, int]
"""A chunk's number, and bytes of that chunk. Positions in one source's log sort."""
Positions = Mapping[str, Position]
"""By `<attempt>/<source>`."""
LineEnd = tuple[int, str, int, int]
"""An attempt, a source, and the position where one of its lines ends. They sort in the order that lines are read."""

START: Final[Position] = (0, 0)
SHORT: Final = 540
"""Characters of JSON that a mark may take before positions are saved as a file instead. An event's id stays below
1,000 characters: proxies refuse requests whose headers are longer than a few thousand."""


@dataclass(frozen=True)
class Extent:
    """How much of a job's logs: a position for each source.

    A log has up to a thousand sources, and a client cannot carry a position for each. So an extent may name a file of
    positions in the run's folder, with the few that differ from it.
    """

    since: int = 1
    """Attempts before this one are included whole."""
    changes: Positions = field(default_factory=dict)
    """Positions that `saved` has not; of a source that neither has, nothing is included."""
    saved: str | None = None
    """Name of the file."""

    @classmethod
    def of(cls, value: Any) -> Extent | None:
        """From JSON; None for anything but what `parts` gives."""
        match value:
            case [int(since), dict(changes), *rest] if since >= 1 and _is_name_or_none(*rest):
                found = {key: _position(key, at) for key, at in changes.items()}
                known = {key: at for key, at in found.items() if at}
                return cls(since, known, *rest) if len(known) == len(found) else None
        return None

    def parts(self) -> list[Any]:
        """As JSON."""
        return [self.since, self.changes, self.saved] if self.saved else [self.since, self.changes]


@dataclass(frozen=True)
class Mark:
    """A place in a job's logs.

    Logs are read in passes. A pass begins where the one before ended, at `read`. It goes `until` where each log ended
    when the pass began, source by source, so a single line says how far the pass has come. What is logged meanwhile is
    for the next pass, however old its time stamps are.
    """

    read: Extent = field(default_factory=Extent)
    """What earlier passes have read."""
    until: Extent | None = None
    """Where the present pass ends; None between passes."""
    last: LineEnd | None = None
    """Up to where the present pass has come."""
    batch_end: LineEnd | None = None
    """Last line of the batch under way, whose lines are given by time; None where the pass ends with it."""
    given: int = 0
    """Lines of that batch that were given; 0 where none is under way."""

    @classmethod
    def of(cls, value: Any) -> Mark | None:
        """From JSON; None for anything but what `parts` gives."""
        match value:
            case [_, _] | [_, _, _]:
                read = Extent.of(value)
                return Mark(read) if read else None
            case [_, _, _, [_, dict(delta), _] as end, last, batch_end, int(given)] if given >= 0:
                lines = [_line(each) for each in (last, batch_end) if each is not None]
                read = Extent.of(value[:3])
                until = _applied(read, end, delta) if read else None
                if read and until and None not in lines:
                    return Mark(read, until, _line(last), _line(batch_end), given)
        return None

    def parts(self) -> list[Any]:
        """As JSON."""
        if self.until is None:
            return self.read.parts()
        read, until = self.read, self.until
        delta = _difference(_beside(read, until.since, until.saved), until.changes)
        end = [until.since, delta, until.saved]
        return [read.since, read.changes, read.saved, end, self.last, self.batch_end, self.given]

    @property
    def is_short(self) -> bool:
        """Whether a client can carry it."""
        return len(json.dumps(self.parts(), separators=(",", ":"))) <= SHORT


def attempt_of(key: str) -> int:
    return int(key.partition("/")[0])


def since(attempt: int, positions: Positions) -> Positions:
    """Those of an attempt and of later ones."""
    return {key: at for key, at in positions.items() if attempt_of(key) >= attempt}


def _beside(read: Extent, attempt: int, saved: str | None) -> Positions:
    """The changes that the end of a pass is written as a difference from."""
    return since(attempt, read.changes) if read.saved == saved else {}


def _difference(before: Positions, after: Positions) -> dict[str, Position | None]:
    """What makes ``after`` out of ``before``; None for what goes."""
    keys = sorted(before.keys() | after.keys())
    return {key: after.get(key) for key in keys if before.get(key) != after.get(key)}


def _applied(read: Extent, end: list[Any], delta: dict[str, Any]) -> Extent | None:
    """The end of a pass from its JSON."""
    bare = Extent.of([end[0], {key: at for key, at in delta.items() if at is not None}, end[2]])
    if bare is None:
        return None
    before = _beside(read, bare.since, bare.saved)
    kept = {key: at for key, at in before.items() if key not in delta}
    return Extent(bare.since, {**kept, **bare.changes}, bare.saved)


def _position(key: str, value: Any) -> Position | None:
    """A position of an attempt's source; None for anything else."""
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
