"""State folders that are copied, moved, linked and removed while a stack runs from them, with real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from live import poll

from service.client.errors import ClientError
from service.client.server import find_server
from service.embedded import doctor, processes, stack
from service.embedded.folder import PARTS, Folder, StackError, StackState
from service.embedded.locations import require_nothing_shared

SUPERVISOR = """
import sys
from service.embedded import parts, supervisor

parts.command = lambda part, folder, state: ["sleep", "600"]
parts.works = parts.answers = lambda part, state: True
sys.exit(supervisor.main())
"""
"""The real supervisor, with parts that only sleep."""


@dataclass(frozen=True)
class Running:
    """A stack whose parts sleep."""

    folder: Folder
    """Where it was started."""
    supervisor: subprocess.Popen[bytes]
    state: StackState
    """As recorded when everything had started."""

    @property
    def parts(self) -> set[str]:
        """Names of the parts that still run."""
        return {part for part, identity in self.state.parts.items() if identity.alive}

    def untouched(self) -> bool:
        here = self.folder.load() == self.state and self.state.temp_dir.is_dir()
        return here and self.supervisor.poll() is None and self.parts == set(PARTS)


@contextmanager
def running(path: Path) -> Iterator[Running]:
    """What `rcmae up` starts; afterwards whatever is left of it is killed."""
    folder = Folder.at(path)
    folder.make()
    with folder.log_of("supervisor").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, "--state-dir", str(path)],
            cwd=path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    state = StackState()
    try:
        state = poll(folder.load, lambda state: set(state.parts) == set(PARTS))
        yield Running(folder, supervisor, state)
    finally:
        supervisor.kill()
        supervisor.wait()
        processes.sweep(state.id)
        shutil.rmtree(state.temp_dir or path, ignore_errors=True)


@pytest.fixture
def original(tmp_path) -> Iterator[Running]:
    with running(tmp_path / "original") as started:
        yield started


@pytest.fixture
def copy(original, tmp_path) -> Folder:
    """A copy of the original's folder, made while that runs."""
    return Folder.at(shutil.copytree(original.folder.path, tmp_path / "copy"))


@pytest.fixture
def starts_nothing(monkeypatch):
    """Fails a test whose `up` is not refused, before it leaves a stack behind."""
    monkeypatch.setattr(stack, "_start_supervisor", lambda *_: pytest.fail("a supervisor was started"))


def ports(state: StackState) -> set[int]:
    """All but the API's: nothing listens there in these tests, so both stacks may have chosen the same."""
    return set(state.ports.model_dump(exclude={"api"}).values())


# --- copies -----------------------------------------------------------------------------------------------------------


def test_nothing_runs_from_a_copy_and_down_ends_nothing(original, copy):
    assert not any(part.alive for part in stack.status(copy).parts)
    assert stack.status(copy).supervisor is None
    assert not stack.is_supervised(copy)
    assert stack.down(copy) is False
    assert original.untouched()


def test_a_stack_from_a_copy_runs_beside_the_original(original, copy):
    with running(copy.path) as second:
        assert original.untouched()
        assert second.parts == set(PARTS)
        assert second.state.id != original.state.id
        assert second.state.temp_dir != original.state.temp_dir
        assert not ports(second.state) & ports(original.state)
        assert not {part.pid for part in second.state.parts.values()} & {
            part.pid for part in original.state.parts.values()
        }
        assert stack.down(copy) is True
        assert second.supervisor.wait(timeout=30) == 0
        assert second.parts == set()
        assert not second.state.temp_dir.exists()
    assert original.untouched()


def test_the_client_does_not_take_the_original_for_the_copys_stack(original, copy, monkeypatch):
    """Both have the same tokens: what is asked of the copy would be done to the original."""
    for name in ("RCMAE_URL", "RCMAE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RCMAE_STATE_DIR", str(original.folder.path))
    assert find_server().url == original.state.url
    monkeypatch.setenv("RCMAE_STATE_DIR", str(copy.path))
    with pytest.raises(ClientError, match=f"{copy.path} is a copy of .*{original.folder.path}.*`rcmae up`"):
        find_server()


def test_a_copy_in_place_of_a_folder_that_is_gone_keeps_its_ports_and_no_process(original, copy):
    """As when a backup is restored."""
    assert stack.down(original.folder) is True
    assert copy.load().ports is None, "the original may come up again"
    shutil.rmtree(original.folder.path)
    restored = Folder(copy.path.rename(original.folder.path))
    state = restored.load()
    assert state.ports == original.state.ports
    assert state.id != original.state.id
    assert (state.parts, state.supervisor, state.temp_dir) == ({}, None, None)


