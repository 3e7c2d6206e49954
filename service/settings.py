"""Settings of the control plane, from `RCMAE_*` environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where the parts are, and how patient the reconciler is."""

    model_config = SettingsConfigDict(env_prefix="RCMAE_", extra="ignore", use_attribute_docstrings=True)

    database_url: str
    """SQLAlchemy URL of the control plane's own database."""
    artifact_root: str
    """Where all runs' artifacts lie, an absolute path or ``s3://bucket/prefix``; files elsewhere are never served."""
    s3_profile: str | None = None
    """Profile of AWS's configuration files whose endpoint and credentials are used for S3, here and by the attempts;
    without it they are the environment's."""
    mlflow_url: str = "http://127.0.0.1:5000"
    """MLflow's REST address, as the service and the trainers reach it."""
    ray_url: str = "http://127.0.0.1:8265"
    """Address of the Ray head's dashboard, which serves the Jobs API."""
    ray_token_file: Path | None = None
    """File with the cluster's token, where Ray's token authentication is on."""
    admin_token_file: Path | None = None
    """File with a token that is made an admin's at start."""
    trainer_python: str = "python"
    """The interpreter that starts an attempt on the Ray head."""
    poll_interval_s: float = Field(1.0, gt=0)
    """Seconds between two rounds of the reconciler."""
    command_deadline_s: float = Field(120.0, gt=0)
    """Seconds an attempt has to end after a command, before Ray stops it."""
    heartbeat_limit_s: float = Field(120.0, gt=0)
    """Seconds without a heartbeat after which a running attempt counts as hung and is stopped."""
    stuck_after_s: float = Field(30.0, gt=0)
    """Seconds without a finished round after which the service says it is not ready."""
    reconcile: bool = True
    """Run the reconciler inside this process."""
