"""Figures of a search: drawn by Optuna, made small enough for a page, and without anything that themes them.

Importing this takes half a second: `plots` does so when the first figure is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import optuna
from optuna import visualization
from optuna.distributions import IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Stored

from service.searches.analysis import STATES, best, colour, is_repeat, values_of
from service.searches.schemas import PlotName, PlotView, TrialState
from trainer.spec.search import ObjectiveSpec, SearchSpec

BYTES: Final = 900_000
"""A figure that would be longer as JSON is drawn of fewer trials."""
FEW: Final = 4
"""Complete trials below which importance is not worked out."""
ENOUGH: Final = 50
"""Those from which it can be trusted: PED-ANOVA compares the best tenth with all, and five trials are that then."""
LONGEST: Final = 60
"""Characters of a value in a hover text."""
ABSENT: Final = "–"
TRIAL: Final = "trial"
"""The axis of trials' numbers."""
COLOURS: Final[Mapping[TrialState, str]] = {
    TrialState.COMPLETE: "#2563eb",
    TrialState.PRUNED: "#ea8a00",
    TrialState.FAILED: "#dc2626",
    TrialState.RUNNING: "#16a34a",
}

Drawn = tuple[list[dict[str, Any]], dict[str, Any]]
"""Traces and layout."""
Trials = Sequence[FrozenTrial]


class NothingToShow(Exception):
    """There is no figure yet; the text says why."""


@dataclass(frozen=True)
class Subject:
    """What a figure shows."""

    spec: SearchSpec
    params: Sequence[str]
    trials: Trials

    @property
    def metric(self) -> str:
        """The first objective's."""
        return self.spec.objectives[0].metric

    @property
    def metrics(self) -> list[str]:
        return [objective.metric for objective in self.spec.objectives]

    def cost(self, trial: FrozenTrial) -> float:
        """Of a complete trial, by the first objective: less is better."""
        value = float(trial.values[0])
        return -value if self.spec.objectives[0].mode == "max" else value

    @property
    def present(self) -> list[str]:
        """Its parameters that a trial has: one with conditions may have been in none yet."""
        found = [path for path in self.params if any(path in trial.params for trial in self.trials)]
        if not found:
            raise NothingToShow(f"no complete trial has {' or '.join(self.params)} yet")
        return found


@dataclass(frozen=True)
class Kind:
    """One kind of figure."""

    paint: Callable[[Subject], Drawn]
    shows: Callable[[FrozenTrial], bool]
    """Whether it shows a trial."""
    empty: str
    """What to say where it shows none."""
    most: int
    """Trials at most: more of them cannot be told apart, or take long."""
    kept: Callable[[Subject, int], Trials]
    """Trials that stay where there are more than so many; of the others some do, evenly."""


def draw(spec: SearchSpec, name: PlotName, params: Sequence[str], trials: Trials) -> PlotView:
    """A figure of these trials; ``params`` are those it shows, all of them where none are given."""
    kind = KINDS[name]
    subject = Subject(spec, params or sorted(spec.space), [trial for trial in trials if kind.shows(trial)])
    try:
        shown, (data, layout) = _fitting(subject, kind)
    except NothingToShow as why:
        return PlotView(name=name, data=[], layout={}, trials=0, note=f"Nothing to show: {why}.")
    layout["uirevision"] = "/".join([name, *params])  # the same while only trials come: zoom stays
    ended = sum(trial.state.is_finished() for trial in shown.trials)
    return PlotView(name=name, data=data, layout=layout, trials=ended, note=_note(name, shown, subject))


def _fitting(subject: Subject, kind: Kind) -> tuple[Subject, Drawn]:
    """A figure that is no longer than may be, and what it shows; raises `NothingToShow`."""
    if not subject.trials:
        raise NothingToShow(kind.empty)
    most = kind.most
    while True:
        shown = _thinned(subject, kind, most)
        data, layout = kind.paint(shown)
        drawn = _plain(data), _plain(_themeless(layout))
        size = len(json.dumps(drawn, separators=(",", ":"), ensure_ascii=False).encode())
        if size <= BYTES or len(shown.trials) == 1:
            return shown, drawn
        most = max(1, int(0.9 * len(shown.trials) * BYTES / size))


def _note(name: PlotName, shown: Subject, subject: Subject) -> str | None:
    count = len(shown.trials)
    if count < len(subject.trials):
        return f"Shows {count:,} of {len(subject.trials):,} trials."
    if name == "importance" and count < ENOUGH:
        return f"Of {count} complete trials only: it can be trusted from {ENOUGH}."
    return None


