"""One attempt of an evaluation: from a trained network and labelled images to `evaluation.json`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from image_sets import picture
from loops import Memory, make_spec, run_loop
from safetensors.torch import load_file, save_file
from test_publish import Registry
from worlds import on_ranks

from trainer.data.cache import Cache
from trainer.errors import DataError, SpecRefused, StorageError, WeightsRefused
from trainer.export.registration import KeptCheckpoint, register_checkpoint
from trainer.protocol.evaluation import EVALUATION, Evaluation
from trainer.protocol.request import AttemptRequest, Source, VersionSource
from trainer.scoring.kept import UNITS
from trainer.scoring.run import Place, evaluate
from trainer.scoring.subjects import load_subject
from trainer.spec.cluster import ClusterShape
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.job import parse_spec
from trainer.spec.measurements import measurements
from trainer.spec.plan import resolve
from trainer.storage import Store

KNN, LINEAR = {"name": "knn", "k": [5, 1]}, {"name": "linear"}
LOW = {"name": "low_label", "shares": [0.1]}
ROBUST = {"name": "robustness", "corruptions": ["gaussian_noise", "contrast"], "severities": [1, 5]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short real run on digits, and the version that it registers in two formats."""
    folder = tmp_path_factory.mktemp("trained")
    spec = make_spec(optimization={"epochs": 3}, export={"formats": ["timm", "hf"]}, register_as="digits")
    ending, memory = run_loop(spec, folder)
    registry = Registry(memory, tmp_path_factory.mktemp("registry"))
    checkpoint = KeptCheckpoint("job-a", "run-a", Store(str(folder)), ending.checkpoint)
    register_checkpoint(checkpoint, "digits", spec.export, "job-a", registry, registry)
    ((_, version, tags, _),) = registry.made
    return SimpleNamespace(folder=folder, checkpoint=ending.checkpoint, version=version, tags=dict(tags))


def spec_of(**parts) -> EvaluateSpec:
    shortest = {"kind": "evaluate", "backbone": {"job": "job-a"}, "dataset": {"uri": "builtin://digits"}}
    spec = resolve(parse_spec(shortest | {"seeds": 1, "protocols": [KNN, LINEAR]} | parts), ClusterShape.of(cpus=1))
    assert isinstance(spec, EvaluateSpec)
    return spec


def request_of(trained, spec: EvaluateSpec, folder: Path, attempt: int = 1, **parts) -> AttemptRequest:
    source = Source(job_id="job-a", run_id="run-a", artifact_uri=str(trained.folder)) if spec.reads_source else None
    told = {"job_id": "job-e", "run_id": "run-e", "tracking_uri": "x", "source": source} | parts
    return AttemptRequest(attempt=attempt, artifact_uri=str(folder), spec=spec, **told)


def run(trained, folder: Path, attempt: int = 1, wanted=lambda: None, spec: EvaluateSpec | None = None, **parts):
    """One attempt in this process: its result, or None if a command ended it; and what it recorded."""
    spec, memory = spec or spec_of(), Memory()
    place = Place(Store(str(folder)), torch.device("cpu"), memory, wanted, cache=Cache(folder / "cache"))
    action = evaluate(request_of(trained, spec, folder, attempt, **parts), spec, place).action
    return (None if action else result_in(folder)), memory


def result_in(folder: Path) -> Evaluation:
    return Evaluation.model_validate_json((folder / EVALUATION).read_bytes())


def work(ranks, request: str, folder: str) -> None:
    """One rank of an attempt."""
    told = AttemptRequest.model_validate_json(request)
    memory = Memory() if ranks.rank == 0 else None
    place = Place(Store(folder), torch.device("cpu"), memory, cache=Cache(Path(folder) / "cache"))
    evaluate(told, told.spec, place)


# --- the result -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """An evaluation with every protocol on frozen features, and two seeds."""
    folder = tmp_path_factory.mktemp("whole")
    spec = spec_of(seeds=2, protocols=[KNN, LINEAR, LOW, ROBUST])
    result, memory = run(trained, folder, spec=spec)
    return SimpleNamespace(folder=folder, spec=spec, result=result, memory=memory)


def test_every_protocol_has_a_score_and_stands_beside_untrained_weights(whole):
    own = ["eval/knn_top1", "eval/linear_top1", "eval/linear_top1_10pct", "eval/robustness_top1"]
    assert {each.key for each in whole.result.scores} == {*own, *(f"{key}_random_init" for key in own)}
    for key in own:
        found = whole.result.score(key)
        assert 0.2 < found.top1 <= 1, key
        low, high = found.test_interval
        assert low < found.top1 < high


