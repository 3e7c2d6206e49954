"""Stores what an evaluation has found, in the transaction in which its job succeeds."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from service.db.tables import BackboneVersion, EvaluationRow, EvaluationScore, Job
from service.jobs import work
from service.jobs.work import Work
from trainer.protocol.evaluation import Evaluation, Score


def record(session: Session, job: Job, evaluation: Evaluation) -> None:
    """Store an evaluation with its scores, in place of what was stored for its job before.

    A registered version whose row is gone meanwhile is named in the title alone.
    """
    session.execute(delete(EvaluationRow).where(EvaluationRow.job_id == job.id))
    version = _version(session, evaluation)
    session.add(_row(job, evaluation, version))
    session.flush()
    session.add_all(_score(job, score) for score in evaluation.scores)
    if version:
        work.add(session, Work.DESCRIBE_VERSION, [f"{version.name}/{version.version}"])
    session.flush()


def _version(session: Session, evaluation: Evaluation) -> BackboneVersion | None:
    measured = evaluation.backbone
    key = (measured.name, measured.version)
    return session.get(BackboneVersion, key) if None not in key else None


def _row(job: Job, evaluation: Evaluation, version: BackboneVersion | None) -> EvaluationRow:
    measured, train, test = evaluation.backbone, evaluation.train, evaluation.test
    return EvaluationRow(
        job_id=job.id,
        name=version.name if version else None,
        version=version.version if version else None,
        trained_by=measured.job or (version.trained_by if version else None),
        title=measured.title,
        train_uri=train.uri,
        train_title=train.title,
        train_fingerprint=train.fingerprint,
        train_images=train.images,
        test_uri=test.uri,
        test_title=test.title,
        test_fingerprint=test.fingerprint,
        test_images=test.images,
        held_out=evaluation.held_out,
        pooling=evaluation.pooling,
        layer=evaluation.layer,
        classes=len(evaluation.classes),
        mce=evaluation.mce,
        document=evaluation.model_dump(mode="json"),
    )


def _score(job: Job, score: Score) -> EvaluationScore:
    seeds_low, seeds_high = score.seeds_interval or (None, None)
    return EvaluationScore(
        job_id=job.id,
        key=score.key,
        protocol=score.protocol,
        share=score.share,
        weights=score.weights,
        top1=score.top1,
        seeds=len(score.seeds),
        seeds_low=seeds_low,
        seeds_high=seeds_high,
        test_low=score.test_interval[0],
        test_high=score.test_interval[1],
    )
