"""Patterns of names: `*`, `?`, `[0-9]`, `{000..127}`, `{a,b}`, and for paths `**`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import bracex
from wcmatch import fnmatch, glob

from trainer.errors import DataError

MAX_ALTERNATIVES: Final = 100_000
"""Names that the braces of a pattern may stand for."""
_FLAGS: Final = glob.GLOBSTAR | glob.DOTGLOB | glob.CASE
_NAME_FLAGS: Final = fnmatch.DOTMATCH | fnmatch.CASE
_FROM_THE_TOP: Final = re.compile(r"^(\./)?/*")
_FOLDERS_REMEMBERED: Final = 65_536

Matcher = Callable[[str], bool]


def name_matcher(pattern: str, field: str) -> Matcher:
    """Whether a name matches a pattern. ``field`` is where the spec has it."""
    return _matcher_of_names(_alternatives(pattern, field))


def path_matcher(patterns: Sequence[str], field: str) -> Matcher:
    """Whether a path, or one of the folders in it, matches one of the patterns; without a slash also its name alone."""
    alternatives = [each for pattern in patterns for each in _alternatives(pattern.rstrip("/"), field)]
    matches_name = _matcher_of_names([each for each in alternatives if "/" not in each])
    # `/x` and `./x` are below the dataset's folder, where paths have no such beginning.
    of_paths = [_FROM_THE_TOP.sub("", each) for each in alternatives if "/" in each]
    matches_path = _joined(glob.translate(of_paths, flags=_FLAGS, limit=0)[0]) if of_paths else lambda _: False

    def matches(path: str) -> bool:
        return matches_name(path.rpartition("/")[2]) or matches_path(path)

    @lru_cache(_FOLDERS_REMEMBERED)
    def folder_matches(folder: str) -> bool:
        return bool(folder) and (matches(folder) or folder_matches(folder.rpartition("/")[0]))

    return lambda path: folder_matches(path.rpartition("/")[0]) or matches(path)


def _matcher_of_names(patterns: Sequence[str]) -> Matcher:
    """Whether a name, without a slash, is one of these or matches one of them."""
    exact = frozenset(each for each in patterns if not any(character in each for character in "*?["))
    others = [each for each in patterns if each not in exact]
    if not others:
        return exact.__contains__
    matches = _joined(fnmatch.translate(others, flags=_NAME_FLAGS, limit=0)[0])
    return lambda name: name in exact or matches(name)


def _joined(expressions: Sequence[str]) -> Matcher:
    """Whether a text matches one of these regular expressions: as one, it takes a third of the time."""
    match = re.compile("|".join(f"(?:{each})" for each in expressions)).match
    return lambda text: match(text) is not None


def _alternatives(pattern: str, field: str) -> list[str]:
    try:
        return bracex.expand(pattern, limit=MAX_ALTERNATIVES)
    except bracex.ExpansionLimitException as error:
        raise DataError(f"{field}: {pattern} stands for more than {MAX_ALTERNATIVES} names: write `*`") from error
