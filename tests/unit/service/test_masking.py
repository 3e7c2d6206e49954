"""Secrets that people send by mistake are refused where they can be told, and shown nowhere."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from postgres_server import PASSWORD, PostgresServer
from service_fakes import SPEC, add_job, post, problem, spec_with
from sqlalchemy.exc import IntegrityError

from service.app import create_app
from service.db.database import Database, DatabaseUnreachable
from service.db.tables import Job
from service.settings import Settings
from trainer.spec.dataset import DatasetSpec
from trainer.spec.masking import credentials_in, masked

CANARY = "cAnArYwJalrXUtnFEMI"
TOKEN = "rcmae_" + CANARY * 2

WITH_CREDENTIALS = [
    f"s3://AKIAEXAMPLE:{CANARY}@datasets/x",
    f"s3://AKIAEXAMPLE:{CANARY}/and+more/{CANARY}@datasets/x",
    f"s3://{CANARY}@datasets/x",
    f"s3://datasets/x?X-Amz-Signature={CANARY}&X-Amz-Expires=60",
    f"s3://datasets/x?a=b&x-amz-security-token={CANARY}",
    f"s3://datasets/x?AWSAccessKeyId=a&Signature={CANARY}",
    f"s3://datasets/x?sv=2020&sig={CANARY}",
    f"s3://datasets/x#token={CANARY}",
    f"https://user:{CANARY}@example.org/x.tar",
    f"https://example.org/x.tar?access_token={CANARY}",
    f"file:///data/x?password={CANARY}",
    f"/data/x?api_key={CANARY}",
    f"user:{CANARY}@host/x",
]
WITHOUT = [
    "s3://datasets/x@2x.png",
    "/data/a@b/c",
    "/data/q?page=2",
    "s3://datasets/what?.tar",
    "file:///data/tokens=3",
    "s3://datasets/a:b@c",
]


def test_a_uri_with_credentials_is_refused_and_masked(clients, capsys):
    for uri in WITH_CREDENTIALS:
        for fields in ({"dataset": {"uri": uri}}, {"evaluation": {"dataset": {"uri": uri}}}):
            for path in ("/v1/jobs", "/v1/jobs/plan"):
                answer = clients.alice.post(path, json=spec_with(**fields))
                (found,) = problem(answer, 422, "spec_invalid")["problems"]
                assert found["field"].endswith("dataset.uri"), uri
                assert "***" in found["value"], uri
                assert "credentials" in found["message"], uri
                assert CANARY not in answer.text, uri
    assert CANARY not in json.dumps(clients.admin.get("/v1/audit").json())
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_only_looks_a_little_like_it_is_no_secret(uri):
    assert credentials_in(uri) is None
    assert masked(uri) == uri
    assert DatasetSpec(uri=uri).uri.endswith(uri)


REFUSED: list[dict[str, Any]] = [
    {"aws_secret_access_key": CANARY},
    {"dataset": {"uri": "builtin://digits", "password": CANARY}},
    {"dataset": {"uri": "builtin://digits", "storage_options": {"secret": CANARY, "api_key": CANARY}}},
    {"labels": {"token": TOKEN, "bad name": "x"}},
    {"register_as": TOKEN},
    {"priority": f"Bearer {CANARY}"},
    {"notes": [TOKEN]},
]


def test_a_refused_field_does_not_show_the_secret_in_it(clients, capsys):
    for fields in REFUSED:
        answer = clients.alice.post("/v1/jobs", json=spec_with(**fields))
        problem(answer, 422, "spec_invalid")
        assert CANARY not in answer.text, fields
    assert CANARY not in capsys.readouterr().out


def test_other_refused_values_are_shown(clients):
    answer = clients.alice.post("/v1/jobs", json=spec_with(optimization={"epochs": "many"}))
    assert problem(answer, 422, "spec_invalid")["problems"][0]["value"] == "many"


def test_headers_are_not_shown(clients, capsys):
    headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": CANARY * 20, "X-Request-ID": TOKEN}
    for answer in (
        clients.anonymous.post("/v1/jobs", json=SPEC, headers=headers),
        clients.alice.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": CANARY * 20}),
        post(clients.anonymous, b"{", **headers),
        clients.anonymous.get(f"/v1/jobs/{TOKEN}", headers=headers),
        clients.alice.get(f"/v1/jobs/{TOKEN}"),
        clients.alice.get("/v1/jobs", params={"cursor": TOKEN, "limit": f"Bearer {CANARY}"}),
        clients.anonymous.get(f"/nothing/{TOKEN}", headers=headers),
    ):
        assert answer.status_code >= 400
        assert CANARY not in answer.text + str(answer.headers)
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    assert CANARY not in json.dumps(clients.admin.get("/v1/audit").json())


def test_an_idempotency_key_is_kept_as_a_hash(clients, database):
    key = {"Idempotency-Key": CANARY}
    first, second = (clients.alice.post("/v1/jobs", json=SPEC, headers=key) for _ in range(2))
    assert (second.status_code, second.json()["id"]) == (200, first.json()["id"])
    with database.read() as session:
        assert CANARY not in (session.get(Job, first.json()["id"]).idempotency_key or "")
    other = clients.alice.post("/v1/jobs", json=spec_with(seed=9), headers=key)
    problem(other, 422, "idempotency_key_reused")
    assert CANARY not in other.text


def test_an_error_of_the_database_shows_no_values(database):
    """It goes into the log."""
    job_id = add_job(database, labels={"about": CANARY})
    with pytest.raises(IntegrityError) as told:
        add_job(database, id=job_id, labels={"about": CANARY})
    assert CANARY not in str(told.value)


def test_the_databases_password_is_shown_nowhere(postgres: PostgresServer, tmp_path, capsys, caplog):
    url = postgres.url("masked").replace(PASSWORD, CANARY)
    settings = Settings(database_url=url, artifact_root=str(tmp_path), reconcile=False)
    assert CANARY not in f"{settings!r} {settings}"
    database = Database(url)
    assert CANARY not in database.masked_url
    with caplog.at_level(logging.DEBUG), pytest.raises(DatabaseUnreachable) as told:
        database.migrate()
    database.close()
    app = create_app(settings)
    assert CANARY not in str(told.value) + caplog.text
    assert CANARY not in repr(app.state.app_state)
    app.state.app_state.database.close()
    assert CANARY not in capsys.readouterr().out
