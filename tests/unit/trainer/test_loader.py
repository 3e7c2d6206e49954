"""Batches: the same for any number of workers, threads and starts."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.data.loader import IMAGENET_MEAN, IMAGENET_STD, Loader, channel_statistics, fixed_images
from trainer.data.sources import Digits, Folder
from trainer.errors import DataError
from trainer.spec.pretrain import PretrainSpec

DIGITS = Digits(1)
POSITIONS = np.arange(3, 103)


def spec_of(batch: int = 12, model: dict | None = None, **parts) -> PretrainSpec:
    sizes = {"preset": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 4, "in_chans": 1} | (model or {})
    return PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": "builtin://digits"}, "model": sizes,
         "optimization": {"global_batch_size": batch}} | parts
    )  # fmt: skip


def epoch_of(spec: PretrainSpec, epoch: int = 0, first_step: int = 0, rank: int = 0, world: int = 1, threads: int = 1):
    return list(Loader(DIGITS, POSITIONS, spec, rank, world, threads).epoch(epoch, first_step))


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.orders, other.orders)


def alive(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


@pytest.mark.parametrize(("batch", "steps"), [(12, 8), (40, 2), (50, 2), (100, 1)])
def test_an_epoch_is_whole_batches_of_the_right_kind(batch, steps):
    batches = epoch_of(spec_of(batch))
    assert len(batches) == steps
    for made in batches:
        assert (made.images.shape, made.images.dtype) == ((batch, 1, 16, 16), torch.uint8)
        assert (made.orders.shape, made.orders.dtype) == ((batch, 16), torch.int64)
        assert torch.equal(made.orders.sort(dim=1).values, torch.arange(16).expand(batch, -1))


def test_more_images_than_a_batch_are_needed():
    assert list(Loader(DIGITS, POSITIONS[:11], spec_of(12), 0, 1, 1).epoch(0)) == []


@pytest.mark.parametrize("first_step", range(9))
def test_an_epoch_from_a_step_on_is_the_tail_of_the_whole(first_step):
    whole = epoch_of(spec_of(), epoch=2)
    tail = epoch_of(spec_of(), epoch=2, first_step=first_step)
    assert len(tail) == 8 - first_step
    if tail:
        assert_same(tail, whole[first_step:])


@pytest.mark.parametrize("world", [2, 3, 4, 6])
def test_the_ranks_shares_make_up_the_global_batch(world):
    whole = epoch_of(spec_of())
    ranks = [epoch_of(spec_of(), rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[step].images for rank in ranks]), batch.images)
        assert torch.equal(torch.cat([rank[step].orders for rank in ranks]), batch.orders)


def test_threads_and_their_chunks_change_nothing(monkeypatch):
    one = epoch_of(spec_of(), threads=1)
    assert_same(epoch_of(spec_of(), threads=4), one)
    monkeypatch.setattr("trainer.data.loader.CHUNK", 5)
    assert_same(epoch_of(spec_of(), threads=3), one)


def test_epochs_and_seeds_see_other_crops():
    first = epoch_of(spec_of())
    for other in (epoch_of(spec_of(), epoch=1), epoch_of(spec_of(seed=1))):
        assert not torch.equal(first[0].images, other[0].images)
        assert not torch.equal(first[0].orders, other[0].orders)


def test_without_flip_and_with_whole_crops_the_images_are_those_of_the_source():
    whole = spec_of(100, {"img_size": 32}, augmentation={"hflip": False, "crop_scale": [1, 1]})
    (batch,) = epoch_of(whole)
    known = {DIGITS.read(position).tobytes() for position in POSITIONS}
    exact = sum(image.numpy().transpose(1, 2, 0).tobytes() in known for image in batch.images)
    assert exact > 50  # a box of all of a square but for its rounding
    mirrored = spec_of(100, {"img_size": 32}, augmentation={"crop_scale": [1, 1]})
    (flipped,) = epoch_of(mirrored)
    same = [torch.equal(a, b) for a, b in zip(batch.images, flipped.images, strict=True)]
    turned = [torch.equal(a.flip(2), b) for a, b in zip(batch.images, flipped.images, strict=True)]
    assert all(one or other for one, other in zip(same, turned, strict=True))
    assert 30 < sum(turned) < 70


def test_images_are_not_square_where_the_spec_says_so():
    (batch, *_) = epoch_of(spec_of(12, {"img_size": [8, 24]}))
    assert batch.images.shape == (12, 1, 8, 24)
    assert batch.orders.shape == (12, 12)


def test_an_epoch_that_is_left_early_leaves_no_thread():
    batches = Loader(DIGITS, POSITIONS, spec_of(), 0, 1, 3).epoch(0)
    next(batches)
    assert alive("images")
    batches.close()
    assert not alive("images")


def folder_of(root: Path, images: int = 12) -> Folder:
    root.mkdir(exist_ok=True)
    for number in range(images):
        Image.new("RGB", (30, 20), (number, 2 * number, 3 * number)).save(root / f"{number:02d}.png")
    return Folder(str(root), 3)


def test_an_image_lost_while_training_ends_the_epoch_with_its_name(tmp_path):
    folder = folder_of(tmp_path / "data")
    (tmp_path / "data/07.png").unlink()
    loader = Loader(folder, np.arange(12), spec_of(4, {"in_chans": 3}), 0, 1, 2)
    with pytest.raises(DataError, match=r"07\.png"):
        list(loader.epoch(0))
    assert not alive("images")


def test_fixed_images_are_the_largest_central_box(tmp_path):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    (tmp_path / "wide").mkdir()
    Image.fromarray(pixels).save(tmp_path / "wide/a.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "wide/b.png")
    images = fixed_images(Folder(str(tmp_path / "wide"), 3), np.array([0, 1]), (20, 20))
    assert (images.shape, images.dtype) == ((2, 3, 20, 20), torch.uint8)
    middle = pixels[:, 10:30]
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), middle)
    np.testing.assert_array_equal(images[1].permute(1, 2, 0).numpy(), middle.transpose(1, 0, 2))
    wide = fixed_images(Folder(str(tmp_path / "wide"), 3), np.array([0]), (20, 40))
    np.testing.assert_array_equal(wide[0].permute(1, 2, 0).numpy(), pixels)


def test_fixed_images_are_resized_to_the_model_s_size():
    images = fixed_images(DIGITS, np.array([4, 0, 4]), (16, 24))
    assert images.shape == (3, 1, 16, 24)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_three_channels_are_normalised_as_imagenet_is(monkeypatch):
    monkeypatch.setattr(Digits, "read", None)  # nothing is read to know that
    assert channel_statistics(Digits(3), POSITIONS, 3) == (IMAGENET_MEAN, IMAGENET_STD)


def test_other_channels_are_measured():
    mean, std = channel_statistics(DIGITS, POSITIONS, 1)
    values = np.stack([DIGITS.read(position) for position in POSITIONS]) / 255
    assert mean == pytest.approx((values.mean(),))
    assert std == pytest.approx((values.std(),))


def test_a_constant_channel_does_not_divide_by_nothing():
    mean, std = channel_statistics(Digits(4), POSITIONS, 4)
    assert len(mean) == len(std) == 4
    assert mean[3] == pytest.approx(1)
    assert std[3] == pytest.approx(1e-3)


@pytest.mark.parametrize(("most", "apart"), [(10, 10), (60, 2), (99, 2), (100, 1), (2000, 1)])
def test_statistics_are_of_images_from_all_over_the_set(monkeypatch, most, apart):
    monkeypatch.setattr("trainer.data.loader.STATISTICS_IMAGES", most)
    chosen = []
    read = Digits.read
    monkeypatch.setattr(Digits, "read", lambda self, position: chosen.append(position) or read(self, position))
    channel_statistics(DIGITS, POSITIONS, 1)
    assert chosen == POSITIONS[::apart].tolist()
