"""Text for the model card: how a backbone is loaded, pooled, fine-tuned, converted and verified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Final

from trainer.export import inputs
from trainer.export.inputs import Subject
from trainer.protocol.names import BACKBONE_SUMS
from trainer.spec.formats import (
    BACKBONE_HF,
    BACKBONE_HF_MAE,
    BACKBONE_ONNX,
    BACKBONE_TIMM,
    BACKBONE_TORCH_EXPORT,
    HUB_ORGANISATION,
)

READERS: Final = {
    BACKBONE_HF: ("", "transformers' `ViTModel`: features", "transformers 4.40"),
    BACKBONE_TIMM: ("-timm", "timm: features", "timm 1.0.16"),
    BACKBONE_HF_MAE: ("-mae", "transformers' `ViTMAEForPreTraining`: with the decoder", "transformers 4.40"),
    BACKBONE_ONNX: ("-onnx", "ONNX Runtime: features", "ONNX Runtime 1.18"),
    BACKBONE_TORCH_EXPORT: ("-torch_export", "`torch.export`: features", f"written by torch {version('torch')}"),
}
"""By format: the ending of its repository's name, what reads it, and the oldest version that does."""
CLASSIFIER_READERS: Final = {
    BACKBONE_HF: ("", "transformers' `ViTForImageClassification` and `pipeline()`", "transformers 4.40"),
    BACKBONE_TIMM: ("-timm", "timm", "timm 1.0.16"),
    BACKBONE_ONNX: ("-onnx", "ONNX Runtime", "ONNX Runtime 1.18"),
}
"""The same of a classifier, whose output is logits."""
CONVERTED: Final = (BACKBONE_HF, BACKBONE_TIMM, BACKBONE_HF_MAE)
"""Formats that `rcmae backbones convert` reads, the best first."""


def preprocessing(subject: Subject) -> str:
    """What the network takes, true for every format, and what each library does of it by itself."""
    listed = "\n".join(f"{number}. {step}" for number, step in enumerate(inputs.steps(subject), 1))
    if subject.mode is None:
        note = (
            "The image processors of transformers and timm's transforms cannot prepare such images, and `pipeline()` "
            "cannot either: the code below does it with tensors."
        )
    elif subject.mode == "L":
        note = (
            "timm's transform takes a grey picture. transformers' image processor takes an array (1, height, width), "
            "as in the code below: no array without a channel, and not in every version a grey picture. "
            "`pipeline()` converts every picture to RGB, so it cannot be used with this backbone."
        )
    else:
        note = (
            "transformers' image processor and timm's transform do this from the third step on. The code below does "
            "the first two, and for the formats without a processor all of it."
        ) + (" timm's crop may begin a pixel later." if subject.square else "")
    if subject.mode:
        note += (
            " transformers 5 resizes with torchvision where that is installed, and differs by one or two of 255 "
            'levels: `AutoImageProcessor.from_pretrained` takes `backend="pil"` against it.'
        )
    theirs = f" {subject.fitting}" if subject.fitting else ""
    return f"Every format expects the same input:\n\n{listed}\n\n{note}{theirs}\n"


def loading(subject: Subject, form: str | None, readers: Mapping[str, tuple[str, str, str]] = READERS) -> str:
    """Where the formats are, and what reads them; ``form`` is pulled in the example, by default the first one."""
    name, pulled = subject.name, form or subject.formats[0]
    rows = [
        f"| `{HUB_ORGANISATION}/{name}{readers[form][0]}` | `{form}` | {readers[form][1]} | {readers[form][2]} |"
        for form in subject.formats
    ]
    table = "\n".join(["| repository | format | for | needs at least |", "|---|---|---|---|", *rows])
    return (
        "The service speaks the Hugging Face Hub's protocol. Before Python starts, set `HF_ENDPOINT` to the service's "
        "address followed by `/hf`, and `HF_TOKEN` to one of your tokens. It takes huggingface_hub 0.19 or later.\n\n"
        f"{table}\n\n"
        "Without `revision` you get `main`: the version with the alias `champion`, or else the newest one. `revision` "
        "may also be `latest`, an alias or a version's number. Or pull a folder, and write its path where the code has "
        "a repository's name (for timm `local-dir:` and the path):\n\n"
        f"```bash\nrcmae backbones pull {name} --format {pulled} --out {name}-{pulled}\n```\n"
    )


