"""The result of an evaluation, from what its units have measured."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.notices import Notice
from trainer.errors import SpecRefused
from trainer.evaluation.robustness import mean_corruption_error
from trainer.evaluation.scores import per_class, summarised
from trainer.protocol.evaluation import (
    EVALUATION,
    EVALUATION_FOLDER,
    CorruptionScore,
    EvaluatedImages,
    Evaluation,
    EvaluationPicture,
    Score,
)
from trainer.protocol.inspection import Warned
from trainer.protocol.references import misfit
from trainer.protocol.request import AttemptRequest
from trainer.scoring.bench import Bench
from trainer.scoring.kept import Kept, UnitResult, dense
from trainer.scoring.labelled import LabelledSet
from trainer.spec.dataset import DatasetSpec
from trainer.spec.evaluate import NO_SETTINGS, EvaluateSpec, LinearProtocol, RobustnessProtocol
from trainer.spec.measurements import Unit, measurements
from trainer.storage import Store

Results = Mapping[str, UnitResult]
"""By the names of units."""


def by_key(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    """The units of each score, in their order."""
    found: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        found[unit.key].append(unit)
    return dict(found)


def score(spec: EvaluateSpec, key: str, units: Sequence[Unit], results: Results, classes: int, tested: int) -> Score:
    """The score that some units make together."""
    first, found = units[0], [results[unit.name] for unit in units]
    measured = [each.measured for each in found]
    if first.corruption is not None:  # its units are corruptions with one seed, not seeds
        mean = fmean(each.top1 for each in measured)
        summary = summarised([round(mean * tested)], tested)
        joined = measured[0].model_copy(update={"top1": mean, "correct": round(mean * tested)})
        measured, interval = [joined], None
    else:
        summary = summarised([each.correct for each in measured], tested)
        mean, interval = fmean(each.top1 for each in measured), summary.seeds_interval
    matrix = confusion_of(found, classes)
    return Score(
        key=key,
        protocol=first.protocol,
        share=first.share,
        weights=first.weights,
        top1=mean,
        seeds=measured,
        seeds_interval=interval,
        test_interval=summary.test_interval,
        settings=settings_of(spec, first.protocol),
        per_class=[] if matrix is None else [_or_none(value) for value in per_class(matrix).tolist()],
        confusion=None if matrix is None else confusion_file(first),
    )


def settings_of(spec: EvaluateSpec, protocol: str) -> dict[str, Any]:
    """A protocol's settings as the spec has them, with defaults; of an object its fields by dotted names.

    What `low_label` alone names has its defaults.
    """
    named = {each.name: each for each in spec.protocols} | spec.trainings
    settings = named.get(protocol) or LinearProtocol(name="linear")
    return dict(_dotted(settings.model_dump(mode="json", exclude=set(NO_SETTINGS), exclude_none=True)))


def _dotted(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", each) for inner, each in _dotted(value))
        else:
            yield name, value


def confusion_of(found: Sequence[UnitResult], classes: int) -> NDArray[np.int64] | None:
    """The confusion matrix (C, C) added up over units; None if they have none."""
    matrices = [dense(each.confusion, classes) for each in found if each.confusion]
    return np.sum(matrices, axis=0) if matrices else None


def confusion_file(unit: Unit) -> str:
    """The file of a score's confusion matrix in the run's artifact folder."""
    share = f"-{unit.share:g}" if unit.share else ""
    return f"{EVALUATION_FOLDER}/confusion-{unit.protocol}{share}.json"


def write_confusion(store: Store, unit: Unit, classes: Sequence[str], matrix: NDArray[np.int64]) -> None:
    """Store a confusion matrix with the names of its classes."""
    document = {"classes": list(classes), "rows": matrix.tolist()}
    store.write(confusion_file(unit), json.dumps(document, ensure_ascii=False).encode())


def corruption_scores(units: Iterable[Unit], results: Results) -> Iterator[CorruptionScore]:
    """Every accuracy on corrupted images."""
    for unit in units:
        if unit.corruption is not None:
            for severity, accuracy in sorted(results[unit.name].by_severity.items()):
                yield CorruptionScore(
                    weights=unit.weights, corruption=unit.corruption, severity=severity, top1=accuracy
                )


def corruption_error(units: Iterable[Unit], results: Results, reference: Evaluation | None) -> float | None:
    """The backbone's mean corruption error, relative to another evaluation's errors, or the plain mean; None if no
    corruption was measured.
    """
    errors: dict[str, list[float]] = {
        unit.corruption: [1 - accuracy for _, accuracy in sorted(results[unit.name].by_severity.items())]
        for unit in units
        if unit.corruption is not None and unit.weights == "backbone"
    }
    if not errors:
        return None
    if reference is None:
        return fmean(fmean(each) for each in errors.values())
    theirs: dict[str, list[float]] = defaultdict(list)
    for each in sorted(reference.corruptions, key=lambda found: found.severity):
        if each.weights == "backbone":
            theirs[each.corruption].append(1 - each.top1)
    return mean_corruption_error(errors, theirs)


def notices_of(bench: Bench) -> list[Notice]:
    """What was decided for people, and what they should know."""
    spec, data = bench.spec, bench.data
    found = [Notice("weights_adapted", note) for note in bench.subject.notes]
    if spec.test is None:
        found.append(
            Notice(
                "held_out",
                f"{len(data.test)} of {len(data.test) + len(data.train)} labelled images, {spec.held_out:.0%} of each "
                "class, are held out for the test: the same ones for every evaluation of these images with this share",
            )
        )
    if spec.seeds > 1 and any(isinstance(each, RobustnessProtocol) for each in spec.protocols):
        found.append(
            Notice(
                "robustness_one_seed",
                f"corrupted images are classified with seed {spec.seed} alone, for the backbone and for untrained "
                "weights: each score is a mean over corruptions, and has no interval over seeds",
            )
        )
    return [*found, *data.notices]


def read_reference(request: AttemptRequest, spec: EvaluateSpec) -> Evaluation | None:
    """The evaluation that the mean corruption error is relative to; None if there is none.

    Raises `SpecRefused` if it is not there.
    """
    wanted = spec.reference
    if wanted is None:
        return None
    if request.reference_uri is None:
        raise SpecRefused("reference_uri: the request must say where the reference is, and does not")
    stored = Store(request.reference_uri)
    if not stored.exists(EVALUATION):
        raise SpecRefused(f"{wanted.field}: {wanted.job} has no result: name another evaluation")
    return Evaluation.model_validate_json(stored.read(EVALUATION))


def check_reference(reference: Evaluation | None, bench: Bench) -> None:
    """Raise `SpecRefused` if the reference does not compare: it has other corruptions, or other test images."""
    wanted, test = bench.spec.reference, bench.data.test
    if reference is None or wanted is None:
        return
    why = misfit(wanted, bench.spec, reference, test.images.index.fingerprint)
    if not why and reference.test.images != len(test):
        why = (
            f"{wanted.job} was scored on {reference.test.images} images of {reference.test.title}, and this evaluation "
            f"on {len(test)} of them: name one of the same test images"
        )
    if why:
        raise SpecRefused(f"{wanted.field}: {why}")


def store_result(
    store: Store, bench: Bench, kept: Kept, pictures: Sequence[EvaluationPicture], reference: Evaluation | None
) -> Evaluation:
    """Store the evaluation's result, and its confusion matrices."""
    units = measurements(bench.spec)
    for found in by_key(units).values():
        matrix = confusion_of([kept.results[unit.name] for unit in found], bench.classes)
        if matrix is not None:
            write_confusion(store, found[0], bench.data.classes, matrix)
    evaluation = _evaluation(bench, kept, units, pictures, reference)
    store.write(EVALUATION, evaluation.model_dump_json(indent=1).encode())
    return evaluation


