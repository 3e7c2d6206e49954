"""Pulled backbones under the tensor names of other libraries, and in the files that their loaders take.

The weights are copied as bytes. None of these libraries is needed, only torch, whose file format their loaders read.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

from service.client.convert_readme import detectron2_readme, mmpretrain_readme
from service.client.errors import ClientError
from trainer.protocol.tensor_names import MAE_ENCODER, encoder_names, hf_names, mmpretrain_name

Library = Literal["detectron2", "mmpretrain"]
LIBRARIES: Final[tuple[Library, ...]] = get_args(Library)
WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
EIGHT_BITS: Final = (0.0, 255.0)
"""Black and white of the backbone's images, where a folder for timm does not say: earlier releases did not write it."""
TORCH_WEIGHTS, README = "model.pth", "README.md"
DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""torch's names of the types of tensors."""
LONGEST_HEADER: Final = 100_000_000
"""Bytes; the limit of the format itself."""
PIECE: Final = 1 << 20


class ConvertError(ClientError):
    """A backbone cannot be converted; the message says why and what to do."""


@dataclass(frozen=True)
class Network:
    """Sizes of a ViT, the normalisation of its input, and the names of its tensors."""

    height: int
    width: int
    patch_size: int
    channels: int
    dim: int
    depth: int
    heads: int
    hidden: int
    """Width of a block's MLP."""
    norm_eps: float
    mean: tuple[float, ...]
    """Per channel, of pixel values divided by `pixel_scale`."""
    std: tuple[float, ...]
    pixel_scale: float
    """What stored pixel values are divided by before."""
    names: Callable[[str], tuple[str, ...]]
    """The source's names of a tensor, several where the source keeps its rows in separate tensors."""
    ignored: Callable[[str], bool]
    """Whether a tensor of the source does not belong to the encoder."""


@dataclass(frozen=True)
class Tensor:
    """The location of a tensor's bytes in a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def convert(source: Path, out: Path, to: str) -> None:
    """Write the backbone in the folder ``source`` (`timm`, `hf` or `hf-mae`, as pulled) into the new folder ``out``.

    ``to`` is one of `LIBRARIES`. ``model.pth`` holds every tensor of the encoder, bit for bit, as that library's loader
    takes it (tensors alone, so that `torch.load(weights_only=True)` reads it), ``model.safetensors`` the same tensors
    under the same names, ``config.json`` the arguments of the library's class and its input, and ``README.md`` says how
    to load them. ``out`` appears whole or not at all. Raises `ConvertError`, also if torch is not installed.
    """
    if to not in LIBRARIES:
        raise ConvertError(f"cannot convert to {to!r}: choose from {', '.join(LIBRARIES)}")
    if out.exists():
        raise ConvertError(f"{out} exists: name a new folder, or remove it first")
    network = _network(source)
    target = _TARGETS[to]
    config = target.settings(network)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _copy(source / WEIGHTS, staging / WEIGHTS, network, target.rename)
        _save_for_torch(staging / WEIGHTS, staging / TORCH_WEIGHTS, target.key)
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (staging / README).write_text(target.readme(config, out.name, TORCH_WEIGHTS))
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# --- reading the source ----------------------------------------------------------------------------------------------


def _network(source: Path) -> Network:
    config = _json(source / CONFIG)
    try:
        if "model_args" in config:
            return _of_timm(config)
        if config.get("model_type") in {"vit", "vit_mae"}:
            return _of_huggingface(config, _json(source / PREPROCESSOR))
    except (KeyError, TypeError, ValueError) as error:
        raise ConvertError(f"{source / CONFIG} is not that of a pulled backbone ({error!r}): pull it again") from error
    raise ConvertError(f"{source} holds no ViT in the format timm, hf or hf-mae: pull one of these formats")


def _of_timm(config: Mapping[str, Any]) -> Network:
    model, pixels = config["model_args"], config["pretrained_cfg"]
    dim = int(model["embed_dim"])
    low, high = config.get("rcmae", {}).get("value_range", EIGHT_BITS)
    factor = 1 / (high - low)
    return Network(
        *_sides(model["img_size"]), int(model["patch_size"]), int(pixels["input_size"][0]), dim, int(model["depth"]),
        int(model["num_heads"]), int(model["mlp_ratio"] * dim), 1e-6,
        tuple(value + low * factor for value in pixels["mean"]), tuple(pixels["std"]), 1 / factor,
        names=lambda name: (name,), ignored=lambda _: False,
    )  # fmt: skip


def _of_huggingface(config: Mapping[str, Any], pixels: Mapping[str, Any]) -> Network:
    prefix = MAE_ENCODER if config["model_type"] == "vit_mae" else ""
    return Network(
        *_sides(config["image_size"]), int(config["patch_size"]), int(config["num_channels"]),
        int(config["hidden_size"]), int(config["num_hidden_layers"]), int(config["num_attention_heads"]),
        int(config["intermediate_size"]), float(config["layer_norm_eps"]),
        tuple(pixels["image_mean"]), tuple(pixels["image_std"]), 1 / float(pixels["rescale_factor"]),
        names=lambda name: tuple(f"{prefix}{hf}" for hf in hf_names(name)),
        ignored=lambda name: bool(prefix) and name.startswith("decoder."),
    )  # fmt: skip


def _sides(size: object) -> tuple[int, int]:
    if isinstance(size, list):
        height, width = size
        return int(height), int(width)
    return int(str(size)), int(str(size))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise ConvertError(f"{file} cannot be read ({error.strerror}): name the folder of a pulled backbone") from error
    except ValueError as error:
        raise ConvertError(f"{file} is not JSON: pull the backbone again") from error
    if not isinstance(found, dict):
        raise ConvertError(f"{file} is not that of a pulled backbone: pull it again")
    return found


# --- the other libraries' names --------------------------------------------------------------------------------------


def _order(network: Network) -> str | None:
    """detectron2's name of the order of channels; None if it has none."""
    return {1: "L", 3: "RGB"}.get(network.channels)


