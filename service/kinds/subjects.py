"""The networks that jobs measure or use: found for a spec at its submission, and again when an attempt starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy.orm import Session

from service.adapters.storage import Artifacts
from service.auth.caller import Caller
from service.backbones import registry
from service.backbones.registry import Served
from service.context.app_state import AppState
from service.controller.kind import CannotStart
from service.db.database import Database
from service.db.tables import BackboneVersion, Job
from service.http.problems import ApiProblem, spec_problem
from service.jobs import repository
from service.jobs.checkpoints import checkpoints_of
from service.jobs.dataset_images import dataset_images
from service.jobs.registering import type_of
from service.jobs.state import State
from service.jobs.submission import check_roots
from service.jobs.versions import VersionState
from trainer.protocol import names
from trainer.protocol.request import Source, VersionSource
from trainer.spec.base import Problem
from trainer.spec.dataset import DatasetSpec
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.finetuning import SupervisedSettings, cpu_micro_batch, supervised_memory
from trainer.spec.formats import WEIGHTS_FORMATS
from trainer.spec.job import Kind, parse_spec
from trainer.spec.pretrain import ModelSpec, PretrainSpec
from trainer.spec.subject import CheckpointRef, SubjectRef, WeightsRef, reference

LIBRARIES: Final = 2**30
"""Bytes: torch, MLflow and what a process needs anyway."""
UNKNOWN_NETWORK: Final = 4 * 2**30
"""Bytes, an estimate for weights whose size is not known before their files are read: enough for a ViT-L."""
LARGE_WIDTH, LARGE_DEPTH = 1024, 24
"""Of that."""
AT_ONCE: Final = 64
"""Images that go through the network at once."""
TRAINED: Final = CheckpointRef(job="job")
"""Stands for what a job will have trained, before it has."""


class Found(NamedTuple):
    """What a spec's subject means now."""

    fixed: Any
    """The subject as the job's spec keeps it: of a name its version, of an ended job its newest checkpoint."""
    trained: PretrainSpec | None
    """The spec that trained it; None for weights from elsewhere and imported ones."""

    @property
    def model(self) -> ModelSpec | None:
        """The network's sizes, where they are known before its files are read."""
        return self.trained.model if self.trained else None


def find_subject(app_state: AppState, caller: Caller, ref: SubjectRef, field: str) -> Found:
    """The network that a spec's ``field`` names; raises the spec's error if the caller sees none.

    Reads from the artifact storage: no transaction may be open.
    """
    if isinstance(ref, WeightsRef):
        check_roots(app_state.settings, {field: ref})
        return Found(ref.model_dump(mode="json"), None)
    if isinstance(ref, CheckpointRef):
        return _checkpoint(app_state, caller, ref, field)
    served = _version(app_state, caller, ref, field)
    return Found(f"{served.name}:{served.number}", _trained_by(app_state, served))


def subject_source(session: Session, ref: SubjectRef, done: str) -> Source | VersionSource | None:
    """Where an attempt reads the subject of its job, whose spec has been fixed at the submission; None for weights from
    elsewhere. ``done``: what was to be done with it. Raises `CannotStart` if it is gone.
    """
    if isinstance(ref, WeightsRef):
        return None
    if isinstance(ref, CheckpointRef):
        return checkpoint_source(session, ref.job, done)
    named = reference(ref)
    row = session.get(BackboneVersion, (named.name, named.version))
    if row is None or row.state != VersionState.READY or row.folder is None:
        raise CannotStart(f"{ref}, which was to be {done}, has been deleted.")
    return VersionSource(
        name=row.name, version=row.version, folder=row.folder, trained_by=row.trained_by, tags=dict(row.tags)
    )


def still_there(session: Session, ref: SubjectRef, field: str, done: str) -> None:
    """Raise the spec's error if the subject of a job that is about to be queued again has been deleted."""
    try:
        subject_source(session, ref, done)
    except CannotStart as error:
        text = f"{str(error).rstrip('.')}: submit a new job about another one, and delete this one"
        raise refused(field, text, ref if isinstance(ref, str) else ref.model_dump(mode="json")) from error


def checkpoint_source(session: Session, job_id: str, done: str) -> Source:
    """Where an attempt reads the checkpoints of a job. ``done``: what was to be done with one. Raises `CannotStart`."""
    job = session.get(Job, job_id)
    if job is None or job.deleted_at is not None or not job.run_id or not job.artifact_uri:
        raise CannotStart(f"{job_id}, whose checkpoint was to be {done}, has been deleted: nothing is left to read.")
    return Source(job_id=job.id, run_id=job.run_id, artifact_uri=job.artifact_uri, since_attempt=job.since_attempt)


def labelled_images(session: Session, *datasets: DatasetSpec | None) -> int | None:
    """The number of images of some datasets together, as earlier jobs have counted them; None: one is not known."""
    counts = [dataset_images(session, each) for each in datasets if each]
    return None if None in counts else sum(count for count in counts if count)


def evaluation_memory(spec: EvaluateSpec, trained: PretrainSpec | None, images: int | None) -> int:
    """Estimated bytes of a worker that evaluates a network, without features of ``images`` of unknown number.

    Features of all images stay in memory while classifiers are trained on batches, and the network is there twice.
    """
    memory = forward_memory(trained)
    width, depth = (trained.model.embed_dim, trained.model.depth) if trained else (LARGE_WIDTH, LARGE_DEPTH)
    memory += (images or 0) * width * (depth if spec.features.layer == "all" else 1) * 4
    if trained is None or not spec.trainings:
        return memory
    gpu = spec.resources.gpus_per_worker == 1
    return memory + max(
        supervised_memory(each, trained.model, _at_once(each, trained.model, gpu), each.uses_bf16(gpu))
        for each in spec.trainings.values()
    )


