"""Backbones in other people's tools: both generations of transformers and of the Hub's client, real timm, MLflow.

Each tool has an environment of its own. What it reads is what the trainer exports, and what a live stack gives out.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from backbones import model_of, shaken, statistics
from live import checkpoint_of, make_spec, wait_state
from readers import PICTURES, run
from safetensors.torch import load_file, save_file

from service.jobs.state import State
from trainer.export import verify
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.timm import export_timm
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.job import parse_pretrain
from trainer.spec.pretrain import MethodSpec, ModelSpec
from trainer.training.state import TEACHER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first to ask for an environment makes it

README = Path(__file__).parents[2] / "README.md"
TOOLS = {"timm": "import timm", "transformers": "import torch\nfrom transformers", "mlflow": "import mlflow"}
"""How the README's snippet for each begins."""
TRANSFORMERS = ["transformers-5", "transformers-4"]
SHAPES = {
    "square": {},
    "grey": {"in_chans": 1},
    "five": {"in_chans": 5},
    "wide": {"img_size": [16, 48]},
    "wide-grey": {"img_size": [48, 16], "in_chans": 1},
}
SQUARE = ["square", "grey", "five"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network of each shape in timm's and transformers' folders, with images and the trainer's own answers."""
    root, found = tmp_path_factory.mktemp("exported"), {}
    for name, shape in SHAPES.items():
        model, folder = model_of(preset="vit_small_patch16_224", **shape), root / name
        found[name] = _export(model, folder)
    return found


def _export(model: ModelSpec, folder: Path) -> SimpleNamespace:
    network, pixels = shaken(model), statistics(model.in_chans)
    weights, visible = network.state_dict(), model.patches // 4
    export_timm(weights, model, *pixels, folder / "timm", license_id="mit", provenance={"job_id": "job-a"})
    export_vit(weights, model, *pixels, folder / "hf")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, model.in_chans, model.height, model.width, generator=generator)
    noise = torch.rand(3, model.patches, generator=generator)
    order = noise.argsort(dim=1)
    with torch.no_grad():
        told = {"images": images, "noise": noise, "order": order, "tokens": network.encode(images)}
        if model.height == model.width:
            export_vit_mae(weights, model, MethodSpec(), *pixels, folder / "hf-mae")
            patches = _patches(images, model.patch_size)
            seen = patches.gather(1, order[:, :visible, None].expand(-1, -1, patches.shape[2]))
            told["predicted"] = network(seen, order)
    save_file(told, folder / "given")
    return SimpleNamespace(folder=folder, model=model, visible=visible, **told)


def _patches(images: torch.Tensor, side: int) -> torch.Tensor:
    count, channels, height, width = images.shape
    grid = images.reshape(count, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, side * side * channels)


BEGIN = """
import json
from pathlib import Path
import numpy
import torch
from safetensors.torch import load_file
kept = {}

def keep(shape, **values):
    kept.update({f"{shape}.{name}": value for name, value in values.items()})
"""
"""Each tool reads every shape in one process: to import it takes far longer than to read."""

TRANSFORMERS_READS = """
from transformers import AutoImageProcessor, AutoModel, ViTMAEConfig, ViTMAEForPreTraining

def amiss(loading):
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return torch.tensor(list(json.dumps({kind: sorted(map(str, loading[kind])) for kind in kinds}).encode()))

def read(shape, folder):
    given = load_file(folder / "given")
    images = given["images"]
    model, loading = AutoModel.from_pretrained(str(folder / "hf"), add_pooling_layer=False, output_loading_info=True)
    keep(shape, amiss=amiss(loading), tokens=model.eval()(images).last_hidden_state)
    if images.shape[2] != images.shape[3]:
        return
    # Of square images alone it resizes position embeddings.
    large = torch.nn.functional.interpolate(images, scale_factor=2)
    keep(shape, same=model(images, interpolate_pos_encoding=True).last_hidden_state)
    keep(shape, large=model(large, interpolate_pos_encoding=True).last_hidden_state)
    model, loading = ViTMAEForPreTraining.from_pretrained(str(folder / "hf-mae"), output_loading_info=True)
    keep(shape, mae_amiss=amiss(loading), logits=model.eval()(images, noise=given["noise"]).logits)

with torch.no_grad():
    for shape in SHAPES:
        read(shape, ROOT / shape)

processor = AutoImageProcessor.from_pretrained(str(ROOT / "square/hf"))
image = numpy.arange(32 * 32 * 3, dtype=numpy.int64).reshape(32, 32, 3) % 256
pixels = processor(image.astype(numpy.uint8), return_tensors="pt")["pixel_values"]
keep("processor", pixels=torch.as_tensor(pixels), image=torch.from_numpy(image))

refused = 0
try:
    model = ViTMAEForPreTraining(ViTMAEConfig(
        image_size=[16, 48], patch_size=8, hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    ))
    model(load_file(ROOT / "wide/given")["images"])
except (RuntimeError, ValueError):
    refused = 1
keep("wide", refused=torch.tensor(refused))
"""

