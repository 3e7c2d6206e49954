"""Every page, in both themes and at both widths: nothing on the console, nothing from elsewhere, no axe violation."""

from __future__ import annotations

import pytest
from browser_world import Filled, Visits
from live import poll
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGES = {
    "home": "/",
    "jobs": "/jobs",
    "new-job": "/jobs/new",
    "job-overview": "/jobs/{job}/overview",
    "job-metrics": "/jobs/{job}/metrics",
    "job-images": "/jobs/{job}/images",
    "job-logs": "/jobs/{job}/logs",
    "job-checkpoints": "/jobs/{job}/checkpoints",
    "job-events": "/jobs/{job}/events",
    "job-spec": "/jobs/{job}/spec",
    "compare-jobs": "/jobs/compare?job={job}&job={other}",
    "searches": "/searches",
    "new-search": "/searches/new",
    "search-overview": "/searches/{search}/overview",
    "search-trials": "/searches/{search}/trials",
    "search-analysis": "/searches/{search}/analysis",
    "search-compare": "/searches/{search}/compare?trial=0&trial=1",
    "search-logs": "/searches/{search}/logs",
    "search-config": "/searches/{search}/config",
    "trial": "/searches/{search}/trials/0",
    "evaluations": "/evaluations",
    "evaluations-list": "/evaluations/list",
    "evaluation": "/jobs/{evaluation}/overview",
    "evaluation-classes": "/evaluations/{evaluation}/classes",
    "evaluation-metrics": "/jobs/{evaluation}/metrics",
    "new-evaluation": "/evaluations/new?backbone={backbone}",
    "new-embedding": "/embeddings/new?backbone={backbone}",
    "backbones": "/backbones",
    "backbone": "/backbones/{backbone}",
    "backbones-compared": "/backbone-comparison?of={backbone}&with={backbone}:latest",
    "backbone-retention": "/backbones/{backbone}/retention?expire_unused_days=90&keep_newest=1",
    "cluster": "/cluster",
    "tokens": "/tokens",
    "webhooks": "/webhooks",
    "audit": "/audit",
}


def undrawn(page: Page, width: int) -> list[str]:
    """Titles of the figures that are not drawn yet. Figures are drawn when seen, so the page is shown to its end, which
    moves while it loads.
    """
    tall = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": width, "height": min(6000, max(900, tall))})
    titles: list[str] = page.locator(".skeleton:visible").evaluate_all("all => all.map(each => each.ariaLabel)")
    return titles


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page(visits: Visits, filled: Filled, width: int, theme: str) -> None:
    visit = visits(width=width, theme=theme)
    found: dict[str, list[str]] = {}
    jobs = {"job": filled.job.id, "other": filled.other.id, "evaluation": filled.evaluation.id}
    for name, path in PAGES.items():
        page = visit.open(path.format(**jobs, search=filled.search.id, backbone=filled.backbone))
        expect(page.locator("h1")).to_have_count(1)
        poll(lambda page=page: undrawn(page, width), lambda titles: titles == [])
        visit.shot(page, f"{name}-{width}-{theme}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        found[name] = [*visit.axe(page), *([f"is {wide} px wide"] if wide > width else [])]
        page.close()
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert visit.wrong == []


def test_the_documentation_is_drawn_under_the_pages_policy(visits: Visits) -> None:
    """Nothing that the policy refuses is on the console, and nothing comes from elsewhere."""
    visit = visits()
    page = visit.open("/docs")
    page.locator(".opblock-summary-control").first.click()
    expect(page.locator(".opblock.is-open")).to_have_count(1)
    assert visit.wrong == []
