"""Webhooks: what they are told of, how it is delivered, and who may have them."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest
from backbone_files import Registry, compare_with_mlflow
from conftest import Clients, token_of
from fastapi import FastAPI
from fastapi.testclient import TestClient
from live import poll
from service_fakes import problem, spec_with
from service_world import World
from sqlalchemy import delete, select, update
from standardwebhooks import WebhookVerificationError
from webhook_receiver import LONG_AGO, Receiver, add_webhook, deliver, emit_about, pass_pauses, receiving, rows

import service
from service.adapters.receivers import Answer
from service.app import attach
from service.auth.caller import Caller, ensure_token
from service.auth.scopes import Role
from service.db.database import Database
from service.db.tables import Audit, RegistryCheck, Token, Webhook, WebhookDelivery, now
from service.events.outbox import emit
from service.events.types import EventType
from service.jobs.service import delete_job
from service.jobs.work import Work
from service.settings import Settings
from service.webhooks import repository
from service.webhooks.sending import LONGEST_PAUSE, PAUSES, next_pause

BASE = "/v1/webhooks"
PUBLIC = "https://93.184.216.34/hook"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A deployment that allows receivers on its own machine, and whose people know its address."""
    changed = {"webhook_private_networks": "127.0.0.0/8", "public_url": "https://rcmae.test/"}
    return Settings.model_validate(settings.model_dump() | changed)


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def team(routes: FastAPI, world: World) -> Clients:
    """Clients of a service whose controller a test moves by hand."""
    attach(routes, world.app_state, None)
    owners = ("viewer", "alice", "bob", "operator", "admin")
    made = {owner: TestClient(routes, headers={"Authorization": f"Bearer {token_of(owner)}"}) for owner in owners}
    return Clients(TestClient(routes), **made)


