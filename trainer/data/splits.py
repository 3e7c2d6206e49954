"""Splits: parts of a dataset that are named like one, and must not be trained on together unawares."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from trainer.data.notices import Notice

SPLITS: Final = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validate": "validation",
    "validation": "validation", "eval": "validation", "evaluation": "validation", "dev": "validation", "test": "test",
    "testing": "test",
}  # fmt: skip
"""Names of a dataset's splits, with the word that stands for them here."""
PARTS: Final = ("extra", "unlabeled", "unlabelled")
"""Names that mean a part of a dataset only beside splits."""
_WORDS: Final = "|".join(sorted(SPLITS, key=len, reverse=True))
SPLIT_WORD: Final = re.compile(_WORDS, re.IGNORECASE)
"""What the name of each split has somewhere."""
_NAMED: Final = re.compile(rf"({_WORDS})([-_.\d].*|)", re.IGNORECASE | re.DOTALL)
_AT_THE_END: Final = re.compile(rf".*([-_](?:{_WORDS}))", re.IGNORECASE | re.DOTALL)
_BEFORE_A_LETTER: Final = re.compile(rf"((?i:{_WORDS}))([A-Z])")
_PART: Final = re.compile(rf"(?:{'|'.join(PARTS)})([-_.\d].*|)", re.IGNORECASE | re.DOTALL)
_NAMES_REMEMBERED: Final = 65_536
_SPECIAL_IN_BRACES: Final = frozenset("{},")


class Split(NamedTuple):
    """A part of a dataset that is named like a split."""

    uri: str
    """A folder, a file, or a pattern of either; the whole dataset's if none of these is the split alone."""
    images: int
    include: tuple[str, ...] = ()
    """Then the patterns of `dataset.include` that choose the split's images."""


class Place(NamedTuple):
    """Where images of a split are."""

    split: str
    folder: str | None
    """The folder that the file or folder of that name is in, relative to the dataset's; None within a shard."""
    name: str
    """The name of a folder, with a slash, or a pattern of files."""


@lru_cache(_NAMES_REMEMBERED)
def split_name(folder: str) -> tuple[str, str] | None:
    """The split that a folder is named like, and what follows the split's word, for example `2017`."""
    found = _NAMED.fullmatch(folder)
    return (SPLITS[found[1].lower()], found[2]) if found else None


@lru_cache(_NAMES_REMEMBERED)
def split_name_in_pair(folder: str) -> tuple[str, str] | None:
    """The split that a folder may be beside another one with the same rest of the name, and that rest.

    Such names are `seg_train` beside `seg_test` and `trainA` beside `testA`; `split_name` knows others.
    """
    last, first = _AT_THE_END.fullmatch(folder), _BEFORE_A_LETTER.fullmatch(folder)
    if last:
        return SPLITS[last[1][1:].lower()], folder[: last.start(1) + 1]
    return (SPLITS[first[1].lower()], first[2]) if first else None


@lru_cache(_NAMES_REMEMBERED)
def part_ending(folder: str) -> str | None:
    """What follows the word of a folder that is named like a part of the dataset and no split; None for other names."""
    found = _PART.fullmatch(folder)
    return found[1] if found else None


@lru_cache(_NAMES_REMEMBERED)
def place_of_folder(split: str, folder: str) -> Place:
    """The place of a split that is the folder of this path."""
    holder, _, name = folder.rpartition("/")
    return Place(split, holder, f"{name}/")


def place_of_file(path: str) -> Place | None:
    """The place of the split that a file is named like: by the first word of its name, or by the last one."""
    folder, name = posixpath.split(path)
    stem, suffix = posixpath.splitext(name)
    first, last = _NAMED.fullmatch(stem), _AT_THE_END.fullmatch(stem)
    if first:
        word, ending = first.groups()
        pattern = f"{word}[0-9]*" if ending[:1].isdigit() else f"{word}{ending[0]}*" if ending else name
        return Place(SPLITS[word.lower()], folder, pattern)
    return Place(SPLITS[last[1][1:].lower()], folder, f"*{last[1]}{suffix}") if last else None


def splits_of_places(uri: str, root: str, places: Mapping[Place, int]) -> dict[str, Split]:
    """The splits of a dataset of this URI, by the number of images in each place; places are relative to ``root``."""
    by_split: defaultdict[str, Counter[Place]] = defaultdict(Counter)
    for place, images in places.items():
        by_split[place.split][place] += images
    return {split: _split_in(uri, root, counts) for split, counts in sorted(by_split.items())}


def _split_in(uri: str, root: str, counts: Counter[Place]) -> Split:
    folders, names = {place.folder for place in counts}, sorted({place.name for place in counts})
    folder = folders.pop() if len(folders) == 1 else None
    if folder is None or (len(names) > 1 and any(_SPECIAL_IN_BRACES & set(name) for name in names)):
        return Split(uri, counts.total(), tuple(names))
    last = ",".join(name.rstrip("/") for name in names)
    within = posixpath.join(folder, f"{{{last}}}" if len(names) > 1 else last)
    return Split(f"{root}/{within}", counts.total())


def splits_notice(uri: str, splits: Mapping[str, Split], places: Mapping[Place, int], images: int) -> list[Notice]:
    """A notice if images of several splits are used together, or those of a held-out split with images in none.

    ``places`` are those of the splits, ``images`` is the number of all images.
    """
    mixed = sum(places.values()) < images
    if not splits or (len(splits) == 1 and ("train" in splits or not mixed)):
        return []
    held_out = splits.get("validation") or splits.get("test")
    advice = "name one of them in dataset.uri, and another in evaluation.dataset"
    if held_out and "train" in splits:
        chosen, other = _fields(splits["train"], "dataset."), _fields(held_out)
        advice = f"to keep them apart, set {chosen} and evaluation.dataset: {{{other}}}"
    elif held_out and mixed:
        chosen, other = f"dataset.exclude: {_listed(sorted({place.name for place in places}))}", _fields(held_out)
        advice = f"to keep them apart, set {chosen} and evaluation.dataset: {{{other}}}"
    rest = "" if "train" in splits or not mixed else " with images in none"
    text = f"The splits {', '.join(splits)}" if len(splits) > 1 else f"The split {next(iter(splits))}"
    verb = "are" if len(splits) > 1 else "is"
    return [Notice("splits_together", f"{text} of {uri} {verb} used together{rest}: {advice}")]


def _fields(split: Split, section: str = "") -> str:
    """The fields of a dataset's section that choose the split."""
    return f"{section}uri: {split.uri}" + (f", {section}include: {_listed(split.include)}" if split.include else "")


def _listed(patterns: Sequence[str]) -> str:
    return json.dumps(patterns, ensure_ascii=False)
