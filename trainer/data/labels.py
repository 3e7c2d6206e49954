"""Labels: the class of each image, by name, and where the names come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from trainer.data.layout import Layout
from trainer.data.notices import Notice

UNLABELLED: Final = -1
FROM_FOLDERS: Final = "folders"
FROM_NOWHERE: Final = "none"

IDENTIFIERS_FROM: Final = 11
"""Fewer different labels are never taken for identifiers."""
FOLDERS_OF_IDENTIFIERS: Final = 100
"""Fewer folders are never taken for identifiers: people sort images into folders on purpose."""
SINGLE_IMAGES: Final = 0.9
"""The share of so many folders that must hold one image each for them to be identifiers."""
NAMES_SHOWN: Final = 20
"""Folders that a notice names."""

IDENTIFIERS: Final = "labels_are_identifiers"
NOT_CLASSES: Final = "folders_are_not_classes"
UNUSABLE: Final = "label_column_unusable"
NOT_USED: Final = frozenset({IDENTIFIERS, NOT_CLASSES, UNUSABLE})
"""Codes of the notices that say why labels are not used."""


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
        "looks like identifiers. Name labels in dataset.label_column: those are used whatever they hold"
    )
    return Labels.none(len(labels)), [Notice(IDENTIFIERS, message)]


# --- from the folders that the images are in --------------------------------------------------------------------------


def labels_of_folders(folders: Sequence[str], layout: Layout) -> tuple[Labels, list[Notice]]:
    """The folders as classes, if there are at least two. ``folders`` are each image's, ``layout`` is what they mean."""
    names = [layout.classes[folder] for folder in folders]
    unlabelled = names.count(None)
    labels = Labels.from_names(names, FROM_FOLDERS)
    sizes = list(labels.counts().values())
    if len(sizes) < 2:
        return Labels.none(len(names)), []
    if unlabelled > len(names) / 2:
        text = f"The folders are not taken for classes: {unlabelled} of {len(names)} images lie in none of them"
        return Labels.none(len(names)), [Notice(NOT_CLASSES, text)]
    if len(sizes) >= FOLDERS_OF_IDENTIFIERS and sizes.count(1) > SINGLE_IMAGES * len(sizes):
        text = (
            f"The folders are not taken for classes: {sizes.count(1)} of {len(sizes)} hold a single image, which looks "
            "like identifiers. Name the classes in a metadata.csv if there are any"
        )
        return Labels.none(len(names)), [Notice(IDENTIFIERS, text)]
    return labels, _layout_notices(layout)


def _layout_notices(layout: Layout) -> list[Notice]:
    """What was decided about folders that may mean something else."""
    notices = []
    if layout.collections:
        text = (
            f"{_some(layout.collections)} are taken for datasets, not classes: the folders in their splits are classes"
        )
        notices.append(Notice("folders_are_datasets", text))
    if layout.classes_like_splits:
        text = "Among folders of classes these are taken for classes too, and not for splits"
        notices.append(Notice("split_name_is_class", f"{text}: {_some(layout.classes_like_splits)}"))
    return notices


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
