"""The command line, `rcmae`.

Commands that need the server's packages import them only when they run: all others work with the base install.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from service import deployment
from service.backup.commands import admin
from service.client import (
    approvals,
    backbones,
    commands,
    data,
    embedding,
    evaluating,
    importing,
    operators,
    render,
    results,
    searches,
    tables,
    webhooks,
)
from service.client.console import Text
from service.client.errors import ApiError, ClientError
from service.client.server import state_dir
from service.client.shell import INTERRUPTED, Json, err, out, print_json, require_packages
from trainer.spec.base import SpecError

if TYPE_CHECKING:
    from service.embedded.folder import Folder, StackState

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pretrain vision backbones with RC-MAE: run the service on this machine, or use one as a client.",
)
app.command()(commands.submit)
app.command()(embedding.embed)
for command in (results.logs, results.metrics, results.checkpoints, results.files):
    commands.jobs.command()(command)
app.add_typer(commands.jobs, name="jobs")
app.add_typer(searches.searches, name="searches")
for approving in (approvals.alias, approvals.moves, approvals.rule):
    backbones.backbones.command()(approving)
backbones.backbones.command("import")(importing.import_backbone)
app.add_typer(backbones.backbones, name="backbones")
app.command()(evaluating.evaluate)
app.add_typer(evaluating.evaluations, name="evaluations")
app.add_typer(data.data, name="data")
app.add_typer(operators.tokens, name="tokens")
app.add_typer(webhooks.webhooks, name="webhooks")
app.add_typer(admin, name="admin")
app.command()(operators.audit)
app.command()(operators.cluster)

CONTROLLER_PACKAGES: Final = ("alembic", "fastapi", "mlflow", "psycopg", "sqlalchemy", "standardwebhooks")
SERVER_PACKAGES: Final = (*CONTROLLER_PACKAGES, "psutil", "ray", "torch", "uvicorn")
REFUSED: Final = "the request cannot be accepted"
SPEC_REFUSED: Final = 2
"""Exit status for a spec that is refused."""

StateDir = Annotated[
    Path | None, typer.Option(help="The stack's folder; RCMAE_STATE_DIR or .rcmae by default.", show_default=False)
]
Port = Annotated[
    int | None, typer.Option(min=1, max=65535, help="The API's port: 8000 by default, another if that is taken.")
]

ArtifactRoot = Annotated[
    str | None,
    typer.Option(
        help="Where to keep artifacts: a path or s3://bucket/prefix; the state folder by default. Remembered.",
        show_default=False,
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Postgres for the jobs, postgresql://user@host:5432/name, with a password in it or in ~/.pgpass; "
        "SQLite in the state folder by default. Remembered.",
        show_default=False,
    ),
]


@app.command()
def up(
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when everything is up; `rcmae down` stops it.")
    ] = False,
    state_dir: StateDir = None,
    port: Port = None,
    artifact_root: ArtifactRoot = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Start Ray, MLflow and the API on this machine, all on 127.0.0.1."""
    require_packages("up", SERVER_PACKAGES)
    from service.embedded import stack

    folder = _folder(state_dir)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        already, state = _bring_up(folder, port, artifact_root, database_url, as_json)
    except KeyboardInterrupt:
        _stop(folder)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(stack.status(folder))
    if not detach and not already:
        _stay(folder, state)


def _bring_up(
    folder: Folder, port: int | None, artifact_root: str | None, database_url: str | None, quiet: bool
) -> tuple[bool, StackState]:
    """Whether the stack was already up, and its state now."""
    from service.embedded import stack
    from service.embedded.locations import redacted_database_url

    begin = time.monotonic()
    already = stack.is_supervised(folder)
    if not already:
        err.print(f"starting Ray, MLflow and the API; logs are in {folder.logs}", highlight=False, soft_wrap=True)

    def report_ready(part: str) -> None:
        if not already:
            err.print(f"  {part:<7}works ({time.monotonic() - begin:.1f} s)", highlight=False)

    state, _ = stack.up(folder, port, report_ready, artifact_root, database_url)
    if not quiet:
        out.print(
            f"{'already up' if already else 'up'} at [bold]{state.url}[/]  (open it in a browser; API docs: /docs)"
        )
        out.print(f"log in with the token in {folder.token}", highlight=False, soft_wrap=True)
        out.print(f"artifacts:  {folder.artifact_root}", highlight=False, soft_wrap=True)
        out.print(f"database:  {redacted_database_url(folder)}", highlight=False, soft_wrap=True)
        out.print("stop it with: rcmae down" if already else "", end="\n" if already else "")
    return already, state


def _stay(folder: Folder, state: StackState) -> None:
    """Stay in the foreground until the stack ends, or the user or SIGTERM stops it."""
    err.print("Ctrl-C stops everything; with --detach it runs on its own")
    supervisor = state.supervisor
    try:
        while supervisor is not None and supervisor.alive:
            time.sleep(0.5)
    except KeyboardInterrupt:
        _stop(folder)
        return
    if folder.load().supervisor is None:
        err.print("the stack was stopped")
        return
    err.print(f"the supervisor has ended: see {folder.log_of('supervisor')}; `rcmae up` takes over what still runs")
    raise typer.Exit(1)


def _stop(folder: Folder) -> None:
    from service.embedded import stack

    err.print("stopping …")
    stack.down(folder)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@app.command()
