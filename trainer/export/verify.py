"""`python -m trainer.export.verify`: compares the features of a pulled backbone with the trainer's own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.export.graph import INPUT, ONNX_FILE, PROGRAM_FILE
from trainer.models.pixels import patchify
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.base import read_document
from trainer.spec.export import Network
from trainer.spec.job import parse_pretrain
from trainer.spec.pretrain import ModelSpec, PretrainSpec
from trainer.storage import Store
from trainer.training.state import SPEC, STUDENT, TEACHER

TOLERANCE = 1e-5
IMAGES = 8
KEYS: Final = ("keys_missing", "keys_unexpected", "keys_mismatched")


class VerifyError(ValueError):
    """A folder cannot be compared; the message says why and what to do."""


def compare(checkpoint: Path, backbone: Path, network: Network | None = None) -> dict[str, object]:
    """The largest difference of all tokens on fixed random images, and the keys that the library reports as missing,
    unexpected or mismatched.

    ``checkpoint`` is a checkpoint's folder, ``backbone`` a pulled folder of the format `hf`, `hf-mae`, `onnx` or
    `torch_export`, whose library must be installed. For `hf-mae` the predicted pixels are compared too, and for graphs
    batches of several sizes. ``network`` is by default the one that the checkpoint's spec exports.
    Raises `VerifyError` for any other folder.
    """
    spec = parse_pretrain(read_document((checkpoint / SPEC).read_text()))
    compare_with = _comparison(backbone)
    ours = _load_checkpoint(checkpoint, spec, network)
    with torch.no_grad():
        difference, report = compare_with(ours, spec, backbone)
    keys = {key: report.get(key.removeprefix("keys_") + "_keys", ()) for key in KEYS}
    return {"max_abs_difference": difference} | {key: sorted(map(str, names)) for key, names in keys.items()}


def _load_checkpoint(checkpoint: Path, spec: PretrainSpec, network: Network | None) -> MaskedAutoencoder:
    chosen = network or spec.export.network
    weights = checkpoint / {"teacher": TEACHER, "student": STUDENT}[chosen]
    if not weights.is_file():
        raise VerifyError(f"{weights} does not exist: a checkpoint of method {spec.method.name} has no {chosen}")
    ours = MaskedAutoencoder(spec.model).eval()
    ours.load_state_dict(load_file(weights))
    return ours


Comparison = tuple[float, Mapping[str, Any]]
"""The largest difference, and transformers' report on keys, which is empty for a graph."""


def _comparison(backbone: Path) -> Callable[[MaskedAutoencoder, PretrainSpec, Path], Comparison]:
    """The function that compares a folder of this format; raises `VerifyError` if there is none."""
    if (backbone / ONNX_FILE).is_file():
        return _onnx
    if (backbone / PROGRAM_FILE).is_file():
        return _program
    config = backbone / "config.json"
    if not config.is_file():
        raise VerifyError(f"{backbone} has no {ONNX_FILE}, {PROGRAM_FILE} or config.json: give a pulled folder")
    settings = json.loads(config.read_text())
    comparisons = {"vit": _vit, "vit_mae": _vit_mae}
    if settings.get("model_type") in comparisons:
        return comparisons[settings["model_type"]]
    if "model_args" in settings:
        raise VerifyError(
            f"{backbone} is for timm, which needs torchvision: compare it in an environment that has both"
        )
    raise VerifyError(f"{config} has another format than hf, hf-mae, onnx and torch_export: pull one of these")


def _vit(ours: MaskedAutoencoder, spec: PretrainSpec, backbone: Path) -> Comparison:
    from transformers import ViTModel  # noqa: PLC0415 - not needed to train or serve

    loaded: Any = ViTModel.from_pretrained(backbone, add_pooling_layer=False, output_loading_info=True)
    theirs, loading = loaded
    images = _images(spec.model, IMAGES)
    return _difference(ours.encode(images), theirs.eval()(images).last_hidden_state), loading


def _vit_mae(ours: MaskedAutoencoder, spec: PretrainSpec, backbone: Path) -> Comparison:
    """Both networks get the same mask, as noise that transformers sorts."""
    from transformers import ViTMAEForPreTraining  # noqa: PLC0415 - as above

    loaded: Any = ViTMAEForPreTraining.from_pretrained(backbone, output_loading_info=True)
    theirs, loading = loaded
    model, visible = spec.model, int(spec.model.patches * (1 - spec.method.mask_ratio))
    images = _images(model, IMAGES)
    noise = torch.rand(IMAGES, model.patches, generator=torch.Generator().manual_seed(1))
    order = noise.argsort(dim=1)
    index = order[:, :, None].expand(-1, -1, model.patch_values)
    visible_patches = patchify(images, model.patch_size).gather(1, index[:, :visible])
    predicted = ours(visible_patches, order)
    answer = theirs.eval()(images, noise=noise)
    masked = answer.logits.gather(1, index[:, visible:])
    # The encoder alone, without a mask, with the tokens in the order of the image.
    theirs.config.mask_ratio = 0.0
    straight = torch.arange(model.patches).expand(IMAGES, -1).float()
    tokens = theirs.vit(images, noise=straight).last_hidden_state
    return _largest([_difference(predicted, masked), _difference(ours.encode(images), tokens)]), loading


def _program(ours: MaskedAutoencoder, spec: PretrainSpec, backbone: Path) -> Comparison:
    theirs = torch.export.load(backbone / PROGRAM_FILE).module()
    return _batches(ours, spec, theirs), {}


def _onnx(ours: MaskedAutoencoder, spec: PretrainSpec, backbone: Path) -> Comparison:
    import onnxruntime  # noqa: PLC0415 - as above

    session = onnxruntime.InferenceSession(backbone / ONNX_FILE, providers=["CPUExecutionProvider"])
    return _batches(ours, spec, lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])), {}


def _batches(ours: MaskedAutoencoder, spec: PretrainSpec, theirs: Callable[[Tensor], Tensor]) -> float:
    batches = [_images(spec.model, count) for count in (1, 2, IMAGES)]
    return _largest([_difference(ours.encode(images), theirs(images)) for images in batches])


def _images(model: ModelSpec, count: int) -> Tensor:
    shape = (count, model.in_chans, model.height, model.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _largest(differences: list[float]) -> float:
    """The largest difference; NaN if any is NaN, which Python's `max` would hide."""
    return float(torch.tensor(differences, dtype=torch.float64).max())


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference; NaN if any value is NaN."""
    if ours.shape != theirs.shape:
        raise VerifyError(
            f"the backbone's output has the shape {tuple(theirs.shape)}, and the trainer's {tuple(ours.shape)}: "
            "compare a backbone with the checkpoint that it was exported from"
        )
    return float((ours - theirs).abs().max())


def main() -> int:
    """Print the comparison as JSON; exit status 1 if the features or the keys differ."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="folder of a committed checkpoint: a path or an s3:// URI")
    parser.add_argument("--backbone", type=Path, required=True, help="a pulled folder: hf, hf-mae, onnx, torch_export")
    parser.add_argument("--network", choices=get_args(Network), help="by default the one that the job's spec exports")
    options = parser.parse_args()
    try:
        with Store(options.checkpoint).local_copy("") as checkpoint:
            result = compare(checkpoint, options.backbone, options.network)
    except VerifyError as error:
        parser.error(str(error))
    sys.stdout.write(json.dumps(result) + "\n")
    difference = cast(float, result["max_abs_difference"])
    return int(any(result[key] for key in KEYS) or not difference < TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
