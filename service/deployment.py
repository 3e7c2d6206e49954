"""`rcmae init-deploy`: prepares a deployment with `docker-compose.yml`, above all its secrets.

`.env` is the only source of settings and secrets. Compose reads it; processes get the secrets as files, which are
rendered from it here.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from service import signing_key
from service.atomic import write_atomically

COMPOSE_FILE: Final = "docker-compose.yml"
ENV_FILE: Final = ".env"
SECRETS_FOLDER: Final = ".secrets"
ADMIN_TOKEN_FILE: Final = "admin_token"  # noqa: S105 - a name, not a token
ARTIFACTS, DATASETS = "rcmae-artifacts", "rcmae-datasets"
"""The buckets that docker-compose.yml creates."""

_HEADER: Final = (
    "# Written by `rcmae init-deploy`. It holds every secret of this deployment: back it up, and let nobody else read "
    "it.\n"
    "# After a change: `rcmae init-deploy` again, then `docker compose up -d --force-recreate`.\n"
)
_LINE: Final = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$")
_VALUE: Final = re.compile(r"^[A-Za-z0-9_.:/~+=@-]+$")
"""Values that Compose, SQL, JSON and INI files all accept without quoting."""
_SHORTEST_SECRET: Final = 16


def _token() -> str:
    return secrets.token_urlsafe(32)


def _key() -> str:
    return secrets.token_hex(10).upper()


SIGNING_KEY: Final = "RCMAE_SIGNING_KEY"

SETTINGS: Final[dict[str, Callable[[], str]]] = {
    "COMPOSE_PROJECT_NAME": lambda: "rcmae",
    "RCMAE_SECRETS_DIR": lambda: f"./{SECRETS_FOLDER}",
    "RCMAE_PUBLISH": lambda: "127.0.0.1:8000",
    "RCMAE_WORKER_CPUS": lambda: str(len(os.sched_getaffinity(0))),
}
"""Settings that an operator may change, with their defaults."""
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
    SIGNING_KEY: signing_key.new_key,
}
"""Secrets, each generated separately."""


class NotDeployable(Exception):
    """A deployment cannot be prepared. The text says why, and what to do."""


class Prepared(NamedTuple):
    """The result of `prepare`."""

    env: Path
    admin_token: Path
    publish: str
    """`address:port` of the API."""
    added: list[str]
    """Variables that were added to `.env`."""
    written: list[str]
    """Secret files that are new or changed."""


def prepare(folder: Path) -> Prepared:
    """Add missing variables to a checkout's `.env`, and render the secret files. It is safe to repeat.

    Raises `NotDeployable` before anything is written if the folder has no `docker-compose.yml`, if others may read its
    `.env`, or if a value is invalid.
    """
    folder = folder.expanduser().absolute()
    if not (folder / COMPOSE_FILE).is_file():
        raise NotDeployable(f"{folder} has no {COMPOSE_FILE}: pass the folder that has it with --dir")
    env = folder / ENV_FILE
    before = _read(env)
    added = {name: make() for name, make in (SETTINGS | SECRETS).items() if name not in before}
    values = before | added
    _check(env, values)
    if added:
        _complete(env, added)
    secrets_folder = folder / values["RCMAE_SECRETS_DIR"]
    written = _render(secrets_folder, secret_files(values))
    return Prepared(env, secrets_folder / ADMIN_TOKEN_FILE, values["RCMAE_PUBLISH"], list(added), written)


def secret_files(values: Mapping[str, str]) -> dict[str, str]:
    """The contents of the files from which processes read their secrets, by their names in docker-compose.yml."""
    studies = _database("rcmae_studies", values["RCMAE_STUDIES_DB_PASSWORD"])
    own, mlflow = (
        _database("rcmae", values["RCMAE_DB_PASSWORD"]),
        _database("mlflow", values["RCMAE_MLFLOW_DB_PASSWORD"]),
    )
    return {
        ADMIN_TOKEN_FILE: values["RCMAE_ADMIN_TOKEN"],
        "ray_token": values["RCMAE_RAY_TOKEN"],
        "signing_key": signing_key.to_pem(values[SIGNING_KEY]),
        "postgres_password": values["RCMAE_POSTGRES_PASSWORD"],
        "rcmae_db_password": values["RCMAE_DB_PASSWORD"],
        "mlflow_db_password": values["RCMAE_MLFLOW_DB_PASSWORD"],
        "rcmae_studies_db_password": values["RCMAE_STUDIES_DB_PASSWORD"],
        # Service files, because a password file must be readable by its owner only, who differs between containers.
        "rcmae_db_service": own + studies,
        "mlflow_db_service": mlflow,
        "admin_db_service": own + studies + mlflow,  # for backups
        "rcmae_studies_db_service": studies,
        "s3_config": _s3_config(values),
        "s3_credentials": _credentials(values["RCMAE_S3_KEY"], values["RCMAE_S3_SECRET"]),
        "s3_admin_credentials": _credentials(values["RCMAE_S3_ADMIN_KEY"], values["RCMAE_S3_ADMIN_SECRET"]),
    }


def _database(name: str, password: str) -> str:
    """A database's section in libpq's connection service file."""
    return f"[{name}]\npassword={password}\n"


def _s3_config(values: Mapping[str, str]) -> str:
    """SeaweedFS's identities: `admin` creates buckets and uploads datasets; `rcmae` trains, and only reads datasets."""

    def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
        return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}

    trainer_actions = [f"{action}:{ARTIFACTS}" for action in ("Read", "Write", "List")]
    trainer_actions += [f"{action}:{DATASETS}" for action in ("Read", "List")]
    identities = [
        identity("admin", values["RCMAE_S3_ADMIN_KEY"], values["RCMAE_S3_ADMIN_SECRET"], ["Admin"]),
        identity("rcmae", values["RCMAE_S3_KEY"], values["RCMAE_S3_SECRET"], trainer_actions),
    ]
    return json.dumps({"identities": identities}, indent=1)


