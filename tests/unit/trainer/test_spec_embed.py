"""The spec of a job that computes features."""

from __future__ import annotations

import pytest

from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape
from trainer.spec.embed import EmbedSpec
from trainer.spec.job import parse_spec
from trainer.spec.plan import resolve

SHORTEST = {"kind": "embed", "backbone": "digits", "dataset": {"uri": "builtin://digits"}}


def test_a_backbone_and_a_dataset_are_enough():
    spec = resolve(parse_spec(SHORTEST), ClusterShape.of(cpus=4))
    assert isinstance(spec, EmbedSpec)
    assert (spec.name, spec.features.pooling, spec.dtype, spec.file_rows) == ("embed-digits", "mean", "float32", 8192)
    assert (spec.resources.workers, spec.reads_source) == (1, True)
    assert resolve(spec, ClusterShape.of(cpus=4)) == spec


def test_files_with_patch_tokens_have_fewer_rows_unless_the_spec_says_how_many():
    assert parse_spec(SHORTEST | {"patch_tokens": True}).file_rows == 512
    assert parse_spec(SHORTEST | {"patch_tokens": True, "rows_per_file": 5}).file_rows == 5


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"features": {"layer": "all"}}, "features.layer", "name one block"),
        ({"features": {"pooling": "max"}}, "features.pooling", "mean"),
        ({"rows_per_file": 0}, "rows_per_file", "greater than or equal to 1"),
        ({"dtype": "bfloat16"}, "dtype", "float16"),
        ({"backbone": "Not A Name"}, "backbone", "NAME:3"),
        ({"backbone": None}, "backbone", "{job: JOB}"),
        ({"dataset": None}, "dataset", ""),
        ({"register_as": "digits"}, "register_as", ""),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_by_its_field(change, field, said):
    with pytest.raises(SpecError) as caught:
        parse_spec(SHORTEST | change)
    (found,) = [each for each in caught.value.problems if each.field == field]
    assert said in found.message
