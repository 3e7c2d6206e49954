"""One attempt of an evaluation, on every rank: read the network and the images, measure what is not measured yet, and
put the result together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from trainer.agreement import Agreement
from trainer.data.dataset import DatasetContext
from trainer.evaluation.ranks import Ranks
from trainer.protocol.evaluation import EvaluationPicture
from trainer.protocol.request import AttemptRequest
from trainer.scoring.bench import Bench, NetworkFeatures, identity
from trainer.scoring.frozen import FrozenMeasures
from trainer.scoring.interruption import Interrupted
from trainer.scoring.kept import Kept, UnitResult
from trainer.scoring.labelled import open_labelled
from trainer.scoring.pictures import draw_pictures, draw_results
from trainer.scoring.place import Place
from trainer.scoring.product import Ended, Product, product_of
from trainer.scoring.progress import Progress
from trainer.scoring.results import check_reference, read_reference, store_result
from trainer.scoring.subjects import load_shared
from trainer.scoring.trained import TrainedMeasures, check_trainings
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.measurements import Unit, groups, registered, trainings
from trainer.training.execution import uses_bf16


def evaluate(request: AttemptRequest, spec: EvaluateSpec, place: Place) -> Ended:
    """Measure what a spec asks for, as far as earlier attempts have not, and store `evaluation.json`.

    Every rank calls this, with a resolved spec. The checkpoints of a classifier that is to be registered stay, and so
    does nothing else of the trainings. Raises `SpecRefused`, `DataError`, `WeightsRefused` and `StorageError`.
    """
    try:
        return Ended(product=_evaluate(request, spec, place))
    except Interrupted as interrupted:
        return Ended(interrupted.action)


def _evaluate(request: AttemptRequest, spec: EvaluateSpec, place: Place) -> Product | None:
    # --- the network and the images ---------------------------------------------------------------------------------
    place.tracker.enter("opening")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    agree, threads = Agreement(world), int(spec.resources.cpus_per_worker)
    ranks = Ranks(agree, rank, world)
    torch.set_num_threads(threads)
    bf16 = uses_bf16(spec.features.precision, place.device, "features.precision")
    reference = ranks.collect(partial(read_reference, request, spec))[rank]
    subject = load_shared(spec.backbone, request, place.store, ranks)
    data = open_labelled(spec, subject, DatasetContext(place.cache, threads, agree, rank, request.dataset_roots))
    bench = Bench(spec, subject, data, ranks, place.device, threads, bf16, place.check)
    check_reference(reference, bench)
    check_trainings(bench)

    # --- measuring --------------------------------------------------------------------------------------------------
    kept = Kept.read(place.store, request.attempt, request.since_attempt, identity(bench), ranks)
    progress = Progress(bench, kept, place.recorder)
    progress.announce()
    place.tracker.enter("evaluating")
    pictures = _measure_features(bench, kept, progress, place)
    _measure_trainings(request, agree, bench, kept, progress, place)

    # --- the result -------------------------------------------------------------------------------------------------
    def finish() -> Product | None:
        drawn = [*pictures, *draw_results(bench, kept, place.store)]
        evaluation = store_result(place.store, bench, kept, drawn, reference)
        progress.complete(evaluation.metrics)
        return product_of(bench, evaluation)

    return ranks.collect(lambda: finish() if rank == 0 else None)[rank]


def _measure_features(bench: Bench, kept: Kept, progress: Progress, place: Place) -> list[EvaluationPicture]:
    """Measure what needs only the features of frozen networks, one network's in memory at a time, and draw pictures."""
    pictures: list[EvaluationPicture] = []
    for group in groups(bench.spec):
        features = NetworkFeatures(bench, bench.encoder(group))
        measures = FrozenMeasures(bench, kept, features)
        for unit in group.units:
            if unit not in kept:
                _measure(unit, measures.measure, bench, kept, progress)
        if group.weights == "backbone":
            bench.ranks.collect(bench.check)
            pictures = draw_pictures(features, bench, kept, place.store)
    return pictures


def _measure_trainings(
    request: AttemptRequest, agree: Agreement, bench: Bench, kept: Kept, progress: Progress, place: Place
) -> None:
    measures = TrainedMeasures(
        request, bench, kept, agree, place.recorder, place.requested_action, place.tracker, progress.within
    )
    for unit in trainings(bench.spec):
        if unit not in kept:
            _measure(unit, measures.measure, bench, kept, progress)
        if unit != registered(bench.spec):
            bench.ranks.collect(lambda unit=unit: measures.forget(unit) if bench.ranks.rank == 0 else None)  # type: ignore[misc]


def _measure(unit: Unit, measure: Callable[[Unit], UnitResult], bench: Bench, kept: Kept, progress: Progress) -> None:
    """Measure a unit and keep its result. What one rank does alone fails on all."""
    bench.ranks.collect(bench.check)
    progress.begin(unit)
    result = measure(unit)
    bench.ranks.collect(lambda: kept.keep(unit, result, write=bench.ranks.rank == 0))
    progress.done(unit)
