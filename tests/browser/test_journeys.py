"""What people come for, done as they do it: with a mouse and a keyboard, on a real stack that trains."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser_world import Filled, Visit, Visits
from live import LIMIT_S, make_spec, poll, wait_state
from local_stack import Stack
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from service.jobs.state import State
from service.searches.schemas import TrialState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the longest trains four times, on shared cores

SESSION_ENDS = [r"401 \(Unauthorized\)"]


def press(page: Page, name: str, sure: str = "") -> None:
    """A button, and the one that says yes to what it asks."""
    page.get_by_role("button", name=name, exact=True).first.click()
    if sure:
        page.get_by_role("dialog").get_by_role("button", name=sure).click()


def start(page: Page) -> Locator:
    """The button at the end of the form; another one stands beside its plan."""
    return page.get_by_role("form", name="Spec").get_by_role("button", name=re.compile("^Start the"))


def test_log_in_and_out(browser: Browser, stack: Stack) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{stack.url}/jobs?state=failed")
    page.get_by_label("Your token").fill("not-a-token-of-this-service")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("this service does not know the token")).to_be_visible()
    page.get_by_label("Your token").fill(stack.token)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{stack.url}/jobs?state=failed")
    page.get_by_label("Account and appearance").click()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.goto(stack.url)
    expect(page).to_have_url(re.compile(r"/login\?next="))
    context.close()


def test_a_search_from_the_form_to_a_promoted_backbone(visit: Visit, stack: Stack, tmp_path: Path) -> None:
    page = visit.open("/")
    page.get_by_role("link", name="Search", exact=True).click()
    _start_the_search(page)
    expect(page).to_have_url(re.compile(r"/searches/job-\w+/overview"))
    search_id = page.url.split("/")[-2]

    # rows appear as they come
    page.get_by_role("link", name="Trials").click()
    expect(page.locator("#trial-0")).to_be_visible(timeout=LIMIT_S * 1000)
    expect(page.locator("#trial-0")).to_contain_text("running")

    # change what it may use, and stop one trial
    page.get_by_role("link", name="Overview").click()
    _change_concurrency(page, 1)
    poll(lambda: stack.client.search(search_id).budget.concurrency_wanted, lambda found: found == 1)
    poll(lambda: stack.client.search(search_id).trials.running, bool)
    running = next(each for each in stack.client.trials(search_id) if each.state is TrialState.RUNNING)
    page.goto(f"{visit.url}/searches/{search_id}/trials/{running.number}")
    press(page, "Stop", sure="Stop")
    poll(lambda: stack.client.trial(search_id, running.number).state.ended, bool)

    # pause and resume
    page.goto(f"{visit.url}/searches/{search_id}/overview")
    press(page, "Pause", sure="Pause")
    wait_state(stack, search_id, State.PAUSED)
    expect(page.locator(".head .badge")).to_have_text(re.compile("paused"))
    press(page, "Resume", sure="Resume")
    job = wait_state(stack, search_id, State.SUCCEEDED, timeout_s=420)
    expect(page.locator(".head .badge")).to_have_text(re.compile("succeeded"))

    # look at it, compare three
    page.get_by_role("link", name="Analysis").click()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    page.get_by_role("link", name="Trials").click()
    for number in (0, 1, 2):
        page.locator(f"#trial-{number}").get_by_role("checkbox").check()
    page.get_by_role("button", name=re.compile("Compare")).click()
    expect(page).to_have_url(re.compile(r"/compare\?"))
    expect(page.locator("h1")).to_be_visible()

    # promote the best, follow its job
    best = stack.client.search(search_id).best[0]
    promoted = _promote(page, f"{visit.url}/searches/{search_id}/trials/{best.number}")
    assert stack.client.job(promoted).promoted_from.search == job.id
    assert _promote(page, f"{visit.url}/searches/{search_id}/trials/{best.number}") == promoted  # a second time
    expect(page.locator(".head .badge")).to_have_text(re.compile("succeeded"), timeout=LIMIT_S * 1000)

    # an alias, and the snippet that loads it
    page.goto(f"{visit.url}/backbones/journey")
    _set_alias(page, "best", 1)
    expect(page.locator(".tag", has_text="best").first).to_be_visible()
    assert stack.client.backbone("journey").aliases == {"best": 1}
    _the_copied_snippet_loads(page, stack, tmp_path)


def _start_the_search(page: Page) -> None:
    """From what the form offers at first, with less to do."""
    page.locator('[name="name"]').fill("from-the-form")
    page.locator('[name="budget.trials"]').fill("4")
    page.locator('[name="budget.concurrency"]').fill("2")
    expect(page.get_by_role("complementary", name="Plan")).to_contain_text("4 trials, 2 at a time")
    start(page).click()


def _change_concurrency(page: Page, count: int) -> None:
    page.get_by_label("At a time").fill(str(count))
    page.get_by_role("button", name="Save").first.click()


def _promote(page: Page, trial: str) -> str:
    """Gives the id of the job, to whose page it leads."""
    page.goto(trial)
    press(page, "Promote")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Epochs").fill("3")
    dialog.get_by_label(re.compile("Register")).fill("journey")
    dialog.get_by_role("button", name="Promote").click()
    expect(page).to_have_url(re.compile(r"/jobs/job-\w+/overview"))
    return page.url.split("/")[-2]


def _set_alias(page: Page, alias: str, version: int) -> None:
    press(page, "Set alias")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Alias").fill(alias)
    dialog.get_by_label("Version").select_option(str(version))
    dialog.get_by_role("button", name="Set").click()


def _the_copied_snippet_loads(page: Page, stack: Stack, folder: Path) -> None:
    """What the page gives for transformers, pasted into a file."""
    shown = page.locator("section[aria-labelledby=h-load] .copyable", has_text="from transformers import").first
    shown.get_by_role("button", name="Copy").click()
    code = page.evaluate("navigator.clipboard.readText()")
    (folder / "load.py").write_text(code)
    Image.new("RGB", (41, 60), "orange").save(folder / "photo.jpg")
    done = subprocess.run(
        [sys.executable, "load.py"], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={"HF_TOKEN": stack.token, "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_search_that_was_cancelled_goes_on(visit: Visit, stack: Stack) -> None:
    base = make_spec(optimization={"epochs": 30}, resources={"workers": 1}, evaluation={"every_epochs": 15})
    space = {"optimization.base_lr": {"type": "categorical", "choices": [1e-4, 1e-3]}}
    budget = {"trials": 2, "concurrency": 1}
    job = stack.client.submit({"kind": "search", "name": "again", "base": base, "space": space, "budget": budget})
    page = visit.open(f"/searches/{job.id}/overview")
    wait_state(stack, job.id, State.RUNNING)
    press(page, "Cancel", sure="End it")
    wait_state(stack, job.id, State.CANCELLED)
    press(page, "Retry", sure="Retry")
    expect(page.locator(".head .badge")).not_to_have_text(re.compile("cancelled"))
    wait_state(stack, job.id, State.SUCCEEDED, timeout_s=240)
    expect(page.locator(".head .badge")).to_have_text(re.compile("succeeded"))
    assert sorted(trial.number for trial in stack.client.trials(job.id)) == [0, 1]


def test_a_champion_is_approved_by_a_rule_that_was_set_on_the_page(visit: Visit, stack: Stack) -> None:
    job = stack.client.submit(make_spec(name="approved", register_as="approved", evaluation={"every_epochs": 1}))
    wait_state(stack, job.id, State.SUCCEEDED)
    wait_state(stack, stack.client.publish(job.id, "approved").id, State.SUCCEEDED)
    visit.expected.append(r"422 \(Unprocessable Entity\)")
    page = visit.open("/backbones/approved")
    press(page, "Set a rule")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("each move needs a reason").check()
    second = dialog.get_by_role("group", name="Result 2")  # and the first stays empty
    second.get_by_label("Metric").fill("eval/linear_top")
    dialog.get_by_role("button", name="Save").click()
    expect(second).to_contain_text("did you mean eval/linear_top1?")
    second.get_by_label("Metric").fill("eval/linear_top1")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_text("eval/linear_top1 must not be lower than the champion's")).to_be_visible()

    press(page, "Approve a champion")
    dialog.get_by_label("Version").select_option("1")
    dialog.get_by_label("Reason").fill("better on the shelf set")
    dialog.get_by_role("button", name="Approve").click()
    expect(page.locator("#alias-moves")).to_contain_text("better on the shelf set")
    expect(page.locator("#check-1")).to_contain_text("It is the champion")
    expect(page.locator("#check-2")).to_contain_text("Yes")

    press(page, "Change the rule")
    assert [each.input_value() for each in dialog.get_by_label("Metric").all()] == ["eval/linear_top1", "", ""]
    dialog.get_by_label("may not approve it").check()
    dialog.get_by_role("button", name="Save").click()
    expect(page.locator("#check-2")).to_contain_text("somebody else has to approve it")
    press(page, "Remove the rule", sure="Remove the rule")
    expect(page.get_by_text("There is no rule")).to_be_visible()
    assert stack.client.backbone("approved").aliases == {"champion": 1}


def test_reconstructions_by_keyboard(visit: Visit, filled: Filled) -> None:
    page = visit.open(f"/jobs/{filled.job.id}/images")
    slider = page.get_by_role("slider")
    picture = page.locator("[data-pictures] img").first
    last = picture.get_attribute("src")
    expect(page.locator("[data-caption]")).to_have_text(re.compile(r"^epoch 6, step \d+$"))
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(picture).not_to_have_attribute("src", last)
    expect(page.locator("[data-caption]")).to_have_text(re.compile(r"^epoch 4, step \d+$"))
    expect(picture).to_have_attribute("alt", re.compile(r"at epoch 4, step \d+$"))
    page.keyboard.press("ArrowRight")
    expect(picture).to_have_attribute("src", last)


def test_a_log_is_followed_searched_and_downloaded(visit: Visit, stack: Stack) -> None:
    job = stack.client.submit(make_spec(name="talks", optimization={"epochs": 400}))
    wait_state(stack, job.id, State.RUNNING)
    page = visit.open(f"/jobs/{job.id}/logs")
    lines = page.locator(".log-line")
    expect(lines.first).to_be_visible()
    before = lines.count()
    expect(lines).not_to_have_count(before)  # more have come
    once = page.locator(".log-line", has_text="Training on")
    expect(once).to_have_count(1)
    live = page.locator("[data-live-switch]")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    page.reload()
    expect(once).to_have_count(1)  # what there is so far
    before = lines.count()
    live.click()
    expect(lines).not_to_have_count(before)
    expect(once).to_have_count(1)  # the stream that began anew repeats no line
    page.get_by_label("Search").fill("checkpoint")
    expect(page.locator(".log-line mark").first).to_be_visible()
    page.get_by_text("Download whole logs").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="driver").click()
    assert b'"message"' in download.value.path().read_bytes()


def test_what_is_wrong_is_told_at_its_field(visit: Visit) -> None:
    visit.expected.append("422")
    page = visit.open("/jobs/new")
    field = page.locator('[name="optimization.epochs"]')
    field.fill("-3")
    start(page).click()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator(f"#{field.get_attribute('aria-describedby').split()[0]}")).to_have_text(
        re.compile("greater than or equal to 1")
    )
    expect(field).to_have_value("-3")


def test_two_parameters_of_one_path_are_told(visit: Visit) -> None:
    visit.expected.append("422")  # of the plan, before the path is written
    page = visit.open("/searches/new")
    rows = page.locator("[data-parameter]")
    path = rows.first.locator("[data-part=path]").input_value()
    page.get_by_role("button", name="Another parameter").click()
    rows.last.locator("[data-part=path]").fill(path)
    start(page).click()
    expect(page.get_by_text(f"{path} is there twice").first).to_be_visible()
    expect(page).to_have_url(re.compile("/searches/new$"))
    rows.last.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("complementary", name="Plan")).to_contain_text("trials")


def test_a_conflict_keeps_what_was_written(visit: Visit, stack: Stack) -> None:
    """The job ends while its priority is being changed."""
    visit.expected.append("409")
    job = stack.client.submit(make_spec(name="races", priority=-100, resources={"workers": 32}))
    page = visit.open(f"/jobs/{job.id}/overview")
    press(page, "Priority and notes")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Priority").fill("7")
    stack.client.cancel(job.id)
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_be_visible()
    expect(dialog.get_by_label("Priority")).to_have_value("7")


def test_a_session_that_ends_loses_nothing(visits: Visits, stack: Stack) -> None:
    made = stack.client.create_token(owner="dora", role="submitter")
    visit = visits(made.token)
    visit.expected += SESSION_ENDS
    page = visit.open("/jobs/new")
    # Not before the first plan is there: refused, it opens the dialog while the name is being written, with the focus.
    expect(page.get_by_role("complementary", name="Plan")).to_contain_text("memory a worker")
    stack.client.revoke_token(made.id)
    page.locator('[name="name"]').fill("still-here")  # whose plan is refused
    ended = page.locator("#ended")
    ended.get_by_role("button", name="Close").click()
    start(page).click()
    ended.get_by_role("button", name="Close").click()
    expect(page.locator('[name="name"]')).to_have_value("still-here")


def test_a_viewer_has_no_control(visits: Visits, stack: Stack, filled: Filled) -> None:
    made = stack.client.create_token(owner="looks-on", role="viewer")
    visit = visits(made.token)
    for path in (f"/jobs/{filled.job.id}/overview", f"/searches/{filled.search.id}/overview", "/backbones/looked-at"):
        page = visit.open(path)
        expect(page.locator("[data-action]")).to_have_count(0)
        expect(page.locator("form[data-action]")).to_have_count(0)


def test_nothing_yet_is_said_as_that(visits: Visits, stack: Stack) -> None:
    made = stack.client.create_token(owner="newcomer", role="submitter")
    visit = visits(made.token)
    for path in ("/", "/jobs", "/searches"):
        page = visit.open(path)
        expect(page.locator(".empty").first).to_be_visible()
        page.close()


def test_figures_say_why_they_are_empty(visit: Visit, filled: Filled) -> None:
    visit.expected.append("status of 503")
    page = visit.context.new_page()
    problem = {"code": "mlflow_unavailable", "detail": "MLflow does not answer"}
    page.route("**/metrics?*", lambda route: route.fulfill(status=503, json=problem))
    page.goto(f"{visit.url}/jobs/{filled.job.id}/metrics")
    figures = page.locator("figure.chart")
    expect(figures.first).to_contain_text("Could not be loaded: MLflow does not answer")
    assert figures.count() > 1
    expect(figures.filter(has_text="Could not be loaded: MLflow does not answer")).to_have_count(figures.count())
    expect(page.locator(".skeleton:visible")).to_have_count(0)


def test_live_is_switched_where_nothing_changes(visit: Visit) -> None:
    page = visit.open("/tokens")
    live = page.locator("[data-live-switch]")
    live.click()
    expect(live).to_have_attribute("aria-pressed", "false")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.resource_type))
    with page.expect_response(re.compile("/tokens$")):  # it is brought up to date
        live.click()
    assert "eventsource" not in asked


HIDE = """hidden => {
    Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_more_tabs_than_connections(visit: Visit, stack: Stack) -> None:
    """A browser has six connections to a host: tabs that nobody looks at give theirs back."""
    tabs: list[Page] = []
    for number in range(9):
        tabs.append(visit.open("/jobs"))  # before the next one hides it
        expect(tabs[-1].locator("[data-live-text]")).to_have_text(re.compile("live|updated"))
        if number != 4:
            tabs[-1].evaluate(HIDE, True)
        else:
            with tabs[-1].expect_event("requestfailed", lambda request: request.url.endswith("/v1/stream")):
                tabs[-1].evaluate(HIDE, True)
    stack.client.submit(make_spec(name="seen-later", priority=-100, resources={"workers": 32}))
    expect(tabs[0].get_by_text("seen-later")).to_be_hidden()
    tabs[0].evaluate(HIDE, False)
    expect(tabs[0].get_by_text("seen-later").first).to_be_visible()


TOP = "each => each.getBoundingClientRect().top"


def test_scroll_zoom_and_typing_stay_while_the_page_refreshes(visit: Visit, stack: Stack) -> None:
    job = stack.client.submit(make_spec(name="goes-on-and-on", optimization={"epochs": 2000}))
    wait_state(stack, job.id, State.RUNNING)
    page = visit.open(f"/jobs/{job.id}/metrics")
    # Not the first that is drawn: before any step that is one of the evaluation, and Loss comes above it.
    chart = page.locator(".js-plotly-plot[aria-label='Loss']")
    expect(chart).to_be_visible()
    chart.evaluate("chart => Plotly.relayout(chart, {'xaxis.range': [1, 3]})")
    page.set_viewport_size({"width": 1000, "height": 400})
    poll(lambda: page.evaluate("scrollTo(0, 200), scrollY"), lambda found: found == 200)  # when it is long enough
    top = chart.evaluate(TOP)
    asked = "performance.getEntriesByType('resource').filter((each) => each.name.includes('/metrics?')).length"
    before = page.evaluate(asked)
    poll(lambda: page.evaluate(asked), lambda count: count > before + 1)
    assert chart.evaluate(TOP) == pytest.approx(top, abs=1)  # also where a line has come above it
    assert chart.evaluate("chart => chart.layout.xaxis.range") == [1, 3]


NOTE = "<p>A note that goes away</p>"
CONTENT = """
<details><summary>More</summary>Details</details><p id="words">Words to select</p><form><input name="q"></form>
<dialog>A question</dialog><p data-keep id="drawn"></p><p>Two jobs</p>
"""


def test_what_is_typed_opened_and_selected_stays_when_a_line_above_goes_away(visit: Visit) -> None:
    page = visit.open("/tokens")
    page.locator("[data-live-switch]").click()  # no refresh but the one below
    page.evaluate("html => { document.getElementById('main').innerHTML = html; }", NOTE + CONTENT)
    page.get_by_text("More").click()
    page.get_by_role("textbox").fill("half a wo")
    page.evaluate("""() => {
        document.querySelector("#main dialog").show();
        document.getElementById("drawn").textContent = "a chart";
        const words = document.getElementById("words").firstChild;
        getSelection().setBaseAndExtent(words, 9, words, 15);
    }""")
    refreshed = f'<main id="main">{CONTENT.replace("Two jobs", "Three jobs")}</main>'
    page.route("**/tokens", lambda route: route.fulfill(body=refreshed, content_type="text/html"))
    page.evaluate("document.querySelector('[data-live-switch]').click()")
    expect(page.get_by_text("Three jobs")).to_be_visible()
    expect(page.get_by_text("A note that goes away")).to_have_count(0)
    expect(page.get_by_text("Details")).to_be_visible()
    expect(page.get_by_role("textbox")).to_have_value("half a wo")
    expect(page.get_by_text("A question")).to_be_visible()
    expect(page.get_by_text("a chart")).to_be_visible()
    assert page.evaluate("getSelection().toString()") == "select"


def test_by_keyboard_alone(visit: Visit) -> None:
    """From the first page to a job that runs, with Tab, Enter and letters."""
    page = visit.open("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    link = page.get_by_role("link", name="Job", exact=True)
    for _ in range(30):
        page.keyboard.press("Tab")
        if link.evaluate("each => each === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/jobs/new"))
    for _ in range(200):
        page.keyboard.press("Tab")
        if start(page).evaluate("each => each === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/jobs/job-\w+/overview"))


