"""Folders, tars and Parquet files; the index of readable images; a job's training data."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import CLASSES, WRITERS, add, parquet_table, picture, samples, write_folder, write_parquet, write_tars
from PIL import Image

from trainer.control import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import Place, open_images, open_training_data
from trainer.data.images import Images
from trainer.data.index import BAD_NAMES_LOGGED, Index, split
from trainer.data.readers import RangeReader
from trainer.data.sources import find_files
from trainer.errors import DataError
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import DatasetSpec, PretrainSpec

SIZE = (16, 16)


def dataset(uri, **fields) -> DatasetSpec:
    return DatasetSpec.model_validate({"uri": str(uri), "cache": "none", **fields})


def place(tmp_path: Path, threads: int = 1) -> Place:
    return Place(Cache(tmp_path / "cache"), threads, Agreement(1), 0)


def opened(uri, tmp_path: Path, channels: int = 3, **fields) -> Images:
    fields = {"max_bad_fraction": 1.0, **fields}
    return open_images(dataset(uri, **fields), "dataset", channels, SIZE, place(tmp_path))


def names_of(uri, **fields) -> list[str]:
    return list(find_files(dataset(uri, **fields)).names)


def fill(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number * 7 % 256, number // 36, 5)).save(root / name)
    return root


# --- which files ------------------------------------------------------------------------------------------------------


def test_hidden_and_other_files_are_passed_over(tmp_path):
    fill(tmp_path, "a.png", ".hidden.png", ".cache/b.png", "sub/.thumbs/c.png", "sub/d.bmp", "E.JPG")
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "noend").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    assert names_of(tmp_path) == ["E.JPG", "a.png", "sub/d.bmp"]
    assert names_of(f"file://{tmp_path}") == names_of(tmp_path)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_format_is_told_by_the_files(tmp_path, kind):
    uri = WRITERS[kind](tmp_path / "data", samples(12))
    files = find_files(dataset(uri))
    assert files.kind == kind
    assert find_files(dataset(uri, format=kind)) == files
    assert files.names == tuple(sorted(files.names))
    assert [Path(path).stat().st_size for path in files.paths] == list(files.sizes)


def test_one_file_and_a_pattern(tmp_path):
    write_parquet(tmp_path, samples(12), files=3)
    pq.write_table(parquet_table(samples(4)), tmp_path / "test.parquet")
    assert names_of(tmp_path / "test.parquet") == ["test.parquet"]
    assert names_of(tmp_path / "train-*.parquet") == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]
    assert len(names_of(tmp_path)) == 4
    with pytest.raises(DataError, match=r"no images in .*none-"):
        names_of(tmp_path / "none-*.parquet")


def test_several_formats_in_one_place_must_be_told_apart(tmp_path):
    write_parquet(tmp_path, samples(4), files=1)
    fill(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"dataset\.format: .* several formats \(1 of folder, 1 of parquet\)"):
        find_files(dataset(tmp_path))
    assert names_of(tmp_path, format="folder") == ["a.png"]
    with pytest.raises(DataError, match=r"needs files named \.tar; there are 1 of folder, 1 of parquet"):
        find_files(dataset(tmp_path, format="tar"))


def test_a_missing_or_empty_place_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder or file .*/nowhere"):
        find_files(dataset(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=f"no images in .*{tmp_path}"):
        find_files(dataset(tmp_path))


@pytest.mark.parametrize("name", ["a.tar.gz", "b.tgz", "c.tar.zst"])
def test_compressed_tars_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"{name} .* unpack it to .tar"):
        find_files(dataset(tmp_path))


def test_a_folder_that_links_to_itself_is_refused(tmp_path):
    fill(tmp_path, "a.png")
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="cannot be listed"):
        find_files(dataset(tmp_path))


@pytest.mark.parametrize("change", ["added", "removed", "rewritten"])
def test_a_changed_listing_is_another_listing(tmp_path, change):
    root = fill(tmp_path, "a.png", "b.png", "c.png")
    before = find_files(dataset(root)).listing
    assert find_files(dataset(root)).listing == before
    if change == "added":
        fill(root, "z.png")
    elif change == "removed":
        (root / "c.png").unlink()
    else:
        os.utime(root / "b.png", ns=(1, 1))
    assert find_files(dataset(root)).listing != before


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
    assert images.labels.tolist() == [sample.label for sample in made]
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


def test_a_saved_index_is_the_same(tmp_path):
    for uri in (messy(tmp_path / "data"), write_tars(tmp_path / "tars", samples(9))):
        index = opened(uri, tmp_path).index
        index.save(tmp_path / "index.npz")
        again = Index.load(tmp_path / "index.npz")
        assert (again.bad, again.fingerprint, list(again.table.names)) == (
            index.bad, index.fingerprint, list(index.table.names),
        )  # fmt: skip
        for name in ("heights", "widths", "lengths", "jpeg"):
            np.testing.assert_array_equal(getattr(again, name), getattr(index, name))
        for name in ("file", "first", "second"):
            np.testing.assert_array_equal(getattr(again.table, name), getattr(index.table, name))
        assert (again.table.labels is None) == (index.table.labels is None)


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


def test_a_link_to_nowhere_is_one_bad_image(tmp_path):
    fill(tmp_path / "data", "a.png", "b.png")
    (tmp_path / "data/gone.png").symlink_to("/nowhere/at/all.png")
    index = opened(tmp_path / "data", tmp_path).index
    assert list(index.table.names) == ["a.png", "b.png"]
    assert [bad.name for bad in index.bad] == ["gone.png"]


def test_names_that_are_no_unicode_are_read(tmp_path):
    fill(tmp_path / "data", "a.png")
    shutil.copy(tmp_path / "data/a.png", os.fsencode(tmp_path / "data") + b"/\xff.png")
    assert len(opened(tmp_path / "data", tmp_path)) == 2
    assert len(opened(tmp_path / "data", tmp_path)) == 2  # from the kept index


def test_a_file_that_is_lost_after_indexing_is_named(tmp_path):
    images = opened(fill(tmp_path / "data", "a.png", "b.png"), tmp_path)
    (tmp_path / "data/b.png").unlink()
    assert images.pixels(0).shape == (4, 6, 3)
    with pytest.raises(DataError, match=r"b\.png of .* cannot now"):
        images.pixels(1)
    (tmp_path / "data/a.png").write_bytes(b"overwritten")
    with pytest.raises(DataError, match=r"a\.png"):
        images.pixels(0)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_first_level_folders_are_the_classes(tmp_path):
    images = opened(fill(tmp_path, "dog/b.png", "cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG"), tmp_path / "c")
    assert list(images.index.table.names) == ["cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG", "dog/b.png"]
    assert images.index.table.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "names", [("a.png", "b.jpg"), ("only/a.png", "only/b.png"), ("a.png", "cat/b.png", "dog/c.png")]
)
def test_flat_mixed_and_single_folders_have_no_labels(tmp_path, names):
    images = opened(fill(tmp_path / "data", *names), tmp_path)
    assert images.labels is None
    assert images.index.table.classes == ()


def tar_of(root: Path, *members: tuple[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "a.tar", "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return root


def test_labels_of_tars_are_cls_members_or_folders(tmp_path):
    one, two = picture(1, (20, 20)), picture(2, (20, 20))
    numbers = tar_of(tmp_path / "a", ("x/1.jpg", one), ("x/1.cls", b"7\n"), ("x/2.cls", b"3"), ("x/2.jpg", two))
    assert opened(numbers, tmp_path).labels.tolist() == [7, 3]
    words = opened(
        tar_of(tmp_path / "b", ("1.jpg", one), ("1.cls", b"dog"), ("2.jpg", two), ("2.cls", b"cat")), tmp_path
    )
    assert (words.labels.tolist(), words.index.table.classes) == ([1, 0], ("cat", "dog"))
    folders = opened(tar_of(tmp_path / "c", ("./dog/1.jpg", one), ("./cat/1.jpg", two)), tmp_path)
    assert (folders.labels.tolist(), folders.index.table.classes) == ([1, 0], ("cat", "dog"))
    partly = opened(tar_of(tmp_path / "d", ("1.jpg", one), ("1.cls", b"7"), ("2.jpg", two)), tmp_path)
    assert partly.labels is None


def test_labels_of_parquet_are_a_column_of_numbers_or_words(tmp_path):
    made = samples(6)
    data = tmp_path / "data"
    data.mkdir()

    def labels(table: pa.Table):
        pq.write_table(table, data / "a.parquet")
        images = opened(data, tmp_path)
        return (None if images.labels is None else images.labels.tolist()), images.index.table.classes

    plain = parquet_table(made)
    assert labels(plain) == ([0, 0, 1, 1, 2, 2], ())
    named = {"info": {"features": {"label": {"_type": "ClassLabel", "names": list(CLASSES)}}}}
    assert labels(plain.replace_schema_metadata({"huggingface": json.dumps(named)})) == ([0, 0, 1, 1, 2, 2], CLASSES)
    words = plain.set_column(1, "class", pa.array([CLASSES[sample.label] for sample in made]))
    assert labels(words) == ([0, 0, 1, 1, 2, 2], CLASSES)
    assert labels(plain.set_column(1, "label", pa.array([-1] * 6)))[0] is None
    assert labels(plain.set_column(1, "label", pa.array([0, None, 1, 1, 2, 2])))[0] is None
    assert labels(plain.drop_columns("label"))[0] is None


# --- hostile containers -----------------------------------------------------------------------------------------------


def test_odd_members_of_a_tar_are_passed_over(tmp_path):
    root = tar_of(tmp_path / "data", ("1.jpg", picture(1, (20, 20))), ("._1.jpg", b"x"), ("notes.json", b"{}"))
    with tarfile.open(root / "a.tar", "a") as tar:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("fifo.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        add(tar, "../../up.jpg", picture(2, (20, 20)))  # a name is only a name: nothing is ever unpacked
        add(tar, "n" * 300 + ".jpg", picture(3, (20, 20)))
    assert list(opened(root, tmp_path).index.table.names) == ["1.jpg", "../../up.jpg", "n" * 300 + ".jpg"]


def _cut(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def _scribble(file: Path) -> None:
    """Damage the header of the second member."""
    data = bytearray(file.read_bytes())
    second = data.find(b"0002.jpg")
    data[second : second + 200] = b"\xff" * 200
    file.write_bytes(data)


def _lead_back(file: Path) -> None:
    """A second member of negative size: tarfile alone would go round for ever."""
    data = bytearray(file.read_bytes())
    second = data.find(b"0002.jpg")
    header = tarfile.TarInfo("0002.jpg")
    header.size = 0
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136] = (-4096).to_bytes(12, "big", signed=True)
    block[124] = 0xFF
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    data[second : second + 512] = block
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: _cut(f, 0.43),
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(b"no tar" * 500),
        _scribble,
        _lead_back,
    ],
)
def test_a_damaged_shard_ends_the_job_with_its_name(tmp_path, damage):
    members = [(f"{number:04d}.jpg", picture(number, (60, 60))) for number in range(6)]
    root = tar_of(tmp_path / "data", *members)
    damage(root / "a.tar")
    with pytest.raises(DataError, match=r"the shard a\.tar of .* is damaged or no tar"):
        opened(root, tmp_path)


def test_a_shard_without_its_closing_blocks_is_whole(tmp_path):
    root = tar_of(tmp_path / "data", ("1.jpg", picture(1, (20, 20))), ("2.jpg", picture(2, (20, 20))))
    data = (root / "a.tar").read_bytes().rstrip(b"\0")
    (root / "a.tar").write_bytes(data + b"\0" * (-len(data) % 512))
    assert len(opened(root, tmp_path)) == 2


def test_a_shard_cut_short_after_indexing_is_named(tmp_path):
    root = tar_of(tmp_path / "data", *[(f"{number}.jpg", picture(number, (60, 60))) for number in range(4)])
    images = opened(root, tmp_path)
    _cut(root / "a.tar", 0.3)
    with pytest.raises(DataError, match=r"3\.jpg of .* cannot now: .*shorter than it was"):
        images.pixels(3)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.write_bytes(b"PAR1 is not enough"), "cannot be read as Parquet"),
        (lambda file: file.write_bytes(b""), "cannot be read as Parquet"),
        (lambda file: pq.write_table(pa.table({"text": ["a"]}), file), "needs a column 'image' of bytes"),
        (lambda file: pq.write_table(parquet_table(samples(4)), file) or _cut(file, 0.7), "cannot be read as Parquet"),
        (lambda file: pq.write_table(parquet_table([]), file), "no images in the 1 parquet files"),
    ],
)
def test_parquet_files_without_images_are_named(tmp_path, write, words):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/a.parquet")
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "data", tmp_path)


def test_rows_without_bytes_are_bad_images(tmp_path):
    (tmp_path / "data").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": picture(1, (20, 20)), "path": "a"}, {"bytes": None, "path": "/etc/passwd"}, None]
    pq.write_table(pa.table({"img": pa.array(rows, kind)}), tmp_path / "data/a.parquet")
    index = opened(tmp_path / "data", tmp_path).index
    assert list(index.table.names) == ["a.parquet#0"]
    assert [bad.name for bad in index.bad] == ["a.parquet#1", "a.parquet#2"]


def test_a_column_of_plain_bytes_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    data = [picture(number, (20, 20)) for number in range(3)]
    table = pa.table({"id": [1, 2, 3], "content": pa.array(data, pa.large_binary())})
    pq.write_table(table, tmp_path / "data/a.parquet", compression="zstd")
    assert [bytes(raw) for raw in opened(tmp_path / "data", tmp_path).reader.fetch([2, 0])] == [data[2], data[0]]


def test_row_groups_are_kept_within_bounds(tmp_path, monkeypatch):
    made = samples(24)
    images = opened(write_parquet(tmp_path / "data", made, files=2, row_group_size=3), tmp_path)
    monkeypatch.setattr("trainer.data.readers.ROW_GROUP_BYTES", 40_000)
    for row in [*range(24), *range(23, -1, -1)]:
        assert bytes(images.reader.fetch([row])[0]) == made[row].data
    assert 1 <= len(images.reader._groups) < 8
    assert images.reader._kept == sum(group.nbytes for group in images.reader._groups.values())


# --- too many bad ones ------------------------------------------------------------------------------------------------


def test_too_many_bad_images_end_the_job(tmp_path):
    root = messy(tmp_path / "data", good=6)
    with pytest.raises(DataError, match=r"dataset\.max_bad_fraction: 2 of 8 .* \(25\.0%, allowed are 24\.0%\); .*001a"):
        opened(root, tmp_path, max_bad_fraction=0.24)
    assert len(opened(root, tmp_path, max_bad_fraction=0.25)) == 6


def test_nothing_readable_is_an_error_that_names_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(b"x")
    for _ in range(2):  # from the kept index alike
        with pytest.raises(DataError, match=r"none of the 1 images of .*data can be read; the first is a\.png"):
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
    digits = open_images(DatasetSpec(uri="builtin://digits"), "dataset", channels, SIZE, place(tmp_path))
    assert len(digits) == 1797
    pixels = digits.pixels(5)
    assert (pixels.shape, pixels.dtype) == ((32, 32, channels), np.uint8)
    assert pixels[:, :, 0].max() > 200
    for channel in range(1, min(channels, 3)):
        np.testing.assert_array_equal(pixels[:, :, channel], pixels[:, :, 0])
    assert (pixels[:, :, 3:] == 255).all()
    assert digits.index.table.classes == tuple("0123456789")
    assert digits.labels[:10].tolist() == list(range(10))
    assert np.bincount(digits.labels).min() > 150


@pytest.mark.parametrize("images", [1, 9, 10, 1797, 20_479, 30_000])
def test_the_split_is_the_schedule_s(images):
    spec = PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/d"}, "optimization": {"global_batch_size": 1}})
    train, held_out = split(images)
    schedule = Schedule.of(spec, images)
    assert (len(train), len(held_out)) == (schedule.train_images, schedule.held_out_images)
    assert sorted([*train, *held_out]) == list(range(images))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(split(images)[1], held_out)


def spec_for(root, **parts) -> PretrainSpec:
    fields = {"kind": "pretrain", "dataset": {"uri": str(root)}, "optimization": {"global_batch_size": 4}}
    return PretrainSpec.parse(fields | parts)


def test_training_data_keeps_train_and_held_out_apart(tmp_path, caplog):
    data = open_training_data(spec_for(messy(tmp_path / "data", good=30)), place(tmp_path))
    assert (len(data.train), len(data.held_out), len(data.images)) == (27, 3, 30)
    assert not set(data.train) & set(data.held_out)
    assert data.held_out_images is data.images
    assert set(data.tags().values()) == {"30", data.fingerprint}
    assert "001a.jpg" in caplog.text
    assert "2 of 32 images" in caplog.text


def test_a_held_out_dataset_of_its_own_leaves_all_images_to_training(tmp_path):
    root, other = fill(tmp_path / "data", *[f"{i}.png" for i in range(20)]), fill(tmp_path / "other", "x.png", "y.png")
    data = open_training_data(spec_for(root, evaluation={"dataset": {"uri": str(other)}}), place(tmp_path))
    assert (len(data.train), len(data.held_out)) == (20, 2)
    assert list(data.held_out_images.index.table.names) == ["x.png", "y.png"]


def test_a_probe_without_labels_is_refused_only_where_it_was_asked_for(tmp_path):
    root = fill(tmp_path / "data", *[f"{i}.png" for i in range(20)])
    with pytest.raises(DataError, match=r"evaluation\.probes: .* no labels"):
        open_training_data(spec_for(root, evaluation={"probes": ["linear"]}), place(tmp_path))
    labelled = write_folder(tmp_path / "labelled", samples(12))
    apart = {"probes": ["linear"], "dataset": {"uri": str(root)}}
    with pytest.raises(DataError, match=f"evaluation.probes: .*{root} has no labels"):
        open_training_data(spec_for(labelled, evaluation=apart), place(tmp_path))
    for probes in ("auto", []):
        assert open_training_data(spec_for(root, evaluation={"probes": probes}), place(tmp_path)).images.labels is None


def test_given_mean_and_deviation_are_used(tmp_path):
    root = fill(tmp_path / "data", "a.png")
    spec = spec_for(root, augmentation={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    data = open_training_data(spec, place(tmp_path))
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
