"""A backbone, or a classifier, as one graph with its weights, for any number of images: `torch.export` and ONNX."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trainer.data.preprocessing import EIGHT_BITS
from trainer.errors import SpecRefused
from trainer.export.huggingface import preprocessor
from trainer.export.timm import Head
from trainer.models.vit import NORM_EPS, Block
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.pretrain import ModelSpec

INPUT, OUTPUT, LOGITS = "pixel_values", "last_hidden_state", "logits"
CLASSES: Final = "classes"
"""Key of the names of a classifier's classes."""
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
        out: Tensor = self.norm(self.tokens(pixel_values))
        return out

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """The tokens (B, 1+L, D) before the final norm."""
        tokens = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class ClassifierGraph(Encoder):
    """`finetuning.network.FineTuned` in the same way; its tensors have timm's names."""

    def __init__(self, model: ModelSpec, head: Head) -> None:
        super().__init__(model)
        if head.pooling == "mean":
            del self.norm
            self.fc_norm = nn.LayerNorm(model.embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(model.embed_dim, len(head.classes))
        self.mean = head.pooling == "mean"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        tokens = self.tokens(pixel_values)
        logits: Tensor = self.head(self.fc_norm(tokens[:, 1:].mean(dim=1)) if self.mean else self.norm(tokens[:, 0]))
        return logits


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
    _write_onnx(encoder_of(weights, model), model, OUTPUT, out)
    _write_signature(out, model, mean, std, value_range)


def export_onnx_classifier(
    weights: Mapping[str, Tensor],
    model: ModelSpec,
    head: Head,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    out: Path,
    value_range: tuple[float, float] = EIGHT_BITS,
) -> None:
    """Like `export_onnx`, from images to logits. The names of the classes are JSON in the metadata of the graph, and in
    ``signature.json``. ``weights`` are those of `classifier_weights`.
    """
    network = ClassifierGraph(model, head)
    network.load_state_dict(dict(weights))
    classes = {CLASSES: json.dumps(head.classes, ensure_ascii=False)}
    _write_onnx(network.eval().requires_grad_(False), model, LOGITS, out, classes)
    _write_signature(out, model, mean, std, value_range, head)


def _write_onnx(
    network: nn.Module, model: ModelSpec, output: str, out: Path, metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    check_onnx()
    out.mkdir(parents=True)
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        graph = torch.onnx.export(
            network, (_two_images(model),), dynamo=True, opset_version=OPSET,
            input_names=[INPUT], output_names=[output], dynamic_shapes=({0: "batch"},), verbose=False,
        )  # fmt: skip
    if graph is None:
        raise RuntimeError("torch.onnx.export returned no program")
    for node in graph.model.graph.all_nodes():
        node.metadata_props.pop(ONNX_TRACE, None)
    graph.model.metadata_props.update(metadata)
    graph.save(out / ONNX_FILE, external_data=size > ONE_FILE_BYTES)


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
    head: Head | None = None,
) -> None:
    shape = ["batch", model.in_chans, model.height, model.width]
    if head:
        output: dict[str, Any] = {"name": LOGITS, "dtype": "float32", "shape": ["batch", len(head.classes)]}
        meaning: dict[str, Any] = {CLASSES: list(head.classes)}
    else:
        output = {"name": OUTPUT, "dtype": "float32", "shape": ["batch", 1 + model.patches, model.embed_dim]}
        meaning = {"tokens": "the class token, then one for each patch, row by row"}
    signature: dict[str, Any] = {
        "inputs": [{"name": INPUT, "dtype": "float32", "shape": shape}],
        "outputs": [output],
        **meaning,
        "preprocessing": preprocessor(model, mean, std, value_range),
    }
    (out / SIGNATURE_FILE).write_text(json.dumps(signature, indent=2) + "\n")
