"""The loop under Ray Train: how many workers with what, and what each of them does.

The driver never imports torch, which saves seconds at every start: the workers import it, inside `train_worker`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.collective
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from trainer.attempt.evidence import explain, how_it_died, look_further, record_worker
from trainer.attempt.logs import start_logging, stop_logging
from trainer.attempt.outcome import write_outcome
from trainer.logger import logger
from trainer.protocol.names import CHECKPOINTS, checkpoint_folder
from trainer.protocol.outcome import Outcome, Reason
from trainer.protocol.request import AttemptRequest
from trainer.search.reporting import Report, Reporting, TrialOf
from trainer.spec.formats import BACKBONE_ONNX
from trainer.spec.job import JobSpec
from trainer.spec.plan import resources_of
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishSpec
from trainer.spec.search import SearchSpec
from trainer.storage import Store, told
from trainer.temporary import sweep_temporary_folders

if TYPE_CHECKING:
    from ray.util.queue import Queue
    from torch import device as Device

    from trainer.attempt.control import Control
    from trainer.protocol.command import Action
    from trainer.tracking.tracker import Tracker
    from trainer.training.context import Recorder

_SETTING, _TRIAL, _REPORTS = "request", "trial", "reports"


class _Trainer(DataParallelTrainer):
    """Ray Train's, without two actors of which each would be a process to start in every attempt.

    One hands out shards of Ray Data, and there are none. The other frees what workers held when their controller dies:
    the driver ends with its controller, and what its Ray job held is freed then.
    """

    left_out: tuple[type[RayTrainCallback], ...] = (DatasetsCallback, PlacementGroupCleanerCallback)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, self.left_out)]


class _TrialTrainer(_Trainer):
    """Of a trial, whose end is not that of its Ray job."""

    left_out = (DatasetsCallback,)


def run_attempt(request: AttemptRequest, store: Store) -> Outcome | None:
    """Do the attempt's work on the cluster this process belongs to, with the resources the spec names.

    Gives how it failed; None where all work is done, and the outcome is stored. Raises `StorageError` where Ray Train
    cannot use the artifact storage.
    """
    on_stop = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    signal.signal(signal.SIGTERM, on_stop)  # Ray puts its own in its place
    if isinstance(request.spec, SearchSpec):
        from trainer.search.run import run_search  # noqa: PLC0415 - needs a second more than others do

        return run_search(request, store)
    return fit(request, store)


def fit(
    request: AttemptRequest, store: Store, trial: TrialOf | None = None, reports: Queue | None = None
) -> Outcome | None:
    """Run an attempt's workers, those of a search's ``trial`` where it is one; gives how they failed, or None.

    ``reports`` takes the trial's evaluations. Raises `StorageError` as `run_attempt`.
    """
    resources = resources_of(request.spec)
    place = f"{store.uri.rstrip('/')}/{CHECKPOINTS}"
    setting: dict[str, Any] = {_SETTING: request.model_dump_json()}
    if trial:
        setting |= {_TRIAL: trial.model_dump_json(), _REPORTS: reports}
    trainer = (_TrialTrainer if trial else _Trainer)(
        train_worker,
        train_loop_config=setting,
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
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,  # type: ignore[call-arg]  # its types are those of the version before
            ),
        ),
    )
    try:
        with told(place):
            trainer.fit()
    except TrainingFailedError as error:
        reason, message = explain(error, place)
        if reason is Reason.WORKER_FAILED:
            reason, message = look_further(message, store, request.attempt) or (reason, message)
    except RayActorError as error:
        reason, message = Reason.WORKER_FAILED, f"Ray Train's controller {how_it_died(str(error))}"
    else:
        return None
    logger.error("The attempt failed: %s", message)
    return Outcome(state="failed", reason=reason, message=message)


def train_worker(config: dict[str, Any]) -> None:
    """One worker of an attempt, in a process of its own."""
    request = AttemptRequest.model_validate_json(config[_SETTING])
    trial, reports = config.get(_TRIAL), config.get(_REPORTS)
    context = ray.train.get_context()
    work(
        request,
        context.get_world_rank(),
        context.get_world_size(),
        TrialOf.model_validate_json(trial) if trial else None,
        None if reports is None else reports.put,  # an empty queue is false
    )


def work(
    request: AttemptRequest, rank: int, world: int, trial: TrialOf | None = None, report: Report | None = None
) -> None:
    """What a worker does; of a search's ``trial``, rank 0 hands its evaluations to ``report``."""
    # Imported here, and below: the driver shares this module and needs none of it.
    import torch.distributed as dist  # noqa: PLC0415

    store = Store(request.artifact_uri)
    log = start_logging(store, request, f"rank-{rank}")
    sweep_temporary_folders()
    tracker = recorder = control = None
    try:
        record_worker(store, request.attempt, rank)
        if rank == 0:
            tracker, recorder, control = _lines(request, trial, report)
            control.start()
        device = _device(request.spec)
        if world > 1:
            _join(rank, world, device)
        wanted = control.wanted if control else lambda: None
        action, checkpoint = _WORK[request.spec.kind](request, store, tracker, recorder, wanted, device)
        if tracker:
            tracker.close()
        state = {None: "succeeded", "cancel": "cancelled", "pause": "paused"}[action]
        if rank == 0:
            outcome = Outcome.model_validate({"state": state, "checkpoint": checkpoint})
            write_outcome(store, request.attempt, outcome)
    except SystemExit:  # how Ray Tune ends a trial early, at its report
        logger.info("The scheduler stops this trial here: others do better")
        if tracker:
            tracker.close()
        raise
    except BaseException:
        logger.exception("Worker %d ends with an error", rank)
        raise
    finally:
        if control:
            control.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
        stop_logging(log)


