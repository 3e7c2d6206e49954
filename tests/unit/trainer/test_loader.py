"""Batches: the same for any number of workers, threads and starts."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import samples, write_folder
from PIL import Image

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.images import IMAGENET_MEAN, IMAGENET_STD, Images, channel_statistics
from trainer.data.loader import Loader
from trainer.data.scale import Scale
from trainer.errors import DataError, StorageError
from trainer.spec.dataset import DIGITS as DIGITS_URI
from trainer.spec.dataset import DatasetSpec
from trainer.spec.pretrain import PretrainSpec


def images_at(uri: str, cache: Path = Path("/nonexistent"), channels: int = 3) -> Images:
    dataset = DatasetSpec.model_validate({"uri": uri} | ({} if uri == DIGITS_URI else {"cache": "none"}))
    return open_images(dataset, channels, (16, 16), DatasetContext(Cache(cache), 1, Agreement(1), 0))


DIGITS = images_at(DIGITS_URI, channels=1)
ROWS = np.arange(3, 103)


def spec_of(batch: int = 12, model: dict | None = None, **parts) -> PretrainSpec:
    sizes = {"preset": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 4, "in_chans": 1} | (model or {})
    return PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": "builtin://digits"}, "model": sizes,
         "optimization": {"global_batch_size": batch}, "resources": {"loader_processes": 0}} | parts
    )  # fmt: skip


def loader(spec: PretrainSpec, rank: int = 0, world: int = 1, threads: int = 1) -> Loader:
    return Loader(DIGITS, ROWS, spec, rank, world, threads, pin=False)


def epoch_of(spec: PretrainSpec, epoch: int = 0, first_step: int = 0, rank: int = 0, world: int = 1, threads: int = 1):
    steps = len(ROWS) // spec.optimization.global_batch_size
    return list(loader(spec, rank, world, threads).batches(epoch * steps + first_step, (epoch + 1) * steps))


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


def test_epochs_follow_one_another_from_any_step():
    spec = spec_of()
    whole = [batch for epoch in range(3) for batch in epoch_of(spec, epoch)]
    assert_same(list(loader(spec).batches(5, 21)), whole[5:21])
    assert list(loader(spec).batches(24, 24)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_make_the_same_batches_as_threads(processes):
    spec = spec_of(40, resources={"loader_processes": processes})
    made = list(loader(spec, rank=1, world=2).batches(1, 5))
    assert_same(made, list(loader(spec_of(40), rank=1, world=2).batches(1, 5)))


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
    known = {DIGITS.pixels(row).tobytes() for row in ROWS}
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


def test_batches_that_are_left_early_leave_no_thread():
    batches = loader(spec_of(), threads=3).batches(0, 8)
    next(batches)
    assert alive("images")
    batches.close()
    assert not alive("images")


def folder_of(root: Path, images: int = 12) -> Images:
    root.mkdir(exist_ok=True)
    for number in range(images):
        Image.new("RGB", (30, 20), (number, 2 * number, 3 * number)).save(root / f"{number:02d}.png")
    return images_at(str(root), root.parent / "cache")


@pytest.mark.parametrize("processes", [0, 1])
def test_an_image_damaged_while_training_ends_the_batches_with_its_name(tmp_path, processes):
    folder = folder_of(tmp_path / "data")
    (tmp_path / "data/07.png").write_bytes(b"overwritten")
    spec = spec_of(4, {"in_chans": 3}, resources={"loader_processes": processes})
    with pytest.raises(
        DataError, match=r"^07\.png of .*/data could be decoded when the index was made and cannot be now"
    ):
        list(Loader(folder, np.arange(12), spec, 0, 1, 2, pin=False).batches(0, 3))
    assert not alive("images")


@pytest.mark.usefixtures("pauses")
def test_an_image_lost_while_training_ends_the_batches_with_its_name(tmp_path):
    folder = folder_of(tmp_path / "data")
    (tmp_path / "data/07.png").unlink()
    with pytest.raises(
        StorageError, match=r"/data/07\.png: the file was there when the dataset was listed and is gone"
    ):
        list(Loader(folder, np.arange(12), spec_of(4, {"in_chans": 3}), 0, 1, 2, pin=False).batches(0, 3))
    assert not alive("images")


class Away:
    """A reader of a storage that cannot be reached."""

    def fetch(self, _rows):
        raise StorageError("s3://bucket/a.tar: cannot be reached")


@pytest.mark.parametrize("processes", [0, 1])
def test_a_storage_that_is_away_keeps_its_reason(processes):
    spec = spec_of(4, resources={"loader_processes": processes})
    images = Images("s3://bucket", DIGITS.index, Away(), 1, Scale())
    with pytest.raises(StorageError, match=r"^s3://bucket/a\.tar: cannot be reached$"):
        list(Loader(images, ROWS, spec, 0, 1, 1, pin=False).batches(0, 3))


def test_whole_images_are_the_largest_central_box(tmp_path):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    (tmp_path / "wide").mkdir()
    Image.fromarray(pixels).save(tmp_path / "wide/a.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "wide/b.png")
    wide = images_at(str(tmp_path / "wide"), tmp_path / "cache")
    images = wide.fitted(np.array([0, 1]), (20, 20))
    assert (images.shape, images.dtype) == ((2, 3, 20, 20), np.uint8)
    middle = pixels[:, 10:30]
    np.testing.assert_array_equal(images[0].transpose(1, 2, 0), middle)
    np.testing.assert_array_equal(images[1].transpose(1, 2, 0), middle.transpose(1, 0, 2))
    whole = wide.fitted(np.array([0]), (20, 40))
    np.testing.assert_array_equal(whole[0].transpose(1, 2, 0), pixels)


def test_whole_images_are_resized_to_the_model_s_size():
    images = DIGITS.fitted(np.array([4, 0, 4]), (16, 24))
    assert images.shape == (3, 1, 16, 24)
    np.testing.assert_array_equal(images[0], images[2])
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize("size", [(32, 32), (20, 48), (224, 224), (8, 100)])
def test_whole_images_of_any_shape_lie_inside(tmp_path, size):
    images = images_at(write_folder(tmp_path / "data", samples(12)), tmp_path / "cache")
    assert images.fitted(np.arange(12), size).shape == (12, 3, *size)


def test_three_channels_are_normalised_as_imagenet_is(monkeypatch):
    monkeypatch.setattr(Images, "pixels", None)  # nothing is read to know that
    assert channel_statistics(images_at(DIGITS_URI, channels=3), ROWS) == (IMAGENET_MEAN, IMAGENET_STD)


def test_other_channels_are_measured():
    mean, std = channel_statistics(DIGITS, ROWS)
    values = np.stack([DIGITS.pixels(row) for row in ROWS]) / 255
    assert mean == pytest.approx((values.mean(),))
    assert std == pytest.approx((values.std(),))


def test_a_constant_channel_does_not_divide_by_nothing():
    mean, std = channel_statistics(images_at(DIGITS_URI, channels=4), ROWS)
    assert len(mean) == len(std) == 4
    assert mean[3] == pytest.approx(1)
    assert std[3] == pytest.approx(1e-3)


@pytest.mark.parametrize(("most", "apart"), [(10, 10), (60, 2), (99, 2), (100, 1), (2000, 1)])
def test_statistics_are_of_images_from_all_over_the_set(monkeypatch, most, apart):
    monkeypatch.setattr("trainer.data.images.STATISTICS_IMAGES", most)
    chosen = []
    pixels = Images.pixels
    monkeypatch.setattr(Images, "pixels", lambda self, row: chosen.append(row) or pixels(self, row))
    channel_statistics(DIGITS, ROWS)
    assert chosen == ROWS[::apart].tolist()