def create(client: TestClient, url: str, **fields: Any) -> dict[str, Any]:
    answer = client.post(BASE, json={"url": url} | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def log_of(client: TestClient, webhook_id: str) -> list[dict[str, Any]]:
    return client.get(f"{BASE}/{webhook_id}/deliveries").json()["items"]


def types(database: Database) -> list[str]:
    return [row.type for row in rows(database)]


# --- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_job_registers_a_version_and_its_receiver_can_verify_what_it_is_told(team, world, registry, receiver):
    made = create(team.alice, receiver.url)
    registry.add(metrics={"eval/linear_top1": 0.75}, formats="timm,hf", dataset_fingerprint="abc", method="rc_mae")
    deliver(world)
    (got,) = receiver.received
    told = got.verified(made["secret"])
    assert told["type"] == "version.registered"
    assert abs((datetime.fromisoformat(told["timestamp"]) - now()).total_seconds()) < 60
    data = told["data"]
    assert (data["name"], data["version"], data["job_id"]) == ("digits", 1, registry.jobs["digits"])
    assert (data["metrics"], data["formats"]) == ({"eval/linear_top1": 0.75}, ["timm", "hf"])
    assert (data["dataset_fingerprint"], data["method"], data["owner"]) == ("abc", "rc_mae", "alice")
    assert data["hub"] == {"repo_id": "rcmae/digits", "revision": "v1"}
    assert all(url.startswith("https://rcmae.test/") for url in data["urls"].values())
    for url in data["urls"].values():
        if "/backbones/digits?" not in url:  # a page, which needs a session
            assert team.alice.get(url.removeprefix("https://rcmae.test")).status_code == 200, url
    (entry,) = log_of(team.alice, made["id"])
    assert (entry["state"], entry["response_code"], entry["attempts"]) == ("delivered", 204, 1)
    assert entry["id"] == got.id
    with pytest.raises(WebhookVerificationError):
        got.verified("whsec_" + base64.b64encode(b"another secret of enough bytes").decode())


def test_an_alias_that_is_set_moved_and_removed_and_a_version_that_is_deleted_are_told(team, registry, database):
    registry.add("digits", 1)
    registry.add("digits", 2)
    add_webhook(database)
    team.alice.put("/v1/backbones/digits/aliases/champion", json={"version": 1})
    team.alice.put("/v1/backbones/digits/aliases/champion", json={"version": 2})
    team.alice.put("/v1/backbones/digits/aliases/champion", json={"version": 2})
    team.operator.delete("/v1/backbones/digits/aliases/champion")
    team.alice.delete("/v1/backbones/digits/versions/1")
    told = [(row.type, row.data["version"], row.data.get("before"), row.data["actor"]) for row in rows(database)]
    assert told == [
        ("alias.moved", 1, None, "alice"),
        ("alias.moved", 2, 1, "alice"),
        ("alias.moved", None, 2, "operator"),
        ("version.deleted", 1, None, "alice"),
    ], "and nothing of an alias that was where it is to be"


def test_versions_that_go_with_their_job_are_told_once(world, team, registry, database):
    registry.add("digits", 1)
    add_webhook(database)
    job_id = registry.jobs["digits"]
    assert team.alice.delete(f"/v1/jobs/{job_id}", params={"with_backbones": True}).status_code == 200
    world.rounds()
    assert [(row.type, row.data["job_id"]) for row in rows(database)] == [("version.deleted", job_id)]


def test_a_version_that_turns_up_after_its_jobs_deletion_is_not_told(world, database, mlflow, root):
    """Nobody ever saw it: it goes with the job."""
    job_id = world.add(state="succeeded", spec=spec_with(register_as="late"))
    add_webhook(database)
    delete_job(world.app_state, Caller("operator", Role.OPERATOR), job_id, with_backbones=True)
    mlflow.register("late", 1, job_id, f"file://{root}/late", {})
    world.rounds(2)
    assert mlflow.all_versions() == []
    assert types(database) == []


def test_what_an_upgrades_first_reading_finds_is_not_told_unless_its_job_still_runs(world, database, mlflow, root):
    add_webhook(database)
    with database.session() as session:
        session.execute(delete(RegistryCheck))
    for name, state in (("old", "succeeded"), ("new", "running")):
        job_id = world.add(state=state, spec=spec_with(register_as=name))
        mlflow.register(name, 1, job_id, f"file://{root}/{name}", {})
    mlflow.set_alias("old", "champion", 1)
    compare_with_mlflow(database, mlflow)
    assert [(row.type, row.data["name"]) for row in rows(database)] == [("version.registered", "new")]
    mlflow.register("old", 2, mlflow.all_versions()[0].tags["rcmae.job_id"], f"file://{root}/old2", {})
    compare_with_mlflow(database, mlflow)
    assert rows(database)[-1].data["version"] == 2, "from the second reading on all is told"


@pytest.mark.both_databases
def test_a_version_whose_number_mlflow_gives_again_is_told_as_deleted_with_its_aliases(world, registry, mlflow):
    registry.add()
    registry.set_alias("digits", "champion", 1)
    add_webhook(world.database)
    mlflow.registered.clear()
    mlflow.named.clear()
    second = world.add(state="succeeded", spec=spec_with(register_as="digits"))
    mlflow.register("digits", 1, second, registry.folder("digits", 1))
    world.compare_versions()
    told = [
        (row.type, row.data["version"], row.data.get("actor"), row.data.get("job_id")) for row in rows(world.database)
    ]
    assert told == [
        ("alias.moved", None, None, None),
        ("version.deleted", 1, None, registry.jobs["digits"]),
        ("version.registered", 1, None, second),
    ]


@pytest.mark.both_databases
def test_what_is_rolled_back_tells_nothing(database):
    add_webhook(database)

    def change() -> None:
        with database.session() as session:
            emit_about(session, EventType.VERSION_DELETED, {"name": "digits"}, "digits")
            session.flush()
            raise RuntimeError("the change fails")

    with pytest.raises(RuntimeError):
        change()
    assert rows(database) == []
    with database.session() as session:
        emit_about(session, EventType.VERSION_DELETED, {"name": "digits"}, "digits")
    assert types(database) == ["version.deleted"]


@pytest.mark.both_databases
def test_a_webhook_hears_of_the_events_and_backbones_that_it_names_while_it_is_enabled(database):
    ids = {
        "all": add_webhook(database),
        "aliases": add_webhook(database, events=["alias.moved"]),
        "dogs": add_webhook(database, backbones=["dogs"]),
        "off": add_webhook(database, enabled=False),
    }
    with database.session() as session:
        emit_about(session, EventType.VERSION_DELETED, {}, "dogs")
        emit_about(session, EventType.ALIAS_MOVED, {}, "cats")
        emit(session, EventType.ALIAS_MOVED, {})
    heard = {name: [row.type for row in rows(database) if row.webhook_id == ids[name]] for name in ids}
    heard = {name: sorted(found) for name, found in heard.items()}
    assert heard == {
        "all": ["alias.moved", "alias.moved", "version.deleted"],
        "aliases": ["alias.moved", "alias.moved"],
        "dogs": ["version.deleted"],
        "off": [],
    }


@pytest.mark.both_databases
@pytest.mark.parametrize("ended", ["revoked_at", "expires_at"])
def test_a_webhook_whose_owner_has_no_token_for_webhooks_hears_nothing_until_there_is_one(
    team, world, database, receiver, ended
):
    made = create(team.alice, receiver.url)
    an_event(database, number=1)
    with database.session() as session:
        session.execute(update(Token).where(Token.owner == "alice").values({ended: LONG_AGO}))
    ensure_token(database, "a-viewing-token-of-alice", "alice", Role.VIEWER)
    an_event(database, number=2)
    deliver(world)
    assert receiver.received == []
    (entry,) = log_of(team.admin, made["id"])
    assert entry["state"] == "failed"
    assert "the webhook's owner has no valid token any more that may have webhooks" in entry["message"]
    ensure_token(database, "another-token-of-alice", "alice", Role.SUBMITTER)
    an_event(database, number=3)
    deliver(world)
    assert [got.verified(made["secret"])["data"]["number"] for got in receiver.received] == [3]


# --- delivery ---------------------------------------------------------------------------------------------------------


def an_event(database: Database, **data: Any) -> None:
    with database.session() as session:
        emit_about(session, EventType.ALIAS_MOVED, {"name": "digits"} | data, "digits")


@pytest.mark.both_databases
def test_what_fails_is_sent_again_with_the_same_id_until_it_succeeds(team, world, database, receiver):
    made = create(team.alice, receiver.url)
    receiver.answers = [
        (500, {}, b"broken\x1b[31m\x00" + b"x" * 5000),
        (302, {"Location": PUBLIC}, b""),
        (200, {}, b"ok"),
    ]
    an_event(database)
    deliver(world)
    (entry,) = log_of(team.alice, made["id"])
    assert (entry["state"], entry["response_code"], entry["attempts"]) == ("waiting", 500, 1)
    assert entry["message"] == "the receiver answered 500 Internal Server Error"
    assert entry["response"].startswith("broken\\x1b[31m\\x00xxx"), "a terminal shows it harmlessly"
    assert len(entry["response"]) == 1000
    pause = datetime.fromisoformat(entry["next_attempt_at"]) - datetime.fromisoformat(entry["last_attempt_at"])
    assert PAUSES[0] <= pause <= 1.1 * PAUSES[0]
    deliver(world)
    assert len(receiver.received) == 1, "it is not due yet"
    pass_pauses(database)
    deliver(world)
    (entry,) = log_of(team.alice, made["id"])
    assert (
        entry["message"] == "the receiver answered 302 Found: redirects are not followed, so change the webhook's URL"
    )
    assert team.alice.get(f"{BASE}/{made['id']}").json()["failing_since"]
    pass_pauses(database)
    deliver(world)
    (entry,) = log_of(team.alice, made["id"])
    assert (entry["state"], entry["attempts"], entry["message"]) == ("delivered", 3, "")
    assert (entry["response"], entry["next_attempt_at"]) == ("ok", None)
    assert {got.id for got in receiver.received} == {entry["id"]}
    assert {got.body for got in receiver.received} == {receiver.received[0].body}
    assert all(got.verified(made["secret"]) for got in receiver.received)
    shown = team.alice.get(f"{BASE}/{made['id']}").json()
    assert (shown["failing_since"], shown["last_message"]) == (None, "")


def test_after_the_last_attempt_it_has_failed_and_can_be_sent_again_by_hand(team, world, database, receiver):
    made = create(team.alice, receiver.url)
    receiver.answer(500)
    an_event(database)
    for _ in range(len(PAUSES) + 3):
        deliver(world)
        pass_pauses(database)
    (entry,) = log_of(team.alice, made["id"])
    assert (entry["state"], entry["attempts"]) == ("failed", len(PAUSES) + 1)
    assert len(receiver.received) == len(PAUSES) + 1
    assert team.alice.get(f"{BASE}/{made['id']}").json()["enabled"], "one day of trouble disables nothing"
    receiver.answer(200)
    again = team.alice.post(f"{BASE}/{made['id']}/deliveries/{entry['id']}/retry").json()
    assert again["state"] == "waiting"
    deliver(world)
    (entry,) = log_of(team.alice, made["id"])
    assert (entry["state"], receiver.received[-1].id) == ("delivered", entry["id"])


def test_what_is_sent_again_to_a_disabled_webhook_is_sent_once(team, world, database, receiver):
    made = create(team.alice, receiver.url)
    receiver.answer(500)
    an_event(database)
    assert team.alice.patch(f"{BASE}/{made['id']}", json={"enabled": False}).status_code == 200
    (entry,) = log_of(team.alice, made["id"])
    assert team.alice.post(f"{BASE}/{made['id']}/deliveries/{entry['id']}/retry").status_code == 200
    deliver(world)
    (entry,) = log_of(team.alice, made["id"])
    assert (entry["state"], entry["attempts"], len(receiver.received)) == ("failed", 1, 1)


@pytest.mark.both_databases
def test_a_receiver_that_is_gone_or_has_failed_for_days_is_disabled_and_says_why(team, world, database, receiver):
    gone, failing = create(team.alice, receiver.url), create(team.alice, receiver.url)
    with database.session() as session:
        session.execute(update(Webhook).values(enabled=Webhook.id == gone["id"]))
    receiver.answers = [(410, {}, b""), (500, {}, b"")]
    an_event(database)
    an_event(database)
    deliver(world)
    assert len(receiver.received) == 1, "nothing more is sent"
    shown = team.alice.get(f"{BASE}/{gone['id']}").json()
    assert (shown["enabled"], "410 Gone" in shown["disabled_because"]) == (False, True)
    assert {entry["state"] for entry in log_of(team.alice, gone["id"])} == {"failed"}
    team.alice.patch(f"{BASE}/{failing['id']}", json={"enabled": True})
    an_event(database)
    for age, enabled in ((timedelta(days=4), True), (timedelta(days=6), False)):
        with database.session() as session:
            hook = session.get(Webhook, failing["id"])
            hook.failing_since = now() - age
            row = session.scalar(select(WebhookDelivery).where(WebhookDelivery.webhook_id == failing["id"]))
            row.attempts, row.next_attempt_at, row.ended_at = len(PAUSES), LONG_AGO, None
        deliver(world)
        shown = team.alice.get(f"{BASE}/{failing['id']}").json()
        assert shown["enabled"] is enabled
    assert shown["disabled_because"] == "all deliveries have failed for 5 days"
    assert team.alice.patch(f"{BASE}/{failing['id']}", json={"enabled": True}).json()["disabled_because"] == ""


def test_retry_after_is_honoured_within_a_day():
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def pause(status: int, retry_after: str | None, attempts: int = 1) -> float:
        found = next_pause(attempts, Answer(status, b"", retry_after), moment)
        return found.total_seconds()

    assert pause(503, "120") == 120
    assert pause(429, "Sun, 01 Mar 2026 12:10:00 GMT") == 600
    assert pause(429, "999999999") == 86_400
    no_year = "Mon, 01 Jan 99999999999 00:00:00 GMT"
    unreadable = [(503, text) for text in ("soon", "-5", "1", "9" * 400, no_year)]
    for status, text in ((500, "120"), (503, None), *unreadable):
        assert 5 <= pause(status, text) <= 5.5, (status, text)
    assert next_pause(len(PAUSES) + 1, None, moment) is None
    longest = max(next_pause(number, None, moment) for number in range(1, len(PAUSES) + 1))
    assert longest < LONGEST_PAUSE, "else a delivery would count as one of a clock that was set back"


@pytest.mark.both_databases
def test_a_receiver_that_hangs_holds_up_no_other(team, world, database, receiver):
    with receiving() as slow:
        slow.hang = threading.Event()
        for _ in range(2):
            create(team.alice, slow.url)
        quick = create(team.alice, receiver.url)
        for number in range(8):
            an_event(database, number=number)
        world.reconciler.start()
        try:
            poll(lambda: len(receiver.received), lambda count: count == 8, 30)
            assert len(slow.received) == 2, "one request at a time for each webhook"
        finally:
            slow.hang.set()
            world.reconciler.stop()
        assert [entry["state"] for entry in log_of(team.alice, quick["id"])] == ["delivered"] * 8


def test_a_delivery_that_was_sent_but_not_written_down_is_sent_again_with_its_id(team, world, database, receiver):
    """As when the controller dies in between: at least once, and receivers can tell."""
    create(team.alice, receiver.url)
    an_event(database)
    deliver(world)
    with database.session() as session:
        session.execute(update(WebhookDelivery).values(attempts=0, ended_at=None, next_attempt_at=LONG_AGO))
    deliver(world)
    first, second = receiver.received
    assert first.id == second.id


def test_a_clock_that_was_set_back_holds_up_nothing(database):
    webhook_id = add_webhook(database)
    an_event(database)
    later = now() + timedelta(days=400)
    with database.session() as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=later))
    with database.read() as session:
        assert repository.due_webhooks(session, now(), LONGEST_PAUSE) == [webhook_id]
        assert repository.due_webhooks(session, later - timedelta(hours=1), LONGEST_PAUSE) == []


