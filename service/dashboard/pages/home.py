"""The first page: what runs, what waits and why, what failed since one last looked, and the best results."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Final

from fastapi import APIRouter, Response

from service.backbones import service as backbones
from service.cluster import service as cluster
from service.dashboard.site import Page, PageDep, PageRoute
from service.db.tables import now
from service.jobs import reading
from service.jobs.repository import ACTIVE, Filters
from service.jobs.schemas import JobView, State

router = APIRouter(include_in_schema=False, route_class=PageRoute)

LOOKED: Final = "rcmae_looked"
"""The cookie that says when failures were last called seen."""
FIRST_LOOK: Final = timedelta(days=7)
SHOWN: Final = 20
BEST: Final = 6


def _jobs(page: Page, *states: State, limit: int = SHOWN, after: datetime | None = None) -> list[JobView]:
    filters = Filters(state=states, visible_to=page.caller, created_after=after)
    return reading.listing(page.parts, filters, limit, None).items


def _looked(page: Page) -> datetime:
    """When failures were called seen; a week ago where that was never."""
    with contextlib.suppress(ValueError):
        found = datetime.fromisoformat(page.request.cookies.get(LOOKED, ""))
        if found.tzinfo:
            return found
    return now() - FIRST_LOOK


@router.get("/")
def home(page: PageDep) -> Response:
    """How things are."""
    shape, trouble = page.attempt(lambda: cluster.show(page.parts, page.caller))
    looked = _looked(page)
    failed = [job for job in _jobs(page, State.FAILED, limit=100) if job.ended_at and job.ended_at > looked]
    newest = f"-{backbones.BY_TIME}"
    best, registry = page.attempt(lambda: backbones.listing(page.parts, backbones.Filters(), newest, BEST, None).items)
    return page.render(
        "home.html",
        running=_jobs(page, *ACTIVE),
        waiting=_jobs(page, State.QUEUED, State.PAUSED),
        failed=failed,
        looked=looked,
        done=_jobs(page, State.SUCCEEDED, limit=8),
        backbones=best,
        registry=registry,
        cluster=shape,
        trouble=trouble,
    )
