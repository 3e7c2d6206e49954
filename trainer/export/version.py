"""A registered version's folder: the backbone in each format, its card, metrics and checksums; and its tags."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.export.card import Facts, write_card
from trainer.export.graph import export_onnx, export_program
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.pyfunc import write_pyfunc
from trainer.export.timm import export_timm
from trainer.protocol import names
from trainer.protocol.names import BACKBONE_METRICS, BACKBONE_SPEC, BACKBONE_SUMS
from trainer.spec.formats import BACKBONE_HF, BACKBONE_HF_MAE, BACKBONE_ONNX, BACKBONE_TIMM, BACKBONE_TORCH_EXPORT
from trainer.storage import sha256_of

CURVE_POINTS = 200
"""Points of a curve in `metrics.json`, at most."""


def write_version(directory: Path, facts: Facts, weights: Mapping[str, Any]) -> dict[str, str]:
    """Write all files of a version into an empty local directory; returns its tags.

    ``weights`` is the state of the `MaskedAutoencoder` to export.
    """
    export, spec = facts.export, facts.spec
    pixels, values = (facts.mean, facts.std), facts.value_range
    exporters: dict[str, Callable[[Path], None]] = {
        BACKBONE_TIMM: functools.partial(
            export_timm, weights, spec.model, *pixels,
            license_id=export.license, provenance=_provenance(facts), value_range=values,
        ),
        BACKBONE_HF: functools.partial(export_vit, weights, spec.model, *pixels, value_range=values),
        BACKBONE_HF_MAE: functools.partial(
            export_vit_mae, weights, spec.model, spec.method, *pixels, value_range=values
        ),
        BACKBONE_ONNX: functools.partial(export_onnx, weights, spec.model, *pixels, value_range=values),
        BACKBONE_TORCH_EXPORT: functools.partial(export_program, weights, spec.model, *pixels, value_range=values),
    }  # fmt: skip
    for name in export.formats:
        exporters[name](directory / name)
    (directory / BACKBONE_SPEC).write_text(spec.model_dump_json(indent=1))
    (directory / BACKBONE_METRICS).write_text(json.dumps(_metrics(facts)) + "\n")
    write_pyfunc(directory, export.formats, spec.model)
    write_card(facts, directory)
    write_sums(directory)
    return version_tags(facts)


def version_tags(facts: Facts) -> dict[str, str]:
    """Tags by which a version can be found; the registry adds those of the job and the attempt that register it."""
    return {
        names.TAG_SPEC: facts.spec.sha256(),
        names.TAG_DATASET: facts.dataset_fingerprint,
        **({names.TAG_DATASET_NAME: facts.spec.dataset.title} if facts.spec.dataset.title else {}),
        names.TAG_METHOD: facts.spec.method.name,
        names.TAG_EPOCHS: f"{facts.epochs:g}",
        names.TAG_SOURCE_JOB: facts.lineage.job_id,
        names.TAG_CHECKPOINT: facts.lineage.checkpoint,
        names.TAG_STEP: str(facts.step),
        names.TAG_CODE: facts.lineage.code_version,
        names.TAG_FORMATS: ",".join(facts.export.formats),
        names.TAG_NETWORK: facts.export.network,
        **{f"{names.TAG_METRIC}{key}": repr(value) for key, value in facts.evaluation.items()},
    }


def _provenance(facts: Facts) -> dict[str, Any]:
    lineage = facts.lineage
    return {
        "job_id": lineage.job_id,
        "run_id": lineage.run_id,
        "checkpoint": lineage.checkpoint,
        "network": facts.export.network,
        "method": facts.spec.method.name,
        "epochs": facts.epochs,
        "dataset_fingerprint": facts.dataset_fingerprint,
        "spec_sha256": facts.spec.sha256(),
        "code_version": lineage.code_version,
    }


def _metrics(facts: Facts) -> dict[str, Any]:
    """The last evaluation, and for each curve over epochs its first, last and extreme points and a sample of points."""

    def summary(points: list[tuple[float, float]]) -> dict[str, Any]:
        every = -(-len(points) // CURVE_POINTS)
        sampled = points[::-1][::every][::-1]  # counted from the end, so that the last point is among them
        return {
            "first": points[0],
            "last": points[-1],
            "least": min(points, key=lambda point: point[1]),
            "greatest": max(points, key=lambda point: point[1]),
            "points": sampled,
        }

    return {
        "step": facts.step,
        "epochs": facts.epochs,
        "evaluation": {"step": facts.evaluation_step, "values": dict(facts.evaluation)},
        "curves": {key: summary(points) for key, points in facts.curves.items()},
    }


@functools.cache
def code_version() -> str:
    """The package's version, and twelve digits of a sha256 over the trainer's source, for unreleased code."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return f"{version('rcmae')}+{digest.hexdigest()[:12]}"


def write_sums(directory: Path) -> None:
    """Write ``SHA256SUMS`` of every file below a directory, in the form that `sha256sum --check` reads."""
    files = sorted(file for file in _files(directory) if file != directory / BACKBONE_SUMS)
    lines = [f"{sha256_of(file)}  {file.relative_to(directory).as_posix()}\n" for file in files]
    (directory / BACKBONE_SUMS).write_text("".join(lines))


def _files(directory: Path) -> Iterable[Path]:
    return (file for file in directory.rglob("*") if file.is_file())
