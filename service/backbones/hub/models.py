"""Repositories as models: one, and lists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from sqlalchemy import or_

from service.auth.caller import Caller
from service.backbones import registry, use
from service.backbones.hub import repositories
from service.backbones.hub.repositories import Repository, moment
from service.backbones.hub.trees import siblings
from service.backbones.hub.views import HubModelView
from service.backbones.registry import Backbone, Served
from service.context.app_state import AppState
from service.db.tables import BackboneVersion
from service.http.paging import bad_cursor, read_cursor, read_value, write_cursor
from service.jobs import visibility
from trainer.protocol import names
from trainer.spec import formats

ALWAYS: Final = frozenset({"object_id", "id", "modelId"})
"""Fields that no selection leaves out."""
NEED_FILES: Final = frozenset({"sha", "cardData", "siblings", "usedStorage"})
"""Fields for which the storage is read."""
LISTED: Final = frozenset({
    "createdAt", "private", "gated", "downloads", "likes", "tags", "pipeline_tag", "library_name", "author",
    "lastModified",
})  # fmt: skip
"""Fields of a list's entries for which nobody has to ask."""
FULL: Final = LISTED | {"sha", "siblings", "disabled"}
"""The same for `full`."""
ON_REQUEST: Final = frozenset({"downloadsAllTime"})
"""Fields that only `expand` gives."""
RECENT_DAYS: Final = 30
"""The days whose downloads the hub shows."""


@dataclass(frozen=True)
class Model:
    """A repository at a version, by what the version's row says."""

    id: str
    folder: str
    backbone: Backbone
    version: Served
    downloads: int = 0
    """Of its format, in all versions, in the last days."""

    @property
    def key(self) -> tuple[str, str]:
        """What its downloads are counted by."""
        return self.backbone.name, self.folder

    @property
    def library(self) -> str:
        return formats.LIBRARIES[self.folder]

    @property
    def task(self) -> str:
        """What it does, by the hub's name."""
        return formats.CLASSIFIER_TAG if self.version.type == "classifier" else formats.PIPELINE_TAG

    @property
    def tags(self) -> list[str]:
        row = self.version.row
        known = (row.tags.get(names.TAG_METHOD), row.tags.get(names.TAG_NETWORK))
        found = [formats.HUB_ORGANISATION, self.library, self.task, "vit", *filter(None, known)]
        dataset = row.tags.get(names.TAG_DATASET_NAME)
        found += [f"dataset:{dataset}"] if dataset else []
        return [*found, f"v{self.version.number}"]


def describe(state: AppState, repository: Repository, expand: Collection[str]) -> HubModelView:
    """A repository; with ``expand`` only these fields of it."""
    name = repository.backbone.name
    recent, ever = _downloads(state, [name], RECENT_DAYS), _downloads(state, [name]) if ON_REQUEST & {*expand} else {}
    model = Model(repository.id, repository.folder, repository.backbone, repository.version)
    model = replace(model, downloads=recent.get(model.key, 0))
    view = _with_files(state, _view(model, ever), repository)
    return _selected(view, expand or set(HubModelView.model_fields) - ON_REQUEST)


def _downloads(
    state: AppState, backbones: Collection[str] | None = None, days: int | None = None
) -> Mapping[tuple[str, str], int]:
    with state.database.query() as session:
        return use.of_repositories(session, backbones, days)


def _view(model: Model, ever: Mapping[tuple[str, str], int]) -> HubModelView:
    """The fields that the rows give; ``ever`` has the downloads of all time, if they are asked for."""
    first = model.backbone.versions[0].row.created_at
    return HubModelView(
        object_id=hashlib.sha256(model.id.encode()).hexdigest()[:24],
        id=model.id,
        modelId=model.id,
        author=formats.HUB_ORGANISATION,
        createdAt=moment(first),
        lastModified=moment(model.version.row.created_at),
        private=True,
        gated=False,
        disabled=False,
        downloads=model.downloads,
        downloadsAllTime=ever.get(model.key, 0),
        likes=0,
        tags=model.tags,
        pipeline_tag=model.task,
        library_name=model.library,
    )


def _with_files(state: AppState, view: HubModelView, repository: Repository) -> HubModelView:
    """Add what the version's files say. The card's tags come after those of the row."""
    card = repositories.card_data(state, repository)
    update: dict[str, object] = {
        "sha": repository.content.commit,
        "siblings": siblings(repository),
        "usedStorage": sum(repository.sizes[path] for path in repository.files.values()),
        "cardData": card,
        "tags": _all_tags(view.tags or [], card or {}),
    }
    return view.model_copy(update=update)


def _all_tags(tags: Sequence[str], card: dict[str, object]) -> list[str]:
    given = card.get("tags")
    added = [str(tag) for tag in given] if isinstance(given, list) else []
    licence = [f"license:{card['license']}"] if card.get("license") else []
    return list(dict.fromkeys([*tags, *added, *licence]))


def _selected(view: HubModelView, fields: Collection[str]) -> HubModelView:
    return view.model_copy(update={name: None for name in HubModelView.model_fields if name not in ALWAYS | {*fields}})


# --- lists ------------------------------------------------------------------------------------------------------------

