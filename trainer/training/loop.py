"""The training loop: plain torch, distributed if a process group exists, without any knowledge of Ray or MLflow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist

from trainer.agreement import Agreement
from trainer.data.dataset import DatasetContext, TrainingData, open_training_data
from trainer.data.images import Images
from trainer.data.loader import Loader
from trainer.data.notices import tell
from trainer.errors import DIVERGENCE_ADVICE, DataError, SpecRefused
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.ranks import Ranks
from trainer.logger import logger
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.spec import metric_keys
from trainer.spec.dataset import DatasetSpec
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec
from trainer.tracking.interface import Purpose, Recorder, UsedDataset
from trainer.training.checkpoint import Committed
from trainer.training.context import WorkerContext
from trainer.training.execution import compile_if_it_pays, distribute, settle_micro_batch, uses_bf16
from trainer.training.meter import Meter, StepReport
from trainer.training.optim import learning_rate, teacher_momentum
from trainer.training.periodic import Evaluate, Log, PeriodicWork, Save
from trainer.training.resuming import Resumed, resume
from trainer.training.saving import Saver
from trainer.training.state import Metadata, RunConstants, TrainState
from trainer.training.step import Learner, Objective

LOSSES: Final = (metric_keys.LOSS, metric_keys.LOSS_RECONSTRUCTION, metric_keys.LOSS_CONSISTENCY)
"""The metrics of an objective's losses."""


@dataclass(frozen=True)
class TrainingResult:
    """How training ended, the same on every rank."""

    action: Action | None
    """The command that ended it; None if training is complete."""
    checkpoint: Committed
    data: TrainingData
    backbone: MaskedAutoencoder
    """The teacher, or for `mae` the student."""


def pretrain(spec: PretrainSpec, context: WorkerContext) -> TrainingResult:
    """Train from the newest committed checkpoint, or from the start, until the end or a command.

    ``spec`` must be resolved. Raises a `TrainingError` whose reason says what went wrong.
    """
    # --- this worker --------------------------------------------------------------------------------------------
    optimization, method = spec.optimization, spec.method
    device, recorder, tracker = context.device, context.recorder, context.tracker
    tracker.enter("opening")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world != spec.resources.workers:
        raise SpecRefused(f"resources.workers: is {spec.resources.workers}, but {world} workers run")
    agree = Agreement(world)
    threads = _integer(spec.resources.cpus_per_worker, "resources.cpus_per_worker")
    torch.set_num_threads(threads)
    bf16 = uses_bf16(optimization.precision, device, "optimization.precision")

    # --- student, teacher, optimiser: new, or from the newest checkpoint ----------------------------------------
    state = TrainState.initial(spec, device)
    resumed = resume(state, context, agree, rank)

    # --- data ---------------------------------------------------------------------------------------------------
    by_class = resumed.metadata.held_out_by_class if resumed else True
    data = open_training_data(
        spec, DatasetContext(context.cache, threads, agree, rank, context.dataset_roots), by_class=by_class
    )
    agree.meet()  # from here on, all ranks have data and state
    schedule = Schedule.of(spec, len(data.images))
    loader = Loader(data.images, data.train, spec, rank, world, threads, pin=device.type == "cuda")
    recorded = _check(resumed, data, schedule, world) if resumed else None
    if recorder:
        _announce(spec, recorder, resumed, data, schedule)

    # --- how the step runs on this worker -----------------------------------------------------------------------
    tracker.enter("compiling")
    objective = Objective(method, state.student, state.teacher, data.mean, data.std, bf16)
    compile_if_it_pays(objective, spec, schedule, device)
    micro_batch = settle_micro_batch(objective, state.optimizer, spec, device, recorded)
    network = distribute(objective, spec, micro_batch, device)
    learner = Learner(state.student, state.teacher, state.optimizer, network, micro_batch, optimization.clip_grad_norm)

    # --- periodic work ------------------------------------------------------------------------------------------
    evaluator = _evaluator(spec, data, context, Ranks(agree, rank, world), bf16)
    constants = RunConstants(
        spec, data.fingerprint, data.mean, data.std, world, micro_batch, data.images.scale.ranges, by_class
    )
    saver = Saver(constants, context, recorder.tag, resumed.checkpoint if resumed else None) if recorder else None
    meter, start = _meter(spec, schedule, world, device), state.step
    log = Log(meter, recorder.log if recorder else None, schedule, start)
    evaluate = Evaluate(evaluator, recorder, meter, tracker, schedule, spec.evaluation.every_epochs, start)
    save = Save(saver, context.requested_action, agree, meter, tracker, schedule, spec.checkpoint.every_epochs, state)
    periodic: tuple[PeriodicWork[TrainState], ...] = (log, evaluate, save)

    batches = loader.batches(start, schedule.steps)
    with contextlib.closing(batches), contextlib.closing(saver) if saver else contextlib.nullcontext():
        while True:
            # --- once in a while: log, evaluate, save -----------------------------------------------------------
            for work in periodic:
                if work.due(state.step):
                    work.run(state)
            if save.ended:
                return TrainingResult(save.action, save.finish(), data, state.backbone)

            # --- batch ------------------------------------------------------------------------------------------
            with meter.waiting():
                batch = next(batches)

            # --- losses, backward, optimiser, teacher -----------------------------------------------------------
            lr, momentum = learning_rate(optimization, state.step, schedule.steps_per_epoch), None
            if method.teacher is not None:
                momentum = teacher_momentum(method.teacher, state.step, schedule.steps)
            losses, norm = learner.step(batch.images, batch.orders, lr, momentum, measured=log.due(state.step + 1))
            meter.add(StepReport(losses, norm, lr, momentum))
            state.step += 1
            tracker.reached(state.step)


