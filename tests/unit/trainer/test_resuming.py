"""Resuming where checkpoints are damaged: the one before it is taken, what is wrong is told, nothing is tried twice."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from loops import launch, make_spec, run_loop, weights

from trainer.errors import DamagedCheckpoint, StorageError
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.storage import Store, sha256_of
from trainer.training import checkpoint as checkpoints
from trainer.training.state import TrainState

SPEC = make_spec()
EARLIER, NEWEST = "checkpoints/a1/00000005", "checkpoints/a1/00000009"


@pytest.fixture
def paused(tmp_path) -> Path:
    """A run with checkpoints at steps 5 and 9 of 10."""
    calls = iter(range(100))
    run_loop(SPEC, tmp_path, 1, lambda: "pause" if next(calls) == 9 else None)
    assert stored(tmp_path) == [5, 9]
    return tmp_path


def stored(folder: Path) -> list[int]:
    return [found.manifest.step for found in checkpoints.committed(Store(str(folder)))]


def damage(folder: Path, checkpoint: str, how: str) -> None:
    """Make a file of a checkpoint something else than was stored."""
    file = folder / checkpoint / "student.safetensors"
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
    elif how == "cut":
        del data[-1]
    else:  # as it was stored, and not what it should be
        data[:8] = bytes([255] * 8)
    file.write_bytes(data)
    if how == "unreadable":
        manifest = file.with_name("manifest.json")
        record = json.loads(manifest.read_text())
        record["files"][file.name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
        manifest.write_text(json.dumps(record))


@pytest.mark.parametrize("how", ["flipped", "cut", "unreadable"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(paused, caplog, how):
    damage(paused, NEWEST, how)
    ending, memory = run_loop(SPEC, paused, 2)
    assert ending.checkpoint.folder == "checkpoints/a2/00000010"
    assert min(memory.curve(metric_keys.LOSS)) == 6
    assert f"{NEWEST} is damaged, trying the one before it" in caplog.text
    straight, _ = run_loop(SPEC, paused / "straight")
    got, expected = weights(paused, ending.checkpoint.folder), weights(paused / "straight", straight.checkpoint.folder)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_a_checkpoint_that_the_disk_cannot_read_is_passed_over(paused, pauses, monkeypatch, caplog):
    def read(file: Path) -> str:
        if NEWEST in str(file) and file.name == "teacher.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sha256_of(file)

    monkeypatch.setattr(checkpoints, "sha256_of", read)
    _, memory = run_loop(SPEC, paused, 2)
    assert min(memory.curve(metric_keys.LOSS)) == 6
    assert "teacher.safetensors: cannot be read: [Errno 5] Input/output error" in caplog.text
    assert pauses.now > 0, "it may be readable a moment later"


def test_the_job_says_from_which_checkpoint_it_resumed_and_why(paused, monkeypatch):
    damage(paused, NEWEST, "cut")
    notices = []
    monkeypatch.setattr("loops.Memory.tag", lambda _, tags: notices.append(tags.get(names.TAG_NOTICE)))
    run_loop(SPEC, paused, 2)
    (told,) = filter(None, notices)
    assert f"Resumed from {EARLIER}" in told
    assert f"{paused}/{NEWEST}/student.safetensors: missing or not what the manifest says" in told


def test_a_damaged_checkpoint_is_not_tried_again(paused, monkeypatch, caplog):
    damage(paused, NEWEST, "flipped")
    run_loop(SPEC, paused, 2, lambda: "cancel")
    tried = []
    load = TrainState.load
    monkeypatch.setattr(TrainState, "load", lambda *args: tried.append(args[2].folder) or load(*args))
    caplog.clear()
    _, memory = run_loop(SPEC, paused, 3)
    assert tried == [EARLIER]
    assert not memory.tags[names.TAG_NOTICE]
    assert f"{NEWEST} was set aside by attempt 2" in caplog.text
    assert min(memory.curve(metric_keys.LOSS)) == 6


def test_one_whose_files_were_restored_counts_again(paused):
    file = paused / NEWEST / "student.safetensors"
    whole = file.read_bytes()
    damage(paused, NEWEST, "flipped")
    run_loop(SPEC, paused, 2, lambda: "cancel")
    file.write_bytes(whole)
    (paused / NEWEST / names.DAMAGE).unlink()
    _, memory = run_loop(SPEC, paused, 3)
    assert min(memory.curve(metric_keys.LOSS)) == 10


@pytest.mark.parametrize("whole", [(), ("manifest",)])
def test_where_no_sound_one_is_left_training_does_not_begin_again(paused, whole):
    """Nor is any of them set aside: this node may be what is broken."""
    damage(paused, EARLIER, "flipped")
    if whole:
        damage(paused, NEWEST, "cut")
    else:
        (paused / NEWEST / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match="none of the job's checkpoints can be used") as refused:
        run_loop(SPEC, paused, 2)
    assert EARLIER in str(refused.value)
    assert NEWEST in str(refused.value)
    assert "retry the job from scratch" in str(refused.value)
    assert not list(paused.glob(f"checkpoints/*/*/{names.DAMAGE}"))
    assert not (paused / "checkpoints/a2").exists()


def test_a_damaged_manifest_is_named_and_passed_over(paused, caplog):
    (paused / NEWEST / "manifest.json").write_text('{"attempt": 1}')
    _, memory = run_loop(SPEC, paused, 2)
    assert f"passed over: {paused}/{NEWEST}/manifest.json is damaged" in caplog.text
    assert min(memory.curve(metric_keys.LOSS)) == 6


def test_a_manifest_that_is_damaged_under_way_does_not_end_training(tmp_path):
    calls = iter(range(100))

    def wanted() -> None:
        if next(calls) == 9:
            (tmp_path / EARLIER / "manifest.json").write_bytes(b"\0" * 100)

    ending, _ = run_loop(make_spec(checkpoint={"every_epochs": 1, "keep": 1}), tmp_path, 1, wanted)
    assert ending.checkpoint.manifest.step == 10
    assert stored(tmp_path) == [10]


def test_all_ranks_resume_from_the_same_checkpoint(tmp_path):
    spec = make_spec(resources={"workers": 2})
    first = launch(spec, tmp_path / "run", preempt_at=9)
    assert first["checkpoint"] == NEWEST
    damage(tmp_path / "run", NEWEST, "flipped")
    rest = launch(spec, tmp_path / "run", attempt=2)
    whole = launch(spec, tmp_path / "straight")
    assert rest["loss"] == {step: loss for step, loss in whole["loss"].items() if int(step) > 5}


def test_the_damage_of_a_published_checkpoint_is_named(paused):
    damage(paused, NEWEST, "flipped")
    run_loop(SPEC, paused, 2, lambda: "cancel")
    with pytest.raises(DamagedCheckpoint, match="set aside by attempt 2"):
        checkpoints.find(Store(str(paused)), NEWEST)
