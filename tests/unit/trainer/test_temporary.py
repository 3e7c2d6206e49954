"""Temporary folders of processes that live, and of those that were killed; atomic writes."""

import errno
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import pytest

from trainer import temporary
from trainer.temporary import atomic_write, sweep_temporary_folders, temporary_folder


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(folder: Path, seconds: float = 2 * temporary.SWEEP_AGE_SECONDS) -> Path:
    before = time.time() - seconds
    os.utime(folder, (before, before))
    return folder


def hold(ready) -> None:
    with temporary_folder() as folder:
        (folder / "half").write_bytes(b"1")
        ready.send(str(folder))
        time.sleep(60)


def test_a_folder_goes_with_its_use(place):
    with temporary_folder() as folder:
        (folder / "x").write_bytes(b"1")
        assert folder.parent == place
    assert not folder.exists()


def test_what_a_killed_process_leaves_is_removed_and_what_a_living_one_holds_stays(caplog):
    caplog.set_level("INFO")
    here, there = multiprocessing.Pipe()
    owner = multiprocessing.get_context("fork").Process(target=hold, args=(there,))
    owner.start()
    folder = aged(Path(here.recv()))
    sweep_temporary_folders()
    assert (folder / "half").exists()
    owner.kill()
    owner.join()
    sweep_temporary_folders()
    assert not folder.exists()
    assert f"Removed {folder}, which a process left behind 120 minutes ago" in caplog.text


def test_what_is_young_or_another_s_stays(place):
    for name in ("rcmae-tmp-young", "rcmae-abcdefgh", "rcmae-cache-0", "other"):
        (place / name).mkdir()
    for name in ("rcmae-abcdefgh", "rcmae-cache-0", "other"):
        aged(place / name)
    (place / "rcmae-tmp-file").write_bytes(b"1")
    (place / "rcmae-tmp-link").symlink_to(place / "other")
    before = sorted(place.iterdir())
    sweep_temporary_folders()
    assert sorted(place.iterdir()) == before


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    target = tmp_path / "index"
    with atomic_write(target, fsync=True) as partial:
        partial.write_text("old")
        assert not target.exists()
    with pytest.raises(OSError, match="full"), atomic_write(target, fsync=False) as partial:  # noqa: PT012 - the point
        partial.write_text("ne")
        raise OSError(errno.ENOSPC, "full")
    assert [file.name for file in tmp_path.iterdir()] == ["index"]
    assert target.read_text() == "old"
