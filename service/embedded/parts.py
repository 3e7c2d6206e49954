"""How each part of an embedded stack is started, and how it shows that it works."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

import httpx

from service.client.server import HOST
from service.embedded import processes
from service.embedded.folder import (
    MLFLOW_APP,
    MLFLOW_PASSWORD_VARIABLE,
    MLFLOW_USER,
    Folder,
    PartName,
    Ports,
    StackError,
    StackState,
)
from trainer.protocol.names import STUDY_VARIABLE

DEFAULT_PORT: Final = 8000
DATABASE_VARIABLE: Final = "RCMAE_STACK_DATABASE_URL"
"""Passes a new database's URL to the supervisor: a command line, with its password, could be read by everybody."""
LEASE_S: Final = "3"
"""A controller that is killed here has no rival, so the next one need not wait long."""
S3_PROFILE_VARIABLE: Final = "RCMAE_S3_PROFILE"
"""Names the profile with S3's endpoint and credentials, unless they are in the environment."""


def prepare(state: StackState, port: int | None) -> StackState:
    """The state with ports and a temporary folder: the previous ones wherever they are still available.

    ``port`` is the API's if the user named one; raises `StackError` if it is taken.
    """
    running = {name for name, part in state.parts.items() if part.alive}
    previous = state.ports.model_dump() if state.ports else {}
    ports = dict(zip(Ports.model_fields, processes.free_ports(len(Ports.model_fields)), strict=True))
    for name, number in previous.items():
        if name.partition("_")[0] in running or (name != "api" and processes.port_is_free(number)):
            ports[name] = number
    if "api" not in running:
        ports["api"] = _api_port(port, previous.get("api", DEFAULT_PORT), ports["api"])
    elif port not in {None, ports["api"]}:
        raise StackError(f"the API is up on port {ports['api']}: run `rcmae down` before giving it another port")
    temp_dir = state.temp_dir
    if temp_dir is None or not _is_private(temp_dir):
        # Not under TMPDIR: Ray refuses a path over 45 characters.
        temp_dir = Path(tempfile.mkdtemp(prefix="rcmae-", dir="/tmp"))
    return state.model_copy(update={"ports": Ports(**ports), "temp_dir": temp_dir})


def _is_private(folder: Path) -> bool:
    """Whether a folder is there and another user can neither have made it nor look into it: /tmp is everybody's."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _api_port(requested: int | None, preferred: int, spare: int) -> int:
    if requested is None:
        return next((port for port in (preferred, DEFAULT_PORT) if processes.port_is_free(port)), spare)
    if not processes.port_is_free(requested):
        raise StackError(
            f"port {requested} of {HOST} is in use by another program: "
            "give another with --port, or leave --port out and a free one is chosen"
        )
    return requested


def move_api(state: StackState) -> StackState:
    """The state with another port for the API if its own has been taken: only clients know it, and they look it up.

    Only while the API does not run. Two stacks that start at once may both have been given the usual port.
    """
    ports = ports_of(state)
    if processes.port_is_free(ports.api):
        return state
    return state.model_copy(update={"ports": ports.model_copy(update={"api": processes.free_ports(1)[0]})})


def command(part: PartName, folder: Folder, state: StackState) -> list[str]:
    """A part's command line, once `prepare` has chosen the ports."""
    ports, python = ports_of(state), sys.executable
    if part == "api":
        app = ["--factory", "service.app:create_app", "--host", HOST, "--port", str(ports.api)]
        return [python, "-m", "uvicorn", *app, "--timeout-graceful-shutdown", "5", "--no-access-log"]
    if part == "mlflow":
        return [
            *(python, "-m", "mlflow", "server", "--host", HOST, "--port", str(ports.mlflow), "--workers", "1"),
            *("--backend-store-uri", folder.mlflow_url),
            *("--no-serve-artifacts", "--default-artifact-root", folder.artifact_root),
            *("--allowed-hosts", f"{HOST}:{ports.mlflow},localhost:{ports.mlflow}"),
            *("--app-name", MLFLOW_APP, "--uvicorn-opts=--no-access-log"),
        ]
    return [
        *(python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={HOST}", f"--port={ports.ray_gcs}", f"--temp-dir={state.temp_dir}/ray"),
        *("--include-dashboard=true", f"--dashboard-host={HOST}", f"--dashboard-port={ports.ray_dashboard}"),
        f"--dashboard-agent-listen-port={ports.ray_agent}",
        f"--ray-client-server-port={ports.ray_client}",
        # Any free port: Ray's fixed range would collide with the ports above, and with those of another stack.
        *("--min-worker-port=0", "--max-worker-port=0"),
        # Nothing goes through the object store, the cluster has one node, and attempts write their own logs.
        *(f"--object-store-memory={256 * 2**20}", "--no-monitor", "--include-log-monitor=false"),
    ]


def environment(part: PartName, folder: Folder, state: StackState) -> dict[str, str]:
    """A part's environment variables, which take precedence over the user's."""
    ports = ports_of(state)
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    common = {
        processes.STACK_VARIABLE: state.id,
        processes.PART_VARIABLE: part,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), HOST, "localhost"])),
    }
    return inherited | common | _own_variables(part, folder, ports)


