"""Stand-ins for Ray and MLflow that keep their state in memory, and makers of what tests need."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from fastapi.testclient import TestClient

from service.adapters.mlflow_connection import MlflowRefused, MlflowUnreachable
from service.adapters.mlflow_registry import COPIES, Model, Version
from service.adapters.mlflow_runs import MetricPoint, OpenRun, RunView, TrialRun
from service.adapters.ray_cluster import ClusterUnreachable, Machine, RayState, Submission
from service.db.database import Database
from service.db.tables import Attempt, Event, Job
from service.jobs import repository
from trainer.protocol import names
from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.request import AttemptRequest
from trainer.spec.cluster import ClusterShape, NodeShape
from trainer.spec.dataset import DIGITS
from trainer.spec.job import JobSpec, parse_spec

SPEC: dict[str, Any] = {
    "kind": "pretrain",
    "name": "digits",
    "dataset": {"uri": DIGITS},
    "model": {"img_size": 8, "patch_size": 2, "in_chans": 1},
    "optimization": {"epochs": 2, "global_batch_size": 64},
    "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 2},
}
"""A spec of two CPUs that a cluster of `FakeRay` can run twice at a time."""


def spec_with(**fields: Any) -> dict[str, Any]:
    return SPEC | fields


def add_job(database: Database, state: str = "queued", spec: dict[str, Any] | None = None, **fields: Any) -> str:
    """A job straight in the database, in any state."""
    parsed = parse_spec(spec or SPEC)
    values: dict[str, Any] = {
        "id": repository.new_id(),
        "kind": parsed.kind,
        "name": parsed.name,
        "state": state,
        "owner": "alice",
        "priority": parsed.priority,
        "labels": dict(parsed.labels),
        "spec": parsed.model_dump(mode="json"),
        "dataset_uri": dataset_of(parsed),
        "body_sha256": parsed.sha256(),
    } | fields
    with database.session() as session:
        session.add(Job(**values))
    return str(values["id"])


def dataset_of(spec: JobSpec) -> str:
    """The URI of the dataset that a job, or each of its trials, reads; empty for none."""
    used = spec.dataset_used
    return used.uri if used else ""


def job_of(database: Database, job_id: str) -> Job:
    with database.read() as session:
        return repository.get(session, job_id)


def attempts_of(database: Database, job_id: str) -> list[Attempt]:
    with database.read() as session:
        return repository.attempts(session, job_id)


def events_of(database: Database, job_id: str) -> list[Event]:
    with database.read() as session:
        return repository.events(session, job_id, 0, 1000)


@dataclass
class FakeRay:
    """A Ray head that takes every submission and says of it what a test sets."""

    cpus: int = 4
    gpus: int = 0
    nodes: tuple[NodeShape, ...] = ()
    """Instead of one node of ``cpus`` and ``gpus``."""
    dead: tuple[Machine, ...] = ()
    """Nodes that Ray still tells of."""
    reachable: bool = True
    answers_lost: int = 0
    """So many submissions are taken without the answer coming back."""
    jobs: dict[str, RayState] = field(default_factory=dict)
    requests: list[AttemptRequest] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Submissions that asking for raises an error of no expected kind."""
    records: dict[str, Submission] = field(default_factory=dict)
    """What Ray keeps of submissions beside those in ``jobs``, or of those with more than their state."""
    deleted: list[str] = field(default_factory=list)
    placed: dict[str, list[str]] = field(default_factory=dict)
    """The nodes of a submission's workers."""

    def _reach(self) -> None:
        if not self.reachable:
            raise ClusterUnreachable("connection refused")

    def close(self) -> None:
        """It holds nothing open."""

    def gated(self, _: object) -> FakeRay:
        """It never hangs."""
        return self

    def shape(self) -> ClusterShape:
        self._reach()
        return ClusterShape(self.nodes) if self.nodes else ClusterShape.of(self.cpus, self.gpus)

    def machines(self) -> list[Machine]:
        return [Machine(node, alive=True) for node in self.shape().nodes] + list(self.dead)

    def submissions(self) -> dict[str, Submission]:
        self._reach()
        told = {n: state for n, state in self.jobs.items() if state is not RayState.ABSENT and n not in self.broken}
        return {name: Submission(state, None) for name, state in told.items()} | self.records

    def placements(self, records: Mapping[str, Submission] | None = None) -> dict[str, list[str]]:  # noqa: ARG002
        self._reach()
        return dict(self.placed)

    def delete(self, submission_id: str) -> None:
        self._reach()
        record = self.submissions().get(submission_id)
        if record and not record.state.ended:
            raise ClusterUnreachable("Ray answered 500: it is not in a terminal state")
        self.jobs.pop(submission_id, None)
        self.records.pop(submission_id, None)
        self.deleted.append(submission_id)

    def state(self, submission_id: str) -> RayState:
        if submission_id in self.broken:
            raise RuntimeError("not a state")
        if not self.reachable:
            return RayState.UNKNOWN
        return self.jobs.get(submission_id, RayState.ABSENT)

    def submit(self, submission_id: str, request: AttemptRequest) -> None:
        self._reach()
        if submission_id in self.jobs:
            raise ClusterUnreachable("Ray answered 500: the id exists")
        self.jobs[submission_id] = RayState.PENDING
        self.requests.append(request)
        if self.answers_lost:
            self.answers_lost -= 1
            raise ClusterUnreachable("timed out")

    def stop(self, submission_id: str) -> None:
        self._reach()
        self.stopped.append(submission_id)

    def log_tail(self, submission_id: str) -> str:
        return f"log of {submission_id}"


