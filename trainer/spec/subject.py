"""Which network a job measures or uses: a registered version, a checkpoint of a job, or weights from elsewhere."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, Field, Tag

from trainer.spec.base import SpecModel, by_form
from trainer.spec.export import Network
from trainer.spec.importing import SourceSpec
from trainer.spec.publish import CheckpointFolder

_REFERENCE: Final = re.compile(r"([a-z0-9][a-z0-9_-]*)(?::([1-9][0-9]{0,8})|@([A-Za-z0-9][A-Za-z0-9._-]{0,99}))?")


class Reference(NamedTuple):
    """A registered backbone's name, with the version or the alias if the text says which."""

    name: str
    version: int | None
    alias: str | None


def reference(text: str) -> Reference:
    """The parts of ``NAME``, ``NAME:3`` or ``NAME@alias``; raises `ValueError` for anything else."""
    found = _REFERENCE.fullmatch(text)
    if not found:
        raise ValueError("write NAME, NAME:3 or NAME@alias of a registered backbone")
    return Reference(found[1], int(found[2]) if found[2] else None, found[3])


def _reference(text: str) -> str:
    reference(text)
    return text


RegisteredRef = Annotated[
    str, Field(max_length=220, examples=["cifar10-tiny", "cifar10-tiny:3"]), AfterValidator(_reference)
]


class CheckpointRef(SpecModel):
    """A checkpoint that a pretraining job has kept."""

    job: str = Field(min_length=1, max_length=100, examples=["job-7f3k2m"])
    """The pretraining job."""
    checkpoint: CheckpointFolder | None = Field(None, examples=["checkpoints/a1/00000100"])
    """The checkpoint's folder below that job's artifacts; null for its newest."""
    network: Network | None = None
    """`teacher` or `student`; null: the one that the job's `export` names."""


class WeightsRef(SourceSpec):
    """Weights from elsewhere, as a job of kind `import` reads them."""

    network: Network | None = None
    """`teacher` or `student`, where the weights hold both; null: the teacher there, and otherwise the only one."""


_CHECKPOINT, _WEIGHTS, _REGISTERED = "form[job]", "form[uri]", "form[name]"


def _form(value: Any) -> str | None:
    if isinstance(value, (CheckpointRef, WeightsRef)):
        return _CHECKPOINT if isinstance(value, CheckpointRef) else _WEIGHTS
    if isinstance(value, dict):
        return _CHECKPOINT if "job" in value else _WEIGHTS
    return _REGISTERED if isinstance(value, str) else None


SubjectRef = Annotated[
    Annotated[RegisteredRef, Tag(_REGISTERED)]
    | Annotated[CheckpointRef, Tag(_CHECKPOINT)]
    | Annotated[WeightsRef, Tag(_WEIGHTS)],
    by_form(_form, "", "write NAME, NAME:3 or NAME@alias, {job: JOB} or {uri: /path}"),
]
"""`NAME`, `NAME:3` or `NAME@alias` of a registered backbone, `{job: JOB, checkpoint: …}`, or `{uri: …}` of weights from
elsewhere: a folder of timm or transformers, or a file."""


def subject_name(value: object) -> str | None:
    """What a job about this network is called by default; None if it is not written as a subject."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        found = value.get("job") or value.get("uri")
        return found.rstrip("/").rpartition("/")[2] if isinstance(found, str) else None
    return None
