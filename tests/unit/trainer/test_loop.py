"""The training loop: workers, resuming, schedules, accumulation, divergence."""

import json
from types import SimpleNamespace

import pytest
import torch
from image_sets import samples, write_folder
from loops import Memory, launch, make_spec, run_loop, weights

from trainer.data.cache import Cache
from trainer.data.notices import Notice, tell
from trainer.errors import DataError, LossNotFinite, reason_of
from trainer.evaluation.evaluator import Evaluator
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol import names
from trainer.protocol.outcome import Reason
from trainer.spec import metric_keys
from trainer.spec.base import SpecError
from trainer.storage import Store, sha256_of
from trainer.tracking.activity import ActivityTracker
from trainer.training import checkpoint as checkpoints
from trainer.training import loop
from trainer.training import step as one_step
from trainer.training.context import WorkerContext
from trainer.training.optim import learning_rate
from trainer.training.saving import Saver
from trainer.training.step import Learner


def test_two_workers_train_as_one_and_not_without_synchronisation(tmp_path):
    """Fifty steps in fp32 without warm-up: the same curve within 1e-4, the same weights within 1e-5.

    Also where each worker takes its share of a batch in two parts.
    """
    found = {}
    runs = (("one", 1, 320, True), ("two", 2, 160, True), ("two in parts", 2, 80, True), ("apart", 2, 160, False))
    for name, workers, micro_batch, sync in runs:
        folder = tmp_path / name
        spec = make_spec(
            optimization={
                "epochs": 10,
                "global_batch_size": 320,
                "micro_batch_size": micro_batch,
                "base_lr": 2e-3,
                "precision": "fp32",
            },
            checkpoint={"every_epochs": 10},
            resources={"workers": workers},
        )
        result = launch(spec, folder, sync=sync)
        found[name] = (list(result["loss"].values()), weights(folder, result["checkpoint"]))
    curve, tensors = found["one"]
    assert len(curve) == 50
    assert curve[-1] <= 0.8 * curve[0]

    def differences(name):
        other, others = found[name]
        students = [key for key in tensors if key.startswith("student.")]
        by_weight = max((tensors[key] - others[key]).abs().max().item() for key in students)
        return max(abs(a - b) for a, b in zip(curve, other, strict=True)), by_weight

    for name in ("two", "two in parts"):
        loss, weight = differences(name)
        assert loss < 1e-4
        assert weight < 1e-5
    loss, weight = differences("apart")
    assert loss > 1e-4
    assert weight > 1e-5


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_and_resumed_ends_bit_identical(tmp_path, workers):
    spec = make_spec(optimization={"epochs": 3}, resources={"workers": workers})
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = launch(spec, straight)
    launch(
        spec, broken, attempt=1, die_at=7, after="checkpoints/a1/00000005/manifest.json"
    )  # in the middle of the second epoch of five steps
    rest = launch(spec, broken, attempt=2)
    assert rest["checkpoint"] == "checkpoints/a2/00000015"
    assert min(map(int, rest["loss"])) == 6  # it went on from the checkpoint at step 5
    expected, got = weights(straight, whole["checkpoint"]), weights(broken, rest["checkpoint"])
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert {k: v for k, v in whole["loss"].items() if int(k) > 5} == rest["loss"]


def test_other_number_of_workers_goes_on_at_the_same_sample(tmp_path):
    spec = make_spec(optimization={"epochs": 2})
    one = tmp_path / "one"
    both = tmp_path / "both"
    straight = launch(spec, one)
    launch(spec, both, attempt=1, die_at=6, after="checkpoints/a1/00000005/manifest.json")
    rest = launch(make_spec(optimization={"epochs": 2}, resources={"workers": 3}), both, attempt=2)
    for step, loss in rest["loss"].items():
        assert loss == pytest.approx(straight["loss"][step], abs=1e-4)


@pytest.mark.parametrize("action", ["pause", "preempt"])
def test_command_checkpoints_at_the_step_and_the_rest_follows(tmp_path, action):
    spec = make_spec()
    calls = iter(range(100))
    ending, memory = run_loop(spec, tmp_path, 1, lambda: action if next(calls) == 3 else None)
    assert ending.action == action
    assert ending.checkpoint.manifest.step == 3
    assert max(memory.rows) == 3
    ending, rest = run_loop(spec, tmp_path, 2)
    assert ending.action is None
    straight, whole = run_loop(spec, tmp_path / "straight")
    assert {**memory.curve(metric_keys.LOSS), **rest.curve(metric_keys.LOSS)} == whole.curve(metric_keys.LOSS)
    first, second = (
        weights(tmp_path, ending.checkpoint.folder),
        weights(tmp_path / "straight", straight.checkpoint.folder),
    )
    assert all(torch.equal(first[key], second[key]) for key in second)


