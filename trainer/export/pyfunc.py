"""A version as a model that `mlflow.pyfunc.load_model("models:/NAME@ALIAS")` loads, by code beside it and no pickle."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml

from trainer.export import pyfunc_loader
from trainer.spec.formats import (
    BACKBONE_HF,
    BACKBONE_HF_MAE,
    BACKBONE_ONNX,
    BACKBONE_TIMM,
    BACKBONE_TORCH_EXPORT,
)
from trainer.spec.pretrain import ModelSpec

MODEL_FILE, REQUIREMENTS, CODE = "MLmodel", "requirements.txt", "code"
LOADER: Final = "rcmae_backbone"
"""Name of the loader's module for MLflow, which puts the folder of code on Python's path."""
NEEDED: Final = {
    BACKBONE_HF: ("torch", "transformers>=4.40"),
    BACKBONE_TORCH_EXPORT: ("torch>=2.13",),
    BACKBONE_ONNX: ("onnxruntime>=1.18",),
    BACKBONE_TIMM: ("torch", "timm>=1.0.16"),
}
"""What loading each format needs beside MLflow and numpy; in the loader's order."""


def write_pyfunc(directory: Path, formats: Sequence[str], model: ModelSpec) -> None:
    """Write ``MLmodel``, ``requirements.txt`` and ``code/``; nothing where only `hf-mae` was exported."""
    if set(formats) <= {BACKBONE_HF_MAE}:
        return
    (directory / CODE).mkdir()
    (directory / CODE / f"{LOADER}.py").write_text(Path(pyfunc_loader.__file__).read_text())
    needed = next(packages for name, packages in NEEDED.items() if name in formats)
    (directory / REQUIREMENTS).write_text("\n".join(("mlflow>=3", "numpy", *needed)) + "\n")
    (directory / MODEL_FILE).write_text(yaml.safe_dump(_description(model), sort_keys=False))


def _description(model: ModelSpec) -> dict[str, Any]:
    return {
        "flavors": {
            "python_function": {
                "loader_module": LOADER,
                "code": CODE,
                "env": REQUIREMENTS,
                "python_version": platform.python_version(),
            }
        },
        "mlflow_version": version("mlflow"),
        "signature": {
            "inputs": _tensor(model.in_chans, model.height, model.width),
            "outputs": _tensor(1 + model.patches, model.embed_dim),
        },
        "utc_time_created": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}",
    }


def _tensor(*shape: int) -> str:
    """A batch of float32 arrays, as MLflow's signatures write it."""
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, *shape]}}])
