"""Why a fit failed: from Ray's errors, from what Ray knows of dead workers and nodes, and from the nodes' kernels."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
from pydantic import BaseModel
from ray.core.generated.common_pb2 import NodeDeathInfo  # type: ignore[attr-defined]  # made of a protocol buffer
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors
from ray.util.state.common import ActorState
from ray.util.state.exception import RayStateApiException

from trainer.errors import StorageError, TrainingError
from trainer.logger import logger
from trainer.protocol.names import worker_folder
from trainer.protocol.outcome import Reason
from trainer.storage import REMOTE_ERRORS, Store, storage_error

NODE_SECONDS = 60.0
KERNEL_SECONDS = 20.0
MOST_WORKERS = 10_000

_LESS_MEMORY: Final = "lower optimization.micro_batch_size, or use nodes with more memory"
_AGAIN: Final = "nothing to do: it goes on from the last checkpoint where there is room"
_DRAINED: Final = frozenset({NodeDeathInfo.EXPECTED_TERMINATION, NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED,
                             NodeDeathInfo.AUTOSCALER_DRAIN_IDLE})  # fmt: skip
"""Ways in which a node is taken away: none of them is an accident."""

Finding = tuple[Reason, str]
"""A typed reason and a sentence: what happened, where, and what to do."""


class WorkerRecord(BaseModel):
    """Where a worker runs; written at its start into a file of the attempt's own."""

    rank: int
    node: str
    """Ray's id of it."""
    pid: int
    oom_kills: int
    """What `oom_kills` said then."""


# --- from Ray's errors ------------------------------------------------------------------------------------------------


def explain(error: TrainingFailedError, place: str) -> Finding:
    """The typed reason behind a failed fit, and a sentence. A cause of ours on any rank counts before Ray's own.

    ``place`` is where Ray Train keeps checkpoints.
    """
    if isinstance(error, ControllerError):
        # It uses no files but its own records, which lie beside the checkpoints.
        found = _causes(error.controller_failure)
        causes = [("the controller", storage_error(place, c) if isinstance(c, OSError) else c) for c in found]
    else:
        failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        causes = [(f"worker {rank}", cause) for rank, failure in failures.items() for cause in _causes(failure)]
    for _, cause in causes:
        if isinstance(cause, TrainingError):
            return cause.reason, str(cause)
    for who, cause in [*causes, ("a worker", error)]:
        if _taken_away(cause):
            return Reason.PREEMPTED, f"the node of {who} was drained or taken away: {_AGAIN}"
    for who, cause in causes:
        if known := _known(who, cause, place):
            return known
    if not causes:
        return Reason.WORKER_FAILED, f"{_first_line(error)}. The job's logs say more"
    who, cause = causes[0]
    if isinstance(cause, RayActorError):
        return Reason.WORKER_FAILED, f"{who} {how_it_died(str(cause))}. Its last lines are in the job's logs"
    return Reason.WORKER_FAILED, f"{who}: {type(cause).__name__}: {_first_line(cause)}. The job's logs say where"


def reason_of(error: BaseException, who: str, place: str) -> Finding:
    """The typed reason behind an error of this very process, and a sentence."""
    if isinstance(error, TrainingError):
        return error.reason, str(error)
    return _known(who, error, place) or (Reason.WORKER_FAILED, f"{who}: {type(error).__name__}: {_first_line(error)}")


def _taken_away(cause: BaseException) -> bool:
    if isinstance(cause, NodeDiedError):
        return "drain" in str(cause).lower() or "preempt" in str(cause).lower()
    return isinstance(cause, PreemptionError) or (isinstance(cause, RayActorError) and cause.preempted)


def _known(who: str, cause: BaseException, place: str) -> Finding | None:
    """The typed reason behind one error, and a sentence; None for an error of no kind of its own."""
    # torch raises its own types for a full GPU; the driver knows them by name, not by import.
    if isinstance(cause, (MemoryError, OutOfMemoryError)) or type(cause).__name__ == "OutOfMemoryError":
        return Reason.OUT_OF_MEMORY, f"{who} ran out of memory: {_LESS_MEMORY}. {_first_line(cause)}"
    if isinstance(cause, RayActorError) and "NODE_OUT_OF_MEMORY" in str(cause):
        return Reason.OUT_OF_MEMORY, f"Ray ended {who}, its node ran out of memory: {_LESS_MEMORY}"
    if isinstance(cause, NodeDiedError):
        return Reason.NODE_LOST, f"the node of {who} was lost, look after that machine: {_first_line(cause)}"
    if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
        return Reason.STORAGE_ERROR, f"{who} could not write: {cause}. Make room there, or see to that disk"
    if isinstance(cause, REMOTE_ERRORS):
        return Reason.STORAGE_ERROR, str(storage_error(place, cause))
    return None


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """An exception and what it wraps, innermost first. Ray keeps what it wraps under names of its own."""
    seen: list[BaseException] = []
    pending: list[object] = [failure]
    while pending:
        cause = pending.pop()
        if isinstance(cause, BaseException) and cause not in seen:
            seen.append(cause)
            pending += [cause.__cause__, getattr(cause, "cause", None)]
            pending += [getattr(cause, name, None) for name in ("_base_exc", "health_check_failure")]
    yield from reversed(seen)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def how_it_died(text: str) -> str:
    """What Ray's account of a dead process says of its end: a signal, an exit code, or nothing."""
    if found := re.search(r"receives a (SIG[A-Z0-9]+)", text):
        return f"was ended by {found[1]}"
    if found := re.search(r"exit code (-?\d+)", text):
        return f"ended with exit code {found[1]}"
    return "died without a word: it was killed (SIGKILL) or crashed"


