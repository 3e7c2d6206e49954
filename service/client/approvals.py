"""The commands for aliases of backbones, their history, and the rule for a champion."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from service.backbones.approval_schemas import (
    AliasMoveView,
    Better,
    ChampionCheckView,
    ChampionRuleBody,
    ChampionRuleView,
    MetricLimitBody,
)
from service.backbones.schemas import CHAMPION
from service.client import render_backbones, tables
from service.client.backbones import numbered, reference
from service.client.console import Text
from service.client.shell import Json, connected, err, out, print_json

Name = Annotated[str, typer.Argument(metavar="NAME", help="A backbone.")]


def alias(
    backbone: Annotated[
        str, typer.Argument(metavar="NAME:VERSION", help="The version it points at; with --remove only the name.")
    ],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as champion, which is pulled by default.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, which `rcmae backbones moves` shows.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias; its version stays.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Only say whether you may make the version the champion.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Point an alias at a version, wherever it pointed before. For champion this approves the version."""
    if preview and (remove or alias != CHAMPION):
        raise typer.BadParameter(f"there is a preview only of setting {CHAMPION}", param_hint="--preview")
    if preview:
        return _preview(*numbered(backbone), as_json)
    with connected() as client:
        if remove:
            name, version = reference(backbone)
            if version is not None:
                raise typer.BadParameter(f"write only {name}: an alias points at one version", param_hint="NAME")
            view = client.delete_alias(name, alias, reason=reason)
        else:
            name, number = numbered(backbone)
            view = client.set_alias(name, alias, number, reason=reason)
    return print_json(view) if as_json else out.print(render_backbones.backbone(view))


def _preview(name: str, number: int, as_json: bool) -> None:
    """Says what would happen; the exit status is 1 if it would be refused."""
    with connected() as client:
        view = client.champion_check(name, number)
    print_json(view) if as_json else out.print(_check(view), highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(int(not view.allowed))


def _check(view: ChampionCheckView) -> str:
    version = f"{view.name}:{view.version}"
    if view.version == view.before:
        return f"{version} is the champion"
    now = f", which {view.name}:{view.before} is now" if view.before else ""
    if not view.allowed:
        return "\n  ".join([f"{version} cannot become the champion{now}:", *view.problems])
    notes = "; it was approved before, so results are not compared" if view.restores else ""
    return f"{version} can become the champion{now}{'; give a --reason' if view.reason_required else ''}{notes}"


def moves(
    name: Name,
    alias: Annotated[str | None, typer.Option(help="Only this alias, such as champion.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Who set, moved and removed the aliases of a backbone, when and why; newest first."""
    with connected() as client:
        views = list(islice(client.alias_moves(name, alias=alias, page_size=min(limit, 100)), limit))
    print_json(views) if as_json else out.print(_moves(views))


def _moves(views: Iterable[AliasMoveView]) -> Table:
    return tables.table(
        ("WHEN", "ALIAS", "VERSION", "BEFORE", "BY", "WHY"),
        (
            (
                tables.when(each.moved_at),
                each.alias,
                "removed" if each.version is None else str(each.version),
                "-" if each.before is None else str(each.before),
                each.actor or "MLflow",
                each.reason or "-",
            )
            for each in views
        ),
    )


def rule(
    name: Name,
    approver: Annotated[
        list[str] | None, typer.Option(metavar="OWNER", help="Only they may move the champion; repeatable.")
    ] = None,
    not_by_owner: Annotated[
        bool, typer.Option("--not-by-owner", help="Whoever trained or registered a version may not approve it.")
    ] = False,
    must_not_fall: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC[=TOLERANCE]", help="A result that must not be lower than the champion's."),
    ] = None,
    must_not_rise: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC[=TOLERANCE]", help="A result that must not be higher than the champion's."),
    ] = None,
    reason_required: Annotated[bool, typer.Option("--reason-required", help="Each move needs a reason.")] = False,
    signed: Annotated[bool, typer.Option("--signed", help="A version must be signed, and not changed since.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the rule.")] = False,
    as_json: Json = False,
) -> None:
    """Show the rule for a backbone's champion, or replace it as a whole by what the options say."""
    limits = [_limit(text, "higher") for text in must_not_fall or ()]
    limits += [_limit(text, "lower") for text in must_not_rise or ()]
    parts = {"approvers": approver or [], "not_by_owner": not_by_owner, "must_not_worsen": limits}
    parts |= {"reason_required": reason_required, "signed": signed}
    given = {part: value for part, value in parts.items() if value}
    if given and remove:
        raise typer.BadParameter("give either the rule or --remove", param_hint="--remove")
    with connected() as client:
        if remove:
            view = client.remove_champion_rule(name)
        else:
            view = client.set_champion_rule(name, _body(given)) if given else client.backbone(name)
    if as_json:
        print_json(view)
    elif view.champion_rule is None:
        err.print(f"{name} has no rule for its champion", highlight=False)
    else:
        out.print(_rule(view.champion_rule))


def _limit(text: str, better: Better) -> MetricLimitBody:
    metric, _, tolerance = text.partition("=")
    try:
        return MetricLimitBody(metric=metric, better=better, tolerance=float(tolerance or 0))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: write a metric, or with a tolerance eval/linear_top1=0.005") from error


def _body(given: dict[str, object]) -> ChampionRuleBody:
    try:
        return ChampionRuleBody.model_validate(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _rule(view: ChampionRuleView) -> RenderableType:
    return Group(*(Text(f"- {line}") for line in view.in_words()))
