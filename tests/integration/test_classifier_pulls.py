"""Fine-tuned classifiers on a live stack: registered, pulled, and used by others' tools with the job's accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backbones import model_of, shaken, statistics
from PIL import Image
from readers import run
from transformers import ViTForImageClassification

from service.jobs.state import State
from trainer.export.timm import export_timm

FINETUNE = {
    "name": "finetune", "recipe": "small", "epochs": 1, "hflip": False, "pooling": "cls",
    "register_as": "digits-classifier",
}  # fmt: skip
COLOURS = {"amber": (200, 150, 60), "moss": (150, 165, 70), "sea": (120, 150, 110)}
"""Classes whose pictures overlap, so that some are taken for others."""
PIPELINE = """
import torch
from pathlib import Path
from transformers import pipeline

classify = pipeline("image-classification", model="rcmae/colours-classifier")
files = sorted(Path(FOLDER).glob("*/*"))
right = sum(classify(str(file))[0]["label"] == file.parent.name for file in files)
kept = {"top1": torch.tensor([right / len(files)], dtype=torch.float64)}
"""


def test_a_fine_tuned_digit_classifier_is_a_version_with_its_classes_and_its_backbone(stack, finished, tmp_path):
    ref = finished[0].result.backbone
    base = f"{ref.name}:{ref.version}"
    job = stack.client.evaluate(base, "builtin://digits", protocols=[FINETUNE], seeds=1, baselines=[], held_out=0.5)
    ended = stack.client.wait(job.id, timeout_s=300)
    assert ended.state is State.SUCCEEDED, ended.message
    assert (ended.result.backbone.name, ended.result.backbone.version) == ("digits-classifier", 1)
    version = stack.client.version("digits-classifier")
    assert (version.type, version.fine_tuned_from) == ("classifier", base)
    assert version.metrics == ended.result.metrics
    assert [each.name for each in stack.client.backbone(ref.name).classifiers] == ["digits-classifier"]
    assert [each.name for each in stack.client.backbones(type="classifier")] == ["digits-classifier"]
    stack.client.pull("digits-classifier", tmp_path / "hf", form="hf")
    model = ViTForImageClassification.from_pretrained(tmp_path / "hf")
    assert model.config.id2label == {number: str(number) for number in range(10)} == dict(enumerate(version.classes))


@pytest.mark.slow
@pytest.mark.timeout(2400)  # it may have to make the environment
def test_the_pipeline_of_transformers_has_the_accuracy_of_the_job(stack, tmp_path):
    model = model_of()
    export_timm(shaken(model).state_dict(), model, *statistics(3), tmp_path / "weights")
    for part, seed, count in (("train", 0, 40), ("test", 1, 30)):
        _write_pictures(tmp_path / part, np.random.default_rng(seed), count)
    job = stack.client.evaluate(
        {"uri": str(tmp_path / "weights")},
        str(tmp_path / "train"),
        test=str(tmp_path / "test"),
        protocols=[FINETUNE | {"epochs": 4, "batch_size": 30, "register_as": "colours-classifier"}],
        seeds=1,
        baselines=[],
    )
    ended = stack.client.wait(job.id, timeout_s=600)
    assert ended.state is State.SUCCEEDED, ended.message
    variables = {"HF_ENDPOINT": f"{stack.url}/hf", "HF_TOKEN": stack.token}
    found = run("transformers-5.24", f"FOLDER = {str(tmp_path / 'test')!r}{PIPELINE}", tmp_path / "run", **variables)
    assert float(found["top1"]) == pytest.approx(ended.result.metrics["eval/finetune_top1"], abs=1e-9)


def _write_pictures(folder: Path, random: np.random.Generator, count: int) -> None:
    """Noisy pictures of many sizes: JPEG files, with a colour for each class."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            tall, wide = random.integers(24, 90, 2)
            pixels = np.array(colour) + random.normal(0, 40, 3) + random.normal(0, 30, (tall, wide, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.jpg")
