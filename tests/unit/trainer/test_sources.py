"""Which files a dataset has, what lies in them, and what is refused: folders, tars and Parquet files."""

import contextlib
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import (
    WRITERS,
    add,
    class_names,
    dataset,
    fill,
    opened,
    parquet_table,
    picture,
    samples,
    tar_of,
    write_parquet,
)

from trainer.data.scan_tars import scan_tars
from trainer.data.sources import find_files
from trainer.errors import DataError


def names_of(uri, **fields) -> list[str]:
    return list(find_files(dataset(uri, **fields)).names)


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
    images = opened(root, tmp_path)
    assert list(images.index.table.names) == ["1.jpg", "../../up.jpg", "n" * 300 + ".jpg"]
    (told,) = images.notices
    assert told.code == "links_passed_over"
    assert told.message.startswith("2 links in the shards lead to no image or label of their shard")


def test_links_within_a_tar_are_what_they_lead_to(tmp_path):
    data = picture(1, (20, 20))
    root = tar_of(tmp_path / "data", ("cat/1.jpg", data), ("cat/1.cls", b"5"), ("cat/1.xcf", b"x"))
    with tarfile.open(root / "a.tar", "a") as tar:
        for name, kind, target in (
            ("hard.jpg", tarfile.LNKTYPE, "./cat/1.jpg"),
            ("dog/soft.jpg", tarfile.SYMTYPE, "../again.jpg"),
            ("again.jpg", tarfile.SYMTYPE, "cat/1.jpg"),
            ("hard.cls", tarfile.LNKTYPE, "cat/1.cls"),
            ("round.jpg", tarfile.SYMTYPE, "round.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    images = opened(root, tmp_path)
    assert list(images.index.table.names) == ["cat/1.jpg", "hard.jpg", "dog/soft.jpg", "again.jpg"]
    assert [bytes(raw) for raw in images.reader.fetch(range(4))] == [data] * 4
    assert class_names(images) == ["5", "5", None, None]
    assert images.index.table.passed_over == {".xcf": 1}


def _with_checksum(header: bytearray) -> bytearray:
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return header


def test_a_size_beyond_all_numbers_is_damage(tmp_path):
    root = tar_of(tmp_path / "data", ("1.bin", b"x" * 600), ("2.jpg", picture(1, (20, 20))))
    data = bytearray((root / "a.tar").read_bytes())
    data[124:136] = b"\x80" + b"\x7f" * 11  # base 256
    data[156:157] = b"5"  # a folder: nothing is read of it, and the next header is sought
    data[:512] = _with_checksum(data[:512])
    (root / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar of .* is damaged"):
        opened(root, tmp_path)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_damaged_tars_raise_nothing_else(tmp_path, form):
    rng = np.random.default_rng(form)
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name, data in (("./cat/0.png", b"x" * 700), (f"{'n' * 90}.png", b"y"), ("b.cls", b"3"), ("b.png", b"z")):
            add(tar, name, data)
        member = tarfile.TarInfo("c.png")
        member.type, member.linkname = tarfile.LNKTYPE, "b.png"
        tar.addfile(member)
    sound = (tmp_path / "a.tar").read_bytes()[:6144]
    for _ in range(400):
        data = bytearray(sound)
        for _ in range(rng.integers(1, 3)):
            block = 512 * int(rng.integers(len(data) // 512))
            data[block + int(rng.choice([0, 100, 124, 125, 130, 135, 148, 156, 157, 345]))] = rng.choice(
                [0, 128, 255, *b"059xLKgS-"]
            )
            if rng.random() < 0.8:
                data[block : block + 512] = _with_checksum(data[block : block + 512])
        (tmp_path / "a.tar").write_bytes(data)
        with contextlib.suppress(DataError):
            scan_tars(find_files(dataset(tmp_path)), None)


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
    with pytest.raises(DataError, match=r"the shard a\.tar of .* is damaged or not a tar file"):
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
    with pytest.raises(DataError, match=r"3\.jpg: .*/a\.tar is shorter than when it was listed"):
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
    assert images.reader._kept_bytes == sum(group.nbytes for group in images.reader._groups.values())
