"""The loop under Ray Train: how many workers with what, where their checkpoints go, and why they ended.

The driver never imports torch, which saves seconds at every start: the workers import it, inside `train_worker`.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import ray.train.collective
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import NodeDiedError, OutOfMemoryError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from trainer.errors import TrainingError
from trainer.logs import logger, start_logging, stop_logging
from trainer.outcome import write_outcome
from trainer.spec.job import AttemptRequest, Outcome, Reason
from trainer.spec.names import CHECKPOINTS, checkpoint_folder
from trainer.storage import REMOTE_ERRORS, Store, storage_error, told

_SETTING = "request"
NODE_SECONDS = 60.0
MOST_WORKERS = 10_000


def run_attempt(request: AttemptRequest, store: Store) -> Outcome | None:
    """Train on the cluster this process belongs to, with the resources the spec names.

    Gives how it failed; None where all work is done, and rank 0 has stored the outcome. Raises `StorageError` where
    Ray Train cannot use the artifact storage.
    """
    resources = request.spec.resources
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    place = f"{store.uri.rstrip('/')}/{CHECKPOINTS}"
    trainer = DataParallelTrainer(
        train_worker,
        train_loop_config={_SETTING: request.model_dump_json()},
        scaling_config=ScalingConfig(
            num_workers=int(resources.workers),
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": float(resources.cpus_per_worker), "GPU": float(resources.gpus_per_worker)},
        ),
        run_config=RunConfig(
            # A name of its own for each attempt: the same name and path would make Ray Train resume by itself.
            name=checkpoint_folder(request.attempt).rpartition("/")[2],
            storage_path=store.path(CHECKPOINTS),
            # Ours, with its retries; a process that it is pickled into uses that process's own credentials.
            storage_filesystem=None if store.is_local else PyFileSystem(FSSpecHandler(store.fs)),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        with told(place):
            trainer.fit()
    except TrainingFailedError as error:
        reason, message = explain(error, place)
        if reason is Reason.WORKER_FAILED and (node := _lost_node()):
            reason, message = (
                Reason.NODE_LOST,
                f"the node at {node} was lost with its workers; the others saw: {message}.",
            )
        logger.error("The attempt failed: %s", message)
        return Outcome(state="failed", reason=reason, message=message)
    return None


def explain(error: TrainingFailedError, place: str) -> tuple[Reason, str]:
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
    for who, cause in causes:
        if known := _known(who, cause, place):
            return known
    if not causes:
        return Reason.WORKER_FAILED, _first_line(error)
    who, cause = causes[0]
    return Reason.WORKER_FAILED, f"{who}: {type(cause).__name__}: {_first_line(cause)}"


def _known(who: str, cause: BaseException, place: str) -> tuple[Reason, str] | None:
    """The typed reason behind one error, and a sentence; None for an error of no kind of its own."""
    # torch raises its own types for a full GPU; the driver knows them by name, not by import.
    if isinstance(cause, (MemoryError, OutOfMemoryError)) or type(cause).__name__ == "OutOfMemoryError":
        return Reason.OUT_OF_MEMORY, (
            f"{who} ran out of memory: lower optimization.micro_batch_size. {_first_line(cause)}"
        )
    if isinstance(cause, NodeDiedError):
        return Reason.NODE_LOST, f"the node of {who} was lost: {_first_line(cause)}"
    if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
        return Reason.STORAGE_ERROR, f"{who} could not write: {cause}"
    if isinstance(cause, REMOTE_ERRORS):
        return Reason.STORAGE_ERROR, str(storage_error(place, cause))
    return None


def _lost_node() -> str | None:
    """The address of a node that this driver's workers ran on and that is gone.

    The workers left over fail at once, and Ray takes some fifteen seconds to declare a node dead: so its raylet is
    asked. A lost node is then waited for until Ray agrees, or the next attempt would be placed on it.
    """
    mine: list[tuple[str, str, str | bool | int | float]] = [
        ("job_id", "=", ray.get_runtime_context().get_job_id()),
        ("class_name", "=", "RayTrainWorker"),
    ]
    try:
        used = {actor.node_id for actor in list_actors(filters=mine, limit=MOST_WORKERS)}
    except RayStateApiException as error:
        logger.warning("Ray does not say where the workers ran: %s", error)
        return None
    end = time.monotonic() + NODE_SECONDS
    while True:
        nodes = [node for node in ray.nodes() if node["NodeID"] in used]
        gone = next((node for node in nodes if not node["Alive"] or not _answers(node)), None)
        if gone is None:
            return None
        if not gone["Alive"] or time.monotonic() > end:
            return str(gone["NodeManagerAddress"])
        time.sleep(0.5)


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node's raylet takes connections."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=3.0):
            return True
    except OSError:
        return False


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
    return lines[0] if lines else type(error).__name__


def train_worker(config: dict[str, Any]) -> None:
    """One worker of an attempt, in a process of its own."""
    # Imported here: the driver shares this module and needs none of it.
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    from trainer.control import Control  # noqa: PLC0415
    from trainer.pretrain import Run, pretrain  # noqa: PLC0415
    from trainer.publish import publish  # noqa: PLC0415

    request = AttemptRequest.model_validate_json(config[_SETTING])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    store = Store(request.artifact_uri)
    log = start_logging(store, request.attempt, f"rank-{rank}")
    tracker = control = None
    try:
        if rank == 0:
            from trainer.tracking import Tracker  # noqa: PLC0415 - three seconds that only this rank spends

            tracker = Tracker(request.tracking_uri, request.run_id, request.job_id, request.attempt)
            control = Control(tracker, request.attempt)
            control.start()
        device = torch.device("cpu")
        if request.spec.resources.gpus_per_worker:
            device = torch.device("cuda", torch.cuda.current_device())
        if world > 1:
            meeting = _meet(rank, world)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", store=meeting, rank=rank, world_size=world
            )
        run = Run(
            store=store,
            attempt=request.attempt,
            since_attempt=request.since_attempt,
            recorder=tracker,
            wanted=control.wanted if control else lambda: None,
            device=device,
        )
        ending = pretrain(request.spec, run)
        if tracker and not ending.action:
            publish(request, ending, tracker)
        if tracker:
            tracker.close()
        state = {None: "succeeded", "cancel": "cancelled", "pause": "paused"}[ending.action]
        if rank == 0:
            outcome = Outcome.model_validate({"state": state, "checkpoint": ending.checkpoint.folder})
            write_outcome(store, request.attempt, outcome)
    except BaseException:
        logger.exception("Worker %d ends with an error", rank)
        raise
    finally:
        if control:
            control.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
        stop_logging(log)


def _meet(rank: int, world: int) -> Any:
    """The workers' meeting point, a `torch.distributed.TCPStore`, on a port that rank 0's system chose."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # noqa: PLC0415 - torch exports it silently

    server = None
    if rank == 0:
        server = TCPStore(ray.util.get_node_ip_address(), 0, world, is_master=True, wait_for_workers=False)
    place = (server.host, server.port) if server else None
    host, port = ray.train.collective.broadcast_from_rank_zero(place)
    return server or TCPStore(host, port, world, is_master=False)
