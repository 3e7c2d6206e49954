"""What users import: `from rcmae import Client`.

Everything here belongs to the base install: httpx, httpx-sse and pydantic, no torch, Ray or MLflow.
"""

from __future__ import annotations

from service.client.errors import ApiError, ClientError, ConnectionFailed
from service.client.sdk import Client
from service.client.streaming import Update
from service.jobs.schemas import JobView
from service.jobs.state import State
from trainer.spec.base import Problem, SpecError
from trainer.spec.importing import ImportSpec
from trainer.spec.job import JobSpec, Kind, parse_spec
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishSpec
from trainer.spec.search import SearchSpec

__all__ = [
    "ApiError",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "ImportSpec",
    "JobSpec",
    "JobView",
    "Kind",
    "PretrainSpec",
    "Problem",
    "PublishSpec",
    "SearchSpec",
    "SpecError",
    "State",
    "Update",
    "parse_spec",
]
