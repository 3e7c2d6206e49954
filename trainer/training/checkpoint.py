"""Checkpoints of a run: their folders, the manifest that makes one count, and which ones are kept.

A checkpoint is a folder ``checkpoints/a<attempt>/<step>/`` of the run with the files of `trainer.training.state`.
``manifest.json``, with every file's size and sha256, is written last: a folder without it does not count. Nor does one
whose manifest cannot be read, or beside whose manifest ``damage.json`` says that its files are not what it lists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from trainer.errors import DamagedCheckpoint, SpecRefused
from trainer.logger import logger
from trainer.patience import retry
from trainer.protocol.checkpoint import Damage, FileRecord, Manifest, best
from trainer.protocol.names import CHECKPOINTS, DAMAGE, MANIFEST, checkpoint_folder
from trainer.storage import Store, patience_seconds, sha256_of

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Committed:
    """A checkpoint that counts."""

    folder: str
    """Relative to the run's artifact folder."""
    manifest: Manifest


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that was committed and does not count."""

    folder: str
    """Relative to the run's artifact folder."""
    attempt: int
    step: int
    why: str
    """What is wrong, and where."""


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
    return inspect(store, since_attempt)[0]


def inspect(store: Store, since_attempt: int = 1) -> tuple[list[Committed], list[Damaged]]:
    """The run's checkpoints of this attempt and later ones, oldest first: those that count, and damaged ones.

    The log names each damaged one.
    """
    sound: list[Committed] = []
    damaged: list[Damaged] = []
    for attempt in sorted(_numbers(store.names(CHECKPOINTS), prefix="a")):
        for step in sorted(_numbers(store.names(checkpoint_folder(attempt)))) if attempt >= since_attempt else ():
            folder = step_folder(attempt, step)
            try:
                checkpoint = find(store, folder)
            except DamagedCheckpoint as error:
                logger.warning("A damaged checkpoint is passed over: %s", error)
                damaged.append(Damaged(folder, attempt, step, str(error)))
            else:
                sound += [checkpoint] if checkpoint else []
    return sound, damaged


def find(store: Store, folder: str) -> Committed | None:
    """The committed checkpoint in a folder of the run; None if there is none, or if it has been deleted.

    Raises `DamagedCheckpoint` for one that does not count any more.
    """
    files = store.names(folder)
    if MANIFEST not in files:
        return None
    if DAMAGE in files:
        damage = _read(store, f"{folder}/{DAMAGE}", Damage)
        raise DamagedCheckpoint(f"{store.uri}/{folder} was set aside by attempt {damage.attempt}: {damage.why}")
    return Committed(folder, _read(store, f"{folder}/{MANIFEST}", Manifest))


def find_kept(store: Store, folder: str | None, since_attempt: int, job_id: str) -> Committed:
    """The checkpoint of a job in this folder, or its newest one; raises `SpecRefused` if there is none."""
    found = next(reversed(committed(store, since_attempt)), None) if folder is None else find(store, folder)
    if found is None:
        raise SpecRefused(
            f"checkpoint: {folder or 'the newest'} of job {job_id} does not exist: choose one that the job has kept"
        )
    return found


def _read(store: Store, file: str, record: type[Record]) -> Record:
    try:
        return record.model_validate_json(store.read(file))
    except ValidationError as error:
        raise DamagedCheckpoint(f"{store.uri}/{file} is damaged: {error.errors()[0]['msg']}") from error


def set_aside(store: Store, folder: str, damage: Damage) -> None:
    """Make a checkpoint not count any more. Its files stay as they are, for those who can restore them."""
    store.write(f"{folder}/{DAMAGE}", damage.model_dump_json(indent=1).encode())


@contextmanager
def verified_copy(store: Store, checkpoint: Committed, names: Collection[str]) -> Iterator[Path]:
    """A local directory with the named files of a checkpoint.

    Raises `DamagedCheckpoint` if one of them is missing, differs from what the manifest says, or stays unreadable.
    """
    present = set(store.names(checkpoint.folder))
    with store.local_copy(checkpoint.folder, [name for name in names if name in present]) as directory:
        for name in names:
            place = f"{store.uri}/{checkpoint.folder}/{name}"
            intact = retry(
                partial(_is_intact, directory / name, checkpoint.manifest.files.get(name)),
                (OSError,),
                patience_seconds(),
                failure=partial(_unreadable, place),
            )
            if not intact:
                raise DamagedCheckpoint(f"{place}: missing or not what the manifest says")
        yield directory


def _is_intact(file: Path, record: FileRecord | None) -> bool:
    if record is None or not file.is_file() or file.stat().st_size != record.size:
        return False
    return sha256_of(file) == record.sha256


def _unreadable(place: str, error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{place}: cannot be read: {error}")


def prune(store: Store, keep: int, best_metric: str, since_attempt: int = 1) -> list[str]:
    """Delete all but the ``keep`` newest checkpoints and the one with the lowest ``best_metric``.

    Damaged ones are none of these: they go once ``keep`` sound ones are newer. Returns the deleted folders.
    """
    sound, damaged = inspect(store, since_attempt)
    kept = best((checkpoint.manifest for checkpoint in sound), best_metric)
    superfluous = [checkpoint.folder for checkpoint in sound[:-keep] if checkpoint.manifest is not kept]
    superfluous += [each.folder for each in damaged if _newer(sound, each) >= keep]
    for folder in superfluous:
        remove(store, folder)
    return superfluous


def _newer(sound: Sequence[Committed], than: Damaged) -> int:
    """How many of these checkpoints are newer."""
    return sum((each.manifest.attempt, each.manifest.step) > (than.attempt, than.step) for each in sound)


def remove(store: Store, folder: str) -> None:
    """Delete a checkpoint, complete or not."""
    store.delete(f"{folder}/{MANIFEST}")  # first, so that a half-deleted folder does not count
    store.delete(folder)


def _numbers(names: list[str], prefix: str = "") -> list[int]:
    ends = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return [int(end) for end in ends if end.isdecimal()]
