"""The client's commands for those who run the service: tokens, the audit log, the cluster."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Annotated

import typer

from service.access.schemas import NewTokenView, RoleName
from service.client import render, tables
from service.client.server import TOKEN_VARIABLE, URL_VARIABLE
from service.client.shell import Json, connected, err, out, print_json

tokens = typer.Typer(no_args_is_help=True, help="Make, list, replace and end tokens.")

TokenId = Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, not its text.")]


@tokens.command("list")
def list_tokens(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None, as_json: Json = False
) -> None:
    """Tokens without their texts, newest first: your own, and for admins everybody's."""
    with connected() as client:
        found = list(client.tokens(owner=owner))
    print_json(found) if as_json else out.print(render.tokens(found))


@tokens.command()
def create(
    role: Annotated[RoleName, typer.Option(help="What it may do and see: no more than the token that makes it.")],
    owner: Annotated[str | None, typer.Option(help="Whose it is; yours by default.")] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[
        int | None, typer.Option("--expires-in-days", min=1, help="Its life; until it is revoked by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a token. Its text alone goes to standard output, once: only its hash is kept."""
    with connected() as client:
        _print_new(client.create_token(role, owner=owner, name=name, expires_in_days=days), client.url, as_json)


@tokens.command()
def rotate(
    token: TokenId,
    grace: Annotated[int, typer.Option(min=0, metavar="SECONDS", help="The old text stays valid for so long.")] = 0,
    as_json: Json = False,
) -> None:
    """Replace a token by a new one with the same owner, role, name and end."""
    with connected() as client:
        _print_new(client.rotate_token(token, grace_s=grace), client.url, as_json)


@tokens.command()
def revoke(token: TokenId, as_json: Json = False) -> None:
    """End a token at once."""
    with connected() as client:
        found = client.revoke_token(token)
    print_json(found) if as_json else out.print(render.tokens([found]))


def _print_new(made: NewTokenView, url: str, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    until = f"until {tables.when(made.expires_at)}" if made.expires_at else "until it is revoked"
    for line in (
        f"{made.id} is {made.owner}'s, as {made.role}, {until}. Its text is shown now and never again; to use it:",
        f"export {URL_VARIABLE}={url} {TOKEN_VARIABLE}=<the line below>",
    ):
        err.print(line, highlight=False, markup=False, soft_wrap=True)
    typer.echo(made.token)


def audit(
    actor: Annotated[str | None, typer.Option(help="Only what this owner asked for.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as job.cancel.")] = None,
    target: Annotated[str | None, typer.Option(metavar="ID", help="Only what was asked for this job or token.")] = None,
    after: Annotated[datetime | None, typer.Option(help="Only later than this, on your clock.")] = None,
    before: Annotated[datetime | None, typer.Option(help="Only earlier than this, on your clock.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """What was asked to change, by whom, done or refused; newest first. For admins."""
    with connected() as client:
        entries = client.audit(
            actor=actor,
            action=action,
            target=target,
            after=after.astimezone() if after else None,
            before=before.astimezone() if before else None,
            page_size=min(limit, 100),
        )
        found = list(islice(entries, limit))
    print_json(found) if as_json else out.print(render.audit(found))


def cluster(as_json: Json = False) -> None:
    """Nodes with what is used of them, jobs that run, and the queue with what each waits for."""
    with connected() as client:
        found = client.cluster()
    print_json(found) if as_json else out.print(render.cluster(found))
