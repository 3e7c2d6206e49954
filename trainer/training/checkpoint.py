"""Saving and loading training state: the only place that does.

A checkpoint is a folder ``checkpoints/a<attempt>/<step>/`` of the run: ``student.safetensors``,
``teacher.safetensors`` (RC-MAE), ``optimizer.safetensors`` (AdamW's moments by parameter name), ``state.json``,
``spec.json``, and last of all ``manifest.json`` with every file's size and sha256. Without a manifest it does not
count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import StorageError
from trainer.protocol.checkpoint import FileRecord, Manifest, best
from trainer.protocol.names import CHECKPOINTS, MANIFEST, checkpoint_folder
from trainer.spec.base import read_document
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store, sha256_of

STUDENT, TEACHER, OPTIMIZER = "student.safetensors", "teacher.safetensors", "optimizer.safetensors"
STATE, SPEC = "state.json", "spec.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


class State(BaseModel):
    """Everything besides tensors that a run needs to go on. The schedules and the data follow from the step."""

    step: int
    """Optimiser steps done."""
    samples: int
    """Images seen."""
    dataset_fingerprint: str
    mean: tuple[float, ...]
    """Of each channel, 0..1."""
    std: tuple[float, ...]
    workers: int
    """Informational: another number goes on at the same sample."""
    micro_batch_size: int | None = None
    """Images a worker took at once: as many workers take as many again, so that a resumed run adds up alike."""
    metrics: dict[str, float]
    """The last evaluation's."""


@dataclass(frozen=True)
class Committed:
    """A checkpoint that counts."""

    folder: str
    """Relative to the run's artifact folder."""
    manifest: Manifest


def place(attempt: int, step: int) -> str:
    """A checkpoint's folder, relative to the run's artifact folder."""
    return f"{checkpoint_folder(attempt)}/{step:08d}"


Files = dict[str, dict[str, Tensor]]
"""Tensors by file and name."""


@dataclass(frozen=True)
class Snapshot:
    """The state at a step, apart from what training goes on to change."""

    spec: PretrainSpec
    state: State
    metrics: dict[str, float]
    """Of an evaluation at this very step."""
    files: Files
    """On the CPU."""


def take(
    spec: PretrainSpec,
    state: State,
    metrics: dict[str, float],
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    into: Files,
) -> Snapshot:
    """Copy the state as it is now; on a GPU the copies run side by side and are waited for once.

    ``into`` is memory of a snapshot no longer needed, which saves most of the time; empty for memory of its own.
    """
    files = {STUDENT: student.state_dict(), OPTIMIZER: _moments(student, optimizer)}
    if teacher is not None:
        files[TEACHER] = teacher.state_dict()
    copies = {
        file: {name: _copy(tensor, into.get(file, {}).get(name)) for name, tensor in tensors.items()}
        for file, tensors in files.items()
    }
    if any(tensor.is_cuda for tensors in files.values() for tensor in tensors.values()):
        torch.cuda.synchronize()
    return Snapshot(spec, state, metrics, copies)


def _copy(tensor: Tensor, into: Tensor | None) -> Tensor:
    if into is None:
        into = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return into.copy_(tensor.detach(), non_blocking=True)


def write(directory: Path, snapshot: Snapshot, attempt: int) -> Manifest:
    """Write a checkpoint's files, all but the manifest, into an empty local directory; gives the manifest.

    Raises `StorageError` for tensors and `OSError` for the rest where the disk refuses.
    """
    for name, tensors in snapshot.files.items():
        try:
            save_file(tensors, directory / name)
        except SafetensorError as error:  # hides the system's own, a full disk's for one
            raise StorageError(f"{directory / name}: {error}") from error
    (directory / STATE).write_text(snapshot.state.model_dump_json(indent=1))
    (directory / SPEC).write_text(snapshot.spec.model_dump_json(indent=1))
    files = {
        file.name: FileRecord(size=file.stat().st_size, sha256=sha256_of(file)) for file in sorted(directory.iterdir())
    }
    return Manifest(attempt=attempt, step=snapshot.state.step, metrics=snapshot.metrics, files=files)


def commit(store: Store, manifest: Manifest) -> Committed:
    """Make a stored checkpoint count. All its files must be in place."""
    folder = place(manifest.attempt, manifest.step)
    store.write(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=1).encode())
    return Committed(folder, manifest)


