"""Files of a dataset that cannot be read: retried, then `storage_error`; never taken for damaged images."""

import ctypes
import errno
import os
import pickle
import resource
import struct
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_sets import WRITERS, dataset, fill, opened, parquet_table, picture, place, samples, tar_of, write_parquet

from trainer.data.examine import examine_files
from trainer.data.reading import DatasetFile
from trainer.data.sources import find_files
from trainer.errors import DataError, StorageError
from trainer.protocol.outcome import Reason
from trainer.storage import PATIENCE_SECONDS

CAPABILITIES = struct.pack("Ii", 0x20080522, 0)
"""The kernel's third version of them, of the calling thread."""
IGNORES_PERMISSIONS = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, which root has."""


@pytest.fixture
def permissions_hold() -> Iterator[None]:
    """Permissions stop root too, in the test's thread and those that it starts."""
    libc, header, before = ctypes.CDLL(None), ctypes.create_string_buffer(CAPABILITIES), ctypes.create_string_buffer(24)
    assert libc.capget(header, before) == 0
    effective, *others = struct.unpack("6I", before.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~IGNORES_PERMISSIONS, *others)) == 0
    yield
    assert libc.capset(header, before) == 0


def kept_indexes(folder: Path) -> list[Path]:
    return list((folder / "cache/indexes").glob("*-images.npz"))


# --- wherever a mount fails -------------------------------------------------------------------------------------------


class Flaky:
    """A call of the system that fails once each time that it is armed."""

    def __init__(self, call: Callable[..., Any], code: int) -> None:
        self._call, self._code = call, code
        self.armed, self.failures = True, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.armed:
            self.armed = False
            self.failures += 1
            raise OSError(self._code, os.strerror(self._code))
        return self._call(*arguments, **options)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_mount_that_fails_for_a_moment_costs_nothing_in_listing_index_or_training(
    tmp_path, pauses, monkeypatch, kind, code
):
    uri = WRITERS[kind](tmp_path / "data", samples(12))
    straight = opened(uri, tmp_path / "straight")
    listing, opening, reading, whole = (Flaky(each, code) for each in (os.scandir, open, os.pread, Path.read_bytes))
    monkeypatch.setattr(os, "scandir", listing)
    monkeypatch.setattr("trainer.data.sources.open", opening, raising=False)  # scans, and all reading of Parquet
    monkeypatch.setattr(os, "pread", reading)  # images in shards
    monkeypatch.setattr(Path, "read_bytes", partialmethod(whole))  # images in folders
    images = opened(uri, tmp_path)
    used = [call for call in (opening, reading, whole) if call.failures]
    assert listing.failures == 1
    assert used
    for call in used:
        call.armed = True
    images = pickle.loads(pickle.dumps(images))  # as in a worker of the loader, with no file open
    assert np.array_equal(images.pixels(7), straight.pixels(7))
    assert any(call.failures == 2 for call in used)
    assert (images.index.fingerprint, images.index.bad) == (straight.index.fingerprint, ())
    assert pauses.now > 0


# --- while the index is made ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("permissions_hold")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_cannot_be_read_for_a_moment_costs_no_image(tmp_path, pauses, kind):
    uri = WRITERS[kind](tmp_path / "data", samples(12))
    victim = Path(find_files(dataset(uri)).paths[1])
    victim.chmod(0)
    pauses.mend = lambda: victim.chmod(0o644)
    images = opened(uri, tmp_path)
    assert (len(images), images.index.bad) == (12, ())


@pytest.mark.usefixtures("permissions_hold")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_stays_unreadable_is_a_storage_error_and_nothing_is_kept(tmp_path, pauses, kind):
    uri = WRITERS[kind](tmp_path / "data", samples(12))
    victim = Path(find_files(dataset(uri)).paths[1])
    victim.chmod(0)
    said = rf"^{victim}: \[Errno 13\] Permission denied: give read permission to user id {os.geteuid()}, which"
    with pytest.raises(StorageError, match=said) as error:
        opened(uri, tmp_path)
    assert error.value.reason is Reason.STORAGE_ERROR
    assert pauses.now > PATIENCE_SECONDS / 2
    victim.chmod(0o644)  # the listing, by which indexes are kept, is as it was
    assert len(opened(uri, tmp_path)) == 12


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("name", ["c.png", "\udcff.png"])
def test_a_broken_disk_is_told_with_the_file_s_name(tmp_path, name):
    root = fill(tmp_path / "data", "a.png", "b.png")
    (root / name).symlink_to("/proc/self/mem")  # its first page cannot be read, by anybody
    shown = name.encode(errors="backslashreplace").decode().replace("\\", r"\\")
    with pytest.raises(StorageError, match=rf"/data/{shown}: .* Input/output error: check the disk or the mount"):
        opened(root, tmp_path)
    assert not kept_indexes(tmp_path)


@pytest.mark.usefixtures("pauses")
def test_a_file_that_goes_between_the_listing_and_the_reading_is_no_bad_image(tmp_path):
    files = find_files(dataset(fill(tmp_path / "data", "a.png", "b.png", "c.png")))
    (tmp_path / "data/b.png").unlink()
    with pytest.raises(
        StorageError, match=r"/data/b\.png: the file was there when the dataset was listed and is gone: restore it"
    ):
        examine_files(files, dataset(tmp_path / "data"), place(tmp_path).cache, 1)


