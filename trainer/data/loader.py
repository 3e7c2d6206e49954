"""Batches of augmented images with their masks, made ahead of the training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.augment import crop_boxes, flips
from trainer.data.decode import Unreadable, crop_resize
from trainer.data.sampler import batch_samples, mask_orders, permutation
from trainer.data.sources import Source
from trainer.errors import DataError
from trainer.spec.pretrain import PretrainSpec

AHEAD = 3
"""Batches in the making while one is trained on."""
CHUNK = 32
"""Images of one task: large enough to hide its cost, small enough to spread a batch over threads."""
STATISTICS_IMAGES = 2000
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    images: Tensor
    """(B, C, H, W) uint8."""
    orders: Tensor
    """(B, L) int64: each image's patches, the visible ones first."""


class Loader:
    """A rank's batches of any epoch, from any step on, with crops, flips and masks that depend on the sample alone."""

    def __init__(
        self, source: Source, positions: NDArray[np.int64], spec: PretrainSpec, rank: int, world: int, threads: int
    ) -> None:
        self._source, self._positions, self._spec = source, positions, spec
        self._rank, self._world, self._threads = rank, world, threads

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The epoch's batches from ``first_step`` on; raises `DataError` for an image that cannot be read any more."""
        batch = self._spec.optimization.global_batch_size
        steps = len(self._positions) // batch
        order = permutation(self._spec.seed, epoch, len(self._positions))
        with ThreadPoolExecutor(self._threads, thread_name_prefix="images") as pool:
            ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
            shares: deque[NDArray[np.int64]] = deque()
            try:
                for step in range(first_step, steps + AHEAD):
                    if step < steps:
                        samples = batch_samples(order, step, batch, self._rank, self._world)
                        parts = [samples[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
                        ahead.append([pool.submit(self._images, epoch, part) for part in parts])
                        shares.append(samples)
                    if step - first_step >= AHEAD - 1 or step >= steps:
                        if not ahead:
                            return
                        images = np.concatenate([future.result() for future in ahead.popleft()])
                        orders = mask_orders(self._spec.seed, epoch, shares.popleft(), self._spec.model.patches)
                        yield Batch(torch.from_numpy(images), torch.from_numpy(orders))
            finally:
                for futures in ahead:
                    for future in futures:
                        future.cancel()

    def _images(self, epoch: int, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Augmented images (b, C, H, W)."""
        spec, model = self._spec, self._spec.model
        pictures = [read(self._source, position) for position in self._positions[samples]]
        heights = np.array([picture.shape[0] for picture in pictures])
        widths = np.array([picture.shape[1] for picture in pictures])
        boxes = crop_boxes(spec.seed, epoch, samples, heights, widths, spec.augmentation.crop_scale)
        mirrored = flips(spec.seed, epoch, samples) & spec.augmentation.hflip
        out = np.empty((len(samples), model.in_chans, model.height, model.width), dtype=np.uint8)
        for i, (picture, box, flip) in enumerate(zip(pictures, boxes.tolist(), mirrored, strict=True)):
            out[i] = crop_resize(picture, tuple(box), (model.height, model.width), bool(flip)).transpose(2, 0, 1)
        return out


def read(source: Source, position: int) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of an image the index called readable; raises `DataError` where it no longer is."""
    try:
        return source.read(position)
    except (Unreadable, OSError) as error:
        raise DataError(
            f"{source.names[position]} of {source.uri} could be read when the job began and cannot now: {error}. "
            "Put it back, or take it away and retry from scratch"
        ) from error


def fixed_images(source: Source, positions: NDArray[np.int64], size: tuple[int, int]) -> Tensor:
    """Images (n, C, H, W) uint8 as evaluations see them: the largest central box of ``size``'s shape, resized."""
    height, width = size
    images = []
    for position in positions:
        pixels = read(source, position)
        tall, wide = pixels.shape[:2]
        scale = min(tall / height, wide / width)
        box_tall, box_wide = height * scale, width * scale
        left, top = (wide - box_wide) / 2, (tall - box_tall) / 2
        box = (left, top, min(left + box_wide, wide), min(top + box_tall, tall))
        images.append(crop_resize(pixels, box, size, flip=False).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images))


def channel_statistics(
    source: Source, positions: NDArray[np.int64], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel in 0..1: ImageNet's for three, else measured on up to 2,000 images."""
    if channels == len(IMAGENET_MEAN):
        return IMAGENET_MEAN, IMAGENET_STD
    chosen = positions[:: -(-len(positions) // STATISTICS_IMAGES)]
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    for position in chosen:
        values = read(source, position).reshape(-1, channels) / 255.0
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
        count += len(values)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))  # a constant channel (alpha) must not divide by 0
    return tuple(mean.tolist()), tuple(deviation.tolist())
