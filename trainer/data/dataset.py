"""Opening a job's dataset: list, cache, index and split its images, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.decoded import keep_decoded
from trainer.data.examine import examine_digits, examine_files
from trainer.data.images import Images, channel_statistics
from trainer.data.index import SPLIT_SEED, Index, check_readable, make_index, split
from trainer.data.notices import Notice
from trainer.data.readers import Reader, open_reader
from trainer.data.sampler import permutation
from trainer.data.scale import Scale, scale_of
from trainer.data.selection import wanted_files
from trainer.data.sources import Files, find_files
from trainer.data.staging import stage
from trainer.errors import DataError
from trainer.logger import logger
from trainer.protocol.names import TAG_DATASET, TAG_IMAGES, TAG_LABELS, TAG_SCALE
from trainer.spec.dataset import DIGITS, DatasetSpec
from trainer.spec.pretrain import PretrainSpec


@dataclass(frozen=True)
class TrainingData:
    """A job's images, split into training and held-out ones."""

    images: Images
    train: NDArray[np.int64]
    """Rows of `images` to train on; a sample's id is its index in this array."""
    held_out_images: Images
    held_out: NDArray[np.int64]
    """Rows of `held_out_images`, which are never trained on."""
    mean: tuple[float, ...]
    """Of each channel, for values in 0..1."""
    std: tuple[float, ...]

    @property
    def fingerprint(self) -> str:
        """Identity of the training dataset, as `Index` defines it."""
        return self.images.index.fingerprint

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What the data's owner should know."""
        if self.held_out_images is self.images:
            return self.images.notices
        others = (replace(each, message=f"evaluation.dataset: {each.message}") for each in self.held_out_images.notices)
        return (*self.images.notices, *others)

    def tags(self) -> dict[str, str]:
        """Tags of the run that describe the data."""
        return {
            TAG_DATASET: self.fingerprint,
            TAG_IMAGES: str(len(self.images)),
            TAG_LABELS: str(self.images.labels),
            TAG_SCALE: str(self.images.scale),
        }


@dataclass(frozen=True)
class DatasetContext:
    """What one rank needs to open datasets."""

    cache: Cache
    threads: int
    agree: Agreement
    rank: int
    roots: tuple[str, ...] | None = None
    """Folders that datasets must lie in; None allows any location."""


def open_training_data(spec: PretrainSpec, context: DatasetContext, *, by_class: bool = True) -> TrainingData:
    """Open the spec's dataset. Every rank calls this; rank 0 inspects all images and shares the result.

    ``by_class`` is how the held-out images are chosen, see `split`. Raises `DataError` if there are no images or too
    many damaged ones, `StorageError` if files cannot be read.
    """
    size, channels = (spec.model.height, spec.model.width), spec.model.in_chans
    images = open_images(spec.dataset, channels, size, context)
    if spec.evaluation.dataset:
        with named_section("evaluation.dataset"):
            held_out_images = open_images(spec.evaluation.dataset, channels, size, context, images.scale)
        train = np.arange(len(images))
        held_out = permutation(SPLIT_SEED, 0, len(held_out_images))
    else:
        train, held_out = split(images.labels, by_class=by_class)
        held_out_images = images
        if not len(held_out):
            raise DataError(
                f"dataset.uri: {spec.dataset.uri} has {len(images)} image, and none is left to evaluate on: "
                "add images, or name others in evaluation.dataset"
            )
    # Shared even if the spec gives the values: no rank continues before all have their data, however long that takes.
    mean, std = context.agree.share(_statistics(spec, images, train) if context.rank == 0 else None)
    return TrainingData(images, train, held_out_images, held_out, mean, std)


def _statistics(
    spec: PretrainSpec, images: Images, train: NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    augmentation = spec.augmentation
    if augmentation.mean != "auto" and augmentation.std != "auto":
        return augmentation.mean, augmentation.std
    return channel_statistics(images, train)


@contextmanager
def named_section(section: str) -> Iterator[None]:
    """Inside, errors about a dataset name its fields as those of another section of the spec."""
    try:
        yield
    except DataError as error:
        message = str(error)
        if not message.startswith("dataset."):
            raise
        raise DataError(f"{section}.{message.removeprefix('dataset.')}") from error


def open_images(
    dataset: DatasetSpec, channels: int, size: tuple[int, int], context: DatasetContext, trained: Scale | None = None
) -> Images:
    """The readable images of a dataset. Every rank calls this.

    ``size`` (h, w) is that of the crops, ``trained`` the scale of the training images if these are others. Raises as
    `open_training_data`, with the fields as those of a spec's `dataset`.
    """
    if dataset.uri == DIGITS:
        examined = examine_digits(dataset, channels, context.threads)
        index = make_index(examined.table, examined.rows, examined.inspections, channels)
        return Images(DIGITS, index, examined.reader, channels, Scale())
    files = context.agree.share(find_files(dataset, context.roots) if context.rank == 0 else None)
    files = _stage_if_wanted(files, dataset, context)
    index = context.agree.share(_index(files, dataset, channels, context) if context.rank == 0 else None)
    wanted = None if dataset.value_range == "auto" else dataset.value_range
    scale, notices = scale_of(wanted, index.seen, trained)
    if context.rank == 0:
        check_readable(index, dataset.uri, dataset.max_bad_fraction)
        logger.info("%s: %d images, %s", dataset.uri, len(index), index.table.labels)
    reader = encoded = open_reader(files, index.table, dataset.image_column)
    if dataset.cache in {"auto", "ram"}:
        reader = _decode_if_possible(index, reader, dataset, channels, scale, size, context)
    return Images(dataset.uri, index, reader, channels, scale, (*index.table.notices, *notices), encoded)


def _stage_if_wanted(files: Files, dataset: DatasetSpec, context: DatasetContext) -> Files:
    """The files on this node's disk if `cache` says so and they fit; raises `DataError` if they must and do not."""
    if not (dataset.cache == "disk" or (dataset.cache == "auto" and files.remote)):
        return files
    staged = stage(files, context.cache, wanted_files(files, dataset))
    if isinstance(staged, Files):
        return staged
    if dataset.cache == "disk":
        raise DataError(f"dataset.cache: disk is not possible for {dataset.uri}: {staged}: make room, or use none")
    logger.warning(
        "Reading %s from its own storage in each epoch, because it cannot be cached: %s", dataset.uri, staged
    )
    return files


def _index(files: Files, dataset: DatasetSpec, channels: int, context: DatasetContext) -> Index:
    examined = examine_files(files, dataset, context.cache, context.threads)
    index = make_index(examined.table, examined.rows, examined.inspections, channels)
    counts = (len(index), len(index.bad), examined.decoded)
    logger.info("Index of %s: %d images can be read, %d cannot; decoded for it: %d", files.uri, *counts)
    return index


def _decode_if_possible(
    index: Index,
    reader: Reader,
    dataset: DatasetSpec,
    channels: int,
    scale: Scale,
    size: tuple[int, int],
    context: DatasetContext,
) -> Reader:
    """A reader of images kept decoded if they fit, or else ``reader``; raises `DataError` if they must and do not."""
    required = dataset.cache == "ram"
    decoded = keep_decoded(index, reader, channels, scale, size, context.cache, context.threads, required=required)
    if not isinstance(decoded, str):
        return decoded
    if required:
        raise DataError(f"dataset.cache: ram is not possible for {dataset.uri}: {decoded}. Use auto, disk or none")
    logger.info(
        "Decoding the images of %s in each epoch, because they cannot be kept decoded: %s", dataset.uri, decoded
    )
    return reader
