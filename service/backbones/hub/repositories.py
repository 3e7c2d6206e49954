"""Which repositories there are, and their revisions, files and history."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final

import yaml

from service.auth.caller import Caller
from service.backbones import registry
from service.backbones.registry import Backbone, Content, Served
from service.context.app_state import AppState
from service.http.problems import ApiProblem, not_found
from trainer.protocol import names
from trainer.spec import formats

ENDINGS: Final = {folder: ending for ending, folder in formats.HUB_ENDINGS.items()} | {formats.BACKBONE_HF: ""}
"""The ending of a repository's name, by format."""
FRONT_MATTER: Final = re.compile(r"\A---\n(.*?)^---$", re.DOTALL | re.MULTILINE)
LARGEST_CARD: Final = 2**20
"""Largest card whose front matter is read, in bytes."""
CARDS: Final[dict[tuple[str, str], dict[str, Any]]] = {}
"""Cache of cards' front matters, by commit and path."""
CARDS_KEPT: Final = 1000
"""Largest size of that cache."""


@dataclass(frozen=True)
class Repository:
    """A repository at a revision."""

    id: str
    backbone: Backbone
    version: Served
    folder: str
    content: Content
    sizes: Mapping[str, int]

    @cached_property
    def files(self) -> dict[str, str]:
        """The path of each file in the version's folder, by its path in the repository.

        A format's own card stands for the version's.
        """
        prefix = f"{self.folder}/"
        paths = {path: path for path in self.content.sums if registry.belongs_to_card(path)}
        paths |= {path.removeprefix(prefix): path for path in self.content.sums if path.startswith(prefix)}
        return {name: path for name, path in sorted(paths.items()) if path in self.sizes}


def split(state: AppState, caller: Caller, repo: str) -> tuple[Backbone, str] | None:
    """The backbone and the format that a repository's name means. A backbone of the whole name comes first."""
    whole = registry.named(state, caller, repo)
    if whole is not None:
        return whole, formats.BACKBONE_HF
    for ending, folder in formats.HUB_ENDINGS.items():
        if repo.endswith(ending):
            found = registry.named(state, caller, repo.removesuffix(ending))
            return (found, folder) if found else None
    return None


def named(state: AppState, caller: Caller, org: str, repo: str) -> tuple[Backbone, str]:
    """The backbone and the format of a repository. Raises the API's 404."""
    found = split(state, caller, repo) if org == formats.HUB_ORGANISATION else None
    if found is None:
        raise not_found("repo", f"{org}/{repo}")
    return found


def find(state: AppState, caller: Caller, org: str, repo: str, revision: str) -> Repository:
    """A repository at a revision. Raises the API's 404 if there is no such repository or revision."""
    backbone, folder = named(state, caller, org, repo)
    version = version_at(state, backbone, f"{org}/{repo}", revision)
    repository = at(state, f"{org}/{repo}", backbone, version, folder)
    if not any(path.startswith(f"{folder}/") for path in repository.files.values()):
        text = f"{version.name}:{version.number} was registered without the format {folder!r}"
        raise ApiProblem(404, "revision_not_found", text)
    return repository


def at(state: AppState, repo_id: str, backbone: Backbone, version: Served, folder: str) -> Repository:
    """The repository of a version's format, with its files. Raises the API's 404."""
    sizes = dict(state.artifacts.files(version.folder))
    return Repository(repo_id, backbone, version, folder, registry.content(state, version), sizes)


def version_at(state: AppState, backbone: Backbone, repo_id: str, revision: str) -> Served:
    """The version that a revision of a repository means. Raises the API's 404, also if the version is gone."""
    version = registry.meant_by(state, backbone, revision)
    if version is None:
        number = backbone.latest.number
        text = f"{repo_id} has no revision {revision!r}: use main, v{number}, an alias or a commit"
        raise ApiProblem(404, "revision_not_found", text)
    if version.gone:  # the hub's clients do not know 410
        raise ApiProblem(404, "revision_not_found", registry.gone_text(version))
    return version


def formats_of(state: AppState, version: Served) -> list[str]:
    """The formats in which a version can be pulled. Only for old versions, whose row does not say, it reads storage."""
    if version.gone or version.formats:
        return version.formats
    return registry.formats_in(registry.content(state, version).listed)


def repositories_of(state: AppState, backbone: Backbone) -> Iterator[tuple[str, str]]:
    """The name and the format of each repository of a backbone's main version, `hf` first."""
    available = formats_of(state, backbone.main)
    for folder in sorted(available, key=list(formats.LIBRARIES).index):
        yield f"{formats.HUB_ORGANISATION}/{backbone.name}{ENDINGS[folder]}", folder


def card_data(state: AppState, repository: Repository) -> dict[str, Any] | None:
    """The front matter of a repository's card; None without a card that has one."""
    path = repository.files.get(names.BACKBONE_CARD)
    if path is None or repository.sizes[path] > LARGEST_CARD:
        return None
    key = repository.content.commit, path
    if key not in CARDS:
        if len(CARDS) >= CARDS_KEPT:
            CARDS.clear()
        data = state.artifacts.read(repository.version.folder, path) or b""
        CARDS[key] = front_matter(data.decode(errors="replace"))
    return CARDS[key] or None


def front_matter(text: str) -> dict[str, Any]:
    """The YAML at the beginning of a card; empty if there is none, or it is invalid or has aliases.

    An alias can repeat a value endlessly.
    """
    found = FRONT_MATTER.match(text)
    if not found:
        return {}
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(found[1], yaml.SafeLoader)):
            return {}
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError):  # of a date that does not exist
        return {}
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def history(backbone: Backbone, version: Served) -> list[Served]:
    """The versions up to one of them, newest first, without those that are gone."""
    return [each for each in reversed(backbone.versions) if not each.gone and each.number <= version.number]


def title_of(version: Served) -> str:
    """The version as the title of a commit."""
    return f"Version {version.number} of {version.name}"


def moment(time: datetime) -> str:
    """A time as the hub writes it."""
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"
