"""One preprocessing everywhere: twenty pictures through every format, each with the tool that its users have.

Pixels and features must be those of the trainer itself, whatever a picture's shape and mode.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from backbones import shaken, spec_of, statistics
from pictures import SIDE, write_pictures
from PIL import Image, ImageOps
from readers import run

from trainer.export import verify
from trainer.export.graph import export_onnx, export_program
from trainer.export.huggingface import export_vit
from trainer.export.own_features import load_trained
from trainer.export.timm import export_timm
from trainer.models.rc_mae import make_teacher
from trainer.training.optim import make_optimizer
from trainer.training.snapshot import write
from trainer.training.state import RunConstants, TrainState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first to ask for an environment makes it

NETWORKS = {
    "colour": {"img_size": SIDE, "patch_size": 16},
    "wide": {"img_size": [48, SIDE], "patch_size": 16},
    "grey": {"img_size": SIDE, "patch_size": 16, "in_chans": 1},
}
MODES = {"colour": "RGB", "wide": "RGB", "grey": "L"}
DOORS = ["transformers-5", "transformers-4", "timm", "onnx", "torch_export"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> SimpleNamespace:
    """The pictures; and for each network a checkpoint, every format, and the trainer's own pixels and features."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "pictures").mkdir()
    names = write_pictures(root / "pictures")
    files = [root / "pictures" / name for name in names]
    ours = {name: _exported(root / name, sizes, files) for name, sizes in NETWORKS.items()}
    return SimpleNamespace(root=root, names=names, files=files, ours=ours)


def _exported(folder: Path, sizes: dict, files: list[Path]) -> SimpleNamespace:
    spec = spec_of(**sizes)
    student = shaken(spec)
    teacher, pixels = make_teacher(shaken(spec, 1)), statistics(spec.model.in_chans)
    constants = RunConstants(spec, dataset_fingerprint="", mean=pixels[0], std=pixels[1], workers=1, micro_batch_size=1)
    (folder / "checkpoint").mkdir(parents=True)
    state = TrainState(student, teacher, make_optimizer(student, spec.optimization), step=1)
    write(folder / "checkpoint", state.snapshot(constants, into={}), attempt=1)
    for form, export in (
        ("hf", export_vit),
        ("timm", export_timm),
        ("onnx", export_onnx),
        ("torch_export", export_program),
    ):
        export(teacher.state_dict(), spec.model, *pixels, folder / form)
    trained = load_trained(folder / "checkpoint")
    with torch.no_grad():
        tokens = trained.network.encode(trained.pixels(files))
    return SimpleNamespace(pixels=trained.pixels(files), tokens=tokens, features=trained.features(files))


BEGIN = """
import numpy
import torch
from PIL import Image, ImageOps

images = [ImageOps.exif_transpose(Image.open(file)) for file in FILES]
kept = {}
"""

TRANSFORMERS_READS = """
from transformers import AutoImageProcessor, AutoModel

for network, mode in MODES.items():
    processor = AutoImageProcessor.from_pretrained(f"{ROOT}/{network}/hf")
    model = AutoModel.from_pretrained(f"{ROOT}/{network}/hf", add_pooling_layer=False).eval()
    if mode == "L":
        grey = [numpy.asarray(image.convert("L"))[:, :, None] for image in images]
        pixels = processor(grey, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    else:
        pixels = processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = model(pixels).last_hidden_state
    kept |= {f"{network}.pixels": pixels, f"{network}.tokens": tokens, f"{network}.pooled": tokens[:, 1:].mean(dim=1)}
"""

TIMM_READS = """
import timm

for network, mode in MODES.items():
    model = timm.create_model(f"local-dir:{ROOT}/{network}/timm", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    pixels = torch.stack([transform(image.convert(mode)) for image in images])
    with torch.no_grad():
        tokens, pooled = model.forward_features(pixels), model(pixels)
    kept |= {f"{network}.pixels": pixels, f"{network}.tokens": tokens, f"{network}.pooled": pooled}
    if network != "wide":
        transform.transforms[1] = central
        kept[f"{network}.central"] = torch.stack([transform(image.convert(mode)) for image in images])
"""
DOCUMENTED = Path(__file__).parents[2] / "service/backbones.md"


def documented(begin: str) -> str:
    """The block of Python in the documentation that begins so."""
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENTED.read_text(), flags=re.MULTILINE | re.DOTALL)
    (block,) = (each for each in blocks if each.startswith(begin))
    return block


@pytest.fixture(scope="module")
def answers(prepared, tmp_path_factory) -> Callable[[str], dict[str, torch.Tensor]]:
    """The pixels, tokens and pooled features that a door gives for every network, by `<network>.<what>`."""

    @functools.cache
    def ask(door: str) -> dict[str, torch.Tensor]:
        if door in {"onnx", "torch_export"}:
            return _graphs(prepared, door)
        files = [str(file) for file in prepared.files]
        places = f"ROOT, FILES, MODES = {str(prepared.root)!r}, {files!r}, {MODES!r}\n"
        central = documented("def central").replace("224", str(SIDE)).partition("\ntransform")[0]
        reads = central + TIMM_READS if door == "timm" else TRANSFORMERS_READS
        return run(door, places + BEGIN + reads, tmp_path_factory.mktemp("answers") / door)

    return ask


