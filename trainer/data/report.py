"""What an inspected dataset holds, in figures, with the settings that fit it and pictures of it."""

from __future__ import annotations

import io
import math
import posixpath
from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.decode import COLOURS, decode, fits_channels
from trainer.data.examine import Examined
from trainer.data.index import Index, make_index, readable_rows
from trainer.data.inspections import READABLE, Inspections
from trainer.data.labels import FROM_NOWHERE
from trainer.data.notices import Notice
from trainer.data.resize import resize
from trainer.data.scale import EIGHT_BIT, Scale, scale_of
from trainer.data.sources import UNREADABLE_SUFFIXES, suffix_of
from trainer.data.unreadable import Unreadable
from trainer.logger import logger
from trainer.protocol.inspection import CLASSES_LISTED, Inspection, Quartiles, Sizes, SplitFound, Unread, Warned
from trainer.spec.dataset import DatasetSpec
from trainer.spec.plan import held_out_images
from trainer.spec.pretrain import OptimizationSpec

PICTURES: Final = 24
COLUMNS: Final = 6
TILE: Final = 128
"""Pixels."""
GAP: Final = 4
BACKGROUND: Final = (255, 255, 255)
SHORT_SIDE_OF_PHOTOGRAPHS: Final = 192
"""From this median on, the presets' 224 pixels are proposed."""
BATCHES_PER_EPOCH: Final = 8
"""At least so many are proposed for small datasets."""


def make_report(dataset: DatasetSpec, examined: Examined, cores: int) -> Inspection:
    """Sum up a dataset that was examined with this many cores."""
    inspections, rows, table = examined.inspections, examined.rows, examined.table
    readable = rows[inspections.state[rows] == READABLE]
    channels = _proposed_channels(inspections, readable)
    index = make_index(table, rows, inspections, channels)
    scale, scale_notices = scale_of(None if dataset.value_range == "auto" else dataset.value_range, index.seen)
    counts = table.labels.counts()
    splits = {name: SplitFound(**split._asdict()) for name, split in examined.splits.items()}
    notices = [*table.notices, *scale_notices, *_notices(index, counts)]
    different = np.unique(inspections.digests[readable], axis=0) if len(readable) else readable
    pace = examined.decoded / examined.seconds / cores if examined.decoded and examined.seconds else None
    return Inspection(
        images=len(table),
        inspected=len(rows),
        decoded=examined.decoded,
        bytes=int(inspections.lengths[readable].sum()),
        formats=_counts(inspections.formats[readable]),
        sizes=_sizes(inspections, readable),
        channels=_counts(inspections.bands[readable]),
        fitting_channels=_fitting_channels(inspections, readable),
        bits=_bits(inspections.types[readable]),
        value_range=_value_range(index),
        scale=scale.ranges,
        classes=dict(Counter(counts).most_common(CLASSES_LISTED)),
        class_count=len(counts),
        labels_from=table.labels.source if counts else FROM_NOWHERE,
        unreadable=_unreadable(index),
        passed_over=examined.passed_over,
        duplicates=len(readable) - len(different),
        splits=splits,
        images_per_s_per_core=round(pace, 1) if pace else None,
        fingerprint=index.fingerprint if examined.all and len(index) else None,
        warnings=[Warned(code=notice.code, message=notice.message) for notice in notices],
        proposed=_proposed(
            dataset, index, scale if examined.all else None, splits, channels, len(table), labelled=bool(counts)
        ),
    )


def _counts(values: NDArray[Any]) -> dict[Any, int]:
    """How many there are of each value, the commonest first."""
    return dict(Counter(values.tolist()).most_common())


def _fitting_channels(inspections: Inspections, readable: NDArray[np.int64]) -> dict[int, int]:
    """The number of images that can be read with each number of channels, for each that fits any."""
    bands, pages = inspections.bands[readable], inspections.pages[readable]
    colour = inspections.colour[readable]
    fitting: dict[int, int] = {}
    for channels in sorted({*COLOURS, *bands.tolist(), *pages.tolist()}):
        images = int(fits_channels(bands, pages, colour, channels).sum())
        if images:
            fitting[channels] = images
    return fitting


def _value_range(index: Index) -> tuple[float, float] | None:
    finite = [each for each in index.seen if math.isfinite(each.low)]
    return (min(each.low for each in finite), max(each.high for each in finite)) if finite else None


def _bits(types: NDArray[np.str_]) -> dict[int, int]:
    bits: Counter[int] = Counter()
    for kind, count in _counts(types).items():
        bits[1 if kind == "bool" else 8 * np.dtype(kind).itemsize] += count
    return dict(bits.most_common())


def _sizes(inspections: Inspections, readable: NDArray[np.int64]) -> Sizes | None:
    if not len(readable):
        return None
    return Sizes(height=_quartiles(inspections.heights[readable]), width=_quartiles(inspections.widths[readable]))


def _quartiles(values: NDArray[np.int32]) -> Quartiles:
    least, lower, median, upper, greatest = np.quantile(values, (0, 0.25, 0.5, 0.75, 1), method="nearest").tolist()
    return Quartiles(least=least, lower_quartile=lower, median=median, upper_quartile=upper, greatest=greatest)


def _unreadable(index: Index) -> dict[str, Unread]:
    counts = Counter(image.reason for image in index.bad)
    first = {image.reason: image.name for image in reversed(index.bad)}
    return {reason: Unread(count=count, first=first[reason]) for reason, count in counts.most_common()}


