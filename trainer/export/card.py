"""The model card of a registered backbone: README.md for the version and for each format, and its pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.export import usage
from trainer.export.curves import draw_curves
from trainer.export.finetuning import finetuning
from trainer.export.inputs import Subject
from trainer.export.metadata import front_matter
from trainer.export.snippets import Snippet, snippets
from trainer.protocol.names import BACKBONE_CARD, BACKBONE_METRICS, BACKBONE_PICTURES, BACKBONE_SPEC
from trainer.spec import metric_keys
from trainer.spec.cluster import plural
from trainer.spec.export import ExportSpec, Network
from trainer.spec.formats import BACKBONE_HF_MAE
from trainer.spec.pretrain import PretrainSpec

CURVES, RECONSTRUCTIONS = "curves.png", "reconstructions.png"
EVALUATIONS: Final = {
    metric_keys.RECONSTRUCTION_RATIO: (
        "error on the masked patches of held-out images, divided by the error of predicting zeros: below 1, the "
        "network has learned something"
    ),
    metric_keys.LINEAR_TOP1: "top-1 accuracy of a linear classifier on the frozen mean patch token, on held-out images",
}
RANDOM, SCRATCH = "_random_init", "_scratch"
"""Endings of metrics that were measured for comparison: with untrained weights, and trained without pretraining."""
PAPERS: Final = {
    "rc_mae": """@inproceedings{lee2023rcmae,
  title = {Exploring The Role of Mean Teachers in Self-supervised Masked Auto-Encoders},
  author = {Lee, Youngwan and Willette, Jeffrey Ryan and Kim, Jonghee and Lee, Juho and Hwang, Sung Ju},
  booktitle = {International Conference on Learning Representations},
  year = {2023}
}""",
    "mae": """@inproceedings{he2022mae,
  title = {Masked Autoencoders Are Scalable Vision Learners},
  author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}""",
}
"""By method."""


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

    @property
    def dataset(self) -> str:
        """The dataset as text; never its URI."""
        return _plain(self.spec.dataset.title) if self.spec.dataset.title else "a dataset that the spec does not name"

    @property
    def evaluated_on(self) -> str | None:
        """The title of the dataset whose held-out images were evaluated."""
        return (self.spec.evaluation.dataset or self.spec.dataset).title

    def measured(self, metric: str) -> Network:
        """The network whose result an evaluation's metric is, which may be another one than the exported network."""
        return "teacher" if self.spec.method.teacher and metric != metric_keys.RECONSTRUCTION_RATIO else "student"

    @property
    def subject(self) -> Subject:
        """What the code needs."""
        spec = self.spec
        formats = self.export.formats
        return Subject(self.name, formats, spec.model, spec.method.mask_ratio, self.mean, self.std, self.value_range)


def write_card(facts: Facts, directory: Path) -> None:
    """Write ``README.md`` into the version's folder and into the folder of each format that is there.

    A format's card is that of its repository: its library stands in the metadata, and comes first in the text. All
    share ``card/``, with the pictures if there are any, which the service serves beside each of them.
    """
    pictures = {CURVES: draw_curves(facts.curves), RECONSTRUCTIONS: facts.reconstructions}
    drawn = {name: data for name, data in pictures.items() if data is not None}
    if drawn:
        (directory / BACKBONE_PICTURES).mkdir()
    for name, data in drawn.items():
        (directory / BACKBONE_PICTURES / name).write_bytes(data)
    for form in (None, *facts.export.formats):
        folder = directory / form if form else directory
        if folder.is_dir():
            (folder / BACKBONE_CARD).write_text(_card(facts, set(drawn), form))


def _card(facts: Facts, pictures: set[str], form: str | None) -> str:
    spec = facts.spec
    own = {key: value for key, value in facts.evaluation.items() if facts.measured(key) == facts.export.network}
    matter = front_matter(facts.name, facts.export, spec.method.name, spec.dataset.title, facts.evaluated_on, own, form)
    return "\n".join([matter, *_sections(facts, pictures, form)])


