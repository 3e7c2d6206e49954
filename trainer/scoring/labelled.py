"""The labelled images of an evaluation: those that classifiers are trained on, and those that they are scored on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import DatasetContext, named_section, open_images
from trainer.data.images import Images
from trainer.data.index import split
from trainer.data.labels import NOT_USED, Labels
from trainer.data.notices import Notice
from trainer.errors import DataError
from trainer.evaluation.probe_images import of_classes, one_sided, shown
from trainer.scoring.subjects import Subject
from trainer.spec.evaluate import EvaluateSpec

NO_LABELS: Final = (
    "sort its images into a folder for each class, add .cls members to its shards, or name the column of the labels in "
    "{}.label_column"
)


@dataclass(frozen=True)
class LabelledSet:
    """Images with the numbers of their classes."""

    images: Images
    rows: NDArray[np.int64]
    """Rows of ``images``, ascending."""
    labels: NDArray[np.int64]
    """(n,): the class of each row."""

    def take(self, chosen: NDArray[np.int64]) -> LabelledSet:
        """Only some of them: ``chosen`` are positions in `rows`."""
        return LabelledSet(self.images, self.rows[chosen], self.labels[chosen])

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class LabelledData:
    """What an evaluation trains its classifiers on, and what it scores them on."""

    classes: tuple[str, ...]
    train: LabelledSet
    test: LabelledSet
    notices: tuple[Notice, ...]
    """What was decided, and what the owner of the data should know."""


def open_labelled(spec: EvaluateSpec, subject: Subject, context: DatasetContext) -> LabelledData:
    """Open the datasets of an evaluation. Every rank calls this.

    Classes are matched by name, and images of a class that only one side has are left out. Raises `DataError` if there
    are no labels or too few images of two classes, and as `open_images`.
    """
    channels, size = subject.model.in_chans, subject.view.size
    images = open_images(spec.dataset, channels, size, context, subject.scale)
    notices = [replace(each, message=_in_our_fields(each.message)) for each in images.notices]
    _require_labels(images, "dataset")
    if spec.test is not None:
        with named_section("test"):
            test_images = open_images(spec.test, channels, size, context, images.scale)
        _require_labels(test_images, "test")
        if test_images.index.fingerprint == images.index.fingerprint:
            raise DataError(
                f"test: {test_images.uri} holds the very images of dataset, on which classifiers are trained: name "
                "others, or leave test out, and a share of the dataset is held out"
            )
        notices += [replace(each, message=f"test: {_in_our_fields(each.message)}") for each in test_images.notices]
        train_rows, test_rows = np.arange(len(images)), np.arange(len(test_images))
    else:
        test_images = images
        train_rows, test_rows = split(images.labels, by_class=True, wanted=max(1, round(spec.held_out * len(images))))
        test_rows = np.sort(test_rows)
    classes, notice = _classes(spec, images.labels.select(train_rows), test_images.labels.select(test_rows))
    train = LabelledSet(images, *of_classes(images, train_rows, classes))
    test = LabelledSet(test_images, *of_classes(test_images, test_rows, classes))
    notices += notice
    notices += [*_unlabelled(images, "dataset"), *(_unlabelled(test_images, "test") if spec.test else ())]
    notices += _seen_in_training(spec, subject, images, test)
    return LabelledData(tuple(classes), train, test, tuple(notices))


def _in_our_fields(message: str) -> str:
    """A dataset's notice with the name that an evaluation has for the other images: it was written for pretraining."""
    return message.replace("evaluation.dataset", "test")


def _require_labels(images: Images, field: str) -> None:
    if not images.labels.labelled:
        reason = next((each.message for each in images.notices if each.code in NOT_USED), NO_LABELS.format(field))
        raise DataError(f"{field}: {images.uri} has no labels: {reason}")


def _classes(spec: EvaluateSpec, train: Labels, test: Labels) -> tuple[list[str], tuple[Notice, ...]]:
    known, tested = train.counts(), test.counts()
    classes = sorted(known.keys() & tested.keys())
    if len(classes) < 2 and spec.test is None:
        raise DataError(
            f"held_out: a share of {spec.held_out:g} leaves {train.labelled} images of {len(known)} classes to train "
            f"on and {test.labelled} of {len(tested)} to test on, and both need images of the same two: add images, "
            "hold out another share, or name other images in test"
        )
    if len(classes) < 2:
        raise DataError(
            f"dataset: its images have the classes {shown(sorted(known))}, and those of the test "
            f"{shown(sorted(tested))}: they share {shown(classes) or 'none'}, and two are needed. Classes are "
            "compared by their names"
        )
    return classes, one_sided(known, tested, ("training", "test"), "the scores")


def _unlabelled(images: Images, field: str) -> Iterator[Notice]:
    missing = len(images) - images.labels.labelled
    if missing:
        yield Notice(
            "unlabelled_left_out", f"{field}: {missing} of {len(images)} images have no label and are left out"
        )


def _seen_in_training(spec: EvaluateSpec, subject: Subject, images: Images, test: LabelledSet) -> Iterator[Notice]:
    """A held-out share may hold images that the network was pretrained on, without their labels."""
    if spec.test is not None or subject.fingerprint != images.index.fingerprint:
        return
    never_trained = split(images.labels, by_class=subject.held_out_by_class)[1]
    seen = len(test) - int(np.isin(test.rows, never_trained).sum()) if subject.held_out else len(test)
    if seen:
        yield Notice(
            "test_seen_in_pretraining",
            f"The network was pretrained on {seen} of the {len(test)} test images, without their labels: name another "
            "dataset in test for a measurement on images that it has never seen",
        )
