"""What the page of an evaluation shows: scores beside their baselines, a chart, corruptions and classes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from service.jobs.evaluation_schemas import IntervalView, MeasureView
from trainer.protocol.evaluation import Evaluation, Measured, Score
from trainer.spec import metric_keys
from trainer.spec.measurements import TITLES, WeightsMeasured, title

Measure = TypeVar("Measure", bound=MeasureView)
WEIGHTS: Final[Mapping[str, str]] = {"backbone": "backbone", "random": "untrained", "scratch": "from scratch"}
"""Weights in words."""
ENDINGS: Final[Mapping[str | None, str]] = {"random_init": "random", "scratch": "scratch"}
KEY: Final = re.compile(
    r"eval/(?P<protocol>[a-z_]+?)_top1(_(?P<per_cent>[0-9.]+)pct)?(_(?P<weights>random_init|scratch))?"
)
"""The key of an accuracy: `trainer.spec.metric_keys.score_key` makes them."""
COLOURS: Final[Mapping[str, str]] = {"backbone": "#3b7ddd", "random": "#8a94a3", "scratch": "#d9822b"}
SHOWN: Final = 3
"""Scores that lists of jobs show."""
WORST: Final = 10
"""Classes that the page of an evaluation shows."""
HEATS: Final = 8
"""Colours of a table of accuracies, from none to full; app.css has them."""


def key_title(key: str) -> str:
    """A metric's key in words.

    >>> key_title("eval/linear_top1_1pct_random_init")
    'linear, 1 % of labels, untrained'
    """
    if key == metric_keys.MEAN_CORRUPTION_ERROR:
        return "mean corruption error"
    found = KEY.fullmatch(key)
    if found is None:
        return key.removeprefix(metric_keys.EVALUATION)
    weights = ENDINGS.get(found["weights"])
    return title(found["protocol"], float(found["per_cent"]) / 100 if found["per_cent"] else None) + (
        f", {WEIGHTS[weights]}" if weights else ""
    )


def headline(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """The first scores of the backbone among a job's metrics, with their names."""
    own = [key for key in metrics if (found := KEY.fullmatch(key)) and not found["weights"]]
    return [(key_title(key), metrics[key]) for key in own[:SHOWN]]


def place(protocol: str, share: float | None) -> tuple[int, float]:
    """Where a protocol comes in the order of the pages: `TITLES`, and of one protocol the most labels first."""
    names = list(TITLES)
    return names.index(protocol) if protocol in TITLES else len(names), -(share or 1.0)


def in_protocol_order(found: Iterable[Measure]) -> list[Measure]:
    """Results by their images, as they come, and then by protocol."""
    results = list(found)
    images = list(dict.fromkeys((each.test.fingerprint, each.train.fingerprint, each.held_out) for each in results))
    return sorted(
        results,
        key=lambda each: (
            images.index((each.test.fingerprint, each.train.fingerprint, each.held_out)),
            *place(each.protocol, each.share),
        ),
    )


def millions(count: int) -> str:
    """A number of parameters in millions, with three significant digits."""
    return f"{count / 1e6:.3g} M"


def accuracy(value: float | None) -> str:
    """A share of images in per cent, with one decimal."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def between(interval: IntervalView) -> str:
    """An interval of accuracies in per cent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def source(interval: IntervalView) -> str:
    """What an interval is from, in words."""
    return "over seeds" if interval.of == "seeds" else "from the number of test images"


def heat(value: float) -> int:
    """The number of the colour of an accuracy, from 0 to `HEATS`."""
    return round(HEATS * min(1.0, max(0.0, value)))


def parted(one: IntervalView, other: IntervalView) -> bool:
    """Whether two intervals share no value."""
    return one.high < other.low or other.high < one.low


def interval(score: Score) -> IntervalView:
    """The wider of the interval over seeds and the one from the number of test images."""
    test = IntervalView(low=score.test_interval[0], high=score.test_interval[1], of="test")
    if score.seeds_interval is None:
        return test
    seeds = IntervalView(low=score.seeds_interval[0], high=score.seeds_interval[1], of="seeds")
    return max(seeds, test, key=lambda each: each.high - each.low)