@pytest.mark.both_databases
def test_the_log_is_bounded(world, database):
    webhook_id = add_webhook(database)
    for number in range(6):
        an_event(database, number=number)
    old, *others, waiting = rows(database)
    with database.session() as session:
        ended = update(WebhookDelivery).where(WebhookDelivery.id != waiting.id)
        session.execute(ended.values(next_attempt_at=None, ended_at=now()))
        session.execute(update(WebhookDelivery).where(WebhookDelivery.id == old.id).values(ended_at=LONG_AGO))
    world.reconciler.removals.run_all([Work.SWEEP_DELIVERIES])
    assert old.id not in {row.id for row in rows(database)}
    with database.session() as session:
        assert repository.forget(session, LONG_AGO, 2) == 2
    assert [row.id for row in rows(database)] == [*(row.id for row in others[-2:]), waiting.id]
    assert {row.webhook_id for row in rows(database)} == {webhook_id}


def test_what_waits_is_not_sent_to_those_who_see_the_backbone_no_more(team, world, registry, receiver):
    registry.add("digits")
    made = create(team.bob, receiver.url)
    for alias in ("best", "good"):
        team.alice.put(f"/v1/backbones/digits/aliases/{alias}", json={"version": 1})
    team.alice.patch("/v1/backbones/digits", json={"visibility": "owners"})
    deliver(world)
    assert receiver.received == []
    assert log_of(team.bob, made["id"]) == [], "nor shown any more"
    entries = log_of(team.admin, made["id"])
    assert [entry["state"] for entry in entries] == ["failed", "failed"]
    assert "does not see the backbone any more" in entries[0]["message"]
    path = f"/v1/webhooks/{made['id']}/deliveries/{entries[0]['id']}"
    problem(team.bob.get(path), 404, "delivery_not_found")
    problem(team.bob.post(f"{path}/retry"), 404, "delivery_not_found")
    team.alice.patch("/v1/backbones/digits", json={"visibility": "readers", "readers": ["bob"]})
    assert team.bob.post(f"{path}/retry").status_code == 200
    deliver(world)
    assert len(receiver.received) == 1


