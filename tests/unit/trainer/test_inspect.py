"""Inspections: what a dataset holds, in figures, warnings, settings that fit it, and a picture."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from image_sets import fill, opened, parquet_table, picture, place, samples, tar_of, write_folder
from PIL import Image

from trainer.data.dataset import open_training_data
from trainer.data.decode import decode
from trainer.data.unreadable import Unreadable
from trainer.errors import DataError
from trainer.kinds.inspect import inspect
from trainer.protocol import names
from trainer.protocol.inspection import INSPECTION, Inspection
from trainer.spec.inspect import InspectSpec
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store

RNG = np.random.default_rng(1)


def inspected(tmp_path: Path, uri: object, sample: int | None = None, **dataset: object) -> Inspection:
    spec = InspectSpec.parse({"kind": "inspect", "dataset": {"uri": str(uri), **dataset}, "sample": sample})
    result = inspect(spec, Store(str(tmp_path / "run")), place(tmp_path).cache, None, None)
    assert Inspection.model_validate_json((tmp_path / "run" / INSPECTION).read_bytes()) == result
    return result


def codes(result: Inspection) -> list[str]:
    return [warned.code for warned in result.warnings]


def sheet(tmp_path: Path) -> Image.Image:
    return Image.open(io.BytesIO((tmp_path / "run" / names.SAMPLES_PICTURE).read_bytes()))


def test_a_folder_of_everything(tmp_path):
    root = Path(write_folder(tmp_path / "data", samples(30)))
    (root / "cat/copy.jpg").write_bytes((root / "cat/0001.jpg").read_bytes())
    (root / "cat/broken.jpg").write_bytes(b"text")
    (root / "dog/phone.HEIC").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    result = inspected(tmp_path, root)
    assert (result.images, result.inspected, result.decoded) == (33, 33, 33)
    assert result.bytes == sum(file.stat().st_size for file in root.rglob("*.*g") if file.name != "broken.jpg")
    assert result.formats == {"JPEG": 23, "PNG": 8}
    assert (result.channels, result.bits, result.duplicates) == ({3: 31}, {8: 31}, 1)
    assert result.classes == {"cat": 12, "dog": 11, "eel": 10}
    assert (result.class_count, result.labels_from) == (3, "folders")
    assert result.sizes is not None
    assert 24 <= result.sizes.width.least <= result.sizes.width.median <= result.sizes.width.greatest < 220
    assert {reason.split()[0]: unread.count for reason, unread in result.unreadable.items()} == {
        "cannot": 1,
        ".heic": 1,
    }
    assert [unread.first for unread in result.unreadable.values()] == ["cat/broken.jpg", "dog/phone.HEIC"]
    assert result.passed_over == {".txt": 1}
    assert result.images_per_s_per_core > 0
    assert "unreadable" in codes(result)
    assert result.proposed["dataset"]["exclude"] == ["*.HEIC"]
    assert ".heic" not in str(inspected(tmp_path, root, exclude=result.proposed["dataset"]["exclude"]).unreadable)
    assert sheet(tmp_path).size == (6 * 132 - 4, 4 * 132 - 4)


def test_what_was_inspected_is_trained_on_without_decoding_it_again(tmp_path, monkeypatch):
    root = Path(write_folder(tmp_path / "data", samples(30)))
    result = inspected(tmp_path, root)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.data.inspections.examine", lambda _: pytest.fail("decoded again"))
        again = inspected(tmp_path, root)
        proposed = {"kind": "pretrain", **result.proposed, "augmentation": {"mean": [0] * 3, "std": [1] * 3}}
        proposed["dataset"]["cache"] = "none"
        data = open_training_data(PretrainSpec.parse(proposed), place(tmp_path))
    assert (again.decoded, again.images_per_s_per_core) == (0, None)
    assert data.fingerprint == result.fingerprint == again.fingerprint
    assert len(data.images) == result.images


def test_an_image_is_decoded_once_for_every_dataset_that_it_belongs_to(tmp_path):
    root = Path(write_folder(tmp_path / "data/train", samples(20))).parent
    write_folder(root / "val", samples(5))
    assert inspected(tmp_path, root).decoded == 25
    assert inspected(tmp_path, root / "train").decoded == 0
    assert len(list((tmp_path / "cache/indexes").glob("*-images.npz"))) == 2, "kept, not looked for again"
    assert inspected(tmp_path, f"{root}/*a*").decoded == 0
    (root / "train/new.jpg").write_bytes(picture(99, (30, 30)))
    assert inspected(tmp_path, root).decoded == 1
    (root / "val").rename(root / "test")
    assert inspected(tmp_path, root).decoded == 5, "another path: it may be another image"
    (tmp_path / "shards").mkdir()
    for name in ("train", "test"):
        made = tar_of(tmp_path / name, *[(f"{n}.jpg", picture(n, (20, 20))) for n in range(4)])
        (made / "a.tar").rename(tmp_path / f"shards/{name}.tar")
    assert inspected(tmp_path, tmp_path / "shards", sample=3).decoded == 3
    assert inspected(tmp_path, tmp_path / "shards").decoded == 5
    assert inspected(tmp_path, tmp_path / "shards/test.tar").decoded == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text"])
def test_what_a_node_keeps_damaged_is_found_out_again(tmp_path, content, caplog):
    root = Path(write_folder(tmp_path / "data", samples(6)))
    result = inspected(tmp_path, root)
    kept = list((tmp_path / "cache/indexes").iterdir())
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(content)
    again = inspected(tmp_path, root)
    assert (again.decoded, again.fingerprint, again.classes) == (6, result.fingerprint, result.classes)
    assert caplog.text.count("is damaged, so what it kept is found out again") == 2
    assert inspected(tmp_path, root).decoded == 0


def test_files_of_the_same_names_sizes_and_times_elsewhere_are_others(tmp_path):
    """As from archives that are unpacked with all times alike."""
    for folder, values in (("a", (0, 1)), ("b", (200, 201))):
        (tmp_path / folder).mkdir()
        for number, value in enumerate(values):
            np.save(tmp_path / folder / f"{number}.npy", np.full((8, 8), value, np.uint8))
            os.utime(tmp_path / folder / f"{number}.npy", (0, 0))
    assert inspected(tmp_path, tmp_path / "a").value_range == (0, 1)
    assert inspected(tmp_path, tmp_path / "b").value_range == (200, 201)
    assert [
        int(opened(tmp_path / folder, tmp_path, channels=1, cache="disk").pixels(0)[0, 0, 0]) for folder in "ab"
    ] == [0, 200]


def test_a_sample_decodes_so_many(tmp_path):
    root = Path(write_folder(tmp_path / "data", samples(30)))
    result = inspected(tmp_path, root, sample=10)
    assert (result.images, result.inspected, result.decoded, sum(result.formats.values())) == (30, 10, 10, 10)
    assert (sum(result.classes.values()), result.fingerprint) == (30, None)
    assert inspected(tmp_path, root).decoded == 20


def test_splits_are_proposed_apart(tmp_path):
    root = fill(tmp_path / "data", *[f"{s}/{c}/{n}.png" for s in ("train", "val") for c in "ab" for n in range(4)])
    result = inspected(tmp_path, root)
    assert {name: (split.uri, split.images) for name, split in result.splits.items()} == {
        "train": (f"file://{root}/train", 8), "validation": (f"file://{root}/val", 8),
    }  # fmt: skip
    assert result.proposed["dataset"]["uri"] == f"file://{root}/train"
    assert result.proposed["evaluation"]["dataset"]["uri"] == f"file://{root}/val"
    assert "splits_together" in codes(result)
    PretrainSpec.parse({"kind": "pretrain", **result.proposed})
    (root / "val/a/phone.HEIC").write_bytes(b"x")
    result = inspected(tmp_path, root, exclude=["*_mask.png"])
    for part in (result.proposed, result.proposed["evaluation"]):
        assert part["dataset"]["exclude"] == ["*_mask.png", "*.HEIC"]
    for chosen in ({"include": ["train/", "val/"]}, {"exclude": ["train/a"]}):
        assert inspected(tmp_path, root, **chosen).proposed["dataset"]["uri"] == f"file://{root}"


def test_splits_that_no_uri_names_are_proposed_by_patterns(tmp_path):
    names_in_tar = [f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"]
    shards = tar_of(tmp_path / "shards", *[(name, picture(n, (40, 40))) for n, name in enumerate(names_in_tar)])
    (shards / "a.tar").rename(shards / "train.tar")
    alone = inspected(tmp_path, shards / "train.tar").splits["train"]
    assert (alone.uri, alone.images) == (f"file://{shards}/train.tar", 4)
    (shards / "train.tar").rename(shards / "a.tar")
    result = inspected(tmp_path, shards / "a.tar")
    assert result.proposed["dataset"] == {"uri": f"file://{shards}/a.tar", "include": ["train/"]}
    assert result.proposed["evaluation"]["dataset"] == {"uri": f"file://{shards}/a.tar", "include": ["val/"]}
    PretrainSpec.parse({"kind": "pretrain", **result.proposed})
    assert "dataset" not in inspected(tmp_path, shards / "a.tar", include=["*.jpg"]).proposed.get("evaluation", {})
    root = fill(tmp_path / "data", *[f"{f}/{n}.png" for f in ("a/train", "b/train", "b/val") for n in (1, 2, 3)])
    split = inspected(tmp_path, root).splits["train"]
    assert (split.uri, split.include, split.images) == (f"file://{root}", ("train/",), 6)


def test_names_that_are_no_unicode(tmp_path):
    root = fill(tmp_path / "data", "cat/a.png", "dog/a.png")
    for name in (b"caf\xe9.png", b"notes.\xe9", b"cat/caf\xe9.png"):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"")
    result = inspected(tmp_path, root)
    assert next(iter(result.unreadable.values())).first == r"caf\udce9.png"
    assert result.passed_over == {r".\udce9": 1}
    assert "labels_incomplete" in codes(result)


@pytest.mark.parametrize("wanted", [{}, {"value_range": [0, 100]}])
def test_deep_grey_images(tmp_path, wanted):
    (tmp_path / "data").mkdir()
    for number in range(5):
        values = RNG.integers(0, 4000, (40, 50)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"data/{number}.tif", values)
    result = inspected(tmp_path, tmp_path / "data", **wanted)
    assert (result.channels, result.bits, result.labels_from) == ({1: 5}, {16: 5}, "none")
    assert 3900 < result.value_range[1] < 4000
    assert result.proposed["dataset"]["value_range"] == wanted.get("value_range", [0, 4095])
    assert result.proposed["model"] == {"in_chans": 1, "img_size": 32, "patch_size": 4}
    assert result.proposed["evaluation"] == {"probes": []}
    assert result.proposed["optimization"] == {"global_batch_size": 1}
    assert sheet(tmp_path).getpixel((64, 64))[0] > 0


def test_a_sample_proposes_no_range_of_values(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(6):
        tifffile.imwrite(tmp_path / f"data/{number}.tif", np.full((40, 50), 1000 * number, np.uint16))
    assert "value_range" not in inspected(tmp_path, tmp_path / "data", sample=3).proposed["dataset"]
    assert inspected(tmp_path, tmp_path / "data").proposed["dataset"]["value_range"] == [0, 8191]


def test_images_without_a_finite_value(tmp_path):
    (tmp_path / "data").mkdir()
    tifffile.imwrite(tmp_path / "data/a.tif", np.full((40, 50), np.nan, np.float32))
    result = inspected(tmp_path, tmp_path / "data")
    assert (result.value_range, codes(result)) == (None, ["value_range_not_finite"])


def test_the_picture_leaves_out_what_cannot_be_decoded_again(tmp_path, monkeypatch):
    root = fill(tmp_path / "data", *[f"{number}.png" for number in range(4)])
    refused = iter([True, False, False, False])

    def decoded(*args):
        if next(refused):
            raise Unreadable("damaged")
        return decode(*args)

    monkeypatch.setattr("trainer.data.report.decode", decoded)
    assert inspected(tmp_path, root).inspected == 4
    assert sheet(tmp_path).getpixel((64, 64)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("files", "channels"),
    [
        ({"a.png": "L", "b.png": "L"}, 1), ({"a.png": "L", "b.png": "RGB"}, 3), ({"a.png": "RGBA", "b.png": "L"}, 3),
        ({"a.png": "LA", "b.png": "L"}, 1), ({"a.png": "P", "b.jpg": "CMYK"}, 3),
    ],
)  # fmt: skip
def test_the_proposed_channels_are_those_that_lose_no_colour(tmp_path, files, channels):
    (tmp_path / "data").mkdir()
    for name, mode in files.items():
        Image.new(mode, (300, 300), "red").save(tmp_path / "data" / name)
    result = inspected(tmp_path, tmp_path / "data")
    assert result.proposed["model"] == {"in_chans": channels}


def test_five_bands(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(3):
        values = RNG.integers(0, 256, (40, 50, 5)).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"data/{number}.tif", values, photometric="minisblack", planarconfig="contig")
    result = inspected(tmp_path, tmp_path / "data")
    assert (result.channels, result.proposed["model"]["in_chans"]) == ({5: 3}, 5)


@pytest.mark.parametrize(
    ("kinds", "channels", "fitting"),
    [
        (["colours"] * 2, {3: 2}, {1: 2, 3: 2, 4: 2}),
        (["colours", "bands", "bands"], {5: 2, 3: 1}, {1: 1, 3: 1, 4: 1, 5: 2}),
        (["pages"] * 2, {1: 2}, {1: 2, 3: 2, 4: 2, 8: 2}),
        (["broken"], {}, {}),
    ],
)  # fmt: skip
def test_the_channels_that_fit(tmp_path, kinds, channels, fitting):
    (tmp_path / "data").mkdir()
    for number, kind in enumerate(kinds):
        file = tmp_path / f"data/{number}.tif"
        grey = {"photometric": "minisblack", "planarconfig": "contig"}
        match kind:
            case "colours":
                tifffile.imwrite(file, RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8), photometric="rgb")
            case "bands":
                tifffile.imwrite(file, RNG.integers(0, 256, (40, 50, 5)).astype(np.uint8), **grey)
            case "pages":
                tifffile.imwrite(file, RNG.integers(0, 256, (8, 40, 50)).astype(np.uint8), photometric="minisblack")
            case _:
                file.write_bytes(b"x")
    result = inspected(tmp_path, tmp_path / "data")
    assert (result.channels, result.fitting_channels) == (channels, fitting)


def test_shards_and_columns(tmp_path):
    members = [(f"{number}.jpg", picture(number, (40, 40))) for number in range(4)]
    shards = tar_of(tmp_path / "shards", *members, ("0.cls", b"3"), ("1.cls", b"4"))
    result = inspected(tmp_path, shards)
    assert (result.labels_from, result.classes) == ("cls", {"3": 1, "4": 1})
    assert "labels_incomplete" in codes(result)
    (tmp_path / "rows").mkdir()
    pq.write_table(parquet_table(samples(6)), tmp_path / "rows/a.parquet")
    assert inspected(tmp_path, tmp_path / "rows").labels_from == "column:label"


def test_digits(tmp_path):
    result = inspected(tmp_path, "builtin://digits", fraction=0.1)
    assert (result.images, result.class_count, result.labels_from) == (180, 10, "builtin")
    assert (result.formats, result.channels) == ({"pixels": 180}, {1: 180})
    PretrainSpec.parse({"kind": "pretrain", **result.proposed})


def test_a_dataset_of_broken_images_has_a_result_too(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").write_bytes(b"x")
    result = inspected(tmp_path, tmp_path / "data")
    assert (result.images, result.sizes, result.value_range, result.fingerprint) == (1, None, None, None)
    assert not (tmp_path / "run" / names.SAMPLES_PICTURE).exists()
    with pytest.raises(DataError, match="no folder or file"):
        inspected(tmp_path, tmp_path / "nowhere")


def test_a_command_stops_it_and_nothing_is_decoded_twice(tmp_path):
    root = fill(tmp_path / "data", *[f"{number}.png" for number in range(200)])
    spec = InspectSpec.parse({"kind": "inspect", "dataset": {"uri": str(root)}})
    asked: list[int] = []

    def requested_action():
        asked.append(1)
        return "pause" if len(asked) > 2 else None

    with pytest.raises(Exception, match="pause"):
        inspect(spec, Store(str(tmp_path / "run")), place(tmp_path).cache, None, None, requested_action)
    assert 0 < inspected(tmp_path, root).decoded < 200
