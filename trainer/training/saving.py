"""Checkpoints stored beside training: the state is copied at a step, and a thread does the rest. Rank 0 only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic

import torch
from torch import nn

from trainer.errors import StorageError
from trainer.logger import logger
from trainer.protocol.names import TAG_CHECKPOINT, TAG_NOTICE
from trainer.spec.metric_keys import RECONSTRUCTION_RATIO
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store, patience
from trainer.training import checkpoint as checkpoints

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 60.0
"""From a failed upload to the next checkpoint: doubled with each failure in a row, up to the longest."""
REMOVAL_SECONDS = 5.0
"""A storage that has just failed is not tried for long only to tidy up: the service sweeps what is left."""

Tag = Callable[[Mapping[str, str]], None]
"""Sets tags of the run, without waiting and without failing."""


class Saver:
    """Stores one checkpoint at a time while training goes on. A failing storage never harms the ones before it."""

    def __init__(
        self,
        spec: PretrainSpec,
        store: Store,
        attempt: int,
        since_attempt: int,
        tag: Tag,
        last: checkpoints.Committed | None,
    ) -> None:
        self._spec, self._store, self._attempt, self._since_attempt = spec, store, attempt, since_attempt
        self._tag, self._last = tag, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[None] | None = None
        self._copies: checkpoints.Files = {}
        """The last snapshot's memory, which the next one takes over."""
        self._failures = 0
        """Uploads that failed since the last good one."""
        self._since = monotonic()
        """When the last checkpoint was taken, or its upload failed."""

    def due(self, by_epoch: bool) -> bool:
        """Whether a checkpoint is to be taken at this step, for its epoch or by the time that has passed.

        Only one due for its epoch waits for an earlier upload. After a failed one time alone says when to try again:
        training never waits for a storage that is known to fail.
        """
        if self._upload and self._upload.done():
            self._settle()
        every, since, idle = self._spec.checkpoint.every_minutes, monotonic() - self._since, self._upload is None
        if self._failures:
            return idle and since >= min(RETRY_SECONDS * 2 ** min(self._failures - 1, 10), LONGEST_RETRY_SECONDS)
        return by_epoch or (idle and every is not None and since >= 60 * every)

    def save(
        self,
        state: checkpoints.State,
        metrics: dict[str, float],
        student: nn.Module,
        teacher: nn.Module | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Copy the state and begin to store it, after the upload before it. ``metrics`` are of this very step."""
        self._settle()
        snapshot = checkpoints.take(self._spec, state, metrics, student, teacher, optimizer, self._copies)
        self._copies = snapshot.files
        self._since = monotonic()
        self._upload = self._thread.submit(self._store_one, snapshot)

    def finish(self) -> checkpoints.Committed:
        """Wait until the last checkpoint is stored; raises `StorageError` where it cannot be."""
        error = self._settle()
        if error:
            raise error
        if self._last is None:
            raise RuntimeError("no checkpoint was taken")
        return self._last

    def close(self) -> None:
        """Wait for an upload under way, however training ends: it may be stored yet."""
        self._settle()
        self._thread.shutdown()

    def _settle(self) -> StorageError | None:
        """Wait for the upload under way, if there is one; gives why it failed."""
        upload, self._upload = self._upload, None
        if upload is None:
            return None
        try:
            upload.result()
        except StorageError as error:
            self._failures, self._since = self._failures + 1, monotonic()
            return error
        self._failures = 0
        return None

    def _store_one(self, snapshot: checkpoints.Snapshot) -> None:
        """In the thread: write, upload, commit, then drop checkpoints that need not be kept."""
        step = snapshot.state.step
        folder = checkpoints.place(self._attempt, step)
        try:
            with self._store.new_folder(folder) as directory:
                manifest = checkpoints.write(directory, snapshot, self._attempt)
            self._last = checkpoints.commit(self._store, manifest)
        except StorageError as error:
            good = f"the last good one is {self._last.folder}" if self._last else "there is none before it"
            self._notice(
                f"The checkpoint of step {step} was not stored: {error}. Training goes on and tries anew within about "
                f"a minute; {good}. Make room there, or see that the storage answers and may be written"
            )
            self._remove(folder)
            raise
        logger.info("Checkpoint at step %d: %s", step, folder)
        self._tag({TAG_CHECKPOINT: folder, TAG_NOTICE: ""})
        self._prune()

    def _remove(self, folder: str) -> None:
        try:
            with patience(REMOVAL_SECONDS):
                checkpoints.remove(self._store, folder)
        except StorageError as error:
            logger.warning("What there is of %s stays, and does not count: %s", folder, error)

    def _prune(self) -> None:
        keep = self._spec.checkpoint.keep
        try:
            for folder in checkpoints.prune(self._store, keep, RECONSTRUCTION_RATIO, self._since_attempt):
                logger.info("Checkpoint no longer kept: %s", folder)
        except StorageError as error:
            self._notice(f"Older checkpoints take up space, they could not be removed: {error}. Training goes on")

    def _notice(self, sentence: str) -> None:
        logger.warning("%s", sentence)
        self._tag({TAG_NOTICE: sentence})
