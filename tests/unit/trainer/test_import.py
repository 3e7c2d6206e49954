"""Weights from elsewhere as a version: what they compute, what is told of them, and what is refused."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from foreign import stored, vit, vit_mae
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import ViTMAEForPreTraining, ViTModel

from trainer.errors import DataError, SpecRefused, StorageError
from trainer.export import importing
from trainer.export.imported import Imported
from trainer.export.importing import PAPERS_DECODING, import_weights
from trainer.export.written import DiffersError, check_written
from trainer.protocol import names
from trainer.protocol.request import AttemptRequest
from trainer.spec.importing import OriginSpec
from trainer.spec.job import parse_spec
from trainer.spec.pretrain import ModelSpec
from trainer.storage import Store, sha256_of
from trainer.weights.foreign import read_weights

ORIGIN = {"name": "facebook/vit-mae-tiny", "url": "https://huggingface.co/facebook/vit-mae-tiny"}
PLACE = "team-a-secret"


class Registry:
    """Stands for MLflow: what was registered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, []

    def register(self, name, directory, about) -> int:
        target = self.folder / f"version-{len(self.made) + 1}"
        shutil.copytree(directory, target)
        self.made.append(SimpleNamespace(name=name, folder=target, about=about))
        return len(self.made)


def request(place: Path | str, roots: tuple[str, ...] | None = None, **parts: Any) -> AttemptRequest:
    spec = {
        "kind": "import", "source": {"uri": str(place)}, "register_as": "tiny", "origin": ORIGIN,
        "license": "apache-2.0",
    }  # fmt: skip
    return AttemptRequest(
        job_id="job-i", attempt=1, run_id="run-i", tracking_uri="http://t", artifact_uri="/a", dataset_roots=roots,
        spec=parse_spec(spec | parts),
    )  # fmt: skip


def imported(asked: AttemptRequest, folder: Path, **hooks: Any) -> Any:
    """The version that an import registers; None if it registers none."""
    registry = Registry(folder)
    import_weights(asked, asked.spec, registry, **hooks)
    return registry.made[0] if registry.made else None


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(PLACE) / "vit-mae-tiny"
    stored(vit_mae(mask_ratio=0.6, norm_pix_loss=True), folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Theirs\n")
    return folder


@pytest.fixture(scope="module")
def version(source, tmp_path_factory) -> Any:
    citation = "@inproceedings{he2022mae,\n  title = {Masked}\n}"
    origin = ORIGIN | {"trained_on": "ImageNet-1k", "paper": "https://arxiv.org/abs/2111.06377", "citation": citation}
    phases: list[str] = []
    made = imported(request(source, origin=origin), tmp_path_factory.mktemp("made"), enter=phases.append)
    return SimpleNamespace(**vars(made), phases=phases, card=(made.folder / "README.md").read_text())


# --- what it computes ------------------------------------------------------------------------------------------------


def test_every_format_computes_what_the_original_computes(source, version):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    original = ViTMAEForPreTraining.from_pretrained(source).eval()
    again = ViTMAEForPreTraining.from_pretrained(version.folder / "hf-mae").eval()
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    session = onnxruntime.InferenceSession(version.folder / "onnx/model.onnx")
    program = torch.export.load(version.folder / "torch_export/model.pt2").module()
    with torch.no_grad():
        predicted = original(images, noise=noise).logits
        assert (again(images, noise=noise).logits - predicted).abs().max() < 1e-5
        original.config.mask_ratio = 0.0
        tokens = original.vit(images, noise=torch.arange(16.0).expand(3, -1)).last_hidden_state
        found = {
            "hf": ViTModel.from_pretrained(version.folder / "hf", add_pooling_layer=False).eval()(images)[0],
            "onnx": torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0]),
            "torch_export": program(images),
        }
    assert tokens.std() > 0.1
    for form, theirs in found.items():
        assert (theirs - tokens).abs().max() < 1e-5, form
    assert (again.config.mask_ratio, again.config.norm_pix_loss) == (0.6, True)


def test_a_network_without_a_decoder_has_every_format_but_that_with_one(tmp_path):
    stored(vit(), tmp_path / "vit")
    made = imported(request(tmp_path / "vit"), tmp_path)
    assert made.about.tags[names.TAG_FORMATS] == "timm,hf,onnx,torch_export"
    assert not (made.folder / "hf-mae").exists()
    card = (made.folder / "README.md").read_text()
    assert "The pooler was left out" in card
    assert "masked-autoencoder" not in card
    with pytest.raises(SpecRefused, match=r"formats: hf-mae is not possible, because the source has no decoder"):
        imported(request(tmp_path / "vit", export={"formats": ["hf-mae"]}), tmp_path)