def test_an_operators_webhook_hears_of_private_backbones_as_long_as_a_token_has_that_role(
    team,
    world,
    registry,
    database,
    receiver,
):
    registry.add("digits")
    team.alice.patch("/v1/backbones/digits", json={"visibility": "owners"})
    create(team.operator, receiver.url)
    team.alice.put("/v1/backbones/digits/aliases/best", json={"version": 1})
    ensure_token(database, "a-submitting-token-of-operator", "operator", Role.SUBMITTER)
    receiver.answers = [(500, {}, b"")]
    deliver(world)
    assert len(receiver.received) == 1
    with database.session() as session:
        session.execute(update(Token).where(Token.owner == "operator", Token.role == "operator").values(role="viewer"))
    pass_pauses(database)
    deliver(world)
    assert len(receiver.received) == 1


# --- over REST --------------------------------------------------------------------------------------------------------


def test_the_secret_is_shown_once_and_long_enough(team):
    made = create(team.alice, PUBLIC)
    assert made["secret"].startswith("whsec_")
    assert 24 <= len(base64.b64decode(made["secret"].removeprefix("whsec_"))) <= 64
    for text in (
        team.alice.get(BASE).text,
        team.alice.get(f"{BASE}/{made['id']}").text,
        team.alice.patch(f"{BASE}/{made['id']}", json={"description": "x"}).text,
        team.admin.get("/v1/audit").text,
    ):
        assert made["secret"] not in text
        assert "whsec_" not in text


