"""How a fine-tuned classifier is registered: the export section of the protocol `finetune`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from trainer.spec.base import SpecModel
from trainer.spec.export import FirstVisibility, License, LicenseLink
from trainer.spec.formats import BACKBONE_HF, BACKBONE_TIMM, CLASSIFIER_FORMATS

ClassifierFormat = Literal["timm", "hf", "onnx"]
"""`trainer.spec.formats.CLASSIFIER_FORMATS`, as a type."""


def _each_once(formats: tuple[ClassifierFormat, ...]) -> tuple[ClassifierFormat, ...]:
    if not formats:
        raise ValueError(f"name at least one of {', '.join(CLASSIFIER_FORMATS)}")
    twice = sorted({name for name in formats if formats.count(name) > 1})
    if twice:
        raise ValueError(f"name each format once: {', '.join(twice)} is repeated")
    return formats


class ClassifierExport(SpecModel):
    """The formats that a registered classifier comes in, and what its card says of its licence."""

    formats: Annotated[tuple[ClassifierFormat, ...], AfterValidator(_each_once)] | None = None
    """`timm`; `hf`, transformers' ViTForImageClassification, which reads the class token, so that it needs
    `pooling: cls`; `onnx`, a graph from pixels to logits. Null: `timm`, and with `pooling: cls` also `hf`."""
    license: License | None = None
    """The weights' licence for the model card, as a Hugging Face or SPDX identifier; null: not specified."""
    license_link: LicenseLink | None = None
    """Where the licence's text is, for the model card."""
    visibility: FirstVisibility | None = None
    """Who sees the classifier of which this is the first version: `all` or its `owners`. Null: `all`, but its owners
    alone where the fine-tuned backbone is not open to all."""

    def formats_for(self, pooling: str) -> tuple[ClassifierFormat, ...]:
        """The formats of a network with this pooling."""
        return self.formats or ((BACKBONE_TIMM, BACKBONE_HF) if pooling == "cls" else (BACKBONE_TIMM,))
