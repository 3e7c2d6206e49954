"""Who may what: every route with every role, as owner and as stranger, and without a token.

`pytest -s tests/unit/service/test_roles.py -k matrix` prints the matrix as the service answers it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from backbone_files import compare_with_mlflow
from conftest import Clients, token_of
from evaluations import add_evaluation, evaluation
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from optuna.trial import TrialState
from search_files import SearchFiles
from service_fakes import SPEC, add_job, job_of, problem, spec_with
from webhook_receiver import add_webhook

from service.auth.caller import Caller, sha256
from service.auth.scopes import SCOPES, UNSCOPED, Role, Scope
from service.auth.sessions import COOKIE, CSRF_HEADER
from service.auth.trail import ACTIONS
from service.backbones import signing
from service.backbones.signing import Signer
from service.dashboard.assets import url_of
from service.dashboard.site import PageRoute
from service.db.tables import RegisteredBackbone, RetentionRule, Token, WebhookDelivery
from trainer.protocol import names

CALLERS = ("viewer", "alice", "operator", "admin")
"""The owners whose tokens have the roles of the columns."""
STRANGER = "carol"
LINE = b'{"time": 1.0, "level": "info", "source": "driver", "message": "hello"}\n'

STATES = {"resume": "paused", "retry": "failed", "delete": "failed"}
"""Where a job must be for a verb; else it waits in the queue."""

STATUSES = {
    "GET /readyz": 503,
    "GET /hf/{path:path}": 404,
    "POST /v1/jobs/{job_id}/stop": 409,
    "GET /jobs/{job_id}": 303,
    "GET /evaluations/{job_id}": 303,
    "GET /searches/{job_id}": 303,
}
"""The status of an allowed request, where it is not the route's: nothing is ready, no job has trials, the hub has
nothing elsewhere, and these pages lead to their first tab."""
ONES_OWN = (
    "{job_id}",
    "{search_id}",
    "{token_id}",
    "{webhook_id}",
    "{name}",
    "{repo}",
    "/backbone-comparison",
    "GET /v1/metrics",
)
"""What a route of one thing has in its name; other routes are about all that the caller may see."""
VISIBLE_BY = {
    Scope.OWN_JOBS: Scope.READ_JOBS,
    Scope.OWN_BACKBONES: Scope.READ_BACKBONES,
    Scope.OWN_TOKENS: Scope.READ_TOKENS,
    Scope.OWN_WEBHOOKS: Scope.READ_WEBHOOKS,
}
"""The scope by which a caller sees what a scope lets others change: it is told 403 there, and 404 without it."""
FOR_OTHERS = {"POST /v1/tokens", "POST /v1/webhooks"}
"""Routes that make something for the owner that their body names."""
NOT_ASKED = {"GET /login", "POST /login", "POST /logout", "GET /assets/{digest}/{name:path}", "GET /openapi.json"}
"""Routes without a scope, which the tests of sessions and of the description ask."""


PLACES = ("/v1/jobs", "/v1/searches", "/v1/", "/hf/", "/jobs", "/searches", "/")
"""Parts of the matrix, by the beginning of their routes' paths: the first one that fits."""


def places_of(route: str) -> str:
    return next(places for places in PLACES if route.partition(" ")[2].startswith(places))


def declared(app: FastAPI) -> dict[str, tuple[list[Scope], int, bool]]:
    """Every route's scopes, the status of its success, and whether it is a page."""
    found = {}
    for route in iter_route_contexts(app.routes):
        scopes: list[Scope] = []
        waiting = [route.dependant] if hasattr(route, "dependant") else []
        while waiting:
            dependant = waiting.pop()
            scopes += [Scope(scope) for scope in dependant.own_oauth_scopes or ()]
            waiting += dependant.dependencies
        page = isinstance(route.original_route, PageRoute)
        for method in route.methods:
            found[f"{method} {route.path}"] = (scopes, getattr(route, "status_code", None) or 200, page)
    return {name: found[name] for name in found if name != "HEAD /openapi.json"}


