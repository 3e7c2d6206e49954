"""The share of evaluations in pretraining: two workers, without Ray, evaluate after each epoch on pictures of CIFAR-10.

``python tests/benchmarks/evaluations.py [--before CHECKOUT] [--rounds N] [--out FILE]``. With ``--before``, the code of
another checkout does the same by turns. It needs the pictures of `../shared/data`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.data.cache import Cache
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import parse_spec
from trainer.spec.plan import resolve
from trainer.storage import Store
from trainer.training import periodic
from trainer.training.context import WorkerContext
from trainer.training.loop import pretrain

HERE = Path(__file__).parents[2]
WORKERS = 2
SPEC: dict[str, Any] = {
    "kind": "pretrain",
    "dataset": {"uri": str(HERE.parent / "shared/data/cifar10/test.parquet")},
    "model": {
        "preset": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 4,
        "decoder_embed_dim": 64, "decoder_depth": 1, "decoder_num_heads": 4,
    },
    "optimization": {"epochs": 3, "global_batch_size": 256, "base_lr": 1e-3, "warmup_epochs": 0, "compile": False},
    "resources": {"workers": WORKERS, "gpus_per_worker": 0, "cpus_per_worker": 1},
    "evaluation": {"every_epochs": 1},
    "checkpoint": {"every_epochs": 3, "every_minutes": None},
}  # fmt: skip


class Values:
    """Keeps what the loop records."""

    def __init__(self) -> None:
        self.newest: dict[str, float] = {}

    def log(self, step: int, metrics: Any) -> None:
        del step
        self.newest |= metrics

    def tag(self, tags: Any) -> None:
        pass

    def use(self, datasets: Any) -> None:
        pass


def work(rank: int, folder: Path) -> None:
    """One worker of an attempt; rank 0 writes how long its evaluations took."""
    meeting = dist.FileStore(str(folder / "meeting"), WORKERS)
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=WORKERS, timeout=timedelta(minutes=30))
    spent: list[float] = []
    run = periodic.Evaluate.run

    def timed(self: periodic.Evaluate, state: Any) -> None:
        begin = time.perf_counter()
        run(self, state)
        spent.append(time.perf_counter() - begin)

    periodic.Evaluate.run = timed  # type: ignore[method-assign]
    values, store = Values(), Store(str(folder / "run"))
    context = WorkerContext(store, 1, 1, values if rank == 0 else None, cache=Cache(folder / "cache"))
    begin = time.perf_counter()
    pretrain(resolve(parse_spec(SPEC), ClusterShape.of(cpus=WORKERS, gpus=0)), context)  # type: ignore[arg-type]
    if rank == 0:
        last = {key: value for key, value in values.newest.items() if key.startswith("eval/")}
        found = {"wall": time.perf_counter() - begin, "spent": spent, "last": last}
        (folder / "result.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def attempt(checkout: Path) -> dict[str, Any]:
    """What an attempt with a checkout's code took and found."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--folder", folder, "--rank"]
        workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(WORKERS)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise SystemExit(f"the attempt with {checkout} ended with {codes}")
        found: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
        return found


def table(before: Path | None, rounds: int) -> Iterator[str]:
    checkouts = {"before": before, "now": HERE} if before else {"now": HERE}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            runs[name].append(attempt(checkout))
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    yield f"{os.cpu_count()} cores, {versions}; medians of {rounds}.\n"
    yield "| code | s, an attempt | s, evaluating | share | s, the first evaluation | s, each later one | last values |"
    yield "|---|---|---|---|---|---|---|"
    for name, each in runs.items():
        wall = statistics.median(run["wall"] for run in each)
        spent = statistics.median(sum(run["spent"]) for run in each)
        first = statistics.median(run["spent"][0] for run in each)
        later = statistics.median(statistics.fmean(run["spent"][1:]) for run in each)
        values = ", ".join(f"{key} {value:.4f}" for key, value in sorted(each[0]["last"].items()))
        yield f"| {name} | {wall:.1f} | {spent:.1f} | {spent / wall:.0%} | {first:.1f} | {later:.1f} | {values} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=3, help="attempts of each checkout")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        work(options.rank, options.folder)
        return
    text = "\n".join(table(options.before, options.rounds)) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(f"# Evaluations in pretraining\n\n{text}")


if __name__ == "__main__":
    main()
