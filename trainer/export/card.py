"""The model card of a registered backbone: README.md and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from trainer.export.curves import draw_curves
from trainer.export.snippets import Subject, snippets
from trainer.protocol.names import BACKBONE_CARD, BACKBONE_METRICS, BACKBONE_PICTURES, BACKBONE_SPEC
from trainer.spec import metric_keys
from trainer.spec.cluster import plural
from trainer.spec.export import ExportSpec
from trainer.spec.formats import LIBRARIES, PIPELINE_TAG
from trainer.spec.pretrain import PretrainSpec

CURVES, RECONSTRUCTIONS = "curves.png", "reconstructions.png"
EVALUATIONS: Final = {
    metric_keys.RECONSTRUCTION_RATIO: (
        "error on the masked patches of held-out images, divided by the error of predicting zeros; below 1, the "
        "network has learned something"
    ),
    metric_keys.LINEAR_TOP1: "top-1 accuracy of a linear classifier on the frozen mean patch token, on held-out images",
    metric_keys.LINEAR_TOP1_RANDOM_INIT: "the same with untrained weights, for comparison",
}


@dataclass(frozen=True)
class Lineage:
    """Where a backbone comes from."""

    job_id: str
    """The pretraining job."""
    registered_by: str
    """The job that registered it."""
    run_id: str
    attempt: int
    checkpoint: str
    """Relative to the run's artifact folder."""
    code_version: str


@dataclass(frozen=True)
class Facts:
    """Everything that a card says."""

    name: str
    spec: PretrainSpec
    """The resolved spec that it was trained with."""
    export: ExportSpec
    lineage: Lineage
    dataset_fingerprint: str
    dataset_images: int | None
    value_range: tuple[float, float]
    """Pixel values that were black and white in training."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    step: int
    epochs: float
    """Epochs of training that the weights have had."""
    evaluation: Mapping[str, float]
    evaluation_step: int | None
    curves: Mapping[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Epoch and value."""
    reconstructions: bytes | None = None
    """A PNG."""


def write_card(facts: Facts, directory: Path) -> None:
    """Write ``README.md``, and ``card/`` with the pictures if there are any."""
    pictures = {CURVES: draw_curves(facts.curves), RECONSTRUCTIONS: facts.reconstructions}
    drawn = {name: data for name, data in pictures.items() if data is not None}
    if drawn:
        (directory / BACKBONE_PICTURES).mkdir()
    for name, data in drawn.items():
        (directory / BACKBONE_PICTURES / name).write_bytes(data)
    sections = [_front_matter(facts), *_sections(facts, set(drawn))]
    (directory / BACKBONE_CARD).write_text("\n".join(sections))


