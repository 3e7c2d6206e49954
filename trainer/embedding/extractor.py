"""Computes the features of a file's images, on one rank alone: the same bits on whichever rank it is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainer.embedding.parts import Parts
from trainer.evaluation.features import Rows, computed, decoded, in_blocks, pooled, pooled_with_patches
from trainer.models.encoder import Encoder
from trainer.scoring.place import Place
from trainer.scoring.subjects import Subject, check_finite
from trainer.spec.evaluate import Pooling


class Extractor:
    """Writes files with the features of one network."""

    def __init__(self, parts: Parts, subject: Subject, place: Place, threads: int, bf16: bool) -> None:
        self.parts, self.place = parts, place
        self._subject, self._view, self._threads, self._bf16 = subject, subject.view, threads, bf16
        self._encoder = subject.encoder(place.device)

    def write(self, number: int, progress: Callable[[int], None]) -> None:
        """Compute and store a file. ``progress`` is called with how many of its rows are done.

        Raises `Interrupted` if a command ends the attempt, `WeightsRefused` for features that are not finite, and what
        `Images.fitted` raises.
        """
        told, rows = self.parts.described, self.parts.rows(number)
        features = np.empty((len(rows), told.width), np.dtype(told.dtype))
        patches = np.empty((len(rows), *told.patch_tokens), np.float16) if told.patch_tokens else None
        done = 0
        with closing(self._blocks(rows)) as blocks:
            for values, tokens in blocks:
                block = slice(done, done + len(values))
                features[block] = self._checked(values).numpy()
                if patches is not None and tokens is not None:
                    patches[block] = self._checked(tokens).numpy()
                done = block.stop
                progress(done)
                self.place.check()
        self.parts.write(number, features, patches)

    def _checked(self, values: Tensor) -> Tensor:
        """What the network gave, on the CPU; raises `WeightsRefused` if it cannot be stored."""
        check_finite(values, self._subject, self.parts.described.layer, "features.precision fp32 and dtype float32")
        return values.cpu()

    def _blocks(self, rows: Rows) -> Generator[tuple[Tensor, Tensor | None], None, None]:
        """Features (n, D) of each block of rows, and the patch tokens (n, L, D) where they are wanted."""
        told, device, blocks = self.parts.described, self.place.device, in_blocks(rows)
        kind = _with_patches if told.patch_tokens else _alone
        compute = partial(kind, self._encoder, told.pooling, told.layer, getattr(torch, told.dtype))
        pixels = decoded(self.parts.images, blocks, self._view.size, self._threads, pinned=device.type == "cuda")
        return computed(compute, self._encoder, pixels, self._view, bf16=self._bf16, device=device)


def _alone(
    encoder: Encoder, pooling: Pooling, layer: int, dtype: torch.dtype, images: Tensor
) -> tuple[Tensor, Tensor | None]:
    return pooled(encoder, images, pooling, (layer,))[0].to(dtype), None


def _with_patches(
    encoder: Encoder, pooling: Pooling, layer: int, dtype: torch.dtype, images: Tensor
) -> tuple[Tensor, Tensor | None]:
    features, tokens = pooled_with_patches(encoder, images, pooling, layer)
    return features.to(dtype), tokens.half()  # on the device: half as much to copy
