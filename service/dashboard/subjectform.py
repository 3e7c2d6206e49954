"""The part of a form that names a backbone: a registered one, a checkpoint of a job, or weights from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.dashboard.specform import FormField, fields_of
from trainer.spec.subject import CheckpointRef, WeightsRef


@dataclass(frozen=True)
class SubjectForm:
    """The fields that name a backbone, filled from a document."""

    shape: str
    """The form in which the document names its backbone: `registered`, `checkpoint` or `weights`."""
    registered: FormField
    checkpoint: Sequence[FormField]
    weights: Sequence[FormField]
    network: FormField
    """Of a checkpoint and of weights alike."""


def subject_form(document: Mapping[str, Any]) -> SubjectForm:
    """The fields of a document's `backbone`, which may be incomplete or wrong: what has no field is left out."""
    subject = document.get("backbone")
    named = subject if isinstance(subject, Mapping) else {}
    *checkpoint, network = fields_of(CheckpointRef, named, "backbone.")
    return SubjectForm(
        shape="registered" if not isinstance(subject, Mapping) else "checkpoint" if "job" in subject else "weights",
        registered=FormField(
            path="backbone",
            label="Backbone",
            hint="`NAME`, `NAME:3` or `NAME@alias`.",
            value=subject if isinstance(subject, str) else "",
            default="",
            type="text",
        ),
        checkpoint=checkpoint,
        weights=[each for each in fields_of(WeightsRef, named, "backbone.") if each.path != network.path],
        network=network,
    )