def _detectron2(network: Network) -> dict[str, Any]:
    """The arguments of `detectron2.modeling.ViT`, and those of its meta-architectures about the input."""
    if network.height != network.width:
        raise ConvertError(
            f"the backbone is for images of {network.height} x {network.width} pixels, and detectron2's ViT takes "
            "position embeddings of square images only"
        )
    backbone = {
        "in_chans": network.channels,
        "patch_size": network.patch_size,
        "embed_dim": network.dim,
        "depth": network.depth,
        "num_heads": network.heads,
        "mlp_ratio": network.hidden / network.dim,
        "qkv_bias": True,
        "pretrain_img_size": network.height,
        "pretrain_use_cls_token": True,
    }
    order = _order(network)
    pixels = _pixels(network, "pixel_mean", "pixel_std") | ({"input_format": order} if order else {})
    return {"backbone": backbone, "norm_eps": network.norm_eps} | pixels


def _mmpretrain(network: Network) -> dict[str, Any]:
    """The settings of `mmpretrain.models.VisionTransformer` and of its data preprocessor, which is given BGR images."""
    backbone = {
        "type": "VisionTransformer",
        "arch": {
            "embed_dims": network.dim,
            "num_layers": network.depth,
            "num_heads": network.heads,
            "feedforward_channels": network.hidden,
        },
        "img_size": [network.height, network.width],
        "patch_size": network.patch_size,
        "in_channels": network.channels,
        "norm_cfg": {"type": "LN", "eps": network.norm_eps},
    }
    pixels = _pixels(network, "mean", "std") | {"to_rgb": network.channels == len("RGB")}
    return {"backbone": backbone, "data_preprocessor": pixels}


def _pixels(network: Network, mean: str, std: str) -> dict[str, Any]:
    """For pixel values as they are stored, in the order red, green, blue."""
    scale = network.pixel_scale
    return {mean: [scale * value for value in network.mean], std: [scale * value for value in network.std]}


