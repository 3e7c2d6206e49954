"""The registry of backbones in MLflow: versions, aliases and where their files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from mlflow.entities.model_registry import ModelVersion

from service.adapters.mlflow_connection import PAGE, MlflowConnection, absence_allowed, quoted, utc_time
from trainer.protocol.names import TAG_JOB

FOLDERS_KEPT = 10_000
"""Folders of logged models that are cached; they never change."""


@dataclass(frozen=True)
class Version:
    """A registered version of a backbone."""

    name: str
    version: int
    created_at: datetime
    tags: Mapping[str, str]
    source: str


class MlflowRegistry(MlflowConnection):
    """Registered versions and aliases of backbones."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._folders: dict[str, str] = {}

    def versions(self, name: str) -> list[Version]:
        """All versions of a backbone, oldest first; empty if it does not exist."""
        return self._versions(f"name = '{quoted(name)}'")

    def versions_of_job(self, name: str, job_id: str) -> list[Version]:
        """A job's versions of a backbone, oldest first: one, plus one for each restart from scratch after a
        registration.
        """
        return self._versions(f"name = '{quoted(name)}' AND tags.`{TAG_JOB}` = '{quoted(job_id)}'")

    def all_versions(self) -> list[Version]:
        """All versions of all backbones, by name and number."""
        return self._versions(None)

    def _versions(self, query: str | None) -> list[Version]:
        versions: list[Version] = []
        token = None
        while True:
            page = self._call(partial(self._client.search_model_versions, query, max_results=PAGE, page_token=token))
            versions += [_version(version) for version in page]
            token = page.token
            if not token:
                return sorted(versions, key=lambda version: (version.name, version.version))

    def aliases(self, name: str) -> dict[str, int]:
        """The version numbers of a backbone's aliases; empty if it does not exist."""
        return self._call(lambda: self._aliases_of(name))

    def _aliases_of(self, name: str) -> dict[str, int]:
        with absence_allowed():
            return _numbers(self._client.get_registered_model(name).aliases)
        return {}

    def all_aliases(self) -> dict[str, dict[str, int]]:
        """The aliases of every backbone, by its name."""
        aliases: dict[str, dict[str, int]] = {}
        token = None
        while True:
            page = self._call(partial(self._client.search_registered_models, max_results=PAGE, page_token=token))
            aliases |= {str(model.name): _numbers(model.aliases) for model in page}
            token = page.token
            if not token:
                return aliases

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Point an alias at a version, whatever it pointed at before."""
        self._call(lambda: self._client.set_registered_model_alias(name, alias, str(number)))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, if it exists."""
        self._call(lambda: self._delete_alias(name, alias))

    def _delete_alias(self, name: str, alias: str) -> None:
        with absence_allowed():
            self._client.delete_registered_model_alias(name, alias)

    def folder(self, version: Version) -> str | None:
        """The folder of a version's files; None if it is not backed by a logged model."""
        model_id = _model_id(version)
        if model_id is None:
            return None
        folder = self._folders.get(model_id) or self._call(lambda: self._location(model_id))
        if folder is not None:
            if len(self._folders) >= FOLDERS_KEPT:
                self._folders.clear()
            self._folders[model_id] = folder
        return folder

    def _location(self, model_id: str) -> str | None:
        with absence_allowed():
            return str(self._client.get_logged_model(model_id).artifact_location)
        return None

    def delete_version(self, version: Version) -> None:
        """Remove a version and its logged model from the registry; its files are not touched."""
        self._call(lambda: self._delete_version(version))

    def _delete_version(self, version: Version) -> None:
        model_id = _model_id(version)
        # The version goes last: if this is interrupted, the next call still finds the logged model through it.
        if model_id:
            with absence_allowed():
                self._client.delete_logged_model(model_id)
        with absence_allowed():
            self._client.delete_model_version(version.name, str(version.version))
        self._folders.pop(model_id or "", None)


def _model_id(version: Version) -> str | None:
    """The id of the logged model behind a version; None if there is none."""
    model_id = version.source.removeprefix("models:/")
    return None if model_id == version.source or "/" in model_id else model_id


def _numbers(aliases: Mapping[str, str]) -> dict[str, int]:
    return {alias: int(number) for alias, number in aliases.items()}


def _version(version: ModelVersion) -> Version:
    return Version(
        name=str(version.name),
        version=int(version.version),
        created_at=utc_time(version.creation_timestamp),
        tags=dict(version.tags),
        source=str(version.source),
    )
