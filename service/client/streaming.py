"""A job's stream: server-sent events as typed updates, over every break of the connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import ValidationError

from service.client.connection import ANSWER_BYTES, Connection, must_be_plain
from service.client.errors import ApiError, ClientError, Patience, UnacceptableAnswer
from service.jobs.output_schemas import LogBatch, MetricsTick
from service.jobs.schemas import EventView, JobView

Update = JobView | EventView | MetricsTick | LogBatch
"""The job as it is now, something that happened to it, its newest metrics, or lines of its logs."""

UPDATES: Final[Mapping[str, type[Update]]] = {
    "job": JobView,
    "event": EventView,
    "metrics": MetricsTick,
    "log": LogBatch,
}
END: Final = "end"
MEDIA_TYPE: Final = "text/event-stream"
SILENCE_S: Final = 45.0
"""Without a byte, after which a connection counts as dead: the service sends a comment every 15 s."""


class Stream:
    """One job's stream as an iterator; see `Client.stream`."""

    def __init__(self, service: Connection, path: str, params: Mapping[str, Any], patience: Patience) -> None:
        self._service, self._path, self._params, self._patience = service, path, params, patience
        self._last_id = ""
        """Of the last event received; the next connection continues after it."""
        self._unread = 0
        """Bytes received since the last event."""

    def __iter__(self) -> Iterator[Update]:
        while True:
            try:
                for event in self._connection():
                    self._last_id = event.id or self._last_id
                    if event.event == END:
                        return
                    if event.event in UPDATES:  # a newer service may send others
                        yield _read(event)
            except (httpx.TransportError, ApiError) as error:
                self._patience.wait(error)

    def _connection(self) -> Iterator[ServerSentEvent]:
        """The events of one connection. It never just ends: raises the error that broke it off."""
        headers = {"Accept": MEDIA_TYPE, "Cache-Control": "no-store"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        self._unread = 0
        with self._service.stream(
            "GET", self._path, params=self._params, headers=headers, read_timeout_s=SILENCE_S
        ) as response:
            must_be_plain(response)
            content_type = response.headers.get("Content-Type", "")
            if not content_type.startswith(MEDIA_TYPE):
                raise _no_stream(response)
            watched = httpx.Response(200, headers={"Content-Type": content_type}, content=self._watched(response))
            for event in EventSource(watched).iter_sse():
                self._unread = 0
                yield event
        raise httpx.RemoteProtocolError("the stream was closed before its end")

    def _watched(self, response: httpx.Response) -> Iterator[bytes]:
        """The bytes as they come. Any of them, comments too, shows that the service is alive."""
        for chunk in response.iter_raw():
            self._unread += len(chunk)
            if self._unread > ANSWER_BYTES:
                raise UnacceptableAnswer(f"the service sent more than {ANSWER_BYTES} bytes without an event")
            self._patience.renew()
            yield chunk


def _no_stream(response: httpx.Response) -> ClientError:
    kind = response.headers.get("Content-Type") or "nothing"
    return ClientError(
        f"{response.url.copy_with(query=None)} answered {kind} in place of {MEDIA_TYPE}: is this the service's "
        "address, and does a proxy before it let streams through?"
    )


def _read(event: ServerSentEvent) -> Update:
    try:
        return UPDATES[event.event].model_validate_json(event.data)
    except ValidationError as error:
        raise ClientError(f"the service sent a {event.event!r} that this client cannot read: {error}") from error
