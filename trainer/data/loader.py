"""Batches of augmented images with their masks, prepared ahead of the training step."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.data.augment import crop_boxes, flips
from trainer.data.images import Images
from trainer.data.inspections import CHUNK
from trainer.data.sampler import batch_samples, mask_orders, permutation
from trainer.errors import TrainingError
from trainer.spec.pretrain import PretrainSpec

AHEAD: Final = 3
"""Batches that are prepared while one is trained on."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    images: Tensor
    """(B, C, H, W) uint8."""
    orders: Tensor
    """(B, L) int64: a permutation of each image's patches, visible ones first."""


@dataclass(frozen=True)
class BatchPart:
    """Some of a batch's samples, which a thread or process prepares as one task.

    Large enough to hide the cost of a task, small enough to spread a batch over the cores.
    """

    epoch: int
    samples: NDArray[np.int64]


PreparedPart = tuple[Tensor, Tensor]
"""Images (b, C, H, W) uint8 and orders (b, L) int64 of a part's samples."""


class Loader:
    """A rank's batches from any step on, with crops, flips and masks that depend on (seed, epoch, sample) alone.

    Batches are prepared in threads or in ``resources.loader_processes`` processes, with the same result.
    """

    def __init__(
        self,
        images: Images,
        rows: NDArray[np.int64],
        spec: PretrainSpec,
        rank: int,
        world: int,
        threads: int,
        pin: bool,
    ) -> None:
        """``rows`` (n,) are the training images: a sample's id is its index there. ``pin`` puts batches into pinned
        memory.
        """
        self._preparation = PartPreparation(images, rows, spec)
        self._spec, self._rank, self._world, self._threads, self._pin = spec, rank, world, threads, pin
        self._parts_per_batch = -(-(spec.optimization.global_batch_size // world) // CHUNK)

    def batches(self, first_step: int, steps: int) -> Generator[Batch]:
        """The batches of optimiser steps ``first_step`` to ``steps - 1``, epoch after epoch.

        Raises `DataError` for an image that can no longer be decoded, `StorageError` if the storage is unreachable.
        """
        parts = self._parts(first_step, steps)
        processes = int(self._spec.resources.loader_processes)
        prepared = self._in_processes(parts, processes) if processes else self._in_threads(parts)
        try:
            for _ in range(first_step, steps):
                images, orders = zip(*(next(prepared) for _ in range(self._parts_per_batch)), strict=True)
                yield Batch(self._concatenate(images), self._concatenate(orders))
        finally:
            prepared.close()

    def _parts(self, first_step: int, steps: int) -> Iterator[BatchPart]:
        batch = self._spec.optimization.global_batch_size
        samples = len(self._preparation.rows)
        per_epoch, order = samples // batch, np.zeros(0, dtype=np.int64)
        for step in range(first_step, steps):
            epoch, within = divmod(step, per_epoch)
            if within == 0 or step == first_step:
                order = permutation(self._spec.seed, epoch, samples)
            share = batch_samples(order, within, batch, self._rank, self._world)
            for first in range(0, len(share), CHUNK):
                yield BatchPart(epoch, share[first : first + CHUNK])

    def _in_threads(self, parts: Iterator[BatchPart]) -> Generator[PreparedPart]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="images") as pool:
            ahead: deque[Future[PreparedPart]] = deque()
            try:
                for part in parts:
                    ahead.append(pool.submit(self._preparation.prepare, part))
                    if len(ahead) > AHEAD * self._parts_per_batch:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _in_processes(self, parts: Iterator[BatchPart], processes: int) -> Generator[PreparedPart]:
        context = multiprocessing.get_context("forkserver")  # a fork of this process would copy locks held by threads
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            self._preparation,
            sampler=_PartSampler(parts),
            batch_size=None,
            num_workers=processes,
            prefetch_factor=max(2, -(-AHEAD * self._parts_per_batch // processes)),
            multiprocessing_context=context,
        )
        for result in loader:
            if isinstance(result, TrainingError):
                raise result
            yield result

    def _concatenate(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """One tensor, in pinned memory if a GPU will fetch it."""
        length = sum(map(len, tensors))
        out = torch.empty((length, *tensors[0].shape[1:]), dtype=tensors[0].dtype, pin_memory=self._pin)
        return torch.cat(tensors, out=out)


class PartPreparation(Dataset[Any]):
    """Prepares the images and masks of a part of a batch."""

    def __init__(self, images: Images, rows: NDArray[np.int64], spec: PretrainSpec) -> None:
        self.images, self.rows, self.spec = images, rows, spec

    def prepare(self, part: BatchPart) -> PreparedPart:
        spec, model, index = self.spec, self.spec.model, self.images.index
        rows = self.rows[part.samples]
        heights, widths = index.heights[rows].astype(np.int64), index.widths[rows].astype(np.int64)
        boxes = crop_boxes(spec.seed, part.epoch, part.samples, heights, widths, spec.augmentation.crop_scale)
        mirrored = flips(spec.seed, part.epoch, part.samples) & spec.augmentation.hflip
        images = self.images.crops(rows, boxes, mirrored, (model.height, model.width))
        orders = mask_orders(spec.seed, part.epoch, part.samples, model.patches)
        return torch.from_numpy(images), torch.from_numpy(orders)

    def __getitem__(self, part: BatchPart) -> PreparedPart | TrainingError:
        """Called in a loader process. A typed error is returned: if raised, it would lose its type and message."""
        try:
            return self.prepare(part)
        except TrainingError as error:
            return error


class _PartSampler:
    """A `DataLoader`'s sampler, whose indices are the parts of batches, each once."""

    def __init__(self, parts: Iterator[BatchPart]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[BatchPart]:
        return self._parts
