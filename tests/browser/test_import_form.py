"""A backbone that others have trained, imported with the form on the page of backbones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_world import Visits
from foreign import stored, vit
from live import wait_state
from local_stack import Stack
from playwright.sync_api import expect

from service.jobs.state import State

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("width", [360, 1280])
def test_weights_are_imported_with_the_form_and_their_page_says_who_made_them(
    visits: Visits, stack: Stack, tmp_path: Path, width: int
) -> None:
    stored(vit(), tmp_path / "vit")
    visit = visits(width=width)
    visit.expected.append("422")  # the browser tells of the refusal
    page = visit.open("/backbones")
    page.get_by_role("button", name="Import", exact=True).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Source").fill(str(tmp_path / "vit"))
    dialog.get_by_label("Backbone").fill("form-timm")
    dialog.get_by_label("Origin").fill("google/vit-tiny")
    dialog.get_by_label("Its address").fill("https://huggingface.co/google/vit-tiny")
    dialog.get_by_label("Licence", exact=True).fill("apache-2.0")
    dialog.get_by_text("More", exact=True).click()
    dialog.get_by_label("Formats").fill("timm, hf")
    dialog.get_by_label("Attention heads of the encoder").fill("3")
    dialog.get_by_label("Citation").fill("@misc{tiny,\n  title = {Tiny}\n}")
    visit.shot(page, f"import-{width}")
    assert visit.axe(page) == []
    dialog.get_by_role("button", name="Import").click()
    expect(dialog.locator(".field-error")).to_contain_text("must not end in")
    dialog.get_by_label("Backbone").fill(f"form-{width}")
    dialog.get_by_role("button", name="Import").click()
    page.wait_for_url(re.compile("/jobs/job-"))
    job = page.url.split("/jobs/")[1].split("/")[0]
    expect(page.locator(".facts").first).to_contain_text("google/vit-tiny")
    wait_state(stack, job, State.SUCCEEDED)
    page = visit.open(f"/backbones/form-{width}")
    expect(page.get_by_role("link", name="google/vit-tiny").first).to_be_visible()
    expect(page.get_by_text("Imported by", exact=True)).to_be_visible()
    visit.shot(page, f"imported-{width}")
    assert visit.axe(page) == []
