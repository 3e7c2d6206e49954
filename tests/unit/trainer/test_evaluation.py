"""Reconstruction ratio, probes and the picture of reconstructions, shared by all ranks."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_training_data
from trainer.data.sampler import mask_orders
from trainer.errors import DataError
from trainer.evaluation.evaluator import Evaluator
from trainer.evaluation.features import evaluating
from trainer.evaluation.pictures import GAP, HEADING, reconstruction_grid
from trainer.evaluation.ranks import alone
from trainer.evaluation.reconstruction import block_errors, reconstruction_ratio
from trainer.evaluation.untrained import untrained
from trainer.models.pixels import normalised, take_patches, targets
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.spec.pretrain import ModelSpec, PretrainSpec
from trainer.storage import Store

TINY = {
    "img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2,
    "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip
VISIBLE, PATCHES = 4, 16


def statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(0.3 + 0.1 * c for c in range(channels)), tuple(0.2 + 0.05 * c for c in range(channels))


def random_images(n: int = 5, channels: int = 1, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, *size), generator=generator, dtype=torch.uint8)


def orders_for(n: int, patches: int = PATCHES) -> torch.Tensor:
    return torch.from_numpy(mask_orders(0, 0, np.arange(n), patches))


class Oracle(nn.Module):
    """Predicts a multiple of the very target of images that are shown to it in order, again and again."""

    patch_size = 4

    def __init__(self, images: torch.Tensor, norm_pix_loss: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        mean, std = statistics(images.shape[1])
        self.pixels, self.norm_pix_loss, self.factor = normalised(images, mean, std), norm_pix_loss, factor
        self.modes: list[bool] = []
        self.shown = 0

    def forward(self, patches, orders):
        self.modes.append(self.training)
        images = self.pixels[self.shown : self.shown + len(orders)]
        self.shown = (self.shown + len(orders)) % len(self.pixels)
        every = take_patches(images, orders, self.patch_size)
        assert torch.equal(every[:, : patches.shape[1]], patches)
        return self.factor * targets(every[:, patches.shape[1] :], self.norm_pix_loss)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(("factor", "ratio"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.25), (-1.0, 4.0)])
@pytest.mark.parametrize("blocks", [[5], [2, 2, 1]])
def test_the_ratio_is_the_error_over_that_of_zeros(norm_pix_loss, factor, ratio, blocks):
    oracle, (mean, std) = Oracle(random_images(), norm_pix_loss, factor), statistics(1)
    pairs = zip(random_images().split(blocks), orders_for(5).split(blocks), strict=True)
    found = reconstruction_ratio(block_errors(oracle, *pair, mean, std, norm_pix_loss, VISIBLE) for pair in pairs)
    assert found == pytest.approx(ratio, abs=1e-9)


def test_images_without_anything_to_predict_count_as_nothing_learnt():
    black = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    mean, std = statistics(1)
    assert (
        reconstruction_ratio([block_errors(Oracle(black, True), black, orders_for(2), mean, std, True, VISIBLE)]) == 1
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_evaluated_in_evaluation_mode_and_comes_back_as_it_was(training):
    oracle = Oracle(random_images(), True).train(training)
    mean, std = statistics(1)
    block_errors(oracle, random_images(), orders_for(5), mean, std, True, VISIBLE)
    reconstruction_grid(oracle, random_images(), orders_for(5), mean, std, True, VISIBLE)
    assert oracle.modes == [False] * 2
    assert oracle.training is training
    with pytest.raises(ZeroDivisionError), evaluating(oracle):
        oracle.factor = 1 / int(oracle.training)
    assert oracle.training is training


def test_normalised_images():
    mean, std = statistics(3)
    images = random_images(2, 3)
    values = normalised(images, mean, std)
    assert values.dtype == torch.float32
    expected = (images.numpy() / 255 - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5, atol=1e-6)


def cells(picture: bytes, rows: int, size: tuple[int, int]) -> np.ndarray:
    """The picture's tiles (rows, 3, H, W, 3) at the images' own size."""
    sheet = np.asarray(Image.open(io.BytesIO(picture)))
    scale = max(1, -(-160 // size[0]))
    tall, wide = size[0] * scale, size[1] * scale
    assert sheet.shape == (rows * (tall + GAP) + HEADING + GAP, 3 * (wide + GAP) + GAP, 3)
    tiles = np.empty((rows, 3, *size, 3), dtype=np.uint8)
    for row in range(rows):
        for column in range(3):
            top, left = HEADING + row * (tall + GAP), GAP + column * (wide + GAP)
            tiles[row, column] = sheet[top : top + tall : scale, left : left + wide : scale]
    return tiles


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(16, 16), (8, 32)])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_picture_of_a_perfect_prediction_is_the_input(channels, size, norm_pix_loss):
    images, (mean, std) = random_images(3, channels, size), statistics(channels)
    oracle = Oracle(images, norm_pix_loss)
    picture = reconstruction_grid(oracle, images, orders_for(3), mean, std, norm_pix_loss, VISIBLE)
    assert picture.startswith(b"\x89PNG")
    tiles = cells(picture, 3, size).astype(int)
    shown = images[:, : 3 if channels > 2 else 1].permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    assert np.abs(tiles[:, 0] - shown).max() <= 1
    assert np.abs(tiles[:, 2] - shown).max() <= 1


def test_the_picture_masks_what_is_hidden_and_keeps_what_is_visible():
    images, orders, (mean, std) = random_images(3), orders_for(3), statistics(1)
    torch.manual_seed(0)
    model = MaskedAutoencoder(ModelSpec.model_validate(TINY))
    tiles = cells(reconstruction_grid(model, images, orders, mean, std, True, VISIBLE), 3, (16, 16)).astype(int)
    for row in range(3):
        for place, patch in enumerate(orders[row].tolist()):
            area = np.s_[4 * (patch // 4) : 4 * (patch // 4) + 4, 4 * (patch % 4) : 4 * (patch % 4) + 4]
            original, masked, rebuilt = (tiles[row, column][area] for column in range(3))
            if place < VISIBLE:
                np.testing.assert_array_equal(masked, original)
                np.testing.assert_array_equal(rebuilt, original)
            else:
                assert (masked == 128).all()
                assert (rebuilt != original).any()
                # An untrained prediction is small: the patch's own mean and deviation are put back into it.
                assert abs(rebuilt.mean() - original.mean()) < 40


def place_in(folder) -> DatasetContext:
    return DatasetContext(Cache(folder / "cache"), 1, Agreement(1), 0)


def evaluator_for(tmp_path, **parts) -> tuple[Evaluator, PretrainSpec, Store]:
    spec = PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": "builtin://digits"}, "model": TINY,
         "optimization": {"global_batch_size": 64}, "resources": {"cpus_per_worker": 1}} | parts
    )  # fmt: skip
    store = Store(str(tmp_path / "run"))
    data = open_training_data(spec, place_in(tmp_path))
    return Evaluator(spec, data, store, tmp_path / "cache", alone(), torch.device("cpu"), False), spec, store


@pytest.fixture
def _few_probe_images(monkeypatch):
    monkeypatch.setattr("trainer.evaluation.probe_images.TRAIN_IMAGES", 300)


@pytest.mark.usefixtures("_few_probe_images")
def test_an_evaluation_measures_and_draws_and_changes_nothing(tmp_path):
    evaluator, spec, store = evaluator_for(tmp_path)
    torch.manual_seed(5)
    student = MaskedAutoencoder(spec.model).train()
    teacher = make_teacher(student)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.random.get_rng_state()
    first = evaluator.evaluate(student, teacher, step=25)
    assert set(first) == {
        metric_keys.RECONSTRUCTION_RATIO,
        metric_keys.LINEAR_TOP1,
        metric_keys.LINEAR_TOP1_RANDOM_INIT,
        metric_keys.KNN_TOP1,
        metric_keys.KNN_TOP1_RANDOM_INIT,
    }
    assert 0.5 < first[metric_keys.RECONSTRUCTION_RATIO] < 5
    assert 0.2 < first[metric_keys.LINEAR_TOP1] < 1
    assert 0.2 < first[metric_keys.KNN_TOP1] < 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert student.training
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    assert evaluator.evaluate(student, teacher, step=50) == first
    assert store.names(names.IMAGES) == ["reconstruction_00000025.png", "reconstruction_00000050.png"]
    tiles = cells(store.read(names.picture_file(25)), 6, (16, 16))
    assert tiles[:, 0].std() > 20


@pytest.mark.usefixtures("_few_probe_images")
def test_the_probe_is_of_the_backbone_and_the_ratio_of_the_student(tmp_path):
    evaluator, spec, _ = evaluator_for(tmp_path)
    torch.manual_seed(spec.seed)
    seeded = MaskedAutoencoder(spec.model)
    blind = MaskedAutoencoder(spec.model)
    nn.init.zeros_(blind.norm.weight)
    found = evaluator.evaluate(seeded, blind, step=0)
    assert max(found[metric_keys.LINEAR_TOP1], found[metric_keys.KNN_TOP1]) < 0.2
    # The untrained network's weights are the same for every spec, whatever its seed: runs compare.
    again = evaluator.evaluate(seeded, untrained(spec.model), step=1)
    assert found[metric_keys.LINEAR_TOP1_RANDOM_INIT] == again[metric_keys.LINEAR_TOP1]
    nn.init.zeros_(seeded.decoder_pred.weight)
    assert evaluator.evaluate(seeded, blind, step=2)[metric_keys.RECONSTRUCTION_RATIO] == 1


def test_without_probes_only_the_reconstruction_is_measured(tmp_path):
    evaluator, spec, _ = evaluator_for(tmp_path, evaluation={"probes": []})
    model = MaskedAutoencoder(spec.model)
    assert set(evaluator.evaluate(model, model, step=0)) == {metric_keys.RECONSTRUCTION_RATIO}


# --- probes of what people have ---------------------------------------------------------------------------------------


def evaluator_of(tmp_path: Path, train: Path, evaluation: Path | None = None, probes: object = "auto") -> Evaluator:
    section = {"probes": probes} | ({"dataset": {"uri": str(evaluation)}} if evaluation else {})
    return evaluator_for(
        tmp_path, dataset={"uri": str(train)}, evaluation=section, optimization={"global_batch_size": 4}
    )[0]


def shades(root: Path, classes: dict[str, int], count: int) -> Path:
    """A folder for each class, of images of one grey each."""
    for name, grey in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (20, 20), grey + number).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ({}, "has no labels: sort its images into a folder for each class"),
        ({"a": 10, "b": 90}, "they share none, and a probe needs two. Classes are compared by their names"),
    ],
)
def test_a_probe_that_cannot_be_made_is_an_error_only_where_it_was_asked_for(tmp_path, classes, reason):
    train = shades(tmp_path / "train", classes or {"flat": 10}, 12)
    other = shades(tmp_path / "other", {"x": 10, "y": 90}, 3) if classes else None
    with pytest.raises(DataError, match=f"evaluation.probes: .*{reason}"):
        evaluator_of(tmp_path, train, other, ["linear"])
    evaluator = evaluator_of(tmp_path, train, other)
    assert [notice.code for notice in evaluator.notices] == (["no_probe"] if classes else [])
    model = MaskedAutoencoder(ModelSpec.model_validate(TINY))
    assert set(evaluator.evaluate(model, model, 1)) == {metric_keys.RECONSTRUCTION_RATIO}


def test_classes_are_matched_by_name_and_those_of_one_side_are_left_out(tmp_path):
    """The numbers of `b` and `c` differ between the two datasets: `a` is missing in one of them."""
    train = shades(tmp_path / "train", {"a": 10, "b": 90, "c": 200}, 12)
    other = shades(tmp_path / "other", {"b": 90, "c": 200, "d": 150}, 4)
    evaluator = evaluator_of(tmp_path, train, other)
    torch.manual_seed(0)
    model = MaskedAutoencoder(ModelSpec.model_validate(TINY))
    found = evaluator.evaluate(model, model, 1)
    assert (found[metric_keys.LINEAR_TOP1], found[metric_keys.KNN_TOP1]) == (1, 1)
    (notice,) = evaluator.notices
    assert (notice.code, notice.message) == (
        "classes_differ",
        "Classes left out of the probes' score: a only among the training images; d only among the held-out images",
    )


def test_the_ratio_is_measured_on_a_random_choice_of_a_dataset_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.evaluation.evaluator.RATIO_IMAGES", 8)
    train = shades(tmp_path / "train", {"a": 10, "b": 90}, 12)
    other = shades(tmp_path / "other", {"a": 10, "b": 200}, 20)
    ((held_out, _),) = evaluator_of(tmp_path, train, other)._blocks
    assert len(held_out) == 8
    assert {bool(image.float().mean() > 100) for image in held_out} == {True, False}