TIMM_READS = """
import timm

def read(shape, folder):
    images = load_file(folder / "given")["images"]
    large = torch.nn.functional.interpolate(images, scale_factor=2)

    def made(**options):
        return timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True, **options).eval()

    model, stored = made(), load_file(folder / "timm/model.safetensors")
    keep(shape, **{f"read.{name}": value for name, value in model.state_dict().items()})
    keep(shape, **{f"stored.{name}": value for name, value in stored.items()})
    last, maps = model.forward_intermediates(images, norm=True)
    keep(shape, tokens=model.forward_features(images), pooled=model(images), last=last, map=maps[-1])
    keep(shape, features=made(features_only=True, out_indices=(1,))(images)[0])
    dynamic = made(dynamic_img_size=True)
    keep(shape, dynamic=dynamic.forward_features(images), large=dynamic.forward_features(large))
    keep(shape, fixed=made(img_size=tuple(large.shape[2:])).forward_features(large))
    classifier = made(num_classes=10)
    head = {f"head.{name}": value for name, value in classifier.head.state_dict().items()}
    keep(shape, classes=classifier(images), **head, token=made(global_pool="token")(images))
    keep(shape, whole=made(global_pool="")(images))
    if images.shape[1] == 3:
        keep(shape, grey=made(in_chans=1).forward_features(images[:, :1]))
    data = timm.data.resolve_model_data_config(model)
    keep(shape, **{name: torch.tensor(data[name]) for name in ("mean", "std", "input_size")})

with torch.no_grad():
    for shape in SHAPES:
        read(shape, ROOT / shape)
"""

Answers = Callable[[str], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def answers(exported, tmp_path_factory) -> Answers:
    """What a reader makes of every shape, by `<shape>.<what>`."""

    @functools.cache
    def ask(reader: str) -> dict[str, torch.Tensor]:
        places = f"SHAPES, ROOT = {list(SHAPES)!r}, Path({str(exported['square'].folder.parent)!r})\n"
        reads = TIMM_READS if reader == "timm" else TRANSFORMERS_READS
        return run(reader, BEGIN + places + reads, tmp_path_factory.mktemp("answers") / reader)

    return ask


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def none_amiss(told: torch.Tensor) -> bool:
    return json.loads(bytes(told.tolist())) == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", TRANSFORMERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_reads_the_encoder(exported, answers, reader, shape):
    case, kept = exported[shape], answers(reader)
    assert none_amiss(kept[f"{shape}.amiss"]), bytes(kept[f"{shape}.amiss"].tolist())
    assert difference(case.tokens, kept[f"{shape}.tokens"]) < 1e-5


@pytest.mark.parametrize("reader", TRANSFORMERS)
@pytest.mark.parametrize("shape", SQUARE)
def test_transformers_reads_images_of_another_size(exported, answers, reader, shape):
    case, kept = exported[shape], answers(reader)
    assert difference(case.tokens, kept[f"{shape}.same"]) < 1e-5
    assert kept[f"{shape}.large"].shape == (3, 1 + 4 * case.model.patches, 24)
    assert kept[f"{shape}.large"].isfinite().all()


@pytest.mark.parametrize("reader", TRANSFORMERS)
@pytest.mark.parametrize("shape", SQUARE)
def test_transformers_reads_the_whole_auto_encoder(exported, answers, reader, shape):
    case, kept = exported[shape], answers(reader)
    assert none_amiss(kept[f"{shape}.mae_amiss"]), bytes(kept[f"{shape}.mae_amiss"].tolist())
    logits = kept[f"{shape}.logits"]
    hidden = case.order[:, case.visible :, None].expand(-1, -1, logits.shape[2])
    assert difference(case.predicted, logits.gather(1, hidden)) < 1e-5


@pytest.mark.parametrize("reader", TRANSFORMERS)
def test_transformers_refuses_an_auto_encoder_of_images_that_are_not_square(answers, reader):
    """Which is why a spec that wants one is refused: should a release of theirs take it, so can we."""
    assert answers(reader)["wide.refused"].item() == 1


@pytest.mark.parametrize("reader", TRANSFORMERS)
def test_transformers_prepares_images_as_training_did(answers, reader):
    kept = answers(reader)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics(3))
    expected = (kept["processor.image"].permute(2, 0, 1) / 255 - mean) / std
    assert difference(expected, kept["processor.pixels"][0]) < 1e-5


