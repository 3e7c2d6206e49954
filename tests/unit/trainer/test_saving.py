"""Checkpoints stored beside training: when they are taken, how many are kept, and storages that fail."""

import subprocess
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from loops import Memory, launch, make_spec, run_loop, weights

from trainer.errors import LossNotFinite, StorageError
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.storage import Store, patience
from trainer.training import checkpoint as checkpoints
from trainer.training import saving
from trainer.training.context import WorkerContext
from trainer.training.optim import make_optimizer
from trainer.training.saving import Saver
from trainer.training.state import RunConstants, TrainState


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(saving, "monotonic", clock)
    return clock


class Gate:
    """Holds commits back until it is opened."""

    def __init__(self, monkeypatch) -> None:
        self.open, commit = threading.Event(), checkpoints.commit

        def later(*args):
            assert self.open.wait(60)
            return commit(*args)

        monkeypatch.setattr(checkpoints, "commit", later)


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


class Training:
    """A saver and the little that it saves, without a loop."""

    def __init__(self, store: Store, **checkpoint) -> None:
        self.spec, self.memory = make_spec(checkpoint=checkpoint), Memory()
        self.student = MaskedAutoencoder(self.spec.model)
        optimizer = make_optimizer(self.student, self.spec.optimization)
        self.state = TrainState(self.student, make_teacher(self.student), optimizer)
        self.store = store
        constants = RunConstants(self.spec, "x", (0.0,), (1.0,), workers=1, micro_batch_size=1)
        context = WorkerContext(store, attempt=1, since_attempt=1, recorder=self.memory)
        self.saver = Saver(constants, context, self.memory.tag, None)

    def save(self, step: int, **metrics: float) -> None:
        self.state.step = self.state.evaluated_at = step
        self.state.metrics = metrics
        self.saver.save(self.state)

    def settle(self) -> None:
        """Wait for the upload under way, as the loop finds it ended at some later step."""
        upload = self.saver._upload
        if upload:
            upload.exception(timeout=60)

    @property
    def notice(self) -> str:
        return self.memory.tags.get(names.TAG_NOTICE, "")

    def stored(self) -> list[int]:
        return [found.manifest.step for found in checkpoints.committed(self.store)]


@pytest.fixture
def training(tmp_path, clock) -> Iterator[Training]:  # noqa: ARG001 - its clock is set before it begins
    training = Training(Store(str(tmp_path / "run")), every_minutes=30)
    yield training
    training.saver.close()


# --- when -------------------------------------------------------------------------------------------------------------


def test_one_is_due_by_epoch_or_when_the_minutes_since_the_last_one_have_passed(training, clock):
    saver = training.saver
    assert saver.due(epoch_due=True)
    assert not saver.due(epoch_due=False)
    clock.now += 30 * 60 - 1
    assert not saver.due(epoch_due=False)
    clock.now += 1
    assert saver.due(epoch_due=False)
    training.save(1)
    training.settle()
    assert not saver.due(epoch_due=False)
    clock.now += 30 * 60
    assert saver.due(epoch_due=False)


def test_null_minutes_leave_the_epochs_alone(tmp_path, clock):
    training = Training(Store(str(tmp_path)), every_minutes=None)
    clock.now += 1e9
    assert not training.saver.due(epoch_due=False)
    assert training.saver.due(epoch_due=True)
    training.saver.close()


def test_one_due_by_time_never_waits_for_an_upload_and_one_due_by_epoch_does(training, clock, gate):
    training.save(1)
    clock.now += 3600
    assert not training.saver.due(epoch_due=False)
    assert training.saver.due(epoch_due=True)
    assert training.stored() == []
    later = threading.Thread(target=training.save, args=(2,))
    later.start()
    gate.open.set()
    later.join(60)
    assert training.saver.finish().manifest.step == 2
    assert training.stored() == [1, 2]


def test_what_is_stored_is_the_state_when_it_was_taken(training, gate):
    before = {name: value.clone() for name, value in training.student.state_dict().items()}
    training.save(1)
    with torch.no_grad():
        for parameter in training.student.parameters():
            parameter.zero_()
    gate.open.set()
    found = training.saver.finish()
    stored = weights(Path(training.store.root), found.folder)
    assert all(torch.equal(stored[f"student.{name}"], value) for name, value in before.items())
    assert training.memory.tags[names.TAG_CHECKPOINT] == found.folder == "checkpoints/a1/00000001"


def test_an_upload_under_way_is_finished_however_training_ends(training, gate):
    training.save(1)
    gate.open.set()
    training.saver.close()
    assert training.stored() == [1]


def test_the_newest_and_the_best_are_kept(tmp_path):
    training = Training(Store(str(tmp_path)), keep=2)
    for step, ratio in ((10, 0.9), (20, 0.3), (30, 0.5), (40, 0.6), (50, 0.7)):
        training.save(step, **{metric_keys.RECONSTRUCTION_RATIO: ratio})
    training.saver.finish()
    assert training.stored() == [20, 40, 50]
    training.saver.close()


