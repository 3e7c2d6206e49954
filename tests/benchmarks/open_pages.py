"""What open pages cost, and how soon a page can be used: real Chromium over a real stack with a search that runs.

``python tests/benchmarks/open_pages.py [--seconds S] [--pages N]``. Prints tables in Markdown. Nothing else should run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "browser")]
from browser_world import cookie_of, search_spec
from live import poll
from local_stack import Stack, running_stack
from playwright.sync_api import BrowserContext, sync_playwright

from service.auth.sessions import COOKIE

LOADS = 5
"""Of each page, the first of which is not counted."""


def api(stack: Stack) -> psutil.Process:
    return psutil.Process(stack.state.parts["api"].pid)


def busy(process: psutil.Process) -> float:
    """Seconds of CPU that a process and those that it started have used."""
    alive = [process, *process.children(recursive=True)]
    return sum(each.cpu_times().user + each.cpu_times().system for each in alive)


def soon(context: BrowserContext, url: str) -> tuple[float, float, float]:
    """Milliseconds until a page's text is there, until its scripts are ready, and until its figures are drawn."""
    page = context.new_page()
    begin = time.monotonic()
    page.goto(url)
    page.wait_for_selector("#main h1")
    poll(lambda: page.evaluate("performance.getEntriesByName('rcmae:ready').length"), bool, every_s=0.02)
    text, ready = page.evaluate(
        "[performance.getEntriesByType('navigation')[0].domInteractive,"
        " performance.getEntriesByName('rcmae:ready')[0].startTime]"
    )
    poll(lambda: page.locator(".skeleton:visible").count(), lambda left: left == 0, every_s=0.02)
    drawn = 1000 * (time.monotonic() - begin)
    page.close()
    return text, ready, drawn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pages", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "state") as stack:
        budget = {"trials": 1000, "concurrency": 1, "max_failed": 4}
        search = stack.client.submit(search_spec(budget=budget))
        poll(lambda: stack.client.search(search.id).trials.ended, lambda ended: ended >= 2, timeout_s=300)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": 1280, "height": 3000})  # figures are drawn when seen
            context.add_cookies([{"name": COOKIE, "value": cookie_of(stack.url, stack.token), "url": stack.url}])
            paths = ["/", "/searches", f"/searches/{search.id}/overview", f"/searches/{search.id}/trials", "/jobs"]
            print("| page | text ms | usable ms | figures drawn ms |\n|---|---|---|---|")  # noqa: T201
            for path in paths:
                times = [soon(context, stack.url + path) for _ in range(LOADS)][1:]
                text, ready, drawn = (statistics.median(each) for each in zip(*times, strict=True))
                print(f"| `{path.replace(search.id, '{id}')}` | {text:.0f} | {ready:.0f} | {drawn:.0f} |")  # noqa: T201
            print("\n| open pages | CPU of the API, % of a core | streams |\n|---|---|---|")  # noqa: T201
            for count in (0, 1, given.pages):
                # Each in a window of its own: a browser asks nothing for a page that is hidden.
                windows = [browser.new_context(storage_state=context.storage_state()) for _ in range(count)]
                for window in windows:
                    window.new_page().goto(f"{stack.url}/searches/{search.id}/overview")
                time.sleep(5)
                before, begin = busy(api(stack)), time.monotonic()
                time.sleep(given.seconds)
                share = (busy(api(stack)) - before) / (time.monotonic() - begin)
                print(f"| {count} | {share:.1%} | {count} |")  # noqa: T201
                for window in windows:
                    window.close()
            browser.close()
        stack.client.cancel(search.id)


if __name__ == "__main__":
    main()
