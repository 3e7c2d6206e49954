"""The commands for datasets: `rcmae data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.client import render
from service.client.commands import exit_status, follow_to_end
from service.client.console import Text
from service.client.errors import ClientError
from service.client.render_inspection import inspection
from service.client.shell import Json, connected, err, out, print_json
from trainer.spec.base import apply_overrides

data = typer.Typer(no_args_is_help=True, help="Look at datasets as training would see them.")


@data.command()
def inspect(
    uri: Annotated[str, typer.Argument(metavar="URI", help="The dataset, as dataset.uri of a spec names it.")],
    sample: Annotated[
        int | None, typer.Option(min=1, help="Decode only so many images, chosen by their names; all by default.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores that decode images.")] = 1,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="More of the spec: dataset.label_column=kind"),
    ] = None,
    as_json: Json = False,
) -> None:
    """What a dataset holds: images, labels, values, problems, and settings that fit it.

    The service reads it where its jobs would. Training uses what was found out: nothing is decoded twice.
    """
    document: dict[str, Any] = {
        "kind": "inspect",
        "dataset": {"uri": absolute(uri)},
        "sample": sample,
        "resources": {"cpus_per_worker": cpus},
    }
    with connected() as client:
        job = client.submit(apply_overrides(document, overrides or ()))
        err.print(Text.assemble("job ", (job.id, "bold"), f" ({job.name})"), soft_wrap=True)
        job = follow_to_end(client, job.id)
    found = job.result.inspection if job.result else None
    if exit_status(job):
        err.print(render.job(job))
        raise typer.Exit(1)
    if found is None:
        raise ClientError(f"{job.id} has succeeded without a result: look at `rcmae jobs logs {job.id}`")
    print_json(found) if as_json else out.print(inspection(found))


def absolute(uri: str) -> str:
    """A relative path as an absolute one: the service runs in another folder."""
    return uri if "://" in uri else str(Path(uri).absolute())
