"""Jobs that inspect a dataset: what it holds, and what training would make of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from trainer.attempt.outcome import outcome_after
from trainer.attempt.worker import Worker
from trainer.attempt.workers import run_workers
from trainer.logger import logger
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.protocol.inspection import INSPECTION, Inspection
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.spec import metric_keys
from trainer.spec.dataset import DIGITS
from trainer.spec.inspect import InspectSpec
from trainer.storage import Store
from trainer.tracking.interface import Recorder

if TYPE_CHECKING:
    from trainer.data.cache import Cache

REPORT_SECONDS = 1.0
"""Between two reports of progress."""


class _Interrupted(Exception):
    """A command ends the attempt."""

    def __init__(self, action: Action) -> None:
        super().__init__(action)
        self.action = action


def run(request: AttemptRequest, store: Store) -> Outcome:
    return run_workers(request, store, work)


def work(worker: Worker) -> Outcome:
    """What the only worker does."""
    from trainer.data.cache import Cache  # noqa: PLC0415 - the driver imports this module too, and does without OpenCV

    spec = worker.request.spec
    if not isinstance(spec, InspectSpec):
        raise TypeError(f"an inspection with a spec of kind {spec.kind}")
    try:
        inspect(spec, worker.store, Cache(), worker.request.dataset_roots, worker.recorder, worker.requested_action)
    except _Interrupted as interrupted:
        return outcome_after(interrupted.action)
    return outcome_after(None)


def inspect(
    spec: InspectSpec,
    store: Store,
    cache: Cache,
    roots: tuple[str, ...] | None,
    recorder: Recorder | None,
    requested_action: Callable[[], Action | None] = lambda: None,
) -> Inspection:
    """Inspect a dataset, and store the result and a picture. Raises `DataError` and `StorageError` as training does."""
    from trainer.data.examine import examine_digits, examine_files  # noqa: PLC0415
    from trainer.data.report import contact_sheet, make_report  # noqa: PLC0415
    from trainer.data.sources import find_files  # noqa: PLC0415

    last_report = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last_report
        action = requested_action()
        if action:
            raise _Interrupted(action)
        if recorder and (time.monotonic() - last_report > REPORT_SECONDS or done == total):
            last_report = time.monotonic()
            recorder.tag({names.TAG_STEPS: str(total)})
            recorder.log(done, {metric_keys.SAMPLES: float(done)})

    dataset, cores = spec.dataset, spec.resources.cpus_per_worker
    if dataset.uri == DIGITS:
        examined = examine_digits(dataset, 1, cores, spec.sample, progress)
    else:
        examined = examine_files(find_files(dataset, roots), dataset, cache, cores, spec.sample, progress)
    inspection = make_report(dataset, examined, cores)
    picture = contact_sheet(examined, inspection)
    if picture:
        store.write(names.SAMPLES_PICTURE, picture)
    store.write(INSPECTION, inspection.model_dump_json(indent=1).encode())
    for warned in inspection.warnings:
        logger.warning("%s", warned.message)
    return inspection
