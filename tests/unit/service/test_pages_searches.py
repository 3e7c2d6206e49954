"""Pages of searches: the list, one search's tabs, trials side by side, and one trial."""

import html
import json
import re

import pytest
import yaml
from optuna.trial import TrialState
from search_files import BETAS, CHOICES, MOMENTUM, RATE, search_with
from service_fakes import add_job

from service.adapters.studies import StudiesUnreachable
from service.db.tables import Attempt, now
from trainer.protocol import names
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys

SPEC = search_with(space=search_with()["space"] | CHOICES)
PROGRESS = {
    "trials": {"running": 2, "complete": 3, "pruned": 1, "failed": 1},
    "budget": 8,
    "best_trial": 1,
    "best_value": 0.8123456789,
    "eta_s": 4210.0,
    "gpu_hours": 1.25,
}


@pytest.fixture
def search(searches) -> str:
    """One of alice's that runs: two complete trials, a pruned, a failed one, a repeat of the best, and two that run."""
    job_id = searches.add("running", SPEC, attempts=1, progress=PROGRESS)
    epochs = {names.TRIAL_EPOCH: 9}
    searches.trial(job_id, values=[0.7], curve=[0.4, 0.6, 0.7], point={MOMENTUM: 0.95, RATE: 3e-4, BETAS: [0.9, 0.95]})
    best = {MOMENTUM: 0.99, RATE: 4e-4, BETAS: [0.9, 0.95]}
    searches.trial(job_id, values=[0.8123456789], curve=[0.5, 0.7, 0.8123456789], point=best, **epochs)
    pruned = {MOMENTUM: 0.92, RATE: 1e-5, BETAS: [0.9, 0.95]}
    searches.trial(job_id, TrialState.PRUNED, curve=[0.2, 0.3], point=pruned)
    why = {names.TRIAL_REASON: "out_of_memory", names.TRIAL_MESSAGE: "out of memory on <rank 0>"}
    searches.trial(job_id, TrialState.FAIL, point=best, **why)
    searches.trial(job_id, values=[0.8], curve=[0.5, 0.7, 0.8], point=best, **{names.TRIAL_REPEAT_OF: 1})
    for _ in range(2):
        searches.with_run(job_id, {"images/reconstruction_000100.png": b"png"})
    return job_id


def page(browser, path: str, status: int = 200) -> str:
    answer = browser.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


def rows(text: str) -> list[int]:
    """Numbers of the trials in a table, in its order."""
    return [int(number) for number in re.findall(r'<tr id="trial-(\d+)"', text)]


def offers(text: str) -> set[str]:
    """What a page's buttons and forms ask of the API."""
    return set(re.findall(r'data-action="([A-Z]+ [^"]+)"', text))


def test_the_table_shows_how_far_running_trials_are_and_which_were_stopped_by_hand(browsers, searches, mlflow, search):
    run_id, _ = mlflow.make_trial_run(search, 7)
    own = {names.TRIAL_RUN: run_id, names.TRIAL_ATTEMPTS: [1]}
    running = searches.trial(search, TrialState.RUNNING, {MOMENTUM: 0.99, RATE: 4e-4, BETAS: [0.9, 0.95]}, **own)
    run = mlflow.runs[run_id]
    measured = {metric_keys.EPOCH: 1.5, metric_keys.SAMPLES: 30 * 64.0, metric_keys.LOSS: 0.75}
    newest = Newest(attempt=1, step=30, values=measured | {metric_keys.IMAGES_PER_S: 640.4})
    run.tags |= {names.TAG_NEWEST: newest.model_dump_json(), names.TAG_STEPS: "90"}
    run.tags[names.heartbeat(1)] = str(now().timestamp())
    searches.trial(search, TrialState.PRUNED, curve=[0.5], **{names.TRIAL_REASON: "stopped_by_user"})
    text = page(browsers.alice, f"/searches/{search}/trials")
    assert "data-moving" in text
    assert "step 30/90 · loss 0.75 · 640 images/s" in text
    assert "seen <time" in text
    row = text.partition(f'id="trial-{running + 1}"')[2].partition("</tr>")[0]
    assert "stopped by hand" in row
    assert "pruned</span>" not in row
    assert "step 30/90 · loss 0.75" in page(browsers.alice, f"/searches/{search}/trials/{running}")
    assert "stopped by hand" in page(browsers.alice, f"/searches/{search}/trials/{running + 1}")


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_has_searches_alone_with_what_they_have_reached(browsers, database, search):
    add_job(database, "running", name="no-search")
    text = page(browsers.alice, "/searches")
    assert "no-search" not in text
    for wanted in (
        "0.812346",
        f"/searches/{search}/trials/1",
        "5/8 ended",
        "2 running",
        "1 failed",
        "1 h 10 m",
        "1.25",
    ):
        assert wanted in text
    assert search not in page(browsers.bob, "/searches")


