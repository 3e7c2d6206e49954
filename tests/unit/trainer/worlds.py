"""Functions on all ranks of a small world of processes, for tests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from loops import PROCESSES

from trainer.agreement import Agreement
from trainer.evaluation.ranks import Ranks

Work = Callable[..., Any]


def on_ranks(world: int, folder: Path, work: Work, *args: Any) -> list[Any]:
    """What ``work(ranks, *args)`` returned on each rank, each in a process of its own; an error counts as a result.

    The processes import the module of ``work``. They have a thread each.
    """
    folder.mkdir(exist_ok=True)
    results = [PROCESSES.SimpleQueue() for _ in range(world)]
    processes = [
        PROCESSES.Process(target=_run, args=(rank, world, folder, results[rank], work, args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = [queue.get() for queue in results]
    for process in processes:
        process.join(timeout=60)
    assert {process.exitcode for process in processes} == {0}
    return found


def _run(rank: int, world: int, folder: Path, result: Any, work: Work, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        meeting = dist.FileStore(str(folder / "meeting"), world)
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    try:
        found = work(Ranks(Agreement(world), rank, world), *args)
    except Exception as error:  # noqa: BLE001 - the test asserts which
        found = error
    result.put(found)
    if dist.is_initialized():
        dist.destroy_process_group()
