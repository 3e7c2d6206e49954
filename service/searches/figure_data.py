"""The data behind a search's figures: trials as a study that Optuna can draw, and plotly figures as plain JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import optuna
from optuna.distributions import IntDistribution
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as Stored

from service.searches.analysis import values_of
from trainer.spec.search import SearchSpec
from trainer.spec.search_sections import ObjectiveSpec

LONGEST: Final = 60
"""Characters of a value in a hover text, at most."""
ABSENT: Final = "–"
TRIAL: Final = "trial"
"""The axis of trial numbers."""

PlotlyFigure = tuple[list[dict[str, Any]], dict[str, Any]]
"""Traces and layout."""
Trials = Sequence[FrozenTrial]


class NothingToShow(Exception):
    """The figure would be empty; the message says why."""


@dataclass(frozen=True)
class FigureSubject:
    """What a figure shows: a search's spec, parameters and trials."""

    spec: SearchSpec
    params: Sequence[str]
    trials: Trials

    @property
    def metric(self) -> str:
        """The first objective's metric."""
        return self.spec.objectives[0].metric

    @property
    def metrics(self) -> list[str]:
        return [objective.metric for objective in self.spec.objectives]

    def cost(self, trial: FrozenTrial) -> float:
        """The cost of a complete trial by the first objective: less is better."""
        value = float(trial.values[0])
        return -value if self.spec.objectives[0].mode == "max" else value

    @property
    def present(self) -> list[str]:
        """The parameters that occur in a trial: a conditional one may not have occurred yet."""
        found = [path for path in self.params if any(path in trial.params for trial in self.trials)]
        if not found:
            raise NothingToShow(f"no complete trial has {' or '.join(self.params)} yet")
        return found


class _FixedTrials(InMemoryStorage):
    """A storage that serves existing trials: adding them to a study one by one would copy each twice."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()
        self._trials = trials

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[Stored] | None = None
    ) -> list[FrozenTrial]:
        """Returned without copies, as nothing changes them."""
        del study_id, deepcopy
        return [trial for trial in self._trials if states is None or trial.state in states]


def study_of(
    subject: FigureSubject,
    objectives: Sequence[ObjectiveSpec],
    numbers: Sequence[int] | None = None,
    with_number: bool = False,
) -> Study:
    """The trials as a study of these objectives, the first or all, for Optuna to draw.

    ``numbers`` replace the trials' own; ``with_number`` makes a trial's number one of its parameters.
    """
    axis = {TRIAL: IntDistribution(0, max(trial.number for trial in subject.trials))} if with_number else {}
    trials = [
        # Without attributes, which Optuna would write into hover texts.
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
    return optuna.create_study(storage=_FixedTrials(trials), directions=directions)


def traces_and_layout(figure: Any) -> PlotlyFigure:
    """A plotly figure as dictionaries, with numbers as Optuna has them: plotly's own JSON packs arrays in base64."""
    return [trace.to_plotly_json() for trace in figure.data], figure.layout.to_plotly_json()


def number_ticks(subject: FigureSubject) -> dict[str, Any]:
    """Settings of an axis of trial numbers: with only a few trials, plotly would add ticks at halves."""
    return {"dtick": 1} if len(subject.trials) <= 10 else {}


def without_theme(layout: dict[str, Any]) -> dict[str, Any]:
    """A layout without the title and without the styles that the page sets."""
    return {name: value for name, value in layout.items() if name not in {"template", "title", "plot_bgcolor"}}


def plain(value: Any) -> Any:
    """A value for JSON: floats with six significant digits, None for floats that are not finite."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def hover(
    subject: FigureSubject, numbers: Sequence[int], more: Sequence[str] = (), of_more: Sequence[Sequence[Any]] = ()
) -> dict[str, Any]:
    """The hover texts of a trace whose points are trials: a row of values for each point, and one template.

    ``more`` are names of further values; ``of_more`` holds these values for each point.
    """
    by_number = {trial.number: trial for trial in subject.trials}
    rows = [[number, *_hover_values(subject.spec, by_number[number])] for number in numbers]
    if more:
        rows = [[*row, *values] for row, values in zip(rows, of_more, strict=True)]
    names = [TRIAL, *subject.metrics, *subject.spec.space, *more]
    lines = [f"{name}: %{{customdata[{place}]}}" for place, name in enumerate(names)]
    return {"customdata": rows, "hovertemplate": "<br>".join(lines) + "<extra></extra>"}


def hover_text(spec: SearchSpec, trial: FrozenTrial) -> str:
    """The hover text of a trace that is a single trial."""
    names = [*(objective.metric for objective in spec.objectives), *spec.space]
    pairs = zip(names, map(plain, _hover_values(spec, trial)), strict=True)
    return "<br>".join([f"{TRIAL}: {trial.number}", *(f"{name}: {value}" for name, value in pairs if value != ABSENT)])


def _hover_values(spec: SearchSpec, trial: FrozenTrial) -> list[Any]:
    """A value for each objective and each parameter."""
    params = [_display(trial.params[path]) if path in trial.params else ABSENT for path in spec.space]
    values: Sequence[Any] = values_of(trial, spec) or [ABSENT] * len(spec.objectives)
    return [*values, *params]


def _display(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return value[:LONGEST] if isinstance(value, str) else value


def short_path(path: str, paths: Collection[str]) -> str:
    """The shortest end of a path that is unique among ``paths``."""
    names = path.split(".")
    ends = [".".join(names[-count:]) for count in range(1, len(names))]
    return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in paths) == 1), path)


def utc_time(moment: str) -> str:
    """A time as UTC: Optuna writes the local times of the process that draws."""
    return datetime.fromisoformat(moment).astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds")
