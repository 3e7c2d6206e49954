"""The model card of a registered classifier: README.md for the version and for each format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.evaluation.features import View
from trainer.export import usage
from trainer.export.classifier_snippets import classifier_snippets
from trainer.export.inputs import Subject
from trainer.export.markdown import plain, table
from trainer.export.metadata import FINETUNE_TOP1, Described, front_matter
from trainer.protocol import names
from trainer.protocol.evaluation import Evaluation, Measured, Score
from trainer.protocol.names import BACKBONE_CARD, BACKBONE_METRICS, BACKBONE_SPEC
from trainer.spec.cluster import plural
from trainer.spec.evaluate import EvaluateSpec, FinetuneProtocol
from trainer.spec.formats import CLASSIFIER_TAG, HUB_ORGANISATION
from trainer.spec.metric_keys import score_key
from trainer.spec.pretrain import ModelSpec

MOST_NAMED: Final = 200
"""Classes whose names stand in the card."""
POOLED: Final = {
    "mean": "the mean of the patch tokens, under a norm of its own",
    "cls": "the class token after the final norm",
}


@dataclass(frozen=True)
class ClassifierFacts:
    """Everything that a classifier's card, tags and files say."""

    name: str
    job_id: str
    """The evaluation that trained it."""
    run_id: str
    code_version: str
    spec: EvaluateSpec
    """Resolved."""
    protocol: FinetuneProtocol
    model: ModelSpec
    view: View
    value_range: tuple[float, float]
    """Pixel values that are black and white."""
    seed: int
    evaluation: Evaluation
    key: str = FINETUNE_TOP1
    """The metric of its accuracy."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(self.evaluation.classes)

    @property
    def score(self) -> Score:
        """The score that it is a part of."""
        found = self.evaluation.score(self.key)
        if found is None:
            raise ValueError(f"the evaluation has no {self.key}")
        return found

    @property
    def own(self) -> Measured:
        """What was measured of this network, of all seeds'."""
        return next(each for each in self.score.seeds if each.seed == self.seed)

    @property
    def epochs(self) -> float:
        return float(self.own.details["epochs"])

    @property
    def base(self) -> str:
        """What it was fine-tuned from: `NAME:VERSION` of a registered backbone, or the title of other weights."""
        return self.evaluation.backbone.title[: names.TAG_LENGTH]

    @property
    def subject(self) -> Subject:
        """What the code needs."""
        return Subject(
            self.name, self.protocol.formats, self.model, 0.0, self.view.mean, self.view.std, self.value_range
        )

    def record(self) -> dict[str, Any]:
        """Where it comes from, for machines."""
        return {
            "job_id": self.job_id,
            "run_id": self.run_id,
            "fine_tuned_from": self.base,
            "dataset_fingerprint": self.evaluation.train.fingerprint,
            "spec_sha256": self.spec.sha256(),
            "code_version": self.code_version,
        }

    def metrics(self) -> dict[str, Any]:
        """``metrics.json``: its own accuracy, and the score over all seeds."""
        return {
            "evaluation": {"step": None, "values": {self.key: self.own.top1}},
            "seed": self.own.model_dump(mode="json"),
            "score": self.score.model_dump(mode="json"),
            "classes": list(self.classes),
        }


def write_classifier_card(facts: ClassifierFacts, directory: Path) -> None:
    """Write ``README.md`` into the version's folder and into that of each format."""
    for form in (None, *facts.protocol.formats):
        folder = directory / form if form else directory
        (folder / BACKBONE_CARD).write_text("\n".join([_matter(facts, form), *_sections(facts, form)]))


def _matter(facts: ClassifierFacts, form: str | None) -> str:
    export, registered = facts.protocol.export, facts.evaluation.backbone.name
    base = f"{HUB_ORGANISATION}/{registered}" if registered else None
    tags = (names.CLASSIFIER, names.METHOD_FINE_TUNED)
    described = Described(tags, facts.spec.dataset.title, base, task=CLASSIFIER_TAG)
    return front_matter(
        facts.name, (form,) if form else facts.protocol.formats, export.license, export.license_link, described,
        (facts.spec.test or facts.spec.dataset).title, {facts.key: facts.own.top1},
    )  # fmt: skip


def _sections(facts: ClassifierFacts, form: str | None) -> Iterator[str]:
    yield f"# {facts.name}\n\n{_summary(facts)}\n"
    yield f"## Classes\n\n{_classes(facts)}\n"
    yield f"## How good it is\n\n{_accuracy(facts)}"
    yield f"## What it was trained on\n\n{_training(facts)}"
    yield f"## Licence\n\n{_licence(facts)}\n"
    yield f"## Intended use and limits\n\n{_use(facts)}"
    yield f"## Input and preprocessing\n\n{usage.preprocessing(facts.subject)}"
    yield f"## How to load it\n\n{usage.loading(facts.subject, form, usage.CLASSIFIER_READERS)}"
    for each in classifier_snippets(facts.subject, form):
        yield f"### {each.title}\n\n{each.text}\n\n```python\n{each.code}\n```\n"
    yield f"## How to verify the files\n\n{usage.verifying(facts.name)}"
    yield f"## Lineage\n\n{table(_lineage(facts, form))}"


