"""`python -m trainer.export.verify`: does a pulled backbone give the trainer's own features?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainer.checkpoint import SPEC, STUDENT, TEACHER
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.base import read_document
from trainer.spec.job import parse_spec
from trainer.storage import Store

TOLERANCE = 1e-5
IMAGES = 8


def compare(checkpoint: Path, backbone: Path) -> dict[str, object]:
    """Largest difference of all tokens on fixed random images, and keys that transformers missed or did not know.

    ``checkpoint`` is a checkpoint's folder, ``backbone`` a pulled `hf` folder. transformers must be installed.
    """
    from transformers import ViTModel  # noqa: PLC0415 - not needed to train or serve

    spec = parse_spec(read_document((checkpoint / SPEC).read_text()))
    ours = MaskedAutoencoder(spec.model).eval()
    weights = checkpoint / TEACHER
    ours.load_state_dict(load_file(weights if weights.is_file() else checkpoint / STUDENT))
    loaded: Any = ViTModel.from_pretrained(backbone, add_pooling_layer=False, output_loading_info=True)
    theirs, loading = loaded
    shape = (IMAGES, spec.model.in_chans, spec.model.height, spec.model.width)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (ours.encode(images) - theirs.eval()(images).last_hidden_state).abs().max().item()
    return {
        "max_abs_difference": difference,
        "keys_missing": sorted(loading["missing_keys"]),
        "keys_unexpected": sorted(loading["unexpected_keys"]),
        "keys_mismatched": sorted(str(key) for key in loading["mismatched_keys"]),
    }


def main() -> int:
    """Print the comparison as JSON; exit status 1 where the features or the keys differ."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", required=True, help="folder of a committed checkpoint: a path or an s3:// URI")
    parser.add_argument("--backbone", type=Path, required=True, help="folder with config.json and model.safetensors")
    options = parser.parse_args()
    with Store(options.checkpoint).local_copy("") as checkpoint:
        result = compare(checkpoint, options.backbone)
    sys.stdout.write(json.dumps(result) + "\n")
    keys_differ = any(result[key] for key in result if key.startswith("keys_"))
    return int(keys_differ or not float(str(result["max_abs_difference"])) < TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
