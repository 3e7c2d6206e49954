"""How the command line shows evaluations to people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table

from service.client.console import Text
from service.client.tables import duration, fields, table, when
from service.evaluations.schemas import (
    EvaluationDetailView,
    EvaluationScoreView,
    EvaluationSummaryView,
    EvaluationTableView,
    TableCellView,
    TableColumnView,
)
from service.jobs.evaluation_schemas import ImagesView


def evaluations(views: Iterable[EvaluationSummaryView]) -> Table:
    """Evaluations, one a line."""
    return table(
        ("JOB", "BACKBONE", "TEST", "SCORES", "OWNER", "FINISHED"),
        (
            (view.job, view.backbone.title, view.test.title, _own(view.scores), view.owner, when(view.finished_at))
            for view in views
        ),
    )


def evaluation(view: EvaluationDetailView) -> RenderableType:
    """One evaluation with each score."""
    found = view.evaluation
    rows: list[tuple[str, RenderableType]] = [
        ("evaluation", f"{view.job} ({view.job_name})" if view.job_name else view.job),
        ("backbone", view.backbone.title),
        *([("trained by", view.backbone.job)] if view.backbone.job else []),
        ("trained on", _images(view.train)),
        ("tested on", _images(view.test) if view.held_out is None else f"a share of {view.held_out:.4g}, held out"),
        ("features", f"{view.pooling}, layer {view.layer}, {found.precision}"),
        ("classes", f"{view.classes:,}"),
        *([("mean corruption error", f"{view.mce:.4f}")] if view.mce is not None else []),
        ("measured in", duration(found.seconds)),
        ("finished", when(view.finished_at)),
        *(("notice", Text(notice.message, style="yellow")) for notice in found.notices),
    ]
    scores = table(("SCORE", "TOP-1", "OVER SEEDS", "BY TEST IMAGES"), (_score(score) for score in view.scores))
    return Group(fields(rows), "", scores)


def evaluation_table(view: EvaluationTableView) -> RenderableType:
    """A table for each measurement, its best first."""
    parts: list[RenderableType] = []
    for place, column in enumerate(view.columns):
        found = [(row.backbone.title, cell) for row in view.rows if (cell := row.cells[place])]
        found.sort(key=lambda pair: -pair[1].top1)
        lines = (_cell(title, cell) for title, cell in found)
        parts += [
            _heading(column),
            table(("BACKBONE", "TOP-1", "95 % INTERVAL", "BASELINES", "EVALUATION", ""), lines),
            "",
        ]
    if not parts:
        return Text("no evaluation matches", style="dim")
    if view.left_out:
        parts.append(
            Text(f"{view.left_out:,} evaluations are left out, or some of their scores: filter them", style="yellow")
        )
    parts.append(Text("best: its interval lies above all others of its table, with the same settings", style="dim"))
    return Group(*parts)


def _heading(column: TableColumnView) -> Text:
    if column.held_out is None:
        how = f"trained on {_images(column.train)}"
    else:
        how = f"{column.held_out:.4g} of each class held out"
    return Text(column.key, style="bold").append(f" on {_images(column.test)}, {how}", style="")


def _cell(title: str, cell: TableCellView) -> tuple[RenderableType, ...]:
    interval = f"{cell.interval.low:.4f} to {cell.interval.high:.4f} ({cell.interval.of})"
    beside = ", ".join(f"{each.weights} {each.top1:.4f}" for each in cell.baselines) or "-"
    settings = ", ".join(f"{name} {value}" for name, value in cell.settings.items())
    mark = Text("best", style="green") if cell.best else Text(settings, style="dim")
    return title, f"{cell.top1:.4f}", interval, beside, cell.job, mark


def _score(score: EvaluationScoreView) -> tuple[str, ...]:
    seeds = f"{_interval(score.seeds_interval)} ({score.seeds})" if score.seeds_interval else "-"
    return score.key, f"{score.top1:.4f}", seeds, _interval(score.test_interval)


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _own(scores: Iterable[EvaluationScoreView]) -> str:
    """The scores of the backbone itself."""
    own = (score for score in scores if score.weights == "backbone")
    return ", ".join(f"{score.key.removeprefix('eval/')} {score.top1:.4f}" for score in own)


def _images(images: ImagesView) -> str:
    return f"{images.title} ({images.images:,} images)"
