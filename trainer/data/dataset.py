"""A job's images: opened, checked, split into training and held-out ones, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.control import Agreement
from trainer.data.index import Index, build_index, split
from trainer.data.loader import channel_statistics
from trainer.data.sources import Source, open_source
from trainer.errors import DataError
from trainer.logs import logger
from trainer.spec.names import TAG_DATASET, TAG_IMAGES
from trainer.spec.pretrain import DatasetSpec, PretrainSpec

BAD_NAMES_LOGGED = 20


@dataclass(frozen=True)
class TrainingData:
    """Images of a job. Positions are those of readable images in their source."""

    source: Source
    train: NDArray[np.int64]
    """Positions to train on; a sample's id is its place in this array."""
    held_out_source: Source
    held_out: NDArray[np.int64]
    """Positions never trained on, in `held_out_source`."""
    images: int
    """Readable images of the dataset."""
    fingerprint: str
    mean: tuple[float, ...]
    """Of each channel, 0..1."""
    std: tuple[float, ...]

    def tags(self) -> dict[str, str]:
        return {TAG_DATASET: self.fingerprint, TAG_IMAGES: str(self.images)}


def open_training_data(spec: PretrainSpec, cache_dir: Path, threads: int, agree: Agreement, rank: int) -> TrainingData:
    """Open the spec's dataset; every rank calls it, the first reads every image once and tells the others.

    Raises `DataError` where there is nothing to read.
    """
    source, index = _open(spec.dataset, spec, cache_dir, threads, agree, rank)
    if spec.evaluation.dataset:
        held_out_source, other = _open(spec.evaluation.dataset, spec, cache_dir, threads, agree, rank)
        train, held_out = index.good, other.good
    else:
        positions, rest = split(len(index.good))
        train, held_out, held_out_source = index.good[positions], index.good[rest], source
    if spec.evaluation.probes != "auto" and spec.evaluation.probes and source.labels is None:
        raise DataError(
            f"evaluation.probes: {spec.dataset.uri} has no labels: sort its images into a folder for each class, "
            "or set evaluation.probes to []"
        )
    given = spec.augmentation
    if given.mean != "auto" and given.std != "auto":
        mean, std = given.mean, given.std
    else:
        mean, std = agree.share(channel_statistics(source, train, spec.model.in_chans) if rank == 0 else None)
    return TrainingData(source, train, held_out_source, held_out, len(index.good), index.fingerprint, mean, std)


def _open(
    dataset: DatasetSpec, spec: PretrainSpec, cache_dir: Path, threads: int, agree: Agreement, rank: int
) -> tuple[Source, Index]:
    source = open_source(dataset.uri, spec.model.in_chans)
    index = Index.from_json(agree.share(build_index(source, cache_dir, threads).to_json() if rank == 0 else None))
    if index.bad and rank == 0:
        for image in index.bad[:BAD_NAMES_LOGGED]:
            logger.warning("Left out, cannot be read: %s (%s)", image.name, image.reason)
        logger.warning("%d of %d files of %s cannot be read and are left out", len(index.bad), len(source), dataset.uri)
    return source, index
