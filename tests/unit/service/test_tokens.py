"""Tokens: made, used, replaced, ended."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import Clients, token_of
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, problem
from sqlalchemy import select, text, update

from service.app import create_app
from service.auth import trail
from service.auth.caller import ensure_admin, ensure_token, sha256
from service.auth.scopes import Role
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Token, now

pytestmark = pytest.mark.both_databases

DAY = timedelta(days=1)


def make(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/tokens", json={"role": "viewer"} | body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def status(client: TestClient, token: str, path: str = "/v1/jobs") -> int:
    return client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code


def refusal(client: TestClient, token: str) -> str:
    """What a token that is none is told."""
    answer = client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"})
    detail: str = problem(answer, 401, "unauthorized")["detail"]
    assert token not in answer.text
    return detail


def row(database: Database, token: str) -> Token:
    with database.read() as session:
        return session.get(Token, sha256(token))


def change(database: Database, token: str, **values: Any) -> None:
    with database.session() as session:
        session.execute(update(Token).where(Token.sha256 == sha256(token)).values(values))


def id_of(database: Database, owner: str) -> str:
    return row(database, token_of(owner)).id


# --- making -----------------------------------------------------------------------------------------------------------


def test_a_token_is_given_once_and_kept_as_a_hash(clients, database):
    made = make(clients.admin, owner="dora", role="submitter", name="her laptop")
    assert re.fullmatch(r"rcmae_[A-Za-z0-9_-]{43}", made["token"])
    assert (made["owner"], made["role"], made["name"], made["state"]) == ("dora", "submitter", "her laptop", "active")
    assert made["expires_at"] is made["last_used_at"] is made["revoked_at"] is None
    assert status(clients.anonymous, made["token"]) == 200
    shown = [token for token in clients.admin.get("/v1/tokens").json()["items"] if token["id"] == made["id"]]
    assert [token.keys() for token in shown] == [made.keys() - {"token"}]
    with database.read() as session:
        stored = " ".join(str(column) for line in session.execute(text("SELECT * FROM token")) for column in line)
    assert made["token"] not in stored
    assert sha256(made["token"]) in stored


def test_its_owner_and_role_count(clients):
    dora = {"Authorization": f"Bearer {make(clients.admin, owner='dora', role='submitter')['token']}"}
    job = clients.anonymous.post("/v1/jobs", json=SPEC, headers=dora).json()
    assert job["owner"] == "dora"
    assert clients.alice.get(f"/v1/jobs/{job['id']}").status_code == 404
    watcher = make(clients.admin, owner="dora", role="viewer")["token"]
    cancelled = clients.anonymous.post(f"/v1/jobs/{job['id']}/cancel", headers={"Authorization": f"Bearer {watcher}"})
    assert "viewer" in problem(cancelled, 403, "forbidden")["detail"]


def test_people_make_tokens_for_themselves_up_to_their_role(clients):
    assert make(clients.alice, role="submitter")["owner"] == "alice"
    assert make(clients.operator, role="viewer", owner="operator")["role"] == "viewer"
    assert make(clients.operator, role="operator")["owner"] == "operator"
    for client, body in (
        (clients.alice, {"role": "operator"}),
        (clients.alice, {"role": "admin"}),
        (clients.alice, {"role": "submitter", "owner": "bob"}),
        (clients.operator, {"role": "admin"}),
        (clients.operator, {"role": "viewer", "owner": "alice"}),
        (clients.viewer, {"role": "viewer"}),
    ):
        problem(client.post("/v1/tokens", json=body), 403, "forbidden")
    assert make(clients.admin, role="admin", owner="ops@example.org")["role"] == "admin"


def test_no_token_does_or_sees_more_than_the_one_that_made_it(clients, database):
    """Held to what the new token is answered, for every role that makes one of any other."""
    jobs = {add_job(database, owner=owner) for owner in ("viewer", "alice", "bob", "operator", "admin")}
    reach = {}
    for maker in ("viewer", "alice", "operator", "admin"):
        client = getattr(clients, maker)
        for role in ("viewer", "submitter", "operator", "admin"):
            answer = client.post("/v1/tokens", json={"role": role})
            if answer.status_code == 403:
                continue
            made = {"Authorization": f"Bearer {answer.json()['token']}"}
            assert visible(clients.anonymous, jobs, headers=made) <= visible(client, jobs)
            assert changeable(clients.anonymous, jobs, headers=made) <= changeable(client, jobs)
            reach.setdefault(maker, []).append(role)
    assert reach == {
        "alice": ["submitter"],
        "operator": ["viewer", "submitter", "operator"],
        "admin": ["viewer", "submitter", "operator", "admin"],
    }


def visible(client: TestClient, jobs: set[str], **options: Any) -> set[str]:
    return {job for job in jobs if client.get(f"/v1/jobs/{job}", **options).status_code == 200}


def changeable(client: TestClient, jobs: set[str], **options: Any) -> set[str]:
    change = {"notes": "seen"}
    return {job for job in jobs if client.patch(f"/v1/jobs/{job}", json=change, **options).status_code == 200}


def test_a_submitter_gets_no_viewers_token_and_is_told_what_it_can_have(clients):
    """A viewer sees everybody's jobs, and a submitter does not: neither by a new token nor by replacing an old one."""
    watching = make(clients.admin, owner="alice", role="viewer")
    for path, body in (("/v1/tokens", {"role": "viewer"}), (f"/v1/tokens/{watching['id']}/rotate", None)):
        refused = problem(clients.alice.post(path, json=body), 403, "forbidden")["detail"]
        assert "viewer, which may also see everybody's jobs and searches: it can create submitter" in refused
    assert status(clients.anonymous, watching["token"]) == 200, "a refusal ends nothing"
    refused = problem(clients.operator.post("/v1/tokens", json={"role": "admin"}), 403, "forbidden")["detail"]
    assert "it can create viewer, submitter, operator;" in refused


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "/role"),
    ({"role": "root"}, "/role"),
    ({"role": "viewer", "owner": "Dora"}, "/owner"),
    ({"role": "viewer", "owner": "-dora"}, "/owner"),
    ({"role": "viewer", "owner": ""}, "/owner"),
    ({"role": "viewer", "owner": "d" * 101}, "/owner"),
    ({"role": "viewer", "owner": "dora/../admin"}, "/owner"),
    ({"role": "viewer", "owner": "dora\n"}, "/owner"),
    ({"role": "viewer", "name": "x" * 101}, "/name"),
    ({"role": "viewer", "expires_in_days": 0}, "/expires_in_days"),
    ({"role": "viewer", "expires_in_days": 10**9}, "/expires_in_days"),
    ({"role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
    ({"role": "viewer", "expires_at": "9999-12-31T23:59:59-23:00"}, "/expires_at"),
    ({"role": "viewer", "expires_at": "0001-01-01T00:00:00+23:00"}, "/expires_at"),
    ({"role": "viewer", "expires_at": "2030-01-01T00:00:00"}, "/expires_at"),
    ({"role": "viewer", "scope": "all"}, "/scope"),
]


def test_what_is_no_token_is_refused_by_its_field(clients):
    for body, pointer in REFUSED:
        found = problem(clients.admin.post("/v1/tokens", json=body), 422, "spec_invalid")["problems"]
        assert [each["pointer"] for each in found] == [pointer], body


def test_one_end_is_enough(clients):
    body = {"role": "viewer", "expires_in_days": 1, "expires_at": (now() + DAY).isoformat()}
    found = problem(clients.admin.post("/v1/tokens", json=body), 422, "body_invalid")
    assert "not both" in found["detail"]


# --- ending -----------------------------------------------------------------------------------------------------------


def test_a_token_ends_when_it_was_to(clients, database):
    moment = now()
    made = make(clients.admin, owner="dora", expires_in_days=30)
    ends = datetime.fromisoformat(made["expires_at"])
    assert timedelta(0) <= ends - moment - 30 * DAY < timedelta(minutes=1)
    assert status(clients.anonymous, made["token"]) == 200
    change(database, made["token"], expires_at=now() - timedelta(seconds=1))
    assert "expired at" in refusal(clients.anonymous, made["token"])
    listed = {token["id"]: token["state"] for token in clients.admin.get("/v1/tokens").json()["items"]}
    assert listed[made["id"]] == "ended"
    exact = make(clients.admin, owner="dora", expires_at="2030-06-01T12:00:00+02:00")
    assert datetime.fromisoformat(exact["expires_at"]) == datetime(2030, 6, 1, 10, tzinfo=UTC)


def test_why_a_token_opens_nothing_is_told(clients):
    revoked = make(clients.admin, owner="dora")
    clients.admin.delete(f"/v1/tokens/{revoked['id']}")
    assert "revoked" in refusal(clients.anonymous, revoked["token"])
    assert "does not know" in refusal(clients.anonymous, "rcmae_nobody-has-this-one-000000")
    assert "Authorization: Bearer" in problem(clients.anonymous.get("/v1/jobs"), 401, "unauthorized")["detail"]


def test_a_revoked_token_is_refused_at_once_by_every_replica(clients, settings):
    other = TestClient(create_app(settings))
    made = make(clients.admin, owner="dora", role="submitter")
    assert status(other, made["token"]) == status(clients.anonymous, made["token"]) == 200
    answer = clients.admin.delete(f"/v1/tokens/{made['id']}")
    assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
    assert status(other, made["token"]) == status(clients.anonymous, made["token"]) == 401
    assert clients.admin.delete(f"/v1/tokens/{made['id']}").json() == answer.json(), "again changes nothing"


def test_the_last_admin_token_that_lasts_stays(clients, database):
    own = id_of(database, "admin")
    refused = problem(clients.admin.delete(f"/v1/tokens/{own}"), 409, "last_admin")["detail"]
    assert "first create another one, with `rcmae tokens create --role admin`" in refused
    soon = make(clients.admin, owner="second", role="admin", expires_at=(now() + timedelta(minutes=1)).isoformat())
    problem(clients.admin.delete(f"/v1/tokens/{own}"), 409, "last_admin")
    second = make(clients.admin, owner="second", role="admin")
    assert clients.admin.delete(f"/v1/tokens/{own}").status_code == 200
    assert status(clients.anonymous, token_of("admin")) == 401
    as_second = {"Authorization": f"Bearer {second['token']}"}
    problem(clients.admin.delete(f"/v1/tokens/{second['id']}", headers=as_second), 409, "last_admin")
    assert clients.admin.delete(f"/v1/tokens/{soon['id']}", headers=as_second).status_code == 200
    new = clients.admin.post(f"/v1/tokens/{second['id']}/rotate", json={"grace_s": 60}, headers=as_second).json()
    assert new["expires_at"] is None
    assert clients.admin.delete(f"/v1/tokens/{second['id']}", headers=as_second).status_code == 200, "it expires anyway"
    problem(clients.admin.delete(f"/v1/tokens/{new['id']}", headers=as_second), 401, "unauthorized")


def test_of_two_admins_who_revoke_each_other_one_is_left(clients, database):
    second = make(clients.admin, owner="second", role="admin")
    as_second = {"Authorization": f"Bearer {second['token']}"}
    ids = [second["id"], id_of(database, "admin")]
    begin = threading.Barrier(2)
    statuses = []

    def revoke(token_id: str, headers: dict[str, str]) -> None:
        begin.wait()
        statuses.append(clients.admin.delete(f"/v1/tokens/{token_id}", headers=headers).status_code)

    threads = [threading.Thread(target=revoke, args=pair) for pair in zip(ids, ({}, as_second), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 in statuses
    with database.read() as session:
        left = session.scalars(select(Token).where(Token.role == "admin", Token.revoked_at.is_(None))).all()
    assert len(left) == 1


def test_people_end_their_own_tokens_of_no_higher_role(clients, database):
    mine = [make(clients.alice, role="submitter"), make(clients.admin, owner="alice", role="viewer")]
    admins = make(clients.admin, owner="alice", role="admin")
    others = id_of(database, "bob")
    for each in mine:
        assert clients.alice.delete(f"/v1/tokens/{each['id']}").status_code == 200
    for path in (f"/v1/tokens/{admins['id']}", f"/v1/tokens/{admins['id']}/rotate"):
        answer = clients.alice.request("POST" if path.endswith("rotate") else "DELETE", path)
        problem(answer, 403, "forbidden")
    problem(clients.alice.delete(f"/v1/tokens/{others}"), 404, "token_not_found")
    problem(clients.operator.delete(f"/v1/tokens/{others}"), 404, "token_not_found")
    problem(clients.admin.delete("/v1/tokens/tok-none"), 404, "token_not_found")
    assert status(clients.anonymous, token_of("bob")) == 200


# --- replacing --------------------------------------------------------------------------------------------------------


def test_a_rotated_token_is_another_text_for_the_same(clients):
    old = make(clients.admin, owner="dora", role="submitter", name="ci", expires_in_days=10)
    new = clients.admin.post(f"/v1/tokens/{old['id']}/rotate").json()
    same = ("owner", "role", "name", "expires_at")
    assert {field: new[field] for field in same} == {field: old[field] for field in same}
    assert new["token"] != old["token"]
    assert status(clients.anonymous, new["token"]) == 200
    assert "revoked" in refusal(clients.anonymous, old["token"])
    problem(clients.admin.post(f"/v1/tokens/{old['id']}/rotate"), 409, "token_ended")


def test_the_old_text_may_have_a_grace(clients, database):
    old = make(clients.admin, owner="dora")
    answer = clients.admin.post(f"/v1/tokens/{old['id']}/rotate", json={"grace_s": 3600})
    assert status(clients.anonymous, old["token"]) == status(clients.anonymous, answer.json()["token"]) == 200
    left = row(database, old["token"]).expires_at - now()
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    change(database, old["token"], expires_at=now() - timedelta(seconds=1))
    assert "expired" in refusal(clients.anonymous, old["token"])
    short = make(clients.admin, owner="dora", expires_at=(now() + timedelta(minutes=5)).isoformat())
    clients.admin.post(f"/v1/tokens/{short['id']}/rotate", json={"grace_s": 3600})
    assert row(database, short["token"]).expires_at - now() < timedelta(minutes=6), "a grace makes no life longer"
    for grace in (-1, 86_401, "long"):
        answer = clients.admin.post(f"/v1/tokens/{short['id']}/rotate", json={"grace_s": grace})
        assert [p["pointer"] for p in problem(answer, 422, "spec_invalid")["problems"]] == ["/grace_s"]


def test_the_last_admins_token_can_be_rotated(clients, database):
    new = clients.admin.post(f"/v1/tokens/{id_of(database, 'admin')}/rotate").json()
    assert status(clients.anonymous, new["token"], "/v1/audit") == 200
    assert status(clients.anonymous, token_of("admin"), "/v1/audit") == 401


def test_a_token_that_ends_makes_none_that_lives_longer(clients):
    """A token that leaked for a day is not one for ever."""
    short = make(clients.admin, owner="dora", role="submitter", expires_in_days=1)
    long = make(clients.admin, owner="dora", role="submitter")
    as_short = {"Authorization": f"Bearer {short['token']}"}
    made = clients.anonymous.post("/v1/tokens", json={"role": "submitter"}, headers=as_short).json()
    assert made["expires_at"] == short["expires_at"]
    later = {"role": "submitter", "expires_in_days": 2}
    problem(clients.anonymous.post("/v1/tokens", json=later, headers=as_short), 403, "forbidden")
    problem(clients.anonymous.post(f"/v1/tokens/{long['id']}/rotate", headers=as_short), 403, "forbidden")
    assert status(clients.anonymous, long["token"]) == 200
    own = clients.anonymous.post(f"/v1/tokens/{short['id']}/rotate", headers=as_short)
    assert own.json()["expires_at"] == short["expires_at"]


# --- lists ------------------------------------------------------------------------------------------------------------


def test_people_see_their_own_tokens_and_admins_all(clients):
    make(clients.alice, role="submitter")

    def owners(client: TestClient, **query: Any) -> list[str]:
        return [token["owner"] for token in client.get("/v1/tokens", params=query).json()["items"]]

    assert owners(clients.alice) == ["alice", "alice"]
    assert owners(clients.operator) == ["operator"]
    assert owners(clients.viewer) == ["viewer"]
    assert owners(clients.alice, owner="bob") == []
    assert sorted(owners(clients.admin)) == ["admin", "alice", "alice", "bob", "operator", "viewer"]
    assert owners(clients.admin, owner="bob") == ["bob"]


def test_lists_of_tokens_come_in_pages(clients):
    made = [make(clients.admin, owner="dora", name=str(number))["id"] for number in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while not seen or cursor:
        query = {"owner": "dora", "limit": 2} | ({"cursor": cursor} if cursor else {})
        body = clients.admin.get("/v1/tokens", params=query).json()
        seen += [token["id"] for token in body["items"]]
        cursor = body["next_cursor"]
    assert seen == made[::-1]
    problem(clients.admin.get("/v1/tokens", params={"cursor": "nonsense"}), 422, "parameter_invalid")


# --- when it was used -------------------------------------------------------------------------------------------------


def used(clients: Clients, token_id: str) -> datetime | None:
    found = {token["id"]: token for token in clients.admin.get("/v1/tokens").json()["items"]}[token_id]["last_used_at"]
    return datetime.fromisoformat(found) if found else None


def test_the_minute_of_the_last_use_is_kept(clients, database):
    made = make(clients.admin, owner="dora")
    assert used(clients, made["id"]) is None
    before = now().replace(second=0, microsecond=0)
    status(clients.anonymous, made["token"], "/v1/jobs/job-none")
    first = used(clients, made["id"])
    assert first.second == first.microsecond == 0
    assert before <= first <= now()
    change(database, made["token"], last_used_at=before - timedelta(minutes=3))
    status(clients.anonymous, made["token"])
    assert used(clients, made["id"]) >= first


def test_it_is_written_once_a_minute(clients, monkeypatch):
    written: list[str] = []
    real = trail.record_use
    monkeypatch.setattr("service.access.uses.record_use", lambda *given: (written.append(given[1]), real(*given)))
    made = make(clients.admin, owner="dora")
    monkeypatch.setattr(trail, "now", lambda: datetime(2031, 1, 1, 12, 0, 30, tzinfo=UTC))
    for _ in range(3):
        status(clients.anonymous, made["token"])
    assert written.count(made["id"]) == 1
    monkeypatch.setattr(trail, "now", lambda: datetime(2031, 1, 1, 12, 1, 0, tzinfo=UTC))
    status(clients.anonymous, made["token"])
    assert written.count(made["id"]) == 2


def test_the_use_of_a_token_that_has_ended_is_not_noted(clients, database):
    made = make(clients.admin, owner="dora")
    clients.admin.delete(f"/v1/tokens/{made['id']}")
    assert status(clients.anonymous, made["token"]) == 401
    assert row(database, made["token"]).last_used_at is None


def test_a_use_that_cannot_be_noted_is_no_error(clients, database, monkeypatch):
    made = make(clients.admin, owner="dora")

    def busy(*_: object, **__: object) -> None:
        raise DatabaseUnreachable("busy")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "session", busy)
        assert status(clients.anonymous, made["token"]) == 200
    assert row(database, made["token"]).last_used_at is None


# --- the file of the first one ----------------------------------------------------------------------------------------


def test_a_start_brings_back_no_token_that_was_revoked(clients, database, tmp_path):
    file = tmp_path / "token"
    file.write_text("the-token-of-the-file-0123")
    ensure_admin(database, file)
    found = row(database, "the-token-of-the-file-0123")
    assert (found.owner, found.role, found.name) == ("admin", "admin", "RCMAE_ADMIN_TOKEN_FILE")
    clients.admin.delete(f"/v1/tokens/{found.id}")
    ensure_admin(database, file)
    again = row(database, "the-token-of-the-file-0123")
    assert (again.id, again.revoked_at is None) == (found.id, False)
    assert status(clients.anonymous, "the-token-of-the-file-0123") == 401
    ensure_token(database, "another-token-0123456789", "dora", Role.VIEWER)
    assert row(database, "another-token-0123456789").id != found.id
