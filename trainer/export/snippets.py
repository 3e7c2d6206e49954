"""Code for the model card that loads a backbone with each tool. Each snippet is complete and runs as it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trainer.export import inputs
from trainer.export.inputs import Subject
from trainer.models.vit import NORM_EPS
from trainer.spec.formats import (
    BACKBONE_HF,
    BACKBONE_HF_MAE,
    BACKBONE_ONNX,
    BACKBONE_TIMM,
    BACKBONE_TORCH_EXPORT,
    HUB_ORGANISATION,
)


@dataclass(frozen=True)
class Snippet:
    """One tool's section."""

    form: str | None
    """The format that it reads; None for any."""
    title: str
    text: str
    code: str
    """Python that leaves the tokens of one image in ``features``, and their mean in ``embedding``."""


def snippets(subject: Subject, first: str | None = None) -> Iterator[Snippet]:
    """Sections for the formats that a backbone has, and for MLflow; those of the format ``first`` come first."""
    for form, title, text, code in sorted(_TOOLS, key=lambda tool: tool[0] is None or tool[0] != first):
        if form is None or form in subject.formats:
            yield Snippet(form, title, text, code(subject).strip("\n"))


EMBEDDING: Final = """embedding = features[:, 1:].mean(dim=1)  # one vector for the image: the mean of the patch tokens
print(embedding.shape)"""


def _lines(*parts: str) -> str:
    """Code made of parts, without those that are empty."""
    return "\n".join(part for part in parts if part)


def _transformers(subject: Subject) -> str:
    repository = f'"{HUB_ORGANISATION}/{subject.name}"'
    return _lines(
        transformers_imports(subject, "AutoModel"),
        processor(subject, repository),
        "# With a pooling layer, pooler_output would be random numbers: nothing has trained that layer.\n"
        f"model = AutoModel.from_pretrained({repository}, add_pooling_layer=False).eval()",
        inputs.by_processor(subject),
        _tokens("model(pixels).last_hidden_state", subject),
    )


def _timm(subject: Subject) -> str:
    return _lines(
        inputs.imports(subject, "import timm", "import torch") + "\n",
        f'model = timm.create_model("hf-hub:{HUB_ORGANISATION}/{subject.name}-timm", pretrained=True).eval()',
        TRANSFORM if subject.mode else "",
        inputs.by_transform(subject),
        _tokens("model.forward_features(pixels)", subject),
    )


def _mlflow(subject: Subject) -> str:
    """Downloads the version; loads it with transformers if it has that format."""
    uri = f"models:/{subject.name}"
    download = f'folder = mlflow.artifacts.download_artifacts("{uri}/latest")  # or {uri}@champion'
    if BACKBONE_HF not in subject.formats:
        return f"import mlflow\n\n{download}"
    folder = f'f"{{folder}}/{BACKBONE_HF}"'
    return _lines(
        transformers_imports(subject, "AutoModel", "import mlflow"),
        download,
        processor(subject, folder),
        f"model = AutoModel.from_pretrained({folder}, add_pooling_layer=False).eval()  # its pooler is untrained",
        inputs.by_processor(subject),
        _tokens("model(pixels).last_hidden_state", subject),
    )


def _torch(subject: Subject) -> str:
    head = inputs.imports(
        subject,
        "import torch",
        "import torch.nn.functional as F",
        "from safetensors.torch import load_file",
        numpy=True,
    )
    model = subject.model
    return f"""
{head}

weights = load_file("{subject.name}-timm/model.safetensors")
{inputs.by_hand(subject)}


def linear(x, layer):
    return F.linear(x, weights[f"{{layer}}.weight"], weights[f"{{layer}}.bias"])


def norm(x, layer):
    return F.layer_norm(x, x.shape[-1:], weights[f"{{layer}}.weight"], weights[f"{{layer}}.bias"], {NORM_EPS})


def attention(x, layer):
    query, key, value = linear(x, f"{{layer}}.qkv").unflatten(2, (3, {model.num_heads}, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return linear(mixed.transpose(1, 2).flatten(2), f"{{layer}}.proj")


with torch.inference_mode():
    patches = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = F.conv2d(pixels, *patches, stride={model.patch_size}).flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1) + weights["pos_embed"]
    for block in (f"blocks.{{i}}" for i in range({model.depth})):
        x = x + attention(norm(x, f"{{block}}.norm1"), f"{{block}}.attn")
        x = x + linear(F.gelu(linear(norm(x, f"{{block}}.norm2"), f"{{block}}.mlp.fc1")), f"{{block}}.mlp.fc2")
    features = norm(x, "norm")  # {subject.shape}
{EMBEDDING}
"""


