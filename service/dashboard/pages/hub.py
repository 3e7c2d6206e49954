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

router = APIRouter(prefix=PREFIX, include_in_schema=False, route_class=PageRoute)

FOUND: Final = 302


@router.get("/{org}/{repo}")
@router.get("/{org}/{repo}/tree/{revision}")
@router.get("/{org}/{repo}/tree/{revision}/{path:path}")
@router.get("/{org}/{repo}/blob/{revision}/{path:path}")
def repository(page: BackbonesPage, org: str, repo: str, revision: str = MAIN, path: str = "") -> RedirectResponse:
    """The page of the version that a repository's address names."""
    del path  # the page shows all files
    backbone, _ = repositories.named(page.state, org, repo)
    query = "" if revision == MAIN else f"?{urlencode({'version': revision})}"
    return RedirectResponse(f"/backbones/{quote(backbone.name)}{query}", FOUND)
