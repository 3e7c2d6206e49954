"""Pages of jobs: what is shown and offered, to whom and in which state."""

import pytest
from service_fakes import SPEC, add_job

from service.db.tables import now
from service.jobs import repository
from service.jobs.lifecycle import EFFECTS, Effect, Verb
from service.jobs.state import State
from trainer.spec.pretrain import PretrainSpec

DOCUMENT = PretrainSpec.parse(SPEC).model_dump(mode="json")
TABS = ("overview", "metrics", "images", "logs", "checkpoints", "events", "spec")


def page(browser, path: str) -> str:
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def job(database, state="queued", **fields) -> str:
    return add_job(database, state, **{"owner": "alice", "spec": DOCUMENT} | fields)


def test_the_list_tells_why_a_job_waits(browsers, database):
    job(database, name="waits", reason="insufficient_resources", message="needs 4 GPUs, 2 free")
    assert "needs 4 GPUs, 2 free" in page(browsers.alice, "/jobs")


@pytest.mark.both_databases
def test_the_list_is_filtered_and_paged_by_its_address(browsers, database):
    for number in range(60):
        job(database, name=f"number-{number:02}", state="failed" if number == 7 else "queued")
    first = page(browsers.alice, "/jobs")
    assert "number-59" in first
    assert "number-05" not in first
    following = first.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0].replace("&amp;", "&")
    assert "number-05" in page(browsers.alice, following)
    failed = page(browsers.alice, "/jobs?state=failed")
    assert "number-07" in failed
    assert "number-08" not in failed
    assert "No job matches the filters." in page(browsers.alice, "/jobs?name_contains=nowhere")
    assert "number-08" not in page(browsers.alice, "/jobs?kind=search")
    refused = browsers.alice.get("/jobs?kind=nonsense")
    assert refused.status_code == 422
    assert "pretrain" in refused.text


@pytest.mark.parametrize("state", ["queued", "running", "failed"])
def test_every_tab_is_there_before_and_after_training(browsers, database, state):
    job_id = job(database, state, name="<i>shown</i>")
    for tab in TABS:
        text = page(browsers.alice, f"/jobs/{job_id}/{tab}")
        assert "&lt;i&gt;shown&lt;/i&gt;" in text, tab
        assert "<i>shown" not in text, tab


def test_a_page_offers_what_the_state_allows(browsers, database):
    offered = {
        Verb.PAUSE: '/pause"',
        Verb.CANCEL: '/cancel"',
        Verb.RESUME: 'data-opens="resume"',
        Verb.RETRY: 'data-opens="retry"',
        Verb.DELETE: "Delete…",
    }
    for state in State:
        text = page(browsers.alice, f"/jobs/{job(database, state.value)}/overview")
        found = {verb for verb, mark in offered.items() if mark in text}
        assert found == {verb for verb in offered if EFFECTS[verb][state] not in {Effect.REFUSED, Effect.SAME}}, state


def test_who_may_not_control_a_job_is_offered_nothing(browsers, database):
    job_id = job(database, "running")
    for browser in (browsers.viewer, browsers.operator):
        text = page(browser, f"/jobs/{job_id}/overview")
        assert ("/v1/jobs/" + job_id + "/cancel" in text) is (browser is browsers.operator)
    assert browsers.bob.get(f"/jobs/{job_id}/overview").status_code == 404


def test_a_job_leads_to_its_first_tab_and_an_unknown_one_nowhere(browsers, database):
    job_id = job(database)
    assert browsers.alice.get(f"/jobs/{job_id}").headers["Location"] == f"/jobs/{job_id}/overview"
    assert "there is no job" in browsers.alice.get("/jobs/job-none/overview").text


def test_what_goes_with_a_job_is_said_before(browsers, database):
    job_id = job(database, "failed", ended_at=now())
    text = page(browsers.alice, f"/jobs/{job_id}/delete")
    assert "This also deletes 0 files" in text
    assert "This cannot be undone." in text


def test_comparing_shows_what_differs(browsers, database):
    ids = [
        job(database, "succeeded", name=name, spec=DOCUMENT | {"name": name, "seed": seed})
        for name, seed in (("one", 1), ("other", 2))
    ]
    text = page(browsers.alice, f"/jobs/compare?job={ids[0]}&job={ids[1]}")
    assert "1 parameter differs" in text
    assert '<th scope="row">seed</th>' in text
    assert "Choose two to six jobs." in page(browsers.alice, f"/jobs/compare?job={ids[0]}")


def test_comparing_with_a_job_that_has_no_teacher(browsers, database):
    mae = PretrainSpec.parse(SPEC | {"method": {"name": "mae"}}).model_dump(mode="json")
    ids = [job(database, "succeeded", name="with"), job(database, "succeeded", name="without", spec=mae)]
    for one, other in (ids, ids[::-1]):
        text = page(browsers.alice, f"/jobs/compare?job={one}&job={other}")
        assert '<th scope="row">method.teacher.momentum</th>' in text
        assert '<th scope="row">method.teacher</th>' not in text


@pytest.mark.both_databases
def test_only_pretraining_jobs_are_compared(browsers, database):
    trained, another = job(database, "succeeded"), job(database, "succeeded", name="other")
    published = {"kind": "publish", "job": trained, "checkpoint": "checkpoints/a1/00000100", "register_as": "one"}
    with database.session() as session:
        other = repository.get(session, another)
        other.kind, other.spec = "publish", published
        other_id = other.id
    answer = browsers.alice.get(f"/jobs/compare?job={trained}&job={other_id}")
    assert answer.status_code == 422
    assert f"{other_id} is a publish job" in answer.text
