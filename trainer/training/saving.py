"""Stores checkpoints while training continues: it copies the state, and a thread writes and uploads it. Rank 0 only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Generic, Protocol, TypeVar

from trainer.errors import StorageError
from trainer.logger import logger
from trainer.protocol.names import TAG_CHECKPOINT, TAG_NOTICE
from trainer.spec.metric_keys import RECONSTRUCTION_RATIO
from trainer.spec.pretrain import CheckpointSpec
from trainer.storage import patience
from trainer.training import checkpoint as checkpoints
from trainer.training.context import CheckpointPlace
from trainer.training.snapshot import Snapshot, Tensors, write

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 60.0
"""Time from a failed upload to the next checkpoint: doubled with each failure in a row, up to the longest."""
REMOVAL_SECONDS = 5.0
"""How long to try to remove what a failed upload has left. The service sweeps what remains."""

Tag = Callable[[Mapping[str, str]], None]
"""Sets tags of the run. It neither blocks nor fails."""


class Constants(Protocol):
    """What checkpoints record and training does not change."""

    @property
    def checkpoint(self) -> CheckpointSpec: ...


C = TypeVar("C", bound=Constants)
C_contra = TypeVar("C_contra", bound=Constants, contravariant=True)


class Savable(Protocol[C_contra]):
    """The state of a training."""

    def snapshot(self, constants: C_contra, into: Tensors) -> Snapshot:
        """Copy the state, into the memory of a snapshot that is no longer needed."""


class Saver(Generic[C]):
    """Stores one checkpoint at a time while training continues. A failing storage never harms earlier checkpoints."""

    def __init__(self, constants: C, context: CheckpointPlace, tag: Tag, last: checkpoints.Committed | None) -> None:
        self._constants, self._settings = constants, constants.checkpoint
        self._store, self._attempt, self._since_attempt = context.store, context.attempt, context.since_attempt
        self._tag, self._last = tag, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[None] | None = None
        self._copies: Tensors = {}
        """The last snapshot's memory, which the next one reuses."""
        self._failures = 0
        """Uploads that failed since the last successful one."""
        self._since = monotonic()
        """When the last checkpoint was taken, or its upload failed."""

    def due(self, epoch_due: bool) -> bool:
        """Whether to take a checkpoint at this step, because its epoch or the elapsed time asks for one.

        During an upload only an epoch's checkpoint is due. After a failed upload the elapsed time alone decides, so
        that training never waits for a storage that is known to fail.
        """
        if self._upload and self._upload.done():
            self.wait()
        every, elapsed, idle = self._settings.every_minutes, monotonic() - self._since, self._upload is None
        if self._failures:
            return idle and elapsed >= min(RETRY_SECONDS * 2 ** min(self._failures - 1, 10), LONGEST_RETRY_SECONDS)
        return epoch_due or (idle and every is not None and elapsed >= 60 * every)

    def save(self, state: Savable[C]) -> None:
        """Copy the state and start to store it, after the upload before it has ended."""
        self.wait()
        snapshot = state.snapshot(self._constants, self._copies)
        self._copies = snapshot.tensors
        self._since = monotonic()
        self._upload = self._thread.submit(self._store_snapshot, snapshot)

    def finish(self) -> checkpoints.Committed:
        """Wait until the last checkpoint is stored; raises `StorageError` if it cannot be."""
        error = self.wait()
        if error:
            raise error
        if self._last is None:
            raise RuntimeError("no checkpoint was taken")
        return self._last

    def close(self) -> None:
        """Wait for an upload under way, however training ends: it may still succeed."""
        self.wait()
        self._thread.shutdown()

    def wait(self) -> StorageError | None:
        """Wait for the upload under way, if there is one; returns why it failed."""
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

    def _store_snapshot(self, snapshot: Snapshot) -> None:
        """In the thread: write, upload, commit, then delete checkpoints that need not be kept."""
        step = snapshot.step
        folder = checkpoints.step_folder(self._attempt, step)
        try:
            with self._store.new_folder(folder) as directory:
                manifest = write(directory, snapshot, self._attempt)
            self._last = checkpoints.commit(self._store, manifest)
        except StorageError as error:
            good = f"the last good one is {self._last.folder}" if self._last else "there is none before it"
            self._notice(
                f"The checkpoint of step {step} was not stored: {error}. Training continues and tries again within "
                f"about a minute; {good}. Free some space there, or check that the storage responds and is writable"
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
            logger.warning("The incomplete folder %s could not be removed; it does not count: %s", folder, error)

    def _prune(self) -> None:
        keep = self._settings.keep
        try:
            for folder in checkpoints.prune(self._store, keep, RECONSTRUCTION_RATIO, self._since_attempt):
                logger.info("Checkpoint no longer kept: %s", folder)
        except StorageError as error:
            self._notice(f"Older checkpoints take up space, as they could not be removed: {error}. Training continues")

    def _notice(self, sentence: str) -> None:
        logger.warning("%s", sentence)
        self._tag({TAG_NOTICE: sentence})
