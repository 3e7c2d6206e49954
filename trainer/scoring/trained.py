"""Protocols that train on batches of images: fine-tuning, the paper's linear classifier, the attentive one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from trainer.agreement import Agreement
from trainer.errors import SpecRefused
from trainer.evaluation.scores import Predictions
from trainer.evaluation.subsets import stratified
from trainer.finetuning.loop import PICTURE, train
from trainer.finetuning.training import Trained, Training, TrainingPlace, runnable
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.protocol.evaluation import EVALUATION_FOLDER
from trainer.protocol.request import AttemptRequest
from trainer.scoring.bench import Bench
from trainer.scoring.frozen import measured
from trainer.scoring.interruption import Interrupted
from trainer.scoring.kept import Kept, UnitResult
from trainer.scoring.work import settings_of_unit, training_images
from trainer.spec import metric_keys
from trainer.spec.base import SpecError
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.finetuning import FinetuneSettings
from trainer.spec.measurements import Unit, trainings
from trainer.storage import Store
from trainer.tracking.activity import ActivityTracker
from trainer.tracking.interface import Recorder
from trainer.training.execution import uses_bf16

RECORDED: Final = (
    metric_keys.LOSS, metric_keys.LEARNING_RATE, metric_keys.GRAD_NORM, metric_keys.IMAGES_PER_S,
    metric_keys.TEST_TOP1,
)  # fmt: skip
"""The metrics of a training that the run keeps, under its unit's name."""


class TrainedMeasures:
    """Measures units that train. Every rank has one and measures the same units."""

    def __init__(
        self,
        request: AttemptRequest,
        bench: Bench,
        kept: Kept,
        agree: Agreement,
        recorder: Recorder | None,
        requested_action: Callable[[], Action | None],
        tracker: ActivityTracker,
        within: Callable[[Unit, float], None],
    ) -> None:
        """``within``: called with how many epochs of a training are done."""
        self._request, self._bench, self._kept, self._agree, self._within = request, bench, kept, agree, within
        self._recorder, self._requested_action, self._tracker = recorder, requested_action, tracker
        self._store = Store(request.artifact_uri)

    def measure(self, unit: Unit) -> UnitResult:
        """Train, or go on training, and test. Raises `Interrupted` on every rank if a command ended the training."""
        started = time.monotonic()
        training = self._training(unit)
        place = self._place(unit)
        trained = train(training, place)
        self._tracker.enter("evaluating")
        if trained.action:
            raise Interrupted(trained.action)
        if is_pictured(self._bench.spec, unit):
            self._bench.ranks.collect(lambda: self._keep_picture(unit, place.store))
        if trained.scores is None:
            raise RuntimeError(f"{unit}: the training is complete and has no scores")
        details = _details(trained)
        seconds = time.monotonic() - started
        return measured(
            self._bench, self._kept, unit, Predictions(trained.scores), len(training.rows), details, seconds
        )

    def _keep_picture(self, unit: Unit, folder: Store) -> None:
        if self._bench.ranks.rank == 0:
            self._store.write(picture_of(unit), folder.read(PICTURE))

    def forget(self, unit: Unit) -> None:
        """Delete a training's folder, once its result is kept. On one rank."""
        forget(self._store, unit)

    def _training(self, unit: Unit) -> Training:
        bench, data = self._bench, self._bench.data
        train_set = data.train
        if unit.share is not None:
            train_set = train_set.take(stratified(train_set.labels, unit.share, unit.seed))
        return Training(
            settings=settings_of_unit(bench.spec, unit),
            model=bench.subject.model,
            view=bench.subject.view,
            encoder=self._weights(unit),
            images=train_set.images,
            rows=train_set.rows,
            labels=train_set.labels,
            classes=bench.classes,
            test_images=data.test.images,
            test_rows=data.test.rows,
            test_labels=data.test.labels,
            seed=unit.seed,
            class_names=data.classes,
        )

    def _weights(self, unit: Unit) -> Mapping[str, Any] | None:
        """The encoder that the training begins with; None: random weights by its seed."""
        if unit.weights == "backbone":
            return self._bench.subject.state
        if unit.weights == "scratch":
            return None
        return self._bench.subject.untrained(unit.seed, self._bench.device).state_dict()

    def _place(self, unit: Unit) -> TrainingPlace:
        request, bench = self._request, self._bench
        return TrainingPlace(
            store=Store(folder_of(request.artifact_uri, unit)),
            attempt=request.attempt,
            since_attempt=request.since_attempt,
            agree=self._agree,
            ranks=bench.ranks,
            record=partial(self._record, self._recorder, unit) if self._recorder else None,
            notice=_noticing(self._recorder) if self._recorder else lambda _: None,
            requested_action=self._requested_action,
            tracker=self._tracker,
            device=bench.device,
            threads=bench.threads,
            loader_processes=int(bench.spec.resources.loader_processes),
        )

    def _record(self, recorder: Recorder, unit: Unit, step: int, metrics: Mapping[str, float]) -> None:
        recorder.log_curve(step, {unit.curve(key): metrics[key] for key in RECORDED if key in metrics})
        if metric_keys.EPOCH in metrics:
            self._within(unit, metrics[metric_keys.EPOCH])


def check_trainings(bench: Bench) -> None:
    """Raise `SpecRefused` for a training that the data, the network or the workers do not allow: before anything is
    measured, and not hours later when it is its turn.
    """
    for unit in trainings(bench.spec):
        images = training_images(bench, unit)
        settings = settings_of_unit(bench.spec, unit)
        try:
            uses_bf16(settings.precision, bench.device, "precision")
            runnable(settings, bench.subject.model, images, bench.ranks.world)
        except (SpecError, SpecRefused) as error:
            share = f" on {100 * unit.share:g} % of the labels, {images} images" if unit.share else ""
            raise SpecRefused(f"protocols.{unit.protocol}{share}: {error}") from error


def forget(store: Store, unit: Unit) -> None:
    """Delete a training's folder in the run's artifact folder, with its checkpoints."""
    store.delete(f"{names.TRAININGS}/{unit.name}")


def folder_of(artifact_uri: str, unit: Unit) -> str:
    """A training's own folder, with its checkpoints."""
    return f"{artifact_uri.rstrip('/')}/{names.TRAININGS}/{unit.name}"


def is_pictured(spec: EvaluateSpec, unit: Unit) -> bool:
    """Whether the picture of a training's first batch is kept: of each protocol's first training of the backbone."""
    return unit.weights == "backbone" and unit.seed == spec.seed and unit.share is None


def picture_of(unit: Unit) -> str:
    """The picture of a training's first batch in the run's artifact folder."""
    return f"{EVALUATION_FOLDER}/batch-{unit.protocol}.png"


def _details(trained: Trained) -> dict[str, Any]:
    settings = trained.settings
    details: dict[str, Any] = {
        "epochs": float(settings.epochs),
        "batch_size": float(settings.batch_size),
        "peak_lr": settings.peak_lr,
        "steps": float(trained.checkpoint.manifest.step),
    }
    if isinstance(settings, FinetuneSettings):
        details |= {"layer_decay": float(settings.layer_decay), "drop_path": float(settings.drop_path)}
    return details


def _noticing(recorder: Recorder) -> Callable[[str], None]:
    def notice(sentence: str) -> None:
        recorder.tag({names.TAG_NOTICE: sentence})

    return notice
