"""Jobs that register a checkpoint which a pretraining job has kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer.attempt.outcome import outcome_after
from trainer.attempt.worker import Worker
from trainer.attempt.workers import run_workers
from trainer.errors import DamagedCheckpoint, SpecRefused
from trainer.protocol.command import Action
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest, Source
from trainer.spec.export import misfit
from trainer.spec.formats import BACKBONE_ONNX
from trainer.spec.publish import PublishSpec
from trainer.storage import Store

if TYPE_CHECKING:
    from trainer.export.registration import KeptCheckpoint
    from trainer.tracking.history import HistoryReader
    from trainer.tracking.registry import BackboneRegistry


def run(request: AttemptRequest, store: Store) -> Outcome:
    return run_workers(request, store, work)


def work(worker: Worker) -> Outcome:
    """What the only worker does. It needs no device, and records nothing in its own run."""
    # Imported in functions: the driver imports this module too, and does without torch and MLflow.
    from trainer.tracking.history import HistoryReader  # noqa: PLC0415
    from trainer.tracking.registry import BackboneRegistry  # noqa: PLC0415

    request = worker.request
    worker.tracker.enter("registering")
    registry = BackboneRegistry(request.tracking_uri, request.job_id, request.attempt, request.since_attempt)
    return outcome_after(publish(request, registry, HistoryReader(request.tracking_uri), worker.requested_action))


def publish(
    request: AttemptRequest,
    registry: BackboneRegistry,
    histories: HistoryReader,
    requested_action: Callable[[], Action | None],
) -> Action | None:
    """Register the checkpoint that the request names; returns the command that was obeyed instead, if there was one.

    Raises `SpecRefused` if the checkpoint is gone or damaged, or lacks what is to be exported.
    """
    spec = request.spec
    if not isinstance(spec, PublishSpec):
        raise TypeError(f"a publish job with a spec of kind {spec.kind}")
    try:
        return _publish(request, spec, registry, histories, requested_action)
    except DamagedCheckpoint as error:
        raise SpecRefused(f"checkpoint: {error}. Choose another one that the job has kept") from error


def _publish(
    request: AttemptRequest,
    spec: PublishSpec,
    registry: BackboneRegistry,
    histories: HistoryReader,
    requested_action: Callable[[], Action | None],
) -> Action | None:
    from trainer.export.graph import check_onnx  # noqa: PLC0415
    from trainer.export.registration import register_checkpoint  # noqa: PLC0415
    from trainer.training.state import spec_of  # noqa: PLC0415

    kept = _find_checkpoint(request, spec)
    trained = spec_of(kept.store, kept.checkpoint)
    export = spec.export.over(trained.export)
    problem = misfit(export, trained.method.name, (trained.model.height, trained.model.width))
    if problem:
        raise SpecRefused(f"{problem[0]}: {problem[1]}")
    if BACKBONE_ONNX in export.formats:
        check_onnx()
    return register_checkpoint(kept, spec.register_as, export, request.job_id, registry, histories, requested_action)


def _find_checkpoint(request: AttemptRequest, spec: PublishSpec) -> KeptCheckpoint:
    from trainer.export.registration import KeptCheckpoint  # noqa: PLC0415
    from trainer.training import checkpoint as checkpoints  # noqa: PLC0415

    source = request.source
    if not isinstance(source, Source):
        raise SpecRefused("source: the request of a publish job must say where the checkpoint is, and does not")
    store = Store(source.artifact_uri)
    checkpoint = checkpoints.find_kept(store, spec.checkpoint, source.since_attempt, source.job_id)
    return KeptCheckpoint(source.job_id, source.run_id, store, checkpoint)
