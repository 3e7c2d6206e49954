"""Debian's Chromium over the live stack. What a page says on its console, or asks of another origin, fails its test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress

import pytest
from browser_world import Filled, Visit, Visits, cookie_of, evaluation_spec, search_spec
from live import make_spec, wait_state
from local_stack import Stack
from playwright.sync_api import Browser, expect

from service.auth.sessions import COOKIE
from service.client.errors import ApiError
from service.jobs.state import State

WAIT_MS = 90_000
"""What anything on a page may take: browser, service and jobs that train share two cores with other tests."""
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, object]) -> dict[str, object]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "the browser tests need Chromium: sudo apt-get install chromium"
    return {**browser_type_launch_args, "executable_path": chromium, "args": ["--no-sandbox"]}  # the tests may be root


@pytest.fixture(autouse=True)
def _nothing_goes_on(stack: Stack) -> Iterator[None]:
    """A test that fails leaves no job behind that takes what the next one needs."""
    yield
    cancel_all(stack)


def cancel_all(stack: Stack) -> None:
    for job in stack.client.jobs(states=[state for state in State if not state.terminal]):
        with suppress(ApiError):  # it has ended meanwhile
            stack.client.cancel(job.id)


@pytest.fixture
def visits(browser: Browser, stack: Stack) -> Iterator[Visits]:
    """Browsers that are logged in, by a token of the stack's admin unless told otherwise."""
    begun: list[Visit] = []

    def begin(token: str = "", width: int = 1280, theme: str = "light", url: str = "") -> Visit:
        place = url or stack.url
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if theme == "dark" else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(WAIT_MS)
        visit = Visit(place, context)
        context.on("page", visit.watch)
        cookie = cookie_of(place, token or stack.token)
        context.add_cookies([{"name": COOKIE, "value": cookie, "url": place, "httpOnly": True, "sameSite": "Lax"}])
        begun.append(visit)
        return visit

    yield begin
    for visit in begun:
        visit.close()


@pytest.fixture
def visit(visits: Visits) -> Visit:
    return visits()


@pytest.fixture(scope="session")
def filled(stack: Stack) -> Filled:
    """Two jobs, a search and an evaluation that have ended, and the first job's backbone."""
    cancel_all(stack)  # of a first run that failed: they would take what these need
    spec = make_spec(name="looked-at", register_as="looked-at", optimization={"epochs": 6}, labels={"team": "vision"},
                     evaluation={"every_epochs": 2})  # fmt: skip
    job, search = stack.client.submit(spec), stack.client.submit(search_spec(name="looked-through"))
    other = stack.client.submit(make_spec(name="beside-it", seed=1, optimization={"epochs": 4}))
    job = wait_state(stack, job.id, State.SUCCEEDED)
    search = wait_state(stack, search.id, State.SUCCEEDED)
    other = wait_state(stack, other.id, State.SUCCEEDED)
    evaluation = stack.client.submit(evaluation_spec(other.id))
    evaluation = wait_state(stack, evaluation.id, State.SUCCEEDED)
    return Filled(job, other, search, evaluation, "looked-at")
