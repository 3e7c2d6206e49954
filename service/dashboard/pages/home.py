"""The home page: running and waiting jobs, recent failures and successes, and the newest backbones."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Final

from fastapi import APIRouter, Response

from service.backbones import service as backbones
from service.backbones.filters import Filters as BackboneFilters
from service.backbones.sorting import BY_TIME
from service.cluster import service as cluster
from service.dashboard.site import JobsPage, Page, PageRoute
from service.db.tables import now
from service.jobs import reading
from service.jobs.listing import Filters
from service.jobs.schemas import JobView
from service.jobs.state import ACTIVE, State

router = APIRouter(include_in_schema=False, route_class=PageRoute)

SEEN_COOKIE: Final = "rcmae_looked"
"""The cookie with the time when failures were last marked as seen."""
FIRST_VISIT: Final = timedelta(days=7)
"""Age of the oldest failures that are shown if there is no such cookie."""
SHOWN: Final = 20
BACKBONES: Final = 6


def _jobs(page: Page, *states: State, limit: int = SHOWN, after: datetime | None = None) -> list[JobView]:
    filters = Filters(state=states, visible_to=page.caller, created_after=after)
    return reading.listing(page.state, filters, limit, None).items


def _failures_seen_at(page: Page) -> datetime:
    """When failures were last marked as seen; a week ago if never."""
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(page.request.cookies.get(SEEN_COOKIE, ""))
        if moment.tzinfo:
            return moment
    return now() - FIRST_VISIT


@router.get("/")
def home(page: JobsPage) -> Response:
    """An overview of everything."""
    cluster_view, trouble = page.attempt(lambda: cluster.show(page.state, page.caller))
    seen_at = _failures_seen_at(page)
    failed = [job for job in _jobs(page, State.FAILED, limit=100) if job.ended_at and job.ended_at > seen_at]
    newest_first = f"-{BY_TIME}"
    newest, registry_trouble = page.attempt(
        lambda: backbones.listing(page.state, page.caller, BackboneFilters(), newest_first, BACKBONES, None).items
    )
    return page.render(
        "home.html",
        running=_jobs(page, *ACTIVE),
        waiting=_jobs(page, State.QUEUED, State.PAUSED),
        failed=failed,
        seen_at=seen_at,
        done=_jobs(page, State.SUCCEEDED, limit=8),
        backbones=newest,
        registry_trouble=registry_trouble,
        cluster=cluster_view,
        trouble=trouble,
    )