@pytest.mark.parametrize("form", ["timm", "hf", "hf-mae"])
def test_what_was_registered_can_be_imported_again_to_the_bit(version, tmp_path, form):
    asked = request(version.folder / form, export={"formats": ["timm"]})
    again = imported(asked, tmp_path)
    ours, theirs = (load_file(folder / "timm/model.safetensors") for folder in (again.folder, version.folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert again.about.tags[names.TAG_SOURCE_FORMAT] == {"timm": "timm", "hf": "vit", "hf-mae": "vit_mae"}[form]


@pytest.mark.parametrize(("chosen", "registered"), [(None, "teacher"), ("student", "student")])
def test_of_a_checkpoint_with_two_networks_one_is_registered(version, tmp_path, chosen, registered):
    ours = read_weights(Store(str(version.folder / "hf-mae"))).state
    student = ours | {"norm.bias": ours["norm.bias"] + 1}
    state = {f"student.{name}": value for name, value in student.items()}
    torch.save({"model": state | {f"teacher.{name}": value for name, value in ours.items()}}, tmp_path / "rc_mae.pth")
    asked = request(
        tmp_path, source={"uri": str(tmp_path / "rc_mae.pth"), "num_heads": 3, "decoder_num_heads": 2},
        export={"network": chosen, "formats": ["timm", "hf-mae"]},
    )  # fmt: skip
    made = imported(asked, tmp_path)
    expected = student if registered == "student" else ours
    assert torch.equal(load_file(made.folder / "timm/model.safetensors")["norm.bias"], expected["norm.bias"])
    tags = made.about.tags
    assert (tags[names.TAG_NETWORK], tags[names.TAG_SOURCE_FORMAT]) == (registered, "rc_mae_pth")
    card = (made.folder / "README.md").read_text()
    assert f"The weights are the {registered}'s of [facebook/vit-mae-tiny]" in card
    assert "a mask ratio of 0.75 and normalised pixels, as in the papers, were assumed" in card
    assert json.loads((made.folder / "hf-mae/config.json").read_text())["mask_ratio"] == 0.75


@pytest.mark.parametrize("form", ["timm", "hf", "hf-mae", "onnx", "torch_export"])
def test_a_format_that_was_written_wrongly_is_never_registered(version, tmp_path, source, form):
    weights = read_weights(Store(str(source)))
    shutil.copytree(version.folder, tmp_path / "v")
    check_written(tmp_path / "v", [form], weights.state, weights.model)
    if form in {"onnx", "torch_export"}:
        other = weights.state | {"blocks.1.mlp.fc1.weight": weights.state["blocks.1.mlp.fc1.weight"].flip(0)}
        with pytest.raises(DiffersError, match=f"output of the format {form} differs"):
            check_written(tmp_path / "v", [form], other, weights.model)
        return
    file = tmp_path / "v" / form / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "query.weight" in name or "qkv.weight" in name)
    save_file(tensors | {name: tensors[name].flip(0).contiguous()}, file)
    with pytest.raises(DiffersError, match=f"the format {form} was written with other values"):
        check_written(tmp_path / "v", [form], weights.state, weights.model)


def test_a_source_in_s3_is_read_from_there(s3, use_s3, source, tmp_path):
    use_s3(s3.environment())
    bucket = s3.bucket("imports")
    s3.filesystem().put(f"{source}/", f"{bucket}/models/vit-mae-tiny/", recursive=True)
    asked = request(f"{bucket}/models/vit-mae-tiny", (bucket,), export={"formats": ["hf-mae"]})
    made = imported(asked, tmp_path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (made.folder / "hf-mae", source))
    assert torch.equal(ours["vit.layernorm.bias"], theirs["vit.layernorm.bias"])
    assert "imports" not in (made.folder / "README.md").read_text(), "it is the bucket's name"
    with pytest.raises(SpecRefused, match=r"source\.uri: s3://.* does not exist where the job runs"):
        imported(request(f"{bucket}/models/none"), tmp_path)


def test_the_source_s_own_tensors_are_gone_before_the_formats_are_written(source, tmp_path, monkeypatch):
    kept: list[weakref.ref[torch.Tensor]] = []

    def read(*arguments: Any, **options: Any) -> Any:
        weights = read_weights(*arguments, **options)
        kept.extend(weakref.ref(tensor) for each in weights.originals for tensor in each.found.tensors.values())
        return weights

    def enter(phase: str) -> None:
        gc.collect()
        left[phase] = sum(tensor() is not None for tensor in kept)

    left: dict[str, int] = {}
    monkeypatch.setattr(importing, "read_weights", read)
    imported(request(source, export={"formats": ["timm"]}), tmp_path, enter=enter)
    assert left["checking"] == len(kept) > 0
    assert left["writing"] == 0


# --- what is told ----------------------------------------------------------------------------------------------------


def test_the_phases_are_told_in_their_order(version):
    assert version.phases == ["reading", "checking", "writing", "registering"]


def test_its_tags_and_parameters_tell_where_it_comes_from(version, source):
    tags = version.about.tags
    sums = {file.name: sha256_of(file) for file in source.iterdir()}
    assert json.loads(tags.pop(names.TAG_SOURCE_FILES)) == sums
    assert {key: tags[key] for key in tags if key not in {names.TAG_CODE, names.TAG_SPEC}} == {
        names.TAG_METHOD: "imported", names.TAG_FORMATS: "timm,hf,hf-mae,onnx,torch_export",
        names.TAG_LICENSE: "apache-2.0", names.TAG_SOURCE_JOB: "job-i", names.TAG_ORIGIN: ORIGIN["name"],
        names.TAG_ORIGIN_URL: ORIGIN["url"], names.TAG_SOURCE_FORMAT: "vit_mae",
    }  # fmt: skip
    about = version.about
    assert (about.run_id, about.metrics, about.params["model.embed_dim"]) == ("run-i", {}, "24")
    spec = json.loads((version.folder / "spec.json").read_text())
    assert spec["method"] == {"name": "imported", "mask_ratio": 0.6, "norm_pix_loss": True}
    assert (spec["model"]["depth"], spec["origin"]["name"], spec["source_sha256"]) == (2, ORIGIN["name"], sums)
    found = json.loads((version.folder / "metrics.json").read_text())
    assert (found["curves"], found["evaluation"]["values"]) == ({}, {})


def test_its_card_answers_the_same_questions_and_claims_no_training_of_ours(version):
    card = version.card
    assert re.findall(r"^## (.*)$", card, flags=re.MULTILINE) == [
        "What it was trained on", "Licence", "Intended use and limits", "How good it is", "Input and preprocessing",
        "How to load it", "Pooling", "Fine-tuning", "detectron2 and mmpretrain", "How to verify the files", "Citation",
        "Lineage",
    ]  # fmt: skip
    for text in (
        "imported from [facebook/vit-mae-tiny](https://huggingface.co/facebook/vit-mae-tiny)",
        "| data | ImageNet-1k, as its makers say |", "`apache-2.0`", "It has not been evaluated here.",
        "```bibtex\n@inproceedings{he2022mae,", "| imported by | `job-i` |",
        "| source | vit-mae-tiny, a folder of transformers' ViTMAE |", "| greatest deviation | ",
        "names the licence cc-by-nc-4.0, and the import apache-2.0",
    ):  # fmt: skip
        assert text in card, text
    for absent in ("RC-MAE", "rc_mae", "mean teacher", "the None", "epochs"):
        assert absent not in card.split("## How to load it")[0] + card.split("## Citation")[1], absent


def test_its_metadata_names_the_model_it_was_made_from(version):
    data = ModelCard(version.card).data
    assert (data.base_model, data.license, data.library_name) == (ORIGIN["name"], "apache-2.0", "transformers")
    assert {"imported", "masked-autoencoder"} <= set(data.tags)
    assert "self-supervised" not in data.tags
    assert yaml.safe_load((version.folder / "timm/README.md").read_text().split("---")[1])["library_name"] == "timm"


HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"{HUB}/facebook/vit-mae-base", "facebook/vit-mae-base"),
        (f"{HUB}/facebook/vit-mae-base?library=timm#x", "facebook/vit-mae-base"),
        (f"{HUB}/facebook/vit-mae-base/tree/main", "facebook/vit-mae-base"),
        *((f"{HUB}/{first}/a/b", None) for first in ("datasets", "spaces", "docs", "collections", "api", "learn")),
        *((f"{HUB}/{first}/a", None) for first in ("papers", "blog", "models")),
        (f"{HUB}/google", None), (f"{HUB}/a/b%20c", None), (f"{HUB}/../x", None), (HUB, None),
        ("https://huggingface.co.example/a/b", None), ("https://github.com/facebookresearch/mae", None), (None, None),
    ],
)  # fmt: skip
def test_only_addresses_of_models_in_the_hub_name_a_base_model(url, named):
    assert OriginSpec(name="x", url=url).hub_id == named


