"""Evaluations made by hand, recorded as the controller records them when their job succeeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from service_fakes import add_job
from sqlalchemy import update

from service.db.database import Database
from service.db.tables import EvaluationRow
from service.evaluations.recording import record
from service.jobs import repository
from trainer.protocol.evaluation import Evaluated, EvaluatedImages, Evaluation, Measured, Score
from trainer.spec.dataset import DIGITS

SPEC: dict[str, Any] = {"kind": "evaluate", "backbone": "digits", "dataset": {"uri": DIGITS}}
TRAIN = EvaluatedImages(uri=DIGITS, title="digits", images=1437, fingerprint="sha256:digits")
TEST = TRAIN.model_copy(update={"images": 360})
SIZES: dict[str, Any] = {
    "depth": 3, "embed_dim": 64, "patch_size": 4, "encoder_parameters": 5_000_000, "img_size": (8, 8),
}  # fmt: skip
"""Of the network that is measured."""
SUFFIXES = {"_random_init": "random", "_scratch": "scratch"}
FINISHED = datetime(2026, 3, 1, 12, tzinfo=UTC)


def score(key: str, top1: float, half: float = 0.02, **fields: Any) -> Score:
    """A score of one measurement, whose interval of the test set's size is as wide on both sides."""
    plain = key.removeprefix("eval/")
    weights = next((weights for suffix, weights in SUFFIXES.items() if plain.endswith(suffix)), "backbone")
    measured = Measured(seed=0, top1=top1, correct=round(top1 * 360), train_images=1437, details={"strength": 0.1})
    values: dict[str, Any] = {
        "key": key,
        "protocol": plain.partition("_top1")[0],
        "weights": weights,
        "top1": top1,
        "seeds": [measured],
        "test_interval": (top1 - half, top1 + half),
        "per_class": [top1] * 10 if weights == "backbone" else [],
    }
    return Score(**values | fields)


def evaluation(scores: Mapping[str, float] | Sequence[Score] | None = None, **fields: Any) -> Evaluation:
    """An evaluation of `digits:1`, with scores by metric key or made by `score`; ``fields`` replace the others.

    Fields of what was measured are ``name``, ``version``, ``job``, ``checkpoint`` and ``title``.
    """
    wanted = scores if scores is not None else {"eval/knn_top1": 0.9, "eval/knn_top1_random_init": 0.7}
    listed = [score(key, top1) for key, top1 in wanted.items()] if isinstance(wanted, Mapping) else list(wanted)
    about: dict[str, Any] = {"name": "digits", "version": 1}
    about |= {key: fields.pop(key) for key in ("name", "version", "job", "checkpoint", "title") if key in fields}
    about.setdefault("title", f"{about['name']}:{about['version']}")
    values: dict[str, Any] = {
        "backbone": Evaluated(**about, **SIZES),
        "train": TRAIN,
        "test": TEST,
        "held_out": 0.2,
        "classes": [str(number) for number in range(10)],
        "pooling": "mean",
        "layer": "last",
        "precision": "fp32",
        "scores": listed,
        "seconds": 12.5,
    }
    return Evaluation(**values | fields)


def add_evaluation(
    database: Database, found: Evaluation | None = None, *, finished_at: datetime = FINISHED, **job: Any
) -> str:
    """A job that has succeeded with an evaluation; ``job`` are fields of its row. Returns its id."""
    found = found or evaluation()
    spec = SPEC | {"backbone": found.backbone.title if found.backbone.name else {"job": found.backbone.job or "job-x"}}
    job_id = add_job(database, "succeeded", spec, **{"created_at": finished_at} | job)
    with database.session() as session:
        record(session, repository.get(session, job_id), found)
        session.execute(update(EvaluationRow).where(EvaluationRow.job_id == job_id).values(finished_at=finished_at))
    return job_id
