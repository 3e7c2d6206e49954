"""Checkpoints of a run: their folders, the manifest that makes one count, and which ones are kept.

A checkpoint is a folder ``checkpoints/a<attempt>/<step>/`` of the run with the files of `trainer.training.state`.
``manifest.json``, with every file's size and sha256, is written last: a folder without it does not count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import StorageError
from trainer.protocol.checkpoint import FileRecord, Manifest, best
from trainer.protocol.names import CHECKPOINTS, MANIFEST, checkpoint_folder
from trainer.storage import Store, sha256_of


@dataclass(frozen=True)
class Committed:
    """A checkpoint that counts."""

    folder: str
    """Relative to the run's artifact folder."""
    manifest: Manifest


def step_folder(attempt: int, step: int) -> str:
    """A checkpoint's folder, relative to the run's artifact folder."""
    return f"{checkpoint_folder(attempt)}/{step:08d}"


def describe(directory: Path, attempt: int, step: int, metrics: dict[str, float]) -> Manifest:
    """The manifest of the files in a local directory."""
    files = {
        file.name: FileRecord(size=file.stat().st_size, sha256=sha256_of(file)) for file in sorted(directory.iterdir())
    }
    return Manifest(attempt=attempt, step=step, metrics=metrics, files=files)


def commit(store: Store, manifest: Manifest) -> Committed:
    """Make a stored checkpoint count. All its files must already be stored."""
    folder = step_folder(manifest.attempt, manifest.step)
    store.write(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
    return Committed(folder, manifest)


def committed(store: Store, since_attempt: int = 1) -> list[Committed]:
    """The run's checkpoints that count, oldest first, of this attempt and later ones."""
    checkpoints: list[Committed] = []
    for attempt in sorted(_numbers(store.names(CHECKPOINTS), prefix="a")):
        if attempt < since_attempt:
            continue
        for step in sorted(_numbers(store.names(checkpoint_folder(attempt)))):
            checkpoint = find(store, step_folder(attempt, step))
            if checkpoint:
                checkpoints.append(checkpoint)
    return checkpoints


def find(store: Store, folder: str) -> Committed | None:
    """The committed checkpoint in a folder of the run; None if there is none, or if it has been deleted."""
    if not store.exists(f"{folder}/{MANIFEST}"):
        return None
    return Committed(folder, Manifest.model_validate_json(store.read(f"{folder}/{MANIFEST}")))


@contextmanager
def verified_copy(store: Store, checkpoint: Committed, names: Collection[str]) -> Iterator[Path]:
    """A local directory with the named files of a checkpoint.

    Raises `StorageError` if one of them is missing or differs from what the manifest says.
    """
    present = set(store.names(checkpoint.folder))
    with store.local_copy(checkpoint.folder, [name for name in names if name in present]) as directory:
        for name in names:
            file, record = directory / name, checkpoint.manifest.files.get(name)
            fine = record is not None and file.is_file() and file.stat().st_size == record.size
            if not fine or record is None or sha256_of(file) != record.sha256:
                raise StorageError(
                    f"{store.uri}/{checkpoint.folder}/{name}: missing or not what the manifest says; "
                    "delete that checkpoint's folder to resume from the one before it"
                )
        yield directory


def prune(store: Store, keep: int, best_metric: str, since_attempt: int = 1) -> list[str]:
    """Delete all but the ``keep`` newest checkpoints and the one with the lowest ``best_metric``.

    Returns the deleted folders.
    """
    every = committed(store, since_attempt)
    kept = best((checkpoint.manifest for checkpoint in every), best_metric)
    superfluous = [checkpoint for checkpoint in every[:-keep] if checkpoint.manifest is not kept]
    for checkpoint in superfluous:
        remove(store, checkpoint.folder)
    return [checkpoint.folder for checkpoint in superfluous]


def remove(store: Store, folder: str) -> None:
    """Delete a checkpoint, complete or not."""
    store.delete(f"{folder}/{MANIFEST}")  # first, so that a half-deleted folder does not count
    store.delete(folder)


def _numbers(names: list[str], prefix: str = "") -> list[int]:
    ends = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return [int(end) for end in ends if end.isdecimal()]
