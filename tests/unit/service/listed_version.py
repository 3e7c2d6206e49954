"""A version of a backbone on a scripted server, which answers as the service does."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from scripted_server import Answer, Asked, ScriptedServer

WEIGHTS = bytes(range(256)) * 2000
CONFIG = b"{}"
FILES = {"README.md": b"# card", "hf/config.json": CONFIG, "hf/model.safetensors": WEIGHTS, "timm/config.json": b"{1}"}
BASE = "/v1/backbones/digits/versions/3"
HEAVY = f"{BASE}/files/hf/model.safetensors"
DATE = "2026-01-02T03:04:05Z"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part_of(data: bytes, asked: Asked, cut_after: int | None = None) -> Answer:
    """Answers as the service does: a range where one is asked for and the file is still that one."""
    etag, wanted = f'"{sha256(data)}"', re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
    if not wanted or asked.headers.get("if-range", etag) != etag:
        return Answer(200, data, {"ETag": etag}, cut_after)
    start = int(wanted[1])
    if start >= len(data):
        return Answer(416, b"", {"ETag": etag, "Content-Range": f"bytes */{len(data)}"})
    told = {"ETag": etag, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
    return Answer(206, data[start:], told, cut_after)


def serve(server: ScriptedServer, contents: dict[str, bytes] = FILES, **over: Any) -> None:
    """A version with these files."""
    listed = [
        {"path": path, "size": len(data), "sha256": sha256(data), "url": f"{BASE}/files/{path}"}
        for path, data in contents.items()
    ]
    body = {"name": "digits", "version": 3, "created_at": DATE, "job_id": "job-1", "tags": {}, "files": listed,
            "commit": "c" * 40, "formats": ["timm", "hf"], "trained_by": "job-1"} | over  # fmt: skip
    for reference in ("3", "main", "best"):
        server.on("GET", f"/v1/backbones/digits/versions/{reference}", Answer(200, body))
    for path, data in contents.items():
        server.routes["GET", f"{BASE}/files/{path}"] = lambda asked, data=data: part_of(data, asked)
