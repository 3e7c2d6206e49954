"""The kinds of job, and the spec of any of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from trainer.spec.base import Problem, SpecError
from trainer.spec.embed import EmbedSpec
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.importing import ImportSpec
from trainer.spec.inspect import InspectSpec
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishSpec
from trainer.spec.search import SearchSpec

JobSpec = EmbedSpec | EvaluateSpec | ImportSpec | InspectSpec | PretrainSpec | PublishSpec | SearchSpec
"""A spec of any kind."""


class Kind(StrEnum):
    """A kind of job, as specs name it."""

    EMBED = "embed"
    EVALUATE = "evaluate"
    IMPORT = "import"
    INSPECT = "inspect"
    PRETRAIN = "pretrain"
    PUBLISH = "publish"
    SEARCH = "search"


SPECS: Final[dict[str, type[JobSpec]]] = {
    Kind.EMBED: EmbedSpec,
    Kind.EVALUATE: EvaluateSpec,
    Kind.IMPORT: ImportSpec,
    Kind.INSPECT: InspectSpec,
    Kind.PRETRAIN: PretrainSpec,
    Kind.PUBLISH: PublishSpec,
    Kind.SEARCH: SearchSpec,
}


def parse_spec(data: object) -> JobSpec:
    """The spec in a mapping; raises `SpecError`, also for a kind that does not exist."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if isinstance(data, dict) and "kind" in data and kind not in list(Kind):
        raise SpecError([Problem("kind", "/kind", kind, f"must be one of: {', '.join(Kind)}")])
    return SPECS[str(kind) if kind else Kind.PRETRAIN].parse(data)


def parse_pretrain(data: object) -> PretrainSpec:
    """The pretraining spec in a mapping; raises `SpecError`, also for a spec of another kind."""
    spec = parse_spec(data)
    if not isinstance(spec, PretrainSpec):
        raise SpecError([Problem("kind", "/kind", spec.kind, "must be pretrain here")])
    return spec
