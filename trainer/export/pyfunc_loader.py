"""Loads a pulled backbone for `mlflow.pyfunc.load_model`. It stands beside the weights, and needs nothing of rcmae."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Tokens = Callable[[Any], Any]
"""Normalised images (B, C, H, W) to tokens (B, 1+L, D), both float32 arrays."""


class Backbone:
    """What MLflow wraps."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def predict(self, data: Any) -> Any:
        """Normalised images (B, C, H, W) to tokens (B, 1+L, D), class token first."""
        return self._tokens(data)


def _load_pyfunc(path: str) -> Backbone:
    """MLflow calls it with the version's folder."""
    folder = Path(path)
    name, load = next((name, load) for name, load in LOADERS.items() if (folder / name).is_dir())
    return Backbone(load(folder / name))


def _transformers(folder: Path) -> Tokens:
    import torch  # noqa: PLC0415 - only the format's own library is needed, here and below
    from transformers import ViTModel  # noqa: PLC0415

    model: Any = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    model.eval()

    @torch.inference_mode()
    def tokens(images: Any) -> Any:
        return model(torch.from_numpy(images)).last_hidden_state.numpy()

    return tokens


def _timm(folder: Path) -> Tokens:
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    @torch.inference_mode()
    def tokens(images: Any) -> Any:
        return model.forward_features(torch.from_numpy(images)).numpy()

    return tokens


def _onnx(folder: Path) -> Tokens:
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"pixel_values": images})[0]


def _torch_export(folder: Path) -> Tokens:
    import torch  # noqa: PLC0415

    model = torch.export.load(folder / "model.pt2").module()

    @torch.inference_mode()
    def tokens(images: Any) -> Any:
        return model(torch.from_numpy(images)).numpy()

    return tokens


LOADERS: dict[str, Callable[[Path], Tokens]] = {
    "hf": _transformers,
    "torch_export": _torch_export,
    "onnx": _onnx,
    "timm": _timm,
}
"""By the folder of a format; the first that the version has is loaded."""