def test_seeds_give_an_interval_where_something_depends_on_chance(whole):
    assert whole.result.score("eval/knn_top1").seeds_interval is None
    for key in ("eval/linear_top1", "eval/knn_top1_random_init"):
        found = whole.result.score(key)
        assert [each.seed for each in found.seeds] == [0, 1]
        low, high = found.seeds_interval
        assert low <= found.top1 <= high


def test_the_confusion_matrix_counts_every_test_image_once_for_each_seed(whole):
    found = whole.result.score("eval/linear_top1")
    matrix = torch.tensor(json.loads((whole.folder / found.confusion).read_text())["rows"])
    assert matrix.sum() == 2 * whole.result.test.images
    assert matrix.trace() == sum(each.correct for each in found.seeds)
    recall = matrix.diagonal() / matrix.sum(dim=1)
    assert found.per_class == pytest.approx(recall.tolist())


def test_corruptions_are_told_one_by_one_and_their_mean_is_the_score(whole):
    own = [each for each in whole.result.corruptions if each.weights == "backbone"]
    found = {(each.corruption, each.severity): each.top1 for each in own}
    assert set(found) == {(name, severity) for name in ROBUST["corruptions"] for severity in (1, 5)}
    assert found["contrast", 5] < found["contrast", 1]
    assert whole.result.score("eval/robustness_top1").top1 == pytest.approx(sum(found.values()) / 4)
    assert whole.result.mce == pytest.approx(1 - sum(found.values()) / 4)


def test_the_run_has_every_score_as_a_metric_and_says_how_far_it_is(whole):
    last = whole.memory.rows[max(whole.memory.rows)]
    assert {key: last[key] for key in last if key.startswith("eval/")} == whole.result.metrics
    assert max(whole.memory.rows) == len(measurements(whole.spec))
    assert whole.memory.tags["rcmae.total_steps"] == str(len(measurements(whole.spec)))
    assert [each.purpose for each in whole.memory.datasets] == ["training", "evaluation"]


def test_the_held_out_share_is_told_and_so_is_what_the_network_has_seen(whole):
    told = {notice.code: notice.message for notice in whole.result.notices}
    assert "359 of 1797 labelled images, 20% of each class" in told["held_out"]
    assert "seed 0 alone" in told["robustness_one_seed"]
    assert "pretrained on 180 of the 359 test images" in told["test_seen_in_pretraining"]


def test_a_network_that_was_trained_on_every_image_has_seen_the_whole_test(trained, tmp_path):
    source = Source(job_id="job-a", run_id="run-a", artifact_uri=str(tmp_path / "source"))
    run_loop(
        make_spec(optimization={"epochs": 1}, evaluation={"dataset": {"uri": "builtin://digits"}}), tmp_path / "source"
    )
    result, _ = run(trained, tmp_path / "e", spec=spec_of(protocols=[KNN], baselines=[]), source=source)
    told = {notice.code: notice.message for notice in result.notices}
    assert "pretrained on 359 of the 359 test images" in told["test_seen_in_pretraining"]


def test_there_are_pictures_with_captions(whole):
    assert [each.title for each in whole.result.pictures] == [
        "Nearest neighbours",
        "Patch features",
        "Attention",
        "Confusion: k-NN",
        "Confusion: linear",
        "Confusion: linear, 10 % of labels",
        "Corruptions",
    ]
    for each in whole.result.pictures:
        assert (whole.folder / each.file).read_bytes().startswith(b"\x89PNG")
        assert each.caption


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_workers_measures_the_same(trained, whole, tmp_path, world):
    spec = whole.spec.model_copy(update={"resources": whole.spec.resources.model_copy(update={"workers": world})})
    request = request_of(trained, spec, tmp_path).model_dump_json()
    assert on_ranks(world, tmp_path, work, request, str(tmp_path)) == [None] * world
    ours, theirs = result_in(tmp_path), whole.result
    assert ours.model_copy(update={"seconds": 0.0}) == theirs.model_copy(update={"seconds": 0.0})


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_a_registered_version_is_measured_like_the_checkpoint_that_it_was_made_from(trained, tmp_path, form):
    version = tmp_path / "version"
    shutil.copytree(trained.version / form, version / form)
    source = VersionSource(name="digits", version=1, folder=str(version), trained_by="job-a", tags=trained.tags)
    spec = spec_of(backbone="digits:1")
    of_version, _ = run(trained, tmp_path / "v", spec=spec, source=source)
    of_checkpoint, _ = run(trained, tmp_path / "c")
    assert of_version.metrics == of_checkpoint.metrics
    assert (of_version.backbone.title, of_version.backbone.job) == ("digits:1", "job-a")
    original = Source(job_id="job-a", run_id="run-a", artifact_uri=str(trained.folder))
    ours, theirs = (
        load_subject(each.backbone, request_of(trained, each, tmp_path, source=told))
        for each, told in ((spec, source), (spec_of(), original))
    )
    assert ours.view == theirs.view
    assert all(torch.equal(ours.state[name], theirs.state[name]) for name in theirs.state)


