"""`python -m trainer.export.verify`: compares the features of a pulled backbone with the trainer's own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from trainer.export.graph import INPUT, ONNX_FILE, PROGRAM_FILE, SIGNATURE_FILE
from trainer.export.inputs import MODES
from trainer.export.own_features import VerifyError, load_trained
from trainer.models.pixels import patchify
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.export import Network
from trainer.spec.pretrain import ModelSpec, PretrainSpec
from trainer.storage import Store

TOLERANCE = 1e-5
IMAGES = 8
PIXELS: Final = "pixels_max_abs_difference"
KEYS: Final = ("keys_missing", "keys_unexpected", "keys_mismatched")


def compare(
    checkpoint: Path, backbone: Path, network: Network | None = None, pictures: Sequence[Path] = ()
) -> dict[str, object]:
    """The largest difference of all tokens on fixed random images, and the keys that the library reports as missing,
    unexpected or mismatched.

    ``checkpoint`` is a checkpoint's folder, ``backbone`` a pulled folder of the format `hf`, `hf-mae`, `onnx` or
    `torch_export`, whose library must be installed. For `hf-mae` the predicted pixels are compared too, and for graphs
    batches of several sizes. ``network`` is by default the one that the checkpoint's spec exports. With ``pictures``,
    files of colour or grey images for a network of 3 or 1 channels, the normalised pixels that the folder's
    preprocessing makes of them are compared with the trainer's own. Raises `VerifyError` for any other folder or file.
    """
    compare_with = _comparison(backbone)
    ours = load_trained(checkpoint, network)
    with torch.no_grad():
        difference, report = compare_with(ours.network, ours.spec, backbone)
    keys = {key: report.get(key.removeprefix("keys_") + "_keys", ()) for key in KEYS}
    told: dict[str, object] = {"max_abs_difference": difference}
    if pictures:
        theirs = _prepared(backbone, ours.spec.model, pictures)
        told[PIXELS] = _difference(ours.pixels(pictures), theirs)
    return told | {key: sorted(map(str, names)) for key, names in keys.items()}


def _prepared(backbone: Path, model: ModelSpec, pictures: Sequence[Path]) -> Tensor:
    """Pictures as the network's input (n, C, H, W), by the preprocessing that the folder describes."""
    if model.in_chans not in MODES:
        raise VerifyError(f"pictures cannot be compared for {model.in_chans} channels: leave them out")
    images = [_opened(picture, MODES[model.in_chans]) for picture in pictures]
    if (backbone / SIGNATURE_FILE).is_file():
        settings = json.loads((backbone / SIGNATURE_FILE).read_text())["preprocessing"]
        return torch.from_numpy(np.stack([_follow(settings, image) for image in images]))
    from transformers import AutoImageProcessor  # noqa: PLC0415 - not needed to train or serve
    from transformers import __version__ as release  # noqa: PLC0415 - as above

    # By Pillow: torchvision, which is the default where it is installed, rounds otherwise when it resizes.
    by_pillow = {"backend": "pil"} if int(release.partition(".")[0]) >= 5 else {"use_fast": False}
    processor: Any = cast(Any, AutoImageProcessor).from_pretrained(backbone, **by_pillow)
    arrays = [np.asarray(image).reshape(image.height, image.width, -1) for image in images]
    answer = processor(arrays, input_data_format="channels_last", return_tensors="pt")
    pixels: Tensor = answer["pixel_values"]
    return pixels


def _opened(picture: Path, mode: str) -> Image.Image:
    """A picture file as other tools open it: upright, in Pillow's ``mode``."""
    try:
        with Image.open(picture) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    except OSError as error:
        raise VerifyError(f"{picture} cannot be read as a picture: {error}: leave it out") from error


def _follow(settings: Mapping[str, Any], image: Image.Image) -> NDArray[np.float32]:
    """An image as the input (C, H, W) of one network, by the settings in ``signature.json``."""
    size = settings["size"]
    if "shortest_edge" in size:
        side, shortest = size["shortest_edge"], min(image.size)
        wide, tall = (side * edge // shortest for edge in image.size)
    else:
        wide, tall = size["width"], size["height"]
    image = image.resize((wide, tall), Image.Resampling(settings["resample"]))
    if settings.get("do_center_crop"):  # versions that were registered before have none
        crop = settings["crop_size"]
        left, top = (wide - crop["width"]) // 2, (tall - crop["height"]) // 2
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    values = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
    mean, std = (np.array(settings[key], dtype=np.float32) for key in ("image_mean", "image_std"))
    pixels: NDArray[np.float32] = ((values * np.float32(settings["rescale_factor"]) - mean) / std).transpose(2, 0, 1)
    return pixels


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
    """Print the comparison as JSON; exit status 1 if features, keys or pixels differ."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="folder of a committed checkpoint: a path or an s3:// URI")
    parser.add_argument("--backbone", type=Path, required=True, help="a pulled folder: hf, hf-mae, onnx, torch_export")
    parser.add_argument("--network", choices=get_args(Network), help="by default the one that the job's spec exports")
    parser.add_argument(
        "--pictures",
        type=Path,
        nargs="+",
        default=(),
        help="picture files, to compare the pixels that are made of them",
    )
    options = parser.parse_args()
    try:
        with Store(options.checkpoint).local_copy("") as checkpoint:
            result = compare(checkpoint, options.backbone, options.network, options.pictures)
    except VerifyError as error:
        parser.error(str(error))
    sys.stdout.write(json.dumps(result) + "\n")
    differences = [cast(float, result[key]) for key in ("max_abs_difference", PIXELS) if key in result]
    return int(any(result[key] for key in KEYS) or not all(each < TOLERANCE for each in differences))


if __name__ == "__main__":
    sys.exit(main())
