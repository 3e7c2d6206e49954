"""Pieces of Markdown that all model cards are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping


def table(rows: Mapping[str, str]) -> str:
    """A table of properties."""
    cells = (f"| {name} | {value} |" for name, value in rows.items())
    return "\n".join(["| property | value |", "|---|---|", *cells]) + "\n"


def plain(text: str) -> str:
    """A text in one line of Markdown, where no character of it means anything."""
    return re.sub(r"([\\`*\[\]<>|#~&])", r"\\\1", re.sub(r"\s+", " ", text))