# --- storages that fail -----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A disk of four megabytes; skipped where we may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # tensors that were read may still be mapped


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(2**12))


def test_a_full_disk_harms_no_earlier_checkpoint_and_is_told_until_it_has_room_again(tiny_disk, clock):
    training = Training(Store(str(tiny_disk / "run")), keep=1)
    training.save(10)
    training.saver.finish()
    first = weights(tiny_disk / "run", "checkpoints/a1/00000010")
    filler = tiny_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    training.save(20)
    training.settle()
    assert "checkpoint of step 20 was not stored" in training.notice
    assert f"{tiny_disk}/run/checkpoints/a1/00000020/" in training.notice
    assert "No space left on device" in training.notice
    assert "the last good one is checkpoints/a1/00000010" in training.notice
    assert training.store.names("checkpoints/a1") == ["00000010"], "what was half-written is gone"
    found = weights(tiny_disk / "run", "checkpoints/a1/00000010")
    assert all(torch.equal(found[key], first[key]) for key in first)
    # the next try does not wait for the next epoch
    assert not training.saver.due(epoch_due=True)
    clock.now += saving.RETRY_SECONDS
    assert training.saver.due(epoch_due=False)
    filler.unlink()
    training.save(21)
    assert training.saver.finish().manifest.step == 21
    assert (training.notice, training.stored()) == ("", [21])
    training.saver.close()


def refuse(monkeypatch) -> dict[str, bool]:
    """Commits fail while ``refused["now"]``."""
    refused, commit = {"now": True}, checkpoints.commit

    def maybe(store, manifest):
        if refused["now"]:
            raise StorageError("s3://bucket/run: access is denied")
        return commit(store, manifest)

    monkeypatch.setattr(checkpoints, "commit", maybe)
    return refused


def test_tries_come_less_often_the_longer_it_fails_and_at_least_once_a_minute(training, clock, monkeypatch):
    refuse(monkeypatch)
    pauses = []
    for step in range(1, 8):
        training.save(step)
        training.settle()
        start = clock.now
        while not training.saver.due(epoch_due=False):
            clock.now += 1
        pauses.append(clock.now - start)
    assert pauses == [5, 10, 20, 40, 60, 60, 60]


def test_the_last_checkpoint_must_be_stored(training, monkeypatch):
    refused = refuse(monkeypatch)
    training.save(1)
    with pytest.raises(StorageError, match="access is denied"):
        training.saver.finish()
    refused["now"] = False
    training.save(2)
    assert training.saver.finish().manifest.step == 2


def test_an_error_that_is_not_the_storage_s_reaches_training(training, monkeypatch):
    monkeypatch.setattr(checkpoints, "commit", lambda *_: 1 / 0)
    training.save(1)
    training.settle()
    with pytest.raises(ZeroDivisionError):
        training.saver.due(epoch_due=False)


def test_checkpoints_that_cannot_be_removed_are_told_and_the_new_one_counts(training, monkeypatch):
    def refuse_removal(*_):
        raise StorageError("s3://bucket/run/checkpoints: access is denied")

    monkeypatch.setattr(checkpoints, "prune", refuse_removal)
    training.save(1)
    assert training.saver.finish().manifest.step == 1
    assert "could not be removed: s3://bucket/run/checkpoints: access is denied" in training.notice


def test_s3_that_refuses_is_told_and_the_one_before_it_stays(s3, s3_proxy, use_s3, clock):
    use_s3(s3.environment(s3_proxy.endpoint))
    training = Training(Store(f"{s3.bucket('saving')}/{uuid.uuid4().hex}"), keep=1)
    training.save(1)
    training.saver.finish()
    s3_proxy.faults.fail_every = 1  # every request is answered with 503
    submit = training.saver._thread.submit

    def impatient(work, *args):
        def run():
            with patience(0.5):
                work(*args)

        return submit(run)

    training.saver._thread.submit = impatient
    training.save(2)
    training.settle()
    assert "checkpoint of step 2 was not stored: s3://saving/" in training.notice
    assert "the last good one is checkpoints/a1/00000001" in training.notice
    s3_proxy.faults.fail_every = 0
    assert training.stored() == [1]
    assert not training.saver.due(epoch_due=False)
    clock.now += 60
    assert training.saver.due(epoch_due=False)
    training.save(3)
    training.saver.finish()
    assert (training.notice, training.stored()) == ("", [3])
    training.saver.close()


# --- with the loop ----------------------------------------------------------------------------------------------------

