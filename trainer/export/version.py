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


def write_version(directory: Path, facts: Facts, weights: Mapping[str, Any]) -> dict[str, str]:
    """Write all files of a version into an empty local directory; returns its tags.

    ``weights`` is the state of the `MaskedAutoencoder` to export; without a decoder where no format needs it.
    """
    model, values = facts.model, facts.value_range
    pixels = (facts.mean, facts.std)
    exporters: dict[str, Callable[[Path], None]] = {
        BACKBONE_TIMM: functools.partial(
            export_timm, weights, model, *pixels,
            license_id=facts.license, provenance=_provenance(facts), value_range=values,
        ),
        BACKBONE_HF: functools.partial(export_vit, weights, model, *pixels, value_range=values),
        BACKBONE_HF_MAE: functools.partial(export_vit_mae, weights, model, facts.masking, *pixels, value_range=values),
        BACKBONE_ONNX: functools.partial(export_onnx, weights, model, *pixels, value_range=values),
        BACKBONE_TORCH_EXPORT: functools.partial(export_program, weights, model, *pixels, value_range=values),
    }  # fmt: skip
    for name in facts.formats:
        exporters[name](directory / name)
    (directory / BACKBONE_SPEC).write_text(json.dumps(facts.provenance.document, indent=1))
    (directory / BACKBONE_METRICS).write_text(json.dumps(_metrics(facts)) + "\n")
    write_pyfunc(directory, facts.formats, model)
    write_card(facts, directory)
    write_sums(directory)
    return version_tags(facts)


def version_tags(facts: Facts) -> dict[str, str]:
    """Tags by which a version can be found; the registry adds those of the job and the attempt that register it."""
    return {
        names.TAG_SPEC: facts.provenance.spec_sha256,
        names.TAG_METHOD: facts.provenance.method,
        names.TAG_CODE: facts.code_version,
        names.TAG_FORMATS: ",".join(facts.formats),
        **({names.TAG_NETWORK: facts.network} if facts.network else {}),
        **({names.TAG_LICENSE: facts.license} if facts.license else {}),
        **facts.provenance.tags(),
        **{f"{names.TAG_METRIC}{key}": repr(value) for key, value in facts.evaluation.values.items()},
    }


def _provenance(facts: Facts) -> dict[str, Any]:
    return facts.provenance.record() | {
        "network": facts.network,
        "method": facts.provenance.method,
        "spec_sha256": facts.provenance.spec_sha256,
        "code_version": facts.code_version,
    }


def _metrics(facts: Facts) -> dict[str, Any]:
    """The last evaluation, and the curves."""
    evaluation = facts.evaluation
    return facts.provenance.history() | {"evaluation": {"step": evaluation.step, "values": dict(evaluation.values)}}


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
