"""What the service costs: seconds from POST to the first training step, images a second, seconds from a fault to
training again; each beside a bare script on the same cluster that runs the very same loop under a plain `TorchTrainer`.

``python tests/benchmarks/orchestration.py [start] [rate] [faults] [--rounds N] [--minutes M]``. Prints tables in
Markdown; only the ratios mean anything on another machine. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parents[1]))
from live import make_spec, members, poll, wait_state
from local_stack import Stack, running_stack

from service.client.server import HOST
from service.embedded import parts, processes
from service.jobs.schemas import JobView
from service.jobs.state import State
from trainer.spec import metric_keys
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import parse_spec
from trainer.spec.plan import resolve

BARE = Path(__file__).with_name("bare.py")
LIMIT_S = 180
TABLES = ("start", "rate", "faults")
# Large enough that a checkpoint is hundreds of megabytes, as real ones are.
SMALL = make_spec(
    name="small",
    model={"img_size": 64, "embed_dim": 384, "depth": 12, "num_heads": 6, "decoder_embed_dim": 192},
    optimization={"epochs": 100_000, "global_batch_size": 64},
    resources={"workers": 1, "cpus_per_worker": os.cpu_count()},
    evaluation={"every_epochs": 100_000, "probes": []},
)
TINY = make_spec(name="tiny", optimization={"epochs": 100_000}, evaluation={"every_epochs": 100_000, "probes": []})


class Bare:
    """The same loop in a script of one's own: one line of its record a step, `<pid> <step> <samples> <time>`."""

    def __init__(self, stack: Stack, spec: dict[str, object], failures: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bare-"))
        resolved = resolve(parse_spec(spec), ClusterShape.of(os.cpu_count() or 1))
        (self.folder / "spec.json").write_text(resolved.model_dump_json())
        environment = parts.environment("ray", stack.folder, stack.state)
        environment |= {"RAY_ADDRESS": f"{HOST}:{stack.state.ports.ray_gcs}", "BARE_FAILURES": str(failures)}
        self.began = time.time()
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, BARE, self.folder], env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def steps(self) -> list[tuple[int, int, float, float]]:
        """Process, step, samples and time of each step."""
        record = self.folder / "record"
        lines = record.read_text().splitlines() if record.exists() else []
        rows = [line.split() for line in lines]
        return [(int(row[0]), int(row[1]), float(row[2]), float(row[3])) for row in rows if len(row) == 4]

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()


def begun(stack: Stack, job: JobView, attempt: int = 1) -> float:
    """When an attempt's first step was over, in seconds since 1970."""

    def look() -> float | None:
        tried = stack.client.attempts(job.id)
        if len(tried) < attempt:
            return None
        points = stack.client.metrics(job.id, [metric_keys.LOSS]).series.get(metric_keys.LOSS, [])
        times = [point.time.timestamp() for point in points if point.time > tried[attempt - 1].started_at]
        return min(times, default=None)

    found = poll(look, lambda seen: seen is not None, LIMIT_S)
    assert found is not None
    return found


def cancel(stack: Stack, job: JobView) -> None:
    stack.client.cancel(job.id)
    wait_state(stack, job.id, State.CANCELLED)


# --- from POST to the first step --------------------------------------------------------------------------------------


def start(stack: Stack, rounds: int) -> None:
    served: list[float] = []
    bare: list[float] = []
    stages: dict[str, list[float]] = {}
    for _ in range(rounds):
        posted = time.time()
        job = stack.client.submit(TINY)
        first = begun(stack, job)
        served.append(first - posted)
        for stage, moment in stages_of(stack, job, first):
            stages.setdefault(stage, []).append(moment - posted)
        cancel(stack, job)
        script = Bare(stack, TINY)
        poll(script.steps, bool, LIMIT_S)
        bare.append(script.steps()[0][3] - script.began)
        script.end()
    say("## From POST to the end of the first step, two workers\n")
    say("| | seconds, median | all |\n|---|---|---|")
    say(f"| job of the service | {middle(served):.1f} | {listed(served)} |")
    say(f"| bare script | {middle(bare):.1f} | {listed(bare)} |")
    say(f"| ratio | {middle(served) / middle(bare):.2f} | |\n")
    say("| reached | seconds after POST, median |\n|---|---|")
    for stage, moments in stages.items():
        say(f"| {stage} | {middle(moments):.1f} |")
    say("")


def stages_of(stack: Stack, job: JobView, first: float) -> list[tuple[str, float]]:
    """Where the seconds go."""
    starting = next(event for event in stack.client.events(job.id) if event.state is State.STARTING)
    driver = stack.client.logs(job.id, source="driver").items
    rank = stack.client.logs(job.id, source="rank-0").items
    training = next(line for line in rank if line.message.startswith("Training on"))
    return [
        ("admitted, its run made, submitted to Ray", starting.time.timestamp()),
        ("the driver runs", driver[0].time),
        ("all ranks met, data and model are ready", training.time),
        ("the first step is over", first),
    ]


# --- images a second --------------------------------------------------------------------------------------------------