# --- from dead workers and nodes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Death:
    """A worker that neither Ray nor itself has ended."""

    node: str
    """Ray's id of it."""
    address: str
    pid: int
    text: str
    """Ray's account of it."""


def look_further(seen: str, store: Store, attempt: int) -> Finding | None:
    """The reason behind a failure whose errors tell none; ``seen`` is what they say.

    The workers left over fail too, and often first: what they say is only that another one is gone.
    """
    try:
        workers = _workers()
    except RayStateApiException as error:
        logger.warning("Ray does not say where the workers ran: %s", error)
        return None
    if node := _lost_node({worker.node_id for worker in workers}):
        where = node["NodeManagerAddress"]
        if node.get("DeathReason") in _DRAINED:
            return Reason.PREEMPTED, f"the node at {where} was drained or taken away: {_AGAIN}"
        return Reason.NODE_LOST, (
            f"the node at {where} was lost with its workers, look after that machine; the others saw: {seen}"
        )
    for death in filter(None, map(death_of, workers)):
        who = f"the worker process {death.pid} on the node at {death.address}"
        if _killed_for_memory(death, store, attempt):
            return Reason.OUT_OF_MEMORY, f"the kernel's OOM killer ended {who}: {_LESS_MEMORY}"
        end = how_it_died(death.text)
        others = "" if end in seen else f"; the others saw: {seen}"
        return Reason.WORKER_FAILED, f"{who} {end}. Its last lines are in the job's logs{others}"
    return None


def _workers() -> list[ActorState]:
    """This driver's workers, dead ones too."""
    mine: list[tuple[str, str, str | bool | int | float]] = [
        ("job_id", "=", ray.get_runtime_context().get_job_id()),
        ("class_name", "=", "RayTrainWorker"),
    ]
    return list_actors(filters=mine, limit=MOST_WORKERS, detail=True)


def death_of(worker: ActorState) -> Death | None:
    """How a worker died of itself; None where it lives or was ended."""
    context = (worker.death_cause or {}).get("actor_died_error_context", {})
    text = str(context.get("error_message", ""))
    if context.get("reason") != "WORKER_DIED" or "SYSTEM_ERROR" not in text:
        return None
    return Death(str(worker.node_id), str(context["node_ip_address"]), int(context["pid"]), text)


def _lost_node(used: set[str | None]) -> dict[str, Any] | None:
    """One of the nodes ``used`` that is gone.

    The workers left over fail at once, and Ray takes some fifteen seconds to declare a node dead: so its raylet is
    asked. A lost node is then waited for until Ray agrees, or the next attempt would be placed on it.
    """
    end = time.monotonic() + NODE_SECONDS
    while True:
        nodes = [node for node in ray.nodes() if node["NodeID"] in used]
        gone = next((node for node in nodes if not node["Alive"] or not _answers(node)), None)
        if gone is None or not gone["Alive"] or time.monotonic() > end:
            return gone
        time.sleep(0.5)


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node's raylet takes connections."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=3.0):
            return True
    except OSError:
        return False


# --- from the kernel --------------------------------------------------------------------------------------------------


def record_worker(store: Store, attempt: int, rank: int) -> None:
    """Note where this worker runs; raises `StorageError`."""
    node = ray.get_runtime_context().get_node_id()
    record = WorkerRecord(rank=rank, node=node, pid=os.getpid(), oom_kills=oom_kills())
    store.write(f"{worker_folder(attempt)}/rank-{rank}.json", record.model_dump_json(indent=1).encode())


def oom_kills(root: Path = Path("/")) -> int:
    """Processes the kernel has killed for lack of memory: of this one's control group if it counts them, or else of
    the whole machine. The dead process leaves no other trace that needs no rights to read.
    """
    group = re.search(r"^0::/?(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    files = [root / "sys/fs/cgroup" / group[1] / "memory.events"] if group else []
    for file in (*files, root / "proc/vmstat"):
        if found := re.search(r"^oom_kill (\d+)$", _text(file), re.MULTILINE):
            return int(found[1])
    return 0


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _killed_for_memory(death: Death, store: Store, attempt: int) -> bool:
    """Whether the kernel has killed something where that worker ran since it started; False where nobody can tell."""
    folder = worker_folder(attempt)
    try:
        records = [WorkerRecord.model_validate_json(store.read(f"{folder}/{name}")) for name in store.names(folder)]
        now = _oom_kills_on(death.node)
    except (StorageError, RayError) as error:
        logger.warning("Whether the kernel killed a worker for lack of memory is not known: %s", error)
        return False
    return any((r.node, r.pid) == (death.node, death.pid) and now > r.oom_kills for r in records)


def _oom_kills_on(node: str) -> int:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    count = ray.remote(oom_kills).options(num_cpus=0, max_retries=0, scheduling_strategy=place)
    return int(ray.get(count.remote(), timeout=KERNEL_SECONDS))