@pytest.mark.both_databases
def test_the_list_is_filtered_and_says_where_nothing_is_left(browsers, searches):
    searches.add("failed", search_with(name="<b>went-wrong", labels={"team": "vision"}), message="5 trials failed")
    searches.add("queued", search_with(name="waits"), message="needs 4 CPUs, 2 free")
    text = page(browsers.alice, "/searches")
    assert "&lt;b&gt;went-wrong" in text
    assert "5 trials failed" in text
    assert "needs 4 CPUs, 2 free" in text
    assert "waits" not in page(browsers.alice, "/searches?state=failed&owner=&label=")
    assert "waits" not in page(browsers.alice, "/searches?label=team:vision")
    assert "No search matches the filters." in page(browsers.alice, "/searches?name_contains=none")


def test_the_first_search_is_offered_to_those_who_may_start_one(browsers):
    assert 'href="/searches/new"' in page(browsers.alice, "/searches")
    assert "There are no searches yet." in page(browsers.viewer, "/searches")
    assert 'href="/searches/new"' not in page(browsers.viewer, "/searches")


# --- one search -------------------------------------------------------------------------------------------------------


def test_ids_lead_to_the_page_of_their_kind(browsers, database, search):
    job = add_job(database, "running")
    assert browsers.alice.get(f"/searches/{search}").headers["Location"] == f"/searches/{search}/overview"
    assert browsers.alice.get(f"/searches/{job}").headers["Location"] == f"/jobs/{job}/overview"
    assert "not a search" in page(browsers.alice, f"/searches/{job}/overview", 409)
    page(browsers.bob, f"/searches/{search}/overview", 404)


def test_the_overview_has_the_best_trial_the_repeats_and_the_figures(browsers, search):
    text = page(browsers.alice, f"/searches/{search}/overview")
    assert 'title="0.8123456789">0.812346' in text
    assert ">0.0004<" in text
    assert '<tr id="repeat-1">' in text
    assert f"POST /v1/searches/{search}/trials/1/promote" in offers(text)
    for name in ("history", "curves", "importance", "timeline"):
        assert f'data-plot="/v1/searches/{search}/plots/{name}"' in text


@pytest.mark.parametrize(
    ("state", "offered"),
    [
        ("queued", {"pause", "stop", "cancel"}),
        ("running", {"pause", "stop", "cancel"}),
        ("paused", {"resume", "stop", "cancel"}),
        ("cancelling", set()),
        ("succeeded", set()),
        ("failed", {"retry"}),
    ],
)
def test_the_verbs_are_those_that_the_state_allows(browsers, searches, state, offered):
    text = page(browsers.alice, f"/searches/{searches.add(state, SPEC)}/config")
    found = {each.rpartition("/")[2] for each in offers(text) if each.startswith("POST /v1/jobs")}
    assert found == offered
    assert ("/delete" in text) is (state in {"succeeded", "failed"})


def test_confirmations_name_how_many_trials_they_touch(browsers, searches, search):
    text = page(browsers.alice, f"/searches/{search}/overview")
    assert "2 running trials checkpoint and wait." in text
    assert "2 running trials finish, then the search has succeeded." in text
    assert "2 running trials end at their next step" in text
    searches.change(search, draining=True)
    text = page(browsers.alice, f"/searches/{search}/overview")
    assert f"POST /v1/jobs/{search}/stop" not in offers(text)
    assert "It starts no more trials: 2 running trials finish first." in text


@pytest.mark.both_databases
def test_a_viewer_is_offered_nothing(browsers, search):
    for path in ("overview", "trials", "trials/3", "trials/5"):
        assert offers(page(browsers.viewer, f"/searches/{search}/{path}")) == set()


