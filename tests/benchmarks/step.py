"""One training step, from uint8 images to the updated teacher, in four forms that learn the same.

Ours (the very step of the training loop), MAE in the same code, RC-MAE out of transformers' ViTMAE with SDPA and an
averaged copy, and RC-MAE as a textbook has it. All forms of a size run by turns in one process, the best round of each
counts, and only the ratios mean anything on another machine. `--out` writes the table as Markdown.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from trainer.data.images import IMAGENET_MEAN, IMAGENET_STD
from trainer.models.pixels import normalised, patchify, targets
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher
from trainer.models.vit import position_embedding
from trainer.spec.plan import step_flops
from trainer.spec.pretrain import MethodSpec, ModelSpec, OptimizationSpec
from trainer.training.optim import make_optimizer
from trainer.training.step import Learner, Objective

RC_MAE, MAE = MethodSpec(), MethodSpec.model_validate({"name": "mae"})
LR, MOMENTUM = 1e-4, 0.996
OURS, OURS_MAE, THEIRS, TEXTBOOK = "RC-MAE, ours", "MAE, ours", "RC-MAE, transformers", "RC-MAE, textbook"


@dataclass(frozen=True)
class Size:
    title: str
    fields: dict[str, object]
    batch: int
    on: str

    @property
    def model(self) -> ModelSpec:
        return ModelSpec.model_validate(self.fields)


TINY: dict[str, object] = {"preset": "vit_tiny_patch16_224"}
SIZES = {
    "32": Size("32 px, patch 4, 192 wide", TINY | {"img_size": 32, "patch_size": 4}, 64, "cpu"),
    "tiny": Size("ViT-Tiny, 224 px", TINY, 16, "cpu"),
    "small": Size("ViT-Small, 224 px", {"preset": "vit_small_patch16_224"}, 512, "cuda"),
    "base": Size("ViT-Base, 224 px", {"preset": "vit_base_patch16_224"}, 256, "cuda"),
    "large": Size("ViT-Large, 224 px", {"preset": "vit_large_patch16_224"}, 128, "cuda"),
}  # fmt: skip
BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""Dense bf16 FLOPs a second by the makers' data sheets."""


# --- the four forms -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A step and what it holds between two steps."""

    step: Callable[[], object]
    holds: list[nn.Module]
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Setting:
    size: Size
    device: torch.device
    bf16: bool
    compiled: bool

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8 and noise (B, L) in the memory that a loader leaves them in."""
        model, pinned = self.size.model, self.device.type == "cuda"
        shape = (self.size.batch, model.in_chans, model.height, model.width)
        images = torch.randint(0, 256, shape, dtype=torch.uint8)
        noise = torch.rand(self.size.batch, model.patches)
        return (images.pin_memory(), noise.pin_memory()) if pinned else (images, noise)


def ours(setting: Setting, method: MethodSpec) -> Form:
    """The step of the training loop itself."""
    student = MaskedAutoencoder(setting.size.model).to(setting.device)
    teacher = make_teacher(student) if method.teacher else None
    optimizer = make_optimizer(student, OptimizationSpec())
    objective = Objective(method, student, teacher, IMAGENET_MEAN, IMAGENET_STD, setting.bf16)
    if setting.compiled:
        objective.compile(fullgraph=True, dynamic=False)
    learner = Learner(student, teacher, optimizer, objective, setting.size.batch, clip_grad_norm=None)
    images, noise = setting.batch()
    orders = noise.argsort(dim=1)
    return Form(lambda: learner.step(images, orders, LR, MOMENTUM, measured=False), [objective], optimizer)


def of_model(
    setting: Setting,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
    follow: Callable[[nn.Module, nn.Module], None],
) -> Form:
    """RC-MAE around a model whose ``losses`` are its prediction, its loss and the mask (B, L)."""
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    host_images, host_noise = setting.batch()

    def loss_of(images: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.bf16):
            pixels = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
            prediction, reconstruction, mask = losses(student, pixels, noise)
            with torch.no_grad():
                expected, _, _ = losses(teacher, pixels, noise)
            apart = (prediction.float() - expected.float()).square().mean(dim=-1)
            return reconstruction + (apart * mask).sum() / mask.sum()

    forward = torch.compile(loss_of, dynamic=False) if setting.compiled else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        images, noise = (t.to(setting.device, non_blocking=True) for t in (host_images, host_noise))
        forward(images, noise).backward()
        optimizer.step()
        follow(teacher, student)

    return Form(step, [student, teacher], optimizer)


def theirs(setting: Setting) -> Form:
    """Out of transformers' ViTMAE with its SDPA attention; fused AdamW, and the average by one call for all."""
    model = setting.size.model
    config = ViTMAEConfig(
        hidden_size=model.embed_dim, num_hidden_layers=model.depth, num_attention_heads=model.num_heads,
        intermediate_size=4 * model.embed_dim, image_size=model.height, patch_size=model.patch_size,
        num_channels=model.in_chans, decoder_hidden_size=model.decoder_embed_dim,
        decoder_num_hidden_layers=model.decoder_depth, decoder_num_attention_heads=model.decoder_num_heads,
        decoder_intermediate_size=4 * model.decoder_embed_dim, layer_norm_eps=1e-6, norm_pix_loss=True,
        attn_implementation="sdpa",
    )  # fmt: skip

    def losses(network: nn.Module, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = network(pixels, noise=noise)
        return out.logits, out.loss, out.mask

    @torch.no_grad()
    def follow(teacher: nn.Module, student: nn.Module) -> None:
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - MOMENTUM)

    student = ViTMAEForPreTraining(config).to(setting.device)
    return of_model(setting, student, torch.optim.AdamW(student.parameters(), LR, fused=True), losses, follow)


