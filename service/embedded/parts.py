"""What an embedded stack consists of: its state folder, and how each part is started and shows that it works.

One folder holds everything: databases, artifacts, logs, tokens, and `stack.json` with what runs where.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import httpx
from pydantic import BaseModel, Field

from service.client.errors import ClientError
from service.client.server import HOST, STATE_FILE, TOKEN_FILE, Home
from service.embedded import processes
from service.embedded.processes import Identity
from trainer.protocol.names import STUDY_VARIABLE

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

PartName = Literal["ray", "mlflow", "api"]
PARTS: Final[tuple[PartName, ...]] = get_args(PartName)

DEFAULT_PORT: Final = 8000
_LOCK: Final = "stack.lock"
_MLFLOW_DATABASE: Final = "mlflow.db"
_DATABASE: Final = "rcmae.db"
_STUDIES: Final = "studies.db"
DATABASE_VARIABLE: Final = "RCMAE_STACK_DATABASE_URL"
"""Hands a new database's URL to the supervisor: a command line, with its password, could be read by everybody."""
LEASE_S: Final = "3"
"""A controller that is killed here has no other to fear, and the next one need not wait long."""
S3_PROFILE_VARIABLE: Final = "RCMAE_S3_PROFILE"
"""Names the profile with S3's endpoint and credentials, where they are not in the environment."""
FAILED_FILE: Final = "failed"
"""Written by a supervisor that gave up: why."""


class StackError(ClientError):
    """The stack cannot do what was asked; the text says why and what to do."""


class Ports(BaseModel):
    """Where the parts listen on 127.0.0.1; kept when a part restarts."""

    api: int
    mlflow: int
    ray_gcs: int
    ray_dashboard: int
    ray_client: int
    ray_agent: int
    ray_metrics: int


class StackState(BaseModel):
    """What runs where: the file `stack.json`."""

    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    """Carried by every process of the stack in its environment."""
    home: Home | None = None
    """The folder that this was written in; None before it is written, and in files of earlier releases."""
    ports: Ports | None = None
    temp_dir: Path | None = None
    """Private folder for Ray, short because Unix sockets lie in it; removed when the stack goes down."""
    supervisor: Identity | None = None
    parts: dict[PartName, Identity] = {}
    restarts: dict[PartName, int] = {}
    artifact_root: str | None = None
    """Where runs' artifacts lie, if not in the state folder."""
    database_url: str | None = Field(None, repr=False)
    """Where the jobs are kept, if not in SQLite in the state folder; with its password."""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.ports.api}" if self.ports else ""


