"""The layout of a dataset's folders: which are splits, which are classes, and which hold everything else."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trainer.data.splits import SPLITS, Place, is_part, place_of_folder, split_name

Levels = Mapping[str, tuple[str, ...]]
"""By the path of a folder of images: the names in it that were not looked through yet."""


@dataclass(frozen=True)
class Layout:
    """What the names in the paths of a dataset's folders mean."""

    classes: dict[str, str | None]
    """By folder of images: the class of the images in it; None if it lies in no folder of a class."""
    splits: dict[str, Place]
    """By folder of images: the split that it is in, if it is in one."""
    classes_like_splits: tuple[str, ...]
    """Folders that are named like splits and taken for classes."""


def layout_of(folders: Iterable[str]) -> Layout:
    """The layout of the folders that images are in.

    A folder that holds all others is looked through, as are splits, and below them again a folder that holds all
    others: the next folder is the class.
    """
    paths = {folder: tuple(folder.split("/")) if folder else () for folder in folders}
    levels: Levels = _without_wrappers(paths)
    if _are_collections(levels):
        levels = {folder: names[1:] for folder, names in levels.items()}
    below = _below(levels)
    splits = _splits_among(below)
    places = {
        folder: place_of_folder(splits[names[0]], _upto(paths[folder], names[1:]))
        for folder, names in levels.items()
        if names and names[0] in splits
    }
    if splits:
        levels = {folder: names[1:] if folder in places else names for folder, names in levels.items()}
        levels = _without_wrappers(levels, splits_too=True)
    for folder in levels.keys() - places.keys():
        place = _split_within(paths[folder], levels[folder][1:])
        if place:
            places[folder] = place
    return Layout(
        classes={folder: names[0] if names else None for folder, names in levels.items()},
        splits=places,
        classes_like_splits=tuple(sorted(top for top in below if split_name(top) and top not in splits)),
    )


def _upto(path: tuple[str, ...], rest: tuple[str, ...]) -> str:
    """The folder of a path that ``rest`` begins below."""
    return "/".join(path[: len(path) - len(rest)])


def _without_wrappers(levels: Levels, *, splits_too: bool = False) -> Levels:
    """The levels below the folders that each hold all others; one that is named like a split only with ``splits_too``.

    A folder that holds several splits is none itself, whatever its name is.
    """
    while True:
        tops = {names[0] for names in levels.values() if names}
        inner = {folder: names[1:] for folder, names in levels.items()}
        if len(tops) != 1 or not (splits_too or not split_name(*tops) or _holds_splits(inner)):
            return levels
        levels = inner


def _holds_splits(levels: Levels) -> bool:
    return len(set(_splits_among(_below(levels)).values())) > 1


def _below(levels: Levels) -> dict[str, set[str]]:
    """The names of the folders directly in each of the first folders."""
    below: defaultdict[str, set[str]] = defaultdict(set)
    for names in levels.values():
        if names:
            below[names[0]].update(names[1:2])
    return dict(below)


def _are_collections(levels: Levels) -> bool:
    """Whether the first folders are no classes but datasets, each with splits in which the folders of classes are."""
    if any(split_name(top) for top in _below(levels)):
        return False
    splits = [split_name(names[1]) if len(names) > 1 else None for names in levels.values()]
    deep = [
        len(names) > 2 for names, split in zip(levels.values(), splits, strict=True) if split and split[0] == "train"
    ]
    return all(splits) and bool(deep) and all(deep)


def _splits_among(below: Mapping[str, set[str]]) -> dict[str, str]:
    """Those of neighbouring folders that are splits, and which; ``below`` are the names of the folders in each.

    Some datasets have classes that are named like splits: a `train` among vehicles, a `test_tube`.
    """
    alike = {top: found for top in below if (found := split_name(top))}
    others = [top for top in below if top not in alike and not is_part(top)]
    everything = {top: alike[top][0] if top in alike else top for top in below}
    if not alike:
        return {}
    if not others:
        return everything
    sure = _sure(alike)
    kinds = set(sure.values())
    classes = set().union(*(below[top] for top in sure))
    named = sure | {top: top for top in below if top not in alike and is_part(top)}
    if classes.intersection(others):  # classes beside a split that has the same ones
        return named
    if classes and all(below[top] <= classes for top in others) and ("train" in kinds or all(map(below.get, others))):
        return everything
    if classes and "train" in kinds and len(kinds) > 1:
        return everything
    return named if kinds - {"train"} else {}


def _sure(alike: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Names that mean a split among folders of other names: the word alone, or two splits with the same ending."""
    splits_by_ending: defaultdict[str, set[str]] = defaultdict(set)
    for split, ending in alike.values():
        splits_by_ending[_digits_alike(ending)].add(split)
    return {
        top: split
        for top, (split, ending) in alike.items()
        if not ending or len(splits_by_ending[_digits_alike(ending)]) > 1
    }


def _digits_alike(ending: str) -> str:
    return re.sub(r"\d+", "0", ending)


def _split_within(path: tuple[str, ...], rest: tuple[str, ...]) -> Place | None:
    """The split that a folder of a class has within it: ``rest`` are the names of the path below the class."""
    for depth in range(len(rest)):
        if rest[depth].lower() in SPLITS:
            return place_of_folder(SPLITS[rest[depth].lower()], _upto(path, rest[depth + 1 :]))
    return None
