"""Charts of what an evaluation trains: a curve for each training, one chart for each protocol and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from service.dashboard.evaluation import WEIGHTS
from trainer.spec import metric_keys
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.measurements import Unit, title, trainings

SEEDS: Final = 3
"""The seeds whose trainings are drawn, the first ones: each curve is a request to MLflow."""
AXES: Final = ("step", "time")
"""What the curves can be drawn by. The run's epochs and samples are none of the trainings'."""
LOSS: Final = ("Loss", metric_keys.LOSS, "")
METRICS: Final = (
    LOSS,
    ("Accuracy on the test images", metric_keys.TEST_TOP1, ""),
    ("Learning rate", metric_keys.LEARNING_RATE, ""),
    ("Gradient norm", metric_keys.GRAD_NORM, ""),
    ("Throughput", metric_keys.IMAGES_PER_S, "images/s"),
)
"""Title, key and unit of each metric that a training records."""


def drawn(spec: Mapping[str, Any]) -> list[Unit]:
    """The trainings of an evaluation's spec that are drawn; none if its protocols train nothing on batches."""
    parsed = EvaluateSpec.parse(spec)
    return [each for each in trainings(parsed) if each.seed < parsed.seed + SEEDS]


def more_seeds(spec: Mapping[str, Any]) -> bool:
    """Whether there are trainings that are not drawn."""
    return EvaluateSpec.parse(spec).seeds > SEEDS


def figures(units: Sequence[Unit], metrics: Sequence[tuple[str, str, str]] = METRICS) -> list[dict[str, Any]]:
    """The charts, for charts.js: by metric, and of one metric by protocol."""
    protocols = dict.fromkeys((each.protocol, each.share) for each in units)
    found = []
    for name, key, unit in metrics:
        for protocol in protocols:
            trained = [each for each in units if (each.protocol, each.share) == protocol]
            keys = [each.curve(key) for each in trained]
            names = [f"{WEIGHTS[each.weights]}, seed {each.seed}" for each in trained]
            found.append({"title": f"{name}: {title(*protocol)}", "keys": keys, "names": names, "unit": unit})
    return found
