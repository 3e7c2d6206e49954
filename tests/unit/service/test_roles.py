"""Who may what: every route with every role, as owner and as stranger, and without a token.

`pytest -s tests/unit/service/test_roles.py -k matrix` prints the matrix as the service answers it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backbone_files import compare_with_mlflow
from conftest import Clients, token_of
from fastapi.testclient import TestClient
from optuna.trial import TrialState
from search_files import SearchFiles
from service_fakes import SPEC, add_job, job_of, problem, spec_with

from service.auth.caller import Caller, Role, sha256
from service.auth.trail import ACTIONS
from service.db.tables import Token
from trainer.protocol import names

MATRIX = """
                                                                none | viewer    | submitter | operator  | admin
                                                                     | own other | own other | own other | own other
GET    /healthz                                                 200  | 200 200   | 200 200   | 200 200   | 200 200
GET    /readyz                                                  503  | 503 503   | 503 503   | 503 503   | 503 503
GET    /metrics                                                 200  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/jobs                                                 401  | 200 200   | 200 200   | 200 200   | 200 200
POST   /v1/jobs                                                 401  | 403 403   | 201 201   | 201 201   | 201 201
POST   /v1/jobs/plan                                            401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/jobs/{job_id}                                        401  | 200 200   | 200 404   | 200 200   | 200 200
PATCH  /v1/jobs/{job_id}                                        401  | 403 403   | 200 404   | 200 200   | 200 200
DELETE /v1/jobs/{job_id}                                        401  | 403 403   | 200 404   | 200 200   | 200 200
POST   /v1/jobs/{job_id}/cancel                                 401  | 403 403   | 200 404   | 200 200   | 200 200
POST   /v1/jobs/{job_id}/pause                                  401  | 403 403   | 200 404   | 200 200   | 200 200
POST   /v1/jobs/{job_id}/resume                                 401  | 403 403   | 200 404   | 200 200   | 200 200
POST   /v1/jobs/{job_id}/retry                                  401  | 403 403   | 200 404   | 200 200   | 200 200
POST   /v1/jobs/{job_id}/stop                                   401  | 403 403   | 409 404   | 409 409   | 409 409
GET    /v1/jobs/{job_id}/spec                                   401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/events                                 401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/attempts                               401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/logs                                   401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/logs/{attempt}/{source}                401  | 200 200   | 200 404   | 200 200   | 200 200
HEAD   /v1/jobs/{job_id}/logs/{attempt}/{source}                401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/stream                                 401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/stream                                               401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/metrics                                401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/metrics                                              401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/checkpoints                            401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/images                                 401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/jobs/{job_id}/images/{name}                          401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/searches/{search_id}                                 401  | 200 200   | 200 404   | 200 200   | 200 200
PATCH  /v1/searches/{search_id}                                 401  | 403 403   | 200 404   | 200 200   | 200 200
GET    /v1/searches/{search_id}/trials                          401  | 200 200   | 200 404   | 200 200   | 200 200
POST   /v1/searches/{search_id}/trials                          401  | 403 403   | 201 404   | 201 201   | 201 201
GET    /v1/searches/{search_id}/trials.csv                      401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/searches/{search_id}/trials/{number}                 401  | 200 200   | 200 404   | 200 200   | 200 200
POST   /v1/searches/{search_id}/trials/{number}/stop            401  | 403 403   | 200 404   | 200 200   | 200 200
POST   /v1/searches/{search_id}/trials/{number}/retry           401  | 403 403   | 200 404   | 200 200   | 200 200
POST   /v1/searches/{search_id}/trials/{number}/promote         401  | 403 403   | 201 404   | 201 201   | 201 201
GET    /v1/searches/{search_id}/trials/{number}/logs            401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/searches/{search_id}/trials/{number}/metrics         401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/searches/{search_id}/trials/{number}/images          401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/searches/{search_id}/trials/{number}/images/{name}   401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/searches/{search_id}/plots/{name}                    401  | 200 200   | 200 404   | 200 200   | 200 200
GET    /v1/backbones                                            401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/backbones/{name}                                     401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/backbones/{name}/versions/{version}                  401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/backbones/{name}/versions/{version}/files/{path}     401  | 200 200   | 200 200   | 200 200   | 200 200
HEAD   /v1/backbones/{name}/versions/{version}/files/{path}     401  | 200 200   | 200 200   | 200 200   | 200 200
DELETE /v1/backbones/{name}/versions/{version}                  401  | 403 403   | 200 403   | 200 200   | 200 200
GET    /v1/backbones/{name}/versions/{version}/archive          401  | 200 200   | 200 200   | 200 200   | 200 200
HEAD   /v1/backbones/{name}/versions/{version}/archive          401  | 200 200   | 200 200   | 200 200   | 200 200
PUT    /v1/backbones/{name}/aliases/{alias}                     401  | 403 403   | 200 403   | 200 200   | 200 200
DELETE /v1/backbones/{name}/aliases/{alias}                     401  | 403 403   | 200 403   | 200 200   | 200 200
GET    /hf/{org}/{repo}/resolve/{revision}/{path}               401  | 200 200   | 200 200   | 200 200   | 200 200
HEAD   /hf/{org}/{repo}/resolve/{revision}/{path}               401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /hf/api/models/{org}/{repo}                              401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /hf/api/models/{org}/{repo}/revision/{revision}          401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /hf/api/models/{org}/{repo}/tree/{revision}              401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /hf/api/models/{org}/{repo}/tree/{revision}/{path}       401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/cluster                                              401  | 200 200   | 200 200   | 200 200   | 200 200
GET    /v1/tokens                                               401  | 200 200   | 200 200   | 200 200   | 200 200
POST   /v1/tokens                                               401  | 403 403   | 201 403   | 201 403   | 201 201
POST   /v1/tokens/{token_id}/rotate                             401  | 403 403   | 201 404   | 201 404   | 201 201
DELETE /v1/tokens/{token_id}                                    401  | 403 403   | 200 404   | 200 404   | 200 200
GET    /v1/audit                                                401  | 403 403   | 403 403   | 403 403   | 200 200
"""
"""Statuses. "own" is done to what the caller owns, "other" to what a stranger owns; a list is a list either way."""

CALLERS = ("viewer", "alice", "operator", "admin")
"""The owners whose tokens have the roles of the columns."""
STRANGER = "carol"
LINE = b'{"time": 1.0, "level": "info", "source": "driver", "message": "hello"}\n'

STATES = {"resume": "paused", "retry": "failed", "delete": "failed"}
"""Where a job must be for a verb; else it waits in the queue."""


def rows() -> dict[str, list[int]]:
    """Expected statuses by route."""
    found = {}
    for line in MATRIX.strip().splitlines()[2:]:
        method, path, *statuses = line.replace("|", " ").split()
        found[f"{method} {path}"] = [int(status) for status in statuses]
    return found


class Asker:
    """Asks each route for something that is there, whoever owns it."""

    def __init__(self, clients: Clients, searches: SearchFiles, root: Path) -> None:
        self._clients, self._searches, self._root = clients, searches, root
        self._database, self._mlflow = searches.database, searches.mlflow

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
        return name

    def _job(self, owner: str, state: str) -> str:
        run_id, folder = self._mlflow.make_run(f"job-{owner}-{len(self._mlflow.runs)}", "x", {})
        files = {f"{names.IMAGES}/a.png": b"png", f"{names.log_folder(1)}/driver.0001.jsonl": LINE}
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        return add_job(self._database, state, owner=owner, run_id=run_id, artifact_uri=folder, attempts=1)

    def _search(self, owner: str) -> tuple[str, int]:
        """A search of an owner's, with a trial that runs and one that has failed; the first one's number."""
        job_id = self._searches.add(owner=owner)
        running = self._searches.with_run(job_id, {f"{names.IMAGES}/a.png": b"png"})
        self._searches.trial(job_id, TrialState.FAIL)
        return job_id, running

    def _token(self, owner: str) -> str:
        token = Token(sha256=sha256(f"a-token-of-{owner}"), owner=owner, role="submitter")
        with self._database.session() as session:
            session.merge(token)
        with self._database.read() as session:
            return session.get(Token, token.sha256).id

    def ask(self, route: str, client: TestClient, owner: str) -> int:
        """The status of a request for what ``owner`` owns."""
        method, _, path = route.partition(" ")
        verb = path.rpartition("/")[2] if method == "POST" else method.lower()
        query: dict[str, Any] = {"once": True} if path.endswith("/stream") else {}
        body: Any = None
        if path.startswith("/v1/jobs/{job_id}") or path == "/v1/metrics":
            job_id = self._job(owner, STATES.get(verb, "queued"))
            path = path.replace("{job_id}", job_id).replace("{name}", "a.png")
            path = path.replace("{attempt}/{source}", "1/driver")
            query |= {"job": job_id, "key": "train/loss"} if path == "/v1/metrics" else {}
            body = {"priority": 5} if method == "PATCH" else None
        elif path.startswith("/v1/searches/{search_id}"):
            job_id, running = self._search(owner)
            number = running + 1 if verb == "retry" else running
            name = "history" if "/plots/" in path else "a.png"
            path = path.replace("{search_id}", job_id).replace("{number}", str(number)).replace("{name}", name)
            body = {"patch": {"trials": 9}, "trials": {"points": [{}]}}.get(verb)
        elif path in {"/v1/jobs", "/v1/jobs/plan"} and method == "POST":
            body = SPEC
        elif "{token_id}" in path:
            path = path.replace("{token_id}", self._token(owner))
        elif path == "/v1/tokens" and method == "POST":
            body = {"owner": owner, "role": "submitter"}
        elif "backbones/{name}" in path or path.startswith("/hf/"):
            name = self._backbone(owner)
            path = path.replace("{name}", name).replace("{alias}", "best").replace("{version}", "2")
            path = path.replace("{org}/{repo}", f"rcmae/{name}").replace("{revision}", "main")
            file = {"resolve": "config.json", "tree": "sub"}.get(path.split("/")[-3], "spec.json")
            path = path.replace("{path}", file)
            body = {"version": 2} if method == "PUT" else None
        assert "{" not in path, f"say here what to ask {route} for"
        return client.request(method, path, params=query, json=body).status_code

    def statuses(self, route: str) -> list[int]:
        """One row as it is."""
        found = [self.ask(route, self._clients.anonymous, STRANGER)]
        for caller in CALLERS:
            found += [self.ask(route, getattr(self._clients, caller), owner) for owner in (caller, STRANGER)]
        return found


@pytest.fixture
def asker(clients: Clients, searches: SearchFiles, root: Path) -> Asker:
    return Asker(clients, searches, root)


def test_the_matrix_of_roles(asker, clients):
    document = clients.anonymous.get("/openapi.json").json()["paths"]
    listed = {f"{method.upper()} {path}" for path, methods in document.items() for method in methods}
    expected = rows()
    assert listed == set(expected), "a route without its row, or a row without its route"
    found = {route: asker.statuses(route) for route in expected}
    print("\n".join(["", *MATRIX.strip("\n").splitlines()[:2], *(_line(*row) for row in found.items())]))  # noqa: T201
    wrong = {route: statuses for route, statuses in found.items() if statuses != expected[route]}
    assert not wrong


def _line(route: str, statuses: list[int]) -> str:
    method, _, path = route.partition(" ")
    none, *pairs = statuses
    cells = " | ".join(f"{own} {other}  " for own, other in zip(pairs[::2], pairs[1::2], strict=True))
    return f"{method:<6} {path:<56} {none}  | {cells}".rstrip()


def test_every_route_that_changes_something_is_audited(clients):
    document = clients.anonymous.get("/openapi.json").json()["paths"]
    changing = {
        f"{method.upper()} {path}" for path, methods in document.items() for method in set(methods) - {"get", "head"}
    }
    sessions = {"POST /login", "POST /logout"}  # of the dashboard: no part of the API
    assert changing - {"POST /v1/jobs/plan"} == set(ACTIONS) - sessions
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