def textbook(setting: Setting) -> Form:
    """As written down: every patch embedded, scores in full, every token predicted, one parameter after the other."""

    def losses(network: nn.Module, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prediction, mask = network(pixels, noise)
        target = targets(patchify(pixels, setting.size.model.patch_size), norm_pix_loss=True)
        apart = (prediction.float() - target).square().mean(dim=-1)
        return prediction, (apart * mask).sum() / mask.sum(), mask

    @torch.no_grad()
    def follow(teacher: nn.Module, student: nn.Module) -> None:
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
            old.copy_(MOMENTUM * old + (1 - MOMENTUM) * new)

    student = Textbook(setting.size.model).to(setting.device)
    return of_model(setting, student, torch.optim.AdamW(student.parameters(), LR), losses, follow)


class TextbookBlock(nn.Module):
    """Pre-norm block with softmax(q k^T / sqrt(d)) v spelt out."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        query, key, value = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / (d // self.heads) ** 0.5).softmax(dim=-1)
        x = x + self.proj((weights @ value).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class Textbook(nn.Module):
    """A masked auto-encoder without any saving."""

    pos_embed: Tensor
    decoder_pos_embed: Tensor

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        dim, width = model.embed_dim, model.decoder_embed_dim
        self.visible = model.patches // 4
        self.patch_embed = nn.Conv2d(model.in_chans, dim, model.patch_size, model.patch_size)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", position_embedding(model.grid, dim))
        self.register_buffer("decoder_pos_embed", position_embedding(model.grid, width))
        self.encoder = nn.Sequential(*(TextbookBlock(dim, model.num_heads) for _ in range(model.depth)))
        self.norm, self.decoder_embed = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, width)
        self.decoder = nn.Sequential(
            *(TextbookBlock(width, model.decoder_num_heads) for _ in range(model.decoder_depth))
        )
        self.head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, model.patch_values))

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (B, L, V) of all patches and the mask (B, L), 1 where one was hidden."""
        tokens = self.patch_embed(pixels).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        order = noise.argsort(dim=1)
        back = order.argsort(dim=1)
        seen = tokens.gather(1, order[:, : self.visible, None].expand(-1, -1, tokens.shape[2]))
        cls = self.cls_token.expand(len(seen), -1, -1)
        x = self.decoder_embed(self.norm(self.encoder(torch.cat([cls, seen], dim=1))))
        hidden = self.mask_token.expand(len(x), back.shape[1] - self.visible, -1).to(x.dtype)
        every = torch.cat([x[:, 1:], hidden], dim=1).gather(1, back[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], every], dim=1) + self.decoder_pos_embed
        return self.head(self.decoder(x))[:, 1:], (back >= self.visible).float()


# --- measuring ------------------------------------------------------------------------------------------------------


