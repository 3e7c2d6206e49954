"""The reconciler in a process of its own: `rcmae controller`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from queue import SimpleQueue

import structlog
from prometheus_client import start_http_server

from service.app import assemble, close, configure_logs
from service.client.errors import ClientError
from service.context.app_state import AppState
from service.controller.loop import Reconciler
from service.counters import registry_of
from service.observability.collector import ServiceCollector
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
    parts, reconciler = assemble(settings, refused=lambda why: ended.put(ControllerRefused(why)))
    parts.database.migrate()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: ended.put(signal.Signals(number).name))
    with _metrics(parts, reconciler):
        reconciler.start()
        log.info("controller_started", version=version("rcmae"), database=parts.database.masked_url)
        why = ended.get()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        log.info("controller_stops", reason=str(why))
        reconciler.stop()
    close(parts)
    if isinstance(why, ControllerRefused):
        raise why


@contextmanager
def _metrics(parts: AppState, reconciler: Reconciler) -> Iterator[None]:
    """Answer `/metrics` where the settings say so; raises `ControllerRefused` where that cannot be had."""
    host, port = parts.settings.metrics_host, parts.settings.metrics_port
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, host, registry_of(ServiceCollector(parts, reconciler)))
    except OSError as error:
        text = f"metrics cannot be answered at {host}:{port}: {error}. Change RCMAE_METRICS_PORT or RCMAE_METRICS_HOST"
        raise ControllerRefused(text) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
