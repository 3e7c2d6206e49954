"""Response models of comparisons. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service.backbones.schemas import VersionSummaryView
from service.http.schemas import View
from service.jobs.evaluation_schemas import MeasuredView, MeasureView


class ComparedVersionView(View):
    """One of two compared versions."""

    version: VersionSummaryView
    bytes: int | None = None
    """Bytes of all its files; None if it is gone."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Bytes of each format's files."""
    notes: list[str] = Field(default_factory=list)
    """What could not be compared, and why."""


class SpecDifferenceView(View):
    """A value that differs between two specs."""

    path: str
    """Such as `method.mask_ratio`."""
    first: Any = None
    """None also where the spec has no such field."""
    second: Any = None


class ResultsView(View):
    """An evaluation result of two versions."""

    key: str
    first: float | None = None
    second: float | None = None
    difference: float | None = None
    """The second one's less the first one's; None unless both have it."""


class EvaluationPairView(MeasureView):
    """The newest scores of two versions by one measurement, on the same images."""

    first: MeasuredView | None = None
    """None if the version was not measured so."""
    second: MeasuredView | None = None
    difference: float | None = None
    """The second one's less the first one's; None unless both were measured so."""
    apart: bool = False
    """Whether their intervals do not overlap, so that chance does not explain the difference; false where settings
    differ."""
    differs: list[str] = Field(default_factory=list)
    """Settings in which the two measurements differ, such as `pooling` or `solver`: they explain a difference too."""


class CurvePairView(View):
    """A curve of two versions: pairs of the epoch and the value."""

    key: str
    first: list[tuple[float, float]] = Field(default_factory=list)
    second: list[tuple[float, float]] = Field(default_factory=list)


class PicturePairView(View):
    """A picture of two cards."""

    path: str
    first: str | None = None
    """Its path on this server; None if the version has none."""
    second: str | None = None


class ComparisonView(View):
    """Two versions side by side."""

    first: ComparedVersionView
    second: ComparedVersionView
    same_dataset: bool | None
    """Whether they were trained on the same images, by the fingerprint; None if it is not known of both."""
    spec: list[SpecDifferenceView] | None
    """What differs; None if one of the specs cannot be read, which `notes` then says."""
    metrics: list[ResultsView]
    """Results of their training, by key."""
    evaluations: list[EvaluationPairView] = Field(default_factory=list)
    """What evaluations have found since, by dataset and key."""
    curves: list[CurvePairView]
    """By key."""
    pictures: list[PicturePairView]
    """By path."""