def test_only_the_spec_tells_where_the_weights_were(version):
    for file in version.folder.rglob("*"):
        if file.is_file() and file.name != "spec.json":
            assert PLACE.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(("network", "told"), [("teacher", "the teacher's of"), (None, "those of")])
def test_a_card_says_which_of_two_networks_it_is(network, told):
    model = ModelSpec(preset="vit_tiny_patch16_224")
    found = Imported(request("/x").spec, "job-i", "rc_mae_pth", {}, model, None, network, ("timm",), 1e-6)
    assert told in found.weights(network)
    source = found.lineage(network)["source"]
    assert source == f"x{', the teacher' if network else ''}, a file of weights by the names of RC-MAE's code"


def test_the_card_says_how_its_makers_fit_pictures(source, tmp_path):
    theirs = shutil.copytree(source, tmp_path / "vit")
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 32, "resample": 2}
    (theirs / "preprocessor_config.json").write_text(json.dumps(processor))
    card = (imported(request(theirs, export={"formats": ["hf"]}), tmp_path).folder / "README.md").read_text()
    sentence = "The source squashes pictures to 32 x 32 pixels, bilinearly."
    assert sentence in card.split("## Input and preprocessing")[1].split("## How to load it")[0]
    assert f"- {sentence} Here their shorter side becomes 32 pixels" in card
    assert "the figures below" not in card


