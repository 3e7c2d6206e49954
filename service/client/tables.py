"""Tables for the command line, and the formats of times, sizes and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import RenderableType
from rich.table import Table

from service.client.console import Text


def table(columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A plain table. Long cells are folded, never cut; the first column, which holds names, is folded last."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        grid.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        grid.add_row(*map(_plain, row))
    return grid


def fields(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*map(_plain, row))
    return grid


def _plain(cell: RenderableType) -> RenderableType:
    """Text is shown as it is: brackets in what users have written are not rich's markup."""
    return Text(cell) if isinstance(cell, str) else cell


def when(moment: datetime) -> str:
    """A time in the user's time zone."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """Two units: `12 s`, `3 m 04 s`, `2 h 05 m`, `3 d 04 h`."""
    left = max(0, round(seconds))
    for unit, smaller, length, part in (("d", "h", 86_400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if left >= length:
            return f"{left // length} {unit} {left % length // part:02} {smaller}"
    return f"{left} s"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(value: float) -> str:
    """Six significant digits, written with an exponent below 1e-4 and from 1e6 on."""
    return f"{value:.6g}"
