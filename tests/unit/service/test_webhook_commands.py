"""Webhooks on the command line and in the client, against the service itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from conftest import token_of
from fastapi import FastAPI
from live import poll
from service_world import World
from test_cli import run
from webhook_receiver import Receiver, emit_about, receiving

from service.app import attach
from service.client.errors import ApiError
from service.client.sdk import Client
from service.events.types import EventType
from service.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    changed = {"webhook_private_networks": "127.0.0.1", "poll_interval_s": 0.1}
    return Settings.model_validate(settings.model_dump() | changed)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def url(routes: FastAPI, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The service with its controller at work; the command line is Alice's."""
    attach(routes, world.app_state, None)
    server = uvicorn.Server(uvicorn.Config(routes, "127.0.0.1", 0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    poll(lambda: server.started, bool, 30)
    world.reconciler.start()
    (port,) = (socket.getsockname()[1] for each in server.servers for socket in each.sockets)
    monkeypatch.setenv("RCMAE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("RCMAE_TOKEN", token_of("alice"))
    yield f"http://127.0.0.1:{port}"
    world.reconciler.stop()
    server.should_exit = True
    thread.join()


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command has printed, without the log of the service in the same process."""
    lines = capsys.readouterr().out.splitlines()
    return "\n".join(line for line in lines if not line.startswith('{"'))


@pytest.mark.usefixtures("url")
def test_a_webhook_is_made_tested_looked_at_and_deleted_by_command(world, receiver, capsys):
    arguments = ("--event", "alias.moved", "--backbone", "digits", "--description", "the CI")
    assert run("webhooks", "create", receiver.url, *arguments) == 0
    made = capsys.readouterr()
    secret = next(line for line in made.out.splitlines() if not line.startswith('{"'))
    webhook_id = made.err.split()[0]
    assert secret.startswith("whsec_"), "and nothing else is on standard output"
    assert run("webhooks", "test", webhook_id) == 0
    assert "delivered" in printed(capsys)
    assert receiver.received[0].verified(secret)["data"]["actor"] == "alice"
    receiver.answer(500)
    assert run("webhooks", "test", webhook_id, "--json") == 1
    failed = json.loads(printed(capsys))
    assert (failed["state"], failed["response_code"]) == ("failed", 500)
    receiver.answer(200)
    assert run("webhooks", "retry", webhook_id, failed["id"]) == 0
    with world.database.session() as session:
        emit_about(session, EventType.ALIAS_MOVED, {"name": "digits"}, "digits")
    poll(lambda: len(receiver.received), lambda count: count == 4, 30)
    capsys.readouterr()
    assert run("webhooks", "deliveries", webhook_id, "--json") == 0
    told = [entry["type"] for entry in json.loads(printed(capsys))]
    assert sorted(told) == ["alias.moved", "webhook.test", "webhook.test"]
    for command in (("list",), ("show", webhook_id), ("deliveries", webhook_id)):
        assert run("webhooks", *command) == 0
        shown = printed(capsys)
        assert "alias.moved" in shown
        assert secret not in shown
    assert run("webhooks", "disable", webhook_id) == 0
    assert "disabled" in printed(capsys)
    assert run("webhooks", "enable", webhook_id, "--json") == 0
    assert json.loads(printed(capsys))["enabled"] is True
    assert run("webhooks", "rotate", webhook_id) == 0
    assert printed(capsys).strip() not in {"", secret}
    assert run("webhooks", "delete", webhook_id) == 0
    assert run("webhooks", "show", webhook_id) == 1
    assert "webhook_not_found" in capsys.readouterr().err


@pytest.mark.usefixtures("url")
def test_a_receiver_that_is_not_allowed_is_refused_at_its_field(capsys):
    assert run("webhooks", "create", "http://10.0.0.7/hook") == 2
    assert "RCMAE_WEBHOOK_PRIVATE_NETWORKS" in " ".join(capsys.readouterr().err.split())
    assert run("webhooks", "create", "https://93.184.216.34/", "--event", "job.ended") == 2


def test_the_client_does_the_same(url, receiver):
    with Client(url, token_of("alice")) as client:
        made = client.create_webhook(receiver.url, events=[EventType.VERSION_DELETED], backbones=["digits"])
        assert [view.id for view in client.webhooks()] == [made.id]
        changed = client.change_webhook(made.id, events=None, description="all of digits")
        assert (changed.events, changed.backbones, changed.description) == (None, ["digits"], "all of digits")
        sent = client.test_webhook(made.id)
        assert (sent.state, sent.attempts, sent.id) == ("delivered", 1, receiver.received[0].id)
        assert [entry.id for entry in client.webhook_deliveries(made.id, page_size=1)] == [sent.id]
        assert client.rotate_webhook(made.id).secret != made.secret
        client.delete_webhook(made.id)
        with pytest.raises(ApiError, match="webhook"):
            client.webhook(made.id)