def _device(spec: JobSpec) -> Device:
    """Where this worker computes."""
    import torch  # noqa: PLC0415

    gpus = resources_of(spec).gpus_per_worker
    return torch.device("cuda", torch.cuda.current_device()) if gpus else torch.device("cpu")


def _lines(request: AttemptRequest, trial: TrialOf | None, report: Report | None) -> tuple[Tracker, Recorder, Control]:
    """Rank 0's run, where it records to, and where it listens: a trial to its search."""
    from trainer.attempt.control import Control  # noqa: PLC0415
    from trainer.tracking.tracker import Tracker, TrialLine  # noqa: PLC0415 - three seconds that only this rank spends

    tracker = Tracker(request.tracking_uri, request.run_id, request.job_id, request.attempt, request.since_attempt)
    if trial is None or report is None:
        return tracker, tracker, Control(tracker, request.attempt)
    line = TrialLine(request.tracking_uri, trial.run_id, trial.attempt, trial.number)
    return tracker, Reporting(tracker, request.spec, trial.metrics, report), Control(line, trial.attempt)


def _pretrain(
    request: AttemptRequest,
    store: Store,
    tracker: Tracker | None,
    recorder: Recorder | None,
    wanted: Callable[[], Action | None],
    device: Device,
) -> tuple[Action | None, str | None]:
    """Train, and at the end register what came of it; gives the command obeyed instead, and the last checkpoint."""
    from trainer.training.context import WorkerContext  # noqa: PLC0415
    from trainer.training.loop import pretrain  # noqa: PLC0415

    spec = request.spec
    if not isinstance(spec, PretrainSpec):
        raise TypeError(f"a spec of kind {spec.kind}")
    if tracker and spec.register_as and BACKBONE_ONNX in spec.export.formats:
        from trainer.export.graph import check_onnx  # noqa: PLC0415

        check_onnx()  # now, and not after weeks
    context = WorkerContext(
        store=store,
        attempt=request.attempt,
        since_attempt=request.since_attempt,
        recorder=recorder,
        wanted=wanted,
        device=device,
        dataset_roots=request.dataset_roots,
    )
    result = pretrain(spec, context)
    if tracker and spec.register_as and not result.action:
        from trainer.kinds.publish import publish  # noqa: PLC0415 - draws pictures: only this rank needs what that takes

        publish(request, spec.register_as, spec.export, result.checkpoint, store, tracker)
    return result.action, result.checkpoint.folder


def _publish(
    request: AttemptRequest,
    store: Store,
    tracker: Tracker | None,
    recorder: Recorder | None,
    wanted: Callable[[], Action | None],
    device: Device,
) -> tuple[Action | None, str | None]:
    """Register a checkpoint of another job; there is one worker, which has the tracker. It needs no device of its own
    and writes nothing into its run.
    """
    from trainer.kinds.publish import publish_kept  # noqa: PLC0415

    del store, recorder, device
    spec = request.spec
    if not isinstance(spec, PublishSpec) or tracker is None:
        raise TypeError(f"a spec of kind {spec.kind}")
    return publish_kept(request, spec, tracker, wanted), None


_WORK = {"pretrain": _pretrain, "publish": _publish}


def _join(rank: int, world: int, device: Device) -> None:
    """Make the workers one group."""
    import torch.distributed as dist  # noqa: PLC0415

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_meet(rank, world), rank=rank, world_size=world)


def _meet(rank: int, world: int) -> Any:
    """The workers' meeting point, a `torch.distributed.TCPStore`, on a port that rank 0's system chose."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # noqa: PLC0415 - torch exports it silently

    server = None
    if rank == 0:
        server = TCPStore(ray.util.get_node_ip_address(), 0, world, is_master=True, wait_for_workers=False)
    place = (server.host, server.port) if server else None
    host, port = ray.train.collective.broadcast_from_rank_zero(place)
    return server or TCPStore(host, port, world, is_master=False)
