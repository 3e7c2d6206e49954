"""Registering a checkpoint as a version of a backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.export.card import Facts
from trainer.export.trained import Trained
from trainer.export.version import code_version, write_version
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.protocol.parameters import parameters
from trainer.spec import metric_keys
from trainer.spec.export import ExportSpec
from trainer.storage import Store
from trainer.temporary import temporary_folder
from trainer.tracking.history import History, HistoryReader
from trainer.tracking.registry import About, BackboneRegistry
from trainer.training.checkpoint import Committed
from trainer.training.snapshot import StoredState
from trainer.training.state import Metadata, read_parts, spec_of

CURVES = (
    metric_keys.LOSS, metric_keys.LOSS_RECONSTRUCTION, metric_keys.LOSS_CONSISTENCY, metric_keys.LEARNING_RATE,
    metric_keys.TEACHER_MOMENTUM, metric_keys.GRAD_NORM,
)  # fmt: skip
"""Training curves that a version shows, beside those of all evaluations."""


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint, and the run it belongs to."""

    job_id: str
    """The pretraining job."""
    run_id: str
    store: Store
    """The run's artifact folder."""
    checkpoint: Committed


def register_checkpoint(
    kept: KeptCheckpoint,
    name: str,
    export: ExportSpec,
    registered_by: str,
    registry: BackboneRegistry,
    histories: HistoryReader,
    requested_action: Callable[[], Action | None] = lambda: None,
) -> Action | None:
    """Register a checkpoint under ``name`` for the job ``registered_by``; doing it twice keeps one version.

    Returns the command that was obeyed before anything was registered, if there was one.
    """
    stored = read_parts(kept.store, kept.checkpoint, (export.network,))
    history = histories.read(kept.run_id, (*CURVES, *stored.metadata.metrics), stored.metadata.step)
    with temporary_folder() as directory:
        trained = _trained(kept, registered_by, stored, history)
        facts = _facts(name, export, trained, stored, history)
        tags = write_version(directory, facts, stored.tensors[export.network])
        action = requested_action()
        if action:
            return action
        own = trained.spec.model_copy(update={"export": export})  # a later job may export otherwise than training asked
        params = parameters(own.model_dump(mode="json"))
        evaluated = facts.evaluation
        at = trained.step if evaluated.step is None else evaluated.step
        number = registry.register(name, directory, About(tags, kept.run_id, params, evaluated.values, at))
    logger.info("Registered version %d of the backbone %s from %s", number, name, kept.checkpoint.folder)
    return None


def _trained(kept: KeptCheckpoint, registered_by: str, stored: StoredState[Metadata], history: History) -> Trained:
    """What the checkpoint and its run know of the training."""
    spec, state = spec_of(kept.store, kept.checkpoint), stored.metadata
    steps, images = (history.tags.get(tag) for tag in (names.TAG_STEPS, names.TAG_IMAGES))
    # The total is tagged before the first checkpoint; a run without the tag must have reached its end.
    per_epoch = int(steps) / spec.optimization.epochs if steps else state.step / spec.optimization.epochs
    return Trained(
        spec=spec,
        job_id=kept.job_id,
        registered_by=registered_by,
        run_id=kept.run_id,
        attempt=kept.checkpoint.manifest.attempt,
        checkpoint=kept.checkpoint.folder,
        dataset_fingerprint=state.dataset_fingerprint,
        dataset_images=int(images) if images else None,
        step=state.step,
        epochs=round(state.step / per_epoch, 3),
        curves={key: [(step / per_epoch, value) for step, value in points] for key, points in history.curves.items()},
        reconstructions=_reconstructions(kept.store, state.step),
    )


def _facts(name: str, export: ExportSpec, trained: Trained, stored: StoredState[Metadata], history: History) -> Facts:
    state = stored.metadata
    evaluated = [points[-1][0] for key, points in history.curves.items() if key in state.metrics]
    return Facts(
        name=name,
        model=trained.spec.model,
        network=export.network,
        formats=export.formats,
        license=export.license,
        license_link=export.license_link,
        masking=trained.spec.method,
        value_range=state.value_range,
        mean=state.mean,
        std=state.std,
        registered_by=trained.registered_by,
        code_version=code_version(),
        provenance=trained,
        evaluation=trained.evaluation(state.metrics, max(evaluated, default=None)),
    )


def _reconstructions(store: Store, step: int) -> bytes | None:
    """The run's newest picture of reconstructions up to a step; None if there is none."""
    limit = names.picture_file(step)
    pictures = [name for name in store.names(names.IMAGES) if f"{names.IMAGES}/{name}" <= limit]
    return store.read(f"{names.IMAGES}/{pictures[-1]}") if pictures else None
