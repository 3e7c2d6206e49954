"""What pulling a large backbone costs: seconds against nginx with the same file, memory of the API, 32 pulls at once.

``python tests/benchmarks/pull.py [--mebibytes M] [--pulls N] [--rounds R]``. A live stack serves a version of 1.2 GB
from a disk, and Debian's nginx the same file with sendfile; one client over loopback takes from both in turn and throws
away what it gets. The last row of the first table is `Client.pull`: onto the disk, with its sha256. Prints tables in
Markdown. Needs nginx on the PATH and three times the file's size below ``TMPDIR``. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from mlflow.tracking import MlflowClient

sys.path.append(str(Path(__file__).parents[1]))
from handmade import MIB, registered, write_weights
from live import make_spec, poll, wait_state
from local_stack import Stack, running_stack

from service.embedded import processes
from service.jobs.state import State

HOST = "127.0.0.1"
FILE = "hf/model.safetensors"
BUFFER = MIB
START_S = 20
CONFIG = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {host}:{port};
    root {root};
  }}
}}
"""
"""Started by root, nginx would read the files as another user, who may not."""


@dataclass(frozen=True)
class Source:
    """Where the file can be had."""

    name: str
    port: int
    path: str
    token: str
    size: int

    def fetch(self) -> float:
        """Seconds from the connection to the last byte; nothing is kept, and all of it must come."""
        begun, buffer = time.perf_counter(), bytearray(BUFFER)
        with socket.create_connection((HOST, self.port), timeout=600) as connection:
            head = f"GET {self.path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {self.token}\r\n"
            connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
            came = b""
            while b"\r\n\r\n" not in came:
                came += _some(connection.recv(65_536), self.name)
            told, _, body = came.partition(b"\r\n\r\n")
            if not told.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"{self.name} answered {told.splitlines()[0].decode()}: {body[:300]!r}")
            count = len(body)
            while got := connection.recv_into(buffer):
                count += got
        if count != self.size:
            raise RuntimeError(f"{self.name} sent {count} of {self.size} bytes")
        return time.perf_counter() - begun


def _some(data: bytes, name: str) -> bytes:
    if not data:
        raise RuntimeError(f"{name} closed the connection before it answered")
    return data


class Memory:
    """What the API has resident at most, by the kernel's own account."""

    def __init__(self, stack: Stack) -> None:
        self._folder = Path("/proc") / str(stack.state.parts["api"].pid)

    def now(self) -> int:
        return self._told("VmRSS")

    def forget(self) -> None:
        """Let the most begin at what there is now."""
        (self._folder / "clear_refs").write_text("5")

    def most(self) -> int:
        return self._told("VmHWM")

    def _told(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def nginx(program: str, root: Path, folder: Path) -> Iterator[int]:
    """A server of the files below ``root``; gives its port."""
    (port,) = processes.free_ports(1)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(CONFIG.format(user=user, folder=folder, host=HOST, port=port, root=root))
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"], stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + START_S
            while process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                    break
                if time.monotonic() > end:
                    break
                time.sleep(0.1)
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"nginx did not start: {(folder / 'nginx.log').read_text()[-2000:]}")
            yield port
        finally:
            process.terminate()
            process.wait(20)


def big(stack: Stack, mebibytes: int) -> tuple[int, Path]:
    """A version of so many MiB: its number and its folder."""
    spec = make_spec(register_as="big", optimization={"epochs": 1}, evaluation={"every_epochs": 1, "probes": []})
    job = wait_state(stack, stack.client.submit(spec).id, State.SUCCEEDED)
    mlflow = MlflowClient(stack.mlflow_url)
    number, folder = registered(mlflow, "big", job.id, mlflow.get_run(job.run_id).info.experiment_id)
    write_weights(folder, mebibytes)
    # It is served once the controller has compared its rows with MLflow, which it does every minute.
    poll(lambda: stack.client.backbone("big"), lambda found: number in found.versions)
    return number, folder


def alternating(sources: list[Source], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turn: what changes on the machine meanwhile changes for both."""
    for source in sources:
        source.fetch()  # the file comes from the page cache from here on
    found: dict[str, list[float]] = {source.name: [] for source in sources}
    for _ in range(rounds):
        for source in sources:
            found[source.name].append(source.fetch())
    return found


def at_once(fetch: Callable[[], float], pulls: int) -> tuple[float, list[float]]:
    """Seconds until the last of so many is done, and those of each."""
    ready = threading.Barrier(pulls)

    def one(_: int) -> float:
        ready.wait()
        return fetch()

    begun = time.perf_counter()
    with ThreadPoolExecutor(pulls) as pool:
        each = list(pool.map(one, range(pulls)))
    return time.perf_counter() - begun, each


def single(stack: Stack, sources: list[Source], number: int, rounds: int, folder: Path) -> None:
    memory = Memory(stack)
    before = memory.now()
    memory.forget()
    found = alternating(sources, rounds)
    most = memory.most()
    begun = time.perf_counter()
    stack.client.pull("big", folder / "pulled", version=number)
    found["`Client.pull`, checked and on disk"] = [time.perf_counter() - begun]
    size, least = sources[0].size, statistics.median(found["nginx"])
    say("\n| one at a time | s, median | s, range | MB/s | times nginx's seconds |\n|---|---|---|---|---|")
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        say(f"| {name} | {middle:.2f} | {spread} | {size / middle / 1e6:.0f} | {middle / least:.2f} |")
    say(f"\nThe API had {before / MIB:.0f} MiB before, and {most / MIB:.0f} MiB at most.")


def together(stack: Stack, sources: list[Source], pulls: int) -> None:
    memory = Memory(stack)
    process = psutil.Process(stack.state.parts["api"].pid)
    say(
        f"\n| {pulls} at once | s, all | s, median of one | MB/s, together | API's CPU, s | API's memory, MiB at most |"
    )
    say("|---|---|---|---|---|---|")
    for source in sources:
        memory.forget()
        times = process.cpu_times()
        wall, each = at_once(source.fetch, pulls)
        later = process.cpu_times()
        cpu = later.user + later.system - times.user - times.system
        own = [f"{cpu:.1f}", f"{memory.most() / MIB:.0f}"] if source.name != "nginx" else ["", ""]
        rate = pulls * source.size / wall / 1e6
        say(f"| {source.name} | {wall:.1f} | {statistics.median(each):.1f} | {rate:.0f} | " + " | ".join(own) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=1145, help="of the file: 1.2 GB by default")
    parser.add_argument("--pulls", type=int, default=32, help="at once")
    parser.add_argument("--rounds", type=int, default=5, help="of one at a time")
    arguments = parser.parse_args()
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        parser.error("there is no nginx to compare with: apt-get install nginx, or put another on the PATH")
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr.strip()
    say(f"{os.cpu_count()} cores, Python {platform.python_version()}, uvicorn {version('uvicorn')}, {told}. ")
    say(f"Load before: {os.getloadavg()[0]:.1f}.")
    with tempfile.TemporaryDirectory() as name, running_stack(Path(name) / "state") as stack:
        number, folder = big(stack, arguments.mebibytes)
        size = (folder / FILE).stat().st_size
        with nginx(program, folder, Path(name)) as port:
            path = f"/v1/backbones/big/versions/{number}/files/{FILE}"
            sources = [
                Source("nginx", port, f"/{FILE}", stack.token, size),
                Source("API", stack.state.ports.api, path, stack.token, size),
            ]
            single(stack, sources, number, arguments.rounds, Path(name))
            together(stack, sources, arguments.pulls)
    say(f"\nLoad after: {os.getloadavg()[0]:.1f}.")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