def _notices(index: Index, counts: dict[str, int]) -> list[Notice]:
    notices = []
    if index.bad:
        total = len(index) + len(index.bad)
        text = f"{len(index.bad)} of {total} images cannot be read; the first is {index.bad[0].name}"
        notices.append(Notice("unreadable", f"{text} ({index.bad[0].reason})"))
    if len(counts) == 1:
        text = f"All labelled images are of one class, {next(iter(counts))}: no probe can be made"
        notices.append(Notice("one_class", text))
    return notices


# --- what fits --------------------------------------------------------------------------------------------------------


def _proposed_channels(inspections: Inspections, readable: NDArray[np.int64]) -> int:
    """The number of channels of most images; RGB for those of colours that are mixed with grey ones."""
    if not len(readable):
        return 3
    bands, pages = inspections.bands[readable], inspections.pages[readable]
    own = np.where(inspections.colour[readable], bands, np.maximum(bands, pages))
    channels, images = np.unique(own, return_counts=True)
    if not inspections.colour[readable].all():
        return int(channels[images.argmax()])
    return 1 if channels.max() <= 2 else 3


def _proposed(
    dataset: DatasetSpec,
    index: Index,
    scale: Scale | None,
    splits: dict[str, SplitFound],
    channels: int,
    images: int,
    *,
    labelled: bool,
) -> dict[str, Any]:
    """A piece of a pretraining spec that fits the data.

    ``scale`` is None for a sample of the images: others may have greater values, which its range would cut off.
    """
    section = _used(dataset, index, scale)
    evaluation: dict[str, Any] = {} if labelled else {"probes": []}
    train, held_out = splits.get("train"), splits.get("validation") or splits.get("test")
    trained = images - held_out_images(images)
    if train and held_out and _fits_below(dataset):
        evaluation = {"dataset": _of_split(section, held_out)} | evaluation
        section, trained = _of_split(section, train), train.images
    proposed: dict[str, Any] = {"dataset": section, "model": {"in_chans": channels, **_sizes_of_model(index)}}
    largest = max(1, trained // BATCHES_PER_EPOCH)
    if largest < OptimizationSpec().global_batch_size:
        proposed["optimization"] = {"global_batch_size": 2 ** (largest.bit_length() - 1)}
    return proposed | ({"evaluation": evaluation} if evaluation else {})


def _used(dataset: DatasetSpec, index: Index, scale: Scale | None) -> dict[str, Any]:
    """The section of the dataset, without images that cannot be read, and with the scale of deep ones."""
    section = dataset.model_dump(mode="json", exclude_defaults=True)
    unread = (image.name for image in index.bad if suffix_of(image.name) in UNREADABLE_SUFFIXES)
    kinds = sorted({posixpath.splitext(name)[1] for name in unread})  # as they are written: patterns mind the case
    if kinds:
        section["exclude"] = [*dataset.exclude, *(f"*{kind}" for kind in kinds)]
    types = [each.type for each in index.seen]
    if scale and len(types) == 1 and types[0] != EIGHT_BIT:
        section["value_range"] = list(scale.ranges[types[0]])
    return section


def _fits_below(dataset: DatasetSpec) -> bool:
    """Whether the spec's patterns choose the same images where its URI names one split: none is about folders."""
    return not dataset.include and not any("/" in pattern.rstrip("/") for pattern in dataset.exclude)


def _sizes_of_model(index: Index) -> dict[str, int]:
    """Sizes of images and patches; none for photographs, which the presets fit."""
    if not len(index):
        return {}
    side = int(np.median(np.minimum(index.heights, index.widths)))
    if side >= SHORT_SIDE_OF_PHOTOGRAPHS:
        return {}
    size = max(32, round(side / 32) * 32)
    return {"img_size": size, "patch_size": 4 if size <= 64 else 8 if size < 160 else 16}


def _of_split(section: dict[str, Any], split: SplitFound) -> dict[str, Any]:
    """The section `dataset` for only a split."""
    return {**section, "uri": split.uri, **({"include": list(split.include)} if split.include else {})}


# --- pictures ---------------------------------------------------------------------------------------------------------


def contact_sheet(examined: Examined, inspection: Inspection) -> bytes | None:
    """A PNG of up to 24 images, spread over the dataset, as training would see them; None if none can be read.

    Images of more than four channels show the first three, those of two the first.
    """
    channels, scale = inspection.proposed["model"]["in_chans"], Scale(inspection.scale)
    readable = readable_rows(examined.rows, examined.inspections, channels)
    count = min(PICTURES, len(readable))
    if not count:
        return None
    rows = readable[np.linspace(0, len(readable) - 1, count).round().astype(np.int64)]
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    sheet = Image.new("RGB", (columns * (TILE + GAP) - GAP, lines * (TILE + GAP) - GAP), BACKGROUND)
    for position, row in enumerate(rows):
        try:
            pixels = decode(examined.reader.fetch([int(row)])[0], channels, scale)
        except Unreadable as error:
            logger.warning("%s is left out of the picture: %s", examined.table.names[row], error)
            continue
        shown = pixels[:, :, :3] if channels >= 3 else pixels[:, :, :1]
        factor = TILE / max(shown.shape[:2])
        size = (max(1, round(shown.shape[0] * factor)), max(1, round(shown.shape[1] * factor)))
        tile = resize(shown, size, flip=False)
        image = Image.fromarray(tile if tile.shape[2] == 3 else tile[:, :, 0])
        left, top = position % columns * (TILE + GAP), position // columns * (TILE + GAP)
        sheet.paste(image.convert("RGB"), (left + (TILE - size[1]) // 2, top + (TILE - size[0]) // 2))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
