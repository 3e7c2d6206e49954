"""The training loop: plain torch, distributed when a process group exists, with no knowledge of Ray or MLflow."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import Place, TrainingData, open_training_data
from trainer.data.loader import Loader
from trainer.errors import DataError, LossNotFinite, SpecRefused
from trainer.evaluation.evaluator import Evaluator
from trainer.logger import logger
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.spec import metric_keys
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store
from trainer.training import checkpoint as checkpoints
from trainer.training.execution import compile_if_it_pays, distribute, settle_micro_batch, uses_bf16
from trainer.training.optim import learning_rate, make_optimizer, teacher_momentum
from trainer.training.saving import Saver
from trainer.training.step import Learner, Objective


class Recorder(Protocol):
    """Where metrics and the run's tags go; rank 0 only. Neither method waits for anything or fails where it is away."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...


@dataclass
class Run:
    """What a loop stands in: one worker of one attempt."""

    store: Store
    """The run's artifact folder."""
    attempt: int
    since_attempt: int
    """Checkpoints of this attempt and later ones are gone on from."""
    recorder: Recorder | None
    """None on every rank but the first."""
    wanted: Callable[[], Action | None] = lambda: None
    """The command this rank knows of."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Cache = field(default_factory=Cache)
    """This node's copies of datasets and their indexes."""
    dataset_roots: tuple[str, ...] | None = None
    """Where datasets may lie; None is anywhere."""


@dataclass(frozen=True)
class Ending:
    """How a loop ended, the same on every rank."""

    action: Action | None
    """The command it obeyed; None where training is complete."""
    checkpoint: checkpoints.Committed
    data: TrainingData
    backbone: MaskedAutoencoder
    """The teacher, or for `mae` the student."""


def pretrain(spec: PretrainSpec, run: Run) -> Ending:
    """Train from the newest committed checkpoint, or from the start, to the end or to a command.

    ``spec`` must be resolved. Raises a `TrainingError` whose reason says what went wrong.
    """
    # --- where we are -------------------------------------------------------------------------------------------
    optimization, method = spec.optimization, spec.method
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world != spec.resources.workers:
        raise SpecRefused(f"resources.workers: is {spec.resources.workers}, and {world} workers run")
    device, recorder, agree = run.device, run.recorder, Agreement(world)
    threads = _integer(spec.resources.cpus_per_worker, "resources.cpus_per_worker")
    torch.set_num_threads(threads)
    bf16 = uses_bf16(spec, device)

    # --- data ---------------------------------------------------------------------------------------------------
    data = open_training_data(spec, Place(run.cache, threads, agree, rank, run.dataset_roots))
    schedule = Schedule.of(spec, len(data.images))
    loader = Loader(data.images, data.train, spec, rank, world, threads, pin=device.type == "cuda")

    # --- student, teacher, optimiser ----------------------------------------------------------------------------
    torch.manual_seed(spec.seed)
    student = MaskedAutoencoder(spec.model).to(device)
    teacher = make_teacher(student) if method.teacher else None
    optimizer = make_optimizer(student, optimization)
    backbone = teacher or student

    # --- resume -------------------------------------------------------------------------------------------------
    latest = agree.share([*checkpoints.committed(run.store, run.since_attempt)[-1:]] if rank == 0 else None)
    last = latest[0] if latest else None
    start, evaluation, micro_batch = 0, dict[str, float](), None
    if last:
        state = checkpoints.load(run.store, last, student, teacher, optimizer)
        if state.dataset_fingerprint != data.fingerprint:
            raise DataError(
                f"{spec.dataset.uri} has changed since the checkpoint at step {state.step}: "
                "put its files back, or retry from scratch"
            )
        start, evaluation = state.step, state.metrics
        micro_batch = state.micro_batch_size if state.workers == world else None
        logger.info("Resuming at step %d of %d from %s", start, schedule.steps, last.folder)
    if recorder:
        place = last.folder if last else ""
        recorder.tag({names.TAG_STEPS: str(schedule.steps), names.TAG_CHECKPOINT: place, names.TAG_NOTICE: ""})
        recorder.tag(data.tags())
        if not last:
            logger.info("Training on %d images, %d steps an epoch", schedule.train_images, schedule.steps_per_epoch)
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    evaluator = Evaluator(spec, data, run.store, device, autocast) if rank == 0 else None

    # --- how the step runs here ---------------------------------------------------------------------------------
    objective = Objective(method, student, teacher, data.mean, data.std, bf16)
    compile_if_it_pays(objective, spec, schedule, device)
    micro_batch = settle_micro_batch(objective, optimizer, spec, device, micro_batch)
    network = distribute(objective, spec, micro_batch, device)
    learner = Learner(student, teacher, optimizer, network, micro_batch, optimization.clip_grad_norm)

    step, meter = start, Meter(spec, schedule, world, device)
    taken = start if last else None  # the step of the newest checkpoint, stored already or not
    saver = Saver(spec, run.store, run.attempt, run.since_attempt, recorder.tag, last) if recorder else None
    batches = loader.batches(start, schedule.steps)
    with contextlib.closing(batches), contextlib.closing(saver) if saver else contextlib.nullcontext():
        while True:
            # --- once in a while: evaluate, obey, store ---------------------------------------------------------
            fresh = step > start
            if evaluator and recorder and (fresh or start == 0) and _due(spec.evaluation.every_epochs, step, schedule):
                with meter.paused():
                    evaluation = evaluator.evaluate(student, backbone, step)
                    logger.info("Evaluation at step %d: %s", step, _shown(evaluation))
                    recorder.log(step, evaluation)  # where a search may stop its trial for good
            due = saver is not None and fresh and saver.due(_due(spec.checkpoint.every_epochs, step, schedule))
            action, due = agree(run.wanted(), due)
            ended = step == schedule.steps or action is not None
            if due or (ended and step != taken):
                with meter.paused():
                    meter.check(step, taken)
                    taken = step
                    if saver:
                        state = checkpoints.State(
                            step=step, samples=step * optimization.global_batch_size, workers=world, metrics=evaluation,
                            dataset_fingerprint=data.fingerprint, mean=data.mean, std=data.std,
                            micro_batch_size=micro_batch,
                        )  # fmt: skip
                        evaluated_now = evaluation if _due(spec.evaluation.every_epochs, step, schedule) else {}
                        saver.save(state, evaluated_now, student, teacher, optimizer)
            if ended:
                last = agree.share(saver.finish() if saver else None)
                return Ending(action if step < schedule.steps else None, last, data, backbone)

            # --- batch ------------------------------------------------------------------------------------------
            with meter.waiting():
                batch = next(batches)

            # --- losses, backward, optimiser, teacher -----------------------------------------------------------
            lr, momentum = learning_rate(optimization, step, schedule.steps_per_epoch), None
            if method.teacher is not None:
                momentum = teacher_momentum(method.teacher, step, schedule.steps)
            losses, norm = learner.step(batch.images, batch.orders, lr, momentum, measured=meter.due(step + 1))
            meter.add(losses)
            step += 1

            # --- log --------------------------------------------------------------------------------------------
            if meter.due(step):
                metrics = meter.read(step, lr, momentum, norm, taken)
                if recorder:
                    recorder.log(step, metrics)


