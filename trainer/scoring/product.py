"""The fine-tuned network of an evaluation that is to be registered."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.evaluation.features import View
from trainer.protocol.command import Action
from trainer.protocol.evaluation import Evaluation
from trainer.scoring.bench import Bench
from trainer.spec.measurements import Unit, registered
from trainer.spec.pretrain import ModelSpec


@dataclass(frozen=True)
class Product:
    """A classifier that has been trained and scored. Its weights are in the newest checkpoint of its training, whose
    folder stays until it is registered."""

    unit: Unit
    model: ModelSpec
    view: View
    value_range: tuple[float, float]
    """Pixel values that became black and white."""
    evaluation: Evaluation
    """Of the whole job, with the names of the classes."""


@dataclass(frozen=True)
class Ended:
    """How an attempt of an evaluation has ended."""

    action: Action | None = None
    """The command that ended it early; None if everything is measured."""
    product: Product | None = None
    """On the first rank, if a classifier is to be registered."""


def product_of(bench: Bench, evaluation: Evaluation) -> Product | None:
    """The classifier that the spec asks to be registered, if it does."""
    unit = registered(bench.spec)
    if unit is None:
        return None
    subject, scale = bench.subject, bench.data.train.images.scale
    return Product(unit, subject.model, subject.view, scale.value_range, evaluation)