# --- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_timm_reads_it(exported, answers, shape):
    case = exported[shape]
    kept = {name.removeprefix(f"{shape}."): value for name, value in answers("timm").items()}
    read, stored = (
        {name.removeprefix(begin): value for name, value in kept.items() if name.startswith(begin)}
        for begin in ("read.", "stored.")
    )
    assert set(read) == set(stored)
    assert all(torch.equal(value, stored[name]) for name, value in read.items())
    for name in ("tokens", "dynamic", "whole", "last"):
        assert difference(case.tokens, kept[name]) < 1e-5, name
    pooled = case.tokens[:, 1:].mean(dim=1)  # as the probes whose figures stand in the card
    assert difference(pooled, kept["pooled"]) < 1e-5
    assert difference(pooled @ kept["head.weight"].T + kept["head.bias"], kept["classes"]) < 1e-5
    assert difference(case.tokens[:, 0], kept["token"]) < 1e-5
    model = case.model
    for name in ("large", "fixed"):
        assert kept[name].shape == (3, 1 + 4 * model.patches, 24)
        assert kept[name].isfinite().all()
    assert kept["classes"].shape == (3, 10)
    for name in ("map", "features"):
        assert kept[name].shape == (3, 24, *model.grid), name
    mean, std = statistics(model.in_chans)
    assert kept["mean"].tolist() == pytest.approx(mean)
    assert kept["std"].tolist() == pytest.approx(std)
    assert kept["input_size"].tolist() == [model.in_chans, model.height, model.width]


def test_timm_sums_the_channels_of_a_colour_backbone_for_grey_images(exported, answers):
    case = exported["square"]
    network = shaken(case.model)
    with torch.no_grad():
        expected = network.encode(case.images[:, :1].expand(-1, 3, -1, -1))
    assert difference(expected, answers("timm")["square.grey"]) < 1e-5


# --- what a live stack gives out -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(stack, tmp_path_factory):
    """A backbone that a job has registered, pulled with its card, and the network it is."""
    formats = ["timm", "hf", "hf-mae", "onnx", "torch_export"]
    spec = make_spec(
        register_as="read", export={"formats": formats, "license": "mit"}, optimization={"epochs": 2},
        evaluation={"every_epochs": 1},
    )  # fmt: skip
    job = wait_state(stack, stack.client.submit(spec).id, State.SUCCEEDED, timeout_s=300)
    folder = tmp_path_factory.mktemp("pulled") / "read"
    found = stack.client.pull("read", folder, form="all")
    checkpoint = checkpoint_of(stack, job)
    network = MaskedAutoencoder(parse_pretrain(job.spec).model).eval()
    network.load_state_dict(load_file(checkpoint / TEACHER))
    return SimpleNamespace(network=network, folder=folder, version=found.version, job=job, checkpoint=checkpoint)


