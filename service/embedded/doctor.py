"""What would keep the embedded stack from working, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import psutil
from packaging.requirements import Requirement
from pydantic import BaseModel
from rich.table import Table

from service.client import tables
from service.client.console import Text
from service.embedded import processes, stack
from service.embedded.folder import Folder, StackError
from service.embedded.locations import redacted_database_url, require_nothing_shared
from service.embedded.parts import DEFAULT_PORT

Level = Literal["fine", "warning", "broken"]

GIB: Final = 2**30
SOCKET_PATH_LIMIT: Final = 107
"""Bytes in the path of a Unix socket."""
LONGEST_SOCKET: Final = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
TEMP, SHARED = Path(os.sep, "tmp"), Path(os.sep, "dev", "shm")
STYLES: Final[dict[Level, str]] = {"fine": "green", "warning": "yellow", "broken": "red"}
SHOWN_PACKAGES: Final = ("torch", "ray", "mlflow", "fastapi", "sqlalchemy", "pydantic", "transformers")


class Check(BaseModel):
    """The result of one check."""

    name: str
    level: Level
    found: str
    remedy: str = ""
    """What to do; empty if all is well."""


def examine(folder: Folder) -> list[Check]:
    """Run every check on a stack's folder, which need not exist."""
    of_the_folder = [*_copied(folder), *_artifacts(folder), *_database(folder), *_stack(folder)]
    return [*_machine(folder), *_packages(), *_space(folder), *of_the_folder]


def rendered(checks: list[Check]) -> Table:
    """For people."""
    rows = (
        (check.name, Text(check.level, STYLES[check.level]), Text(check.found), Text(check.remedy)) for check in checks
    )
    return tables.table(("CHECK", "", "FOUND", "WHAT TO DO"), rows)


def _check(name: str, found: str, remedy: str, *, broken: bool = False, warn: bool = False) -> Check:
    level: Level = "broken" if broken else "warning" if warn else "fine"
    return Check(name=name, level=level, found=found, remedy="" if level == "fine" else remedy)


def _machine(folder: Folder) -> Iterator[Check]:
    yield _check("system", sys.platform, "the embedded stack runs on Linux", broken=sys.platform != "linux")
    python = ".".join(map(str, sys.version_info[:3]))
    yield _check("python", python, "install Python 3.11 or newer", broken=sys.version_info < (3, 11))
    yield _check(
        "byte code",
        "not written" if sys.dont_write_bytecode else "written",
        "unset PYTHONDONTWRITEBYTECODE: without compiled packages a job takes three times as long to start",
        warn=sys.dont_write_bytecode,
    )
    temp_dir = folder.load().temp_dir or TEMP / "rcmae-12345678"
    longest = len(str(temp_dir / LONGEST_SOCKET))
    yield _check(
        "socket paths",
        f"up to {longest} of {SOCKET_PATH_LIMIT} bytes",
        f"Ray's sockets lie below {temp_dir}, which is too deep: run `rcmae down`, then `rcmae up`",
        broken=longest > SOCKET_PATH_LIMIT,
    )
    writable = os.access(TEMP, os.W_OK)
    yield _check(str(TEMP), "writable" if writable else "not writable", f"make {TEMP} writable", broken=not writable)


def _packages() -> Iterator[Check]:
    """Compare the packages that the project requires with those that are installed."""
    try:
        requirements = [Requirement(text) for text in metadata.requires("rcmae") or ()]
    except metadata.PackageNotFoundError:
        yield Check(name="rcmae", level="broken", found="not installed", remedy="pip install 'rcmae[server,trainer]'")
        return
    yield Check(name="rcmae", level="fine", found=metadata.version("rcmae"))
    wanted = {requirement.name: requirement for requirement in requirements if _needed(requirement)}
    for name in SHOWN_PACKAGES:
        if name not in wanted:
            yield Check(name=name, level="fine", found=_version(name) or "not installed (optional)")
    for name, requirement in sorted(wanted.items()):
        installed = _version(name)
        fits = installed is not None and requirement.specifier.contains(installed.partition("+")[0], prereleases=True)
        if name in SHOWN_PACKAGES or not fits:
            remedy = f"pip install '{name}{requirement.specifier}'"
            yield _check(name, installed or "not installed", remedy, broken=not fits)


