"""One real embedded stack for every test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_stack import Stack, rcmae

from service.client.sdk import Client
from service.embedded import processes
from service.embedded.parts import Folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Started once for the whole run. A test that ends a part leaves when all parts work again."""
    state_dir = tmp_path_factory.mktemp("stack") / "state"
    try:
        started = rcmae(state_dir, "up", "--detach")
        assert started.returncode == 0, started.stderr
        folder = Folder(state_dir)
        url, token = folder.load().url, folder.token.read_text()
        with Client(url, token) as client:
            yield Stack(state_dir, url, token, client)
    finally:
        if state_dir.exists():
            stack_id = Folder(state_dir).load().id
            rcmae(state_dir, "down")
            assert processes.members(stack_id) == []
