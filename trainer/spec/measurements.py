"""What an evaluation measures: a list of units, each of which is done as a whole and kept. Its plan counts them too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from trainer.spec.evaluate import (
    CORRUPTIONS,
    Corruption,
    EvaluateSpec,
    KnnProtocol,
    LinearProtocol,
    LowLabelProtocol,
    RobustnessProtocol,
)
from trainer.spec.metric_keys import MEAN_CORRUPTION_ERROR, score_key

WeightsMeasured = Literal["backbone", "random", "scratch"]
"""The backbone itself; the same network with untrained weights, frozen; or trained from untrained weights."""


TITLES: Final[Mapping[str, str]] = {
    "knn": "k-NN",
    "linear": "linear",
    "attentive": "attentive probe",
    "finetune": "fine-tuning",
    "robustness": "corrupted images",
}
"""Protocols in words."""


@dataclass(frozen=True)
class Unit:
    """One measurement: a protocol on a network's features, with one seed."""

    protocol: str
    weights: WeightsMeasured
    seed: int
    """Of what depends on chance; for untrained weights, of these too."""
    share: float | None = None
    """The share of the labels; None: all."""
    corruption: Corruption | None = None

    @property
    def name(self) -> str:
        """A file name."""
        parts = [
            self.protocol,
            self.corruption,
            f"{self.share:g}" if self.share else None,
            self.weights,
            str(self.seed),
        ]
        return "-".join(part for part in parts if part)

    @property
    def key(self) -> str:
        """The key of the metric that it is a part of."""
        return score_key(self.protocol, self.share, self.weights)

    def curve(self, metric: str) -> str:
        """The key under which the run keeps a metric of this training."""
        return f"{metric}/{self.name}"

    def __str__(self) -> str:
        share = f" on {100 * self.share:g} % of the labels" if self.share else ""
        what = f"{self.protocol}{share}" if self.corruption is None else f"{self.protocol} under {self.corruption}"
        whose = {"backbone": "the backbone", "random": "untrained weights", "scratch": "training from scratch"}
        return f"{what}: {whose[self.weights]}, seed {self.seed}"


@dataclass(frozen=True)
class Group:
    """Units that share one network, whose features are computed once."""

    weights: WeightsMeasured
    seed: int
    """Of untrained weights."""
    units: tuple[Unit, ...]


def title(protocol: str, share: float | None = None) -> str:
    """A protocol in words, with the share of the labels.

    >>> title("linear", 0.01)
    'linear, 1 % of labels'
    """
    name = TITLES.get(protocol, protocol)
    return name if share is None else f"{name}, {100 * share:.6g} % of labels"


def measurements(spec: EvaluateSpec) -> list[Unit]:
    """Everything to be measured, in its order."""
    return [*(unit for group in groups(spec) for unit in group.units), *trainings(spec)]


def score_keys(spec: EvaluateSpec) -> list[str]:
    """The metrics that an evaluation gives for the backbone itself."""
    found = list(dict.fromkeys(unit.key for unit in measurements(spec) if unit.weights == "backbone"))
    corrupted = any(isinstance(each, RobustnessProtocol) for each in spec.protocols)
    return [*found, *([MEAN_CORRUPTION_ERROR] if corrupted else [])]


def trainings(spec: EvaluateSpec) -> list[Unit]:
    """What is measured by training on batches of images, each beside its baseline."""
    seeds, found = range(spec.seed, spec.seed + spec.seeds), list[Unit]()
    low = next((each for each in spec.protocols if isinstance(each, LowLabelProtocol)), None)
    named = {each.name for each in spec.protocols}
    for name in spec.trainings:
        baseline: Literal["scratch", "random"] = "scratch" if name == "finetune" else "random"
        shares = sorted(low.shares) if low and name in low.of else []
        for share in [*([None] if name in named else []), *shares]:
            found += [Unit(name, "backbone", seed, share) for seed in seeds]
            found += [Unit(name, baseline, seed, share) for seed in seeds] if baseline in spec.baselines else []
    return found


def registered(spec: EvaluateSpec) -> Unit | None:
    """The training whose classifier is registered, if one is: of the first seed, on all labels."""
    return Unit("finetune", "backbone", spec.seed) if spec.registering else None


def groups(spec: EvaluateSpec) -> list[Group]:
    """Everything to be measured on frozen features, by network: first the backbone, then untrained weights."""
    seeds = range(spec.seed, spec.seed + spec.seeds)
    found = [Group("backbone", spec.seed, tuple(_of_backbone(spec, seeds)))]
    if "random" in spec.baselines:
        found += [Group("random", seed, tuple(_of_untrained(spec, seed))) for seed in seeds]
    return found


def _of_backbone(spec: EvaluateSpec, seeds: Sequence[int]) -> Iterator[Unit]:
    for protocol in _on_features(spec):
        if isinstance(protocol, KnnProtocol):  # nothing in it depends on chance
            yield Unit("knn", "backbone", spec.seed)
        elif isinstance(protocol, LowLabelProtocol):
            yield from (unit for seed in seeds for unit in _low_label(spec, protocol, "backbone", seed))
        elif isinstance(protocol, RobustnessProtocol):
            yield from _robustness(protocol, "backbone", spec.seed)
        else:
            yield from (Unit("linear", "backbone", seed) for seed in seeds)


def _of_untrained(spec: EvaluateSpec, seed: int) -> Iterator[Unit]:
    """The same on untrained weights, of which each seed has others."""
    for protocol in _on_features(spec):
        if isinstance(protocol, LowLabelProtocol):
            yield from _low_label(spec, protocol, "random", seed)
        elif isinstance(protocol, RobustnessProtocol):
            yield from _robustness(protocol, "random", seed) if seed == spec.seed else ()
        else:
            yield Unit(protocol.name, "random", seed)


def _on_features(spec: EvaluateSpec) -> Iterator[KnnProtocol | LinearProtocol | LowLabelProtocol | RobustnessProtocol]:
    """The protocols that need only the features of a frozen network."""
    for each in spec.protocols:
        if isinstance(each, (KnnProtocol, LinearProtocol, LowLabelProtocol, RobustnessProtocol)):
            yield each


def _low_label(spec: EvaluateSpec, protocol: LowLabelProtocol, weights: WeightsMeasured, seed: int) -> Iterator[Unit]:
    if "linear" in protocol.of and "linear" not in spec.trainings:
        yield from (Unit("linear", weights, seed, share) for share in sorted(protocol.shares))


def _robustness(protocol: RobustnessProtocol, weights: WeightsMeasured, seed: int) -> Iterator[Unit]:
    """A unit for each corruption, with one seed: what is measured is the spread over corruptions."""
    chosen = [name for name in CORRUPTIONS if name in protocol.corruptions]
    yield from (Unit("robustness", weights, seed, corruption=name) for name in chosen)
