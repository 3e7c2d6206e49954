"""Checks requests for a search's figures, and caches the figures."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from optuna.trial import FrozenTrial, TrialState

from service.adapters.studies import Studies
from service.http.problems import ApiProblem
from service.searches.schemas import PlotName, PlotView
from trainer.spec.base import Problem
from trainer.spec.search import SearchSpec

FIGURES: Final = 64
"""Size of the cache."""
TIMELINE_SECONDS: Final = 15
"""Seconds by which the bar of a running trial may be too short."""
WITH_PARAMS: Final[frozenset[PlotName]] = frozenset({"parallel", "importance", "slice", "contour"})
"""Figures that show parameters: those requested, or all."""

TrialsState = tuple[object, ...]


@dataclass
class _CachedFigure:
    """A figure, and the state of its trials when it was drawn."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the figure is drawn, so that concurrent requests draw it once."""
    state: TrialsState | None = None
    view: PlotView | None = None


class Plots:
    """Figures of all searches. Drawing takes up to a second: call it on a thread, never on the event loop."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._lock = threading.Lock()
        self._figures: OrderedDict[tuple[str, PlotName, tuple[str, ...]], _CachedFigure] = OrderedDict()

    def figure(self, job_id: str, spec: SearchSpec, name: PlotName, params: Sequence[str]) -> PlotView:
        """A figure of the present trials of a search; the note of an empty figure says why it is empty.

        ``params`` are paths of the space, all of them by default; `contour` needs exactly two. Raises the API's 422 for
        other ``params``, and `StudiesUnreachable`. The view is shared between callers: do not modify it.
        """
        _check_params(spec, name, params)
        cached = self._cached((job_id, name, tuple(params)))
        trials = self._studies.trials(job_id)  # before the lock, so that no request waits there for the database
        with cached.lock:
            state = _trials_state(name, trials)
            if cached.view is None or cached.state != state:
                # Plotly and what Optuna imports with it add half a second and 40 MB to an API that starts in three
                # seconds and 230 MB: only a process that draws pays for them.
                from service.searches.figures import draw  # noqa: PLC0415

                cached.view, cached.state = draw(spec, name, params, trials), state
            return cached.view

    def _cached(self, key: tuple[str, PlotName, tuple[str, ...]]) -> _CachedFigure:
        with self._lock:
            cached = self._figures.setdefault(key, _CachedFigure())
            self._figures.move_to_end(key)
            while len(self._figures) > FIGURES:
                self._figures.popitem(last=False)
            return cached


def _check_params(spec: SearchSpec, name: PlotName, params: Sequence[str]) -> None:
    if params and name not in WITH_PARAMS:
        raise _refused(params, f"{name} shows no parameters: leave `param` out")
    if unknown := [path for path in params if path not in spec.space]:
        raise _refused(unknown, f"is not a parameter of this search, which has {', '.join(spec.space)}")
    if len(set(params)) < len(params):
        raise _refused(params, "names a parameter twice")
    if name == "contour" and len(params) != 2:
        raise _refused(params, f"contour needs two parameters, each as param=…, of {', '.join(spec.space)}")


def _refused(params: Sequence[str], message: str) -> ApiProblem:
    problem = Problem("param", "", ", ".join(params) or None, message)
    return ApiProblem(422, "parameter_invalid", str(problem), (problem,))


def _trials_state(name: PlotName, trials: Sequence[FrozenTrial]) -> TrialsState:
    """What a figure depends on. Ended trials never change, so their number stands for them."""
    ended = sum(trial.state.is_finished() for trial in trials)
    if name not in {"curves", "timeline"}:
        return (ended,)
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    if name == "curves":
        return (ended, *((trial.number, len(trial.intermediate_values)) for trial in running))
    # The bars of running trials end at the present.
    return (ended, *(trial.number for trial in running), time.monotonic() // TIMELINE_SECONDS if running else None)
