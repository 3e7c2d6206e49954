"""Stored bytes as an HTTP response: all of them or one range, streamed in bounded memory (RFC 9110, ch. 13, 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final, Protocol

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

MEDIA_TYPE = "application/octet-stream"
THREADS: Final = 16
"""Threads that read for downloads."""
RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class Downloads:
    """What all downloads of a process share."""

    def __init__(self) -> None:
        self.limiter = CapacityLimiter(THREADS)
        """Keeps the threads that read for downloads apart from those of other requests."""


class ByteSource(Protocol):
    """Bytes that can be read in any order: one file, or several as one archive."""

    @property
    def size(self) -> int: ...

    def pieces(self, start: int, stop: int) -> Iterator[bytes]: ...


def file_response(
    request: Request,
    file: ByteSource,
    etag: str,
    media_type: str = MEDIA_TYPE,
    extra_headers: Mapping[str, str] | None = None,
) -> Response:
    """200 with all bytes; 304 if `If-None-Match` names this content; 206 or 416 for a `Range` of one part, unless
    `If-Range` names other content.

    A malformed `Range`, or one of several parts, is ignored, as the standard allows. HEAD gets only the headers.
    """
    start, stop, status = 0, file.size, 200
    headers = {"ETag": etag, "Accept-Ranges": "bytes", **(extra_headers or {})}
    if not_modified(request, etag):
        return Response(status_code=304, headers=headers)
    requested = RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    first, last = requested.groups() if requested else ("", "")
    if (first or last) and request.headers.get("If-Range", etag) == etag:
        start, stop = _bounds(first, last, file.size)
        if start >= stop:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{file.size}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return _FileResponse(file.pieces(start, stop), request.app.state.downloads, status, headers, media_type)


class _FileResponse(StreamingResponse):
    """Reads one piece at a time, and the first one before the response begins: if the storage is unreachable, the
    response is an error instead of a truncated body.
    """

    def __init__(
        self, pieces: Iterator[bytes], downloads: Downloads, status: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(self._all(), status, headers, media_type)
        self._pieces, self._limiter = pieces, downloads.limiter
        self._first: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._first = await self._read()
        await super().__call__(scope, receive, send)

    async def _all(self) -> AsyncIterator[bytes]:
        """All pieces. It keeps none after yielding it."""
        piece, self._first = self._first, None
        while piece is not None:
            yield piece
            del piece
            piece = await self._read()

    async def _read(self) -> bytes | None:
        return await to_thread.run_sync(next, self._pieces, None, limiter=self._limiter)


def not_modified(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` says that the client has this content already."""
    condition = request.headers.get("If-None-Match", "")
    return condition.strip() == "*" or etag in re.findall(r'"[^"]*"', condition)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """The start and the exclusive end of a range; equal if it lies outside the file."""
    if not first:  # the number of bytes at the end
        return max(0, size - int(last)), size
    start, stop = int(first), min(int(last) + 1, size) if last else size
    return (start, stop) if start < stop else (size, size)
