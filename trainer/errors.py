"""Errors with a typed reason."""

from __future__ import annotations

from typing import ClassVar

from trainer.protocol.outcome import Reason


class TrainingError(Exception):
    """A failure whose reason is known; the message says what happened, where, and what to do. Survives pickling."""

    reason: ClassVar[Reason] = Reason.WORKER_FAILED


class DataError(TrainingError):
    """The images cannot be used: they are damaged, too few, or not the same as before."""

    reason = Reason.DATA_ERROR


class SpecRefused(TrainingError):
    """The spec cannot run here, for a reason that only the worker can find out."""

    reason = Reason.SPEC_ERROR


class LossNotFinite(TrainingError):
    """Training has diverged."""

    reason = Reason.LOSS_NOT_FINITE


class StorageError(TrainingError):
    """The artifact storage, MLflow or a dataset's files could not be reached, or refused access."""

    reason = Reason.STORAGE_ERROR
