"""Holding jobs where a fault is to meet them: the tests' half of the gates, see `inside/sitecustomize.py`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live import poll

HOLD_SECONDS = 300.0


@dataclass(frozen=True)
class Moment:
    """The nth arrival of an attempt at a place in its work."""

    place: str
    count: int = 1


@dataclass(frozen=True)
class Gates:
    """A folder of gates, one a job."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """The variables of the stack whose jobs are to be held."""
        inside = str(Path(__file__).parent / "inside")
        path = os.pathsep.join(filter(None, [inside, os.environ.get("PYTHONPATH")]))
        return {"RCMAE_TEST_GATES": str(self.folder), "PYTHONPATH": path}

    def close(self, job: str, moment: Moment, attempt: int = 1) -> None:
        """Hold a job there; one held elsewhere goes on to it."""
        gate = self.folder / f"{job}.gate"
        fresh = gate.with_suffix(".new")
        fresh.write_text(json.dumps({"place": moment.place, "count": moment.count, "attempt": attempt}))
        fresh.replace(gate)

    def open(self, job: str) -> None:
        (self.folder / f"{job}.gate").unlink()

    def held(self, job: str, moment: Moment) -> int:
        """The number of the process that is held there, once it is."""
        said = poll(lambda: self._said(job), lambda said: said.get("place") == moment.place, HOLD_SECONDS)
        return int(said["pid"])

    def _said(self, job: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / f"{job}.held").read_text()))
        except FileNotFoundError:
            return {}

    def workers(self, job: str, attempt: int = 1) -> list[int]:
        """Numbers of the worker processes that an attempt has had."""
        lives = (self.folder / f"{job}.lives").glob(f"{attempt}-worker-*")
        return sorted(int(file.name.rpartition("-")[2]) for file in lives)

    def drivers(self, job: str, attempt: int = 1) -> list[int]:
        lives = (self.folder / f"{job}.lives").glob(f"{attempt}-driver-*")
        return sorted(int(file.name.rpartition("-")[2]) for file in lives)

    def overlaps(self, job: str) -> str:
        """What began while an earlier attempt's processes lived; empty as it should be."""
        file = self.folder / f"{job}.overlaps"
        return file.read_text() if file.exists() else ""
