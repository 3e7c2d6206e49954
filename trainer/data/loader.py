"""Batches of augmented images with their masks, made ahead of the training step."""

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
from trainer.data.index import CHUNK
from trainer.data.sampler import batch_samples, mask_orders, permutation
from trainer.errors import TrainingError
from trainer.spec.pretrain import PretrainSpec

AHEAD: Final = 3
"""Batches in the making while one is trained on."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    images: Tensor
    """(B, C, H, W) uint8."""
    orders: Tensor
    """(B, L) int64: each image's patches, the visible ones first."""


@dataclass(frozen=True)
class Task:
    """Some of a batch's samples: large enough to hide a task's cost, small enough to spread a batch over cores."""

    epoch: int
    samples: NDArray[np.int64]


Made = tuple[Tensor, Tensor]
"""Images and orders of a task's samples."""


class Loader:
    """A rank's batches from any step on, with crops, flips and masks that depend on the sample alone.

    ``rows`` are the training images; a sample's id is its place among them. They are made in threads, or in
    ``resources.loader_processes`` processes: the same ones either way.
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
        self._maker = Maker(images, rows, spec)
        self._spec, self._rank, self._world, self._threads, self._pin = spec, rank, world, threads, pin
        self._parts = -(-(spec.optimization.global_batch_size // world) // CHUNK)

    def batches(self, first_step: int, steps: int) -> Generator[Batch]:
        """The batches of optimiser steps ``first_step`` to ``steps``, epoch after epoch.

        Raises `DataError` for an image that cannot be read any more, `StorageError` for a storage that is away.
        """
        tasks = self._tasks(first_step, steps)
        processes = int(self._spec.resources.loader_processes)
        made = self._in_processes(tasks, processes) if processes else self._in_threads(tasks)
        try:
            for _ in range(first_step, steps):
                images, orders = zip(*(next(made) for _ in range(self._parts)), strict=True)
                yield Batch(self._joined(images), self._joined(orders))
        finally:
            made.close()

    def _tasks(self, first_step: int, steps: int) -> Iterator[Task]:
        batch = self._spec.optimization.global_batch_size
        samples = len(self._maker.rows)
        per_epoch, order = samples // batch, np.zeros(0, dtype=np.int64)
        for step in range(first_step, steps):
            epoch, within = divmod(step, per_epoch)
            if within == 0 or step == first_step:
                order = permutation(self._spec.seed, epoch, samples)
            mine = batch_samples(order, within, batch, self._rank, self._world)
            for first in range(0, len(mine), CHUNK):
                yield Task(epoch, mine[first : first + CHUNK])

    def _in_threads(self, tasks: Iterator[Task]) -> Generator[Made]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="images") as pool:
            ahead: deque[Future[Made]] = deque()
            try:
                for task in tasks:
                    ahead.append(pool.submit(self._maker.make, task))
                    if len(ahead) > AHEAD * self._parts:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _in_processes(self, tasks: Iterator[Task], processes: int) -> Generator[Made]:
        context = multiprocessing.get_context("forkserver")  # a fork of this process would copy locks that threads hold
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            self._maker,
            sampler=_Queue(tasks),
            batch_size=None,
            num_workers=processes,
            prefetch_factor=max(2, -(-AHEAD * self._parts // processes)),
            multiprocessing_context=context,
        )
        for made in loader:
            if isinstance(made, TrainingError):
                raise made
            yield made

    def _joined(self, parts: tuple[Tensor, ...]) -> Tensor:
        """One tensor, in pinned memory where a GPU will fetch it."""
        length = sum(map(len, parts))
        out = torch.empty((length, *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=self._pin)
        return torch.cat(parts, out=out)


class Maker(Dataset[Any]):
    """Makes the images and masks of a task."""

    def __init__(self, images: Images, rows: NDArray[np.int64], spec: PretrainSpec) -> None:
        self.images, self.rows, self.spec = images, rows, spec

    def make(self, task: Task) -> Made:
        """Images (b, C, H, W) uint8 and orders (b, L) int64."""
        spec, model, index = self.spec, self.spec.model, self.images.index
        rows = self.rows[task.samples]
        heights, widths = index.heights[rows].astype(np.int64), index.widths[rows].astype(np.int64)
        boxes = crop_boxes(spec.seed, task.epoch, task.samples, heights, widths, spec.augmentation.crop_scale)
        mirrored = flips(spec.seed, task.epoch, task.samples) & spec.augmentation.hflip
        images = self.images.crops(rows, boxes, mirrored, (model.height, model.width))
        orders = mask_orders(spec.seed, task.epoch, task.samples, model.patches)
        return torch.from_numpy(images), torch.from_numpy(orders)

    def __getitem__(self, task: Task) -> Made | TrainingError:
        """In a process of its own: a typed error is handed over, where one raised would lose its type and its words."""
        try:
            return self.make(task)
        except TrainingError as error:
            return error


class _Queue:
    """What a `DataLoader` takes its tasks from, each once."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return self._tasks
