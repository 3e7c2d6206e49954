"""The model card's code in other people's tools, for one, three and five channels: as written, but for the place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from backbones import model_of, shaken, statistics
from readers import PICTURES, run

from trainer.export.finetuning import finetuning
from trainer.export.huggingface import export_vit
from trainer.export.inputs import Subject
from trainer.export.snippets import snippets
from trainer.export.timm import export_timm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first to ask for an environment makes it

READERS = ["timm", "transformers-5", "transformers-4"]


@pytest.fixture(scope="module", params=[1, 3, 5])
def backbone(request, tmp_path_factory) -> SimpleNamespace:
    """A network in the folders of both tools, with the code of its card."""
    model = model_of(preset="vit_small_patch16_224", in_chans=request.param)
    network, pixels = shaken(model), statistics(request.param)
    folder = tmp_path_factory.mktemp("backbone")
    export_timm(network.state_dict(), model, *pixels, folder / "timm")
    export_vit(network.state_dict(), model, *pixels, folder / "hf")
    subject = Subject("read", ("timm", "hf"), model, 0.75, *pixels)
    code = {each.title: each.code for each in [*snippets(subject), *finetuning(subject)]}
    return SimpleNamespace(network=network, folder=folder, code=code)


def of_folder(backbone, title: str) -> str:
    """The code under a heading, which reads the folders instead of the service."""
    code = PICTURES + backbone.code[title].replace('"rcmae/read"', repr(str(backbone.folder / "hf")))
    return code.replace("hf-hub:rcmae/read-timm", f"local-dir:{backbone.folder / 'timm'}")


@pytest.mark.parametrize("reader", READERS)
def test_it_gives_the_trainer_s_features_of_an_image(backbone, tmp_path, reader):
    keep = '\nkept = {"pixels": pixels, "features": features, "embedding": embedding}\n'
    kept = run(reader, of_folder(backbone, reader.partition("-")[0]) + keep, tmp_path / "run")
    with torch.no_grad():
        expected = backbone.network.encode(kept["pixels"])
    assert kept["features"].shape == expected.shape
    assert (kept["features"] - expected).abs().max() < 1e-5
    assert (kept["embedding"] - expected[:, 1:].mean(dim=1)).abs().max() < 1e-5
    assert "newly initialized" not in (tmp_path / "run/stderr").read_text()


@pytest.mark.parametrize("reader", READERS)
def test_it_fine_tunes(backbone, tmp_path, reader):
    code = of_folder(backbone, f"Fine-tuning with {reader.partition('-')[0]}")
    losses = run(reader, code + '\nkept = {"losses": torch.tensor(losses)}\n', tmp_path / "run")["losses"]
    assert len(losses) == 10
    assert losses[-3:].mean() < losses[:3].mean()
