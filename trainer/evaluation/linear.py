"""A linear probe: multinomial logistic regression on frozen features, to its optimum.

The objective is the mean cross-entropy plus ``strength / 2`` times the squared norm of the weights; biases are free.
It is that of scikit-learn's `LogisticRegression` with ``C = 1 / (strength * n)``, but its scale does not depend on the
number of images n. Of two classes each has weights too, so there C is twice that.

L-BFGS works in scaled coordinates: along the principal axes of the features, in units of the curvature that the
objective has at weights of zero. There all directions are about equally steep, and some ten to fifty evaluations are
enough where the features' own coordinates take hundreds or thousands.

Shapes: n training images, m images, D values of a feature, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.evaluation.lbfgs import minimise
from trainer.evaluation.ranks import Ranks
from trainer.evaluation.subsets import validation_split

STRENGTHS: Final = tuple(10.0**exponent for exponent in range(2, -7, -1))
"""From 100 to 1e-6. For 50,000 images these are scikit-learn's C from 2e-7 to 20."""
UNVALIDATED_STRENGTH: Final = 1e-2
"""Where no class has two images there is nothing to choose by: the one of those offered that is nearest to this."""
TOLERANCE: Final = 3e-6
"""Largest entry of the gradient in scaled coordinates at which the final fit has converged."""
CANDIDATE_TOLERANCE: Final = 1e-3
"""The same for the fits that only choose. Their accuracies are within some 0.1 points of those at the optimum."""
SPACING: Final = 1e-7
"""Of neighbouring float32 values, relative to their size."""
BLOCK_VALUES: Final = {"cpu": 2**20, "cuda": 2**27}
"""Values of a block of features or logits: on a CPU it stays in the cache between its two uses."""


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier, on the CPU, and how it was chosen and fitted."""

    weight: Tensor
    """(C, D) float32, for standardised features; zeros for a class without training images."""
    bias: Tensor
    """(C,) float32; minus infinity for a class without training images."""
    mean: Tensor
    """(D,) float32, of the training images."""
    deviation: Tensor
    """(D,) float32, of the training images; 1 where a feature is constant."""
    layer: int
    strength: float
    strength_at_end: bool
    """Whether it is the least or the greatest of several that were offered, so that one beyond might be better."""
    validation_top1: float | None
    """Accuracy on the validation images of a fit on the others, by which layer and strength were chosen; None if there
    was nothing to choose from or by."""
    validation_by_layer: Mapping[int, float]
    """The same of each layer with its best strength."""
    iterations: int
    converged: bool
    """Whether `gradient` is within `TOLERANCE`."""
    gradient: float
    """Largest entry of the objective's gradient in scaled coordinates, computed in float64."""

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Logits (m, C) of features (m, D) of the classifier's layer, on the device of ``x``."""
        weight, bias, mean, deviation = (t.to(x.device) for t in (self.weight, self.bias, self.mean, self.deviation))
        blocks = x.split(_rows_of_block(max(weight.shape), x.device))
        return torch.cat([F.linear((block - mean) / deviation, weight, bias) for block in blocks])


