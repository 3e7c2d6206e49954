"""What is measured of a pretraining: during training, at its end, and by an evaluation that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, Tag, model_validator

from trainer.spec import metric_keys
from trainer.spec.base import SpecError, SpecModel, by_form, refuse
from trainer.spec.common import Auto, Interval
from trainer.spec.dataset import DIGITS, DatasetSpec
from trainer.spec.evaluate import (
    DEFAULT_PROTOCOLS,
    HELD_OUT,
    Baseline,
    EvaluateSpec,
    FeaturesSpec,
    Protocols,
    Seeds,
    Share,
    repeated,
)
from trainer.spec.resources import ResourcesSpec
from trainer.spec.subject import CheckpointRef

Probe = Literal["linear", "knn"]
PROBES: Final[tuple[Probe, ...]] = ("linear", "knn")
PROBE_OF: Final[dict[str, Probe]] = {metric_keys.LINEAR_TOP1: "linear", metric_keys.KNN_TOP1: "knn"}
"""The probe that measures a metric."""


class AfterSpec(SpecModel):
    """The evaluation that follows a pretraining, written as the spec of one without its backbone."""

    protocols: Protocols = DEFAULT_PROTOCOLS
    """The ways to measure, each at most once."""
    dataset: DatasetSpec | None = None
    """Labelled images to train classifiers on; null: those of `evaluation.dataset`, or without these of `dataset`."""
    test: DatasetSpec | None = None
    """Labelled images to score them on; null: a share of those for training."""
    held_out: Share = HELD_OUT
    """Where `test` is null: the share of each class that is held out for the test."""
    features: FeaturesSpec = Field(default_factory=FeaturesSpec)
    seeds: Seeds = 3
    """How often what depends on chance is measured, each time with another seed."""
    baselines: tuple[Baseline, ...] = ("random", "scratch")
    """What is measured beside the backbone."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """Those of the evaluation."""

    def of(
        self, subject: str | CheckpointRef, dataset: DatasetSpec, labels: Mapping[str, str], priority: int
    ) -> EvaluateSpec:
        """The evaluation of ``subject``, with the images of ``dataset`` where this names none."""
        document = self.model_dump(mode="json") | {
            "kind": "evaluate",
            "backbone": subject if isinstance(subject, str) else subject.model_dump(mode="json"),
            "dataset": (self.dataset or dataset).model_dump(mode="json"),
            "labels": dict(labels),
            "priority": priority,
        }
        return EvaluateSpec.parse(document)

    @model_validator(mode="after")
    def _is_an_evaluation(self) -> Self:
        try:
            self.of("backbone", DatasetSpec(uri=DIGITS), {}, 0)
        except SpecError as error:  # its fields are valid, so that it is about several of them together
            problem = error.problems[0]
            raise refuse(problem.field, problem.message, problem.value) from error
        return self


_LIST, _FIELDS = "form[list]", "form[fields]"


def _form(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return _LIST
    return _FIELDS if isinstance(value, (dict, AfterSpec)) else None


def _each_once(protocols: Protocols) -> Protocols:
    if text := repeated(protocols):
        raise refuse("", text, [each.name for each in protocols])
    return protocols


After = Annotated[
    Annotated[Protocols, AfterValidator(_each_once), Tag(_LIST)] | Annotated[AfterSpec, Tag(_FIELDS)],
    by_form(_form, "", "list protocols, for example [{name: knn}], or write {protocols: [{name: knn}], seeds: 1}"),
]
"""A list of protocols, or these with other settings."""


class EvaluationSpec(SpecModel):
    """What is measured during training, at its end, and after it."""

    every_epochs: Interval = 20
    """Epochs between two evaluations."""
    probes: tuple[Probe, ...] | Auto = "auto"
    """Probes of the frozen backbone; they need labels. `linear` is a linear classifier, `knn` votes of the 20 nearest
    training images. `auto` is both where the dataset has labels."""
    dataset: DatasetSpec | None = None
    """Held-out images; null: a fixed tenth of the dataset, at most 2,048 images, which are not trained on."""
    after: After | None = None
    """Protocols, such as `[{name: knn}, {name: finetune}]`, or a mapping with `protocols`, `dataset` and further fields
    of an evaluation: a job of kind `evaluate` that the service submits by itself when this one has succeeded. It
    measures the version that was registered, or otherwise the last checkpoint, and needs labels. Null: none."""

    @property
    def following(self) -> AfterSpec | None:
        """The evaluation that follows; None if none does."""
        return AfterSpec(protocols=self.after) if isinstance(self.after, tuple) else self.after
