"""Two versions side by side: what differs between their specs, and their results, sizes, curves and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from service.auth.caller import Caller
from service.backbones import registry, service
from service.backbones.comparison_schemas import (
    ComparedVersionView,
    ComparisonView,
    CurvePairView,
    EvaluationPairView,
    PicturePairView,
    ResultsView,
    SpecDifferenceView,
)
from service.backbones.registry import Served
from service.backbones.schemas import MAIN, VersionSummaryView, VersionView
from service.context.app_state import AppState
from service.http import json_text
from service.http.json_text import flat
from service.http.problems import ApiProblem
from service.jobs import evaluations
from service.jobs.evaluation_schemas import MeasuredView, MeasureView, VersionResultView
from trainer.protocol import names

LARGEST_FILE: Final = 2**20
"""Largest spec or metrics file that is read, in bytes."""
MOST_CURVES: Final = 100
MOST_POINTS: Final = 1000
"""Of a curve; the trainer writes a fifth of that."""
LARGEST_VALUE: Final = 1e300
"""Of a point, either way: JSON also holds numbers that no float does."""
PICTURE_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".webp")

Curve = list[tuple[float, float]]
Read = TypeVar("Read")


@dataclass
class _Side:
    """One of the two versions, with what its files say."""

    view: VersionView
    notes: list[str] = field(default_factory=list)
    spec: Mapping[str, Any] | None = None
    """By dotted path; None if it cannot be read."""
    curves: Mapping[str, Curve] = field(default_factory=dict)

    @property
    def pictures(self) -> dict[str, str]:
        """The URL of each of the card's pictures, by path."""
        folder = f"{names.BACKBONE_PICTURES}/"
        found = [file for file in self.view.files if file.path.startswith(folder)]
        return {file.path: file.url for file in found if file.path.lower().endswith(PICTURE_ENDINGS)}

    def shown(self) -> ComparedVersionView:
        sizes = dict.fromkeys(self.view.formats, 0)
        for file in self.view.files:
            form = file.path.partition("/")[0]
            if form in sizes:
                sizes[form] += file.size
        return ComparedVersionView(
            version=VersionSummaryView(**{name: getattr(self.view, name) for name in VersionSummaryView.model_fields}),
            bytes=None if self.view.state == "gone" else sum(file.size for file in self.view.files),
            sizes=sizes,
            notes=self.notes,
        )


def compare(state: AppState, caller: Caller, first: str, second: str) -> ComparisonView:
    """Two versions, each named as `name`, `name:3` or `name@alias`, side by side. Raises the API's 404 and 422."""
    texts = (("of", first), ("with", second))
    one, two = (_side(state, registry.find(state, caller, *named(*each))) for each in texts)
    prints = [side.view.dataset_fingerprint for side in (one, two)]
    return ComparisonView(
        first=one.shown(),
        second=two.shown(),
        same_dataset=prints[0] == prints[1] if all(prints) else None,
        spec=_differences(one.spec, two.spec),
        metrics=[_results(key, one, two) for key in sorted({*one.view.metrics, *two.view.metrics})],
        evaluations=_evaluations(one.view.evaluations, two.view.evaluations),
        curves=[
            CurvePairView(key=key, first=one.curves.get(key, []), second=two.curves.get(key, []))
            for key in sorted({*one.curves, *two.curves})
        ],
        pictures=[
            PicturePairView(path=path, first=one.pictures.get(path), second=two.pictures.get(path))
            for path in sorted({*one.pictures, *two.pictures})
        ],
    )


def named(parameter: str, text: str) -> tuple[str, str]:
    """A backbone's name, and the number or alias after `:` or `@`. Raises the API's 422."""
    name, separator, reference = text.partition("@" if "@" in text else ":")
    if not name or (separator and not reference):
        detail = (
            f"{parameter}: {text!r} names no version: write name, name:number or name@alias, such as digits@champion"
        )
        raise ApiProblem(422, "parameter_invalid", detail)
    return name, reference or MAIN


