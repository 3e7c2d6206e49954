"""Which part of the slow tests runs: ``RCMAE_SLOW_PART=2/4`` is the second of four; without it all of them do.

Each fault strikes some of the phases, the browser's tests run in every part, and of the others the files take turns.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

PART: Final = os.environ.get("RCMAE_SLOW_PART", "1/1")
NUMBER, PARTS = (int(word) for word in PART.split("/"))
if not 1 <= NUMBER <= PARTS:
    raise ValueError(f"RCMAE_SLOW_PART: {PART!r} is no part: write 1/4, 2/4, 3/4 or 4/4, or nothing for all slow tests")
IN_EVERY_PART: Final = ("tests/browser", "tests/faults/test_faults.py")


def chosen(number: int) -> bool:
    """Whether the one of that number, counted from 0, is in the part."""
    return number % PARTS == NUMBER - 1


def left_out(items: list[pytest.Item]) -> list[pytest.Item]:
    """Slow tests that another part runs."""
    slow = [item for item in items if item.get_closest_marker("slow") and not item.nodeid.startswith(IN_EVERY_PART)]
    files = sorted({_file(item) for item in slow})
    return [item for item in slow if not chosen(files.index(_file(item)))]


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
