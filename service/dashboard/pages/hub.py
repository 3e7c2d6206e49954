"""Where browsers go that follow the address of a repository of the hub: to the backbone's page."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from service.backbones.hub import repositories
from service.backbones.hub.routes import PREFIX
from service.backbones.schemas import MAIN
from service.dashboard.site import BackbonesPage, PageRoute
from trainer.spec.formats import HUB_ORGANISATION

router = APIRouter(prefix=f"{PREFIX}/{HUB_ORGANISATION}", include_in_schema=False, route_class=PageRoute)

FOUND: Final = 302


@router.get("/{repo}", status_code=FOUND)
@router.get("/{repo}/tree/{revision}", status_code=FOUND)
@router.get("/{repo}/tree/{revision}/{path:path}", status_code=FOUND)
@router.get("/{repo}/blob/{revision}/{path:path}", status_code=FOUND)
def repository(page: BackbonesPage, repo: str, revision: str = MAIN, path: str = "") -> RedirectResponse:
    """The page of the version that a repository's address names."""
    del path  # the page shows all files
    backbone, _ = repositories.named(page.state, page.caller, HUB_ORGANISATION, repo)
    query = "" if revision == MAIN else f"?{urlencode({'version': revision})}"
    return RedirectResponse(f"/backbones/{quote(backbone.name)}{query}", FOUND)
