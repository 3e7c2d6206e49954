"""The REST interface: lists of jobs and their events, and what a retry keeps."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, events_of, job_of, problem

from service.http import paging

pytestmark = pytest.mark.both_databases

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


# --- lists ------------------------------------------------------------------------------------------------------------


def names(api: TestClient, **query: Any) -> list[str]:
    answer = api.get("/v1/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return [job["name"] for job in answer.json()["items"]]


@pytest.fixture
def various(database) -> None:
    rows: list[tuple[str, str, str, dict[str, str]]] = [
        ("100% digits", "queued", "alice", {"team": "vision"}),
        ("snake_case", "running", "bob", {"team": "vision", "env": "test"}),
        ("snakeXcase", "failed", "alice", {"team": "audio"}),
        ("100 digits", "succeeded", "bob", {"a.b/c-d": "1"}),
        ("Back\\slash", "cancelled", "carol", {}),
    ]
    for minute, (name, state, owner, labels) in enumerate(rows):
        at = NOW + timedelta(minutes=minute)
        add_job(database, state, name=name, owner=owner, labels=labels, created_at=at)


NARROWED: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["Back\\slash", "100 digits", "snakeXcase", "snake_case", "100% digits"]),
    ({"state": "queued"}, ["100% digits"]),
    ({"state": ["queued", "failed"]}, ["snakeXcase", "100% digits"]),
    ({"kind": "pretrain", "owner": "bob"}, ["100 digits", "snake_case"]),
    ({"kind": "search"}, []),
    ({"owner": "nobody"}, []),
    ({"label": "team:vision"}, ["snake_case", "100% digits"]),
    ({"label": ["team:vision", "env:test"]}, ["snake_case"]),
    ({"label": "team:vis"}, []),
    ({"label": "a.b/c-d:1"}, ["100 digits"]),
    ({"label": "a:1"}, []),
    ({"label": ":"}, []),
    ({"label": 'te"am:vision'}, []),
    ({"label": "te'am:vision"}, []),
    ({"label": "$:vision"}, []),
    ({"label": "[0]:vision"}, []),
    ({"name_contains": "%"}, ["100% digits"]),
    ({"name_contains": "_"}, ["snake_case"]),
    ({"name_contains": "\\"}, ["Back\\slash"]),
    ({"name_contains": "SNAKE"}, ["snakeXcase", "snake_case"]),
    ({"name_contains": "'"}, []),
    ({"created_after": "2025-06-01T12:02:00Z"}, ["Back\\slash", "100 digits"]),
    ({"created_after": "2025-06-01T14:02:00+02:00"}, ["Back\\slash", "100 digits"]),
    ({"created_after": "2025-06-01T12:02:00"}, ["Back\\slash", "100 digits"]),
    ({"created_after": "2025-06-01T12:01:59.999999Z", "state": "failed"}, ["snakeXcase"]),
]


@pytest.mark.usefixtures("various")
def test_lists_are_narrowed(clients):
    for query, found in NARROWED:
        assert names(clients.viewer, **query) == found, query


WRONG: list[dict[str, Any]] = [
    {"state": "sleeping"},
    {"kind": "sleeping"},
    {"label": "team"},
    {"created_after": "yesterday"},
    {"created_after": "0001-01-01T00:00:00+23:00"},
    {"created_after": "9999-12-31T23:59:59-23:00"},
    {"cursor": paging.write_cursor(["0001-01-01T00:00:00+23:00", "job-a"])},
    {"limit": 0},
    {"limit": 501},
    {"limit": "many"},
    {"cursor": "nonsense"},
    {"cursor": "é"},
    {"cursor": paging.write_cursor([])},
    {"cursor": paging.write_cursor(["2025"])},
    {"cursor": paging.write_cursor([1, 2])},
    {"cursor": paging.write_cursor(["yesterday", "job-a"])},
    {"cursor": paging.write_cursor([{"a": 1}])},
]


def test_wrong_parameters_of_a_list_are_refused(api):
    for query in WRONG:
        problem(api.get("/v1/jobs", params=query), 422, "parameter_invalid")


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_pages_have_neither_gaps_nor_repeats(api, database, limit):
    """Also where jobs share their moment, and others come meanwhile."""
    made = [add_job(database, created_at=NOW + timedelta(seconds=n // 3), id=f"job-{n}") for n in range(7)]
    add_job(database, owner="bob", created_at=NOW)
    seen: list[str] = []
    cursor = None
    for page in range(20):
        answer = api.get("/v1/jobs", params={"limit": limit, "owner": "alice"} | ({"cursor": cursor} if cursor else {}))
        body = answer.json()
        assert 0 < len(body["items"]) <= limit
        seen += [job["id"] for job in body["items"]]
        cursor = body["next_cursor"]
        if cursor is None:
            break
        add_job(database, created_at=NOW + timedelta(hours=1, seconds=page))
    assert cursor is None
    assert seen == made[::-1]


def test_a_list_shows_a_job_as_it_is_shown_alone(api, database):
    """The list builds its JSON itself."""
    progress = {
        "epoch": 0.5,
        "epochs": 2,
        "step": 3,
        "loss": float("nan") if "sqlite" in str(database.engine.url) else 1,
    }
    ids = [
        add_job(database, name='née — 名 "quoted" \\', notes="\u2028", labels={"team": "vision"}),
        add_job(database, "running", resolved_spec={"a": [1, None, "ü"]}, progress=progress, started_at=NOW),
        add_job(database, "succeeded", search_id="job-search", trial=3, result={"metrics": {"train/loss": 0.5}}),
    ]
    listed = {job["id"]: job for job in api.get("/v1/jobs").json()["items"]}
    assert listed == {job_id: api.get(f"/v1/jobs/{job_id}").json() for job_id in ids}
    assert listed[ids[1]]["spec"] == {"a": [1, None, "ü"]}
    assert listed[ids[2]]["promoted_from"] == {"search": "job-search", "trial": 3}


def test_events_come_in_pages(api, database):
    job_id = api.post("/v1/jobs", json=SPEC).json()["id"]
    for verb in ("pause", "resume", "pause", "cancel"):
        assert api.post(f"/v1/jobs/{job_id}/{verb}").status_code == 200
    whole = api.get(f"/v1/jobs/{job_id}/events").json()
    assert [e["state"] for e in whole["items"]] == ["queued", "paused", "queued", "paused", "cancelled"]
    assert whole["next_cursor"] is None
    paged, cursor = [], None
    while not paged or cursor:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        body = api.get(f"/v1/jobs/{job_id}/events", params=query).json()
        paged += body["items"]
        cursor = body["next_cursor"]
    assert paged == whole["items"]
    assert len(events_of(database, job_id)) == 5


def test_a_wrong_cursor_of_events_is_refused(api, database):
    job_id = add_job(database)
    for parts in ([], ["x"], [None], [{}], [1e308], [10**30], [-1], [float("inf")], [1, 2]):
        query = {"cursor": paging.write_cursor(parts)}
        problem(api.get(f"/v1/jobs/{job_id}/events", params=query), 422, "parameter_invalid")


def test_a_cursor_nested_deep_is_refused(api):
    cursor = base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=")
    problem(api.get("/v1/jobs", params={"cursor": cursor}), 422, "parameter_invalid")


# --- verbs ------------------------------------------------------------------------------------------------------------


def test_a_retry_begins_anew_with_failures_and_progress(api, database):
    progress = {"epoch": 1.0, "epochs": 2, "step": 5}
    fields = {"failures": 3, "restarts": 4, "attempts": 2, "progress": progress, "not_before": NOW}
    kept = add_job(database, "failed", **fields)
    assert api.post(f"/v1/jobs/{kept}/retry").json()["progress"]["step"] == 5
    job = job_of(database, kept)
    assert (job.failures, job.restarts, job.since_attempt, job.not_before) == (0, 0, 1, None)
    scratch = add_job(database, "failed", **fields)
    assert api.post(f"/v1/jobs/{scratch}/retry", json={"from_scratch": True}).json()["progress"] is None
    assert job_of(database, scratch).since_attempt == 3
