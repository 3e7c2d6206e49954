"""How the command line shows things to people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from service.access.schemas import AuditView, TokenView
from service.client import render_progress
from service.client.console import Console, Text
from service.client.render_inspection import inspection
from service.client.tables import duration, fields, size, table, when
from service.cluster.schemas import ClusterView, Held, QueuedView
from service.jobs.output_schemas import CheckpointView, JobFileView, JobsMetricsView, Point
from service.jobs.schemas import (
    AttemptView,
    Deletion,
    EmbeddingProgress,
    JobView,
    PlanView,
    Progress,
    Result,
    SearchProgress,
)
from service.jobs.state import State
from trainer.protocol.embeddings import Embeddings
from trainer.spec.base import Problem
from trainer.spec.metric_keys import RECONSTRUCTION_RATIO

STYLES = {
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.RUNNING: "cyan",
    State.RECOVERING: "yellow",
}


RESOURCE_COLUMNS: Final = ("NAME", "OWNER", "WORKERS", "CPUS", "GPUS")
BARS: Final = "▁▂▃▄▅▆▇█"
CURVE_WIDTH: Final = 24
"""Points of a curve drawn in a table."""


def state(value: State) -> Text:
    return Text(value.value, style=STYLES.get(value, ""))


def jobs(views: Iterable[JobView]) -> Table:
    return table(
        ("ID", "NAME", "STATE", "DONE", "OWNER", "CREATED"),
        (
            (job.id, job.name, state(job.state), render_progress.done(job), job.owner, when(job.created_at))
            for job in views
        ),
    )


def job(view: JobView) -> RenderableType:
    """Everything about a job but its spec."""
    origin = view.promoted_from
    rows: list[tuple[str, RenderableType]] = [
        ("id", view.id),
        ("name", view.name),
        ("state", state(view.state)),
        *([("reason", view.reason)] if view.reason else []),
        *([("message", Text(view.message))] if view.message else []),
        ("owner", view.owner),
        ("priority", str(view.priority)),
        *([("promoted from", f"trial {origin.trial} of {origin.search}")] if origin else []),
        *([("follows", view.follows)] if view.follows else []),
        *([("followed by", ", ".join(view.followed_by))] if view.followed_by else []),
        ("attempts", str(view.attempts)),
        ("created", when(view.created_at)),
        *([("started", when(view.started_at))] if view.started_at else []),
        *([("ended", when(view.ended_at))] if view.ended_at else []),
        *([("run", view.run_id)] if view.run_id else []),
    ]
    if view.progress:
        rows.append(("progress", render_progress.line(view)))
        if isinstance(view.progress, Progress | SearchProgress) and view.progress.gpu_hours:
            rows.append(("GPU hours", f"{view.progress.gpu_hours:.2f}"))
        if isinstance(view.progress, Progress):
            rows += [("data", view.progress.labels)] if view.progress.labels else []
        if isinstance(view.progress, Progress | EmbeddingProgress):
            rows += [("warning", Text(warned.message, style="yellow")) for warned in view.progress.warnings]
    if view.labels:
        rows.append(("labels", ", ".join(f"{name}:{value}" for name, value in sorted(view.labels.items()))))
    if view.notes:
        rows.append(("notes", Text(view.notes)))
    if view.result:
        rows += _result(view.id, view.result)
    if view.result and view.result.inspection:
        return Group(fields(rows), "", inspection(view.result.inspection))
    return fields(rows)


def _result(job_id: str, found: Result) -> Iterator[tuple[str, RenderableType]]:
    yield from ((key, f"{value:.4g}") for key, value in sorted(found.metrics.items()))
    if found.backbone:
        yield "backbone", f"{found.backbone.name}:{found.backbone.version}"
    others = [each for each in found.backbones if each != found.backbone]
    if others:
        yield "also became", ", ".join(f"{each.name}:{each.version}" for each in others)
    if found.embeddings:
        yield from _embeddings(job_id, found.embeddings)


def _embeddings(job_id: str, found: Embeddings) -> Iterator[tuple[str, RenderableType]]:
    """What the files of a job that computes features hold."""
    patches = f", and {found.patch_tokens[0]} patch tokens" if found.patch_tokens else ""
    yield "features", f"{found.width} values, {found.dtype}, {found.pooling} of block {found.layer}{patches}"
    yield "rows", f"{found.dataset.images:,}, {found.labels:,} of them with a label"
    yield "files", f"{found.files:,}: rcmae jobs files {job_id} --download DIR"


def attempts(views: Iterable[AttemptView]) -> Table:
    """How each attempt went, in 80 columns; for a running one, the time since its last heartbeat."""
    columns = ("ATTEMPT", "STATE", "REASON", "WORKERS", "TOOK", "HEARTBEAT", "CHECKPOINT")
    return table(columns, (_attempt(attempt) for attempt in views))


def _attempt(view: AttemptView) -> Sequence[RenderableType]:
    now = datetime.now(UTC)
    heartbeat_at = view.heartbeat_at if view.ended_at is None else None
    return (
        str(view.number),
        view.state,
        view.reason or "-",
        str(view.workers or "-"),
        duration(((view.ended_at or now) - view.started_at).total_seconds()),
        f"{duration((now - heartbeat_at).total_seconds())} ago" if heartbeat_at else "-",
        (view.checkpoint or "-").removeprefix("checkpoints/"),
    )


def deletion(view: Deletion) -> RenderableType:
    """What is deleted with a job."""
    rows: list[tuple[str, RenderableType]] = [("job", view.job_id)]
    if view.run_id:
        rows.append(("run", view.run_id))
    rows.append(("files", f"{view.files:,}, {size(view.bytes)}"))
    if view.artifact_uri:
        rows.append(("in", view.artifact_uri))
    rows.append(("backbones", ", ".join(f"{b.name}:{b.version}" for b in view.backbones) or "none"))
    return fields(rows)


def checkpoints(views: Iterable[CheckpointView]) -> Table:
    """The checkpoints that a later attempt can resume from."""
    columns = ("CHECKPOINT", "STEP", "EPOCH", "SIZE", "COMMITTED", "RATIO", "BEST")
    return table(
        columns,
        (
            (
                point.path.removeprefix("checkpoints/"),
                f"{point.step:,}",
                "-" if point.epoch is None else f"{point.epoch:.1f}",
                size(point.bytes),
                when(point.created_at),
                f"{point.metrics[RECONSTRUCTION_RATIO]:.4f}" if RECONSTRUCTION_RATIO in point.metrics else "-",
                "best" if point.best else "",
            )
            for point in views
        ),
    )


def files(views: Iterable[JobFileView]) -> Table:
    """What a job has left for people."""
    return table(("FILE", "SIZE", "CHANGED"), ((each.path, size(each.bytes), when(each.modified_at)) for each in views))


def curves(view: JobsMetricsView) -> Table:
    """One row per curve, with the job's id where there are several jobs."""
    several = len(view.jobs) > 1
    columns = ("METRIC", *(["JOB"] if several else []), "STEP", "LAST", "MIN", "MAX", "CURVE")
    rows = (
        (
            key,
            *([job_id] if several else []),
            f"{points[-1].step:,}",
            f"{points[-1].value:.4g}",
            f"{min(point.min for point in points):.4g}",
            f"{max(point.max for point in points):.4g}",
            sparkline(point.value for point in points),
        )
        for job_id, key, points in sorted(_curves(view), key=lambda curve: curve[1])
    )
    return table(columns, rows)


