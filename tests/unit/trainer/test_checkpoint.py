"""Files below a folder, local and remote, and the training state in them."""

import json
import os
import uuid
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.errors import DamagedCheckpoint, StorageError
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher, update_teacher
from trainer.protocol.checkpoint import Damage
from trainer.spec.job import parse_spec
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store, sha256_of
from trainer.training import checkpoint as checkpoints
from trainer.training.checkpoint import Manifest, commit, committed, prune
from trainer.training.optim import make_optimizer
from trainer.training.snapshot import STATE, write
from trainer.training.state import (
    OPTIMIZER,
    STUDENT,
    TEACHER,
    Metadata,
    RunConstants,
    TrainState,
    read_parts,
)  # fmt: skip

SPEC = PretrainSpec.parse(
    {
        "kind": "pretrain",
        "dataset": {"uri": "/d"},
        "model": {
            "img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2,
            "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
        },
    }
)  # fmt: skip
CONSTANTS = RunConstants(SPEC, "abc", mean=(0.1,), std=(1 / 3,), workers=2, micro_batch_size=8)
METADATA = Metadata(
    step=7, samples=7 * SPEC.optimization.global_batch_size, dataset_fingerprint="abc", mean=(0.1,), std=(1 / 3,),
    held_out_by_class=True, workers=2, micro_batch_size=8, metrics={"eval/x": 0.1 + 0.2},
)  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    s3 = request.getfixturevalue("s3")
    request.getfixturevalue("use_s3")(s3.environment())
    return Store(f"{s3.bucket('checkpoints')}/{uuid.uuid4().hex}/run")


def trained(seed: int, steps: int = 3):
    """Student, teacher and optimiser that have gone some steps."""
    torch.manual_seed(seed)
    student = MaskedAutoencoder(SPEC.model)
    teacher, optimizer = make_teacher(student), make_optimizer(student, SPEC.optimization)
    for _ in range(steps):
        step(student, teacher, optimizer)
    return student, teacher, optimizer


