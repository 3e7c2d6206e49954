"""Why workers failed: evidence from Ray's errors, from its records of dead workers and nodes, and from the kernels."""

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

from trainer.errors import StorageError, reason_of
from trainer.logger import logger
from trainer.protocol.names import worker_folder
from trainer.protocol.outcome import Reason
from trainer.storage import REMOTE_ERRORS, Store, storage_error

NODE_SECONDS = 60.0
KERNEL_SECONDS = 20.0
MOST_WORKERS = 10_000

_PREEMPTION_ADVICE: Final = "nothing to do: the job continues by itself when a node has room"
_PREEMPTED: Final = frozenset({NodeDeathInfo.EXPECTED_TERMINATION, NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED,
                             NodeDeathInfo.AUTOSCALER_DRAIN_IDLE})  # fmt: skip
"""Reasons of a node's death that are no accident."""

Diagnosis = tuple[Reason, str]
"""A typed reason and a sentence: what happened, where, and what to do."""


class WorkerRecord(BaseModel):
    """Where a worker runs; each worker writes its own at its start, into the attempt's folder."""

    rank: int
    node: str
    """Ray's id of the node."""
    pid: int
    oom_kills: int
    """The count that `oom_kills` returned at the start."""


# --- from Ray's errors ------------------------------------------------------------------------------------------------


def explain(error: TrainingFailedError, storage: str) -> Diagnosis:
    """The typed reason behind failed workers, and a sentence. Our own errors on any rank take precedence over Ray's.

    ``storage`` is the folder or URI where Ray Train keeps its records.
    """
    if isinstance(error, ControllerError):
        # The controller uses no other files than its records, which lie beside the checkpoints.
        causes = [
            ("the controller", storage_error(storage, cause) if isinstance(cause, OSError) else cause)
            for cause in _causes(error.controller_failure)
        ]
    else:
        failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        causes = [(f"worker {rank}", cause) for rank, failure in failures.items() for cause in _causes(failure)]
    for _, cause in causes:
        if reason := reason_of(cause):
            return reason, str(cause)
    for process, cause in [*causes, ("a worker", error)]:
        if _is_preemption(cause):
            return Reason.PREEMPTED, f"the node of {process} was drained or taken away: {_PREEMPTION_ADVICE}"
    for process, cause in causes:
        if diagnosis := _diagnose(process, cause, storage):
            return diagnosis
    if not causes:
        return Reason.WORKER_FAILED, f"{_first_line(error)}. The job's logs have the details"
    process, cause = causes[0]
    if isinstance(cause, RayActorError):
        return Reason.WORKER_FAILED, f"{process} {how_it_died(str(cause))}. Its last lines are in the job's logs"
    return Reason.WORKER_FAILED, f"{process}: {type(cause).__name__}: {_first_line(cause)}. The job's logs show where"


def diagnose(error: BaseException, process: str, storage: str) -> Diagnosis:
    """The typed reason behind an error of the current process, and a sentence.

    ``process`` names the process in the sentence, ``storage`` the folder or URI that it writes to.
    """
    if reason := reason_of(error):
        return reason, str(error)
    return _diagnose(process, error, storage) or (
        Reason.WORKER_FAILED, f"{process}: {type(error).__name__}: {_first_line(error)}"
    )  # fmt: skip


def _is_preemption(cause: BaseException) -> bool:
    if isinstance(cause, NodeDiedError):
        return "drain" in str(cause).lower() or "preempt" in str(cause).lower()
    return isinstance(cause, PreemptionError) or (isinstance(cause, RayActorError) and cause.preempted)


def _diagnose(process: str, cause: BaseException, storage: str) -> Diagnosis | None:
    """The typed reason behind one error, and a sentence; None for an error without a reason of its own."""
    # torch raises its own type for a full GPU, which the driver recognises by name because it does not import torch.
    if isinstance(cause, (MemoryError, OutOfMemoryError)) or type(cause).__name__ == "OutOfMemoryError":
        return Reason.OUT_OF_MEMORY, f"{process} ran out of memory: {_first_line(cause)}"
    if isinstance(cause, RayActorError) and "NODE_OUT_OF_MEMORY" in str(cause):
        return Reason.OUT_OF_MEMORY, f"Ray killed {process} because its node ran out of memory"
    if isinstance(cause, NodeDiedError):
        return Reason.NODE_LOST, f"the node of {process} was lost, check that machine: {_first_line(cause)}"
    if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
        return Reason.STORAGE_ERROR, f"{process} could not read or write: {cause}. Make room there, or check that disk"
    if isinstance(cause, REMOTE_ERRORS):
        return Reason.STORAGE_ERROR, str(storage_error(storage, cause))
    return None


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """An exception and those it wraps, innermost first. Ray stores wrapped exceptions in attributes of its own."""
    causes: list[BaseException] = []
    pending: list[object] = [failure]
    while pending:
        cause = pending.pop()
        if isinstance(cause, BaseException) and cause not in causes:
            causes.append(cause)
            pending += [cause.__cause__, getattr(cause, "cause", None)]
            pending += [getattr(cause, name, None) for name in ("_base_exc", "health_check_failure")]
    yield from reversed(causes)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def how_it_died(text: str) -> str:
    """How a process died, from Ray's message about it: by a signal, with an exit code, or for no known reason."""
    if match := re.search(r"receives a (SIG[A-Z0-9]+)", text):
        return f"was ended by {match[1]}"
    if match := re.search(r"exit code (-?\d+)", text):
        return f"ended with exit code {match[1]}"
    return "died without a message: it was killed (SIGKILL) or crashed"


