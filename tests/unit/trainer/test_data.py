"""Folders, the index of readable images, the digits, and a job's training data."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.control import Agreement
from trainer.data import dataset as datasets
from trainer.data.dataset import open_training_data
from trainer.data.index import BadImage, Index, build_index, split
from trainer.data.loader import read
from trainer.data.sources import Digits, Folder, open_source
from trainer.errors import DataError
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec

# --- folders -------------------------------------------------------------------------------------------------------


def fill(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number * 7 % 256, number // 36, 5)).save(root / name)
    return root


def test_first_level_folders_are_the_classes(tmp_path):
    folder = Folder(str(fill(tmp_path, "dog/b.png", "cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG")), 3)
    assert list(folder.names) == ["cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG", "dog/b.png"]
    assert folder.classes == ("cat", "dog")
    assert folder.labels is not None
    assert folder.labels.tolist() == [0, 0, 1, 1]
    assert len(folder) == 4


@pytest.mark.parametrize(
    "names", [("a.png", "b.jpg"), ("only/a.png", "only/b.png"), ("a.png", "cat/b.png", "dog/c.png")]
)
def test_flat_mixed_and_single_folders_have_no_labels(tmp_path, names):
    folder = Folder(str(fill(tmp_path, *names)), 3)
    assert list(folder.names) == sorted(names)
    assert folder.labels is None
    assert folder.classes == ()


def test_hidden_and_other_files_are_passed_over(tmp_path):
    fill(tmp_path, "a.png", ".hidden.png", ".cache/b.png", "sub/.thumbs/c.png", "sub/d.bmp")
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "noend").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    assert list(Folder(str(tmp_path), 3).names) == ["a.png", "sub/d.bmp"]


def test_a_uri_and_a_path_are_the_same_folder(tmp_path):
    fill(tmp_path, "a.png")
    assert list(open_source(f"file://{tmp_path}", 3).names) == list(open_source(str(tmp_path), 3).names)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*/nowhere"):
        Folder(str(tmp_path / "nowhere"), 3)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=f"no images in {tmp_path}"):
        Folder(str(tmp_path), 3)
    with pytest.raises(DataError, match="no folder"):
        Folder(str(tmp_path / "notes.txt"), 3)


def test_a_folder_that_links_to_itself_is_refused(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        Folder(str(tmp_path), 3)


def test_a_link_to_nowhere_is_one_bad_image(tmp_path):
    fill(tmp_path / "data", "a.png", "b.png")
    (tmp_path / "data/gone.png").symlink_to("/nowhere/at/all.png")
    index = build_index(Folder(str(tmp_path / "data"), 3), tmp_path / "cache", 1)
    assert index.good.tolist() == [0, 1]
    assert [bad.name for bad in index.bad] == ["gone.png"]


def test_names_that_are_no_unicode_are_read(tmp_path):
    fill(tmp_path / "data", "a.png")
    odd = os.fsencode(tmp_path / "data") + b"/\xff.png"
    shutil.copy(tmp_path / "data/a.png", odd)
    index = build_index(Folder(str(tmp_path / "data"), 3), tmp_path / "cache", 1)
    assert len(index.good) == 2


# --- index ---------------------------------------------------------------------------------------------------------


def messy(root: Path, good: int = 5) -> Path:
    fill(root, *[f"{number:03d}.png" for number in range(good)])
    (root / "001a.jpg").write_bytes(b"text")
    (root / "zero.png").write_bytes(b"")
    return root


def test_the_index_names_what_cannot_be_read(tmp_path):
    index = build_index(Folder(str(messy(tmp_path / "data")), 3), tmp_path / "cache", threads=2)
    assert index.good.tolist() == [0, 1, 3, 4, 5]
    assert [bad.name for bad in index.bad] == ["001a.jpg", "zero.png"]
    assert all("cannot identify" in bad.reason for bad in index.bad)
    again = Index.from_json(index.to_json())
    np.testing.assert_array_equal(again.good, index.good)
    assert (again.bad, again.fingerprint) == (index.bad, index.fingerprint)
    assert index.bad[0] == BadImage("001a.jpg", index.bad[0].reason)


def no_reading(_self, _position):
    raise AssertionError("an image was read")


def test_a_second_index_reads_no_image(tmp_path, monkeypatch):
    root, cache = messy(tmp_path / "data"), tmp_path / "cache"
    first = build_index(Folder(str(root), 3), cache, threads=1)
    monkeypatch.setattr(Folder, "read", no_reading)
    second = build_index(Folder(str(root), 3), cache, threads=1)
    assert second.to_json() == first.to_json()
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("change", ["added", "removed", "rewritten"])
def test_a_changed_listing_is_indexed_anew(tmp_path, change):
    root, cache = messy(tmp_path / "data"), tmp_path / "cache"
    first = build_index(Folder(str(root), 3), cache, threads=1)
    if change == "added":
        fill(root, "999.png")
    elif change == "removed":
        (root / "000.png").unlink()
    else:
        Image.new("RGB", (6, 4), "white").save(root / "000.png")
        os.utime(root / "000.png", ns=(1, 1))
    second = build_index(Folder(str(root), 3), cache, threads=1)
    assert len(second.good) == len(first.good) + {"added": 1, "removed": -1, "rewritten": 0}[change]
    assert second.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_names_and_pixels_wherever_they_lie(tmp_path):
    def fingerprint(root: Path, cache: str) -> str:
        return build_index(Folder(str(root), 3), tmp_path / cache, threads=2).fingerprint

    here = fingerprint(messy(tmp_path / "here"), "a")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert fingerprint(tmp_path / "there", "b") == here
    assert Folder(str(tmp_path / "there"), 3).listing  # times of change do not matter to the fingerprint
    os.utime(tmp_path / "there/000.png", ns=(1, 1))
    assert fingerprint(tmp_path / "there", "c") == here
    image = Image.open(tmp_path / "there/000.png").convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(tmp_path / "there/000.png")
    assert fingerprint(tmp_path / "there", "d") != here
    (tmp_path / "here/000.png").rename(tmp_path / "here/0000.png")
    assert fingerprint(tmp_path / "here", "e") != here


def test_nothing_readable_is_an_error_that_names_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(b"x")
    for _ in range(2):  # from the cache alike
        with pytest.raises(DataError, match=r"none of the 1 files of .*data can be read; the first is a\.png"):
            build_index(Folder(str(tmp_path / "data"), 3), tmp_path / "cache", threads=1)


@pytest.mark.parametrize("images", [1, 9, 10, 1797, 20_479, 30_000])
def test_the_split_is_the_schedule_s(images):
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}, "optimization": {"global_batch_size": 1}})
    train, held_out = split(images)
    schedule = Schedule.of(spec, images)
    assert (len(train), len(held_out)) == (schedule.train_images, schedule.held_out_images)
    assert sorted([*train, *held_out]) == list(range(images))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(split(images)[1], held_out)


def test_a_file_that_is_lost_after_indexing_is_named(tmp_path):
    folder = Folder(str(fill(tmp_path, "a.png", "b.png")), 3)
    (tmp_path / "b.png").unlink()
    assert read(folder, 0).shape == (4, 6, 3)
    with pytest.raises(DataError, match=r"b\.png of .* cannot now"):
        read(folder, 1)
    (tmp_path / "a.png").write_bytes(b"overwritten")
    with pytest.raises(DataError, match=r"a\.png"):
        read(folder, 0)


# --- digits and the whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_digits(channels):
    digits = open_source("builtin://digits", channels)
    assert isinstance(digits, Digits)
    assert len(digits) == len(digits.names) == 1797
    pixels = digits.read(5)
    assert (pixels.shape, pixels.dtype) == ((32, 32, channels), np.uint8)
    assert pixels[:, :, 0].max() > 200
    for channel in range(1, min(channels, 3)):
        np.testing.assert_array_equal(pixels[:, :, channel], pixels[:, :, 0])
    assert (pixels[:, :, 3:] == 255).all()
    assert digits.classes == tuple("0123456789")
    assert digits.labels is not None
    assert digits.labels[:10].tolist() == list(range(10))
    assert np.bincount(digits.labels).min() > 150


def spec_for(root: Path, **parts) -> PretrainSpec:
    return PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": str(root)}, "optimization": {"global_batch_size": 4}} | parts
    )


def test_training_data_keeps_train_and_held_out_apart(tmp_path, caplog):
    root = messy(tmp_path / "data", good=30)
    data = open_training_data(spec_for(root), tmp_path / "cache", 1, Agreement(1), 0)
    assert (len(data.train), len(data.held_out), data.images) == (27, 3, 30)
    assert not set(data.train) & set(data.held_out)
    assert data.held_out_source is data.source
    assert set(data.tags().values()) == {"30", data.fingerprint}
    assert "001a.jpg" in caplog.text
    assert "2 of 32 files" in caplog.text
    read_positions = {data.source.names[position] for position in [*data.train, *data.held_out]}
    assert len(read_positions) == 30
    assert not read_positions & {"001a.jpg", "zero.png"}


def test_long_lists_of_bad_files_are_cut_short_in_the_log(tmp_path, caplog):
    root = fill(tmp_path / "data", "a.png")
    for number in range(50):
        (root / f"bad-{number}.png").write_bytes(b"")
    open_training_data(spec_for(root), tmp_path / "cache", 1, Agreement(1), 0)
    assert caplog.text.count("Left out") == datasets.BAD_NAMES_LOGGED
    assert "50 of 51 files" in caplog.text


def test_a_held_out_dataset_of_its_own_leaves_all_images_to_training(tmp_path):
    root, other = fill(tmp_path / "data", *[f"{i}.png" for i in range(20)]), fill(tmp_path / "other", "x.png", "y.png")
    data = open_training_data(
        spec_for(root, evaluation={"dataset": {"uri": str(other)}}), tmp_path / "cache", 1, Agreement(1), 0
    )
    assert (len(data.train), len(data.held_out)) == (20, 2)
    assert list(data.held_out_source.names) == ["x.png", "y.png"]


def test_a_probe_without_labels_is_refused_only_where_it_was_asked_for(tmp_path):
    root = fill(tmp_path / "data", *[f"{i}.png" for i in range(20)])
    with pytest.raises(DataError, match=r"evaluation\.probes: .* no labels"):
        open_training_data(spec_for(root, evaluation={"probes": ["linear"]}), tmp_path / "cache", 1, Agreement(1), 0)
    for probes in ("auto", []):
        spec = spec_for(root, evaluation={"probes": probes})
        assert open_training_data(spec, tmp_path / "cache", 1, Agreement(1), 0).source.labels is None


def test_given_mean_and_deviation_are_used(tmp_path):
    root = fill(tmp_path / "data", "a.png")
    spec = spec_for(root, augmentation={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    data = open_training_data(spec, tmp_path / "cache", 1, Agreement(1), 0)
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
