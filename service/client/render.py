"""How the command line shows things to people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.access.schemas import AuditView, TokenView
from service.client.tables import duration, fields, number, size, table, when
from service.cluster.schemas import ClusterView, Held, QueuedView
from service.jobs.schemas import (
    AttemptView,
    CheckpointView,
    Deletion,
    JobsMetricsView,
    JobView,
    PlanView,
    Point,
    Progress,
    SearchProgress,
    State,
)
from trainer.spec.base import Problem
from trainer.spec.metric_keys import RECONSTRUCTION_RATIO

STYLES = {
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.RUNNING: "cyan",
    State.RECOVERING: "yellow",
}


HELD: Final = ("NAME", "OWNER", "WORKERS", "CPUS", "GPUS")
SPARKS: Final = "▁▂▃▄▅▆▇█"
CURVE_WIDTH: Final = 24
"""Points of a curve that is drawn in a table."""
LEAST_FIRST: Final = ("wait", "pruned", "rate", "loss", "running", "failed", "eta", "best")
"""What a line of progress does without where there is no room for it."""


def state(value: State) -> Text:
    return Text(value.value, style=STYLES.get(value, ""))


def jobs(found: Iterable[JobView]) -> Table:
    return table(
        ("ID", "NAME", "STATE", "DONE", "OWNER", "CREATED"),
        ((job.id, job.name, state(job.state), _done(job), job.owner, when(job.created_at)) for job in found),
    )


def job(found: JobView) -> RenderableType:
    """Everything about a job but its spec."""
    origin = found.promoted_from
    rows: list[tuple[str, RenderableType]] = [
        ("id", found.id),
        ("name", found.name),
        ("state", state(found.state)),
        *([("reason", found.reason)] if found.reason else []),
        *([("message", Text(found.message))] if found.message else []),
        ("owner", found.owner),
        ("priority", str(found.priority)),
        *([("promoted from", f"trial {origin.trial} of {origin.search}")] if origin else []),
        ("attempts", str(found.attempts)),
        ("created", when(found.created_at)),
        *([("started", when(found.started_at))] if found.started_at else []),
        *([("ended", when(found.ended_at))] if found.ended_at else []),
        *([("run", found.run_id)] if found.run_id else []),
    ]
    if found.progress:
        rows.append(("progress", progress_line(found)))
        if found.progress.gpu_hours:
            rows.append(("GPU hours", f"{found.progress.gpu_hours:.2f}"))
    if found.labels:
        rows.append(("labels", ", ".join(f"{name}:{value}" for name, value in sorted(found.labels.items()))))
    if found.notes:
        rows.append(("notes", Text(found.notes)))
    if found.result:
        rows += [(key, f"{value:.4g}") for key, value in sorted(found.result.metrics.items())]
        if found.result.backbone:
            rows.append(("backbone", f"{found.result.backbone.name}:{found.result.backbone.version}"))
        others = [each for each in found.result.backbones if each != found.result.backbone]
        if others:
            rows.append(("also became", ", ".join(f"{each.name}:{each.version}" for each in others)))
    return fields(rows)


def attempts(found: Iterable[AttemptView]) -> Table:
    """How each attempt went, in 80 columns; how long ago it showed life while it goes on."""
    columns = ("ATTEMPT", "STATE", "REASON", "WORKERS", "TOOK", "HEARTBEAT", "CHECKPOINT")
    return table(columns, (_attempt(attempt) for attempt in found))


def _attempt(found: AttemptView) -> Sequence[RenderableType]:
    moment = datetime.now(UTC)
    beat = found.heartbeat_at if found.ended_at is None else None
    return (
        str(found.number),
        found.state,
        found.reason or "-",
        str(found.workers or "-"),
        duration(((found.ended_at or moment) - found.started_at).total_seconds()),
        f"{duration((moment - beat).total_seconds())} ago" if beat else "-",
        (found.checkpoint or "-").removeprefix("checkpoints/"),
    )


def deletion(found: Deletion) -> RenderableType:
    """What goes with a job."""
    rows: list[tuple[str, RenderableType]] = [("job", found.job_id)]
    if found.run_id:
        rows.append(("run", found.run_id))
    rows.append(("files", f"{found.files:,}, {size(found.bytes)}"))
    if found.artifact_uri:
        rows.append(("in", found.artifact_uri))
    rows.append(("backbones", ", ".join(f"{b.name}:{b.version}" for b in found.backbones) or "none"))
    return fields(rows)


def _done(found: JobView) -> str:
    progress = found.progress
    if isinstance(progress, SearchProgress):
        return _trials_done(progress)
    return f"{progress.epoch:.1f}/{progress.epochs} epochs" if progress else "-"


def _trials_done(progress: SearchProgress) -> str:
    ended = progress.trials.ended
    # Repeats of the best come on top of the budget.
    return f"{ended}/{progress.budget} trials" if ended <= progress.budget else f"{ended} trials"


def share_done(progress: Progress | SearchProgress | None) -> float:
    """How much of a job is done, 0..1."""
    if progress is None:
        return 0.0
    if isinstance(progress, SearchProgress):
        return min(1.0, progress.trials.ended / progress.budget)
    return min(1.0, progress.epoch / progress.epochs)


def progress_line(found: JobView, room: int | None = None) -> str:
    """Epoch, loss, rates and time to the end, or a search's trials and the best of them, as far as they are known.

    With ``room`` for so many characters, the least important of it is left out.
    """
    progress = found.progress
    if progress is None:
        return ""
    parts = _search_parts(progress) if isinstance(progress, SearchProgress) else _training_parts(progress)
    if progress.eta_s is not None and not found.state.terminal:
        parts["eta"] = f"ETA {duration(progress.eta_s)}"
    for least in LEAST_FIRST:
        if room is not None and len("  ".join(parts.values())) > room:
            parts.pop(least, None)
    return "  ".join(parts.values())


def _training_parts(progress: Progress) -> dict[str, str]:
    parts = {"epoch": f"epoch {progress.epoch:.1f}/{progress.epochs}"}
    if progress.loss is not None:
        parts["loss"] = f"loss {progress.loss:.4f}"
    if progress.images_per_s is not None:
        parts["rate"] = f"{progress.images_per_s:.0f} images/s"
    if progress.data_wait_fraction is not None:
        parts["wait"] = f"data wait {progress.data_wait_fraction:.0%}"
    return parts


def _search_parts(progress: SearchProgress) -> dict[str, str]:
    parts = {"trials": _trials_done(progress)}
    counts = {"running": progress.trials.running, "pruned": progress.trials.pruned, "failed": progress.trials.failed}
    parts |= {name: f"{count} {name}" for name, count in counts.items() if count}
    if progress.best_value is not None:
        parts["best"] = f"best {number(progress.best_value)} (trial {progress.best_trial})"
    return parts


def checkpoints(found: Iterable[CheckpointView]) -> Table:
    """What a later attempt can go on from."""
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
            for point in found
        ),
    )


def curves(found: JobsMetricsView) -> Table:
    """A line for each curve; the job's id only where there are several."""
    several = len(found.jobs) > 1
    columns = ("METRIC", *(["JOB"] if several else []), "STEP", "LAST", "MIN", "MAX", "CURVE")
    rows = (
        (
            key,
            *([job_id] if several else []),
            f"{points[-1].step:,}",
            f"{points[-1].value:.4g}",
            f"{min(point.min for point in points):.4g}",
            f"{max(point.max for point in points):.4g}",
            sparks(point.value for point in points),
        )
        for job_id, key, points in sorted(_curves(found), key=lambda curve: curve[1])
    )
    return table(columns, rows)


