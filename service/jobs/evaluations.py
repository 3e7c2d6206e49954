"""What evaluations have found about backbones, read from their rows.

Every function works inside its caller's transaction. What is newest stands for a backbone: one score for each
measurement, which is the metric's key with the images for training and test and the share that was held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import ColumnElement, and_, not_, or_, select, true
from sqlalchemy.orm import Session, aliased

from service.auth.caller import Caller
from service.auth.sight import seen
from service.db.tables import BackboneVersion, EvaluationRow, EvaluationScore, Job, RegisteredBackbone
from service.jobs.evaluation_schemas import (
    BaselineView,
    ImagesView,
    IntervalView,
    MeasuredView,
    MeasureView,
    VersionResultView,
)
from service.jobs.versions import SHOWN
from trainer.protocol.evaluation import Evaluation
from trainer.spec.evaluate import NO_SETTINGS, FinetuneProtocol, LinearProtocol

BASELINES: Final[dict[Literal["random", "scratch"], str]] = {"random": "_random_init", "scratch": "_scratch"}
"""What follows a metric's key where the weights were others."""
OWN: Final = "backbone"
"""`weights` of a score of the backbone itself."""
TITLE_IN_TAG: Final = 500
"""As much of a dataset's title is copied to MLflow."""
DEFAULTS: Final = {each.name: each for each in (LinearProtocol(name="linear"), FinetuneProtocol(name="finetune"))}
"""The protocols that `low_label` may name."""
AT_ONCE: Final = 500
"""Ids in one query, at most."""


class Measure(NamedTuple):
    """What scores of one column have in common. They can be compared where their settings do not differ either."""

    test: str
    """Fingerprint of the test images."""
    train: str
    held_out: float | None
    key: str


@dataclass(frozen=True)
class Found:
    """An evaluation with its scores."""

    row: EvaluationRow
    scores: Sequence[EvaluationScore]
    """By key."""
    protocols: Sequence[Mapping[str, Any]] = ()
    """Those of its spec."""

    def own(self) -> Iterator[tuple[Measure, EvaluationScore]]:
        """The scores of the backbone itself."""
        row = self.row
        for score in self.scores:
            if score.weights == OWN:
                yield Measure(row.test_fingerprint, row.train_fingerprint, row.held_out, score.key), score

    def measure(self, score: EvaluationScore) -> MeasureView:
        return MeasureView(
            key=score.key,
            protocol=score.protocol,
            share=score.share,
            train=train_of(self.row),
            test=test_of(self.row),
            held_out=self.row.held_out,
        )

    def measured(self, score: EvaluationScore) -> MeasuredView:
        return MeasuredView(
            job=self.row.job_id,
            top1=score.top1,
            seeds=score.seeds,
            interval=interval(score),
            baselines=self._baselines(score.key),
            pooling=self.row.pooling,
            layer=self.row.layer,
            settings={"pooling": self.row.pooling, "layer": self.row.layer} | self._settings(score.protocol),
            finished_at=self.row.finished_at,
        )

    def _settings(self, protocol: str) -> dict[str, Any]:
        """What a protocol was set to; one that `low_label` alone names has its defaults."""
        default = DEFAULTS[protocol].model_dump(mode="json") if protocol in DEFAULTS else {}
        written = next((each for each in self.protocols if each.get("name") == protocol), default)
        return {name: value for name, value in written.items() if name not in NO_SETTINGS}

    def _baselines(self, key: str) -> list[BaselineView]:
        values = {score.key: score.top1 for score in self.scores}
        named = {f"{key}{suffix}": weights for weights, suffix in BASELINES.items()}
        return [BaselineView(weights=named[each], key=each, top1=values[each]) for each in named if each in values]


def train_of(row: EvaluationRow) -> ImagesView:
    """The images that classifiers were trained on."""
    return ImagesView(
        uri=row.train_uri, title=row.train_title, images=row.train_images, fingerprint=row.train_fingerprint
    )


def test_of(row: EvaluationRow) -> ImagesView:
    """The images that they were scored on."""
    return ImagesView(uri=row.test_uri, title=row.test_title, images=row.test_images, fingerprint=row.test_fingerprint)


def interval(score: EvaluationScore) -> IntervalView:
    """The wider of a score's intervals: chance and the size of the test set both blur it."""
    test = IntervalView(low=score.test_low, high=score.test_high, of="test")
    if score.seeds_low is None or score.seeds_high is None:
        return test
    seeds = IntervalView(low=score.seeds_low, high=score.seeds_high, of="seeds")
    return max(seeds, test, key=lambda each: each.high - each.low)


