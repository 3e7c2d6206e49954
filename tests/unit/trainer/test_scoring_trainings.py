"""Evaluations that train: fine-tuning, the paper's linear classifier and attention, each beside its baseline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from loops import make_spec, run_loop
from test_scoring import request_of, result_in, run, spec_of, work
from worlds import on_ranks

from trainer.protocol import names
from trainer.protocol.names import CHECKPOINTS, TRAININGS
from trainer.spec import metric_keys

FINETUNE = {"name": "finetune", "recipe": "small", "epochs": 2, "hflip": False, "randaugment": {"operations": 1}}
ATTENTIVE = {"name": "attentive", "epochs": 2}
PAPER = {"name": "linear", "solver": "paper", "epochs": 2, "batch_size": 512}
LOW = {"name": "low_label", "of": ["finetune"], "shares": [0.1]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    ending, _ = run_loop(make_spec(), folder)
    return SimpleNamespace(folder=folder, checkpoint=ending.checkpoint)


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    spec = spec_of(protocols=[FINETUNE, ATTENTIVE, PAPER, LOW])
    result, memory = run(trained, folder, spec=spec)
    return SimpleNamespace(folder=folder, spec=spec, result=result, memory=memory)


def test_each_training_stands_beside_its_baseline(whole):
    assert [each.key for each in whole.result.scores] == [
        "eval/finetune_top1", "eval/finetune_top1_scratch",
        "eval/finetune_top1_10pct", "eval/finetune_top1_10pct_scratch",
        "eval/attentive_top1", "eval/attentive_top1_random_init",
        "eval/linear_top1", "eval/linear_top1_random_init",
    ]  # fmt: skip
    found = whole.result.score("eval/finetune_top1_10pct").seeds[0]
    assert 130 < found.train_images < 160
    assert whole.result.score("eval/linear_top1").settings["solver"] == "paper"


def test_a_score_names_every_setting_that_it_was_made_with(whole):
    told = whole.result.score("eval/finetune_top1_10pct").settings
    assert (told["recipe"], told["randaugment.operations"], told["randaugment.magnitude"]) == ("small", 1, 9.0)


def test_the_run_has_the_curves_of_each_training(whole):
    curve = whole.memory.curve("train/loss/finetune-backbone-0")
    assert len(curve) > 3
    assert all(torch.isfinite(torch.tensor(list(curve.values()))))


def test_progress_counts_the_work_of_every_epoch_up_to_the_whole(whole):
    counted = list(whole.memory.curve(metric_keys.SAMPLES).values())
    assert counted[0] > 0  # before the first of them is done
    assert counted == sorted(counted)
    assert counted[-1] == pytest.approx(float(whole.memory.tags[names.TAG_WORK]), abs=1)


def test_a_training_leaves_its_picture_and_no_checkpoints(whole):
    assert (whole.folder / "evaluation/batch-finetune.png").read_bytes().startswith(b"\x89PNG")
    assert not any(file for file in (whole.folder / TRAININGS).rglob("*") if file.is_file())


@pytest.mark.parametrize("world", [2])
def test_two_workers_measure_what_one_does(trained, whole, tmp_path, world):
    spec = whole.spec.model_copy(update={"resources": whole.spec.resources.model_copy(update={"workers": world})})
    assert (
        on_ranks(world, tmp_path, work, request_of(trained, spec, tmp_path).model_dump_json(), str(tmp_path))
        == [None] * 2
    )
    for key, value in result_in(tmp_path).metrics.items():
        assert value == pytest.approx(whole.result.metrics[key], abs=0.02), key


def test_a_training_that_was_paused_goes_on_and_ends_the_same(trained, whole, tmp_path):
    asked = 0

    def pause_in_the_second_training():
        nonlocal asked
        asked += 1
        return "pause" if (tmp_path / TRAININGS / "finetune-scratch-0" / "batch.png").exists() else None

    assert run(trained, tmp_path, wanted=pause_in_the_second_training, spec=whole.spec)[0] is None
    assert (tmp_path / TRAININGS / "finetune-scratch-0" / CHECKPOINTS).is_dir()
    resumed, _ = run(trained, tmp_path, attempt=2, spec=whole.spec)
    assert resumed.metrics == whole.result.metrics
