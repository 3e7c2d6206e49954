"""Images a second of one training step: RC-MAE, MAE in the same code, and RC-MAE out of transformers' ViTMAE.

Prints a table of one run; only the ratios mean anything on another machine.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from trainer.models.rc_mae import (
    MaskedAutoencoder,
    consistency_loss,
    make_teacher,
    masked_targets,
    reconstruction_loss,
    update_teacher,
)
from trainer.optim import make_optimizer
from trainer.spec.pretrain import ModelSpec, OptimizationSpec

SIZES = {
    "32 px, patch 4, 192 wide": (
        {"preset": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, "decoder_embed_dim": 128},
        64,
    ),
    "ViT-Tiny, 224 px": ({"preset": "vit_tiny_patch16_224"}, 16),
}
ROUNDS, STEPS = 5, 3


def ours(model: ModelSpec, batch: int, with_teacher: bool) -> Callable[[], None]:
    """One step of our code, as the loop does it."""
    student = MaskedAutoencoder(model)
    teacher = make_teacher(student) if with_teacher else None
    optimizer = make_optimizer(student, OptimizationSpec())
    images = torch.randn(batch, model.in_chans, model.height, model.width)
    orders, visible = torch.rand(batch, model.patches).argsort(dim=1), model.patches // 4

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        target = masked_targets(images, orders, visible, model.patch_size, True)
        prediction = student(images, orders, visible)
        loss = reconstruction_loss(prediction, target)
        if teacher is not None:
            with torch.no_grad():
                expected = teacher(images, orders, visible)
            loss = loss + consistency_loss(prediction, expected)
        loss.backward()
        optimizer.step()
        if teacher is not None:
            update_teacher(teacher, student, 0.996)

    return step


def theirs(model: ModelSpec, batch: int) -> Callable[[], None]:
    """RC-MAE out of transformers' ViTMAE (SDPA) with an averaged copy."""
    config = ViTMAEConfig(
        hidden_size=model.embed_dim, num_hidden_layers=model.depth, num_attention_heads=model.num_heads,
        intermediate_size=4 * model.embed_dim, image_size=model.height, patch_size=model.patch_size,
        num_channels=model.in_chans, decoder_hidden_size=model.decoder_embed_dim,
        decoder_num_hidden_layers=model.decoder_depth, decoder_num_attention_heads=model.decoder_num_heads,
        decoder_intermediate_size=4 * model.decoder_embed_dim, layer_norm_eps=1e-6, norm_pix_loss=True,
        attn_implementation="sdpa",
    )  # fmt: skip
    student = ViTMAEForPreTraining(config)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), fused=True)
    images = torch.randn(batch, model.in_chans, model.height, model.width)
    noise = torch.rand(batch, model.patches)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = student(images, noise=noise)
        with torch.no_grad():
            expected = teacher(images, noise=noise).logits
        apart = (out.logits - expected).square().mean(dim=-1)
        (out.loss + (apart * out.mask).sum() / out.mask.sum()).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.004)

    return step


def measure(steps: dict[str, Callable[[], None]], batch: int) -> dict[str, float]:
    """Images a second of each, the best of some rounds taken by turns."""
    best = dict.fromkeys(steps, 0.0)
    for step in steps.values():
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            best[name] = max(best[name], STEPS * batch / (time.perf_counter() - begin))
    return best


def main() -> int:
    """Measure and print."""
    torch.manual_seed(0)
    table = Table("size", "form", "images/s", "ratio to transformers", box=None)
    for size, (fields, batch) in SIZES.items():
        model = ModelSpec.model_validate(fields)
        forms = {
            "RC-MAE": ours(model, batch, with_teacher=True),
            "MAE, the same code": ours(model, batch, with_teacher=False),
            "RC-MAE from transformers": theirs(model, batch),
        }
        rates = measure(forms, batch)
        for name, rate in rates.items():
            table.add_row(size, name, f"{rate:.0f}", f"{rate / rates['RC-MAE from transformers']:.2f}")
    console = Console()
    console.print(f"fp32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
