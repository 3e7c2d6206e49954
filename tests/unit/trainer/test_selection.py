"""Which images a spec uses: patterns in the URI, `include`, `exclude`, `fraction`."""

import pytest
from image_sets import SIZE, dataset, fill, opened, picture, place, samples, tar_of, write_parquet

from trainer.data.dataset import open_images
from trainer.data.examine import examine_files
from trainer.data.sources import find_files
from trainer.errors import DataError
from trainer.spec.dataset import DatasetSpec

NAMES = ["@eaDir/a.png", "cat/1.png", "cat/1_mask.png", "cat/deep/2.png", "dog/1.png", "dog/2.PNG"]


def names(images) -> list[str]:
    return list(images.index.table.names)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"exclude": ["@eaDir", "*_mask.png"]}, ["cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/2.PNG"]),
        ({"include": ["cat/"], "exclude": ["cat/deep/**"]}, ["cat/1.png", "cat/1_mask.png"]),
        ({"include": ["**/1.png"]}, ["cat/1.png", "dog/1.png"]),
        ({"include": ["{cat,dog}/[0-9].png"]}, ["cat/1.png", "dog/1.png"]),
        ({"include": ["?.PNG"]}, ["dog/2.PNG"]),
        ({"include": ["./cat/*.png", "/dog"], "exclude": ["/1.png"]}, NAMES[1:3] + NAMES[4:]),
    ],
)
def test_patterns_choose_images(tmp_path, fields, kept):
    assert names(opened(fill(tmp_path / "data", *NAMES), tmp_path, **fields)) == kept


def test_patterns_that_leave_nothing_are_named(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.include: none of the 6 images .* include \['cow/'\]"):
        opened(fill(tmp_path / "data", *NAMES), tmp_path, include=["cow/"])
    with pytest.raises(DataError, match=r"dataset\.exclude: \{1\.\.900000\}\.png stands for more than 100000 names"):
        opened(tmp_path / "data", tmp_path, exclude=["{1..900000}.png"])


def test_patterns_choose_members_and_shards(tmp_path):
    members = [(f"{name}/{number}.jpg", picture(number, (20, 20))) for name in ("cat", "dog") for number in range(2)]
    root = tar_of(tmp_path / "data", *members)
    (root / "a.tar").rename(root / "one.tar")
    tar_of(root, *members)
    assert names(opened(root, tmp_path, include=["cat/"])) == [
        f"{s}.tar/cat/{n}.jpg" for s in ("a", "one") for n in (0, 1)
    ]
    assert names(opened(root, tmp_path, exclude=["a.tar", "1.jpg"])) == ["one.tar/cat/0.jpg", "one.tar/dog/0.jpg"]
    parquet = write_parquet(tmp_path / "rows", samples(8), files=2)
    assert len(opened(parquet, tmp_path, include=["train-00001-*"])) == 4


@pytest.mark.parametrize("prefix", ["", "./", "/", ".//"])
@pytest.mark.parametrize("pattern", ["masks/left/*.jpg", "masks/left", "masks/**", "masks"])
def test_patterns_of_members_do_not_depend_on_how_the_tar_was_made(tmp_path, prefix, pattern):
    members = [(f"{prefix}{name}", picture(n, (20, 20))) for n, name in enumerate(("cat/1.jpg", "masks/left/1.jpg"))]
    assert names(opened(tar_of(tmp_path / "data", *members), tmp_path, exclude=[pattern])) == ["cat/1.jpg"]


def test_a_smaller_share_is_part_of_a_larger_one(tmp_path):
    root = fill(tmp_path / "data", *[f"{number}.png" for number in range(40)])
    shares = [set(names(opened(root, tmp_path, fraction=fraction))) for fraction in (0.01, 0.25, 0.5, 1.0)]
    assert [len(share) for share in shares] == [1, 10, 20, 40]
    assert shares[0] < shares[1] < shares[2] < shares[3]
    fill(root, *[f"new-{number}.png" for number in range(4)])
    later = set(names(opened(root, tmp_path, fraction=0.25)))
    assert len(later & shares[1]) >= 8
    digits = open_images(DatasetSpec(uri="builtin://digits", fraction=0.1), 1, SIZE, place(tmp_path))
    assert len(digits) == 180


def test_another_choice_decodes_only_what_is_new(tmp_path):
    root = fill(tmp_path / "data", *[f"{number}.png" for number in range(40)])
    cache, counts = place(tmp_path).cache, []
    for fields in ({"fraction": 0.5}, {"fraction": 0.25}, {"exclude": ["1*.png"]}, {}, {"value_range": [0, 9]}):
        spec = dataset(root, **fields)
        counts.append(examine_files(find_files(spec), spec, cache, 1).decoded)
    assert (counts[0], counts[1], sum(counts), counts[4]) == (20, 0, 40, 0)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("s-{000..002}.png", ["s-000.png", "s-001.png", "s-002.png"]),
        ("s-00[13].png", ["s-001.png", "s-003.png"]),
        ("s-00[!0-3].png", ["s-004.png"]),
        ("s-00[^0-3].png", ["s-004.png"]),
        ("s-00?.png", [f"s-00{number}.png" for number in range(5)]),
        ("{s-001,t-*}.png", ["s-001.png", "t-x.png"]),
        ("s-[ab].png", ["s-[ab].png"]),
    ],
)
def test_patterns_of_shard_lists(tmp_path, pattern, found):
    root = fill(tmp_path / "data", *[f"s-00{number}.png" for number in range(5)], "t-x.png", "s-[ab].png")
    assert list(find_files(dataset(f"{root}/{pattern}")).names) == found
    if "[ab]" not in pattern:  # a file of exactly that name goes first only in the URI
        assert names(opened(root, tmp_path, include=[pattern])) == found


def test_a_pattern_of_images_keeps_the_metadata_beside_them(tmp_path):
    root = fill(tmp_path / "data", *[f"train-{number}.png" for number in range(4)], "test-0.png")
    rows = "".join(f"train-{number}.png,{'xy'[number % 2]}\n" for number in range(4))
    (root / "metadata.csv").write_text(f"file_name,label\n{rows}test-0.png,x\n")
    images = opened(f"{root}/train-*.png", tmp_path)
    assert (images.labels.source, images.labels.counts()) == ("metadata.csv", {"x": 2, "y": 2})
    assert "metadata_without_images" not in {notice.code for notice in images.notices}
    with pytest.raises(DataError, match="no images in"):
        find_files(dataset(f"{root}/none-*.png"))


def test_braces_that_stand_for_too_many_names_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.uri: a-\{0\.\.999999999\}\.tar stands for more than 100000 names"):
        find_files(dataset(f"{fill(tmp_path / 'data', 'a.png')}/a-{{0..999999999}}.tar"))
