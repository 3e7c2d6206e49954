"""Stratified subsets of labelled images: the same for a seed on any machine.

Every image has a random place among those of its class, as a function of the seed and its row. A subset takes the first
ones of each class, so a smaller share of the same seed is part of a larger one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.sampler import SUBSET, VALIDATION, hash64

VALIDATION_SHARE: Final = 0.2


def stratified(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Rows, ascending, of a share in (0, 1] of each class, rounded, and at least one image of each.

    ``labels`` (n,); rows with a negative label have no class and are in no subset.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: it must be above 0 and at most 1")
    place, size = _places(labels, seed, SUBSET)
    wanted = np.maximum(np.floor(share * size + 0.5), 1)
    return np.flatnonzero((labels >= 0) & (place < wanted))


def validation_split(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows, ascending, to fit on and to validate on: a fifth of each class, rounded.

    Of a class with two images or more each side has at least one; a single image is fitted on. So every class is
    fitted on, and there is nothing to validate on if each has one image.
    """
    place, size = _places(labels, seed, VALIDATION)
    held = np.where(size > 1, np.maximum(np.floor(VALIDATION_SHARE * size + 0.5), 1), 0)
    return np.flatnonzero((labels >= 0) & (place >= held)), np.flatnonzero((labels >= 0) & (place < held))


def _places(labels: NDArray[np.int64], seed: int, stream: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row's random place in its class, from 0, and the size of that class, both (n,)."""
    order = np.lexsort((hash64(seed, 0, np.arange(len(labels)), stream), labels))
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    first = np.cumsum(sizes) - sizes
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - first[group[order]]
    return place, sizes[group]
