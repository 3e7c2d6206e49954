"""A checkpoint's backbone as files that other libraries load, with a card, registered: at a job's end, or later."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import SpecRefused
from trainer.export.card import Facts, Lineage, write_card
from trainer.export.graph import check_onnx, export_onnx, export_program
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.timm import export_timm
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.protocol.names import BACKBONE_METRICS, BACKBONE_SPEC, BACKBONE_SUMS
from trainer.protocol.request import AttemptRequest
from trainer.spec import metric_keys
from trainer.spec.export import ExportSpec, misfit
from trainer.spec.formats import BACKBONE_HF, BACKBONE_HF_MAE, BACKBONE_ONNX, BACKBONE_TIMM, BACKBONE_TORCH_EXPORT
from trainer.spec.publish import PublishSpec
from trainer.storage import Store, sha256_of
from trainer.temporary import temporary_folder
from trainer.training import checkpoint as checkpoints
from trainer.training.checkpoint import Committed
from trainer.training.state import StoredState, read_parts, spec_of

if TYPE_CHECKING:
    from trainer.tracking.tracker import History, Tracker

CURVES = (
    metric_keys.LOSS, metric_keys.LOSS_RECONSTRUCTION, metric_keys.LOSS_CONSISTENCY, metric_keys.LEARNING_RATE,
    metric_keys.TEACHER_MOMENTUM, metric_keys.GRAD_NORM,
)  # fmt: skip
"""What is told of the training, besides all evaluations."""
POINTS = 200
"""Of a curve in `metrics.json`."""


@dataclass(frozen=True)
class Origin:
    """A kept checkpoint, and the run it is of."""

    job_id: str
    """The pretraining job."""
    run_id: str
    store: Store
    """The run's artifact folder."""
    checkpoint: Committed


def publish(
    request: AttemptRequest, name: str, export: ExportSpec, checkpoint: Committed, store: Store, tracker: Tracker
) -> None:
    """Register a job's own checkpoint under ``name``. Doing it twice keeps one."""
    _register(request, Origin(request.job_id, request.run_id, store, checkpoint), name, export, tracker)


def publish_kept(
    request: AttemptRequest, spec: PublishSpec, tracker: Tracker, wanted: Callable[[], Action | None]
) -> Action | None:
    """Register a checkpoint that another job has kept; gives the command it obeyed instead, if there was one.

    Raises `SpecRefused` where the checkpoint is gone, or has not what is to be exported.
    """
    source = request.source
    if source is None:
        raise SpecRefused("source: a publish job is told where its checkpoint lies, and was not")
    store = Store(source.artifact_uri)
    if spec.checkpoint is None:
        checkpoint = next(reversed(checkpoints.committed(store, source.since_attempt)), None)
    else:
        checkpoint = checkpoints.find(store, spec.checkpoint)
    if checkpoint is None:
        raise SpecRefused(
            f"checkpoint: {spec.checkpoint or 'the newest'} of job {spec.job} is not there: choose one of those that "
            "the job keeps"
        )
    origin = Origin(source.job_id, source.run_id, store, checkpoint)
    trained = spec_of(store, checkpoint)
    export = spec.export.over(trained.export)
    found = misfit(export, trained.method.name, (trained.model.height, trained.model.width))
    if found:
        raise SpecRefused(f"{found[0]}: {found[1]}")
    if BACKBONE_ONNX in export.formats:
        check_onnx()
    return _register(request, origin, spec.register_as, export, tracker, wanted)


def _register(
    request: AttemptRequest,
    origin: Origin,
    name: str,
    export: ExportSpec,
    tracker: Tracker,
    wanted: Callable[[], Action | None] = lambda: None,
) -> Action | None:
    network = read_parts(origin.store, origin.checkpoint, (export.network,))
    history = tracker.history(origin.run_id, (*CURVES, *network.metadata.metrics), network.metadata.step)
    with temporary_folder() as directory:
        facts = _facts(request, origin, name, export, network, history)
        tags = write_version(directory, facts, network.tensors[export.network])
        action = wanted()
        if action:
            return action
        number = tracker.register(name, directory, tags, origin.run_id)
    logger.info("Backbone registered: %s, version %d, of %s", name, number, origin.checkpoint.folder)
    return None


def _facts(
    request: AttemptRequest, origin: Origin, name: str, export: ExportSpec, network: StoredState, history: History
) -> Facts:
    """What is known of a checkpoint, from itself and from its run."""
    spec, state, checkpoint = network.spec, network.metadata, origin.checkpoint
    steps, images = (history.tags.get(tag) for tag in (names.TAG_STEPS, names.TAG_IMAGES))
    # Without the run's total, which is logged before its first checkpoint, the end is all that could be meant.
    per_epoch = int(steps) / spec.optimization.epochs if steps else state.step / spec.optimization.epochs
    evaluated = [points[-1][0] for key, points in history.curves.items() if key in state.metrics]
    return Facts(
        name=name,
        spec=spec,
        export=export,
        lineage=Lineage(
            job_id=origin.job_id,
            registered_by=request.job_id,
            run_id=origin.run_id,
            attempt=checkpoint.manifest.attempt,
            checkpoint=checkpoint.folder,
            code_version=code_version(),
        ),
        dataset_fingerprint=state.dataset_fingerprint,
        dataset_images=int(images) if images else None,
        mean=state.mean,
        std=state.std,
        step=state.step,
        epochs=round(state.step / per_epoch, 3),
        evaluation=state.metrics,
        evaluation_step=max(evaluated, default=None),
        curves={key: [(step / per_epoch, value) for step, value in found] for key, found in history.curves.items()},
        reconstructions=_picture(origin.store, state.step),
    )


