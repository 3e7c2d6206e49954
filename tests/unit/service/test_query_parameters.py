"""Query parameters that a route does not know are refused, and so are two values where one is meant: on every route."""

from __future__ import annotations

import re

import pytest
from fastapi.routing import iter_route_contexts
from service_fakes import SPEC, add_job, problem

from service.app import build_app
from service.backbones.hub.routes import PREFIX
from service.dashboard.site import PageRoute
from service.http.routing import ApiRoute

ROUTES = [each for each in iter_route_contexts(build_app(2**20).routes) if hasattr(each.original_route, "dependant")]
CALLS = sorted({(method, each.path) for each in ROUTES for method in each.methods})
PAGES = {each.path for each in ROUTES if isinstance(each.original_route, PageRoute)}
OF_HUB = [call for call in CALLS if call[1].startswith(f"{PREFIX}/") and call[1] not in PAGES]


def filled(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "1", path)


def test_every_route_is_one_that_checks():
    assert len(CALLS) > 80
    assert [each.path for each in ROUTES if not isinstance(each.original_route, ApiRoute)] == []


def test_unknown_parameters_and_second_values_are_refused_everywhere(clients, browsers):
    for each in ROUTES:
        if each.path.startswith(f"{PREFIX}/"):
            continue
        single = [name for name, several in each.original_route._parameters.items() if not several]
        refused = {"no_such_parameter=1": "no_such_parameter: unknown parameter"}
        refused |= {f"{name}=1&{name}=2": f"{name}: is given 2 times" for name in single}
        by_session = isinstance(each.original_route, PageRoute) or each.path.startswith("/forms/")
        client = browsers.admin if by_session else clients.admin
        for method in each.methods:
            for query, told in refused.items():
                answer = client.request(method, f"{filled(each.path)}?{query}")
                assert answer.status_code == 422, (method, each.path, query)
                assert told in answer.text or method == "HEAD"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("stat=failed", "stat: unknown parameter; did you mean 'state'? (given: 'failed')"),
        ("Limit=5", "did you mean 'limit'?"),
        ("zzz=1", "known here: created_after, cursor, kind, label"),
        ("limit=1&limit=2", "limit: is given 2 times: give it once"),
    ],
)
def test_the_error_says_what_was_meant(api, query, told):
    found = problem(api.get(f"/v1/jobs?{query}"), 422, "parameter_invalid")
    assert told in found["detail"]
    assert [each["field"] for each in found["problems"]] == [query.partition("=")[0]]


def test_a_secret_in_an_unknown_parameter_is_not_repeated(api):
    assert "canary" not in api.get("/v1/jobs?access_token=canary").text


def test_nothing_is_deleted_where_a_preview_was_misspelt(api, database):
    job_id = add_job(database, "succeeded", SPEC)
    problem(api.delete(f"/v1/jobs/{job_id}?previw=true"), 422, "parameter_invalid")
    assert api.get(f"/v1/jobs/{job_id}").status_code == 200


def test_lists_take_several_values(api):
    assert api.get("/v1/jobs?state=failed&state=queued&label=a:b&label=c:d").status_code == 200


def test_a_page_says_what_it_does_not_know(browsers):
    page = browsers.alice.get("/jobs?stat=failed")
    assert page.status_code == 422
    assert "did you mean &#39;state&#39;?" in page.text


@pytest.mark.parametrize("query", ["job=job-1&job=job-2", "state=failed&state=queued&owner=&name_contains=x"])
def test_what_scripts_keep_in_the_address_of_a_list_is_known(browsers, query):
    assert browsers.alice.get(f"/jobs?{query}").status_code == 200


@pytest.mark.parametrize("tab", ["overview", "metrics"])
def test_what_scripts_keep_in_the_address_of_curves_is_known(browsers, database, tab):
    job_id = add_job(database, "queued", SPEC)
    assert browsers.alice.get(f"/jobs/{job_id}/{tab}?x=epoch&smooth=0.5").status_code == 200


def test_clients_of_the_hub_may_send_what_their_version_sends(clients):
    assert len(OF_HUB) > 4
    for method, path in OF_HUB:
        query = "expand=true&blobs=true&securityStatus=1&download=true&no_such_parameter=1"
        answer = clients.viewer.request(method, f"{filled(path)}?{query}", json={"paths": ["1"]})
        of_nobody = path in {f"{PREFIX}/api/models", f"{PREFIX}/api/whoami-v2"}
        assert answer.status_code == (200 if of_nobody else 404), (
            "there is no such repository; the parameters are no fault"
        )
