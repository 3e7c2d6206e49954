"""Backbones: the list, and one with its card, files, aliases and lineage."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

from fastapi import APIRouter, Query, Response

from service.adapters.storage import OutsideRoot
from service.backbones import registry, service
from service.backbones.schemas import CHAMPION, LARGEST, MAIN, BackboneView, VersionView
from service.dashboard import card, loading
from service.dashboard.site import Page, PageDep, PageRoute
from service.http.problems import not_found
from trainer.protocol import names
from trainer.spec.export import BackboneFormat

router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50
COLUMNS: Final = 8
"""Results that the list has room for."""
LARGEST_CARD: Final = 2**20
"""Bytes of a card that a page shows."""
SORTS: Final = r"^(-?(updated_at|[a-z]+/[A-Za-z0-9_./-]{1,200}))?$"
Form = BackboneFormat | Literal[""]


# --- the list ---------------------------------------------------------------------------------------------------------


@router.get("/backbones")
def listing(
    page: PageDep,
    name_contains: str | None = None,
    method: str | None = None,
    dataset: str | None = None,
    alias: str | None = None,
    format: Form | None = None,  # noqa: A002 - its name in the API
    job: str | None = None,
    sort: Annotated[str | None, Query(pattern=SORTS)] = None,
    cursor: str | None = None,
) -> Response:
    """All backbones, by name, by time or by a result."""
    given = (name_contains, job, dataset, method, None, format, alias)
    filters = service.Filters(*(value or None for value in given))
    found, trouble = page.attempt(lambda: service.listing(page.parts, filters, sort or None, PAGE, cursor))
    return page.render(
        "backbones/list.html",
        found=found,
        trouble=trouble,
        sort=sort or "",
        results=_results(found.items, sort) if found else [],
        formats=get_args(BackboneFormat),
        filtered=any(given),
    )


def _results(items: list[BackboneView], sort: str | None) -> list[str]:
    """The metric keys that the list shows: what it is sorted by, and then what most have."""
    counts: dict[str, int] = {}
    for item in items:
        for key in item.metrics:
            counts[key] = counts.get(key, 0) + 1
    sorted_by = (sort or "").removeprefix("-")
    return sorted(counts, key=lambda key: (key != sorted_by, -counts[key], key))[:COLUMNS]


# --- one --------------------------------------------------------------------------------------------------------------


@router.get("/backbones/{name}")
def one(page: PageDep, name: str, version: str | None = None) -> Response:
    """One version, by default the main one, and all that its backbone has."""
    backbone = service.show(page.parts, name)
    shown = service.show_version(page.parts, name, version or MAIN)
    held = {each.number: each for each in registry.served(page.parts, name)}
    if shown.version not in held:  # it was deleted meanwhile
        raise not_found("version", f"{name}:{shown.version}")
    rendered, why = _card(page, shown, held[shown.version].folder)
    main = shown.version == backbone.main_version
    server = str(page.request.base_url).rstrip("/")
    return page.render(
        "backbones/one.html",
        backbone=backbone,
        version=shown,
        main=main,
        card=rendered,
        no_card=why,
        ways=list(loading.ways(shown, main, server, rendered.code if rendered else {})),
        champion=CHAMPION,
        controlled={number for number, each in held.items() if page.controls(each.owner)},
        held=held[shown.version],
        moves=_moves(backbone),
    )


def _card(page: Page, version: VersionView, folder: str) -> tuple[card.Card | None, str]:
    """The version's card, or why there is none to show."""
    size = next((each.size for each in version.files if each.path == names.BACKBONE_CARD), None)
    if size is None:
        return None, "This version has no model card."
    if size > LARGEST_CARD:
        return None, "The model card is too long to be shown here: it is among the files."
    try:
        data = page.parts.artifacts.read(folder, names.BACKBONE_CARD)
    except OutsideRoot:
        data = None
    if data is None:
        return None, "The model card cannot be read."
    return card.render(data.decode(errors="replace"), {each.path: each.url for each in version.files}), ""


def _moves(backbone: BackboneView) -> dict[str, str]:
    """What is asked before an alias that stands for a version stands for another."""
    return {alias: _leaves(backbone, alias, number) for alias, number in backbone.aliases.items()}


def _leaves(backbone: BackboneView, alias: str, number: int) -> str:
    text = f"{backbone.name}@{alias} stands for version {number} now, and would stand for the one you chose."
    if alias == CHAMPION:
        text += " That is also what is loaded from then on where no version is named."
    return text


@router.get("/backbones/{name}/delete")
def delete(page: PageDep, name: str, version: Annotated[int, Query(ge=1, le=LARGEST)]) -> Response:
    """What would go with a version, before it goes."""
    going = service.deletion(page.parts, page.caller, name, version)
    context: dict[str, Any] = {"going": going, "last": service.show(page.parts, name).versions == [version]}
    return page.render("backbones/delete.html", **context)
