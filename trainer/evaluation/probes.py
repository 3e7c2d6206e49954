"""Probes of frozen backbones in pretraining: always on the same images, so that evaluations and runs compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from trainer.data.dataset import TrainingData
from trainer.data.images import Images
from trainer.errors import DIVERGENCE_ADVICE, LossNotFinite
from trainer.evaluation.features import Rows, View, extract
from trainer.evaluation.knn import knn_scores, nearest
from trainer.evaluation.linear import STRENGTHS, fit_linear
from trainer.evaluation.probe_images import FIXED_SEED, ProbeImages
from trainer.evaluation.ranks import Ranks
from trainer.evaluation.scores import Predictions, top1
from trainer.models.encoder import Encoder
from trainer.spec.evaluation import Probe

NEIGHBOURS: Final = 20
"""Of the k-NN probe: all of them where there are fewer training images."""
TEMPERATURE: Final = 0.07
MEASURE: Final = 1
"""Raised with every change that gives the probes of the same features other scores: kept scores then count no more."""


@dataclass(frozen=True)
class Probes:
    """The probes of one run. Every rank has the same and calls them at the same time."""

    names: Sequence[Probe]
    chosen: ProbeImages
    data: TrainingData
    view: View
    ranks: Ranks
    threads: int
    bf16: bool
    device: torch.device

    def scores(self, encoder: Encoder) -> dict[str, float]:
        """Top-1 accuracies in 0..1 of the encoder's mean patch tokens on the held-out images, by probe."""
        train = self._features(encoder, self.data.images, self.chosen.train)
        held_out = self._features(encoder, self.data.held_out_images, self.chosen.held_out)
        measures = {"linear": self._linear, "knn": self._knn}
        found = {name: measures[name](train, held_out) for name in self.names}
        return {name: top1(each.predicted, self.chosen.held_out_labels) for name, each in found.items()}

    def settings(self) -> dict[str, Any]:
        """All that a score depends on beside the encoder's weights, as JSON."""
        images = hashlib.sha256()
        for part in (self.chosen.train, self.chosen.train_labels, self.chosen.held_out, self.chosen.held_out_labels):
            images.update(part.tobytes())
        return {
            "measure": MEASURE,
            "torch": torch.__version__,
            "datasets": [each.index.fingerprint for each in (self.data.images, self.data.held_out_images)],
            "images": images.hexdigest(),
            "scales": [str(each.scale) for each in (self.data.images, self.data.held_out_images)],
            "view": [list(self.view.size), list(self.view.mean), list(self.view.std)],
            "precision": "bf16" if self.bf16 else "fp32",
            "device": self.device.type,
            "probes": sorted(self.names),
            "linear": list(STRENGTHS),
            "knn": [NEIGHBOURS, TEMPERATURE],
        }

    def _features(self, encoder: Encoder, images: Images, rows: Rows) -> Tensor:
        (features,) = extract(
            encoder, images, rows, self.view, pooling="mean", layers=[encoder.depth], ranks=self.ranks,
            threads=self.threads, bf16=self.bf16, device=self.device,
        ).values()  # fmt: skip
        if not features.isfinite().all():
            raise LossNotFinite(f"features of the backbone are not finite: training has diverged. {DIVERGENCE_ADVICE}")
        return features

    def _linear(self, train: Tensor, held_out: Tensor) -> Predictions:
        classifier = fit_linear(
            {0: train}, self.chosen.train_labels, len(self.chosen.classes), seed=FIXED_SEED, device=self.device,
            ranks=self.ranks,
        )  # fmt: skip
        return Predictions(classifier.scores(held_out))

    def _knn(self, train: Tensor, held_out: Tensor) -> Predictions:
        k = min(NEIGHBOURS, len(train))
        similarities, rows = nearest(train, held_out, k, self.device, self.ranks)
        labels, classes = self.chosen.train_labels, len(self.chosen.classes)
        return Predictions(knn_scores(similarities, rows, labels, classes, [k], TEMPERATURE)[k])
