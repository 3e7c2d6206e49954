"""One supervised training: what is trained on what, where, and how it ended.

A training is a unit within an attempt: it has a folder of its own for its checkpoints, and a later attempt resumes it
there, to the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.agreement import Agreement
from trainer.data.images import Images
from trainer.errors import SpecRefused
from trainer.evaluation.features import View
from trainer.evaluation.ranks import Ranks
from trainer.finetuning.network import Classifier, Settings
from trainer.protocol.command import Action
from trainer.spec.finetuning import FinetuneSettings
from trainer.spec.pretrain import CheckpointSpec, ModelSpec
from trainer.storage import Store
from trainer.tracking.activity import ActivityTracker
from trainer.training.checkpoint import Committed
from trainer.training.periodic import Record

NOT_TRAINED: Final = ("name", "micro_batch_size", "precision", "every_epochs", "register_as", "export")
"""Settings of protocols on which the trained network does not depend."""


def together(settings: Settings) -> int:
    """So many consecutive images of a batch stay on one worker: fine-tuning mixes pairs."""
    return 2 if isinstance(settings, FinetuneSettings) else 1


def runnable(settings: Settings, model: ModelSpec, images: int, world: int) -> Settings:
    """The settings with all values but the parts of a batch, for so many training images and workers.

    Raises `SpecError` for settings that do not fit the network, and `SpecRefused` where workers would have no image.
    """
    resolved = settings.resolved(model, images)
    if world > -(-resolved.batch_size // together(resolved)):
        pairs = " in pairs" if together(resolved) > 1 else ""
        raise SpecRefused(
            f"resources.workers: {world} workers cannot share a batch of {resolved.batch_size} images{pairs}: lower "
            "the workers, or raise batch_size or the number of training images"
        )
    return resolved


@dataclass(frozen=True)
class Training:
    """What is trained on what. The same training gives the same bits in each attempt with as many workers."""

    settings: Settings
    """Of the protocol, resolved or not."""
    model: ModelSpec
    view: View
    """Its size is that of the model's images."""
    encoder: Mapping[str, Tensor] | None
    """The encoder's initial weights, perhaps among others; None: random ones, by the seed."""
    images: Images
    rows: NDArray[np.int64]
    """(n,) of ``images``, to train on."""
    labels: NDArray[np.int64]
    """(n,), numbers of the classes of ``rows``."""
    classes: int
    test_images: Images
    test_rows: NDArray[np.int64]
    """(m,) of ``test_images``, never trained on."""
    test_labels: NDArray[np.int64]
    """(m,)."""
    seed: int
    """Of the head's and of random initial weights, of the order and of all augmentation."""
    class_names: tuple[str, ...] = ()
    """For the picture; without them, classes have their numbers."""

    def identity(self) -> str:
        """A sha256 of everything that the result depends on, but for precision and parts of a batch."""
        facts = [
            type(self.settings).__name__,
            self.settings.model_dump_json(exclude={*NOT_TRAINED}),
            self.model.model_dump_json(),
            repr((self.view, self.classes, self.seed)),
            self.images.index.fingerprint,
            self.test_images.index.fingerprint,
        ]
        digest = hashlib.sha256("\n".join(facts).encode())
        for array in (self.rows, self.labels, self.test_rows, self.test_labels):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).data)
        for name, tensor in sorted((self.encoder or {}).items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class TrainingPlace:
    """Where a training runs: one worker of one attempt."""

    store: Store
    """The training's own folder, below the run's."""
    attempt: int
    since_attempt: int
    """Training resumes from checkpoints of this attempt or later ones."""
    agree: Agreement
    ranks: Ranks
    record: Record | None = None
    """Takes the metrics of a step, on rank 0; the caller decides under which keys they are kept."""
    notice: Callable[[str], None] = lambda _: None
    """Takes a sentence about checkpoints that fail or are damaged; empty once it no longer holds. Rank 0 only."""
    requested_action: Callable[[], Action | None] = lambda: None
    """The command that this rank has received."""
    tracker: ActivityTracker = field(default_factory=ActivityTracker)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    loader_processes: int = 0
    """Processes that prepare images; 0: threads."""
    checkpoint: CheckpointSpec = field(default_factory=lambda: CheckpointSpec(keep=2))


@dataclass(frozen=True)
class Trained:
    """How a training ended, the same on every rank."""

    action: Action | None
    """The command that ended it; None if it is complete."""
    scores: Tensor | None
    """Logits (m, K) float32 of the test images, on the CPU; None after a command."""
    classifier: Classifier
    """The network, with the moving average of its weights if there is one."""
    settings: Settings
    """Resolved: with the batch that the data have room for."""
    checkpoint: Committed
    """Of the step at which it ended."""
    curve: tuple[tuple[int, float], ...]
    """Accuracy on the test images by step, the last one at the end."""
