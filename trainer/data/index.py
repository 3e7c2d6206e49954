"""The index of a dataset: the images that a job uses, with their sizes, and a fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import fits_channels, misfit_reason
from trainer.data.inspections import READABLE, UNREADABLE, Inspections
from trainer.data.labels import Labels
from trainer.data.sampler import SPLIT, hash64
from trainer.data.scale import Seen
from trainer.data.table import Table
from trainer.errors import DataError
from trainer.logger import logger
from trainer.spec.plan import held_out_images

SPLIT_SEED: Final = 0
"""The held-out images do not depend on the spec's seed: runs with other seeds are measured on the same ones."""
BAD_NAMES_LOGGED: Final = 20
REASONS_SHOWN: Final = 3


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Index:
    """The readable images of a dataset, whatever its format."""

    table: Table
    """Where they are; all other arrays have the same rows."""
    heights: NDArray[np.int32]
    """Pixels, of the upright image."""
    widths: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """Bytes of each encoded image; 0 for one that is stored as pixels."""
    jpeg: NDArray[np.bool_]
    """Which ones are JPEG files."""
    bad: tuple[BadImage, ...]
    seen: tuple[Seen, ...]
    """The values of the readable images, by their type."""
    fingerprint: str
    """Identity of the data: sha256 over the readable images' bytes in their order. The same images in a folder, in tars
    or in Parquet, on a disk or in S3, have the same fingerprint.
    """

    def __len__(self) -> int:
        return len(self.table)


def make_index(table: Table, rows: NDArray[np.int64], inspections: Inspections, channels: int) -> Index:
    """The index of those of the rows, all inspected, that can be read with this many channels."""
    good = readable_rows(rows, inspections, channels)
    misfits = np.setdiff1d(rows[inspections.state[rows] == READABLE], good)
    reasons = {row: misfit_reason(inspections.facts(row), channels) for row in misfits.tolist()}
    reasons |= {row: inspections.reasons[row] for row in rows[inspections.state[rows] == UNREADABLE].tolist()}
    bad = tuple(BadImage(table.names[row], reasons[row]) for row in sorted(reasons))
    return Index(
        table=table.select(good),
        heights=inspections.heights[good],
        widths=inspections.widths[good],
        lengths=inspections.lengths[good],
        jpeg=inspections.formats[good] == "JPEG",
        bad=bad,
        seen=_seen(good, inspections, channels),
        fingerprint=hashlib.sha256(inspections.digests[good].tobytes()).hexdigest(),
    )


def _seen(rows: NDArray[np.int64], inspections: Inspections, channels: int) -> tuple[Seen, ...]:
    """The values that these images have when they are read with this many channels, by their type."""
    types, pages = inspections.types[rows], inspections.pages[rows]
    stacked = (pages > 1) & (pages == channels)
    lows = np.where(stacked, inspections.stack_lows[rows], inspections.lows[rows])
    highs = np.where(stacked, inspections.stack_highs[rows], inspections.highs[rows])
    seen = []
    for kind in np.unique(types).tolist():
        low, high = (values[(types == kind) & np.isfinite(values)] for values in (lows, highs))
        found = (float(low.min()), float(high.max())) if len(low) else (float("nan"), float("nan"))
        seen.append(Seen(kind, int((types == kind).sum()), *found))
    return tuple(seen)


def readable_rows(rows: NDArray[np.int64], inspections: Inspections, channels: int) -> NDArray[np.int64]:
    """Those of the rows whose images can be read with this many channels."""
    readable = rows[inspections.state[rows] == READABLE]
    facts = (inspections.bands[readable], inspections.pages[readable], inspections.colour[readable])
    fitting: NDArray[np.int64] = readable[fits_channels(*facts, channels)]
    return fitting


def check_readable(index: Index, uri: str, max_bad_fraction: float) -> None:
    """Name the unreadable images in the log. Raises `DataError` if they are too many, or all."""
    total = len(index) + len(index.bad)
    for image in index.bad[:BAD_NAMES_LOGGED]:
        logger.warning("Left out because it cannot be read: %s (%s)", image.name, image.reason)
    if index.bad:
        logger.warning("%d of %d images of %s cannot be read and are left out", len(index.bad), total, uri)
    if not len(index):
        raise DataError(f"dataset.uri: none of the {total} images of {uri} can be read: {_reasons(index)}")
    if len(index.bad) > max_bad_fraction * total:
        raise DataError(
            f"dataset.max_bad_fraction: {len(index.bad)} of {total} images of {uri} cannot be read "
            f"({len(index.bad) / total:.1%}, {max_bad_fraction:.1%} are allowed): {_reasons(index)}. "
            "Repair or remove the images that the log names, or allow more"
        )


def _reasons(index: Index) -> str:
    """The commonest reasons, with the number of images and the first of them."""
    counts = Counter(image.reason for image in index.bad)
    first = {image.reason: image.name for image in reversed(index.bad)}
    return "; ".join(
        f"{count} of them: {reason}; the first is {first[reason]}"
        for reason, count in counts.most_common(REASONS_SHOWN)
    )


def split(labels: Labels, *, by_class: bool, wanted: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the index to train on, ascending, and held-out rows, in a fixed random order; together all images.

    ``by_class`` holds out the same share of each class, as nearly as whole images allow, and at least one image if
    there are two; without it, as earlier versions did, a random share of all. ``wanted`` is how many are held out, by
    default as many as training holds out.
    """
    images = len(labels)
    order = np.argsort(hash64(SPLIT_SEED, 0, np.arange(images), SPLIT), kind="stable")
    if wanted is None:
        wanted = held_out_images(images, at_least_one=by_class)
    if by_class and labels.labelled:
        chosen = np.isin(order, _by_class(order, labels.values, wanted))
    else:
        chosen = np.arange(images) < wanted
    return np.sort(order[~chosen]), order[chosen]


def _by_class(order: NDArray[np.int64], classes: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """``wanted`` rows with each class's share of them: the first rows of the class in ``order``.

    Whole images go to the classes with the largest remainders. A class keeps at least one image to train on.
    """
    numbers, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    shares = counts * (wanted / len(classes))
    take = np.floor(shares).astype(np.int64)
    by_remainder = np.argsort(take - shares, kind="stable")
    for group in np.resize(by_remainder, len(numbers) + wanted):
        if take.sum() >= wanted:
            break
        take[group] += take[group] < counts[group] - 1
    by_class = order[np.argsort(inverse[order], kind="stable")]
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_class[rank < np.repeat(take, counts)]
