"""The form of an evaluation: what is measured, on which images, in which ways; everything else folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from pydantic import BaseModel

from service.dashboard.specform import FormField, Group, fields_of, groups
from service.dashboard.subjectform import SubjectForm, subject_form
from trainer.spec.evaluate import Baseline, EvaluateSpec, Protocol

ABOUT: Final[Mapping[str, tuple[str, str, str]]] = {
    "knn": (
        "Nearest neighbours (k-NN)",
        "Each test image takes the class of its nearest training images. Nothing is trained.",
        "one pass over all images",
    ),
    "linear": (
        "Linear classifier",
        "A linear classifier on frozen features: how much of the classes can be read off them.",
        "the same pass, then a fit for each seed",
    ),
    "attentive": (
        "Attentive probe",
        "A classifier on frozen features that learns which patches count. Masked autoencoders gain much by it.",
        "a small training for each seed",
    ),
    "finetune": (
        "Fine-tuning",
        "The whole network is trained on the labels, as most users of a backbone do in the end.",
        "a whole training for each seed, and as many from scratch for the baseline: by far the most",
    ),
    "low_label": (
        "Few labels",
        "The same with few labels, by default 1 % and 10 % of them, where pretraining matters most.",
        "one more fit or training for each share and seed",
    ),
    "robustness": (
        "Corrupted images",
        "The linear classifier on test images with noise, blur, weather and compression, each in five strengths.",
        "75 passes over the test images",
    ),
}
"""Each protocol in words: its title, what it says, and about what it costs."""
BASELINES: Final[Mapping[str, str]] = {
    "random": "the same network untrained",
    "scratch": "fine-tuning from untrained weights, where fine-tuning is chosen",
}
"""The baselines in words."""
PEOPLE_FIRST: Final = {
    "dataset.uri": (
        "Dataset",
        "Images with labels: an absolute path, `file:///path`, `s3://bucket/path` or `builtin://digits`.",
    ),
    "test.uri": ("Test dataset", "The same, with the same classes. Empty: a share of the dataset is held out."),
    "held_out": ("Held-out share", "Of each class, where there is no test dataset; the same for every evaluation."),
    "seeds": ("Seeds", "How often what depends on chance is measured. Scores are means, with an interval from two on."),
}
"""The fields that come first, with their labels and hints."""


@dataclass(frozen=True)
class ProtocolChoice:
    """One protocol, as a box to tick with its settings."""

    name: str
    title: str
    about: str
    cost: str
    chosen: bool
    fields: Sequence[FormField]


@dataclass(frozen=True)
class EvaluateForm:
    """The fields of an evaluation, filled from a document."""

    subject: SubjectForm
    """What is measured."""
    images: Sequence[FormField]
    """Dataset, test dataset and held-out share."""
    seeds: FormField
    protocols: Sequence[ProtocolChoice]
    baselines: Mapping[str, tuple[str, bool]]
    """What each is in words, and whether it is chosen."""
    more: Sequence[Group]
    """All other fields."""


def evaluate_form(document: Mapping[str, Any]) -> EvaluateForm:
    """The form of a document, which may be incomplete or wrong: what has no field is left out."""
    every = groups("evaluate", document)
    first = {each.path: each for group in every for each in group.fields if each.path in PEOPLE_FIRST}
    first = {path: replace(first[path], label=label, hint=hint) for path, (label, hint) in PEOPLE_FIRST.items()}
    return EvaluateForm(
        subject=subject_form(document),
        images=[first[path] for path in ("dataset.uri", "test.uri", "held_out")],
        seeds=first["seeds"],
        protocols=_protocols(document.get("protocols")),
        baselines=_baselines(document.get("baselines")),
        more=_more(every),
    )


def _more(every: Sequence[Group]) -> list[Group]:
    """The groups without the fields that come first, folded away unless they have values."""
    titles = {
        "": "Name, labels and priority",
        "dataset": "More about the dataset",
        "test": "More about the test dataset",
    }
    return [
        replace(
            group,
            title=titles.get(group.path, group.title),
            fields=(rest := [each for each in group.fields if each.path not in PEOPLE_FIRST]),
            open=bool(group.path) and any(each.value for each in rest),
        )
        for group in sorted(every, key=lambda each: each.path == "")
    ]


def protocol_models() -> dict[str, list[type[BaseModel]]]:
    """The models of each protocol's settings, by the protocol's name: `linear` has one for each solver."""
    union = get_args(Protocol)[0] if get_args(Protocol) else Protocol
    members = [get_args(each)[0] if get_args(each) else each for each in get_args(union)]
    found: dict[str, list[type[BaseModel]]] = {}
    for model in members:
        found.setdefault(get_args(model.model_fields["name"].annotation)[0], []).append(model)
    return found


def _protocols(given: object) -> list[ProtocolChoice]:
    entries = given if isinstance(given, list) else EvaluateSpec.model_fields["protocols"].get_default()
    documents = [each if isinstance(each, Mapping) else getattr(each, "__dict__", {}) for each in entries]
    chosen = {str(each.get("name")): each for each in documents}
    told = isinstance(given, list)
    return [
        ProtocolChoice(
            name=name,
            title=ABOUT[name][0],
            about=ABOUT[name][1],
            cost=ABOUT[name][2],
            chosen=name in chosen,
            fields=_settings(name, models, chosen.get(name, {}) if told else {}),
        )
        for name, models in protocol_models().items()
    ]


def _settings(name: str, models: Sequence[type[BaseModel]], document: Mapping[str, Any]) -> list[FormField]:
    """The fields of a protocol's models, each once and as the first model has it."""
    path = f"protocols.{name}."
    found: dict[str, FormField] = {}
    for each in (field for model in models for field in fields_of(model, document, path)):
        found.setdefault(each.path, each)
    found.pop(f"{path}name")
    return list(found.values())


def _baselines(given: object) -> dict[str, tuple[str, bool]]:
    chosen = given if isinstance(given, list) else EvaluateSpec.model_fields["baselines"].get_default()
    return {name: (BASELINES[name], name in chosen) for name in get_args(Baseline)}
