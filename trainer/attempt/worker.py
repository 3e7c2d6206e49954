"""One worker's process: its logs, its process group, rank 0's connection to the service, and its outcome.

The work itself is passed in as a function. torch is imported inside functions, because the driver imports this module
too and does not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.train.collective

from trainer.attempt import preemption
from trainer.attempt.commands import CommandListener
from trainer.attempt.evidence import record_worker
from trainer.attempt.logs import start_logging, stop_logging
from trainer.attempt.outcome import write_outcome
from trainer.logger import logger
from trainer.protocol.command import Action
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec.job import JobSpec
from trainer.storage import Store
from trainer.temporary import sweep_temporary_folders
from trainer.tracking.activity import ActivityTracker
from trainer.tracking.interface import Recorder

if TYPE_CHECKING:
    from torch import device as Device


@dataclass(frozen=True)
class Connection:
    """Rank 0's connection to the service."""

    recorder: Recorder
    listener: CommandListener


@dataclass(frozen=True)
class Worker:
    """A worker, as the function that does a kind's work sees it."""

    request: AttemptRequest
    store: Store
    """The run's artifact folder."""
    device: Device
    recorder: Recorder | None
    """None on every rank but the first."""
    requested_action: Callable[[], Action | None]
    """Why this rank knows that the attempt is to leave early; None if it is not."""
    tracker: ActivityTracker
    """What this rank is doing; heartbeats carry rank 0's."""


Connect = Callable[[AttemptRequest], Connection]
Work = Callable[[Worker], Outcome]
"""What every worker of an attempt does: a module-level function, because it is pickled by name."""


def connect_to_run(request: AttemptRequest) -> Connection:
    """A job's connection to the service, through its MLflow run."""
    # Imported here: MLflow takes three seconds, and only rank 0 needs it.
    from trainer.tracking.channels import RunChannel  # noqa: PLC0415
    from trainer.tracking.recorder import RunRecorder  # noqa: PLC0415

    channel = RunChannel(request.tracking_uri, request.run_id, request.attempt)
    recorder = RunRecorder(request.tracking_uri, request.run_id, request.attempt)
    return Connection(recorder, CommandListener(channel, request.attempt))


def run_worker(request: AttemptRequest, rank: int, world: int, work: Work, connect: Connect = connect_to_run) -> None:
    """Do ``work`` as one of ``world`` workers; rank 0 stores the outcome as the attempt's last act."""
    store = Store(request.artifact_uri)
    log = start_logging(store, request, f"rank-{rank}")
    sweep_temporary_folders()
    connection: Connection | None = None
    try:
        record_worker(store, request.attempt, rank)
        if rank == 0:
            connection = connect(request)
            connection.listener.start()
        device = _device(request.spec)
        if world > 1:
            _join_process_group(rank, world, device)
        outcome = work(_worker(request, store, device, connection))
        if connection:
            connection.recorder.close()
            write_outcome(store, request.attempt, outcome)
    except SystemExit:  # not an error: a search's scheduler has stopped this trial, and the trial has logged it
        raise
    except BaseException:
        logger.exception("Worker %d failed", rank)
        raise
    finally:
        if connection:
            connection.listener.stop()
        leave_process_group()
        stop_logging(log)


def _worker(request: AttemptRequest, store: Store, device: Device, connection: Connection | None) -> Worker:
    if connection is None:
        return Worker(request, store, device, None, preemption.requested_action, ActivityTracker())
    listener = connection.listener

    def requested_action() -> Action | None:
        return listener.requested_action() or preemption.requested_action()

    return Worker(request, store, device, connection.recorder, requested_action, listener.tracker)


def _device(spec: JobSpec) -> Device:
    """The device that this worker computes on."""
    import torch  # noqa: PLC0415

    gpus = spec.worker_resources.gpus_per_worker
    return torch.device("cuda", torch.cuda.current_device()) if gpus else torch.device("cpu")


def leave_process_group() -> None:
    """Leave the process group, as soon as nothing more is computed together: every rank at about the same time.

    NCCL waits for the others then, and no longer than for a collective, while what rank 0 does alone may take longer.
    """
    import torch.distributed as dist  # noqa: PLC0415

    if dist.is_initialized():
        dist.destroy_process_group()


def _join_process_group(rank: int, world: int, device: Device) -> None:
    import torch.distributed as dist  # noqa: PLC0415

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_rendezvous(rank, world), rank=rank, world_size=world)


def _rendezvous(rank: int, world: int) -> Any:
    """A `torch.distributed.TCPStore` that connects the workers, on a free port of rank 0's node."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # noqa: PLC0415 - torch exports it silently

    server = None
    if rank == 0:
        server = TCPStore(ray.util.get_node_ip_address(), 0, world, is_master=True, wait_for_workers=False)
    address = (server.host, server.port) if server else None
    host, port = ray.train.collective.broadcast_from_rank_zero(address)
    return server or TCPStore(host, port, world, is_master=False)