@dataclass(frozen=True)
class Baseline:
    """What the same protocol gave for the network without its training."""

    score: Score
    text: str
    """Its weights in words."""
    interval: IntervalView
    verdict: str
    """The backbone beside it, in words."""


@dataclass(frozen=True)
class Row:
    """One protocol's score of the backbone, with the baselines."""

    title: str
    score: Score
    interval: IntervalView
    top5: float | None
    baselines: Sequence[Baseline]
    notes: Sequence[str]
    """What people should know of the measurements, such as a fit that has not converged."""


def rows(found: Evaluation) -> list[Row]:
    """The scores of the backbone, in the order of the protocols."""
    return [_row(score, found) for score in found.scores if score.weights == "backbone"]


def _row(score: Score, found: Evaluation) -> Row:
    own = interval(score)
    beside = [each for each in found.scores if _beside(each, score)]
    top5 = [each.top5 for each in score.seeds if each.top5 is not None]
    return Row(
        title(score.protocol, score.share),
        score,
        own,
        sum(top5) / len(top5) if top5 else None,
        [_baseline(each, own, score.top1) for each in beside],
        _notes(score),
    )


def _beside(other: Score, score: Score) -> bool:
    return other.weights != "backbone" and (other.protocol, other.share) == (score.protocol, score.share)


def _baseline(score: Score, backbone: IntervalView, top1: float) -> Baseline:
    own = interval(score)
    apart = parted(own, backbone)
    verdict = ("better" if top1 > score.top1 else "worse") if apart else "no clear difference"
    return Baseline(score, WEIGHTS[score.weights], own, verdict)


def _notes(score: Score) -> list[str]:
    """Warnings about single measurements."""
    missed = [str(each.seed) for each in score.seeds if each.details.get("converged") is False]
    return [f"The fit did not converge for seed {', '.join(missed)}: more is possible."] if missed else []


def details(measured: Measured) -> list[tuple[str, float | str | bool]]:
    """What was chosen or found beside a score, with names in words."""
    return [(_words(name), value) for name, value in measured.details.items()]


def _words(name: str) -> str:
    return name.replace("_", " ").replace("top1 k", "accuracy with k = ").replace("top1", "accuracy")


def settings(score: Score) -> list[tuple[str, str]]:
    """A protocol's settings in words."""
    return [
        (_words(name), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in score.settings.items()
    ]


# --- the chart --------------------------------------------------------------------------------------------------------


def figure(found: Evaluation) -> dict[str, Any]:
    """Bars with error bars, for charts.js: one colour for each set of weights."""
    order = [row.title for row in rows(found)]
    traces = [_bars(found.scores, weights) for weights in COLOURS if any(s.weights == weights for s in found.scores)]
    axes = {
        "xaxis": {"title": {"text": "protocol"}, "categoryorder": "array", "categoryarray": order},
        "yaxis": {"title": {"text": "accuracy in %"}, "range": [0, 100]},
    }
    return {"data": traces, "layout": axes | {"barmode": "group", "legend": {"y": 1.12}, "margin": {"t": 40}}}


def _bars(scores: Iterable[Score], weights: str) -> dict[str, Any]:
    chosen = [each for each in scores if each.weights == weights]
    ends = [interval(each) for each in chosen]
    return {
        "type": "bar",
        "name": WEIGHTS[weights],
        "x": [title(each.protocol, each.share) for each in chosen],
        "y": [100 * each.top1 for each in chosen],
        "marker": {"color": COLOURS[weights]},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [100 * (end.high - each.top1) for each, end in zip(chosen, ends, strict=True)],
            "arrayminus": [100 * (each.top1 - end.low) for each, end in zip(chosen, ends, strict=True)],
        },
        "hovertemplate": "%{x}: %{y:.1f} %<extra>" + WEIGHTS[weights] + "</extra>",
    }


