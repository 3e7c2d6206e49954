"""A dataset's readable images as pixels: whole, cropped at random, or as evaluations see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.decode import decode, decode_crop
from trainer.data.index import Index
from trainer.data.inspections import CHUNK
from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.data.readers import Reader
from trainer.data.scale import Scale
from trainer.data.unreadable import Unreadable
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

    @contextmanager
    def _decodable(self, row: int) -> Iterator[None]:
        try:
            yield
        except Unreadable as error:
            raise DataError(
                f"{self.index.table.names[row]} of {self.uri} could be decoded when the index was made and cannot be "
                f"now: {error}. Restore the file, or remove it and retry from scratch"
            ) from error


def fixed_images(images: Images, rows: Rows, size: tuple[int, int], threads: int) -> Tensor:
    """Images (n, C, H, W) uint8 as evaluations see them: the largest central box of ``size``'s shape, resized."""
    selected = np.asarray(rows)
    boxes = _central_boxes(images.index.heights[selected], images.index.widths[selected], size)
    not_mirrored = np.zeros(CHUNK, dtype=np.bool_)

    def crop_chunk(first: int) -> NDArray[np.uint8]:
        chunk = slice(first, first + CHUNK)
        return images.crops(selected[chunk], boxes[chunk], not_mirrored[: len(selected[chunk])], size)

    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(crop_chunk, range(0, len(selected), CHUNK)))))


def _central_boxes(heights: NDArray[np.int32], widths: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int64]:
    """The largest central box with the shape of ``size`` in each image: left, top, right, bottom (n, 4) in pixels."""
    scale = np.minimum(heights / size[0], widths / size[1])
    tall, wide = (np.maximum(1, np.rint(side * scale)).astype(np.int64) for side in size)
    tall, wide = np.minimum(tall, heights), np.minimum(wide, widths)
    top, left = (heights - tall) // 2, (widths - wide) // 2
    return np.stack([left, top, left + wide, top + tall], axis=1)


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
