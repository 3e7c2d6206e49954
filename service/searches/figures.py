"""Draws the figures of a search with Optuna, small enough for a page and without a theme.

Importing this module takes half a second: `plots` imports it when the first figure is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from optuna import visualization
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Stored

from service.searches.analysis import STATES, best, colour, is_own_result
from service.searches.figure_data import (
    TRIAL,
    FigureSubject,
    NothingToShow,
    PlotlyFigure,
    Trials,
    hover,
    hover_text,
    number_ticks,
    plain,
    short_path,
    study_of,
    traces_and_layout,
    utc_time,
    without_theme,
)
from service.searches.schemas import PlotName, PlotView, TrialState
from trainer.spec.search import SearchSpec

BYTES: Final = 900_000
"""Size of a figure as JSON, at most: a larger one is drawn of fewer trials."""
IMPORTANCE_MIN_TRIALS: Final = 4
"""Complete trials that the importance of parameters needs."""
IMPORTANCE_RELIABLE_TRIALS: Final = 50
"""Complete trials from which importance is reliable: PED-ANOVA compares the best tenth, then five trials, with all."""
COLOURS: Final[Mapping[TrialState, str]] = {
    TrialState.COMPLETE: "#2563eb",
    TrialState.PRUNED: "#ea8a00",
    TrialState.FAILED: "#dc2626",
    TrialState.RUNNING: "#16a34a",
}


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure."""

    draw: Callable[[FigureSubject], PlotlyFigure]
    includes: Callable[[FrozenTrial], bool]
    """Whether it shows a trial."""
    empty_note: str
    """Why it is empty where it shows none."""
    max_trials: int
    """Trials at most: more cannot be told apart, or take long to draw."""
    select: Callable[[FigureSubject, int], Trials]
    """The trials to keep where there are too many; an even sample of the others joins them."""


def draw(spec: SearchSpec, name: PlotName, params: Sequence[str], trials: Trials) -> PlotView:
    """A figure of these trials and ``params``; all parameters where none are given."""
    kind = FIGURE_KINDS[name]
    subject = FigureSubject(spec, params or sorted(spec.space), [trial for trial in trials if kind.includes(trial)])
    try:
        shown, (data, layout) = _draw_within_limits(subject, kind)
    except NothingToShow as why:
        return PlotView(name=name, data=[], layout={}, trials=0, note=f"Nothing to show: {why}.")
    # Unchanged while only trials are added, so that plotly keeps the zoom.
    layout["uirevision"] = "/".join([name, *params])
    ended = sum(trial.state.is_finished() for trial in shown.trials)
    return PlotView(name=name, data=data, layout=layout, trials=ended, note=_note(name, shown, subject))


def _draw_within_limits(subject: FigureSubject, kind: FigureKind) -> tuple[FigureSubject, PlotlyFigure]:
    """A figure within the limits of size and trials, and what it shows; raises `NothingToShow`."""
    if not subject.trials:
        raise NothingToShow(kind.empty_note)
    limit = kind.max_trials
    while True:
        shown = _thinned(subject, kind, limit)
        data, layout = kind.draw(shown)
        drawn = plain(data), plain(without_theme(layout))
        size = len(json.dumps(drawn, separators=(",", ":"), ensure_ascii=False).encode())
        if size <= BYTES or len(shown.trials) == 1:
            return shown, drawn
        limit = max(1, int(0.9 * len(shown.trials) * BYTES / size))


def _note(name: PlotName, shown: FigureSubject, subject: FigureSubject) -> str | None:
    count = len(shown.trials)
    if count < len(subject.trials):
        return f"Shows {count:,} of {len(subject.trials):,} trials."
    if name == "importance" and count < IMPORTANCE_RELIABLE_TRIALS:
        return f"Based on only {count} complete trials: it is reliable from {IMPORTANCE_RELIABLE_TRIALS}."
    return None


# --- selecting trials -------------------------------------------------------------------------------------------------


def _complete(trial: FrozenTrial) -> bool:
    return trial.state is Stored.COMPLETE and is_own_result(trial) and all(map(math.isfinite, trial.values))


def _evaluated(trial: FrozenTrial) -> bool:
    return trial.state not in {Stored.WAITING, Stored.FAIL} and is_own_result(trial) and bool(trial.intermediate_values)


def _started(trial: FrozenTrial) -> bool:
    return trial.state is not Stored.WAITING and trial.datetime_start is not None