def forms_of(setting: Setting) -> dict[str, Form]:
    """Every form in one setting; the textbook's is never compiled."""
    forms = {OURS: ours(setting, RC_MAE), OURS_MAE: ours(setting, MAE), THEIRS: theirs(setting)}
    return forms if setting.compiled else {**forms, TEXTBOOK: textbook(setting)}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(forms: dict[str, Form], device: torch.device, rounds: int) -> dict[str, float]:
    """Seconds of a step of each form: the best of rounds taken by turns, after two steps to warm up."""
    for form in forms.values():
        for _ in range(2):
            form.step()
    best = dict.fromkeys(forms, float("inf"))
    for _ in range(rounds):
        for name, form in forms.items():
            form.step()  # the caches are another form's
            synchronise(device)
            begin = time.perf_counter()
            form.step()
            synchronise(device)
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def peak_memory(form: Form, device: torch.device) -> int:
    """Bytes of tensors alive at the fullest moment of a step, state included."""
    kept = [t for module in form.holds for t in (*module.parameters(), *module.buffers())]
    kept += [t for state in form.optimizer.state.values() for t in state.values()]
    state = sum(t.nbytes for t in {t.data_ptr(): t for t in kept}.values())
    for parameter in (p for module in form.holds for p in module.parameters()):
        parameter.grad = None
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        form.step()
        synchronise(device)
        return state + torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        form.step()
    now = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return state + highest


def device_peak(device: torch.device, bf16: bool) -> float:
    """FLOPs a second: by the data sheet of a known GPU, else of a large matrix product, measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in BF16_PEAK.items():
            if part in name and bf16:
                return peak
    side = 2048 if device.type == "cpu" else 8192
    left, right = torch.randn(2, side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = float("inf")
    for _ in range(8):
        synchronise(device)
        begin = time.perf_counter()
        left @ right
        synchronise(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


HEAD = (
    "size",
    "precision",
    "form",
    "images/s",
    "peak MB",
    "of device peak",
    "/ transformers",
    "/ textbook",
    "time / MAE",
)


def rows_of(setting: Setting, rounds: int, reference: dict[str, float]) -> Iterable[tuple[str, ...]]:
    """A row for each form. ``reference`` keeps the textbook's rate of the eager setting for the compiled one's rows."""
    torch.manual_seed(0)
    forms, batch = forms_of(setting), setting.size.batch
    rates = {name: batch / taken for name, taken in seconds(forms, setting.device, rounds).items()}
    reference |= {TEXTBOOK: rates[TEXTBOOK]} if TEXTBOOK in rates else {}
    peak = device_peak(setting.device, setting.bf16)
    for name, rate in rates.items():
        method = MAE if name == OURS_MAE else RC_MAE
        share = rate * step_flops(setting.size.model, method) / peak
        yield (
            setting.size.title, "bf16" if setting.bf16 else "fp32", f"{name}{', compiled' if setting.compiled else ''}",
            f"{rate:.1f}", f"{peak_memory(forms[name], setting.device) / 2**20:.0f}", f"{share:.0%}",
            f"{rate / rates[THEIRS]:.2f}", f"{rate / reference[TEXTBOOK]:.2f}", f"{rates[OURS_MAE] / rate:.2f}",
        )  # fmt: skip


def heading(device: torch.device, arguments: list[str]) -> str:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu}, {os.cpu_count()} cores"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return "\n".join(
        (
            "# One training step\n",
            f"`{' '.join(['python tests/benchmarks/step.py', *arguments])}`\n",
            f"{name}, {torch.get_num_threads()} threads; {versions}.",
            "The best round of each form, by turns. `/ transformers` and `time / MAE` compare within a setting,",
            "compiled with compiled; `/ textbook` with the textbook form as it is written. Memory: tensors alive at",
            "the fullest moment of a step. The device's peak: a large matrix product's, or a GPU's data sheet.\n",
        )
    )


def main(arguments: list[str]) -> int:
    """Measure, print, and write where told to."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = [name for name, size in SIZES.items() if size.on == device.type]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=here)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="measure the compiled forms too: minutes a setting")
    parser.add_argument("--batch", type=int, help="images of a step, instead of the size's own")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(arguments)
    precisions = args.precision or (["fp32", "bf16"] if device.type == "cpu" else ["bf16"])
    lines = [heading(device, arguments), "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    sys.stdout.write("\n".join(lines) + "\n")
    for size in (replace(SIZES[name], batch=args.batch or SIZES[name].batch) for name in args.sizes):
        for precision in precisions:
            reference: dict[str, float] = {}
            for compiled in (False, True) if args.compile else (False,):
                torch.compiler.reset()
                setting = Setting(size, device, precision == "bf16", compiled)
                for row in rows_of(setting, args.rounds, reference):
                    lines.append("| " + " | ".join(row) + " |")
                    sys.stdout.write(lines[-1] + "\n")
                    sys.stdout.flush()
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
