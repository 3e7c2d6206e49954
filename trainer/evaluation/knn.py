"""Classification by the nearest training images, in cosine similarity (as by Wu et al. 2018, arXiv 1805.01978).

Shapes: n training images, m queries, D values of a feature, k neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainer.evaluation.ranks import Ranks, alone

QUERIES: Final = 1024
"""Queries of a block. Fixed, so that every similarity has the same bits for any number of ranks."""
SIMILARITIES: Final = {"cpu": 2**24, "cuda": 2**28}
"""How many similarities are in a device's memory at a time."""


@torch.no_grad()
def nearest(
    train: Tensor, queries: Tensor, k: int, device: torch.device, ranks: Ranks | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine similarities (m, k), descending, of the nearest training images of each query, and their rows (m, k).

    Exact: every query (m, D) is compared with every training image (n, D), in float32. Of equal similarities the lower
    row is nearer. A feature of zeros has similarity 0 to everything. With ``ranks`` each rank computes some blocks of
    queries, and every rank gets all results, on the CPU. Raises `ValueError` if there are fewer than ``k`` training
    images, or features that are not finite.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k}: it must be from 1 to the number of training images, {len(train)}")
    if not (train.isfinite().all() and queries.isfinite().all()):
        raise ValueError("features are not finite: the network has diverged or overflows")
    directions = F.normalize(train.to(device), dim=1)
    blocks = [
        lambda block=block: _nearest_of_block(directions, F.normalize(block.to(device), dim=1), k)
        for block in queries.split(QUERIES)
    ]
    found = (ranks or alone()).spread(blocks)
    if not found:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    return torch.cat([similarity for similarity, _ in found]), torch.cat([rows for _, rows in found])


def _nearest_of_block(train: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest of directions (n, D) for the queries of one block, on the CPU."""
    best = torch.empty(len(queries), 0, device=train.device)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=train.device)
    first = 0
    for part in train.split(max(k, SIMILARITIES.get(train.device.type, 2**24) // QUERIES)):
        similarity, found = _first_largest(queries @ part.T, min(k, len(part)))
        # The best so far have lower rows and stand before the new ones, as `_first_largest` needs it.
        best, rows = torch.cat([best, similarity], dim=1), torch.cat([rows, found + first], dim=1)
        best, kept = _first_largest(best, min(k, best.shape[1]))
        rows = rows.gather(1, kept)
        first += len(part)
    return best.cpu(), rows.cpu()


def _first_largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest values of each row, descending, and their columns; of equal values those further left.

    `torch.topk` takes any of equal values. That matters only where the last one taken equals one left out.
    """
    largest, columns = values.topk(k, dim=1)
    crowded = (values >= largest[:, -1:]).sum(dim=1) > k
    if crowded.any():
        columns[crowded] = values[crowded].argsort(dim=1, descending=True, stable=True)[:, :k]
    columns = columns.sort(dim=1).values
    largest, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return largest, columns.gather(1, order)


def knn_scores(
    similarities: Tensor,
    rows: Tensor,
    train_labels: NDArray[np.int64],
    classes: int,
    ks: Iterable[int],
    temperature: float = 0.07,
) -> dict[int, Tensor]:
    """For each k the scores (m, C) by the votes of the k nearest, which add up to 1, from what `nearest` returns.

    A neighbour of similarity s votes for its class with weight exp(s / ``temperature``). Raises `ValueError` if some k
    is larger than the number of neighbours.
    """
    labels = torch.from_numpy(train_labels)[rows]
    # Relative to the nearest: the weights' ratios count, and exp(s / temperature) itself may overflow.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    found = {}
    for k in ks:
        if not 1 <= k <= rows.shape[1]:
            raise ValueError(f"k is {k}: it must be from 1 to the number of neighbours, {rows.shape[1]}")
        votes = torch.zeros(len(rows), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
        found[k] = votes / votes.sum(dim=1, keepdim=True)
    return found
