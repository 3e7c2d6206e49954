"""Jobs that measure how good a backbone is."""

from __future__ import annotations

from trainer.attempt.outcome import outcome_after
from trainer.attempt.worker import Worker, leave_process_group
from trainer.attempt.workers import run_workers
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.formats import BACKBONE_ONNX
from trainer.storage import Store


def run(request: AttemptRequest, store: Store) -> Outcome:
    return run_workers(request, store, work)


def work(worker: Worker) -> Outcome:
    """What each worker does."""
    # Imported in functions: the driver imports this module too, and does without torch.
    from trainer.scoring.place import Place  # noqa: PLC0415
    from trainer.scoring.run import evaluate  # noqa: PLC0415

    spec = worker.request.spec
    if not isinstance(spec, EvaluateSpec):
        raise TypeError(f"an evaluation with a spec of kind {spec.kind}")
    if spec.registering and BACKBONE_ONNX in spec.registering.formats:
        from trainer.export.graph import check_onnx  # noqa: PLC0415

        check_onnx()  # before the training
    place = Place(worker.store, worker.device, worker.recorder, worker.requested_action, worker.tracker)
    ended = evaluate(worker.request, spec, place)
    leave_process_group()
    if ended.product is None:
        return outcome_after(ended.action)
    from trainer.export.classifier import register_classifier  # noqa: PLC0415
    from trainer.tracking.registry import BackboneRegistry  # noqa: PLC0415

    worker.tracker.enter("registering")
    request = worker.request
    registry = BackboneRegistry(request.tracking_uri, request.job_id, request.attempt, request.since_attempt)
    return outcome_after(register_classifier(ended.product, request, spec, registry, worker.requested_action))
