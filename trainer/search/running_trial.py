"""A trial that Ray Tune is running, as the searcher and the schedulers know it."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.spec.space import Point
from trainer.storage import Store


class RunningTrial:
    """A trial that Ray Tune is running."""

    def __init__(self, number: int, point: Point, start: int, store: Store, run_id: str) -> None:
        """``start`` counts the trial's starts from 1; ``store`` is its run's artifact folder."""
        self.number, self.point, self.start, self.store, self.run_id = number, point, start, store, run_id
        self.repeat = False
        """Whether it repeats another trial with another seed."""
        self.reported: set[int] = set()
        """Epochs whose evaluation the study has."""
        self.newest: Mapping[str, float] = {}
        """The newest evaluation."""
        self.stop_reason: str | None = None
        """Why the scheduler stopped it; None while it has not."""
        self.death: str | None = None
        """How its process died, as Ray reports it."""
