"""Whether the formats that were written for a version compute what the network computes that they were written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.export.graph import INPUT, ONNX_FILE, PROGRAM_FILE, encoder_of
from trainer.protocol.tensor_names import hf_classifier_names, hf_mae_names, hf_names, is_decoder
from trainer.spec.formats import BACKBONE_HF, BACKBONE_HF_MAE, BACKBONE_ONNX, BACKBONE_TIMM, BACKBONE_TORCH_EXPORT
from trainer.spec.pretrain import ModelSpec

Network = Callable[[Tensor], Tensor]
"""Normalised images (B, C, H, W) to what comes out."""
TOLERANCE: Final = 1e-4
"""Greatest difference of a graph's output, in units of their size: the order of additions may differ."""
BATCHES: Final = (1, 2)
"""Numbers of images: a graph takes any."""
WEIGHTS: Final = "model.safetensors"
NAMES: Final[Mapping[str, Callable[[str], tuple[str, ...]]]] = {
    BACKBONE_TIMM: lambda name: (name,),
    BACKBONE_HF: hf_names,
    BACKBONE_HF_MAE: hf_mae_names,
}
"""What a folder calls one of our tensors: one name, or those of its parts in rows."""


class DiffersError(RuntimeError):
    """A format that was written does not agree with the network."""


def check_written(directory: Path, formats: Sequence[str], weights: Mapping[str, Tensor], model: ModelSpec) -> None:
    """Read every format of a version back, and compare it with the `MaskedAutoencoder`'s state ``weights``.

    Folders of weights must hold the same numbers; graphs are run on random images. Raises `DiffersError`.
    """
    graphs: dict[str, Callable[[Path], Network]] = {
        BACKBONE_ONNX: _onnx,
        BACKBONE_TORCH_EXPORT: _program,
    }
    for form in formats:
        if form in NAMES:
            wanted = {name: value for name, value in weights.items() if form == BACKBONE_HF_MAE or not is_decoder(name)}
            _check_tensors(directory / form, form, wanted, NAMES[form])
        else:
            _check_graph(graphs[form](directory / form), form, encoder_of(weights, model), model)


def check_classifier(
    directory: Path, formats: Sequence[str], weights: Mapping[str, Tensor], model: ModelSpec, network: Network
) -> None:
    """The same for a classifier with the ``weights`` of `classifier_weights`: a graph must give the logits of
    ``network``, the one that was trained, in evaluation mode on the CPU.
    """
    for form in formats:
        if form == BACKBONE_ONNX:
            _check_graph(_onnx(directory / form), form, network, model)
        else:
            names = hf_classifier_names if form == BACKBONE_HF else NAMES[form]
            _check_tensors(directory / form, form, weights, names)


def _check_tensors(
    folder: Path, form: str, expected: Mapping[str, Tensor], names: Callable[[str], tuple[str, ...]]
) -> None:
    stored = load_file(folder / WEIGHTS)
    for name, value in expected.items():
        parts = [stored.pop(part, None) for part in names(name)]
        found = [part for part in parts if part is not None]
        if len(found) != len(parts) or not torch.equal(torch.cat(found) if len(found) > 1 else found[0], value):
            raise DiffersError(f"the format {form} was written with other values for {name}: this is a fault of rcmae")
    if stored:
        raise DiffersError(f"the format {form} was written with unknown tensors, {', '.join(sorted(stored))}")


def _check_graph(graph: Network, form: str, network: Network, model: ModelSpec) -> None:
    for count in BATCHES:
        shape = (count, model.in_chans, model.height, model.width)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            ours, theirs = network(images), graph(images)
        size = float(ours.square().mean().sqrt())
        difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        if not difference <= TOLERANCE * size:
            raise DiffersError(
                f"the output of the format {form} differs by {difference:.2g} from the network's, which is of the size "
                f"{size:.2g}: leave {form} out of export.formats"
            )


def _onnx(folder: Path) -> Network:
    """The graph in the evaluator of the package that writes it, so that no runtime has to be installed."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - not needed where no such graph was written

    session: Any = ReferenceEvaluator(str(folder / ONNX_FILE))
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def _program(folder: Path) -> Network:
    module: Network = torch.export.load(folder / PROGRAM_FILE).module()
    return module
