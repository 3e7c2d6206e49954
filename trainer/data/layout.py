"""The layout of a dataset's folders: which are splits, which are classes, and which hold everything else."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile

from trainer.data.splits import SPLITS, Place, part_ending, place_of_folder, split_name, split_name_in_pair

Below = Mapping[str, Set[str]]
"""By the name of a folder: the names of the folders directly in it."""


@dataclass(frozen=True)
class Layout:
    """What the names in the paths of a dataset's folders mean."""

    classes: dict[str, str | None]
    """By folder of images: the class of the images in it; None if it lies in no folder of a class."""
    splits: dict[str, Place]
    """By folder of images: the split that it is in, if it is in one."""
    classes_like_splits: tuple[str, ...]
    """Folders that are named like splits and taken for classes."""
    collections: tuple[str, ...]
    """Folders that are taken for datasets with the same classes, each with its splits, and not for classes."""


@dataclass(slots=True)
class _Path:
    """The path of a folder of images."""

    folder: str
    names: list[str]
    """The last names in it, but for those that were looked through at once."""
    depth: int = 0
    """How many of the names were looked through."""
    place: Place | None = None

    @property
    def top(self) -> str | None:
        """The first name that was not looked through yet."""
        return self.names[self.depth] if self.depth < len(self.names) else None

    def place_in(self, split: str, depth: int) -> Place:
        """The place of the split that is the folder with the name at this depth."""
        return place_of_folder(split, self.folder.rsplit("/", len(self.names) - 1 - depth)[0])


def layout_of(folders: Iterable[str]) -> Layout:
    """The layout of the folders that images are in.

    From the outermost folders, these are looked through: a folder that holds all others; datasets beside each other;
    splits; and within these again a folder that holds all others. The next folder is the class.
    """
    paths = _paths(list(folders))
    collections = _collections(paths)
    _look_through(paths, collections)
    _look_through(paths, _copies(_below(paths)))
    below = _below(paths)
    splits = _splits_among(below)
    for path in paths:
        top = path.top
        if top in splits:
            path.place = path.place_in(splits[top], path.depth)
            path.depth += 2 if below[top] == {top} else 1  # unpacked archives are folders in folders of the same name
    wrappers = len(_common(path.names[path.depth :] for path in paths)) if splits else 0
    for path in paths:
        path.depth += wrappers
        path.place = path.place or _split_within(path)
    return Layout(
        classes={path.folder: path.top for path in paths},
        splits={path.folder: path.place for path in paths if path.place},
        classes_like_splits=tuple(sorted(top for top in below if split_name(top) and top not in splits)),
        collections=tuple(sorted(collections)),
    )


def _paths(folders: Sequence[str]) -> list[_Path]:
    """The paths below the folders that each hold all others, as far as none is a split.

    A folder that holds several splits is none itself, whatever its name is.
    """
    common = _common(folder.split("/") if folder else [] for folder in folders)
    wrappers = list(takewhile(lambda name: not split_name(name), common))
    start = sum(len(name) + 1 for name in wrappers)
    paths = [_Path(folder, folder[start:].split("/") if len(folder) > start else []) for folder in folders]
    if len(wrappers) < len(common):
        inner = [_Path(path.folder, path.names, depth=1) for path in paths]
        if len(set(_splits_among(_below(inner)).values())) > 1:
            return inner
    return paths


def _common(paths: Iterable[list[str]]) -> list[str]:
    """The names of the folders that each hold all others, the outermost first."""
    common: list[str] = []
    forked = False
    for names in paths:
        length = min(len(names), len(common))
        if names[:length] != common[:length]:
            forked = True
            pairs = takewhile(lambda pair: pair[0] == pair[1], zip(common, names, strict=False))
            common = [name for name, _ in pairs]
            if not common:
                break
        elif not forked and len(names) > length:
            common = names
    return common


def _look_through(paths: Sequence[_Path], folders: set[str]) -> None:
    if folders:
        for path in paths:
            path.depth += path.top in folders


def _below(paths: Sequence[_Path]) -> Below:
    """The first folders that were not looked through; the sets are empty if none of them is named like a split."""
    tops = {top for path in paths if (top := path.top) is not None}
    if not any(split_name(top) or split_name_in_pair(top) for top in tops):
        return dict.fromkeys(tops, frozenset())
    below: dict[str, set[str]] = {top: set() for top in tops}
    for path in paths:
        if path.depth + 1 < len(path.names):
            below[path.names[path.depth]].add(path.names[path.depth + 1])
    return below


# --- datasets beside each other ---------------------------------------------------------------------------------------


