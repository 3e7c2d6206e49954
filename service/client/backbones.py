"""The commands for backbones."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from service.backbones.schemas import VersionDeletionView, VersionType, Visibility
from service.client import render, render_backbones
from service.client.commands import changed_labels, exit_status, follow_to_end, label_pair
from service.client.console import echo_json
from service.client.convert import README, Library
from service.client.convert import convert as convert_folder
from service.client.errors import TRANSIENT_STATUSES, ApiError, ClientError, ConnectionFailed
from service.client.listing import PullFormat
from service.client.retention import retention
from service.client.shell import Json, connected, download_bar, err, out, print_json
from service.client.signatures import KnownKeys, keys_in, verify_folder
from trainer.spec.export import BackboneFormat

backbones = typer.Typer(no_args_is_help=True, help="List, show, pull, publish, import and name pretrained backbones.")

Reference = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@ALIAS|:VERSION]",
        help="A backbone; by default its champion, or else its latest version. A version is a number (3 or v3), an "
        "alias, latest, main or a commit.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Public keys in PEM to trust, as `rcmae backbones keys` prints them; by default those that the service "
        "listed when you first verified something of it.",
    ),
]
Numbered = Annotated[str, typer.Argument(metavar="NAME:VERSION", help="One version of a backbone.")]

NUMBER: Final = re.compile(r"v?([0-9]{1,10})")
VERSION: Final = re.compile(rf"{NUMBER.pattern}|[a-z][a-z0-9_-]*|[0-9a-f]{{40}}")
"""A number such as 3 or v3, an alias, `latest`, `main`, or a commit."""


@backbones.command("list")
def list_backbones(
    name_contains: Annotated[str | None, typer.Option(help="Only names with this text.")] = None,
    job: Annotated[str | None, typer.Option(help="Only what this job registered or trained.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only trained on this dataset: a fingerprint or a URI.")] = None,
    type_: Annotated[
        VersionType | None, typer.Option("--type", help="Only backbones, or only fine-tuned classifiers.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Only trained with this method, such as rc_mae; or imported.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="Only this network: teacher or student.")] = None,
    form: Annotated[BackboneFormat | None, typer.Option("--format", help="Only what has this format.")] = None,
    alias: Annotated[str | None, typer.Option(help="Only versions with this alias.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only what this owner has.")] = None,
    search: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="Only with all words in name, origin, dataset, description or labels."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="Only with this label; repeatable.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Only with such a result: 'eval/linear_top1 >= 0.5'; repeatable."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            help="eval/linear_top1, updated_at, downloads, last_used_on, bytes; a leading - for descending order."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: Json = False,
) -> None:
    """Registered backbones; with filters, those that have a version matching all of them."""
    with connected() as client:
        matches = client.backbones(
            name_contains=name_contains,
            job=job,
            dataset=dataset,
            type=type_,
            method=method,
            network=network,
            form=form,
            alias=alias,
            owner=owner,
            search=search,
            labels=dict(label_pair(text) for text in label or ()),
            filters=condition or (),
            sort=sort,
        )
        views = list(islice(matches, limit))
    print_json(views) if as_json else out.print(render_backbones.backbones(views, sort))


@backbones.command("show")
def show_backbone(backbone: Reference, as_json: Json = False) -> None:
    """A backbone with its versions, or one version with its files: NAME@ALIAS or NAME:VERSION."""
    name, version = reference(backbone)
    with connected() as client:
        if version is None:
            view = client.backbone(name)
            print_json(view) if as_json else out.print(render_backbones.backbone(view))
        else:
            one = client.version(name, version)
            print_json(one) if as_json else out.print(render_backbones.version(one))


@backbones.command("users")
def list_users(backbone: Reference, as_json: Json = False) -> None:
    """Who has used a version, and when last: for those who may delete it."""
    name, version = reference(backbone)
    with connected() as client:
        views = client.version_users(name, version)
    print_json(views) if as_json else out.print(render_backbones.users(views))


@backbones.command()
def space(as_json: Json = False) -> None:
    """What your backbones take in the artifact storage; for operators and admins, what everybody's take."""
    with connected() as client:
        views = client.backbone_space()
    print_json(views) if as_json else out.print(render_backbones.space(views))


@backbones.command()
def compare(
    first: Reference,
    second: Annotated[str, typer.Argument(metavar="OTHER[@ALIAS|:VERSION]", help="The one to compare it with.")],
    as_json: Json = False,
) -> None:
    """Two versions side by side: what differs between their specs, their results, sizes and datasets."""
    for text in (first, second):
        reference(text)
    with connected() as client:
        view = client.compare_backbones(first, second)
    print_json(view) if as_json else out.print(render_backbones.comparison(view))