@dataclass
class FakeRun:
    artifact_uri: str
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    status: str = "RUNNING"
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))


def _open(run_id: str, run: FakeRun) -> OpenRun:
    search = run.tags.get(names.TAG_TRIAL_OF)
    return OpenRun(run_id, search or run_id.removeprefix("run-"), run.started_at, trial=search is not None)


@dataclass
class FakeMlflow:
    """An MLflow server whose runs' artifacts lie below ``root``."""

    root: Path
    url: str = "http://mlflow.test"
    reachable: bool = True
    runs: dict[str, FakeRun] = field(default_factory=dict)
    points: dict[str, list[MetricPoint]] = field(default_factory=dict)
    registered: list[Version] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    """Folders of logged models by a version's source."""
    commands: list[Command] = field(default_factory=list)
    orders: list[SearchOrders] = field(default_factory=list)
    named: dict[str, dict[str, int]] = field(default_factory=dict)
    """What each backbone's aliases stand for."""
    texts: dict[str, Model] = field(default_factory=dict)
    """The description and tags of each registered model that has some."""
    described: list[tuple[str, int | None]] = field(default_factory=list)
    """What `describe` was called for."""

    def _reach(self) -> None:
        if not self.reachable:
            raise MlflowUnreachable("connection refused")

    def gated(self, _: object) -> FakeMlflow:
        """It never hangs."""
        return self

    def ping(self) -> None:
        self._reach()

    def make_run(
        self,
        job_id: str,
        name: str,  # noqa: ARG002 - the store's form
        tags: dict[str, str],
        known: str | None = None,
        params: Mapping[str, str] = MappingProxyType({}),  # noqa: ARG002 - the store's form
    ) -> tuple[str, str]:
        self._reach()
        run_id = known or f"run-{job_id}"
        folder = self.root / run_id / "artifacts"
        if self.root.exists():
            folder.mkdir(parents=True, exist_ok=True)
        self.runs.setdefault(run_id, FakeRun(str(folder), dict(tags)))
        return run_id, str(folder)

    def run(self, run_id: str) -> RunView:
        self._reach()
        return self.views([run_id]).get(run_id) or RunView({}, {}, gone=True)

    def views(self, run_ids: Sequence[str]) -> dict[str, RunView]:
        self._reach()
        found = {run_id: self.runs[run_id] for run_id in run_ids if run_id in self.runs}
        return {run_id: RunView(dict(run.tags), dict(run.metrics)) for run_id, run in found.items()}

    def beat(self, job_id: str, attempt: int, at: float) -> None:
        self.runs[f"run-{job_id}"].tags[names.heartbeat(attempt)] = str(at)

    def command(self, run_id: str, command: Command) -> None:
        self._reach()
        if run_id not in self.runs:
            raise MlflowRefused(f"Run '{run_id}' not found")
        self.commands.append(command)
        self.runs[run_id].tags[names.TAG_COMMAND] = command.model_dump_json()

    def order(self, run_id: str, orders: SearchOrders) -> None:
        self._reach()
        self.orders.append(orders)
        self.runs[run_id].tags[names.TAG_SEARCH] = orders.model_dump_json()

    def make_trial_run(self, job_id: str, number: int) -> tuple[str, str]:
        """As a search's driver does: its id and artifact folder."""
        run_id, folder = self.make_run(f"{job_id}-trial-{number}", f"trial {number}", {names.TAG_TRIAL_OF: job_id})
        return run_id, folder

    def trial_runs(self, job_id: str) -> list[TrialRun]:
        self._reach()
        found = [(run_id, run) for run_id, run in self.runs.items() if run.tags.get(names.TAG_TRIAL_OF) == job_id]
        return [TrialRun(run_id, run.artifact_uri) for run_id, run in found]

    def fence(self, run_id: str, attempt: int) -> None:
        self._reach()
        self.runs[run_id].tags |= {names.TAG_ATTEMPT: str(attempt), names.TAG_NOTICE: ""}

    def end_run(self, run_id: str, status: str) -> None:
        self._reach()
        if run_id in self.runs:
            self.runs[run_id].status = status

    def open_runs(self) -> list[OpenRun]:
        self._reach()
        found = [(run_id, run) for run_id, run in self.runs.items() if run.status in {"RUNNING", "SCHEDULED"}]
        return [_open(run_id, run) for run_id, run in found]

    def delete_run(self, run_id: str) -> None:
        self._reach()
        self.runs.pop(run_id, None)

    def delete_version(self, name: str, number: int, source: str) -> None:
        self._reach()
        gone = [each for each in self.registered if (each.name, each.version, each.source) == (name, number, source)]
        self.registered = [found for found in self.registered if found not in gone]
        if gone:
            aliases = self.named.get(name, {})
            self.named[name] = {alias: to for alias, to in aliases.items() if to != number}

    def histories(self, run_ids: Sequence[str], key: str) -> dict[str, list[MetricPoint]]:
        self._reach()
        return {run_id: self.points.get(key, []) for run_id in run_ids}

    def versions_of_job(self, name: str, job_id: str) -> list[Version]:
        return [version for version in self.versions_of(name) if version.tags.get(names.TAG_JOB) == job_id]

    def versions_of(self, name: str) -> list[Version]:
        return [version for version in self.all_versions() if version.name == name]

    def all_versions(self) -> list[Version]:
        self._reach()
        return list(self.registered)

    def all_models(self) -> dict[str, Model]:
        self._reach()
        names = {*self.named, *self.texts, *(version.name for version in self.registered)}
        return {name: replace(self.texts.get(name, Model()), aliases=dict(self.named.get(name, {}))) for name in names}

    def all_aliases(self) -> dict[str, dict[str, int]]:
        """What `all_models` says of aliases, for backbones that have some."""
        return {name: dict(model.aliases) for name, model in self.all_models().items() if name in self.named}

    def describe(self, name: str, number: int | None, description: str | None, copies: Mapping[str, str]) -> None:
        self._reach()
        self.described.append((name, number))
        found = next((each for each in self.registered if (each.name, each.version) == (name, number)), None)
        if number is not None and found is None:
            raise MlflowRefused(f"Model Version (name={name}, version={number}) not found")
        if refused := [tag for tag in copies if posixpath.normpath(tag) != tag]:
            raise MlflowRefused(f"{refused[0]} must not resolve to other names")
        before: Version | Model = found or self.texts.get(name, Model())
        tags = {key: value for key, value in before.tags.items() if not key.startswith(COPIES)} | copies
        after = replace(before, tags=tags, description=before.description if description is None else description)
        if isinstance(after, Version):
            self.registered[self.registered.index(before)] = after
        else:
            self.texts[name] = after

    def set_alias(self, name: str, alias: str, number: int) -> None:
        self._reach()
        self.named.setdefault(name, {})[alias] = number

    def delete_alias(self, name: str, alias: str) -> None:
        self._reach()
        self.named.get(name, {}).pop(alias, None)

    def folders(self, versions: Sequence[Version]) -> dict[str, str]:
        self._reach()
        return {version.source: self.models[version.source] for version in versions if version.source in self.models}

    def register(
        self, name: str, number: int, job_id: str | None, folder: Path | str, tags: dict[str, str] | None = None
    ) -> Version:
        source = f"models:/m-{name}-{number}-{len(self.models)}"
        tags = (tags or {}) | ({names.TAG_JOB: job_id} if job_id else {})
        version = Version(name, number, datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=number - 1), tags, source)
        self.registered.append(version)
        self.models[source] = str(folder)
        return version


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an error, which is always of the same form."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body = answer.json()
    assert set(body) == {"type", "title", "status", "code", "detail", "problems", "request_id"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def post(api: TestClient, body: str | bytes, path: str = "/v1/jobs", **headers: str) -> httpx.Response:
    return api.post(path, content=body, headers={"Content-Type": "application/json"} | headers)