@pytest.mark.usefixtures("permissions_hold")
def test_a_folder_that_cannot_be_listed_for_a_moment_costs_no_image(tmp_path, pauses):
    root = fill(tmp_path / "data", "a.png", "deep/b.png", "deep/er/c.png")
    (root / "deep").chmod(0)
    pauses.mend = lambda: (root / "deep").chmod(0o755)
    assert find_files(dataset(root)).names == ("a.png", "deep/b.png", "deep/er/c.png")
    (root / "deep").chmod(0)
    pauses.mend = lambda: None
    try:
        with pytest.raises(StorageError, match=rf"^{root}/deep: .*Permission denied"):
            find_files(dataset(root))
    finally:
        (root / "deep").chmod(0o755)


# --- what is the data's own -------------------------------------------------------------------------------------------


def test_a_damaged_page_of_parquet_is_a_data_error_at_once(tmp_path, pauses):
    """pyarrow raises `OSError` for it."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/a.parquet"
    pq.write_table(parquet_table(samples(8)), file, compression="snappy")
    data = bytearray(file.read_bytes())
    data[25:31] = b"\xff" * 6
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 is damaged: .*; create the file again"):
        opened(tmp_path / "data", tmp_path)
    assert pauses.now == 0


def test_a_parquet_file_cut_short_after_indexing_is_a_data_error(tmp_path):
    uri = write_parquet(tmp_path / "data", samples(12), files=1)
    images = opened(uri, tmp_path)
    images.pixels(0)
    (file,) = (tmp_path / "data").iterdir()
    os.truncate(file, 4000)
    with pytest.raises(DataError, match=r"parquet: row group 2 is damaged"):
        images.pixels(11)


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_a_link_to_nowhere_is_one_bad_image(tmp_path, cache):
    root = fill(tmp_path / "data", "b.png", "c.png")
    (root / "a.png").symlink_to("/nowhere/at/all.png")
    index = opened(root, tmp_path, cache=cache).index
    assert list(index.table.names) == ["b.png", "c.png"]
    assert [(bad.name, bad.reason) for bad in index.bad] == [("a.png", "a broken link")]


def test_a_shard_that_is_a_link_to_nowhere_is_a_data_error(tmp_path):
    root = tar_of(tmp_path / "data", ("1.jpg", picture(1, (20, 20))))
    (root / "b.tar").symlink_to("/nowhere/at/all.tar")
    with pytest.raises(DataError, match=r"b\.tar of .* is a broken link"):
        opened(root, tmp_path)


# --- while training ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("permissions_hold")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_cannot_be_read_for_a_moment_while_training_is_waited_for(tmp_path, pauses, kind):
    uri = WRITERS[kind](tmp_path / "data", samples(12))
    images, straight = (opened(uri, tmp_path) for _ in range(2))
    victims = [Path(path) for path in find_files(dataset(uri)).paths]
    for victim in victims:
        victim.chmod(0)
    pauses.mend = lambda: [victim.chmod(0o644) for victim in victims]
    found = images.pixels(7)
    assert pauses.now > 0
    assert np.array_equal(found, straight.pixels(7))


def test_a_stale_handle_of_a_shard_is_opened_anew(tmp_path, pauses, monkeypatch):
    images = opened(tar_of(tmp_path / "data", *[(f"{n}.jpg", picture(n, (20, 20))) for n in range(3)]), tmp_path)
    before = images.pixels(0)
    pread, (stale,) = os.pread, images.reader._open.values()

    def read(number: int, *where: int) -> bytes:
        if number == stale.number:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(number, *where)

    monkeypatch.setattr(os, "pread", read)
    assert np.array_equal(images.pixels(0), before)
    assert pauses.now > 0


def test_a_file_to_parse_is_opened_anew_where_it_was(tmp_path, pauses):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    openings = []

    class Stale:
        """Good for one read."""

        def __init__(self):
            openings.append(self)
            self.file, self.reads = (tmp_path / "a").open("rb"), 0

        def seek(self, *where):
            return self.file.seek(*where)

        def read(self, size):
            self.reads += 1
            if self.reads > 1:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return self.file.read(size)

        def close(self):
            self.file.close()

    with DatasetFile("a", Stale) as file:
        assert file.read(10) == bytes(range(10))
        assert file.read(10) == bytes(range(10, 20))
        assert file.seek(-5, os.SEEK_END) == 95
        assert file.read() == bytes(range(95, 100))
        with pytest.raises(OSError, match="there is no byte -1"):
            file.seek(-1)
    assert len(openings) > 2
    assert all(opening.file.closed for opening in openings)
    assert pauses.now > 0


def test_an_image_written_anew_before_it_is_kept_decoded_is_a_data_error(tmp_path):
    root = fill(tmp_path / "data", "a.png", "b.png")
    opened(root, tmp_path)
    file = root / "b.png"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"x" * file.stat().st_size)
    os.utime(file, ns=times)
    with pytest.raises(DataError, match=r"^b\.png has changed since the index was made"):
        opened(root, tmp_path, cache="ram")


# --- this node's own disk ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("permissions_hold")
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path, cache):
    root = fill(tmp_path / "data", "a.png", "b.png")
    place(tmp_path).cache.folder.mkdir(mode=0o500)
    with pytest.raises(StorageError, match=rf"^{tmp_path}/cache/.*Permission denied"):
        opened(root, tmp_path, cache=cache)


def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    """A process that kept a descriptor for each shard ended with "Too many open files"."""
    for number in range(150):
        tar_of(tmp_path / "made", ("1.png", picture(number, (8, 8), "PNG"))).joinpath("a.tar").rename(
            tmp_path / f"{number:03d}.tar"
        )
    images = opened(f"{tmp_path}/*.tar", tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 80, limits[1]))
    try:
        assert len([images.pixels(row) for row in [*range(150), *range(150)]]) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