def _sections(facts: Facts, pictures: set[str], form: str | None) -> Iterator[str]:
    yield f"# {facts.name}\n\n{_summary(facts)}\n"
    yield f"## What it was trained on\n\n{_training(facts)}"
    yield f"## Licence\n\n{_licence(facts)}\n"
    yield f"## Intended use and limits\n\n{_use(facts)}"
    yield f"## How good it is\n\n{_evaluation(facts)}"
    yield from _pictures(pictures)
    yield f"## Input and preprocessing\n\n{usage.preprocessing(facts.subject)}"
    yield f"## How to load it\n\n{usage.loading(facts.subject, form)}"
    yield from map(_code, snippets(facts.subject, form))
    yield f"## Pooling\n\n{usage.pooling(facts.subject, probed=metric_keys.LINEAR_TOP1 in facts.evaluation)}"
    yield f"## Fine-tuning\n\n{usage.fine_tuning(facts.subject)}"
    yield from map(_code, finetuning(facts.subject))
    yield from usage.converting(facts.subject)
    yield f"## How to verify the files\n\n{usage.verifying(facts.name)}"
    yield f"## Citation\n\n{_citation(facts)}"
    yield f"## Lineage\n\n{_table(_lineage(facts, form))}"


def _code(snippet: Snippet) -> str:
    return f"### {snippet.title}\n\n{snippet.text}\n\n```python\n{snippet.code}\n```\n"


# --- what it is ------------------------------------------------------------------------------------------------------


def _summary(facts: Facts) -> str:
    spec, model = facts.spec, facts.spec.model
    method = "RC-MAE (a masked auto-encoder with a mean teacher)" if spec.method.name == "rc_mae" else "MAE"
    return (
        f"A Vision Transformer of {model.parameters[0]:,} parameters for images of {model.height} x {model.width} "
        f"pixels with {plural(model.in_chans, 'channel')}, pretrained without labels with {method} on {facts.dataset}. "
        f"For each image it computes a class token and {model.patches} patch tokens of width {model.embed_dim}: "
        f"features, not classes. It has patches of {model.patch_size} x {model.patch_size} pixels, "
        f"{plural(model.depth, 'block')} and {plural(model.num_heads, 'head')}. The weights are the "
        f"{facts.export.network}'s after {facts.epochs:g} of {spec.optimization.epochs} epochs."
    )


def _training(facts: Facts) -> str:
    spec, model = facts.spec, facts.spec.model
    images = "" if facts.dataset_images is None else f", {facts.dataset_images:,} images"
    mirrored = ", half of them mirrored" if spec.augmentation.hflip else ""
    decoder = "only `hf-mae` has it" if BACKBONE_HF_MAE in facts.export.formats else "no format here has it"
    least, greatest = (f"{share:.0%}" for share in spec.augmentation.crop_scale)
    return _table({
        "data": f"{facts.dataset}{images}; training used no labels",
        "crops": f"at random, of {least} to {greatest} of an image's area{mirrored}",
        "method": f"{spec.method.name}, mask ratio {spec.method.mask_ratio:g}, "
        f"{'normalised' if spec.method.norm_pix_loss else 'plain'} pixels",
        "decoder": f"width {model.decoder_embed_dim}, {plural(model.decoder_depth, 'block')}, "
        f"{plural(model.decoder_num_heads, 'head')}; {decoder}",
        "optimisation": f"{facts.step:,} steps of {spec.optimization.global_batch_size} images, AdamW, peak learning "
        f"rate {spec.optimization.peak_lr:.4g}, weight decay {spec.optimization.weight_decay:g}",
    })  # fmt: skip


def _licence(facts: Facts) -> str:
    export = facts.export
    if not export.license:
        return "No licence was given: ask the people who trained it, and respect the licence of the images."
    link = f": <{export.license_link}>" if export.license_link else ""
    return f"`{export.license}`{link}. The licence of the images may limit what you may do, too."


