"""The first page, and what all pages share."""

from datetime import timedelta

import pytest
from service_world import add_job

from service.adapters.ray_cluster import ClusterUnreachable
from service.dashboard.pages.home import SEEN_COOKIE
from service.db.tables import now


def home(browser, **cookies) -> str:
    browser.cookies.update(cookies)
    answer = browser.get("/")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_without_a_session_one_is_sent_to_the_login_and_back(browsers):
    answer = browsers.anonymous.get("/jobs?state=failed&state=queued")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/login?next=/jobs%3Fstate%3Dfailed%26state%3Dqueued"


def test_jobs_are_told_by_what_becomes_of_them(browsers, database):
    add_job(database, "running", owner="alice", name="goes-on")
    add_job(database, "queued", owner="alice", name="has-to-wait", message="needs 4 GPUs, 2 free")
    add_job(database, "failed", owner="alice", name="went-wrong", message="the dataset is gone", ended_at=now())
    add_job(database, "failed", owner="alice", name="wrong-long-ago", ended_at=now() - timedelta(days=30))
    text = home(browsers.alice)
    for wanted in ("goes-on", "has-to-wait", "needs 4 GPUs, 2 free", "went-wrong", "the dataset is gone"):
        assert wanted in text
    assert "wrong-long-ago" not in text


def test_failures_that_were_seen_are_gone(browsers, database):
    add_job(database, "failed", owner="alice", name="went-wrong", ended_at=now() - timedelta(minutes=1))
    assert "went-wrong" in home(browsers.alice)
    assert "went-wrong" not in home(browsers.alice, **{SEEN_COOKIE: now().isoformat()})
    assert "went-wrong" in home(browsers.alice, **{SEEN_COOKIE: "yesterday"})


def test_a_name_is_text_and_no_markup(browsers, database):
    add_job(database, "queued", owner="alice", name="<script>alert(1)</script>", message="<b>why</b>")
    text = home(browsers.alice)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>why</b>" not in text


@pytest.mark.both_databases
def test_a_submitter_sees_its_own_and_an_operator_everybodys(browsers, database):
    add_job(database, "queued", owner="bob", name="of-bob")
    assert "of-bob" not in home(browsers.alice)
    assert "of-bob" in home(browsers.operator)


@pytest.mark.parametrize(
    ("owner", "starts", "audits"), [("viewer", False, False), ("alice", True, False), ("admin", True, True)]
)
def test_what_one_may_not_do_is_not_offered(browsers, owner, starts, audits):
    text = home(getattr(browsers, owner))
    assert ('href="/jobs/new"' in text) is starts
    assert ('href="/audit"' in text) is audits


def test_the_page_stands_without_ray(browsers, database, ray, monkeypatch):
    def away(*_: object) -> None:
        raise ClusterUnreachable("connection refused")

    monkeypatch.setattr(ray, "machines", away)
    add_job(database, "queued", owner="alice", name="still-here")
    text = home(browsers.alice)
    assert "The cluster is unreachable." in text
    assert "connection refused" in text
    assert "still-here" in text


def test_an_unknown_address_is_told_as_a_page_to_browsers_alone(browsers):
    page = browsers.alice.get("/nowhere", headers={"Accept": "text/html,*/*"})
    assert (page.status_code, page.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert "there is no page /nowhere" in page.text
    assert browsers.alice.get("/v1/nowhere", headers={"Accept": "text/html"}).json()["code"] == "not_found"


def test_the_login_needs_no_secret_of_the_service(clients, settings):
    assert settings.admin_token_file is None
    answer = clients.anonymous.post("/login", data={"token": "token-of-alice-0123456789"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