def rate(stack: Stack, rounds: int, minutes: float) -> None:
    served: list[float] = []
    bare: list[float] = []
    costs: dict[str, list[Cost]] = {"job of the service": [], "bare loop": []}
    stored = 0
    for _ in range(rounds):
        script = Bare(stack, SMALL | {"checkpoint": {"every_epochs": 100_000, "every_minutes": None}})
        poll(script.steps, bool, LIMIT_S)
        costs["bare loop"].append(Cost.of(stack, lambda s=script: s.steps()[-1][2], minutes))
        bare.append(per_second([(row[2], row[3]) for row in script.steps()]))
        script.end()
        job = stack.client.submit(SMALL | {"checkpoint": {"every_epochs": 100_000, "every_minutes": 1}})
        begun(stack, job)
        costs["job of the service"].append(Cost.of(stack, lambda j=job: samples_of(stack, j)[-1][0], minutes))
        served.append(per_second(samples_of(stack, job)))
        log = stack.client.logs(job.id, source="rank-0", limit=5000).items
        stored += sum(line.message.startswith("Checkpoint at step") for line in log)
        cancel(stack, job)
    say(f"## Images a second over {minutes:g} minutes, ViT-Small at 64 px, one worker of {os.cpu_count()} cores\n")
    say("| | images/s, median | all |\n|---|---|---|")
    say(f"| job of the service, a checkpoint each minute ({stored} stored) | {middle(served):.1f} | {listed(served)} |")
    say(f"| bare loop, no checkpoint | {middle(bare):.1f} | {listed(bare)} |")
    say(f"| ratio | {middle(served) / middle(bare):.3f} | |\n")
    say("Seconds of a core for 1000 images, which other load on the machine hardly changes:\n")
    say("| | in the worker | in everything else that runs: Ray, MLflow, the API, the driver |\n|---|---|---|")
    for what, found in costs.items():
        worker, others = (middle([getattr(cost, part) for cost in found]) for part in ("worker", "others"))
        say(f"| {what} | {worker:.2f} | {others:.2f} |")
    say("")


def samples_of(stack: Stack, job: JobView) -> list[tuple[float, float]]:
    """Samples done and when, as far as MLflow has been told."""
    points = stack.client.metrics(job.id, [metric_keys.SAMPLES]).series[metric_keys.SAMPLES]
    return [(point.value, point.time.timestamp()) for point in points]


@dataclass(frozen=True)
class Cost:
    """Seconds of a core that 1000 images take."""

    worker: float
    others: float

    @classmethod
    def of(cls, stack: Stack, samples: Callable[[], float], minutes: float) -> Cost:
        """Of what runs now, over the next minutes."""
        before, begin = cpu_seconds(stack), samples()
        time.sleep(60 * minutes)
        after, done = cpu_seconds(stack), (samples() - begin) / 1000
        spent = {pid: seconds - before.get(pid, 0.0) for pid, seconds in after.items()}
        worker = max(spent.values())  # of one worker that trains without a break
        return cls(worker / done, (sum(spent.values()) - worker) / done)


def cpu_seconds(stack: Stack) -> dict[int, float]:
    """Of each process of the stack, by its number."""
    found = {}
    for process in processes.members(stack.state.id):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def per_second(points: list[tuple[float, float]]) -> float:
    """Samples over seconds between the first and the last of them: whatever came between counts."""
    (samples, begin), (more, end) = points[0], points[-1]
    return (more - samples) / (end - begin)


# --- from a fault to training again -----------------------------------------------------------------------------------


def faults(stack: Stack, rounds: int) -> None:
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        name = "bare script, FailureConfig(max_failures=1): a worker killed"
        found.setdefault(name, []).append(bare_fault(stack))
        for what, word in (("a worker killed", "RayTrainWorker"), ("the driver killed", "-m trainer.main")):
            found.setdefault(f"job of the service: {what}", []).append(fault(stack, lambda w=word: kill(stack, w)))
        found.setdefault("job of the service: Ray's head killed", []).append(
            fault(stack, lambda: os.kill(stack.state.parts["ray"].pid, signal.SIGKILL))
        )
    say("## From a fault to the next step\n")
    say("| | seconds, median | all |\n|---|---|---|")
    for what, seconds in found.items():
        say(f"| {what} | {middle(seconds):.1f} | {listed(seconds)} |")
    say("")


def bare_fault(stack: Stack) -> float:
    """Seconds from a killed worker of the bare script to its next step, in another process."""
    script = Bare(stack, TINY | {"checkpoint": {"every_epochs": 1}}, failures=1)
    before = poll(script.steps, lambda seen: len(seen) > 30, LIMIT_S)[-1][0]
    at = time.time()
    os.kill(int((script.folder / "rank-1").read_text()), signal.SIGKILL)
    again = poll(script.steps, lambda seen: seen[-1][0] != before, LIMIT_S)
    script.end()
    return again[-1][3] - at


def fault(stack: Stack, strike: Callable[[], None]) -> float:
    """Seconds from a fault in the middle of a job to its next step."""
    job = stack.client.submit(TINY | {"checkpoint": {"every_epochs": 1}})
    poll(lambda: stack.client.job(job.id), lambda seen: seen.progress is not None and seen.progress.step > 30, LIMIT_S)
    at = time.time()
    strike()
    seconds = begun(stack, job, attempt=2) - at
    cancel(stack, job)
    return seconds


def kill(stack: Stack, word: str) -> None:
    members(stack, word)[-1].kill()


def middle(values: list[float]) -> float:
    return statistics.median(values)


def listed(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="start|rate|faults", help="all of them by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=3.2, help="of each run whose images a second are counted")
    arguments = parser.parse_args()
    wanted = arguments.what or TABLES
    if unknown := set(wanted) - set(TABLES):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(TABLES)}")
    say(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {version('torch')}, ray {version('ray')}.\n"
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, running_stack(Path(folder) / "state") as stack:
        if "start" in wanted:
            start(stack, arguments.rounds)
        if "rate" in wanted:
            rate(stack, arguments.rounds, arguments.minutes)
        if "faults" in wanted:
            faults(stack, arguments.rounds)


if __name__ == "__main__":
    main()