def _evaluation(
    bench: Bench,
    kept: Kept,
    units: Sequence[Unit],
    pictures: Sequence[EvaluationPicture],
    reference: Evaluation | None,
) -> Evaluation:
    spec, data, results = bench.spec, bench.data, kept.results
    tested = len(data.test)
    return Evaluation(
        backbone=bench.subject.described,
        train=_images(spec.dataset, data.train),
        test=_images(spec.test or spec.dataset, data.test),
        held_out=None if spec.test else spec.held_out,
        classes=list(data.classes),
        pooling=spec.features.pooling,
        layer=str(spec.features.layer),
        precision="bf16" if bench.bf16 else "fp32",
        scores=[score(spec, key, found, results, bench.classes, tested) for key, found in by_key(units).items()],
        corruptions=list(corruption_scores(units, results)),
        mce=corruption_error(units, results, reference),
        mce_reference=spec.reference.job if spec.reference else None,
        pictures=list(pictures),
        notices=[Warned(code=each.code, message=each.message) for each in notices_of(bench)],
        seconds=sum(results[unit.name].seconds for unit in units),
    )


def _images(dataset: DatasetSpec, images: LabelledSet) -> EvaluatedImages:
    return EvaluatedImages(
        uri=dataset.uri,
        title=dataset.title or dataset.uri,
        images=len(images),
        fingerprint=images.images.index.fingerprint,
    )


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
