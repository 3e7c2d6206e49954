"""A backbone as one graph with its weights, for any number of images: `torch.export` and ONNX."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trainer.data.preprocessing import EIGHT_BITS
from trainer.errors import SpecRefused
from trainer.export.huggingface import preprocessor
from trainer.models.vit import NORM_EPS, Block
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.pretrain import ModelSpec

INPUT, OUTPUT = "pixel_values", "last_hidden_state"
ONNX_FILE, PROGRAM_FILE, SIGNATURE_FILE = "model.onnx", "model.pt2", "signature.json"
OPSET: Final = 18
ONE_FILE_BYTES: Final = 2**31 - 2**27
"""Bytes of weights up to which an ONNX model is one file: protobuf's limit is 2 GiB."""
TRACE, ONNX_TRACE = "stack_trace", "pkg.torch.onnx.stack_trace"
"""Metadata of a graph's nodes: where this worker's code lies, which is nobody's business."""
NEEDED: Final = ("onnx", "onnxscript")


class Encoder(nn.Module):
    """`MaskedAutoencoder.encode` with an ordinary convolution, independent of device and batch size."""

    cls_token: Tensor
    pos_embed: Tensor

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        dim, patch = model.embed_dim, model.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(model.in_chans, dim, kernel_size=patch, stride=patch)})
        self.register_buffer("cls_token", torch.empty(1, 1, dim))
        self.register_buffer("pos_embed", torch.empty(1, 1 + model.patches, dim))
        self.blocks = nn.ModuleList(Block(dim, model.num_heads) for _ in range(model.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to tokens (B, 1+L, D), class token first, after the final norm."""
        tokens = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


def encoder_of(weights: Mapping[str, Tensor], model: ModelSpec) -> Encoder:
    """The encoder with a `MaskedAutoencoder`'s weights, in evaluation mode."""
    encoder = Encoder(model)
    encoder.load_state_dict({name: value for name, value in weights.items() if not is_decoder(name)})
    return encoder.eval().requires_grad_(False)


def export_program(
    weights: Mapping[str, Tensor],
    model: ModelSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Path,
    value_range: tuple[float, float] = EIGHT_BITS,
) -> None:
    """Write ``model.pt2`` for `torch.export.load`, and ``signature.json``, into the new folder ``out``."""
    out.mkdir(parents=True)
    program = _program(weights, model)
    # Stored examples would be a pickle, which loading would have to open; weights and graph are raw numbers and JSON.
    program._example_inputs = None  # noqa: SLF001 - its property has no setter
    torch.export.save(program, out / PROGRAM_FILE)
    _write_signature(out, model, mean, std, value_range)


def export_onnx(
    weights: Mapping[str, Tensor],
    model: ModelSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Path,
    value_range: tuple[float, float] = EIGHT_BITS,
) -> None:
    """Write ``model.onnx`` and ``signature.json`` into the new folder ``out``, and ``model.onnx.data`` if the weights
    are too large for one file. Raises `SpecRefused` if a package that it needs is missing.
    """
    check_onnx()
    out.mkdir(parents=True)
    size = sum(value.numel() * value.element_size() for name, value in weights.items() if not is_decoder(name))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        graph = torch.onnx.export(
            encoder_of(weights, model), (_two_images(model),), dynamo=True, opset_version=OPSET,
            input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=({0: "batch"},), verbose=False,
        )  # fmt: skip
    if graph is None:
        raise RuntimeError("torch.onnx.export returned no program")
    for node in graph.model.graph.all_nodes():
        node.metadata_props.pop(ONNX_TRACE, None)
    graph.save(out / ONNX_FILE, external_data=size > ONE_FILE_BYTES)
    _write_signature(out, model, mean, std, value_range)


def check_onnx() -> None:
    """Raise `SpecRefused` if this worker lacks a package that writing an ONNX file needs."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecRefused(
            f"export.formats: onnx needs {' and '.join(missing)}, which this worker does not have: install "
            "rcmae[trainer] on the workers, or leave onnx out"
        )


def _program(weights: Mapping[str, Tensor], model: ModelSpec) -> ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        program = torch.export.export(
            encoder_of(weights, model), (_two_images(model),), dynamic_shapes=({0: Dim("batch")},)
        )
    for node in program.graph.nodes:
        node.meta.pop(TRACE, None)
    return program


def _two_images(model: ModelSpec) -> Tensor:
    """An example for tracing: with a single image, torch would treat the batch size as fixed."""
    return torch.zeros(2, model.in_chans, model.height, model.width)


def _write_signature(
    out: Path,
    model: ModelSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    value_range: tuple[float, float],
) -> None:
    shape = ["batch", model.in_chans, model.height, model.width]
    signature: dict[str, Any] = {
        "inputs": [{"name": INPUT, "dtype": "float32", "shape": shape}],
        "outputs": [{"name": OUTPUT, "dtype": "float32", "shape": ["batch", 1 + model.patches, model.embed_dim]}],
        "tokens": "the class token, then one for each patch, row by row",
        "preprocessing": preprocessor(model, mean, std, value_range),
    }
    (out / SIGNATURE_FILE).write_text(json.dumps(signature, indent=2) + "\n")
