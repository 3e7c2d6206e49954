"""Which images a probe of the frozen backbone is fitted and scored on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import TrainingData
from trainer.data.images import Images
from trainer.data.labels import NOT_USED, UNLABELLED
from trainer.data.notices import Notice
from trainer.data.sampler import permutation

TRAIN_IMAGES: Final = 10_000
FIXED_SEED: Final = 2**31 - 1
"""The probe's images do not depend on the spec's seed, so that runs with different seeds compare."""
CLASSES_SHOWN: Final = 5
NO_LABELS: Final = (
    "sort its images into a folder for each class, add .cls members to its shards or a label column to its Parquet "
    "files, or set evaluation.probes to []"
)


class NoProbe(ValueError):
    """The data do not allow a probe, with the reason and what to do."""


@dataclass(frozen=True)
class ProbeImages:
    """Images with labels, of the classes that the training and the held-out images share."""

    classes: tuple[str, ...]
    train: NDArray[np.int64]
    """Rows of the training images."""
    train_labels: NDArray[np.int64]
    """(n,): index of each one's class in `classes`."""
    held_out: NDArray[np.int64]
    """Rows of the held-out images."""
    held_out_labels: NDArray[np.int64]
    notices: tuple[Notice, ...]


def probe_images(data: TrainingData) -> ProbeImages:
    """Choose a probe's images. Classes are matched by name; one that only one side has is left out on both.

    Raises `NoProbe` if fewer than two classes are left, or no held-out image of them.
    """
    for images in (data.images, data.held_out_images):
        if not images.labels.labelled:
            reason = next((notice.message for notice in images.notices if notice.code in NOT_USED), NO_LABELS)
            raise NoProbe(f"{images.uri} has no labels: {reason}")
    known, held_out_known = data.images.labels.counts(), data.held_out_images.labels.counts()
    classes = sorted(known.keys() & held_out_known.keys())
    if len(classes) < 2:
        raise NoProbe(_too_few(known, held_out_known, classes))
    order = data.train[permutation(FIXED_SEED, 0, len(data.train))]
    train, train_labels = of_classes(data.images, order, classes)
    train, train_labels = _first_of_each_class(train, train_labels)
    held_out, held_out_labels = of_classes(data.held_out_images, data.held_out, classes)
    trained = np.isin(held_out_labels, train_labels)
    held_out, held_out_labels = held_out[trained], held_out_labels[trained]
    if len(np.unique(train_labels)) < 2 or not len(held_out):
        raise NoProbe(
            f"{len(train)} labelled images to fit it on and {len(held_out)} to score it on are too few: add images, or "
            "name others in evaluation.dataset"
        )
    return ProbeImages(
        tuple(classes),
        train,
        train_labels,
        held_out,
        held_out_labels,
        one_sided(known, held_out_known, ("training", "held-out"), "the probes' score"),
    )


def of_classes(
    images: Images, rows: NDArray[np.int64], classes: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of the rows whose class is one of ``classes``, and its index there."""
    number = {name: label for label, name in enumerate(classes)}
    shared = np.array([number.get(name, UNLABELLED) for name in images.labels.classes] + [UNLABELLED], dtype=np.int64)
    labels = shared[images.labels.values[rows]]  # the last one is for rows without a label, whose value is -1
    return rows[labels != UNLABELLED], labels[labels != UNLABELLED]


def _first_of_each_class(
    rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As many rows as a probe is fitted on, in their order, with one of each class among them."""
    if len(rows) <= TRAIN_IMAGES:
        return rows, labels
    later = np.ones(len(rows), dtype=np.bool_)
    later[np.unique(labels, return_index=True)[1]] = False
    chosen = np.sort(np.argsort(later, kind="stable")[:TRAIN_IMAGES])
    return rows[chosen], labels[chosen]


def _too_few(known: dict[str, int], held_out_known: dict[str, int], classes: list[str]) -> str:
    if known == held_out_known:
        return f"all labelled images are of one class, {next(iter(known))}: a probe needs two"
    return (
        f"the training images have the classes {shown(known)} and the held-out images {shown(held_out_known)}: they "
        f"share {shown(classes) or 'none'}, and a probe needs two. Classes are compared by their names"
    )


def one_sided(
    known: dict[str, int], tested: dict[str, int], sides: tuple[str, str], purpose: str
) -> tuple[Notice, ...]:
    """A notice of the classes that only one of two ``sides`` has, which are left out of ``purpose``."""
    pairs = ((sides[0], known.keys() - tested.keys()), (sides[1], tested.keys() - known.keys()))
    texts = [f"{shown(sorted(names))} only among the {side} images" for side, names in pairs if names]
    if not texts:
        return ()
    return (Notice("classes_differ", f"Classes left out of {purpose}: {'; '.join(texts)}"),)


def shown(names: dict[str, int] | list[str]) -> str:
    """The first of some class names, and how many more there are."""
    some = ", ".join(list(names)[:CLASSES_SHOWN])
    return f"{some} and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else some
