"""Splits: parts of a dataset that are named like one, and must not be trained on together unawares."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from trainer.data.notices import Notice

SPLITS: Final = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip
"""Names of a dataset's splits, with the word that stands for them here."""
_FILE: Final = re.compile(rf"({'|'.join(sorted(SPLITS, key=len, reverse=True))})([-_.]|(?=\d)|$)", re.IGNORECASE)


class Split(NamedTuple):
    """A part of a dataset that is named like a split."""

    uri: str
    """A folder, a file, or a pattern of files."""
    images: int


def is_split(folder: str) -> bool:
    """Whether a folder is named like a split."""
    return folder.lower() in SPLITS


def find_splits(root: str, paths: Iterable[str], *, in_file_names: bool) -> dict[str, Split]:
    """The splits that images belong to; ``paths`` below the URI ``root`` name each image's file.

    Folders named like splits count, and with ``in_file_names`` the files too. If several are named like the same
    split, the one with the most images is given.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path, images in Counter(paths).items():
        found = _split_of(path, in_file_names=in_file_names)
        if found:
            counts[found[0]][found[1]] += images
    return {
        name: Split(f"{root}/{locations.most_common(1)[0][0]}", locations.total())
        for name, locations in sorted(counts.items())
    }


def _split_of(path: str, *, in_file_names: bool) -> tuple[str, str] | None:
    """The split that a path belongs to, and its place below the dataset's folder."""
    *folders, last = path.split("/")
    for depth, folder in enumerate(folders):
        if is_split(folder):
            return SPLITS[folder.lower()], "/".join(folders[: depth + 1])
    found = _FILE.match(last) if in_file_names else None
    if found is None:
        return None
    pattern = last if last.rpartition(".")[0] in {"", found[1]} else f"{found[0]}*"
    return SPLITS[found[1].lower()], "/".join([*folders, pattern])


def splits_notice(root: str, splits: Mapping[str, Split]) -> list[Notice]:
    """A notice if images of several splits are used together."""
    if len(splits) < 2:
        return []
    held_out = splits.get("validation") or splits.get("test")
    advice = "name one of them in dataset.uri, and another in evaluation.dataset"
    if "train" in splits and held_out:
        train = splits["train"].uri
        advice = f"to keep them apart, set dataset.uri: {train} and evaluation.dataset: {{uri: {held_out.uri}}}"
    text = f"The splits {', '.join(splits)} of {root} are used together: {advice}"
    return [Notice("splits_together", text)]