def _credentials(key: str, secret: str) -> str:
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


def _read(env: Path) -> dict[str, str]:
    """The variables in `.env`; empty if there is no such file."""
    try:
        status, text = env.stat(), env.read_text()
    except FileNotFoundError:
        return {}
    if status.st_mode & 0o077:
        raise NotDeployable(f"{env} holds secrets, but other users may read it: run chmod 600 {env}")
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise NotDeployable(f"{env}: line {number} is not NAME=value: correct it")  # the line may hold a secret
        values[match[1]] = match[2]
    return values


def _check(env: Path, values: Mapping[str, str]) -> None:
    for name in SETTINGS | SECRETS:
        if not _VALUE.match(values[name]):
            raise NotDeployable(
                f"{env}: {name} must not be empty, and may contain only letters, digits and _.:/~+=@-: correct it, or "
                "remove its line and run `rcmae init-deploy` again"
            )
        if name in SECRETS and len(values[name]) < _SHORTEST_SECRET:
            raise NotDeployable(
                f"{env}: {name} has fewer than {_SHORTEST_SECRET} characters: remove its line and run `rcmae "
                "init-deploy` again, which generates a new one"
            )
    try:
        signing_key.to_pem(values[SIGNING_KEY])
    except signing_key.SigningKeyError as error:
        raise NotDeployable(
            f"{env}: {SIGNING_KEY} is no Ed25519 key in PKCS8 and base64, on one line: correct it, or remove its line "
            "and run `rcmae init-deploy` again, which generates a new one"
        ) from error


def _complete(env: Path, added: Mapping[str, str]) -> None:
    """Append variables to `.env` atomically."""
    text = env.read_text() if env.exists() else _HEADER
    if text and not text.endswith("\n"):
        text += "\n"
    text += "".join(f"{name}={value}\n" for name, value in added.items())
    write_atomically(env, text.encode(), 0o600)


def _render(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Write the files that are new or changed, and return their names.

    Only the owner may enter the folder. Its files are readable by everybody: Docker mounts each of them into
    containers whose users have other ids.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    changed = [
        name for name, text in files.items() if not (folder / name).is_file() or (folder / name).read_text() != text
    ]
    for name in changed:
        write_atomically(folder / name, files[name].encode(), 0o444)
    return changed
