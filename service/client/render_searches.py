"""How the command line shows searches to people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import JsonValue
from rich.console import Group, RenderableType
from rich.table import Table

from service.client.console import Text
from service.client.render import sparkline, state
from service.client.tables import duration, fields, number, table, when
from service.jobs.schemas import TrialCounts
from service.searches.schemas import BudgetView, RepeatView, SearchView, TrialDetail, TrialState, TrialView
from trainer.spec.ready_searches import ReadySearch

LIFE: Final = ("STEP", "LOSS", "IMAGES/S", "SEEN")
"""Columns of running trials."""
STYLES: Final = {
    TrialState.WAITING: "dim",
    TrialState.RUNNING: "cyan",
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "dark_orange",
    TrialState.FAILED: "red",
}


def search(view: SearchView) -> RenderableType:
    """A search's objectives, its progress, and its best trials so far."""
    rows: list[tuple[str, RenderableType]] = [
        ("id", view.id),
        ("name", view.name),
        ("state", state(view.state).append(", starts no other trial" if view.draining else "", style="")),
        *([("reason", view.reason)] if view.reason else []),
        *([("message", view.message)] if view.message else []),
        ("owner", view.owner),
        ("seeks", ", ".join(f"{each['metric']} ({each['mode']})" for each in view.objectives)),
        ("by", f"{view.algorithm}, scheduler {view.scheduler}"),
        ("trials", _counts(view.trials)),
        ("budget", _budget(view)),
        ("created", when(view.created_at)),
        *([("started", when(view.started_at))] if view.started_at else []),
        *([("ended", when(view.ended_at))] if view.ended_at else []),
        ("ran for", duration(view.elapsed_s)),
        *([("ETA", duration(view.eta_s))] if view.eta_s is not None else []),
        *([("GPU hours", f"{view.gpu_hours:.2f}")] if view.gpu_hours else []),
    ]
    promoted = [f"trial {trial} to {', '.join(jobs)}" for trial, jobs in view.promoted.items()]
    rows += [("promoted", "; ".join(promoted))] if promoted else []
    space = table(("PARAMETER", "VALUES"), ((path, _values(parameter)) for path, parameter in view.space.items()))
    best: RenderableType = trials(view.best, view) if view.best else Text("no trial has a value yet", style="dim")
    parts: list[RenderableType] = [fields(rows), "", space, "", Text("best", style="bold"), best]
    if view.repeats:
        parts += ["", Text("best with other seeds", style="bold"), _repeats(view.repeats, view)]
    return Group(*parts)