@backbones.command()
def pull(
    backbone: Reference,
    folder: Annotated[Path, typer.Option("--out", help="The new folder.")],
    form: Annotated[
        PullFormat,
        typer.Option(
            "--format",
            help="hf: transformers' ViTModel; hf-mae: ViTMAEForPreTraining; timm; onnx, torch_export where they were "
            "exported; all: everything, with the card.",
        ),
    ] = "hf",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that was pulled before.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only if a trusted key has signed its checksums.")] = False,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Download a backbone, checked against its sha256 sums. After an interruption, the same command resumes it."""
    if key and not verify:
        raise typer.BadParameter("only --verify uses a key: add it", param_hint="--key")
    name, version = reference(backbone)
    kept = f"the partial download is kept beside {folder}: the same command resumes it"
    try:
        with connected() as client, download_bar(backbone) as progress:
            view = client.pull(
                name, folder, version=version, form=form, force=force, progress=progress,
                verify=verify, key=key, tell=_tell,
            )  # fmt: skip
    except FileExistsError:
        raise
    except OSError as error:
        raise ClientError(f"{error.filename or folder}: {error.strerror or error}; {kept}") from error
    except (ConnectionFailed, ApiError, KeyboardInterrupt) as error:
        if not isinstance(error, ApiError) or error.status in TRANSIENT_STATUSES:
            err.print(kept, highlight=False, markup=False, soft_wrap=True)
        raise
    if as_json:
        pulled = {"name": view.name, "version": view.version, "commit": view.commit}
        pulled |= {"key": view.signature.key_id} if verify and view.signature else {}
        echo_json(json.dumps(pulled | {"folder": str(folder.absolute())}))
    else:
        signed = f", signed by the key {view.signature.key_id}" if verify and view.signature else ""
        out.print(f"{view.name}:{view.version} is in {folder}{signed}", highlight=False, soft_wrap=True)


@backbones.command("verify")
def verify_pulled(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backbone that was pulled.")],
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Check a pulled folder: every file against its checksums, and these against their signature. Needs no service."""
    signer = verify_folder(folder, lambda: keys_in(key) if key else KnownKeys().everybodys())
    if as_json:
        echo_json(json.dumps({"folder": str(folder.absolute()), "key": signer.id, "trusted_by": signer.origin}))
    else:
        text = f"{folder} is what the key {signer.id} has signed, which is in {signer.origin}"
        out.print(text, highlight=False, markup=False, soft_wrap=True)


@backbones.command("keys")
def list_keys(as_json: Json = False) -> None:
    """The public keys that the service signs backbones with, in PEM: a file for --key. The newest comes first."""
    with connected() as client:
        keys = client.signing_keys()
    if as_json:
        print_json(keys)
    elif not keys:
        err.print("the service has no key, so it signs nothing", highlight=False)
    for each in keys if not as_json else ():
        typer.echo(f"# {each.id}, since {each.created_at:%Y-%m-%d %H:%M} UTC\n{each.public_key.strip()}")


def _tell(text: str) -> None:
    err.print(text, highlight=False, markup=False, soft_wrap=True)


@backbones.command("set")
def set_(
    backbone: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="A backbone, or one version of it.")],
    description: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Replace the description; "" removes it.')
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="Add or change this label; repeatable.")
    ] = None,
    remove_label: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Remove this label; repeatable.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Give the backbone to this owner of a token.")] = None,
    visibility: Annotated[
        Visibility | None, typer.Option(help="Who sees the backbone: all, its owners, or its owners and readers.")
    ] = None,
    reader: Annotated[
        list[str] | None, typer.Option(metavar="OWNER", help="Let this owner of a token see it; repeatable.")
    ] = None,
    remove_reader: Annotated[
        list[str] | None, typer.Option(metavar="OWNER", help="Let this reader see it no more; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Change the description or labels of a backbone or version, or who owns or sees a backbone; the rest stays."""
    name, version = reference(backbone)
    if isinstance(version, str):
        raise typer.BadParameter(f"{backbone!r} may mean another version soon: write {name}:NUMBER", param_hint="NAME")
    if version is not None and owner is not None:
        raise typer.BadParameter(f"a version keeps its owner: write only {name}", param_hint="--owner")
    if version is not None and (visibility or reader or remove_reader):
        raise typer.BadParameter(f"all versions are seen by the same people: write only {name}", param_hint="NAME")
    added, removed = dict(label_pair(text) for text in label or ()), set(remove_label or ())
    texts = description is not None or added or removed
    if not (texts or owner is not None or visibility or reader or remove_reader):
        options = "--description, --label, --remove-label, --owner, --visibility, --reader or --remove-reader"
        raise typer.BadParameter(f"say what to change: {options}")
    with connected() as client:
        labels = None
        if added or removed:
            before = client.backbone(name) if version is None else client.version(name, version)
            labels = changed_labels(backbone, before.labels, added, removed)
        if version is None:
            readers = None
            if reader or remove_reader:
                before = client.backbone(name)
                readers = sorted({*before.readers, *(reader or ())} - {*(remove_reader or ())})
            view = client.patch_backbone(
                name, description=description, labels=labels, owner=owner, visibility=visibility, readers=readers
            )
            print_json(view) if as_json else out.print(render_backbones.backbone(view))
        else:
            one = client.patch_version(name, version, description=description, labels=labels)
            print_json(one) if as_json else out.print(render_backbones.summary(one))


@backbones.command()
def publish(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job that trained it.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The backbone that gets a new version.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="One of `rcmae jobs checkpoints JOB`, such as a1/00000100; else the newest."),
    ] = None,
    network: Annotated[
        Literal["teacher", "student"] | None, typer.Option(help="Which of the two; by default as in the job's spec.")
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option("--format", help="Only these, such as timm; repeatable. By default as in the job's spec."),
    ] = None,
    follow_it: Annotated[bool, typer.Option("--follow", help="Follow the job until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Register a kept checkpoint of a job as a version, which is a job of its own: minutes on one CPU core."""
    if checkpoint and not checkpoint.startswith("checkpoints/"):  # as `rcmae jobs checkpoints` shows it
        checkpoint = f"checkpoints/{checkpoint}"
    export: dict[str, Any] = ({"network": network} if network else {}) | ({"formats": form} if form else {})
    with connected() as client:
        job_view = client.publish(job, name, checkpoint=checkpoint, export=export or None)
        if follow_it:
            job_view = follow_to_end(client, job_view.id)
    if as_json:
        print_json(job_view)
    elif follow_it:
        out.print(render.job(job_view))
    else:
        text = f"job {job_view.id} publishes it; follow it with: rcmae jobs wait {job_view.id}"
        out.print(text, highlight=False, soft_wrap=True)
    if follow_it:
        raise typer.Exit(exit_status(job_view))


@backbones.command()
def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backbone that was pulled as hf, timm or hf-mae.")],
    reader: Annotated[Library, typer.Option("--to", help="The library whose names the weights get.")],
    new: Annotated[Path, typer.Option("--out", help="The new folder.")],
    as_json: Json = False,
) -> None:
    """Convert a pulled backbone for detectron2 (ViTDet) or mmpretrain. Needs torch, but no service."""
    convert_folder(folder, new, reader)
    if as_json:
        echo_json(json.dumps({"reader": reader, "folder": str(new.absolute())}))
    else:
        text = f"{new} is for {reader}: {new / README} shows how to load it"
        out.print(text, highlight=False, soft_wrap=True)


@backbones.command()
def delete(
    backbone: Numbered,
    preview: Annotated[bool, typer.Option("--preview", help="Only show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete one version with its files, for good. Shows first what will be deleted."""
    name, number = numbered(backbone)
    with connected() as client:
        deletion = client.version_deletion_preview(name, number)
        if not preview:
            err.print(render_backbones.version_deletion(deletion), soft_wrap=True)
            _confirm(deletion, yes)
            deletion = client.delete_version(name, number)
    if as_json:
        print_json(deletion)
    elif preview:
        out.print(render_backbones.version_deletion(deletion), soft_wrap=True)
    else:
        out.print(f"deleted {name}:{number}; its files are removed within moments", highlight=False, soft_wrap=True)


backbones.command("retention")(retention)


def _confirm(deletion: VersionDeletionView, yes: bool) -> None:
    """Raises `ClientError` if the user does not want the deletion, or the service would refuse it."""
    if deletion.kept:
        raise ClientError(f"nothing is deleted: {deletion.kept}")
    if not yes and not typer.confirm("Delete all of this?", err=True):
        raise ClientError("nothing is deleted")


def numbered(text: str) -> tuple[str, int]:
    """The name and the number of a version."""
    name, version = reference(text)
    if not isinstance(version, int):
        raise typer.BadParameter(f"{text!r} names no version: write name:number, for example digits:2")
    return name, version


def reference(text: str) -> tuple[str, int | str | None]:
    """The name and what names its version, which may follow either separator: a number is a number with `v` too."""
    name, separator, version = text.partition("@" if "@" in text else ":")
    if not name or ":" in name or (separator and not VERSION.fullmatch(version)):
        raise typer.BadParameter(
            f"{text!r} is not a backbone: write name, name:number or name@alias, such as digits:2 or digits@champion"
        )
    number = NUMBER.fullmatch(version)
    return name, int(number[1]) if number else version or None
