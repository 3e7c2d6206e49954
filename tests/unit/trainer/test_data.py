"""The index of readable images, and a job's training data."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_sets import SIZE, WRITERS, fill, opened, picture, place, samples, write_tars
from PIL import Image
from sklearn.datasets import load_digits

from trainer.data.dataset import open_images, open_training_data
from trainer.data.index import BAD_NAMES_LOGGED, split
from trainer.data.labels import Labels
from trainer.data.readers import DigitsReader, RangeReader
from trainer.errors import DataError, StorageError
from trainer.spec.dataset import DatasetSpec
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec

# --- one index for every format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_images(tmp_path, kind):
    made = samples(30)
    images = opened(WRITERS[kind](tmp_path / "data", made), tmp_path)
    assert len(images) == 30
    for row in (0, 7, 29, 3):
        with Image.open(io.BytesIO(made[row].data)) as image:
            expected = np.asarray(image.convert("RGB"))
        assert images.pixels(row).shape == expected.shape == (images.index.heights[row], images.index.widths[row], 3)
        assert np.abs(images.pixels(row).astype(int) - expected).max() <= 2
    assert len(images.labels.counts()) == 3
    assert images.labels.values.tolist() == [sample.label for sample in made]
    assert [bytes(raw) for raw in images.reader.fetch([29, 0, 5, 5])] == [made[row].data for row in (29, 0, 5, 5)]


def test_the_fingerprint_is_of_the_images_wherever_they_lie_and_however_packed(tmp_path):
    made = samples(12)
    prints = {kind: opened(write(tmp_path / kind, made), tmp_path).index.fingerprint for kind, write in WRITERS.items()}
    assert len(set(prints.values())) == 1
    shutil.copytree(tmp_path / "folder", tmp_path / "copy")
    assert opened(tmp_path / "copy", tmp_path).index.fingerprint == prints["folder"]
    assert opened(tmp_path / "copy", tmp_path, channels=1).index.fingerprint == prints["folder"]
    (tmp_path / "copy" / made[3].name).write_bytes(picture(999, (30, 30)))
    assert opened(tmp_path / "copy", tmp_path).index.fingerprint != prints["folder"]
    assert opened(write_tars(tmp_path / "swapped", made[::-1]), tmp_path).index.fingerprint != prints["folder"]


def messy(root: Path, good: int = 5) -> Path:
    fill(root, *[f"{number:03d}.png" for number in range(good)])
    (root / "001a.jpg").write_bytes(b"text")
    (root / "zero.png").write_bytes(b"")
    return root


def test_the_index_names_what_cannot_be_read(tmp_path):
    index = opened(messy(tmp_path / "data"), tmp_path).index
    assert list(index.table.names) == [f"{number:03d}.png" for number in range(5)]
    assert [bad.name for bad in index.bad] == ["001a.jpg", "zero.png"]
    assert all(bad.reason for bad in index.bad)


def test_a_kept_index_is_the_same(tmp_path):
    for uri in (messy(tmp_path / "data"), write_tars(tmp_path / "tars", samples(9))):
        first, again = (opened(uri, tmp_path).index for _ in range(2))
        assert (again.bad, again.seen, again.fingerprint) == (first.bad, first.seen, first.fingerprint)
        assert (list(again.table.names), again.table.notices) == (list(first.table.names), first.table.notices)
        assert str(again.table.labels) == str(first.table.labels)
        for name in ("heights", "widths", "lengths", "jpeg"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
        for name in ("file", "first", "second"):
            np.testing.assert_array_equal(getattr(again.table, name), getattr(first.table, name))
        np.testing.assert_array_equal(again.table.labels.values, first.table.labels.values)


def no_reading(*_):
    raise AssertionError("an image was read")


def test_a_second_look_reads_no_image_and_a_changed_set_is_looked_at_anew(tmp_path, monkeypatch):
    root = messy(tmp_path / "data")
    first = opened(root, tmp_path).index
    with monkeypatch.context() as patch:
        patch.setattr(RangeReader, "fetch", no_reading)
        assert opened(root, tmp_path).index.fingerprint == first.fingerprint
        fill(root, "new.png")
        with pytest.raises(AssertionError, match="was read"):
            opened(root, tmp_path)
    assert len(opened(root, tmp_path).index) == len(first) + 1


def test_names_that_are_no_unicode_are_read(tmp_path):
    fill(tmp_path / "data", "a.png")
    shutil.copy(tmp_path / "data/a.png", os.fsencode(tmp_path / "data") + b"/\xff.png")
    assert len(opened(tmp_path / "data", tmp_path)) == 2
    assert len(opened(tmp_path / "data", tmp_path)) == 2  # from the kept index


@pytest.mark.usefixtures("pauses")
def test_a_file_that_is_lost_after_indexing_is_named(tmp_path):
    images = opened(fill(tmp_path / "data", "a.png", "b.png"), tmp_path)
    (tmp_path / "data/b.png").unlink()
    assert images.pixels(0).shape == (4, 6, 3)
    with pytest.raises(StorageError, match=r"/data/b\.png: the file was there when the dataset was listed and is gone"):
        images.pixels(1)
    (tmp_path / "data/a.png").write_bytes(b"overwritten")
    with pytest.raises(DataError, match=r"a\.png of .* could be decoded when the index was made and cannot be now"):
        images.pixels(0)


# --- too many bad ones ------------------------------------------------------------------------------------------------


def test_too_many_bad_images_end_the_job(tmp_path):
    root = messy(tmp_path / "data", good=6)
    with pytest.raises(DataError, match=r"dataset\.max_bad_fraction: 2 of 8 .* \(25\.0%, 24\.0% are allowed\): .*001a"):
        opened(root, tmp_path, max_bad_fraction=0.24)
    assert len(opened(root, tmp_path, max_bad_fraction=0.25)) == 6


def test_nothing_readable_is_an_error_that_names_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(b"x")
    for _ in range(2):  # from the kept index alike
        with pytest.raises(DataError, match=r"none of the 1 images of .*data can be read: .*; the first is a\.png"):
            opened(tmp_path / "data", tmp_path)


def test_long_lists_of_bad_files_are_cut_short_in_the_log(tmp_path, caplog):
    root = fill(tmp_path / "data", "a.png")
    for number in range(50):
        (root / f"bad-{number}.png").write_bytes(b"")
    opened(root, tmp_path)
    assert caplog.text.count("Left out") == BAD_NAMES_LOGGED
    assert "50 of 51 images" in caplog.text


# --- digits and the whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_digits(tmp_path, channels):
    digits = open_images(DatasetSpec(uri="builtin://digits"), channels, SIZE, place(tmp_path))
    assert len(digits) == 1797
    pixels = digits.pixels(5)
    assert (pixels.shape, pixels.dtype) == ((32, 32, channels), np.uint8)
    assert pixels[:, :, 0].max() > 200
    for channel in range(1, min(channels, 3)):
        np.testing.assert_array_equal(pixels[:, :, channel], pixels[:, :, 0])
    assert (pixels[:, :, 3:] == 255).all()
    assert digits.labels.classes == tuple("0123456789")
    assert digits.labels.values[:10].tolist() == list(range(10))
    assert min(digits.labels.counts().values()) > 150


def test_digits_are_those_of_scikit_learn():
    found, reader = load_digits(), DigitsReader(1)
    assert reader.labels.tolist() == found.target.tolist()
    small = np.rint(found.images * (255 / 16)).astype(np.uint8)
    enlarged = [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in small]
    assert np.array_equal(np.stack(reader.fetch(range(len(found.images))))[..., 0], np.stack(enlarged))


def test_a_worker_starts_without_what_only_a_probe_needs():
    """Scikit-learn takes longer to import than torch does."""
    found = "import sys, trainer.training.loop, trainer.data.readers as r; r.DigitsReader(1)"
    found += "; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", found], check=False).returncode == 0


@pytest.mark.parametrize("images", [1, 9, 10, 1797, 20_479, 30_000])
def test_the_split_is_the_schedule_s(images):
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}, "optimization": {"global_batch_size": 1}})
    train, held_out = split(Labels.none(images), by_class=True)
    schedule = Schedule.of(spec, images)
    assert (len(train), len(held_out)) == (schedule.train_images, schedule.held_out_images)
    assert sorted([*train, *held_out]) == list(range(images))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(split(Labels.none(images), by_class=True)[1], held_out)


def spec_for(root, **parts) -> PretrainSpec:
    fields = {"kind": "pretrain", "dataset": {"uri": str(root)}, "optimization": {"global_batch_size": 4}}
    return PretrainSpec.parse(fields | parts)


def test_training_data_keeps_train_and_held_out_apart(tmp_path, caplog):
    data = open_training_data(spec_for(messy(tmp_path / "data", good=30)), place(tmp_path))
    assert (len(data.train), len(data.held_out), len(data.images)) == (27, 3, 30)
    assert not set(data.train) & set(data.held_out)
    assert data.held_out_images is data.images
    assert {"30", data.fingerprint} < set(data.tags().values())
    assert "001a.jpg" in caplog.text
    assert "2 of 32 images" in caplog.text


def test_a_held_out_dataset_of_its_own_leaves_all_images_to_training(tmp_path):
    root, other = fill(tmp_path / "data", *[f"{i}.png" for i in range(20)]), fill(tmp_path / "other", "x.png", "y.png")
    data = open_training_data(spec_for(root, evaluation={"dataset": {"uri": str(other)}}), place(tmp_path))
    assert (len(data.train), len(data.held_out)) == (20, 2)
    assert list(data.held_out_images.index.table.names) == ["x.png", "y.png"]


def test_given_mean_and_deviation_are_used(tmp_path):
    root = fill(tmp_path / "data", "a.png", "b.png")
    spec = spec_for(root, augmentation={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    data = open_training_data(spec, place(tmp_path))
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("evaluated", "message"),
    [
        ({"uri": "/nowhere"}, r"^evaluation\.dataset\.uri: there is no folder or file /nowhere"),
        ({"include": ["*.gif"]}, r"^evaluation\.dataset\.include: none of the 2 images"),
        ({"label_column": "x"}, r"^evaluation\.dataset\.label_column: 'x'"),
        ({"max_bad_fraction": 0}, r"^evaluation\.dataset\.max_bad_fraction: 1 of 2"),
    ],
)
def test_errors_of_the_images_to_evaluate_on_name_their_own_fields(tmp_path, evaluated, message):
    fill(tmp_path / "train", "a.png", "b.png")
    fill(tmp_path / "test", "a.png")
    (tmp_path / "test/b.png").write_bytes(b"no image")
    datasets = {
        "dataset": {"uri": str(tmp_path / "train")},
        "evaluation": {"dataset": {"uri": str(tmp_path / "test")} | evaluated},
    }
    spec = PretrainSpec.model_validate({"kind": "pretrain", "model": {"img_size": 32, "patch_size": 8}} | datasets)
    with pytest.raises(DataError, match=message):
        open_training_data(spec, place(tmp_path))
