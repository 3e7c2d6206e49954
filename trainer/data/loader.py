"""Batches of augmented images with their masks, prepared ahead of the training step."""

from __future__ import annotations

import contextlib
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
from trainer.data.sampler import batch_samples, mask_orders, permutation, share_bounds
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


PreparedPart = tuple[Tensor, ...]
"""Tensors with a row for each of a part's samples."""


class Preparation(Dataset[Any]):
    """Prepares what training needs of the samples of a part of a batch."""

    def prepare(self, part: BatchPart) -> PreparedPart:
        """Called in threads and processes. Raises a `TrainingError`."""
        raise NotImplementedError

    def __getitem__(self, part: BatchPart) -> PreparedPart | TrainingError:
        """Called in a loader process. A typed error is returned: if raised, it would lose its type and message."""
        try:
            return self.prepare(part)
        except TrainingError as error:
            return error


@dataclass(frozen=True)
class Share:
    """Which samples of which batches one rank gets: an order for each epoch, cut into global batches."""

    samples: int
    """Of an epoch. Those left over after the last whole batch are dropped."""
    batch: int
    """Images of a global batch."""
    seed: int
    rank: int
    world: int
    together: int = 1
    """So many consecutive samples of a batch are always on the same rank."""

    @property
    def size(self) -> int:
        """This rank's images of a batch."""
        first, last = share_bounds(self.batch, self.rank, self.world, self.together)
        return last - first

    def parts(self, first_step: int, steps: int) -> Iterator[BatchPart]:
        """The parts of the batches of optimiser steps ``first_step`` to ``steps - 1``, in order."""
        per_epoch, order = self.samples // self.batch, np.zeros(0, dtype=np.int64)
        for step in range(first_step, steps):
            epoch, within = divmod(step, per_epoch)
            if within == 0 or step == first_step:
                order = permutation(self.seed, epoch, self.samples)
            share = batch_samples(order, within, self.batch, self.rank, self.world, self.together)
            for first in range(0, len(share), CHUNK):
                yield BatchPart(epoch, share[first : first + CHUNK])


class PreparedBatches:
    """A rank's shares of batches from any step on, prepared ahead in threads or in processes, with the same result."""

    def __init__(
        self, preparation: Preparation, share: Share, threads: int, processes: int = 0, *, pin: bool = False
    ) -> None:
        """With ``processes`` there are no threads; ``pin`` puts batches into pinned memory."""
        self._preparation, self._share = preparation, share
        self._threads, self._processes, self._pin = threads, processes, pin
        self._parts_per_batch = -(-share.size // CHUNK)

    def batches(self, first_step: int, steps: int) -> Generator[tuple[Tensor, ...]]:
        """What was prepared for the batches of optimiser steps ``first_step`` to ``steps - 1``, epoch after epoch.

        Raises `DataError` for an image that can no longer be decoded, `StorageError` if the storage is unreachable.
        """
        parts = self._share.parts(first_step, steps)
        prepared = self._in_processes(parts) if self._processes else self._in_threads(parts)
        try:
            for _ in range(first_step, steps):
                columns = zip(*(next(prepared) for _ in range(self._parts_per_batch)), strict=True)
                yield tuple(self._concatenate(column) for column in columns)
        finally:
            prepared.close()

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

    def _in_processes(self, parts: Iterator[BatchPart]) -> Generator[PreparedPart]:
        context = multiprocessing.get_context("forkserver")  # a fork of this process would copy locks held by threads
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            self._preparation,
            sampler=_PartSampler(parts),
            batch_size=None,
            num_workers=self._processes,
            prefetch_factor=max(2, -(-AHEAD * self._parts_per_batch // self._processes)),
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


class PartPreparation(Preparation):
    """Prepares images (b, C, H, W) uint8 and the orders (b, L) int64 of their patches."""

    def __init__(self, images: Images, rows: NDArray[np.int64], spec: PretrainSpec) -> None:
        self.images, self.rows, self.spec = images, rows, spec

    def prepare(self, part: BatchPart) -> PreparedPart:
        spec, model = self.spec, self.spec.model
        augmentation, size = spec.augmentation, (model.height, model.width)
        images = random_crops(
            self.images, self.rows, part, spec.seed, augmentation.crop_scale, augmentation.hflip, size
        )
        orders = mask_orders(spec.seed, part.epoch, part.samples, model.patches)
        return torch.from_numpy(images), torch.from_numpy(orders)


def random_crops(
    images: Images,
    rows: NDArray[np.int64],
    part: BatchPart,
    seed: int,
    crop_scale: tuple[float, float],
    hflip: bool,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Random crops (b, C, h, w) of a part's samples, of the given ``size`` (h, w), and some of them mirrored.

    A sample's id is its index in ``rows``, which are rows of ``images``.
    """
    chosen = rows[part.samples]
    heights, widths = (sides[chosen].astype(np.int64) for sides in (images.index.heights, images.index.widths))
    boxes = crop_boxes(seed, part.epoch, part.samples, heights, widths, crop_scale)
    mirrored = flips(seed, part.epoch, part.samples) & hflip
    return images.crops(chosen, boxes, mirrored, size)


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
        share = Share(len(rows), spec.optimization.global_batch_size, spec.seed, rank, world)
        processes = int(spec.resources.loader_processes)
        self._prepared = PreparedBatches(PartPreparation(images, rows, spec), share, threads, processes, pin=pin)

    def batches(self, first_step: int, steps: int) -> Generator[Batch]:
        """The batches of optimiser steps ``first_step`` to ``steps - 1``, epoch after epoch; raises as
        `PreparedBatches.batches`.
        """
        with contextlib.closing(self._prepared.batches(first_step, steps)) as prepared:
            for images, orders in prepared:
                yield Batch(images, orders)


class _PartSampler:
    """A `DataLoader`'s sampler, whose indices are the parts of batches, each once."""

    def __init__(self, parts: Iterator[BatchPart]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[BatchPart]:
        return self._parts