def test_the_budget_says_why_fewer_run_at_a_time(browsers, searches, search):
    document = searches.job(search).spec
    searches.change(
        search,
        spec=document | {"budget": document["budget"] | {"concurrency": 4}},
        resolved_spec=document | {"budget": document["budget"] | {"concurrency": 2}},
    )
    text = page(browsers.alice, f"/searches/{search}/overview")
    assert "Only 2 of 4 trials run at a time: no more fit on the cluster." in text
    assert f"PATCH /v1/searches/{search}" in offers(text)


def test_the_rest_stands_while_trials_cannot_be_read(browsers, search, app, monkeypatch):
    def away(*_: object) -> None:
        raise StudiesUnreachable("connection refused")

    monkeypatch.setattr(app.state.app_state.studies, "trials", away)
    for path in ("overview", "trials", "analysis", "config", "logs", "trials/1", "compare?trial=0&trial=1"):
        text = page(browsers.alice, f"/searches/{search}/{path}")
        assert "connection refused" in text
        assert "tune" in text
    assert f"POST /v1/jobs/{search}/pause" in offers(page(browsers.alice, f"/searches/{search}/overview"))


def test_a_deletion_is_shown_before_it_is_done(browsers, searches):
    run_id, folder = searches.mlflow.make_run("run", "run", {})
    job_id = searches.add("succeeded", SPEC, run_id=run_id, artifact_uri=folder)
    searches.trial(job_id, values=[0.5], curve=[0.5])
    text = page(browsers.alice, f"/searches/{job_id}/delete")
    assert "the runs of its 1 trial" in text
    assert f"DELETE /v1/jobs/{job_id}?with_backbones={{with}}" in offers(text)
    page(browsers.alice, f"/searches/{searches.add('running', SPEC)}/delete", 409)


def test_the_config_has_the_space_and_a_spec_that_can_be_submitted_again(browsers, api, search):
    text = page(browsers.alice, f"/searches/{search}/config")
    assert "logarithmic" in text
    assert f'href="/searches/new?like={search}"' in text
    code = re.search(r'<code class="yaml">(.*?)</code>', text, re.DOTALL)
    assert api.post("/v1/jobs", json=yaml.safe_load(html.unescape(code[1]))).status_code == 201


# --- trials -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [1, 6, 5, 4, 3, 2, 0]),
        ("?sort=-value", [1, 4, 0, 2, 6, 5, 3]),
        (f"?sort=param:{RATE}", [1, 2, 5, 6, 0, 3, 4]),
        ("?state=failed&state=pruned&sort=number", [2, 3]),
        ("?state=waiting", []),
    ],
)
def test_the_best_trial_stays_on_top_of_those_asked_for(browsers, search, query, numbers):
    assert rows(page(browsers.alice, f"/searches/{search}/trials{query}")) == numbers


@pytest.mark.both_databases
def test_trials_come_in_pages(browsers, searches):
    job_id = searches.add("running", SPEC)
    for number in range(52):
        searches.trial(job_id, values=[number / 100], curve=[number / 100])
    text = page(browsers.alice, f"/searches/{job_id}/trials")
    assert rows(text) == list(range(51, 1, -1))
    following = html.unescape(re.search(r'href="([^"]+)" data-swap rel="next"', text)[1])
    assert rows(page(browsers.alice, following)) == [51, 1, 0]


@pytest.mark.both_databases
def test_a_trial_is_stopped_or_tried_again_where_it_stands(browsers, search):
    verbs = {each for each in offers(page(browsers.alice, f"/searches/{search}/trials")) if "/trials/" in each}
    base = f"POST /v1/searches/{search}/trials"
    assert verbs == {f"{base}/6/stop", f"{base}/5/stop", f"{base}/3/retry"}


def test_an_unknown_order_is_refused(browsers, search):
    assert "is not a parameter" in page(browsers.alice, f"/searches/{search}/trials?sort=param:none", 422)
    page(browsers.alice, f"/searches/{search}/trials?sort=none", 422)


# --- what the parameters do -------------------------------------------------------------------------------------------


def test_the_contour_is_of_the_pair_in_the_address(browsers, search):
    text = page(browsers.alice, f"/searches/{search}/analysis?first={RATE}&second={MOMENTUM}")
    assert f'data-plot="/v1/searches/{search}/plots/contour?param={RATE}&amp;param={MOMENTUM}"' in text
    assert "pareto" not in text
    assert "Choose two different" in page(browsers.alice, f"/searches/{search}/analysis?first={RATE}&second={RATE}")
    assert "not a parameter" in page(browsers.alice, f"/searches/{search}/analysis?first=none", 422)


