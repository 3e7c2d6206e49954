"""A browser that is logged in, as tests see and drive it. What goes wrong in it is noted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from axe_playwright_python.sync_playwright import Axe
from live import make_spec
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request

from service.auth.sessions import COOKIE
from service.jobs.schemas import JobView

SHOTS = Path(os.environ.get("RCMAE_SCREENSHOTS", Path(__file__).parent / "screenshots"))
"""Where the pictures of a run are kept; git does not."""


@dataclass
class Visit:
    """One browser that is logged in, and what went wrong in it."""

    url: str
    context: BrowserContext
    wrong: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Regular expressions of what a test brings about on purpose."""

    def open(self, path: str) -> Page:
        """A new tab on a page that is there."""
        page = self.context.new_page()
        answer = page.goto(self.url + path)
        assert answer is not None
        assert answer.status < 400, f"{path}: {answer.status} {answer.text()[:500]}"
        return page

    def axe(self, page: Page) -> list[str]:
        """What axe-core finds wrong with a page, each with the first place."""
        found = Axe().run(page).response["violations"]
        return [f"{each['id']} ({each['impact']}): {each['nodes'][0]['html'][:200]}" for each in found]

    def shot(self, page: Page, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"{page.url}: {error}"))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.wrong.append(f"{message.location.get('url')}: {message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and f"{parts.scheme}://{parts.netloc}" != self.url:
            self.wrong.append(f"off-origin request: {request.url}")

    def close(self) -> None:
        self.context.close()
        left = [each for each in self.wrong if not any(re.search(pattern, each) for pattern in self.expected)]
        assert left == []


def cookie_of(url: str, token: str) -> str:
    """The session that logging in with a token begins."""
    answer = httpx.post(f"{url}/login", data={"token": token})
    assert answer.status_code == 303, answer.text
    return answer.cookies[COOKIE]


Visits = Callable[..., Visit]


SPACE = {
    "method.teacher.momentum": {"type": "float", "low": 0.9, "high": 0.9999},
    "optimization.base_lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
}


def search_spec(**parts: object) -> dict[str, object]:
    """A search of trials that take a few seconds each."""
    base = make_spec(
        optimization={"epochs": 4}, evaluation={"every_epochs": 1}, checkpoint={"every_epochs": 1},
        resources={"workers": 1},
    )  # fmt: skip
    return {
        "kind": "search",
        "name": "tune-teacher",
        "base": base,
        "space": SPACE,
        "objective": {"metric": "eval/linear_top1", "mode": "max"},
        "scheduler": {"name": "asha", "grace_epochs": 1},
        "budget": {"trials": 4, "concurrency": 2, "max_failed": 4},
    } | parts


def evaluation_spec(job_id: str) -> dict[str, object]:
    """An evaluation that takes seconds."""
    return {
        "kind": "evaluate",
        "name": "measured",
        "backbone": {"job": job_id},
        "dataset": {"uri": "builtin://digits"},
        "protocols": [{"name": "knn"}, {"name": "linear"}, {"name": "attentive", "epochs": 1}],
        "seeds": 1,
        "resources": {"workers": 1, "cpus_per_worker": 1},
    }


@dataclass(frozen=True)
class Filled:
    """What there is to look at."""

    job: JobView
    other: JobView
    """Like it, with another seed and fewer epochs."""
    search: JobView
    evaluation: JobView
    """Of the other job, with a training."""
    backbone: str
