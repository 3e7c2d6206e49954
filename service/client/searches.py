"""The client's commands about hyperparameter searches."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from service.client import render_searches
from service.client.commands import print_job
from service.client.errors import ClientError
from service.client.results import OfAttempt, OfLevel, OfSource, Tail, WithText, print_log
from service.client.shell import Json, connected, out, print_json
from service.searches.schemas import SearchView, TrialState
from trainer.spec.base import Problem, SpecError, apply_overrides, parse_overrides, read_document, read_yaml
from trainer.spec.ready_searches import READY, ready_search
from trainer.spec.search import SearchSpec

searches = typer.Typer(no_args_is_help=True, help="Show and steer hyperparameter searches, and make specs of new ones.")

SearchId = Annotated[str, typer.Argument(metavar="SEARCH", help="The search's id, which is its job's.")]
TrialNumber = Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="The trial's number.")]


@searches.command()
def show(search: SearchId, as_json: Json = False) -> None:
    """One search: what it seeks, how far it is, what is best so far."""
    with connected() as client:
        _print_search(client.search(search), as_json)


@searches.command("trials")
def list_trials(
    search: SearchId,
    state: Annotated[list[TrialState] | None, typer.Option(help="Only these; repeatable.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="number, value, epoch, duration, started or param:PATH; -value has the greatest first. Else the "
            "newest first."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="All of them as CSV into a new file; - for standard output."),
    ] = None,
    as_json: Json = False,
) -> None:
    """A search's trials."""
    if csv and (state or sort or as_json):
        raise typer.BadParameter("has all trials: leave out --state, --sort and --json", param_hint="--csv")
    with connected() as client:
        if csv:
            _write(client.trials_csv(search), csv)
            return
        found = list(islice(client.trials(search, states=state or (), sort=sort, page_size=min(limit, 100)), limit))
        if as_json:
            print_json(found)
        else:
            out.print(render_searches.trials(found, client.search(search)))


def _write(text: str, file: Path) -> None:
    if str(file) == "-":
        typer.echo(text, nl=False)
        return
    try:
        with file.open("x", newline="") as opened:
            opened.write(text)
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}: name a new file in a folder that there is") from error


@searches.command("trial")
def show_trial(search: SearchId, trial: TrialNumber, as_json: Json = False) -> None:
    """One trial: its values beside the best trial's, its curve, how it ended."""
    with connected() as client:
        found = client.trial(search, trial)
        print_json(found) if as_json else out.print(render_searches.trial(found, client.search(search)))


@searches.command("stop-trial")
def stop_trial(search: SearchId, trial: TrialNumber, as_json: Json = False) -> None:
    """End one running trial as it is; its last value is kept."""
    with connected() as client:
        found = client.stop_trial(search, trial)
    print_json(found) if as_json else out.print(f"trial {trial} ends within moments", highlight=False)


@searches.command("retry-trial")
def retry_trial(search: SearchId, trial: TrialNumber, as_json: Json = False) -> None:
    """Try the values of a failed trial once more, beyond the budget."""
    with connected() as client:
        made = client.retry_trial(search, trial)
    told = f"trial {made.number} has the values of trial {trial}, and is tried next"
    print_json(made) if as_json else out.print(told, highlight=False)


@searches.command()
def promote(
    search: SearchId,
    trial: Annotated[
        int | None, typer.Argument(metavar="[TRIAL]", min=0, help="Its number; by default the best one.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over the trial: optimization.epochs=400")
    ] = None,
    register_as: Annotated[str | None, typer.Option(metavar="NAME", help="The backbone that it becomes.")] = None,
    as_json: Json = False,
) -> None:
    """Submit a trial's spec as a pretraining job. The same again is the same job."""
    values = parse_overrides(overrides or ())
    with connected() as client:
        number = _the_best(client.search(search)) if trial is None else trial
        job = client.promote(search, number, overrides=values, register_as=register_as)
    if as_json:
        print_json(job)
    else:
        out.print(f"trial {number} is job {job.id}, which is {job.state.value}", highlight=False, soft_wrap=True)
        out.print(f"follow it with: rcmae jobs wait {job.id}", highlight=False, soft_wrap=True)


def _the_best(found: SearchView) -> int:
    if not found.best:
        raise ClientError(f"no trial of {found.id} has a value yet: wait for one, or name a trial")
    numbers = ", ".join(str(trial.number) for trial in found.best)
    if len(found.best) > 1:
        raise ClientError(f"none of the trials {numbers} of {found.id} beats the others in all objectives: name one")
    return found.best[0].number