def points(view: JobsMetricsView) -> Table:
    """Every point of every curve."""
    several = len(view.jobs) > 1
    columns = ("METRIC", *(["JOB"] if several else []), "STEP", "VALUE", "MIN", "MAX", "TIME")
    rows = (
        (
            key,
            *([job_id] if several else []),
            f"{point.step:,}",
            *(f"{value:.6g}" for value in (point.value, point.min, point.max)),
            when(point.time),
        )
        for job_id, key, points in _curves(view)
        for point in points
    )
    return table(columns, rows)


def _curves(view: JobsMetricsView) -> Iterator[tuple[str, str, list[Point]]]:
    for job_id, series in view.jobs.items():
        yield from ((job_id, key, points) for key, points in sorted(series.items()) if points)


def sparkline(curve: Iterable[float]) -> str:
    """A curve as small bars between its smallest and largest values; values that are not finite are left out."""
    values = [value for value in curve if math.isfinite(value)]
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in values)


def plan(view: PlanView) -> RenderableType:
    is_search = view.spec.get("kind") == "search"
    count = (view.spec["base"] if is_search else view.spec)["resources"]["workers"]
    workers = f"{count} a trial" if is_search else str(count)
    rows: list[tuple[str, RenderableType]] = [
        ("starts", Text(view.fits, style={"now": "green", "later": "yellow", "never": "red"}[view.fits])),
        ("message", Text(view.message)),
        *([("trials", _trials_planned(view.spec["budget"]))] if is_search else []),
        *([("points", f"{view.points:,} in its space")] if view.points is not None else []),
        *(
            [("parameters", f"encoder {view.parameters.encoder:,}, decoder {view.parameters.decoder:,}")]
            if view.parameters
            else []
        ),
        ("workers", f"{workers}, together {view.gang.cpus} CPUs and {view.gang.gpus} GPUs"),
        ("memory", f"about {size(view.memory_per_worker_bytes)} a worker"),
    ]
    if view.steps:
        steps = view.steps
        rows.append(("images", f"{steps.train_images:,} to train on, {steps.held_out_images:,} held out"))
        rows.append(("steps", f"{steps.steps:,}, {steps.steps_per_epoch:,} an epoch"))
    rows += [("warning", Text(warned.message, style="yellow")) for warned in view.warnings]
    return fields(rows)


