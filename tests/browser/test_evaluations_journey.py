"""How good a backbone is, asked and answered in the browser: from the backbone's page to the table of all."""

from __future__ import annotations

import re

import pytest
from browser_world import Filled, Visit
from live import LIMIT_S, wait_state
from local_stack import Stack
from playwright.sync_api import Page, expect

from service.jobs.state import State

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_backbone_is_evaluated_and_compared(visit: Visit, stack: Stack, filled: Filled) -> None:
    page = visit.open(f"/backbones/{filled.backbone}")
    page.get_by_role("link", name="Evaluate", exact=True).click()
    _fill_in(page)
    page.get_by_role("form", name="Spec").get_by_role("button", name="Start the evaluation").click()
    expect(page).to_have_url(re.compile(r"/jobs/job-\w+/overview"))
    job_id = page.url.split("/")[-2]

    # the page shows its scores when it ends, without a reload
    expect(page.locator("#h-so-far, #h-scores")).to_be_visible()
    expect(page.locator("#scores")).to_be_visible(timeout=LIMIT_S * 1000)
    wait_state(stack, job_id, State.SUCCEEDED)
    _look_at_the_result(page)
    _compare(page, job_id, filled.evaluation.id)
    visit.shot(page, "evaluations-sorted")


def _fill_in(page: Page) -> None:
    """What the form offers, with other features, one seed and one more protocol, chosen and dropped by keyboard."""
    plan = page.get_by_role("complementary", name="Plan")
    expect(page.locator('[name="dataset.uri"]')).to_have_value("builtin://digits")  # its training has had labels
    page.locator('[name="seeds"]').fill("1")
    expect(plan).to_contain_text("4 measurements: 2 of the backbone (1 knn, 1 linear)")
    attentive = page.locator('[data-protocol="attentive"]')
    attentive.press("Space")
    expect(plan).to_contain_text("1 attentive")
    attentive.press("Space")
    expect(plan).not_to_contain_text("1 attentive")
    page.locator("summary", has_text="Features").press("Enter")
    page.locator('[name="features.pooling"]').select_option("cls")
    page.locator("summary", has_text="Resources").press("Enter")
    page.locator('[name="resources.workers"]').fill("1")
    page.locator('[name="resources.cpus_per_worker"]').fill("1")
    expect(plan).to_contain_text("1 CPU")


def _look_at_the_result(page: Page) -> None:
    expect(page.locator(".js-plotly-plot")).to_be_visible()
    expect(page.locator("#classes tbody tr")).to_have_count(10)
    picture = page.get_by_role("img", name="Nearest neighbours")
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 0


def _compare(page: Page, job_id: str, other_id: str) -> None:
    """The table says which settings part the two evaluations; the list is sorted by a heading."""
    page.get_by_role("navigation").get_by_role("link", name="Evaluations").click()
    table = page.locator("#evaluations")
    own = table.locator("td", has=page.locator(f'a[href="/evaluations/{job_id}"]')).first
    expect(own).to_contain_text("pooling cls")
    expect(own).not_to_contain_text("best")
    expect(table.locator(f'a[href="/evaluations/{other_id}"]').first).to_be_visible()
    page.get_by_role("navigation", name="Views of evaluations").get_by_role("link", name="List").click()
    expect(table.get_by_role("columnheader", name="Finished")).to_have_attribute("aria-sort", "descending")
    for direction in ("descending", "ascending"):
        heading = table.get_by_role("columnheader", name="k-NN")
        heading.get_by_role("link").press("Enter")
        expect(heading).to_have_attribute("aria-sort", direction)
        shown = table.locator("tbody tr td:nth-child(4)").all_inner_texts()
        scores = [float(each.split()[0]) for each in shown]
        assert len(scores) >= 2
        assert scores == sorted(scores, reverse=direction == "descending")
