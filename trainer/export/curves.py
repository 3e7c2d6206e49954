"""A picture of a run's curves."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.spec import metric_keys

Points = Sequence[tuple[float, float]]
"""Epoch and value."""

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reconstruction loss", (metric_keys.LOSS_RECONSTRUCTION,)),
    ("consistency loss", (metric_keys.LOSS_CONSISTENCY,)),
)
EVALUATIONS = "eval/"
WIDTH, HEIGHT, DPI = 4.4, 3.2, 120
"""Size of a panel in inches, and dots per inch."""
MARKED_POINTS = 60
"""The most points that are marked on a line: a line alone would not show a single point."""


def draw_curves(curves: Mapping[str, Points]) -> bytes | None:
    """A PNG with a panel for each training loss and one for all evaluations, over epochs; None without any curves."""
    evaluations = tuple(sorted(key for key in curves if key.startswith(EVALUATIONS)))
    panels = [(title, keys) for title, keys in (*PANELS, ("evaluation", evaluations)) if any(map(curves.get, keys))]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH * len(panels), HEIGHT), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # draws into memory, with or without a display
    for axes, (title, keys) in zip(_row(figure, len(panels)), panels, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        for key in keys:
            epochs, values = zip(*curves[key], strict=True)
            marker = "o" if len(epochs) <= MARKED_POINTS else ""
            axes.plot(epochs, values, marker=marker, markersize=3, linewidth=1.3, label=key.removeprefix(EVALUATIONS))
        if len(keys) > 1:
            axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _row(figure: Figure, count: int) -> Iterable[Axes]:
    row: Iterable[Axes] = figure.subplots(1, count, squeeze=False)[0]
    return row