def points(found: JobsMetricsView) -> Table:
    """Every point of every curve."""
    several = len(found.jobs) > 1
    columns = ("METRIC", *(["JOB"] if several else []), "STEP", "VALUE", "MIN", "MAX", "TIME")
    rows = (
        (
            key,
            *([job_id] if several else []),
            f"{point.step:,}",
            *(f"{value:.6g}" for value in (point.value, point.min, point.max)),
            when(point.time),
        )
        for job_id, key, points in _curves(found)
        for point in points
    )
    return table(columns, rows)


def _curves(found: JobsMetricsView) -> Iterator[tuple[str, str, list[Point]]]:
    for job_id, series in found.jobs.items():
        yield from ((job_id, key, points) for key, points in sorted(series.items()) if points)


def sparks(curve: Iterable[float]) -> str:
    """A curve as little bars between its smallest and largest value; what is not finite is left out."""
    values = [value for value in curve if math.isfinite(value)]
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1)) if span else 0] for value in values)


def plan(found: PlanView) -> RenderableType:
    encoder, decoder = found.parameters.encoder, found.parameters.decoder
    searched = found.spec.get("kind") == "search"
    workers = (found.spec["base"] if searched else found.spec)["resources"]["workers"]
    each = f"{workers} a trial" if searched else str(workers)
    rows: list[tuple[str, RenderableType]] = [
        ("starts", Text(found.fits, style={"now": "green", "later": "yellow", "never": "red"}[found.fits])),
        ("message", Text(found.message)),
        *([("trials", _trials_planned(found.spec["budget"]))] if searched else []),
        ("parameters", f"encoder {encoder:,}, decoder {decoder:,}"),
        ("workers", f"{each}, together {found.gang.cpus} CPUs and {found.gang.gpus} GPUs"),
        ("memory", f"about {size(found.memory_per_worker_bytes)} a worker"),
    ]
    if found.steps:
        steps = found.steps
        rows.append(("images", f"{steps.train_images:,} to train on, {steps.held_out_images:,} held out"))
        rows.append(("steps", f"{steps.steps:,}, {steps.steps_per_epoch:,} an epoch"))
    return fields(rows)


