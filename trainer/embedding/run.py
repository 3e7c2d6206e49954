"""One attempt of a job that computes features, on every rank: read the network and the images, and write the files that
are not there yet, file i on rank i % world."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
import torch.distributed as dist

from trainer.agreement import Agreement
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.images import Images
from trainer.data.notices import Notice, tell
from trainer.embedding.extractor import Extractor
from trainer.embedding.parts import Parts
from trainer.errors import SpecRefused
from trainer.evaluation.ranks import Ranks
from trainer.protocol import names
from trainer.protocol.command import Action
from trainer.protocol.embeddings import SCHEMA, Embeddings, part_file
from trainer.protocol.evaluation import EvaluatedImages
from trainer.protocol.request import AttemptRequest
from trainer.scoring.interruption import Interrupted
from trainer.scoring.place import Place
from trainer.scoring.subjects import Subject, load_shared
from trainer.spec import metric_keys
from trainer.spec.embed import EmbedSpec
from trainer.tracking.interface import Recorder, UsedDataset
from trainer.training.execution import uses_bf16

MOST_FILES: Final = 100_000
"""Numbers of files have five digits."""
REPORT_SECONDS: Final = 1.0
"""Between two reports of progress."""


def embed(request: AttemptRequest, spec: EmbedSpec, place: Place) -> Action | None:
    """Write what a spec asks for, as far as earlier attempts have not, and `embeddings/schema.json` at the end.

    Every rank calls this, with a resolved spec. Returns the command that ended it early, if there was one. Raises
    `SpecRefused`, `DataError`, `WeightsRefused` and `StorageError`.
    """
    try:
        _embed(request, spec, place)
    except Interrupted as interrupted:
        return interrupted.action
    return None


def _embed(request: AttemptRequest, spec: EmbedSpec, place: Place) -> None:
    place.tracker.enter("opening")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    agree, threads = Agreement(world), int(spec.resources.cpus_per_worker)
    ranks = Ranks(agree, rank, world)
    torch.set_num_threads(threads)
    bf16 = uses_bf16(spec.features.precision, place.device, "features.precision")
    subject = load_shared(spec.backbone, request, place.store, ranks)
    context = DatasetContext(place.cache, threads, agree, rank, request.dataset_roots)
    images = open_images(spec.dataset, subject.model.in_chans, subject.view.size, context, subject.scale)
    parts = Parts(place.store, images, _described(spec, subject, images, bf16))
    extractor = Extractor(parts, subject, place, threads, bf16)
    progress = _Progress(place.recorder, world)
    progress.announce(subject, parts)
    ranks.collect(lambda: _make_room(parts, request) if rank == 0 else None)
    place.tracker.enter("evaluating")
    for first in range(0, len(parts), world):
        progress.begin(sum(len(parts.rows(number)) for number in range(first, min(first + world, len(parts)))))
        ranks.collect(partial(_complete, first + rank, extractor, progress.within))
        progress.end()
    schema = parts.described.model_dump_json(indent=1).encode()
    ranks.collect(lambda: place.store.write(SCHEMA, schema) if rank == 0 else None)


def _described(spec: EmbedSpec, subject: Subject, images: Images, bf16: bool) -> Embeddings:
    model, depth = subject.model, subject.model.depth
    layer = depth if spec.features.layer == "last" else int(spec.features.layer)
    if layer > depth:
        raise SpecRefused(f"features.layer: is {layer}, and the network has {depth} blocks")
    files = -(-len(images) // spec.file_rows)
    if files > MOST_FILES:
        raise SpecRefused(f"rows_per_file: {spec.file_rows} make {files} files of {len(images)} images: raise it")
    return Embeddings(
        backbone=subject.described,
        weights=_digest(subject),
        dataset=EvaluatedImages(
            uri=spec.dataset.uri,
            title=spec.dataset.title or spec.dataset.uri,
            images=len(images),
            fingerprint=images.index.fingerprint,
        ),
        labels=images.labels.labelled,
        pooling=spec.features.pooling,
        layer=layer,
        precision="bf16" if bf16 else "fp32",
        mean=subject.view.mean,
        std=subject.view.std,
        value_range=str(images.scale),
        dtype=spec.dtype,
        width=model.embed_dim,
        patch_tokens=(model.patches, model.embed_dim) if spec.patch_tokens else None,
        rows_per_file=spec.file_rows,
        files=files,
    )


def _digest(subject: Subject) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(subject.state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _make_room(parts: Parts, request: AttemptRequest) -> None:
    """Remove what is not part of the result: all files at a new start, and otherwise those beyond the last one."""
    if request.since_attempt == request.attempt:
        parts.store.delete(names.EMBEDDINGS)
        return
    wanted = {part_file(number) for number in range(len(parts))}
    for name in parts.store.names(names.EMBEDDINGS):
        if f"{names.EMBEDDINGS}/{name}" not in wanted:
            parts.store.delete(f"{names.EMBEDDINGS}/{name}")


def _complete(number: int, extractor: Extractor, progress: Callable[[int], None]) -> None:
    """Write a file, unless there is none of this number or it is there already."""
    extractor.place.check()
    if number < len(extractor.parts) and not extractor.parts.is_whole(number):
        extractor.write(number, progress)


class _Progress:
    """How many images are done, as rank 0 tells the run; the other ranks have no recorder."""

    def __init__(self, recorder: Recorder | None, world: int) -> None:
        self._recorder, self._world = recorder, world
        self._done, self._round, self._told = 0, 0, -math.inf

    def announce(self, subject: Subject, parts: Parts) -> None:
        """Tell what is known before anything is computed."""
        if self._recorder is None:
            return
        told, images = parts.described.dataset, parts.images
        self._recorder.tag({names.TAG_STEPS: str(len(images)), names.TAG_SUBJECT: subject.described.title})
        self._recorder.use([UsedDataset("evaluation", told.title, told.uri, told.fingerprint, told.images)])
        tell(self._recorder, [*(Notice("weights_adapted", note) for note in subject.notes), *images.notices])
        self._record(0)

    def begin(self, rows: int) -> None:
        """A round of files, one on each rank, has so many rows."""
        self._round = rows

    def within(self, rows: int) -> None:
        """So many rows of this rank's file are done, and about as many of each other rank's."""
        if time.monotonic() > self._told + REPORT_SECONDS:
            self._record(self._done + min(rows * self._world, self._round))

    def end(self) -> None:
        """The round is done."""
        self._done += self._round
        self._record(self._done)

    def _record(self, done: int) -> None:
        if self._recorder:
            self._told = time.monotonic()
            self._recorder.log(done, {metric_keys.SAMPLES: float(done)})
