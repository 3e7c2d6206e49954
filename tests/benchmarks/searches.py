"""What the API takes for searches of many trials: the search, lists of trials, and every figure. And what a search
costs its trials.

``python tests/benchmarks/searches.py [read] [run] [--trials N …] [--repeat R] [--run-trials N] [--epochs E] [--rounds
R]``.

``read``: studies in SQLite, of eight parameters and up to 20 values on the way to each trial's end. The application
answers in this process, one request at a time. Milliseconds are of CPU, which other work on the machine changes little.

``run``: trials an hour of a search on a stack of its own, and the very same trials by a plain `Tuner` in a script on
the same cluster, in turns; then one trial at a time, and the same training in a bare loop. Nothing else should run
meanwhile.

Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import psutil
import structlog
from fastapi.testclient import TestClient

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "unit" / "service")]
from live import make_spec, wait_state
from local_stack import Stack, running_stack
from many_trials import SPEC, write_trials
from service_fakes import add_job

from service.adapters.studies import Studies
from service.app import create_app
from service.client.server import HOST
from service.db.database import Database
from service.embedded import parts
from service.jobs.state import State
from service.searches.schemas import PlotName
from service.settings import Settings
from trainer.spec.cluster import ClusterShape
from trainer.spec.plan import resolve
from trainer.spec.search import SearchSpec

TOKEN = "benchmark-token-0123456789"
FEW = 10
"""Trials of a search by which plotly's own start is measured."""
HEADER = "| | ms, the first time | ms again | kB an answer |\n|---|---|---|---|"


@contextmanager
def searches(folder: Path, counts: list[int]) -> Iterator[tuple[TestClient, dict[int, str]]]:
    """The application, and a search's id by its number of trials."""
    token = folder / "token"
    token.write_text(TOKEN)
    settings = Settings(
        database_url=f"sqlite:///{folder}/rcmae.db",
        study_url=f"sqlite:///{folder}/studies.db",
        artifact_root=str(folder),
        admin_token_file=token,
        allowed_hosts=("testserver",),
        reconcile=False,
        # Nothing listens there: no request that is measured asks them.
        ray_url="http://127.0.0.1:1",
        mlflow_url="http://127.0.0.1:1",
    )
    database = Database(settings.database_url)
    database.migrate()
    found = {}
    for count in counts:
        found[count] = add_job(database, "running", SPEC.model_dump(mode="json"), attempts=1)
        write_trials(str(settings.study_url), found[count], count)
    database.close()
    app = create_app(settings)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client, found


def study_rows(url: str, job_id: str, repeat: int) -> Iterator[str]:
    """What reading a study's trials takes, and the memory that they take then."""
    studies = Studies(url)
    studies.seconds(job_id)  # connects
    before = psutil.Process().memory_info().rss
    first, again, _ = measure(lambda: str(len(studies.trials(job_id))).encode(), repeat)
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    yield f"| reading its trials, which then take {grown:.0f} MB | {first:.0f} | {again:.1f} | |"
    studies.close()


def measure(ask: Callable[[], bytes], repeat: int) -> tuple[float, float, int]:
    """Milliseconds of CPU for the first answer, and at the median for so many others; bytes of an answer."""
    taken = []
    for _ in range(repeat + 1):
        begin = time.process_time()
        body = ask()
        taken.append((time.process_time() - begin) * 1e3)
    return taken[0], statistics.median(taken[1:]), len(body)


def requests(job_id: str) -> dict[str, str]:
    """Paths by what they are called in the table."""
    search, path = f"/v1/searches/{job_id}", next(iter(SPEC.space))
    return {
        "the search": search,
        "its newest 50 trials": f"{search}/trials",
        "50 by value": f"{search}/trials?sort=-value",
        "50 by a parameter, of those that were pruned": f"{search}/trials?state=pruned&sort=param:{path}",
        "one trial": f"{search}/trials/7",
        "all trials as CSV": f"{search}/trials.csv",
    }


def figures(job_id: str) -> dict[str, str]:
    """The same of the figures of one objective."""
    one, _, other, *_ = SPEC.space
    found = {name: f"/v1/searches/{job_id}/plots/{name}" for name in get_args(PlotName) if name != "pareto"}
    found["contour"] += f"?param={one}&param={other}"
    return {f"figure: {name}": path for name, path in found.items()}


def get(client: TestClient, path: str) -> bytes:
    answer = client.get(path)
    assert answer.status_code == 200, f"{path} answered {answer.status_code}: {answer.text[:500]}"
    return answer.content


# --- what a search costs its trials -----------------------------------------------------------------------------------

BARE = Path(__file__).with_name("bare_search.py")
LIMIT_S = 1800
RATE = "optimization.base_lr"
COLD = 2
"""Trials in the first of which their processes import torch: not counted."""

Moments = list[tuple[float, float]]
"""When each trial began and ended, in seconds since 1970, by its end."""


