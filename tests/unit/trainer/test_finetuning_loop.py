"""The loop of supervised training: workers, resuming, commands, damage, what stays frozen."""

import numpy as np
import pytest
import torch
from finetunings import SETTINGS, assert_same, encoder_weights, run, spread, stored, training
from PIL import Image

from trainer.agreement import Agreement
from trainer.errors import DataError, LossNotFinite, SpecRefused
from trainer.evaluation.ranks import Ranks
from trainer.spec.finetuning import PaperLinearSettings
from trainer.storage import Store
from trainer.training import checkpoint as checkpoints

EACH = pytest.mark.parametrize("kind", list(SETTINGS))


@EACH
def test_killed_and_resumed_ends_bit_identical(tmp_path, kind):
    """A single worker; attempt 1 is paused in the middle of the second epoch, its last checkpoint is then lost."""
    made = training(SETTINGS[kind])
    whole, full = run(made, tmp_path / "whole")
    calls = iter(range(100))
    ended, early = run(made, tmp_path / "broken", 1, lambda: "pause" if next(calls) == 7 else None)
    assert (ended.action, ended.scores, ended.checkpoint.manifest.step) == ("pause", None, 7)
    (tmp_path / "broken/unit" / ended.checkpoint.folder / "manifest.json").unlink()
    rest, late = run(made, tmp_path / "broken", 2)
    assert min(late.curve("train/loss")) == 6  # it resumed from the checkpoint at step 5
    assert torch.equal(rest.scores, whole.scores)
    expected = stored(tmp_path / "whole", whole.checkpoint.folder)
    assert_same(expected, stored(tmp_path / "broken", rest.checkpoint.folder))
    assert early.curve("train/loss") | late.curve("train/loss") == full.curve("train/loss")
    assert rest.curve == whole.curve


def test_two_workers_killed_and_resumed_end_bit_identical(tmp_path):
    made = training(SETTINGS["finetune"])
    whole = spread(2, made, tmp_path / "whole")
    assert spread(2, made, tmp_path / "broken", 1, die_at=7) == [None, None]
    (tmp_path / "broken/meeting").unlink()
    rest = spread(2, made, tmp_path / "broken", 2)
    assert rest[0]["checkpoint"] == "checkpoints/a2/00000010"
    assert min(rest[0]["loss"]) == 6
    for rank in (0, 1):
        assert np.array_equal(rest[rank]["scores"], whole[0]["scores"])
    assert_same(stored(tmp_path / "whole", whole[0]["checkpoint"]), stored(tmp_path / "broken", rest[0]["checkpoint"]))


@pytest.mark.parametrize("kind", ["finetune", "linear"])
def test_any_number_of_workers_trains_as_one(tmp_path, kind):
    """Three workers have unequal shares of the batch of 32 pairs: the curve and the scores agree up to rounding."""
    made = training(SETTINGS[kind].model_copy(update={"batch_size": 64}))
    (one,), *others = (spread(world, made, tmp_path / str(world)) for world in (1, 2, 3))
    for found in others:
        assert found[0]["loss"] == pytest.approx(one["loss"], abs=1e-4)
        np.testing.assert_allclose(found[0]["scores"], one["scores"], atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("finetune", {"recipe": "small", "base_lr": 2e-2}),
        ("linear", {"pooling": "mean", "base_lr": 60.0}),
        ("attentive", {"base_lr": 0.1}),
    ],
)
def test_the_loss_falls_and_the_accuracy_beats_chance(tmp_path, kind, changes):
    """Also on a random encoder's features, which hold little."""
    easy = {"epochs": 40, "batch_size": 60, "hflip": False, "crop_scale": (0.6, 1.0), "every_epochs": 15}
    trained, memory = run(training(type(SETTINGS[kind])(**easy, **changes)), tmp_path)
    curve = list(memory.curve("train/loss").values())
    assert curve[-1] < 0.8 * curve[0]
    assert [step for step, _ in trained.curve] == [75, 150, 200]
    assert memory.curve("test/top1") == dict(trained.curve)
    assert trained.curve[-1][1] > 0.4, "chance is 0.1"
    assert {"train/lr", "train/grad_norm", "throughput/images_per_s", "progress/epoch"} <= memory.rows[200].keys()


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_a_frozen_encoder_stays_bit_identical(tmp_path, kind):
    trained, _ = run(training(SETTINGS[kind]), tmp_path)
    state = trained.classifier.encoder.state_dict()
    assert_same(dict(state), encoder_weights())
    assert not [name for name in stored(tmp_path, trained.checkpoint.folder) if "blocks" in name]


def test_without_weights_the_encoder_is_random_by_the_seed(tmp_path):
    settings = SETTINGS["linear"]
    first, again, other = (
        run(training(settings, encoder=None, seed=seed), tmp_path / name)[0]
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert_same(dict(first.classifier.state_dict()), dict(again.classifier.state_dict()))
    assert not torch.equal(first.classifier.encoder.cls_token, other.classifier.encoder.cls_token)


def test_a_finished_training_is_only_tested_again(tmp_path):
    made = training(SETTINGS["finetune"])
    first, _ = run(made, tmp_path)
    again, memory = run(made, tmp_path, 2)
    assert again.checkpoint == first.checkpoint
    assert torch.equal(again.scores, first.scores)
    assert not memory.curve("train/loss")


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path):
    made = training(SETTINGS["attentive"])
    whole, _ = run(made, tmp_path)
    file = tmp_path / "unit" / whole.checkpoint.folder / "classifier.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    again, memory = run(made, tmp_path, 2)
    assert min(memory.curve("train/loss")) == 6
    assert torch.equal(again.scores, whole.scores)
    counted = checkpoints.committed(Store(str(tmp_path / "unit")))
    assert [found.folder for found in counted] == ["checkpoints/a1/00000005", "checkpoints/a2/00000010"]
    assert "Resumed from checkpoints/a1/00000005, because newer checkpoints are damaged" in memory.tags["first notice"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    run(training(SETTINGS["linear"]), tmp_path)
    with pytest.raises(DataError, match="other settings, weights or images"):
        run(training(SETTINGS["linear"], encoder=encoder_weights(seed=6)), tmp_path, 2)


def test_a_loss_that_is_not_finite_ends_the_training_with_advice(tmp_path):
    broken = {**encoder_weights(), "cls_token": torch.full((1, 1, 32), torch.inf)}
    with pytest.raises(LossNotFinite, match="Lower base_lr"):
        run(training(SETTINGS["attentive"], encoder=broken), tmp_path)


def test_a_batch_larger_than_the_data_is_cut_and_said(tmp_path, caplog):
    made = training(PaperLinearSettings(epochs=2, hflip=False), images=61)
    trained, _ = run(made, tmp_path)
    assert trained.settings.batch_size == 60
    assert "batch_size: 16384 is more than the 61 training images: 60 images are one batch" in caplog.text


def test_more_workers_than_pairs_are_refused(tmp_path):
    made = training(SETTINGS["finetune"].model_copy(update={"batch_size": 2}))
    with pytest.raises(SpecRefused, match="2 workers cannot share a batch of 2 images in pairs"):
        run(made, tmp_path, ranks=Ranks(Agreement(1), 0, 2), agree=Agreement(1))


def test_the_picture_shows_a_batch_as_the_network_sees_it(tmp_path):
    run(training(SETTINGS["finetune"], class_names=tuple("abcdefghij")), tmp_path)
    with Image.open(tmp_path / "unit/batch.png") as picture:
        assert picture.size == (4 * (160 + 8) + 8, 4 * (160 + 30 + 8) + 8)
        assert len(picture.getcolors(1_000_000)) > 50