@dataclass(frozen=True)
class Target:
    """What a library needs."""

    settings: Callable[[Network], dict[str, Any]]
    rename: Callable[[str], str]
    """Its name of a tensor."""
    key: str
    """The key of the tensors in its checkpoints."""
    readme: Callable[[Mapping[str, Any], str, str], str]
    """The text of ``README.md``, of the settings, the folder's name and the weights' file."""


_TARGETS: Final[dict[str, Target]] = {
    "detectron2": Target(_detectron2, str, "model", detectron2_readme),  # MAE's names, which ViTDet's are too
    "mmpretrain": Target(_mmpretrain, mmpretrain_name, "state_dict", mmpretrain_readme),
}


# --- copying the weights ---------------------------------------------------------------------------------------------


def _copy(source: Path, target: Path, network: Network, rename: Callable[[str], str]) -> None:
    """Copy every tensor of the encoder under its new name, joining rows that the source keeps in separate tensors."""
    try:
        with source.open("rb") as file:
            tensors = _tensors(file, source)
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            parts: list[Tensor] = []
            end = 0
            for name in encoder_names(network.depth):
                rows = [_pop_tensor(tensors, part, source) for part in network.names(name)]
                first, size = rows[0], sum(row.stop - row.start for row in rows)
                shape = [sum(row.shape[0] for row in rows), *first.shape[1:]]
                header[rename(name)] = {"dtype": first.dtype, "shape": shape, "data_offsets": [end, end + size]}
                parts += rows
                end += size
            unknown = sorted(name for name in tensors if not network.ignored(name))
            if unknown:
                raise ConvertError(f"{source} holds tensors that its config.json lacks: {_first_names(unknown)}")
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with target.open("wb") as new:
                new.write(struct.pack("<Q", len(text)) + text)
                for part in parts:
                    _append(file, part, new, source)
    except OSError as error:
        raise ConvertError(f"{error.filename or target}: {error.strerror}") from error


def _save_for_torch(weights: Path, target: Path, key: str) -> None:
    """Write the tensors of a safetensors file as `torch.save` writes them, under one key."""
    try:
        import torch  # noqa: PLC0415 - no other command of the client needs it
    except ImportError as error:
        raise ConvertError(
            "the files that detectron2 and mmpretrain load are written by torch, which is not installed here: install "
            "it beside rcmae (pip install torch), or convert on the machine that has the library"
        ) from error
    tensors = {}
    with weights.open("rb") as file:
        for name, tensor in _tensors(file, weights).items():
            if tensor.dtype not in DTYPES:
                raise ConvertError(f"{name} is of the type {tensor.dtype}, and only {', '.join(DTYPES)} are converted")
            file.seek(tensor.start)
            data = bytearray(file.read(tensor.stop - tensor.start))
            tensors[name] = torch.frombuffer(data, dtype=getattr(torch, DTYPES[tensor.dtype])).view(tensor.shape)
    torch.save({key: tensors}, target)


def _tensors(file: BinaryIO, source: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file lists in its header."""
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else LONGEST_HEADER + 1
    if length > LONGEST_HEADER:
        raise ConvertError(f"{source} is not a safetensors file: pull the backbone again")
    try:
        header = json.loads(file.read(length))
        return {
            name: Tensor(
                dtype=str(entry["dtype"]),
                shape=tuple(int(side) for side in entry["shape"]),
                start=8 + length + int(entry["data_offsets"][0]),
                stop=8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConvertError(f"{source} is not a complete safetensors file: pull the backbone again") from error


def _pop_tensor(tensors: dict[str, Tensor], name: str, source: Path) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise ConvertError(f"{source} lacks the tensor {name}, which its config.json implies: pull the backbone again")
    return tensor


def _append(file: BinaryIO, part: Tensor, new: BinaryIO, source: Path) -> None:
    file.seek(part.start)
    left = part.stop - part.start
    while left > 0:
        piece = file.read(min(left, PIECE))
        if not piece:
            raise ConvertError(f"{source} ends too early: pull the backbone again")
        new.write(piece)
        left -= len(piece)


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" and more" if len(names) > 5 else "")
