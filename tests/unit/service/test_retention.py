"""Retention rules of backbones: who sets them, what their preview says, and what the controller then deletes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest
import structlog
from backbone_files import Registry, compare_with_mlflow
from service_fakes import add_job, problem, spec_with
from service_world import World
from sqlalchemy import select, update
from structlog.testing import capture_logs
from webhook_receiver import hooks  # noqa: F401

from service.auth.caller import Caller, Role
from service.backbones import service
from service.controller import retention as controlled
from service.db.database import Database
from service.db.tables import (
    Audit,
    BackboneVersion,
    Job,
    RetentionRule,
    VersionUse,
    Webhook,
    WebhookDelivery,
)
from service.http.problems import ApiProblem
from service.jobs.work import Work

BASE = "/v1/backbones/digits"
RULE = {"expire_unused_days": 90}
DAY = timedelta(days=1)
ALICE = Caller("alice", Role.SUBMITTER)
EXPIRE = (Work.EXPIRE_VERSIONS,)