def down(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Stop everything. Data stays; running jobs resume from their last checkpoint at the next `up`."""
    require_packages("down", ("psutil",))
    from service.embedded import stack

    folder = _folder(state_dir)
    ran = stack.down(folder)
    if as_json:
        print_json(stack.status(folder))
    else:
        out.print("down" if ran else f"nothing runs in {folder.path}", highlight=False, soft_wrap=True)


@app.command()
def status(state_dir: StateDir = None, as_json: Json = False) -> None:
    """What runs on this machine; the exit status is 0 only if everything works."""
    require_packages("status", ("psutil",))
    from service.embedded import stack

    found = stack.status(_folder(state_dir))
    if as_json:
        print_json(found)
    elif not any(part.alive for part in found.parts):
        out.print(f"nothing runs in {found.state_dir}: start it with `rcmae up`", highlight=False, soft_wrap=True)
    else:
        rows = (
            (
                part.name,
                Text("works", "green") if part.works else Text("does not answer" if part.alive else "down", "red"),
                str(part.pid or "-"),
                part.address,
                str(part.restarts),
            )
            for part in found.parts
        )
        out.print(tables.table(("PART", "STATE", "PID", "ADDRESS", "RESTARTS"), rows))
        for reason in found.reasons:
            out.print(Text.assemble(("no job can run:  ", "red"), reason), highlight=False, soft_wrap=True)
        out.print(f"artifacts:  {found.artifact_root}", highlight=False, soft_wrap=True)
        out.print(f"database:  {found.database}", highlight=False, soft_wrap=True)
        password = _folder(state_dir).mlflow_password
        out.print(f"MLflow's pages: user rcmae, with the password in {password}", highlight=False, soft_wrap=True)
        if found.supervisor is None:
            out.print("the supervisor has ended, so nothing restarts them: run `rcmae up`", style="yellow")
    raise typer.Exit(0 if found.up else 1)


@app.command()
def doctor(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Check for problems that would keep the service from working; the exit status is 1 if there are any."""
    require_packages("doctor", ("psutil", "packaging"))
    from service.embedded import doctor as diagnosis

    checks = diagnosis.examine(_folder(state_dir))
    if as_json:
        print_json(checks)
    else:
        out.print(diagnosis.rendered(checks))
    raise typer.Exit(int(any(check.level == "broken" for check in checks)))


@app.command()
def demo(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Run a real job, from submission to a pulled backbone, on scikit-learn's digits; minutes on two cores."""
    require_packages("demo", SERVER_PACKAGES)
    from service.embedded import demo as demonstration

    folder = _folder(state_dir)
    result = demonstration.run(folder, err)
    if as_json:
        print_json(result)
    else:
        out.print(demonstration.rendered(result))
    for failure in result.failures:
        err.print(Text.assemble(("failed:", "red"), f" {failure}"), soft_wrap=True)
    raise typer.Exit(int(bool(result.failures)))


@app.command("init-deploy")
def init_deploy(
    folder: Annotated[Path, typer.Option("--dir", help="The folder with docker-compose.yml.")] = Path(),
) -> None:
    """Write the secrets of a Docker Compose deployment, `.env` and `.secrets/`; existing ones stay."""
    prepared = deployment.prepare(folder)
    for name in (*prepared.added, *(f"{deployment.SECRETS_FOLDER}/{file}" for file in prepared.written)):
        err.print(f"wrote {name}", highlight=False)
    if not prepared.added and not prepared.written:
        err.print("everything exists already; nothing was changed")
    out.print(f"secrets:  {prepared.env}", highlight=False, soft_wrap=True)
    out.print(f"admin's token:  {prepared.admin_token}", highlight=False, soft_wrap=True)
    out.print("next:  docker compose up --detach --build", highlight=False)
    out.print(f"then:  open http://{prepared.publish} in a browser (API docs: /docs)", highlight=False)


@app.command()
def controller(
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Serve /metrics on this port of RCMAE_METRICS_HOST; RCMAE_METRICS_PORT by default, else not at all.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the reconciler without the API, configured by the service's RCMAE_* variables, until SIGTERM or Ctrl-C.

    Any number may run on one Postgres: one acts, the others stand by. Set RCMAE_RECONCILE=false for the API.
    """
    require_packages("controller", CONTROLLER_PACKAGES)
    from pydantic import ValidationError

    from service.controller_app import run
    from service.db.database import DatabaseUnreachable
    from service.db.engines import DatabaseUrlError
    from service.settings import Settings

    try:
        settings = Settings()
        run(settings.model_copy(update={"metrics_port": metrics_port or settings.metrics_port}))
    except ValidationError as error:
        wrong = (f"RCMAE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise ClientError("; ".join(wrong)) from error
    except DatabaseUnreachable as error:
        raise ClientError(f"the database (RCMAE_DATABASE_URL) cannot be reached: {error}") from error
    except DatabaseUrlError as error:
        raise ClientError(str(error)) from error


def _folder(path: Path | None) -> Folder:
    from service.embedded.folder import Folder

    return Folder.at(path or state_dir())


def main(arguments: list[str] | None = None) -> None:
    """The console script: errors are printed as one sentence, not as a traceback."""
    try:
        app(arguments)
    except SpecError as error:
        _refuse(REFUSED, error)
    except ApiError as error:
        if error.problems:
            _refuse(error.detail if error.code != "spec_invalid" else REFUSED, error)
        where = f" (request {error.request_id})" if error.request_id else ""
        _fail(f"{error.code}: {error.detail}{where}")
    except (ClientError, deployment.NotDeployable, FileExistsError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _refuse(headline: str, error: SpecError | ApiError) -> NoReturn:
    err.print(Text(headline, "red"), soft_wrap=True)
    render.print_problems(err, error.problems)
    sys.exit(SPEC_REFUSED)


def _fail(message: str) -> NoReturn:
    err.print(Text.assemble(("error: ", "red"), message), soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
