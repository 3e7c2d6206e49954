"""The registry of backbones in MLflow: versions, aliases and where their files are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.tracking import MlflowClient

from service.adapters.mlflow_connection import PAGE, MlflowConnection, absence_allowed, quoted, utc_time
from trainer.protocol.names import TAG_EVALUATED, TAG_JOB, TAG_LABEL

MODELS_PER_REQUEST: Final = 100
"""Logged models that one request looks up: their ids are part of its filter."""
COPIES: Final = (TAG_LABEL, TAG_EVALUATED)
"""Beginnings of the tags that copy what the service keeps."""
MODEL_SOURCE: Final = re.compile(r"models:/([A-Za-z0-9_-]+)")
"""The source of a version that a logged model backs, with the model's id."""


@dataclass(frozen=True)
class Version:
    """A registered version of a backbone."""

    name: str
    version: int
    created_at: datetime
    tags: Mapping[str, str]
    source: str
    description: str = ""

    @property
    def copies(self) -> dict[str, str]:
        """Those of its tags that copy what the service keeps."""
        return _copies(self.tags)


@dataclass(frozen=True)
class Model:
    """A registered model, which is a backbone with all its versions."""

    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    @property
    def copies(self) -> dict[str, str]:
        """Those of its tags that copy what the service keeps."""
        return _copies(self.tags)


class MlflowRegistry(MlflowConnection):
    """Registered versions, aliases, descriptions and labels of backbones."""

    def versions_of_job(self, name: str, job_id: str) -> list[Version]:
        """A job's versions of a backbone, oldest first: one, plus one for each restart from scratch after a
        registration.
        """
        return self._versions(f"name = '{quoted(name)}' AND tags.`{TAG_JOB}` = '{quoted(job_id)}'")

    def versions_of(self, name: str) -> list[Version]:
        """All versions of a backbone, whoever registered them, oldest first."""
        return self._versions(f"name = '{quoted(name)}'")

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

    def all_models(self) -> dict[str, Model]:
        """What MLflow knows of every backbone besides its versions, by its name."""
        models: dict[str, Model] = {}
        token = None
        while True:
            page = self._call(partial(self._client.search_registered_models, max_results=PAGE, page_token=token))
            models |= {str(model.name): _model(model) for model in page}
            token = page.token
            if not token:
                return models

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Point an alias at a version, whatever it pointed at before."""
        self._call(lambda: self._client.set_registered_model_alias(name, alias, str(number)))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, if it exists."""
        self._call(lambda: self._delete_alias(name, alias))

    def _delete_alias(self, name: str, alias: str) -> None:
        with absence_allowed():
            self._client.delete_registered_model_alias(name, alias)

    def describe(self, name: str, number: int | None, description: str | None, copies: Mapping[str, str]) -> None:
        """Give a backbone, or one of its versions, a description, and tags that copy what the service keeps.

        ``copies`` replace all tags that begin as `COPIES`; its other tags stay. A description of None changes
        nothing. Raises `MlflowRefused` if MLflow has no such version.
        """
        self._call(lambda: self._describe(name, number, description, copies))

    def _describe(self, name: str, number: int | None, description: str | None, copies: Mapping[str, str]) -> None:
        client = self._client
        change = _Changes.of(client, name, number)
        found = client.get_registered_model(name) if number is None else client.get_model_version(name, str(number))
        if description is not None and description != (found.description or ""):
            change.describe(description)
        before = _copies(found.tags)
        for tag in before.keys() - copies.keys():
            change.remove(tag)
        for tag, value in copies.items():
            if before.get(tag) != value:
                change.set(tag, value)

    def folders(self, versions: Sequence[Version]) -> dict[str, str]:
        """The folders of versions' files, by the version's source; versions without a logged model are left out."""
        ids = sorted({model_id for version in versions if (model_id := _model_id(version.source))})
        found: dict[str, str] = {}
        experiments = self._call(self._experiments) if ids else []
        for begin in range(0, len(ids), MODELS_PER_REQUEST):
            listed = ", ".join(f"'{model_id}'" for model_id in ids[begin : begin + MODELS_PER_REQUEST])
            request = partial(self._client.search_logged_models, experiments, f"model_id IN ({listed})")
            models = self._call(partial(request, max_results=MODELS_PER_REQUEST))
            found |= {f"models:/{model.model_id}": str(model.artifact_location) for model in models}
        return found

    def _experiments(self) -> list[str]:
        """The ids of all experiments, among whose logged models MLflow searches."""
        ids: list[str] = []
        token = None
        while True:
            page = self._client.search_experiments(ViewType.ALL, max_results=PAGE, page_token=token)
            ids += [experiment.experiment_id for experiment in page]
            token = page.token
            if not token:
                return ids

    def delete_version(self, name: str, number: int, source: str) -> None:
        """Remove a version and its logged model from the registry; its files are not touched.

        Another version with the same number stays: MLflow counts from 1 again once a registered model is deleted.
        """
        self._call(lambda: self._delete_version(name, str(number), source))

    def _delete_version(self, name: str, number: str, source: str) -> None:
        model_id = _model_id(source)
        if model_id:
            with absence_allowed():
                self._client.delete_logged_model(model_id)
        with absence_allowed():
            if self._client.get_model_version(name, number).source == source:
                self._client.delete_model_version(name, number)


@dataclass(frozen=True)
class _Changes:
    """MLflow's calls that change a registered model, or a version of one."""

    describe: Callable[[str], object]
    set: Callable[[str, str], object]
    remove: Callable[[str], object]

    @classmethod
    def of(cls, client: MlflowClient, name: str, number: int | None) -> _Changes:
        if number is None:
            return cls(
                partial(client.update_registered_model, name),
                partial(client.set_registered_model_tag, name),
                partial(client.delete_registered_model_tag, name),
            )
        version = str(number)
        return cls(
            partial(client.update_model_version, name, version),
            partial(client.set_model_version_tag, name, version),
            partial(client.delete_model_version_tag, name, version),
        )


def _copies(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.startswith(COPIES)}


def _model_id(source: str) -> str | None:
    """The id of the logged model behind a version, from its source; None if there is none."""
    match = MODEL_SOURCE.fullmatch(source)
    return match[1] if match else None


def _model(model: RegisteredModel) -> Model:
    return Model(
        aliases={alias: int(number) for alias, number in model.aliases.items()},
        tags=dict(model.tags),
        description=model.description or "",
    )


def _version(version: ModelVersion) -> Version:
    return Version(
        name=str(version.name),
        version=int(version.version),
        created_at=utc_time(version.creation_timestamp),
        tags=dict(version.tags),
        source=str(version.source),
        description=version.description or "",
    )
