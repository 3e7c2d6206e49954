"""The client's commands about backbones."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.backbones.schemas import VersionDeletionView
from service.client import render, render_backbones
from service.client.commands import exit_status, follow_to_end
from service.client.convert import Reader
from service.client.convert import convert as convert_folder
from service.client.download import Form
from service.client.errors import PASSING_STATUSES, ApiError, ClientError, ConnectionFailed
from service.client.shell import Json, connected, download_bar, err, out, print_json
from trainer.spec.export import BackboneFormat

backbones = typer.Typer(no_args_is_help=True, help="List, show, pull, publish and name pretrained backbones.")

Reference = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@ALIAS|:VERSION]", help="A backbone; its champion by default, or else its latest version."
    ),
]
Numbered = Annotated[str, typer.Argument(metavar="NAME:VERSION", help="One version of a backbone.")]


@backbones.command("list")
def list_backbones(
    name_contains: Annotated[str | None, typer.Option(help="Only names with this text.")] = None,
    job: Annotated[str | None, typer.Option(help="Only what this job registered or trained.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only of this dataset: its fingerprint or its URI.")] = None,
    method: Annotated[str | None, typer.Option(help="Only of this method, such as rc_mae.")] = None,
    network: Annotated[str | None, typer.Option(help="Only of this network: teacher or student.")] = None,
    form: Annotated[BackboneFormat | None, typer.Option("--format", help="Only what can be pulled as this.")] = None,
    alias: Annotated[str | None, typer.Option(help="Only versions with this alias.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="eval/linear_top1, updated_at, …; -eval/linear_top1 has the greatest first. Else by name."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Registered backbones; with filters, those with a version that fits them all."""
    with connected() as client:
        all_of_them = client.backbones(
            name_contains=name_contains,
            job=job,
            dataset=dataset,
            method=method,
            network=network,
            form=form,
            alias=alias,
            sort=sort,
        )
        found = list(islice(all_of_them, limit))
    print_json(found) if as_json else out.print(render_backbones.backbones(found, sort))


@backbones.command("show")
def show_backbone(backbone: Reference, as_json: Json = False) -> None:
    """A backbone with its versions; with @ALIAS or :VERSION that one with its files."""
    name, version = _reference(backbone)
    with connected() as client:
        if version is None:
            found = client.backbone(name)
            print_json(found) if as_json else out.print(render_backbones.backbone(found))
        else:
            one = client.version(name, version)
            print_json(one) if as_json else out.print(render_backbones.version(one))


@backbones.command()
def pull(
    backbone: Reference,
    folder: Annotated[Path, typer.Option("--out", help="The new folder for it.")],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="hf: transformers' ViTModel; hf-mae: ViTMAEForPreTraining; timm; onnx, torch_export where they were "
            "exported; all: everything, with the card.",
        ),
    ] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that was pulled before.")] = False,
    as_json: Json = False,
) -> None:
    """Download a backbone, checked against its sha256 sums. After an interruption the same command goes on."""
    name, version = _reference(backbone)
    kept = f"what has come of it is kept beside {folder}: the same command goes on from there"
    try:
        with connected() as client, download_bar(backbone) as progress:
            found = client.pull(name, folder, version=version, form=form, force=force, progress=progress)
    except FileExistsError:
        raise
    except OSError as error:
        raise ClientError(f"{error.filename or folder}: {error.strerror or error}; {kept}") from error
    except (ConnectionFailed, ApiError, KeyboardInterrupt) as error:
        if not isinstance(error, ApiError) or error.status in PASSING_STATUSES:
            err.print(kept, highlight=False, markup=False, soft_wrap=True)
        raise
    if as_json:
        told = {"name": found.name, "version": found.version, "commit": found.commit, "folder": str(folder.absolute())}
        typer.echo(json.dumps(told))
    else:
        out.print(f"{found.name}:{found.version} is in {folder}", highlight=False, soft_wrap=True)


@backbones.command()
def alias(
    backbone: Annotated[
        str, typer.Argument(metavar="NAME:VERSION", help="What it is to stand for; with --remove the name alone.")
    ],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as champion: what is pulled by default.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove it; the version stays.")] = False,
    as_json: Json = False,
) -> None:
    """Let an alias stand for a version, whatever it stood for before."""
    with connected() as client:
        if remove:
            name, version = _reference(backbone)
            if version is not None:
                raise typer.BadParameter(f"write {name} alone: an alias stands for one version", param_hint="NAME")
            found = client.delete_alias(name, alias)
        else:
            name, number = _numbered(backbone)
            found = client.set_alias(name, alias, number)
    print_json(found) if as_json else out.print(render_backbones.backbone(found))