def test_a_dataset_is_inspected_from_the_form_and_its_settings_are_taken_over(visit: Visit, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for number in range(40):
        folder = tmp_path / "scans" / ("train" if number < 30 else "val") / ("sick" if number % 2 else "healthy")
        folder.mkdir(parents=True, exist_ok=True)
        scan = rng.integers(0, 4096, (48, 40)).astype(np.uint16)
        cv2.imwrite(str(folder / f"{number}.png"), scan)
    page = visit.open("/jobs/new")
    page.locator('[name="dataset.uri"]').fill(str(tmp_path / "scans"))
    press(page, "Inspect")
    expect(page).to_have_url(re.compile(r"/jobs/job-\w+/overview"))
    expect(page.get_by_role("heading", name="What the data says")).to_be_visible(timeout=LIMIT_S * 1000)
    expect(page.locator("dd", has_text="2 classes from folders")).to_be_visible()
    expect(page.locator("[data-warning=splits_together]")).to_be_visible()
    picture = page.get_by_alt_text(re.compile("24 images"))
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 500
    visit.shot(page, "inspection")
    assert visit.axe(page) == []
    page.get_by_role("link", name="Use these settings").click()
    expect(page.locator('[name="dataset.uri"]')).to_have_value(f"file://{tmp_path}/scans/train")
    expect(page.locator('[name="evaluation.dataset.uri"]')).to_have_value(f"file://{tmp_path}/scans/val")
    expect(page.locator('[name="model.in_chans"]')).to_have_value("1")
    expect(page.get_by_role("complementary", name="Plan")).to_contain_text("starts now")