ALWAYS = 1e-9
"""Minutes after which one is due at every step that finds no upload under way."""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_of_an_upload_goes_on_from_the_one_before_bit_identical(tmp_path, workers):
    """Timed checkpoints at whatever steps in between change neither what is logged nor the weights."""
    straight = make_spec(optimization={"epochs": 3}, resources={"workers": workers}, checkpoint={"every_minutes": None})
    timed = make_spec(optimization={"epochs": 3}, resources={"workers": workers}, checkpoint={"every_minutes": ALWAYS})
    whole = launch(straight, tmp_path / "straight")
    half = "checkpoints/a1/00000010"
    broken = tmp_path / "broken"
    launch(timed, broken, attempt=1, die_at=12, hold=10, after=f"{half}/state.json")
    assert not (broken / half / "manifest.json").exists()
    last = checkpoints.committed(Store(str(broken)))[-1].manifest.step
    assert 5 <= last < 10
    rest = launch(timed, broken, attempt=2)
    assert min(map(int, rest["loss"])) == last + 1
    assert {step: loss for step, loss in whole["loss"].items() if int(step) > last} == rest["loss"]
    expected, got = weights(tmp_path / "straight", whole["checkpoint"]), weights(broken, rest["checkpoint"])
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_training_goes_on_while_the_storage_refuses(tmp_path, monkeypatch):
    refused = refuse(monkeypatch)
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(saving, "LONGEST_RETRY_SECONDS", 0.0)
    notices, steps = [], iter(range(100))

    def wanted() -> None:
        refused["now"] = next(steps) < 8

    class Noticing(Memory):
        def tag(self, tags):
            super().tag(tags)
            notices.append(tags.get(names.TAG_NOTICE))

    monkeypatch.setattr("loops.Memory", Noticing)
    ending, memory = run_loop(make_spec(), tmp_path, 1, wanted)
    assert ending.checkpoint.manifest.step == 10
    assert sorted(memory.curve(metric_keys.LOSS)) == list(range(1, 11))
    assert any("step 5 was not stored" in notice for notice in notices if notice)
    assert memory.tags[names.TAG_NOTICE] == ""
    assert memory.tags[names.TAG_CHECKPOINT] == "checkpoints/a1/00000010"


def test_a_final_checkpoint_that_cannot_be_stored_ends_the_attempt(tmp_path, monkeypatch):
    refuse(monkeypatch)
    with pytest.raises(StorageError, match="access is denied"):
        run_loop(make_spec(), tmp_path)
    assert checkpoints.committed(Store(str(tmp_path))) == []


def test_a_timed_checkpoint_never_holds_weights_of_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    class Broken(saving.Saver):
        def due(self, _epoch_due):
            return True  # as a clock that strikes at every step

    monkeypatch.setattr("trainer.training.loop.Saver", Broken)
    monkeypatch.setattr("trainer.training.loop.Log.due", lambda *_: False)  # nothing is logged on the way
    spec, calls = make_spec(checkpoint={"every_epochs": 1000}), iter(range(100))
    initial = TrainState.initial

    def wanted() -> None:
        if next(calls) == 6:
            with torch.no_grad():
                states[0].student.pos_embed.fill_(float("nan"))

    states = []

    def kept(*args):
        states.append(initial(*args))
        return states[0]

    monkeypatch.setattr(TrainState, "initial", kept)
    with pytest.raises(LossNotFinite, match="the last good checkpoint is of step 6"):
        run_loop(spec, tmp_path, 1, wanted)
    for found in checkpoints.committed(Store(str(tmp_path))):
        assert found.manifest.step <= 6


def test_an_upload_slower_than_the_training_group_s_time_out_does_not_end_the_run(tmp_path):
    """The next epoch's checkpoint waits for the upload on rank 0, and the other rank for rank 0's word on it."""
    spec = make_spec(optimization={"epochs": 3}, resources={"workers": 2}, checkpoint={"every_minutes": None})
    result = launch(spec, tmp_path / "run", hold=5, hold_seconds=15, time_out=timedelta(seconds=8))
    assert result["checkpoint"] == "checkpoints/a1/00000015"
    stored = [found.manifest.step for found in checkpoints.committed(Store(str(tmp_path / "run")))]
    assert stored == [5, 10, 15]


@pytest.mark.parametrize(("slow", "workers"), [("draw", 2), ("open", 4), ("load", 2)])
def test_what_one_rank_does_alone_may_take_longer_than_the_training_group_s_time_out(tmp_path, slow, workers):
    """Rank 0 draws an evaluation's picture while the others wait; another rank is slow to open its data, or to load its
    checkpoint.

    From four ranks on, rank 0 shares its value without a wait for the last one.
    """
    spec = make_spec(resources={"workers": workers}, checkpoint={"every_minutes": None})
    first = launch(spec, tmp_path / "run", preempt_at=7)
    assert (first["action"], first["checkpoint"]) == ("preempt", "checkpoints/a1/00000007")
    rest = launch(spec, tmp_path / "run", attempt=2, slow=slow, time_out=timedelta(seconds=8))
    assert rest["checkpoint"] == "checkpoints/a2/00000010"
    assert min(map(int, rest["loss"])) == 8