def _check(resumed: Resumed[Metadata], data: TrainingData, schedule: Schedule, world: int) -> int | None:
    """The micro batch size to use again, or None if it has to be chosen anew.

    Raises `DataError` if the data are not those of the checkpoint.
    """
    metadata = resumed.metadata
    if metadata.dataset_fingerprint != data.fingerprint:
        raise DataError(
            f"{data.images.uri} has changed since the checkpoint at step {metadata.step}: "
            "put its files back, or retry from scratch"
        )
    logger.info("Resuming at step %d of %d from %s", metadata.step, schedule.steps, resumed.checkpoint.folder)
    return metadata.micro_batch_size if metadata.workers == world else None


def _meter(spec: PretrainSpec, schedule: Schedule, world: int, device: torch.device) -> Meter:
    losses = LOSSES if spec.method.teacher else LOSSES[:2]
    return Meter(losses, spec.optimization.global_batch_size, schedule, world, device, DIVERGENCE_ADVICE)


def _announce(
    spec: PretrainSpec, recorder: Recorder, resumed: Resumed[Metadata] | None, data: TrainingData, schedule: Schedule
) -> None:
    """Tag the run with what is known before the first step."""
    folder, notice = (resumed.checkpoint.folder, resumed.notice) if resumed else ("", "")
    recorder.tag({names.TAG_STEPS: str(schedule.steps), names.TAG_CHECKPOINT: folder, names.TAG_NOTICE: notice})
    recorder.tag(data.tags())
    recorder.use(list(_used(spec, data)))
    if not resumed:
        logger.info("Training on %d images, %d steps an epoch", schedule.train_images, schedule.steps_per_epoch)


def _used(spec: PretrainSpec, data: TrainingData) -> Iterator[UsedDataset]:
    """The datasets of the run: one, of which a share is held out, or another one to evaluate on."""
    yield _as_used("training", spec.dataset, data.images)
    if spec.evaluation.dataset:
        yield _as_used("evaluation", spec.evaluation.dataset, data.held_out_images)


def _as_used(purpose: Purpose, dataset: DatasetSpec, images: Images) -> UsedDataset:
    return UsedDataset(purpose, dataset.title or dataset.uri, dataset.uri, images.index.fingerprint, len(images))


def _evaluator(spec: PretrainSpec, data: TrainingData, context: WorkerContext, ranks: Ranks, bf16: bool) -> Evaluator:
    evaluator = Evaluator(spec, data, context.store, context.cache.folder, ranks, context.device, bf16)
    if context.recorder:
        tell(context.recorder, (*data.notices, *evaluator.notices))
    return evaluator


def _integer(value: int | str, name: str) -> int:
    if not isinstance(value, int):
        raise SpecRefused(f"{name}: is {value!r}; the loop needs a resolved spec")
    return value
