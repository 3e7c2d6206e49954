"""The model card of a registered backbone: README.md for the version and for each format, and its pictures.

One card serves every backbone. What only a backbone that was trained here has to say, or only one that was imported,
says its provenance: `trained.Trained` or `imported.Imported`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from trainer.export import usage
from trainer.export.finetuning import finetuning
from trainer.export.huggingface import Masking
from trainer.export.inputs import Subject
from trainer.export.markdown import plain, table
from trainer.export.metadata import Described, front_matter
from trainer.export.snippets import Snippet, snippets
from trainer.protocol.names import BACKBONE_CARD, BACKBONE_METRICS, BACKBONE_PICTURES, BACKBONE_SPEC
from trainer.spec import metric_keys
from trainer.spec.cluster import plural
from trainer.spec.evaluation import PROBE_OF
from trainer.spec.export import Network
from trainer.spec.pretrain import ModelSpec

CURVES, RECONSTRUCTIONS = "curves.png", "reconstructions.png"
EVALUATIONS: Final = {
    metric_keys.RECONSTRUCTION_RATIO: (
        "error on the masked patches of held-out images, divided by the error of predicting zeros: below 1, the "
        "network has learned something"
    ),
    metric_keys.LINEAR_TOP1: "top-1 accuracy of a linear classifier on the frozen mean patch token, on held-out images",
    metric_keys.KNN_TOP1: (
        "top-1 accuracy of a vote of the 20 nearest training images, by the frozen mean patch token, on held-out images"
    ),
}
RANDOM, SCRATCH = "_random_init", "_scratch"
"""Endings of metrics that were measured for comparison: with untrained weights, and trained without pretraining."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a backbone; empty where nothing was."""

    values: Mapping[str, float] = field(default_factory=dict)
    """By metric key."""
    step: int | None = None
    images_of: str | None = None
    """The title of the dataset whose held-out images were evaluated; None if it has none."""
    networks: Mapping[str, Network] = field(default_factory=dict)
    """By metric key: the network whose result it is, which may be another one than the exported network."""


class Provenance(Protocol):
    """What a card and a version's tags say that depends on where the weights come from. Texts are Markdown."""

    @property
    def method(self) -> str:
        """By which versions are found: a pretraining method, or `imported`."""

    @property
    def described(self) -> Described:
        """What the metadata says."""

    @property
    def imported(self) -> bool:
        """Whether others have trained it."""

    @property
    def fitting(self) -> str:
        """A sentence on how its makers' own code fits pictures to the network's size; empty if it is done so here."""

    @property
    def document(self) -> Mapping[str, Any]:
        """``spec.json``."""

    @property
    def spec_sha256(self) -> str:
        """Identity of the spec."""

    def how(self) -> str:
        """How it came about, to go on after "A Vision Transformer of … parameters …, "."""

    def weights(self, network: Network | None) -> str:
        """A sentence on whose weights they are."""

    def training(self, facts: Facts) -> str:
        """What it was trained on, and how."""

    def experience(self) -> str:
        """A sentence on what it has learned from."""

    def whom_to_ask(self) -> str:
        """Whom to ask for a licence that is not known."""

    def not_evaluated(self) -> str:
        """A sentence for a backbone without results."""

    def citation(self) -> str:
        """How to cite it."""

    def lineage(self, network: Network | None) -> dict[str, str]:
        """Where it comes from, by property."""

    def tags(self) -> dict[str, str]:
        """Tags of the version, besides those that every version has."""

    def record(self) -> dict[str, Any]:
        """The same for machines, in the folder for timm."""

    def history(self) -> dict[str, Any]:
        """What ``metrics.json`` says besides the evaluation."""

    def pictures(self) -> dict[str, bytes]:
        """PNGs by their names in the card's folder: `CURVES` and `RECONSTRUCTIONS`, where there are any."""


