"""Jobs that pretrain a backbone, and register it at the end if the spec names it."""

from __future__ import annotations

from trainer.attempt.outcome import outcome_after
from trainer.attempt.worker import Worker, leave_process_group
from trainer.attempt.workers import run_workers
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec.formats import BACKBONE_ONNX
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store


def run(request: AttemptRequest, store: Store) -> Outcome:
    return run_workers(request, store, train)


def train(worker: Worker) -> Outcome:
    """What each worker does; a trial of a search does the same."""
    # Imported in functions: the driver imports this module too, and does without torch.
    from trainer.training.context import WorkerContext  # noqa: PLC0415
    from trainer.training.loop import pretrain  # noqa: PLC0415

    request, spec = worker.request, worker.request.spec
    if not isinstance(spec, PretrainSpec):
        raise TypeError(f"a pretraining job with a spec of kind {spec.kind}")
    if worker.recorder and spec.register_as and BACKBONE_ONNX in spec.export.formats:
        from trainer.export.graph import check_onnx  # noqa: PLC0415

        check_onnx()  # now, and not after weeks of training
    context = WorkerContext(
        store=worker.store,
        attempt=request.attempt,
        since_attempt=request.since_attempt,
        recorder=worker.recorder,
        requested_action=worker.requested_action,
        tracker=worker.tracker,
        device=worker.device,
        dataset_roots=request.dataset_roots,
    )
    result = pretrain(spec, context)
    leave_process_group()
    worker.tracker.enter("registering")
    if worker.recorder and spec.register_as and not result.action:
        from trainer.export.registration import KeptCheckpoint, register_checkpoint  # noqa: PLC0415 - draws pictures
        from trainer.tracking.history import HistoryReader  # noqa: PLC0415
        from trainer.tracking.registry import BackboneRegistry  # noqa: PLC0415

        worker.recorder.drain()  # the version has this run's curves in it
        register_checkpoint(
            KeptCheckpoint(request.job_id, request.run_id, worker.store, result.checkpoint),
            spec.register_as,
            spec.export,
            request.job_id,
            BackboneRegistry(request.tracking_uri, request.job_id, request.attempt, request.since_attempt),
            HistoryReader(request.tracking_uri),
        )
    return outcome_after(result.action, result.checkpoint.folder)
