"""The spec of a job that measures how good a backbone is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import Field, Tag, field_validator, model_validator

from trainer.spec.base import Document, SpecModel, by_form, refuse
from trainer.spec.classifier import ClassifierExport, ClassifierFormat
from trainer.spec.cluster import ClusterShape
from trainer.spec.common import Labels, Priority, RetrySpec, Seed
from trainer.spec.dataset import DatasetSpec
from trainer.spec.export import BackboneName
from trainer.spec.finetuning import AttentiveSettings, FinetuneSettings, PaperLinearSettings, SupervisedSettings
from trainer.spec.formats import BACKBONE_HF
from trainer.spec.resources import ResourcesSpec
from trainer.spec.subject import SubjectRef, WeightsRef, subject_name

Pooling = Literal["mean", "cls", "attention"]
Baseline = Literal["random", "scratch"]
Neighbours = Annotated[int, Field(ge=1, le=10_000)]
Share = Annotated[float, Field(gt=0, lt=1)]
Seeds = Annotated[int, Field(ge=1, le=100)]
Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip
CORRUPTIONS: Final[tuple[Corruption, ...]] = Corruption.__args__  # type: ignore[attr-defined]
Severity = Annotated[int, Field(ge=1, le=5)]


NO_SETTINGS: Final = frozenset({"name", "register_as", "export"})
"""Fields of protocols on which no score depends."""


class FeaturesSpec(SpecModel):
    """What of the network's output the probes see."""

    pooling: Pooling = "mean"
    """`mean` of the patch tokens; `cls`, the class token; `attention`: patch tokens weighted by the class token's
    attention in the last block, which adds no parameters."""
    layer: Annotated[int, Field(ge=1, le=1024)] | Literal["last", "all"] = "last"
    """The block whose tokens are used, from 1. `all`: `linear` chooses a block like its regularisation, on a split of
    the training data, and its result has the accuracy there of each; other protocols use the last."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the network that gives the features: `auto` is bf16 on GPUs that have it, fp32 elsewhere."""


class KnnProtocol(SpecModel):
    """Votes of the nearest training images: nothing is trained."""

    name: Literal["knn"]
    k: tuple[Neighbours, ...] = Field((20, 5, 10, 100), min_length=1, max_length=20)
    """Numbers of neighbours. The score is that of the first; the others stand beside it. A number above that of the
    training images is cut to it."""
    temperature: float = Field(0.07, gt=0, le=100)
    """A neighbour of cosine similarity s votes with weight exp(s / temperature)."""


class LinearProtocol(SpecModel):
    """A linear classifier on frozen features, fitted to the optimum with L-BFGS."""

    name: Literal["linear"]
    solver: Literal["lbfgs"] = "lbfgs"
    """`lbfgs`: features are computed once and standardised, and the strength of regularisation is chosen on a split of
    the training data. `paper`: as in the paper, trained on random crops, with the settings of that."""

    @field_validator("solver", mode="before")
    @classmethod
    def _known(cls, solver: Any) -> Any:
        if solver not in ("lbfgs", "paper"):  # no set: a document may have something that has no hash
            raise ValueError("must be lbfgs or paper")
        return solver


class PaperLinearProtocol(PaperLinearSettings):
    """A linear classifier on the frozen network, trained as in the paper: LARS on random crops."""

    name: Literal["linear"]
    solver: Literal["paper"]
    """`paper`; the other solver, `lbfgs`, is the default."""


class AttentiveProtocol(AttentiveSettings):
    """A classifier on the frozen network's patch tokens, which a learned query pools by attention."""

    name: Literal["attentive"]


