"""The state of a supervised training: everything that a resumed one needs, its one save and its one load.

A checkpoint holds ``classifier.safetensors`` (what trains: the whole network, or the head on a frozen encoder),
``optimizer.safetensors``, ``average.safetensors`` (with `ema` only), ``state.json`` and ``settings.json``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Final

import torch
from pydantic import BaseModel

from trainer.errors import DataError
from trainer.finetuning.network import Classifier, Settings
from trainer.spec.pretrain import CheckpointSpec
from trainer.storage import Store
from trainer.training.checkpoint import Committed
from trainer.training.snapshot import STATE, Snapshot, Tensors, copied, moments, read_state, restore_moments

CLASSIFIER, AVERAGE, OPTIMIZER = "classifier", "average", "optimizer"
SETTINGS: Final = "settings.json"


class TrainingMetadata(BaseModel):
    """``state.json``: what a resumed training needs besides tensors. Schedules and data order follow from the step."""

    step: int
    """Optimiser steps done."""
    identity: str
    """sha256 of what is trained on what, see `trainer.finetuning.training`."""
    workers: int
    """`micro_batch_size` is used again only with the same number of workers; any number may resume."""
    micro_batch_size: int
    curve: list[tuple[int, float]] = []
    """Accuracy on the test images by step."""


@dataclass(frozen=True)
class TrainingConstants:
    """What a checkpoint records and training does not change."""

    settings: Settings
    checkpoint: CheckpointSpec
    identity: str
    workers: int
    micro_batch_size: int


@dataclass
class SupervisedState:
    """Classifier, its moving average, optimiser and the step they have reached."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    average: Classifier | None
    identity: str
    step: int = 0
    saved_at: int | None = None
    """The step of the newest checkpoint, whose upload may still be under way."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Accuracy on the test images by step."""

    @property
    def tested(self) -> Classifier:
        """The network whose accuracy counts: the moving average, if there is one."""
        return self.average or self.classifier

    def snapshot(self, constants: TrainingConstants, into: Tensors) -> Snapshot:
        """Copy the state, as `copied` does, into the memory of a snapshot that is no longer needed."""
        trained = self.classifier.trained
        tensors = {CLASSIFIER: trained.state_dict(), OPTIMIZER: moments(trained, self.optimizer)}
        if self.average is not None:
            tensors[AVERAGE] = self.average.trained.state_dict()
        metadata = TrainingMetadata(
            step=self.step,
            identity=constants.identity,
            workers=constants.workers,
            micro_batch_size=constants.micro_batch_size,
            curve=self.curve,
        )
        documents = {STATE: metadata, SETTINGS: constants.settings}
        return Snapshot(self.step, {}, documents, copied(tensors, into))

    def load(self, store: Store, checkpoint: Committed) -> TrainingMetadata:
        """Fill the state in place from a checkpoint.

        Raises `DamagedCheckpoint` before anything is filled, and `DataError` for a checkpoint of another training.
        """
        if read_state(store, checkpoint, (), TrainingMetadata).metadata.identity != self.identity:
            raise DataError(
                f"{store.uri}/{checkpoint.folder} was trained with other settings, weights or images than are given "
                "now: put them back, or retry from scratch"
            )
        parts = (CLASSIFIER, OPTIMIZER) if self.average is None else (CLASSIFIER, OPTIMIZER, AVERAGE)
        stored = read_state(store, checkpoint, parts, TrainingMetadata)
        self.classifier.trained.load_state_dict(stored.tensors[CLASSIFIER])
        restore_moments(self.classifier.trained, self.optimizer, stored.tensors[OPTIMIZER])
        if self.average is not None:
            self.average.trained.load_state_dict(stored.tensors[AVERAGE])
        self.step = self.saved_at = stored.metadata.step
        self.curve = list(stored.metadata.curve)
        return stored.metadata


def moving_average(classifier: Classifier) -> Classifier:
    """An exact copy of the classifier, in evaluation mode and without gradients."""
    return copy.deepcopy(classifier).eval().requires_grad_(False)
