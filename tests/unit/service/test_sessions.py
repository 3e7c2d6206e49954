"""Sessions of the dashboard: who gets one, what it may do, and when it ends."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import token_of
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, job_of, problem
from sqlalchemy import select, update
from test_stream import CLIENT, serving

from service.access import open_responses
from service.app import create_app
from service.auth.caller import sha256
from service.auth.sessions import COOKIE, CSRF_HEADER, LIFE
from service.dashboard.assets import ASSETS, DIGEST, url_of
from service.db.database import Database
from service.db.tables import Audit, BrowserSession, Token, now
from service.jobs import reading


def csrf_of(browser: TestClient) -> str:
    found: str = browser.get("/tokens").text.partition('name="csrf" content="')[2].partition('"')[0]
    assert found
    return found


def change_token(database: Database, owner: str, **values: Any) -> None:
    with database.session() as session:
        session.execute(update(Token).where(Token.sha256 == sha256(token_of(owner))).values(**values))


def ended(answer: httpx.Response) -> bool:
    """Whether a page leads to the login instead."""
    return answer.status_code == 303 and answer.headers["Location"].startswith("/login")


# --- logging in and out -----------------------------------------------------------------------------------------------


def test_a_valid_token_begins_a_session(browsers):
    answer = browsers.anonymous.post("/login", data={"token": f"  {token_of('bob')}\n", "next": "/jobs?state=failed"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/jobs?state=failed")
    page = browsers.anonymous.get("/tokens")
    assert page.status_code == 200
    assert "bob" in page.text
    assert token_of("bob") not in page.text
    again = browsers.anonymous.get("/login", params={"next": "/cluster"})
    assert (again.status_code, again.headers["Location"]) == (303, "/cluster")


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("a-token-that-nobody-has", "does not know"),
        ("", "enter your token"),
        (token_of("alice"), "was revoked"),
        (token_of("operator"), "expired at"),
    ],
)
def test_a_token_that_is_none_begins_no_session(browsers, database, token, told):
    change_token(database, "alice", revoked_at=now())
    change_token(database, "operator", expires_at=now() - timedelta(minutes=1))
    answer = browsers.anonymous.post("/login", data={"token": token, "next": "/jobs"})
    assert answer.status_code == 401
    assert told in answer.text
    assert 'name="next" value="/jobs"' in answer.text
    assert "set-cookie" not in answer.headers
    if token:
        assert token not in answer.text


def test_a_login_that_another_site_sends_begins_no_session(browsers):
    answer = browsers.anonymous.post(
        "/login", data={"token": token_of("bob")}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "there",
    [
        "https://elsewhere.example/",
        "//elsewhere.example",
        "///elsewhere.example",
        "/\\elsewhere.example",
        "\\\\elsewhere.example",
        "/\t/elsewhere.example",
        "/\n/elsewhere.example",
        " //elsewhere.example",
        "javascript:alert(1)",
        "elsewhere.example",
        "",
    ],
)
def test_the_login_leads_to_no_other_site(browsers, there):
    answer = browsers.anonymous.post("/login", data={"token": token_of("bob"), "next": there})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    led = browsers.alice.get(f"/login?next={quote(there, safe='')}")
    refused = not there.isprintable()
    assert (led.status_code, led.headers.get("Location")) == ((422, None) if refused else (303, "/"))


def test_logging_out_ends_it_and_needs_the_page(browsers):
    csrf = csrf_of(browsers.alice)
    for wrong in ("", "x", csrf_of(browsers.bob)):
        browsers.alice.post("/logout", data={"csrf": wrong})
        assert browsers.alice.get("/tokens").status_code == 200
    assert browsers.alice.post("/logout", data={"csrf": csrf}).headers["Location"] == "/login"
    assert ended(browsers.alice.get("/tokens"))
    again = browsers.anonymous.post("/logout")
    assert (again.status_code, again.headers["Location"]) == (303, "/login?next=/"), "no page asks to log out again"


# --- the cookie -------------------------------------------------------------------------------------------------------


def flags(answer: httpx.Response) -> set[str]:
    return {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}


def test_no_script_reads_the_cookie_and_no_other_site_sends_it(app, browsers):
    found = flags(browsers.anonymous.post("/login", data={"token": token_of("bob")}))
    assert {"httponly", "samesite=lax", "path=/"} <= found
    assert "secure" not in found
    safe = TestClient(app, base_url="https://testserver", follow_redirects=False)
    assert "secure" in flags(safe.post("/login", data={"token": token_of("bob")}))
    assert "secure" in flags(safe.get("/tokens"))


def with_cookie(browsers: Any, cookie: str) -> httpx.Response:
    found: httpx.Response = browsers.anonymous.get("/tokens", headers={"Cookie": f"{COOKIE}={cookie}"})
    return found


def age(database: Database, hours: float) -> None:
    """Make all sessions' last requests older."""
    with database.session() as session:
        for each in session.scalars(select(BrowserSession)):
            each.seen_at -= timedelta(hours=hours)


