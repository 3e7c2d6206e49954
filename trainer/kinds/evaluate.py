"""Jobs that measure how good a backbone is."""

from __future__ import annotations

from trainer.attempt.outcome import outcome_after
from trainer.attempt.worker import Worker, leave_process_group
from trainer.attempt.workers import run_workers
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec.evaluate import EvaluateSpec
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
    place = Place(worker.store, worker.device, worker.recorder, worker.requested_action, worker.tracker)
    action = evaluate(worker.request, spec, place)
    leave_process_group()
    return outcome_after(action)
