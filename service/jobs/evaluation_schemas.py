"""Response models of what evaluations have found about a backbone. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.http.schemas import View


class ImagesView(View):
    """A set of labelled images that an evaluation has used."""

    uri: str
    title: str
    """What people call the dataset."""
    images: int
    """Labelled ones that were used."""
    fingerprint: str
    """Identity of the dataset's readable images."""


class IntervalView(View):
    """A 95 % interval of a score: the wider of the two that are known of it."""

    low: float
    high: float
    of: Literal["seeds", "test"]
    """`seeds`: of the mean over seeds (Student's t). `test`: from the number of test images (Wilson)."""


class BaselineView(View):
    """The same measurement of weights that were not pretrained."""

    weights: Literal["random", "scratch"]
    """`random`: the same network with untrained weights, frozen. `scratch`: trained from untrained weights."""
    key: str
    """The metric's key."""
    top1: float


class MeasuredView(View):
    """A score of a backbone with what it says: its interval and the baselines beside it."""

    job: str
    """The evaluation, by its job."""
    top1: float
    """Share of the test images whose class was predicted, 0..1; the mean over the seeds."""
    seeds: int
    """How many measurements it is the mean of."""
    interval: IntervalView
    baselines: list[BaselineView] = Field(default_factory=list)
    pooling: str
    layer: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """Pooling, layer and what the protocol was set to. In a table those alone that differ within the column."""
    finished_at: datetime


class MeasureView(View):
    """What scores of one measurement have in common: the images and the metric."""

    key: str
    """The metric's key, such as `eval/linear_top1`."""
    protocol: str
    share: float | None = None
    """The share of the labels that was used; null for all."""
    train: ImagesView
    test: ImagesView
    held_out: float | None = None
    """The share of the dataset that was held out for the test; null where the test is another dataset."""


class VersionResultView(MeasureView, MeasuredView):
    """The newest score of a version by one measurement."""