def test_a_cookie_that_was_made_up_is_none(browsers):
    cookie = browsers.alice.cookies[COOKIE]
    assert with_cookie(browsers, cookie).status_code == 200
    for wrong in (f"{'A' if cookie[0] != 'A' else 'B'}{cookie[1:]}", cookie[:-2], token_of("alice"), "x.y.z", "é"):
        assert ended(with_cookie(browsers, quote(wrong)))
        problem(browsers.anonymous.get("/v1/jobs", headers={"Cookie": f"{COOKIE}={quote(wrong)}"}), 401, "unauthorized")


@pytest.mark.both_databases
def test_the_database_does_not_hold_what_the_cookie_says(browsers, database):
    with database.read() as session:
        rows = session.scalars(select(BrowserSession)).all()
    assert len(rows) == 5
    assert sha256(browsers.alice.cookies[COOKIE]) in {row.sha256 for row in rows}


@pytest.mark.both_databases
def test_a_session_ends_when_it_was_not_used_for_long_and_its_row_is_removed(browsers, database):
    hours = LIFE.total_seconds() / 3600
    age(database, 0.9 * hours)
    assert browsers.alice.get("/v1/jobs").status_code == 200, "which counts as a use"
    age(database, 0.9 * hours)
    assert browsers.alice.get("/tokens").status_code == 200
    assert ended(browsers.bob.get("/tokens"))
    problem(browsers.bob.get("/v1/jobs"), 401, "unauthorized")
    assert browsers.bob.get("/login").status_code == 200, "not a way back to the page that led here"
    assert browsers.anonymous.post("/login", data={"token": token_of("bob")}).status_code == 303
    with database.read() as session:
        left = set(session.scalars(select(BrowserSession.sha256)))
    assert left == {sha256(browser.cookies[COOKIE]) for browser in (browsers.alice, browsers.anonymous)}


@pytest.mark.both_databases
def test_a_copied_cookie_is_worth_nothing_once_its_owner_has_logged_out(browsers, settings):
    """On every replica, for pages and for the API, while the same token's other session goes on."""
    copied = {"Cookie": f"{COOKIE}={browsers.alice.cookies[COOKIE]}"}
    other = TestClient(create_app(settings), follow_redirects=False, headers=copied)
    assert other.get("/tokens").status_code == other.get("/v1/jobs").status_code == 200
    assert browsers.anonymous.post("/login", data={"token": token_of("alice")}).status_code == 303
    csrf = csrf_of(browsers.alice)
    assert other.post("/v1/jobs", json=SPEC, headers={CSRF_HEADER: csrf}).status_code == 201
    browsers.alice.post("/logout", data={"csrf": csrf})
    assert ended(other.get("/tokens"))
    problem(other.get("/v1/jobs"), 401, "unauthorized")
    problem(other.post("/v1/jobs", json=SPEC, headers={CSRF_HEADER: csrf}), 401, "unauthorized")
    assert browsers.anonymous.get("/tokens").status_code == 200


@pytest.mark.both_databases
def test_a_token_that_is_revoked_or_replaced_leaves_no_session(browsers, clients, database):
    ids = {token["owner"]: token["id"] for token in clients.admin.get("/v1/tokens").json()["items"]}
    clients.admin.delete(f"/v1/tokens/{ids['alice']}")
    clients.admin.post(f"/v1/tokens/{ids['bob']}/rotate")
    with database.read() as session:
        assert set(session.scalars(select(BrowserSession.token_id))).isdisjoint({ids["alice"], ids["bob"]})
    assert ended(browsers.alice.get("/tokens"))
    assert ended(browsers.bob.get("/tokens"))


class EndlessLog:
    """A file whose download takes for ever."""

    size = 10**9

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:  # noqa: ARG002
        while True:
            yield b"more\n"
            time.sleep(0.01)