@searches.command("set")
def set_(
    search: SearchId,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    max_failed: Annotated[int | None, typer.Option(min=0, help="Trials that may fail.")] = None,
    max_hours: Annotated[
        str | None, typer.Option(metavar="N", help="Hours in which trials run; `none` for no limit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Change a search's budget, also while it runs; what is not named stays."""
    if trials is None and concurrency is None and max_failed is None and max_hours is None:
        raise typer.BadParameter("say what to change: --trials, --concurrency, --max-failed or --max-hours")
    hours = None if max_hours is None else _hours(max_hours)
    with connected() as client:
        changed = client.change_search(
            search, trials=trials, concurrency=concurrency, max_failed=max_failed, max_hours=hours
        )
    _print_search(changed, as_json)


def _hours(text: str) -> float | Literal["none"]:
    try:
        return "none" if text == "none" else float(text)
    except ValueError:
        raise typer.BadParameter(f"write a number or none, not {text!r}", param_hint="--max-hours") from None


@searches.command()
def add(
    search: SearchId,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="One trial's value; what is not named the algorithm chooses."),
    ] = None,
    points: Annotated[
        typer.FileText | None,
        typer.Option(metavar="FILE", help="A YAML or JSON list of trials, each with values by path; - for input."),
    ] = None,
    beyond_budget: Annotated[
        bool, typer.Option("--beyond-budget", help="Raise the budget's number of trials by as many.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key with the same trials adds them once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Have chosen points of the space tried next."""
    wanted = [*(_points(points.read()) if points else []), *([parse_overrides(values)] if values else [])]
    if not wanted:
        raise typer.BadParameter("say what to try: --set method.mask_ratio=0.8, or --points FILE")
    with connected() as client:
        made = client.add_trials(search, wanted, beyond_budget=beyond_budget, idempotency_key=idempotency_key)
    numbers = ", ".join(str(trial.number) for trial in made)
    told = f"tried next: trial{'' if len(made) == 1 else 's'} {numbers}"
    print_json(made) if as_json else out.print(told, highlight=False, soft_wrap=True)


def _points(text: str) -> list[dict[str, Any]]:
    found = read_yaml(text)
    if not isinstance(found, list) or not all(isinstance(point, dict) for point in found):
        message = "must be a list of trials, each with values by path, for example `- {method.mask_ratio: 0.8}`"
        raise SpecError([Problem("points", "/points", found, message)])
    return found


@searches.command()
def stop(search: SearchId, as_json: Json = False) -> None:
    """End a search once its running trials have finished; no others begin."""
    with connected() as client:
        print_job(client.stop(search), as_json)


@searches.command()
def logs(
    search: SearchId,
    trial: TrialNumber,
    attempt: OfAttempt = None,
    source: OfSource = None,
    level: OfLevel = None,
    text: WithText = None,
    tail: Tail = None,
    as_json: Json = False,
) -> None:
    """A trial's log lines. Those of the search itself: rcmae jobs logs SEARCH."""
    with connected() as client:
        ask = partial(client.trial_logs, search, trial, attempt=attempt, source=source, level=level, search=text)
        print_log(ask, tail, as_json)


@searches.command()
def presets(as_json: Json = False) -> None:
    """Ready-made searches, for `rcmae searches new`."""
    if as_json:
        told = [
            {"name": name, "about": each.about, "varies": list(each.space), "trials": each.trials}
            for name, each in READY.items()
        ]
        typer.echo(json.dumps(told, indent=2))
    else:
        out.print(render_searches.ready(READY))


@searches.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"A ready-made search: {', '.join(READY)}.")],
    base: Annotated[
        typer.FileText,
        typer.Option(metavar="SPEC", help="The pretraining spec, in YAML or JSON, that its trials start from."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Over the search: budget.trials=16, base.optimization.epochs=5"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the spec of a ready-made search over a pretraining spec, to be edited and submitted.

    rcmae searches new teacher --base spec.yaml | rcmae submit -
    """
    told = overrides or []
    if any(override.startswith("space.") for override in told):
        raise typer.BadParameter("cannot reach into space, whose names have dots: edit what is printed")
    of_base = [override for override in told if override.startswith("base.")]
    written = apply_overrides({"base": read_document(base.read())}, of_base)
    document = apply_overrides(
        ready_search(name, written["base"]), [override for override in told if override not in of_base]
    )
    SearchSpec.parse(document)
    typer.echo(json.dumps(document, indent=2) if as_json else yaml.safe_dump(document, sort_keys=False), nl=as_json)


def _print_search(found: SearchView, as_json: bool) -> None:
    print_json(found) if as_json else out.print(render_searches.search(found))
