"""Stored bytes as an HTTP answer: whole or one range of them, streamed in bounded memory (RFC 9110, ch. 13, 14)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

MEDIA_TYPE = "application/octet-stream"
RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class Stored(Protocol):
    """Bytes that are there: a file's, or those of several."""

    @property
    def size(self) -> int: ...

    def pieces(self, start: int, stop: int) -> Iterator[bytes]: ...


def answer(
    request: Request, file: Stored, etag: str, media_type: str = MEDIA_TYPE, further: Mapping[str, str] | None = None
) -> Response:
    """200 with all of it; 304 where `If-None-Match` has it already; 206 or 416 for a `Range` of one part, unless
    `If-Range` names another version.

    A `Range` of several parts, or one that is none, is passed over, as the standard allows. HEAD gets the headers.
    """
    start, stop, status = 0, file.size, 200
    headers = {"ETag": etag, "Accept-Ranges": "bytes", **(further or {})}
    if unchanged(request, etag):
        return Response(status_code=304, headers=headers)
    wanted = RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    first, last = wanted.groups() if wanted else ("", "")
    if (first or last) and request.headers.get("If-Range", etag) == etag:
        start, stop = _part(first, last, file.size)
        if start >= stop:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{file.size}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    pieces = _begun(file.pieces(start, stop))
    next(pieces)  # a storage that does not answer is told as such, not as a body that ends at once
    return StreamingResponse(pieces, status, headers, media_type)


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Nothing, and then the pieces: the first is read by then, and not kept longer than any other."""
    first = next(pieces, b"")
    yield b""
    yield first
    del first
    yield from pieces


def unchanged(request: Request, etag: str) -> bool:
    """Whether who asks has this content already, and says so."""
    known = request.headers.get("If-None-Match", "")
    return known.strip() == "*" or etag in re.findall(r'"[^"]*"', known)


def _part(first: str, last: str, size: int) -> tuple[int, int]:
    """From where to before where; empty where the range lies outside."""
    if not first:  # the last so many bytes
        return max(0, size - int(last)), size
    start, stop = int(first), min(int(last) + 1, size) if last else size
    return (start, stop) if start < stop else (size, size)