def test_logging_out_ends_what_the_session_still_receives(app, browsers, monkeypatch):
    """A stream and a download; those of another session and of the token itself go on."""
    monkeypatch.setattr(open_responses, "LOOK_S", 0.05)
    monkeypatch.setattr(reading, "whole_log", lambda *_: EndlessLog())
    alice, bob = ({"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"} for browser in (browsers.alice, browsers.bob))
    token = {"Authorization": f"Bearer {token_of('alice')}"}
    with serving(app) as url, ExitStack() as opened:

        def open_(path: str, headers: dict[str, str]) -> Iterator[bytes]:
            chunks = opened.enter_context(CLIENT.stream("GET", f"{url}{path}", headers=headers)).iter_bytes()
            assert next(chunks)
            return chunks

        stream, log = open_("/v1/stream", alice), open_("/v1/jobs/job-1/logs/1/driver", alice)
        others = [open_("/v1/jobs/job-1/logs/1/driver", headers) for headers in (bob, token)]
        csrf = csrf_of(browsers.alice)
        assert CLIENT.post(f"{url}/logout", data={"csrf": csrf}, headers=alice).status_code == 303
        assert b"".join(stream) == b""
        with pytest.raises(httpx.RemoteProtocolError):  # it is shorter than was promised
            list(log)
        assert all(next(other) for other in others)


def test_a_token_that_ends_takes_its_session_with_it_at_once(browsers, database):
    csrf = csrf_of(browsers.bob)
    change_token(database, "alice", revoked_at=now())
    change_token(database, "bob", expires_at=now())
    for browser in (browsers.alice, browsers.bob):
        assert ended(browser.get("/tokens"))
        problem(browser.get("/v1/jobs"), 401, "unauthorized")
    problem(browsers.bob.post("/v1/jobs", json=SPEC, headers={CSRF_HEADER: csrf}), 401, "unauthorized")
    assert browsers.operator.get("/tokens").status_code == 200


def test_a_refresh_without_a_session_is_told_so(browsers):
    """The page that asks shows a dialog then: a redirect would put the login into it."""
    answer = browsers.anonymous.get("/tokens", headers={"HX-Request": "true"})
    assert answer.status_code == 401


# --- changes by a session ---------------------------------------------------------------------------------------------


def test_a_change_needs_what_only_our_pages_know(browsers, database):
    job_id = add_job(database, "queued")
    csrf = csrf_of(browsers.alice)
    wrong: list[dict[str, str]] = [
        {},
        {CSRF_HEADER: ""},
        {CSRF_HEADER: "x"},
        {CSRF_HEADER: csrf_of(browsers.bob)},
        {CSRF_HEADER: csrf, "Sec-Fetch-Site": "cross-site"},
        {CSRF_HEADER: csrf, "Sec-Fetch-Site": "same-site"},
    ]
    for headers in wrong:
        problem(browsers.alice.post(f"/v1/jobs/{job_id}/cancel", headers=headers), 401, "unauthorized")
        problem(browsers.alice.patch(f"/v1/jobs/{job_id}", json={"priority": 3}, headers=headers), 401, "unauthorized")
        problem(browsers.alice.delete(f"/v1/jobs/{job_id}", headers=headers), 401, "unauthorized")
    assert (job_of(database, job_id).state, job_of(database, job_id).priority) == ("queued", 0)
    for site in ("same-origin", "none"):
        headers = {CSRF_HEADER: csrf, "Sec-Fetch-Site": site}
        assert browsers.alice.patch(f"/v1/jobs/{job_id}", json={"priority": 3}, headers=headers).status_code == 200
    assert browsers.alice.post(f"/v1/jobs/{job_id}/cancel", headers={CSRF_HEADER: csrf}).json()["state"] == "cancelled"


def test_reading_needs_the_session_alone(browsers, database):
    job_id = add_job(database, "queued")
    assert browsers.alice.get(f"/v1/jobs/{job_id}").status_code == 200
    assert browsers.alice.get("/v1/stream", params={"once": True}).status_code == 200
    problem(browsers.bob.get(f"/v1/jobs/{job_id}"), 404, "job_not_found")


def test_a_token_in_the_header_needs_no_page_and_goes_before_the_cookie(browsers, database):
    job_id = add_job(database, "queued", owner="bob")
    headers = {"Authorization": f"Bearer {token_of('bob')}"}
    assert browsers.alice.post(f"/v1/jobs/{job_id}/cancel", headers=headers).status_code == 200
    wrong = {"Authorization": "Bearer nobody-has-this-one"}
    problem(browsers.alice.get("/v1/jobs", headers=wrong), 401, "unauthorized")


