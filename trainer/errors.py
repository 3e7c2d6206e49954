"""Errors with a typed reason."""

from __future__ import annotations

from typing import ClassVar, Final

from trainer.protocol.outcome import Reason
from trainer.spec.base import SpecError

DIVERGENCE_ADVICE: Final = (
    "Lower optimization.base_lr, lengthen optimization.warmup_epochs, set optimization.clip_grad_norm, or use "
    "precision fp32"
)


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


class WeightsRefused(TrainingError):
    """Weights from elsewhere are damaged, or belong to a network that cannot be represented."""

    reason = Reason.DATA_ERROR


class DamagedCheckpoint(StorageError):
    """The files of a checkpoint are not those that were stored; another checkpoint may be sound."""


def reason_of(error: BaseException) -> Reason | None:
    """The reason that an error states; None for one that does not say whose fault it is.

    A `SpecError` is the spec's fault wherever it is raised.
    """
    if isinstance(error, TrainingError):
        return error.reason
    return Reason.SPEC_ERROR if isinstance(error, SpecError) else None