def committed(store: Store, since_attempt: int = 1) -> list[Committed]:
    """The run's checkpoints that count, oldest first, of this attempt and later ones."""
    found: list[Committed] = []
    for attempt in sorted(_numbers(store.names(CHECKPOINTS), prefix="a")):
        if attempt < since_attempt:
            continue
        for step in sorted(_numbers(store.names(checkpoint_folder(attempt)))):
            path = place(attempt, step)
            if store.exists(f"{path}/{MANIFEST}"):
                found.append(Committed(path, Manifest.model_validate_json(store.read(f"{path}/{MANIFEST}"))))
    return found


def load(
    store: Store,
    checkpoint: Committed,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> State:
    """Fill student, teacher and optimiser in place; raises `StorageError` for a file that is not what was written."""
    with store.local_copy(checkpoint.folder) as directory:
        _check(directory, checkpoint, store, checkpoint.manifest.files)
        student.load_state_dict(load_file(directory / STUDENT))
        if teacher is not None:
            teacher.load_state_dict(load_file(directory / TEACHER))
        _restore_moments(student, optimizer, load_file(directory / OPTIMIZER))
        return State.model_validate_json((directory / STATE).read_text())


def _check(directory: Path, checkpoint: Committed, store: Store, names: Iterable[str]) -> None:
    """Raise `StorageError` where one of the files in a local ``directory`` is not what the manifest says."""
    for name in names:
        file, record = directory / name, checkpoint.manifest.files.get(name)
        fine = record is not None and file.is_file() and file.stat().st_size == record.size
        if not fine or record is None or sha256_of(file) != record.sha256:
            raise StorageError(
                f"{store.uri}/{checkpoint.folder}/{name}: missing or not what the manifest says; "
                "delete that checkpoint's folder to go on from the one before it"
            )


def find(store: Store, folder: str) -> Committed | None:
    """The committed checkpoint in a folder of the run; None where there is none, or none any more."""
    if not store.exists(f"{folder}/{MANIFEST}"):
        return None
    return Committed(folder, Manifest.model_validate_json(store.read(f"{folder}/{MANIFEST}")))


def spec_of(store: Store, checkpoint: Committed) -> PretrainSpec:
    """What a checkpoint was trained as."""
    return PretrainSpec.parse(read_document(store.read(f"{checkpoint.folder}/{SPEC}").decode()))


@dataclass(frozen=True)
class Network:
    """One network of a checkpoint, with what it was trained as."""

    spec: PretrainSpec
    state: State
    weights: dict[str, Tensor]


def load_network(store: Store, checkpoint: Committed, network: Literal["teacher", "student"]) -> Network:
    """The teacher or the student of a checkpoint, alone; raises `StorageError` for a file that is not what was written,
    and `KeyError` for a network that the checkpoint does not have.
    """
    weights = {"teacher": TEACHER, "student": STUDENT}[network]
    if weights not in checkpoint.manifest.files:
        raise KeyError(network)
    wanted = (SPEC, STATE, weights)
    with store.local_copy(checkpoint.folder, wanted) as directory:
        _check(directory, checkpoint, store, wanted)
        return Network(
            spec=PretrainSpec.parse(read_document((directory / SPEC).read_text())),
            state=State.model_validate_json((directory / STATE).read_text()),
            weights=load_file(directory / weights),
        )


def prune(store: Store, keep: int, best_metric: str, since_attempt: int = 1) -> list[str]:
    """Delete all but the ``keep`` newest checkpoints and the one with the lowest ``best_metric``; gives the deleted."""
    every = committed(store, since_attempt)
    kept = best((checkpoint.manifest for checkpoint in every), best_metric)
    gone = [checkpoint for checkpoint in every[:-keep] if checkpoint.manifest is not kept]
    for checkpoint in gone:
        remove(store, checkpoint.folder)
    return [checkpoint.folder for checkpoint in gone]


def remove(store: Store, folder: str) -> None:
    """Delete a checkpoint, or what there is of one."""
    store.delete(f"{folder}/{MANIFEST}")  # first, so that half a folder never counts
    store.delete(folder)


def _numbers(names: list[str], prefix: str = "") -> list[int]:
    ends = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return [int(end) for end in ends if end.isdecimal()]


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state under the parameters' names; empty before the first step."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        for key in (*MOMENTS, "step"):
            if key in state:
                tensors[f"{key}.{name}"] = state[key]
    return tensors


def _restore_moments(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    if not tensors:
        return
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in (*MOMENTS, "step")}
