"""Code for the card of a classifier that names the class of a picture, with each tool."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.export import inputs
from trainer.export.inputs import Subject
from trainer.export.snippets import SNAPSHOT_IMPORT, TRANSFORM, Snippet, processor, transformers_imports
from trainer.spec.formats import BACKBONE_HF, BACKBONE_ONNX, BACKBONE_TIMM, HUB_ORGANISATION


def classifier_snippets(subject: Subject, first: str | None = None) -> Iterator[Snippet]:
    """Sections for the formats that a classifier has; those of the format ``first`` come first."""
    yield from sorted(_snippets(subject), key=lambda each: each.form != first)


def _snippets(subject: Subject) -> Iterator[Snippet]:
    if BACKBONE_HF in subject.formats:
        if subject.mode == "RGB":
            text = "Version 4.40 or later. The pipeline turns pictures upright and prepares them by itself."
            yield Snippet(BACKBONE_HF, "transformers' pipeline", text, _pipeline(subject))
        text = "Version 4.40 or later. Its image processor and `AutoModelForImageClassification` read the repository."
        yield Snippet(BACKBONE_HF, "transformers", text, _transformers(subject))
    if BACKBONE_TIMM in subject.formats:
        text = (
            "1.0.16 or later; `pretrained=True` loads the weights: without it timm gives random ones, and does not say "
            "so."
        )
        yield Snippet(BACKBONE_TIMM, "timm", text, _timm(subject))
    if BACKBONE_ONNX in subject.formats:
        text = "1.18 or later; any number of images at once. The names of the classes are in the graph's metadata."
        yield Snippet(BACKBONE_ONNX, "ONNX Runtime", text, _onnx(subject))


def _pipeline(subject: Subject) -> str:
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("image-classification", model="{HUB_ORGANISATION}/{subject.name}")\n'
        f"print(classify({inputs.QUOTED_PICTURE}))"
    )


def _transformers(subject: Subject) -> str:
    repository = f'"{HUB_ORGANISATION}/{subject.name}"'
    return _lines(
        transformers_imports(subject, "AutoModelForImageClassification"),
        processor(subject, repository),
        f"model = AutoModelForImageClassification.from_pretrained({repository}).eval()",
        inputs.by_processor(subject),
        "with torch.inference_mode():",
        "    logits = model(pixels).logits",
        "print(model.config.id2label[int(logits.argmax())])",
    )


def _timm(subject: Subject) -> str:
    return _lines(
        inputs.imports(subject, "import timm", "import torch") + "\n",
        f'model = timm.create_model("hf-hub:{HUB_ORGANISATION}/{subject.name}-timm", pretrained=True).eval()',
        TRANSFORM if subject.mode else "",
        inputs.by_transform(subject),
        "with torch.inference_mode():",
        "    logits = model(pixels)",
        'print(model.pretrained_cfg["label_names"][int(logits.argmax())])',
    )


def _onnx(subject: Subject) -> str:
    torch = [] if subject.mode else ["import torch"]
    return _lines(
        inputs.imports(subject, "import json", "import onnxruntime", *torch, SNAPSHOT_IMPORT, numpy=True) + "\n",
        f'folder = snapshot_download("{HUB_ORGANISATION}/{subject.name}-onnx")',
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")',
        'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        inputs.by_hand(subject, tensor=False),
        '(logits,) = session.run(None, {"pixel_values": pixels})',
        "print(classes[int(logits[0].argmax())])",
    )


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