def test_weights_from_elsewhere_are_measured(trained, tmp_path):
    spec = spec_of(backbone={"uri": str(trained.version / "hf")})
    result, _ = run(trained, tmp_path / "w", spec=spec)
    of_checkpoint, _ = run(trained, tmp_path / "c")
    assert result.score("eval/linear_top1").top1 == of_checkpoint.score("eval/linear_top1").top1
    assert result.backbone.title == "hf"


def test_a_block_that_was_chosen_stands_beside_the_accuracy_of_each(trained, tmp_path):
    result, _ = run(trained, tmp_path, spec=spec_of(features={"layer": "all"}, protocols=[LINEAR], baselines=[]))
    told = result.score("eval/linear_top1").seeds[0].details
    each = {layer: told[f"validation_top1_layer{layer}"] for layer in (1, 2)}
    assert each[told["layer"]] == max(each.values()) == told["validation_top1"]


# --- ending early, and going on ---------------------------------------------------------------------------------------


def test_a_paused_evaluation_goes_on_with_what_is_left_and_ends_the_same(trained, whole, tmp_path):
    asked = 0

    def pause_later():
        nonlocal asked
        asked += 1
        return "pause" if (tmp_path / UNITS).is_dir() and len(list((tmp_path / UNITS).glob("*.json"))) == 3 else None

    assert run(trained, tmp_path, wanted=pause_later, spec=whole.spec)[0] is None
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / UNITS).glob("*.json")}
    assert len(before) == 3
    resumed, memory = run(trained, tmp_path, attempt=2, spec=whole.spec)
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / UNITS).glob("*.json")}.items() >= before.items()
    assert min(memory.rows) == 3
    assert resumed.model_copy(update={"seconds": 0.0}) == whole.result.model_copy(update={"seconds": 0.0})


def test_from_scratch_measures_everything_again(trained, tmp_path):
    run(trained, tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / UNITS).glob("*.json")}
    run(trained, tmp_path, attempt=2, since_attempt=2)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / UNITS).glob("*.json")}
    assert before.keys() == after.keys()
    assert not before.items() & after.items()


def test_measurements_of_other_images_do_not_count(trained, tmp_path):
    run(trained, tmp_path)
    with pytest.raises(DataError, match="have changed since the job's first measurements"):
        run(trained, tmp_path, attempt=2, spec=spec_of(held_out=0.4))


def test_a_damaged_measurement_is_named(trained, tmp_path):
    run(trained, tmp_path)
    (tmp_path / UNITS / "knn-backbone-0.json").write_text("{")
    with pytest.raises(StorageError, match=r"knn-backbone-0\.json is damaged"):
        run(trained, tmp_path, attempt=2)


class FullStore(Store):
    """A storage that takes everything but one file."""

    def write(self, name: str, data: bytes) -> None:
        if name == self.refused:
            raise StorageError(f"{name}: no space left")
        super().write(name, data)


def refused_work(_, request: str, folder: str, refused: str) -> None:
    """One rank of an attempt whose storage refuses a file."""
    told = AttemptRequest.model_validate_json(request)
    store = FullStore(folder)
    store.refused = refused
    evaluate(told, told.spec, Place(store, torch.device("cpu"), cache=Cache(Path(folder) / "cache")))


@pytest.mark.parametrize("refused", [f"{UNITS}/knn-backbone-0.json", "evaluation/neighbours.png", EVALUATION])
def test_what_the_first_worker_cannot_store_ends_all_workers_with_that_reason(trained, tmp_path, refused):
    request = request_of(trained, spec_of(protocols=[KNN], baselines=[]), tmp_path).model_dump_json()
    found = on_ranks(2, tmp_path, refused_work, request, str(tmp_path), refused)
    assert [(type(each), str(each)) for each in found] == [(StorageError, f"{refused}: no space left")] * 2


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_layer_that_the_network_does_not_have_is_refused(trained, tmp_path):
    with pytest.raises(SpecRefused, match=r"features\.layer: is 3, and the network has 2 blocks"):
        run(trained, tmp_path, spec=spec_of(features={"layer": 3}))


