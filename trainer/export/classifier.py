"""A fine-tuned classifier as a registered version: its folder in each format, read back and compared, and its tags."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from trainer.errors import StorageError
from trainer.export.classifier_card import ClassifierFacts, write_classifier_card
from trainer.export.graph import export_onnx_classifier
from trainer.export.huggingface import export_vit_classifier
from trainer.export.timm import Head, export_timm
from trainer.export.version import code_version, write_sums
from trainer.export.written import check_classifier
from trainer.finetuning.network import make_classifier
from trainer.finetuning.state import AVERAGE, CLASSIFIER, TrainingMetadata
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.protocol.names import BACKBONE_METRICS, BACKBONE_SPEC
from trainer.protocol.parameters import parameters
from trainer.protocol.request import AttemptRequest
from trainer.scoring.product import Product
from trainer.scoring.trained import folder_of, forget
from trainer.spec.evaluate import EvaluateSpec, FinetuneProtocol
from trainer.spec.formats import BACKBONE_HF, BACKBONE_ONNX, BACKBONE_TIMM
from trainer.storage import Store
from trainer.temporary import temporary_folder
from trainer.tracking.registry import About, BackboneRegistry
from trainer.training import checkpoint as checkpoints
from trainer.training.snapshot import read_state

ENCODER, NORM, OWN_NORM = "encoder.", "norm.", "fc_norm."
"""Beginnings of names: of the encoder's tensors and of the head's own norm in our network, and of that norm in timm."""
ENCODER_NORM: Final = f"{ENCODER}{NORM}"


def register_classifier(
    product: Product,
    request: AttemptRequest,
    spec: EvaluateSpec,
    registry: BackboneRegistry,
    requested_action: Callable[[], Action | None] = lambda: None,
) -> Action | None:
    """Register the classifier of an evaluation, and then delete its training; doing it twice keeps one version.

    Returns the command that was obeyed before anything was registered, if there was one. Raises `StorageError` if the
    training is gone, and `DiffersError` if a format does not compute what the network does.
    """
    protocol, store = _protocol(spec), Store(request.artifact_uri)
    name = str(protocol.register_as)
    if registry.registered(name) is None:
        state = _trained(product, request, protocol)
        with temporary_folder() as directory:
            tags = write_classifier(directory, _facts(name, product, request, spec, protocol), state)
            action = requested_action()
            if action:
                return action
            params = parameters(spec.model_dump(mode="json"))
            about = About(tags, request.run_id, params, {}, 0, names.CLASSIFIER)
            number = registry.register(name, directory, about)
        logger.info("Registered version %d of the classifier %s from %s", number, name, product.unit)
    forget(store, product.unit)
    return None


def write_classifier(directory: Path, facts: ClassifierFacts, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Write all files of a version into an empty local directory, and compare them; returns its tags.

    ``state`` is that of the `FineTuned` network. Raises `DiffersError`.
    """
    settings, model, values = facts.protocol, facts.model, facts.value_range
    weights, head = classifier_weights(state, settings.pooling), Head(facts.classes, settings.pooling)
    pixels = (facts.view.mean, facts.view.std)
    exporters: dict[str, Callable[[Path], None]] = {
        BACKBONE_TIMM: lambda out: export_timm(
            weights, model, *pixels, out, settings.export.license, facts.record(), values, head
        ),
        BACKBONE_HF: lambda out: export_vit_classifier(weights, model, facts.classes, *pixels, out, values),
        BACKBONE_ONNX: lambda out: export_onnx_classifier(weights, model, head, *pixels, out, values),
    }
    for form in settings.formats:
        exporters[form](directory / form)
    network = make_classifier(settings, model, None, len(facts.classes), facts.seed)
    network.load_state_dict(dict(state))
    check_classifier(directory, settings.formats, weights, model, network.eval().requires_grad_(False))
    (directory / BACKBONE_SPEC).write_text(json.dumps(facts.spec.model_dump(mode="json"), indent=1))
    (directory / BACKBONE_METRICS).write_text(json.dumps(facts.metrics()) + "\n")
    write_classifier_card(facts, directory)
    write_sums(directory)
    return _tags(facts)


def classifier_weights(state: Mapping[str, Tensor], pooling: str) -> dict[str, Tensor]:
    """The tensors of a `FineTuned` network by timm's names, without the encoder's final norm where that is not used."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(ENCODER):
            if pooling != "mean" or not name.startswith(ENCODER_NORM):
                found[name.removeprefix(ENCODER)] = value
        else:
            found[name.replace(NORM, OWN_NORM) if name.startswith(NORM) else name] = value
    return found


def _protocol(spec: EvaluateSpec) -> FinetuneProtocol:
    if spec.registering is None:
        raise ValueError("the spec registers no classifier")
    return spec.registering


def _trained(product: Product, request: AttemptRequest, protocol: FinetuneProtocol) -> dict[str, Tensor]:
    """The state of the network that was scored: the moving average, if there is one."""
    store = Store(folder_of(request.artifact_uri, product.unit))
    kept = checkpoints.committed(store, request.since_attempt)
    if not kept:
        raise StorageError(
            f"{store.uri}: the checkpoint of the classifier is gone, and no version of {protocol.register_as} has been "
            "registered by this job: retry it from scratch"
        )
    part = CLASSIFIER if protocol.ema is None else AVERAGE
    return read_state(store, kept[-1], (part,), TrainingMetadata).tensors[part]


def _facts(
    name: str, product: Product, request: AttemptRequest, spec: EvaluateSpec, protocol: FinetuneProtocol
) -> ClassifierFacts:
    return ClassifierFacts(
        name=name,
        job_id=request.job_id,
        run_id=request.run_id,
        code_version=code_version(),
        spec=spec,
        protocol=protocol,
        model=product.model,
        view=product.view,
        value_range=product.value_range,
        seed=product.unit.seed,
        evaluation=product.evaluation,
    )


def _tags(facts: ClassifierFacts) -> dict[str, str]:
    listed = json.dumps(facts.classes, ensure_ascii=False)
    title, license_id = facts.spec.dataset.title, facts.protocol.export.license
    optional: dict[str, Any] = {names.TAG_DATASET_NAME: title, names.TAG_LICENSE: license_id}
    return {
        names.TAG_TYPE: names.CLASSIFIER,
        names.TAG_CLASSES: listed if len(listed) <= names.TAG_LENGTH else str(len(facts.classes)),
        names.TAG_FINE_TUNED_FROM: facts.base,
        names.TAG_METHOD: names.METHOD_FINE_TUNED,
        names.TAG_SPEC: facts.spec.sha256(),
        names.TAG_CODE: facts.code_version,
        names.TAG_FORMATS: ",".join(facts.protocol.formats),
        names.TAG_DATASET: facts.evaluation.train.fingerprint,
        names.TAG_EPOCHS: f"{facts.epochs:g}",
        names.TAG_STEP: f"{facts.own.details['steps']:.0f}",
        names.TAG_SOURCE_JOB: facts.job_id,
        f"{names.TAG_METRIC}{facts.key}": repr(facts.own.top1),
        **{tag: value for tag, value in optional.items() if value},
    }
