"""One worker's process: its logs, its process group, rank 0's connection to the service, and the outcome it leaves.

What a worker does is handed in. torch is imported inside functions: the driver shares this module and does without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.train.collective

from trainer.attempt.commands import CommandListener
from trainer.attempt.evidence import record_worker
from trainer.attempt.logs import start_logging, stop_logging
from trainer.attempt.outcome import write_outcome
from trainer.logger import logger
from trainer.protocol.command import Action
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec.job import JobSpec
from trainer.spec.plan import resources_of
from trainer.storage import Store
from trainer.temporary import sweep_temporary_folders

if TYPE_CHECKING:
    from torch import device as Device


class Recorder(Protocol):
    """Where rank 0's metrics and tags go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def tag(self, tags: Mapping[str, str]) -> None: ...

    def drain(self) -> None:
        """Wait until all of it has been sent; raises `StorageError`."""

    def close(self) -> None:
        """The same, for the last time."""


@dataclass(frozen=True)
class Connection:
    """Rank 0's connection to the service."""

    recorder: Recorder
    listener: CommandListener


@dataclass(frozen=True)
class Worker:
    """A worker, as the work of a kind sees it."""

    request: AttemptRequest
    store: Store
    """The run's artifact folder."""
    device: Device
    recorder: Recorder | None
    """None on every rank but the first."""
    requested_action: Callable[[], Action | None]
    """The command this rank knows of."""


Connect = Callable[[AttemptRequest], Connection]
Work = Callable[[Worker], Outcome]
"""What every worker of an attempt does, as a function of a module: it is pickled by its name."""


def connect_to_run(request: AttemptRequest) -> Connection:
    """A job's own connection, through its MLflow run."""
    # Imported here: MLflow takes three seconds, and only rank 0 needs it.
    from trainer.tracking.channels import RunChannel  # noqa: PLC0415
    from trainer.tracking.recorder import RunRecorder  # noqa: PLC0415

    channel = RunChannel(request.tracking_uri, request.run_id, request.attempt)
    recorder = RunRecorder(request.tracking_uri, request.run_id, request.attempt)
    return Connection(recorder, CommandListener(channel, request.attempt))


def run_worker(request: AttemptRequest, rank: int, world: int, work: Work, connect: Connect = connect_to_run) -> None:
    """Do ``work`` as one of ``world`` workers; rank 0 stores the outcome as the attempt's last act."""
    import torch.distributed as dist  # noqa: PLC0415

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
    except SystemExit:  # no error: a search's scheduler has stopped this trial, and the trial has logged it
        raise
    except BaseException:
        logger.exception("Worker %d failed", rank)
        raise
    finally:
        if connection:
            connection.listener.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
        stop_logging(log)


def _worker(request: AttemptRequest, store: Store, device: Device, connection: Connection | None) -> Worker:
    if connection is None:
        return Worker(request, store, device, None, lambda: None)
    return Worker(request, store, device, connection.recorder, connection.listener.requested_action)


def _device(spec: JobSpec) -> Device:
    """Where this worker computes."""
    import torch  # noqa: PLC0415

    gpus = resources_of(spec).gpus_per_worker
    return torch.device("cuda", torch.cuda.current_device()) if gpus else torch.device("cpu")


def _join_process_group(rank: int, world: int, device: Device) -> None:
    import torch.distributed as dist  # noqa: PLC0415

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_rendezvous(rank, world), rank=rank, world_size=world)


def _rendezvous(rank: int, world: int) -> Any:
    """A `torch.distributed.TCPStore` where the workers meet, on a port chosen by rank 0's system."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # noqa: PLC0415 - torch exports it silently

    server = None
    if rank == 0:
        server = TCPStore(ray.util.get_node_ip_address(), 0, world, is_master=True, wait_for_workers=False)
    address = (server.host, server.port) if server else None
    host, port = ray.train.collective.broadcast_from_rank_zero(address)
    return server or TCPStore(host, port, world, is_master=False)
