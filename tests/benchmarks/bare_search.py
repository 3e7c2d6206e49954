"""What `searches.py` compares with: the same trials by a plain `Tuner`, or one after the other in this process.

``python bare_search.py FOLDER CONCURRENCY``: reads FOLDER/specs.json, a list of trials' specs, and appends a line with
the moments of its beginning and end a trial to FOLDER/moments. A concurrency of 0 uses no Ray at all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import RunConfig, TuneConfig, Tuner

from trainer.spec import metric_keys
from trainer.spec.pretrain import PretrainSpec
from trainer.tracking.interface import UsedDataset

Report = Callable[[dict[str, float]], None]


class Recorder:
    """Hands evaluations on."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step and metric_keys.RECONSTRUCTION_RATIO in metrics:
            self._report(dict(metrics))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Nobody reads them."""

    def use(self, datasets: Sequence[UsedDataset]) -> None:
        """Nor these."""


def train(spec: PretrainSpec, folder: Path, store: str, report: Report) -> None:
    from trainer.storage import Store  # noqa: PLC0415
    from trainer.training.context import WorkerContext  # noqa: PLC0415
    from trainer.training.loop import pretrain  # noqa: PLC0415 - the driver needs no torch

    begin = time.time()
    pretrain(spec, WorkerContext(store=Store(store), attempt=1, since_attempt=1, recorder=Recorder(report)))
    with (folder / "moments").open("a") as file:
        file.write(f"{begin} {time.time()}\n")


def trial(config: dict[str, Any]) -> None:
    folder, number = Path(config["folder"]), config["number"]
    spec = PretrainSpec.model_validate(json.loads((folder / "specs.json").read_text())[number])
    train(spec, folder, str(folder / f"trial-{number}"), tune.report)


def main() -> None:
    folder, concurrency = Path(sys.argv[1]), int(sys.argv[2])
    specs = json.loads((folder / "specs.json").read_text())
    if not concurrency:
        for number, spec in enumerate(specs):
            train(PretrainSpec.model_validate(spec), folder, str(folder / f"trial-{number}"), lambda _: None)
        return
    Tuner(
        tune.with_resources(trial, {"CPU": 1}),
        param_space={"folder": str(folder), "number": tune.grid_search(list(range(len(specs))))},
        tune_config=TuneConfig(max_concurrent_trials=concurrency, reuse_actors=True),
        run_config=RunConfig(name="bare", storage_path=str(folder), verbose=0),
    ).fit()


if __name__ == "__main__":
    main()
