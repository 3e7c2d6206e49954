"""How much work an evaluation's units are, by which the time left is told: a fine-tuning takes longer than a probe."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from trainer.evaluation.subsets import stratified
from trainer.finetuning.network import Settings
from trainer.finetuning.training import runnable
from trainer.scoring.bench import Bench
from trainer.spec.evaluate import EvaluateSpec, RobustnessProtocol
from trainer.spec.finetuning import FinetuneSettings
from trainer.spec.measurements import Unit, groups, trainings

BACKWARD: Final = 3.0
"""A step of training the network takes about as long as this many forward passes of its images."""
PROBE: Final = 0.2
"""A probe of features that are there, as a share of the pass that computes them."""


class Work(NamedTuple):
    """How much a unit takes, in forward passes of an image; an estimate."""

    whole: float
    epoch: float = 0.0
    """Of one epoch of a training."""


def work_of(bench: Bench) -> dict[Unit, Work]:
    """Each unit's work. Raises as `check_trainings`."""
    train, test = len(bench.data.train), len(bench.data.test)
    severities = next(
        (len(each.severities) for each in bench.spec.protocols if isinstance(each, RobustnessProtocol)), 0
    )
    found: dict[Unit, Work] = {}
    for group in groups(bench.spec):
        for number, unit in enumerate(group.units):
            features = train + test if number == 0 else 0  # computed once for all units of the network
            measured = severities * test if unit.corruption else PROBE * (train + test)
            found[unit] = Work(features + measured)
    return found | {unit: _training(bench, unit) for unit in trainings(bench.spec)}


def settings_of_unit(spec: EvaluateSpec, unit: Unit) -> Settings:
    """The settings of a training's protocol, as the spec has them."""
    settings: Any = spec.trainings[unit.protocol]
    return settings  # type: ignore[no-any-return]  # one of the three that the spec's protocols are made of


def training_images(bench: Bench, unit: Unit) -> int:
    """How many images a training has."""
    labels = bench.data.train.labels
    return len(labels) if unit.share is None else len(stratified(labels, unit.share, unit.seed))


def _training(bench: Bench, unit: Unit) -> Work:
    images, tested = training_images(bench, unit), len(bench.data.test)
    settings = runnable(settings_of_unit(bench.spec, unit), bench.subject.model, images, bench.ranks.world)
    passes = BACKWARD if isinstance(settings, FinetuneSettings) else 1.0
    epoch = passes * images + tested / settings.every_epochs
    return Work(epoch * float(settings.epochs) + tested, epoch)
