"""The dataset's part of a spec."""

import pytest

from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape
from trainer.spec.plan import resolve
from trainer.spec.pretrain import PretrainSpec


def spec_of(**parts) -> PretrainSpec:
    return PretrainSpec.parse({"kind": "pretrain", "dataset": {"uri": "/data"}} | parts)


@pytest.mark.parametrize(
    ("uri", "read"),
    [
        ("s3://datasets/cifar10/", "s3://datasets/cifar10"),
        ("s3://datasets", "s3://datasets"),
        ("s3://my.bucket-1/a b/train-*.parquet", "s3://my.bucket-1/a b/train-*.parquet"),
        ("/data/shard-*.tar", "file:///data/shard-*.tar"),
        ("/data/one.parquet", "file:///data/one.parquet"),
    ],
)
def test_buckets_files_and_patterns(uri, read):
    assert spec_of(dataset={"uri": uri}).dataset.uri == read


@pytest.mark.parametrize(
    ("dataset", "field", "words"),
    [
        ({"uri": "s3://"}, "dataset.uri", "must name a bucket"),
        ({"uri": "s3:///folder"}, "dataset.uri", "must name a bucket"),
        ({"uri": "s3://key:secret@bucket/a"}, "dataset.uri", "must not hold credentials"),
        ({"uri": "s3://bucket:9000/a"}, "dataset.uri", "must not hold credentials or ports"),
        ({"uri": "/data/*/train.tar"}, "dataset.uri", "only in the last part of the path"),
        ({"uri": "s3://buck*/train.tar"}, "dataset.uri", "only in the last part of the path"),
        ({"uri": "/data\x00"}, "dataset.uri", "no zero byte"),
        ({"uri": "/data", "format": "zip"}, "dataset.format", "'folder', 'tar' or 'parquet'"),
        ({"uri": "/data", "cache": "gpu"}, "dataset.cache", "'ram', 'disk' or 'none'"),
        ({"uri": "/data", "max_bad_fraction": 1.5}, "dataset.max_bad_fraction", "less than or equal to 1"),
        ({"uri": "/data", "name": "s3://bucket/photos"}, "dataset.name", "should match pattern"),
        ({"uri": "/data", "name": "/data/photos"}, "dataset.name", "should match pattern"),
        ({"uri": "builtin://digits", "cache": "disk"}, "dataset.cache", "must be left out"),
        ({"uri": "builtin://digits", "format": "tar"}, "dataset.format", "must be left out"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field(dataset, field, words):
    with pytest.raises(SpecError) as caught:
        spec_of(dataset=dataset)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert words in problem.message
    assert "secret" not in problem.message


@pytest.mark.parametrize(("gpus", "cpus", "processes"), [(0, 8, 0), (1, 8, 7), (1, 1, 1)])
def test_a_gpu_is_fed_by_processes_and_a_cpu_by_threads(gpus, cpus, processes):
    resources = {"workers": 1, "gpus_per_worker": gpus, "cpus_per_worker": cpus}
    resolved = resolve(spec_of(resources=resources), ClusterShape.of(cpus=8, gpus=1))
    assert resolved.resources.loader_processes == processes
    own = resolve(spec_of(resources=resources | {"loader_processes": 3}), ClusterShape.of(cpus=8, gpus=1))
    assert own.resources.loader_processes == 3
