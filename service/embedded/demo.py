"""`rcmae demo`: one real job, from a spec over REST to a pulled backbone that gives the trainer's own features."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Group, RenderableType

from service.adapters.storage import Artifacts
from service.client import tables
from service.client.console import Console, Text
from service.client.errors import ClientError
from service.client.progress import follow
from service.client.sdk import Client
from service.embedded import stack
from service.embedded.folder import Folder
from service.embedded.parts import S3_PROFILE_VARIABLE
from service.jobs.output_schemas import MetricsView
from service.jobs.schemas import JobView
from service.jobs.state import State
from trainer.protocol import names
from trainer.spec import metric_keys

RATIO_LIMIT: Final = 0.75
"""Largest reconstruction ratio at the end that counts as having learnt."""
DIFFERENCE_LIMIT: Final = 1e-5
"""Largest difference between features of the pulled backbone and the trainer's."""

SPEC: Final[dict[str, Any]] = {
    "kind": "pretrain",
    "name": "digits-demo",
    "dataset": {"uri": "builtin://digits"},
    "model": {
        "preset": "vit_tiny_patch16_224",
        "img_size": 32,
        "patch_size": 4,
        "in_chans": 1,
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 4,
        "decoder_embed_dim": 32,
        "decoder_depth": 1,
        "decoder_num_heads": 4,
    },
    "method": {"name": "rc_mae", "mask_ratio": 0.75, "teacher": {"momentum": 0.99}},
    "optimization": {"epochs": 24, "global_batch_size": 64, "base_lr": 6e-3},
    "augmentation": {"crop_scale": [0.6, 1.0], "hflip": False},
    "resources": {"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0},
    "checkpoint": {"every_epochs": 8},
    "evaluation": {"every_epochs": 8},
    "register_as": "digits-demo",
}


class Result(BaseModel):
    """What the demo measured."""

    job: JobView
    reconstruction_ratio_before: float
    reconstruction_ratio_after: float
    linear_top1: float
    linear_top1_random_init: float
    images_per_s: float
    """Median over the run."""
    start_s: float
    """Until the stack worked; 0 where it was up."""
    job_s: float
    """From submission to the end of the job."""
    wall_s: float
    """All of it."""
    picture: Path
    """Input, masked input and reconstruction of some held-out images."""
    backbone: Path
    """Folder for `transformers.ViTModel.from_pretrained`."""
    max_abs_difference: float
    """Between the features of that backbone and the trainer's own on the same images."""
    failures: list[str]
    """Results that are not as they should be."""


def run(folder: Folder, console: Console) -> Result:
    """Run the demo in the stack if it is up, else in one that is started and stopped again; raises `ClientError`."""
    begin = time.monotonic()
    with _stack(folder, console) as url:
        start_s = time.monotonic() - begin
        with Client(url, folder.token.read_text().strip()) as client:
            submitted = time.monotonic()
            job = client.submit(SPEC)
            console.print(f"job [bold]{job.id}[/]: RC-MAE on {SPEC['dataset']['uri']}, two workers", highlight=False)
            job = follow(client, job.id, console)
            job_s = time.monotonic() - submitted
            if job.state is not State.SUCCEEDED or job.result is None or job.result.backbone is None:
                raise ClientError(f"the job is {job.state.value}: {job.message}; see `rcmae jobs logs {job.id}`")
            metrics = client.metrics(job.id)
            output = folder.path / "demo" / job.id
            picture = _picture(client, job, output)
            version = client.pull(job.result.backbone.name, output / "hf", version=job.result.backbone.version)
            console.print(f"pulled {version.name}:{version.version}; comparing it with the trainer's own features")
            checkpoint = _checkpoint(client, folder, job)
        verified = _verify(checkpoint, output / "hf")
        folder.close_to_others()  # a pulled backbone is readable by everybody, which is right elsewhere
    ratio = _series(metrics, metric_keys.RECONSTRUCTION_RATIO)
    result = Result(
        job=job,
        reconstruction_ratio_before=ratio[0],
        reconstruction_ratio_after=ratio[-1],
        linear_top1=_series(metrics, metric_keys.LINEAR_TOP1)[-1],
        linear_top1_random_init=_series(metrics, metric_keys.LINEAR_TOP1_RANDOM_INIT)[-1],
        images_per_s=median(_series(metrics, metric_keys.IMAGES_PER_S)),
        start_s=start_s,
        job_s=job_s,
        wall_s=time.monotonic() - begin,
        picture=picture,
        backbone=output / "hf",
        max_abs_difference=verified["max_abs_difference"],
        failures=[],
    )
    return result.model_copy(update={"failures": list(_failures(result, verified))})


@contextmanager
def _stack(folder: Folder, console: Console) -> Iterator[str]:
    """The address of the folder's running stack; a stack that was started here is stopped at the end."""
    console.print(f"starting Ray, MLflow and the API in {folder.path}", highlight=False, soft_wrap=True)
    was_up = stack.is_supervised(folder)
    try:
        state, _ = stack.up(folder, None, lambda part: console.print(f"  {part} works", highlight=False))
        yield state.url
    finally:
        if not was_up:
            console.print("stopping the stack")
            stack.down(folder)


def _series(metrics: MetricsView, key: str) -> list[float]:
    """A metric's values by step."""
    points = metrics.series.get(key)
    if not points:
        raise ClientError(f"the job logged no {key}")
    return [point.value for point in points]


def _picture(client: Client, job: JobView, output: Path) -> Path:
    """The last reconstruction, as a file."""
    pictures = client.images(job.id)
    if not pictures:
        raise ClientError("the job made no picture of its reconstructions")
    last = max(pictures, key=lambda picture: picture.step)
    output.mkdir(parents=True, exist_ok=True)
    target = output / last.name
    target.write_bytes(client.image(job.id, last.name))
    return target


def _checkpoint(client: Client, folder: Folder, job: JobView) -> str:
    """The folder of the last attempt's final checkpoint, below the stack's artifact root."""
    name = client.attempts(job.id)[-1].checkpoint
    artifacts = Artifacts(folder.artifact_root, os.environ.get(S3_PROFILE_VARIABLE))
    for experiment in artifacts.folders(artifacts.root):
        run = f"{artifacts.root}/{experiment}/{job.run_id}/artifacts"
        if artifacts.file(run, f"{name}/{names.MANIFEST}"):
            return f"{run}/{name}"
    raise ClientError(f"the checkpoint {name} of run {job.run_id} is not in {folder.artifact_root}")


def _verify(checkpoint: str, backbone: Path) -> dict[str, Any]:
    """Compare the features of both in a process of the trainer: the service itself imports no torch."""
    arguments = ["--checkpoint", checkpoint, "--backbone", str(backbone)]
    profile = os.environ.get(S3_PROFILE_VARIABLE)
    done = subprocess.run(
        [sys.executable, "-m", "trainer.export.verify", *arguments],
        env=os.environ | ({"AWS_PROFILE": profile} if profile else {}),
        capture_output=True,
        text=True,
        check=False,  # its status is 1 when the features differ, which _failures reports
    )
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise ClientError(f"the pulled backbone could not be compared:\n{done.stderr.strip()[-1500:]}")
    comparison: dict[str, Any] = json.loads(lines[-1])
    return comparison


def _failures(result: Result, verified: dict[str, Any]) -> Iterator[str]:
    if not result.reconstruction_ratio_after <= RATIO_LIMIT:
        yield f"the reconstruction ratio is {result.reconstruction_ratio_after:.3f}, above {RATIO_LIMIT}"
    if not result.max_abs_difference <= DIFFERENCE_LIMIT:
        yield f"features of the pulled backbone differ by {result.max_abs_difference:.2g}, above {DIFFERENCE_LIMIT:g}"
    for key, weights in verified.items():
        if key.startswith("keys_") and weights:
            yield f"{key.replace('_', ' ')} in the pulled backbone: {', '.join(weights)}"


def rendered(result: Result) -> RenderableType:
    """For people."""
    rows = [
        ("reconstruction ratio", result.reconstruction_ratio_before, result.reconstruction_ratio_after),
        ("linear probe, top-1", result.linear_top1_random_init, result.linear_top1),
    ]
    return Group(
        "",
        tables.table(("", "RANDOM", "PRETRAINED"), ((name, f"{a:.3f}", f"{b:.3f}") for name, a, b in rows)),
        "",
        tables.fields(
            [
                ("images/s", f"{result.images_per_s:.0f}"),
                ("wall time", f"{result.wall_s:.0f} s (stack {result.start_s:.0f} s, job {result.job_s:.0f} s)"),
                ("pulled features", f"differ from the trainer's by at most {result.max_abs_difference:.1e}"),
                ("picture", Text(str(result.picture))),
                ("backbone", Text(str(result.backbone))),
            ]
        ),
        Text(
            f"\ntransformers.ViTModel.from_pretrained({str(result.backbone)!r}, add_pooling_layer=False)", style="dim"
        ),
    )
