"""Registered versions of a backbone, as files below the artifact root."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from service_fakes import FakeMlflow, add_job, spec_with

from service.adapters.mlflow_registry import Version
from service.context.app_state import AppState
from service.controller.context import ControllerContext
from service.controller.versions import check
from service.db.database import Database
from service.db.tables import BackboneAlias, BackboneVersion
from service.jobs import aliases
from service.kinds.registry import KINDS
from trainer.protocol import names

WEIGHTS = bytes(range(256)) * 40
CONFIG = b'{"model_type": "vit"}'
FILES = {
    "README.md": b"# A backbone\n![curves](card/curves.png)\n",
    "card/curves.png": b"\x89PNG",
    "hf/config.json": CONFIG,
    "hf/model.safetensors": WEIGHTS,
    "hf-mae/config.json": b'{"model_type": "vit_mae"}',
    "metrics.json": b"{}",
    "spec.json": b"{}",
    "timm/config.json": b"{}",
    "timm/model.safetensors": WEIGHTS[::-1],
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """A version's folder, with its checksums and a file that they do not name."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / names.BACKBONE_SUMS).write_text("".join(f"{sha256(data)}  {name}\n" for name, data in files.items()))
    (folder / "unlisted.txt").write_text("secret")
    return folder


def commit_of(folder: Path) -> str:
    return sha256((folder / names.BACKBONE_SUMS).read_bytes())[:40]


def compare_with_mlflow(database: Database, mlflow: Any) -> None:
    """As the controller does again and again."""
    no: Any = None
    lease: Any = SimpleNamespace(guard=lambda _: None)
    check(ControllerContext(AppState(no, database, no, mlflow, no, no, KINDS), KINDS, lease))


class Registry:
    """Registers versions of jobs of its own."""

    def __init__(self, database: Database, mlflow: FakeMlflow, root: Path) -> None:
        self._database, self._mlflow, self._root = database, mlflow, root
        self.jobs: dict[str, str] = {}
        """The job of each backbone."""

    def folder(self, name: str, number: int) -> Path:
        return self._root / "models" / f"{name}-{number}" / "artifacts"

    def add(
        self,
        name: str = "digits",
        number: int = 1,
        owner: str = "alice",
        files: dict[str, bytes] | None = None,
        metrics: dict[str, float] | None = None,
        **tags: str,
    ) -> Version:
        """One more version; ``tags`` are named without `rcmae.`."""
        if name not in self.jobs:
            spec = spec_with(register_as=name)
            self.jobs[name] = add_job(self._database, "succeeded", owner=owner, spec=spec)
        folder = write(self.folder(name, number), files or FILES | {"spec.json": f"{number}".encode()})
        told = {f"rcmae.{key}": value for key, value in tags.items()}
        told |= {f"{names.TAG_METRIC}{key}": repr(value) for key, value in (metrics or {}).items()}
        version = self._mlflow.register(name, number, self.jobs[name], f"file://{folder}", told)
        compare_with_mlflow(self._database, self._mlflow)
        return version

    def set_alias(self, name: str, alias: str, number: int) -> None:
        with self._database.session() as session:
            aliases.point(session, session.get_one(BackboneVersion, (name, number)), alias, "alice")
        self._mlflow.set_alias(name, alias, number)

    def delete_alias(self, name: str, alias: str) -> None:
        with self._database.session() as session:
            session.delete(session.get_one(BackboneAlias, (name, alias)))
        self._mlflow.delete_alias(name, alias)
