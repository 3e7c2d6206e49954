"""Supervised training of an encoder with a head: one loop for fine-tuning, the paper's linear classifier and attention.

Plain torch, distributed if a process group exists.
"""

from __future__ import annotations

import contextlib
from typing import Final

import torch
from torch import Tensor

from trainer.data.loader import PreparedBatches, Share
from trainer.finetuning.batches import Augmentation, LabelledPreparation
from trainer.finetuning.execution import make_learner
from trainer.finetuning.network import Settings, make_classifier
from trainer.finetuning.optim import make_optimizer
from trainer.finetuning.predictions import batch_picture, predict, top1
from trainer.finetuning.state import SupervisedState, TrainingConstants, moving_average
from trainer.finetuning.training import Trained, Training, TrainingPlace, runnable, together
from trainer.logger import logger
from trainer.protocol.names import TAG_NOTICE
from trainer.spec import metric_keys
from trainer.spec.finetuning import FinetuneSettings
from trainer.spec.plan import Schedule
from trainer.training.meter import Meter, StepReport
from trainer.training.optim import learning_rate
from trainer.training.periodic import Log, PeriodicWork, Save, epoch_due
from trainer.training.resuming import resume
from trainer.training.saving import Saver

PICTURE: Final = "batch.png"
"""The picture of a batch as the network sees it, in the training's folder."""
ADVICE: Final = "Lower base_lr, lengthen warmup_epochs, set clip_grad_norm, or use precision fp32"


def train(training: Training, place: TrainingPlace) -> Trained:
    """Train from the newest committed checkpoint, or from the start, until the end or a command. Every rank calls this.

    Raises `SpecError` for settings that do not fit the network, and a `TrainingError` whose reason says what happened.
    """
    # --- this worker ------------------------------------------------------------------------------------------------
    settings = _resolved(training, place)
    rank, world, device, tracker = place.ranks.rank, place.ranks.world, place.device, place.tracker
    tracker.enter("opening")
    torch.set_num_threads(place.threads)

    # --- classifier and optimiser: new, or from the newest checkpoint -----------------------------------------------
    classifier = make_classifier(settings, training.model, training.encoder, training.classes, training.seed).to(device)
    ema = settings.ema if isinstance(settings, FinetuneSettings) else None
    average = moving_average(classifier) if ema else None
    state = SupervisedState(classifier, make_optimizer(settings, classifier), average, training.identity())
    resumed = resume(state, place, place.agree, rank)
    if resumed and rank == 0:
        place.notice(resumed.notice)

    # --- data -------------------------------------------------------------------------------------------------------
    share = Share(len(training.rows), settings.batch_size, training.seed, rank, world, together(settings))
    preparation = LabelledPreparation(training.images, training.rows, settings, training.view.size, training.seed)
    pin = device.type == "cuda"
    loader = PreparedBatches(preparation, share, place.threads, place.loader_processes, pin=pin)
    schedule = _schedule(training, settings)

    # --- how the step runs on this worker ---------------------------------------------------------------------------
    tracker.enter("compiling")
    learner = make_learner(training, settings, state, share, place, resumed.metadata if resumed else None)

    # --- periodic work ----------------------------------------------------------------------------------------------
    constants = TrainingConstants(settings, place.checkpoint, state.identity, world, learner.micro_batch)
    last = resumed.checkpoint if resumed else None
    saver = Saver(constants, place, lambda tags: place.notice(tags.get(TAG_NOTICE, "")), last) if rank == 0 else None
    meter = Meter((metric_keys.LOSS,), settings.batch_size, schedule, world, device, ADVICE)
    start = state.step
    log = Log(meter, place.record, schedule, start)
    test = MeasureAccuracy(training, settings, place, meter, schedule, start, learner.bf16)
    save = Save(
        saver, place.requested_action, place.agree, meter, tracker, schedule, place.checkpoint.every_epochs, state
    )
    periodic: tuple[PeriodicWork[SupervisedState], ...] = (log, test, save)

    batches = loader.batches(start, schedule.steps)
    with contextlib.closing(batches), contextlib.closing(saver) if saver else contextlib.nullcontext():
        while True:
            # --- once in a while: log, test, save -------------------------------------------------------------------
            for work in periodic:
                if work.due(state.step):
                    work.run(state)
            if save.ended:
                break

            # --- batch ----------------------------------------------------------------------------------------------
            with meter.waiting():
                crops, samples = next(batches)
            epoch = state.step // schedule.steps_per_epoch
            if state.step == 0:
                _store_picture(training, place, learner.augmentation, crops, samples)

            # --- losses, backward, optimiser, average ---------------------------------------------------------------
            lr = learning_rate(settings, state.step, schedule.steps_per_epoch)  # type: ignore[arg-type]  # resolved
            loss, norm = learner.step(crops, samples, epoch, lr, measured=log.due(state.step + 1))
            meter.add(StepReport(loss, norm, lr))
            state.step += 1
            tracker.reached(state.step)
        checkpoint = save.finish()

    # --- the test ---------------------------------------------------------------------------------------------------
    scores = None if save.action else test.scores(state)
    return Trained(save.action, scores, state.tested, settings, checkpoint, tuple(state.curve))


