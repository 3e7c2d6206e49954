"""RandAugment, mixup, cutmix and erasing: by their definitions, and the same whatever the batch and the workers."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finetunings import MODEL, STRONG, VIEW, digits
from PIL import Image, ImageEnhance, ImageOps

from trainer.data.loader import PreparedBatches, Share
from trainer.finetuning import randaugment
from trainer.finetuning.batches import Augmentation, LabelledPreparation, Seen
from trainer.finetuning.mixing import Erasures, Mixture, draw_erasures, draw_mixture, erase, mix
from trainer.finetuning.predictions import batch_picture
from trainer.finetuning.randaugment import OperationDraws, augment, draw_operations, operations_for
from trainer.finetuning.step import SupervisedObjective
from trainer.spec.finetuning import FinetuneSettings, RandAugmentSettings

MANY = np.arange(40_000)


def pictures(channels: int = 3) -> torch.Tensor:
    """Two smooth pictures with values of 8 bits."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 30), indexing="ij")
    planes = torch.stack([(0.2 + 0.6 * x * y), (0.9 - 0.5 * x), (0.1 + 0.3 * y)])[:channels]
    return (torch.stack([planes, planes.flip(2)]) * 255).round() / 255


def alone(name: str, images: torch.Tensor, strength: float) -> torch.Tensor:
    operation = getattr(randaugment, name)
    return operation(images, torch.full((len(images),), strength))


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "strength", "reference"),
    [
        ("_full_contrast", 0.9, ImageOps.autocontrast),
        ("_equalised", 0.9, ImageOps.equalize),
        ("_inverted", 0.9, ImageOps.invert),
        ("_posterised", 0.5, lambda p: ImageOps.posterize(p, 2)),
        ("_solarised", 0.5, lambda p: ImageOps.solarize(p, 128)),
        ("_contrast", 0.5, lambda p: ImageEnhance.Contrast(p).enhance(1.45)),
        ("_contrast", -0.5, lambda p: ImageEnhance.Contrast(p).enhance(0.55)),
        ("_brightness", 0.5, lambda p: ImageEnhance.Brightness(p).enhance(1.45)),
        ("_saturation", -0.5, lambda p: ImageEnhance.Color(p).enhance(0.55)),
        ("_sharpness", 0.9, lambda p: ImageEnhance.Sharpness(p).enhance(1.81)),
    ],
)
def test_colour_operations_are_pillows(name, strength, reference):
    images = pictures()
    found = alone(name, images, strength)
    for mine, image in zip(found, images, strict=True):
        theirs = torch.from_numpy(np.asarray(reference(as_pil(image)), dtype=np.float32)).permute(2, 0, 1)
        assert (mine * 255 - theirs).abs().max() <= (6 if name == "_equalised" else 2)


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("_rotated", (np.cos(-0.2617994), -np.sin(-0.2617994), 0, np.sin(-0.2617994), np.cos(-0.2617994), 0)),
        ("_sheared_along_x", (1, -0.15, 0, 0, 1, 0)),
        ("_sheared_along_y", (1, 0, 0, -0.15, 1, 0)),
        ("_shifted_along_x", (1, 0, -0.225 * 30, 0, 1, 0)),
        ("_shifted_along_y", (1, 0, 0, 0, 1, -0.225 * 20)),
    ],
)
def test_geometric_operations_are_their_affine_maps(name, matrix):
    """The inverse map of strength 0.5 about the centre, from target to source, inside the picture."""
    images = pictures()
    found = alone(name, images, 0.5)
    a, b, c, d, e, f = matrix
    y, x = torch.meshgrid(torch.arange(20.0) - 9.5, torch.arange(30.0) - 14.5, indexing="ij")
    grid = torch.stack([(a * x + b * y + c) / 14.5, (d * x + e * y + f) / 9.5], dim=-1).float().expand(2, -1, -1, -1)
    expected = F.grid_sample(images - 0.5, grid, align_corners=True) + 0.5
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_dark_values_become_lighter():
    images = torch.tensor([0.0, 0.4, 0.6]).view(1, 1, 1, 3)
    found = alone("_solarised_by_addition", images, -0.5).flatten()
    torch.testing.assert_close(found, torch.tensor([55 / 255, 0.4 + 55 / 255, 0.6]))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_operation_takes_images_with_any_channels_and_keeps_the_range(channels):
    images = torch.rand(len(operations_for(channels)), channels, 20, 30)
    draws = OperationDraws(np.arange(len(images))[:, None], np.full((len(images), 1), -0.9, dtype=np.float32))
    found = augment(images, draws)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert all(not torch.equal(a, b) for a, b in zip(found, images, strict=True))


