"""Datasets in S3: a real server behind a proxy that fails, and every format and cache killed and resumed."""

import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import WRITERS, class_names, fill, samples, write_folder, write_tars
from loops import launch, make_spec, run_loop, weights

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.examine import examine_files
from trainer.data.loader import Loader
from trainer.data.sources import find_files
from trainer.errors import DataError, StorageError
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.spec.dataset import DatasetSpec

STEPS = 9
CACHES = ("none", "disk", "ram")


def spec_of(uri: str, cache: str = "none", **parts):
    return make_spec(
        dataset={"uri": uri, "cache": cache},
        model={"in_chans": 3},
        optimization={"epochs": 3, "global_batch_size": 12},
        **parts,
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, str]:
    """The same forty images in every format, on a disk."""
    folder = tmp_path_factory.mktemp("sets")
    return {kind: write(folder / kind, samples(40)) for kind, write in WRITERS.items()}


@pytest.fixture(scope="module")
def straight(sets, tmp_path_factory):
    """An undisturbed run of two workers on the folder: its curve and its last checkpoint's tensors."""
    folder = tmp_path_factory.mktemp("straight")
    result = launch(spec_of(sets["folder"], resources={"workers": 2}), folder)
    return result["loss"], weights(folder, result["checkpoint"])


@pytest.fixture(scope="module")
def in_s3(s3, sets) -> dict[str, str]:
    """The same in S3."""
    bucket, fs = s3.bucket("datasets"), s3.filesystem()
    for kind, folder in sets.items():
        fs.put(f"{folder}/", f"{bucket}/{kind}/", recursive=True)
    return {kind: f"{bucket}/{kind}" for kind in sets}


@pytest.fixture
def reach(s3, use_s3):
    use_s3(s3.environment())


@pytest.fixture
def through_proxy(s3, s3_proxy, use_s3):
    use_s3(s3.environment(s3_proxy.endpoint))
    return s3_proxy


def batches(spec, cache: Path) -> list[torch.Tensor]:
    images = open_images(spec.dataset, 3, (32, 32), DatasetContext(Cache(cache), 1, Agreement(1), 0))
    loader = Loader(images, np.arange(36), spec, 0, 1, 2, pin=False)
    return [tensor for batch in loader.batches(0, STEPS) for tensor in (batch.images, batch.orders)]


@pytest.fixture(scope="module")
def reference(sets, tmp_path_factory) -> list[torch.Tensor]:
    return batches(spec_of(sets["folder"]), tmp_path_factory.mktemp("cache"))


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) == 2 * STEPS
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- the same images --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("reach")
@pytest.mark.parametrize("cache", [*CACHES, "auto"])
@pytest.mark.parametrize("kind", WRITERS)
def test_from_s3_come_the_same_batches(tmp_path, in_s3, reference, kind, cache):
    spec = spec_of(in_s3[kind], cache)
    for _ in range(2):  # the second finds its copies made
        assert_same(batches(spec, tmp_path), reference)


@pytest.mark.usefixtures("reach")
def test_what_is_staged_is_read_again_without_s3(tmp_path, in_s3, reference, s3, use_s3, monkeypatch):
    spec = spec_of(in_s3["tar"], "disk")
    files = find_files(spec.dataset)
    batches(spec, tmp_path)
    use_s3(s3.environment("http://127.0.0.1:9"))
    monkeypatch.setattr("trainer.data.dataset.find_files", lambda *_: files)
    assert_same(batches(spec, tmp_path), reference)


@pytest.mark.usefixtures("reach")
@pytest.mark.parametrize("kind", WRITERS)
def test_the_whole_loop_on_s3_has_the_curve_of_the_disk(tmp_path, in_s3, sets, kind):
    _, local = run_loop(spec_of(sets["folder"]), tmp_path / "local")
    _, remote = run_loop(spec_of(in_s3[kind], "auto"), tmp_path / "remote")
    assert remote.curve(metric_keys.LOSS) == local.curve(metric_keys.LOSS)
    assert remote.tags[names.TAG_DATASET] == local.tags[names.TAG_DATASET]


@pytest.mark.usefixtures("reach")
def test_a_single_object_and_a_pattern(in_s3):
    uri = f"{in_s3['parquet']}/train-00001-of-00002.parquet"
    assert find_files(DatasetSpec(uri=uri)).names == ("train-00001-of-00002.parquet",)
    assert len(find_files(DatasetSpec(uri=f"{in_s3['parquet']}/train-*.parquet")).names) == 2
    assert len(find_files(DatasetSpec(uri=f"{in_s3['tar']}/shard-*1.tar")).names) == 1


