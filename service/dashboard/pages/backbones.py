"""Pages of backbones: the list, and one backbone with its card, files, aliases and lineage."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from fastapi import APIRouter, Query, Response

from service.adapters.storage import OutsideRoot
from service.auth.scopes import Scope
from service.backbones import registry, retention, service, space
from service.backbones.filters import Filters
from service.backbones.schemas import CHAMPION, LARGEST, MAIN, BackboneView, VersionView
from service.backbones.sorting import KEYS
from service.dashboard import card
from service.dashboard.evaluation import WEIGHTS
from service.dashboard.pages import approval
from service.dashboard.site import BackboneDeletionPage, BackbonesPage, Page, PageRoute
from service.dashboard.snippets import snippets
from service.http.problems import ApiProblem, not_found
from trainer.protocol import names
from trainer.spec.export import BackboneFormat
from trainer.spec.subject import reference

router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50
COLUMNS: Final = 8
"""Largest number of result columns in the list."""
LARGEST_CARD: Final = 2**20
"""Largest model card that a page shows, in bytes."""
SORTS: Final = f"^({KEYS})?$"
Form = BackboneFormat | Literal[""]
Texts = Annotated[list[str] | None, Query(max_length=32)]


# --- the list ---------------------------------------------------------------------------------------------------------


@router.get("/backbones")
def listing(
    page: BackbonesPage,
    name_contains: str | None = None,
    type: Literal["backbone", "classifier", ""] | None = None,  # noqa: A002 - its name in the API
    method: str | None = None,
    dataset: str | None = None,
    alias: str | None = None,
    format: Form | None = None,  # noqa: A002 - its name in the API
    job: str | None = None,
    owner: str | None = None,
    search: Annotated[str | None, Query(max_length=200)] = None,
    label: Texts = None,
    filter: Texts = None,  # noqa: A002 - its name in the API
    sort: Annotated[str | None, Query(pattern=SORTS)] = None,
    cursor: str | None = None,
) -> Response:
    """All backbones, sorted by name, by time or by a result. A filter that cannot be used is told beside the others."""
    texts = {
        "name_contains": name_contains,
        "type": type,
        "job": job,
        "dataset": dataset,
        "method": method,
        "export_format": format,
    }
    texts |= {"alias": alias, "owner": owner, "search": search}
    labels, metrics = ([text for text in given or () if text.strip()] for given in (label, filter))
    found, trouble, wrong = None, None, None
    try:
        filters = Filters.of(**{name: text or None for name, text in texts.items()}, label=labels, metrics=metrics)
        found, trouble = page.attempt(
            lambda: service.listing(page.state, page.caller, filters, sort or None, PAGE, cursor)
        )
    except ApiProblem as problem:
        if {each.field for each in problem.problems}.isdisjoint({"label", "filter"}):
            raise
        wrong = problem.detail
    return page.render(
        "backbones/list.html",
        found=found,
        trouble=trouble,
        wrong=wrong,
        labels=labels,
        metrics=metrics,
        sort=sort or "",
        results=_results(found.items, sort) if found else [],
        formats=get_args(BackboneFormat),
        filtered=any([*texts.values(), labels, metrics]),
        space=space.by_owner(page.state, page.caller) if found and page.caller.has(Scope.OWN_BACKBONES) else [],
    )


def _results(items: list[BackboneView], sort: str | None) -> list[str]:
    """The metric keys that the list shows: the one it is sorted by, then the most frequent ones."""
    counts: dict[str, int] = {}
    for item in items:
        for key in item.metrics:
            counts[key] = counts.get(key, 0) + 1
    sorted_by = (sort or "").removeprefix("-")
    return sorted(counts, key=lambda key: (key != sorted_by, -counts[key], key))[:COLUMNS]


# --- one --------------------------------------------------------------------------------------------------------------


@router.get("/backbones/{name}")
def one(page: BackbonesPage, name: str, version: str | None = None) -> Response:
    """One version, by default the main one, with its backbone's aliases and versions."""
    found = registry.backbone(page.state, page.caller, name)
    served = registry.meant_by(page.state, found, version or MAIN)
    if served is None:
        raise not_found("version", f"{name}:{version}")
    backbone, shown = service.detail(page.state, page.caller, found), service.describe(page.state, served)
    rendered, no_card = (None, "") if served.gone else _card(page, shown, served.folder)
    owner = found.row.owner
    controlled = {each.number for each in found.versions if page.caller.may(Scope.BACKBONES, each.row.owner, owner)}
    main = shown.version == backbone.main_version
    server = str(page.request.base_url).rstrip("/")
    return page.render(
        "backbones/one.html",
        backbone=backbone,
        version=shown,
        main=main,
        card=rendered,
        no_card=no_card,
        snippets=list(snippets(shown, main, server, rendered.code if rendered else {})),
        champion=CHAMPION,
        longest=names.DESCRIPTION_LENGTH,
        gone=registry.gone_text(served) if served.gone else None,
        controlled=controlled,
        settable=[number for number in reversed(backbone.versions) if number in controlled],
        edits=page.caller.may(Scope.BACKBONES, owner),
        dataset_uri=served.row.dataset_uri,
        origin_link=shown.origin_url if (shown.origin_url or "").startswith("https://") else None,
        base_link=_base_link(shown.fine_tuned_from),
        moves=_move_texts(backbone),
        users=service.users(page.state, page.caller, name, str(shown.version)) if shown.version in controlled else [],
        retention=retention.show(page.state, page.caller, name),
        approval=approval.context(page, found),
        weights=WEIGHTS,
    )


def _base_link(fine_tuned_from: str | None) -> str | None:
    """The page of the version that a classifier was fine-tuned from, if that is registered."""
    try:
        named = reference(fine_tuned_from or "")
    except ValueError:  # weights that are not registered have a title
        return None
    return f"/backbones/{named.name}?version={named.version}" if named.version else None


def _card(page: Page, version: VersionView, folder: str) -> tuple[card.Card | None, str]:
    """The version's card, or the reason why none is shown."""
    size = next((each.size for each in version.files if each.path == names.BACKBONE_CARD), None)
    if size is None:
        return None, "This version has no model card."
    if size > LARGEST_CARD:
        return None, "The model card is too long to show here. You find it among the files."
    try:
        data = page.state.artifacts.read(folder, names.BACKBONE_CARD)
    except OutsideRoot:
        data = None
    if data is None:
        return None, "The model card cannot be read."
    return card.render(data.decode(errors="replace"), {each.path: each.url for each in version.files}), ""


def _move_texts(backbone: BackboneView) -> dict[str, str]:
    """The question to confirm before an alias is moved, by alias."""
    return {alias: _move_text(backbone, alias, number) for alias, number in backbone.aliases.items()}


def _move_text(backbone: BackboneView, alias: str, number: int) -> str:
    text = f"{backbone.name}@{alias} points at version {number} now, and will point at the one you chose."
    if alias == CHAMPION:
        text += " That version is then also loaded by default."
    return text


@router.get("/backbones/{name}/delete")
def delete(page: BackboneDeletionPage, name: str, version: Annotated[int, Query(ge=1, le=LARGEST)]) -> Response:
    """What the deletion of a version removes, to confirm."""
    deletion = service.deletion(page.state, page.caller, name, version)
    last = [each.version for each in service.show(page.state, page.caller, name).details] == [version]
    context: dict[str, Any] = {"deletion": deletion, "last": last}
    return page.render("backbones/delete.html", **context)