def snippet(registered, title: str) -> str:
    """The card's code under a heading, as it stands there."""
    card = (registered.folder / "README.md").read_text()
    found = re.findall(r"^### ([^\n]+)\n\n[^\n]*\n\n```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
    return dict(found)[title]


def as_trained(registered, kept: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        expected = registered.network.encode(kept["pixels"])
    assert kept["features"].shape == expected.shape
    return float((kept["features"] - expected).abs().max())


KEPT = '\nkept = {"pixels": torch.as_tensor(pixels), "features": torch.as_tensor(features)}\n'


@pytest.mark.parametrize(
    ("reader", "title"), [*((reader, "transformers") for reader in TRANSFORMERS), ("timm", "timm")]
)
def test_the_card_s_snippet_loads_it_from_the_service(stack, registered, tmp_path, reader, title):
    """As it is written: the environment alone says where the Hub is."""
    code = PICTURES + snippet(registered, title) + KEPT
    kept = run(reader, code, tmp_path / "run", HF_ENDPOINT=f"{stack.url}/hf", HF_TOKEN=stack.token)
    assert as_trained(registered, kept) < 1e-5
    assert "newly initialized" not in (tmp_path / "run/stderr").read_text()


@pytest.mark.parametrize("reader", TRANSFORMERS)
def test_the_card_s_snippet_loads_the_decoder_from_the_service(stack, registered, tmp_path, reader):
    code = PICTURES + snippet(registered, "Reconstructions and further pretraining")
    code += '\nkept = {"predicted": predicted}\n'
    kept = run(reader, code, tmp_path / "run", HF_ENDPOINT=f"{stack.url}/hf", HF_TOKEN=stack.token)
    model = parse_pretrain(registered.job.spec).model
    assert kept["predicted"].shape == (1, model.patches, model.patch_values)


@pytest.mark.parametrize("reader", TRANSFORMERS)
def test_a_snapshot_from_the_service_is_the_folder(stack, registered, tmp_path, reader):
    """With the client of either generation of the Hub, told where it is by arguments."""
    code = f"""
import hashlib
from pathlib import Path
import torch
from huggingface_hub import snapshot_download
folder = Path(snapshot_download(
    "rcmae/read", revision="v{registered.version}", endpoint="{stack.url}/hf", token={stack.token!r}
))
kept = {{
    file.name: torch.frombuffer(bytearray(hashlib.sha256(file.read_bytes()).digest()), dtype=torch.uint8)
    for file in folder.iterdir() if file.is_file()
}}
"""
    kept = run(reader, code, tmp_path / "run")
    expected = {file.name: file for file in (registered.folder / "hf").iterdir()}
    assert set(expected) <= set(kept)
    for name, file in expected.items():
        assert bytes(kept[name].tolist()) == hashlib.sha256(file.read_bytes()).digest(), name


def test_the_card_s_snippet_loads_it_from_mlflow(stack, registered, tmp_path):
    address = stack.mlflow_url
    code = PICTURES + snippet(registered, "MLflow") + KEPT
    kept = run("mlflow", code, tmp_path / "run", MLFLOW_TRACKING_URI=address)
    assert as_trained(registered, kept) < 1e-5


@pytest.mark.parametrize(
    ("title", "form"), [("torch", "timm"), ("torch.export", "torch_export"), ("transformers", "hf"), ("timm", "timm")]
)
def test_the_card_s_snippet_loads_a_pulled_folder(registered, tmp_path, title, form):
    folder = str(registered.folder / form)
    places = {
        "torch": ("read-timm", folder),
        "torch.export": ('snapshot_download("rcmae/read-torch_export")', repr(folder)),
        "transformers": ("rcmae/read", folder),
        "timm": ("hf-hub:rcmae/read-timm", f"local-dir:{folder}"),
    }
    code = snippet(registered, title).replace(*places[title])
    kept = run("timm" if title == "timm" else "transformers-4", PICTURES + code + KEPT, tmp_path / "run")
    assert as_trained(registered, kept) < 1e-5


def test_the_card_s_snippet_of_onnx_runtime_loads_a_pulled_folder(registered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = repr(str(registered.folder / "onnx"))
    code = snippet(registered, "ONNX Runtime").replace('snapshot_download("rcmae/read-onnx")', place)
    space: dict = {}
    exec(compile(PICTURES + code, "card", "exec"), space)
    kept = {name: torch.as_tensor(space[name]) for name in ("pixels", "features")}
    assert as_trained(registered, kept) < 1e-5


@pytest.mark.parametrize(
    ("reader", "title"),
    [
        ("timm", "Fine-tuning with timm"),
        *((reader, "Fine-tuning with transformers") for reader in TRANSFORMERS),
    ],
)
def test_the_card_s_code_fine_tunes_it_from_the_service(stack, registered, tmp_path, reader, title):
    code = PICTURES + snippet(registered, title) + '\nkept = {"losses": torch.tensor(losses)}\n'
    losses = run(reader, code, tmp_path / "run", HF_ENDPOINT=f"{stack.url}/hf", HF_TOKEN=stack.token)["losses"]
    assert len(losses) == 10
    assert losses[-3:].mean() < losses[:3].mean()


@pytest.mark.parametrize("reader", ["timm", "transformers-5", "transformers-4", "mlflow"])
def test_the_readme_s_snippet_loads_it(stack, registered, tmp_path, reader):
    """As it is written, but for the name."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    tool = reader.partition("-")[0]
    (block,) = (each for each in blocks if each.startswith(TOOLS[tool]))
    code = block.replace("digits-demo", "read") + '\nkept = {"features": features.detach()}\n'
    places = {"HF_ENDPOINT": f"{stack.url}/hf", "HF_TOKEN": stack.token}
    places |= {"MLFLOW_TRACKING_URI": stack.mlflow_url}
    model = parse_pretrain(registered.job.spec).model
    features = run(reader, code, tmp_path / "run", **places)["features"]
    assert features.shape == (1, 1 + model.patches, model.embed_dim)


@pytest.mark.parametrize("form", ["hf", "hf-mae", "onnx", "torch_export"])
def test_every_pulled_format_gives_the_checkpoint_s_features(registered, form):
    result = verify.compare(registered.checkpoint, registered.folder / form)
    assert result.pop("max_abs_difference") < 1e-5
    assert not any(result.values())
