"""Settings of the control plane, read from `RCMAE_*` environment variables."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service import signing_key
from trainer.spec.dataset import check_root


class Settings(BaseSettings):
    """The addresses of all dependencies, and the limits of the service."""

    model_config = SettingsConfigDict(
        env_prefix="RCMAE_",
        extra="ignore",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # the input may hold the database's password
    )

    database_url: str = Field(repr=False)
    """The control plane's own database: ``sqlite:////folder/rcmae.db`` for one process, or
    ``postgresql+psycopg://user:password@host:5432/name``."""
    study_url: str | None = Field(None, repr=False)
    """The database of the searches' studies: a URL like ``database_url``, but of another database. The nodes that run
    searches need it in their environment too. Without it, searches are refused."""
    artifact_root: str
    """The folder of all runs' artifacts: an absolute path or ``s3://bucket/prefix``. Files elsewhere are never
    served."""
    s3_profile: str | None = None
    """Profile in AWS's configuration files with the endpoint and credentials for S3, for the service and the attempts;
    by default they come from the environment."""
    presigned_downloads: bool = False
    """Redirect downloads of backbone files to signed links into S3. Files on a disk are always streamed."""
    presigned_s: int = Field(3600, ge=60, le=604_800)
    """Seconds for which such a link is valid."""
    presigned_endpoint: str | None = None
    """S3's address in such links, if clients reach S3 by another address than this process."""
    mlflow_url: str = "http://127.0.0.1:5000"
    """URL of MLflow's REST API, for the service and the attempts."""
    ray_url: str = "http://127.0.0.1:8265"
    """Address of the Ray head's dashboard, which serves the Jobs API."""
    ray_token_file: Path | None = None
    """File with the cluster's token, if Ray's token authentication is on."""
    admin_token_file: Path | None = None
    """File with a token that is registered as an admin token at start."""
    signing_key_file: Path | None = None
    """File with the private key that signs registered backbones: Ed25519, PKCS8 in PEM. The process that runs the
    reconciler needs it; without it nothing is signed."""
    trainer_python: str = "python"
    """The interpreter that starts an attempt on the Ray head."""
    poll_interval_s: float = Field(1.0, gt=0)
    """Seconds between two rounds of the reconciler."""
    command_deadline_s: float = Field(120.0, gt=0)
    """Seconds that an attempt has to obey a command before Ray stops it."""
    heartbeat_limit_s: float = Field(120.0, gt=0)
    """Seconds without a heartbeat after which a running attempt counts as hung and is stopped."""
    stall_limit_s: float = Field(1800.0, gt=0)
    """Seconds without a step of training after which an attempt that still sends heartbeats is stopped and retried.
    Opening data, compiling, evaluating and storing take as long as they take."""
    start_limit_s: float = Field(1800.0, gt=0)
    """Seconds that an attempt has from its submission to its first heartbeat before it is stopped and retried."""
    running_per_user: int | None = Field(None, ge=1)
    """Jobs that one user may run at a time; unlimited by default."""
    passing_s: float = Field(600.0, ge=0)
    """Seconds for which smaller jobs may overtake a waiting job although that delays it."""
    sweep_interval_s: float = Field(60.0, gt=0)
    """Seconds between two sweeps for leftovers, and between two comparisons of registered versions with MLflow."""
    ray_records_kept_s: float = Field(86_400.0, ge=0)
    """Age in seconds at which Ray's record of an ended attempt is deleted."""
    unfinished_kept_s: float = Field(3_600.0, ge=0)
    """Seconds after an attempt's end at which its unfinished checkpoints are removed, and orphaned runs are closed in
    MLflow."""
    stuck_after_s: float = Field(30.0, gt=0)
    """Seconds without a finished round after which the service reports that it is not ready."""
    reconcile: bool = True
    """Run the reconciler inside this process."""
    body_limit_bytes: int = Field(1_048_576, ge=1024)
    """Longest request body in bytes; longer ones are refused."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ("localhost",)
    """Names by which the API is reached, separated by commas: ``rcmae.example.org,*.lab.example.org``; ``*`` allows
    every name. Requests for other names are refused; addresses are always accepted."""
    failures_per_minute: int = Field(60, ge=1)
    """Requests without a valid token that one address may send in a minute before it is answered 429."""
    dataset_roots: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Where datasets may be, separated by commas: ``/data,s3://datasets,builtin://``; anywhere by default."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Port at which `rcmae controller` serves ``/metrics``; it does not by default. The API serves them at its own
    port."""
    metrics_host: str = "127.0.0.1"
    """Address at which `rcmae controller` serves ``/metrics``."""
    lease_s: float = Field(10.0, gt=0)
    """Seconds without a heartbeat after which a standby takes over from the controller."""
    webhook_private_networks: Annotated[tuple[IPv4Network | IPv6Network, ...] | None, NoDecode] = None
    """Networks to which webhooks may be sent although their addresses are not public, separated by commas:
    ``10.1.0.0/16,127.0.0.1``; none by default. Only there a webhook's URL may be http."""
    public_url: str | None = None
    """The address by which people reach the service, such as ``https://rcmae.example.org``: it makes the links in
    webhooks complete. By default they are paths."""

    @field_validator("webhook_private_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return tuple(each.strip() for each in value.split(",") if each.strip()) if isinstance(value, str) else value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
            raise ValueError(f"{value!r} is no address of a service: use one such as https://rcmae.example.org")
        return value.rstrip("/") if value else None

    @field_validator("signing_key_file")
    @classmethod
    def _must_hold_a_key(cls, path: Path | None) -> Path | None:
        if path:
            signing_key.read(path)
        return path

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return names
        found = tuple(name for name in (str(each).strip().lower() for each in names) if name)
        for name in found:
            if "/" in name or name.count(":") == 1:
                raise ValueError(f"{name!r} is no host name: leave out the scheme, the port and the path")
        return found

    @field_validator("dataset_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        roots = [root.strip() for root in value.split(",")] if isinstance(value, str) else value
        if not isinstance(roots, list | tuple):
            return roots
        return tuple(check_root(root) for root in roots if root) or None