def step(student, teacher, optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.zero_grad()
    patches = torch.linspace(0, 1, 128).reshape(2, 4, 16)
    student(patches, torch.arange(16).repeat(2, 1)).square().mean().backward()
    optimizer.step()
    update_teacher(teacher, student, 0.9)


def saved(store: Store, parts, attempt: int = 1, step_: int = 7, metrics=None):
    state = TrainState(*parts, step=step_, metrics=metrics or METADATA.metrics, evaluated_at=step_ if metrics else None)
    with store.new_folder(checkpoints.step_folder(attempt, step_)) as directory:
        manifest = write(directory, state.snapshot(CONSTANTS, into={}), attempt)
    return commit(store, manifest)


def assert_same(module: nn.Module, other: nn.Module) -> None:
    for (name, value), twin in zip(module.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, twin), name


def test_training_goes_on_from_a_checkpoint_bit_for_bit(store):
    parts = trained(0)
    made = saved(store, parts)
    assert made.folder == "checkpoints/a1/00000007"
    others = trained(1, steps=0)
    (found,) = committed(store)
    assert found == made
    state = TrainState(*others)
    assert state.load(store, found) == METADATA
    assert (state.step, state.saved_at, state.metrics) == (7, 7, METADATA.metrics)
    for module, other in zip(parts[:2], others[:2], strict=True):
        assert_same(module, other)
    for (name, parameter), twin in zip(parts[0].named_parameters(), others[0].parameters(), strict=True):
        mine, theirs = parts[2].state[parameter], others[2].state[twin]
        assert set(mine) == set(theirs) == {"exp_avg", "exp_avg_sq", "step"}
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
        assert mine["step"].item() == 3
    for _ in range(2):
        step(*parts)
        step(*others)
    assert_same(parts[0], others[0])
    assert_same(parts[1], others[1])


def test_loading_takes_the_place_of_an_optimiser_s_own_state(store):
    made = saved(store, trained(0))
    others = trained(1, steps=5)
    TrainState(*others).load(store, made)
    assert {state["step"].item() for state in others[2].state.values()} == {3}


def test_a_checkpoint_before_the_first_step_has_no_moments(store):
    made = saved(store, trained(0, steps=0))
    others = trained(1, steps=0)
    TrainState(*others).load(store, made)
    assert not others[2].state
    assert_same(trained(0, steps=0)[0], others[0])


def test_mae_has_no_teacher(store):
    student, _, optimizer = trained(0)
    made = saved(store, (student, None, optimizer))
    assert TEACHER not in made.manifest.files
    other, _, fresh = trained(1, steps=0)
    TrainState(other, None, fresh).load(store, made)
    assert_same(student, other)
    with pytest.raises(KeyError, match="teacher"):
        read_parts(store, made, ("teacher",))


@pytest.mark.parametrize("parts", [("student", "teacher"), ("student",)])
def test_weights_alone_leave_a_fresh_optimiser_before_the_first_step(store, parts):
    stored = trained(0)
    made = saved(store, stored)
    student, teacher, optimizer = trained(1, steps=0)
    state = TrainState(student, teacher, optimizer)
    assert state.load(store, made, parts) == METADATA
    assert_same(student, stored[0])
    assert_same(teacher, stored[1] if "teacher" in parts else trained(1, steps=0)[1])
    assert (state.step, state.saved_at, state.metrics) == (0, None, {})
    assert not optimizer.state


def test_the_manifest_tells_every_file_and_the_spec_can_be_read(tmp_path):
    store = Store(str(tmp_path / "run"))
    made = saved(store, trained(0), metrics={"eval/x": 0.5})
    folder = tmp_path / "run" / made.folder
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    assert (manifest.attempt, manifest.step, manifest.metrics) == (1, 7, {"eval/x": 0.5})
    assert set(manifest.files) == {file.name for file in folder.iterdir()} - {"manifest.json"}
    for name, record in manifest.files.items():
        assert record.size == (folder / name).stat().st_size
        assert record.sha256 == sha256_of(folder / name)
    assert parse_spec(json.loads((folder / "spec.json").read_text())) == SPEC


def empty(store: Store, attempt: int, step_: int, **metrics: float):
    return commit(store, Manifest(attempt=attempt, step=step_, metrics=metrics, files={}))


def test_a_folder_without_a_manifest_does_not_count(store):
    assert committed(store) == []
    made = saved(store, trained(0))
    store.write("checkpoints/a1/00000009/student.safetensors", b"half")
    store.write("checkpoints/a2/00000001/.manifest.json", b"{}")
    store.write("checkpoints/notes/00000009/manifest.json", b"{}")
    assert committed(store) == [made]


def test_checkpoints_come_oldest_first_over_attempts(store):
    for attempt, step_ in ((10, 5), (2, 40), (1, 100), (2, 9), (1, 20)):
        empty(store, attempt, step_)
    found = [(c.manifest.attempt, c.manifest.step) for c in committed(store)]
    assert found == [(1, 20), (1, 100), (2, 9), (2, 40), (10, 5)]
    later = [(c.manifest.attempt, c.manifest.step) for c in committed(store, since_attempt=2)]
    assert later == found[2:]
    assert committed(store, since_attempt=11) == []


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"attempt": 1, "step": 9}'])
def test_a_damaged_manifest_does_not_count_and_is_named(store, caplog, text):
    made = saved(store, trained(0))
    store.write("checkpoints/a1/00000009/manifest.json", text)
    assert committed(store) == [made]
    assert "checkpoints/a1/00000009/manifest.json is damaged" in caplog.text


def test_one_that_was_set_aside_does_not_count_and_keeps_its_files(store):
    made, newer = saved(store, trained(0)), empty(store, 1, 9)
    before = store.names(newer.folder)
    checkpoints.set_aside(store, newer.folder, Damage(attempt=2, why="it is cut"))
    assert committed(store) == [made]
    assert set(before) < set(store.names(newer.folder))
    with pytest.raises(DamagedCheckpoint, match="set aside by attempt 2: it is cut"):
        checkpoints.find(store, newer.folder)
    store.delete(f"{newer.folder}/damage.json")
    assert committed(store) == [made, newer]


@pytest.mark.parametrize("name", [STUDENT, TEACHER, OPTIMIZER, STATE])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_named_and_nothing_is_loaded(store, name, damage):
    made = saved(store, trained(0, steps=1))
    place = f"{made.folder}/{name}"
    data = bytearray(store.read(place))
    data[-1] ^= 1
    if damage == "missing":
        store.delete(place)
    else:
        store.write(place, bytes(data) if damage == "flipped" else bytes(data[:-1]))
    others = trained(1, steps=0)
    with pytest.raises(DamagedCheckpoint, match=f"{place}: missing or not what"):
        TrainState(*others).load(store, made)
    assert_same(others[0], trained(1, steps=0)[0])


def test_pruning_keeps_the_newest_and_the_best(store):
    for step_, ratio in ((10, 0.9), (20, 0.3), (30, 0.5), (40, 0.6), (50, 0.7)):
        empty(store, 1, step_, ratio=ratio)
    empty(store, 2, 55)
    gone = prune(store, keep=2, best_metric="ratio")
    assert gone == ["checkpoints/a1/00000010", "checkpoints/a1/00000030", "checkpoints/a1/00000040"]
    assert [c.manifest.step for c in committed(store)] == [20, 50, 55]
    assert all(not store.exists(folder) for folder in gone)
    assert prune(store, keep=2, best_metric="ratio") == []


