"""Protocols that need only the features of a frozen network: k-NN, the linear classifier, few labels, corruptions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainer.evaluation.knn import knn_scores, nearest
from trainer.evaluation.linear import LinearClassifier, fit_linear
from trainer.evaluation.scores import Predictions, confusion, top1
from trainer.evaluation.subsets import stratified
from trainer.logger import logger
from trainer.protocol.evaluation import Measured
from trainer.scoring.bench import Bench, NetworkFeatures
from trainer.scoring.kept import Kept, UnitResult, sparse
from trainer.spec.evaluate import Corruption, KnnProtocol, RobustnessProtocol
from trainer.spec.measurements import Unit


class FrozenMeasures:
    """Measures units on the features of one network. Every rank has one and measures the same units."""

    def __init__(self, bench: Bench, kept: Kept, features: NetworkFeatures) -> None:
        self._bench, self._kept, self.features = bench, kept, features
        self._classifiers: dict[int, LinearClassifier] = {}
        """Fitted on all training images, by seed."""

    def measure(self, unit: Unit) -> UnitResult:
        """The result of a unit; the same on every rank."""
        started = time.monotonic()
        if unit.protocol == "knn":
            scores, details = self._knn()
            trained = len(self._bench.data.train)
        elif unit.corruption is not None:
            return self._corruption(unit, unit.corruption, started)
        else:
            scores, details, trained = self._linear(unit)
        return measured(self._bench, self._kept, unit, scores, trained, details, time.monotonic() - started)

    # --- k nearest neighbours ---------------------------------------------------------------------------------------

    def _knn(self) -> tuple[Predictions, dict[str, Any]]:
        bench = self._bench
        protocol = next(each for each in bench.spec.protocols if isinstance(each, KnnProtocol))
        layer = bench.layers[-1]
        train, test = self.features.train[layer], self.features.test[layer]
        ks = [min(k, len(train)) for k in protocol.k]
        found = nearest(train, test, max(ks), bench.device, bench.ranks)
        scores = knn_scores(*found, self._train_labels, bench.classes, ks, protocol.temperature)
        others = {f"top1_k{k}": top1(Predictions(each).predicted, self._labels) for k, each in scores.items()}
        return Predictions(scores[ks[0]]), {"k": float(ks[0]), "layer": float(layer), **others}

    # --- linear classifier ------------------------------------------------------------------------------------------

    def _linear(self, unit: Unit) -> tuple[Predictions, dict[str, Any], int]:
        if unit.share is None:
            classifier, count = self._classifier(unit.seed), len(self._bench.data.train)
        else:
            rows = stratified(self._bench.data.train.labels, unit.share, unit.seed)
            few = {layer: x[rows] for layer, x in self.features.train.items()}
            classifier, count = self._fitted(unit.seed, few, self._train_labels[rows]), len(rows)
        scores = classifier.scores(self.features.test[classifier.layer])
        return Predictions(scores), self._details(classifier), count

    def _classifier(self, seed: int) -> LinearClassifier:
        if seed not in self._classifiers:
            self._classifiers[seed] = self._fitted(seed, self.features.train, self._train_labels)
        return self._classifiers[seed]

    def _fitted(self, seed: int, train: Mapping[int, Tensor], labels: Any) -> LinearClassifier:
        bench = self._bench
        fitted = fit_linear(train, labels, bench.classes, seed=seed, device=bench.device, ranks=bench.ranks)
        if not fitted.converged:
            logger.warning("The linear classifier stopped after %d iterations, short of its optimum", fitted.iterations)
        return fitted

    def _details(self, fitted: LinearClassifier) -> dict[str, Any]:
        chosen = {} if fitted.validation_top1 is None else {"validation_top1": fitted.validation_top1}
        if len(fitted.validation_by_layer) > 1:
            chosen |= {f"validation_top1_layer{layer}": top1 for layer, top1 in fitted.validation_by_layer.items()}
        return chosen | {
            "strength": fitted.strength,
            "strength_at_end": fitted.strength_at_end,
            "iterations": float(fitted.iterations),
            "converged": fitted.converged,
            "layer": float(fitted.layer),
        }

    # --- corruptions ------------------------------------------------------------------------------------------------

    def _corruption(self, unit: Unit, corruption: Corruption, started: float) -> UnitResult:
        protocol = next(each for each in self._bench.spec.protocols if isinstance(each, RobustnessProtocol))
        classifier = self._classifier(unit.seed)
        by_severity = {}
        for severity in sorted(protocol.severities):
            features = self.features.corrupted(corruption, severity, classifier.layer)
            by_severity[severity] = top1(Predictions(classifier.scores(features)).predicted, self._labels)
        mean = sum(by_severity.values()) / len(by_severity)
        mean_over = Measured(
            seed=unit.seed,
            top1=mean,
            correct=round(mean * len(self._labels)),
            train_images=len(self._bench.data.train),
        )
        return self._kept.made(mean_over, time.monotonic() - started, by_severity=by_severity)

    # --- labels -----------------------------------------------------------------------------------------------------

    @property
    def _labels(self) -> Any:
        return self._bench.data.test.labels

    @property
    def _train_labels(self) -> Any:
        return self._bench.data.train.labels


def measured(
    bench: Bench,
    kept: Kept,
    unit: Unit,
    predictions: Predictions,
    train_images: int,
    details: Mapping[str, Any],
    seconds: float,
) -> UnitResult:
    """The result of a unit that has predicted the classes of all test images."""
    labels, predicted = bench.data.test.labels, predictions.predicted
    found = Measured(
        seed=unit.seed,
        top1=top1(predicted, labels),
        top5=predictions.top5(labels),
        correct=int((predicted == labels).sum()),
        train_images=train_images,
        details=dict(details),
    )
    whole = unit.weights == "backbone"
    return kept.made(found, seconds, confusion=sparse(confusion(predicted, labels, bench.classes)) if whole else [])
