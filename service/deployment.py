"""`rcmae init-deploy`: what a deployment with `docker-compose.yml` must have before it starts, above all its secrets.

`.env` is the one place where they are kept, as variables. Compose reads its settings there; processes get the secrets
as files, which are rendered here out of it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

COMPOSE_FILE: Final = "docker-compose.yml"
ENV_FILE: Final = ".env"
SECRETS_FOLDER: Final = ".secrets"
ADMIN_TOKEN_FILE: Final = "admin_token"  # noqa: S105 - a name, not a token
ARTIFACTS, DATASETS = "rcmae-artifacts", "rcmae-datasets"
"""The buckets that docker-compose.yml has made."""

_HEADER: Final = (
    "# Written by `rcmae init-deploy`. It holds every secret of this deployment: keep it, and keep it from others.\n"
    "# After a change: `rcmae init-deploy` again, then `docker compose up -d --force-recreate`.\n"
)
_LINE: Final = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$")
_VALUE: Final = re.compile(r"^[A-Za-z0-9_.:/~+=@-]+$")
"""What Compose, SQL, JSON and INI files all take as it is."""
_SHORTEST_SECRET: Final = 16


def _token() -> str:
    return secrets.token_urlsafe(32)


def _key() -> str:
    return secrets.token_hex(10).upper()


SETTINGS: Final[dict[str, Callable[[], str]]] = {
    "COMPOSE_PROJECT_NAME": lambda: "rcmae",
    "RCMAE_SECRETS_DIR": lambda: f"./{SECRETS_FOLDER}",
    "RCMAE_PUBLISH": lambda: "127.0.0.1:8000",
    "RCMAE_WORKER_CPUS": lambda: str(len(os.sched_getaffinity(0))),
}
"""What an operator may change, and what it is at first."""
SECRETS: Final[dict[str, Callable[[], str]]] = {
    "RCMAE_ADMIN_TOKEN": _token,
    "RCMAE_RAY_TOKEN": _token,
    "RCMAE_POSTGRES_PASSWORD": _token,
    "RCMAE_DB_PASSWORD": _token,
    "RCMAE_MLFLOW_DB_PASSWORD": _token,
    "RCMAE_STUDIES_DB_PASSWORD": _token,
    "RCMAE_S3_KEY": _key,
    "RCMAE_S3_SECRET": _token,
    "RCMAE_S3_ADMIN_KEY": _key,
    "RCMAE_S3_ADMIN_SECRET": _token,
}
"""Random, each its own."""


class NotDeployable(Exception):
    """Why a deployment cannot be prepared, and what to do."""


class Prepared(NamedTuple):
    """What `prepare` found and did."""

    env: Path
    admin_token: Path
    publish: str
    """Where the API will be, `address:port`."""
    added: list[str]
    """Variables that were not in `.env` before."""
    written: list[str]
    """Files of secrets that are new or another than before."""


def prepare(folder: Path) -> Prepared:
    """Complete a checkout's `.env`, and render the files of secrets; what is there stays, and twice is as once.

    Raises `NotDeployable` that says what to do, before anything is written: for a folder that is no checkout, an `.env`
    that others may read, and a value that cannot stand where it is needed.
    """
    folder = folder.expanduser().absolute()
    if not (folder / COMPOSE_FILE).is_file():
        raise NotDeployable(f"there is no {COMPOSE_FILE} in {folder}: name the folder that has it with --dir")
    env = folder / ENV_FILE
    before = _read(env)
    added = {name: make() for name, make in (SETTINGS | SECRETS).items() if name not in before}
    values = before | added
    _check(env, values)
    if added:
        _complete(env, added)
    place = folder / values["RCMAE_SECRETS_DIR"]
    written = _render(place, files_of(values))
    return Prepared(env, place / ADMIN_TOKEN_FILE, values["RCMAE_PUBLISH"], list(added), written)


def files_of(values: Mapping[str, str]) -> dict[str, str]:
    """The files that processes read their secrets from, by the names that docker-compose.yml has for them."""
    studies = _database("rcmae_studies", values["RCMAE_STUDIES_DB_PASSWORD"])
    return {
        ADMIN_TOKEN_FILE: values["RCMAE_ADMIN_TOKEN"],
        "ray_token": values["RCMAE_RAY_TOKEN"],
        "postgres_password": values["RCMAE_POSTGRES_PASSWORD"],
        "rcmae_db_password": values["RCMAE_DB_PASSWORD"],
        "mlflow_db_password": values["RCMAE_MLFLOW_DB_PASSWORD"],
        "rcmae_studies_db_password": values["RCMAE_STUDIES_DB_PASSWORD"],
        # Service files: a password file may be readable by its owner alone, who is another in each container.
        "rcmae_db_service": _database("rcmae", values["RCMAE_DB_PASSWORD"]) + studies,
        "mlflow_db_service": _database("mlflow", values["RCMAE_MLFLOW_DB_PASSWORD"]),
        "rcmae_studies_db_service": studies,
        "s3_config": _s3_config(values),
        "s3_credentials": _credentials(values["RCMAE_S3_KEY"], values["RCMAE_S3_SECRET"]),
        "s3_admin_credentials": _credentials(values["RCMAE_S3_ADMIN_KEY"], values["RCMAE_S3_ADMIN_SECRET"]),
    }


def _database(name: str, password: str) -> str:
    """A database's section in a file of libpq's services."""
    return f"[{name}]\npassword={password}\n"


def _s3_config(values: Mapping[str, str]) -> str:
    """SeaweedFS's identities: one that makes buckets and fills datasets, one that trains and only reads those."""

    def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    trains = [f"{action}:{ARTIFACTS}" for action in ("Read", "Write", "List")]
    trains += [f"{action}:{DATASETS}" for action in ("Read", "List")]
    identities = [
        identity("admin", values["RCMAE_S3_ADMIN_KEY"], values["RCMAE_S3_ADMIN_SECRET"], ["Admin"]),
        identity("rcmae", values["RCMAE_S3_KEY"], values["RCMAE_S3_SECRET"], trains),
    ]
    return json.dumps({"identities": identities}, indent=1)


