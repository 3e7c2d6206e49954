"""A stored file as an HTTP answer: whole or one range of it, streamed in bounded memory (RFC 9110, section 14)."""

from __future__ import annotations

import re
from itertools import chain

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from service.adapters.storage import StoredFile

MEDIA_TYPE = "application/octet-stream"


def answer(request: Request, file: StoredFile, etag: str) -> Response:
    """200 with all of it; 206 or 416 for a `Range` of one part, unless `If-Range` names another version.

    A `Range` of several parts, or one that is none, is passed over, as the standard allows. HEAD gets the headers.
    """
    start, stop, status = 0, file.size, 200
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "").replace(" ", ""))
    first, last = wanted.groups() if wanted else ("", "")
    if (first or last) and request.headers.get("If-Range", etag) == etag:
        start, stop = _part(first, last, file.size)
        if start >= stop:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{file.size}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=MEDIA_TYPE)
    pieces = file.pieces(start, stop)
    first_piece = next(pieces, b"")  # a storage that does not answer is told as such, not as a body that ends at once
    return StreamingResponse(chain([first_piece], pieces), status, headers, MEDIA_TYPE)


def _part(first: str, last: str, size: int) -> tuple[int, int]:
    """From where to before where; empty where the range lies outside."""
    if not first:  # the last so many bytes
        return max(0, size - int(last)), size
    start, stop = int(first), min(int(last) + 1, size) if last else size
    return (start, stop) if start < stop else (size, size)