_NOT_INHERITED: Final = {
    DATABASE_VARIABLE,
    STUDY_VARIABLE,
    *("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"),
}
"""Variables that would point a part at another cluster, tracking server or database."""


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
            "RCMAE_PUBLIC_URL": os.environ.get("RCMAE_PUBLIC_URL") or f"http://{HOST}:{ports.api}",
            "RCMAE_SIGNING_KEY_FILE": str(folder.signing_key),
        } | _mlflow_login(folder)
    if part == "mlflow":
        # The server's own job queue would take nine more processes, for features that are not used here.
        return _profile() | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            MLFLOW_PASSWORD_VARIABLE: str(folder.mlflow_password),
        }
    return _mlflow_login(folder) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.ray_token),
        # Despite its name, this keeps Ray on the loopback interface; otherwise it takes the host's address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # A report to Ray Train blocks for up to the interval at which its controller polls.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "DASHBOARD_METRIC_PORT": str(ports.ray_metrics),
        STUDY_VARIABLE: folder.study_url,  # the drivers of searches write there
        # Copies of datasets stay in the state folder like everything else, unless several stacks share them.
        "RCMAE_CACHE_DIR": os.environ.get("RCMAE_CACHE_DIR") or str(folder.path / "cache"),
    }


def _mlflow_login(folder: Folder) -> dict[str, str]:
    """What MLflow's client reads. Ray shows nobody the environment of its processes, unlike that of a job."""
    password = folder.mlflow_password.read_text().strip()
    return {"MLFLOW_TRACKING_USERNAME": MLFLOW_USER, "MLFLOW_TRACKING_PASSWORD": password}


def _profile() -> dict[str, str]:
    """Lets MLflow's own pages read the artifacts; the service passes the profile to attempts itself."""
    profile = os.environ.get(S3_PROFILE_VARIABLE)
    return {"AWS_PROFILE": profile} if profile else {}


def ports_of(state: StackState) -> Ports:
    if state.ports is None:
        raise StackError("the stack has never been started here: run `rcmae up`")
    return state.ports


LIVENESS: Final[dict[PartName, str]] = {"api": "/healthz", "mlflow": "/health", "ray": "/api/gcs_healthz"}
"""Where a part says that it answers, whatever may be wrong with the others."""
ANSWER_S: Final = 5.0
"""How long a part may take to answer; readiness takes three seconds if something that it checks hangs."""


def port_of(part: PartName, state: StackState) -> int:
    """Where a part answers requests."""
    ports = ports_of(state)
    return {"api": ports.api, "mlflow": ports.mlflow, "ray": ports.ray_dashboard}[part]


def answers(part: PartName, state: StackState) -> bool:
    """Whether something answers as the part should, at the part's address."""
    response = _get(f"http://{HOST}:{port_of(part, state)}{LIVENESS[part]}")
    return response is not None and response.status_code == httpx.codes.OK


def works(part: PartName, state: StackState) -> bool:
    """Whether a part answers, and it is not another program that answers on its port."""
    leader = state.parts.get(part)
    return leader is not None and answers(part, state) and processes.listens(leader, port_of(part, state))


def reasons_not_ready(state: StackState) -> list[str]:
    """Why no job can run, in the words of the API's `/readyz`; empty if jobs can run."""
    response = _get(f"{state.url}/readyz")
    if response is None:
        return ["api: no answer"]
    if response.status_code == httpx.codes.OK:
        return []
    try:
        return [str(reason) for reason in response.json()["reasons"]]
    except (ValueError, KeyError, TypeError):  # it fails before it can say why
        return [f"api: {response.status_code}: {response.text[:200]}"]


def _get(url: str) -> httpx.Response | None:
    """The answer of this machine's own address, of which no proxy of the user's environment is asked."""
    try:
        return httpx.get(url, timeout=ANSWER_S, trust_env=False)
    except httpx.HTTPError:
        return None