def _thinned(subject: FigureSubject, kind: FigureKind, limit: int) -> FigureSubject:
    """The same input with at most ``limit`` trials."""
    if len(subject.trials) <= limit:
        return subject
    numbers = {trial.number for trial in kind.select(subject, limit)[:limit]}
    others = [trial.number for trial in subject.trials if trial.number not in numbers]
    room = limit - len(numbers)
    numbers.update(others[index * len(others) // room] for index in range(room))
    return replace(subject, trials=[trial for trial in subject.trials if trial.number in numbers])


def _best(subject: FigureSubject, limit: int) -> Trials:
    """The best trials, to a quarter of the limit: those of the Pareto front first, then by the first objective."""
    complete = [trial for trial in subject.trials if trial.state is Stored.COMPLETE]
    front = best(complete, subject.spec) if len(subject.metrics) > 1 else []
    return [*front, *sorted(complete, key=subject.cost)][: limit // 4]


def _best_and_newest(subject: FigureSubject, limit: int) -> Trials:
    return [*_best(subject, limit), *subject.trials[len(subject.trials) - limit // 4 :]]


def _newest(subject: FigureSubject, limit: int) -> Trials:
    return subject.trials[len(subject.trials) - limit :]


def _records(subject: FigureSubject, limit: int) -> Trials:
    """Trials that were the best so far when they ended, the last first."""
    records, least = list[FrozenTrial](), math.inf
    for trial in subject.trials:
        cost = subject.cost(trial)
        if cost < least:
            records, least = [trial, *records], cost
    return records[:limit]


# --- the figures ------------------------------------------------------------------------------------------------------


def _history(subject: FigureSubject) -> PlotlyFigure:
    # Optuna uses a trial's number as its index.
    study = study_of(subject, subject.spec.objectives[:1], numbers=range(len(subject.trials)))
    traces, layout = traces_and_layout(visualization.plot_optimization_history(study, target_name=subject.metric))
    for trace in traces:
        trace["x"] = [subject.trials[index].number for index in trace["x"]]
    values, best_so_far = traces[:2]
    values.update(hover(subject, values["x"]), name=TrialState.COMPLETE.value)
    best_so_far["name"] = "best so far"
    layout["xaxis"] |= number_ticks(subject)
    return [values, best_so_far], layout


def _curves(subject: FigureSubject) -> PlotlyFigure:
    study = study_of(subject, subject.spec.objectives[:1])
    traces, layout = traces_and_layout(visualization.plot_intermediate_values(study))
    for trace, trial in zip(traces, subject.trials, strict=True):
        trace.update(name=f"{TRIAL} {trial.number}", line={"color": colour(trial.number)}, showlegend=False)
        trace.update(text=hover_text(subject.spec, trial), hovertemplate="%{text}<br>epoch %{x}: %{y}<extra></extra>")
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
        traces.append(marks | hover(subject, [trial.number for trial in pruned]))
    titles = {"xaxis": {"title": {"text": "Epoch"}}, "yaxis": {"title": {"text": subject.metric}}}
    return traces, layout | titles | {"showlegend": True}


def _parallel(subject: FigureSubject) -> PlotlyFigure:
    several = len(subject.spec.objectives) > 1
    # Optuna sorts the lines without naming their trials: an added axis of trial numbers identifies them.
    study = study_of(subject, subject.spec.objectives, with_number=True)
    paths = sorted(subject.present)
    figure = visualization.plot_parallel_coordinate(
        study, params=[*paths, TRIAL], target_name="Objective Value" if several else subject.metric
    )
    traces, layout = traces_and_layout(figure)
    *lines, bar = traces
    by_number = {trial.number: trial for trial in subject.trials}
    first, last = min(by_number), max(by_number)
    for line in lines:
        number = round(first + line["y"][-1] * (last - first)) if first < last else first
        line.update(name=f"{TRIAL} {number}", text=hover_text(subject.spec, by_number[number]))
        line["hovertemplate"] = "%{text}<extra></extra>"
        del line["customdata"]
    layout["xaxis"]["ticktext"] = [*subject.metrics, *(short_path(path, subject.spec.space) for path in paths), TRIAL]
    for annotation in layout["annotations"]:
        del annotation["font"]["color"]
    bar["marker"]["colorbar"].pop("tickvals", None)  # one for each Pareto rank: dozens
    return [*lines, bar], layout


def _importance(subject: FigureSubject) -> PlotlyFigure:
    if len(subject.trials) < IMPORTANCE_MIN_TRIALS:
        raise NothingToShow(f"it needs {IMPORTANCE_MIN_TRIALS} complete trials and has {len(subject.trials)}")
    study = study_of(subject, subject.spec.objectives[:1])
    figure = visualization.plot_param_importances(
        study, evaluator=PedAnovaImportanceEvaluator(), params=subject.present, target_name=subject.metric
    )
    traces, layout = traces_and_layout(figure)
    for trace in traces:
        trace["hovertemplate"] = "%{y}: %{x}<extra></extra>"
    titles = {"xaxis": {"title": {"text": f"Importance for {subject.metric}"}}, "yaxis": {"automargin": True}}
    return traces, layout | titles


def _slice(subject: FigureSubject) -> PlotlyFigure:
    study = study_of(subject, subject.spec.objectives[:1])
    traces, layout = traces_and_layout(
        visualization.plot_slice(study, params=subject.present, target_name=subject.metric)
    )
    for trace in traces:
        trace.update(hover(subject, trace["marker"]["color"]))
    for axis in layout.values():
        if isinstance(axis, dict) and (title := axis.get("title", {}).get("text")) in subject.spec.space:
            axis["title"]["text"] = short_path(title, subject.spec.space)  # full paths would overlap
    return traces, layout


def _contour(subject: FigureSubject) -> PlotlyFigure:
    both = [trial for trial in subject.trials if set(subject.params) <= set(trial.params)]
    if any(len({trial.params[path] for trial in both}) < 2 for path in subject.params):
        raise NothingToShow(f"no two complete trials differ in both {' and '.join(subject.params)} yet")
    subject = replace(subject, trials=both)
    study = study_of(subject, subject.spec.objectives[:1])
    figure = visualization.plot_contour(study, params=list(subject.params), target_name=subject.metric)
    (heights, points, *_), layout = traces_and_layout(figure)
    points.update(hover(subject, [trial.number for trial in both]))
    return [heights, points], layout


def _timeline(subject: FigureSubject) -> PlotlyFigure:
    study = study_of(subject, subject.spec.objectives[:1])
    traces, layout = traces_and_layout(visualization.plot_timeline(study))
    for trace in traces:
        state = STATES[Stored[trace["name"]]]
        trace["base"] = [utc_time(moment) for moment in trace["base"]]
        del trace["text"]
        seconds = [[round(milliseconds / 1000)] for milliseconds in trace["x"]]
        trace.update(hover(subject, trace["y"], ("seconds",), seconds))
        trace.update(name=state.value, marker={"color": COLOURS[state]})
    numbers = {"title": {"text": "Trial"}} | number_ticks(subject)
    return traces, layout | {"xaxis": {"type": "date", "title": {"text": "Time (UTC)"}}, "yaxis": numbers}


def _pareto(subject: FigureSubject) -> PlotlyFigure:
    if len(subject.metrics) < 2:
        raise NothingToShow(
            f"{subject.metric} is the only objective of this search, and a Pareto front needs several objectives"
        )
    study = study_of(subject, subject.spec.objectives)
    traces, layout = traces_and_layout(visualization.plot_pareto_front(study, target_names=subject.metrics))
    for trace, name in zip(traces, ("beaten", "best"), strict=True):
        del trace["text"]
        trace.update(hover(subject, trace["marker"]["color"]), name=name)
    return traces, layout


FIGURE_KINDS: Final[dict[PlotName, FigureKind]] = {
    "history": FigureKind(_history, _complete, "no trial has completed yet", 3_000, _records),
    "curves": FigureKind(_curves, _evaluated, "no trial has been evaluated yet", 500, _best_and_newest),
    "parallel": FigureKind(_parallel, _complete, "no trial has completed yet", 300, _best),
    "importance": FigureKind(_importance, _complete, "no trial has completed yet", 100_000, _best),
    "slice": FigureKind(_slice, _complete, "no trial has completed yet", 500, _best),
    "contour": FigureKind(_contour, _complete, "no trial has completed yet", 150, _best),
    "timeline": FigureKind(_timeline, _started, "no trial has started yet", 3_000, _newest),
    "pareto": FigureKind(_pareto, _complete, "no trial has completed yet", 3_000, _best),
}
