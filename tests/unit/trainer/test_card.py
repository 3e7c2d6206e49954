"""The model card: what it says, its metadata, and its code, which runs as it is written."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
import yaml
from backbones import TINY, model_of, shaken, statistics
from huggingface_hub import ModelCard
from PIL import Image

from trainer.export.card import Facts, write_card
from trainer.export.finetuning import finetuning
from trainer.export.inputs import Subject, by_hand
from trainer.export.snippets import snippets
from trainer.export.trained import Trained
from trainer.export.version import write_version
from trainer.spec import metric_keys
from trainer.spec.formats import BACKBONE_FORMATS, LIBRARIES
from trainer.spec.pretrain import PretrainSpec

FORMATS = ["timm", "hf", "hf-mae", "torch_export"]
LOCATION = "s3://secret-bucket/team-a/cifar10/train-*.parquet"
RESULTS = {
    metric_keys.RECONSTRUCTION_RATIO: 0.4123,
    metric_keys.LINEAR_TOP1: 0.7312,
    metric_keys.LINEAR_TOP1_RANDOM_INIT: 0.3187,
}
HEADINGS = [
    "What it was trained on", "Licence", "Intended use and limits", "How good it is", "Input and preprocessing",
    "How to load it", "Pooling", "Fine-tuning", "detectron2 and mmpretrain", "How to verify the files", "Citation",
    "Lineage",
]  # fmt: skip


def facts(channels: int = 3, sizes=None, export=None, dataset=None, method=None, evaluation=None, **changes) -> Facts:
    """What a card says of a small network; ``sizes``, ``export``, ``dataset`` and ``method`` are parts of its spec."""
    parts = {"dataset": dataset or {"uri": LOCATION}, "export": export or {}, "method": method or {}}
    spec = PretrainSpec.parse({"kind": "pretrain", "model": TINY | (sizes or {})} | parts)
    model = model_of(in_chans=channels, **(sizes or {}))  # also of five channels
    spec = spec.model_copy(update={"model": model})
    trained = Trained(
        spec=spec, job_id="job-a", registered_by="job-a", run_id="run", attempt=1,
        checkpoint="checkpoints/a1/00000001", dataset_fingerprint="f", dataset_images=None, step=1, epochs=0.2,
    )  # fmt: skip
    found = {
        "name": "plain", "model": model, "network": spec.export.network, "formats": spec.export.formats,
        "license": spec.export.license, "license_link": spec.export.license_link, "masking": spec.method,
        "value_range": (0.0, 255.0), "mean": statistics(channels)[0], "std": statistics(channels)[1],
        "registered_by": "job-a", "code_version": "0.1.0", "provenance": trained,
        "evaluation": trained.evaluation(evaluation or {}, None),
    }  # fmt: skip
    return Facts(**found | changes)


def card_of(told: Facts, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    write_card(told, folder)
    return (folder / "README.md").read_text()


def front_matter(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_stranger_s_questions_are_answered_in_their_order(tmp_path, channels):
    card = card_of(facts(channels, evaluation=RESULTS), tmp_path)
    assert re.findall(r"^## (.*)$", card, flags=re.MULTILINE) == HEADINGS
    assert "with 1 channel," in card if channels == 1 else f"with {channels} channels," in card
    assert "pretrained without labels with RC-MAE (a masked auto-encoder with a mean teacher) on cifar10." in card
    assert "| `eval/linear_top1` | 0.7312 | 0.3187 | teacher |" in card
    assert "from scratch" not in card, "nobody has measured it"
    assert "add_pooling_layer=False" in card


def test_what_was_trained_from_scratch_stands_beside_it_where_that_was_measured(tmp_path):
    card = card_of(facts(evaluation=RESULTS | {"eval/linear_top1_scratch": 0.5}), tmp_path)
    assert "| metric | value | random weights | trained from scratch |" in card
    assert "| `eval/linear_top1` | 0.7312 | 0.3187 | 0.5000 |" in card


def test_a_card_leaves_out_what_there_is_not(tmp_path):
    card = card_of(facts(evaluation={metric_keys.LINEAR_TOP1: float("nan")}), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    assert "| `eval/linear_top1` | – | teacher |" in card
    assert "model-index" not in front_matter(card)
    for absent in ("### Curves", "### Reconstructions\n\nThe student", "nan"):
        assert absent not in card
    other = card_of(facts(export={"formats": ["timm"]}, sizes={"img_size": [16, 48]}), tmp_path / "other")
    assert "It has not been evaluated." in other
    for absent in ("above is about it", "only `hf-mae` has it", "timm's crop"):
        assert absent not in other
        assert absent in card_of(facts(export={"formats": ["hf-mae"]}, evaluation=RESULTS), tmp_path / absent)


@pytest.mark.parametrize(
    ("dataset", "title"),
    [
        ({"uri": "builtin://digits"}, "scikit-learn's digits"),
        ({"uri": LOCATION}, "cifar10"),
        ({"uri": "/mnt/store/imagenet/train"}, "imagenet"),
        ({"uri": "/mnt/store/photos.tar"}, "photos"),
        ({"uri": "/data/images"}, "images"),
        ({"uri": "s3://secret-bucket"}, None),
        ({"uri": LOCATION, "name": "CIFAR-10"}, "CIFAR-10"),
        ({"uri": "/data/on: [a] #1/train"}, "on: [a] #1"),
    ],
)
def test_a_dataset_is_named_without_its_place(tmp_path, dataset, title):
    told = facts(dataset=dataset)
    matter = front_matter(card_of(told, tmp_path))
    assert told.provenance.spec.dataset.title == title
    assert matter.get("datasets") == ([title] if title else None)


def test_a_name_means_nothing_in_markdown(tmp_path):
    card = card_of(facts(dataset={"uri": "/data/a|b `[x](y)`/train"}), tmp_path)
    assert "| data | a\\|b \\`\\[x\\](y)\\`; training used no labels |\n" in card


@pytest.mark.parametrize(
    ("export", "matter", "text"),
    [
        ({}, {"license": "unknown"}, "No licence was given"),
        ({"license": "Apache-2.0"}, {"license": "apache-2.0"}, "`Apache-2.0`. The licence of the images"),
        (
            {"license": "acme-1.0", "license_link": "https://acme.example/licence"},
            {"license": "other", "license_name": "acme-1.0", "license_link": "https://acme.example/licence"},
            "`acme-1.0`: <https://acme.example/licence>.",
        ),
        ({"license": "other"}, {"license": "other"}, "`other`"),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_other(tmp_path, export, matter, text):
    card = card_of(facts(export=export), tmp_path)
    assert {key: value for key, value in front_matter(card).items() if key.startswith("license")} == matter
    assert text in card


@pytest.mark.parametrize(("method", "cited"), [("rc_mae", "lee2023rcmae"), ("mae", "he2022mae")])
def test_the_method_s_paper_is_cited(tmp_path, method, cited):
    card = card_of(facts(method={"name": method}), tmp_path)
    assert f"@inproceedings{{{cited}," in card


def test_images_that_are_not_square_are_squeezed_and_no_detector_takes_them(tmp_path):
    card = card_of(facts(sizes={"img_size": [16, 48]}, export={"formats": ["hf"]}), tmp_path)
    assert "to 16 x 48 pixels (height x width), whatever its proportions" in card
    assert "## mmpretrain" in card
    assert "detectron2" not in card


# --- metadata --------------------------------------------------------------------------------------------------------


def test_each_repository_s_card_names_its_own_library_and_begins_with_it(tmp_path):
    told = facts(evaluation=RESULTS, export={"formats": list(BACKBONE_FORMATS)})
    for form in BACKBONE_FORMATS:
        (tmp_path / form).mkdir()
    card_of(told, tmp_path)
    for form in BACKBONE_FORMATS:
        card = (tmp_path / form / "README.md").read_text()
        assert front_matter(card)["library_name"] == LIBRARIES[form]
        first = next(snippets(told.subject, form))
        assert first.form == form
        assert card.index(f"### {first.title}\n") == card.index("### ", card.index("## How to load it") + 4)
        assert "](spec.json)" not in card, "the repository has no such file"


def test_the_hub_s_client_reads_the_metadata(tmp_path):
    """What it offers without the internet; it raises for a model-index that the hub would refuse."""
    data = ModelCard(card_of(facts(method={"name": "mae"}, evaluation=RESULTS), tmp_path)).data
    assert (data.model_name, data.datasets, data.metrics) == ("plain", ["cifar10"], ["accuracy"])
    assert data.pipeline_tag == "image-feature-extraction"
    assert "mae" in data.tags
    assert [(each.metric_name, each.metric_type, each.metric_value) for each in data.eval_results] == [
        ("eval/linear_top1", "accuracy", 0.7312), ("eval/reconstruction_ratio", "reconstruction_ratio", 0.4123),
    ]  # fmt: skip
    assert {each.dataset_name for each in data.eval_results} == {"held-out images of cifar10"}


@pytest.mark.parametrize(
    ("network", "metric", "other"),
    [
        ("teacher", metric_keys.LINEAR_TOP1, metric_keys.RECONSTRUCTION_RATIO),
        ("student", metric_keys.RECONSTRUCTION_RATIO, metric_keys.LINEAR_TOP1),
    ],
)
def test_no_result_of_the_other_network_is_reported_as_the_backbone_s(tmp_path, network, metric, other):
    card = card_of(facts(export={"network": network}, evaluation=RESULTS), tmp_path)
    (reported,) = front_matter(card)["model-index"][0]["results"]
    assert [each["name"] for each in reported["metrics"]] == [metric]
    assert ("metrics" in front_matter(card)) is (metric == metric_keys.LINEAR_TOP1)
    assert f"This backbone is the {network}." in card
    assert re.search(rf"^\| `{other}` \|.*\| {'student' if network == 'teacher' else 'teacher'} \|", card, re.MULTILINE)


# --- a whole version -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 3, 5])
def version(request, tmp_path_factory):
    """A version of one, three or five channels in the formats whose readers are here."""
    folder = tmp_path_factory.mktemp(f"channels-{request.param}")
    told = facts(request.param, evaluation=RESULTS, export={"formats": FORMATS})
    network = shaken(told.model)
    write_version(folder, told, network.state_dict())
    return SimpleNamespace(folder=folder, facts=told, network=network, channels=request.param)


def test_only_the_spec_tells_where_the_images_are(version):
    for file in version.folder.rglob("*"):
        if file.is_file() and file.name != "spec.json":
            content = file.read_bytes()
            for place in (b"s3://", b"secret-bucket", b"team-a"):
                assert place not in content, file


def blocks(card: str) -> dict[str, str]:
    """A card's Python, by its heading."""
    found = re.findall(r"^### ([^\n]+)\n\n[^\n]*\n\n```python\n(.*?)^```$", card, flags=re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture
def images(version, tmp_path, monkeypatch) -> None:
    """The files that the code opens, in the working directory."""
    monkeypatch.chdir(tmp_path)
    random = numpy.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (41, 60, 3), dtype=numpy.uint8)).save("photo.jpg")
    numpy.save("image.npy", random.integers(0, 256, (version.channels, 50, 40)))


