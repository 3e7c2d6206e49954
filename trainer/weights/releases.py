"""Single files of weights by the names of MAE's and RC-MAE's releases: a state, or checkpoints that hold one or two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from trainer.errors import WeightsRefused
from trainer.models.vit import NORM_EPS
from trainer.spec.export import Network
from trainer.weights import plain
from trainer.weights.layout import Found, Heads, Layout, checked_model, own_names
from trainer.weights.source import Source

STATES: Final = ("model", "state_dict")
"""Keys of a checkpoint under which its only network may be."""
NETWORKS: Final[dict[str, Network]] = {
    "student": "student", "student_without_ddp": "student", "teacher": "teacher", "teacher_without_ddp": "teacher",
}  # fmt: skip
"""Keys, or beginnings of names, of RC-MAE's two networks."""
WRAPPER: Final = "module."
"""What DistributedDataParallel puts before each name."""

ASSUMED: Final = (
    "The file does not say its activation and epsilon: GELU and 1e-6, as in MAE's code, were assumed; the check cannot "
    "find others."
)

Tensors = dict[str, Tensor]


def networks_of(source: Source) -> tuple[dict[Network, Found], Found | None, tuple[str, ...]]:
    """RC-MAE's networks, or the only network of any other file; and notes on what else the file holds."""
    file = next(iter(source.sha256))
    content = dict(source.content)
    notes: tuple[str, ...] = ()
    if not any(isinstance(value, Tensor) for value in content.values()):
        content, notes = _opened(content, file)
    named = {key: value for key, value in content.items() if key in NETWORKS and isinstance(value, dict)}
    if not named:
        named = _split(_unwrapped(content, file))
    if not named:
        return {}, _found(content, file, ""), notes
    networks: dict[Network, Found] = {}
    for key, value in named.items():
        if NETWORKS[key] in networks:
            raise WeightsRefused(f"{file}: holds its {NETWORKS[key]} twice: keep one of the two")
        networks[NETWORKS[key]] = _found(value, file, f"{key}: ")
    return networks, None, notes


def _opened(content: Mapping[str, Any], file: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The part of a checkpoint that holds its networks, and the note on the rest."""
    inside = [key for key, value in content.items() if isinstance(value, dict)]
    networks, states = [key for key in inside if key in NETWORKS], [key for key in inside if key in STATES]
    if (networks and states) or len(states) > 1:
        raise WeightsRefused(f"{file}: holds {', '.join(networks + states)}: keep the networks that you mean")
    if not networks and not states:
        raise WeightsRefused(
            f"{file}: holds no tensors by name, and none of {', '.join((*STATES, *NETWORKS))}: save model.state_dict()"
        )
    rest = sorted(set(content) - {*networks, *states})
    notes = (f"Beside the weights the file holds {', '.join(rest)}, which was left out.",) if rest else ()
    return ({key: content[key] for key in networks} if networks else dict(content[states[0]])), notes


def _split(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """RC-MAE's networks in one state, whose names begin with the network; empty for any other state."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first not in NETWORKS:
            return {}
        parts.setdefault(first, {})[rest] = value
    return parts


def _unwrapped(state: Mapping[Any, Any], file: str) -> Mapping[str, Any]:
    unnamed = next((name for name in state if not isinstance(name, str)), None)
    if unnamed is not None:
        raise WeightsRefused(f"{file}: must hold tensors by name, not by {unnamed!r}: save model.state_dict()")
    while state and all(name.startswith(WRAPPER) for name in state):
        state = {name.removeprefix(WRAPPER): value for name, value in state.items()}
    return state


def _found(state: Mapping[str, Any], file: str, prefix: str) -> Found:
    unwrapped = _unwrapped(state, file)
    wrong = next((name for name, value in unwrapped.items() if not isinstance(value, Tensor)), None)
    if wrong is not None or not unwrapped:
        what = f"{wrong} is of type {type(unwrapped[wrong]).__name__}" if wrong is not None else "there is nothing"
        raise WeightsRefused(f"{file}: {prefix}must hold tensors by name, and {what}: save model.state_dict()")
    return Found(unwrapped, lambda name: f"{file}: {prefix}{name}")


def read_release(found: Found, place: str, heads: Heads, *, rc_mae: bool) -> Layout:
    """The network of a file, whose sizes its tensors tell, except for the heads.

    Raises `WeightsRefused` for a network that is no plain Vision Transformer, and if its heads cannot be assumed.
    """
    plain.check_plain(found, place)
    sizes = plain.sizes_of(found, place)
    decoder = plain.decoder_sizes_of(found, place)
    chosen, notes = plain.encoder_heads(sizes["embed_dim"], heads.encoder, place)
    network = {name: sizes[name] for name in ("patch_size", "in_chans", "embed_dim", "depth")} | decoder
    network |= {"img_size": plain.square_image(sizes, place), "num_heads": chosen}
    if decoder:
        network["decoder_num_heads"], further = plain.decoder_heads(decoder["decoder_embed_dim"], heads.decoder, place)
        notes += further
    return Layout(
        source_format="rc_mae_pth" if rc_mae else "mae_pth",
        model=checked_model(network, place),
        has_decoder=bool(decoder),
        names=own_names,
        norm_eps=NORM_EPS,
        left_out=plain.LEFT_OUT[:3] if decoder else plain.LEFT_OUT,
        notes=(ASSUMED, *notes),
    )
