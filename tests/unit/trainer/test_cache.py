"""A node's copies: staged once, shared, checked, capped; decoded images in memory."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import WRITERS, picture, samples, write_folder, write_parquet, write_tars
from loops import make_spec, run_loop

from trainer.agreement import Agreement
from trainer.data import decoded, staging
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.decoded import DecodedReader
from trainer.data.images import Images
from trainer.data.loader import Loader
from trainer.data.sources import find_files
from trainer.data.staging import stage
from trainer.errors import DataError, StorageError
from trainer.spec import metric_keys
from trainer.spec.dataset import DatasetSpec
from trainer.storage import sha256_of

SIZE = (32, 32)
FORK = multiprocessing.get_context("fork")


def opened(uri: str, cache: Cache, kind: str, channels: int = 3, **fields: object) -> Images:
    dataset = DatasetSpec.model_validate({"uri": uri, "cache": kind, **fields})
    return open_images(dataset, channels, SIZE, DatasetContext(cache, 1, Agreement(1), 0))


def files_of(uri: str):
    return find_files(DatasetSpec(uri=uri))


# --- every way gives the same -----------------------------------------------------------------------------------------


def spec_of(uri: str, cache: str, **parts):
    return make_spec(
        dataset={"uri": uri, "cache": cache},
        model={"in_chans": 3},
        optimization={"epochs": 3, "global_batch_size": 12},
        **parts,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Batches of three epochs, and the loss curve, of a folder read where it lies."""
    folder = tmp_path_factory.mktemp("reference")
    spec = spec_of(write_folder(folder / "data", samples(40)), "none")
    return batches(spec, folder), curve(spec, folder)


def batches(spec, folder: Path) -> list[torch.Tensor]:
    place = DatasetContext(Cache(folder / "cache"), 1, Agreement(1), 0)
    images = open_images(spec.dataset, 3, SIZE, place)
    loader = Loader(images, np.arange(36), spec, 0, 1, 2, pin=False)
    return [tensor for batch in loader.batches(0, 9) for tensor in (batch.images, batch.orders)]


def curve(spec, folder: Path) -> dict[int, float]:
    _, memory = run_loop(spec, folder / "run")
    return memory.curve(metric_keys.LOSS)


@pytest.mark.parametrize("cache", ["none", "disk", "ram", "auto"])
@pytest.mark.parametrize("kind", WRITERS)
def test_formats_and_caches_give_the_same_batches_and_losses(tmp_path, reference, kind, cache):
    spec = spec_of(WRITERS[kind](tmp_path / "data", samples(40)), cache)
    expected, losses = reference
    for round_ in range(2):  # the second finds its copies made
        found = batches(spec, tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), round_
    assert curve(spec, tmp_path) == losses
    assert len(losses) == 9


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_are_kept_decoded_alike(tmp_path, channels):
    uri = write_folder(tmp_path / "data", samples(20))
    plain, kept = (opened(uri, Cache(tmp_path / "cache"), kind, channels) for kind in ("none", "ram"))
    assert isinstance(kept.reader, DecodedReader)
    boxes = np.tile(np.array([[2, 3, 22, 20]]), (20, 1))
    flips = np.arange(20) % 2 == 0
    crops = [images.crops(range(20), boxes, flips, SIZE) for images in (plain, kept)]
    np.testing.assert_array_equal(*crops)


# --- staging ----------------------------------------------------------------------------------------------------------


def test_staged_files_are_the_same_and_are_copied_once(tmp_path, monkeypatch):
    files = files_of(write_tars(tmp_path / "data", samples(20)))
    cache = Cache(tmp_path / "cache")
    staged = stage(files, cache)
    assert (staged.names, staged.sizes, staged.listing) == (files.names, files.sizes, files.listing)
    assert [Path(path).read_bytes() for path in staged.paths] == [Path(path).read_bytes() for path in files.paths]
    assert all(path.startswith(str(tmp_path / "cache")) for path in staged.paths)
    monkeypatch.setattr(staging, "_copy_one", None)  # nothing is copied again
    assert stage(files, cache) == staged


