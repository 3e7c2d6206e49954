"""Where a stack keeps its artifacts and its jobs if not in its state folder: the user's choice, which is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from service.client.server import Home
from service.embedded.folder import Folder, StackError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


def require_no_links(folder: Folder) -> None:
    """Raises `StackError` for a copy whose files are links to those of its original, while that exists."""
    original = folder.original
    name = folder.shared_with(original) if original else None
    if original and name:
        raise StackError(
            f"{folder.path / name} and {original / name} are the same, by a link: two stacks cannot share it. "
            f"Copy {original} with `cp -rL`, which makes no links"
        )


def require_nothing_shared(folder: Folder) -> None:
    """Raises `StackError` for a copy that would share its database or its artifacts with its original.

    Whatever lies outside the state folder is not copied with it, and two stacks that use it would undo each other's
    work. Once the original is gone, the copy takes its place.
    """
    require_no_links(folder)
    original, state = folder.original, folder.load()
    elsewhere = state.artifact_root and not Path(state.artifact_root).is_relative_to(Home.of(folder.path).path)
    if original is None or not (state.database_url or elsewhere):
        return
    shared = f"jobs in {redacted_database_url(folder)}" if state.database_url else f"artifacts in {state.artifact_root}"
    raise StackError(
        f"{folder.path} is a copy of {original}, which keeps its {shared}: two stacks cannot share them. Start a new "
        "stack with another --state-dir; or, for the copy to replace the original, run `rcmae down` there and remove it"
    )


def choose_artifact_root(folder: Folder, requested: str | None) -> str | None:
    """The artifact root to record: the requested one, else the recorded one; None means the state folder's own.

    Raises `StackError` for one that cannot be used, and for any other than the one that MLflow's records name.
    """
    recorded = folder.load().artifact_root
    if requested is None:
        return recorded
    scheme, separator, rest = requested.partition("://")
    if not separator or scheme == "file":
        root = str(Path(rest if separator else requested).expanduser().absolute())
        if set("?#%") & set(root):
            raise StackError(f"{root}: an artifact root's path must not hold ? # or %: choose another")
    elif scheme != "s3" or not rest.partition("/")[0]:
        raise StackError(f"{requested}: an artifact root is a local path or s3://bucket/prefix")
    elif "@" in rest.partition("/")[0]:
        raise StackError("an artifact root holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    else:
        root = requested.rstrip("/")
    if root != folder.artifact_root and (folder.has_runs or folder.load().parts):
        raise StackError(
            f"the stack in {folder.path} keeps its artifacts in {folder.artifact_root}, where its runs and backbones "
            f"are recorded to lie: leave --artifact-root out, or start a new stack with another --state-dir"
        )
    return root


def choose_database_url(folder: Folder, requested: str | None) -> str | None:
    """The database to record: the requested one, else the recorded one; None means SQLite in the state folder.

    Raises `StackError` for one that cannot be used, and for any other than the one that holds the jobs. Only the
    password and the connection's parameters may change.
    """
    recorded = folder.load().database_url
    if requested is None:
        return recorded
    # Imported here: `rcmae down` and `rcmae status` of a stack on SQLite work without SQLAlchemy.
    from service.db.engines import DatabaseUrlError, parse_database_url  # noqa: PLC0415

    try:
        url = parse_database_url(requested)
    except DatabaseUrlError as error:
        raise StackError(str(error).replace("RCMAE_DATABASE_URL", "--database-url")) from error
    if url.get_backend_name() == "sqlite":
        raise StackError("--database-url is for Postgres: without it the jobs are kept in SQLite in the state folder")
    differs = recorded is None or _database_identity(parse_database_url(recorded)) != _database_identity(url)
    if differs and (folder.has_jobs or (recorded is not None and (folder.has_runs or folder.load().parts))):
        raise StackError(
            f"the stack in {folder.path} keeps its jobs in {redacted_database_url(folder)}: leave --database-url out, "
            "or start a new stack with another --state-dir"
        )
    return requested


def _database_identity(url: URL) -> URL:
    """The part of a URL that says which database it is."""
    return url.set(password="", query={})  # None would leave it


def redacted_database_url(folder: Folder) -> str:
    """Where the jobs are kept, without the password."""
    recorded = folder.load().database_url
    if recorded is None:
        return folder.database_url
    from service.db.engines import masked_url, parse_database_url  # noqa: PLC0415

    return masked_url(parse_database_url(recorded))