def test_command_before_the_first_step_keeps_the_start(tmp_path):
    ending, _ = run_loop(make_spec(), tmp_path, 1, lambda: "cancel")
    assert (ending.action, ending.checkpoint.manifest.step) == ("cancel", 0)
    ending, memory = run_loop(make_spec(), tmp_path, 2)
    assert ending.checkpoint.manifest.step == 10
    assert min(memory.curve(metric_keys.LOSS)) == 1


def test_a_finished_run_resumed_trains_no_further(tmp_path):
    first, _ = run_loop(make_spec(), tmp_path, 1)
    again, memory = run_loop(make_spec(), tmp_path, 2)
    assert again.checkpoint == first.checkpoint
    assert not memory.rows


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 0.9), ("cosine", None)])
def test_teacher_is_the_average_of_students_by_the_global_step(tmp_path, schedule, expected):
    """Each epoch's students from checkpoints of every step: the teacher follows from them alone, across a resume."""
    teacher = {"momentum": 0.9, "schedule": schedule}
    spec = make_spec(
        method={"teacher": teacher}, checkpoint={"every_epochs": 1}, optimization={"global_batch_size": 1500}
    )
    for attempt in (1, 2):  # one step an epoch; the second attempt has nothing left to do
        run_loop(spec, tmp_path, attempt)
    _, memory = run_loop(spec, tmp_path / "again")
    momenta = memory.curve(metric_keys.TEACHER_MOMENTUM)
    start = {k: v.clone() for k, v in initial(spec).named_parameters()}
    mine = start
    for step, momentum in momenta.items():
        if expected:
            assert momentum == expected
        saved = weights(tmp_path, f"checkpoints/a1/{step:08d}")
        mine = {key: momentum * value + (1 - momentum) * saved[f"student.{key}"] for key, value in mine.items()}
        for key, value in mine.items():
            torch.testing.assert_close(saved[f"teacher.{key}"], value, atol=1e-6, rtol=1e-5)
    if not expected:
        assert momenta[1] == 0.9
        assert 0.9 < momenta[2] < 1


def initial(spec):
    torch.manual_seed(spec.seed)
    return MaskedAutoencoder(spec.model)


def test_accumulation_changes_neither_gradient_nor_teacher(tmp_path):
    whole, curve = run_loop(make_spec(optimization={"micro_batch_size": 300}), tmp_path / "whole")
    parts, other = run_loop(make_spec(optimization={"micro_batch_size": 60}), tmp_path / "parts")
    assert curve.curve(metric_keys.LOSS) == pytest.approx(other.curve(metric_keys.LOSS), abs=1e-5)
    # one update of the teacher for an optimiser step, whatever the parts
    assert curve.curve(metric_keys.TEACHER_MOMENTUM) == other.curve(metric_keys.TEACHER_MOMENTUM)
    first, second = (weights(tmp_path / n, e.checkpoint.folder) for n, e in (("whole", whole), ("parts", parts)))
    for key in first:
        if key.startswith("teacher."):
            torch.testing.assert_close(first[key], second[key], atol=2e-5, rtol=0)


def test_mae_is_the_same_without_the_teacher(tmp_path):
    rc, with_teacher = run_loop(make_spec(method={"consistency_weight": 0.0}), tmp_path / "rc")
    mae, without = run_loop(make_spec(method={"name": "mae"}), tmp_path / "mae")
    assert without.curve(metric_keys.LOSS) == with_teacher.curve(metric_keys.LOSS_RECONSTRUCTION)
    assert not without.curve(metric_keys.LOSS_CONSISTENCY)
    assert not (tmp_path / "mae" / mae.checkpoint.folder / "teacher.safetensors").exists()
    students = [weights(tmp_path / n, e.checkpoint.folder) for n, e in (("rc", rc), ("mae", mae))]
    assert all(torch.equal(students[0][key], value) for key, value in students[1].items() if key.startswith("student."))


def test_learning_rate_is_the_schedules_at_every_step(tmp_path):
    spec = make_spec(optimization={"warmup_epochs": 1, "min_lr": 1e-6})
    _, memory = run_loop(spec, tmp_path)
    expected = {step + 1: learning_rate(spec.optimization, step, 5) for step in range(10)}
    assert memory.curve(metric_keys.LEARNING_RATE) == expected
    assert expected[1] == 0
    assert expected[6] == pytest.approx(spec.optimization.peak_lr)