@pytest.mark.both_databases
def test_a_session_has_the_role_of_its_token(browsers, database):
    job_id = add_job(database, "queued")
    headers = {CSRF_HEADER: csrf_of(browsers.viewer)}
    problem(browsers.viewer.post(f"/v1/jobs/{job_id}/cancel", headers=headers), 403, "forbidden")
    change_token(database, "viewer", role="operator")
    assert browsers.viewer.post(f"/v1/jobs/{job_id}/cancel", headers=headers).status_code == 200


@pytest.mark.both_databases
def test_the_audit_log_names_who_changed_by_a_session(browsers, database):
    headers = {CSRF_HEADER: csrf_of(browsers.alice)}
    job_id = browsers.alice.post("/v1/jobs", json=SPEC, headers=headers).json()["id"]
    browsers.alice.post("/v1/jobs", content=b'{"kind": ', headers=headers | {"Content-Type": "application/json"})
    browsers.alice.post(f"/v1/jobs/{job_id}/cancel")
    browsers.anonymous.post("/v1/jobs", content=b"{", headers={"Content-Type": "application/json"})
    with database.read() as session:
        token_id = session.scalar(select(Token.id).where(Token.sha256 == sha256(token_of("alice"))))
        found = list(session.scalars(select(Audit).where(Audit.action.startswith("job")).order_by(Audit.id)))
    assert [(line.actor, line.action, line.status, line.token_id) for line in found] == [
        ("alice", "job.submit", 201, token_id),
        ("alice", "job.submit", 422, token_id),
        ("alice", "job.cancel", 401, token_id),
        ("-", "job.submit", 401, None),
    ]


# --- what every answer carries ----------------------------------------------------------------------------------------

PAGES = (
    "/",
    "/login",
    "/jobs",
    "/searches",
    "/backbones",
    "/cluster",
    "/tokens",
    "/audit",
    "/jobs/job-none",
    "/nowhere",
)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_lets_nothing_in_from_elsewhere(browsers, path):
    browser = browsers.anonymous if path == "/login" else browsers.admin
    answer = browser.get(path, headers={"Accept": "text/html"})
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(each.strip().partition(" ")[::2] for each in answer.headers["Content-Security-Policy"].split(";"))
    assert (policy["default-src"], policy["script-src"]) == ("'none'", "'self'")
    assert (policy["frame-ancestors"], policy["base-uri"], policy["form-action"]) == ("'none'", "'none'", "'self'")
    assert (policy["connect-src"], policy["style-src"]) == ("'self'", "'self'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    loads = re.sub(r' placeholder="[^"]*"', "", answer.text)  # the example in an empty field is only read
    assert "://" not in loads.replace("http://testserver", "").replace("http://127.0.0.1:1", ""), "from elsewhere"
    assert " style=" not in answer.text
    assert "<script>" not in answer.text


def test_assets_are_packed_and_kept_for_ever(browsers):
    plain = browsers.anonymous.get(url_of("app.css"), headers={"Accept-Encoding": "identity"})
    assert plain.status_code == 200
    assert plain.headers["Content-Type"].startswith("text/css")
    assert "immutable" in plain.headers["Cache-Control"]
    assert "Content-Encoding" not in plain.headers
    packed = browsers.anonymous.get(url_of("app.css"), headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert packed.content == plain.content
    assert int(packed.headers["Content-Length"]) == len(ASSETS["app.css"].compressed) < len(plain.content)
    assert gzip.decompress(ASSETS["app.css"].compressed) == plain.content


def test_an_asset_of_another_release_is_not_kept(browsers):
    found = browsers.anonymous.get("/assets/0123456789ab/app.js")
    assert found.status_code == 200
    assert found.headers["Cache-Control"] == "no-cache"
    for wrong in ("nothing.js", "%2e%2e/site.py", "%2Fetc/passwd"):
        assert browsers.anonymous.get(f"/assets/{DIGEST}/{wrong}").status_code == 404


def test_every_script_that_a_page_or_a_script_names_is_there(browsers):
    page = browsers.alice.get("/").text
    for name in ("app.css", "app.js", "htmx.min.js", "idiomorph.min.js", "theme.js"):
        assert url_of(name) in page
    for name in ASSETS:
        answer = browsers.anonymous.get(url_of(name))
        assert (answer.status_code, bool(answer.content)) == (200, True), name


def test_a_token_longer_than_any_is_refused_as_a_page_that_does_not_show_it(clients):
    answer = clients.anonymous.post("/login", data={"token": "x" * 100_000})
    assert answer.status_code == 422
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "x" * 50 not in answer.text
