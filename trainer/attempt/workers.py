"""An attempt's workers under Ray Train: the driver starts them and explains how they failed.

The driver never imports torch, which saves seconds at every start.
"""

from __future__ import annotations

import logging
import signal
from contextlib import nullcontext
from typing import Any

import ray
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from trainer.attempt import preemption
from trainer.attempt.evidence import explain, how_it_died, look_further
from trainer.attempt.outcome import read_outcome
from trainer.attempt.worker import Connect, Work, connect_to_run, run_worker
from trainer.logger import logger
from trainer.protocol.names import CHECKPOINTS, checkpoint_folder
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest
from trainer.storage import Store, storage_errors

_REQUEST, _WORK, _CONNECT = "request", "work", "connect"


class _Trainer(DataParallelTrainer):
    """Ray Train's trainer whose workers take SIGTERM as notice, and whose driver keeps its own handler of SIGINT.

    It does without two actors, each of which would start another process in every attempt. One distributes shards of
    Ray Data, which is not used. The other releases the workers' resources if their controller dies; here the driver
    ends with its controller, and Ray then releases everything that belongs to the job.
    """

    omitted_callbacks: tuple[type[RayTrainCallback], ...] = (DatasetsCallback, PlacementGroupCleanerCallback)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        defaults = super()._create_default_callbacks()
        kept = [callback for callback in defaults if not isinstance(callback, self.omitted_callbacks)]
        return [*kept, preemption.TakeSigterm()]

    def _register_sigint_handler(self, controller: object) -> None:
        """Nothing: Ray's handler would wait for the controller, while SIGINT ends the driver at once."""


class _NestedTrainer(_Trainer):
    """For workers that share a Ray job with others and end before it does."""

    omitted_callbacks = (DatasetsCallback,)


def join_cluster() -> None:
    """Make this process the driver of a Ray job on the cluster it belongs to."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    signal.signal(signal.SIGTERM, handler)  # Ray has replaced it


def run_workers(
    request: AttemptRequest, store: Store, work: Work, connect: Connect = connect_to_run, nested: bool = False
) -> Outcome:
    """Do ``work`` in the workers of an attempt, with the resources that the spec names.

    ``nested`` says that the Ray job does other work too. Returns the outcome that rank 0 stored, or, if the workers
    failed, one that is not stored yet. Raises `StorageError` if Ray Train cannot use the artifact storage.
    """
    resources = request.spec.worker_resources
    checkpoints_uri = f"{store.uri.rstrip('/')}/{CHECKPOINTS}"
    trainer = (_NestedTrainer if nested else _Trainer)(
        train_worker,
        train_loop_config={_REQUEST: request.model_dump_json(), _WORK: work, _CONNECT: connect},
        scaling_config=ScalingConfig(
            num_workers=int(resources.workers),
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": float(resources.cpus_per_worker), "GPU": float(resources.gpus_per_worker)},
        ),
        run_config=RunConfig(
            # Each attempt has its own name: with the same name and path Ray Train would resume by itself.
            name=checkpoint_folder(request.attempt).rpartition("/")[2],
            storage_path=store.path(CHECKPOINTS),
            # Our file system, because it retries; a process that unpickles it uses its own credentials.
            storage_filesystem=None if store.is_local else PyFileSystem(FSSpecHandler(store.fs)),
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,  # type: ignore[call-arg]  # Ray's type stub is that of an earlier version
            ),
        ),
    )
    try:
        with storage_errors(checkpoints_uri), nullcontext() if nested else preemption.passed_on(request, store):
            trainer.fit()
    except TrainingFailedError as error:
        reason, message = explain(error, checkpoints_uri)
        if reason is Reason.WORKER_FAILED:
            reason, message = look_further(message, store, request.attempt) or (reason, message)
    except RayActorError as error:
        reason, message = Reason.WORKER_FAILED, f"Ray Train's controller {how_it_died(str(error))}"
    else:
        return read_outcome(store, request.attempt)
    logger.error("The attempt failed: %s", message)
    return Outcome(state="failed", reason=reason, message=message)


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train calls in each worker's process."""
    request = AttemptRequest.model_validate_json(config[_REQUEST])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    with preemption.watching(request, rank):
        run_worker(request, rank, context.get_world_size(), config[_WORK], config[_CONNECT])
