"""`rcmae admin`: backups. What they need of the server's packages is imported when they run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic import ValidationError

from service.client.errors import ClientError
from service.client.server import state_dir as default_state_dir
from service.client.shell import Json, download_bar, err, out, print_json, require_packages

if TYPE_CHECKING:
    from service.backup.making import Source
    from service.embedded.folder import Folder

admin = typer.Typer(no_args_is_help=True, help="Back up a stack or a deployment on this machine, and restore it.")

MLFLOW_VARIABLE: Final = "RCMAE_MLFLOW_DATABASE_URL"
"""The database of a deployment's MLflow, which nothing else of ours opens."""

SERVER_PACKAGES: Final = ("alembic", "mlflow", "optuna", "psutil", "psycopg", "s3fs", "sqlalchemy")

StateDir = Annotated[
    Path | None, typer.Option(help="The stack's folder; RCMAE_STATE_DIR or .rcmae by default.", show_default=False)
]
Deployment = Annotated[
    bool,
    typer.Option(
        "--deployment",
        help=f"Not a stack, but the databases and artifacts of the RCMAE_* variables and {MLFLOW_VARIABLE}.",
    ),
]


@admin.command()
def backup(
    path: Annotated[Path, typer.Argument(help="The folder to make; it must not exist.")],
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Copy checkpoints, backbones and logs, too; by default they are listed.")
    ] = False,
    state_dir: StateDir = None,
    deployment: Deployment = False,
    as_json: Json = False,
) -> None:
    """Copy the databases, secrets and the list of all artifacts, while the service runs."""
    require_packages("admin backup", SERVER_PACKAGES)
    _require_one(deployment, state_dir=state_dir)
    from service.backup.making import Source, make_backup

    with _errors():
        source = _deployment() if deployment else Source.of_stack(_folder(state_dir))
        with download_bar("artifacts") as progress:
            manifest = make_backup(source, path, progress, copy_artifacts=artifacts)
    if as_json:
        print_json(manifest)
        return
    files = "files of artifacts are copied" if artifacts else "files of artifacts are listed, not copied (--artifacts)"
    out.print(f"{path}: {', '.join(copy.name for copy in manifest.databases)}; {manifest.artifacts} {files}",
              highlight=False, soft_wrap=True)  # fmt: skip
    if not deployment:
        err.print("it holds the tokens: let nobody else read it", highlight=False)


@admin.command()
def restore(
    path: Annotated[Path, typer.Argument(help="The backup's folder.")],
    state_dir: StateDir = None,
    deployment: Deployment = False,
    database_url: Annotated[
        str | None, typer.Option(help="An empty Postgres for the jobs; by default where they were.", show_default=False)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where something is: a folder is kept, tables are removed.")
    ] = False,
    without_artifacts: Annotated[
        bool, typer.Option("--without-artifacts", help="Also if artifacts that the backup names are gone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a backup and restore it, into a state folder at any path; `rcmae up` then starts it."""
    require_packages("admin restore", SERVER_PACKAGES)
    _require_one(deployment, state_dir=state_dir, database_url=database_url)
    from service.backup.restoring import restore_deployment, restore_stack
    from service.embedded.parts import S3_PROFILE_VARIABLE

    with _errors(), download_bar("verifying") as progress:
        if deployment:
            source = _deployment()
            restored = restore_deployment(
                path, source.databases, source.artifact_root, source.s3_profile, progress,
                replace=replace, without_artifacts=without_artifacts,
            )  # fmt: skip
        else:
            restored = restore_stack(
                path, _folder(state_dir), progress, s3_profile=os.environ.get(S3_PROFILE_VARIABLE),
                database_url=database_url, replace=replace, without_artifacts=without_artifacts,
            )  # fmt: skip
    if as_json:
        print_json(restored.manifest)
        return
    where = "the deployment's databases" if deployment else _folder(state_dir).path
    out.print(f"restored into {where}, as of {restored.manifest.created_at:%Y-%m-%d %H:%M:%S %Z}", highlight=False,
              soft_wrap=True)  # fmt: skip
    if restored.kept:
        out.print(f"what was there is in {restored.kept}", highlight=False, soft_wrap=True)


def _require_one(deployment: bool, **of_a_stack: object) -> None:
    """Raises `ClientError` for options of a stack where a deployment is meant."""
    given = [f"--{name.replace('_', '-')}" for name, value in of_a_stack.items() if value is not None]
    if deployment and given:
        raise ClientError(f"{given[0]} is for a stack, and --deployment has its own variables: leave one of them out")


def _folder(path: Path | None) -> Folder:
    from service.embedded.folder import Folder

    return Folder.at(path or default_state_dir())


def _deployment() -> Source:
    from service.backup.making import Source
    from service.settings import Settings

    mlflow = os.environ.get(MLFLOW_VARIABLE)
    if not mlflow:
        raise ClientError(f"{MLFLOW_VARIABLE} is not set: set it to the URL of MLflow's database")
    try:
        return Source.of_deployment(Settings(), mlflow)
    except ValidationError as error:
        wrong = (f"RCMAE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise ClientError("; ".join(wrong)) from error


@contextmanager
def _errors() -> Iterator[None]:
    """Errors of the lower layers, as the sentence that the command line prints."""
    from service.adapters.storage import StorageUnreachable
    from service.db.engines import DatabaseUrlError

    try:
        yield
    except (StorageUnreachable, DatabaseUrlError, OSError) as error:
        raise ClientError(str(error)) from error