def expected(route: str, scopes: list[Scope], status: int, page: bool) -> list[int]:
    """The statuses that the table of scopes gives a route: without a token, then for each role, its own and others'."""
    status = STATUSES.get(route, status)
    if not scopes:
        return [status] * 9
    statuses = [303 if page else 401]
    for role in Role:
        statuses += _expected_of(route, scopes, status, SCOPES[role])
    return statuses


def _expected_of(route: str, scopes: list[Scope], status: int, has: frozenset[Scope]) -> list[int]:
    if not has.issuperset(scopes):
        return [403, 403]
    lacking = [scope for scope in scopes if scope.everybodys not in has]
    if not lacking or (route not in FOR_OTHERS and not any(part in route for part in ONES_OWN)):
        return [status, status]
    seen = all(VISIBLE_BY.get(scope, scope.everybodys) in has for scope in lacking) or route in FOR_OTHERS
    return [status, 403 if seen else 404]


class Request(NamedTuple):
    """What is sent to a route."""

    method: str
    path: str
    query: dict[str, Any]
    body: Any


class Asker:
    """Asks each route for something that is there, whoever owns it."""

    def __init__(self, searches: SearchFiles, root: Path) -> None:
        self._searches, self._root = searches, root
        self._database, self._mlflow = searches.database, searches.mlflow
        self.visibility = "owners"
        """Of the backbones that it asks for."""

    def _backbone(self, owner: str) -> str:
        """A backbone that a job of an owner has made, with an alias for its first version and none for its second."""
        name = f"of-{owner}-{len(self._mlflow.registered)}"
        job_id = add_job(self._database, "succeeded", owner=owner, spec=spec_with(register_as=name))
        for number in (1, 2):
            folder = self._root / f"{name}-{number}"
            (folder / "hf").mkdir(parents=True)
            files = ("spec.json", "hf/config.json", "hf/sub/more.json")
            for file in files:
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_bytes(b"{}")
            digest = hashlib.sha256(b"{}").hexdigest()
            (folder / names.BACKBONE_SUMS).write_text("".join(f"{digest}  {file}\n" for file in files))
            self._mlflow.register(name, number, job_id, folder)
        self._mlflow.set_alias(name, "best", 1)
        compare_with_mlflow(self._database, self._mlflow)
        with self._database.session() as session:
            row = session.get_one(RegisteredBackbone, name)
            row.champion_rule, row.visibility = {"reason_required": True}, self.visibility
            signer = Signer(bytes(32))
            signing.add_key(session, signer)
            for version in session.scalars(signing.unsigned()).all():
                signing.record(session, version, signer, b"sums")
            session.add(RetentionRule(name=name, expire_unused_days=90, keep_newest=1, set_by=owner))
        return name

    def _job(self, owner: str, state: str) -> str:
        run_id, folder = self._mlflow.make_run(f"job-{owner}-{len(self._mlflow.runs)}", "x", {})
        files = {f"{names.IMAGES}/a.png": b"png", f"{names.log_folder(1)}/driver.0001.jsonl": LINE}
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        return add_job(self._database, state, owner=owner, run_id=run_id, artifact_uri=folder, attempts=1)

    def _search(self, owner: str, state: str) -> tuple[str, int]:
        """A search of an owner's, with a trial that runs and one that has failed; the first one's number."""
        job_id = self._searches.add(state, owner=owner)
        running = self._searches.with_run(job_id, {f"{names.IMAGES}/a.png": b"png"})
        self._searches.trial(job_id, TrialState.FAIL)
        return job_id, running

    def _token(self, owner: str) -> str:
        token = Token(sha256=sha256(f"a-token-of-{owner}"), owner=owner, role="submitter")
        with self._database.session() as session:
            session.merge(token)
        with self._database.read() as session:
            return session.get(Token, token.sha256).id

    def _about_webhook(self, owner: str, route: str) -> tuple[str, Any]:
        """The path and the body of a request about a webhook with a delivery."""
        path = route.partition(" ")[2]
        webhook_id = add_webhook(self._database, owner=owner)
        with self._database.session() as session:
            row = WebhookDelivery(webhook_id=webhook_id, type="alias.moved", data={})
            session.add(row)
            session.flush()
            path = path.replace("{webhook_id}", webhook_id).replace("{delivery_id}", row.id)
        new = {"owner": owner, "url": "https://93.184.216.34/hook"}
        return path, {"PATCH /v1/webhooks/{webhook_id}": {"enabled": False}, "POST /v1/webhooks": new}.get(route)

    def _about_backbone(self, owner: str, path: str) -> tuple[str, dict[str, Any]]:
        """The path and the parameters of a request about a backbone, its repository in the hub, or its evaluation."""
        name = self._backbone(owner)
        if "{job_id}" in path:
            return path.replace("{job_id}", add_evaluation(self._database, evaluation(name=name), owner=owner)), {}
        if path.endswith("/backbone-comparison"):
            return path, {"of": f"{name}:1", "with": f"{name}@best"}
        path = path.replace("{name}", name).replace("{alias}", "best").replace("{version}", "2")
        path = path.replace("{org}/{repo}", f"rcmae/{name}").replace("{repo}", name).replace("{revision}", "main")
        path = path.replace("{revision:path}", "main")
        in_hub = {"resolve": "config.json", "raw": "config.json", "tree": "sub"}
        path = path.replace("{path:path}", in_hub.get(path.split("/")[-3], "spec.json"))
        return path, {"version": 2} if path.endswith(("/delete", "/champion-check")) else {}

    def request_of(self, route: str, owner: str) -> Request:
        """A request for what ``owner`` owns."""
        method, _, path = route.partition(" ")
        verb = path.rpartition("/")[2] if method == "POST" else method.lower()
        query: dict[str, Any] = {"once": True} if path.endswith("/stream") else {}
        body: Any = None
        if "/jobs/{job_id}" in path or path == "/v1/metrics":
            verb = "delete" if path.endswith("/delete") else verb
            job_id = self._job(owner, STATES.get(verb, "queued"))
            path = path.replace("{job_id}", job_id).replace("{name}", "a.png")
            path = path.replace("{path:path}", f"{names.IMAGES}/a.png")
            path = path.replace("{attempt}/{source}", "1/driver")
            query |= {"job": job_id, "key": "train/loss"} if path == "/v1/metrics" else {}
            body = {"priority": 5} if method == "PATCH" else None
        elif "/searches/{" in path:
            job_id, running = self._search(owner, "succeeded" if path.endswith("/delete") else "running")
            number = running + 1 if verb == "retry" else running
            name = "history" if "/plots/" in path else "a.png"
            path = path.replace("{search_id}", job_id).replace("{number}", str(number)).replace("{name}", name)
            path = path.replace("{job_id}", job_id)
            body = {"patch": {"trials": 9}, "trials": {"points": [{}]}}.get(verb)
        elif path in {"/v1/jobs", "/v1/jobs/plan"} and method == "POST":
            body = SPEC
        elif "/webhooks" in path:
            path, body = self._about_webhook(owner, route)
        elif "{token_id}" in path:
            path = path.replace("{token_id}", self._token(owner))
        elif path == "/v1/tokens" and method == "POST":
            body = {"owner": owner, "role": "submitter"}
        elif any(part in path for part in ("backbones/{name}", "evaluations/{job_id}", "/hf/", "/backbone-comparison")):
            path, query = self._about_backbone(owner, path)
            rules = {"retention": {"expire_unused_days": 90}, "champion-rule": {"signed": True}}
            put = rules.get(path.rpartition("/")[2], {"version": 2})
            bodies = {"PUT": put, "PATCH": {"description": "x"}, "POST": {"paths": ["config.json"]}}
            body = bodies.get(method)
        elif path.startswith("/forms/"):
            body = {"document": SPEC} if path.endswith("yaml") else {"kind": "pretrain", "text": "kind: pretrain"}
        elif path.startswith("/docs/assets/"):
            path = "/docs/assets/swagger-ui.css"
        assert "{" not in path, f"say here what to ask {route} for"
        return Request(method, path, query, body)

    def ask(self, route: str, client: TestClient, owner: str) -> int:
        """The status of a request for what ``owner`` owns."""
        asked = self.request_of(route, owner)
        csrf = _csrf(asked.path, client)
        return client.request(asked.method, asked.path, params=asked.query, json=asked.body, headers=csrf).status_code

    def statuses(self, route: str, clients: Clients) -> list[int]:
        """One row as it is."""
        found = [self.ask(route, clients.anonymous, STRANGER)]
        for caller in CALLERS:
            found += [self.ask(route, getattr(clients, caller), owner) for owner in (caller, STRANGER)]
        return found