def _credentials(key: str, secret: str) -> str:
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


def _read(env: Path) -> dict[str, str]:
    """The variables of an `.env`; none where there is no such file."""
    try:
        status, text = env.stat(), env.read_text()
    except FileNotFoundError:
        return {}
    if status.st_mode & 0o077:
        raise NotDeployable(f"{env} holds secrets and others may read it: chmod 600 {env}")
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise NotDeployable(f"{env}, line {number} is not NAME=value: correct it")  # not shown: it may be a secret
        found[match[1]] = match[2]
    return found


def _check(env: Path, values: Mapping[str, str]) -> None:
    for name in SETTINGS | SECRETS:
        if not _VALUE.match(values[name]):
            raise NotDeployable(
                f"{env}: {name} must not be empty and holds letters, digits and _.:/~+=@- alone: correct it, or take "
                "its line out and run `rcmae init-deploy` again"
            )
        if name in SECRETS and len(values[name]) < _SHORTEST_SECRET:
            raise NotDeployable(
                f"{env}: {name} has fewer than {_SHORTEST_SECRET} characters: take its line out, and a random one is "
                "written"
            )


def _complete(env: Path, added: Mapping[str, str]) -> None:
    """Add variables at the end; nobody ever sees half of it."""
    text = env.read_text() if env.exists() else _HEADER
    if text and not text.endswith("\n"):
        text += "\n"
    _write(env, text + "".join(f"{name}={value}\n" for name, value in added.items()), 0o600)


def _render(place: Path, files: Mapping[str, str]) -> list[str]:
    """Write those files that are not so yet; gives their names.

    The folder is its owner's alone. The files in it can be read by whoever gets there: in a container, where Docker
    puts each by itself, that is a user with another number.
    """
    place.mkdir(mode=0o700, exist_ok=True)
    place.chmod(0o700)
    changed = [
        name for name, text in files.items() if not (place / name).is_file() or (place / name).read_text() != text
    ]
    for name in changed:
        _write(place / name, files[name], 0o444)
    return changed


def _write(path: Path, text: str, mode: int) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(mode)
    fresh.replace(path)
