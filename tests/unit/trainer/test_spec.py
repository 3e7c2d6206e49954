"""What a spec means when read, what it refuses, and what a plan makes of it."""

import json
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.spec.base import SpecError, apply_overrides, read_document
from trainer.spec.cluster import ClusterShape, Gang, NodeShape
from trainer.spec.job import parse_spec
from trainer.spec.plan import Schedule, gang, impossible, memory_per_worker, resolve, step_flops
from trainer.spec.presets import PRESETS
from trainer.spec.pretrain import MethodSpec, ModelSpec, PretrainSpec

MINIMAL = {"kind": "pretrain", "dataset": {"uri": "/data/photos"}}


def spec_of(**parts) -> PretrainSpec:
    return PretrainSpec.parse(MINIMAL | parts)


def problems_of(data) -> dict[str, str]:
    """Message of each refused field."""
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_defaults_are_the_papers_base_recipe():
    spec = spec_of()
    assert spec.model.preset == "vit_base_patch16_224"
    assert spec.model.img_size == 224
    assert spec.model.in_chans == 3
    optimization = spec.optimization
    assert (optimization.epochs, optimization.global_batch_size, optimization.warmup_epochs) == (1600, 4096, 40)
    assert optimization.base_lr == 1.5e-4
    assert optimization.peak_lr == pytest.approx(1.5e-4 * 16)
    assert (optimization.weight_decay, optimization.betas) == (0.05, (0.9, 0.95))
    assert (optimization.min_lr, optimization.clip_grad_norm) == (0, None)
    method = spec.method
    assert (method.name, method.mask_ratio, method.norm_pix_loss, method.consistency_weight) == (
        "rc_mae", 0.75, True, 1.0,
    )  # fmt: skip
    assert method.teacher is not None
    assert (method.teacher.momentum, method.teacher.final_momentum, method.teacher.schedule) == (0.996, 1.0, "cosine")
    assert (spec.augmentation.crop_scale, spec.augmentation.hflip) == ((0.2, 1.0), True)
    assert (spec.checkpoint.every_epochs, spec.checkpoint.every_minutes, spec.checkpoint.keep) == (20, 30, 3)
    assert spec_of(checkpoint={"every_minutes": None}).checkpoint.every_minutes is None
    assert spec.seed == 0
    assert spec.register_as is None


@pytest.mark.parametrize(
    ("preset", "encoder", "decoder", "encoder_millions", "decoder_millions"),
    [
        ("vit_tiny_patch16_224", (192, 12, 3), (128, 2, 4), 5.5, 0.5),
        ("vit_small_patch16_224", (384, 12, 6), (256, 4, 8), 21.6, 3.5),
        ("vit_base_patch16_224", (768, 12, 12), (512, 8, 16), 85.6, 26.0),
        ("vit_large_patch16_224", (1024, 24, 16), (512, 8, 16), 303, 26),
        ("vit_huge_patch14_224", (1280, 32, 16), (512, 8, 16), 630, 26),
    ],
)
def test_presets_have_the_papers_sizes(preset, encoder, decoder, encoder_millions, decoder_millions):
    model = spec_of(model={"preset": preset}).model
    assert (model.embed_dim, model.depth, model.num_heads) == encoder
    assert (model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads) == decoder
    assert model.patches == (256 if "huge" in preset else 196)
    counted = model.parameters
    assert counted[0] / 1e6 == pytest.approx(encoder_millions, rel=0.02)
    assert counted[1] / 1e6 == pytest.approx(decoder_millions, rel=0.1)


def test_given_sizes_stand_over_the_preset_s():
    model = spec_of(model={"preset": "vit_tiny_patch16_224", "depth": 3, "img_size": [64, 96], "in_chans": 1}).model
    assert (model.depth, model.embed_dim) == (3, 192)
    assert (model.height, model.width, model.grid, model.patches) == (64, 96, (4, 6), 24)
    assert model.patch_values == 256


@pytest.mark.parametrize("epochs", [1, 5, 5.0, 800])
def test_the_warm_up_follows_the_epochs(epochs):
    assert spec_of(optimization={"epochs": epochs}).optimization.warmup_epochs == epochs / 40


def test_mae_needs_nothing_but_its_name():
    method = spec_of(method={"name": "mae"}).method
    assert method.teacher is None
    assert method.consistency_weight == 0


