"""What protects every response: the host it may be asked for, and what a browser may do with it."""

from __future__ import annotations

import re

import pytest
from service_fakes import add_job, problem

from service.dashboard.assets import url_of
from service.http.headers import is_allowed
from service.settings import Settings


def hosts_of(text: str | None) -> tuple[str, ...]:
    given = {} if text is None else {"allowed_hosts": text}
    return Settings(database_url="sqlite://", artifact_root="/tmp", **given).allowed_hosts


# --- Host -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "[::1]", ""]
)
def test_a_stack_on_this_machine_answers_by_its_names_and_addresses(host):
    assert is_allowed(host, hosts_of(None))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_it_answers_by_no_name_that_somebody_else_could_lead_here(host):
    assert not is_allowed(host, hosts_of(None))


def test_names_are_added_by_a_setting():
    allowed = hosts_of(" rcmae.example.org, *.Lab.example.org ,api ")
    for host in ("rcmae.example.org", "a.lab.example.org:443", "b.c.lab.example.org", "api:8000", "10.0.0.7:8000"):
        assert is_allowed(host, allowed), host
    for host in ("lab.example.org", "xlab.example.org", "other.example.org", "localhost"):
        assert not is_allowed(host, allowed), host
    assert is_allowed("anything", hosts_of("*"))


@pytest.mark.parametrize("name", ["https://rcmae.example.org", "rcmae.example.org:8443", "rcmae.example.org/ui"])
def test_a_setting_that_could_fit_no_host_is_refused(name):
    with pytest.raises(ValueError, match="is no host name: leave out the scheme, the port and the path"):
        hosts_of(f"localhost,{name}")


@pytest.mark.parametrize("path", ["/v1/jobs", "/", "/login", "/docs", "/openapi.json", "/healthz", "/metrics"])
def test_a_request_for_another_host_is_refused_with_the_name_and_the_setting(clients, path):
    answer = clients.admin.get(path, headers={"Host": "evil.example:8000"}, follow_redirects=False)
    detail = problem(answer, 421, "host_not_allowed")["detail"]
    assert "'evil.example:8000'" in detail
    assert "RCMAE_ALLOWED_HOSTS" in detail
    for host in ("10.0.0.7:8000", "testserver"):
        assert clients.admin.get(path, headers={"Host": host}, follow_redirects=False).status_code < 400


# --- what a browser may do with a response ----------------------------------------------------------------------------


def test_nothing_that_a_session_reads_is_stored(browsers, clients, database):
    job_id = add_job(database)
    for path in (
        "/v1/jobs",
        f"/v1/jobs/{job_id}",
        "/v1/jobs/none",
        "/v1/tokens",
        "/jobs",
        f"/jobs/{job_id}",
        "/audit",
        "/login",
    ):
        answer = browsers.admin.get(path)
        assert answer.headers["Cache-Control"] == "no-store", path
        assert "Cookie" in answer.headers["Vary"], path
    assert "Cache-Control" not in clients.admin.get("/v1/jobs").headers, "by token: the client's own affair"


def test_no_response_is_taken_for_another_type(browsers, clients):
    for path in ("/v1/jobs", "/v1/none", "/healthz", "/login", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"):
        assert browsers.admin.get(path).headers["X-Content-Type-Options"] == "nosniff", path
    assert clients.anonymous.get("/v1/jobs").headers["X-Content-Type-Options"] == "nosniff"


def test_assets_stay_in_the_cache_of_who_is_logged_in(browsers):
    assert "immutable" in browsers.alice.get(url_of("app.css")).headers["Cache-Control"]


def test_the_documentation_has_the_policy_of_the_pages(browsers):
    page = browsers.alice.get("/docs")
    assert page.headers["Content-Security-Policy"] == browsers.alice.get("/jobs").headers["Content-Security-Policy"]
    assert not re.search(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\son\w+=|\sstyle=", page.text), "the policy allows none"
