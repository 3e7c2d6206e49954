"""The formats of a registered backbone, and their repository names in the Hugging Face Hub's protocol."""

from __future__ import annotations

from typing import Final

# Files of a registered backbone.
BACKBONE_TIMM: Final = "timm"
"""Folder for `timm.create_model("local-dir:…", pretrained=True)`."""
BACKBONE_HF: Final = "hf"
"""Folder that `transformers.ViTModel.from_pretrained` loads."""
BACKBONE_HF_MAE: Final = "hf-mae"
"""Folder that `transformers.ViTMAEForPreTraining.from_pretrained` loads, with the decoder."""
BACKBONE_ONNX: Final = "onnx"
BACKBONE_TORCH_EXPORT: Final = "torch_export"
BACKBONE_FORMATS: Final = (BACKBONE_TIMM, BACKBONE_HF, BACKBONE_HF_MAE, BACKBONE_ONNX, BACKBONE_TORCH_EXPORT)
CLASSIFIER_FORMATS: Final = (BACKBONE_TIMM, BACKBONE_HF, BACKBONE_ONNX)
"""Those of a fine-tuned classifier, with its head: `hf` is then ViTForImageClassification, and `onnx` gives logits."""
WEIGHTS_FORMATS: Final = (BACKBONE_TIMM, BACKBONE_HF, BACKBONE_HF_MAE)
"""Those that hold the encoder's weights by name, from which a version is read again."""

# Repositories of the Hugging Face Hub's protocol.
HUB_ORGANISATION: Final = "rcmae"
HUB_ENDINGS: Final = {
    "-mae": BACKBONE_HF_MAE,
    "-timm": BACKBONE_TIMM,
    "-onnx": BACKBONE_ONNX,
    "-torch_export": BACKBONE_TORCH_EXPORT,
}
"""The format of `<organisation>/<backbone><ending>`; without an ending it is `hf`. The service registers no new
backbone whose name has one of these endings; a backbone that has one from before stands for itself."""
NEVER_NAMED: Final = ("-mae", "-timm")
"""Those endings that no backbone's name has ever had."""
LIBRARIES: Final = {
    BACKBONE_HF: "transformers",
    BACKBONE_HF_MAE: "transformers",
    BACKBONE_TIMM: "timm",
    BACKBONE_ONNX: "onnx",
    BACKBONE_TORCH_EXPORT: "pytorch",
}
"""The hub's library names by format."""
PIPELINE_TAG: Final = "image-feature-extraction"
"""The hub's name of what a backbone does."""
CLASSIFIER_TAG: Final = "image-classification"
"""The hub's name of what a classifier does."""