def _trials_planned(budget: Mapping[str, Any]) -> str:
    return f"{budget['trials']}, {budget['concurrency']} at a time"


def tokens(found: Iterable[TokenView]) -> Table:
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
            for token in found
        ),
    )


def audit(found: Iterable[AuditView]) -> Table:
    """Who asked for what; the status is the answer's."""
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
            for entry in found
        ),
    )


def cluster(found: ClusterView) -> RenderableType:
    """What the machines have, who uses it and who waits, each as a table."""
    totals = found.totals
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
            for node in found.nodes
        ),
    )
    parts: list[RenderableType] = [head, "", nodes]
    if found.running:
        running = (*HELD, "FOR")
        parts += ["", table(("RUNNING", *running), ((*_held(job), _since(job.since)) for job in found.running))]
    if found.queue:
        queued = (*HELD, "PRIORITY", "FOR", "WAITS BECAUSE")
        parts += ["", table(("QUEUED", *queued), (_queued(job) for job in found.queue))]
    return Group(*parts)


def _share(used: int, there: int) -> str:
    return f"{used}/{there}"


def _held(found: Held) -> tuple[str, ...]:
    names = (found.id or "(not yours)", found.name or "-", found.owner or "-")
    return (*names, str(found.workers), str(found.cpus), str(found.gpus))


def _queued(found: QueuedView) -> tuple[str, ...]:
    why = "starts now" if found.starts else found.message or found.reason or "-"
    return (*_held(found), str(found.priority), _since(found.since), why)


def _since(moment: datetime) -> str:
    return duration((datetime.now(UTC) - moment).total_seconds())


def problems(console: Console, found: Iterable[Problem]) -> None:
    """Each failing field with what to do about it."""
    for problem in found:
        console.print(Text.assemble((problem.field or "spec", "bold"), f": {problem.message}"), soft_wrap=True)
        if problem.value is not None:
            console.print(Text(f"    given: {problem.value!r}", style="dim"), soft_wrap=True)
