"""The command that imports weights from elsewhere: `rcmae backbones import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.client import render
from service.client.commands import exit_status, follow_to_end
from service.client.data import absolute
from service.client.shell import Json, connected, out, print_json
from service.client.transport import without_none
from trainer.spec.export import FirstVisibility, Network


def import_backbone(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI",
            help="A folder of timm or transformers, or a file of weights (.pth, .safetensors): a path or s3:// URI "
            "that the service's workers can read.",
        ),
    ],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The backbone that gets a new version.")],
    origin: Annotated[str, typer.Option(metavar="TEXT", help="What its makers call it: facebook/vit-mae-base.")],
    license_id: Annotated[
        str,
        typer.Option("--license", metavar="ID", help="Its licence: apache-2.0, …; unknown; or other, with a link."),
    ],
    license_link: Annotated[str | None, typer.Option(metavar="URL", help="Where the licence's text is.")] = None,
    origin_url: Annotated[str | None, typer.Option(metavar="URL", help="Where its makers publish it.")] = None,
    trained_on: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What it was trained on, as its makers say: ImageNet-1k.")
    ] = None,
    paper: Annotated[str | None, typer.Option(metavar="URL", help="The paper about it.")] = None,
    citation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="A file, such as BibTeX, that says how to cite it."
        ),
    ] = None,
    network: Annotated[
        Network | None, typer.Option(help="Which one, where the weights hold both; the teacher by default.")
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option("--format", help="Only these, such as timm; repeatable. By default all that it can have."),
    ] = None,
    visibility: Annotated[
        FirstVisibility | None, typer.Option(help="Who sees a backbone that is new: all, or its owners alone.")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of the encoder, for weights that do not say.")
    ] = None,
    decoder_num_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads of the decoder, for weights that do not say.")
    ] = None,
    follow_it: Annotated[bool, typer.Option("--follow", help="Follow the job until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Register weights from elsewhere as a version, which is a job of its own: minutes on one CPU core.

    The job checks that the converted network computes what the original computes.
    """
    about = {"name": origin, "url": origin_url, "trained_on": trained_on, "paper": paper}
    about |= {"citation": citation.read_text() if citation else None}
    with connected() as client:
        job = client.import_backbone(
            absolute(uri), name, license=license_id, license_link=license_link, origin=without_none(about),
            network=network, formats=form, visibility=visibility, num_heads=num_heads,
            decoder_num_heads=decoder_num_heads,
        )  # fmt: skip
        if follow_it:
            job = follow_to_end(client, job.id)
    if as_json:
        print_json(job)
    elif follow_it:
        out.print(render.job(job))
    else:
        out.print(f"job {job.id} imports it; follow it with: rcmae jobs wait {job.id}", highlight=False, soft_wrap=True)
    if follow_it:
        raise typer.Exit(exit_status(job))
