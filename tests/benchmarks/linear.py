"""The linear probe's solver beside scikit-learn's, on the same features in one process.

``python tests/benchmarks/linear.py [made] [cifar10] [--images N] [--threads T] [--out FILE]``. Ours chooses the
strength of regularisation among nine and fits all images to the optimum; scikit-learn only fits, at the strength that
ours has chosen, with its defaults but for the iterations allowed. `cifar10` needs the pictures in `../shared/data`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.images import IMAGENET_MEAN, IMAGENET_STD, fixed_images
from trainer.evaluation.linear import fit_linear
from trainer.evaluation.ranks import alone
from trainer.models.pixels import normalised
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.dataset import DatasetSpec
from trainer.spec.pretrain import ModelSpec

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
WIDTH, CLASSES = 768, 10
TEST_IMAGES = 10_000
MAX_ITERATIONS = 2000
BATCH = 256
HEAD = (
    "features", "images", "ours: seconds", "CPU", "iterations", "test top-1", "scikit-learn: seconds", "CPU",
    "iterations", "test top-1", "times faster, by CPU", "points apart",
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Features (n, D) and labels (n,) to fit, and others to test."""

    title: str
    x: Tensor
    y: NDArray[np.int64]
    test_x: Tensor
    test_y: NDArray[np.int64]

    @classmethod
    def split(cls, title: str, x: Tensor, y: NDArray[np.int64], test: int) -> Data:
        return cls(title, x[:-test], y[:-test], x[-test:], y[-test:])


def made(images: int) -> Data:
    """Overlapping classes in 768 correlated columns, whose variances along their axes fall by a power."""
    generator = torch.Generator().manual_seed(0)
    count = images + TEST_IMAGES
    axes, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))
    sizes = torch.arange(1, WIDTH + 1) ** -0.75
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=generator) * (torch.rand(WIDTH, generator=generator) < 0.3)
    values = torch.randn(count, WIDTH, generator=generator) + 0.175 * centres[labels]
    offset = 0.3 * torch.randn(WIDTH, generator=generator)
    return Data.split("made, 768 correlated columns", values * sizes @ axes + offset, labels.numpy(), TEST_IMAGES)


@torch.no_grad()
def cifar10(images: int, cache: Path) -> Data:
    """Mean patch tokens (192 values) of an untrained ViT-Tiny of patch 4 on pictures of CIFAR-10."""
    torch.manual_seed(0)
    fields = {"preset": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, "depth": 4}
    network = MaskedAutoencoder(ModelSpec.model_validate(fields)).eval()
    context = DatasetContext(Cache(cache), 1, Agreement(1), 0)
    source = open_images(DatasetSpec(uri=str(CIFAR10 / "train.parquet")), 3, (32, 32), context)
    test = min(TEST_IMAGES, images // 5)
    rows = np.arange(min(images + test, len(source)))
    features = []
    for first in range(0, len(rows), BATCH):
        pixels = fixed_images(source, rows[first : first + BATCH], (32, 32), 1)
        features.append(network.encode(normalised(pixels, IMAGENET_MEAN, IMAGENET_STD))[:, 1:].mean(dim=1))
    return Data.split("CIFAR-10, untrained ViT", torch.cat(features), source.labels.values[rows], test)


class Stopwatch:
    """Seconds, and CPU seconds of all threads, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def compare(data: Data) -> tuple[str, ...]:
    """A row of the table."""
    watch = Stopwatch()
    features = {1: data.x}
    ours = fit_linear(features, data.y, CLASSES, seed=0, device=torch.device("cpu"), ranks=alone())
    wall, cpu = watch.read()
    accuracy = float(np.mean(ours.scores(data.test_x).argmax(dim=1).numpy() == data.test_y))

    watch = Stopwatch()
    scaler = StandardScaler().fit(data.x.numpy())
    theirs = LogisticRegression(C=1 / (ours.strength * len(data.y)), max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the table says how many iterations it took
        theirs.fit(scaler.transform(data.x.numpy()), data.y)
    their_wall, their_cpu = watch.read()
    their_accuracy = theirs.score(scaler.transform(data.test_x.numpy()), data.test_y)
    return (
        data.title, f"{len(data.y):,}", f"{wall:.1f}", f"{cpu:.1f}", f"{ours.iterations} at {ours.strength:g}",
        f"{accuracy:.2%}", f"{their_wall:.1f}", f"{their_cpu:.1f}", str(theirs.n_iter_[0]), f"{their_accuracy:.2%}",
        f"{their_cpu / cpu:.1f}", f"{100 * (accuracy - their_accuracy):+.2f}",
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Measure, print, and write where told to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="*", choices=("made", "cifar10"))
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "rcmae-bench")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    lines = [
        f"torch {torch.__version__}, scikit-learn {version('scikit-learn')}, {args.threads} threads.\n",
        "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|",
    ]  # fmt: skip
    for name in args.data or ("made", *(["cifar10"] if CIFAR10.is_dir() else [])):
        data = made(args.images) if name == "made" else cifar10(args.images, args.cache)
        lines.append("| " + " | ".join(compare(data)) + " |")
    sys.stdout.write("\n".join(lines) + "\n")
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