def _at_once(settings: SupervisedSettings, model: ModelSpec, gpu: bool) -> int:
    if settings.micro_batch_size != "auto":
        return settings.micro_batch_size
    return 2 if gpu else cpu_micro_batch(model)  # on a GPU the worker chooses it by the memory


def forward_memory(trained: PretrainSpec | None) -> int:
    """Estimated bytes of a worker that computes features with a network; None: one of unknown size."""
    if trained is None:
        return LIBRARIES + UNKNOWN_NETWORK
    model = trained.model
    activations = AT_ONCE * (1 + model.patches) * model.embed_dim * 4 * 12
    return LIBRARIES + 2 * 4 * model.parameters[0] + activations


def pretraining_job(database: Database, caller: Caller, job_id: str, field: str, done: str) -> Job:
    """The job that a spec's ``field`` names for one of its checkpoints to be ``done``; raises the spec's error."""
    with database.read() as session:
        try:
            job = repository.visible_job(session, job_id, caller)
        except ApiProblem as error:
            raise refused(field, f"{error.detail}: `rcmae jobs list` shows yours", job_id) from error
    if job.kind == Kind.SEARCH:
        text = f"is a search, whose checkpoints cannot be {done}: promote a trial, and name the job it becomes"
        raise refused(field, text, job_id)
    if job.kind != Kind.PRETRAIN:
        raise refused(field, f"is a {job.kind} job: name the job that trained the backbone", job_id)
    return job


def require_checkpoint(artifacts: Artifacts, job: Job, checkpoint: str | None, fields: Mapping[str, str]) -> str:
    """The folder of a checkpoint that a job has kept, by default the newest; raises the spec's error if there is none.

    ``fields``: the spec's fields for ``job`` and ``checkpoint``.
    """
    kept = [each.path for each in checkpoints_of(job, artifacts)]
    if not kept:
        raise refused(fields["job"], "has no checkpoint yet: wait for the first one", job.id)
    if checkpoint is not None and checkpoint not in kept:
        raise refused(fields["checkpoint"], f"is not a checkpoint of {job.id}: it has {', '.join(kept)}", checkpoint)
    return checkpoint or kept[0]


def refused(field: str, message: str, value: object) -> ApiProblem:
    """The spec's error about one field."""
    return spec_problem([Problem(field, f"/{field.replace('.', '/')}", value, message)])


def _checkpoint(app_state: AppState, caller: Caller, ref: CheckpointRef, field: str) -> Found:
    job = pretraining_job(app_state.database, caller, ref.job, f"{field}.job", "measured or used")
    trained = parse_spec(job.run_spec)
    if not isinstance(trained, PretrainSpec):
        raise TypeError(f"a pretraining job with a spec of kind {trained.kind}")
    if ref.network == "teacher" and trained.method.teacher is None:
        text = f"method {trained.method.name} has no teacher: use student, or leave it out"
        raise refused(f"{field}.network", text, ref.network)
    fields = {"job": f"{field}.job", "checkpoint": f"{field}.checkpoint"}
    folder = require_checkpoint(app_state.artifacts, job, ref.checkpoint, fields)
    # The newest one of a job that still trains may be pruned soon: the attempt takes the newest one then.
    fixed = ref.checkpoint if not State(job.state).terminal else folder
    return Found(ref.model_copy(update={"checkpoint": fixed}).model_dump(mode="json"), trained)


def _version(app_state: AppState, caller: Caller, ref: str, field: str) -> Served:
    named = reference(ref)
    backbone = registry.named(app_state, caller, named.name)
    if backbone is None:
        raise refused(field, f"there is no backbone {named.name}: `rcmae backbones list` shows those you see", ref)
    if named.alias is not None:
        served = backbone.numbered(backbone.aliases.get(named.alias))
        known = f"it has {', '.join(backbone.aliases) or 'none'}"
        missing = f"{named.name} has no alias {named.alias}: {known}"
    else:
        served = backbone.main if named.version is None else backbone.numbered(named.version)
        known = ", ".join(str(each.number) for each in backbone.versions[-20:])
        missing = f"{named.name} has no version {named.version}: it has {known}"
    if served is None:
        raise refused(field, missing, ref)
    if served.gone:
        raise refused(field, f"{served.name}:{served.number} was deleted in MLflow: name another version", ref)
    if type_of(served.row.tags) == names.CLASSIFIER:
        base = served.row.tags.get(names.TAG_FINE_TUNED_FROM, "its backbone")
        text = f"{served.name}:{served.number} is a classifier, of which no features are computed: name {base}"
        raise refused(field, f"{text}, which it was fine-tuned from, or its own evaluation for its scores", ref)
    if served.formats and not {*served.formats} & {*WEIGHTS_FORMATS}:
        text = f"{served.name}:{served.number} has only {', '.join(served.formats)}, from which no weights are read"
        advice = f"name the checkpoint of its job, or a version with one of {', '.join(WEIGHTS_FORMATS)}"
        raise refused(field, f"{text}: {advice}", ref)
    return served


def _trained_by(app_state: AppState, served: Served) -> PretrainSpec | None:
    with app_state.database.read() as session:
        job = session.get(Job, served.row.trained_by)
        trained = parse_spec(job.run_spec) if job else None
    return trained if isinstance(trained, PretrainSpec) else None
