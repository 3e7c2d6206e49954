"""Datasets as people have them. The files are not part of the repository: without them these tests are skipped.

`test_labels.py`, `test_depth.py` and `test_selection.py` make small ones of every kind themselves.
"""

from pathlib import Path

import numpy as np
import pytest
from image_sets import opened, place

from trainer.data.dataset import open_training_data
from trainer.errors import DataError
from trainer.evaluation.probe_images import NoProbe, probe_images
from trainer.spec.pretrain import PretrainSpec

CASES = Path(__file__).parents[4] / "shared/cases"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")

LABELS = {
    "split-folders": {"airplane": 40, "automobile": 40, "frog": 40},
    "label-types/polars-string": {"airplane": 41, "automobile": 42, "frog": 37},
    "label-types/pandas-category": {"airplane": 41, "automobile": 42, "frog": 37},
    "label-types/bool": {"false": 83, "true": 37},
    "dotted-keys": {"0": 66, "1": 54},
    "json-labels": {"0": 52, "6": 48},
    "metadata-csv": {"airplane": 32, "frog": 28},
}
COUNTS = {"suffixes/ppm": 40, "suffixes/mixed": 40, "braces/shard-{000..002}.tar": 30, "tiny/n1": 1, "tiny/n9": 9}
REFUSED = {
    "suffixes/phone": r"32 of 40 images .* cannot be read .*\.heic files cannot be read: convert them",
    "paths-only": r"the images themselves are not in the file.*Embed them",
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(tmp_path, case):
    assert opened(CASES / case, tmp_path).labels.counts() == LABELS[case]


def test_split_folders_are_told_of(tmp_path):
    (told,) = [each.message for each in opened(CASES / "split-folders", tmp_path).notices]
    assert "split-folders/train and evaluation.dataset: {uri:" in told
    assert "split-folders/val}" in told


@pytest.mark.parametrize("case", COUNTS)
def test_every_image_is_found(tmp_path, case):
    images = opened(CASES / case, tmp_path, max_bad_fraction=0)
    assert (len(images), images.index.bad) == (COUNTS[case], ())


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_remedy(tmp_path, case):
    with pytest.raises(DataError, match=REFUSED[case]):
        opened(CASES / case, tmp_path, max_bad_fraction=0.1)


def _mean(images) -> float:
    return float(np.mean([images.pixels(row).mean() for row in range(len(images))]))


@pytest.mark.parametrize("fields", [{}, {"value_range": [0, 4095]}])
def test_twelve_bits_look_like_eight(tmp_path, fields):
    deep = opened(CASES / "twelve-bits/sixteen", tmp_path, channels=1, **fields)
    assert len(np.unique([deep.pixels(row) for row in range(len(deep))])) >= 128
    assert _mean(deep) == pytest.approx(_mean(opened(CASES / "twelve-bits/eight", tmp_path, channels=1)), rel=0.01)


def test_reflectance_is_equally_bright(tmp_path):
    images = opened(CASES / "reflectance", tmp_path, channels=1)
    assert _mean(images) == pytest.approx(110, abs=5)
    assert min(images.pixels(row).mean() for row in range(60)) > 20


def test_bands(tmp_path):
    assert opened(CASES / "bands/five-u8", tmp_path, channels=5).pixels(0).shape[2] == 5
    assert opened(CASES / "bands/three-f32", tmp_path).pixels(0).shape[2] == 3
    with pytest.raises(DataError, match=r"a TIFF of 5 bands; in_chans is 3"):
        opened(CASES / "bands/five-u8", tmp_path, channels=3)


def _training_data(tmp_path: Path, uri: Path, evaluation: Path | None = None):
    evaluation_section = {"dataset": {"uri": str(evaluation)}} if evaluation else {}
    parts = {"dataset": {"uri": str(uri)}, "evaluation": evaluation_section, "optimization": {"global_batch_size": 4}}
    return open_training_data(PretrainSpec.parse({"kind": "pretrain"} | parts), place(tmp_path))


def test_one_class_cannot_be_probed(tmp_path):
    with pytest.raises(NoProbe, match="all labelled images are of one class"):
        probe_images(_training_data(tmp_path, CASES / "constant-label"))


def test_classes_are_matched_by_name(tmp_path):
    differ = CASES / "classes-differ"
    probe = probe_images(_training_data(tmp_path, differ / "train", differ / "val-lacks-airplane"))
    assert probe.classes == ("automobile", "frog", "ship")
    assert (len(probe.train), len(probe.held_out)) == (135, 45)
    assert "airplane only among the training images" in probe.notices[0].message


def test_one_image_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"has 1 image.*evaluation\.dataset"):
        _training_data(tmp_path, CASES / "tiny/n1")
    assert len(_training_data(tmp_path, CASES / "tiny/n9").held_out) == 1
