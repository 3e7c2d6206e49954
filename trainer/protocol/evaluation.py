"""The result of an evaluation, for trainer and service alike."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from trainer.protocol.inspection import Warned
from trainer.protocol.message import Message
from trainer.spec.measurements import WeightsMeasured

EVALUATION: Final = "evaluation.json"
"""The result's path in the run's artifact folder: JSON of `Evaluation`."""
EVALUATION_FOLDER: Final = "evaluation"
"""Folder of what an evaluation has measured so far, of its pictures and of its tables."""


class Measured(Message):
    """One measurement: a protocol with one seed."""

    seed: int
    top1: float
    """Share of the test images whose class was predicted, 0..1."""
    top5: float | None = None
    """Share of those whose class was among the five likeliest; null with five classes or fewer."""
    correct: int
    """Test images whose class was predicted."""
    train_images: int
    """How many images the classifier was trained on."""
    details: dict[str, float | str | bool] = Field(default_factory=dict)
    """What was chosen or found beside it, such as `strength`, `layer`, `converged`, `top1_k5`."""


class Score(Message):
    """What one protocol gave for one set of weights."""

    key: str
    """The metric's key, such as `eval/linear_top1_1pct_random_init`."""
    protocol: str
    share: float | None = None
    """The share of the labels that it was trained on; null: all."""
    weights: WeightsMeasured = "backbone"
    top1: float
    """Mean over the seeds."""
    seeds: list[Measured]
    """One for each seed, or a single one where nothing depends on chance."""
    seeds_interval: tuple[float, float] | None = None
    """95 % interval of the mean over seeds (Student's t); null for a single measurement."""
    test_interval: tuple[float, float]
    """95 % interval from the number of test images (Wilson), at the mean."""
    settings: dict[str, float | str | bool | list[float] | list[int] | list[str]] = Field(default_factory=dict)
    """The protocol's settings, as used."""
    per_class: list[float | None] = Field(default_factory=list)
    """Share of each class's test images that were predicted, mean over the seeds, in the order of the classes; null for
    a class without test images. Only for the backbone's own weights."""
    confusion: str | None = None
    """File of the confusion matrix in the run's artifact folder: JSON, rows are true classes, columns predicted ones,
    counts added up over the seeds."""


class CorruptionScore(Message):
    """Accuracy on test images with one corruption."""

    weights: WeightsMeasured = "backbone"
    corruption: str
    severity: int
    top1: float
    """With the evaluation's first seed alone."""


class EvaluationPicture(Message):
    """A picture of an evaluation."""

    file: str
    """Path in the run's artifact folder."""
    title: str
    caption: str
    """What it shows and how to read it."""


class EvaluatedImages(Message):
    """A set of images that an evaluation has used."""

    uri: str
    title: str
    """What people call the dataset."""
    images: int
    """Labelled ones that were used."""
    fingerprint: str
    """Identity of the dataset's readable images."""


class Evaluated(Message):
    """The network that was measured."""

    title: str
    """Such as `cifar10-tiny:3`, `job-7f3k2m checkpoints/a1/00000100 (teacher)` or the name of a file."""
    name: str | None = None
    """The registered backbone; null for other weights."""
    version: int | None = None
    job: str | None = None
    """The job that trained it, where that is known."""
    checkpoint: str | None = None
    network: str | None = None
    step: int | None = None
    """The optimiser step of the checkpoint, where that is known."""
    depth: int
    """Blocks of the encoder."""
    embed_dim: int
    """Values of a token."""
    patch_size: int
    """Height and width of a patch, in pixels."""
    encoder_parameters: int
    img_size: tuple[int, int]
    """Height and width of the network's input."""


class Evaluation(Message):
    """Everything that an evaluation has found."""

    backbone: Evaluated
    train: EvaluatedImages
    test: EvaluatedImages
    held_out: float | None
    """The share of the dataset that was held out for the test; null where the test is another dataset."""
    classes: list[str]
    pooling: str
    layer: str
    precision: str
    """`fp32` or `bf16`, of the network that gave the features."""
    scores: list[Score]
    corruptions: list[CorruptionScore] = Field(default_factory=list)
    mce: float | None = None
    """Mean corruption error of the backbone."""
    mce_reference: str | None = None
    """The evaluation that it is relative to; null: the plain mean of the errors."""
    pictures: list[EvaluationPicture] = Field(default_factory=list)
    notices: list[Warned] = Field(default_factory=list)
    """What was decided for people, and what they should know."""
    seconds: float
    """Time that the measurements took, over all attempts."""

    def score(self, key: str) -> Score | None:
        """The score with a metric's key."""
        return next((each for each in self.scores if each.key == key), None)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the job."""
        found = {each.key: each.top1 for each in self.scores}
        return found | ({"eval/mce": self.mce} if self.mce is not None else {})
