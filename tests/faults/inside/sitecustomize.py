"""The half of the gates that runs inside a stack's processes: Python loads it at start where PYTHONPATH leads here.

A job named N that arrives at the place its gate names waits there while the gate is closed. The folder that
RCMAE_TEST_GATES names holds:

- ``N.gate``: JSON ``{place, count, attempt}``, the arrival of which attempt is held; opened by removing the file;
- ``N.held``: JSON ``{pid, attempt, place, count}`` of the process that waits;
- ``N.lives/<attempt>-<role>-<pid>``: every driver and worker of the job that ever began;
- ``N.overlaps``: a line for each that began while a process of another attempt still lived.

Without the variable nothing happens, and the product's files are the product's: functions are wrapped as their module
is imported.
"""

from __future__ import annotations

import functools
import importlib.abc
import json
import os
import sys
import threading
import time
from pathlib import Path

PLACES = {
    "trainer.attempt.workers": [("join_cluster", "driver"), ("train_worker", "worker")],
    "trainer.training.step": [("Learner.step", "step")],
    "trainer.training.checkpoint": [("commit", "commit")],
    "trainer.evaluation.evaluator": [("Evaluator.evaluate", "evaluate")],
    "trainer.export.registration": [("register_checkpoint", "publish")],
    "trainer.attempt.outcome": [("write_outcome", "outcome")],
    "mlflow.tracking.client": [("MlflowClient.create_model_version", "version")],
}
"""Functions by module, and what the arrival at each is called; ``<place>-done`` is when it has done its work."""
STORAGE = "trainer.storage"
"""Of its file systems every file put there is a place of its own, `file`: an upload can be held half done."""

arrivals: dict[tuple[str, str], int] = {}
lock = threading.Lock()


def arrive(place: str) -> None:
    """Wait here if the job's gate says so."""
    job, attempt = who()
    with lock:
        count = arrivals[job, place] = arrivals.get((job, place), 0) + 1
    gate = GATES / f"{job}.gate"
    if place in {"driver", "worker"}:
        note_life(job, attempt, place)
    mine, announced = {"place": place, "count": count, "attempt": attempt}, False
    while read(gate) == mine:
        if not announced:
            fresh = GATES / f"{job}.{os.getpid()}"
            fresh.write_text(json.dumps(mine | {"pid": os.getpid()}))
            announced = bool(fresh.replace(GATES / f"{job}.held"))
        time.sleep(0.05)


def who() -> tuple[str, int]:
    """The job's name and the attempt this process belongs to."""
    request = json.loads(os.environ["RCMAE_ATTEMPT"])
    return request["spec"]["name"], request["attempt"]


def read(file: Path) -> object:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None


def note_life(job: str, attempt: int, role: str) -> None:
    lives = GATES / f"{job}.lives"
    lives.mkdir(exist_ok=True)
    (lives / f"{attempt}-{role}-{os.getpid()}").touch()
    for other in lives.iterdir():
        number, its_role, pid = other.name.split("-")
        if int(number) != attempt and lives_still(int(pid)):
            with (GATES / f"{job}.overlaps").open("a") as file:
                file.write(f"{role} of attempt {attempt} began while the {its_role} of attempt {number} lived\n")


def lives_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wrap(owner: object, name: str, place: str) -> None:
    work = getattr(owner, name)

    @functools.wraps(work)
    def gated(*args: object, **kwargs: object) -> object:
        arrive(place)
        done = work(*args, **kwargs)
        arrive(f"{place}-done")
        return done

    setattr(owner, name, gated)


def wrap_file_systems(module: object) -> None:
    opened = module.open_filesystem

    @functools.wraps(opened)
    def open_filesystem(uri: str) -> object:
        fs, root = opened(uri)
        if not hasattr(fs, "gated"):  # instances are shared
            wrap(fs, "put_file", "file")
            fs.gated = True
        return fs, root

    module.open_filesystem = open_filesystem


class Wrapper(importlib.abc.MetaPathFinder):
    """Finds nothing by itself: wraps functions of modules that the others find."""

    def find_spec(self, name, path, target=None):
        if name != STORAGE and name not in PLACES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(found for finder in others if (found := finder.find_spec(name, path, target)))
        execute = spec.loader.exec_module

        def exec_module(module: object) -> None:
            execute(module)
            if name == STORAGE:
                wrap_file_systems(module)
            for function, place in PLACES.get(name, []):
                *owners, last = function.split(".")
                wrap(functools.reduce(getattr, owners, module), last, place)

        spec.loader.exec_module = exec_module
        return spec


if "RCMAE_TEST_GATES" in os.environ:
    GATES = Path(os.environ["RCMAE_TEST_GATES"])
    sys.meta_path.insert(0, Wrapper())
