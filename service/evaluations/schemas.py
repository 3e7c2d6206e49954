"""Response models of evaluations. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from service.http.schemas import View
from service.jobs.evaluation_schemas import ImagesView, MeasuredView, MeasureView
from trainer.protocol.evaluation import Evaluation


class SubjectView(View):
    """What was measured."""

    title: str
    """In words, such as `cifar10-tiny:3` or `job-7f3k2m checkpoints/a1/00000100 (teacher)`."""
    name: str | None = None
    """The registered backbone; null for other weights, and for a version that is gone."""
    version: int | None = None
    job: str | None = None
    """The job that trained it, where that is known."""


class EvaluationScoreView(View):
    """A score of an evaluation."""

    key: str
    """The metric's key."""
    protocol: str
    share: float | None = None
    """The share of the labels that was used; null for all."""
    weights: str
    """`backbone`; `random`, the same network with untrained weights; or `scratch`, trained from untrained weights."""
    top1: float
    """Share of the test images whose class was predicted, 0..1; the mean over the seeds."""
    seeds: int
    """How many measurements it is the mean of."""
    seeds_interval: tuple[float, float] | None = None
    """95 % interval of the mean over seeds (Student's t); null for a single measurement."""
    test_interval: tuple[float, float]
    """95 % interval from the number of test images (Wilson)."""


class EvaluationSummaryView(View):
    """An evaluation that has succeeded, with its scores."""

    job: str
    """Its job's id."""
    job_name: str
    """Empty for a caller who does not see the job."""
    owner: str
    labels: dict[str, str] = Field(default_factory=dict)
    """Of the job; empty for a caller who does not see it."""
    created_at: datetime
    """When its job was submitted."""
    finished_at: datetime
    backbone: SubjectView
    train: ImagesView
    test: ImagesView
    held_out: float | None = None
    """The share of the dataset that was held out for the test; null where the test is another dataset."""
    classes: int
    """How many there are."""
    pooling: str
    layer: str
    mce: float | None = None
    """Mean corruption error."""
    scores: list[EvaluationScoreView] = Field(default_factory=list)
    """By key."""


class EvaluationDetailView(EvaluationSummaryView):
    """Everything that an evaluation has found."""

    evaluation: Evaluation
    """With the scores of each class and seed. For a caller who does not see the job it has no pictures and no
    notices, and its classes are named `class 0`, `class 1` and so on."""
    files: dict[str, str] = Field(default_factory=dict)
    """The path on this server of each picture and table, by its file in the job's folder; empty for a caller who does
    not see the job."""


class TableColumnView(MeasureView):
    """A column of the table: scores by one measurement on the same images."""

    differs: list[str] = Field(default_factory=list)
    """Settings that are not the same for all of its scores, such as `pooling` or `solver`: then none is marked best."""


class TableCellView(MeasuredView):
    """A cell of the table: the newest score of a backbone by a measurement."""

    best: bool = False
    """Whether its interval lies above that of every other backbone in its column, of which there is at least one, and
    all were measured with the same settings."""


class TableRowView(View):
    """A row of the table."""

    backbone: SubjectView
    cells: list[TableCellView | None]
    """One for each column; null where the backbone was not measured so."""


class EvaluationTableView(View):
    """Backbones against measurements."""

    columns: list[TableColumnView]
    """By test dataset and key."""
    rows: list[TableRowView]
    """The backbones, by title; a later version before an earlier one."""
    left_out: int = 0
    """Evaluations that match and are not in the table, or not with all their scores, because it would be too large."""