def _use(facts: Facts) -> str:
    model = facts.spec.model
    return (
        "- **For** features of images: as input of a classifier, for search by similarity and clustering, or as a "
        "start for fine-tuning, detection and segmentation.\n"
        "- **Not for** direct answers: it knows no classes, and nobody has measured how fair or safe its features are "
        "for decisions about people.\n"
        f"- It has learned from {facts.dataset} alone, with whatever that lacks or shows too often. Measure it on your "
        "own images before you rely on it.\n"
        f"- It is made for {model.height} x {model.width} pixels. timm and transformers can interpolate its position "
        "embeddings to other sizes; the figures below are not about these.\n"
    )


# --- how good it is --------------------------------------------------------------------------------------------------


def _evaluation(facts: Facts) -> str:
    if not facts.evaluation:
        return "It has not been evaluated.\n"
    found = facts.evaluation
    compared = {RANDOM: "random weights", SCRATCH: "trained from scratch"}
    endings = [ending for ending in compared if any(key.endswith(ending) for key in found)]
    head = ["metric", "value", *(compared[ending] for ending in endings), "network", "meaning"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key, value in found.items():
        if not key.endswith(tuple(compared)):
            others = [_figure(found.get(f"{key}{ending}")) for ending in endings]
            cells = [f"`{key}`", _figure(value), *others, facts.measured(key), EVALUATIONS.get(key, "")]
            lines.append(f"| {' | '.join(cells)} |")
    at = "" if facts.evaluation_step is None else f" of step {facts.evaluation_step:,}"
    images = f"held-out images of {_plain(facts.evaluated_on)}" if facts.evaluated_on else "held-out images"
    return (
        f"The last evaluation{at}, on {images}. This backbone is the {facts.export.network}. A dash stands for what "
        "was not measured.\n\n" + "\n".join(lines) + "\n"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _pictures(pictures: set[str]) -> Iterator[str]:
    if CURVES in pictures:
        yield f"### Curves\n\n![Losses and evaluations over epochs]({BACKBONE_PICTURES}/{CURVES})\n"
    if RECONSTRUCTIONS in pictures:
        text = (
            "The student's reconstructions of held-out images. Left to right: the image, its visible patches, and the "
            "image with the masked patches predicted."
        )
        path = f"{BACKBONE_PICTURES}/{RECONSTRUCTIONS}"
        yield f"### Reconstructions\n\n{text}\n\n![Held-out images, masked and reconstructed]({path})\n"


# --- where it comes from --------------------------------------------------------------------------------------------


def _citation(facts: Facts) -> str:
    return f"```bibtex\n{PAPERS[facts.spec.method.name]}\n```\n"


def _lineage(facts: Facts, form: str | None) -> dict[str, str]:
    lineage = facts.lineage
    spec, metrics = (
        (f"`{BACKBONE_SPEC}`", f"`{BACKBONE_METRICS}`")
        if form  # whose repository has not got these files
        else (f"[{BACKBONE_SPEC}]({BACKBONE_SPEC})", f"[{BACKBONE_METRICS}]({BACKBONE_METRICS})")
    )
    return {
        "job": f"`{lineage.job_id}`, attempt {lineage.attempt}",
        "registered by": f"`{lineage.registered_by}`",
        "MLflow run": f"`{lineage.run_id}`",
        "checkpoint": f"`{lineage.checkpoint}`, the {facts.export.network}",
        "spec sha256": f"`{facts.spec.sha256()}`",
        "dataset fingerprint": f"`{facts.dataset_fingerprint}`",
        "code version": f"`{lineage.code_version}`",
        "everything else": f"{spec} has all settings and {metrics} the curves, in the version's folder",
    }


def _table(rows: Mapping[str, str]) -> str:
    """A Markdown table. The separator of cells is escaped, since a name may contain it."""
    cells = (f"| {name} | {value} |" for name, value in rows.items())
    return "\n".join(["| property | value |", "|---|---|", *cells]) + "\n"


def _plain(title: str) -> str:
    """A title in one line of Markdown, where no character of it means anything."""
    return re.sub(r"([\\`*\[\]<>|#~&])", r"\\\1", re.sub(r"\s+", " ", title))