@pytest.mark.parametrize("harm", ["damaged", "shorter", "gone", "journal"])
def test_a_staged_file_that_is_not_as_it_was_is_copied_again(tmp_path, harm):
    files = files_of(write_tars(tmp_path / "data", samples(20)))
    staged = stage(files, Cache(tmp_path / "cache"))
    victim = Path(staged.paths[1])
    before = victim.stat().st_mtime_ns, Path(staged.paths[0]).stat().st_ino
    data = bytearray(victim.read_bytes())
    if harm == "damaged":
        data[700] ^= 1
        victim.write_bytes(data)
    elif harm == "shorter":
        victim.write_bytes(data[:-512])
    elif harm == "gone":
        victim.unlink()
    else:
        journal = next((tmp_path / "cache/staged").glob("*/journal.jsonl"))
        journal.write_text("\n".join(journal.read_text().splitlines()[:2]) + '\n{"file": 1, "sha')
    again = stage(files, Cache(tmp_path / "cache"))
    assert Path(again.paths[1]).read_bytes() == Path(files.paths[1]).read_bytes()
    assert Path(again.paths[1]).stat().st_mtime_ns != before[0]
    assert Path(again.paths[0]).stat().st_ino == before[1]  # the others stay


def test_sums_are_computed_once_in_a_boot_and_the_files_of_a_copy_are_held_once(tmp_path, monkeypatch):
    files, cache = files_of(write_tars(tmp_path / "data", samples(20))), Cache(tmp_path / "cache")
    staged = stage(files, cache)
    opened_before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patch:
        patch.setattr(staging, "sha256_of", None)
        assert stage(files, cache) == stage(files, cache) == staged
    assert len(list(Path("/proc/self/fd").iterdir())) == opened_before
    hashed = []
    monkeypatch.setattr(staging, "_boot", lambda: "another boot")
    monkeypatch.setattr(staging, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    assert stage(files, cache) == stage(files, cache) == staged
    assert sorted(map(str, hashed)) == sorted(staged.paths)


def test_only_the_images_that_a_spec_uses_are_staged(tmp_path):
    uri = write_folder(tmp_path / "data", samples(20))
    (tmp_path / "data/cat/phone.heic").write_bytes(b"x" * 1000)
    images = opened(uri, Cache(tmp_path / "cache"), "disk", fraction=0.25, exclude=["eel/"], max_bad_fraction=1)
    copies = [file for file in (tmp_path / "cache/staged").rglob("*") if file.is_file() and file.suffix == ""]
    assert len(copies) == len(images) < 5
    assert images.pixels(0).shape[2] == 3


def test_hostile_names_stay_inside_the_cache(tmp_path):
    files = files_of(write_folder(tmp_path / "data", samples(4)))
    hostile = files.__class__(**{**vars(files), "names": ("../../a", "/etc/b", "c\n", ".."), "listing": "0" * 64})
    staged = stage(hostile, Cache(tmp_path / "cache"))
    assert all(Path(path).resolve().is_relative_to(tmp_path / "cache") for path in staged.paths)


def test_a_file_written_anew_while_it_is_staged_is_refused(tmp_path):
    files = files_of(write_tars(tmp_path / "data", samples(8), shards=1))
    Path(files.paths[0]).write_bytes(b"0" * 512)
    with pytest.raises(StorageError, match=r"shard-000\.tar: 512 bytes were copied, but the file had \d+"):
        stage(files, Cache(tmp_path / "cache"))


def in_process(work) -> int:
    """Work in a process of its own; gives its number once it says that it is done, and leaves it alive."""
    ready = FORK.Event()

    def run() -> None:
        work()
        ready.set()
        time.sleep(600)

    process = FORK.Process(target=run, daemon=True)
    process.start()
    assert ready.wait(60)
    return process.pid


def test_the_workers_of_a_node_share_one_copy(tmp_path, monkeypatch):
    files = files_of(write_tars(tmp_path / "data", samples(20)))
    copied = []
    copy = staging._copy_one
    monkeypatch.setattr(staging, "_copy_one", lambda *a: time.sleep(0.05) or copied.append(a[1]) or copy(*a))
    found = []
    workers = [threading.Thread(target=lambda: found.append(stage(files, Cache(tmp_path / "cache")))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(copied) == [0, 1, 2]
    assert len({staged.paths for staged in found}) == 1


def test_a_second_job_uses_a_copy_while_the_first_still_does(tmp_path):
    uri = write_parquet(tmp_path / "data", samples(20))
    first = in_process(lambda: [opened(uri, Cache(tmp_path / "cache"), kind) for kind in ("disk", "ram")])
    try:
        for kind in ("disk", "ram"):
            assert len(opened(uri, Cache(tmp_path / "cache"), kind)) == 20
    finally:
        os.kill(first, signal.SIGKILL)


# --- the cap ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_told_or_read_where_it_lies(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    uri = write_tars(tmp_path / "data", samples(20))
    monkeypatch.setenv("RCMAE_CACHE_BYTES", "1000")
    for kind in ("disk", "ram"):
        with pytest.raises(DataError, match=rf"dataset\.cache: {kind} is not possible .*RCMAE_CACHE_BYTES"):
            opened(uri, Cache(tmp_path / "cache"), kind)
    assert opened(uri, Cache(tmp_path / "cache"), "auto").pixels(3).shape[2] == 3
    assert "in each epoch, because they cannot be kept decoded" in caplog.text
    monkeypatch.setenv("RCMAE_CACHE_BYTES", "many")
    with pytest.raises(StorageError, match="RCMAE_CACHE_BYTES: 'many' is not a number of bytes"):
        opened(uri, Cache(tmp_path / "cache"), "disk")


def test_decoded_images_larger_than_the_free_memory_are_refused(tmp_path, monkeypatch):
    uri = write_folder(tmp_path / "data", samples(20))
    monkeypatch.setattr(decoded.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10_000}))
    with pytest.raises(DataError, match=r"dataset\.cache: ram is not possible .* free memory"):
        opened(uri, Cache(tmp_path / "cache"), "ram")


def test_unused_copies_make_room_the_longest_unused_first(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    uris = [write_tars(tmp_path / name, samples(20 + number), shards=1) for number, name in enumerate("abc")]
    a, b, c = (files_of(uri) for uri in uris)
    stagers = [in_process(lambda files=files: stage(files, Cache(folder))) for files in (a, b)]
    old = {files.listing: folder / "staged" / files.listing[:32] for files in (a, b)}
    for age, files in ((200, a), (100, b)):
        os.utime(old[files.listing], (time.time() - age,) * 2)
    monkeypatch.setenv("RCMAE_CACHE_BYTES", str(int(2.6 * max(a.sizes[0], b.sizes[0], c.sizes[0]))))
    try:
        os.kill(stagers[0], signal.SIGKILL)
        os.kill(stagers[1], signal.SIGKILL)
        for pid in stagers:
            os.waitpid(pid, 0)
        assert stage(c, Cache(folder)).paths
        assert not old[a.listing].exists()
        assert old[b.listing].is_dir()
    finally:
        for pid in stagers:
            _kill(pid)


def test_copies_in_use_stay(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    a, b = (files_of(write_tars(tmp_path / name, samples(20), shards=1)) for name in "ab")
    user = in_process(lambda: stage(a, Cache(folder)))
    monkeypatch.setenv("RCMAE_CACHE_BYTES", str(int(1.5 * a.sizes[0])))
    try:
        assert "in use" in stage(b, Cache(folder))
        assert (folder / "staged" / a.listing[:32]).is_dir()
    finally:
        _kill(user)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_half_made_copy_of_decoded_images_does_not_count(tmp_path, monkeypatch):
    uri = write_folder(tmp_path / "data", samples(20))
    decode, calls = decoded.decode, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise DataError("killed here")
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "decode", dies)
        with pytest.raises(DataError, match="killed here"):
            opened(uri, Cache(tmp_path / "cache"), "ram")
    kept = opened(uri, Cache(tmp_path / "cache"), "ram")
    plain = opened(uri, Cache(tmp_path / "cache"), "none")
    assert all(np.array_equal(kept.pixels(row), plain.pixels(row)) for row in range(20))


def test_large_jpegs_stay_encoded_and_small_ones_do_not(tmp_path):
    made = write_folder(tmp_path / "data", samples(20))
    Path(made, "cat/big.jpg").write_bytes(picture(77, (400, 300)))
    reader = opened(made, Cache(tmp_path / "cache"), "ram").reader
    raws = reader.fetch(range(21))
    encoded = [raw for raw in raws if not isinstance(raw, np.ndarray)]
    assert hashlib.sha256(picture(77, (400, 300))).digest() in {hashlib.sha256(raw).digest() for raw in encoded}
    assert len(encoded) < 21
