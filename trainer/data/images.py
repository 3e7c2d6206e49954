"""A dataset's readable images as pixels: whole, cropped at random, or as evaluations see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import Raw, decode, decode_crop
from trainer.data.index import Index
from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.data.preprocessing import fitted
from trainer.data.readers import Reader
from trainer.data.scale import Scale
from trainer.data.unreadable import Unreadable, check_shape
from trainer.errors import DataError

STATISTICS_IMAGES: Final = 2000
"""The most images that the channel statistics are measured on."""
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

Rows = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Readable images by their row in the index. Safe for several threads; survives pickling.

    Its methods raise `DataError` for an image that can no longer be decoded, and `StorageError` for one whose bytes
    cannot be read.
    """

    uri: str
    index: Index
    reader: Reader
    channels: int
    scale: Scale
    """Which values of the images become black and white."""
    notices: tuple[Notice, ...] = ()
    """What the data's owner should know."""
    encoded: Reader | None = None
    """Reads the files of images that ``reader`` may keep decoded."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Labels:
        """The class of each row."""
        return self.index.table.labels

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """A whole image (H, W, C) uint8."""
        raw = self.reader.fetch([row])[0]
        with self._decodable(row):
            return decode(raw, self.channels, self.scale)

    def crops(
        self, rows: Rows, boxes: NDArray[np.int64], mirrored: NDArray[np.bool_], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Crops (n, C, h, w) uint8 of images: boxes (n, 4) in pixels, resized to ``size`` (h, w), some mirrored."""
        out = np.empty((len(rows), self.channels, *size), dtype=np.uint8)
        heights, widths = self.index.heights[rows].tolist(), self.index.widths[rows].tolist()
        raws = self.reader.fetch(rows)
        for i, (row, raw, box, flip) in enumerate(zip(rows, raws, boxes.tolist(), mirrored.tolist(), strict=True)):
            with self._decodable(int(row)):
                crop = decode_crop(raw, self.channels, (heights[i], widths[i]), tuple(box), size, flip, self.scale)
            cv2.split(crop, list(out[i]))  # into place, five times as fast as a transposing copy
        return out

    def fitted(self, rows: Rows, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Whole images (n, C, h, w) uint8, resized and cropped to ``size`` (h, w) as `preprocessing.fitted` does."""
        out = np.empty((len(rows), self.channels, *size), dtype=np.uint8)
        raws = self._encoded_luma(rows, self.reader.fetch(rows))
        for i, (row, raw) in enumerate(zip(rows, raws, strict=True)):
            with self._decodable(int(row)):
                pixels = decode(raw, self.channels, self.scale, luma_as_stored=False)
                check_shape(pixels.shape[:2], (self.index.heights[row], self.index.widths[row]))
                out[i] = fitted(pixels, size).transpose(2, 0, 1)
        return out

    def _encoded_luma(self, rows: Rows, raws: list[Raw]) -> list[Raw]:
        """The images, with grey ones that were decoded from JPEG files replaced by the files: their luma is computed
        otherwise for evaluations.
        """
        kept = [i for i, row in enumerate(rows) if self.index.jpeg[row] and isinstance(raws[i], np.ndarray)]
        if self.channels != 1 or self.encoded is None or not kept:
            return raws
        files = dict(zip(kept, self.encoded.fetch([int(rows[i]) for i in kept]), strict=True))
        return [files.get(i, raw) for i, raw in enumerate(raws)]

    @contextmanager
    def _decodable(self, row: int) -> Iterator[None]:
        try:
            yield
        except Unreadable as error:
            raise DataError(
                f"{self.index.table.names[row]} of {self.uri} could be decoded when the index was made and cannot be "
                f"now: {error}. Restore the file, or remove it and retry from scratch"
            ) from error


def channel_statistics(images: Images, rows: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel in 0..1: ImageNet's for three, or else measured on up to 2,000 images."""
    channels = images.channels
    if channels == len(IMAGENET_MEAN):
        return IMAGENET_MEAN, IMAGENET_STD
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    for row in rows[:: -(-len(rows) // STATISTICS_IMAGES)]:
        values = images.pixels(int(row)).reshape(-1, channels) / 255.0
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
        count += len(values)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))  # a constant channel (alpha) must not divide by 0
    return tuple(mean.tolist()), tuple(deviation.tolist())