def _graphs(prepared: SimpleNamespace, form: str) -> dict[str, torch.Tensor]:
    kept = {}
    for network, mode in MODES.items():
        folder = prepared.root / network / form
        settings = json.loads((folder / "signature.json").read_text())["preprocessing"]
        images = [ImageOps.exif_transpose(Image.open(file)).convert(mode) for file in prepared.files]
        pixels = np.stack([_recipe(settings, image) for image in images])
        if form == "onnx":
            session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
            tokens = torch.from_numpy(session.run(None, {"pixel_values": pixels})[0])
        else:
            tokens = torch.export.load(folder / "model.pt2").module()(torch.from_numpy(pixels))
        kept[f"{network}.pixels"], kept[f"{network}.tokens"] = torch.from_numpy(pixels), tokens
        kept[f"{network}.pooled"] = tokens[:, 1:].mean(dim=1)
    return kept


def _recipe(settings: dict, image: Image.Image) -> np.ndarray:
    """What the documentation says of `signature.json`, in Pillow and numpy."""
    size, crop = settings["size"], settings["crop_size"]
    if "shortest_edge" in size:
        wide, tall = (size["shortest_edge"] * edge // min(image.size) for edge in image.size)
    else:
        wide, tall = size["width"], size["height"]
    image = image.resize((wide, tall), settings["resample"])
    left, top = (wide - crop["width"]) // 2, (tall - crop["height"]) // 2
    values = np.asarray(image).reshape(tall, wide, -1)[top : top + crop["height"], left : left + crop["width"]]
    mean, std = np.array(settings["image_mean"]), np.array(settings["image_std"])
    return ((values * settings["rescale_factor"] - mean) / std).transpose(2, 0, 1).astype(np.float32)


def one_later(prepared, network: str) -> list[int]:
    """Pictures whose crop timm begins one pixel later: torchvision rounds 1.5 to 2, where all others round down."""
    if network == "wide":
        return []
    found = []
    for number, file in enumerate(prepared.files):
        size = ImageOps.exif_transpose(Image.open(file)).size
        found += [number] if (SIDE * max(size) // min(size) - SIDE) % 4 == 3 else []
    return found


def rows(prepared, network: str, door: str) -> list[int]:
    left_out = one_later(prepared, network) if door == "timm" else []
    return [number for number in range(len(prepared.files)) if number not in left_out]


def by_picture(prepared, chosen: list[int], ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """The largest difference of each picture that is not as near as it must be."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    differences = (ours - theirs).abs().flatten(1).amax(dim=1).tolist()
    return {prepared.names[number]: differences[number] for number in chosen if not differences[number] < 1e-5}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_format_sees_the_pixels_of_the_trainer_s_evaluations(prepared, answers, network, door):
    kept, ours = answers(door), prepared.ours[network]
    assert not by_picture(prepared, rows(prepared, network, door), ours.pixels, kept[f"{network}.pixels"])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_format_gives_the_features_of_the_trainer_s_evaluations(prepared, answers, network, door):
    """Tokens, and the mean patch token, which is what timm's model returns."""
    kept, ours, chosen = answers(door), prepared.ours[network], rows(prepared, network, door)
    assert not by_picture(prepared, chosen, ours.tokens, kept[f"{network}.tokens"])
    assert not by_picture(prepared, chosen, torch.from_numpy(ours.features), kept[f"{network}.pooled"])


def test_timm_s_crop_of_a_quarter_of_the_pictures_begins_one_pixel_later(prepared, answers):
    """If a release of theirs rounds as transformers does, `rows` can take all pictures."""
    shifted = one_later(prepared, "colour")
    assert {prepared.names[number] for number in shifted} >= {"margin-3.png"}
    for number in shifted:
        image = ImageOps.exif_transpose(Image.open(prepared.files[number])).convert("RGB")
        wide, tall = (SIDE * edge // min(image.size) for edge in image.size)
        left, top = (wide - SIDE + 1) // 2, (tall - SIDE + 1) // 2
        cropped = image.resize((wide, tall), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
        mean, std = (np.array(values) for values in statistics(3))
        expected = ((np.asarray(cropped) / 255 - mean) / std).transpose(2, 0, 1)
        assert np.abs(answers("timm")["colour.pixels"][number].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("network", ["colour", "grey"])
def test_timm_with_the_documented_crop_sees_the_same_pixels_of_every_picture(prepared, answers, network):
    every = list(range(len(prepared.files)))
    assert not by_picture(prepared, every, prepared.ours[network].pixels, answers("timm")[f"{network}.central"])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("form", ["hf", "onnx", "torch_export"])
def test_the_comparing_tool_compares_pixels_of_pictures(prepared, network, form):
    told = verify.compare(
        prepared.root / network / "checkpoint", prepared.root / network / form, pictures=prepared.files
    )
    assert told["pixels_max_abs_difference"] < 1e-5
    assert told["max_abs_difference"] < 1e-5