def run(code: str, places: dict[str, str]) -> dict:
    """A snippet as it is written, but for where the backbone lies."""
    for name, place in places.items():
        assert name in code
        code = code.replace(name, place)
    torch.manual_seed(0)
    space: dict = {}
    exec(compile(code, "card", "exec"), space)
    return space


def test_every_format_has_its_code(version):
    assert list(blocks((version.folder / "README.md").read_text())) == [
        "transformers", "timm", "MLflow", "torch", "Reconstructions and further pretraining", "torch.export",
        "Fine-tuning with timm", "Fine-tuning with transformers",
    ]  # fmt: skip


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("title", "name", "place"),
    [
        ("transformers", '"rcmae/plain"', '"{}/hf"'),
        ("torch", "plain-timm", "{}/timm"),
        ("torch.export", 'snapshot_download("rcmae/plain-torch_export")', '"{}/torch_export"'),
    ],
)
def test_the_code_gives_the_trainer_s_own_features_of_a_picture(version, title, name, place):
    code = blocks((version.folder / "README.md").read_text())[title]
    space = run(code, {name: place.format(version.folder)})
    with torch.no_grad():
        expected = version.network.encode(space["pixels"])
    assert space["features"].shape == expected.shape == (1, 17, 24)
    assert (space["features"] - expected).abs().max() < 1e-5
    assert (space["embedding"] - expected[:, 1:].mean(dim=1)).abs().max() < 1e-5
    assert f"# {tuple(expected.shape)}: class token first" in code


