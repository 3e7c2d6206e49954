"""Optimisers of supervised training: AdamW with learning rates that decay from the head down, and LARS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.finetuning.network import Classifier, Settings
from trainer.spec.finetuning import FinetuneSettings, PaperLinearSettings
from trainer.training.optim import decays

UNDECAYED = ("cls_token", "pos_embed", "query")
"""Parameters that have no weight decay although they have several dimensions."""


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888), with the learning rate outside the momentum.

    A parameter of several dimensions moves along ``trust * |w| / |g + decay * w|`` times its gradient plus decay;
    one-dimensional ones along their gradient alone.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], momentum: float, trust: float, weight_decay: float, lr: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step along the gradients; ``closure`` may compute them, and its loss is returned."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        direction = gradient
        if parameter.ndim > 1:
            direction = gradient.add(parameter, alpha=group["weight_decay"])
            size, length = parameter.norm(), direction.norm()
            adapted = group["trust"] * size / length
            direction = direction * torch.where((size > 0) & (length > 0), adapted, torch.ones_like(adapted))
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"].mul_(group["momentum"]).add_(direction)
        parameter.sub_(velocity * group["lr"])


def make_optimizer(settings: Settings, classifier: Classifier) -> torch.optim.Optimizer:
    """The optimiser of resolved settings over what trains of a classifier; `set_learning_rate` sets its rate."""
    if isinstance(settings, PaperLinearSettings):
        trained = [p for p in classifier.trained.parameters() if p.requires_grad]
        return Lars(trained, settings.momentum, settings.trust, settings.weight_decay)
    decay = float(settings.layer_decay) if isinstance(settings, FinetuneSettings) else 1.0
    groups = layer_groups(classifier, settings.weight_decay, decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, fused=True)


def layer_groups(classifier: Classifier, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters with their weight decay and the ``scale`` of their learning rate.

    The scale of layer l is ``layer_decay ** (depth + 1 - l)``: the embeddings are layer 0, block i is layer i + 1 and
    everything above the blocks is layer depth + 1.
    """
    top = classifier.encoder.depth + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decayed = _layer(name, top), decays(name, parameter) and not name.endswith(UNDECAYED)
        empty = {"params": [], "weight_decay": weight_decay * decayed, "scale": layer_decay ** (top - layer)}
        groups.setdefault((layer, decayed), empty)["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, top: int) -> int:
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed")) else top


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the head; lower layers get theirs by their scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
