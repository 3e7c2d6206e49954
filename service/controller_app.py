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
    """This process may not be the controller. The text says why and what to do."""


def run(settings: Settings) -> None:
    """Run as the controller or its standby until SIGTERM or SIGINT; then finish the round and release the lease.

    Raises `DatabaseUnreachable` and `DatabaseUrlError` at the start, and `ControllerRefused`.
    """
    configure_logs()
    ended: SimpleQueue[str | ControllerRefused] = SimpleQueue()  # reentrant, so signal handlers may put into it
    state, reconciler = assemble(settings, refused=lambda why: ended.put(ControllerRefused(why)))
    state.database.migrate()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: ended.put(signal.Signals(number).name))
    with _metrics(state, reconciler):
        reconciler.start()
        log.info("controller_started", version=version("rcmae"), database=state.database.masked_url)
        reason = ended.get()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        log.info("controller_stops", reason=str(reason))
        reconciler.stop()
    close(state)
    if isinstance(reason, ControllerRefused):
        raise reason


@contextmanager
def _metrics(state: AppState, reconciler: Reconciler) -> Iterator[None]:
    """Serve `/metrics` if the settings give a port. Raises `ControllerRefused` if the port cannot be opened."""
    host, port = state.settings.metrics_host, state.settings.metrics_port
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, host, registry_of(ServiceCollector(state, reconciler)))
    except OSError as error:
        text = f"cannot serve metrics at {host}:{port}: {error}. Change RCMAE_METRICS_PORT or RCMAE_METRICS_HOST"
        raise ControllerRefused(text) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
