"""How the command line shows things to people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.backbones.schemas import BackboneView, VersionView
from service.jobs.schemas import AttemptView, Deletion, JobView, PlanView, State
from trainer.spec.base import Problem

STYLES = {
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.RUNNING: "cyan",
    State.RECOVERING: "yellow",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A plain table."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*row)
    return made


def fields(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names with their values."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def state(value: State) -> Text:
    return Text(value.value, style=STYLES.get(value, ""))


def jobs(found: Iterable[JobView]) -> Table:
    return table(
        ("ID", "NAME", "STATE", "EPOCH", "OWNER", "CREATED"),
        ((job.id, job.name, state(job.state), _epoch(job), job.owner, when(job.created_at)) for job in found),
    )


def job(found: JobView) -> RenderableType:
    """Everything about a job but its spec."""
    rows: list[tuple[str, RenderableType]] = [
        ("id", found.id),
        ("name", found.name),
        ("state", state(found.state)),
        *([("reason", found.reason)] if found.reason else []),
        *([("message", Text(found.message))] if found.message else []),
        ("owner", found.owner),
        ("priority", str(found.priority)),
        ("attempts", str(found.attempts)),
        ("created", when(found.created_at)),
        *([("started", when(found.started_at))] if found.started_at else []),
        *([("ended", when(found.ended_at))] if found.ended_at else []),
        *([("run", found.run_id)] if found.run_id else []),
    ]
    if found.progress:
        rows.append(("progress", progress_line(found)))
    if found.labels:
        rows.append(("labels", ", ".join(f"{name}:{value}" for name, value in sorted(found.labels.items()))))
    if found.notes:
        rows.append(("notes", Text(found.notes)))
    if found.result:
        rows += [(key, f"{value:.4g}") for key, value in sorted(found.result.metrics.items())]
        if found.result.backbone:
            rows.append(("backbone", f"{found.result.backbone.name}:{found.result.backbone.version}"))
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


def _epoch(found: JobView) -> str:
    return f"{found.progress.epoch:.1f}/{found.progress.epochs}" if found.progress else "-"


def progress_line(found: JobView) -> str:
    """Epoch, rate, loss and time to the end, as far as they are known."""
    progress = found.progress
    if progress is None:
        return ""
    parts = [f"epoch {progress.epoch:.1f}/{progress.epochs}"]
    if progress.images_per_s is not None:
        parts.append(f"{progress.images_per_s:.0f} images/s")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.eta_s is not None and not found.state.terminal:
        parts.append(f"ETA {duration(progress.eta_s)}")
    return "  ".join(parts)


def plan(found: PlanView) -> RenderableType:
    encoder, decoder = found.parameters.encoder, found.parameters.decoder
    resources = found.spec["resources"]
    rows: list[tuple[str, RenderableType]] = [
        ("starts", Text(found.fits, style={"now": "green", "later": "yellow", "never": "red"}[found.fits])),
        ("message", Text(found.message)),
        ("parameters", f"encoder {encoder:,}, decoder {decoder:,}"),
        ("workers", f"{resources['workers']}, together {found.gang.cpus} CPUs and {found.gang.gpus} GPUs"),
        ("memory", f"about {size(found.memory_per_worker_bytes)} a worker"),
    ]
    if found.steps:
        steps = found.steps
        rows.append(("images", f"{steps.train_images:,} to train on, {steps.held_out_images:,} held out"))
        rows.append(("steps", f"{steps.steps:,}, {steps.steps_per_epoch:,} an epoch"))
    return fields(rows)


def backbones(found: Iterable[BackboneView]) -> Table:
    return table(
        ("NAME", "LATEST", "VERSIONS", "UPDATED"),
        ((b.name, str(b.latest_version), str(len(b.versions)), when(b.updated_at)) for b in found),
    )


def version(found: VersionView) -> RenderableType:
    head = fields(
        [
            ("backbone", f"{found.name}:{found.version}"),
            ("job", found.job_id),
            ("created", when(found.created_at)),
            *sorted(found.tags.items()),
        ]
    )
    files = table(("FILE", "SIZE", "SHA256"), ((f.path, size(f.size), f.sha256) for f in found.files))
    return Group(head, "", files)


def problems(console: Console, found: Iterable[Problem]) -> None:
    """Each failing field with what to do about it."""
    for problem in found:
        console.print(Text.assemble((problem.field or "spec", "bold"), f": {problem.message}"), soft_wrap=True)
        if problem.value is not None:
            console.print(Text(f"    given: {problem.value!r}", style="dim"), soft_wrap=True)


def when(moment: datetime) -> str:
    """A time on the reader's clock."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
