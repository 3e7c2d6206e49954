"""Jobs that import: each registers weights from elsewhere as a version of a backbone."""

from __future__ import annotations

from trainer.attempt.outcome import outcome_after
from trainer.attempt.worker import Worker
from trainer.attempt.workers import run_workers
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec.importing import ImportSpec
from trainer.storage import Store


def run(request: AttemptRequest, store: Store) -> Outcome:
    return run_workers(request, store, work)


def work(worker: Worker) -> Outcome:
    """What the only worker does. It needs no device, and records nothing in its own run."""
    # Imported in functions: the driver imports this module too, and does without torch and MLflow.
    from trainer.export.importing import import_weights  # noqa: PLC0415
    from trainer.tracking.registry import BackboneRegistry  # noqa: PLC0415

    request, spec = worker.request, worker.request.spec
    if not isinstance(spec, ImportSpec):
        raise TypeError(f"an import with a spec of kind {spec.kind}")
    registry = BackboneRegistry(request.tracking_uri, request.job_id, request.attempt, request.since_attempt)
    return outcome_after(import_weights(request, spec, registry, worker.tracker.enter, worker.requested_action))