# --- which trials -----------------------------------------------------------------------------------------------------


def _complete(trial: FrozenTrial) -> bool:
    return trial.state is Stored.COMPLETE and not is_repeat(trial) and all(map(math.isfinite, trial.values))


def _evaluated(trial: FrozenTrial) -> bool:
    return trial.state not in {Stored.WAITING, Stored.FAIL} and not is_repeat(trial) and bool(trial.intermediate_values)


def _begun(trial: FrozenTrial) -> bool:
    return trial.state is not Stored.WAITING and trial.datetime_start is not None


def _thinned(subject: Subject, kind: Kind, most: int) -> Subject:
    """The same with at most so many trials."""
    if len(subject.trials) <= most:
        return subject
    numbers = {trial.number for trial in kind.kept(subject, most)[:most]}
    others = [trial.number for trial in subject.trials if trial.number not in numbers]
    room = most - len(numbers)
    numbers.update(others[index * len(others) // room] for index in range(room))
    return replace(subject, trials=[trial for trial in subject.trials if trial.number in numbers])


def _best(subject: Subject, most: int) -> Trials:
    """The best quarter by the first objective; of several objectives first those that no other trial beats."""
    found = [trial for trial in subject.trials if trial.state is Stored.COMPLETE]
    front = best(found, subject.spec) if len(subject.metrics) > 1 else []
    return [*front, *sorted(found, key=subject.cost)][: most // 4]


def _best_and_newest(subject: Subject, most: int) -> Trials:
    return [*_best(subject, most), *subject.trials[len(subject.trials) - most // 4 :]]


def _newest(subject: Subject, most: int) -> Trials:
    return subject.trials[len(subject.trials) - most :]


def _records(subject: Subject, most: int) -> Trials:
    """Those that were the best when they ended, the last of them first."""
    found, least = list[FrozenTrial](), math.inf
    for trial in subject.trials:
        cost = subject.cost(trial)
        if cost < least:
            found, least = [trial, *found], cost
    return found[:most]


# --- the figures ------------------------------------------------------------------------------------------------------


def _history(subject: Subject) -> Drawn:
    # Optuna takes a number for a place in the list.
    study = _study(subject, subject.spec.objectives[:1], numbers=range(len(subject.trials)))
    traces, layout = _parts(visualization.plot_optimization_history(study, target_name=subject.metric))
    for trace in traces:
        trace["x"] = [subject.trials[place].number for place in trace["x"]]
    values, best_so_far = traces[:2]
    values.update(_hover(subject, values["x"]), name=TrialState.COMPLETE.value)
    best_so_far["name"] = "best so far"
    layout["xaxis"] |= _of_numbers(subject)
    return [values, best_so_far], layout


def _curves(subject: Subject) -> Drawn:
    study = _study(subject, subject.spec.objectives[:1])
    traces, layout = _parts(visualization.plot_intermediate_values(study))
    for trace, trial in zip(traces, subject.trials, strict=True):
        trace.update(name=f"{TRIAL} {trial.number}", line={"color": colour(trial.number)}, showlegend=False)
        trace.update(text=_told(subject.spec, trial), hovertemplate="%{text}<br>epoch %{x}: %{y}<extra></extra>")
    if pruned := [trial for trial in subject.trials if trial.state is Stored.PRUNED]:
        ends = [max(trial.intermediate_values.items()) for trial in pruned]
        marks = {
            "type": "scatter",
            "mode": "markers",
            "name": TrialState.PRUNED.value,
            "x": [epoch for epoch, _ in ends],
            "y": [value for _, value in ends],
            "marker": {"symbol": "x", "size": 8, "color": COLOURS[TrialState.PRUNED]},
        }
        traces.append(marks | _hover(subject, [trial.number for trial in pruned]))
    titles = {"xaxis": {"title": {"text": "Epoch"}}, "yaxis": {"title": {"text": subject.metric}}}
    return traces, layout | titles | {"showlegend": True}


def _parallel(subject: Subject) -> Drawn:
    several = len(subject.spec.objectives) > 1
    # Optuna sorts the lines and does not say whose they are: an axis of the trials' numbers does, and is worth having.
    study = _study(subject, subject.spec.objectives, with_number=True)
    paths = sorted(subject.present)
    figure = visualization.plot_parallel_coordinate(
        study, params=[*paths, TRIAL], target_name="Objective Value" if several else subject.metric
    )
    traces, layout = _parts(figure)
    *lines, bar = traces
    by_number = {trial.number: trial for trial in subject.trials}
    first, last = min(by_number), max(by_number)
    for line in lines:
        number = round(first + line["y"][-1] * (last - first)) if first < last else first
        line.update(name=f"{TRIAL} {number}", text=_told(subject.spec, by_number[number]))
        line["hovertemplate"] = "%{text}<extra></extra>"
        del line["customdata"]
    layout["xaxis"]["ticktext"] = [*subject.metrics, *(_short(path, subject.spec.space) for path in paths), TRIAL]
    for annotation in layout["annotations"]:
        del annotation["font"]["color"]
    bar["marker"]["colorbar"].pop("tickvals", None)  # of Pareto ranks one each: dozens
    return [*lines, bar], layout


def _importance(subject: Subject) -> Drawn:
    if len(subject.trials) < FEW:
        raise NothingToShow(f"it needs {FEW} complete trials and has {len(subject.trials)}")
    study = _study(subject, subject.spec.objectives[:1])
    figure = visualization.plot_param_importances(
        study, evaluator=PedAnovaImportanceEvaluator(), params=subject.present, target_name=subject.metric
    )
    traces, layout = _parts(figure)
    for trace in traces:
        trace["hovertemplate"] = "%{y}: %{x}<extra></extra>"
    titles = {"xaxis": {"title": {"text": f"Importance for {subject.metric}"}}, "yaxis": {"automargin": True}}
    return traces, layout | titles


def _slice(subject: Subject) -> Drawn:
    study = _study(subject, subject.spec.objectives[:1])
    traces, layout = _parts(visualization.plot_slice(study, params=subject.present, target_name=subject.metric))
    for trace in traces:
        trace.update(_hover(subject, trace["marker"]["color"]))
    for axis in layout.values():
        if isinstance(axis, dict) and (title := axis.get("title", {}).get("text")) in subject.spec.space:
            axis["title"]["text"] = _short(title, subject.spec.space)  # whole ones overlap
    return traces, layout


def _contour(subject: Subject) -> Drawn:
    both = [trial for trial in subject.trials if set(subject.params) <= set(trial.params)]
    if any(len({trial.params[path] for trial in both}) < 2 for path in subject.params):
        raise NothingToShow(f"no two complete trials differ in both {' and '.join(subject.params)} yet")
    subject = replace(subject, trials=both)
    study = _study(subject, subject.spec.objectives[:1])
    figure = visualization.plot_contour(study, params=list(subject.params), target_name=subject.metric)
    (heights, points, *_), layout = _parts(figure)
    points.update(_hover(subject, [trial.number for trial in both]))
    return [heights, points], layout


def _timeline(subject: Subject) -> Drawn:
    study = _study(subject, subject.spec.objectives[:1])
    traces, layout = _parts(visualization.plot_timeline(study))
    for trace in traces:
        state = STATES[Stored[trace["name"]]]
        trace["base"] = [_utc(moment) for moment in trace["base"]]
        del trace["text"]
        seconds = [[round(milliseconds / 1000)] for milliseconds in trace["x"]]
        trace.update(_hover(subject, trace["y"], ("seconds",), seconds))
        trace.update(name=state.value, marker={"color": COLOURS[state]})
    numbers = {"title": {"text": "Trial"}} | _of_numbers(subject)
    return traces, layout | {"xaxis": {"type": "date", "title": {"text": "Time (UTC)"}}, "yaxis": numbers}


def _pareto(subject: Subject) -> Drawn:
    if len(subject.metrics) < 2:
        raise NothingToShow(f"this search seeks {subject.metric} alone, and only several objectives have a front")
    study = _study(subject, subject.spec.objectives)
    traces, layout = _parts(visualization.plot_pareto_front(study, target_names=subject.metrics))
    for trace, name in zip(traces, ("beaten", "best"), strict=True):
        del trace["text"]
        trace.update(_hover(subject, trace["marker"]["color"]), name=name)
    return traces, layout


KINDS: Final[dict[PlotName, Kind]] = {
    "history": Kind(_history, _complete, "no trial has completed yet", 3_000, _records),
    "curves": Kind(_curves, _evaluated, "no trial has been evaluated yet", 500, _best_and_newest),
    "parallel": Kind(_parallel, _complete, "no trial has completed yet", 300, _best),
    "importance": Kind(_importance, _complete, "no trial has completed yet", 100_000, _best),
    "slice": Kind(_slice, _complete, "no trial has completed yet", 500, _best),
    "contour": Kind(_contour, _complete, "no trial has completed yet", 150, _best),
    "timeline": Kind(_timeline, _begun, "no trial has begun yet", 3_000, _newest),
    "pareto": Kind(_pareto, _complete, "no trial has completed yet", 3_000, _best),
}


# --- from Optuna and to the page --------------------------------------------------------------------------------------


class _Given(InMemoryStorage):
    """A study's storage with trials that were read elsewhere: to add them one by one would copy each twice."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()
        self._given = trials

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[Stored] | None = None
    ) -> list[FrozenTrial]:
        """They are never changed, so nobody needs copies."""
        del study_id, deepcopy
        return [trial for trial in self._given if states is None or trial.state in states]


def _study(
    subject: Subject,
    objectives: Sequence[ObjectiveSpec],
    numbers: Sequence[int] | None = None,
    with_number: bool = False,
) -> Study:
    """The trials as a study of these objectives, the first or all, whose figures Optuna draws.

    ``numbers`` are others than the trials' own; ``with_number`` makes a trial's number one of its parameters.
    """
    axis = {TRIAL: IntDistribution(0, max(trial.number for trial in subject.trials))} if with_number else {}
    bare = [
        # Without attributes: Optuna writes them into hover texts.
        FrozenTrial(
            number=number,
            trial_id=number,
            state=trial.state,
            value=None,
            values=trial.values[: len(objectives)] if trial.state is Stored.COMPLETE else None,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=trial.params | dict.fromkeys(axis, trial.number),
            distributions=trial.distributions | axis,
            user_attrs={},
            system_attrs={},
            intermediate_values=trial.intermediate_values,
        )
        for number, trial in zip(numbers or [trial.number for trial in subject.trials], subject.trials, strict=True)
    ]
    directions = [
        StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE for objective in objectives
    ]
    return optuna.create_study(storage=_Given(bare), directions=directions)


def _parts(figure: Any) -> Drawn:
    """Of a plotly figure, numbers still as Optuna has them: plotly's own JSON packs arrays in base64."""
    return [trace.to_plotly_json() for trace in figure.data], figure.layout.to_plotly_json()


def _of_numbers(subject: Subject) -> dict[str, Any]:
    """Of an axis of trials' numbers: plotly puts halves between a few."""
    return {"dtick": 1} if len(subject.trials) <= 10 else {}


def _themeless(layout: dict[str, Any]) -> dict[str, Any]:
    """A layout without the title, and without what the page decides."""
    return {name: value for name, value in layout.items() if name not in {"template", "title", "plot_bgcolor"}}


def _plain(value: Any) -> Any:
    """As JSON has it: floats with six significant digits, null for what is no finite number."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _hover(
    subject: Subject, numbers: Sequence[int], more: Sequence[str] = (), of_more: Sequence[Sequence[Any]] = ()
) -> dict[str, Any]:
    """What a trace's points say of their trials: values in rows, their names once.

    ``of_more`` has, for each point, a value for each name of ``more``.
    """
    by_number = {trial.number: trial for trial in subject.trials}
    rows = [[number, *_told_values(subject.spec, by_number[number])] for number in numbers]
    if more:
        rows = [[*row, *values] for row, values in zip(rows, of_more, strict=True)]
    names = [TRIAL, *subject.metrics, *subject.spec.space, *more]
    lines = [f"{name}: %{{customdata[{place}]}}" for place, name in enumerate(names)]
    return {"customdata": rows, "hovertemplate": "<br>".join(lines) + "<extra></extra>"}


def _told(spec: SearchSpec, trial: FrozenTrial) -> str:
    """The same for a trace that is one trial."""
    names = [*(objective.metric for objective in spec.objectives), *spec.space]
    pairs = zip(names, map(_plain, _told_values(spec, trial)), strict=True)
    return "<br>".join([f"{TRIAL}: {trial.number}", *(f"{name}: {value}" for name, value in pairs if value != ABSENT)])


def _told_values(spec: SearchSpec, trial: FrozenTrial) -> list[Any]:
    """A value for each objective and each parameter."""
    params = [_shown(trial.params[path]) if path in trial.params else ABSENT for path in spec.space]
    values: Sequence[Any] = values_of(trial, spec) or [ABSENT] * len(spec.objectives)
    return [*values, *params]


def _shown(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return value[:LONGEST] if isinstance(value, str) else value


def _short(path: str, paths: Collection[str]) -> str:
    """The end of a path that no other has."""
    parts = path.split(".")
    ends = [".".join(parts[-count:]) for count in range(1, len(parts))]
    return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in paths) == 1), path)


def _utc(moment: str) -> str:
    """Optuna's times are the reader's own."""
    return datetime.fromisoformat(moment).astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
