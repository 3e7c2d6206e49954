"""Parameter groups, AdamW, and the schedules of learning rate and teacher momentum."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.spec.pretrain import OptimizationSpec, TeacherSpec


class WarmupAndCosine(Protocol):
    """The settings of `learning_rate`."""

    @property
    def peak_lr(self) -> float: ...

    @property
    def min_lr(self) -> float: ...

    @property
    def warmup_epochs(self) -> float: ...

    @property
    def epochs(self) -> int: ...


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: with decay, and without (biases and one-dimensional ones)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if not decays(name, p)]
    decayed = [p for name, p in named if decays(name, p)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def decays(name: str, parameter: Tensor) -> bool:
    """Whether a parameter has weight decay: biases and one-dimensional ones have none."""
    return parameter.ndim > 1 and not name.endswith(".bias")


def make_optimizer(model: nn.Module, spec: OptimizationSpec) -> torch.optim.AdamW:
    """AdamW over ``model``; the fused kernel exists for CPU and CUDA alike."""
    groups = parameter_groups(model, spec.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=spec.betas, fused=True)


def learning_rate(spec: WarmupAndCosine, step: int, steps_per_epoch: int) -> float:
    """Rate of optimiser step ``step`` (0 for the first): linear warm-up from 0, then a half cosine to `min_lr`."""
    epoch = step / steps_per_epoch
    if epoch < spec.warmup_epochs:
        return spec.peak_lr * epoch / spec.warmup_epochs
    done = (epoch - spec.warmup_epochs) / max(spec.epochs - spec.warmup_epochs, 1 / steps_per_epoch)
    return spec.min_lr + (spec.peak_lr - spec.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def teacher_momentum(spec: TeacherSpec, step: int, steps: int) -> float:
    """Momentum after optimiser step ``step`` of ``steps`` in all.

    `cosine` rises along a half cosine over the whole training (the paper's text, by the global step); `constant`
    stays at the start's value (what the released code does in effect).
    """
    if spec.schedule == "constant":
        return spec.momentum
    return spec.final_momentum - (spec.final_momentum - spec.momentum) * 0.5 * (1 + math.cos(math.pi * step / steps))
