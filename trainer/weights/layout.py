"""How the tensors of a source become those of a `MaskedAutoencoder`, each checked on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.errors import WeightsRefused
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.base import problems
from trainer.spec.presets import DEFAULT_PRESET, PRESETS
from trainer.spec.pretrain import ModelSpec

SourceFormat = Literal["timm", "vit", "vit_mae", "mae_pth", "rc_mae_pth"]
State = dict[str, Tensor]

FLOATS: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SHOWN: Final = 5
"""The most names that an error lists."""


@dataclass(frozen=True)
class Found:
    """The tensors of one network, by the names that its layout uses."""

    tensors: Mapping[str, Tensor]
    label: Callable[[str], str]
    """How messages call a tensor: its file, and its name there."""


@dataclass(frozen=True)
class Heads:
    """Attention heads as the caller gives them, for sources that do not say them."""

    encoder: int | None = None
    decoder: int | None = None

    def agreeing(self, stated: Any) -> Any:
        """The encoder's heads that a source states; raises `WeightsRefused` if others are given."""
        return _agreeing("num_heads", stated, self.encoder)

    def agreeing_decoder(self, stated: Any) -> Any:
        """The same for the decoder's."""
        return _agreeing("decoder_num_heads", stated, self.decoder)


def _agreeing(field: str, stated: Any, given: int | None) -> Any:
    if given is not None and given != stated:
        raise WeightsRefused(f"{field} {given}: the source says {stated}: leave {field} out")
    return stated


def own_names(name: str) -> tuple[str, ...]:
    """The names of a source that calls its tensors as we do."""
    return (name,)


@dataclass(frozen=True)
class Layout:
    """What a source's network is, and where its tensors are."""

    source_format: SourceFormat
    model: ModelSpec
    has_decoder: bool
    names: Callable[[str], tuple[str, ...]]
    """The source's names of one of our tensors: one, or those of the parts that make it up, in rows."""
    norm_eps: float
    """The epsilon of the source's own LayerNorms."""
    left_out: tuple[tuple[str, str], ...] = ()
    """What may be beside the network: a regular expression for whole names, and the note that says so."""
    notes: tuple[str, ...] = ()


def checked_model(sizes: Mapping[str, Any], place: str) -> ModelSpec:
    """The sizes as a `ModelSpec`, which checks them; sizes of a decoder that are not given are those of a preset."""
    preset = nearest_preset(sizes)
    try:
        return ModelSpec.model_validate({"preset": preset} | dict(sizes))
    except ValidationError as error:
        told = "; ".join(map(str, problems(error.errors(), ModelSpec)))
        raise WeightsRefused(f"{place}: the network's sizes cannot be represented: {told}") from error


def nearest_preset(sizes: Mapping[str, Any]) -> str:
    """The preset of this width and patch, else of this width, else the default."""
    width, patch = sizes["embed_dim"], sizes["patch_size"]
    fitting = [name for name, preset in PRESETS.items() if preset.embed_dim == width]
    exact = [name for name in fitting if PRESETS[name].patch_size == patch]
    return (exact or fitting or [DEFAULT_PRESET])[0]


def converted(layout: Layout, found: Found) -> tuple[State, tuple[str, ...]]:
    """The state of a `MaskedAutoencoder` in float32, without the decoder's tensors if the source has none; and notes
    on what was left out.

    Raises `WeightsRefused` for tensors that are missing, unknown, mis-shaped, not finite or no floats.
    """
    with torch.device("meta"):
        expected = MaskedAutoencoder(layout.model).state_dict()
    wanted = {name: value.shape for name, value in expected.items() if layout.has_decoder or not is_decoder(name)}
    sources = {name: layout.names(name) for name in wanted}
    used = {part for parts in sources.values() for part in parts}
    _check_complete(used, found)
    notes = _left_out(layout, sorted(set(found.tensors) - used), found)
    state = {name: _joined(parts, tuple(wanted[name]), found) for name, parts in sources.items()}
    halves = {str(found.tensors[part].dtype).removeprefix("torch.") for part in used} - {"float32"}
    if halves:
        notes.append(f"Tensors of {' and '.join(sorted(halves))} were converted to float32.")
    return state, tuple(notes)


def _check_complete(used: set[str], found: Found) -> None:
    missing = sorted(used - set(found.tensors))
    if missing:
        raise WeightsRefused(
            f"{_listed(map(found.label, missing))}: missing; the weights are incomplete: copy them again"
        )


def _left_out(layout: Layout, further: list[str], found: Found) -> list[str]:
    """Notes on tensors that belong to no network of ours; each must be one that the layout knows."""
    notes: dict[str, None] = {}
    unknown = []
    for name in further:
        note = next((note for pattern, note in layout.left_out if re.fullmatch(pattern, name)), None)
        if note is None:
            unknown.append(name)
        else:
            notes[note] = None
    if unknown:
        raise WeightsRefused(
            f"{_listed(map(found.label, unknown))}: unknown to a plain Vision Transformer, so that without "
            f"{'it' if len(unknown) == 1 else 'them'} the features could be wrong. Only plain ones can be imported"
        )
    return list(notes)


def _joined(parts: tuple[str, ...], shape: tuple[int, ...], found: Found) -> Tensor:
    """One of our tensors, from its parts in rows, in float32."""
    part_shape = (shape[0] // len(parts), *shape[1:])
    values = [_float32(part, part_shape, found) for part in parts]
    return values[0] if len(values) == 1 else torch.cat(values)


def _float32(name: str, shape: tuple[int, ...], found: Found) -> Tensor:
    value = found.tensors[name]
    if tuple(value.shape) != shape:
        raise WeightsRefused(
            f"{found.label(name)}: has the shape {tuple(value.shape)}, and {shape} is expected by the network's sizes"
        )
    if value.dtype not in FLOATS or value.layout is not torch.strided or value.device.type != "cpu":
        kind = f"{value.layout} {value.dtype} on {value.device}".replace("torch.", "")
        raise WeightsRefused(
            f"{found.label(name)}: is {kind}, and only dense floating-point weights are read: save the network without "
            "quantization"
        )
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise WeightsRefused(f"{found.label(name)}: repeats a part of its values: save a contiguous tensor")
    # A copy: the file is mapped, and must not change what was checked.
    single = value.detach().to(torch.float32, copy=True).contiguous()
    if not bool(torch.isfinite(single).all()):
        raise WeightsRefused(f"{found.label(name)}: holds NaN or infinite values: the weights are damaged")
    return single


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