def _summary(facts: ClassifierFacts) -> str:
    model, images = facts.model, facts.evaluation.train
    return (
        f"A Vision Transformer that tells {len(facts.classes):,} classes apart: {plain(facts.base)}, fine-tuned on "
        f"{plain(images.title)}. It has {model.parameters[0]:,} parameters below its head, takes images of "
        f"{model.height} x {model.width} pixels with {plural(model.in_chans, 'channel')}, and gives a logit for each "
        f"class; its linear head reads {POOLED[facts.protocol.pooling]}."
    )


def _classes(facts: ClassifierFacts) -> str:
    shown = ", ".join(f"{number} {plain(name)}" for number, name in enumerate(facts.classes[:MOST_NAMED]))
    more = len(facts.classes) - MOST_NAMED
    rest = f", and {more:,} more, which its configuration names" if more > 0 else ""
    return f"By the number of their logit: {shown}{rest}."


def _accuracy(facts: ClassifierFacts) -> str:
    found, own, evaluation = facts.score, facts.own, facts.evaluation
    scratch = evaluation.score(score_key("finetune", None, "scratch"))
    held = (
        "" if evaluation.held_out is None else f", {evaluation.held_out:.4g} of each class, held out and not trained on"
    )
    rows = {
        "top-1 accuracy of this network": f"{own.top1:.4f}",
        **({"top-5 accuracy of this network": f"{own.top5:.4f}"} if own.top5 is not None else {}),
        f"mean over {plural(len(found.seeds), 'seed')}": f"{found.top1:.4f}",
        **({"the same, trained from scratch": f"{scratch.top1:.4f}"} if scratch else {}),
        "test images": f"{evaluation.test.images:,} of {plain(evaluation.test.title)}{held}",
    }
    which = (
        f"It is the network of seed {facts.seed}, the first of those that were trained, and was not chosen by its "
        "accuracy. "
        if len(found.seeds) > 1
        else ""
    )
    average = "It is the moving average of the weights, which was tested. " if facts.protocol.ema else ""
    return f"{which}{average}\n\n{table(rows)}".lstrip("\n ")


def _training(facts: ClassifierFacts) -> str:
    own, protocol = facts.own, facts.protocol
    return table({
        "data": f"{own.train_images:,} labelled images of {plain(facts.evaluation.train.title)}",
        "start": f"the weights of {plain(facts.base)}",
        "recipe": f"`{protocol.recipe}`: AdamW, {facts.epochs:g} epochs in batches of {own.details['batch_size']:g}, "
        f"peak learning rate {own.details['peak_lr']:.4g}, layer decay {own.details['layer_decay']:g}",
    })  # fmt: skip


def _licence(facts: ClassifierFacts) -> str:
    export = facts.protocol.export
    if not export.license or export.license.lower() == "unknown":
        return (
            "No licence was given: ask the people who trained it, and respect the licences of the backbone and of the "
            "images."
        )
    link = f": <{export.license_link}>" if export.license_link else ""
    return f"`{export.license}`{link}. The licences of the backbone and of the images may limit what you may do, too."


def _use(facts: ClassifierFacts) -> str:
    return (
        "- **For** telling these classes apart on images like those that it was trained on. For any image it names one "
        "of them: it cannot say that none fits.\n"
        "- **Not for** decisions about people, for which nobody has measured how fair or safe it is.\n"
        f"- For features, take the backbone, {plain(facts.base)}.\n"
    )


def _lineage(facts: ClassifierFacts, form: str | None) -> dict[str, str]:
    spec, metrics = f"`{BACKBONE_SPEC}`", f"`{BACKBONE_METRICS}`"
    if form is None:
        spec, metrics = f"[{BACKBONE_SPEC}]({BACKBONE_SPEC})", f"[{BACKBONE_METRICS}]({BACKBONE_METRICS})"
    return {
        "fine-tuned from": plain(facts.base),
        "job": f"`{facts.job_id}`, seed {facts.seed}",
        "MLflow run": f"`{facts.run_id}`",
        "dataset fingerprint": f"`{facts.evaluation.train.fingerprint}`",
        "spec sha256": f"`{facts.spec.sha256()}`",
        "code version": f"`{facts.code_version}`",
        "everything else": f"{spec} has all settings and {metrics} the scores, in the version's folder",
    }
