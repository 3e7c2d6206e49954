"""The trainer's own pixels and features of picture files, from a checkpoint: what exported folders must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from trainer.data.decode import decode
from trainer.data.preprocessing import fitted
from trainer.data.scale import Scale
from trainer.data.unreadable import Unreadable
from trainer.evaluation.features import BLOCK, pooled
from trainer.models.pixels import normalised
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.base import read_document
from trainer.spec.export import Network
from trainer.spec.job import parse_pretrain
from trainer.spec.pretrain import PretrainSpec
from trainer.training.snapshot import STATE
from trainer.training.state import SPEC, STUDENT, TEACHER, Metadata


class VerifyError(ValueError):
    """A folder cannot be compared; the message says why and what to do."""


class Trained(NamedTuple):
    """A checkpoint's network, and how it sees pictures."""

    network: MaskedAutoencoder
    """In evaluation mode."""
    spec: PretrainSpec
    state: Metadata

    def pixels(self, pictures: Sequence[Path]) -> Tensor:
        """Picture files as the network's input (n, C, H, W): whole, prepared as for evaluations, normalised.

        Raises `VerifyError` for a file that is no picture of the network's channels.
        """
        return normalised(self._images(pictures), self.state.mean, self.state.std)

    def features(self, pictures: Sequence[Path]) -> NDArray[np.float32]:
        """The mean patch token (n, D) of picture files, after the final norm: what probes are fitted on."""
        with torch.no_grad():
            blocks = self.pixels(pictures).split(BLOCK)
            parts = [pooled(self.network, block, "mean", [self.network.depth])[0] for block in blocks]
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features

    def _images(self, pictures: Sequence[Path]) -> Tensor:
        model, scale = self.spec.model, Scale(self.state.scale)
        images = []
        for picture in pictures:
            try:
                pixels = decode(picture.read_bytes(), model.in_chans, scale, luma_as_stored=False)
            except (OSError, Unreadable) as error:
                raise VerifyError(f"{picture} cannot be read as a picture: {error}: leave it out") from error
            images.append(fitted(pixels, (model.height, model.width)))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def load_trained(checkpoint: Path, network: Network | None = None) -> Trained:
    """The network of a checkpoint's folder, by default the one that its spec exports.

    Raises `VerifyError` if the checkpoint does not hold it.
    """
    spec = parse_pretrain(read_document((checkpoint / SPEC).read_text()))
    chosen = network or spec.export.network
    weights = checkpoint / {"teacher": TEACHER, "student": STUDENT}[chosen]
    if not weights.is_file():
        raise VerifyError(f"{weights} does not exist: a checkpoint of method {spec.method.name} has no {chosen}")
    ours = MaskedAutoencoder(spec.model).eval()
    ours.load_state_dict(load_file(weights))
    return Trained(ours, spec, Metadata.model_validate_json((checkpoint / STATE).read_text()))