BY_NAME: Final = "id"
BY_DOWNLOADS: Final = "downloads"
SORTS: Final[dict[str, Callable[[Model], float]]] = {
    BY_NAME: lambda _: 0.0,
    "lastModified": lambda model: model.version.row.created_at.timestamp(),
    "createdAt": lambda model: model.backbone.versions[0].row.created_at.timestamp(),
    BY_DOWNLOADS: lambda model: model.downloads,
    "likes": lambda _: 0.0,
    "trendingScore": lambda _: 0.0,
}
"""The values by which a list can be sorted, and then by name. Nothing has likes or a trend, so these are equal."""
MOST_WITH_FILES: Final = 100
"""Most entries of a page for which the storage is read."""


@dataclass(frozen=True)
class Query:
    """What a list of models is asked for."""

    search: str = ""
    """A part of the repository's name, in upper or lower case."""
    author: str = ""
    tags: Sequence[str] = ()
    """All of them: tags, libraries and pipeline tags."""
    sort: str = BY_NAME
    ascending: bool = True
    fields: Collection[str] = LISTED

    def matches(self, model: Model) -> bool:
        missing = {tag.lower() for tag in self.tags} - {tag.lower() for tag in model.tags}
        by_author = self.author.lower() in {"", formats.HUB_ORGANISATION}
        return by_author and not missing and self.search.lower() in model.id.lower()


Key = tuple[float, str, int]
"""What a list is sorted by: the value, the backbone's name and the position of the format."""


def listing(
    state: AppState, caller: Caller, query: Query, limit: int, cursor: str | None
) -> tuple[list[HubModelView], str | None]:
    """One page of models and the next page's cursor. Each format of a backbone's main version is one.

    Raises the API's 422 for a cursor that is none.
    """
    limit = min(limit, MOST_WITH_FILES) if NEED_FILES & set(query.fields) else limit
    last = _read_key(cursor, query.sort) if cursor else None
    recent = _downloads(state, days=RECENT_DAYS) if query.sort == BY_DOWNLOADS else {}
    if query.sort == BY_NAME and query.ascending:  # they are read by name, so no more of them than the page needs
        pairs = _keyed(state, caller, query, last[1] if last else "", limit, recent)
        # The database's order of names need not be Python's: what is compared here is the last backbone's alone.
        following = (pair for pair in pairs if last is None or pair[0][1] != last[1] or pair[0][2] > last[2])
    else:
        found = _keyed(state, caller, query, "", registry.MOST_AT_ONCE, recent)
        ordered = sorted(found, key=lambda pair: pair[0], reverse=not query.ascending)
        following = (
            pair for pair in ordered if last is None or (pair[0] > last if query.ascending else pair[0] < last)
        )
    keyed = list(islice(following, limit + 1))
    more = write_cursor([query.sort, *keyed[limit - 1][0]]) if len(keyed) > limit else None
    page = [model for _, model in keyed[:limit]]
    shown = {model.backbone.name for model in page}
    recent = recent or _downloads(state, shown, RECENT_DAYS)
    ever = _downloads(state, shown) if ON_REQUEST & {*query.fields} else {}
    page = [replace(model, downloads=recent.get(model.key, 0)) for model in page]
    return [_entry(state, model, query.fields, ever) for model in page], more


def _keyed(
    state: AppState, caller: Caller, query: Query, since: str, at_first: int, recent: Mapping[tuple[str, str], int]
) -> Iterator[tuple[Key, Model]]:
    """The models that match, of the backbones from a name on, by backbone and format, with their keys."""
    taken = _names_with_endings(state, caller)
    for backbone in _backbones(state, caller, since, at_first):
        for position, (repo_id, folder) in enumerate(repositories.repositories_of(state, backbone)):
            model = Model(repo_id, folder, backbone, backbone.main, recent.get((backbone.name, folder), 0))
            repo = repo_id.partition("/")[2]
            means_it = repo == backbone.name or repo not in taken
            if means_it and query.matches(model):
                yield (SORTS[query.sort](model), backbone.name, position), model


def _backbones(state: AppState, caller: Caller, since: str, at_first: int) -> Iterator[Backbone]:
    if since and (found := registry.named(state, caller, since)):  # it may have more repositories
        yield found
    yield from registry.backbones(state, caller, "", since, at_first)


def _names_with_endings(state: AppState, caller: Caller) -> set[str]:
    """The backbones, older than an ending of a format, that have the name of another one's repository."""
    endings = tuple(formats.HUB_ENDINGS)
    ending = or_(*(BackboneVersion.name.endswith(each, autoescape=True) for each in endings))
    with state.database.read() as session:
        found = visibility.shown_backbones(session, caller, "", "", len(endings) * registry.MOST_AT_ONCE, [ending])
    return {name for name in found if name.endswith(endings)}  # SQLite's LIKE does not tell cases apart


def _entry(state: AppState, model: Model, fields: Collection[str], ever: Mapping[tuple[str, str], int]) -> HubModelView:
    view = _view(model, ever)
    if NEED_FILES & set(fields):
        repository = repositories.at(state, model.id, model.backbone, model.version, model.folder)
        view = _with_files(state, view, repository)
    return _selected(view, fields)


def _read_key(cursor: str, sort: str) -> Key:
    match read_cursor(cursor):
        case [cursor_sort, float(value) | int(value), str(name), int(position)] if cursor_sort == sort:
            if name.isascii() and name.isprintable():  # as all names are; a database takes no other text
                return read_value(value, cursor), name, position
    raise bad_cursor(cursor)
