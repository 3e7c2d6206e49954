"""A dataset inspected from the command line, then trained on: nothing is decoded for the index twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from live import make_spec, wait_state
from local_stack import Stack
from PIL import Image

from service.jobs.state import State
from trainer.protocol.inspection import Inspection


def test_a_dataset_is_inspected_and_then_trained_on(stack: Stack, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number in range(60):
        folder = tmp_path / "data" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "data/phone.heic").write_bytes(b"x")
    done = stack.rcmae("data", "inspect", str(tmp_path / "data"), "--json")
    assert done.returncode == 0, done.stderr
    found = Inspection.model_validate(json.loads(done.stdout))
    assert (found.images, found.decoded, found.classes) == (61, 61, {"cat": 30, "dog": 30})
    shown = stack.rcmae("data", "inspect", str(tmp_path / "data"))
    assert "2 classes from folders" in shown.stdout
    assert ".heic files cannot be read" in shown.stdout

    spec = make_spec(
        dataset=found.proposed["dataset"], optimization={"epochs": 1, "global_batch_size": 20},
        model={"in_chans": found.proposed["model"]["in_chans"]}, resources={"workers": 1},
    )  # fmt: skip
    job = wait_state(stack, stack.client.submit(spec).id, State.SUCCEEDED)
    assert job.progress.labels == "2 classes from folders, 60 of 60 images labelled"
    log = "\n".join(line.message for line in stack.client.logs(job.id, limit=1000).items)
    assert "60 images can be read, 0 cannot; decoded for it: 0" in log
    again = json.loads(stack.rcmae("data", "inspect", str(tmp_path / "data"), "--json").stdout)
    assert (again["decoded"], again["images_per_s_per_core"]) == (0, None)
    refused = stack.rcmae("data", "inspect", str(tmp_path / "nowhere"))
    assert refused.returncode == 1
    assert "no folder or file" in refused.stderr