def pooling(subject: Subject, probed: Sequence[str]) -> str:
    """Which tokens to use, and which output of each library not to use.

    ``probed`` are the metrics of probes whose results the card has.
    """
    pooler = (
        "- `AutoModel` and `ViTModel` of transformers need `add_pooling_layer=False`: their `pooler_output` comes from "
        "a layer that has no trained weights here, so it is random."
    )
    pipeline = " So do not use `pool=True` with `pipeline()`, which returns it." if subject.mode == "RGB" else ""
    rows, columns = subject.model.grid
    are = "is" if len(probed) == 1 else "are"
    figure = f": {' and '.join(f'`{key}`' for key in probed)} above {are} about it" if probed else ""
    class_token = (
        "Whether training was about it, its makers know: compare both on your own images."
        if subject.imported
        else "No loss is about it in pretraining: use it once you fine-tune."
    )
    lines = [
        f"- For one vector of an image, use the mean of the patch tokens{figure}.",
        f"- The class token is the first token. {class_token}",
        f"- For regions of an image, use the patch tokens: they lie row by row in a grid of {rows} x {columns}.",
    ]
    if BACKBONE_TIMM in subject.formats:
        lines.append(
            '- timm\'s `model(pixels)` gives the mean of the patch tokens too: its folder says `global_pool="avg"` and '
            "`fc_norm=False`."
        )
    if BACKBONE_HF in subject.formats:
        lines.append(pooler + pipeline)
    return "\n".join(lines) + "\n"


def fine_tuning(subject: Subject) -> str:
    """What the code for fine-tuning does."""
    what = "pictures" if subject.mode else "arrays"
    formats = {BACKBONE_TIMM, BACKBONE_HF} & set(subject.formats)
    if not formats:
        again = "import it again" if subject.imported else "publish the checkpoint"
        return (
            f"To fine-tune it, {again} in the format `timm` or `hf`: `hf-mae` is for further pretraining, `onnx` and "
            "`torch_export` for inference.\n"
        )
    return f"A start: all weights learn, on {what} in one folder for each class, without augmentation.\n"


def converting(subject: Subject) -> Iterator[str]:
    """A section on libraries that need other names, if a format can be converted."""
    source = next((form for form in CONVERTED if form in subject.formats), None)
    if source is None:
        return
    name = subject.name
    libraries = ["detectron2", "mmpretrain"] if subject.square else ["mmpretrain"]
    commands = [f"rcmae backbones pull {name} --format {source} --out {name}-{source}"] + [
        f"rcmae backbones convert {name}-{source} --to {library} --out {name}-{library}" for library in libraries
    ]
    code = "\n".join(commands)
    yield (
        f"## {' and '.join(libraries)}\n\nThe new folder holds the weights as the library's own loader takes them, the "
        f"settings of the network and its input, and a README.md that loads them:\n\n```bash\n{code}\n```\n"
    )


def verifying(name: str) -> str:
    """How to check that files are those that were registered."""
    return (
        "`rcmae backbones pull` compares every file with the sha256 that was recorded when the backbone was "
        "registered, and keeps none that differs. With `--verify` it also checks that a key of the service which you "
        f"trust has signed these checksums. It writes `{BACKBONE_SUMS}` beside the files. To check them again:\n\n"
        f"```bash\nrcmae backbones pull {name} --format all --out {name}\n"
        f"(cd {name} && sha256sum --check {BACKBONE_SUMS})\n```\n"
    )
