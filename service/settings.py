"""Settings of the control plane, shared by the API, the command line and the embedded stack."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlparse

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from environment variables with the prefix ``RCMAE_``, for example ``RCMAE_DATABASE_URL``."""

    model_config = SettingsConfigDict(
        env_prefix="RCMAE_", frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    database_url: str
    """SQLAlchemy URL, for example `sqlite:////var/lib/rcmae/rcmae.db`."""
    artifact_root: str
    """Local folder (path or `file://` URI) below which MLflow keeps its artifacts; nothing outside it is served."""
    mlflow_url: str = "http://127.0.0.1:5000"
    """Address of the MLflow server, as the API and the attempts reach it."""
    ray_url: str = "http://127.0.0.1:8265"
    """Address of Ray's dashboard and Jobs API."""
    ray_token_file: Path | None = None
    """File with Ray's cluster token; null where Ray's token authentication is off."""
    admin_token_file: Path | None = None
    """File with a token that the API makes sure exists, with the role admin."""
    trainer_python: str = "python"
    """Python that runs attempts on the cluster's machines."""
    reconciler: bool = True
    """Whether this process moves jobs. Exactly one process on a database may."""
    poll_interval_s: float = Field(1.0, gt=0)
    """Pause between two looks at the jobs."""
    command_deadline_s: float = Field(120.0, gt=0)
    """A running attempt that has not acknowledged a command after this long is stopped through Ray."""
    heartbeat_limit_s: float = Field(120.0, gt=0)
    """A running attempt without a sign of life for this long is stopped through Ray and tried again."""

    @field_validator("artifact_root")
    @classmethod
    def _local(cls, root: str) -> str:
        if urlparse(root).scheme not in {"", "file"}:
            raise ValueError("must be a local folder: a path or a file:// URI")
        path = Path(root.removeprefix("file://"))
        if not path.is_absolute():
            raise ValueError("must be an absolute path, for example /var/lib/rcmae/artifacts")
        return str(path)

    @field_validator("mlflow_url", "ray_url")
    @classmethod
    def _without_slash(cls, url: str) -> str:
        if urlparse(url).scheme not in {"http", "https"}:
            raise ValueError("must begin with http:// or https://")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _deadlines_need_polls(self) -> Self:
        shortest = min(self.command_deadline_s, self.heartbeat_limit_s)
        if self.poll_interval_s > shortest:
            raise ValueError(f"poll_interval_s must not be above the shortest deadline, {shortest:g} s")
        return self
