"""The tables of the control plane's database, by what they are about."""

from service.db.tables.access import Audit, BrowserSession, Token
from service.db.tables.backbones import (
    BackboneAlias,
    BackboneReader,
    BackboneVersion,
    RegisteredBackbone,
    SigningKey,
    VersionSignature,
    folded,
)
from service.db.tables.base import Base, UtcTime, now
from service.db.tables.control import Lease, RegistryCheck, WorkItem
from service.db.tables.jobs import Addition, Attempt, Event, Job, Label, SearchClaim, write_labels
from service.db.tables.webhooks import Webhook, WebhookDelivery

__all__ = [
    "Addition",
    "Attempt",
    "Audit",
    "BackboneAlias",
    "BackboneReader",
    "BackboneVersion",
    "Base",
    "BrowserSession",
    "Event",
    "Job",
    "Label",
    "Lease",
    "RegisteredBackbone",
    "RegistryCheck",
    "SearchClaim",
    "SigningKey",
    "Token",
    "UtcTime",
    "VersionSignature",
    "Webhook",
    "WebhookDelivery",
    "WorkItem",
    "folded",
    "now",
    "write_labels",
]
