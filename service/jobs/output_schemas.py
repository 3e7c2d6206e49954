"""Response models of what a run leaves: logs, metrics, checkpoints and images. Pydantic only: the client imports this
module."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from service.http.schemas import Page, View
from trainer.protocol.logs import LogLine

Level = Literal["debug", "info", "warning", "error"]
"""Levels of log lines, in ascending order."""
LAST_ATTEMPT = 1_000_000
"""Upper bound for the number of an attempt."""


class LogView(LogLine):
    attempt: int


class LogPage(Page[LogView]):
    """Log lines. `next_cursor` is set once there are logs: use it to read lines that were logged later."""

    more: bool = False
    """Whether there may be more to read now. The page was full, or it ended early after a long scan, possibly without a
    matching line: continue with `next_cursor` at once."""


class Point(View):
    """One point of a curve, or several neighbouring ones combined where the curve has more than were asked for."""

    step: int
    """Step of the last point combined."""
    value: float
    """Value of the last point combined."""
    min: float
    max: float
    time: datetime
    """When the last point combined was logged."""


class MetricsView(View):
    series: dict[str, list[Point]]
    """Curves by metric key. Where attempts overlap, the latest attempt's points count."""


class JobsMetricsView(View):
    """Curves of several jobs."""

    jobs: dict[str, dict[str, list[Point]]]
    """Curves by job id, then by metric key."""


class CheckpointView(View):
    """A committed checkpoint, from which a later attempt can resume."""

    attempt: int
    step: int
    epoch: float | None
    """Null where the number of steps per epoch is unknown."""
    path: str
    """Path of its folder, relative to the run's artifact folder."""
    bytes: int
    created_at: datetime
    """When it was committed."""
    best: bool
    """Whether it has the lowest reconstruction ratio of the kept checkpoints: retention never removes it."""
    metrics: dict[str, float]
    """Metrics of an evaluation at exactly this step."""


class MetricsTick(View):
    """Data of the event `metrics` of a job's stream."""

    step: int
    values: dict[str, float]
    """The newest value of every metric."""


class LogBatch(View):
    """Data of the event `log` of a job's stream."""

    lines: list[LogView]
    """At most 200."""


class ImageView(View):
    step: int
    epoch: float | None = None
    """Null where the number of steps per epoch is unknown."""
    name: str
    url: str
    """Path of the PNG on this server."""


class JobFileView(View):
    """A file that a job has left for people."""

    path: str
    """Path in the job's artifact folder, such as `embeddings/part-00000.parquet`."""
    bytes: int
    modified_at: datetime
    etag: str
    """Identifies the content; the `ETag` of a download."""
    url: str
    """The file's path on this server."""
