"""Small networks to export, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.models.rc_mae import MaskedAutoencoder, make_teacher
from trainer.spec.pretrain import ModelSpec, PretrainSpec
from trainer.training.optim import make_optimizer
from trainer.training.snapshot import write
from trainer.training.state import RunConstants, TrainState

TINY = {
    "img_size": 32, "patch_size": 8, "in_chans": 3, "embed_dim": 24, "depth": 2, "num_heads": 3,
    "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def spec_of(**model: Any) -> PretrainSpec:
    return PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}, "model": TINY | model})


def model_of(**sizes: Any) -> ModelSpec:
    """Of any number of channels, also where no image file has as many."""
    return ModelSpec.model_validate(TINY | sizes)


def shaken(spec: PretrainSpec | ModelSpec, seed: int = 0) -> MaskedAutoencoder:
    """A model with no weight at its starting value: zero biases would hide a mistake."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(spec.model if isinstance(spec, PretrainSpec) else spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of so many channels, up to five."""
    return (*MEAN, 0.9, 0.1)[:channels], (*STD, 0.5, 0.6)[:channels]


def stored_checkpoint(folder: Path) -> tuple[PretrainSpec, MaskedAutoencoder, MaskedAutoencoder]:
    """A new folder with a checkpoint: its spec, its student, and a teacher unlike the student."""
    spec = spec_of()
    student, teacher = shaken(spec, 0), make_teacher(shaken(spec, 1))
    folder.mkdir()
    constants = RunConstants(spec, dataset_fingerprint="", mean=MEAN, std=STD, workers=1, micro_batch_size=1)
    state = TrainState(student, teacher, make_optimizer(student, spec.optimization), step=1)
    write(folder, state.snapshot(constants, into={}), attempt=1)
    return spec, student, teacher