def test_the_card_of_a_single_file_says_what_the_comparison_assumes():
    model = ModelSpec(preset="vit_tiny_patch16_224")
    single = Imported(request("/x").spec, "job-i", "mae_pth", {}, model, PAPERS_DECODING, None, ("timm",), 1e-6)
    assert single.weights(None).endswith(
        "converted from a file of weights by the names of MAE's code, which does not say its activation and epsilon: "
        "GELU and 1e-6, as in MAE's code, were assumed. On the same images, tokens and predicted pixels differ from "
        "the original's by at most 1e-06 of their size, by these assumptions."
    )
    assert "by the assumptions above" in single.lineage(None)["greatest deviation"]
    folder = replace(single, source_format="vit", masking=None)
    assert folder.weights(None).endswith(
        "On the same images, tokens differ from the original's by at most 1e-06 of their size."
    )
    assert "assum" not in folder.weights(None) + folder.lineage(None)["greatest deviation"]


def test_the_tag_of_many_files_has_the_digest_of_their_list():
    files = {f"model-{number:05d}.safetensors": f"{number:064x}" for number in range(1, 81)}
    model = ModelSpec(preset="vit_tiny_patch16_224")
    many = Imported(request("/x").spec, "job-i", "vit", files, model, None, None, ("timm",), 1e-6)
    listed = "".join(f"{digest}  {name}\n" for name, digest in files.items()).encode()
    assert many.tags()[names.TAG_SOURCE_FILES] == f"sha256:{hashlib.sha256(listed).hexdigest()}"
    assert many.document["source_sha256"] == files


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_source_that_is_not_there_is_refused_with_where_to_copy_it(tmp_path):
    for roots, told in (
        (None, "a folder that every worker has$"),
        ((str(tmp_path),), f"every worker has below {tmp_path}$"),
    ):
        with pytest.raises(SpecRefused, match=told):
            imported(request(tmp_path / "none", roots), tmp_path)


def test_a_source_outside_the_roots_is_not_read_not_even_through_a_link(tmp_path, source):
    (tmp_path / "roots").mkdir()
    roots = (str(tmp_path / "roots"),)
    with pytest.raises(SpecRefused, match="must be below one of the locations that jobs may read"):
        imported(request(source, roots), tmp_path)
    (tmp_path / "roots/linked").symlink_to(source)
    copied = shutil.copytree(source, tmp_path / "roots/copied")
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").symlink_to(source / "model.safetensors")
    for name in ("linked", "copied"):
        with pytest.raises(DataError, match=r"source.uri: .* leads to .*, outside the locations that jobs may read"):
            imported(request(tmp_path / "roots" / name, roots), tmp_path)


def test_a_name_that_no_folder_can_have_is_an_error_of_the_storage(tmp_path):
    with pytest.raises(StorageError, match="File name too long"):
        imported(request(tmp_path / ("x" * 300)), tmp_path)


def test_a_network_that_the_source_does_not_have_is_refused(source, tmp_path):
    with pytest.raises(SpecRefused, match=r"export\.network: the source has one network"):
        imported(request(source, export={"network": "student"}), tmp_path)


def test_a_command_is_obeyed_before_anything_is_registered(source, tmp_path):
    assert imported(request(source), tmp_path, requested_action=lambda: "cancel") is None
