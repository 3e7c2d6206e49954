"""Operations on evaluations."""

from __future__ import annotations

from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import undefer

from service.auth.caller import Caller
from service.context.app_state import AppState
from service.db.tables import EvaluationRow, EvaluationScore, Job
from service.evaluations import listing, table
from service.evaluations.listing import Filters
from service.evaluations.schemas import (
    EvaluationDetailView,
    EvaluationScoreView,
    EvaluationSummaryView,
    EvaluationTableView,
)
from service.http.problems import not_found
from service.http.schemas import Page
from service.jobs import evaluations
from service.jobs.evaluations import Found, visible
from trainer.protocol.evaluation import EVALUATION, Evaluation


def page(
    state: AppState, caller: Caller, filters: Filters, sort: str | None, limit: int, cursor: str | None
) -> Page[EvaluationSummaryView]:
    """One page of the evaluations that a caller sees, newest first by default. Raises the API's 422."""
    with state.database.read() as session:
        pairs, following = listing.page(session, caller, filters, sort, limit, cursor)
        found = evaluations.found(session, [row for row, _ in pairs])
        items = [_summary(each, job, caller.sees(job.owner)) for each, (_, job) in zip(found, pairs, strict=True)]
    return Page[EvaluationSummaryView](items=items, next_cursor=following)


def show(state: AppState, caller: Caller, job_id: str) -> EvaluationDetailView:
    """Everything that one evaluation has found. Raises the API's 404."""
    with state.database.read() as session:
        query = select(EvaluationRow, Job).join(Job, Job.id == EvaluationRow.job_id)
        query = query.where(Job.id == job_id, Job.deleted_at.is_(None), visible(caller))
        pair = session.execute(query.options(undefer(EvaluationRow.document))).first()
        if pair is None:
            raise not_found("evaluation", job_id)
        row, job = pair
        sees_job = caller.sees(job.owner)
        summary = _summary(evaluations.found(session, [row])[0], job, sees_job)
    document = Evaluation.model_validate(row.document)
    files = _files(job_id, document) if sees_job else {}
    return EvaluationDetailView(
        **vars(summary), evaluation=document if sees_job else _of_backbone(document), files=files
    )


def show_table(state: AppState, caller: Caller, filters: Filters) -> EvaluationTableView:
    """Backbones against measurements, of the evaluations that match and that a caller sees. Raises the API's 422."""
    with state.database.read() as session:
        return table.table(session, caller, filters)


def _files(job_id: str, document: Evaluation) -> dict[str, str]:
    tables = [score.confusion for score in document.scores if score.confusion]
    files = [EVALUATION, *(picture.file for picture in document.pictures), *tables]
    return {file: f"/v1/jobs/{job_id}/files/{quote(file)}" for file in dict.fromkeys(files)}


def _of_backbone(document: Evaluation) -> Evaluation:
    """What belongs to the backbone. Pictures show images, and notices and names of classes tell of a dataset, all of
    which may not be for everybody.
    """
    hidden = {"pictures": [], "notices": [], "classes": [f"class {at}" for at in range(len(document.classes))]}
    return document.model_copy(update=hidden)


def _summary(found: Found, job: Job, sees_job: bool) -> EvaluationSummaryView:
    row = found.row
    return EvaluationSummaryView(
        job=job.id,
        job_name=job.name if sees_job else "",
        owner=job.owner,
        labels=job.labels if sees_job else {},
        created_at=job.created_at,
        finished_at=row.finished_at,
        backbone=table.subject_view(row),
        train=evaluations.train_of(row),
        test=evaluations.test_of(row),
        held_out=row.held_out,
        classes=row.classes,
        pooling=row.pooling,
        layer=row.layer,
        mce=row.mce,
        scores=[_score(each) for each in found.scores],
    )


def _score(score: EvaluationScore) -> EvaluationScoreView:
    low, high = score.seeds_low, score.seeds_high
    return EvaluationScoreView(
        key=score.key,
        protocol=score.protocol,
        share=score.share,
        weights=score.weights,
        top1=score.top1,
        seeds=score.seeds,
        seeds_interval=(low, high) if low is not None and high is not None else None,
        test_interval=(score.test_low, score.test_high),
    )
