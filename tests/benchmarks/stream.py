"""What following costs: CPU of the API with 0, 1 and 50 open streams on a running job, and how late a log line comes.

``python tests/benchmarks/stream.py [--seconds S]``. Prints tables in Markdown. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil

sys.path.append(str(Path(__file__).parents[1]))
from live import make_spec, wait_state
from local_stack import Stack, running_stack

from service.embedded import processes
from service.jobs.output_schemas import LogBatch
from service.jobs.schemas import JobView
from service.jobs.state import State

READERS = (0, 1, 50)
# It logs a line with each checkpoint and evaluation: several a second.
SPEC = make_spec(
    name="talks",
    optimization={"epochs": 1_000_000},
    checkpoint={"every_epochs": 2, "every_minutes": None, "keep": 1},
    evaluation={"every_epochs": 2, "probes": []},
    resources={"workers": 1, "cpus_per_worker": 1},
)


class Reader(threading.Thread):
    """One stream, and how late each of its log lines came."""

    def __init__(self, stack: Stack, job: JobView) -> None:
        super().__init__(daemon=True)
        self._url, self._token = f"{stack.url}/v1/jobs/{job.id}/stream", stack.token
        self.lags: list[float] = []
        self._ended = threading.Event()

    def end(self) -> None:
        self._ended.set()

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        with (
            httpx.Client(timeout=30, trust_env=False) as client,
            client.stream("GET", self._url, headers=headers, params={"tail": 0}) as answer,
        ):
            kind = ""
            for line in answer.iter_lines():
                if self._ended.is_set():
                    return
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "log":
                    moment = time.time()
                    self.lags += [moment - each.time for each in LogBatch.model_validate_json(value).lines]


def api_of(stack: Stack) -> psutil.Process:
    for process in processes.members(stack.state.id):
        if "service.app:create_app" in " ".join(process.cmdline()):
            return process
    raise LookupError("the stack has no API")


def measure(stack: Stack, job: JobView, count: int, seconds: float) -> tuple[float, list[float]]:
    """Share of one core that the API took, and the lags of all lines of all readers."""
    readers = [Reader(stack, job) for _ in range(count)]
    for reader in readers:
        reader.start()
    time.sleep(5)
    for reader in readers:
        reader.lags.clear()
    process = api_of(stack)
    before, begun = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, wall = process.cpu_times(), time.monotonic() - begun
    lags = [lag for reader in readers for lag in list(reader.lags)]
    for reader in readers:
        reader.end()
    for reader in readers:
        reader.join(30)
    return (after.user + after.system - before.user - before.system) / wall, lags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    say(f"{os.cpu_count()} cores, Python {platform.python_version()}, fastapi {version('fastapi')}. ")
    say(f"Load before: {os.getloadavg()[0]:.1f}.\n")
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "state") as stack:
        job = stack.client.submit(SPEC)
        wait_state(stack, job.id, State.RUNNING)
        say("| open streams | API, % of one core | log lines a stream | lag p50, s | lag p99, s |")
        say("|---|---|---|---|---|")
        for count in READERS:
            share, lags = measure(stack, job, count, seconds)
            row = [str(len(lags) // count), *shown(lags)] if lags else ["", "", ""]
            say(f"| {count} | {100 * share:.1f} | " + " | ".join(row) + " |")
        say(f"\nLoad after: {os.getloadavg()[0]:.1f}.")
        stack.client.cancel(job.id)
        wait_state(stack, job.id, State.CANCELLED)


def shown(lags: Sequence[float]) -> list[str]:
    cuts = statistics.quantiles(lags, n=100)
    return [f"{cuts[49]:.2f}", f"{cuts[98]:.2f}"]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