def search_of(count: int, concurrency: int, epochs: int) -> dict[str, Any]:
    """A search that stops no trial early."""
    base = make_spec(
        optimization={"epochs": epochs, "micro_batch_size": 160, "compile": False},
        evaluation={"every_epochs": epochs},
        resources={"workers": 1},
        checkpoint={"every_epochs": epochs},
    )
    return {
        "kind": "search", "base": base, "space": {RATE: {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        "algorithm": {"name": "random"}, "scheduler": {"name": "none"},
        "budget": {"trials": count, "concurrency": concurrency},
    }  # fmt: skip


def served(stack: Stack, spec: dict[str, Any]) -> tuple[Moments, list[dict[str, Any]]]:
    """A search to its end: its trials' moments, and their specs."""
    job = stack.client.submit(spec)
    wait_state(stack, job.id, State.SUCCEEDED, timeout_s=LIMIT_S)
    trials = sorted(stack.client.trials(job.id), key=lambda trial: trial.number)
    moments = [(t.started_at.timestamp(), t.ended_at.timestamp()) for t in trials if t.started_at and t.ended_at]
    assert len(moments) == spec["budget"]["trials"], "a trial has no end"
    search = resolve(SearchSpec.parse(spec), ClusterShape.of(os.cpu_count() or 1))
    points = [search.point(trial.params) for trial in trials]
    specs = [resolve(search.at(point), ClusterShape(())).model_dump(mode="json") for point in points]
    return sorted(moments, key=lambda each: each[1]), specs


def bare(stack: Stack, specs: list[dict[str, Any]], concurrency: int) -> Moments:
    """The same trials in a script of one's own."""
    with tempfile.TemporaryDirectory(prefix="bare-") as name:
        folder = Path(name)
        (folder / "specs.json").write_text(json.dumps(specs))
        environment = parts.environment("ray", stack.folder, stack.state)
        environment |= {"RAY_ADDRESS": f"{HOST}:{stack.state.ports.ray_gcs}"}
        script = [sys.executable, str(BARE), name, str(concurrency)]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = (folder / "moments").read_text().splitlines()
    return sorted((tuple(map(float, line.split())) for line in lines), key=lambda each: each[1])  # type: ignore[misc]


def pace(moments: Moments) -> float:
    """Seconds from a trial's end to the next one's, once all processes are warm."""
    warm = [end for _, end in moments[COLD - 1 :]]
    return (warm[-1] - warm[0]) / (len(warm) - 1)


def run(count: int, epochs: int, rounds: int) -> None:
    """Side by side, in turns."""
    rates: dict[str, list[float]] = {"the service": [], "a plain Tuner": []}
    alone: dict[str, list[float]] = {"the service": [], "a loop without Ray": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, running_stack(Path(name) / "state") as stack:
        for _ in range(rounds):
            moments, specs = served(stack, search_of(count, 2, epochs))
            rates["the service"].append(3600 / pace(moments))
            rates["a plain Tuner"].append(3600 / pace(bare(stack, specs, 2)))
            moments, specs = served(stack, search_of(count // 2, 1, epochs))
            alone["the service"].append(pace(moments))
            alone["a loop without Ray"].append(pace(bare(stack, specs, 0)))
    say(f"\n## {count} trials of {epochs} epochs, two at a time\n\n| | trials an hour, median | all |\n|---|---|---|")
    for what, found in rates.items():
        say(f"| {what} | {statistics.median(found):.0f} | {', '.join(f'{each:.0f}' for each in found)} |")
    say(f"| ratio | {statistics.median(rates['the service']) / statistics.median(rates['a plain Tuner']):.2f} | |")
    say("\n## One at a time\n\n| | seconds a trial, median | all |\n|---|---|---|")
    for what, found in alone.items():
        say(f"| {what} | {statistics.median(found):.2f} | {', '.join(f'{each:.2f}' for each in found)} |")
    one, other = (statistics.median(found) for found in alone.values())
    say(f"| what a search adds to a trial | {one - other:.2f} | |")


# --- all --------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="read, run; both by default")
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 3_000])
    parser.add_argument("--repeat", type=int, default=20, help="answers that are measured after the first")
    parser.add_argument("--run-trials", type=int, default=12, help="of a search that is run")
    parser.add_argument("--epochs", type=int, default=40, help="of each of its trials")
    parser.add_argument("--rounds", type=int, default=2, help="times that all of it is run")
    arguments = parser.parse_args()
    if set(arguments.tables) - {"read", "run"}:
        parser.error(f"there are the tables read and run, not {' '.join(arguments.tables)}")
    packages = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "optuna", "plotly", "ray", "sqlalchemy"))
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {packages}.\n")
    if not arguments.tables or "read" in arguments.tables:
        read(arguments)
    if not arguments.tables or "run" in arguments.tables:
        run(arguments.run_trials, arguments.epochs, arguments.rounds)


def read(arguments: argparse.Namespace) -> None:
    counts = [FEW, *arguments.trials]
    with tempfile.TemporaryDirectory(prefix="bench-") as name, searches(Path(name), counts) as (client, ids):
        empty = measure(lambda: get(client, "/healthz"), arguments.repeat)[1]
        say(f"An answer that takes no work, with all that the measuring itself takes: {empty:.1f} ms.")
        first, second, *_ = (measure(partial(get, client, path), 1)[0] for path in figures(ids[FEW]).values())
        say(f"The first figure of a process takes {first - second:.0f} ms more than the second, for plotly.")
        for count in arguments.trials:
            say(f"\n## {count:,} trials\n\n{HEADER}")
            for row in study_rows(f"sqlite:///{name}/studies.db", ids[count], arguments.repeat):
                say(row)
            for what, path in (requests(ids[count]) | figures(ids[count])).items():
                first, again, size = measure(partial(get, client, path), arguments.repeat)
                say(f"| {what} | {first:.0f} | {again:.1f} | {size / 1e3:.1f} |")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