@pytest.mark.usefixtures("images")
def test_all_code_prepares_a_picture_alike(version):
    """Whether transformers' image processor does it, or the code itself."""
    found = blocks((version.folder / "README.md").read_text())
    processed = run(found["transformers"], {'"rcmae/plain"': f'"{version.folder}/hf"'})["pixels"]
    prepared = run(found["torch"], {"plain-timm": f"{version.folder}/timm"})["pixels"]
    assert (processed - prepared).abs().max() < 1e-5


@pytest.mark.usefixtures("images")
def test_the_code_with_the_decoder_predicts_patches(version):
    code = blocks((version.folder / "README.md").read_text())["Reconstructions and further pretraining"]
    space = run(code, {'"rcmae/plain-mae"': f'"{version.folder}/hf-mae"'})
    assert space["predicted"].shape == (1, 16, 64 * version.channels)
    assert space["masked"].sum(dim=1).tolist() == [12]


@pytest.mark.usefixtures("images")
def test_fine_tuning_with_transformers_lowers_the_loss(version):
    random = numpy.random.default_rng(0)
    for label, brightness in {"dark": 60, "bright": 180}.items():
        for number in range(6):
            pixels = random.integers(brightness, brightness + 60, (36, 40, 3), dtype=numpy.uint8)
            for folder in ("photos", "images"):
                Path(folder, label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(f"photos/{label}/{number}.png")
            numpy.save(f"images/{label}/{number}.npy", pixels.transpose(2, 0, 1)[:1].repeat(version.channels, axis=0))
    code = blocks((version.folder / "README.md").read_text())["Fine-tuning with transformers"]
    losses = run(code, {'"rcmae/plain"': f'"{version.folder}/hf"'})["losses"]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_the_code_of_onnx_gives_the_trainer_s_own_features(tmp_path, monkeypatch):
    told = facts(export={"formats": ["onnx"]})
    network, folder = shaken(told.model), tmp_path / "version"
    folder.mkdir()
    write_version(folder, told, network.state_dict())
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), (200, 100, 50)).save("photo.jpg")
    space = run(blocks(card)["ONNX Runtime"], {'snapshot_download("rcmae/plain-onnx")': f'"{folder}/onnx"'})
    with torch.no_grad():
        expected = network.encode(torch.from_numpy(space["pixels"]))
    assert (torch.from_numpy(space["features"]) - expected).abs().max() < 1e-5
    assert front_matter(card)["library_name"] == "onnx"
    assert "`onnx` and `torch_export` for inference" in card