def _needed(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("server", "trainer"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _space(folder: Folder) -> Iterator[Check]:
    for path, need in ((_existing(folder.path), 2 * GIB), (TEMP, GIB)):
        free = shutil.disk_usage(path).free
        remedy = f"free {tables.size(need)} there, or choose another folder for the state with --state-dir"
        yield _check(f"disk {path}", f"{tables.size(free)} free", remedy, broken=free < need / 4, warn=free < need)
    memory = psutil.virtual_memory().available
    remedy = "Ray, MLflow and the API take about 3 GiB, and each worker of a job 1 GiB and more: close other programs"
    yield _check("memory", f"{tables.size(memory)} free", remedy, broken=memory < GIB, warn=memory < 4 * GIB)
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    remedy = "give the machine (or the container, with --shm-size=1g) more shared memory; Ray falls back to slow files"
    yield _check(str(SHARED), f"{tables.size(free)} free", remedy, warn=free < GIB / 2)


def _tried(name: str, attempt: Callable[[], object], refused: str, fine: str) -> Check:
    """Whether what `rcmae up` does works: ``refused`` and ``fine`` say what was found."""
    try:
        attempt()
    except StackError as error:
        return Check(name=name, level="broken", found=refused, remedy=str(error))
    return Check(name=name, level="fine", found=fine)


def _copied(folder: Folder) -> Iterator[Check]:
    """Whether a copied state folder would share with its original what two stacks cannot share."""
    if folder.original is None:
        return
    copied = f"a copy of {folder.original}"
    yield _tried("state folder", lambda: require_nothing_shared(folder), copied, f"{copied}, sharing nothing with it")


def _artifacts(folder: Folder) -> Iterator[Check]:
    """Whether the artifact root of a stack that was started can be written and read."""
    if not folder.used:
        return
    root = folder.artifact_root
    yield _tried("artifacts", lambda: stack.try_artifact_root(root), root, f"{root} can be written and read")


def _database(folder: Folder) -> Iterator[Check]:
    """Whether the Postgres of a stack that was started takes connections."""
    url = folder.load().database_url
    if url is None:
        return
    shown = redacted_database_url(folder)
    check = _tried("database", lambda: stack.try_database(url), shown, f"{shown} takes connections")
    yield check
    if check.level == "fine":
        yield _name_index(url)


def _name_index(url: str) -> Check:
    """Whether jobs are found by a part of their names without reading all of them."""
    # Imported here: the other checks work without the server's packages.
    from service.db.database import Database  # noqa: PLC0415
    from service.db.name_index import REMEDY, names_are_indexed  # noqa: PLC0415

    database = Database(url)
    try:
        with database.read() as session:
            indexed = names_are_indexed(session.connection())
    finally:
        database.close()
    return _check("search by name", "indexed" if indexed else "reads every job", REMEDY, warn=not indexed)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _stack(folder: Folder) -> Iterator[Check]:
    view = stack.status(folder)
    if not any(part.alive for part in view.parts):
        yield Check(name="stack", level="fine", found=f"not up in {folder.path} (start it with `rcmae up`)")
        free = processes.port_is_free(DEFAULT_PORT)
        text = "free" if free else "in use by another program; `rcmae up` will choose another"
        yield Check(name=f"port {DEFAULT_PORT}", level="fine", found=text)
        return
    yield _check(
        "stack",
        f"up at {view.url}" if view.supervisor else "running, but nobody watches it",
        "the supervisor has ended: run `rcmae up`, which takes up what runs",
        broken=not view.supervisor,
    )
    for part in view.parts:
        state = "works" if part.works else "does not answer" if part.alive else "down"
        remedy = f"see {folder.log_of(part.name)}; `rcmae down` and `rcmae up` start everything anew"
        yield _check(part.name, f"{state}, {part.address.replace('http://', '')}", remedy, broken=not part.works)
    for reason in view.reasons:
        remedy = f"the logs are in {folder.logs}; `rcmae down` and `rcmae up` start everything anew"
        yield Check(name="ready for jobs", level="broken", found=reason, remedy=remedy)
