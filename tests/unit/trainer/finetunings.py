"""Small real supervised trainings on scikit-learn's digits, in one process or in several, for tests."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loops import Memory
from safetensors.torch import load_file
from worlds import on_ranks

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.images import Images
from trainer.evaluation.features import View
from trainer.evaluation.ranks import Ranks
from trainer.finetuning.loop import train
from trainer.finetuning.training import Trained, Training, TrainingPlace
from trainer.models.encoder import Encoder
from trainer.protocol.command import Action
from trainer.spec.dataset import DatasetSpec
from trainer.spec.finetuning import AttentiveSettings, FinetuneSettings, PaperLinearSettings
from trainer.spec.pretrain import CheckpointSpec, ModelSpec
from trainer.storage import Store

MODEL = ModelSpec.model_validate(
    {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4}
)
VIEW = View((16, 16), (0.3,), (0.4,))
STRONG = {"epochs": 2, "batch_size": 60, "base_lr": 2e-3, "hflip": False, "precision": "fp32", "every_epochs": 1}
"""Fine-tuning with everything that the paper's recipe has."""
SETTINGS = {
    "finetune": FinetuneSettings(**STRONG, ema=0.9),
    "linear": PaperLinearSettings(epochs=2, batch_size=60, base_lr=1.0, hflip=False, pooling="attention"),
    "attentive": AttentiveSettings(epochs=2, batch_size=60, hflip=False),
}


@cache
def digits() -> Images:
    context = DatasetContext(Cache(), threads=1, agree=Agreement(1), rank=0)
    return open_images(DatasetSpec(uri="builtin://digits"), 1, VIEW.size, context)


def encoder_weights(seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return Encoder(MODEL).state_dict()


def training(settings: Any, images: int = 300, **changes: Any) -> Training:
    """Training on the first digits, tested on the 100 after them."""
    data = digits()
    rows, test = np.arange(images), np.arange(images, images + 100)
    made = Training(
        settings=settings, model=MODEL, view=VIEW, encoder=encoder_weights(), images=data, rows=rows,
        labels=data.labels.values[rows], classes=10, test_images=data, test_rows=test,
        test_labels=data.labels.values[test], seed=3,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def run(
    made: Training, folder: Path, attempt: int = 1, wanted: Callable[[], Action | None] = lambda: None,
    ranks: Ranks | None = None, agree: Agreement | None = None,
) -> tuple[Trained, Memory]:  # fmt: skip
    """One attempt in this process."""
    memory, notices = Memory(), []
    ranks = ranks or Ranks(Agreement(1), 0, 1)
    first = ranks.rank == 0
    where = TrainingPlace(
        store=Store(str(folder / "unit")), attempt=attempt, since_attempt=1, ranks=ranks,
        agree=agree or Agreement(ranks.world),
        record=memory.log if first else None, notice=notices.append, requested_action=wanted,
        checkpoint=CheckpointSpec(every_epochs=1, keep=10),
    )  # fmt: skip
    trained = train(made, where)
    memory.tags["first notice"] = notices[0] if notices else ""
    return trained, memory


def spread(world: int, made: Training, folder: Path, attempt: int = 1, die_at: int | None = None) -> list[Any]:
    """One attempt in as many processes as ``world``: what each rank found, or None where they died at a step."""
    return on_ranks(world, folder, _on_rank, made, folder, attempt, die_at)


def _on_rank(ranks: Ranks, made: Training, folder: Path, attempt: int, die_at: int | None) -> dict[str, Any] | None:
    asked = 0

    def wanted() -> Action | None:
        nonlocal asked
        if asked == die_at:
            while not (folder / f"unit/checkpoints/a{attempt}/00000005/manifest.json").exists():
                time.sleep(0.01)
            raise Killed
        asked += 1
        return None

    try:
        trained, memory = run(made, folder, attempt, wanted, ranks)
    except Killed:
        return None
    return {
        "scores": trained.scores.numpy(), "loss": memory.curve("train/loss"), "checkpoint": trained.checkpoint.folder,
        "curve": trained.curve,
    }  # fmt: skip


class Killed(BaseException):
    """Ends a training at a step, as if its process had been killed."""


def stored(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    files = sorted((folder / "unit" / checkpoint).glob("*.safetensors"))
    return {f"{file.stem}.{name}": value for file in files for name, value in load_file(file).items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