def test_a_constant_momentum_stays():
    teacher = spec_of(method={"teacher": {"schedule": "constant", "momentum": 0.9}}).method.teacher
    assert teacher is not None
    assert teacher.final_momentum == 0.9


@pytest.mark.parametrize(
    ("uri", "read"),
    [
        ("/data/photos", "file:///data/photos"),
        ("/data/photos/", "file:///data/photos"),
        ("file:///data/my photos", "file:///data/my photos"),
        ("builtin://digits", "builtin://digits"),
    ],
)
def test_a_dataset_is_a_folder_or_the_digits(uri, read):
    assert spec_of(dataset={"uri": uri}).dataset.uri == read


def test_a_job_is_named_after_its_dataset_and_preset_unless_it_has_a_name():
    assert spec_of().name == "photos-vit_base_patch16_224"
    assert spec_of(name="mine").name == "mine"


BAD = [
    ({"optimization": {"epoch": 3}}, "optimization.epoch", "did you mean 'epochs'"),
    ({"optimisation": {}}, "optimisation", "did you mean 'optimization'"),
    ({"model": {"dephts": 3}}, "model.dephts", "did you mean 'depth'"),
    ({"method": {"teacher": {"momentun": 0.9}}}, "method.teacher.momentun", "did you mean 'momentum'"),
    ({"dataset": {"uri": "/data", "zzz": 1}}, "dataset.zzz", "known here: uri"),
    ({"int": 3}, "int", "unknown field"),
    ({"model": {"mlp[0]": 3}}, "model.mlp[0]", "unknown field"),
    ({"": 3}, "", "unknown field"),
    ({"dataset": {}}, "dataset.uri", "required: add it"),
    ({"kind": "finetune"}, "kind", "must be one of: embed, evaluate, import, inspect, pretrain"),
    ({"optimization": {"epochs": "many"}}, "optimization.epochs", "integer"),
    ({"optimization": {"epochs": 0}}, "optimization.epochs", "greater than or equal to 1"),
    ({"optimization": {"base_lr": float("nan")}}, "optimization.base_lr", "finite"),
    ({"optimization": {"precision": "fp16"}}, "optimization.precision", "bf16"),
    ({"optimization": [1]}, "optimization", "must be"),
    ({"model": {"preset": "vit_giant"}}, "model.preset", "there are vit_tiny_patch16_224"),
    ({"model": {"img_size": 32}, "method": {"mask_ratio": 0.9}}, "method.mask_ratio", "at least one visible"),
    ({"model": {"num_heads": 7}}, "model.num_heads", "must divide embed_dim 768"),
    ({"model": {"decoder_num_heads": 7}}, "model.decoder_num_heads", "must divide decoder_embed_dim 512"),
    ({"model": {"embed_dim": 18, "num_heads": 3}}, "model.embed_dim", "divisible by 4"),
    ({"model": {"img_size": 100}}, "model.img_size", "divisible by patch_size 16"),
    ({"model": {"img_size": [224, 100]}}, "model.img_size", "divisible by patch_size 16"),
    ({"model": {"patch_size": 224}}, "model.patch_size", "at least 4"),
    ({"model": {"img_size": "large"}}, "model.img_size", "integer"),
    ({"model": {"in_chans": 65}}, "model.in_chans", "less than or equal to 64"),
    ({"optimization": {"epochs": 5, "warmup_epochs": 6}}, "optimization.warmup_epochs", "above epochs 5"),
    ({"optimization": {"min_lr": 1.0}}, "optimization.min_lr", "peak learning rate"),
    ({"method": {"name": "mae", "teacher": {}}}, "method.teacher", "use name rc_mae"),
    ({"method": {"name": "mae", "consistency_weight": 1}}, "method.consistency_weight", "use name rc_mae"),
    ({"method": {"teacher": None}}, "method.teacher", "use name mae"),
    (
        {"method": {"teacher": {"schedule": "constant", "final_momentum": 1.0}}},
        "method.teacher.final_momentum", "use schedule cosine",
    ),
    ({"method": {"teacher": {"final_momentum": 0.5}}}, "method.teacher.final_momentum", "below momentum 0.996"),
    ({"resources": {"workers": 3}}, "resources.workers", "must divide optimization.global_batch_size 4096"),
    ({"optimization": {"micro_batch_size": 100}}, "optimization.micro_batch_size", "must divide global_batch_size"),
    (
        {"optimization": {"micro_batch_size": 4096}, "resources": {"workers": 2}},
        "optimization.micro_batch_size", "worker's share of the batch, 2048",
    ),
    ({"augmentation": {"mean": [0.5], "std": [0.5] * 3}}, "augmentation.mean", "each of the 3 channels"),
    ({"augmentation": {"mean": [0.5] * 3, "std": [0.5]}}, "augmentation.std", "each of the 3 channels"),
    ({"augmentation": {"mean": [0.5] * 3}}, "augmentation.mean", "both mean and std"),
    ({"augmentation": {"crop_scale": [1.0, 0.5]}}, "augmentation.crop_scale", "must not be above the second"),
    ({"dataset": {"uri": "data/photos"}}, "dataset.uri", "absolute path"),
    ({"dataset": {"uri": "gs://bucket/photos"}}, "dataset.uri", "gs:// cannot be read: give /path"),
    ({"dataset": {"uri": "builtin://letters"}}, "dataset.uri", "builtin://digits"),
    ({"evaluation": {"dataset": {"uri": "photos"}}}, "evaluation.dataset.uri", "absolute path"),
    ({"register_as": "My Backbone"}, "register_as", "lower-case"),
    ({"register_as": "photos-timm"}, "register_as", "-mae or -timm"),
    ({"register_as": "photos\n"}, "register_as", "lower-case letters"),
    ({"labels": {"team": "vision and more"}}, "labels", "63 letters"),
    ({"labels": {"": "x"}}, "labels", "63 letters"),
    ({"checkpoint": {"every_minutes": 0}}, "checkpoint.every_minutes", "greater than 0"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "field", "remedy"), BAD, ids=[f"{field}:{remedy[:20]}" for _, field, remedy in BAD])
