"""A job's stream: server-sent events as typed updates, over every break of the connection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import httpx
from pydantic import ValidationError

from service.client.errors import ApiError, ClientError, Patience
from service.jobs.schemas import EventView, JobView, LogBatch, MetricsTick

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


class Frame(NamedTuple):
    """One server-sent event."""

    event: str
    data: str
    id: str


class Stream:
    """One job's stream as an iterator; see `Client.stream`."""

    def __init__(self, http: httpx.Client, path: str, params: Mapping[str, Any], patience: Patience) -> None:
        self._http, self._path, self._params, self._patience = http, path, params, patience
        self._last = ""
        """Id of the last event that came: what the next connection goes on from."""

    def __iter__(self) -> Iterator[Update]:
        while True:
            try:
                for frame in self._connection():
                    self._last = frame.id or self._last
                    if frame.event == END:
                        return
                    if frame.event in UPDATES:  # a newer service may tell more
                        yield _read(frame)
            except (httpx.TransportError, ApiError) as error:
                self._patience.wait(error)

    def _connection(self) -> Iterator[Frame]:
        """The events of one connection; raises how it ended, which is always before the stream's own end."""
        headers = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if self._last:
            headers["Last-Event-ID"] = self._last
        read = httpx.Timeout(self._http.timeout.connect, read=SILENCE_S)
        with self._http.stream("GET", self._path, params=self._params, headers=headers, timeout=read) as response:
            if response.is_error:
                response.read()
                raise ApiError.of(response)
            if not response.headers.get("Content-Type", "").startswith(MEDIA_TYPE):
                raise _no_stream(response)
            for frame in frames(response.iter_bytes()):
                self._patience.renew()
                if frame:
                    yield frame
        raise httpx.RemoteProtocolError("the stream was closed before its end")


def _no_stream(response: httpx.Response) -> ClientError:
    kind = response.headers.get("Content-Type") or "nothing"
    return ClientError(
        f"{response.url.copy_with(query=None)} answered {kind} in place of {MEDIA_TYPE}: is this the service's "
        "address, and does a proxy before it let streams through?"
    )


def _read(frame: Frame) -> Update:
    try:
        return UPDATES[frame.event].model_validate_json(frame.data)
    except ValidationError as error:
        raise ClientError(f"the service sent a {frame.event!r} that this client cannot read: {error}") from error


def frames(chunks: Iterable[bytes]) -> Iterator[Frame | None]:
    """Server-sent events, as WHATWG defines them, as soon as their bytes have come; None for each comment.

    What stands after the last empty line was cut off, and is no event.
    """
    event, data, last_id = "", list[str](), ""
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Frame(event or "message", "\n".join(data), last_id)
            event, data = "", []
        elif not name:
            yield None
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, which end in LF, CR or CR LF; a chunk may end anywhere, within a character too."""
    rest, after_cr, first = b"", False, True
    for chunk in chunks:
        if not chunk:
            continue
        begin = 1 if after_cr and chunk.startswith(b"\n") else 0  # the second half of a CR LF
        after_cr = chunk.endswith(b"\r")
        first_piece, *others = re.split(rb"\r\n|\r|\n", chunk[begin:])
        *whole, rest = (rest + first_piece, *others)
        for line in whole:
            text = line.decode(errors="replace")
            yield text.removeprefix("\ufeff") if first else text
            first = False
