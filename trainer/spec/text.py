"""Characters that text of users may not have: they change how a terminal or a page shows the text around them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Final

_LINES: Final = "\n\t"
"""Control characters that text of several lines may have."""
_MISLEADING: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # controls, of which ESC begins a command to a terminal
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, overrides and isolates of the direction of writing
    "\u2028\u2029"  # separators of lines and paragraphs
    "\ud800-\udfff]"  # halves of surrogate pairs, which no encoding has
)


def misleading(text: str, *, several_lines: bool = False) -> str | None:
    """What is wrong with a text, and what to do; None if nothing is."""
    for match in _MISLEADING.finditer(text):
        if not (several_lines and match[0] in _LINES):
            kind = unicodedata.name(match[0], "a control character")
            return f"contains U+{ord(match[0]):04X} ({kind}) at character {match.start() + 1}: remove it"
    return None


def misleading_texts(
    value: Any, several_lines: frozenset[str] = frozenset()
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The path, the text and the fault of each misleading text in a JSON value, names of fields included.

    Text of the fields that ``several_lines`` names may have line breaks and tabs.
    """
    pending: list[tuple[tuple[str, ...], Any]] = [((), value)] if isinstance(value, Mapping | list) else []
    while pending:
        path, each = pending.pop()
        if isinstance(each, Mapping):
            for name in each:
                if fault := misleading(name):
                    yield (*path, name), name, f"its name {fault}"
            pending += [((*path, name), inner) for name, inner in reversed(list(each.items()))]
        elif isinstance(each, list):
            pending += [((*path, str(index)), inner) for index, inner in reversed(list(enumerate(each)))]
        elif isinstance(each, str) and (fault := misleading(each, several_lines=path[-1] in several_lines)):
            yield path, each, fault


def visible(text: str) -> str:
    """A text in which misleading characters are written out, as ``\\x1b`` or ``\\u202e``; line breaks and tabs stay."""
    return _MISLEADING.sub(lambda match: match[0] if match[0] in _LINES else _escape(match[0]), text)


def visible_json(text: str) -> str:
    """Like `visible`, for JSON text, which stays the same JSON."""
    return _MISLEADING.sub(lambda match: match[0] if match[0] in _LINES else f"\\u{ord(match[0]):04x}", text)


def _escape(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