def write_version(directory: Path, facts: Facts, weights: Mapping[str, Any]) -> dict[str, str]:
    """All files of a version into an empty local directory; gives its tags.

    ``weights`` is the state of the `MaskedAutoencoder` to export.
    """
    export, spec = facts.export, facts.spec
    ways: dict[str, Callable[[Path], None]] = {
        BACKBONE_TIMM: functools.partial(
            export_timm, weights, spec.model, facts.mean, facts.std,
            license_id=export.license, provenance=_provenance(facts),
        ),
        BACKBONE_HF: functools.partial(export_vit, weights, spec.model, facts.mean, facts.std),
        BACKBONE_HF_MAE: functools.partial(
            export_vit_mae, weights, spec.model, spec.method, facts.mean, facts.std
        ),
        BACKBONE_ONNX: functools.partial(export_onnx, weights, spec.model, facts.mean, facts.std),
        BACKBONE_TORCH_EXPORT: functools.partial(export_program, weights, spec.model, facts.mean, facts.std),
    }  # fmt: skip
    for form in export.formats:
        ways[form](directory / form)
    (directory / BACKBONE_SPEC).write_text(spec.model_dump_json(indent=1))
    (directory / BACKBONE_METRICS).write_text(json.dumps(_metrics(facts)) + "\n")
    write_card(facts, directory)
    write_sums(directory)
    return version_tags(facts)


def version_tags(facts: Facts) -> dict[str, str]:
    """What a version can be found by in the registry, besides the job and the attempt that register it."""
    return {
        names.TAG_SPEC: facts.spec.sha256(),
        names.TAG_DATASET: facts.dataset_fingerprint,
        names.TAG_METHOD: facts.spec.method.name,
        names.TAG_EPOCHS: f"{facts.epochs:g}",
        names.TAG_SOURCE_JOB: facts.lineage.job_id,
        names.TAG_CHECKPOINT: facts.lineage.checkpoint,
        names.TAG_STEP: str(facts.step),
        names.TAG_CODE: facts.lineage.code_version,
        names.TAG_FORMATS: ",".join(facts.export.formats),
        names.TAG_NETWORK: facts.export.network,
        **{f"{names.TAG_METRIC}{key}": repr(value) for key, value in facts.evaluation.items()},
    }


def _provenance(facts: Facts) -> dict[str, Any]:
    lineage = facts.lineage
    return {
        "job_id": lineage.job_id,
        "run_id": lineage.run_id,
        "checkpoint": lineage.checkpoint,
        "network": facts.export.network,
        "method": facts.spec.method.name,
        "epochs": facts.epochs,
        "dataset_fingerprint": facts.dataset_fingerprint,
        "spec_sha256": facts.spec.sha256(),
        "code_version": lineage.code_version,
    }


def _metrics(facts: Facts) -> dict[str, Any]:
    """The last evaluation, and each curve by epoch: its ends, its extremes, and so many points of it."""

    def summary(points: list[tuple[float, float]]) -> dict[str, Any]:
        every = -(-len(points) // POINTS)
        shown = points[::-1][::every][::-1]  # the last one is always there
        return {
            "first": points[0],
            "last": points[-1],
            "least": min(points, key=lambda point: point[1]),
            "greatest": max(points, key=lambda point: point[1]),
            "points": shown,
        }

    return {
        "step": facts.step,
        "epochs": facts.epochs,
        "evaluation": {"step": facts.evaluation_step, "values": dict(facts.evaluation)},
        "curves": {key: summary(points) for key, points in facts.curves.items()},
    }


def _picture(store: Store, step: int) -> bytes | None:
    """The run's newest picture of reconstructions up to a step; None where there is none."""
    ours = [name for name in store.names(names.IMAGES) if f"{names.IMAGES}/{name}" <= names.picture_file(step)]
    return store.read(f"{names.IMAGES}/{ours[-1]}") if ours else None


@functools.cache
def code_version() -> str:
    """The package's version, and twelve digits of a sha256 over the trainer's source, which no release has to name."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return f"{version('rcmae')}+{digest.hexdigest()[:12]}"


def write_sums(directory: Path) -> None:
    """``SHA256SUMS`` over every file below a directory, in the form `sha256sum --check` reads."""
    files = sorted(file for file in _files(directory) if file != directory / BACKBONE_SUMS)
    lines = [f"{sha256_of(file)}  {file.relative_to(directory).as_posix()}\n" for file in files]
    (directory / BACKBONE_SUMS).write_text("".join(lines))


def _files(directory: Path) -> Iterable[Path]:
    return (file for file in directory.rglob("*") if file.is_file())
