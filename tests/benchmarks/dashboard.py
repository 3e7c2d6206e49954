"""What the pages of the dashboard take with many jobs, and with a search of many trials: time and bytes.

``python tests/benchmarks/dashboard.py [--jobs N] [--trials N] [--repeat R]``. A real uvicorn process as `rcmae up`
starts it, its reconciler off, over real HTTP, with SQLite. Neither Ray nor MLflow runs, and the jobs have no files:
what would come from those is told as away, or as none. Pages are sent as they are, unpacked. Prints a table in
Markdown. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

sys.path += [
    str(Path(__file__).parent),
    str(Path(__file__).parents[1]),
    str(Path(__file__).parents[1] / "unit/service"),
]
from api import TOKEN, fill, serving
from many_trials import SPEC, write_trials
from service_fakes import add_job
from sqlalchemy import select

from service.dashboard.assets import ASSETS
from service.db.database import Database
from service.db.tables import Attempt, Audit, Job, now

AIM_S, AIM_BYTES = 1.0, 2e6
LINES = 10_000
"""Of the audit log."""


def search_of(folder: Path, url: str, study_url: str, trials: int) -> str:
    """A running search of so many trials; its id."""
    database = Database(url)
    document = SPEC.model_dump(mode="json")
    counts = {"running": 4, "pruned": trials // 3, "failed": trials // 50, "complete": trials // 2}
    told = {"budget": 10_000, "trials": counts, "best_value": 0.71, "best_trial": 7, "gpu_hours": 812.5}
    folder.mkdir()
    search_id = add_job(
        database, "running", document, owner="user-0", attempts=1, resolved_spec=document, progress=told,
        artifact_uri=str(folder), started_at=now(),
    )  # fmt: skip
    with database.session() as session:
        about: dict[str, Any] = {"submission_id": f"{search_id}-a1", "state": "running", "workers": 4, "gpus": 4}
        session.add(Attempt(job_id=search_id, number=1, **about))
        session.add_all(Audit(actor="user-0", action="job.submit", target=f"job-{n}", status=201) for n in range(LINES))
    database.close()
    write_trials(study_url, search_id, trials)
    return search_id


def jobs_of(url: str) -> list[str]:
    """The newest two jobs that have run."""
    database = Database(url)
    with database.read() as session:
        ran = select(Job.id).where(Job.kind == "pretrain", Job.state == "succeeded").order_by(Job.created_at.desc())
        found = list(session.scalars(ran.limit(2)))
    database.close()
    return found


def pages(job: str, other: str, search: str) -> list[str]:
    """The address of every page."""
    tabs = {
        "jobs": ("overview", "metrics", "images", "logs", "checkpoints", "events", "spec"),
        "searches": ("overview", "trials", "analysis", "logs", "config"),
    }
    return [
        "/",
        "/jobs",
        "/jobs?state=failed",
        "/jobs?name_contains=ablation",
        "/jobs/new",
        *(f"/jobs/{job}/{tab}" for tab in tabs["jobs"]),
        f"/jobs/compare?job={job}&job={other}",
        "/searches",
        "/searches/new",
        *(f"/searches/{search}/{tab}" for tab in tabs["searches"]),
        f"/searches/{search}/trials?sort=-value",
        f"/searches/{search}/trials?state=pruned",
        f"/searches/{search}/compare?trial=0&trial=1&trial=2&trial=3&trial=4&trial=5",
        f"/searches/{search}/trials/7",
        "/backbones",
        "/cluster",
        "/tokens",
        "/audit",
    ]


def row(browser: httpx.Client, path: str, shown: str, repeat: int) -> str:
    """One page's line; the first answer counts as such, and not for the median."""
    taken = []
    for _ in range(repeat + 1):
        begin = time.perf_counter()
        answer = browser.get(path)
        taken.append(time.perf_counter() - begin)
    first, middle = taken[0], statistics.median(taken[1:])
    size = len(answer.content)
    packed = len(gzip.compress(answer.content, 6))
    if answer.status_code != 200:
        return f"| `{shown}` | {answer.status_code}: no such page | | | | | |"
    missed = [*(["time"] if max(first, middle) > AIM_S else []), *(["bytes"] if size > AIM_BYTES else [])]
    return (
        f"| `{shown}` | {answer.status_code} | {first * 1e3:.0f} | {middle * 1e3:.0f} | {size / 1e3:.1f} | "
        f"{packed / 1e3:.1f} | {' and '.join(missed) + ' missed' if missed else 'met'} |"
    )


def assets() -> str:
    """What a browser loads once, beside the first page."""
    own = [asset for name, asset in ASSETS.items() if name != "plotly.min.js"]
    plotly = ASSETS["plotly.min.js"]
    sums = [sum(len(each.data) for each in own), sum(len(each.compressed) for each in own)]
    sums += [len(plotly.data), len(plotly.compressed)]
    return (
        "Scripts and styles, kept by the browser for ever: {:.0f} kB, {:.0f} kB packed; plotly.js on pages with "
        "charts: {:.0f} kB, {:.0f} kB packed."
    ).format(*(size / 1e3 for size in sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--trials", type=int, default=3_000)
    parser.add_argument("--repeat", type=int, default=10, help="answers that are measured after the first")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, url, study_url = Path(name), f"sqlite:///{name}/rcmae.db", f"sqlite:///{name}/studies.db"
        fill(url, given.jobs)
        search, (job, other) = search_of(folder / "search", url, study_url, given.trials), jobs_of(url)
        os.environ["RCMAE_STUDY_URL"] = study_url
        packages = ", ".join(f"{each} {version(each)}" for each in ("fastapi", "jinja2", "optuna", "sqlalchemy"))
        say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {packages}.\n")
        say(f"{given.jobs:,} jobs, a search of {given.trials:,} trials, {LINES:,} lines of the audit log.\n")
        say(assets())
        say("\n| page | status | ms, the first time | p50 ms | kB | kB as gzip | aim |\n|---|---|---|---|---|---|---|")
        with (
            serving(url, folder, 1) as server,
            httpx.Client(base_url=server.replicas[0].url, timeout=60) as browser,
        ):
            answer = browser.post("/login", data={"token": TOKEN})
            assert answer.status_code == 303, answer.text
            for path in pages(job, other, search):
                say(
                    row(
                        browser,
                        path,
                        path.replace(job, "{id}").replace(other, "{id}").replace(search, "{id}"),
                        given.repeat,
                    )
                )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
