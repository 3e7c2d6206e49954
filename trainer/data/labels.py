"""Labels: the class of each image, by name, and where the names come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from trainer.data.notices import Notice
from trainer.data.splits import SPLITS, is_split

UNLABELLED: Final = -1
FROM_FOLDERS: Final = "folders"
FROM_NOWHERE: Final = "none"

IDENTIFIERS_FROM: Final = 11
"""Fewer different labels are never taken for identifiers."""


@dataclass(frozen=True)
class Labels:
    """The class of each image of a dataset."""

    values: NDArray[np.int64]
    """(n,): index of the image's class in `classes`; -1 for an image without a label."""
    classes: tuple[str, ...]
    """Names of the classes; those of numbers are their digits."""
    source: str
    """`folders`, `column:NAME`, `cls`, `json`, `metadata.csv`, `metadata.jsonl`, or `none`."""

    @classmethod
    def none(cls, count: int) -> Self:
        """For images without labels."""
        return cls(np.full(count, UNLABELLED, dtype=np.int64), (), FROM_NOWHERE)

    @classmethod
    def from_names(cls, names: Sequence[str | None], source: str) -> Self:
        """Class names in alphabetical order; None is an image without a label."""
        classes = tuple(sorted({name for name in names if name is not None}))
        number: dict[str | None, int] = {name: label for label, name in enumerate(classes)} | {None: UNLABELLED}
        return cls(np.array([number[name] for name in names], dtype=np.int64), classes, source)

    @classmethod
    def from_numbers(cls, numbers: NDArray[np.int64], source: str, names: Sequence[str] = ()) -> Self:
        """Class numbers (n,), of which negative ones mean "no label"; ``names`` are those of the classes 0, 1 …"""
        labelled = numbers >= 0
        if names and numbers.max(initial=UNLABELLED) < len(names):
            return cls(np.where(labelled, numbers, UNLABELLED), tuple(names), source)
        present = np.unique(numbers[labelled])
        values = np.where(labelled, np.searchsorted(present, numbers), UNLABELLED).astype(np.int64)
        return cls(values, tuple(map(str, present.tolist())), source)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def labelled(self) -> int:
        """The number of images that have a label."""
        return int((self.values != UNLABELLED).sum())

    def select(self, rows: NDArray[np.int64]) -> Self:
        """The labels of only some images."""
        return replace(self, values=self.values[rows])

    def counts(self) -> dict[str, int]:
        """Images of each class that has any."""
        counted = np.bincount(self.values[self.values != UNLABELLED], minlength=len(self.classes)).tolist()
        return {name: count for name, count in zip(self.classes, counted, strict=True) if count}

    def names(self, rows: NDArray[np.int64]) -> NDArray[np.str_]:
        """Class names of labelled images."""
        return np.array(self.classes)[self.values[rows]]

    def __str__(self) -> str:
        if not self.labelled:
            return "no labels"
        return f"{len(self.counts())} classes from {self.source}, {self.labelled} of {len(self)} images labelled"


def incomplete_notice(labels: Labels, names: Sequence[str]) -> list[Notice]:
    """A notice if only some of the images have a label. ``names`` are the images'."""
    if labels.labelled in {0, len(labels)}:
        return []
    first = names[int(np.argmax(labels.values == UNLABELLED))]
    text = f"{len(labels) - labels.labelled} of {len(labels)} images have no label; the first is {first}"
    return [Notice("labels_incomplete", text)]


def without_identifiers(labels: Labels) -> tuple[Labels, list[Notice]]:
    """The labels, unless nearly each image has another one: then no labels, and the reason."""
    classes = len(labels.counts())
    if classes < IDENTIFIERS_FROM or classes <= labels.labelled / 2:
        return labels, []
    message = (
        f"The labels from {labels.source} are not used: {labels.labelled} images have {classes} different ones, which "
        "looks like identifiers. Name another dataset.label_column if there is one"
    )
    return Labels.none(len(labels)), [Notice("labels_are_identifiers", message)]


# --- from the folders in the images' paths ----------------------------------------------------------------------------


def labels_of_paths(paths: Sequence[str]) -> tuple[Labels, list[Notice]]:
    """The first folder in each image's path as its class, if there are at least two.

    A folder that holds all others is looked through, and so are folders named like splits, unless a `train` lies among
    folders that are none: then it is a class of its own, as in a dataset of vehicles.
    """
    folders = [tuple(path.split("/")[:-1]) for path in paths]
    wrapper = _common(folders)
    if wrapper:
        folders = [each[1:] for each in folders]
    tops = {each[0] for each in folders if each}
    splits = {top for top in tops if is_split(top)}
    notices = []
    if splits < tops and {SPLITS[split.lower()] for split in splits} == {"train"}:
        split = min(splits)
        text = f"The folder {split} lies among folders of classes, so it is taken for a class and not for a split"
        notices.append(Notice("split_name_is_class", text))
    else:
        folders = [each[1:] if each and each[0] in splits else each for each in folders]
        if not wrapper and _common(folders):
            folders = [each[1:] for each in folders]
    names = [each[0] if each else None for each in folders]
    unlabelled = names.count(None)
    if len(set(names) - {None}) < 2:
        return Labels.none(len(paths)), []
    if unlabelled > len(names) / 2:
        text = f"The folders are not taken for classes: {unlabelled} of {len(names)} images lie in none of them"
        return Labels.none(len(paths)), [Notice("folders_are_not_classes", text)]
    labels, doubts = without_identifiers(Labels.from_names(names, FROM_FOLDERS))
    return labels, notices + doubts


def _common(folders: Sequence[tuple[str, ...]]) -> str:
    """The folder that all images lie in, if it is not named like a split; or else an empty string."""
    tops = {each[0] if each else "" for each in folders}
    top = tops.pop() if len(tops) == 1 else ""
    return "" if is_split(top) else top
