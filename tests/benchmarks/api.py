"""How fast the REST API answers with many jobs in the database: p50, p99 and requests a second of eight clients, by
default of two replicas.

``python tests/benchmarks/api.py [sqlite] [postgres] [--jobs N] [--seconds S] [--clients C] [--workers W]``. Real
uvicorn processes as `rcmae up` starts one, their reconciler off, over real HTTP. Prints tables in Markdown. The clients
send the next request as soon as they have the answer to the one before, so the server is never idle: with two cores for
both sides, requests wait for each other, and p50 is about the clients times the server's seconds a request. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import insert, text

sys.path.append(str(Path(__file__).parents[1]))
from api_replicas import HOST, Replica, replicas
from postgres_server import postgres_server

from service.db.database import Database
from service.db.tables import Attempt, Base, Event, Job, Label, now
from service.http.paging import write_cursor
from trainer.spec.cluster import ClusterShape
from trainer.spec.plan import resolve
from trainer.spec.pretrain import PretrainSpec

TOKEN = "benchmark-token-0123456789"
OWNERS = [f"user-{number}" for number in range(40)]
TEAMS = ["vision", "audio", "medical", "maps"]
DATASETS = ["imagenet", "places", "xrays", "tiles", "faces"]
CHUNK = 5_000
"""Jobs that are made one by one; the others are copies of them."""
ID_LENGTH = 18
SPAN_S = 2 * 365 * 86_400
"""The jobs were submitted over two years."""


# --- the database -----------------------------------------------------------------------------------------------------


def fill(url: str, jobs: int) -> list[tuple[str, str]]:
    """Migrate and insert jobs with their attempts and events; gives (creation, id) of each, oldest first."""
    database, chance = Database(url), random.Random(0)
    database.migrate()
    copies, jobs = max(1, jobs // CHUNK), min(jobs, CHUNK)
    specs = [_spec(dataset) for dataset in DATASETS]
    begin = now() - timedelta(seconds=SPAN_S)
    rows = [_job(specs, chance, begin + timedelta(seconds=SPAN_S * n / jobs), n / jobs) for n in range(jobs)]
    with database.session() as session:
        session.execute(insert(Job), rows)
        session.execute(insert(Attempt), [_attempt(row) for row in rows if row["attempts"]])
        session.execute(insert(Event), [event for row in rows for event in _events(row)])
        session.execute(insert(Label), [label for row in rows for label in _labels(row)])
        for copy in range(1, copies):
            for table in (Job, Attempt, Event, Label):
                session.execute(text(_copying(table, copy)))
    made = [(row["created_at"].isoformat(), row["id"] + (f"-{n}" if n else "")) for row in rows for n in range(copies)]
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    database.close()
    return made


def _copying(table: type[Base], copy: int) -> str:
    """SQL that copies the first rows under ids of their own: far faster than sending more."""
    columns = [column.name for column in table.__table__.columns if (table, column.name) != (Event, "id")]
    own = {"job_id", "idempotency_key"} | ({"id"} if table is Job else set())
    values = [f"{name} || '-{copy}'" if name in own else name for name in columns]
    first = "id" if table is Job else "job_id"
    return (
        f"INSERT INTO {table.__tablename__} ({', '.join(columns)}) SELECT {', '.join(values)} "
        f"FROM {table.__tablename__} WHERE length({first}) = {ID_LENGTH}"
    )


def _spec(dataset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """As submitted, and resolved for a node of eight GPUs."""
    spec = PretrainSpec.parse(
        {
            "kind": "pretrain",
            "name": dataset,
            "dataset": {"uri": f"s3://datasets/{dataset}"},
            "model": {"preset": "vit_base_patch16_224"},
            "register_as": f"{dataset}-base",
        }
    )
    return spec.model_dump(mode="json"), resolve(spec, ClusterShape.of(96, 8)).model_dump(mode="json")


def _job(specs: list[Any], chance: random.Random, created: Any, age: float) -> dict[str, Any]:
    newest = age > 0.998  # what waits and runs is new
    states = {"queued": 6, "running": 1, "paused": 1} if newest else {"succeeded": 80, "failed": 12, "cancelled": 8}
    (state,) = chance.choices(list(states), list(states.values()))
    dataset = chance.randrange(len(specs))
    spec, resolved = specs[dataset]
    began = state != "queued"
    identity = f"job-{secrets.token_hex(7)}"
    run = secrets.token_hex(16)
    return {
        "id": identity,
        "kind": "pretrain",
        "name": f"{DATASETS[dataset]}-{chance.choice(['base', 'large', 'ablation'])}-{chance.randrange(1000)}",
        "state": state,
        "reason": "loss_not_finite" if state == "failed" else None,
        "message": "Trained to the end." if state == "succeeded" else f"It is {state}.",
        "owner": chance.choice(OWNERS),
        "priority": chance.choice([0, 0, 0, 5, 10]),
        "labels": {"team": chance.choice(TEAMS), "paper": f"p{chance.randrange(50)}"},
        "spec": spec,
        "resolved_spec": resolved if began else None,
        "notes": "",
        "dataset_uri": spec["dataset"]["uri"],
        "progress": {"epoch": 1600.0, "epochs": 1600, "step": 499_200, "steps": 499_200, "loss": 0.41}
        if began
        else None,
        "result": {"metrics": {"train/loss": 0.41, "eval/linear_top1": 0.68}} if state == "succeeded" else None,
        "metrics": {f"train/{name}": chance.random() for name in ("loss", "lr", "grad_norm")} if began else None,
        "run_id": run if began else None,
        "artifact_uri": f"s3://artifacts/{run}/artifacts" if began else None,
        "attempts": int(began),
        "idempotency_key": secrets.token_hex(8),
        "body_sha256": secrets.token_hex(32),
        "waiting_since": created,
        "created_at": created,
        "started_at": created + timedelta(minutes=1) if began else None,
        "ended_at": created + timedelta(hours=20) if began and not newest else None,
    }


def _attempt(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_id": job["id"],
        "number": 1,
        "submission_id": f"{job['id']}-a1",
        "state": job["state"],
        "message": job["message"],
        "workers": 8,
        "gpus": 8,
        "started_at": job["created_at"],
        "ended_at": job["ended_at"],
    }


def _labels(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in job["labels"].items():
        yield {"job_id": job["id"], "name": name, "value": value, "created_at": job["created_at"]}


def _events(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    states = ["queued", "starting", "running", job["state"]] if job["attempts"] else ["queued"]
    for state in states:
        yield {"job_id": job["id"], "state": state, "message": f"It is {state}.", "actor": "controller",
               "time": job["created_at"]}  # fmt: skip


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running API, of one replica or several."""

    replicas: list[Replica]

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        used = [replica.process.cpu_times() for replica in self.replicas if replica.process]
        return sum(times.user + times.system for times in used)

    def connect(self, client: int) -> Connection:
        """A client's connection; clients are spread over the replicas, as a front spreads them."""
        return Connection(self.replicas[client % len(self.replicas)].port)