def test_operations_and_strengths_are_drawn_by_their_settings():
    draws = draw_operations(RandAugmentSettings(operations=2, magnitude=5, magnitude_std=0.5), 3, 0, 1, MANY)
    assert (draws.operation == -1).mean() == pytest.approx(0.5, abs=0.01)
    shares = np.bincount(draws.operation[draws.operation >= 0], minlength=15) / (draws.operation >= 0).sum()
    assert shares == pytest.approx(np.full(15, 1 / 15), abs=0.005)
    assert np.abs(draws.strength).mean() == pytest.approx(0.5, abs=0.001)
    assert np.abs(draws.strength).std() == pytest.approx(0.05, abs=0.001)
    assert (draws.strength > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert np.corrcoef(draws.operation.T)[0, 1] == pytest.approx(0, abs=0.02)
    assert draw_operations(RandAugmentSettings(), 1, 0, 1, MANY).operation.max() == 13, "grey has no saturation"


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (15, 17)), (3, (224, 224))])
def test_an_image_is_augmented_alike_whatever_stands_beside_it(channels, size):
    images, strength = torch.rand(33, channels, *size), torch.rand(33) * 2 - 1
    for operation in operations_for(channels):
        whole = operation(images, strength)
        for count in (1, 2, 8):
            parts = [operation(images[i : i + count], strength[i : i + count]) for i in range(0, 33, count)]
            assert torch.equal(torch.cat(parts), whole), operation


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_shares_of_mixup_are_beta_distributed_and_pairs_share_them():
    mixture = draw_mixture(0.8, 0.0, seed=0, epoch=0, samples=MANY[:8000], size=(32, 32))
    assert np.array_equal(mixture.partner, np.arange(8000) ^ 1)
    assert np.array_equal(mixture.share[::2], mixture.share[1::2])
    assert not mixture.boxes.any()
    shares = mixture.share[::2]
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.005), "the variance of Beta(0.8, 0.8)"


def test_cutmix_pastes_a_box_whose_area_is_the_others_share():
    mixture = draw_mixture(0.0, 1.0, seed=0, epoch=0, samples=MANY[:4000], size=(32, 48))
    images = torch.arange(4000.0).view(-1, 1, 1, 1).expand(-1, 1, 32, 48)
    mixed = mix(images, mixture)
    own = mixed == images
    assert ((mixed == images) | (mixed == images[mixture.partner])).all()
    assert own.float().mean(dim=(1, 2, 3)).numpy() == pytest.approx(mixture.share, abs=1e-6)
    uncut = 1 - mixture.share
    assert 0.3 < uncut.mean() < 0.45, "uniform areas, of which some lie outside"
    left, top, right, bottom = mixture.boxes.T
    assert min(left.min(), top.min()) >= 0
    assert (right.max(), bottom.max()) == (48, 32)


def test_mixup_is_the_weighted_sum_of_two_images():
    images = torch.rand(4, 1, 6, 6)
    shares = np.array([0.25, 0.25, 1.0, 1.0], dtype=np.float32)
    mixed = mix(images, Mixture(np.array([1, 0, 3, 2]), shares, np.zeros((4, 4), dtype=np.int64)))
    torch.testing.assert_close(mixed[0], 0.25 * images[0] + 0.75 * images[1])
    torch.testing.assert_close(mixed[1], 0.25 * images[1] + 0.75 * images[0])
    assert torch.equal(mixed[2:], images[2:])


def test_with_both_kinds_each_pair_draws_one_and_an_odd_image_stays():
    mixture = draw_mixture(0.8, 1.0, seed=0, epoch=0, samples=MANY[:2001], size=(32, 32))
    assert mixture.boxes.any(axis=1).mean() == pytest.approx(0.5, abs=0.06)
    assert (mixture.partner[-1], mixture.share[-1], mixture.boxes[-1].any()) == (2000, 1.0, False)