@torch.no_grad()
def fit_linear(
    train_x: Mapping[int, Tensor],
    train_y: NDArray[np.int64],
    classes: int,
    *,
    seed: int,
    device: torch.device,
    ranks: Ranks,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearClassifier:
    """The best linear classifier of features (n, D) float32 by layer, for labels (n,) in 0..``classes`` - 1.

    Layer and strength are those with the most correct predictions for a stratified fifth of the training images, drawn
    by the ``seed``, after fitting the other images; of equal ones that with the lower cross-entropy. Then all images
    are fitted. Each fit runs on one rank, and every rank gets the same classifier. Raises `ValueError` for images of
    fewer than two classes, labels outside the range, features that are not finite, and strengths that are not positive.
    """
    _check(train_x, train_y, classes, strengths)
    known, y = np.unique(train_y, return_inverse=True)
    fit_rows, held_rows = validation_split(y, seed)

    # A rank's tasks are in the order of the layers: it prepares each layer once, and holds one at a time.
    @lru_cache(maxsize=1)
    def standardised(layer: int) -> _Standardised:
        return _Standardised.of(train_x[layer], device)

    @lru_cache(maxsize=1)
    def without_held(layer: int) -> _Regression:
        return _Regression(standardised(layer), y, len(known), fit_rows)

    def validated(layer: int, strength: float) -> _Validated:
        fit = without_held(layer).fit(strength, CANDIDATE_TOLERANCE)
        return _validated(fit, standardised(layer).x[held_rows], y[held_rows])

    def fitted(layer: int, strength: float) -> tuple[_Fit, Tensor, Tensor]:
        features = standardised(layer)
        fit = _Regression(features, y, len(known)).fit(strength, TOLERANCE, checked=True)
        return fit.on_cpu(), features.mean.cpu(), features.deviation.cpu()

    candidates = [(layer, strength) for layer in train_x for strength in strengths]
    validation_top1, by_layer = None, dict[int, float]()
    if len(candidates) > 1 and len(held_rows):
        found = ranks.spread([partial(validated, *candidate) for candidate in candidates])
        best = max(range(len(found)), key=lambda number: (found[number].correct, -found[number].cross_entropy))
        (layer, strength), validation_top1 = candidates[best], found[best].correct / len(held_rows)
        for (tried, _), each in zip(candidates, found, strict=True):
            by_layer[tried] = max(by_layer.get(tried, 0.0), each.correct / len(held_rows))
    else:
        layer = max(train_x)
        strength = min(strengths, key=lambda each: abs(math.log(each / UNVALIDATED_STRENGTH)))
    without_held.cache_clear()  # a copy of most features
    [(fit, mean, deviation)] = ranks.spread([partial(fitted, layer, strength)])
    weight, bias = torch.zeros(classes, len(mean)), torch.full((classes,), -torch.inf)
    weight[known], bias[known] = fit.weight, fit.bias
    at_end = len(strengths) > 1 and strength in {min(strengths), max(strengths)}
    return LinearClassifier(
        weight, bias, mean, deviation, layer, strength, at_end, validation_top1, by_layer,
        fit.iterations, fit.gradient <= TOLERANCE, fit.gradient,
    )  # fmt: skip


def _check(train_x: Mapping[int, Tensor], train_y: NDArray[np.int64], classes: int, strengths: Sequence[float]) -> None:
    if not train_x or not strengths or min(strengths) <= 0:
        raise ValueError(f"a linear probe needs features of a layer and positive strengths, not {list(strengths)}")
    for layer, features in train_x.items():
        if len(features) != len(train_y):
            raise ValueError(
                f"layer {layer} has features of {len(features)} images, and there are {len(train_y)} labels"
            )
        if not features.isfinite().all():
            raise ValueError(f"features of layer {layer} are not finite: the network has diverged or overflows")
    present = np.unique(train_y)
    if len(present) < 2:
        raise ValueError(f"a linear probe needs training images of two classes or more, not of {len(present)}")
    if present[0] < 0 or present[-1] >= classes:
        raise ValueError(f"labels are from {present[0]} to {present[-1]}: they must be from 0 to {classes - 1}")


class _Standardised(NamedTuple):
    """Features of one layer on the device, and the principal axes of their covariance."""

    x: Tensor
    """(n, D) float32."""
    mean: Tensor
    deviation: Tensor
    variances: Tensor
    """(D,) along the axes."""
    axes: Tensor
    """(D, D), in columns."""

    @classmethod
    def of(cls, features: Tensor, device: torch.device) -> _Standardised:
        x = features.to(device, torch.float32)
        blocks = x.split(_rows_of_block(x.shape[1], device))
        mean = torch.stack([block.sum(0, dtype=torch.float64) for block in blocks]).sum(0) / len(x)
        squares = torch.stack([(block - mean).square().sum(0) for block in blocks]).sum(0)
        deviation = (squares / len(x)).sqrt()
        # Below the spacing of float32 the values are one value, and their deviation is rounding.
        deviation = torch.where(deviation > SPACING * mean.abs(), deviation, 1.0).float()
        x = (x - mean.float()).div_(deviation)
        variances, axes = torch.linalg.eigh(x.T @ x / len(x))
        return cls(x, mean.float(), deviation, variances.clamp(min=0), axes)


class _Fit(NamedTuple):
    weight: Tensor
    bias: Tensor
    iterations: int
    gradient: float

    def on_cpu(self) -> _Fit:
        return self._replace(weight=self.weight.cpu(), bias=self.bias.cpu())


class _Validated(NamedTuple):
    correct: int
    cross_entropy: float


def _validated(fit: _Fit, x: Tensor, y: NDArray[np.int64]) -> _Validated:
    """How well a fit predicts standardised features (m, D) of other images."""
    labels = torch.from_numpy(y).to(x.device)
    correct, cross_entropy = 0, 0.0
    rows = _rows_of_block(max(fit.weight.shape), x.device)
    for block, own in zip(x.split(rows), labels.split(rows), strict=True):
        logits = F.linear(block, fit.weight, fit.bias)
        correct += int((logits.argmax(dim=1) == own).sum())
        cross_entropy += float(F.cross_entropy(logits, own, reduction="sum"))
    return _Validated(correct, cross_entropy)


class _Regression:
    """The objective on standardised features (n, D) of images whose labels (n,) are 0..C-1, each of which occurs."""

    def __init__(
        self, features: _Standardised, y: NDArray[np.int64], classes: int, rows: NDArray[np.int64] | None = None
    ) -> None:
        """With ``rows`` on these images alone."""
        x = features.x if rows is None else features.x[rows]
        labels = torch.from_numpy(y if rows is None else y[rows]).to(x.device)
        share = torch.bincount(labels, minlength=classes).to(x) / len(x)
        self._start, self._axes, self._images = share.log(), features.axes, len(x)
        # Of the objective at weights of zero and these biases, but for the coupling of classes.
        self._bias_curvature = (share * (1 - share))[:, None]
        self._curvature = self._bias_curvature * features.variances
        size = _rows_of_block(max(classes, x.shape[1]), x.device)
        self._blocks = list(zip(x.split(size), labels[None].split(size, dim=1), strict=True))

    def fit(self, strength: float, tolerance: float, checked: bool = False) -> _Fit:
        """The minimum, by gradients in float32; ``checked`` ones are computed, and improved if need be, in float64."""
        scale = torch.cat([(self._curvature + strength).rsqrt(), self._bias_curvature.rsqrt()], dim=1)
        scaled, iterations, gradient = torch.zeros_like(scale), 0, math.inf
        for dtype in (torch.float32, torch.float64) if checked else (torch.float32,):
            scale, scaled = scale.to(dtype), scaled.to(dtype)
            found = minimise(partial(self._scaled_gradient, scale, strength), scaled, tolerance)
            scaled, iterations, gradient = found.x, iterations + found.iterations, float(found.gradient.abs().max())
        weight, bias = self._unscaled(scale * scaled)
        # All biases may grow alike without changing a prediction.
        return _Fit(weight.float(), (bias - bias.mean()).float(), iterations, gradient)

    def _unscaled(self, along_axes: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (C, D) and biases (C,) from those along the axes, (C, D + 1)."""
        return along_axes[:, :-1] @ self._axes.T.to(along_axes), self._start.to(along_axes) + along_axes[:, -1]

    def _scaled_gradient(self, scale: Tensor, strength: float, scaled: Tensor) -> Tensor:
        """The objective's gradient (C, D + 1) by scaled coordinates of weights along the axes and biases."""
        weight, bias = self._unscaled(scale * scaled)
        by_weight, by_bias = strength * weight, torch.zeros_like(bias)
        for x, labels in self._blocks:
            features = x.to(weight.dtype)
            # Classes before images: several times faster for few classes.
            error = torch.addmm(bias[:, None], weight, features.T).softmax(dim=0)
            error.scatter_add_(0, labels, error.new_full(labels.shape, -1.0))
            by_weight.addmm_(error, features, alpha=1 / self._images)
            by_bias += error.sum(dim=1) / self._images
        return scale * torch.cat([by_weight @ self._axes.to(weight), by_bias[:, None]], dim=1)


def _rows_of_block(values: int, device: torch.device) -> int:
    """Images of a block with so many values each."""
    return max(1, BLOCK_VALUES.get(device.type, 2**20) // values)