@contextlib.contextmanager
def serving(url: str, folder: Path, workers: int) -> Iterator[Server]:
    with replicas(url, folder, TOKEN, workers) as each:
        yield Server(each)


class Connection:
    """One kept-alive connection: the cheapest HTTP client there is, so that the server has the cores."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, method: bytes, path: str, body: bytes = b"", headers: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer."""
        head = f"{path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}".encode()
        if body:
            head += b"\r\nContent-Type: application/json\r\nContent-Length: " + str(len(body)).encode()
        self._socket.sendall(method + b" " + head + headers + b"\r\n\r\n" + body)
        data = b""
        while (split := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        length = int(data[:split].lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        parts, missing = [data[split + 4 :]], split + 4 + length - len(data)
        while missing > 0:
            parts.append(self._more())
            missing -= len(parts[-1])
        return int(data[9:12]), b"".join(parts)

    def _more(self) -> bytes:
        data = self._socket.recv(262_144)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data


# --- measuring --------------------------------------------------------------------------------------------------------

Ask = Callable[[Connection, random.Random], tuple[int, bytes]]


@dataclass
class Found:
    """What was measured of one kind of request."""

    seconds: list[float]
    wall_s: float
    server_s: float
    client_s: float
    bytes: int

    def row(self, what: str) -> str:
        ordered, count = sorted(self.seconds), len(self.seconds)
        middle, late = statistics.median(ordered), ordered[min(count - 1, int(count * 0.99))]
        return (
            f"| {what} | {middle * 1e3:.1f} | {late * 1e3:.1f} | {count / self.wall_s:.0f} | "
            f"{self.server_s / count * 1e3:.2f} | {self.client_s / count * 1e3:.2f} | {self.bytes / count / 1e3:.1f} |"
        )


HEADER = (
    "| | p50 ms | p99 ms | requests/s | server's CPU ms a request | client's CPU ms | kB an answer |\n"
    "|---|---|---|---|---|---|---|"
)


def measure(server: Server, ask: Ask, seconds: float, clients: int) -> Found:
    """Let each client ask again and again for so long, after one request to warm up."""
    found: list[list[float]] = [[] for _ in range(clients)]
    sizes, failures = [0] * clients, []
    ready = threading.Barrier(clients + 1)

    def run(number: int) -> None:
        chance = random.Random(number)
        try:
            with server.connect(number) as connection:
                ask(connection, chance)
                ready.wait()
                end = time.perf_counter() + seconds
                while (begin := time.perf_counter()) < end:
                    status, body = ask(connection, chance)
                    found[number].append(time.perf_counter() - begin)
                    sizes[number] += len(body)
                    assert status in {200, 201}, f"answered {status}: {body[:500]!r}"
        except Exception as error:
            failures.append(error)
            ready.abort()
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    begin, served, own = time.perf_counter(), server.cpu(), time.process_time()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return Found(
        [value for each in found for value in each],
        time.perf_counter() - begin,
        server.cpu() - served,
        time.process_time() - own,
        sum(sizes),
    )


def kinds(made: list[tuple[str, str]]) -> dict[str, Ask]:
    """Every kind of request, by what it is called in the table."""
    spec = _spec("imagenet")[0]

    def one(connection: Connection, chance: random.Random) -> tuple[int, bytes]:
        return connection.ask(b"GET", f"/v1/jobs/{chance.choice(made)[1]}")

    def listing(query: Callable[[random.Random], str]) -> Ask:
        return lambda connection, chance: connection.ask(b"GET", f"/v1/jobs?{query(chance)}")

    def deep(chance: random.Random) -> str:
        return "cursor=" + write_cursor(list(chance.choice(made)))

    def submit(connection: Connection, chance: random.Random) -> tuple[int, bytes]:
        body = json.dumps(spec | {"seed": chance.randrange(2**32)}).encode()
        key = f"\r\nIdempotency-Key: {secrets.token_hex(8)}".encode()
        return connection.ask(b"POST", "/v1/jobs", body, key)

    return {
        "GET one": one,
        "events of one": lambda connection, chance: connection.ask(b"GET", f"/v1/jobs/{chance.choice(made)[1]}/events"),
        "list, newest 50": listing(lambda _: ""),
        "list, newest 10": listing(lambda _: "limit=10"),
        "list, deep page by cursor": listing(deep),
        "list, `state=running`": listing(lambda _: "state=running"),
        "list, `state=failed`": listing(lambda _: "state=failed"),
        "list, `state=queued&state=running`": listing(lambda _: "state=queued&state=running"),
        "list, `owner`": listing(lambda chance: f"owner={chance.choice(OWNERS)}"),
        "list, `owner` and `state=failed`": listing(lambda chance: f"owner={chance.choice(OWNERS)}&state=failed"),
        "list, `label` of a quarter": listing(lambda chance: f"label=team:{chance.choice(TEAMS)}"),
        "list, `label` of a fiftieth": listing(lambda chance: f"label=paper:p{chance.randrange(50)}"),
        "list, `label` that nothing has": listing(lambda _: "label=team:none"),
        "list, `name_contains`, many": listing(lambda _: "name_contains=ablation"),
        "list, `name_contains`, a few": listing(lambda chance: f"name_contains=ablation-{chance.randrange(100, 999)}"),
        "list, `created_after`": listing(
            lambda chance: "created_after=" + quote(made[-1 - chance.randrange(len(made) // 2)][0])
        ),
        "submit": submit,
    }


def bench(name: str, url: str, arguments: argparse.Namespace, folder: Path) -> None:
    begin = time.monotonic()
    made = fill(url, arguments.jobs)
    say(f"\n## {name}, {arguments.jobs:,} jobs (inserted in {time.monotonic() - begin:.0f} s)\n\n{HEADER}")
    with serving(url, folder, arguments.workers) as server:
        for what, ask in kinds(made).items():
            if arguments.only in what:
                say(measure(server, ask, arguments.seconds, arguments.clients).row(what))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="sqlite|postgres", help="both by default")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=8, help="of each kind of request")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="replicas of the API")
    parser.add_argument("--only", default="", help="kinds of request that have this in their names")
    arguments = parser.parse_args()
    wanted = arguments.what or ["sqlite", "postgres"]
    if unknown := set(wanted) - {"sqlite", "postgres"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from sqlite, postgres")
    say(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, fastapi {version('fastapi')}, "
        f"sqlalchemy {version('sqlalchemy')}; {arguments.clients} clients, {arguments.workers} replica(s) of the API."
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if "sqlite" in wanted:
            bench("SQLite", f"sqlite:///{folder}/rcmae.db", arguments, Path(folder))
        if "postgres" in wanted:
            with postgres_server() as server:
                bench("Postgres", server.url("bench"), arguments, Path(folder))


if __name__ == "__main__":
    main()
