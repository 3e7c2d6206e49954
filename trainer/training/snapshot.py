"""A copy of a training's state at one step, how it is written as a checkpoint's files, and how they are read again.

A checkpoint holds one file of tensors for each part of the state, and JSON documents. `trainer.training.checkpoint`
says where it lies and when it counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import DamagedCheckpoint, StorageError
from trainer.protocol.checkpoint import Manifest
from trainer.storage import Store
from trainer.training.checkpoint import Committed, describe, verified_copy

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by part and name."""
STATE = "state.json"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state at one step: training changes nothing in it."""

    step: int
    metrics: dict[str, float]
    """Of an evaluation at this very step."""
    documents: Mapping[str, BaseModel]
    """By file name; `STATE` is one of them."""
    tensors: Tensors
    """On the CPU."""


@dataclass(frozen=True)
class StoredState(Generic[M]):
    """What was read from a checkpoint."""

    metadata: M
    tensors: Tensors


def tensor_file(part: str) -> str:
    """The name of a part's file in a checkpoint."""
    return f"{part}.safetensors"


def copied(tensors: Mapping[str, Mapping[str, Tensor]], into: Tensors) -> Tensors:
    """Copies of tensors on the CPU. On a GPU the copies run concurrently and are waited for once.

    ``into`` is the memory of copies that are no longer needed, which saves most of the time; an empty one makes this
    allocate its own.
    """
    copies: Tensors = {
        part: {name: _copy(tensor, into.get(part, {}).get(name)) for name, tensor in named.items()}
        for part, named in tensors.items()
    }
    if any(tensor.is_cuda for named in tensors.values() for tensor in named.values()):
        torch.cuda.synchronize()
    return copies


def _copy(tensor: Tensor, into: Tensor | None) -> Tensor:
    if into is None:
        into = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return into.copy_(tensor.detach(), non_blocking=True)


def write(directory: Path, snapshot: Snapshot, attempt: int) -> Manifest:
    """Write a checkpoint's files, except the manifest, into an empty local directory; returns the manifest.

    If the disk refuses, raises `StorageError` for tensors and `OSError` for the other files.
    """
    for part, tensors in snapshot.tensors.items():
        file = directory / tensor_file(part)
        try:
            save_file(tensors, file)
        except SafetensorError as error:  # it hides the system's own error, for example that of a full disk
            raise StorageError(f"{file}: {error}") from error
    for name, document in snapshot.documents.items():
        (directory / name).write_text(document.model_dump_json(indent=1))
    return describe(directory, attempt, snapshot.step, snapshot.metrics)


def read_state(store: Store, checkpoint: Committed, parts: Collection[str], metadata: type[M]) -> StoredState[M]:
    """The metadata and the named parts of a checkpoint.

    Raises `DamagedCheckpoint` for files that are not what was written, and `KeyError` for a part that the checkpoint
    does not have.
    """
    files = {part: tensor_file(part) for part in parts}
    for part, file in files.items():
        if file not in checkpoint.manifest.files:
            raise KeyError(part)
    with verified_copy(store, checkpoint, (STATE, *files.values())) as directory:
        try:
            return StoredState(
                metadata=metadata.model_validate_json((directory / STATE).read_bytes()),
                tensors={part: load_file(directory / file) for part, file in files.items()},
            )
        except (ValidationError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{store.uri}/{checkpoint.folder}: cannot be read: {error}") from error


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state of each parameter as ``<key>.<parameter's name>``; empty before the first step."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = optimizer.state.get(parameter, {})
        tensors |= {f"{key}.{name}": value for key, value in state.items()}
    return tensors


def restore_moments(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Fill in what `moments` returned."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)