def test_several_objectives_have_a_front(browsers, searches):
    objective = [
        {"metric": metric_keys.LINEAR_TOP1, "mode": "max"},
        {"metric": metric_keys.IMAGES_PER_S, "mode": "max"},
    ]
    job_id = searches.add("running", search_with(objective=objective, scheduler={"name": "none"}))
    for value in (0.5, 0.6):
        searches.trial(job_id, values=[value, 100 * (1 - value)])
    assert f"/v1/searches/{job_id}/plots/pareto" in page(browsers.alice, f"/searches/{job_id}/analysis")
    assert "The Pareto-optimal trials" in page(browsers.alice, f"/searches/{job_id}/overview")


# --- several trials, and one ------------------------------------------------------------------------------------------


def test_compared_are_the_parameters_that_differ(browsers, search):
    text = page(browsers.alice, f"/searches/{search}/compare?trial=0&trial=1&trial=1")
    table = text[text.index('<table id="compared">') : text.index("</table>")]
    assert MOMENTUM in table
    assert RATE in table
    assert BETAS not in table
    assert 'class="marked"><span class="num" title="0.8123456789">' in table
    runs = json.loads(html.unescape(re.search(r'data-curves="([^"]+)"', text)[1]))
    assert [run["url"] for run in runs] == [f"/v1/searches/{search}/trials/{number}/metrics" for number in (0, 1)]
    assert runs[0]["colour"] != runs[1]["colour"]


@pytest.mark.parametrize("query", ["", "?trial=1", "?" + "&".join(f"trial={number}" for number in range(7))])
def test_two_to_six_trials_are_compared(browsers, search, query):
    assert "Choose two to six trials." in page(browsers.alice, f"/searches/{search}/compare{query}")


def test_a_pruned_trial_says_where_it_stood_and_how_it_differs_from_the_best(browsers, search):
    text = page(browsers.alice, f"/searches/{search}/trials/2")
    assert "Pruned by the scheduler (asha) at epoch" in text
    assert "×0.025" in text
    assert "−0.07" in text
    figure = json.loads(html.unescape(re.search(r'data-figure="([^"]+)"', text)[1]))
    others, own = figure["data"]
    assert (others["x"], others["y"]) == ([3, 6, 9], [0.5, 0.7, 0.8])
    assert own["y"] == [0.2, 0.3]
    assert figure["layout"]["annotations"][0]["x"] == 6


def test_a_trial_says_what_it_comes_from_and_what_became_of_it(browsers, api, search):
    job = api.post(f"/v1/searches/{search}/trials/1/promote", json={}).json()["id"]
    text = page(browsers.alice, f"/searches/{search}/trials/1")
    assert f'href="/jobs/{job}"' in text
    assert f'href="/searches/{search}/trials/4"' in text[text.index("repeated as") :]
    assert "repeat of" in page(browsers.alice, f"/searches/{search}/trials/4")
    failed = page(browsers.alice, f"/searches/{search}/trials/3")
    assert "out of memory on &lt;rank 0&gt;" in failed
    assert f"POST /v1/searches/{search}/trials/3/retry" in offers(failed)
    page(browsers.alice, f"/searches/{search}/trials/99", 404)


def test_a_trial_has_its_pictures(browsers, search):
    text = page(browsers.alice, f"/searches/{search}/trials/5")
    assert f"/v1/searches/{search}/trials/5/images/reconstruction_000100.png" in text


def test_logs_are_read_of_the_search_and_of_each_trial(browsers, database, search):
    assert "no attempt has begun" in page(browsers.alice, f"/searches/{search}/logs")
    with database.session() as session:
        session.add(Attempt(job_id=search, number=1, submission_id=f"{search}-1", state="running", started_at=now()))
    assert f'data-log="/v1/jobs/{search}/logs"' in page(browsers.alice, f"/searches/{search}/logs")
    assert f'data-log="/v1/searches/{search}/trials/5/logs"' in page(browsers.alice, f"/searches/{search}/trials/5")
    assert "data-log" not in page(browsers.alice, f"/searches/{search}/trials/3")