# --- from dead workers and nodes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Death:
    """The unexpected death of a worker's process."""

    node: str
    """Ray's id of the node."""
    address: str
    pid: int
    text: str
    """Ray's message about it."""


def look_further(symptom: str, store: Store, attempt: int) -> Diagnosis | None:
    """The reason behind a failure that the errors do not reveal; ``symptom`` is what they say.

    When one worker dies, the others fail too, and often first: their errors only say that another one is gone.
    """
    try:
        workers = _workers()
    except RayStateApiException as error:
        logger.warning("Ray cannot tell where the workers ran: %s", error)
        return None
    if node := _lost_node({worker.node_id for worker in workers}):
        address = node["NodeManagerAddress"]
        if node.get("DeathReason") in _PREEMPTED:
            return Reason.PREEMPTED, f"the node at {address} was drained or taken away: {_PREEMPTION_ADVICE}"
        return Reason.NODE_LOST, (
            f"the node at {address} was lost with its workers, check that machine; the others reported: {symptom}"
        )
    for death in filter(None, map(death_of, workers)):
        process = f"the worker process {death.pid} on the node at {death.address}"
        if _killed_for_memory(death, store, attempt):
            return Reason.OUT_OF_MEMORY, f"the kernel's OOM killer ended {process}"
        end = how_it_died(death.text)
        others = "" if end in symptom else f"; the others reported: {symptom}"
        return Reason.WORKER_FAILED, f"{process} {end}. Its last lines are in the job's logs{others}"
    return None


def _workers() -> list[ActorState]:
    """This driver's workers, dead ones included."""
    filters: list[tuple[str, str, str | bool | int | float]] = [
        ("job_id", "=", ray.get_runtime_context().get_job_id()),
        ("class_name", "=", "RayTrainWorker"),
    ]
    return list_actors(filters=filters, limit=MOST_WORKERS, detail=True)


def death_of(worker: ActorState) -> Death | None:
    """How a worker died unexpectedly; None if it is alive or was ended on purpose."""
    context = (worker.death_cause or {}).get("actor_died_error_context", {})
    text = str(context.get("error_message", ""))
    if context.get("reason") != "WORKER_DIED" or "SYSTEM_ERROR" not in text:
        return None
    return Death(str(worker.node_id), str(context["node_ip_address"]), int(context["pid"]), text)


def _lost_node(used: set[str | None]) -> dict[str, Any] | None:
    """Ray's record of a lost node, one of those whose ids are in ``used``; None if all are there.

    The remaining workers fail at once, while Ray needs about fifteen seconds to declare a node dead: so this tries to
    connect to the node's raylet. It then waits until Ray agrees, or the next attempt would be placed on that node.
    """
    deadline = time.monotonic() + NODE_SECONDS
    while True:
        nodes = [node for node in ray.nodes() if node["NodeID"] in used]
        lost = next((node for node in nodes if not node["Alive"] or not _accepts_connections(node)), None)
        if lost is None or not lost["Alive"] or time.monotonic() > deadline:
            return lost
        time.sleep(0.5)


def _accepts_connections(node: dict[str, Any]) -> bool:
    """Whether a node's raylet accepts connections."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=3.0):
            return True
    except OSError:
        return False


# --- from the kernel --------------------------------------------------------------------------------------------------


def record_worker(store: Store, attempt: int, rank: int) -> None:
    """Store where this worker runs; raises `StorageError`."""
    node = ray.get_runtime_context().get_node_id()
    record = WorkerRecord(rank=rank, node=node, pid=os.getpid(), oom_kills=oom_kills())
    store.write(f"{worker_folder(attempt)}/rank-{rank}.json", record.model_dump_json(indent=1).encode())


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed for lack of memory: in this process's control group if that counts
    them, or else on the whole machine. A killed process leaves no other trace that can be read without privileges.
    """
    group = re.search(r"^0::/?(.*)$", _text_of(root / "proc/self/cgroup"), re.MULTILINE)
    files = [root / "sys/fs/cgroup" / group[1] / "memory.events"] if group else []
    for file in (*files, root / "proc/vmstat"):
        if count := re.search(r"^oom_kill (\d+)$", _text_of(file), re.MULTILINE):
            return int(count[1])
    return 0


def _text_of(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _killed_for_memory(death: Death, store: Store, attempt: int) -> bool:
    """Whether the kernel has killed a process where the worker ran since it started; False if that is unknown."""
    folder = worker_folder(attempt)
    try:
        records = [WorkerRecord.model_validate_json(store.read(f"{folder}/{name}")) for name in store.names(folder)]
        now = _oom_kills_on(death.node)
    except (StorageError, RayError) as error:
        logger.warning("Could not find out whether the kernel killed a worker for lack of memory: %s", error)
        return False
    return any((r.node, r.pid) == (death.node, death.pid) and now > r.oom_kills for r in records)


def _oom_kills_on(node: str) -> int:
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    count = ray.remote(oom_kills).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node)
    return int(ray.get(count.remote(), timeout=KERNEL_SECONDS))