def test_diverged_training_stops_with_its_reason_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    spec = make_spec()
    calls = iter(range(1000))

    def broken(*args):
        value = real_loss(*args)
        return value * float("nan") if next(calls) == 13 else value  # two losses a step: the seventh step's

    real_loss = one_step.reconstruction_loss
    monkeypatch.setattr(one_step, "reconstruction_loss", broken)
    monkeypatch.setattr(one_step, "consistency_loss", broken)
    with pytest.raises(LossNotFinite, match="of step 5"):
        run_loop(spec, tmp_path)
    store = Store(str(tmp_path))
    assert [c.manifest.step for c in checkpoints.committed(store)] == [5]
    assert all(v.isfinite().all() for v in weights(tmp_path, "checkpoints/a1/00000005").values())


def test_changed_data_is_not_trained_on_silently(tmp_path):
    run_loop(make_spec(), tmp_path, 1, lambda: "pause")
    state = tmp_path / "checkpoints/a1/00000000/state.json"
    text = json.loads(state.read_text())
    text["dataset_fingerprint"] = "another"
    state.write_text(json.dumps(text))
    manifest = state.with_name("manifest.json")
    record = json.loads(manifest.read_text())
    record["files"]["state.json"] = {"size": state.stat().st_size, "sha256": sha256_of(state)}
    manifest.write_text(json.dumps(record))
    with pytest.raises(DataError, match="changed since the checkpoint"):
        run_loop(make_spec(), tmp_path, 2)


def test_a_batch_larger_than_the_dataset_is_the_spec_s_fault(tmp_path):
    with pytest.raises(SpecError) as refused:
        run_loop(make_spec(optimization={"global_batch_size": 1700}), tmp_path)
    assert reason_of(refused.value) is Reason.SPEC_ERROR
    assert "optimization.global_batch_size: is larger than the 1618 training images" in str(refused.value)


def test_a_dataset_of_which_nothing_can_be_held_out_is_refused_before_training(tmp_path):
    write_folder(tmp_path / "data", samples(1))
    spec = make_spec(
        dataset={"uri": str(tmp_path / "data")}, model={"in_chans": 3}, optimization={"global_batch_size": 1}
    )
    with pytest.raises(DataError, match="has 1 image, and none is left to evaluate on"):
        run_loop(spec, tmp_path / "run")


def test_training_says_what_it_is_doing(tmp_path, monkeypatch):
    """Heartbeats carry it: only between steps of training must something happen before long."""
    tracker, seen = ActivityTracker(), []

    def note(place, owner, name):
        work = getattr(owner, name)

        def noting(*args, **kwargs):
            activity = tracker.activity(1)
            seen.append((place, activity.phase, activity.step))
            return work(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    note("open", loop, "open_training_data")
    note("load", loop, "resume")
    note("distribute", loop, "distribute")
    note("evaluate", Evaluator, "evaluate")
    note("step", Learner, "step")
    note("save", Saver, "save")
    note("finish", Saver, "finish")
    context = WorkerContext(Store(str(tmp_path)), 1, 1, Memory(), cache=Cache(tmp_path / "cache"), tracker=tracker)
    loop.pretrain(make_spec(optimization={"epochs": 1, "global_batch_size": 800}), context)
    assert seen == [
        ("load", "opening", 0), ("open", "opening", 0), ("distribute", "compiling", 0), ("evaluate", "evaluating", 0),
        ("step", "compiling", 0), ("step", "training", 1), ("evaluate", "evaluating", 2), ("save", "storing", 2),
        ("finish", "storing", 2),
    ]  # fmt: skip


def test_training_learns_and_is_measured(tmp_path):
    spec = make_spec(
        optimization={"epochs": 6, "global_batch_size": 60, "base_lr": 6e-3}, method={"teacher": {"momentum": 0.9}},
        evaluation={"every_epochs": 3, "probes": "auto"}, augmentation={"hflip": False},
    )  # fmt: skip
    _, memory = run_loop(spec, tmp_path)
    ratio = memory.curve(metric_keys.RECONSTRUCTION_RATIO)
    assert list(ratio) == [0, 78, 156]
    assert ratio[156] < ratio[78] < ratio[0]
    assert ratio[156] < 1
    assert memory.curve(metric_keys.LINEAR_TOP1)[156] > 0.5
    assert len(set(memory.curve(metric_keys.LINEAR_TOP1_RANDOM_INIT).values())) == 1
    assert (tmp_path / "images/reconstruction_00000156.png").read_bytes().startswith(b"\x89PNG")
    assert memory.tags[names.TAG_STEPS] == "156"


def test_as_many_notices_about_the_data_as_a_tag_has_room_for_are_shown():
    notices = [Notice("classes_differ", "п" * 700) for _ in range(30)]
    told = []
    tell(SimpleNamespace(tag=told.append), notices)
    (text,) = (tags[names.TAG_DATA_NOTICES] for tags in told)
    assert len(text) <= names.TAG_LENGTH
    assert json.loads(text) == [{"code": "classes_differ", "message": "п" * 600}] * 12
