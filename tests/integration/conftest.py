"""A finished job of the shared stack, for all tests that only look at one."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from live import make_spec
from local_stack import Stack

from service.jobs.schemas import JobView


@pytest.fixture(scope="session")
def finished(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobView, subprocess.CompletedProcess[str]]:
    """A job followed from the command line to its end, and what was printed; it registered `tiny-digits`."""
    spec = make_spec(register_as="tiny-digits", labels={"team": "vision"})
    file = tmp_path_factory.mktemp("spec") / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    done = stack.rcmae("submit", str(file), "--follow", "--set", "seed=7")
    assert done.returncode == 0, done.stdout + done.stderr
    job = next(job for job in stack.client.jobs(name_contains="tiny-digits") if job.spec["seed"] == 7)
    return job, done
