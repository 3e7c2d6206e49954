"""Code for the model card that fine-tunes a backbone as a classifier, with timm and with transformers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from trainer.export import inputs
from trainer.export.inputs import Subject
from trainer.export.snippets import TRANSFORM, Snippet, processor, transformers_imports
from trainer.spec.formats import BACKBONE_HF, BACKBONE_TIMM, HUB_ORGANISATION

LAYER_DECAY: Final = 0.75
"""Learning rate of each block, relative to the block above it: that of MAE's fine-tuning of ViT-Base and ViT-Large."""


def finetuning(subject: Subject) -> Iterator[Snippet]:
    """Sections for the formats that a backbone has."""
    if BACKBONE_TIMM in subject.formats:
        text = (
            "The classifier reads the mean of the patch tokens. Lower blocks learn more slowly than upper ones "
            "(`layer_decay`)."
        )
        yield Snippet(BACKBONE_TIMM, "Fine-tuning with timm", text, _timm(subject))
    if BACKBONE_HF in subject.formats:
        text = "`ViTForImageClassification` reads the class token; it warns, rightly, that its classifier is new."
        yield Snippet(BACKBONE_HF, "Fine-tuning with transformers", text, _transformers(subject))


def _timm(subject: Subject) -> str:
    head = inputs.imports(
        subject,
        "import timm",
        "import torch",
        "from pathlib import Path",
        "from timm.optim import create_optimizer_v2",
        "from torch.utils.data import DataLoader",
    )
    name = f"hf-hub:{HUB_ORGANISATION}/{subject.name}-timm"
    options = 'pretrained=True, num_classes=len(classes), global_pool="avg", fc_norm=False'
    optimizer = f'opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay={LAYER_DECAY}'
    model = f'model = timm.create_model(\n    "{name}", {options}\n)'
    return "\n".join([
        f"{head}\n\n{_files(subject)}",
        model + (f"\n{TRANSFORM}" if subject.mode else ""),
        _collate(inputs.by_transform(subject, "file")),
        f"optimizer = create_optimizer_v2(model, {optimizer})",
        _loop("torch.nn.functional.cross_entropy(model(pixels), labels)"),
    ])  # fmt: skip


def _transformers(subject: Subject) -> str:
    loaders = ("from pathlib import Path", "from torch.utils.data import DataLoader")
    head = transformers_imports(subject, "ViTForImageClassification", *loaders)
    repository = f'"{HUB_ORGANISATION}/{subject.name}"'
    prepares = processor(subject, repository)
    model = f"model = ViTForImageClassification.from_pretrained({repository}, num_labels=len(classes))"
    return "\n".join([
        f"{head}\n{_files(subject)}",
        model + (f"\n{prepares}" if prepares else ""),
        _collate(inputs.by_processor(subject, "file")),
        "optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)",
        _loop("model(pixels, labels=labels).loss"),
    ])  # fmt: skip


def _files(subject: Subject) -> str:
    pattern, shown = ("*/*", "photos/<class>/<picture>") if subject.mode else ("*/*.npy", "images/<class>/<image>.npy")
    folder = shown.partition("/")[0]
    return (
        f'files = sorted(Path("{folder}").glob("{pattern}"))  # {shown}\n'
        "classes = sorted({file.parent.name for file in files})"
    )


def _collate(prepare: str) -> str:
    """A function that reads files as a batch of ``pixels`` and ``labels``."""
    return (
        f"\n\ndef prepare(file):\n{textwrap.indent(prepare, '    ')}\n    return pixels[0]  # augment it here\n\n\n"
        "def collate(files):\n"
        "    labels = torch.tensor([classes.index(file.parent.name) for file in files])\n"
        "    return torch.stack([prepare(file) for file in files]), labels\n\n"
    )


def _loop(loss: str) -> str:
    return (
        "loader = DataLoader(files, batch_size=32, shuffle=True, collate_fn=collate)  # num_workers=8 for many files\n"
        "model.train()\n"
        "losses = []\n"
        "for epoch in range(10):\n"
        "    for pixels, labels in loader:\n"
        f"        loss = {loss}\n"
        "        optimizer.zero_grad()\n"
        "        loss.backward()\n"
        "        optimizer.step()\n"
        "        losses.append(loss.item())\n"
        "    print(epoch, losses[-1])"
    )
