"""The script that `orchestration.py` compares with: a plain `TorchTrainer` around the training loop, and no service.

``python bare.py FOLDER``: reads FOLDER/spec.json, appends a line a step to FOLDER/record, keeps checkpoints there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from trainer.spec import metric_keys
from trainer.spec.pretrain import PretrainSpec
from trainer.tracking.interface import UsedDataset


class Record:
    """Rank 0's metrics: a line a step."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if metric_keys.SAMPLES in metrics:
            with self._file.open("a") as file:
                file.write(f"{os.getpid()} {step} {metrics[metric_keys.SAMPLES]} {time.time()}\n")

    def tag(self, tags: Mapping[str, str]) -> None:
        """Nobody reads them."""

    def use(self, datasets: Sequence[UsedDataset]) -> None:
        """Nor these."""


def train(config: dict[str, Any]) -> None:
    from trainer.storage import Store  # noqa: PLC0415
    from trainer.training.context import WorkerContext  # noqa: PLC0415
    from trainer.training.loop import pretrain  # noqa: PLC0415 - as in every worker, torch is imported here

    folder, rank = Path(config["folder"]), ray.train.get_context().get_world_rank()
    (folder / f"rank-{rank}").write_text(str(os.getpid()))
    recorder = Record(folder / "record") if rank == 0 else None
    spec = PretrainSpec.model_validate_json((folder / "spec.json").read_text())
    pretrain(spec, WorkerContext(store=Store(str(folder)), attempt=1, since_attempt=1, recorder=recorder))


def main() -> None:
    folder = Path(sys.argv[1])
    resources = PretrainSpec.model_validate_json((folder / "spec.json").read_text()).resources
    TorchTrainer(
        train,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(
            num_workers=int(resources.workers), resources_per_worker={"CPU": float(resources.cpus_per_worker)}
        ),
        run_config=RunConfig(
            name="bare",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=int(os.environ["BARE_FAILURES"])),
        ),
    ).fit()


if __name__ == "__main__":
    main()