@pytest.mark.usefixtures("starts_nothing")
@pytest.mark.parametrize(
    ("outside", "said"),
    [
        ({"database_url": "postgresql://rcmae:hidden@db:5432/jobs"}, r"jobs in postgresql\S+rcmae:\*\*\*@db"),
        ({"artifact_root": "s3://bucket/prefix"}, "artifacts in s3://bucket/prefix"),
    ],
)
def test_what_lies_outside_a_folder_is_not_shared_with_its_copy(tmp_path, outside, said):
    folder = Folder.at(tmp_path / "original")
    folder.make()
    folder.save(folder.load().model_copy(update=outside))
    require_nothing_shared(folder)
    copy = Folder.at(shutil.copytree(folder.path, tmp_path / "copy"))
    for _ in range(2):
        with pytest.raises(StackError, match=f"a copy of {folder.path}, which keeps its {said}") as refused:
            stack.up(copy, None, lambda _: None)
        assert "hidden" not in str(refused.value)
        (check,) = (check for check in doctor.examine(copy) if check.name == "state folder")
        assert (check.level, check.remedy) == ("broken", str(refused.value))
        stack.down(copy)  # does not make it a stack of its own
    shutil.rmtree(folder.path)
    require_nothing_shared(copy)
    assert copy.load().model_dump(include=set(outside)) == outside


@pytest.mark.usefixtures("starts_nothing")
def test_a_copy_of_hard_links_is_refused(original, tmp_path):
    linked = Folder.at(shutil.copytree(original.folder.path, tmp_path / "linked", copy_function=os.link))
    with pytest.raises(StackError, match=r"stack.lock are the same, by a link.*`cp -rL`"):
        stack.up(linked, None, lambda _: None)
    with pytest.raises(StackError, match="by a link"):
        stack.down(linked)
    assert original.untouched()


@pytest.mark.usefixtures("starts_nothing")
def test_a_copy_whose_artifacts_are_a_link_to_the_originals_is_refused(tmp_path):
    folder = Folder.at(tmp_path / "original")
    folder.make()
    (tmp_path / "big-disk").mkdir()
    (folder.path / "artifacts").symlink_to(tmp_path / "big-disk")
    folder.save(folder.load())
    copy = Folder.at(shutil.copytree(folder.path, tmp_path / "copy", symlinks=True))
    with pytest.raises(StackError, match=r"artifacts are the same, by a link"):
        stack.up(copy, None, lambda _: None)


# --- the same folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["link", "relative"])
def test_a_folder_is_the_same_by_whatever_path(original, tmp_path, monkeypatch, way):
    (tmp_path / "link").symlink_to(original.folder.path)
    monkeypatch.chdir(tmp_path)
    folder = Folder.at(Path("link" if way == "link" else "link/../original"))
    assert folder.load() == original.state
    assert stack.is_supervised(folder)
    assert stack.down(folder) is True
    assert original.supervisor.wait(timeout=30) == 0
    assert original.parts == set()


def test_what_a_killed_supervisor_left_is_found_after_a_move(original, tmp_path):
    original.supervisor.kill()
    original.supervisor.wait()
    moved = Folder(original.folder.path.rename(tmp_path / "moved"))
    assert original.parts == set(PARTS)
    assert {part.name for part in stack.status(moved).parts if part.alive} == set(PARTS)
    assert stack.down(moved) is True
    assert original.parts == set()
    assert not original.state.temp_dir.exists()


def test_up_in_a_moved_folder_takes_up_nothing_that_writes_to_where_it_was(original, tmp_path, monkeypatch):
    original.supervisor.kill()
    original.supervisor.wait()
    moved = Folder(original.folder.path.rename(tmp_path / "moved"))
    left = []
    monkeypatch.setattr(stack, "_start_supervisor", lambda *_: left.append(original.parts))
    monkeypatch.setattr(stack, "_wait_until_up", lambda *_: moved.load())
    stack.up(moved, None, lambda _: None)
    assert left == [set()]


def test_a_supervisor_whose_folder_is_moved_ends_everything_and_writes_to_no_other(original, tmp_path):
    moved = Folder(original.folder.path.rename(tmp_path / "moved"))
    with running(original.folder.path) as other:
        assert original.supervisor.wait(timeout=60) == 1
        assert original.parts == set()
        assert not original.state.temp_dir.exists()
        assert other.untouched()
    assert "no longer at" in moved.log_of("supervisor").read_text()
    assert not any(part.alive for part in stack.status(moved).parts)


def test_a_supervisor_whose_folder_is_removed_ends_everything(original):
    shutil.rmtree(original.folder.path)
    assert original.supervisor.wait(timeout=60) == 1
    assert original.parts == set()
