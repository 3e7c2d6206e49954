"""Weights from elsewhere as the state of a `MaskedAutoencoder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.errors import WeightsRefused
from trainer.models.vit import NORM_EPS
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.pretrain import ModelSpec
from trainer.storage import Store
from trainer.weights import huggingface
from trainer.weights.layout import Found, Layout, SourceFormat, State, converted
from trainer.weights.source import CONFIG, Source, read_source
from trainer.weights.statistics import Statistics, of_processor

Network = Literal["teacher", "student"]


@dataclass(frozen=True)
class ForeignNetwork:
    """One network of a source: as it was read, and as ours."""

    found: Found
    """Its tensors under their own names, or for transformers under version 4's, with their own precision."""
    state: State


@dataclass(frozen=True)
class ForeignWeights:
    """What `read_weights` has found in a source."""

    source_format: SourceFormat
    model: ModelSpec
    """The network's sizes. Without a decoder, those of the decoder are a preset's and describe nothing."""
    state: State
    """The network's tensors in float32 by the names of `MaskedAutoencoder`: the encoder's, and the decoder's if
    `has_decoder`. Of a student and a teacher, the teacher's."""
    networks: Mapping[Network, State]
    """Of RC-MAE's checkpoints, the student, the teacher or both; empty for any other source."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float]
    """The pixel values that become 0 and 1 before ``mean`` and ``std`` apply."""
    statistics_origin: str
    """Where these three are from: ``preprocessor_config.json``, ``pretrained_cfg`` or ``ImageNet default``."""
    norm_eps: float
    """The epsilon of the source's own LayerNorms; ours is `NORM_EPS`."""
    license: str | None
    """What the source's configuration or card says; None if it says nothing."""
    sha256: Mapping[str, str]
    """By the name of each file that was read."""
    notes: tuple[str, ...]
    """Sentences on everything that was left out, assumed or adapted."""
    originals: tuple[ForeignNetwork, ...]
    """What `check_forward` compares: every network of the source."""

    @property
    def has_decoder(self) -> bool:
        return any(is_decoder(name) for name in self.state)


def read_weights(
    store: Store, name: str = "", *, num_heads: int | None = None, decoder_num_heads: int | None = None
) -> ForeignWeights:
    """Read a folder of timm or transformers, or a file of weights (`.pth`, `.safetensors`), as ours.

    ``name`` is the folder or file within the store; empty means the store's own folder. ``num_heads`` and
    ``decoder_num_heads`` are for sources that do not say how many attention heads they have: without them, those of
    the paper's networks of the same width are assumed, which a note says.

    Raises `WeightsRefused` for files that are missing or damaged and for networks that a `MaskedAutoencoder` cannot
    represent, and `StorageError` if the files cannot be read. Call `check_forward` before using the weights.
    """
    source = read_source(store, name)
    config = source.config or {}
    if config.get("model_type") not in huggingface.MODEL_TYPES:
        raise WeightsRefused(
            f"{CONFIG}: model_type {config.get('model_type')!r}: only {' and '.join(huggingface.MODEL_TYPES)} of "
            "transformers can be imported"
        )
    layout, found = huggingface.read_transformers(source)
    statistics = of_processor(source, layout.model.in_chans)
    return _assembled(source, layout, {"": found}, statistics)


def _assembled(source: Source, layout: Layout, networks: Mapping[str, Found], statistics: Statistics) -> ForeignWeights:
    originals: dict[str, ForeignNetwork] = {}
    notes = list(layout.notes)
    for name, found in networks.items():
        state, told = converted(layout, found)
        originals[name] = ForeignNetwork(found, state)
        notes += [note for note in told if note not in notes]
    if layout.norm_eps != NORM_EPS:
        notes.append(
            f"The source's LayerNorms add {layout.norm_eps:g} to the variance, and ours {NORM_EPS:g}, which shifts "
            "the features slightly."
        )
    chosen = originals.get("teacher") or next(iter(originals.values()))
    return ForeignWeights(
        source_format=layout.source_format,
        model=layout.model,
        state=chosen.state,
        networks={},
        mean=statistics.mean,
        std=statistics.std,
        value_range=statistics.value_range,
        statistics_origin=statistics.origin,
        norm_eps=layout.norm_eps,
        license=source.license,
        sha256=source.sha256,
        notes=(*notes, *statistics.notes),
        originals=tuple(originals.values()),
    )
