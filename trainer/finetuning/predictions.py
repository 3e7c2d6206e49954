"""What a classifier says of test images, which it sees whole, and a picture of what it sees in training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.images import Images
from trainer.evaluation.canvas import GAP, LINE, class_label, png, sheet, tile, write
from trainer.evaluation.features import View, decoded, evaluating, in_blocks
from trainer.evaluation.pictures import CELL
from trainer.evaluation.ranks import Ranks
from trainer.finetuning.batches import Seen
from trainer.finetuning.network import Classifier
from trainer.models.pixels import normalised

COLUMNS, PICTURED = 4, 16
SHORT: Final = 14
"""The most characters of a class's name in the picture."""


@torch.no_grad()
def predict(
    classifier: Classifier, images: Images, rows: NDArray[np.int64], view: View, ranks: Ranks, threads: int, bf16: bool
) -> Tensor:
    """Logits (m, K) float32 on the CPU of the images ``rows``, as evaluations see them, on every rank.

    Every rank calls this: block i goes through the network on rank i % world, so the result has the same bits for any
    number of workers. Raises on every rank what `Images.fitted` raises on one.
    """
    device, blocks = classifier.encoder.cls_token.device, in_blocks(rows)

    def own() -> list[NDArray[np.float32]]:
        found = []
        pinned = device.type == "cuda"
        with closing(decoded(images, blocks[ranks.rank :: ranks.world], view.size, threads, pinned=pinned)) as pixels:
            for block in pixels:
                values = normalised(block.to(device, non_blocking=True), view.mean, view.std)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    found.append(classifier(values).float())
        return [each.cpu().numpy() for each in found]

    with evaluating(classifier):
        by_rank = ranks.collect(own)
    return torch.from_numpy(np.concatenate([by_rank[i % ranks.world][i // ranks.world] for i in range(len(blocks))]))


def top1(scores: Tensor, labels: NDArray[np.int64]) -> float:
    """The share of scores (m, K) whose greatest is that of the label (m,)."""
    return float((scores.argmax(dim=1).numpy() == labels).mean())


def batch_picture(seen: Seen, view: View, names: Sequence[str]) -> bytes:
    """A PNG of the first images of a batch as the network sees them, each with its labels and their shares.

    ``names`` are the classes'; without them, classes have their numbers.
    """
    count = min(PICTURED, len(seen.pixels))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (view.mean, view.std))
    pixels = ((seen.pixels[:count].float().cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    height, width = view.size
    scale = max(1, -(-CELL // height))
    cell = (max(width * scale, CELL), height * scale + 2 * LINE)
    rows = -(-count // COLUMNS)
    picture, pen = sheet(COLUMNS * (cell[0] + GAP) + GAP, rows * (cell[1] + GAP) + GAP)
    for number, image in enumerate(pixels):
        left, top = GAP + number % COLUMNS * (cell[0] + GAP), GAP + number // COLUMNS * (cell[1] + GAP)
        picture.paste(tile(image, (height * scale, width * scale)), (left, top))
        write(pen, (left, top + height * scale), _target(seen, number, names))
    return png(picture)


def _target(seen: Seen, number: int, names: Sequence[str]) -> str:
    """The labels of an image of a batch, and their shares: one to a line."""
    own, other, share = int(seen.labels[number]), int(seen.others[number]), float(seen.share[number])
    shares = {own: 1.0} if own == other else {own: share, other: 1 - share}
    named = {label: class_label(names, label)[:SHORT] if names else str(label) for label in shares}
    lines = [f"{named[label]} {part:.0%}" for label, part in shares.items() if part]
    return "\n".join(lines)
