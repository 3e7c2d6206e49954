"""One optimiser step: the losses of a batch, their gradients, the student's update and the teacher's."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.models.pixels import normalised, take_patches, targets
from trainer.models.rc_mae import MaskedAutoencoder, consistency_loss, reconstruction_loss, update_teacher
from trainer.spec.pretrain import MethodSpec


class Objective(nn.Module):
    """Student and teacher with the losses of the method: the one module that is distributed and compiled.

    Autocast and `no_grad` around the teacher are inside it, so that one compiled graph holds the whole forward pass and
    nothing outside causes a recompilation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        method: MethodSpec,
        student: MaskedAutoencoder,
        teacher: MaskedAutoencoder | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        bf16: bool,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.method, self.bf16 = student, teacher, method, bf16
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value, device=student.pos_embed.device))

    def forward(self, images: Tensor, orders: Tensor) -> Tensor:
        """Losses (3,) of images (b, C, H, W) uint8 under orders (b, L): total, reconstruction, consistency (0 for MAE).

        Only the total carries a gradient.
        """
        method, visible = self.method, int(orders.shape[1] * (1 - self.method.mask_ratio))
        patches = take_patches(normalised(images, self.mean, self.std), orders, self.student.patch_size)
        visible_patches, target = patches[:, :visible], targets(patches[:, visible:], method.norm_pix_loss)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = self.student(visible_patches, orders)
            if self.teacher is not None:
                with torch.no_grad():
                    expected = self.teacher(visible_patches, orders)
        reconstruction = reconstruction_loss(prediction, target)
        if self.teacher is None:
            return torch.stack([reconstruction, reconstruction.detach(), torch.zeros_like(reconstruction)])
        consistency = consistency_loss(prediction, expected)
        total = reconstruction + method.consistency_weight * consistency
        return torch.stack([total, reconstruction.detach(), consistency.detach()])


@dataclass(frozen=True)
class Learner:
    """The networks and the optimiser that a step changes, and how much of a batch it processes at once."""

    student: MaskedAutoencoder
    teacher: MaskedAutoencoder | None
    optimizer: torch.optim.Optimizer
    network: nn.Module
    """The `Objective` of student and teacher, compiled or not, wrapped in DDP or not."""
    micro_batch: int
    clip_grad_norm: float | None

    def step(
        self, images: Tensor, orders: Tensor, lr: float, momentum: float | None, measured: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Take one optimiser step on this rank's share of a batch, images (B, C, H, W) uint8 and orders (B, L).

        Returns its losses (3,) as `Objective` does and, if gradients are clipped or ``measured``, their norm.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)

        # --- losses and backward, part by part ----------------------------------------------------------------------
        parts = len(images) // self.micro_batch
        losses = []
        for part in range(parts):
            rows = slice(part * self.micro_batch, (part + 1) * self.micro_batch)
            with synchronised(self.network, last=part == parts - 1):
                part_losses = self.network(*(t[rows].to(self._device, non_blocking=True) for t in (images, orders)))
                (part_losses[0] / parts).backward()
            losses.append(part_losses.detach())

        # --- optimiser and teacher ----------------------------------------------------------------------------------
        norm = None
        if self.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_grad_norm)
        elif measured:
            norm = nn.utils.get_total_norm([p.grad for p in self.student.parameters() if p.grad is not None])
        self.optimizer.step()
        if self.teacher is not None and momentum is not None:
            update_teacher(self.teacher, self.student, momentum)
        return torch.stack(losses).mean(dim=0), norm

    @property
    def _device(self) -> torch.device:
        return self.student.pos_embed.device


def synchronised(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
    """Averages gradients over the ranks in the backward pass of the last part only."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return contextlib.nullcontext()
