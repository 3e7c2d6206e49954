"""What transformers loads from the service, in whatever version runs this: a report of what each call gave.

It runs in an environment of transformers alone; `readers.report` starts it. Started with the argument `offline`, it
loads what the first run has left in the cache.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, ViTMAEForPreTraining, pipeline

ARGUMENTS = json.loads(Path("arguments.json").read_text())
REPO, COMMITS = "rcmae/digits", ARGUMENTS["commits"]
IMAGES = torch.tensor(ARGUMENTS["images"])
PICTURE = Image.new("RGB", (50, 40), (200, 100, 50))
OFFLINE = len(sys.argv) > 1


def features(**options):
    model = AutoModel.from_pretrained(REPO, add_pooling_layer=False, **options).eval()
    with torch.no_grad():
        return model(IMAGES).last_hidden_state.tolist()


def logits():
    model, loading = ViTMAEForPreTraining.from_pretrained(f"{REPO}-mae", output_loading_info=True)
    with torch.no_grad():
        shape = list(model.eval()(IMAGES).logits.shape)
    return [shape, *(len(loading[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))]


def processed():
    processor = AutoImageProcessor.from_pretrained(REPO)
    return list(processor(PICTURE, return_tensors="pt")["pixel_values"].shape)


def piped():
    found = torch.tensor(pipeline("image-feature-extraction", model=REPO)(PICTURE))
    return [list(found.shape), bool(found.isfinite().all())]


def offline():
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-I", __file__, "offline"], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(Path("offline.json").read_text())


def reported(function):
    try:
        return {"gave": function()}
    except Exception as error:  # noqa: BLE001 - the report has whatever it is
        return {"raised": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}


if OFFLINE:
    Path("offline.json").write_text(json.dumps([features(), processed()]))
else:
    calls = {
        "AutoModel": features,
        "AutoModel revision": lambda: features(revision="v2"),
        "AutoModel number": lambda: features(revision="2"),
        "AutoModel latest": lambda: features(revision="latest"),
        "AutoModel commit": lambda: features(revision=COMMITS[1]),
        "AutoImageProcessor": processed,
        "ViTMAEForPreTraining": logits,
        "pipeline": piped,
        "offline": offline,
        "missing repository": lambda: AutoModel.from_pretrained("rcmae/none"),
        "missing revision": lambda: AutoModel.from_pretrained(REPO, revision="v99"),
        "bad token": lambda: AutoModel.from_pretrained(REPO, token="hf_wrong", cache_dir="empty"),
    }
    report = {"version": transformers.__version__} | {name: reported(function) for name, function in calls.items()}
    Path("report.json").write_text(json.dumps(report))
