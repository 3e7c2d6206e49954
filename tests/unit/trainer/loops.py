"""Small real runs of the training loop, in one process or in several, for tests."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.constants import default_pg_timeout

from trainer.data.cache import Cache
from trainer.evaluation.evaluator import Evaluator
from trainer.protocol.command import Action
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import parse_spec
from trainer.spec.plan import resolve
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store
from trainer.tracking.interface import UsedDataset
from trainer.training import checkpoint as checkpoints
from trainer.training import loop
from trainer.training.context import WorkerContext
from trainer.training.loop import TrainingResult, pretrain
from trainer.training.state import TrainState

# Forked from a server that has imported torch and run nothing: a start takes no seconds and no threads are lost.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["trainer.training.loop", "sklearn.datasets"])
KILLED = 9
SLOW_SECONDS = 15.0

TINY = {
    "kind": "pretrain",
    "dataset": {"uri": "builtin://digits"},
    "model": {
        "preset": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 32, "depth": 2,
        "num_heads": 4, "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4,
    },
    "optimization": {"epochs": 2, "global_batch_size": 300, "base_lr": 1e-3, "warmup_epochs": 0},
    "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
    "evaluation": {"every_epochs": 1000, "probes": []},
    "checkpoint": {"every_epochs": 1, "keep": 10},
}  # fmt: skip


def make_spec(**parts: Any) -> PretrainSpec:
    """The tiny spec with parts of it changed."""
    data = {**TINY, **{k: v for k, v in parts.items() if not isinstance(v, dict)}}
    for name, changes in parts.items():
        if isinstance(changes, dict):
            data[name] = {**TINY.get(name, {}), **changes}
    return resolve(parse_spec(data), ClusterShape.of(cpus=8, gpus=0))


@dataclass(frozen=True)
class Task:
    """What a process of `launch` is told."""

    spec: PretrainSpec
    folder: Path
    rank: int
    attempt: int
    die_at: int | None
    after: str
    hold: int | None
    hold_seconds: float | None
    time_out: timedelta
    sync: bool
    slow: str
    preempt_at: int | None
    environment: dict[str, str]
    """This process's own: the server they are forked from may have been started with another."""


@dataclass
class Memory:
    """Keeps what a loop records."""

    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[UsedDataset] = field(default_factory=list)

    def log(self, step: int, metrics: Any) -> None:
        self.rows.setdefault(step, {}).update(metrics)

    def log_curve(self, step: int, metrics: Any) -> None:
        self.log(step, metrics)

    def tag(self, tags: Any) -> None:
        self.tags.update(tags)

    def use(self, datasets: Any) -> None:
        self.datasets += datasets

    def curve(self, key: str) -> dict[int, float]:
        return {step: row[key] for step, row in sorted(self.rows.items()) if key in row}


def run_loop(
    spec: PretrainSpec, folder: Path, attempt: int = 1, wanted: Callable[[], Action | None] = lambda: None
) -> tuple[TrainingResult, Memory]:
    """One attempt in this process."""
    store, memory = Store(str(folder)), Memory()
    rank = dist.get_rank() if dist.is_initialized() else 0

    context = WorkerContext(
        store=store, attempt=attempt, since_attempt=1, recorder=memory if rank == 0 else None,
        requested_action=wanted,
        cache=Cache(folder / "cache"),
    )  # fmt: skip
    return pretrain(spec, context), memory


def weights(folder: Path, ending_folder: str) -> dict[str, torch.Tensor]:
    """Student, teacher and optimiser of a checkpoint, under one roof."""
    found: dict[str, torch.Tensor] = {}
    for part in ("student", "teacher", "optimizer"):
        file = folder / ending_folder / f"{part}.safetensors"
        if file.is_file():
            found |= {f"{part}.{name}": value for name, value in load_file(file).items()}
    return found


def launch(
    spec: PretrainSpec, folder: Path, attempt: int = 1, *, die_at: int | None = None, after: str = "",
    hold: int | None = None, hold_seconds: float | None = None, time_out: timedelta = default_pg_timeout,
    sync: bool = True, slow: str = "", preempt_at: int | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """One attempt in as many processes as the spec has workers; None where they died, as told, at step ``die_at``.

    They die once the file ``after`` is there. The checkpoint of step ``hold`` is committed only after
    ``hold_seconds``, by default never. ``time_out`` is that of the training group's collectives. ``slow`` is what takes
    `SLOW_SECONDS` longer: `draw` on rank 0, or on the last rank `open` or `load`. Only the last rank gets notice at
    step ``preempt_at``.
    """
    folder.mkdir(exist_ok=True)
    ranks, environment = range(int(spec.resources.workers)), dict(os.environ)
    tasks = [
        Task(
            spec,
            folder,
            rank,
            attempt,
            die_at,
            after,
            hold,
            hold_seconds,
            time_out,
            sync,
            slow,
            preempt_at,
            environment,
        )
        for rank in ranks
    ]
    processes = [PROCESSES.Process(target=_work, args=(task,)) for task in tasks]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert {process.exitcode for process in processes} == {0 if die_at is None else KILLED}
    return None if die_at is not None else json.loads((folder / f"result-{attempt}.json").read_text())


def _work(task: Task) -> None:
    os.environ.update(task.environment)
    workers = int(task.spec.resources.workers)
    if workers > 1:
        meeting = dist.FileStore(str(task.folder / f"meeting-{task.attempt}"), workers)
        dist.init_process_group("gloo", store=meeting, rank=task.rank, world_size=workers, timeout=task.time_out)
    last, asked = task.rank == workers - 1, 0
    _hinder(task, last)

    def wanted() -> Action | None:
        nonlocal asked
        if asked == task.die_at:
            while not (task.folder / task.after).exists():
                time.sleep(0.01)
            os._exit(KILLED)  # as a kill would: no cleanup, at the same step on every rank
        asked += 1
        return "preempt" if last and asked - 1 == task.preempt_at else None

    result, memory = run_loop(task.spec, task.folder, task.attempt, wanted)
    if task.rank == 0:
        found = {
            "action": result.action, "checkpoint": result.checkpoint.folder, "loss": memory.curve("train/loss"),
        }  # fmt: skip
        (task.folder / f"result-{task.attempt}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def _hinder(task: Task, last: bool) -> None:
    """Make this process do what the task says otherwise than it would."""
    if not task.sync:
        loop.distribute = lambda objective, *_: objective  # every rank steps on its own gradient
    commit = checkpoints.commit

    def commit_or_hang(store: Store, manifest: checkpoints.Manifest) -> checkpoints.Committed:
        if manifest.step == task.hold:
            threading.Event().wait(task.hold_seconds)
        return commit(store, manifest)

    checkpoints.commit = commit_or_hang
    if task.slow == "draw":  # rank 0 alone does this
        _slow_down(Evaluator, "_draw")
    elif task.slow and last:
        _slow_down(*{"open": (loop, "open_training_data"), "load": (TrainState, "load")}[task.slow])


def _slow_down(owner: object, name: str) -> None:
    work = getattr(owner, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        result = work(*args, **kwargs)
        time.sleep(SLOW_SECONDS)
        return result

    setattr(owner, name, slow)
