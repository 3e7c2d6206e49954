"""What tests of a live stack share: a tiny spec, and waiting for what is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from service.adapters.storage import Artifacts
from service.embedded import processes
from service.jobs.schemas import JobView
from service.jobs.state import State

if TYPE_CHECKING:
    from local_stack import Stack

Seen = TypeVar("Seen")

LIMIT_S = 400.0
"""Within this a job of seconds gets somewhere, also where other jobs and tests compete for two cores."""

SPEC: dict[str, Any] = {
    "kind": "pretrain",
    "name": "tiny-digits",
    "dataset": {"uri": "builtin://digits"},
    "model": {
        "preset": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 32, "depth": 2,
        "num_heads": 4, "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4,
    },
    "method": {"teacher": {"momentum": 0.99}},
    "optimization": {"epochs": 20, "global_batch_size": 160, "base_lr": 3e-3},
    "augmentation": {"hflip": False},
    "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1},
    "checkpoint": {"every_epochs": 2},
    "evaluation": {"every_epochs": 10},
}  # fmt: skip


def make_spec(**parts: Any) -> dict[str, Any]:
    """The tiny spec of two workers with parts of it changed: 200 steps, seconds on two cores."""
    changed = dict(SPEC)
    for name, value in parts.items():
        changed[name] = {**SPEC.get(name, {}), **value} if isinstance(value, dict) else value
    return changed


def poll(
    look: Callable[[], Seen], until: Callable[[Seen], object], timeout_s: float = LIMIT_S, every_s: float = 0.2
) -> Seen:
    """Look until what is seen is as wanted; gives it."""
    end = time.monotonic() + timeout_s
    while True:
        seen = look()
        if until(seen):
            return seen
        assert time.monotonic() < end, f"not within {timeout_s:g} s; last seen: {seen}"
        time.sleep(every_s)


def wait(stack: Stack, job_id: str, until: Callable[[JobView], object], timeout_s: float = LIMIT_S) -> JobView:
    """Poll a job until it is as wanted."""
    return poll(lambda: stack.client.job(job_id), until, timeout_s)


def wait_state(stack: Stack, job_id: str, *states: State, timeout_s: float = LIMIT_S) -> JobView:
    """Poll a job until it is in one of the states; fails at once where it ended in another."""

    def there(job: JobView) -> bool:
        assert job.state in states or not job.state.terminal, f"{job.state}: {job.message}"
        return job.state in states

    return wait(stack, job_id, there, timeout_s)


def artifacts(stack: Stack, job: JobView) -> Path:
    """A job's artifact folder."""
    found = list(Path(stack.folder.artifact_root).glob(f"*/{job.run_id}/artifacts"))
    assert len(found) == 1
    return found[0]


def final_weights(artifacts: Artifacts, stack: Stack, job: JobView) -> dict[str, bytes]:
    """Student, teacher and optimiser of the last attempt's newest checkpoint, wherever the stack keeps them."""
    newest = stack.client.attempts(job.id)[-1].checkpoint
    assert newest
    for experiment in artifacts.folders(artifacts.root):
        folder = f"{artifacts.root}/{experiment}/{job.run_id}/artifacts"
        if artifacts.file(folder, f"{newest}/manifest.json"):
            names = ("student", "teacher", "optimizer")
            found = {name: artifacts.read(folder, f"{newest}/{name}.safetensors") for name in names}
            assert None not in found.values()
            return {name: data for name, data in found.items() if data is not None}
    raise AssertionError(f"no {newest} of run {job.run_id} in {artifacts.root}")


def checkpoint_of(stack: Stack, job: JobView) -> Path:
    """The last attempt's newest checkpoint."""
    newest = stack.client.attempts(job.id)[-1].checkpoint
    assert newest
    return artifacts(stack, job) / newest


def members(stack: Stack, word: str) -> list[psutil.Process]:
    """The stack's processes with a word in their command line: `RayTrainWorker`, `trainer.main`."""
    found = []
    for process in processes.members(stack.state.id):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
