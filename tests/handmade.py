"""Versions that are registered in MLflow by hand: of any size, and also such as are not to be served."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mlflow.tracking import MlflowClient

from trainer.protocol import names

MIB = 2**20
PIECE = os.urandom(MIB)


def registered(mlflow: MlflowClient, name: str, job_id: str | None, experiment: str) -> tuple[int, Path]:
    """A version that claims to be of a job: its number, and the folder for its files, which is there and empty."""
    tags = {names.TAG_JOB: job_id} if job_id else {}
    model = mlflow.create_logged_model(experiment, name="backbone", tags=tags)
    version = mlflow.create_model_version(name, f"models:/{model.model_id}", tags=tags, model_id=model.model_id)
    folder = Path(model.artifact_location.removeprefix("file://"))
    folder.mkdir(parents=True)
    return int(version.version), folder


def write_weights(folder: Path, mebibytes: int) -> str:
    """A file `hf/model.safetensors` of so many MiB into a version's folder, with its sums; gives its sha256."""
    (folder / "hf").mkdir()
    digest = hashlib.sha256()
    with (folder / "hf/model.safetensors").open("wb") as file:
        for number in range(mebibytes):
            piece = number.to_bytes(8, "big") + PIECE[8:]
            file.write(piece)
            digest.update(piece)
    (folder / names.BACKBONE_SUMS).write_text(f"{digest.hexdigest()}  hf/model.safetensors\n")
    return digest.hexdigest()