def _trials_planned(budget: Mapping[str, Any]) -> str:
    return f"{budget['trials']}, {budget['concurrency']} at a time"


def tokens(views: Iterable[TokenView]) -> Table:
    """Tokens without their texts."""
    return table(
        ("TOKEN", "NAME", "OWNER", "ROLE", "STATE", "CREATED", "LAST USED", "ENDS"),
        (
            (
                token.id,
                token.name or "-",
                token.owner,
                token.role,
                Text(token.state, style="green" if token.state == "active" else "dim"),
                when(token.created_at),
                when(token.last_used_at) if token.last_used_at else "never",
                when(token.expires_at) if token.expires_at else "never",
            )
            for token in views
        ),
    )


def audit(views: Iterable[AuditView]) -> Table:
    """Who requested what, and the HTTP status of the response."""
    return table(
        ("TIME", "ACTOR", "ACTION", "TARGET", "STATUS", "FROM", "REQUEST"),
        (
            (
                when(entry.time),
                entry.actor,
                entry.action,
                entry.target or "-",
                Text(str(entry.status), style="" if entry.status < 300 else "red"),
                entry.address or "-",
                entry.request_id or "-",
            )
            for entry in views
        ),
    )


def cluster(view: ClusterView) -> RenderableType:
    """Nodes, running jobs and the queue, each as a table."""
    totals = view.totals
    head = Text(
        f"{totals.nodes} node{'' if totals.nodes == 1 else 's'}; in use: {_share(totals.cpus_used, totals.cpus)} CPUs, "
        f"{_share(totals.gpus_used, totals.gpus)} GPUs"
    )
    nodes = table(
        ("NODE", "ADDRESS", "STATE", "CPUS", "GPUS", "GPU MODEL"),
        (
            (
                node.id[:12],
                node.address,
                Text(node.state, style="" if node.state == "alive" else "red"),
                _share(node.cpus_used, node.cpus),
                _share(node.gpus_used, node.gpus),
                node.gpu_model or "-",
            )
            for node in view.nodes
        ),
    )
    parts: list[RenderableType] = [head, "", nodes]
    if view.running:
        running = (*RESOURCE_COLUMNS, "FOR")
        parts += ["", table(("RUNNING", *running), ((*_resources(job), _since(job.since)) for job in view.running))]
    if view.queue:
        queued = (*RESOURCE_COLUMNS, "PRIORITY", "FOR", "WAITS BECAUSE")
        parts += ["", table(("QUEUED", *queued), (_queued(job) for job in view.queue))]
    return Group(*parts)


def _share(used: int, total: int) -> str:
    return f"{used}/{total}"


def _resources(view: Held) -> tuple[str, ...]:
    names = (view.id or "(not yours)", view.name or "-", view.owner or "-")
    return (*names, str(view.workers), str(view.cpus), str(view.gpus))


def _queued(view: QueuedView) -> tuple[str, ...]:
    reason = "starts now" if view.starts else view.message or view.reason or "-"
    return (*_resources(view), str(view.priority), _since(view.since), reason)


def _since(moment: datetime) -> str:
    return duration((datetime.now(UTC) - moment).total_seconds())


def print_problems(console: Console, problems: Iterable[Problem]) -> None:
    """Each rejected field, with what to do about it."""
    for problem in problems:
        console.print(Text.assemble((problem.field or "spec", "bold"), f": {problem.message}"), soft_wrap=True)
        if problem.value is not None:
            console.print(Text(f"    given: {problem.value!r}", style="dim"), soft_wrap=True)