def test_for_a_day_after_a_rotation_deliveries_have_both_signatures(team, world, database, receiver):
    made = create(team.alice, receiver.url)
    rotated = team.alice.post(f"{BASE}/{made['id']}/rotate").json()
    assert rotated["secret"] != made["secret"]
    an_event(database)
    deliver(world)
    for secret in (made["secret"], rotated["secret"]):
        assert receiver.received[0].verified(secret)
    with database.session() as session:
        session.execute(update(Webhook).values(previous_until=now() - timedelta(seconds=1)))
    an_event(database)
    deliver(world)
    assert receiver.received[1].verified(rotated["secret"])
    with pytest.raises(WebhookVerificationError):
        receiver.received[1].verified(made["secret"])


def test_a_test_is_sent_once_also_to_a_disabled_webhook(team, world, receiver):
    made = create(team.alice, receiver.url, enabled=False, events=["version.deleted"])
    receiver.answers = [(200, {}, b"thanks"), (500, {}, b"")]
    for state in ("delivered", "failed"):
        sent = team.alice.post(f"{BASE}/{made['id']}/test").json()
        assert (sent["type"], sent["state"]) == ("webhook.test", "waiting")
        deliver(world)
        found = team.alice.get(f"{BASE}/{made['id']}/deliveries/{sent['id']}").json()
        assert (found["state"], found["attempts"]) == (state, 1)
    assert receiver.received[0].verified(made["secret"])["type"] == "webhook.test"
    assert team.alice.get(f"{BASE}/{made['id']}").json()["failing_since"] is None