def document(session: Session, caller: Caller, job_id: str) -> Evaluation | None:
    """Everything that a job's evaluation has found; None where there is none that the caller sees."""
    query = select(EvaluationRow.document).join(Job, Job.id == EvaluationRow.job_id)
    stored = session.scalar(query.where(Job.id == job_id, Job.deleted_at.is_(None), visible(caller)))
    return None if stored is None else Evaluation.model_validate(stored)


def visible(caller: Caller) -> ColumnElement[bool]:
    """Whether a caller sees an evaluation, in a query of `EvaluationRow` and its `Job`.

    One of a registered version is part of what is known of that version, so whoever sees its backbone sees it. Others
    are seen by those who see the evaluation's job and the job that was measured.
    """
    row, version, backbone = EvaluationRow, BackboneVersion, RegisteredBackbone
    shown = select(version.name).join(backbone, backbone.name == version.name)
    shown = shown.where(version.name == row.name, version.version == row.version, version.state.in_(SHOWN))
    registered = shown.correlate(EvaluationRow).exists()
    open_to_caller = shown.where(*seen(caller)).correlate(EvaluationRow).exists()
    return or_(open_to_caller, and_(not_(registered), _own_jobs(caller)))


def _own_jobs(caller: Caller) -> ColumnElement[bool]:
    owner = caller.sees_only
    if owner is None:
        return true()
    trainer = aliased(Job)
    others = select(trainer.id).where(trainer.id == EvaluationRow.trained_by, trainer.owner != owner)
    return and_(Job.owner == owner, not_(others.correlate(EvaluationRow).exists()))


def found(session: Session, rows: Sequence[EvaluationRow]) -> list[Found]:
    """Evaluations with their scores, in the order of their rows."""
    scores: dict[str, list[EvaluationScore]] = {row.job_id: [] for row in rows}
    protocols: dict[str, Sequence[Mapping[str, Any]] | None] = {}
    ids = list(scores)
    for begin in range(0, len(ids), AT_ONCE):
        some = ids[begin : begin + AT_ONCE]
        for job_id, written in session.execute(select(Job.id, Job.spec["protocols"]).where(Job.id.in_(some))):
            protocols[job_id] = written
        query = select(EvaluationScore).where(EvaluationScore.job_id.in_(some))
        for score in session.scalars(query.order_by(EvaluationScore.key)):
            scores[score.job_id].append(score)
    return [Found(row, scores[row.job_id], protocols.get(row.job_id) or ()) for row in rows]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the settings that are not the same for all of several scores, which cannot be compared then."""
    first, *others = settings
    names = sorted({name for each in settings for name in each})
    return [name for name in names if any(each.get(name) != first.get(name) for each in others)]


def of_version(session: Session, name: str, version: int) -> list[VersionResultView]:
    """The newest score of a version by each measurement, by dataset and key."""
    newest = {measure: (each, score) for measure, each, score in _oldest_first(session, name, version)}
    views = [
        VersionResultView(**vars(each.measure(score)), **vars(each.measured(score))) for each, score in newest.values()
    ]
    return sorted(views, key=lambda view: (view.test.title, view.test.fingerprint, view.key))


def in_words(
    session: Session, name: str | None = None, version: int | None = None
) -> dict[tuple[str, int], dict[str, str]]:
    """The newest score of each version, or of one, by metric key, with its dataset and its evaluation.

    By the version's name and number; versions without a score are left out.
    """
    row, score = EvaluationRow, EvaluationScore
    query = select(row.name, row.version, score.key, score.top1, row.test_title, row.job_id)
    query = query.join(score, score.job_id == row.job_id).join(Job, Job.id == row.job_id)
    query = query.where(Job.deleted_at.is_(None), row.name.is_not(None), score.weights == OWN)
    if name is not None:
        query = query.where(row.name == name, row.version == version)
    words: dict[tuple[str, int], dict[str, str]] = {}
    for of, number, key, top1, title, job_id in session.execute(query.order_by(row.finished_at, row.job_id)):
        text = f"{top1:.4f} on {title[:TITLE_IN_TAG]}, {job_id}"
        words.setdefault((str(of), int(number or 0)), {})[key] = text  # a newer one replaces an older one
    return words


def _oldest_first(session: Session, name: str, version: int) -> Iterator[tuple[Measure, Found, EvaluationScore]]:
    """The scores of a version, the oldest first, so that the newest replace them in a dictionary."""
    row = EvaluationRow
    query = select(row).join(Job, Job.id == row.job_id).where(row.name == name, row.version == version)
    rows = session.scalars(query.where(Job.deleted_at.is_(None)).order_by(row.finished_at, row.job_id)).all()
    for each in found(session, rows):
        for measure, score in each.own():
            yield measure, each, score