def _collections(paths: Sequence[_Path]) -> set[str]:
    """The first folders, if they are datasets beside each other with the same classes; else none.

    Each has a split to train on, with two classes that another dataset, or another split of it, has too.
    """
    tops = {top for path in paths if (top := path.top) is not None}
    deep = [path for path in paths if path.depth + 2 < len(path.names)]
    trained: defaultdict[str, set[str]] = defaultdict(set)
    for path in deep:
        top, split, name = path.names[path.depth : path.depth + 3]
        if _is_train(split):
            trained[top].add(name)
    if any(map(split_name, tops)) or trained.keys() != tops:
        return set()
    held_out: defaultdict[str, set[str]] = defaultdict(set)
    for path in deep:
        top, split, name = path.names[path.depth : path.depth + 3]
        if split_name(split) and not _is_train(split):
            held_out[top].add(name)
    datasets = Counter(name for names in trained.values() for name in names)
    shared = {top: sum(datasets[name] > 1 or name in held_out[top] for name in names) for top, names in trained.items()}
    return tops if min(shared.values(), default=0) > 1 else set()


def _is_train(folder: str) -> bool:
    found = split_name(folder)
    return found is not None and found[0] == "train"


# --- splits -----------------------------------------------------------------------------------------------------------


def _splits_among(below: Below) -> dict[str, str]:
    """Those of neighbouring folders that are splits, and which.

    Some datasets have classes that are named like splits: a `train` among vehicles, a `test_tube`. So splits are

    - all folders, if all are named like splits, and one surely is `train`, or some hold the same folders, or it is one;
    - all folders, if the sure splits are `train` and another and hold classes, or if the others hold the same classes;
    - else the sure splits, unless these are `train` alone.
    """
    sure = _sure(below)
    parts = _parts(below, sure)
    others = below.keys() - sure.keys() - parts
    if _all_alike(below, sure, others) or _same_classes(below, sure, others):
        return {top: sure.get(top) or _split_or_itself(top) for top in below}
    return sure | {part: part for part in parts} if set(sure.values()) - {"train"} else {}


def _split_or_itself(folder: str) -> str:
    found = split_name(folder)
    return found[0] if found else folder


def _sure(folders: Iterable[str]) -> dict[str, str]:
    """Names that mean a split whatever is beside them: the word alone, or two splits with the same rest of the name.

    Words at the end of a name, or before a single capital letter, are taken for splits only if one of them is `train`.
    """
    named = {folder: found for folder in folders if (found := split_name(folder) or split_name_in_pair(folder))}
    by_rest: defaultdict[str, set[str]] = defaultdict(set)
    for split, rest in named.values():
        by_rest[_digits_alike(rest)].add(split)
    pairs = {rest for rest, splits in by_rest.items() if len(splits) > 1}
    return {
        folder: split
        for folder, (split, rest) in named.items()
        if not rest
        or (_digits_alike(rest) in pairs and (split_name(folder) or "train" in by_rest[_digits_alike(rest)]))
    }


def _digits_alike(rest: str) -> str:
    return re.sub(r"\d+", "0", rest)


def _parts(folders: Iterable[str], sure: Iterable[str]) -> set[str]:
    """Folders that are named like a part of the dataset, with the same ending as a sure split if they have one."""
    endings = {""} | {_digits_alike(found[1]) for folder in sure if (found := split_name(folder))}
    return {
        folder
        for folder in folders
        if (ending := part_ending(folder)) is not None and _digits_alike(ending) in endings
    }


def _all_alike(below: Below, sure: Mapping[str, str], others: Set[str]) -> bool:
    """Whether all folders are splits by their names alone; ``others`` are neither sure splits nor parts."""
    if not (sure or others) or not all(map(split_name, others)):
        return False
    folders = Counter(name for inner in below.values() for name in inner)
    return "train" in sure.values() or len(below) == 1 or sum(count > 1 for count in folders.values()) > 1


def _same_classes(below: Below, sure: Mapping[str, str], others: Set[str]) -> bool:
    """Whether all folders are splits by the classes in them; ``others`` are neither sure splits nor parts."""
    kinds = set(sure.values())
    classes = set().union(*(below[top] for top in sure))
    if not classes or classes & others:  # classes may lie beside a split that has the same ones
        return False
    if "train" in kinds and len(kinds) > 1:
        return True
    flat = any(not below[top] for top in others)
    return len(classes) > 1 and all(below[top] <= classes for top in others) and ("train" in kinds or not flat)


def _copies(below: Below) -> set[str]:
    """Folders beside several splits that hold only splits of the same names: some archives have the dataset twice."""
    sure = _sure(below)
    if len(set(sure.values())) < 2:
        return set()
    return {top for top, inner in below.items() if inner and top not in sure and inner <= sure.keys()}


def _split_within(path: _Path) -> Place | None:
    """The split that a folder of a class has within it."""
    for depth in range(path.depth + 1, len(path.names)):
        split = SPLITS.get(path.names[depth].lower())
        if split:
            return path.place_in(split, depth)
    return None
