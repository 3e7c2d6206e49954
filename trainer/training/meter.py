"""The losses of the latest step, whether every loss was finite, and the rates since the last log entry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import LossNotFinite
from trainer.spec import metric_keys
from trainer.spec.plan import Schedule


@dataclass(frozen=True)
class StepReport:
    """The results of one optimiser step, and the settings it used."""

    losses: Tensor
    """(n,): the total first, then its parts."""
    grad_norm: Tensor | None
    lr: float
    momentum: float | None = None
    """The teacher's."""


class Meter:
    """Collects step reports. It reads tensors, which waits for a GPU, only when somebody needs the numbers."""

    def __init__(
        self, losses: Sequence[str], batch: int, schedule: Schedule, world: int, device: torch.device, advice: str
    ) -> None:
        """``losses`` are the metric keys of a report's first losses, ``batch`` the images of a step over all ranks.

        ``advice`` says what to do where a loss is not finite.
        """
        self._losses, self._batch, self._schedule = tuple(losses), batch, schedule
        self._world, self._advice = world, advice
        self._latest = StepReport(torch.zeros(len(self._losses), device=device), None, 0.0)
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._steps, self._waited, self._paused = 0, 0.0, 0.0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent inside as waiting for the data of one step."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside from training time."""
        before = time.perf_counter()
        yield
        self._paused += time.perf_counter() - before

    def add(self, report: StepReport) -> None:
        """Take in the report of a step."""
        self._latest = report
        self._finite &= torch.isfinite(report.losses[0])

    def check(self, step: int, saved_at: int | None) -> None:
        """Raise `LossNotFinite` on every rank if any rank had such a loss; every rank calls this.

        It runs before each checkpoint, so that no checkpoint holds weights that followed from such a loss.
        ``saved_at`` is the step of the newest checkpoint.
        """
        flag = (~self._finite).float()
        if self._world > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if flag.item():
            raise LossNotFinite(
                f"the loss was not finite at step {step} or shortly before; the last good checkpoint is "
                f"{'none' if saved_at is None else f'of step {saved_at}'}. {self._advice}"
            )

    def read(self, step: int, saved_at: int | None) -> dict[str, float]:
        """The latest step's losses averaged over ranks, and the rates since the last call; every rank calls this."""
        self.check(step, saved_at)
        latest = self._latest
        losses = latest.losses
        if self._world > 1:
            dist.all_reduce(losses)
            losses /= self._world
        elapsed = max(time.perf_counter() - self._since - self._paused, 1e-9)
        metrics = dict(zip(self._losses, losses.tolist(), strict=False)) | {
            metric_keys.LEARNING_RATE: latest.lr,
            metric_keys.IMAGES_PER_S: self._steps * self._batch / elapsed,
            metric_keys.DATA_WAIT_FRACTION: min(1.0, self._waited / elapsed),
            metric_keys.EPOCH: step / self._schedule.steps_per_epoch,
            metric_keys.SAMPLES: float(step * self._batch),
        }
        if latest.momentum is not None:
            metrics[metric_keys.TEACHER_MOMENTUM] = latest.momentum
        if latest.grad_norm is not None:
            metrics[metric_keys.GRAD_NORM] = latest.grad_norm.item()
        self._steps, self._waited, self._paused, self._since = 0, 0.0, 0.0, time.perf_counter()
        return metrics