def _counts(trials: TrialCounts) -> str:
    counts = {name: getattr(trials, name) for name in ("complete", "pruned", "failed", "running", "waiting")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none yet"


def _budget(view: SearchView) -> str:
    budget: BudgetView = view.budget
    wanted = budget.concurrency_wanted
    parts = [
        f"{budget.trials} trials" + (f" of {view.grid_size} points" if view.grid_size is not None else ""),
        f"{budget.concurrency} at a time" + (f" ({wanted} wanted)" if wanted != budget.concurrency else ""),
        f"{budget.max_failed} may fail",
        *([f"{number(budget.max_hours)} hours"] if budget.max_hours is not None else []),
    ]
    return ", ".join(parts)


def _values(parameter: Mapping[str, Any]) -> str:
    """A parameter's possible values, in words."""
    if parameter["type"] == "categorical":
        text = ", ".join(map(value, parameter["choices"]))
    else:
        text = f"{value(parameter['low'])} to {value(parameter['high'])}"
        text += ", by its logarithm" if parameter.get("log") else ""
        step, always = parameter.get("step"), 1 if parameter["type"] == "int" else None
        text += f", step {value(step)}" if step not in {None, always} else ""
    conditions = (parameter.get("when") or {}).items()
    where = " and ".join(f"{path} is {' or '.join(map(value, values))}" for path, values in conditions)
    return f"{text}; where {where}" if where else text


def trials(views: Iterable[TrialView], of: SearchView) -> Table:
    """One row per trial, with a column for each objective and each parameter; the best trials are marked.

    If any of them runs, further columns show how far it is, and its last sign of life.
    """
    listed, moment = list(views), datetime.now(UTC)
    run = any(view.state is TrialState.RUNNING for view in listed)
    columns = ("TRIAL", "STATE", *_metrics(of), "EPOCH", *(LIFE if run else ()), "TOOK", *_short(of.space))
    return table(columns, (_trial(trial, of, moment if run else None) for trial in listed))


def _trial(view: TrialView, of: SearchView, moment: datetime | None) -> Sequence[RenderableType]:
    """``moment`` is the present, None for a table without the columns of running trials."""
    values, epoch = [number(each) for each in view.values or ()], _epoch(view)
    return (
        f"{view.number}{' best' if view.best else ''}",
        Text(view.state_in_words, style=STYLES[view.state]),
        *(values or ["-"] * len(of.objectives)),
        "-" if epoch is None else number(epoch),
        *(_life(view, moment) if moment else ()),
        "-" if view.duration_s is None else duration(view.duration_s),
        *_params(view.params, of),
    )


def _epoch(view: TrialView) -> float | None:
    """The epoch that a trial has reached: of a running one the present one, else that of its last evaluation."""
    return view.progress.epoch if view.progress else view.epoch


def _life(view: TrialView, moment: datetime) -> Sequence[str]:
    """How far a running trial is: its step, loss and images per second; and how long ago it showed that it lives."""
    far, beat = view.progress, view.heartbeat_at
    steps = f"{far.step}/{far.steps}" if far and far.steps else str(far.step) if far else "-"
    return (
        steps,
        "-" if far is None or far.loss is None else number(far.loss),
        "-" if far is None or far.images_per_s is None else f"{far.images_per_s:.0f}",
        "-" if beat is None else f"{duration((moment - beat).total_seconds())} ago",
    )


def _repeats(views: Iterable[RepeatView], of: SearchView) -> Table:
    """The repeated trials, by the mean over seeds."""
    columns = ("TRIAL", "MEAN", "95 % INTERVAL", "VALUES", *_short(of.space))
    rows = (
        (
            str(each.number),
            number(each.mean),
            "-" if each.low is None or each.high is None else f"{number(each.low)} to {number(each.high)}",
            ", ".join(map(number, each.values)),
            *_params(each.params, of),
        )
        for each in views
    )
    return table(columns, rows)


def trial(view: TrialDetail, of: SearchView) -> RenderableType:
    """One trial: its course, and how it differs from the best one."""
    values = zip(_metrics(of), view.values or (), strict=False)
    others = [("repeat of", view.repeat_of), ("retry of", view.retry_of), ("copy of", view.copy_of)]
    epoch = _epoch(view)
    steps, loss, rate, beat = _life(view, datetime.now(UTC))
    life = [("step", steps), ("loss", loss), ("images/s", rate), ("last sign of life", beat)]
    rows: list[tuple[str, RenderableType]] = [
        ("trial", f"{view.number}{', the best' if view.best else ''}"),
        ("state", Text(view.state_in_words, style=STYLES[view.state])),
        *([("reason", view.reason)] if view.reason else []),
        *([("message", view.message)] if view.message else []),
        *((metric, number(each)) for metric, each in values),
        *((name, f"trial {other}") for name, other in others if other is not None),
        *([("epochs", number(epoch))] if epoch is not None else []),
        *((name, text) for name, text in life if text != "-"),
        *([("started", when(view.started_at))] if view.started_at else []),
        *([("ended", when(view.ended_at))] if view.ended_at else []),
        *([("took", duration(view.duration_s))] if view.duration_s is not None else []),
        *([("attempts", ", ".join(map(str, view.attempts)))] if view.attempts else []),
        *([("run", view.run_id)] if view.run_id else []),
        *([("promoted to", ", ".join(view.promoted))] if view.promoted else []),
    ]
    curve = view.intermediate
    if curve:
        first, last = curve[0], curve[-1]
        ends = f"{number(first.value)} at epoch {number(first.epoch)}, {number(last.value)} at {number(last.epoch)}"
        rows.append(("curve", f"{sparkline(point.value for point in curve)}  {ends}"))
    rows += [(metric, number(each)) for metric, each in sorted(view.metrics.items()) if metric not in _metrics(of)]
    paths = [path for path in of.space if path in view.params or path in view.difference]
    params = table(
        ("PARAMETER", "VALUE", "BEST HAS"),
        ((path, _param(view.params, path), _best_has(view, path) if of.best else "-") for path in paths),
    )
    return Group(fields(rows), "", params)


def _best_has(view: TrialDetail, path: str) -> str:
    return value(view.difference[path].best) if path in view.difference else "the same"


def _metrics(of: SearchView) -> list[str]:
    return [each["metric"] for each in of.objectives]


def _params(params: Mapping[str, JsonValue], of: SearchView) -> list[str]:
    return [_param(params, path) for path in of.space]


def _param(params: Mapping[str, JsonValue], path: str) -> str:
    """A dash where the parameter does not apply to the trial."""
    return value(params[path]) if path in params else "-"


def _short(paths: Iterable[str]) -> list[str]:
    """The last part of each path, or the whole path where two end the same way."""
    last = [path.rpartition(".")[2] for path in paths]
    return [name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)]


def value(raw: JsonValue) -> str:
    """A parameter's value; text as it is, null as `-`."""
    if isinstance(raw, float):
        return number(raw)
    if raw is None:
        return "-"
    return raw if isinstance(raw, str) else json.dumps(raw)


def ready(presets: Mapping[str, ReadySearch]) -> Table:
    """Ready-made searches by name."""
    return table(
        ("NAME", "VARIES", "TRIALS", "ABOUT"),
        ((name, ", ".join(each.space), str(each.trials), each.about) for name, each in presets.items()),
    )
