"""Tables of what evaluations have found."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables.base import Base, now


class EvaluationRow(Base):
    """What an evaluation job has found, besides its scores."""

    __tablename__ = "evaluation"
    __table_args__ = (
        # An evaluation outlives its version, and never becomes one of another version that gets the same number.
        ForeignKeyConstraint(
            ["name", "version"], ["backbone_version.name", "backbone_version.version"], ondelete="SET NULL"
        ),
        Index(None, "name", "version"),
        Index(None, "trained_by"),
        Index(None, "finished_at", "job_id"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(256))
    """The registered backbone that was measured; None for other weights, and once its version's row is gone."""
    version: Mapped[int | None]
    trained_by: Mapped[str | None] = mapped_column(String(32))
    """The job that trained what was measured, where that is known."""
    title: Mapped[str] = mapped_column(Text)
    """What was measured, in words: `trainer.protocol.evaluation.Evaluated.title`."""
    train_uri: Mapped[str] = mapped_column(Text)
    train_title: Mapped[str] = mapped_column(Text)
    train_fingerprint: Mapped[str] = mapped_column(String(200))
    train_images: Mapped[int]
    test_uri: Mapped[str] = mapped_column(Text)
    test_title: Mapped[str] = mapped_column(Text)
    test_fingerprint: Mapped[str] = mapped_column(String(200))
    test_images: Mapped[int]
    held_out: Mapped[float | None]
    """The share of the dataset that was held out for the test; None where the test is another dataset."""
    pooling: Mapped[str] = mapped_column(String(16))
    layer: Mapped[str] = mapped_column(String(16))
    classes: Mapped[int]
    """How many there are."""
    mce: Mapped[float | None]
    """Mean corruption error."""
    document: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    """The whole `trainer.protocol.evaluation.Evaluation`."""
    finished_at: Mapped[datetime] = mapped_column(default=now)


class EvaluationScore(Base):
    """One score of an evaluation."""

    __tablename__ = "evaluation_score"
    __table_args__ = (Index(None, "key", "top1"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("evaluation.job_id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(250), primary_key=True)
    """The metric's key."""
    protocol: Mapped[str] = mapped_column(String(64))
    share: Mapped[float | None]
    """The share of the labels that was used; None for all."""
    weights: Mapped[str] = mapped_column(String(16))
    """A `trainer.protocol.evaluation.WeightsMeasured`."""
    top1: Mapped[float]
    seeds: Mapped[int]
    """How many measurements it is the mean of."""
    seeds_low: Mapped[float | None]
    """The 95 % interval of the mean over seeds; None for a single measurement."""
    seeds_high: Mapped[float | None]
    test_low: Mapped[float]
    """The 95 % interval from the number of test images."""
    test_high: Mapped[float]
