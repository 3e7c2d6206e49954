"""Other people's tools in environments of their own, made once and kept: what reads a backbone has nothing of ours.

An environment is a folder named by its pins below ``RCMAE_TEST_ENVIRONMENTS``, or else below the user's cache. torch is
the same in all and large: it has an environment of its own, which the others look into and which holds little else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file

PLACE_VARIABLE: Final = "RCMAE_TEST_ENVIRONMENTS"
TORCH: Final = ("torch==2.13.0", "numpy==2.4.6", "safetensors==0.8.0")
READERS: Final[dict[str, tuple[str, ...]]] = {
    "hub-0.19": ("huggingface_hub==0.19.4",),
    "transformers-4.40": ("transformers==4.40.2", "huggingface_hub==0.23.5", "pillow==13.0.0"),
    "transformers-4.46": ("transformers==4.46.3", "huggingface_hub==0.26.5", "pillow==13.0.0"),
    "transformers-5.24": ("transformers==5.24.0", "huggingface_hub==2.4.0", "pillow==13.0.0"),
    "transformers-5": ("transformers==5.18.0", "huggingface_hub==2.4.0", "pillow==13.0.0"),
    "transformers-4": ("transformers==4.57.6", "huggingface_hub==0.36.2", "pillow==13.0.0"),
    "timm": ("timm==1.0.31", "torchvision==0.28.0", "huggingface_hub==2.4.0", "pyyaml==6.0.3", "pillow==13.0.0"),
    "mlflow": ("mlflow-skinny==3.17.2", "transformers==5.18.0", "huggingface_hub==2.4.0", "pillow==13.0.0"),
}
WITHOUT_WHAT_THEY_NEED: Final = ("timm", "torchvision")
"""torchvision's own needs would bring another torch."""
WITHOUT_TORCH: Final = "hub-"
"""How the names of environments begin in which nothing computes."""
INSTALL_SECONDS: Final = 900
RUN_SECONDS: Final = 300

STUB: Final = """
import torch

# Importing torchvision asks for operators of its compiled half, which does not load beside torch for the CPU alone.
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""A module, imported before timm."""
KEEP: Final = """
from safetensors.torch import save_file as save_kept

save_kept({name: value.contiguous() for name, value in kept.items()}, "kept")
"""
NOT_INHERITED: Final = frozenset({
    "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RCMAE_URL", "RCMAE_TOKEN", "MLFLOW_TRACKING_URI", "HF_ENDPOINT",
    "HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
})  # fmt: skip
SET: Final = {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
"""A proxy from the environment cannot reach this machine's loopback addresses."""


def environment(name: str) -> Path:
    """The Python of a reader's environment, which is made where it is not there yet."""
    torch = None if name.startswith(WITHOUT_TORCH) else _made("torch", TORCH)
    python = _made(name, READERS[name], torch)
    if name == "timm":
        (_site_packages(python) / "rcmae_torchvision_stub.py").write_text(STUB)
    return python


PICTURES: Final = """
from pathlib import Path
import numpy
from PIL import Image

random = numpy.random.default_rng(0)
Image.fromarray(random.integers(0, 256, (40, 62, 3), dtype=numpy.uint8)).save("photo.jpg")
numpy.save("image.npy", random.integers(0, 256, (5, 40, 62)))
for label, brightness in {"dark": 40, "bright": 160}.items():
    for folder in ("photos", "images"):
        Path(folder, label).mkdir(parents=True)
    for number in range(6):
        pixels = random.integers(brightness, brightness + 60, (36, 50, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(f"photos/{label}/{number}.png")
        numpy.save(f"images/{label}/{number}.npy", pixels[:, :, [0, 1, 2, 0, 1]].transpose(2, 0, 1))
"""
"""Makes the files that a model card's code opens, in the working directory."""


def run(name: str, code: str, folder: Path, **variables: str) -> dict[str, Any]:
    """Run Python in a reader's environment, in a new folder; gives the tensors that ``kept`` holds at its end.

    The code sees nothing of ours: no package, no variable, no cache of models from before.
    """
    before = "import rcmae_torchvision_stub\n" if name == "timm" else ""
    _run(name, before + code + KEEP, folder, variables)
    return dict(load_file(folder / "kept"))


def report(name: str, script: Path, folder: Path, arguments: dict[str, Any], **variables: str) -> dict[str, Any]:
    """Run a script in a reader's environment, in a new folder, with ``arguments`` as the file `arguments.json`; gives
    what it has written into `report.json`. It sees as little of ours as what `run` runs.
    """
    folder.mkdir(parents=True)
    (folder / "arguments.json").write_text(json.dumps(arguments))
    _run(name, script.read_text(), folder, variables)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def _run(name: str, code: str, folder: Path, variables: dict[str, str]) -> None:
    python = environment(name)
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [python, "-I", script.name],
        cwd=folder,
        env=_plain_environment() | SET | {"HF_HOME": str(folder / "hf-home")} | variables,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{script.read_text()}\n{done.stdout}\n{done.stderr}"
    (folder / "stderr").write_text(done.stderr)


def _made(name: str, packages: tuple[str, ...], torch: Path | None = None) -> Path:
    """The Python of an environment with these packages; made whole or not at all, by one process at a time."""
    pins = hashlib.sha256("\n".join([sys.version, *TORCH, *packages]).encode()).hexdigest()[:12]
    folder = _place() / f"{name}-{pins}"
    python, finished = folder / "bin/python", folder / "finished"
    with _locked(folder.with_suffix(".lock")):
        if finished.is_file():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
        if torch:
            (_site_packages(python) / "torch.pth").write_text(f"{_site_packages(torch)}\n")
        alone = [package for package in packages if package.startswith(WITHOUT_WHAT_THEY_NEED)]
        for chosen, options in (([p for p in packages if p not in alone], []), (alone, ["--no-deps"])):
            if chosen:
                command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, *chosen]
                subprocess.run(command, check=True, timeout=INSTALL_SECONDS, env=_plain_environment())
        finished.touch()
    return python


def _plain_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}


def _place() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    place = Path(os.environ.get(PLACE_VARIABLE, cache / "rcmae-tests" / "environments"))
    place.mkdir(parents=True, exist_ok=True)
    return place


def _site_packages(python: Path) -> Path:
    return python.parents[1] / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
