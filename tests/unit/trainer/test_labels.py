"""Labels: where they come from, what they are called, and which images have none."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import (
    CLASSES,
    class_names,
    dataset,
    fill,
    opened,
    parquet_table,
    picture,
    place,
    samples,
    tar_of,
    write_folder,
)

from trainer.data.dataset import open_training_data
from trainer.data.index import split
from trainer.data.labels import Labels
from trainer.data.scan import scan
from trainer.data.selection import select
from trainer.data.sources import find_files
from trainer.errors import DataError
from trainer.evaluation.probe_images import NoProbe, probe_images
from trainer.spec.pretrain import PretrainSpec


def codes(images) -> list[str]:
    """Of the notices about labels."""
    return [notice.code for notice in images.notices if not notice.code.startswith("value_range")]


def text_of(images, code: str) -> str:
    return next(notice.message for notice in images.notices if notice.code == code)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_first_level_folders_are_the_classes(tmp_path):
    images = opened(fill(tmp_path, "dog/b.png", "cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG"), tmp_path / "c")
    assert list(images.index.table.names) == ["cat/deep/er/a.png", "cat/z.jpg", "dog/a.PNG", "dog/b.png"]
    assert class_names(images) == ["cat", "cat", "dog", "dog"]
    assert (images.labels.source, codes(images)) == ("folders", [])


@pytest.mark.parametrize("names", [("a.png", "b.jpg"), ("only/a.png", "only/b.png"), ("a.png", "b.png", "cat/c.png")])
def test_flat_and_single_folders_have_no_labels(tmp_path, names):
    images = opened(fill(tmp_path / "data", *names), tmp_path)
    assert (class_names(images), images.labels.source) == ([None] * len(names), "none")


def test_images_beside_the_folders_have_no_label_and_are_told_of(tmp_path):
    images = opened(fill(tmp_path / "data", "a.png", "cat/b.png", "dog/c.png"), tmp_path)
    assert class_names(images) == [None, "cat", "dog"]
    assert "1 of 3 images have no label; the first is a.png" in text_of(images, "labels_incomplete")


@pytest.mark.parametrize("prefix", ["", "imagenette2/"])
def test_splits_are_no_classes(tmp_path, prefix):
    names = [f"{prefix}{split}/{name}/{n}.png" for split in ("train", "Val") for name in CLASSES for n in (1, 2)]
    root = fill(tmp_path / "data", *names)
    images = opened(root, tmp_path)
    assert images.labels.counts() == dict.fromkeys(CLASSES, 4)
    told = text_of(images, "splits_together")
    assert f"dataset.uri: file://{root}/{prefix}train " in told
    assert f"evaluation.dataset: {{uri: file://{root}/{prefix}Val}}" in told
    alone = opened(root, tmp_path, exclude=["Val/"])
    assert (alone.labels.counts(), codes(alone)) == (dict.fromkeys(CLASSES, 2), [])
    alone = opened(root / prefix / "train", tmp_path)
    assert (alone.labels.counts(), codes(alone)) == (dict.fromkeys(CLASSES, 2), [])


CHEST = [f"{s}/{c}" for s in ("train", "test", "val") for c in ("NORMAL", "PNEUMONIA")]
MVTEC = [f"{c}/{s}" for c in ("bottle", "cable") for s in ("train/good", "test/good", f"test/bent_{c}")]
ALIKE, DATASETS, TOGETHER, INCOMPLETE = (
    "split_name_is_class", "folders_are_datasets", "splits_together", "labels_incomplete",
)  # fmt: skip
LAYOUTS = {
    # folders: classes, splits, notices
    "flat": ([""], "", "", []),
    "one class": (["cat"], "", "", []),
    "nested": (["animals/dogs/husky", "animals/cats/siam", "plants/oak"], "animals plants", "", []),
    "patients": (["p1/left", "p1/right", "p2/left"], "p1 p2", "", []),
    "wrappers": (["data/images/a", "data/images/b"], "a b", "", []),
    "words": (["Training/a", "Training/b", "Testing/a", "Testing/b"], "a b", "train test", [TOGETHER]),
    "eval": (["train/a", "train/b", "eval/a", "eval/b"], "a b", "train validation", [TOGETHER]),
    "ending": (["train_set/a", "train_set/b", "test_set/a"], "a b", "train test", [TOGETHER]),
    "numbers": (["train-0/a", "train-1/b", "val-0/a"], "a b", "train validation", [TOGETHER]),
    "years": (["train2017", "val2017"], "", "train validation", [TOGETHER]),
    "pairs": (["train_images", "test_images"], "", "train test", [TOGETHER]),
    "one split": (["train/cat", "train/dog"], "cat dog", "train", []),
    "a split of one class": (["train/cat"], "", "train", []),
    "a flat split": (["train/a", "train/b", "val"], "a b", "train validation", [INCOMPLETE, TOGETHER]),
    "a class that one split has": (
        ["masks", "train/a", "val/b"],
        "a b",
        "train masks validation",
        [INCOMPLETE, TOGETHER],
    ),
    "STL-10": (
        ["train/a", "train/b", "test/a", "test/b", "unlabeled"],
        "a b",
        "train test unlabeled",
        [INCOMPLETE, TOGETHER],
    ),
    "SVHN": (["train", "test", "extra"], "", "train test extra", [TOGETHER]),
    "COCO": (["train2017", "val2017", "unlabeled2017"], "", "train validation unlabeled2017", [TOGETHER]),
    "any other name": (["train/a", "train/b", "holdout/a", "holdout/b"], "a b", "train holdout", [TOGETHER]),
    "wrappers around and in": (
        ["x/train/images/a", "x/train/images/b", "x/test/images/a"],
        "a b",
        "train test",
        [TOGETHER],
    ),
    "a wrapper like a split": (
        ["test_data/train/a", "test_data/train/b", "test_data/test/a"],
        "a b",
        "train test",
        [TOGETHER],
    ),
    "classes like splits in splits": (
        ["train/train", "train/car", "val/train"],
        "car train",
        "train validation",
        [TOGETHER],
    ),
    "splits in classes": (["cat/train", "cat/test", "dog/train", "dog/test"], "cat dog", "train test", [TOGETHER]),
    # words of splits in the names of classes
    "vehicles": (["bus", "car", "train"], "bus car train", "", [ALIKE]),
    "vehicles with folders": (["bus/x", "car/y", "train/z"], "bus car train", "", [ALIKE]),
    "tubes": (["bus", "test-tube", "train"], "bus test-tube train", "", [ALIKE]),
    "tests": (["test_1", "test_2", "test_3"], "test_1 test_2 test_3", "", [ALIKE]),
    "boards": (["dev_board", "val_board"], "dev_board val_board", "", [ALIKE]),
    "words beside one split": (
        ["train_station", "test_tube", "extra_large", "eval"],
        "extra_large test_tube train_station",
        "validation",
        [ALIKE, INCOMPLETE, TOGETHER],
    ),
    "tests with the same classes": (["test_1/a", "test_1/b", "test_2/a", "test_2/b"], "a b", "test", []),
    "sizes": (["extra_large", "large", "test"], "extra_large large", "test", [INCOMPLETE, TOGETHER]),
    "bullet trains": (["bullet_train", "bullet_point", "car"], "bullet_point bullet_train car", "", []),
    # one split beside classes
    "classes beside a split": (["a", "b", "test/a", "test/b"], "a b", "test", [TOGETHER]),
    "classes beside splits": (
        ["bus", "car", "train2017", "val2017"],
        "bus car",
        "train validation",
        [INCOMPLETE, TOGETHER],
    ),
    # datasets beside each other
    "folds": (
        [f"{f}/{s}/{c}" for f in ("f1", "f2") for s in ("train", "val") for c in "ab"],
        "a b",
        "train validation",
        [DATASETS, TOGETHER],
    ),
    "sessions": (["A/train/2020", "A/test/2021", "B/train/2020", "B/test/2021"], "A B", "train test", [TOGETHER]),
    "subjects": (["cat/train/a", "cat/test/a", "dog/train/b", "dog/test/b"], "cat dog", "train test", [TOGETHER]),
    "MVTec": (MVTEC, "bottle cable", "train test", [TOGETHER]),
    "MVTec with masks": ([*MVTEC, "bottle/ground_truth/bent_bottle"], "bottle cable", "train test", [TOGETHER]),
    "one of MVTec": (
        ["train/good", "test/good", "test/bent", "ground_truth/bent"],
        "bent good",
        "train test ground_truth",
        [TOGETHER],
    ),
    "a dataset twice": (
        ["x/" + f for f in CHEST] + ["x/x/" + f for f in CHEST],
        "NORMAL PNEUMONIA",
        "train test validation",
        [TOGETHER],
    ),
    # words at the end
    "Intel": (
        ["seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a", "seg_test/seg_test/b"],
        "a b",
        "train test",
        [TOGETHER],
    ),
    "letters of signs": (["asl_train/A", "asl_train/B", "asl_test"], "A B", "train test", [INCOMPLETE, TOGETHER]),
    "CycleGAN": (["trainA", "trainB", "testA", "testB"], "", "train test", [TOGETHER]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_and_classes_by_the_folders_around_them(tmp_path, layout):
    folders, classes, splits, told = LAYOUTS[layout]
    root = fill(tmp_path / "data", *[f"{folder}/{n}.png".lstrip("/") for folder in folders for n in (1, 2)])
    spec = dataset(root)
    files = find_files(spec)
    selection = select(files, scan(files, spec), spec)
    assert selection.table.labels.classes == tuple(classes.split())
    assert selection.splits.keys() == set(splits.split())
    assert sorted(notice.code for notice in selection.table.notices) == sorted(told)


def test_a_held_out_split_beside_its_classes_is_told_of_with_patterns_to_leave_it_out(tmp_path):
    root = fill(tmp_path / "data", "cat/1.png", "dog/1.png", "test/cat/1.png", "test/dog/2.png")
    told = text_of(opened(root, tmp_path), "splits_together")
    assert "The split test of" in told
    assert f'dataset.exclude: ["test/"] and evaluation.dataset: {{uri: file://{root}/test}}' in told
    alone = opened(root, tmp_path, exclude=["test/"])
    assert (alone.labels.counts(), codes(alone)) == ({"cat": 1, "dog": 1}, [])


def test_datasets_beside_each_other_are_named(tmp_path):
    folders, *_ = LAYOUTS["folds"]
    told = text_of(opened(fill(tmp_path / "data", *[f"{f}/1.png" for f in folders]), tmp_path), "folders_are_datasets")
    assert told.startswith("f1, f2 are taken for datasets, not classes")


def test_folders_named_like_splits_that_are_classes_are_told_of(tmp_path):
    images = opened(fill(tmp_path / "data", "bus/1.png", "test-tube/1.png", "train/1.png"), tmp_path)
    assert "not for splits: test-tube, train" in text_of(images, "split_name_is_class")


def test_folders_of_single_images_are_identifiers_if_they_are_many(tmp_path):
    images = opened(fill(tmp_path / "few", *[f"{n}/scan.png" for n in range(12)]), tmp_path)
    assert (len(images.labels.classes), codes(images)) == (12, [])
    images = opened(fill(tmp_path / "many", *[f"patient-{n}/scan.png" for n in range(120)]), tmp_path)
    assert (images.labels.source, codes(images)) == ("none", ["labels_are_identifiers"])
    spec = {"dataset": {"uri": str(tmp_path / "many"), "cache": "none"}, "optimization": {"global_batch_size": 4}}
    data = open_training_data(PretrainSpec.parse({"kind": "pretrain", **spec}), place(tmp_path))
    with pytest.raises(NoProbe, match="has no labels: The folders are not taken for classes: 120 of 120 hold a single"):
        probe_images(data)


def test_a_share_of_the_images_has_the_classes_of_all(tmp_path):
    root = fill(tmp_path / "data", *[f"{c:02d}/{n}.png" for c in range(20) for n in range(10)])
    images = opened(root, tmp_path, fraction=0.15)
    assert (len(images), images.labels.labelled, codes(images)) == (30, 30, [])


def test_labels_that_were_named_are_used_whatever_they_hold(tmp_path):
    (tmp_path / "data").mkdir()
    table = (
        parquet_table(samples(12)).drop_columns("label").append_column("label", pa.array([f"{n}x" for n in range(12)]))
    )
    pq.write_table(table, tmp_path / "data/a.parquet")
    images = opened(tmp_path / "data", tmp_path)
    assert (images.labels.source, codes(images)) == ("none", ["labels_are_identifiers"])
    assert len(opened(tmp_path / "data", tmp_path, label_column="label").labels.classes) == 12


def test_names_that_are_no_unicode_are_shown_as_they_can_be(tmp_path):
    root = fill(tmp_path / "data", "cat/a.png", "dog/a.png")
    odd = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(odd)  # noqa: PTH102 - a path of bytes
    shutil.copy(root / "cat/a.png", odd + b"/b.png")
    images = opened(root, tmp_path)
    assert class_names(images) == [r"caf\udce9", "cat", "dog"]
    assert images.pixels(0).shape == (4, 6, 3)


# --- metadata.csv and metadata.jsonl ----------------------------------------------------------------------------------


def _csv(rows: list[dict[str, str]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _jsonl(rows: list[dict[str, str]]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.mark.parametrize(("name", "write"), [("metadata.csv", _csv), ("metadata.jsonl", _jsonl)])
def test_metadata_files_have_the_labels(tmp_path, name, write):
    root = fill(tmp_path / "data", "a.png", "sub/b.png", "c.png")
    rows = [("a.png", "dog"), ("sub/b.png", "cat"), ("gone.png", "cat")]
    (root / name).write_text(write([{"file_name": file, "label": label} for file, label in rows]))
    images = opened(root, tmp_path)
    assert (class_names(images), images.labels.source) == (["dog", None, "cat"], name)
    assert codes(images) == ["metadata_without_images", "labels_incomplete"]
    (root / name).write_text(write([{"file_name": file, "species": label} for file, label in rows]))
    assert opened(root, tmp_path).labels.source == "none"
    assert class_names(opened(root, tmp_path, label_column="species")) == ["dog", None, "cat"]
    with pytest.raises(DataError, match=r"dataset\.label_column: 'nothing' is in no metadata\.csv"):
        opened(root, tmp_path, label_column="nothing")


def test_rows_of_metadata_need_not_have_the_same_fields(tmp_path):
    root = fill(tmp_path / "data", "a.png", "b.png", "c.png")
    (root / "metadata.jsonl").write_text(
        '{"file_name": "a.png"}\n{"label": 1.0, "file_name": "b.png"}\n{"file_name": "c.png", "label": NaN}\n'
    )
    assert class_names(opened(root, tmp_path)) == [None, "1", None]


@pytest.mark.parametrize(("value", "reason"), [(0.37, "it holds 0.37, which"), ([1, 2], r"it holds \[1, 2\]; names")])
def test_labels_that_are_none_are_told_of_and_refused_where_they_were_named(tmp_path, value, reason):
    root = fill(tmp_path / "data", "a.png", "b.png")
    (root / "metadata.jsonl").write_text(_jsonl([{"file_name": "a.png", "label": value}]))
    images = opened(root, tmp_path)
    assert (images.labels.source, codes(images)) == ("none", ["label_column_unusable"])
    assert re.search(f"label looks like labels and is not used: {reason}", text_of(images, "label_column_unusable"))
    with pytest.raises(DataError, match=rf"dataset\.label_column: 'label' cannot be used: {reason}"):
        opened(root, tmp_path, label_column="label")
    shards = tar_of(
        tmp_path / "shards", ("1.jpg", picture(1, (20, 20))), ("1.json", json.dumps({"label": value}).encode())
    )
    assert re.search(
        rf"\.json looks like labels and is not used: {reason}",
        text_of(opened(shards, tmp_path), "label_column_unusable"),
    )


def test_metadata_go_before_folders(tmp_path):
    root = Path(write_folder(tmp_path / "data", samples(12)))
    assert opened(root, tmp_path).labels.classes == CLASSES
    (root / "metadata.csv").write_text(_csv([{"file_name": "cat/0000.png", "label": "lion"}]))
    images = opened(root, tmp_path)
    assert (images.labels.source, images.labels.counts()) == ("metadata.csv", {"lion": 1})


# --- what values of texts mean ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected", "told"),
    [
        (["0.0", "1.0", "", "1"], ["0", "1", None, "1"], []),
        (["nan", "0", "NA", "None"], [None, "0", None, None], ["missing_labels"]),
        (["nan", "cat", "NA", "None"], [None, "cat", "NA", "None"], ["missing_labels"]),
        (["01", "1", "2", "02"], ["01", "1", "2", "02"], []),
        (["01", "02", "-1", "01"], ["01", "02", "-1", "01"], []),
        (["1.5", "1.0", "2", "2.0"], ["1.5", "1.0", "2", "2.0"], []),
        (["-1", "-1.0", "0", "00"], ["-1", "-1.0", "0", "00"], []),
        (["-1", "-1.0", "0", "10"], [None, None, "0", "10"], ["negative_labels"]),
    ],
)
def test_texts_are_numbers_if_all_are_without_leading_zeros(tmp_path, values, expected, told):
    root = fill(tmp_path / "data", *[f"{number}.png" for number in range(4)])
    (root / "metadata.csv").write_text(
        _csv([{"file_name": f"{number}.png", "label": value} for number, value in enumerate(values)])
    )
    images = opened(root, tmp_path)
    assert class_names(images) == expected
    assert codes(images) == told + ["labels_incomplete"] * (None in expected)
    table = parquet_table(samples(4)).drop_columns("label").append_column("label", pa.array(values))
    (tmp_path / "rows").mkdir()
    pq.write_table(table, tmp_path / "rows/a.parquet")
    assert class_names(opened(tmp_path / "rows", tmp_path)) == expected


def test_the_same_numbers_are_the_same_classes_whatever_wrote_them(tmp_path):
    content = {
        "metadata.csv": 'file_name,label\na.png,0.0\nb.png,1.0\nc.png,"-1"\n',
        "metadata.jsonl": _jsonl(
            [{"file_name": f"{name}.png", "label": label} for name, label in (("a", 0), ("b", "1"), ("c", -1))]
        ),
    }
    for name, text in content.items():
        root = fill(tmp_path / name, "a.png", "b.png", "c.png")
        (root / name).write_text(text)
        images = opened(root, tmp_path)
        assert class_names(images) == ["0", "1", None]
        assert "1 of 3 images have a negative label" in text_of(images, "negative_labels")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"file_name": "a.png", "label": "\\ud83d"}', '{"file_name": "b.png", "label": "b"}'], ["\\ud83d", "b"]),
        (['{"file_name": "a.png", "label": "x\u2028y"}', '{"file_name": "b.png", "label": "b"}'], ["x\u2028y", "b"]),
        (['{"file_name": "a.png", "label": null, "cls": 3}', '{"file_name": "b.png", "label": 1}'], [None, "1"]),
        (['{"file_name": "a.png", "label": -1}', '{"file_name": "b.png", "label": "cat"}'], [None, "cat"]),
        (['{"file_name": ".\\\\a.png", "label": 1}\r', '{"file_name": "b.png", "label": true}\r'], ["1", "true"]),
    ],
)
def test_lines_of_json_have_whatever_json_has(tmp_path, lines, expected):
    root = fill(tmp_path / "data", "a.png", "b.png")
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="")
    images = opened(root, tmp_path)
    assert class_names(images) == expected
    assert class_names(opened(root, tmp_path)) == expected  # as the node kept them


@pytest.mark.parametrize(
    "content",
    [
        "file_name, label\nimg/a.png, cat\nimg/b.png, dog\n",
        "label ,file_name\ncat,img\\a.png\ndog,img\\b.png\n",
        "file_name,label\rimg/a.png,cat\rimg/b.png,dog\r",
        '\ufeff\r\nfile_name,label,x,x\r\n"img/a.png","cat",1,2\r\nimg/b.png,dog,,\r\n',
    ],
)
def test_csv_files_as_programs_write_them(tmp_path, content):
    root = fill(tmp_path / "data", "img/a.png", "img/b.png")
    (root / "metadata.csv").write_text(content, encoding="utf-8", newline="")
    images = opened(root, tmp_path)
    assert (class_names(images), codes(images)) == (["cat", "dog"], [])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("csv", b"file_name,label\na.png,cat, black\n", r"line 2 does not have 2 values .* but 3: quote values"),
        ("csv", b"label,file_name\ncat,a.png\n\ndog\n", r"line 4 does not have 2 values .* but 1: quote values"),
        ("csv", b"file_name;label\na.png;cat\n", r"only 'file_name;label': add it, or save .* UTF-8 with commas"),
        ("csv", "file_name,label\na.png,café\n".encode("latin-1"), r"is not UTF-8, first at byte 25: save it as UTF-8"),
        ("csv", "file_name,label\na.png,cat\n".encode("utf-16"), r"is not UTF-8, first at byte 0: save it as UTF-8"),
        ("csv", b"file_name,label,label\na.png,cat,dog\n", r"2 columns named 'label': rename or remove all but one"),
        ("csv", b"file_name,label\na.png,1\n,2\n", r"line 3 has no file_name: add it"),
        ("csv", b'file_name,label\n"a.png', r"line 2: unexpected end of data"),
        ("jsonl", b"\n" + b"[" * 200_000, r"line 2 is no JSON: maximum recursion depth"),
        ("jsonl", b'{"file_name": "a.png"', r"line 1 is no JSON: .*delimiter"),
        ("jsonl", b'["a.png", 1]', r'line 1 is no JSON object, such as {"file_name": "a\.png"}'),
        ("jsonl", b'{"file_name": null, "label": 1}', r"line 1 has no file_name: add it"),
    ],
)
def test_lines_of_metadata_that_cannot_be_used_are_named(tmp_path, name, content, words):
    (fill(tmp_path / "data", "a.png") / f"metadata.{name}").write_bytes(content)
    with pytest.raises(DataError, match=rf"dataset\.uri: metadata\.{name} of .*data .*{words}"):
        opened(tmp_path / "data", tmp_path)


def test_metadata_that_say_two_things_of_an_image_are_refused_and_captions_are_none_of_our_business(tmp_path):
    root = fill(tmp_path / "data", "a.png", "b.png")
    (root / "metadata.csv").write_text("file_name,label\na.png,cat\nb.png,cat\na.png,cat\n")
    assert class_names(opened(root, tmp_path)) == ["cat", "cat"]
    (root / "metadata.csv").write_text("file_name,label\na.png,cat\na.png,dog\n")
    with pytest.raises(DataError, match=r"a\.png has two labels in metadata\.csv of .*, 'cat' and 'dog'"):
        opened(root, tmp_path)
    (root / "metadata.csv").write_text("file_name,caption\na.png,a cat, black\n")
    assert codes(opened(root, tmp_path)) == []


def test_metadata_files_share_one_column_of_labels(tmp_path):
    root = fill(tmp_path / "data", "a/1.png", "b/2.png", "c/3.png")
    for folder, column, label in (("a", "category", "x"), ("b", "label", "y"), ("c", "caption", "z")):
        (root / folder / "metadata.csv").write_text(
            _csv([{"file_name": name, column: label} for name in ("1.png", "2.png", "3.png")])
        )
    images = opened(root, tmp_path)
    assert class_names(images) == [None, "y", None]
    assert "the first is a/metadata.csv with 'category'" in text_of(images, "label_columns_differ")
    assert class_names(opened(root, tmp_path, label_column="category")) == ["x", None, None]


# --- shards -----------------------------------------------------------------------------------------------------------


def test_labels_of_tars_are_cls_members_or_folders(tmp_path):
    one, two = picture(1, (20, 20)), picture(2, (20, 20))
    numbers = tar_of(tmp_path / "a", ("x/1.jpg", one), ("x/1.cls", b"7\n"), ("x/2.cls", b"3"), ("x/2.jpg", two))
    assert class_names(opened(numbers, tmp_path)) == ["7", "3"]
    words = tar_of(tmp_path / "b", ("1.jpg", one), ("1.cls", b"dog"), ("2.jpg", two), ("2.cls", b"cat"))
    assert class_names(opened(words, tmp_path)) == ["dog", "cat"]
    folders = opened(tar_of(tmp_path / "c", ("./dog/1.jpg", one), ("./cat/1.jpg", two)), tmp_path)
    assert (class_names(folders), folders.labels.source) == (["dog", "cat"], "folders")
    partly = opened(tar_of(tmp_path / "d", ("1.jpg", one), ("1.cls", b"7"), ("2.jpg", two)), tmp_path)
    assert (class_names(partly), codes(partly)) == (["7", None], ["labels_incomplete"])


def test_a_sample_is_named_by_its_whole_stem_or_up_to_its_first_dot(tmp_path):
    made = [picture(number, (20, 20)) for number in range(3)]
    members = [(f"scan-1.{n:03d}.jpg", made[n]) for n in range(2)] + [
        (f"scan-1.{n:03d}.cls", b"%d" % n) for n in range(2)
    ]
    whole = tar_of(tmp_path / "whole", *members)
    assert class_names(opened(whole, tmp_path)) == ["0", "1"]
    first = tar_of(tmp_path / "first", ("a.left.jpg", made[0]), ("a.right.jpg", made[1]), ("a.cls", b"4"))
    assert class_names(opened(first, tmp_path)) == ["4", "4"]
    part = tar_of(tmp_path / "part", *members[:3])
    assert class_names(opened(part, tmp_path)) == ["0", None]
    others = tar_of(tmp_path / "others", *members, ("scan-1.002.jpg", made[2]))
    assert class_names(opened(others, tmp_path)) == ["0", "1", None]
    both = tar_of(tmp_path / "both", ("b.jpg", made[0]), ("b.cls", b"4"), ("b.cls", b"5"))
    with pytest.raises(DataError, match=r"b\.jpg in the shard a\.tar has two labels, '4' and '5'"):
        opened(both, tmp_path)


def test_labels_in_json_members(tmp_path):
    one, two = picture(1, (20, 20)), picture(2, (20, 20))
    json_members = [("1.json", b'{"label": 3, "caption": "x"}'), ("2.json", b'{"cls": 5}'), ("3.json", b"no json")]
    images = opened(tar_of(tmp_path / "a", ("1.jpg", one), ("2.jpg", two), *json_members), tmp_path)
    assert (class_names(images), images.labels.source) == (["3", "5"], "json")
    images = opened(tar_of(tmp_path / "b", ("1.jpg", one), ("1.cls", b"8"), *json_members), tmp_path)
    assert (class_names(images), images.labels.source) == (["8"], "cls")
    images = opened(tmp_path / "b", tmp_path, label_column="caption")
    assert (class_names(images), images.labels.source) == (["x"], "json")
    with pytest.raises(DataError, match=r"dataset\.label_column: no \.json member of .* has a field 'species'"):
        opened(tmp_path / "b", tmp_path, label_column="species")


@pytest.mark.parametrize(
    ("content", "label"),
    [(b'{"label": null, "cls": 3}', "3"), (b"[" * 200_000, None), (b'\xef\xbb\xbf{"label": 3}', "3")],
)
def test_odd_json_members(tmp_path, content, label):
    shards = tar_of(tmp_path / "a", ("1.jpg", picture(1, (20, 20))), ("1.json", content))
    assert class_names(opened(shards, tmp_path)) == [label]


def test_labels_that_are_not_utf_8_are_refused(tmp_path):
    one = ("1.jpg", picture(1, (20, 20)))
    assert class_names(opened(tar_of(tmp_path / "mark", one, ("1.cls", b"\xef\xbb\xbf3\n")), tmp_path)) == ["3"]
    for member in (
        ("1.cls", "caf\xe9".encode("latin-1")),
        ("1.json", b'{"label": "caf\xe9"}'),
        ("1.json", rb'{"cls": "\ud800"}'),
    ):
        with pytest.raises(
            DataError, match=rf"the label in {member[0]} of the shard a\.tar is not valid UTF-8: create"
        ):
            opened(tar_of(tmp_path / "latin", one, member), tmp_path)


@pytest.mark.parametrize("prefix", ["", "./", "/data/"])
def test_splits_within_a_shard_are_told_of(tmp_path, prefix):
    names = [f"{prefix}{split}/{name}/1.jpg" for split in ("train", "val") for name in CLASSES]
    shards = tar_of(tmp_path / "a", *[(name, picture(n, (20, 20))) for n, name in enumerate(names)])
    images = opened(shards, tmp_path)
    assert images.labels.counts() == dict.fromkeys(CLASSES, 2)
    uri = f"file://{shards}"
    assert (
        f'dataset.uri: {uri}, dataset.include: ["train/"] and evaluation.dataset: {{uri: {uri}, include: ["val/"]}}'
        in text_of(images, "splits_together")
    )
    alone = opened(shards, tmp_path, include=["train/"])
    assert (alone.labels.counts(), codes(alone)) == (dict.fromkeys(CLASSES, 1), [])


def test_a_column_of_images_is_refused_where_there_are_no_columns(tmp_path):
    root = fill(tmp_path / "data", "a.png")
    with pytest.raises(
        DataError, match=r"dataset\.image_column: 'x' is a column of Parquet files, and .* has folder files"
    ):
        opened(root, tmp_path, image_column="x")


def test_shards_of_any_name_have_the_labels_of_their_members_folders(tmp_path):
    one, two = picture(1, (20, 20)), picture(2, (20, 20))
    for name, image, folder in (("one.TAR", one, "dog"), ("my.tar/two.tar", two, "cat")):
        made = tar_of(tmp_path / folder, (f"{folder}/1.jpg", image)) / "a.tar"
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        made.rename(tmp_path / "data" / name)
    images = opened(tmp_path / "data", tmp_path)
    assert list(images.index.table.names) == ["my.tar/two.tar/cat/1.jpg", "one.TAR/dog/1.jpg"]
    assert class_names(images) == ["cat", "dog"]


# --- columns ----------------------------------------------------------------------------------------------------------

WORDS = [CLASSES[number] for number in (0, 0, 1, 1, 2, 2)]
NUMBERS = ["0", "0", "1", "1", "2", "2"]
COLUMNS = {
    "integers": (pa.array([0, 0, 1, 1, 2, 2], pa.int16()), NUMBERS),
    "whole floats": (pa.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]), NUMBERS),
    "floats with gaps": (pa.array([0.0, float("nan"), 1.0, None, 2.0, 2.0]), ["0", None, "1", None, "2", "2"]),
    "truth": (pa.array([True, True, False, False, None, True]), ["true", "true", "false", "false", None, "true"]),
    "string": (pa.array(WORDS, pa.string()), WORDS),
    "large_string": (pa.array(WORDS, pa.large_string()), WORDS),
    "string_view": (pa.array(WORDS, pa.string_view()), WORDS),
    "dictionary": (pa.array(WORDS).dictionary_encode(), WORDS),
    "digits in text": (pa.array(NUMBERS), NUMBERS),
    "negative": (pa.array([0, -1, 1, -1, 2, 2]), ["0", None, "1", None, "2", "2"]),
    "null": (pa.array([0, None, 1, 1, 2, 2]), ["0", None, "1", "1", "2", "2"]),
    "all negative": (pa.array([-1] * 6), [None] * 6),
    "hashes": (pa.array([2**63 + n // 2 for n in range(6)], pa.uint64()), [str(2**63 + n // 2) for n in range(6)]),
    "half floats": (pa.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], pa.float16()), NUMBERS),
    "empty text": (pa.array(["", *WORDS[1:]]), [None, *WORDS[1:]]),
    "no Unicode": (
        pa.Array.from_buffers(pa.string(), 6, pa.array([b"\xff", *map(str.encode, WORDS[1:])]).buffers()),
        ["\\xff", *WORDS[1:]],
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_column_of_names_or_whole_numbers_is_used(tmp_path, kind):
    column, expected = COLUMNS[kind]
    (tmp_path / "data").mkdir()
    plain = parquet_table(samples(6)).drop_columns("label")
    pq.write_table(plain.append_column("label", column), tmp_path / "data/a.parquet")
    images = opened(tmp_path / "data", tmp_path)
    assert class_names(images) == expected
    assert ("negative_labels" in codes(images)) == ("negative" in kind)
    pq.write_table(plain.append_column("species", column), tmp_path / "data/a.parquet")
    assert class_names(opened(tmp_path / "data", tmp_path)) == [None] * 6
    assert class_names(opened(tmp_path / "data", tmp_path, label_column="species")) == expected


def _classed(labels: pa.Array, names: Sequence[str] | None = None, column: str = "label") -> pa.Table:
    """Six rows with these labels, and with class names as Hugging Face stores them."""
    table = parquet_table(samples(6)).drop_columns("label").append_column(column, labels)
    if names is None:
        return table
    named = {"info": {"features": {column: {"_type": "ClassLabel", "names": list(names)}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(named)})


INTEGERS = pa.array([0, 0, 1, 1, 2, 2])


def test_class_names_of_hugging_face_are_the_numbers_names(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(_classed(INTEGERS, CLASSES), tmp_path / "data/a.parquet")
    assert class_names(opened(tmp_path / "data", tmp_path)) == WORDS
    pq.write_table(_classed(INTEGERS, ("eel", "01", "\ud83d")), tmp_path / "data/a.parquet")
    images = opened(tmp_path / "data", tmp_path)
    assert images.labels.classes == ("eel", "01", "\\ud83d")  # in the order of their numbers


@pytest.mark.parametrize(
    ("second", "expected", "told"),
    [
        (_classed(INTEGERS, CLASSES[::-1]), WORDS[::-1], []),
        (_classed(pa.array([*WORDS[:5], None])), [*WORDS[:5], None], ["labels_incomplete"]),
        (_classed(pa.array([0.0, 0.0, 1.0, 1.0, None, -1.0]), CLASSES), [*WORDS[:4], None, None], ["negative_labels"]),
        (_classed(pa.array([0, 1, 2, 3, 12, 12]), CLASSES), [*CLASSES, "3", "12", "12"], ["unnamed_labels"]),
        (_classed(INTEGERS), NUMBERS, ["unnamed_labels"]),
        (_classed(INTEGERS, column="category"), [None] * 6, ["label_columns_differ"]),
        (_classed(pa.array(WORDS), column="species"), [None] * 6, ["labels_incomplete"]),
    ],
)
def test_each_file_has_its_own_names_of_classes(tmp_path, second, expected, told):
    (tmp_path / "data").mkdir()
    pq.write_table(_classed(INTEGERS, CLASSES), tmp_path / "data/a.parquet")
    pq.write_table(second, tmp_path / "data/b.parquet")
    images = opened(tmp_path / "data", tmp_path)
    assert class_names(images) == WORDS + expected
    assert set(codes(images)) == {*told, *["labels_incomplete"] * (None in expected)}
    assert images.labels.classes[:3] == CLASSES


def test_a_column_of_another_name_is_told_of_and_a_number_without_a_name(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(_classed(pa.array([0, 0, 1, 7, 7, 2]), CLASSES), tmp_path / "data/a.parquet")
    pq.write_table(_classed(INTEGERS, column="category"), tmp_path / "data/0.parquet")
    images = opened(tmp_path / "data", tmp_path)
    assert "1 of 2 files have another column of labels, the first is 0.parquet with 'category'" in text_of(
        images, "label_columns_differ"
    )
    assert "2 of 12 images have a class number in column:label that their file has no name for, such as 7" in text_of(
        images, "unnamed_labels"
    )


@pytest.mark.parametrize("column", ["image", "label"])
def test_columns_of_the_same_name_are_refused(tmp_path, column):
    (tmp_path / "data").mkdir()
    table = parquet_table(samples(6), x=INTEGERS)
    pq.write_table(table.append_column("x", INTEGERS), tmp_path / "data/a.parquet")
    assert class_names(opened(tmp_path / "data", tmp_path)) == NUMBERS
    pq.write_table(table.append_column(column, table[column]), tmp_path / "data/a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet of .* has 2 columns named '{column}': rename or remove all but"):
        opened(tmp_path / "data", tmp_path)


def test_a_dot_in_a_columns_name_is_no_path(tmp_path):
    (tmp_path / "data").mkdir()
    table = parquet_table(samples(6)).rename_columns(["m.image", "m.label"])
    inner = pa.array([{"image": {"bytes": b"x"}, "label": 7}] * 6)
    pq.write_table(table.add_column(0, "m", inner), tmp_path / "data/a.parquet")
    images = opened(tmp_path / "data", tmp_path, image_column="m.image", label_column="m.label")
    assert (class_names(images), len(images.index.bad)) == (NUMBERS, 0)


@pytest.mark.parametrize(
    ("column", "reason"),
    [(pa.array([0.5] * 6), "0.5, which is not a whole number"), (pa.array([[1]] * 6), "its type is list")],
)
def test_a_column_that_looks_like_labels_and_is_none_is_named(tmp_path, column, reason):
    (tmp_path / "data").mkdir()
    table = parquet_table(samples(6)).drop_columns("label").append_column("label", column)
    pq.write_table(table, tmp_path / "data/a.parquet")
    images = opened(tmp_path / "data", tmp_path)
    assert images.labels.source == "none"
    assert "label looks like labels and is not used: it" in text_of(images, "label_column_unusable")
    assert reason in text_of(images, "label_column_unusable")
    with pytest.raises(DataError, match=r"dataset\.label_column: 'label' cannot be used"):
        opened(tmp_path / "data", tmp_path, label_column="label")


def test_files_of_different_types_have_labels_together(tmp_path):
    (tmp_path / "data").mkdir()
    for name, kind in (("a", pa.int32()), ("b", pa.float64())):
        table = (
            parquet_table(samples(6)).drop_columns("label").append_column("label", pa.array([0, 0, 1, 1, 2, 2], kind))
        )
        pq.write_table(table, tmp_path / f"data/{name}.parquet")
    assert class_names(opened(tmp_path / "data", tmp_path)) == NUMBERS * 2


def test_columns_that_are_not_there_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(parquet_table(samples(6)), tmp_path / "data/a.parquet")
    with pytest.raises(DataError, match=r"dataset\.label_column: 'species' is not a column of a\.parquet"):
        opened(tmp_path / "data", tmp_path, label_column="species")
    with pytest.raises(DataError, match=r"dataset\.image_column: 'pixels' is no column of images; .*image: struct"):
        opened(tmp_path / "data", tmp_path, image_column="pixels")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_any_column_of_bytes_can_be_named(tmp_path, kind):
    (tmp_path / "data").mkdir()
    data = [picture(number, (20, 20)) for number in range(3)]
    table = pa.table({"thumbnail": pa.array([b"x"] * 3, pa.binary()), "scan": pa.array(data, kind)})
    pq.write_table(table, tmp_path / "data/a.parquet")
    with pytest.raises(DataError, match=r"several columns of bytes: name one in dataset\.image_column"):
        opened(tmp_path / "data", tmp_path)
    assert [bytes(raw) for raw in opened(tmp_path / "data", tmp_path, image_column="scan").reader.fetch([2, 0])] == [
        data[2], data[0],
    ]  # fmt: skip


def test_paths_alone_are_no_images(tmp_path):
    (tmp_path / "data").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for column in (pa.array([{"bytes": None, "path": "a.png"}] * 3, kind), pa.array(["a.png"] * 3)):
        pq.write_table(pa.table({"image": column}), tmp_path / "data/a.parquet")
        with pytest.raises(DataError, match=r"the images themselves are not in the file.*embed_table_storage"):
            opened(tmp_path / "data", tmp_path)


def test_files_of_several_splits_are_told_of(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "training"):
        pq.write_table(parquet_table(samples(6)), tmp_path / f"data/{name}.parquet")
    told = text_of(opened(tmp_path / "data", tmp_path), "splits_together")
    assert f"evaluation.dataset: {{uri: file://{tmp_path}/data/test-*}}" in told
    assert codes(opened(tmp_path / "data/train*", tmp_path)) == []


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["train", "train-extra", "test"], "{train-*,train.parquet}"),
        (["a_train", "b-train", "a_test"], "{*-train.parquet,*_train.parquet}"),
        (["train0", "train1", "test"], "train[0-9]*"),
    ],
)
def test_the_advice_names_all_files_of_a_split(tmp_path, names, train):
    (tmp_path / "data").mkdir()
    for name in names:
        pq.write_table(parquet_table(samples(6)), tmp_path / f"data/{name}.parquet")
    told = text_of(opened(tmp_path / "data", tmp_path), "splits_together")
    assert f"dataset.uri: file://{tmp_path}/data/{train} " in told
    assert len(opened(tmp_path / "data" / train, tmp_path)) == 12


# --- whatever the container -------------------------------------------------------------------------------------------

PICTURES = [picture(number, (12, 12), "PNG") for number in range(8)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["ant", "bee", "Cat", "dog 1", "ähre"]), min_size=8, max_size=8))
def test_the_same_pictures_and_names_are_the_same_data_in_any_container(tmp_path_factory, names):
    if len(set(names)) < 2:
        names[0] = "elk"
    root = tmp_path_factory.mktemp("containers")
    order = sorted(range(8), key=lambda number: f"{names[number]}/{number}.png")
    (root / "tar").mkdir()
    tar_of(root / "tar", *[m for n in order for m in ((f"{n}.png", PICTURES[n]), (f"{n}.cls", names[n].encode()))])
    for number in order:
        (root / "folder" / names[number]).mkdir(parents=True, exist_ok=True)
        (root / "folder" / names[number] / f"{number}.png").write_bytes(PICTURES[number])
    (root / "parquet").mkdir()
    rows = {"image": pa.array([PICTURES[n] for n in order], pa.binary()), "label": [names[n] for n in order]}
    pq.write_table(pa.table(rows), root / "parquet/a.parquet")
    (root / "flat").mkdir()
    for position, number in enumerate(order):
        (root / "flat" / f"{position}.png").write_bytes(PICTURES[number])
    metadata = [{"file_name": f"{position}.png", "label": names[number]} for position, number in enumerate(order)]
    (root / "flat/metadata.csv").write_text(_csv(metadata))
    seen = [opened(root / kind, root) for kind in ("folder", "tar", "parquet", "flat")]
    assert len({images.index.fingerprint for images in seen}) == 1
    assert [class_names(images) for images in seen] == [[names[number] for number in order]] * 4


# --- which images are held out ----------------------------------------------------------------------------------------


def test_each_class_gives_its_share_of_the_held_out_images():
    values = np.repeat([0, 1, 2, -1], [500, 300, 7, 93])
    labels = Labels(values, ("a", "b", "c"), "folders")
    train, held_out = split(labels, by_class=True)
    assert len(held_out) == 90
    counts = {label: int((values[held_out] == label).sum()) for label in (0, 1, 2, -1)}
    assert (counts[0], counts[1]) == (50, 30)
    assert counts[2] in (0, 1)
    assert sorted([*train, *held_out]) == list(range(900))
    again = split(labels, by_class=True)[1]
    np.testing.assert_array_equal(again, held_out)
    assert not np.array_equal(np.sort(held_out), held_out)  # any part of them is a random choice


def test_runs_that_began_with_a_plain_split_keep_it():
    labels = Labels(np.repeat([0, 1], 500), ("a", "b"), "folders")
    before = split(Labels.none(1000), by_class=True)
    for now, then in zip(split(labels, by_class=False), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_every_class_keeps_an_image_to_train_on():
    labels = Labels(np.arange(40) % 20, tuple(map(str, range(20))), "folders")
    train, held_out = split(labels, by_class=True)
    assert len(held_out) == 4
    assert set(labels.values[train]) == set(range(20))