def test_a_network_whose_features_overflow_is_refused(trained, tmp_path):
    shutil.copytree(trained.version / "hf", tmp_path / "version/hf")
    file = tmp_path / "version/hf/model.safetensors"
    weights = load_file(file)
    weights["layernorm.weight"] *= 3e38
    save_file(weights, file, {"format": "pt"})
    folder = str(tmp_path / "version")
    source = VersionSource(name="digits", version=1, folder=folder, trained_by="job-a", tags=trained.tags)
    with pytest.raises(WeightsRefused, match="backbone: the features of digits:1 after block 2 are not finite"):
        run(trained, tmp_path, spec=spec_of(backbone="digits:1"), source=source)


def test_a_training_that_cannot_run_is_refused_before_anything_is_measured(trained, tmp_path):
    spec = spec_of(protocols=[KNN, {"name": "attentive", "heads": 5}])
    with pytest.raises(SpecRefused, match=r"protocols\.attentive: heads: must divide the encoder's width"):
        run(trained, tmp_path, spec=spec)
    assert not (tmp_path / UNITS).exists()


@pytest.mark.parametrize(
    ("counts", "left"),
    [
        ({"a": 2, "b": 2}, "3 images of 2 classes to train on and 1 of 1"),
        ({"a": 1, "b": 1}, "2 images of 2 classes to train on and 0"),
    ],
)
def test_images_too_few_to_hold_some_of_two_classes_out_are_refused(trained, tmp_path, counts, left):
    images = tmp_path / "images"
    for name, count in counts.items():
        (images / name).mkdir(parents=True)
        for number in range(count):
            (images / name / f"{number}.jpg").write_bytes(picture(number, (40, 40)))
    with pytest.raises(DataError, match=rf"held_out: a share of 0\.2 leaves {left}"):
        run(trained, tmp_path / "run", spec=spec_of(dataset={"uri": str(images)}))


def test_a_test_on_the_training_images_is_refused(trained, tmp_path):
    with pytest.raises(DataError, match="test: builtin://digits holds the very images of dataset"):
        run(trained, tmp_path, spec=spec_of(test={"uri": "builtin://digits"}))


def test_a_checkpoint_that_is_gone_is_refused(trained, tmp_path):
    spec = spec_of(backbone={"job": "job-a", "checkpoint": "checkpoints/a9/00000001"})
    with pytest.raises(SpecRefused, match="checkpoints/a9/00000001 of job job-a does not exist"):
        run(trained, tmp_path, spec=spec)


def test_a_reference_with_other_corruptions_is_refused(trained, whole, tmp_path):
    other = spec_of(protocols=[ROBUST | {"severities": [1], "reference": "job-w"}])
    with pytest.raises(SpecRefused, match="has measured other corruptions or severities"):
        run(trained, tmp_path, spec=other, reference_uri=str(whole.folder))


def test_relative_to_itself_the_mean_corruption_error_is_one(trained, whole, tmp_path):
    same = spec_of(protocols=[ROBUST | {"reference": "job-w"}], baselines=[])
    result, _ = run(trained, tmp_path, spec=same, reference_uri=str(whole.folder))
    assert (result.mce, result.mce_reference) == (pytest.approx(1), "job-w")


def test_images_without_labels_are_refused(trained, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(picture(number, (40, 40)))
    with pytest.raises(DataError, match=r"dataset: .* has no labels: sort its images into a folder for each class"):
        run(trained, tmp_path / "run", spec=spec_of(dataset={"uri": str(images)}))


def test_a_job_that_trains_on_is_measured_at_the_checkpoint_that_the_first_attempt_took(trained, tmp_path):
    source, spec = tmp_path / "source", spec_of(protocols=[KNN], baselines=[])
    shutil.copytree(trained.folder, source)
    told = Source(job_id="job-a", run_id="run-a", artifact_uri=str(source))
    first, _ = run(trained, tmp_path / "e", spec=spec, source=told)
    newer = source / "checkpoints/a1/99999999"
    shutil.copytree(source / trained.checkpoint.folder, newer)
    second, _ = run(trained, tmp_path / "e", attempt=2, spec=spec, source=told)
    assert second.backbone.checkpoint == first.backbone.checkpoint == trained.checkpoint.folder
    again, _ = run(trained, tmp_path / "e", attempt=3, since_attempt=3, spec=spec, source=told)
    assert again.backbone.checkpoint == "checkpoints/a1/99999999"


def test_a_reference_on_other_test_images_is_refused(trained, whole, tmp_path):
    other = spec_of(protocols=[ROBUST | {"reference": "job-w"}], held_out=0.4)
    with pytest.raises(
        SpecRefused,
        match=r"protocols.0.reference: job-w was scored on a held-out share of 0.2 of .* on a held-out share of 0.4 of",
    ):
        run(trained, tmp_path, spec=other, reference_uri=str(whole.folder))
