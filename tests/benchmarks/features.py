"""Features of images beside the bare forward pass of the same network on the same images, decoded and in memory.

``python tests/benchmarks/features.py [--out FILE]``. Both run by turns in one process; the best round of each
counts. It needs the pictures of `../shared/data`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.evaluation.features import BLOCK, View, extract
from trainer.evaluation.ranks import alone
from trainer.models.encoder import Encoder
from trainer.models.pixels import normalised
from trainer.spec.dataset import DatasetSpec
from trainer.spec.pretrain import ModelSpec

SHARED = Path(__file__).parents[3] / "shared/data"
CPU = torch.device("cpu")
VALUES = ((0.5,) * 3, (0.25,) * 3)


class Case(NamedTuple):
    title: str
    model: dict[str, Any]
    dataset: str
    cache: str
    images: int


TINY: dict[str, Any] = {"preset": "vit_tiny_patch16_224"}
SMALL_PICTURES = TINY | {"img_size": 32, "patch_size": 4}
CIFAR = "cifar10/test.parquet"
CASES = (
    Case("CIFAR-10, kept decoded; 32 px, patch 4, 192 wide", SMALL_PICTURES, CIFAR, "ram", 512),
    Case("CIFAR-10, JPEG; 32 px, patch 4, 192 wide", SMALL_PICTURES, CIFAR, "none", 512),
    Case("photographs, JPEG; ViT-Tiny, 224 px", TINY, "photos", "none", 192),
    Case("photographs, JPEG; ViT-Small, 224 px", {"preset": "vit_small_patch16_224"}, "photos", "none", 128),
)  # fmt: skip


def row(case: Case, cache: Path, rounds: int) -> str:
    """The times of one case, as a row of the table."""
    model, threads = ModelSpec.model_validate(case.model), torch.get_num_threads()
    dataset = DatasetSpec.model_validate({"uri": str(SHARED / case.dataset), "cache": case.cache})
    size = (model.height, model.width)
    images = open_images(dataset, 3, size, DatasetContext(Cache(cache), threads, Agreement(1), 0))
    network, rows, view = Encoder(model).eval(), np.arange(case.images), View(size, *VALUES)
    pixels = torch.from_numpy(images.fitted(rows, size)).split(BLOCK)

    def features() -> None:
        extract(
            network, images, rows, view, pooling="mean", layers=[model.depth], ranks=alone(), threads=threads,
            bf16=False, device=CPU,
        )  # fmt: skip

    def forward() -> None:
        for block in pixels:
            network.encode(normalised(block, *VALUES))[:, 1:].mean(dim=1)

    seconds: dict[Any, list[float]] = {features: [], forward: []}
    for _ in range(rounds + 1):
        for work, taken in seconds.items():
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
    ours, bare = (min(taken[1:]) for taken in seconds.values())  # the first one warms up
    return f"| {case.title} | {case.images / ours:.0f} | {case.images / bare:.0f} | {ours / bare:.2f} |"


def table(rounds: int) -> Iterator[str]:
    yield f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
    yield f"Python {platform.python_version()}.\n"
    yield "| images and network | images/s, features | images/s, forward pass | time / forward |\n|---|---|---|---|"
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        for case in CASES:
            yield row(case, Path(cache), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    text = "\n".join(table(options.rounds)) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(f"# Features of images\n\n{text}")


if __name__ == "__main__":
    main()