def test_what_waits_when_a_webhook_is_disabled_fails_and_says_why(team, world, database, receiver):
    made = create(team.alice, receiver.url)
    an_event(database)
    team.alice.patch(f"{BASE}/{made['id']}", json={"enabled": False})
    an_event(database)
    deliver(world)
    assert receiver.received == []
    (entry,) = log_of(team.alice, made["id"])
    assert (entry["state"], "disabled" in entry["message"]) == ("failed", True)


def test_a_webhook_is_changed_and_deleted_with_its_deliveries(team, database):
    made = create(team.alice, PUBLIC, events=["alias.moved"], backbones=["digits"], description="the CI")
    an_event(database)
    path = f"{BASE}/{made['id']}"
    changed = team.alice.patch(path, json={"events": None, "backbones": None, "description": ""}).json()
    assert (changed["events"], changed["backbones"], changed["description"]) == (None, None, "")
    for body in ({"url": None}, {"enabled": None}, {"events": []}, {"events": ["job.ended"]}, {"secret": "whsec_x"}):
        problem(team.alice.patch(path, json=body), 422, "spec_invalid")
    assert team.alice.delete(path).status_code == 200
    problem(team.alice.get(path), 404, "webhook_not_found")
    assert rows(database) == []


def test_lists_of_webhooks_and_deliveries_come_in_pages(team, database):
    ids = [create(team.alice, PUBLIC)["id"] for _ in range(3)]
    for number in range(3):
        an_event(database, number=number)
    for path in (BASE, f"{BASE}/{ids[0]}/deliveries"):
        found, cursor = [], None
        while True:
            page = team.alice.get(path, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
            found += [item["id"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert len(found) == len(set(found)) == 3, path
        problem(team.alice.get(path, params={"cursor": "x"}), 422, "parameter_invalid")


def test_ones_webhooks_are_seen_and_changed_by_oneself_and_admins(team, database):
    made = create(team.alice, PUBLIC)
    path = f"{BASE}/{made['id']}"
    an_event(database)
    delivery = f"{path}/deliveries/{rows(database)[0].id}"
    for other in (team.bob, team.operator):
        problem(other.get(path), 404, "webhook_not_found")
        problem(other.get(f"{path}/deliveries"), 404, "webhook_not_found")
        problem(other.get(delivery), 404, "webhook_not_found")
        problem(other.patch(path, json={"enabled": False}), 404, "webhook_not_found")
        assert other.get(BASE).json()["items"] == []
        mine = create(other, PUBLIC)
        problem(other.get(delivery.replace(made["id"], mine["id"])), 404, "delivery_not_found")
        problem(other.post(BASE, json={"url": PUBLIC, "owner": "alice"}), 403, "forbidden")
    problem(team.viewer.get(BASE), 403, "forbidden")
    problem(team.viewer.post(BASE, json={"url": PUBLIC}), 403, "forbidden")
    assert {item["owner"] for item in team.admin.get(BASE).json()["items"]} == {"alice", "bob", "operator"}
    assert len(team.admin.get(BASE, params={"owner": "alice"}).json()["items"]) == 1
    assert create(team.admin, PUBLIC, owner="alice")["owner"] == "alice"
    assert team.admin.delete(path).status_code == 200


def test_nobody_has_more_than_fifty(team, database):
    for _ in range(50):
        add_webhook(database)
    problem(team.alice.post(BASE, json={"url": PUBLIC}), 409, "too_many_webhooks")
    create(team.bob, PUBLIC)


def test_changes_are_audited_without_what_may_be_secret(team, database):
    url = "https://93.184.216.34/services/T0/secret-of-the-receiver"
    made = create(team.alice, url)
    path = f"{BASE}/{made['id']}"
    team.alice.patch(path, json={"url": url + "-2", "enabled": False})
    team.alice.post(f"{path}/rotate")
    sent = team.alice.post(f"{path}/test").json()
    team.alice.post(f"{path}/deliveries/{sent['id']}/retry")
    team.alice.delete(path)
    with database.read() as session:
        entries = list(session.scalars(select(Audit).where(Audit.target == made["id"]).order_by(Audit.id)))
    actions = ["create", "change", "rotate", "test", "retry", "delete"]
    assert [entry.action for entry in entries] == [f"webhook.{action}" for action in actions]
    assert "secret-of-the-receiver" not in json.dumps([entry.detail for entry in entries])
    assert entries[0].detail["url"] == "93.184.216.34"


def test_an_address_that_is_not_public_is_refused_with_the_setting_that_allows_it(clients):
    for url, part in (
        ("http://10.0.0.7/hook", "RCMAE_WEBHOOK_PRIVATE_NETWORKS"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("http://93.184.216.34/hook", "use https"),
        ("https://user:pass@93.184.216.34/hook", "leave out the user"),
        ("https://no-such-host.invalid/hook", "cannot be resolved"),
        ("ftp://93.184.216.34/hook", "https://ci.example.org"),
        ("https://93.184.216.34/hook#part", "after #"),
        ("https://", "https://ci.example.org"),
        ("https://[::1/", "no URL"),
    ):
        found = problem(clients.alice.post(BASE, json={"url": url}), 422, "spec_invalid")
        assert part in found["detail"], found["detail"]
        assert found["problems"][0]["field"] == "url"
    made = create(clients.alice, PUBLIC)
    problem(clients.alice.patch(f"{BASE}/{made['id']}", json={"url": "http://10.0.0.7/"}), 422, "spec_invalid")


# --- the page about them ----------------------------------------------------------------------------------------------


PAGE = (Path(service.__file__).parent / "webhooks.md").read_text()


def test_the_receiver_of_the_page_takes_what_is_signed_and_nothing_else(team, world, monkeypatch, capsys):
    (source,) = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    found: dict[str, Any] = {}
    exec(source, found)
    with HTTPServer(("127.0.0.1", 0), found["Receiver"]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        made = create(team.alice, f"http://127.0.0.1:{server.server_port}/")
        for secret, code in ((made["secret"], 204), ("whsec_" + base64.b64encode(b"x" * 24).decode(), 400)):
            monkeypatch.setenv("WEBHOOK_SECRET", secret)
            sent = team.alice.post(f"{BASE}/{made['id']}/test").json()
            deliver(world)
            assert team.alice.get(f"{BASE}/{made['id']}/deliveries/{sent['id']}").json()["response_code"] == code
            assert (f"{sent['id']} webhook.test" in capsys.readouterr().out) == (code == 204)
        server.shutdown()
        thread.join()


def test_the_page_shows_every_event_with_its_fields(team, registry, database):
    registry.add("digits", 1)
    add_webhook(database)
    registry.add("digits", 2)
    team.alice.put("/v1/backbones/digits/aliases/champion", json={"version": 1})
    team.alice.delete("/v1/backbones/digits/versions/2")
    examples = [json.loads(text) for text in re.findall(r"(?s)```json\n(.*?)```", PAGE)]
    assert [example["type"] for example in examples] == list(EventType)
    shown = {example["type"]: list(example["data"]) for example in examples}
    assert shown == {row.type: list(row.data) for row in rows(database)}
