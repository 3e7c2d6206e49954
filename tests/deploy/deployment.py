"""A deployment of this checkout in a folder of its own, and what the tests do to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from live import poll as poll_often

CHECKOUT = Path(__file__).parents[2]
PROJECT = "rcmae-deploy-test"
BASE_IMAGE = "python:3.11-slim-bookworm"
FILES = ("docker-compose.yml", "tests/deploy/stand-ins.yml")
LONG_RUNNING = ("postgres", "s3", "mlflow", "ray-head", "ray-worker", "controller", "api", "front")
poll = partial(poll_often, every_s=1.0)
"""Each look asks the engine about every container."""
SCALE = {"api": 2, "ray-worker": 2}


def works(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


def compose_command() -> list[str]:
    """`docker compose`, or `docker-compose`; fails where there is no engine."""
    if not works("docker", "info"):
        pytest.fail("these tests need Docker: a running engine, and `docker` on the PATH")
    if works("docker", "compose", "version"):
        return ["docker", "compose"]
    if not works("docker-compose", "version"):
        pytest.fail("these tests need Docker Compose: `docker compose`, or `docker-compose` on the PATH")
    return ["docker-compose"]


@dataclass
class Transcript:
    """What was done, how long it took, and what was found: tests/deploy/results.md."""

    begin: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.begin:7.1f} s  {text}"
        self.lines.append(line)
        print(line, flush=True)  # noqa: T201 - people watch

    def table(self, title: str, head: list[str], rows: list[list[object]]) -> None:
        lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
        self.tables.append("\n".join(lines))
        print("\n".join(lines), flush=True)  # noqa: T201

    def write(self, path: Path) -> None:
        head = (
            "# A deployment from nothing\n\nWritten by `make test-deploy`: seconds since it began, and what happened.\n"
            f"Here: {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, Docker "
            f"{out('docker', 'version', '--format', '{{.Server.Version}}').strip()}.\n"
        )
        body = "\n".join(["```", *self.lines, "```"])
        path.write_text("\n".join([head, body, "", "\n\n".join(self.tables), ""]))


def out(*command: str, **options: Any) -> str:
    """What a command prints; fails with all of it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


class Deployment:
    """A copy of what git tracks, and Compose in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._compose = folder, compose_command()
        self.port = free_port()
        for name in out("git", "ls-files", "-z", cwd=CHECKOUT).split("\0"):
            if name and (CHECKOUT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, folder / name)
        self.environment = {
            "RCMAE_PUBLISH": f"127.0.0.1:{self.port}",
            "RCMAE_WORKER_CPUS": "1",  # so that two workers of a job need two containers
            "RCMAE_HEARTBEAT_LIMIT_S": "30",
            # Stand-ins for whoever has no BuildKit; PyPI's own torch where its index of CPU builds is out of reach.
            "DOCKER_BUILDKIT": os.environ.get("DOCKER_BUILDKIT", "0"),
            "COMPOSE_DOCKER_CLI_BUILD": os.environ.get("COMPOSE_DOCKER_CLI_BUILD", "0"),
            "RCMAE_TORCH_INDEX": os.environ.get("RCMAE_TORCH_INDEX", ""),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def secrets(self) -> Path:
        return self.folder / ".secrets"

    def variables(self) -> dict[str, str]:
        lines = (self.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def rcmae(self, *arguments: str) -> str:
        return out(sys.executable, "-m", "service.cli", *arguments, cwd=self.folder)

    def compose(self, *arguments: str, files: tuple[str, ...] = FILES, **options: Any) -> str:
        return out(*self.compose_line(*arguments, files=files), **self.options() | options)

    def compose_line(self, *arguments: str, files: tuple[str, ...] = FILES) -> list[str]:
        named = [part for file in files for part in ("-f", file)]
        return [*self._compose, "-p", PROJECT, *named, *arguments]

    def options(self) -> dict[str, Any]:
        return {"cwd": self.folder, "env": os.environ | self.environment}

    def up(self) -> None:
        scale = [part for name, count in SCALE.items() for part in ("--scale", f"{name}={count}")]
        self.compose("up", "-d", *scale)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def execute(self, service: str, *command: str, **options: Any) -> str:
        return out("docker", "exec", "-i", self.containers(service)[0], *command, **options)

    def python(self, service: str, code: str) -> Any:
        """What a snippet prints as JSON, run in a container: for what is asked from inside."""
        return json.loads(self.execute(service, "python", "-", input=code).splitlines()[-1])

    def wait_healthy(self, *services: str, timeout_s: float = 300.0) -> None:
        wanted = services or LONG_RUNNING
        poll(lambda: {name: [health(c) for c in self.containers(name)] for name in wanted}, all_healthy, timeout_s)

    def crash(self, service: str) -> float:
        """SIGKILL the first process of a service's first container; seconds until the engine has it healthy again.

        Not `docker kill`, which the engine takes for the wish that it should stay down.
        """
        container, begin = self.containers(service)[0], time.monotonic()
        before = state_of(container)
        kill = ["run", "--rm", "--pid=host", "--network=none", BASE_IMAGE, "sh", "-c", f"kill -9 {before['Pid']}"]
        out("docker", *kill)
        poll(lambda: state_of(container)["StartedAt"], lambda started: started != before["StartedAt"], 60)
        poll(lambda: health(container), lambda found: found == "healthy", 180)
        return time.monotonic() - begin


def remove_leftovers() -> None:
    """Remove what an interrupted run of these tests has left: its database has other passwords."""
    mine = ("--filter", f"label=com.docker.compose.project={PROJECT}", "--quiet")
    if containers := out("docker", "ps", "--all", *mine).split():
        out("docker", "rm", "--force", "--volumes", *containers)
    for kind in ("volume", "network"):
        if names := out("docker", kind, "ls", *mine).split():
            out("docker", kind, "rm", *names)


def state_of(container: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(out("docker", "inspect", "--format", "{{json .State}}", container))
    return state


def health(container: str) -> str:
    return str(state_of(container).get("Health", {}).get("Status"))


def started(container: str) -> datetime:
    return datetime.fromisoformat(state_of(container)["StartedAt"][:26].rstrip("Z") + "+00:00")


def all_healthy(found: Mapping[str, list[str]]) -> bool:
    return all(len(states) == SCALE.get(name, 1) and set(states) == {"healthy"} for name, states in found.items())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def open_ports() -> set[int]:
    """Every TCP port of this machine that takes connections on the loopback address."""
    found = set()
    for port in range(1, 65536):
        with socket.socket() as probe:
            probe.settimeout(1)
            # Without a listener a socket may meet itself.
            if probe.connect_ex(("127.0.0.1", port)) == 0 and probe.getsockname() != probe.getpeername():
                found.add(port)
    return found


def owners() -> dict[int, str]:
    """Programs that listen, by port, as far as one may know."""
    found = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid:
            try:
                found[connection.laddr.port] = psutil.Process(connection.pid).name()
            except psutil.NoSuchProcess:
                continue
    return found
