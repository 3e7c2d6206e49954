"""The client's commands for webhooks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table

from service.client import tables
from service.client.console import Text
from service.client.shell import Json, connected, err, out, print_json
from service.events.types import EventType
from service.webhooks.schemas import DeliveryView, NewWebhookView, WebhookView

webhooks = typer.Typer(no_args_is_help=True, help="Tell other services of new versions, aliases and deletions.")

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id.")]
STYLES = {"delivered": "green", "failed": "red", "waiting": "yellow"}


@webhooks.command("list")
def list_webhooks(
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None, as_json: Json = False
) -> None:
    """Webhooks without their secrets, newest first: your own, or everybody's for admins."""
    with connected() as client:
        views = list(client.webhooks(owner=owner))
    print_json(views) if as_json else out.print(_table(views))


@webhooks.command()
def create(
    url: Annotated[str, typer.Argument(help="Where to send deliveries, such as https://ci.example.org/hook.")],
    event: Annotated[list[EventType] | None, typer.Option(help="An event to hear of; all by default.")] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A backbone to hear of; all by default.")
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    owner: Annotated[str | None, typer.Option(help="Whose it is; yours by default.")] = None,
    as_json: Json = False,
) -> None:
    """Create a webhook. Only the secret of its signatures goes to standard output, this once."""
    with connected() as client:
        made = client.create_webhook(
            url, events=event or None, backbones=backbone or None, description=description, owner=owner
        )
    _print_new(made, as_json)


@webhooks.command()
def show(webhook: WebhookId, as_json: Json = False) -> None:
    """One webhook, with how its last delivery went."""
    with connected() as client:
        view = client.webhook(webhook)
    print_json(view) if as_json else out.print(_fields(view))


@webhooks.command()
def enable(webhook: WebhookId, as_json: Json = False) -> None:
    """Enable a webhook, also one that the service has disabled."""
    _switch(webhook, True, as_json)


@webhooks.command()
def disable(webhook: WebhookId, as_json: Json = False) -> None:
    """Send nothing more to a webhook until it is enabled. Deliveries that wait fail."""
    _switch(webhook, False, as_json)


def _switch(webhook: str, enabled: bool, as_json: bool) -> None:
    with connected() as client:
        view = client.change_webhook(webhook, enabled=enabled)
    print_json(view) if as_json else out.print(_table([view]))


@webhooks.command()
def rotate(webhook: WebhookId, as_json: Json = False) -> None:
    """Make a new secret. For a day, deliveries are signed with the old one too."""
    with connected() as client:
        _print_new(client.rotate_webhook(webhook), as_json)


@webhooks.command()
def delete(webhook: WebhookId, as_json: Json = False) -> None:
    """Delete a webhook with the log of its deliveries."""
    with connected() as client:
        view = client.delete_webhook(webhook)
    print_json(view) if as_json else err.print(f"{view.id} is deleted", highlight=False)


@webhooks.command("test")
def send_test(webhook: WebhookId, as_json: Json = False) -> None:
    """Send a test and wait for how it went; the exit status is 1 if it failed."""
    with connected() as client:
        sent = client.test_webhook(webhook)
    print_json(sent) if as_json else out.print(_deliveries([sent]))
    raise typer.Exit(int(sent.state != "delivered"))


@webhooks.command()
def deliveries(
    webhook: WebhookId,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """What was sent to a webhook, or waits for it; newest first."""
    with connected() as client:
        views = list(islice(client.webhook_deliveries(webhook, page_size=min(limit, 100)), limit))
    print_json(views) if as_json else out.print(_deliveries(views))


@webhooks.command()
def retry(
    webhook: WebhookId,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id.")],
    as_json: Json = False,
) -> None:
    """Send a delivery now, with the same id: before its time, or once more after it has ended."""
    with connected() as client:
        view = client.retry_delivery(webhook, delivery)
    print_json(view) if as_json else out.print(_deliveries([view]))


def _print_new(made: NewWebhookView, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    text = f"{made.id} sends to {made.url}. The secret of its signatures is shown now and never again:"
    err.print(text, highlight=False, markup=False, soft_wrap=True)
    typer.echo(made.secret)


def _state(view: WebhookView) -> Text:
    if not view.enabled:
        return Text("disabled", "dim")
    return Text("failing", "red") if view.failing_since else Text("enabled", "green")


def _table(views: Iterable[WebhookView]) -> Table:
    return tables.table(
        ("WEBHOOK", "URL", "FOR", "OWNER", "EVENTS", "BACKBONES", "STATE", "LAST SENT"),
        (
            (
                view.id,
                view.url,
                view.description or "-",
                view.owner,
                ", ".join(view.events or ["all"]),
                ", ".join(view.backbones or ["all"]),
                _state(view),
                tables.when(view.last_attempt_at) if view.last_attempt_at else "never",
            )
            for view in views
        ),
    )


def _fields(view: WebhookView) -> Table:
    rows: list[tuple[str, RenderableType]] = [
        ("webhook", view.id),
        ("url", view.url),
        ("for", view.description or "-"),
        ("owner", view.owner),
        ("events", ", ".join(view.events or ["all"])),
        ("backbones", ", ".join(view.backbones or ["all"])),
        ("state", _state(view)),
        ("created", tables.when(view.created_at)),
        ("last sent", tables.when(view.last_attempt_at) if view.last_attempt_at else "never"),
    ]
    rows += [("disabled because", Text(view.disabled_because, "red"))] if view.disabled_because else []
    rows += [("trouble", Text(view.last_message, "red"))] if view.last_message else []
    return tables.fields(rows)


def _deliveries(views: Iterable[DeliveryView]) -> Table:
    return tables.table(
        ("DELIVERY", "HAPPENED", "EVENT", "ABOUT", "STATE", "ANSWER", "ATTEMPTS", "NEXT", "TROUBLE"),
        (
            (
                view.id,
                tables.when(view.created_at),
                view.type,
                str(view.data.get("name", "-")),
                Text(view.state, STYLES[view.state]),
                str(view.response_code or "-"),
                str(view.attempts),
                tables.when(view.next_attempt_at) if view.next_attempt_at else "-",
                view.message or "-",
            )
            for view in views
        ),
    )
