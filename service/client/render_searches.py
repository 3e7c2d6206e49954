"""How the command line shows searches to people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import JsonValue
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.client.render import sparks, state
from service.client.tables import duration, fields, number, table, when
from service.jobs.schemas import TrialCounts
from service.searches.schemas import BudgetView, RepeatView, SearchView, TrialDetail, TrialState, TrialView
from trainer.spec.ready_searches import ReadySearch

STYLES: Final = {
    TrialState.WAITING: "dim",
    TrialState.RUNNING: "cyan",
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "dark_orange",
    TrialState.FAILED: "red",
}


def search(found: SearchView) -> RenderableType:
    """What it seeks, how far it is, and what is best so far."""
    rows: list[tuple[str, RenderableType]] = [
        ("id", found.id),
        ("name", found.name),
        ("state", state(found.state).append(", starts no other trial" if found.draining else "", style="")),
        *([("reason", found.reason)] if found.reason else []),
        *([("message", found.message)] if found.message else []),
        ("owner", found.owner),
        ("seeks", ", ".join(f"{each['metric']} ({each['mode']})" for each in found.objectives)),
        ("by", f"{found.algorithm}, scheduler {found.scheduler}"),
        ("trials", _counts(found.trials)),
        ("budget", _budget(found)),
        ("created", when(found.created_at)),
        *([("started", when(found.started_at))] if found.started_at else []),
        *([("ended", when(found.ended_at))] if found.ended_at else []),
        ("ran for", duration(found.elapsed_s)),
        *([("ETA", duration(found.eta_s))] if found.eta_s is not None else []),
        *([("GPU hours", f"{found.gpu_hours:.2f}")] if found.gpu_hours else []),
    ]
    promoted = [f"trial {trial} to {', '.join(jobs)}" for trial, jobs in found.promoted.items()]
    rows += [("promoted", "; ".join(promoted))] if promoted else []
    space = table(("PARAMETER", "VALUES"), ((path, _values(parameter)) for path, parameter in found.space.items()))
    best: RenderableType = trials(found.best, found) if found.best else Text("no trial has a value yet", style="dim")
    parts: list[RenderableType] = [fields(rows), "", space, "", Text("best", style="bold"), best]
    if found.repeats:
        parts += ["", Text("best with other seeds", style="bold"), _repeats(found.repeats, found)]
    return Group(*parts)


def _counts(found: TrialCounts) -> str:
    counts = {name: getattr(found, name) for name in ("complete", "pruned", "failed", "running", "waiting")}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none yet"


def _budget(found: SearchView) -> str:
    budget: BudgetView = found.budget
    wanted = budget.concurrency_wanted
    parts = [
        f"{budget.trials} trials" + (f" of {found.grid_size} combinations" if found.grid_size is not None else ""),
        f"{budget.concurrency} at a time" + (f" ({wanted} wanted)" if wanted != budget.concurrency else ""),
        f"{budget.max_failed} may fail",
        *([f"{number(budget.max_hours)} hours"] if budget.max_hours is not None else []),
    ]
    return ", ".join(parts)


def _values(parameter: Mapping[str, Any]) -> str:
    """What a parameter may be, in words."""
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


def trials(found: Iterable[TrialView], of: SearchView) -> Table:
    """A trial a line, with a column for each objective and each parameter; the best are marked."""
    columns = ("TRIAL", "STATE", *_metrics(of), "EPOCH", "TOOK", *_short(of.space))
    return table(columns, (_trial(trial, of) for trial in found))


def _trial(found: TrialView, of: SearchView) -> Sequence[RenderableType]:
    values = [number(each) for each in found.values or ()]
    return (
        f"{found.number}{' best' if found.best else ''}",
        Text(found.state.value, style=STYLES[found.state]),
        *(values or ["-"] * len(of.objectives)),
        "-" if found.epoch is None else number(found.epoch),
        "-" if found.duration_s is None else duration(found.duration_s),
        *_params(found.params, of),
    )


def _repeats(found: Iterable[RepeatView], of: SearchView) -> Table:
    """The best trials by their mean."""
    columns = ("TRIAL", "MEAN", "95 % INTERVAL", "VALUES", *_short(of.space))
    rows = (
        (
            str(each.number),
            number(each.mean),
            "-" if each.low is None or each.high is None else f"{number(each.low)} to {number(each.high)}",
            ", ".join(map(number, each.values)),
            *_params(each.params, of),
        )
        for each in found
    )
    return table(columns, rows)


def trial(found: TrialDetail, of: SearchView) -> RenderableType:
    """One trial: how it went, and how it differs from the best."""
    values = zip(_metrics(of), found.values or (), strict=False)
    others = [("repeat of", found.repeat_of), ("retry of", found.retry_of)]
    rows: list[tuple[str, RenderableType]] = [
        ("trial", f"{found.number}{', the best' if found.best else ''}"),
        ("state", Text(found.state.value, style=STYLES[found.state])),
        *([("reason", found.reason)] if found.reason else []),
        *([("message", found.message)] if found.message else []),
        *((metric, number(each)) for metric, each in values),
        *((name, f"trial {other}") for name, other in others if other is not None),
        *([("epochs", number(found.epoch))] if found.epoch is not None else []),
        *([("started", when(found.started_at))] if found.started_at else []),
        *([("ended", when(found.ended_at))] if found.ended_at else []),
        *([("took", duration(found.duration_s))] if found.duration_s is not None else []),
        *([("attempts", ", ".join(map(str, found.attempts)))] if found.attempts else []),
        *([("run", found.run_id)] if found.run_id else []),
        *([("promoted to", ", ".join(found.promoted))] if found.promoted else []),
    ]
    curve = found.intermediate
    if curve:
        first, last = curve[0], curve[-1]
        ends = f"{number(first.value)} at epoch {number(first.epoch)}, {number(last.value)} at {number(last.epoch)}"
        rows.append(("curve", f"{sparks(point.value for point in curve)}  {ends}"))
    rows += [(metric, number(each)) for metric, each in sorted(found.metrics.items()) if metric not in _metrics(of)]
    paths = [path for path in of.space if path in found.params or path in found.difference]
    params = table(
        ("PARAMETER", "VALUE", "BEST HAS"),
        ((path, _param(found.params, path), _best_has(found, path) if of.best else "-") for path in paths),
    )
    return Group(fields(rows), "", params)


def _best_has(found: TrialDetail, path: str) -> str:
    return value(found.difference[path].best) if path in found.difference else "the same"


def _metrics(of: SearchView) -> list[str]:
    return [each["metric"] for each in of.objectives]


def _params(params: Mapping[str, JsonValue], of: SearchView) -> list[str]:
    return [_param(params, path) for path in of.space]


def _param(params: Mapping[str, JsonValue], path: str) -> str:
    """Only where the parameter applies."""
    return value(params[path]) if path in params else "-"


def _short(paths: Iterable[str]) -> list[str]:
    """Each path's last part, or all of it where another ends in the same."""
    last = [path.rpartition(".")[2] for path in paths]
    return [name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)]


def value(found: JsonValue) -> str:
    """A parameter's value; text as it is, null as `-`."""
    if isinstance(found, float):
        return number(found)
    if found is None:
        return "-"
    return found if isinstance(found, str) else json.dumps(found)


def ready(found: Mapping[str, ReadySearch]) -> Table:
    """Ready-made searches by name."""
    return table(
        ("NAME", "VARIES", "TRIALS", "ABOUT"),
        ((name, ", ".join(each.space), str(each.trials), each.about) for name, each in found.items()),
    )