def _front_matter(facts: Facts) -> str:
    matter: dict[str, Any] = {
        "license": facts.export.license or "unknown",
        "library_name": next(library for form, library in LIBRARIES.items() if form in facts.export.formats),
        "pipeline_tag": PIPELINE_TAG,
        "tags": ["image-feature-extraction", "vit", "masked-autoencoder", "self-supervised", facts.spec.method.name],
        "datasets": [facts.spec.dataset.uri],
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n"


def _sections(facts: Facts, pictures: set[str]) -> Iterator[str]:
    yield f"# {facts.name}\n\n{_summary(facts)}\n\n{_table(_trained(facts))}"
    if CURVES in pictures:
        yield f"## Curves\n\n![Losses and evaluations over epochs]({BACKBONE_PICTURES}/{CURVES})\n"
    if facts.evaluation:
        yield f"## Evaluation\n\n{_evaluation(facts)}"
    if RECONSTRUCTIONS in pictures:
        text = (
            "The student's reconstructions of held-out images. Left to right: the image, its visible patches, and the "
            "image with the masked patches predicted."
        )
        path = f"{BACKBONE_PICTURES}/{RECONSTRUCTIONS}"
        yield f"## Reconstructions\n\n{text}\n\n![Held-out images, masked and reconstructed]({path})\n"
    yield f"## How to load it\n\n{_loading(facts)}"
    for snippet in snippets(_subject(facts)):
        yield f"### {snippet.title}\n\n{snippet.text}\n\n```python\n{snippet.code}\n```\n"
    yield f"## Licence\n\n{_licence(facts)}\n"
    yield f"## Lineage\n\n{_table(_lineage(facts))}"


def _summary(facts: Facts) -> str:
    spec, model = facts.spec, facts.spec.model
    method = "RC-MAE (a masked auto-encoder with a mean teacher)" if spec.method.name == "rc_mae" else "MAE"
    return (
        f"A Vision Transformer of {model.parameters[0]:,} parameters, pretrained without labels with {method} on "
        f"`{spec.dataset.uri}`. The weights are the {facts.export.network}'s after {facts.epochs:g} of "
        f"{spec.optimization.epochs} epochs. For each image it computes a class token and {model.patches} patch tokens "
        f"of width {model.embed_dim}."
    )


def _trained(facts: Facts) -> dict[str, str]:
    spec, model = facts.spec, facts.spec.model
    images = "" if facts.dataset_images is None else f", {facts.dataset_images:,} images"
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (facts.mean, facts.std))
    low, high = facts.value_range
    return {
        "data": f"`{spec.dataset.uri}`{images}",
        "input": f"{model.height} x {model.width} pixels, {plural(model.in_chans, 'channel')}; values of {low:g} to "
        f"{high:g} scaled to 0..1, minus "
        f"the mean {mean}, divided by the deviation {std}",
        "encoder": f"patches of {model.patch_size}, width {model.embed_dim}, {plural(model.depth, 'block')}, "
        f"{plural(model.num_heads, 'head')}",
        "decoder": f"width {model.decoder_embed_dim}, {plural(model.decoder_depth, 'block')}, "
        f"{plural(model.decoder_num_heads, 'head')}",
        "method": f"{spec.method.name}, mask ratio {spec.method.mask_ratio:g}, "
        f"{'normalised' if spec.method.norm_pix_loss else 'plain'} pixels",
        "optimisation": f"{facts.step:,} steps of {spec.optimization.global_batch_size} images, AdamW, peak learning "
        f"rate {spec.optimization.peak_lr:.4g}, weight decay {spec.optimization.weight_decay:g}",
        "everything else": f"[{BACKBONE_SPEC}]({BACKBONE_SPEC}), the spec that it was trained with",
    }


def _evaluation(facts: Facts) -> str:
    probed = "teacher" if facts.spec.method.teacher else "student"
    lines = ["| metric | value | network | meaning |", "|---|---|---|---|"]
    for key, value in facts.evaluation.items():
        network = "student" if key == metric_keys.RECONSTRUCTION_RATIO else probed
        if key == metric_keys.LINEAR_TOP1_RANDOM_INIT:
            network = "none"
        lines.append(f"| `{key}` | {value:.4f} | {network} | {EVALUATIONS.get(key, '')} |")
    at = "" if facts.evaluation_step is None else f" of step {facts.evaluation_step:,}"
    return (
        f"The last evaluation{at}; [{BACKBONE_METRICS}]({BACKBONE_METRICS}) has the curves.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _licence(facts: Facts) -> str:
    if facts.export.license:
        return f"`{facts.export.license}`"
    return "No licence was given: ask the people who trained it, and respect the licence of the images."


def _lineage(facts: Facts) -> dict[str, str]:
    lineage = facts.lineage
    return {
        "job": f"`{lineage.job_id}`, attempt {lineage.attempt}",
        "registered by": f"`{lineage.registered_by}`",
        "MLflow run": f"`{lineage.run_id}`",
        "checkpoint": f"`{lineage.checkpoint}`, the {facts.export.network}",
        "spec sha256": f"`{facts.spec.sha256()}`",
        "dataset fingerprint": f"`{facts.dataset_fingerprint}`",
        "code version": f"`{lineage.code_version}`",
    }


def _table(rows: Mapping[str, str]) -> str:
    """A Markdown table. The separator of cells is escaped, since a URI may contain it."""
    cells = (f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())
    return "\n".join(["| property | value |", "|---|---|", *cells]) + "\n"


def _loading(facts: Facts) -> str:
    formats, first = facts.export.formats, facts.export.formats[0]
    return (
        f"The available formats are {', '.join(f'`{form}`' for form in formats)}. The service offers them like the "
        "Hugging Face Hub: before Python starts, set `HF_ENDPOINT` to the service's address followed by `/hf`, and "
        "`HF_TOKEN` to one of your tokens. `revision` may be `v3` for version 3, or an alias; by default it is the "
        "alias `champion`, or else the newest version. Or pull a folder, and use its path instead of the name:\n\n"
        f"```bash\nrcmae backbones pull {facts.name} --format {first} --out {facts.name}-{first}\n```\n"
    )


def _subject(facts: Facts) -> Subject:
    spec = facts.spec
    return Subject(facts.name, facts.export.formats, spec.model, spec.method.mask_ratio, facts.mean, facts.std)