def test_pruning_counts_no_damaged_one_and_removes_it_once_enough_sound_ones_are_newer(store):
    for step_, ratio in ((10, 0.9), (20, 0.1), (30, 0.5), (40, 0.6)):
        empty(store, 1, step_, ratio=ratio)
    checkpoints.set_aside(store, "checkpoints/a1/00000020", Damage(attempt=1, why="it is cut"))
    store.write("checkpoints/a1/00000035/manifest.json", b"{")
    assert prune(store, keep=2, best_metric="ratio") == ["checkpoints/a1/00000010", "checkpoints/a1/00000020"]
    assert [c.manifest.step for c in committed(store)] == [30, 40]
    empty(store, 1, 50, ratio=0.7)
    assert prune(store, keep=2, best_metric="ratio") == ["checkpoints/a1/00000035"]
    assert [c.manifest.step for c in committed(store)] == [30, 40, 50], "30 is the best of those that count"


def test_pruning_without_measurements_keeps_the_newest_only(store):
    for step_ in (10, 20, 30):
        empty(store, 1, step_)
    prune(store, keep=1, best_metric="ratio")
    assert [c.manifest.step for c in committed(store)] == [30]


def test_pruning_leaves_checkpoints_of_a_former_start_alone(store):
    for attempt, step_ in ((1, 90), (2, 10), (2, 20)):
        empty(store, attempt, step_)
    prune(store, keep=1, best_metric="ratio", since_attempt=2)
    assert [(c.manifest.attempt, c.manifest.step) for c in committed(store)] == [(1, 90), (2, 20)]


# --- the store -----------------------------------------------------------------------------------------------------


def test_a_store_writes_reads_lists_and_deletes(store):
    assert store.names("") == store.names("nowhere") == []
    assert not store.exists("a/b.txt")
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two")
    store.write("a/c/d.txt", b"")
    assert store.read("a/b.txt") == b"two"
    assert store.exists("a/b.txt")
    assert store.names("a") == ["b.txt", "c"]
    assert store.names("") == ["a"]
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    assert store.names("a") == ["c"]
    store.delete("a")
    assert not store.exists("a/c/d.txt")
    with pytest.raises(StorageError, match=r"run/a/b\.txt"):
        store.read("a/b.txt")


def test_a_folder_goes_up_and_comes_back(store, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "up/x").write_bytes(b"1")
    (tmp_path / "up/y").write_bytes(b"\x00\xff")
    store.upload(tmp_path / "up", "deep/down")
    assert store.names("deep/down") == ["x", "y"]
    with store.local_copy("deep/down") as directory:
        assert {file.name: file.read_bytes() for file in directory.iterdir()} == {"x": b"1", "y": b"\x00\xff"}
        own = str(directory).startswith(store.root)
    assert own == store.is_local
    assert directory.exists() == store.is_local  # a copy is removed, the original is not
    assert store.read("deep/down/x") == b"1"


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_a_local_place_has_several_spellings(tmp_path, form):
    store = Store(form.format(tmp_path / "my run"))
    store.write("x", b"1")
    assert store.is_local
    assert (tmp_path / "my run/x").read_bytes() == b"1"
    assert store.path("x") == str(tmp_path / "my run/x")
    assert store.path("") == str(tmp_path / "my run")


def test_a_local_file_appears_whole(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("f", b"old")
    seen = []
    replace = Path.replace

    def watched(self, target):
        seen.append((store.read("f"), self.read_bytes(), self.name.startswith("."), Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    store.write("f", b"new")
    assert seen == [(b"old", b"new", True, "f")]
    assert store.read("f") == b"new"
    assert store.names("") == ["f"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_is_for_the_umask_to_say(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        Store(str(tmp_path)).write("folder/f", b"text")
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "f").stat().st_mode & 0o777 == mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("f", b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.storage.os.fsync", full)
    with pytest.raises(StorageError, match=r"/f: .*No space left"):
        store.write("f", b"new")
    assert store.read("f") == b"old"
    assert store.names("") == ["f"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"in the way")
    store = Store(str(tmp_path / "file"))
    (tmp_path / "up").mkdir()
    (tmp_path / "up/f").write_bytes(b"1")
    for refused in (lambda: store.write("x", b""), lambda: store.upload(tmp_path / "up", "x")):
        with pytest.raises(StorageError, match=f"{tmp_path}/file/x"):
            refused()