def test_the_loss_of_a_mixture_is_the_cross_entropy_with_smoothed_shares():
    torch.manual_seed(0)
    logits = torch.randn(5, 4)
    labels, others, share = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 0, 2, 0, 3]), torch.rand(5)
    target = share[:, None] * F.one_hot(labels, 4) + (1 - share[:, None]) * F.one_hot(others, 4)
    target = 0.9 * target + 0.1 / 4
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    found = SupervisedObjective(torch.nn.Identity(), 0.1, bf16=False)(logits, labels, others, share)
    torch.testing.assert_close(found, expected)


# --- erasing ----------------------------------------------------------------------------------------------------------


def test_boxes_of_noise_have_their_areas_and_ratios():
    erasures = draw_erasures(0.25, seed=0, epoch=0, samples=MANY, size=(100, 80))
    left, top, right, bottom = erasures.boxes[erasures.boxes.any(axis=1)].T
    assert len(left) / len(MANY) == pytest.approx(0.25, abs=0.01)
    areas, ratios = (right - left) * (bottom - top) / 8000, (bottom - top) / (right - left)
    assert 0.018 < areas.min() < areas.max() < 0.34
    assert 0.28 < ratios.min() < ratios.max() < 3.6
    assert np.median(ratios) == pytest.approx(1, abs=0.1)
    assert min(left.min(), top.min()) >= 0
    assert (right.max(), bottom.max()) <= (80, 100)


def test_erased_pixels_are_normal_noise_of_the_images_own_seed():
    images = torch.full((2, 3, 60, 60), 9.0)
    boxes = np.array([[10, 5, 50, 55], [0, 0, 0, 0]])
    found = erase(images, Erasures(boxes, np.array([1 << 63, 2], dtype=np.uint64)))
    noise = found[0, :, 5:55, 10:50]
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert (found == 9).sum() == 2 * 3 * 3600 - 3 * 50 * 40
    again = erase(images[:1], Erasures(boxes[:1], np.array([1 << 63], dtype=np.uint64)))
    assert torch.equal(again[0], found[0])


# --- batches ----------------------------------------------------------------------------------------------------------


def seen(world: int, micro_batch: int, processes: int = 0) -> list[torch.Tensor]:
    """What the networks of all ranks see of three global batches of 60, in order: pixels, labels, shares, branches."""
    settings = FinetuneSettings(**STRONG).resolved(MODEL, 90)
    rows, labels = np.arange(90), digits().labels.values
    augmentation = Augmentation(settings, VIEW, 3, labels, MODEL.depth)
    found: list[list[Seen]] = [[], [], []]
    for rank in range(world):
        preparation = LabelledPreparation(digits(), rows, settings, VIEW.size, 3)
        loader = PreparedBatches(preparation, Share(90, 60, 3, rank, world, together=2), 2, processes)
        for step, (crops, samples) in enumerate(loader.batches(0, 3)):
            for first in range(0, len(crops), micro_batch):
                part = slice(first, first + micro_batch)
                found[step].append(augmentation(crops[part], samples[part].numpy(), epoch=step))
    return [
        torch.cat([getattr(each, name) for batch in found for each in batch])
        for name in ("pixels", "labels", "others", "share", "branches")
    ]


def test_any_workers_parts_and_processes_see_the_same_batches():
    whole = seen(1, 60)
    assert whole[0].shape == (180, 1, 16, 16)
    for layout in ((2, 60), (3, 8), (7, 2)):
        assert all(torch.equal(a, b) for a, b in zip(seen(*layout), whole, strict=True)), layout
    assert all(torch.equal(a, b) for a, b in zip(seen(2, 16, processes=2), whole, strict=True))


def test_the_picture_of_a_batch_names_labels_and_shares(monkeypatch):
    texts = []
    monkeypatch.setattr("trainer.finetuning.predictions.write", lambda _pen, _place, text: texts.append(text))
    pixels = (torch.full((3, 1, 16, 16), 0.75) - 0.3) / 0.4
    shares, others = torch.tensor([0.25, 1.0, 0.4]), torch.tensor([2, 1, 0])
    png = batch_picture(Seen(pixels, torch.tensor([1, 0, 0]), others, shares, None), VIEW, ("cat", "dog", "hen"))
    assert texts == ["dog 25%\nhen 75%", "cat 100%", "cat 100%"]
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.getpixel((20, 20)) == (191, 191, 191)