@dataclass(frozen=True)
class Folder:
    """Files of a stack's state folder."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Folder:
        """The folder at a path; raises `StackError` for a path that cannot stand in a database's URL."""
        path = path.expanduser().absolute()
        if set("?#%") & set(str(path)):
            raise StackError(f"{path}: the state folder's path must not hold ? # or %: choose another with --state-dir")
        return cls(path)

    def make(self) -> None:
        """Make the folder, readable by its owner alone, and the cluster's token."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        for token in (self.token, self.ray_token):
            if not token.exists():
                token.touch(0o600)
                token.write_text(secrets.token_urlsafe(32))

    @property
    def token(self) -> Path:
        """The admin's token for the API."""
        return self.path / TOKEN_FILE

    @property
    def ray_token(self) -> Path:
        return self.path / "ray-token"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def artifact_root(self) -> str:
        """Where runs' artifacts lie: a path or an ``s3://`` URI."""
        return self.load().artifact_root or str(self.path / "artifacts")

    @property
    def database_url(self) -> str:
        """Where the jobs are kept."""
        return self.load().database_url or f"sqlite:///{self.path}/{_DATABASE}"

    @property
    def study_url(self) -> str:
        """Where the trials of searches are kept."""
        return f"sqlite:///{self.path}/{_STUDIES}"

    @property
    def has_jobs(self) -> bool:
        """Whether jobs are kept in this folder."""
        return (self.path / _DATABASE).exists()

    @property
    def has_runs(self) -> bool:
        """Whether MLflow keeps its records here already, with the artifacts' place in them."""
        return (self.path / _MLFLOW_DATABASE).exists()

    @property
    def used(self) -> bool:
        """Whether a stack was ever started here."""
        return (self.path / _LOCK).exists()

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def load(self) -> StackState:
        """The recorded state; an empty one where there is none.

        In a copy of another stack's folder, only the settings are the copy's too: the processes, the temporary folder
        and the id that finds them are the original's, and nothing done here may touch them.
        """
        try:
            state = StackState.model_validate_json((self.path / STATE_FILE).read_text())
        except FileNotFoundError:
            return StackState()
        if state.home is None or state.home.is_at(self.path):
            return state
        return StackState(artifact_root=state.artifact_root, database_url=state.database_url)

    def save(self, state: StackState) -> None:
        """Replace the recorded state; a reader sees the old one or the new one."""
        fresh = self.path / f"{STATE_FILE}.new"
        fresh.touch(0o600)
        fresh.write_text(state.model_copy(update={"home": Home.of(self.path)}).model_dump_json(indent=2))
        fresh.replace(self.path / STATE_FILE)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the right to change what runs, which ends with the process; false where another process has it."""
        with (self.path / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def choose_artifact_root(folder: Folder, wanted: str | None) -> str | None:
    """The artifact root to record: the one wanted, or the one of before; None is the state folder's own.

    Raises `StackError` for one that cannot be used, and for another than the one that MLflow's records name.
    """
    recorded = folder.load().artifact_root
    if wanted is None:
        return recorded
    place, slashes, rest = wanted.partition("://")
    if not slashes or place == "file":
        root = str(Path(rest if slashes else wanted).expanduser().absolute())
        if set("?#%") & set(root):
            raise StackError(f"{root}: an artifact root's path must not hold ? # or %: choose another")
    elif place != "s3" or not rest.partition("/")[0]:
        raise StackError(f"{wanted}: an artifact root is a local path or s3://bucket/prefix")
    elif "@" in rest.partition("/")[0]:
        raise StackError("an artifact root holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    else:
        root = wanted.rstrip("/")
    if root != folder.artifact_root and (folder.has_runs or folder.load().parts):
        raise StackError(
            f"the stack in {folder.path} keeps its artifacts in {folder.artifact_root}, where its runs and backbones "
            f"are recorded to lie: leave --artifact-root out, or start a new stack with another --state-dir"
        )
    return root


def choose_database_url(folder: Folder, wanted: str | None) -> str | None:
    """The database to record: the one wanted, or the one of before; None is SQLite in the state folder.

    Raises `StackError` for one that cannot be used, and for another than the one that holds the jobs; only the password
    and the parameters of the connection may change.
    """
    recorded = folder.load().database_url
    if wanted is None:
        return recorded
    # Imported here: `rcmae down` and `rcmae status` of a stack on SQLite work without SQLAlchemy.
    from service.db.engines import DatabaseUrlError, parse_database_url  # noqa: PLC0415

    try:
        url = parse_database_url(wanted)
    except DatabaseUrlError as error:
        raise StackError(str(error).replace("RCMAE_DATABASE_URL", "--database-url")) from error
    if url.get_backend_name() == "sqlite":
        raise StackError("--database-url is for Postgres: without it the jobs are kept in SQLite in the state folder")
    moved = recorded is None or _place(parse_database_url(recorded)) != _place(url)
    if moved and (folder.has_jobs or (recorded is not None and (folder.has_runs or folder.load().parts))):
        raise StackError(
            f"the stack in {folder.path} keeps its jobs in {database_shown(folder)}: leave --database-url out, or "
            "start a new stack with another --state-dir"
        )
    return wanted


def _place(url: URL) -> URL:
    """What of a database's URL says which database it is."""
    return url.set(password="", query={})  # None would leave it


def database_shown(folder: Folder) -> str:
    """Where the jobs are kept, without the password."""
    recorded = folder.load().database_url
    if recorded is None:
        return folder.database_url
    from service.db.engines import masked_url, parse_database_url  # noqa: PLC0415

    return masked_url(parse_database_url(recorded))


def prepare(state: StackState, port: int | None) -> StackState:
    """The state with ports and a temporary folder, those of before wherever they can still be had.

    ``port`` is the API's if the user named one; raises `StackError` when it cannot be had.
    """
    held = {name for name, part in state.parts.items() if part.alive}
    old = state.ports.model_dump() if state.ports else {}
    ports = dict(zip(Ports.model_fields, processes.free_ports(len(Ports.model_fields)), strict=True))
    for name, number in old.items():
        if name.partition("_")[0] in held or (name != "api" and processes.port_is_free(number)):
            ports[name] = number
    if "api" not in held:
        ports["api"] = _api_port(port, old.get("api", DEFAULT_PORT), ports["api"])
    elif port not in {None, ports["api"]}:
        raise StackError(f"the API is up on port {ports['api']}: run `rcmae down` before giving it another port")
    temp_dir = state.temp_dir
    if temp_dir is None or not temp_dir.is_dir():
        # Not under TMPDIR: Ray refuses a path over 45 characters.
        temp_dir = Path(tempfile.mkdtemp(prefix="rcmae-", dir="/tmp"))
    return state.model_copy(update={"ports": Ports(**ports), "temp_dir": temp_dir})


def _api_port(wanted: int | None, usual: int, spare: int) -> int:
    if wanted is None:
        return next((port for port in (usual, DEFAULT_PORT) if processes.port_is_free(port)), spare)
    if not processes.port_is_free(wanted):
        raise StackError(
            f"port {wanted} of {HOST} is in use by another program: "
            "give another with --port, or leave --port out and a free one is chosen"
        )
    return wanted