def _reconstructions(subject: Subject) -> str:
    model, repository = subject.model, f'"{HUB_ORGANISATION}/{subject.name}-mae"'
    return _lines(
        transformers_imports(subject, "ViTMAEForPreTraining"),
        processor(subject, repository),
        f"model = ViTMAEForPreTraining.from_pretrained({repository}).eval()",
        inputs.by_processor(subject),
        "with torch.inference_mode():",
        f"    answer = model(pixels)  # masks {subject.mask_ratio:.0%} of the patches at random, also in evaluation",
        f"predicted, masked = answer.logits, answer.mask  # (1, {model.patches}, {model.patch_values}); 1 where masked",
        "print(predicted.shape, masked.sum())",
    )


def _onnx(subject: Subject) -> str:
    torch = [] if subject.mode else ["import torch"]
    return _lines(
        inputs.imports(subject, "import onnxruntime", *torch, SNAPSHOT_IMPORT, numpy=True) + "\n",
        f'folder = snapshot_download("{HUB_ORGANISATION}/{subject.name}-onnx")',
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")',
        inputs.by_hand(subject, tensor=False),
        f'(features,) = session.run(None, {{"pixel_values": pixels}})  # {subject.shape}',
        EMBEDDING.replace("dim=1", "axis=1"),
    )


def _torch_export(subject: Subject) -> str:
    return _lines(
        inputs.imports(subject, "import torch", SNAPSHOT_IMPORT, numpy=True) + "\n",
        f'folder = snapshot_download("{HUB_ORGANISATION}/{subject.name}-torch_export")',
        'model = torch.export.load(f"{folder}/model.pt2").module()',
        inputs.by_hand(subject),
        _tokens("model(pixels)", subject),
    )


TRANSFORM: Final = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
SNAPSHOT_IMPORT: Final = "from huggingface_hub import snapshot_download"


def _tokens(call: str, subject: Subject) -> str:
    return f"with torch.inference_mode():\n    features = {call}  # {subject.shape}\n{EMBEDDING}"


def transformers_imports(subject: Subject, model: str, *others: str) -> str:
    """Imports of a class of transformers, of the image processor if it is used, and of what opens an image."""
    names = f"AutoImageProcessor, {model}" if subject.mode else model
    array = subject.mode == "L"
    return inputs.imports(subject, "import torch", f"from transformers import {names}", *others, numpy=array) + "\n"


def processor(subject: Subject, place: str) -> str:
    """Code that loads transformers' image processor, if it can prepare the backbone's images."""
    return f"processor = AutoImageProcessor.from_pretrained({place})" if subject.mode else ""


_TOOLS: Final[tuple[tuple[str | None, str, str, Callable[[Subject], str]], ...]] = (
    (
        BACKBONE_HF,
        "transformers",
        "Version 4.40 or later. Its image processor and `AutoModel` read the repository.",
        _transformers,
    ),
    (
        BACKBONE_TIMM,
        "timm",
        "1.0.16 or later; `pretrained=True` loads the weights: without it timm gives random ones, and does not say so.",
        _timm,
    ),
    (
        None,
        "MLflow",
        "Where MLflow can be reached; set `MLFLOW_TRACKING_URI`, and `_USERNAME` and `_PASSWORD` if it asks.",
        _mlflow,
    ),
    (BACKBONE_TIMM, "torch", "Without a library of models, from a pulled folder of the format `timm`.", _torch),
    (
        BACKBONE_HF_MAE,
        "Reconstructions and further pretraining",
        "With the decoder, in transformers. For features use `hf`: this network masks patches whenever it is called.",
        _reconstructions,
    ),
    (
        BACKBONE_ONNX,
        "ONNX Runtime",
        "1.18 or later; any number of images at once. A pulled folder of the format `onnx` serves as `folder` too.",
        _onnx,
    ),
    (
        BACKBONE_TORCH_EXPORT,
        "torch.export",
        "Any number of images at once. A pulled folder of the format `torch_export` serves as `folder` too.",
        _torch_export,
    ),
)
"""The format that it needs (None for any), title, a sentence, and the function that writes the code."""
