"""Where units are measured: the network, the images, the ranks; and the features of one network."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.errors import SpecRefused
from trainer.evaluation.corruptions.catalogue import corrupted
from trainer.evaluation.features import Corrupt, Pixels, Rows, extract
from trainer.evaluation.ranks import Ranks
from trainer.models.encoder import Encoder
from trainer.scoring.labelled import LabelledData, LabelledSet
from trainer.scoring.subjects import Subject, check_finite
from trainer.spec.evaluate import Corruption, EvaluateSpec
from trainer.spec.measurements import Group


@dataclass(frozen=True)
class Bench:
    """What every measurement of an attempt needs. Every rank has one and makes the same calls."""

    spec: EvaluateSpec
    subject: Subject
    data: LabelledData
    ranks: Ranks
    device: torch.device
    threads: int
    bf16: bool
    check: Callable[[], None]
    """Raises if a command ends the attempt; called often."""

    @property
    def classes(self) -> int:
        return len(self.data.classes)

    @functools.cached_property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose tokens are used, from 1; raises `SpecRefused` for one that the network does not have."""
        layer, depth = self.spec.features.layer, self.subject.model.depth
        if layer == "all":
            return tuple(range(1, depth + 1))
        if layer == "last":
            return (depth,)
        if layer > depth:
            raise SpecRefused(f"features.layer: is {layer}, and the network has {depth} blocks")
        return (layer,)

    def encoder(self, group: Group) -> Encoder:
        """The network of a group, frozen."""
        if group.weights == "backbone":
            return self.subject.encoder(self.device)
        return self.subject.untrained(group.seed, self.device)


class NetworkFeatures:
    """The features of one network, each set of images once."""

    def __init__(self, bench: Bench, encoder: Encoder) -> None:
        self._bench, self.encoder = bench, encoder

    @functools.cached_property
    def train(self) -> dict[int, Tensor]:
        """(n, D) by block, of the training images."""
        return self._of(self._bench.data.train)

    @functools.cached_property
    def test(self) -> dict[int, Tensor]:
        """(m, D) by block, of the test images."""
        return self._of(self._bench.data.test)

    def corrupted(self, corruption: Corruption, severity: int, layer: int) -> Tensor:
        """(m, D) of the corrupted test images, after one block."""
        test = self._bench.data.test
        names = test.images.index.table.names

        def corrupt(pixels: Pixels, rows: Rows) -> Pixels:
            for image, row in zip(pixels, rows, strict=True):
                picture = image.transpose(1, 2, 0)
                image[:] = corrupted(picture, corruption, severity, image_key(names[row])).transpose(2, 0, 1)
            return pixels

        return self._of(test, (layer,), corrupt)[layer]

    def _of(
        self, images: LabelledSet, layers: tuple[int, ...] | None = None, corrupt: Corrupt | None = None
    ) -> dict[int, Tensor]:
        bench = self._bench
        found = extract(
            self.encoder,
            images.images,
            images.rows,
            bench.subject.view,
            pooling=bench.spec.features.pooling,
            layers=layers or bench.layers,
            ranks=bench.ranks,
            threads=bench.threads,
            bf16=bench.bf16,
            device=bench.device,
            corrupt=corrupt,
            progress=lambda _: bench.check(),
        )
        for layer, features in found.items():
            check_finite(features, bench.subject, layer, "features.precision fp32")
        return found


def identity(bench: Bench) -> str:
    """Identity of the images, their classes and the network: measurements of another one do not belong here."""
    digest = hashlib.sha256()
    for images in (bench.data.train, bench.data.test):
        digest.update(images.images.index.fingerprint.encode() + images.rows.tobytes() + images.labels.tobytes())
    digest.update("\0".join(bench.data.classes).encode())
    for name, value in sorted(bench.subject.state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def image_key(name: str) -> int:
    """A number of 63 bits for an image's name: its corruptions follow from it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
