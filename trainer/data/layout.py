"""The layout of a dataset's folders: which are splits, which are classes, and which hold everything else."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile

from trainer.data.splits import SPLIT_WORD, SPLITS, Place, part_ending, place_of_folder, split_name, split_name_in_pair

Path = tuple[str, ...]
"""The names in the path of a folder of images that were not looked through yet."""
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


def layout_of(folders: Iterable[str]) -> Layout:
    """The layout of the folders that images are in.

    From the outermost folders, these are looked through: a folder that holds all others; datasets beside each other;
    splits; and within these again a folder that holds all others. The next folder is the class.
    """
    folders = list(folders)
    paths = _without_wrappers(folders)
    collections = _collections(paths)
    paths = _without(paths, collections)
    below = _below(paths)
    if copies := _copies(below):
        paths = _without(paths, copies)
        below = _below(paths)
    splits = _splits_among(below)
    places = {
        folder: _place(splits[path[0]], folder, path[1:])
        for folder, path in zip(folders, paths, strict=True)
        if path and path[0] in splits
    }
    if splits:
        paths = _without(paths, splits, {split for split in splits if below[split] == {split}})
        wrappers = len(_common(paths))
        paths = [path[wrappers:] for path in paths] if wrappers else paths
    for folder, path in zip(folders, paths, strict=True):
        if folder not in places and (place := _split_within(folder, path[1:])):
            places[folder] = place
    return Layout(
        classes={folder: path[0] if path else None for folder, path in zip(folders, paths, strict=True)},
        splits=places,
        classes_like_splits=tuple(sorted(top for top in below if split_name(top) and top not in splits)),
        collections=tuple(sorted(collections)),
    )


def _place(split: str, folder: str, rest: Path) -> Place:
    """The place of the split that is a folder above this one, where ``rest`` begins."""
    return place_of_folder(split, folder.rsplit("/", len(rest))[0])


def _tops(paths: Sequence[Path]) -> set[str]:
    return {path[0] for path in paths if path}


def _without(paths: Sequence[Path], folders: Container[str], twice: Container[str] = ()) -> Sequence[Path]:
    """The paths with these first folders looked through; those in ``twice`` hold only a folder of their own name."""
    if not folders:
        return paths
    return [path[1 + (path[0] in twice) :] if path and path[0] in folders else path for path in paths]


def _without_wrappers(folders: Sequence[str]) -> Sequence[Path]:
    """The paths below the folders that each hold all others, as far as none is a split.

    A folder that holds several splits is none itself, whatever its name is.
    """
    common = _common(_path(folder) for folder in folders)
    wrappers = list(takewhile(lambda name: not split_name(name), common))
    start = sum(len(name) + 1 for name in wrappers)
    paths = [_path(folder[start:]) for folder in folders]
    if len(wrappers) < len(common):
        inner = [path[1:] for path in paths]
        if len(set(_splits_among(_below(inner)).values())) > 1:
            return inner
    return paths


def _path(folder: str) -> Path:
    return tuple(folder.split("/")) if folder else ()


def _common(paths: Iterable[Path]) -> Path:
    """The names of the folders that each hold all others, the outermost first."""
    common: Path = ()
    forked = False
    for path in paths:
        length = min(len(path), len(common))
        if path[:length] != common[:length]:
            forked = True
            pairs = takewhile(lambda pair: pair[0] == pair[1], zip(common, path, strict=False))
            common = tuple(name for name, _ in pairs)
            if not common:
                break
        elif not forked and len(path) > length:
            common = path
    return common


def _below(paths: Sequence[Path]) -> Below:
    """What is in each of the first folders; nothing if none of them is named at all like a split."""
    tops = _tops(paths)
    if not any(map(SPLIT_WORD.search, tops)):
        return {}
    below: dict[str, set[str]] = {top: set() for top in tops}
    for path in paths:
        if len(path) > 1:
            below[path[0]].add(path[1])
    return below


# --- datasets beside each other ---------------------------------------------------------------------------------------


def _collections(paths: Sequence[Path]) -> set[str]:
    """The first folders, if they are datasets beside each other with the same classes; else none.

    Each has a split to train on, with two classes that another dataset, or another split of it, has too.
    """
    tops = _tops(paths)
    trained, held_out = _classes_of_datasets(paths)
    if trained.keys() != tops or any(map(split_name, tops)):
        return set()
    datasets = Counter(name for names in trained.values() for name in names)
    shared = [sum(datasets[name] > 1 or name in held_out[top] for name in names) for top, names in trained.items()]
    return tops if min(shared, default=0) > 1 else set()


def _classes_of_datasets(paths: Sequence[Path]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By the first folder: the names of folders in splits to train on that are in it, and those in its other splits."""
    trained: defaultdict[str, set[str]] = defaultdict(set)
    held_out: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths:
        found = split_name(path[1]) if len(path) > 2 else None
        if found:
            (trained if found[0] == "train" else held_out)[path[0]].add(path[2])
    return trained, held_out


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
        folder for folder in folders if (ending := part_ending(folder)) is not None and _digits_alike(ending) in endings
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


def _split_within(folder: str, path: Path) -> Place | None:
    """The split that a folder of a class has within it: ``path`` are the names below the class."""
    for depth, name in enumerate(path):
        split = SPLITS.get(name.lower())
        if split:
            return _place(split, folder, path[depth + 1 :])
    return None
