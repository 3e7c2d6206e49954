"""One optimiser step of supervised training: what the network sees, the loss, its gradient, the update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.finetuning.batches import Augmentation, Seen
from trainer.finetuning.network import Classifier, LinearHead
from trainer.finetuning.optim import set_learning_rate
from trainer.models.rc_mae import update_teacher
from trainer.training.step import synchronised


class SupervisedObjective(nn.Module):
    """What trains of a classifier, with the loss: the one module that is distributed."""

    def __init__(self, trained: nn.Module, label_smoothing: float, bf16: bool) -> None:
        super().__init__()
        self.trained, self.label_smoothing, self.bf16 = trained, label_smoothing, bf16

    def forward(
        self, inputs: Tensor, labels: Tensor, others: Tensor, share: Tensor, branches: Tensor | None = None
    ) -> Tensor:
        """Cross-entropies (B,) in fp32 of inputs as the classifier gives them; the rest is as in `Seen`."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.trained(inputs) if branches is None else self.trained(inputs, branches)
        own, other = (
            F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing, reduction="none")
            for target in (labels, others)
        )
        return share * own + (1 - share) * other


@dataclass(frozen=True)
class SupervisedLearner:
    """The classifier and the optimiser that a step changes, and how much of a batch it processes at once."""

    classifier: Classifier
    average: Classifier | None
    """The moving average of the weights."""
    optimizer: torch.optim.Optimizer
    network: nn.Module
    """The `SupervisedObjective`, wrapped in DDP or not."""
    augmentation: Augmentation
    micro_batch: int
    """Most images at once; even, so that pairs stay together."""
    batch: int
    """Images of a global batch."""
    world: int
    bf16: bool
    clip_grad_norm: float | None
    ema: float | None

    def step(
        self, crops: Tensor, samples: Tensor, epoch: int, lr: float, measured: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Take one step on this rank's share of a batch, crops (B, C, H, W) uint8 of samples (B,).

        Returns (1,) the share's loss, whose mean over ranks is the batch's, and, if gradients are clipped or
        ``measured``, their norm.
        """
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)

        # --- losses and backward, part by part ----------------------------------------------------------------------
        # Shares may differ in size, and DDP averages over ranks: so each image counts world / batch.
        parts, weight = -(-len(crops) // self.micro_batch), self.world / self.batch
        total = torch.zeros(1, device=self._device)
        for part, (inputs, seen) in enumerate(self._inputs(crops, samples, epoch)):
            with synchronised(self.network, last=part == parts - 1):
                losses = self.network(inputs, seen.labels, seen.others, seen.share, seen.branches)
                loss = losses.sum() * weight
                loss.backward()
            total += loss.detach()

        # --- optimiser and average ----------------------------------------------------------------------------------
        norm, trained = None, [p for p in self.classifier.trained.parameters() if p.grad is not None]
        if self.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(trained, self.clip_grad_norm)
        elif measured:
            norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        self.optimizer.step()
        if self.average is not None and self.ema is not None:
            update_teacher(self.average.trained, self.classifier.trained, self.ema)
        return total, norm

    def _inputs(self, crops: Tensor, samples: Tensor, epoch: int) -> Iterator[tuple[Tensor, Seen]]:
        """What the trained module sees of each part of a share, and what goes with it."""
        parts = self._parts(crops, samples, epoch)
        head = self.classifier.head
        if isinstance(head, LinearHead):  # it standardises over the whole batch, so it needs all features first
            every = list(parts)
            head.observe(torch.cat([inputs for inputs, _ in every]))
            parts = iter(every)
        return parts

    def _parts(self, crops: Tensor, samples: Tensor, epoch: int) -> Iterator[tuple[Tensor, Seen]]:
        for first in range(0, len(crops), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            images = crops[rows].to(self._device, non_blocking=True)
            seen = self.augmentation(images, samples[rows].numpy(), epoch)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
                inputs = self.classifier.inputs(seen.pixels)
            if inputs is not seen.pixels:
                seen = Seen(images, seen.labels, seen.others, seen.share, None)  # lets the pixels go
            yield inputs, seen

    @property
    def _device(self) -> torch.device:
        return self.classifier.encoder.cls_token.device
