"""The reconciler in a process of its own: `rcmae controller`."""

from __future__ import annotations

import signal
from importlib.metadata import version
from queue import SimpleQueue

import structlog

from service.app import assemble, close, configure_logs
from service.client.errors import ClientError
from service.settings import Settings

log = structlog.get_logger()


class ControllerRefused(ClientError):
    """This process cannot be the controller; the text says why and what to do."""


def run(settings: Settings) -> None:
    """Be the controller, or stand by, until SIGTERM or SIGINT; then end the round and give the lease back.

    Raises `DatabaseUnreachable` and `DatabaseUrlError` at the start, and `ControllerRefused`.
    """
    configure_logs()
    ended: SimpleQueue[str | ControllerRefused] = SimpleQueue()  # a signal's handler may put into it at any moment
    parts = assemble(settings, refused=lambda why: ended.put(ControllerRefused(why)))
    parts.database.migrate()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: ended.put(signal.Signals(number).name))
    parts.reconciler.start()
    log.info("controller_started", version=version("rcmae"), database=parts.database.shown)
    why = ended.get()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    log.info("controller_stops", reason=str(why))
    parts.reconciler.stop()
    close(parts)
    if isinstance(why, ControllerRefused):
        raise why
