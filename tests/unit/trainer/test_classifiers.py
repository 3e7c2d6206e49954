"""Fine-tuned classifiers as products: registered once, with the logits of the network that was scored."""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from loops import make_spec, run_loop
from safetensors.torch import load_file
from test_publish import Registry
from test_scoring import request_of, spec_of
from transformers import AutoImageProcessor, ViTForImageClassification

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext
from trainer.export.classifier import register_classifier
from trainer.models.pixels import normalised
from trainer.protocol import names
from trainer.scoring.labelled import open_labelled
from trainer.scoring.run import Place, evaluate
from trainer.scoring.subjects import load_subject
from trainer.spec.base import SpecError
from trainer.spec.evaluate import EvaluateSpec
from trainer.storage import Store

FINETUNE = {"name": "finetune", "recipe": "small", "epochs": 1, "hflip": False, "register_as": "digits-classifier"}
HF = FINETUNE | {"pooling": "cls", "ema": 0.9, "export": {"formats": ["timm", "hf", "onnx"], "license": "mit"}}
MEAN = FINETUNE | {"export": {"formats": ["timm", "onnx"]}}


class ClassifierRegistry(Registry):
    """Remembers what was registered, as MLflow does."""

    def registered(self, name):
        return next((number for number, made in enumerate(self.made, 1) if made[0] == name), None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    ending, memory = run_loop(make_spec(), folder)
    return SimpleNamespace(folder=folder, checkpoint=ending.checkpoint, memory=memory)


def registering(trained, folder, protocol, attempt=1, seeds=2):
    """One attempt up to the registration: the request, the spec and the product."""
    spec = spec_of(protocols=[protocol], baselines=[], seeds=seeds, held_out=0.5)
    request = request_of(trained, spec, folder, attempt)
    place = Place(Store(str(folder)), torch.device("cpu"), trained.memory, cache=Cache(folder / "cache"))
    return SimpleNamespace(request=request, spec=spec, product=evaluate(request, spec, place).product)


@pytest.fixture(scope="module", params=[HF, MEAN], ids=["cls", "mean"])
def made(request, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    found = registering(trained, folder, request.param)
    found.registry = ClassifierRegistry(trained.memory, tmp_path_factory.mktemp("registry"))
    assert register_classifier(found.product, found.request, found.spec, found.registry) is None
    ((found.name, found.version, tags, _),) = found.registry.made
    found.tags, found.folder = dict(tags), folder
    return found


@pytest.fixture(scope="module")
def tested(made):
    """The test images as the network takes them, and their labels."""
    subject = load_subject(made.spec.backbone, made.request)
    context = DatasetContext(Cache(), threads=1, agree=Agreement(1), rank=0)
    test = open_labelled(made.spec, subject, context).test
    pixels = torch.from_numpy(test.images.fitted(test.rows, subject.view.size))
    return SimpleNamespace(pixels=normalised(pixels, subject.view.mean, subject.view.std), labels=test.labels)


def accuracy(logits: torch.Tensor, labels) -> float:
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def own(made) -> float:
    return float(made.tags["rcmae.metric.eval/finetune_top1"])


def test_a_version_says_that_it_is_a_classifier_and_what_it_was_made_of(made):
    first, second = made.product.evaluation.score("eval/finetune_top1").seeds
    assert own(made) == first.top1
    assert first.seed == made.spec.seed != second.seed
    assert made.tags[names.TAG_TYPE] == "classifier"
    assert json.loads(made.tags[names.TAG_CLASSES]) == [str(digit) for digit in range(10)]
    assert made.tags[names.TAG_FINE_TUNED_FROM].startswith("job-a, step")
    card = (made.version / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    mean = made.product.evaluation.score("eval/finetune_top1").top1
    assert f"{first.top1:.4f}" in card
    assert f"| mean over 2 seeds | {mean:.4f} |" in card


def test_transformers_classifies_as_the_job_did(made, tested):
    if made.spec.registering.pooling == "mean":
        assert not (made.version / "hf").exists()
        return
    model, info = ViTForImageClassification.from_pretrained(made.version / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label[3] == "3"
    assert model.config.label2id["7"] == 7
    AutoImageProcessor.from_pretrained(made.version / "hf")
    with torch.no_grad():
        assert accuracy(model.eval()(tested.pixels).logits, tested.labels) == own(made)


def test_onnx_classifies_as_the_job_did_and_names_the_classes(made, tested):
    session = onnxruntime.InferenceSession(made.version / "onnx/model.onnx")
    (logits,) = session.run(None, {"pixel_values": tested.pixels.numpy()})
    assert accuracy(torch.from_numpy(logits), tested.labels) == own(made)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == [str(digit) for digit in range(10)]


def test_timm_s_folder_says_what_the_head_reads(made):
    config = json.loads((made.version / "timm/config.json").read_text())
    weights = load_file(made.version / "timm/model.safetensors")
    mean = made.spec.registering.pooling == "mean"
    assert (config["num_classes"], config["label_names"][3]) == (10, "3")
    assert config["model_args"]["global_pool"] == ("avg" if mean else "token")
    assert config["model_args"]["fc_norm"] is mean
    assert ("fc_norm.weight" in weights, "norm.weight" in weights) == (mean, not mean)
    assert weights["head.weight"].shape[0] == 10


def test_a_resumed_attempt_registers_once_and_leaves_no_training(trained, made):
    again = registering(trained, made.folder, made.request.spec.protocols[0], attempt=2)
    assert register_classifier(again.product, again.request, again.spec, made.registry) is None
    assert len(made.registry.made) == 1
    assert not any(file for file in (made.folder / names.TRAININGS).rglob("*") if file.is_file())


def test_a_command_before_the_registration_keeps_the_weights_for_the_next_attempt(trained, tmp_path):
    found = registering(trained, tmp_path, MEAN, seeds=1)
    registry = ClassifierRegistry(trained.memory, tmp_path / "registry")
    assert register_classifier(found.product, found.request, found.spec, registry, lambda: "pause") == "pause"
    assert not registry.made
    again = registering(trained, tmp_path, MEAN, attempt=2, seeds=1)
    assert register_classifier(again.product, again.request, again.spec, registry) is None
    assert len(registry.made) == 1


@pytest.mark.parametrize(
    ("protocol", "field", "why"),
    [
        (FINETUNE | {"export": {"formats": ["hf"]}}, "protocols.0.finetune.export.formats", "set pooling: cls"),
        ({"name": "finetune", "export": {"license": "mit"}}, "protocols.0.finetune.export", "without register_as"),
        (FINETUNE | {"export": {"license_link": "https://example.org"}}, "license_link", "name the licence"),
        (FINETUNE | {"export": {"formats": ["hf-mae"]}}, "formats", "timm"),
    ],
)
def test_what_cannot_be_registered_is_refused(protocol, field, why):
    with pytest.raises(SpecError) as refused:
        EvaluateSpec.parse(
            {"kind": "evaluate", "backbone": "a", "dataset": {"uri": "builtin://digits"}, "protocols": [protocol]}
        )
    (problem,) = refused.value.problems
    assert why in problem.message
    assert field.rpartition(".")[2] in problem.field