class FinetuneProtocol(FinetuneSettings):
    """The whole network trains on, with a linear head."""

    name: Literal["finetune"]
    register_as: BackboneName | None = Field(None, examples=["cifar10-classifier"])
    """Name under which the classifier is registered; null: only its scores are kept. Of all that are trained it is the
    first seed's, of the backbone's weights, on all labels; its card has its own accuracy and the mean over the seeds.
    With `ema` it is the moving average, which was tested. A name has either backbones or classifiers."""
    export: ClassifierExport = Field(default_factory=ClassifierExport)
    """The formats that the registered classifier comes in."""

    @property
    def formats(self) -> tuple[ClassifierFormat, ...]:
        """The formats of the registered classifier."""
        return self.export.formats_for(self.pooling)

    @model_validator(mode="after")
    def _can_be_exported(self) -> Self:
        export = self.export
        if self.register_as is None:
            if export != ClassifierExport():
                told = export.model_dump(mode="json", exclude_defaults=True)
                raise refuse("export", "has no meaning without register_as: set that, or leave export out", told)
            return self
        if BACKBONE_HF in self.formats and self.pooling != "cls":
            text = (
                "hf is transformers' ViTForImageClassification, whose classifier reads the class token, and this "
                f"network's reads pooling {self.pooling}: set pooling: cls, or leave hf out"
            )
            raise refuse("export.formats", text, list(self.formats))
        if export.license_link and not export.license:
            raise refuse("export.license_link", "name the licence in export.license too", export.license_link)
        return self


class LowLabelProtocol(SpecModel):
    """Other protocols on a small share of the labels, stratified by class and drawn anew for each seed."""

    name: Literal["low_label"]
    of: tuple[Literal["linear", "finetune"], ...] = Field(("linear",), min_length=1)
    """The protocols. Each has the settings that it has in `protocols`, or its defaults."""
    shares: tuple[Share, ...] = Field((0.01, 0.1), min_length=1, max_length=10)
    """Shares of the training images of each class, at least one of each. A smaller share is part of a larger one."""

    @model_validator(mode="after")
    def _each_share_once(self) -> Self:
        if len({f"{share:.6g}" for share in self.shares}) < len(self.shares):  # to the digits that name its score
            raise refuse("shares", "name each share once", list(self.shares))
        return self


class RobustnessProtocol(SpecModel):
    """The linear classifier, fitted on clean images, on corrupted test images (arXiv 1903.12261)."""

    name: Literal["robustness"]
    corruptions: tuple[Corruption, ...] = Field(CORRUPTIONS, min_length=1)
    """Which of the 15 corruptions of ImageNet-C."""
    severities: tuple[Severity, ...] = Field((1, 2, 3, 4, 5), min_length=1)
    """Strengths, from 1 to 5."""
    reference: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(None, examples=["job-7f3k2m"])
    """The evaluation (its job) whose errors the mean corruption error is relative to, as ImageNet-C's is to AlexNet's;
    null: it is the plain mean of the errors, as CIFAR-10-C's."""


PROTOCOLS: Final = ("knn", "linear", "attentive", "finetune", "low_label", "robustness")


def _protocol_form(value: Any) -> str | None:
    name, solver = (
        (value.get("name"), value.get("solver"))
        if isinstance(value, dict)
        else (getattr(value, "name", None), getattr(value, "solver", None))
    )
    if name == "linear" and solver == "paper":
        return "protocol[paper]"
    return f"protocol[{name}]" if name in PROTOCOLS else None


Protocol = Annotated[
    Annotated[KnnProtocol, Tag("protocol[knn]")]
    | Annotated[LinearProtocol, Tag("protocol[linear]")]
    | Annotated[PaperLinearProtocol, Tag("protocol[paper]")]
    | Annotated[AttentiveProtocol, Tag("protocol[attentive]")]
    | Annotated[FinetuneProtocol, Tag("protocol[finetune]")]
    | Annotated[LowLabelProtocol, Tag("protocol[low_label]")]
    | Annotated[RobustnessProtocol, Tag("protocol[robustness]")],
    by_form(_protocol_form, "name", f"give one of {', '.join(PROTOCOLS)}, for example {{name: knn}}"),
]
"""One way to measure."""
Protocols = Annotated[tuple[Protocol, ...], Field(min_length=1, max_length=20)]
"""The ways to measure, each at most once."""
DEFAULT_PROTOCOLS: Final = (KnnProtocol(name="knn"), LinearProtocol(name="linear"))
"""What is measured where nothing else is asked for."""
HELD_OUT: Final = 0.2
"""The share of a dataset that the test is made of, where there is no other test."""


def repeated(protocols: Sequence[Protocol]) -> str | None:
    """What is wrong where a protocol is named twice; None if none is."""
    names = [each.name for each in protocols]
    twice = next((name for name in names if names.count(name) > 1), None)
    return f"name each protocol once: {twice} is repeated" if twice else None


class Reference(NamedTuple):
    """The evaluation that corruption errors are relative to."""

    field: str
    """Where the spec names it."""
    job: str
    robustness: RobustnessProtocol


