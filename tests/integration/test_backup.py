"""A real stack that is backed up while it runs, destroyed, and restored at another path."""

from __future__ import annotations

import json
import shutil

import pytest
from live import make_spec, wait_state
from local_stack import rcmae, running_stack

from rcmae import Client
from service.backup.manifest import file_sha256
from service.embedded.folder import Folder
from service.jobs.state import State

pytestmark = pytest.mark.slow


def test_a_destroyed_stack_comes_back_with_its_backbone(tmp_path):
    state_dir, backup, elsewhere = tmp_path / "state", tmp_path / "backup", tmp_path / "elsewhere"
    with running_stack(state_dir) as stack:
        job = stack.client.submit(make_spec(register_as="kept", optimization={"epochs": 2}))
        wait_state(stack, job.id, State.SUCCEEDED)
        stack.client.pull("kept", tmp_path / "before")
        jobs, token = list(stack.client.jobs()), stack.token
        done = stack.rcmae("admin", "backup", str(backup), "--artifacts", "--json")
        assert done.returncode == 0, done.stderr
        manifest = json.loads(done.stdout)
        assert [copy["name"] for copy in manifest["databases"]] == ["rcmae", "mlflow"]
        assert stack.client.ready(), "the stack goes on"
    shutil.rmtree(state_dir)

    restored = rcmae(elsewhere, "admin", "restore", str(backup))
    assert restored.returncode == 0, restored.stderr
    with running_stack(elsewhere) as stack:
        assert stack.token == token
        assert list(stack.client.jobs()) == jobs
        stack.client.pull("kept", tmp_path / "after")
        weights = [file_sha256(tmp_path / when / "model.safetensors") for when in ("before", "after")]
        assert weights[0] == weights[1]

        # The same folder once more at another path, without a backup.
        stack.rcmae("down")
        moved = Folder(elsewhere.rename(tmp_path / "moved"))
        with running_stack(moved.path) as again, Client(again.url, token) as client:
            client.pull("kept", tmp_path / "moved-backbone")
        assert file_sha256(tmp_path / "moved-backbone" / "model.safetensors") == weights[0]
