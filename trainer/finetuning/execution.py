"""How a supervised step runs on this worker: its precision, how many images at once, alone or under DDP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from trainer.data.loader import Share
from trainer.finetuning.batches import Augmentation
from trainer.finetuning.network import Classifier, Settings
from trainer.finetuning.state import SupervisedState, TrainingMetadata
from trainer.finetuning.step import SupervisedLearner, SupervisedObjective
from trainer.finetuning.training import Training, TrainingPlace
from trainer.models.pixels import normalised
from trainer.spec.finetuning import FinetuneSettings, PaperLinearSettings, cpu_micro_batch, supervised_memory
from trainer.training.execution import distributed, halve_until_it_fits, largest_by_memory, uses_bf16


def make_learner(
    training: Training,
    settings: Settings,
    state: SupervisedState,
    share: Share,
    place: TrainingPlace,
    earlier: TrainingMetadata | None,
) -> SupervisedLearner:
    """What takes the steps. ``earlier`` is the metadata of the checkpoint from which training resumes.

    Raises `SpecRefused` for a precision that the device lacks.
    """
    classifier, bf16 = state.classifier, uses_bf16(settings.precision, place.device, "precision")
    smoothing = 0.0 if isinstance(settings, PaperLinearSettings) else settings.label_smoothing
    objective = SupervisedObjective(classifier.trained, smoothing, bf16)
    blank = partial(_blank_loss, training, classifier, bf16)
    micro_batch = _micro_batch(training, settings, objective, state, earlier, share, place, bf16, blank)
    return SupervisedLearner(
        classifier=classifier,
        average=state.average,
        optimizer=state.optimizer,
        network=distributed(objective, lambda network: blank(network, min(micro_batch, share.size))),
        augmentation=Augmentation(settings, training.view, training.seed, training.labels, classifier.encoder.depth),
        micro_batch=micro_batch,
        batch=settings.batch_size,
        world=share.world,
        bf16=bf16,
        clip_grad_norm=settings.clip_grad_norm,
        ema=settings.ema if isinstance(settings, FinetuneSettings) else None,
    )


def _blank_loss(training: Training, classifier: Classifier, bf16: bool, network: nn.Module, images: int) -> Tensor:
    """The loss of so many black images."""
    device = classifier.encoder.cls_token.device
    black = torch.zeros(images, training.model.in_chans, *training.view.size, dtype=torch.uint8, device=device)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        inputs = classifier.inputs(normalised(black, training.view.mean, training.view.std))
    losses: Tensor = network(inputs, labels, labels, torch.ones(images, device=device), None)
    return losses.mean()


def _micro_batch(
    training: Training,
    settings: Settings,
    objective: SupervisedObjective,
    state: SupervisedState,
    earlier: TrainingMetadata | None,
    share: Share,
    place: TrainingPlace,
    bf16: bool,
    blank: Callable[[nn.Module, int], Tensor],
) -> int:
    """Images that go through the network at once, an even number: the settings', or as many as the device takes well.

    What an earlier attempt with as many workers used is used again, which keeps the order of sums.
    """
    written = settings.micro_batch_size
    if written != "auto":
        return even(written)
    if place.device.type != "cuda":
        return even(cpu_micro_batch(training.model))
    recorded = earlier.micro_batch_size if earlier and earlier.workers == share.world else None
    candidates = [even(n) for n in range(2, share.size + 2, 2)]
    micro_batch = recorded or largest_by_memory(
        candidates, lambda n: supervised_memory(settings, training.model, n, bf16), place.device
    )
    return halve_until_it_fits(micro_batch, even, partial(blank, objective), objective, state.optimizer, place.device)


def even(images: int) -> int:
    """The largest even number of images up to this one, and 2 at least: pairs stay together."""
    return max(2, images - images % 2)