def test_a_bad_spec_is_refused_by_field_and_remedy(parts, field, remedy):
    found = problems_of(MINIMAL | parts)
    assert list(found) == [field]
    assert remedy in found[field]


def test_every_problem_is_told_at_once_with_pointer_and_value():
    with pytest.raises(SpecError) as caught:
        parse_spec(MINIMAL | {"optimization": {"epochs": -1}, "sed": 1, "register_as": "A"})
    told = {problem.field: problem for problem in caught.value.problems}
    assert set(told) == {"optimization.epochs", "sed", "register_as"}
    assert told["optimization.epochs"].pointer == "/optimization/epochs"
    assert told["optimization.epochs"].value == -1
    assert told["register_as"].value == "A"
    assert "'seed'" in told["sed"].message
    for field in told:
        assert field in str(caught.value)


def test_a_document_without_kind_or_with_odd_keys_is_refused():
    assert "required" in problems_of({"dataset": {"uri": "/data"}})["kind"]
    assert problems_of(MINIMAL | {7: 1})
    assert problems_of("pretrain")


def test_a_spec_reads_alike_from_yaml_and_json():
    data = MINIMAL | {"optimization": {"epochs": 5, "base_lr": 1.5e-5}, "model": {"img_size": [64, 96]}}
    from_yaml, from_json = (parse_spec(read_document(dump(data))) for dump in (yaml.safe_dump, json.dumps))
    assert from_yaml == from_json == PretrainSpec.parse(data)
    assert from_yaml.sha256() == from_json.sha256()


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b", "just words", ""])
def test_text_that_is_no_mapping_is_refused(text):
    with pytest.raises(SpecError):
        read_document(text)


def test_an_exponent_without_a_point_is_a_number_in_yaml_too():
    spec = parse_spec(read_document("kind: pretrain\ndataset: {uri: /data}\noptimization: {base_lr: 1e-4}\n"))
    assert spec.optimization.base_lr == 1e-4


def test_overrides_are_read_as_yaml_and_leave_their_input_alone():
    data = {"optimization": {"epochs": 5, "base_lr": 1.0}, "seed": 1}
    before = json.loads(json.dumps(data))
    changed = apply_overrides(
        before,
        ["optimization.epochs=7", "method.teacher=null", "augmentation.hflip=false", "model={depth: 2}",
         "name=a=b", "augmentation.crop_scale=[0.5, 1]", "method.name=mae"],
    )  # fmt: skip
    assert changed == {
        "optimization": {"epochs": 7, "base_lr": 1.0},
        "method": {"teacher": None, "name": "mae"},
        "augmentation": {"hflip": False, "crop_scale": [0.5, 1]},
        "model": {"depth": 2},
        "name": "a=b",
        "seed": 1,
    }
    assert before == data


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ".a=3", "seed.low=1", "name=[1"])
def test_a_bad_override_is_refused(override):
    with pytest.raises(SpecError) as caught:
        apply_overrides({"seed": 1}, [override])
    assert len(caught.value.problems) == 1