def move_api(state: StackState) -> StackState:
    """The state with another port for the API where its own has been taken: only clients know it, and they look it up.

    For an API that does not run; two stacks that start at once may both have been given the usual port.
    """
    ports = ports_of(state)
    if processes.port_is_free(ports.api):
        return state
    return state.model_copy(update={"ports": ports.model_copy(update={"api": processes.free_ports(1)[0]})})


def command(part: PartName, folder: Folder, state: StackState) -> list[str]:
    """The command line of a part of a prepared state."""
    ports, python = ports_of(state), sys.executable
    if part == "api":
        app = ["--factory", "service.app:create_app", "--host", HOST, "--port", str(ports.api)]
        return [python, "-m", "uvicorn", *app, "--timeout-graceful-shutdown", "5", "--no-access-log"]
    if part == "mlflow":
        return [
            *(python, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports.mlflow), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder.path}/{_MLFLOW_DATABASE}"),
            *("--no-serve-artifacts", "--default-artifact-root", folder.artifact_root),
            *("--allowed-hosts", f"{HOST}:{ports.mlflow},localhost:{ports.mlflow}"),
            "--uvicorn-opts=--no-access-log",
        ]
    return [
        *(python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={HOST}", f"--port={ports.ray_gcs}", f"--temp-dir={state.temp_dir}/ray"),
        *("--include-dashboard=true", f"--dashboard-host={HOST}", f"--dashboard-port={ports.ray_dashboard}"),
        f"--dashboard-agent-listen-port={ports.ray_agent}",
        f"--ray-client-server-port={ports.ray_client}",
        # Whatever is free: Ray's fixed range would collide with the ports above, and with those of another stack.
        *("--min-worker-port=0", "--max-worker-port=0"),
        # Nothing goes through the object store, the cluster has one node, and attempts write their own logs.
        *(f"--object-store-memory={256 * 2**20}", "--no-monitor", "--include-log-monitor=false"),
    ]


def environment(part: PartName, folder: Folder, state: StackState) -> dict[str, str]:
    """The environment variables of a part, over those of the user."""
    ports = ports_of(state)
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    ours = {
        processes.STACK_VARIABLE: state.id,
        processes.PART_VARIABLE: part,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), HOST, "localhost"])),
    }
    return inherited | ours | _own_variables(part, folder, ports)


_NOT_INHERITED: Final = {
    DATABASE_VARIABLE,
    STUDY_VARIABLE,
    *("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
}
"""Variables that would lead a part to another cluster, tracking server or database."""


def _own_variables(part: PartName, folder: Folder, ports: Ports) -> dict[str, str]:
    if part == "api":
        return {
            "RCMAE_DATABASE_URL": folder.database_url,
            STUDY_VARIABLE: folder.study_url,
            "RCMAE_LEASE_S": os.environ.get("RCMAE_LEASE_S") or LEASE_S,
            "RCMAE_ARTIFACT_ROOT": folder.artifact_root,
            "RCMAE_MLFLOW_URL": f"http://{HOST}:{ports.mlflow}",
            "RCMAE_RAY_URL": f"http://{HOST}:{ports.ray_dashboard}",
            "RCMAE_RAY_TOKEN_FILE": str(folder.ray_token),
            "RCMAE_ADMIN_TOKEN_FILE": str(folder.token),
        }
    if part == "mlflow":
        # The server's own job queue would be nine more processes, for features that are not used here.
        return _profile() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.ray_token),
        # Despite its name this is what keeps Ray on the loopback interface; otherwise it takes the host's address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # A report of Ray Train costs up to the interval at which its controller looks.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "DASHBOARD_METRIC_PORT": str(ports.ray_metrics),
        STUDY_VARIABLE: folder.study_url,  # the drivers of searches write there
        # Copies of datasets: in the state folder like all else, unless stacks are to share them.
        "RCMAE_CACHE_DIR": os.environ.get("RCMAE_CACHE_DIR") or str(folder.path / "cache"),
    }


def _profile() -> dict[str, str]:
    """What shows MLflow's own pages the artifacts; attempts are given the profile by the service."""
    profile = os.environ.get(S3_PROFILE_VARIABLE)
    return {"AWS_PROFILE": profile} if profile else {}


def ports_of(state: StackState) -> Ports:
    if state.ports is None:
        raise StackError("the stack has never been started here: run `rcmae up`")
    return state.ports


def works(part: PartName, folder: Folder, state: StackState) -> bool:
    """Whether a part answers as it should, and not another program in its place."""
    ports, leader = ports_of(state), state.parts.get(part)
    port, path = {
        "api": (ports.api, "/readyz"),
        "mlflow": (ports.mlflow, "/health"),
        "ray": (ports.ray_dashboard, "/api/jobs/"),
    }[part]
    url = f"http://{HOST}:{port}{path}"
    headers = {"Authorization": f"Bearer {folder.ray_token.read_text()}"} if part == "ray" else {}
    try:
        # A proxy of the user's environment has no business with this machine's own addresses.
        # Readiness takes three seconds where something that it asks hangs.
        answer = httpx.get(url, headers=headers, timeout=5.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK and leader is not None and processes.listens(leader, port)
