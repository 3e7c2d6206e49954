"""A search's figures: what may be asked for, and those that were drawn already."""

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
"""Figures that are remembered."""
TIMELINE_SECONDS: Final = 15
"""How much too short the bar of a running trial may be."""
OF_PARAMS: Final[frozenset[PlotName]] = frozenset({"parallel", "importance", "slice", "contour"})
"""Figures that show parameters; those asked for, or all of them."""

State = tuple[object, ...]


@dataclass
class _Remembered:
    """One figure, and what its trials were when it was drawn."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is drawn: who asks for the same one meanwhile waits, and draws nothing."""
    state: State | None = None
    view: PlotView | None = None


class Plots:
    """Figures of all searches. They take up to a second to draw: ask on a thread, never on the event loop."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._lock = threading.Lock()
        self._figures: OrderedDict[tuple[str, PlotName, tuple[str, ...]], _Remembered] = OrderedDict()

    def figure(self, job_id: str, spec: SearchSpec, name: PlotName, params: Sequence[str]) -> PlotView:
        """A figure of a search, of the trials that there are now; one without data says in its note why.

        ``params`` are paths of the space; none is all of them, except for `contour`, which takes two. Raises the API's
        422 for others, and `StudiesUnreachable`. What it gives is shared: change nothing in it.
        """
        _check_params(spec, name, params)
        remembered = self._remembered((job_id, name, tuple(params)))
        with remembered.lock:
            trials = self._studies.trials(job_id)
            state = _state(name, trials)
            if remembered.view is None or remembered.state != state:
                # Plotly and what Optuna imports with it add half a second and 40 MB to an API that starts in three
                # seconds and 230 MB: only a process that draws pays for them.
                from service.searches.figures import draw  # noqa: PLC0415

                remembered.view, remembered.state = draw(spec, name, params, trials), state
            return remembered.view

    def _remembered(self, key: tuple[str, PlotName, tuple[str, ...]]) -> _Remembered:
        with self._lock:
            found = self._figures.setdefault(key, _Remembered())
            self._figures.move_to_end(key)
            while len(self._figures) > FIGURES:
                self._figures.popitem(last=False)
            return found


def _check_params(spec: SearchSpec, name: PlotName, params: Sequence[str]) -> None:
    if params and name not in OF_PARAMS:
        raise _refused(params, f"{name} shows no parameters: leave it out")
    if unknown := [path for path in params if path not in spec.space]:
        raise _refused(unknown, f"is no parameter of this search: there are {', '.join(spec.space)}")
    if len(set(params)) < len(params):
        raise _refused(params, "must not name a parameter twice")
    if name == "contour" and len(params) != 2:
        raise _refused(params, f"give two, each as param=…, of {', '.join(spec.space)}")


def _refused(given: Sequence[str], message: str) -> ApiProblem:
    problem = Problem("param", "", ", ".join(given) or None, message)
    return ApiProblem(422, "parameter_invalid", str(problem), (problem,))


def _state(name: PlotName, trials: Sequence[FrozenTrial]) -> State:
    """What a figure depends on: ended trials never change, so their number says all of them."""
    ended = sum(trial.state.is_finished() for trial in trials)
    if name not in {"curves", "timeline"}:
        return (ended,)
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    if name == "curves":
        return (ended, *((trial.number, len(trial.intermediate_values)) for trial in running))
    # Their bars end now.
    return (ended, *(trial.number for trial in running), time.monotonic() // TIMELINE_SECONDS if running else None)