@pytest.mark.parametrize(
    ("low", "high", "tolerance"),
    [(100.0, 4000.0, 1e-5), (100000.25, 100001.25, 0.1)],  # the latter within the precision of 32 bits
)
def test_values_beyond_eight_bits_are_scaled_as_in_training(tmp_path, monkeypatch, low, high, tolerance):
    monkeypatch.chdir(tmp_path)
    subject = Subject("plain", ("hf",), model_of(in_chans=1), 0.75, (1.0,), (0.25,), (low, high))
    numpy.save("image.npy", numpy.full((1, 40, 50), high + 1))
    space = run("import numpy, torch\n" + by_hand(subject), {})
    assert space["pixels"].shape == (1, 1, 32, 32)
    assert space["pixels"].abs().max() < tolerance


def test_timm_s_folder_of_a_version_says_which_values_are_black_and_white(tmp_path):
    told = facts(1, export={"formats": ["timm"]}, value_range=(0.0, 65535.0))
    write_version(tmp_path, told, shaken(told.model).state_dict())
    assert json.loads((tmp_path / "timm/config.json").read_text())["rcmae"]["value_range"] == [0, 65535]


def test_code_is_python_for_any_shape_and_choice_of_formats():
    long = tuple(0.123456789 + band / 100 for band in range(64))
    for formats in (("onnx",), ("timm",), ("hf", "hf-mae"), BACKBONE_FORMATS):
        for channels, shape in ((3, {}), (1, {}), (3, {"img_size": [16, 64]}), (1, {"img_size": [16, 64]}), (64, {})):
            model = model_of(in_chans=channels, **shape)
            subject = Subject("a-b", formats, model, 0.75, long[:channels], long[:channels])
            for subject_of_range in (subject, replace(subject, value_range=(0.0, 65535.0))):
                for snippet in [*snippets(subject_of_range), *finetuning(subject_of_range)]:
                    compile(snippet.code, snippet.title, "exec")
                    assert all(len(line) <= 120 for line in snippet.code.splitlines()), snippet.title
