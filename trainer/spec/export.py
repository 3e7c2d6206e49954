"""The export section of a spec: which network is registered, and in which formats."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from trainer.spec.base import SpecModel
from trainer.spec.formats import (
    BACKBONE_FORMATS,
    BACKBONE_HF,
    BACKBONE_HF_MAE,
    BACKBONE_TIMM,
    HUB_ENDINGS,
    NEVER_NAMED,
)

Network = Literal["teacher", "student"]
BackboneFormat = Literal["timm", "hf", "hf-mae", "onnx", "torch_export"]
"""`trainer.spec.formats.BACKBONE_FORMATS`, as a type."""
FirstVisibility = Literal["all", "owners"]
"""Who sees a backbone from its first version on."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")
_LINK: Final = re.compile(r"https://[^\s\"'<>()\[\]|`\\]+")
_LICENSE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


ENDINGS_REFUSED: Final = (
    f"must not end in {' or '.join(HUB_ENDINGS)}: for the hub's clients, those endings name the formats of a backbone"
)


def _backbone_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("use lower-case letters, digits, - and _, starting with a letter or digit")
    if name.endswith(NEVER_NAMED):
        raise ValueError(ENDINGS_REFUSED)
    return name


BackboneName = Annotated[str, Field(max_length=100), AfterValidator(_backbone_name)]
"""Name of a registered backbone."""


def _each_once(formats: tuple[BackboneFormat, ...]) -> tuple[BackboneFormat, ...]:
    if not formats:
        raise ValueError(f"name at least one of {', '.join(BACKBONE_FORMATS)}")
    twice = sorted({name for name in formats if formats.count(name) > 1})
    if twice:
        raise ValueError(f"name each format once: {', '.join(twice)} is repeated")
    return formats


def _identifier(text: str) -> str:
    if not _LICENSE.fullmatch(text):
        raise ValueError("use an identifier such as apache-2.0, mit, cc-by-nc-4.0 or other, without spaces")
    return text


def _web_address(text: str) -> str:
    if not _LINK.fullmatch(text):
        raise ValueError("use an https:// address without spaces, brackets or quotes")
    return text


Formats = Annotated[tuple[BackboneFormat, ...], AfterValidator(_each_once)]
License = Annotated[
    str, Field(max_length=100, examples=["apache-2.0", "cc-by-nc-4.0", "other"]), AfterValidator(_identifier)
]

LicenseLink = Annotated[
    str, Field(max_length=1000, examples=["https://example.org/licence"]), AfterValidator(_web_address)
]


class ExportSpec(SpecModel):
    """Which network a registered backbone is, and the formats it comes in."""

    network: Network = "teacher"
    """The mean teacher, or the student, which gradients train; `mae` has only the student, its default."""
    formats: Formats = (BACKBONE_TIMM, BACKBONE_HF, BACKBONE_HF_MAE)
    """`timm` and `hf` (transformers' ViTModel) hold the encoder; `hf-mae` (ViTMAEForPreTraining, square images only)
    holds the decoder too; `onnx` and `torch_export` are graphs of the encoder that take any number of images. The
    default is the first three, or the first two if images are not square."""
    license: License | None = None
    """The weights' licence for the model card, as a Hugging Face or SPDX identifier; null: not specified."""
    license_link: LicenseLink | None = None
    """Where the licence's text is, for the model card; needed by readers of licences that the Hugging Face Hub does not
    know."""
    visibility: FirstVisibility = "all"
    """Who sees the backbone of which this is the first version, until its owner changes that: `all`, or its `owners`
    alone, with operators and admins. A backbone that is there already stays as it is. Whoever
    can reach MLflow, the artifact storage or a backup reads private ones too."""

    @staticmethod
    def defaults(method: object, img_size: object) -> dict[str, Any]:
        """Defaults that differ from the class's own for a method's name and an image size, both as written."""
        defaults: dict[str, Any] = {}
        if method == "mae":
            defaults["network"] = "student"
        if isinstance(img_size, (list, tuple)) and len(img_size) == 2 and img_size[0] != img_size[1]:
            defaults["formats"] = [BACKBONE_TIMM, BACKBONE_HF]
        return defaults


def misfit(export: ExportSpec, method: str, size: tuple[int, int]) -> tuple[str, str, object] | None:
    """What a method and images of ``size`` (height, width) make impossible in ``export``: field, reason, value."""
    if export.license_link and not export.license:
        return "export.license_link", "name the licence in export.license too", export.license_link
    if method == "mae" and export.network == "teacher":
        return "export.network", "method mae has no teacher: use student, or leave it out", export.network
    if BACKBONE_HF_MAE in export.formats and size[0] != size[1]:
        reason = f"hf-mae supports only square images, as transformers' ViTMAE does; these are {size[0]} x {size[1]}"
        return "export.formats", f"{reason}. Leave hf-mae out, and use timm or hf", list(export.formats)
    return None
