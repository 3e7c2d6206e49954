"""Settings of the control plane, from `RCMAE_*` environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trainer.spec.dataset import check_root


class Settings(BaseSettings):
    """Where the parts are, and how patient the reconciler is."""

    model_config = SettingsConfigDict(
        env_prefix="RCMAE_",
        extra="ignore",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # which would hold the database's password
    )

    database_url: str = Field(repr=False)
    """The control plane's own database: ``sqlite:////folder/rcmae.db`` for one process, or
    ``postgresql+psycopg://user:password@host:5432/name``."""
    study_url: str | None = Field(None, repr=False)
    """The database of searches' studies, of the same forms as the one above and another than that; the nodes that
    searches run on have it in their environment too. Without it there are no searches."""
    artifact_root: str
    """Where all runs' artifacts lie, an absolute path or ``s3://bucket/prefix``; files elsewhere are never served."""
    s3_profile: str | None = None
    """Profile of AWS's configuration files whose endpoint and credentials are used for S3, here and by the attempts;
    without it they are the environment's."""
    presigned_downloads: bool = False
    """Answer requests for a backbone's file with a redirect to a signed link into S3; files on a disk are streamed."""
    presigned_s: int = Field(3600, ge=60, le=604_800)
    """Seconds for which such a link is valid."""
    presigned_endpoint: str | None = None
    """S3's address in such links, where clients reach it by another one than this process."""
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
    start_limit_s: float = Field(1800.0, gt=0)
    """Seconds an attempt has from its submission to its first heartbeat, before it is stopped and tried again."""
    running_per_user: int | None = Field(None, ge=1)
    """Jobs that one user may run at a time; any number by default."""
    passing_s: float = Field(600.0, ge=0)
    """Seconds for which a waiting job may be passed by smaller ones that delay it."""
    sweep_interval_s: float = Field(60.0, gt=0)
    """Seconds between two looks for what has been left behind."""
    ray_records_kept_s: float = Field(86_400.0, ge=0)
    """Age at which Ray's record of an ended attempt is deleted."""
    unfinished_kept_s: float = Field(3_600.0, ge=0)
    """Seconds after an attempt's end at which its unfinished checkpoints are removed, and runs that are no longer
    anybody's are closed in MLflow."""
    stuck_after_s: float = Field(30.0, gt=0)
    """Seconds without a finished round after which the service says it is not ready."""
    reconcile: bool = True
    """Run the reconciler inside this process."""
    body_limit_bytes: int = Field(1_048_576, ge=1024)
    """Longest body of a request; longer ones are refused."""
    dataset_roots: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Where datasets may lie, with commas between: ``/data,s3://datasets,builtin://``; anywhere by default."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Where `rcmae controller` answers ``/metrics``; nowhere by default. The API does at its own port."""
    metrics_host: str = "127.0.0.1"
    """The address for that."""
    lease_s: float = Field(10.0, gt=0)
    """Seconds after which a controller that shows no sign of life is replaced by another."""

    @field_validator("dataset_roots", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            return parts
        return tuple(check_root(part) for part in parts if part) or None