@dataclass(frozen=True)
class Facts:
    """Everything that a card says."""

    name: str
    model: ModelSpec
    network: Network | None
    """None where the weights are of neither a teacher nor a student."""
    formats: tuple[str, ...]
    license: str | None
    license_link: str | None
    masking: Masking
    """How the decoder was trained; of no meaning without one."""
    value_range: tuple[float, float]
    """Pixel values that are black and white."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    registered_by: str
    """The job that registered it."""
    code_version: str
    provenance: Provenance
    evaluation: Evaluation = field(default_factory=Evaluation)

    @property
    def subject(self) -> Subject:
        """What the code needs."""
        return Subject(
            self.name, self.formats, self.model, self.masking.mask_ratio, self.mean, self.std, self.value_range,
            imported=self.provenance.imported, fitting=self.provenance.fitting,
        )  # fmt: skip


def write_card(facts: Facts, directory: Path) -> None:
    """Write ``README.md`` into the version's folder and into the folder of each format that is there.

    A format's card is that of its repository: its library stands in the metadata, and comes first in the text. All
    share ``card/``, with the pictures if there are any, which the service serves beside each of them.
    """
    drawn = facts.provenance.pictures()
    if drawn:
        (directory / BACKBONE_PICTURES).mkdir()
    for name, data in drawn.items():
        (directory / BACKBONE_PICTURES / name).write_bytes(data)
    for form in (None, *facts.formats):
        folder = directory / form if form else directory
        if folder.is_dir():
            (folder / BACKBONE_CARD).write_text(_card(facts, set(drawn), form))


def _card(facts: Facts, pictures: set[str], form: str | None) -> str:
    found = facts.evaluation
    own = {key: value for key, value in found.values.items() if found.networks.get(key) == facts.network}
    matter = front_matter(
        facts.name, (form,) if form else facts.formats, facts.license, facts.license_link, facts.provenance.described,
        found.images_of, own,
    )  # fmt: skip
    return "\n".join([matter, *_sections(facts, pictures, form)])


def _sections(facts: Facts, pictures: set[str], form: str | None) -> Iterator[str]:
    yield f"# {facts.name}\n\n{_summary(facts)}\n"
    yield f"## What it was trained on\n\n{facts.provenance.training(facts)}"
    yield f"## Licence\n\n{_licence(facts)}\n"
    yield f"## Intended use and limits\n\n{_use(facts)}"
    yield f"## How good it is\n\n{_evaluation(facts)}"
    yield from _pictures(pictures)
    yield f"## Input and preprocessing\n\n{usage.preprocessing(facts.subject)}"
    yield f"## How to load it\n\n{usage.loading(facts.subject, form)}"
    yield from map(_code, snippets(facts.subject, form))
    probed = [key for key in PROBE_OF if key in facts.evaluation.values]
    yield f"## Pooling\n\n{usage.pooling(facts.subject, probed)}"
    yield f"## Fine-tuning\n\n{usage.fine_tuning(facts.subject)}"
    yield from map(_code, finetuning(facts.subject))
    yield from usage.converting(facts.subject)
    yield f"## How to verify the files\n\n{usage.verifying(facts.name)}"
    yield f"## Citation\n\n{facts.provenance.citation()}"
    yield f"## Lineage\n\n{table(_lineage(facts, form))}"


def _code(snippet: Snippet) -> str:
    return f"### {snippet.title}\n\n{snippet.text}\n\n```python\n{snippet.code}\n```\n"


# --- what it is ------------------------------------------------------------------------------------------------------


def _summary(facts: Facts) -> str:
    model, provenance = facts.model, facts.provenance
    return (
        f"A Vision Transformer of {model.parameters[0]:,} parameters for images of {model.height} x {model.width} "
        f"pixels with {plural(model.in_chans, 'channel')}, {provenance.how()}. "
        f"For each image it computes a class token and {model.patches} patch tokens of width {model.embed_dim}: "
        f"features, not classes. It has patches of {model.patch_size} x {model.patch_size} pixels, "
        f"{plural(model.depth, 'block')} and {plural(model.num_heads, 'head')}. {provenance.weights(facts.network)}"
    )


def _licence(facts: Facts) -> str:
    if not facts.license or facts.license.lower() == "unknown":
        return f"No licence was given: ask {facts.provenance.whom_to_ask()}, and respect the licence of the images."
    link = f": <{facts.license_link}>" if facts.license_link else ""
    return f"`{facts.license}`{link}. The licence of the images may limit what you may do, too."


def _use(facts: Facts) -> str:
    model = facts.model
    return (
        "- **For** features of images: as input of a classifier, for search by similarity and clustering, or as a "
        "start for fine-tuning, detection and segmentation.\n"
        "- **Not for** direct answers: it knows no classes, and nobody has measured how fair or safe its features are "
        "for decisions about people.\n"
        f"- {facts.provenance.experience()} Measure it on your own images before you rely on it.\n"
        f"- It is made for {model.height} x {model.width} pixels. timm and transformers can interpolate its position "
        f"embeddings to other sizes{'; the figures below are not about these' if facts.evaluation.values else ''}.\n"
    )


# --- how good it is --------------------------------------------------------------------------------------------------


def _evaluation(facts: Facts) -> str:
    evaluation, found = facts.evaluation, facts.evaluation.values
    if not found:
        return f"{facts.provenance.not_evaluated()}\n"
    compared = {RANDOM: "random weights", SCRATCH: "trained from scratch"}
    endings = [ending for ending in compared if any(key.endswith(ending) for key in found)]
    head = ["metric", "value", *(compared[ending] for ending in endings), "network", "meaning"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key, value in found.items():
        if not key.endswith(tuple(compared)):
            others = [_figure(found.get(f"{key}{ending}")) for ending in endings]
            cells = [f"`{key}`", _figure(value), *others, evaluation.networks.get(key, "–"), EVALUATIONS.get(key, "")]
            lines.append(f"| {' | '.join(cells)} |")
    at = "" if evaluation.step is None else f" of step {evaluation.step:,}"
    images = f"held-out images of {plain(evaluation.images_of)}" if evaluation.images_of else "held-out images"
    return (
        f"The last evaluation{at}, on {images}. This backbone is the {facts.network}. A dash stands for what "
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


def _lineage(facts: Facts, form: str | None) -> dict[str, str]:
    spec, metrics = (
        (f"`{BACKBONE_SPEC}`", f"`{BACKBONE_METRICS}`")
        if form  # whose repository has not got these files
        else (f"[{BACKBONE_SPEC}]({BACKBONE_SPEC})", f"[{BACKBONE_METRICS}]({BACKBONE_METRICS})")
    )
    curves = "" if facts.provenance.imported else f" and {metrics} the curves"
    return facts.provenance.lineage(facts.network) | {
        "code version": f"`{facts.code_version}`",
        "everything else": f"{spec} has all settings{curves}, in the version's folder",
    }