@backbones.command()
def publish(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job that trained it.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The backbone that it becomes a version of.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="One of `rcmae jobs checkpoints JOB`, such as a1/00000100; else the newest."),
    ] = None,
    network: Annotated[
        Literal["teacher", "student"] | None, typer.Option(help="Which of the two; as the job's spec says by default.")
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option("--format", help="Only these, such as timm; repeatable. As the job's spec says by default."),
    ] = None,
    follow_it: Annotated[bool, typer.Option("--follow", help="Show it until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Register a kept checkpoint of a job as a version. That is a job of its own, of minutes on one CPU core."""
    if checkpoint and not checkpoint.startswith("checkpoints/"):  # as `rcmae jobs checkpoints` shows it
        checkpoint = f"checkpoints/{checkpoint}"
    export: dict[str, Any] = ({"network": network} if network else {}) | ({"formats": form} if form else {})
    with connected() as client:
        made = client.publish(job, name, checkpoint=checkpoint, export=export or None)
        if follow_it:
            made = follow_to_end(client, made.id)
    if as_json:
        print_json(made)
    elif follow_it:
        out.print(render.job(made))
    else:
        text = f"job {made.id} publishes it; follow it with: rcmae jobs wait {made.id}"
        out.print(text, highlight=False, soft_wrap=True)
    if follow_it:
        raise typer.Exit(exit_status(made))


@backbones.command()
def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backbone that was pulled as hf or hf-mae.")],
    reader: Annotated[Reader, typer.Option("--to", help="Whose names the weights get.")],
    new: Annotated[Path, typer.Option("--out", help="The new folder for it.")],
    as_json: Json = False,
) -> None:
    """Write a pulled backbone for detectron2 (ViTDet) or mmpretrain. Needs neither a service nor torch."""
    convert_folder(folder, new, reader)
    if as_json:
        typer.echo(json.dumps({"reader": reader, "folder": str(new.absolute())}))
    else:
        out.print(f"{new} is for {reader}", highlight=False, soft_wrap=True)


@backbones.command()
def delete(
    backbone: Numbered,
    preview: Annotated[bool, typer.Option("--preview", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete one version with its files. What goes is shown first; there is no way back."""
    name, number = _numbered(backbone)
    with connected() as client:
        going = client.version_deletion_preview(name, number)
        if not preview:
            err.print(render_backbones.version_deletion(going), soft_wrap=True)
            _make_sure(going, yes)
            going = client.delete_version(name, number)
    if as_json:
        print_json(going)
    elif preview:
        out.print(render_backbones.version_deletion(going), soft_wrap=True)
    else:
        out.print(f"deleted {name}:{number}; its files are removed within moments", highlight=False, soft_wrap=True)


def _make_sure(going: VersionDeletionView, yes: bool) -> None:
    """Raises `ClientError` where a deletion is not wanted, or will be refused."""
    if going.aliases:
        name, first = going.name, going.aliases[0]
        raise ClientError(
            f"{name}:{going.version} is {name}@{f', {name}@'.join(going.aliases)}: nothing is deleted. Let the alias "
            f"stand for another version, or remove it: rcmae backbones alias {name} {first} --remove"
        )
    if not yes and not typer.confirm("Delete all of this?", err=True):
        raise ClientError("nothing is deleted")


def _numbered(text: str) -> tuple[str, int]:
    name, version = _reference(text)
    if not isinstance(version, int):
        raise typer.BadParameter(f"{text!r} names no version: write name:number, for example digits:2")
    return name, version


def _reference(text: str) -> tuple[str, int | str | None]:
    name, separator, version = text.partition("@") if "@" in text else text.partition(":")
    numbered = separator != ":" or (version.isascii() and version.isdecimal())
    if not name or (separator and not version) or not numbered:
        raise typer.BadParameter(
            f"{text!r} is no backbone: write name, name:number or name@alias, for example digits:2 or digits@champion"
        )
    return name, (int(version) if separator == ":" else version) if separator else None
