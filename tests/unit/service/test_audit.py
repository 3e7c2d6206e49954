"""The audit log: a line for every change that was asked for, that nobody can take back."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, job_of, post, problem
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from service.app import create_app
from service.auth.trail import Trail
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Audit, Job, now

pytestmark = pytest.mark.both_databases


def lines(database: Database) -> list[Audit]:
    with database.read() as session:
        return list(session.scalars(select(Audit).order_by(Audit.id)))


def summary(line: Audit) -> tuple[str, str, str, int]:
    return line.actor, line.action, line.target, line.status


def items(client: TestClient, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/v1/audit", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


# --- what has a line --------------------------------------------------------------------------------------------------


def test_what_was_done_has_its_line(clients, database):
    job_id = clients.alice.post("/v1/jobs", json=SPEC, headers={"X-Request-ID": "a-request"}).json()["id"]
    clients.alice.patch(f"/v1/jobs/{job_id}", json={"priority": 3})
    for verb in ("pause", "resume", "cancel", "retry"):
        assert clients.operator.post(f"/v1/jobs/{job_id}/{verb}").status_code == 200
    clients.alice.post(f"/v1/jobs/{job_id}/cancel")
    clients.alice.delete(f"/v1/jobs/{job_id}")
    found = lines(database)
    assert [summary(line) for line in found] == [
        ("alice", "job.submit", job_id, 201),
        ("alice", "job.change", job_id, 200),
        ("operator", "job.pause", job_id, 200),
        ("operator", "job.resume", job_id, 200),
        ("operator", "job.cancel", job_id, 200),
        ("operator", "job.retry", job_id, 200),
        ("alice", "job.cancel", job_id, 200),
        ("alice", "job.delete", job_id, 200),
    ]
    first = found[0]
    assert (first.request_id, first.address, first.detail) == (
        "a-request",
        "testclient",
        {"kind": "pretrain", "name": "digits"},
    )
    own = {token["owner"]: token["id"] for token in clients.admin.get("/v1/tokens").json()["items"]}
    assert [line.token_id for line in found[:3]] == [own["alice"], own["alice"], own["operator"]]
    assert timedelta(0) <= now() - first.time < timedelta(minutes=1)


def test_what_was_refused_has_its_line(clients, database):
    job_id = add_job(database, "succeeded", owner="bob")
    clients.anonymous.post(f"/v1/jobs/{job_id}/cancel")
    clients.anonymous.post("/v1/jobs", json=SPEC, headers={"Authorization": "Bearer nobody-has-this-one"})
    clients.viewer.post(f"/v1/jobs/{job_id}/cancel")
    clients.alice.post(f"/v1/jobs/{job_id}/cancel")
    clients.bob.post(f"/v1/jobs/{job_id}/cancel")
    clients.bob.post("/v1/jobs", json=SPEC | {"seeds": 1})
    post(clients.bob, b'{"kind": ')
    clients.bob.patch(f"/v1/jobs/{job_id}", json={"notes": None})
    clients.bob.post("/v1/tokens", json={"role": "admin"})
    clients.bob.delete("/v1/tokens/tok-none")
    assert [(summary(line), line.detail) for line in lines(database)] == [
        (("-", "job.cancel", job_id, 401), {"code": "unauthorized"}),
        (("-", "job.submit", "", 401), {"code": "unauthorized"}),
        (("viewer", "job.cancel", job_id, 403), {"code": "forbidden"}),
        (("alice", "job.cancel", job_id, 404), {"code": "job_not_found"}),
        (("bob", "job.cancel", job_id, 409), {"code": "not_allowed_in_state"}),
        (("bob", "job.submit", "", 422), {"code": "spec_invalid"}),
        (("bob", "job.submit", "", 422), {"code": "json_invalid"}),
        (("bob", "job.change", job_id, 422), {"code": "spec_invalid"}),
        (("bob", "token.create", "", 403), {"code": "forbidden"}),
        (("bob", "token.revoke", "tok-none", 404), {"code": "token_not_found"}),
    ]


def test_a_token_that_is_none_any_more_is_named(clients, database):
    made = clients.admin.post("/v1/tokens", json={"owner": "dora", "role": "submitter"}).json()
    clients.admin.delete(f"/v1/tokens/{made['id']}")
    clients.anonymous.post("/v1/jobs", json=SPEC, headers={"Authorization": f"Bearer {made['token']}"})
    last = lines(database)[-1]
    assert (*summary(last), last.token_id) == ("dora", "job.submit", "", 401, made["id"])


def test_tokens_have_their_lines_without_their_texts(clients, database):
    made = clients.admin.post("/v1/tokens", json={"owner": "dora", "role": "viewer", "name": "laptop"}).json()
    new = clients.admin.post(f"/v1/tokens/{made['id']}/rotate").json()
    clients.admin.delete(f"/v1/tokens/{new['id']}")
    found = lines(database)
    assert [summary(line) for line in found] == [
        ("admin", "token.create", made["id"], 201),
        ("admin", "token.rotate", made["id"], 201),
        ("admin", "token.revoke", new["id"], 200),
    ]
    about = {"owner": "dora", "role": "viewer", "name": "laptop", "ends": None}
    assert [line.detail for line in found[:2]] == [about | {"token": made["id"]}, about | {"token": new["id"]}]
    assert "rcmae_" not in json.dumps([line.detail for line in found])


def test_what_changes_nothing_has_none(clients, database):
    job_id = add_job(database, "failed")
    clients.alice.post("/v1/jobs/plan", json=SPEC)
    clients.alice.get(f"/v1/jobs/{job_id}")
    clients.alice.delete(f"/v1/jobs/{job_id}", params={"preview": True})
    clients.anonymous.get("/v1/jobs")
    clients.alice.put("/v1/jobs")
    clients.alice.post("/v1/nothing")
    assert lines(database) == []


def test_the_same_job_again_has_a_line_that_says_so(clients, database):
    for _ in range(2):
        clients.alice.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "once"})
    assert [(line.status, line.target == "") for line in lines(database)] == [(201, False), (200, True)]


def test_what_a_database_cannot_hold_is_no_reason_for_none(clients, database):
    clients.alice.post("/v1/jobs/job-%00%0a/cancel")
    clients.alice.post(f"/v1/jobs/{'x' * 900}/cancel")
    first, second = lines(database)
    assert first.target == r"job-\x00\n", "on one line, and as it was sent"
    assert second.target == "x" * 200


# --- together with the change -----------------------------------------------------------------------------------------


def test_a_change_whose_line_cannot_be_written_is_not_made(clients, database, monkeypatch):
    job_id = add_job(database)

    def broken(*_: object) -> None:
        raise DatabaseUnreachable("no more room")

    monkeypatch.setattr(Trail, "record", broken)
    for answer in (
        clients.alice.post(f"/v1/jobs/{job_id}/pause"),
        clients.alice.post("/v1/jobs", json=SPEC),
        clients.admin.post("/v1/tokens", json={"owner": "dora", "role": "viewer"}),
    ):
        problem(answer, 503, "unavailable")
    with database.read() as session:
        assert [(job.id, job.state) for job in session.scalars(select(Job))] == [(job_id, "queued")]
    assert {line.status for line in lines(database)} == {503}
    assert {token["owner"] for token in clients.admin.get("/v1/tokens").json()["items"]}.isdisjoint({"dora"})


def test_a_refusal_whose_line_cannot_be_written_is_not_answered_as_one(clients, database, monkeypatch, capsys):
    job_id = add_job(database)

    def broken(*_: object) -> None:
        raise DatabaseUnreachable("no more room")

    with monkeypatch.context() as patched:
        patched.setattr(Trail, "write", broken)
        body = problem(clients.viewer.post(f"/v1/jobs/{job_id}/pause"), 503, "unavailable")
        assert "audit log" in body["detail"]
        assert clients.viewer.get(f"/v1/jobs/{job_id}").status_code == 200, "reads need no line"
    assert "audit_not_written" in capsys.readouterr().out
    problem(clients.viewer.post(f"/v1/jobs/{job_id}/pause"), 403, "forbidden")


def test_an_unexpected_error_has_its_line(clients, database, monkeypatch):
    job_id = add_job(database)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the-secret-inside")

    monkeypatch.setattr("service.jobs.service.transition", broken)
    problem(clients.alice.post(f"/v1/jobs/{job_id}/pause"), 500, "internal_error")
    assert [summary(line) for line in lines(database)] == [("alice", "job.pause", job_id, 500)]
    assert job_of(database, job_id).state == "queued"


# --- for ever ---------------------------------------------------------------------------------------------------------


def test_the_database_refuses_to_change_a_line(clients, database):
    clients.alice.post("/v1/jobs", json=SPEC)
    before = [summary(line) for line in lines(database)]
    statements = ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"]
    for statement in statements + ([] if database.is_sqlite else ["TRUNCATE audit"]):  # SQLite knows no TRUNCATE
        with pytest.raises((DBAPIError, DatabaseUnreachable), match="append-only"), database.session() as session:
            session.execute(text(statement))
    assert [summary(line) for line in lines(database)] == before
    assert len(before) == 1


def test_a_deleted_jobs_lines_stay(clients, database):
    job_id = add_job(database, "failed")
    clients.alice.delete(f"/v1/jobs/{job_id}")
    with database.session() as session:
        session.execute(text("DELETE FROM job"))
    assert [line["action"] for line in items(clients.admin, target=job_id)] == ["job.delete"]


# --- reading it -------------------------------------------------------------------------------------------------------


def test_admins_alone_read_it(clients):
    for client in (clients.viewer, clients.alice, clients.operator):
        problem(client.get("/v1/audit"), 403, "forbidden")
    assert items(clients.admin) == []


def test_it_is_read_newest_first_and_narrowed(clients):
    first, second = (clients.alice.post("/v1/jobs", json=SPEC).json()["id"] for _ in range(2))
    clients.operator.post(f"/v1/jobs/{first}/cancel")
    clients.bob.post(f"/v1/jobs/{first}/cancel")
    every = items(clients.admin)
    assert [line["action"] for line in every] == ["job.cancel", "job.cancel", "job.submit", "job.submit"]
    assert [line["actor"] for line in items(clients.admin, actor="bob")] == ["bob"]
    assert [line["target"] for line in items(clients.admin, action="job.submit")] == [second, first]
    assert [line["status"] for line in items(clients.admin, target=first)] == [404, 200, 201]
    assert items(clients.admin, actor="bob", action="job.submit") == []
    moment = datetime.fromisoformat(every[1]["time"])
    assert items(clients.admin, after=moment.isoformat()) == every[:1]
    assert items(clients.admin, before=moment.isoformat()) == every[2:]
    assert items(clients.admin, before=moment.replace(tzinfo=None).isoformat()) == every[2:], "without a zone: UTC"
    for query in ({"after": "yesterday"}, {"before": "0001-01-01T00:00:00+23:00"}, {"cursor": "x"}, {"limit": 0}):
        problem(clients.admin.get("/v1/audit", params=query), 422, "parameter_invalid")


def test_it_comes_in_pages_while_it_grows(clients):
    for _ in range(5):
        clients.alice.post("/v1/jobs", json=SPEC)
    whole = [line["id"] for line in items(clients.admin)]
    seen: list[int] = []
    cursor: str | None = None
    while not seen or cursor:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        body = clients.admin.get("/v1/audit", params=query).json()
        seen += [line["id"] for line in body["items"]]
        cursor = body["next_cursor"]
        clients.alice.post("/v1/jobs", json=SPEC)
    assert seen == whole


def test_every_replica_writes_the_same_log(clients, settings):
    other = TestClient(create_app(settings), headers=dict(clients.bob.headers))
    clients.alice.post("/v1/jobs", json=SPEC)
    other.post("/v1/jobs", json=SPEC)
    assert [line["actor"] for line in items(clients.admin)] == ["bob", "alice"]


def test_sessions_of_the_dashboard_have_their_lines(browsers, database):
    before = len(lines(database))
    browsers.anonymous.post("/login", data={"token": "a-token-that-nobody-has"})
    page = browsers.alice.get("/").text
    csrf = page.partition('name="csrf" content="')[2].partition('"')[0]
    browsers.alice.post("/logout", data={"csrf": csrf})
    assert [summary(line) for line in lines(database)[before:]] == [
        ("-", "session.begin", "", 401),
        ("alice", "session.end", "", 303),
    ]
    begun = [line.actor for line in lines(database)[:before] if summary(line)[1:] == ("session.begin", "", 303)]
    assert begun == ["viewer", "alice", "bob", "operator", "admin"]