class MeasureAccuracy:
    """Measures the accuracy on the test images, on all ranks together. Nothing is chosen by it."""

    def __init__(
        self,
        training: Training,
        settings: Settings,
        place: TrainingPlace,
        meter: Meter,
        schedule: Schedule,
        start: int,
        bf16: bool,
    ) -> None:
        self._training, self._place, self._meter, self._schedule = training, place, meter, schedule
        self._every_epochs, self._start, self._bf16 = settings.every_epochs, start, bf16

    def due(self, step: int) -> bool:
        """In the middle of training only: what it measures at a checkpoint is stored with it."""
        return self._start < step < self._schedule.steps and epoch_due(self._every_epochs, step, self._schedule)

    def run(self, state: SupervisedState) -> None:
        self.scores(state)

    def scores(self, state: SupervisedState) -> Tensor:
        """Logits (m, K) of the test images; adds their accuracy to the curve."""
        training, place = self._training, self._place
        with self._meter.paused(), place.tracker.during("evaluating"):
            scores = predict(
                state.tested, training.test_images, training.test_rows, training.view, place.ranks, place.threads,
                self._bf16,
            )  # fmt: skip
        accuracy = top1(scores, training.test_labels)
        state.curve.append((state.step, accuracy))
        if place.record:
            logger.info("Step %d: %.4f of the test images are classified correctly", state.step, accuracy)
            place.record(state.step, {metric_keys.TEST_TOP1: accuracy})
        return scores


def _resolved(training: Training, place: TrainingPlace) -> Settings:
    """The settings with all values but the parts of a batch; raises where the training cannot run."""
    settings, model = runnable(training.settings, training.model, len(training.rows), place.ranks.world), training.model
    if training.view.size != (model.height, model.width):
        raise ValueError(f"the view's size {training.view.size} is not the model's, {model.height} x {model.width}")
    if settings.batch_size < training.settings.batch_size and place.ranks.rank == 0:
        logger.warning(
            "batch_size: %d is more than the %d training images: %d images are one batch",
            training.settings.batch_size, len(training.rows), settings.batch_size,
        )  # fmt: skip
    return settings


def _schedule(training: Training, settings: Settings) -> Schedule:
    images, per_epoch = len(training.rows), len(training.rows) // settings.batch_size
    return Schedule(images, len(training.test_rows), per_epoch, per_epoch * int(settings.epochs))


def _store_picture(
    training: Training, place: TrainingPlace, augmentation: Augmentation, crops: Tensor, samples: Tensor
) -> None:
    """Store the first images of the first batch as the network sees them: rank 0 does, and every rank calls this."""

    def store() -> None:
        seen = augmentation(crops[:16].to(place.device), samples[:16].numpy(), epoch=0)
        place.store.write(PICTURE, batch_picture(seen, training.view, training.class_names))

    place.ranks.collect(lambda: store() if place.ranks.rank == 0 else None)