def _side(state: AppState, served: Served) -> _Side:
    side = _Side(service.describe(state, served))
    if served.gone:
        side.notes.append(registry.gone_text(served))
        return side
    side.spec = _read(state, served, side, names.BACKBONE_SPEC, _spec)
    side.curves = _read(state, served, side, names.BACKBONE_METRICS, _curves) or {}
    return side


def _read(
    state: AppState, served: Served, side: _Side, path: str, parse: Callable[[Mapping[str, Any]], Read]
) -> Read | None:
    """What a JSON file of a version says; None, with a note, if it cannot be compared. Raises `StorageUnreachable`."""
    size = next((file.size for file in side.view.files if file.path == path), None)
    if size is None:
        side.notes.append(f"it has no {path}")
    elif size > LARGEST_FILE:
        side.notes.append(f"{path} has {size:,} bytes; at most {LARGEST_FILE:,} are compared")
    else:
        data = state.artifacts.read(served.folder, path, 0, LARGEST_FILE) or b""
        try:
            document = json_text.read(data)
            return parse(document if isinstance(document, Mapping) else {})
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            side.notes.append(f"{path} cannot be read: {error}")
    return None


def _spec(document: Mapping[str, Any]) -> dict[str, Any]:
    return flat(document)


def _curves(document: Mapping[str, Any]) -> dict[str, Curve]:
    """The curves of a metrics file; anything that is no curve is left out."""
    found = document.get("curves")
    curves = found if isinstance(found, Mapping) else {}
    read = {key: _curve(summary) for key, summary in sorted(curves.items())[:MOST_CURVES]}
    return {key: curve for key, curve in read.items() if curve}


def _curve(summary: object) -> Curve:
    points = summary.get("points") if isinstance(summary, Mapping) else None
    pairs = points[:MOST_POINTS] if isinstance(points, Sequence) and not isinstance(points, str) else []
    return [(float(pair[0]), float(pair[1])) for pair in pairs if _is_point(pair)]


def _is_point(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    return all(isinstance(each, int | float) and -LARGEST_VALUE < each < LARGEST_VALUE for each in pair)


def _differences(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> list[SpecDifferenceView] | None:
    if first is None or second is None:
        return None
    return [
        SpecDifferenceView(path=path, first=first.get(path), second=second.get(path))
        for path in dict.fromkeys((*first, *second))
        if first.get(path)
        != second.get(path)  # a field that is null in one spec and missing in the other is no difference
    ]


def _results(key: str, one: _Side, two: _Side) -> ResultsView:
    first, second = one.view.metrics.get(key), two.view.metrics.get(key)
    difference = second - first if first is not None and second is not None else None
    return ResultsView(key=key, first=first, second=second, difference=difference)


def _evaluations(first: Sequence[VersionResultView], second: Sequence[VersionResultView]) -> list[EvaluationPairView]:
    """What evaluations have found about two versions, side by side where it can be compared."""
    ones, twos = ({_measure(each): each for each in results} for results in (first, second))
    pairs = [_pair(ones.get(measure), twos.get(measure)) for measure in dict.fromkeys((*ones, *twos))]
    return sorted(pairs, key=lambda pair: (pair.test.title, pair.test.fingerprint, pair.key))


def _measure(result: VersionResultView) -> tuple[object, ...]:
    return result.test.fingerprint, result.train.fingerprint, result.held_out, result.key


def _pair(first: VersionResultView | None, second: VersionResultView | None) -> EvaluationPairView:
    known = first or second
    if known is None:
        raise ValueError("a pair of results needs one of them")
    shared = {name: getattr(known, name) for name in MeasureView.model_fields}
    sides = {"first": _measured(first), "second": _measured(second)}
    if first is None or second is None:
        return EvaluationPairView(**shared, **sides)
    apart = first.interval.high < second.interval.low or second.interval.high < first.interval.low
    differs = evaluations.differing([first.settings, second.settings])
    difference = second.top1 - first.top1
    return EvaluationPairView(**shared, **sides, difference=difference, apart=apart and not differs, differs=differs)


def _measured(result: VersionResultView | None) -> MeasuredView | None:
    return MeasuredView(**{name: getattr(result, name) for name in MeasuredView.model_fields}) if result else None
