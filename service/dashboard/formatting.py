"""How the dashboard formats numbers, times and sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from markupsafe import Markup, escape

from service.client.tables import duration as elapsed
from service.client.tables import number as significant
from service.client.tables import size
from service.db.tables import now
from trainer.spec.text import visible

NOTHING: Final = "–"


def number(value: object) -> str:
    """Six significant digits, with an exponent below 1e-4 and from 1e6 on; integers with thousands separators."""
    if isinstance(value, bool) or value is None:
        return NOTHING if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ") if abs(value) < 10**6 else significant(value)
    return significant(value) if isinstance(value, float) else str(value)


def first_line(text: str, most: int = 120) -> str:
    """The first line that is not empty, cut where it is long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def full(value: object) -> str:
    """A value in full, for a tooltip."""
    return NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)


def duration(seconds: float | None) -> str:
    """Seconds in at most two units: `12 s`, `3 m 04 s`, `2 h 05 m`, `3 d 04 h`."""
    return NOTHING if seconds is None else elapsed(seconds)


def ago(moment: datetime) -> str:
    """The time since a moment, or until it, in one unit."""
    seconds = (now() - aware(moment)).total_seconds()
    length, unit = next(
        (each for each in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")) if abs(seconds) >= each[0]), (1, "s")
    )
    text = f"{abs(seconds) // length:.0f} {unit}"
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def aware(moment: datetime) -> datetime:
    """A moment with a time zone: UTC if it has none."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def iso(moment: datetime) -> str:
    return aware(moment).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(moment: datetime) -> str:
    """A moment in full, for a tooltip."""
    return aware(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.0%}"


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    """Seconds from a start to an end, or to now; None without a start."""
    return None if start is None else ((aware(end) if end else now()) - aware(start)).total_seconds()


def coded(text: str) -> Markup:
    """Escaped text, with what is between backticks as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 and index < len(parts) - 1 else escape(part)
        for index, part in enumerate(parts)
    )


def bdi(text: object) -> Markup:
    """Text of users or from outside, in an element of its own: marks of direction in it reorder nothing around it."""
    return Markup("<bdi>{}</bdi>").format(text)


FILTERS: Final[dict[str, Callable[..., object]]] = {
    "number": number,
    "first_line": first_line,
    "full": full,
    "duration": duration,
    "ago": ago,
    "iso": iso,
    "utc": utc,
    "percent": percent,
    "size": size,
    "coded": coded,
    "bdi": bdi,
    "visible": visible,
}