def _csrf(path: str, client: TestClient) -> dict[str, str]:
    """What a page's script sends with a change."""
    if not path.startswith("/forms/") or COOKIE not in client.cookies:
        return {}
    return {CSRF_HEADER: client.get("/tokens").text.partition('name="csrf" content="')[2].partition('"')[0]}


@pytest.fixture
def asker(searches: SearchFiles, root: Path) -> Asker:
    return Asker(searches, root)


def test_every_route_declares_a_scope_or_is_one_of_the_few_without(app):
    routes = declared(app)
    assert {route for route, (scopes, _, _) in routes.items() if not scopes} == UNSCOPED


def test_a_request_of_nobody_is_refused_before_anything_else_is_read(app, clients):
    """Neither its parameters nor its body is judged, so that no such request escapes the limit on them."""
    for route, (scopes, _, page) in declared(app).items():
        method, _, path = route.partition(" ")
        if scopes:
            answer = clients.anonymous.request(
                method, re.sub(r"\{[^}]*\}", "1", path), params={"no_such_parameter": 1}, content=b"{",
                headers={"Content-Type": "application/json"}, follow_redirects=False,
            )  # fmt: skip
            assert answer.status_code == (303 if page else 401), route


@pytest.mark.parametrize("places", PLACES)
def test_the_matrix_of_roles(app, asker, clients, browsers, places):
    rows = {route: row for route, row in declared(app).items() if route not in NOT_ASKED and places == places_of(route)}
    found = {
        route: asker.statuses(route, browsers if row[2] or "/forms/" in route else clients)
        for route, row in rows.items()
    }
    print("\n".join(["", HEADING, *(_line(*row) for row in found.items())]))  # noqa: T201
    wrong = {
        route: f"{found[route]}, but the scopes {row[0]} give {expected(route, *row)}"
        for route, row in rows.items()
        if found[route] != expected(route, *row)
    }
    assert not wrong


