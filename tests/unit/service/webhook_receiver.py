"""A receiver of webhooks on this machine, and what tests do with the controller's deliveries."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from service_world import World
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from standardwebhooks import Webhook as Verifier

from service.auth.caller import ensure_token
from service.auth.scopes import Role
from service.db.database import Database
from service.db.tables import RegisteredBackbone, Webhook, WebhookDelivery
from service.events.outbox import emit
from service.events.types import EventType
from service.jobs.work import Work

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """The message, by the library that receivers use. Raises `WebhookVerificationError`."""
        return Verifier(secret).verify(self.body, self.headers)


@dataclass
class Receiver:
    """Answers with the next of ``answers``, or with the last of them: a status, headers and a body."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=lambda: [(204, {}, b"")])
    received: list[Received] = field(default_factory=list)
    hang: threading.Event | None = None
    """Requests wait for it, where it is given."""

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.answers = [(status, headers or {}, body)]


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.received.append(Received({name.lower(): value for name, value in self.headers.items()}, body))
            if receiver.hang:
                receiver.hang.wait(60)
            answers = receiver.answers
            status, headers, content = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: the test says what came."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        if receiver.hang:
            receiver.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()


def deliver(world: World) -> None:
    """One turn of the controller's workers over what is due."""
    world.reconciler.removals.run_all([Work.DELIVER])


def pass_pauses(database: Database) -> None:
    """As if the pauses of all deliveries that wait had passed."""
    row = WebhookDelivery
    with database.session() as session:
        session.execute(update(row).where(row.next_attempt_at.is_not(None)).values(next_attempt_at=LONG_AGO))


def rows(database: Database) -> list[WebhookDelivery]:
    """All deliveries, the oldest first."""
    with database.read() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id)))


def emit_about(session: Session, event: EventType, data: Mapping[str, Any], backbone: str) -> None:
    """An event about a backbone of alice's that is open to all."""
    session.merge(RegisteredBackbone(name=backbone, owner="alice", created_at=LONG_AGO))
    session.flush()
    emit(session, event, data, backbone=backbone)


def add_webhook(database: Database, url: str = "https://93.184.216.34/hook", **fields: Any) -> str:
    """A webhook straight in the database, of somebody who may have one."""
    values = {"owner": "alice", "secret": "whsec_" + "c2VjcmV0" * 5, "url": url} | fields
    ensure_token(database, f"token-for-webhooks-of-{values['owner']}", values["owner"], Role.SUBMITTER)
    with database.session() as session:
        webhook = Webhook(**values)
        session.add(webhook)
        session.flush()
        return webhook.id
