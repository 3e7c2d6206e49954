"""What the backbones' routes give. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime

from service.jobs.schemas import View


class FileView(View):
    path: str
    """Below the version's folder, for example `hf/model.safetensors`."""
    size: int
    """Bytes."""
    sha256: str
    url: str
    """Where the file is, below the server's address."""


class VersionView(View):
    name: str
    version: int
    created_at: datetime
    job_id: str
    """The job that pretrained it."""
    tags: dict[str, str]
    files: list[FileView]


class BackboneView(View):
    name: str
    latest_version: int
    versions: list[int]
    updated_at: datetime
