"""Weights from elsewhere as the state of a `MaskedAutoencoder`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trainer.errors import WeightsRefused
from trainer.models.vit import NORM_EPS, position_embedding
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.export import Network
from trainer.spec.pretrain import ModelSpec
from trainer.storage import Store
from trainer.weights import huggingface, releases, timm
from trainer.weights.layout import Found, Heads, Layout, SourceFormat, State, converted
from trainer.weights.source import CONFIG, Source, read_source, tensors_of
from trainer.weights.statistics import Statistics, imagenet, of_processor, of_timm

SAME_POSITIONS: Final = 5e-3
"""Position embeddings that differ by less are the same sines and cosines, in the precision of any half."""


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
    fitting: str
    """A sentence on how the source fits pictures to the network's size; empty if it is done so here."""
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
    source, heads = read_source(store, name), Heads(num_heads, decoder_num_heads)
    if source.config is None:
        return _of_file(source, heads)
    model_type = huggingface.MODEL_TYPES.get(str(source.config.get("model_type")))
    if model_type:
        layout, found = huggingface.read_transformers(source, model_type, heads)
        return _assembled(source, layout, [found], of_processor(source, layout.model), heads)
    if "architecture" in source.config:
        found = Found(tensors_of(source), source.label)
        layout, settings = timm.read_timm(source, found, heads), timm.pretrained_cfg(source)
        return _assembled(source, layout, [found], of_timm(source, settings, layout.model), heads)
    raise WeightsRefused(
        f"{CONFIG}: model_type {source.config.get('model_type')!r}: only {' and '.join(huggingface.MODEL_TYPES)} of "
        "transformers can be imported, and folders of timm, which name an architecture"
    )


def _of_file(source: Source, heads: Heads) -> ForeignWeights:
    networks, only, notes = releases.networks_of(source)
    first = only or networks.get("teacher") or networks["student"]
    layout = releases.read_release(first, source.place, heads, rc_mae=bool(networks))
    layout = replace(layout, notes=(*notes, *layout.notes))
    found = list(networks.values()) if networks else [first]
    return _assembled(source, layout, found, imagenet(source, layout.model.in_chans), heads, tuple(networks))


def _assembled(
    source: Source,
    layout: Layout,
    networks: Sequence[Found],
    statistics: Statistics,
    heads: Heads,
    names: Sequence[Network] = (),
) -> ForeignWeights:
    if heads.decoder is not None and not layout.has_decoder:
        raise WeightsRefused(f"decoder_num_heads {heads.decoder}: {source.place} has no decoder: leave it out")
    originals, notes = [], list(layout.notes)
    for found in networks:
        state, told = converted(layout, found)
        originals.append(ForeignNetwork(found, state))
        notes += [note for note in told if note not in notes]
    by_name = {name: original.state for name, original in zip(names, originals, strict=False)}
    state = by_name.get("teacher", originals[0].state)
    return ForeignWeights(
        source_format=layout.source_format,
        model=layout.model,
        state=state,
        networks=by_name,
        mean=statistics.mean,
        std=statistics.std,
        value_range=statistics.value_range,
        statistics_origin=statistics.origin,
        fitting=statistics.fitting.sentence,
        norm_eps=layout.norm_eps,
        license=_license(source),
        sha256=source.sha256,
        notes=(*notes, *_adapted(layout, state), *statistics.notes),
        originals=tuple(originals),
    )


def _license(source: Source) -> str | None:
    named = timm.pretrained_cfg(source).get("license")
    return named if isinstance(named, str) and named else source.license


def _adapted(layout: Layout, state: State) -> Iterator[str]:
    """Notes on what is other than in networks that were trained here."""
    if layout.norm_eps != NORM_EPS:
        yield (
            f"The source's LayerNorms add {layout.norm_eps:g} to the variance, and here they add {NORM_EPS:g}, which "
            "shifts the features slightly."
        )
    model = layout.model
    parts = [("pos_embed", model.embed_dim), ("decoder_pos_embed", model.decoder_embed_dim)]
    for name, width in parts:
        if name in state and (state[name] - position_embedding(model.grid, width)).abs().max() > SAME_POSITIONS:
            yield (
                f"{name} is no two-dimensional sine-cosine embedding; it is kept as it is, and further pretraining "
                "here would not change it."
            )
    if not layout.has_decoder:
        yield "The source has no decoder: reconstructions and the format hf-mae are not possible."
