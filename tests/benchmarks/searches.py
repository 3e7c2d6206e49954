"""What the API takes for searches of many trials: the search, lists of trials, and every figure.

``python tests/benchmarks/searches.py [--trials N …] [--repeat R]``. Studies in SQLite, of eight parameters and up to 20
values on the way to each trial's end. The application answers in this process, one request at a time. Prints tables in
Markdown; milliseconds are of CPU, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import psutil
import structlog
from fastapi.testclient import TestClient

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "unit" / "service")]
from many_trials import SPEC, write_trials
from service_fakes import add_job

from service.adapters.studies import Studies
from service.app import create_app
from service.db import Database
from service.searches.schemas import PlotName
from service.settings import Settings

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 3_000])
    parser.add_argument("--repeat", type=int, default=20, help="answers that are measured after the first")
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "optuna", "plotly", "sqlalchemy"))
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {packages}.\n")
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