# --- corruptions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorruptionRow:
    """Accuracy with one corruption, by severity."""

    title: str
    cells: Sequence[float | None]
    mean: float
    baseline: float | None
    """The mean of the untrained network."""


@dataclass(frozen=True)
class Corruptions:
    severities: Sequence[int]
    rows: Sequence[CorruptionRow]

    @property
    def with_baseline(self) -> bool:
        return any(row.baseline is not None for row in self.rows)


def corruptions(found: Evaluation) -> Corruptions | None:
    """The table of corruptions against severities; None without the protocol."""
    values = {(each.weights, each.corruption, each.severity): each.top1 for each in found.corruptions}
    severities = sorted({each.severity for each in found.corruptions})
    names = dict.fromkeys(each.corruption for each in found.corruptions if each.weights == "backbone")
    if not names:
        return None

    def cells(weights: WeightsMeasured, name: str) -> list[float | None]:
        return [values.get((weights, name, severity)) for severity in severities]

    table = [
        CorruptionRow(
            name.replace("_", " ").replace("jpeg", "JPEG"),
            cells("backbone", name),
            _mean(cells("backbone", name)) or 0.0,
            _mean(cells("random", name)),
        )
        for name in names
    ]
    return Corruptions(severities, table)


def _mean(values: Iterable[float | None]) -> float | None:
    there = [each for each in values if each is not None]
    return sum(there) / len(there) if there else None


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassRow:
    """One class: the share of its test images that each protocol predicted."""

    name: str
    values: Mapping[str, float | None]
    """By the score's key."""


def class_scores(found: Evaluation) -> list[Score]:
    """The scores that say how well each class is predicted."""
    return [each for each in found.scores if each.per_class and each.weights == "backbone"]


def classes(found: Evaluation, sort: str | None) -> list[ClassRow]:
    """The classes, sorted by a score's key, or by `class`, with `-` for descending; by default the worst first.

    ``sort`` must be None or one of `class_sorts`.
    """
    scores = class_scores(found)
    table = [
        ClassRow(name, {each.key: each.per_class[index] for each in scores}) for index, name in enumerate(found.classes)
    ]
    key = (sort or (scores[0].key if scores else "class")).removeprefix("-")
    descending = bool(sort and sort.startswith("-"))
    if key == "class":
        return sorted(table, key=lambda row: row.name, reverse=descending)
    there = [row for row in table if row.values.get(key) is not None]
    absent = [row for row in table if row.values.get(key) is None]  # classes without test images come last
    return [*sorted(there, key=lambda row: row.values[key] or 0.0, reverse=descending), *absent]


def class_sorts(found: Evaluation) -> list[str]:
    """What the classes can be sorted by."""
    keys = ["class", *(each.key for each in class_scores(found))]
    return [*keys, *(f"-{key}" for key in keys)]


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What the pages of one evaluation show."""

    job: str
    evaluation: Evaluation
    files: Mapping[str, str]
    """The paths of its pictures and tables on this server; empty for who may not see them."""
    rows: Sequence[Row]
    figure: Mapping[str, Any]
    corruptions: Corruptions | None
    class_scores: Sequence[Score]
    worst: Sequence[ClassRow]
    """The classes that are predicted worst."""

    @property
    def with_top5(self) -> bool:
        return any(row.top5 is not None for row in self.rows)

    @property
    def hidden_classes(self) -> int:
        """Classes that are not among the worst."""
        return len(self.evaluation.classes) - len(self.worst)


def result(job: str, found: Evaluation, files: Mapping[str, str]) -> Result:
    scores = class_scores(found)
    worst = classes(found, None)[:WORST] if scores else []
    return Result(job, found, files, rows(found), figure(found), corruptions(found), scores, worst)


FILTERS: Final[Mapping[str, Any]] = {
    "accuracy": accuracy,
    "between": between,
    "interval_source": source,
    "heat": heat,
    "headline_scores": headline,
    "in_protocol_order": in_protocol_order,
    "key_title": key_title,
    "millions": millions,
    "protocol_title": title,
    "measured_details": details,
    "protocol_settings": settings,
}
"""Filters of the pages of evaluations."""