HEADING = f"{'':<63} none | " + " | ".join(f"{role:<9}" for role in Role)


def _line(route: str, statuses: list[int]) -> str:
    method, _, path = route.partition(" ")
    none, *pairs = statuses
    cells = " | ".join(f"{own} {other}  " for own, other in zip(pairs[::2], pairs[1::2], strict=True))
    return f"{method:<6} {path:<56} {none}  | {cells}".rstrip()


@pytest.mark.parametrize("places", PLACES)
def test_head_is_answered_like_get_without_the_content(app, asker, clients, browsers, places):
    for route, (_, _, page) in declared(app).items():
        method, _, path = route.partition(" ")
        if method != "GET" or places != places_of(route):
            continue
        asked = asker.request_of(route, "admin") if route not in NOT_ASKED else Request("GET", STATIC[path], {}, None)
        client = browsers.admin if page else clients.admin
        got = client.get(asked.path, params=asked.query)
        head = client.head(asked.path, params=asked.query)
        assert head.content == b"", route
        assert head.status_code == got.status_code, route
        assert {*head.headers} == {*got.headers}, route
        assert head.headers.get("Content-Type") == got.headers.get("Content-Type"), route


STATIC = {"/login": "/login", "/assets/{digest}/{name:path}": url_of("app.css"), "/openapi.json": "/openapi.json"}


def test_a_method_that_a_path_has_not_is_refused_with_those_that_it_has(app, clients):
    methods: dict[str, set[str]] = {}
    for route in declared(app):
        method, _, path = route.partition(" ")
        methods.setdefault(re.sub(r"\{number\}|\{attempt\}", "1", path), set()).add(method)
    for path, known in methods.items():
        asked = re.sub(r"\{[^}]*\}", "x", path)
        for method in {"POST", "PUT", "PATCH", "DELETE"} - known:
            answer = clients.admin.request(method, asked)
            if answer.status_code == 405 or not _is_also_matched(asked, path, method, methods):
                problem(answer, 405, "method_not_allowed")
                assert set(answer.headers["Allow"].split(", ")) >= known | ({"HEAD"} if "GET" in known else set()), path


