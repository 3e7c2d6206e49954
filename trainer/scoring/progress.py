"""How far an evaluation is. Every rank knows it, and rank 0 tells the run."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.data.notices import tell
from trainer.logger import logger
from trainer.protocol import names
from trainer.scoring.bench import Bench
from trainer.scoring.kept import Kept
from trainer.scoring.labelled import LabelledSet
from trainer.scoring.results import by_key, notices_of, score
from trainer.scoring.work import work_of
from trainer.spec import metric_keys
from trainer.spec.dataset import DatasetSpec
from trainer.spec.measurements import Unit, measurements
from trainer.tracking.interface import Purpose, Recorder, UsedDataset


class Progress:
    """Which units are done."""

    def __init__(self, bench: Bench, kept: Kept, recorder: Recorder | None) -> None:
        self._bench, self._kept, self._recorder = bench, kept, recorder
        self._units = measurements(bench.spec)
        self._by_key = by_key(self._units)
        self._place = {unit: number for number, unit in enumerate(self._units, 1)}
        self._work = work_of(bench)

    def announce(self) -> None:
        """Tell what is known before anything is measured, and what earlier attempts have measured."""
        bench, done = self._bench, self._done()
        logger.info("%d of %d measurements are done", done, len(self._units))
        if self._recorder is None:
            return
        self._recorder.tag({
            names.TAG_STEPS: str(len(self._units)),
            names.TAG_WORK: f"{sum(work.whole for work in self._work.values()):.0f}",
            names.TAG_SUBJECT: bench.subject.described.title,
        })  # fmt: skip
        self._recorder.use(
            [
                _used("training", bench.spec.dataset, bench.data.train),
                _used("evaluation", bench.spec.test or bench.spec.dataset, bench.data.test),
            ]
        )
        tell(self._recorder, notices_of(bench))
        self._record(done)

    def begin(self, unit: Unit) -> None:
        """Tell what is measured now."""
        if self._recorder:
            logger.info("Measuring %s (%d of %d)", unit, self._place[unit], len(self._units))
            self._recorder.tag({names.TAG_MEASURING: str(unit)})

    def within(self, unit: Unit, epoch: float) -> None:
        """Tell how many epochs of a training are done."""
        if self._recorder:
            self._recorder.log(self._done(), {metric_keys.SAMPLES: self._work_done() + epoch * self._work[unit].epoch})

    def done(self, unit: Unit) -> None:
        """Tell what was measured."""
        if self._recorder:
            logger.info("Measured %s: top-1 %.4f", unit, self._kept.results[unit.name].measured.top1)
            self._record(self._done())

    def complete(self, metrics: Mapping[str, float]) -> None:
        """Tell the final metrics."""
        if self._recorder:
            self._recorder.tag({names.TAG_MEASURING: ""})
            self._recorder.log(len(self._units), metrics)

    def _metrics(self) -> dict[str, float]:
        """The scores whose units are all done."""
        bench, results = self._bench, self._kept.results
        complete = {key: units for key, units in self._by_key.items() if all(unit in self._kept for unit in units)}
        return {
            key: score(bench.spec, key, units, results, bench.classes, len(bench.data.test)).top1
            for key, units in complete.items()
        }

    def _record(self, done: int) -> None:
        if self._recorder:
            self._recorder.log(done, {metric_keys.SAMPLES: self._work_done()} | self._metrics())

    def _done(self) -> int:
        return sum(unit in self._kept for unit in self._units)

    def _work_done(self) -> float:
        return sum(work.whole for unit, work in self._work.items() if unit in self._kept)


def _used(purpose: Purpose, dataset: DatasetSpec, images: LabelledSet) -> UsedDataset:
    fingerprint = images.images.index.fingerprint
    return UsedDataset(purpose, dataset.title or dataset.uri, dataset.uri, fingerprint, len(images))
