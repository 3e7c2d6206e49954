"""Features of whole images from a frozen encoder, computed by all ranks together.

Images go through the network in blocks of a fixed size, block i on rank i % world, so the features are the same bits
for any number of workers. Shapes: n images, C channels, H x W pixels, L patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.data.images import Images
from trainer.evaluation.ranks import Ranks
from trainer.models.encoder import Encoder
from trainer.models.pixels import normalised
from trainer.spec.evaluate import Pooling

BLOCK: Final = 64
"""Images that go through the network at once. It never changes: sums over other numbers would round otherwise."""
ROUND: Final = 16
"""Blocks of each rank after which the ranks exchange their features, and learn whether another one has failed."""

T = TypeVar("T")
Rows = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Corrupt = Callable[[Pixels, Rows], Pixels]
"""What it does to images (n, C, H, W) uint8 must depend on nothing but them and their rows."""


@dataclass(frozen=True)
class View:
    """How a network sees a picture."""

    size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Of each channel, for values in 0..1."""
    std: tuple[float, ...]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards back into its previous mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def in_blocks(rows: Rows) -> list[Rows]:
    """The rows of each block; the last one may be shorter."""
    return [rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK)]


@torch.no_grad()
def extract(
    encoder: Encoder,
    images: Images,
    rows: Rows,
    view: View,
    *,
    pooling: Pooling,
    layers: Sequence[int],
    ranks: Ranks,
    threads: int,
    bf16: bool,
    device: torch.device,
    corrupt: Corrupt | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[int, Tensor]:
    """Features (n, D) float32 on the CPU of the images ``rows``, by the block of the encoder whose tokens are pooled.

    ``mean`` pools the patch tokens; ``cls`` takes the class token; ``attention`` weights the patch tokens by the class
    token's attention in the last block, averaged over its heads. ``layers`` are numbers of blocks from 1. The network
    runs in fp32, or under bf16 autocast. ``progress`` is called with about how many images are done. Every rank calls
    this, and every rank gets all features. Raises on every rank what `Images.fitted` raises on one.
    """
    blocks = in_blocks(rows)
    own = blocks[ranks.rank :: ranks.world]
    out = torch.empty(len(layers), len(rows), encoder.cls_token.shape[-1])
    compute = partial(pooled, encoder, pooling=pooling, layers=layers)
    pixels = decoded(images, own, view.size, threads, corrupt, pinned=device.type == "cuda")
    with closing(computed(compute, encoder, pixels, view, bf16=bf16, device=device)) as features:

        def next_round(first: int) -> list[NDArray[np.float32]]:
            own_features = []
            for number, part in enumerate(islice(features, ROUND), first):
                own_features.append(part)
                progress(min((number * ranks.world + ranks.rank + 1) * BLOCK, len(rows)))
            return [each.cpu().numpy() for each in own_features]  # only now: a GPU computes while the next are decoded

        for first in range(0, -(-len(blocks) // ranks.world), ROUND):
            for rank, parts in enumerate(ranks.collect(lambda first=first: next_round(first))):  # type: ignore[misc]
                for number, part in enumerate(parts, first):
                    start = (number * ranks.world + rank) * BLOCK
                    out[:, start : start + part.shape[1]] = torch.from_numpy(part)
    return dict(zip(layers, out, strict=True))


def computed(
    compute: Callable[[Tensor], T],
    encoder: Encoder,
    pixels: Generator[Tensor, None, None],
    view: View,
    *,
    bf16: bool,
    device: torch.device,
) -> Generator[T, None, None]:
    """What ``compute`` makes of each block of normalised images (n, C, H, W), in evaluation mode and without gradients.

    ``pixels`` are those of `decoded`. The network runs in fp32, or under bf16 autocast.
    """
    with evaluating(encoder), closing(pixels) as blocks:
        for block in blocks:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                result = compute(normalised(block.to(device, non_blocking=True), view.mean, view.std))
            yield result


def decoded(
    images: Images, blocks: Sequence[Rows], size: tuple[int, int], threads: int,
    corrupt: Corrupt | None = None, *, pinned: bool = False,
) -> Generator[Tensor, None, None]:  # fmt: skip
    """Pixels (n, C, H, W) uint8 of each block of rows, as `Images.fitted` gives them, decoded one block ahead.

    ``pinned`` pixels can be copied to a GPU while it computes.
    """

    def prepare(piece: Rows) -> Pixels:
        pixels = images.fitted(piece, size)
        return pixels if corrupt is None else corrupt(pixels, piece)

    def joined(pieces: list[Future[Pixels]]) -> Tensor:
        pixels = torch.from_numpy(np.concatenate([piece.result() for piece in pieces]))
        return pixels.pin_memory() if pinned else pixels

    with ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        ahead: list[Future[Pixels]] | None = None
        for block in blocks:
            current, pieces = ahead, np.array_split(block, min(threads, len(block)))
            ahead = [pool.submit(prepare, piece) for piece in pieces]
            if current:
                yield joined(current)
        if ahead:
            yield joined(ahead)


def pooled(encoder: Encoder, images: Tensor, pooling: Pooling, layers: Sequence[int]) -> Tensor:
    """Features (layers, n, D) float32 of normalised images (n, C, H, W), as `extract` says."""
    if pooling == "attention":
        tokens, weights = _tokens(encoder, images, layers, lambda each: each, attended=True)
        return torch.stack([_pool(tokens[number], pooling, weights) for number in layers])
    features, weights = _tokens(encoder, images, layers, partial(_pool, pooling=pooling), attended=False)
    return torch.stack([features[number] for number in layers])


def pooled_with_patches(encoder: Encoder, images: Tensor, pooling: Pooling, layer: int) -> tuple[Tensor, Tensor]:
    """The features (n, D) float32 of one layer, as `pooled` gives them, and the patch tokens (n, L, D) float32 that
    they were pooled from."""
    tokens, weights = _tokens(encoder, images, (layer,), lambda each: each, attended=pooling == "attention")
    return _pool(tokens[layer], pooling, weights), tokens[layer][:, 1:]


def _tokens(
    encoder: Encoder, images: Tensor, layers: Sequence[int], keep: Callable[[Tensor], Tensor], *, attended: bool
) -> tuple[dict[int, Tensor], Tensor | None]:
    """What ``keep`` keeps of the tokens (n, 1+L, D) float32 after each layer, under the final norm.

    With ``attended`` also how the class token attends to the patches (n, L) in the last block, averaged over its heads.
    """
    last = encoder.depth if attended else max(layers)
    kept: dict[int, Tensor] = {}
    weights = None
    for number, x in enumerate(islice(encoder.states(images), last + 1)):
        if attended and number == encoder.depth - 1:
            weights = encoder.class_attention(x)[:, :, 1:].mean(dim=1)
        if number in layers:
            kept[number] = keep(encoder.norm(x).float())
    return kept, weights


def _pool(tokens: Tensor, pooling: Pooling, weights: Tensor | None = None) -> Tensor:
    """Features (n, D) of tokens (n, 1+L, D); ``weights`` (n, L) are for ``attention``."""
    if weights is None:
        return tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)
    weights = weights / weights.sum(dim=1, keepdim=True)
    # No matrix product, which autocast would compute in bf16.
    return (weights[:, :, None] * tokens[:, 1:]).sum(dim=1)
