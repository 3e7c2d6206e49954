"""The client's commands for operators: tokens, the audit log, the cluster."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Annotated

import typer

from service.access.schemas import NewTokenView, RoleName
from service.client import render, tables
from service.client.server import TOKEN_VARIABLE, URL_VARIABLE
from service.client.shell import Json, connected, err, out, print_json

tokens = typer.Typer(no_args_is_help=True, help="Create, list, rotate and revoke tokens.")

TokenId = Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, not its secret.")]


@tokens.command("list")
def list_tokens(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None, as_json: Json = False
) -> None:
    """Tokens without their secrets, newest first: your own, or everybody's for admins."""
    with connected() as client:
        views = list(client.tokens(owner=owner))
    print_json(views) if as_json else out.print(render.tokens(views))


@tokens.command()
def create(
    role: Annotated[RoleName, typer.Option(help="What it may do and see: no more than your own token.")],
    owner: Annotated[str | None, typer.Option(help="Whose it is; yours by default.")] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[
        int | None, typer.Option("--expires-in-days", min=1, help="Days until it expires; never by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a token. Only its secret goes to standard output, this once: the service keeps a hash of it."""
    with connected() as client:
        _print_new(client.create_token(role, owner=owner, name=name, expires_in_days=days), client.url, as_json)


@tokens.command()
def rotate(
    token: TokenId,
    grace: Annotated[int, typer.Option(min=0, metavar="SECONDS", help="How long the old secret stays valid.")] = 0,
    as_json: Json = False,
) -> None:
    """Replace a token by a new one with the same owner, role, name and expiry."""
    with connected() as client:
        _print_new(client.rotate_token(token, grace_s=grace), client.url, as_json)


@tokens.command()
def revoke(token: TokenId, as_json: Json = False) -> None:
    """Revoke a token, with immediate effect."""
    with connected() as client:
        revoked = client.revoke_token(token)
    print_json(revoked) if as_json else out.print(render.tokens([revoked]))


def _print_new(token: NewTokenView, url: str, as_json: bool) -> None:
    if as_json:
        print_json(token)
        return
    until = f"until {tables.when(token.expires_at)}" if token.expires_at else "until it is revoked"
    for line in (
        f"{token.id} is {token.owner}'s, as {token.role}, {until}. Its secret is shown now and never again; to use it:",
        f"export {URL_VARIABLE}={url} {TOKEN_VARIABLE}=<the line below>",
    ):
        err.print(line, highlight=False, markup=False, soft_wrap=True)
    typer.echo(token.token)


def audit(
    actor: Annotated[str | None, typer.Option(help="Only requests of this owner.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as job.cancel.")] = None,
    target: Annotated[str | None, typer.Option(metavar="ID", help="Only requests about this job or token.")] = None,
    after: Annotated[datetime | None, typer.Option(help="Only after this, in your time zone.")] = None,
    before: Annotated[datetime | None, typer.Option(help="Only before this, in your time zone.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Requested changes, by whom, done or refused; newest first. For admins."""
    with connected() as client:
        entries = client.audit(
            actor=actor,
            action=action,
            target=target,
            after=after.astimezone() if after else None,
            before=before.astimezone() if before else None,
            page_size=min(limit, 100),
        )
        views = list(islice(entries, limit))
    print_json(views) if as_json else out.print(render.audit(views))


def cluster(as_json: Json = False) -> None:
    """Nodes and their use, running jobs, and the queue with what each job waits for."""
    with connected() as client:
        view = client.cluster()
    print_json(view) if as_json else out.print(render.cluster(view))