def _due(every_epochs: int, step: int, schedule: Schedule) -> bool:
    return step % (every_epochs * schedule.steps_per_epoch) == 0 or step == schedule.steps


def _integer(value: int | str, name: str) -> int:
    if not isinstance(value, int):
        raise SpecRefused(f"{name}: is {value!r}; the loop takes a resolved spec")
    return value


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())


class Meter:
    """The present step's losses, and times since the last log; tensors are read only when something is due.

    Steps to log are counted from the epoch's start, so that a resumed run logs the same ones.
    """

    def __init__(self, spec: PretrainSpec, schedule: Schedule, world: int, device: torch.device) -> None:
        self._spec, self._schedule, self._world = spec, schedule, world
        self._every = max(1, min(20, schedule.steps_per_epoch // 10))
        self._losses = torch.zeros(3, device=device)
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._steps, self._waited, self._away = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def due(self, step: int) -> bool:
        in_epoch = step % self._schedule.steps_per_epoch
        return in_epoch % self._every == 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in here is time waited for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is no training time."""
        before = time.perf_counter()
        yield
        self._away += time.perf_counter() - before

    def add(self, losses: Tensor) -> None:
        """A step's losses (3,)."""
        self._losses = losses
        self._finite &= torch.isfinite(losses[0])

    def check(self, step: int, taken: int | None) -> None:
        """Raise `LossNotFinite` on every rank where any saw such a loss; a checkpoint never holds its weights."""
        flag = (~self._finite).float()
        if self._world > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if flag.item():
            raise LossNotFinite(
                f"the loss was not finite at step {step} or shortly before; the last good checkpoint is "
                f"{'none' if taken is None else f'of step {taken}'}. Lower optimization.base_lr, lengthen "
                "optimization.warmup_epochs, set optimization.clip_grad_norm, or use precision fp32"
            )

    def read(
        self,
        step: int,
        lr: float,
        momentum: float | None,
        norm: Tensor | None,
        taken: int | None,
    ) -> dict[str, float]:
        """The step's losses averaged over ranks, and the rates since the last call."""
        self.check(step, taken)
        if self._world > 1:
            dist.all_reduce(self._losses)
            self._losses /= self._world
        loss, reconstruction, consistency = self._losses.tolist()
        elapsed = max(time.perf_counter() - self._since - self._away, 1e-9)
        batch = self._spec.optimization.global_batch_size
        metrics = {
            metric_keys.LOSS: loss,
            metric_keys.LOSS_RECONSTRUCTION: reconstruction,
            metric_keys.LEARNING_RATE: lr,
            metric_keys.IMAGES_PER_S: self._steps * batch / elapsed,
            metric_keys.DATA_WAIT_FRACTION: min(1.0, self._waited / elapsed),
            metric_keys.EPOCH: step / self._schedule.steps_per_epoch,
            metric_keys.SAMPLES: float(step * batch),
        }
        if momentum is not None:
            metrics |= {metric_keys.LOSS_CONSISTENCY: consistency, metric_keys.TEACHER_MOMENTUM: momentum}
        if norm is not None:
            metrics[metric_keys.GRAD_NORM] = norm.item()
        self._steps, self._waited, self._away, self._since = 0, 0.0, 0.0, time.perf_counter()
        return metrics
