"""The command for retention rules, and how it shows them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group, RenderableType

from service.backbones.retention_schemas import RetentionView, VersionRetentionView
from service.client.shell import Json, connected, out, print_json
from service.client.tables import fields, size, table, when


def retention(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A backbone.")],
    expire_unused_days: Annotated[
        int | None,
        typer.Option(help="Set a rule: versions older than this go once nobody has used them for as long."),
    ] = None,
    keep_newest: Annotated[
        int | None, typer.Option(help="With it: so many of the newest versions always stay; 1 by default.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Only show what the rule would do.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the rule: nothing goes by itself any more.")] = False,
    as_json: Json = False,
) -> None:
    """Show or set the rule by which unused versions are deleted, and what it does with each.

    Versions with an alias, main and versions of jobs that have not ended always stay, and none goes within a day of the
    time when it is first shown as one that does.
    """
    sets = expire_unused_days is not None or keep_newest is not None
    if remove and (sets or preview):
        raise typer.BadParameter("a rule is removed whole: leave the other options out", param_hint="--remove")
    if preview and not sets:
        raise typer.BadParameter("give the rule to try, such as --expire-unused-days 90", param_hint="--preview")
    with connected() as client:
        if remove:
            view = client.remove_retention(name)
        elif sets:
            view = client.set_retention(
                name, expire_unused_days=expire_unused_days, keep_newest=keep_newest, preview=preview
            )
        else:
            view = client.retention(name)
    print_json(view) if as_json else out.print(shown(view, preview))


def shown(view: RetentionView, preview: bool = False) -> RenderableType:
    """A rule with what it does with each version. ``preview``: it is not set."""
    rows = table(
        ("VERSION", "ACTION", "GOES", "WHY", "ALIASES", "LAST DOWNLOAD", "SIZE"), (_row(each) for each in view.versions)
    )
    head = fields([("backbone", view.name), ("rule", _rule(view, preview)), ("goes", _going(view))])
    return Group(head, view.not_counted, "", rows) if view.rule else Group(head, "", rows)


def _row(each: VersionRetentionView) -> tuple[str, ...]:
    return (
        str(each.version),
        each.action,
        when(each.expires_at) if each.expires_at else "-",
        "; ".join(each.why),
        ", ".join(each.aliases) or "-",
        str(each.last_used_on or "-"),
        "-" if each.bytes is None else size(each.bytes),
    )


def _rule(view: RetentionView, preview: bool) -> str:
    rule = view.rule
    if rule is None:
        return "none: nothing is deleted by itself"
    newest = "the newest version" if rule.keep_newest == 1 else f"the newest {rule.keep_newest}"
    text = f"keep {newest}; delete what nobody has used for {rule.expire_unused_days} days"
    return f"{text} (only a preview: it is not set)" if preview else f"{text}, set by {rule.set_by} {when(rule.set_at)}"


def _going(view: RetentionView) -> str:
    if view.first_at is None:
        return "nothing now"
    unmeasured = f", and what {view.unmeasured} of them take" if view.unmeasured else ""
    count = "1 version" if len(view.deletes) == 1 else f"{len(view.deletes)} versions"
    return f"{count} from {when(view.first_at)} on, which frees {size(view.bytes_freed)}{unmeasured}"
