"""Patterns of names: `*`, `?`, `[0-9]`, `{000..127}`, `{a,b}`, and for paths `**`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import bracex
from wcmatch import glob

from trainer.errors import DataError

MAX_ALTERNATIVES: Final = 100_000
"""Names that the braces of a pattern may stand for."""
_FLAGS: Final = glob.GLOBSTAR | glob.MATCHBASE | glob.DOTGLOB | glob.CASE
_FOLDERS_REMEMBERED: Final = 65_536


def name_matcher(pattern: str, field: str) -> Callable[[str], bool]:
    """Whether a name matches a pattern. ``field`` is where the spec has it."""
    alternatives = _alternatives(pattern, field)
    exact = {each for each in alternatives if not any(character in each for character in "*?[")}
    compiled = glob.compile([each for each in alternatives if each not in exact], flags=_FLAGS, limit=0)
    return lambda name: name in exact or compiled.match(name)


def path_matcher(patterns: Sequence[str], field: str) -> Callable[[str], bool]:
    """Whether a path, or one of the folders in it, matches one of the patterns; without a slash also its name alone."""
    alternatives = [each for pattern in patterns for each in _alternatives(pattern.rstrip("/"), field)]
    compiled = glob.compile(alternatives, flags=_FLAGS, limit=0)

    @lru_cache(_FOLDERS_REMEMBERED)
    def folder_matches(folder: str) -> bool:
        return bool(folder) and (compiled.match(folder) or folder_matches(folder.rpartition("/")[0]))

    return lambda path: compiled.match(path) or folder_matches(path.rpartition("/")[0])


def _alternatives(pattern: str, field: str) -> list[str]:
    try:
        return bracex.expand(pattern, limit=MAX_ALTERNATIVES)
    except bracex.ExpansionLimitException as error:
        raise DataError(f"{field}: {pattern} stands for more than {MAX_ALTERNATIVES} names: write `*`") from error