def _is_also_matched(asked: str, path: str, method: str, methods: dict[str, set[str]]) -> bool:
    """Whether another path's pattern fits the same path, and has the method: `/jobs/new` is one of `/jobs/{job_id}`."""
    others = (pattern for pattern, known in methods.items() if pattern != path and method in known)
    return any(re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", pattern), asked) for pattern in others)


READING = {"POST /v1/jobs/plan", "POST /hf/api/models/{org}/{repo}/paths-info/{revision}"}
"""Requests with a body that change nothing."""


def test_every_route_that_changes_something_is_audited(clients):
    document = clients.anonymous.get("/openapi.json").json()["paths"]
    changing = {
        f"{method.upper()} {path}" for path, methods in document.items() for method in set(methods) - {"get", "head"}
    }
    sessions = {"POST /login", "POST /logout"}  # of the dashboard: no part of the API
    assert changing - READING == set(ACTIONS) - sessions
    assert len(set(ACTIONS.values())) == len(ACTIONS)


def test_what_a_refusal_does_not_do(clients, database):
    job_id = add_job(database, owner=STRANGER)
    for client in (clients.viewer, clients.alice, clients.anonymous):
        for verb in ("cancel", "pause"):
            assert client.post(f"/v1/jobs/{job_id}/{verb}").status_code >= 400
        assert client.patch(f"/v1/jobs/{job_id}", json={"priority": 9}).status_code >= 400
    job = job_of(database, job_id)
    assert (job.state, job.priority) == ("queued", 0)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_submitters_lists_hold_its_own_jobs(clients, database):
    mine, others = add_job(database), add_job(database, owner=STRANGER)
    for client, seen in (
        (clients.alice, {mine}),
        (clients.bob, set()),
        (clients.viewer, {mine, others}),
        (clients.operator, {mine, others}),
        (clients.admin, {mine, others}),
    ):
        assert {job["id"] for job in client.get("/v1/jobs").json()["items"]} == seen
    assert clients.alice.get("/v1/jobs", params={"owner": STRANGER}).json()["items"] == []
    assert len(clients.admin.get("/v1/jobs", params={"owner": STRANGER}).json()["items"]) == 1


def test_a_job_of_others_is_told_like_one_that_is_not_there(clients, database):
    job_id = add_job(database, owner=STRANGER)
    there = problem(clients.alice.get(f"/v1/jobs/{job_id}"), 404, "job_not_found")
    nowhere = problem(clients.alice.get("/v1/jobs/job-none"), 404, "job_not_found")
    assert there["detail"].replace(job_id, "") == nowhere["detail"].replace("job-none", "")


def test_one_rule_says_who_sees_what():
    rule = {role: Caller("alice", role) for role in Role}
    assert all(caller.sees("alice") for caller in rule.values())
    assert [role for role, caller in rule.items() if not caller.sees("bob")] == [Role.SUBMITTER]
    assert {caller.sees_only for caller in rule.values()} == {None, "alice"}
    assert replace(rule[Role.SUBMITTER], owner="bob").sees("bob")


# --- without a token --------------------------------------------------------------------------------------------------


NO_TOKENS = [
    None,
    "Bearer wrong-token-0123456789",
    "Bearer ",
    "Bearer",
    "Basic YTpi",
    token_of("admin"),
    "Bearer Bearer",
]


def test_what_is_no_token_opens_nothing(clients, database):
    job_id = add_job(database)
    for header in NO_TOKENS:
        headers = {"Authorization": header} if header else {}
        for method, path in (("GET", "/v1/jobs"), ("POST", f"/v1/jobs/{job_id}/cancel"), ("GET", "/v1/audit")):
            answer = clients.anonymous.request(method, path, headers=headers)
            problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert job_of(database, job_id).state == "queued"