def test_overrides_take_a_date_in_a_spec_as_the_spec_itself_would():
    with pytest.raises(SpecError):
        parse_spec(apply_overrides(read_document("kind: pretrain\nname: 2024-05-01\ndataset: {uri: /d}"), ["seed=1"]))


@given(
    cpus=st.integers(1, 300),
    gpus=st.integers(0, 20),
    batch=st.integers(1, 5000),
    preset=st.sampled_from(sorted(PRESETS)),
)
@settings(max_examples=150, deadline=None)
def test_resolving_fills_everything_in_and_a_second_time_changes_nothing(cpus, gpus, batch, preset):
    cluster = ClusterShape.of(cpus, gpus)
    spec = spec_of(model={"preset": preset}, optimization={"global_batch_size": batch})
    resolved = resolve(spec, cluster)
    workers, micro = resolved.resources.workers, resolved.optimization.micro_batch_size
    assert "auto" not in (workers, resolved.resources.gpus_per_worker, resolved.resources.cpus_per_worker)
    assert batch % workers == 0
    if gpus:
        assert micro == "auto"  # settled on the worker, by its memory
    else:
        assert (batch // workers) % micro == 0
        assert micro * (1 + resolved.model.patches) <= 8192
    assert 1 <= workers <= max(1, gpus)
    assert 1 <= resolved.resources.cpus_per_worker <= 16
    assert resolve(resolved, cluster) == resolved
    assert resolve(resolved, ClusterShape.of(1, 0)) == resolved
    assert PretrainSpec.parse(json.loads(resolved.model_dump_json())) == resolved
    assert impossible(resolved, cluster) is None
    taken = gang(resolved)
    assert (taken.all_gpus, taken.all_cpus) == (workers * min(gpus, 1), workers * resolved.resources.cpus_per_worker)


@pytest.mark.parametrize(
    ("cluster", "batch", "micro", "workers"),
    [
        (ClusterShape.of(64, 8), 4096, "auto", 8),
        (ClusterShape.of(64, 6), 4096, "auto", 4),
        (ClusterShape.of(64, 7), 9, "auto", 3),
        (ClusterShape.of(64, 8), 4096, 2048, 2),
        (ClusterShape.of(64, 0), 4096, "auto", 1),
        (ClusterShape.of(64, 8), 7, "auto", 7),
    ],
)
def test_workers_divide_the_batch(cluster, batch, micro, workers):
    optimization = {"global_batch_size": batch, "micro_batch_size": micro}
    assert resolve(spec_of(optimization=optimization), cluster).resources.workers == workers


@pytest.mark.parametrize(
    ("nodes", "resources", "needs"),
    [
        ([(64, 8)], {}, Gang(8, 8, 1)),
        ([(16, 4), (16, 4)], {}, Gang(8, 4, 1)),
        ([(16, 4), (128, 0)], {}, Gang(4, 4, 1)),  # the CPUs of a node without GPUs are of no use to them
        ([(64, 2), (6, 2)], {}, Gang(4, 3, 1)),  # the smallest node sets the size of all workers
        ([(2, 8)], {}, Gang(2, 1, 1)),
        ([(16, 4), (6, 4)], {"cpus_per_worker": 4}, Gang(5, 4, 1)),
        ([(6, 0), (6, 0)], {"workers": 3}, Gang(3, 3, 0)),
        ([(6, 0), (6, 0)], {}, Gang(1, 6, 0)),
        ([(6, 0), (6, 0)], {"workers": 24}, Gang(24, 1, 0)),
        ([], {}, Gang(1, 1, 0)),
    ],
)
def test_what_is_auto_can_be_placed_on_the_nodes(nodes, resources, needs):
    cluster = ClusterShape(tuple(NodeShape(cpus, gpus) for cpus, gpus in nodes))
    spec = spec_of(resources=resources, optimization={"global_batch_size": 840})
    assert gang(resolve(spec, cluster)) == needs
    possible = cluster.cpus >= needs.all_cpus or cluster.without_nodes
    assert (impossible(resolve(spec, cluster), cluster) is None) == possible


def test_what_is_written_stands_when_resolved():
    spec = spec_of(
        resources={"workers": 4, "gpus_per_worker": 0, "cpus_per_worker": 2, "loader_processes": 1},
        optimization={"micro_batch_size": 16},
    )
    assert resolve(spec, ClusterShape.of(64, 8)) == spec


def test_a_plan_too_large_for_the_cluster_says_what_to_do():
    small = ClusterShape.of(2, 1)
    by_gpu = resolve(spec_of(resources={"workers": 4}), small)
    assert "4 GPUs, 1 in the cluster: lower resources.workers" in str(impossible(by_gpu, small))
    by_cpu = resolve(spec_of(resources={"workers": 4, "gpus_per_worker": 0, "cpus_per_worker": 2}), small)
    assert "8 CPUs, 2 in the cluster" in str(impossible(by_cpu, small))
    apart = ClusterShape((NodeShape(3, 1), NodeShape(3, 1), NodeShape(8, 0)))
    by_node = resolve(spec_of(resources={"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4}), apart)
    assert "needs 2 workers of 1 GPU and 4 CPUs each, and the cluster's nodes have room for none: lower" in str(
        impossible(by_node, apart)
    )
    with pytest.raises(ValueError, match="not resolved"):
        gang(spec_of())


def test_a_schedule_counts_whole_batches_of_the_training_images():
    spec = spec_of(optimization={"global_batch_size": 100, "epochs": 3})
    assert Schedule.of(spec, 1797) == Schedule(train_images=1618, held_out_images=179, steps_per_epoch=16, steps=48)
    assert Schedule.of(spec, 1_000_000).held_out_images == 2048
    own = spec_of(optimization={"global_batch_size": 100}, evaluation={"dataset": {"uri": "/held-out"}})
    assert Schedule.of(own, 1797).train_images == 1797


def test_a_batch_larger_than_the_training_images_is_refused():
    spec = spec_of(optimization={"global_batch_size": 91})
    assert Schedule.of(spec_of(optimization={"global_batch_size": 90}), 100).steps_per_epoch == 1
    with pytest.raises(SpecError) as caught:
        Schedule.of(spec, 100)
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("optimization.global_batch_size", 91)
    assert "90 training images: lower it" in problem.message


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_goes_through_json_and_back(preset):
    spec = spec_of(model={"preset": preset}, labels={"team": "vision"}, register_as="photos")
    again = PretrainSpec.parse(json.loads(spec.model_dump_json()))
    assert again == spec
    assert again.sha256() == spec.sha256()


def test_the_identity_follows_the_content():
    assert spec_of().sha256() == spec_of(seed=0).sha256() != spec_of(seed=1).sha256()


def test_presets_grow():
    counts = [sum(ModelSpec.model_validate({"preset": name}).parameters) for name in PRESETS]
    assert all(smaller < larger for smaller, larger in pairwise(counts))


def test_memory_is_as_measured():
    """Tensors alive at the fullest moment of a step, from torch's profiler on a CPU, in MiB."""
    tiny = {"preset": "vit_tiny_patch16_224"}
    for fields, method, micro_batch, bf16, measured in (
        (tiny | {"img_size": 32, "patch_size": 4}, {}, 64, False, 358),
        (tiny | {"img_size": 32, "patch_size": 4}, {}, 64, True, 252),
        (tiny, {}, 16, False, 344),
        (tiny, {}, 16, True, 276),
        (tiny, {"name": "mae"}, 16, False, 301),
        ({"preset": "vit_small_patch16_224"}, {}, 8, False, 693),
        ({"preset": "vit_small_patch16_224"}, {}, 8, True, 609),
    ):
        model, kind = ModelSpec.model_validate(fields), MethodSpec.model_validate(method)
        assert memory_per_worker(model, kind, micro_batch, bf16) / 2**20 == pytest.approx(measured, rel=0.1)


def test_a_teacher_makes_a_step_a_third_longer():
    model = ModelSpec.model_validate({})
    assert step_flops(model, MethodSpec()) * 3 == step_flops(model, MethodSpec.model_validate({"name": "mae"})) * 4
    # The paper's 8.8 and 10.7 GFLOPs forward, less what the last block spares.
    assert step_flops(model, MethodSpec()) / 4 == pytest.approx(19.5e9, rel=0.05)