# --- killed and resumed -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("reach")
@pytest.mark.parametrize("where", ["disk", pytest.param("s3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cache", ["none", *(pytest.param(cache, marks=pytest.mark.slow) for cache in CACHES[1:])])
@pytest.mark.parametrize("kind", WRITERS)
def test_killed_mid_epoch_and_resumed_it_ends_bit_identical(tmp_path, sets, in_s3, straight, kind, cache, where):
    uri = sets[kind] if where == "disk" else in_s3[kind]
    spec = spec_of(uri, cache, resources={"workers": 2})
    losses, expected = straight
    # In the middle of the second epoch of three steps, once the first one's checkpoint is stored.
    launch(spec, tmp_path / "run", attempt=1, die_at=5, after="checkpoints/a1/00000003/manifest.json")
    rest = launch(spec, tmp_path / "run", attempt=2)
    assert min(map(int, rest["loss"])) == 4
    assert rest["loss"] == {step: loss for step, loss in losses.items() if int(step) > 3}
    got = weights(tmp_path / "run", rest["checkpoint"])
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "disk"])
@pytest.mark.parametrize("kind", WRITERS)
def test_failing_and_cut_requests_change_nothing(tmp_path, in_s3, reference, through_proxy, kind, cache):
    faults = through_proxy.faults
    # A set of three staged files takes few requests; of one of many, each may be struck time after time.
    faults.fail_every, faults.cut_every = (2, 3) if cache == "disk" and kind != "folder" else (4, 7)
    assert_same(batches(spec_of(in_s3[kind], cache), tmp_path), reference)
    assert faults.done > 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_storage_that_is_gone_for_20_seconds_is_waited_for(
    tmp_path, in_s3, reference, through_proxy, kind, monkeypatch
):
    monkeypatch.setattr("trainer.data.readers.ROW_GROUP_BYTES", 0)  # every batch asks the server
    spec = spec_of(in_s3[kind])
    images = open_images(spec.dataset, 3, (32, 32), DatasetContext(Cache(tmp_path), 1, Agreement(1), 0))
    found = []
    made = Loader(images, np.arange(36), spec, 0, 1, 1, pin=False).batches(0, STEPS)
    found += [next(made) for _ in range(2)]
    with through_proxy.away(20):
        found += list(made)
    assert_same([tensor for batch in found for tensor in (batch.images, batch.orders)], reference)


def test_wrong_credentials_are_told_with_the_place(in_s3, s3, use_s3):
    use_s3(s3.environment(AWS_SECRET_ACCESS_KEY="wrong"))
    with pytest.raises(StorageError, match=r"^s3://datasets/tar: .*credentials"):
        find_files(DatasetSpec(uri=in_s3["tar"]))


@pytest.mark.usefixtures("reach")
@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://no-such-bucket-here/a", "no-such-bucket-here"),
        ("s3://datasets/no/such/prefix", "nothing at s3://datasets/no/such/prefix"),
        ("s3://datasets/tar/none-*.tar", "no images in s3://datasets/tar/none"),
    ],
)
@pytest.mark.usefixtures("in_s3")
def test_a_place_that_is_not_there_is_named(uri, words):
    with pytest.raises((DataError, StorageError), match=words):
        find_files(DatasetSpec(uri=uri))


@pytest.mark.usefixtures("reach")
def test_a_pattern_of_images_in_s3_keeps_the_metadata_beside_them(tmp_path, s3):
    folder, fs = f"{s3.bucket('datasets')}/{uuid.uuid4().hex}", s3.filesystem()
    root = fill(tmp_path / "data", "a-1.png", "a-2.png", "b-1.png")
    (root / "metadata.csv").write_text("file_name,label\na-1.png,cat\na-2.png,dog\nb-1.png,cat\n")
    fs.put(f"{root}/", f"{folder}/", recursive=True)
    place = DatasetContext(Cache(tmp_path / "cache"), 1, Agreement(1), 0)
    images = open_images(DatasetSpec(uri=f"{folder}/a-*.png"), 3, (32, 32), place)
    assert (class_names(images), images.labels.source) == (["cat", "dog"], "metadata.csv")


@pytest.mark.usefixtures("reach")
def test_an_object_taken_away_while_training_is_named(tmp_path, s3):
    bucket, key, fs = s3.bucket("datasets"), uuid.uuid4().hex, s3.filesystem()
    local = write_folder(tmp_path / "data", samples(40))
    fs.put(f"{local}/", f"{bucket}/{key}/", recursive=True)
    spec = spec_of(f"{bucket}/{key}")
    images = open_images(spec.dataset, 3, (32, 32), DatasetContext(Cache(tmp_path / "cache"), 1, Agreement(1), 0))
    assert len(images) == 40
    lost = images.index.table.names[7]
    fs.rm(f"{bucket}/{key}/{lost}")
    with pytest.raises(
        StorageError, match=rf"^{bucket}/{key}/{lost}: the file was there when the dataset was listed and"
    ):
        images.crops([6, 7], np.array([[0, 0, 8, 8]] * 2), np.zeros(2, dtype=bool), (8, 8))
    # One that goes while the index is made is no bad image either.
    files = find_files(spec.dataset)
    gone = files.location(20)
    fs.rm(gone)
    with pytest.raises(StorageError, match=f"^{gone}: the file was there when"):
        examine_files(files, spec.dataset, Cache(tmp_path / "of a node that knows nothing of it"), 1)
    again = open_images(spec.dataset, 3, (32, 32), DatasetContext(Cache(tmp_path / "cache"), 1, Agreement(1), 0))
    assert len(again) == 38


@pytest.mark.usefixtures("reach")
def test_a_shard_cut_short_in_s3_after_indexing_is_named(tmp_path, s3):
    bucket, key, fs = s3.bucket("datasets"), uuid.uuid4().hex, s3.filesystem()
    shard = Path(write_tars(tmp_path / "data", samples(8), shards=1)) / "shard-000.tar"
    fs.put_file(str(shard), f"{bucket}/{key}/a.tar")
    spec = spec_of(f"{bucket}/{key}")
    images = open_images(spec.dataset, 3, (32, 32), DatasetContext(Cache(tmp_path / "cache"), 1, Agreement(1), 0))
    # Now it ends inside the fifth image: of that a part is left, of the last one nothing.
    fs.pipe_file(f"{bucket}/{key}/a.tar", shard.read_bytes()[: int(images.index.table.first[4]) + 10])
    for row in (4, 7):
        with pytest.raises(
            DataError, match=rf"^{row:04d}\..*: {bucket}/{key}/a\.tar is shorter than when it was listed"
        ):
            images.pixels(row)
