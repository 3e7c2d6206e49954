"""The command that computes features: `rcmae embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.client import render
from service.client.commands import exit_status, follow_to_end, tell_submitted
from service.client.data import absolute
from service.client.results import download_files
from service.client.shell import Json, connected, err, out, print_json
from service.client.subjects import HELP, METAVAR, subject
from trainer.protocol.names import EMBEDDINGS
from trainer.spec.base import apply_overrides
from trainer.spec.evaluate import Pooling


def embed(
    network: Annotated[str, typer.Argument(metavar=METAVAR, help=HELP)],
    dataset: Annotated[str, typer.Option(metavar="URI", help="The images, as dataset.uri of a spec names them.")],
    pooling: Annotated[
        Pooling | None, typer.Option(help="Mean of the patch tokens by default; or cls, or attention.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(min=1, help="The block whose tokens are used; the last by default.")
    ] = None,
    patch_tokens: Annotated[bool, typer.Option("--patch-tokens", help="Keep the tokens of all patches too.")] = False,
    dtype: Annotated[
        Literal["float32", "float16"] | None, typer.Option(help="Of the features in the files; float32 by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="More of the spec: resources.workers=4")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Follow the job, and download its files into this folder."),
    ] = None,
    follow_it: Annotated[bool, typer.Option("--follow", help="Follow the job until it has ended.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what the job would need.")] = False,
    as_json: Json = False,
) -> None:
    """Compute a backbone's features of images, as Parquet files with a row for each image.

    `rcmae jobs files JOB --download DIR` brings the files of a job later, and again what is missing.
    """
    features = {key: value for key, value in {"pooling": pooling, "layer": layer}.items() if value is not None}
    document: dict[str, Any] = {"kind": "embed", "backbone": subject(network), "dataset": {"uri": absolute(dataset)}}
    document |= {"features": features, "patch_tokens": patch_tokens} | ({"dtype": dtype} if dtype else {})
    document = apply_overrides(document, overrides or ())
    with connected() as client:
        if plan:
            planned = client.plan(document)
            print_json(planned) if as_json else out.print(render.plan(planned))
            raise typer.Exit(1 if planned.fits == "never" else 0)
        job = client.submit(document)
        if not follow_it and to is None:
            print_json(job) if as_json else tell_submitted(job, "files", "jobs files")
            return
        err.print(f"job {job.id}", highlight=False, soft_wrap=True)
        job = follow_to_end(client, job.id)
        if to is not None and exit_status(job) == 0:
            download_files(client, job.id, to, f"{EMBEDDINGS}/")
    print_json(job) if as_json else out.print(render.job(job))
    raise typer.Exit(exit_status(job))
