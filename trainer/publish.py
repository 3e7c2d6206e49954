"""The end of a job: its backbone as files that other libraries load, registered."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint import sha256_of
from trainer.export.huggingface import export_vit
from trainer.logs import logger
from trainer.pretrain import Ending
from trainer.spec.job import AttemptRequest
from trainer.spec.names import (
    BACKBONE_HF,
    BACKBONE_SPEC,
    BACKBONE_SUMS,
    TAG_ATTEMPT,
    TAG_DATASET,
    TAG_EPOCHS,
    TAG_METHOD,
    TAG_SPEC,
)
from trainer.temporary import temporary_folder
from trainer.tracking import Tracker


def publish(request: AttemptRequest, ending: Ending, tracker: Tracker) -> None:
    """Register the backbone under the spec's `register_as`; nothing where that is null. Doing it twice keeps one."""
    spec = request.spec
    if spec.register_as is None:
        return
    with temporary_folder() as directory:
        weights = {key: value.detach().cpu() for key, value in ending.backbone.state_dict().items()}
        export_vit(weights, spec.model, ending.data.mean, ending.data.std, directory / BACKBONE_HF)
        (directory / BACKBONE_SPEC).write_text(spec.model_dump_json(indent=1))
        write_sums(directory)
        tags = {
            TAG_SPEC: spec.sha256(),
            TAG_DATASET: ending.data.fingerprint,
            TAG_METHOD: spec.method.name,
            TAG_EPOCHS: str(spec.optimization.epochs),
            TAG_ATTEMPT: str(request.attempt),
        }
        version = tracker.register(spec.register_as, directory, tags)
    logger.info("Backbone registered: %s, version %d", spec.register_as, version)


def write_sums(directory: Path) -> None:
    """``SHA256SUMS`` over every file below a directory, in the form `sha256sum --check` reads."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    lines = [f"{sha256_of(file)}  {file.relative_to(directory).as_posix()}\n" for file in files]
    (directory / BACKBONE_SUMS).write_text("".join(lines))
