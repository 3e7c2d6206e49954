"""The state of training: everything that a resumed run needs, its one save and its one load.

A checkpoint holds ``student.safetensors``, ``teacher.safetensors`` (RC-MAE only), ``optimizer.safetensors`` (AdamW's
moments by parameter name), ``state.json`` and ``spec.json``. `trainer.training.checkpoint` says where it lies and when
it counts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import BaseModel

from trainer.data.scale import Scale
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher
from trainer.spec.base import read_document
from trainer.spec.pretrain import CheckpointSpec, PretrainSpec
from trainer.storage import Store
from trainer.training.checkpoint import Committed, verified_copy
from trainer.training.optim import make_optimizer
from trainer.training.snapshot import (
    STATE,
    Snapshot,
    StoredState,
    Tensors,
    copied,
    moments,
    read_state,
    restore_moments,
    tensor_file,
)

Part = Literal["student", "teacher", "optimizer"]

STUDENT, TEACHER, OPTIMIZER = (tensor_file(part) for part in ("student", "teacher", "optimizer"))
SPEC = "spec.json"


class Metadata(BaseModel):
    """``state.json``: what a resumed run needs besides tensors. Schedules and data order follow from the step."""

    step: int
    """Optimiser steps done."""
    samples: int
    """Images trained on."""
    dataset_fingerprint: str
    mean: tuple[float, ...]
    """Of each channel, 0..1."""
    std: tuple[float, ...]
    scale: dict[str, tuple[float, float]] = {}
    """Pixel values that become black and white, by their type. Empty in checkpoints of versions that had one for each
    image."""
    held_out_by_class: bool = False
    """How the held-out images were chosen, see `trainer.data.index.split`: a run keeps its own."""
    workers: int
    """`micro_batch_size` is used again only with the same number of workers; any number may resume."""
    micro_batch_size: int | None = None
    """Images that each worker processed at once. The same workers use it again, so that sums keep their order."""
    metrics: dict[str, float]
    """The last evaluation's."""

    @property
    def value_range(self) -> tuple[float, float]:
        """The pixel values that became black and white; of 8 bits if there were such images beside deeper ones."""
        return Scale(self.scale).value_range


@dataclass(frozen=True)
class RunConstants:
    """What a checkpoint records and training does not change."""

    spec: PretrainSpec
    dataset_fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int
    micro_batch_size: int
    scale: dict[str, tuple[float, float]] = field(default_factory=dict)
    held_out_by_class: bool = True

    @property
    def checkpoint(self) -> CheckpointSpec:
        return self.spec.checkpoint


@dataclass
class TrainState:
    """Student, teacher, optimiser and the step they have reached."""

    student: MaskedAutoencoder
    teacher: MaskedAutoencoder | None
    optimizer: torch.optim.Optimizer
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The last evaluation's."""
    evaluated_at: int | None = None
    """The step at which this attempt last evaluated."""
    saved_at: int | None = None
    """The step of the newest checkpoint, whose upload may still be under way."""

    @classmethod
    def initial(cls, spec: PretrainSpec, device: torch.device) -> TrainState:
        """Random weights drawn from the spec's seed, before the first step."""
        torch.manual_seed(spec.seed)
        student = MaskedAutoencoder(spec.model).to(device)
        teacher = make_teacher(student) if spec.method.teacher else None
        return cls(student, teacher, make_optimizer(student, spec.optimization))

    @property
    def backbone(self) -> MaskedAutoencoder:
        """The teacher, or for `mae` the student."""
        return self.teacher or self.student

    def snapshot(self, constants: RunConstants, into: Tensors) -> Snapshot:
        """Copy the state, as `copied` does, into the memory of a snapshot that is no longer needed."""
        tensors = {"student": self.student.state_dict(), "optimizer": moments(self.student, self.optimizer)}
        if self.teacher is not None:
            tensors["teacher"] = self.teacher.state_dict()
        metadata = Metadata(
            step=self.step,
            samples=self.step * constants.spec.optimization.global_batch_size,
            dataset_fingerprint=constants.dataset_fingerprint,
            mean=constants.mean,
            std=constants.std,
            scale=constants.scale,
            held_out_by_class=constants.held_out_by_class,
            workers=constants.workers,
            micro_batch_size=constants.micro_batch_size,
            metrics=self.metrics,
        )
        metrics = self.metrics if self.evaluated_at == self.step else {}
        return Snapshot(self.step, metrics, {STATE: metadata, SPEC: constants.spec}, copied(tensors, into))

    def load(self, store: Store, checkpoint: Committed, parts: Collection[Part] | None = None) -> Metadata:
        """Fill the state in place from a checkpoint; None as ``parts`` means all that this state has.

        Without the optimizer among ``parts`` only weights are taken: the optimiser and the step stay as they are.
        Raises as `read_parts`, before anything is filled.
        """
        wanted = self._parts() if parts is None else parts
        stored = read_parts(store, checkpoint, wanted)
        if "student" in wanted:
            self.student.load_state_dict(stored.tensors["student"])
        if "teacher" in wanted and self.teacher is not None:
            self.teacher.load_state_dict(stored.tensors["teacher"])
        if "optimizer" in wanted:
            restore_moments(self.student, self.optimizer, stored.tensors["optimizer"])
            self.step = self.saved_at = stored.metadata.step
            self.metrics = stored.metadata.metrics
        return stored.metadata

    def _parts(self) -> tuple[Part, ...]:
        return ("student", "optimizer") if self.teacher is None else ("student", "teacher", "optimizer")


def read_parts(store: Store, checkpoint: Committed, parts: Collection[Part]) -> StoredState[Metadata]:
    """The metadata and the named parts of a checkpoint; raises as `read_state`."""
    return read_state(store, checkpoint, parts, Metadata)


def spec_of(store: Store, checkpoint: Committed) -> PretrainSpec:
    """The spec that a checkpoint was trained with; raises `DamagedCheckpoint` if it is not what was written."""
    with verified_copy(store, checkpoint, (SPEC,)) as directory:
        return PretrainSpec.parse(read_document((directory / SPEC).read_text()))