class EvaluateSpec(Document):
    """Measure how good a backbone is on labelled images, beside the same network without its training."""

    kind: Literal["evaluate"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default derived from the backbone's."""
    backbone: SubjectRef
    """What is measured: `NAME`, `NAME:3` or `NAME@alias` of a registered backbone (the version that it means at the
    submission), `{job: JOB, checkpoint: …}`, or `{uri: …}` of weights from elsewhere."""
    dataset: DatasetSpec
    """Labelled images to train classifiers on."""
    test: DatasetSpec | None = None
    """Labelled images to score them on; null: a share of `dataset`."""
    held_out: Share = HELD_OUT
    """Where `test` is null: the share of each class that is held out for the test, the same for every evaluation of
    this dataset."""
    protocols: Protocols = DEFAULT_PROTOCOLS
    """The ways to measure, each at most once."""
    features: FeaturesSpec = Field(default_factory=FeaturesSpec)
    seeds: Seeds = 3
    """How often what depends on chance is measured, each time with another seed. Scores are means."""
    baselines: tuple[Baseline, ...] = ("random", "scratch")
    """What is measured beside the backbone: `random`, the same network with untrained weights; `scratch`, fine-tuning
    from untrained weights."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    labels: Labels = Field(default_factory=dict)
    """Your own names and values, by which you can find jobs."""
    priority: Priority = 0
    """Jobs of higher priority start first."""
    seed: Seed = 0
    """The first seed; further ones follow it."""

    @property
    def dataset_used(self) -> DatasetSpec:
        """The dataset whose images are read."""
        return self.dataset

    @property
    def worker_resources(self) -> ResourcesSpec:
        """The resources of an attempt's workers."""
        return self.resources

    @property
    def concurrent_runs(self) -> int:
        """One attempt measures one thing after the other."""
        return 1

    @property
    def reads_source(self) -> bool:
        """Whether an attempt reads a version, or a checkpoint of another job, so that its request says where it is."""
        return not isinstance(self.backbone, WeightsRef)

    def resolved_sections(self, cluster: ClusterShape) -> dict[str, Any]:
        """The sections in which `trainer.spec.plan.resolve` fills in `auto` values."""
        # Workers share a batch in pairs of images, which stay together in a fine-tuning; shares may differ in size.
        pairs = min((max(1, each.batch_size // 2) for each in self.trainings.values()), default=None)
        return {"resources": self.resources.settled(cluster, None, most=pairs)}

    @property
    def reference(self) -> Reference | None:
        """The evaluation that the corruption errors are relative to; None if there is none."""
        for index, each in enumerate(self.protocols):
            if isinstance(each, RobustnessProtocol) and each.reference is not None:
                return Reference(f"protocols.{index}.reference", each.reference, each)
        return None

    @property
    def trainings(self) -> dict[str, SupervisedSettings]:
        """The protocols that train on batches of images, by name; those of `low_label` included."""
        wanted = {name for each in self.protocols if isinstance(each, LowLabelProtocol) for name in each.of}
        found: dict[str, SupervisedSettings] = {
            each.name: each for each in self.protocols if isinstance(each, SupervisedSettings)
        }
        if "finetune" in wanted:
            found.setdefault("finetune", FinetuneProtocol(name="finetune"))
        return found

    @property
    def registering(self) -> FinetuneProtocol | None:
        """The protocol whose classifier is registered, if one is."""
        fine_tuned = (each for each in self.protocols if isinstance(each, FinetuneProtocol))
        return next((each for each in fine_tuned if each.register_as), None)

    @model_validator(mode="after")
    def _each_protocol_once(self) -> Self:
        if text := repeated(self.protocols):
            raise refuse("protocols", text, [each.name for each in self.protocols])
        if len(set(self.baselines)) < len(self.baselines):
            raise refuse("baselines", "name each baseline once", list(self.baselines))
        return self

    @model_validator(mode="after")
    def _held_out_or_test(self) -> Self:
        if self.test is not None and "held_out" in self.model_fields_set and self.held_out != HELD_OUT:
            raise refuse("held_out", "has no meaning beside test: leave one of the two out", self.held_out)
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name"):
            return data
        subject = subject_name(data.get("backbone"))
        return data | {"name": f"evaluate-{subject}"[:200]} if subject else data
