"""The tables of the control plane's database, by what they are about."""

from service.db.tables.access import Audit, BrowserSession, Token
from service.db.tables.backbones import (
    AliasMove,
    BackboneAlias,
    BackboneReader,
    BackboneVersion,
    RegisteredBackbone,
    RetentionRule,
    SigningKey,
    VersionSignature,
    VersionUse,
    folded,
)
from service.db.tables.base import Base, UtcTime, now
from service.db.tables.control import Lease, RegistryCheck, WorkItem
from service.db.tables.evaluations import EvaluationRow, EvaluationScore
from service.db.tables.jobs import Addition, Attempt, Event, Job, Label, SearchClaim, write_labels
from service.db.tables.webhooks import Webhook, WebhookDelivery

__all__ = [
    "Addition",
    "AliasMove",
    "Attempt",
    "Audit",
    "BackboneAlias",
    "BackboneReader",
    "BackboneVersion",
    "Base",
    "BrowserSession",
    "EvaluationRow",
    "EvaluationScore",
    "Event",
    "Job",
    "Label",
    "Lease",
    "RegisteredBackbone",
    "RegistryCheck",
    "RetentionRule",
    "SearchClaim",
    "SigningKey",
    "Token",
    "UtcTime",
    "VersionSignature",
    "VersionUse",
    "Webhook",
    "WebhookDelivery",
    "WorkItem",
    "folded",
    "now",
    "write_labels",
]
