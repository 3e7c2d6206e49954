"""Routes of searches."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.context.app_state import MayControlJobs, MayPromote, MayReadJobs, StateDep
from service.http.routing import ApiRoute
from service.http.schemas import Page
from service.jobs.logs import LogFilter
from service.jobs.output_schemas import LAST_ATTEMPT, ImageView, LogPage, MetricsView
from service.jobs.routes import LogLevel, LogLimit, LogSearch, LogTail
from service.jobs.schemas import JobView
from service.searches import reading, service
from service.searches.plots import Plots
from service.searches.schemas import (
    PlotName,
    PlotView,
    PointsBody,
    PromoteBody,
    SearchPatch,
    SearchView,
    TrialDetail,
    TrialPage,
    TrialState,
    TrialView,
)

router = APIRouter(prefix="/v1/searches", tags=["searches"], route_class=ApiRoute)

LAST_TRIAL = 1_000_000
"""Upper bound for the number of a trial."""
Number = Annotated[int, Path(ge=0, le=LAST_TRIAL, description="number of the trial")]
Limit = Annotated[int, Query(ge=1, le=500)]
SORTS = r"^-?(number|value|epoch|duration|started|param:[a-z0-9_.]{1,200})$"


async def _plots(request: Request) -> Plots:
    """Declared async so that FastAPI does not run it on a thread."""
    found: Plots = request.app.state.plots
    return found


PlotsDep = Annotated[Plots, Depends(_plots)]


@router.get("/{search_id}")
def show(search_id: str, app_state: StateDep, caller: MayReadJobs) -> SearchView:
    """One search: its objectives, its progress and its best trials so far."""
    return reading.show(app_state, caller, search_id)


@router.patch("/{search_id}")
def patch(search_id: str, body: SearchPatch, app_state: StateDep, caller: MayControlJobs) -> SearchView:
    """Change a search's budget, also while it runs; fields that are left out keep their values. A search that has
    succeeded continues with more trials, or with more hours where those had run out."""
    return service.patch(app_state, caller, search_id, body)


@router.get("/{search_id}/trials")
def trials(
    search_id: str,
    app_state: StateDep,
    caller: MayReadJobs,
    state: Annotated[list[TrialState] | None, Query(description="repeatable; trials in any of these states")] = None,
    sort: Annotated[
        str,
        Query(
            pattern=SORTS,
            description="`number`, `value` (of the first objective), `epoch`, `duration` (of those that have ended), "
            "`started` or `param:<path>`; with a `-` prefix in descending order; trials without a value come last",
        ),
    ] = reading.NEWEST_FIRST,
    limit: Limit = 50,
    cursor: str | None = None,
) -> TrialPage:
    """Trials, including repeats; the newest first by default."""
    return reading.listing(app_state, caller, search_id, state or (), sort, limit, cursor)


@router.post("/{search_id}/trials", status_code=201)
def add_trials(
    search_id: str,
    body: PointsBody,
    app_state: StateDep,
    caller: MayControlJobs,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=200, min_length=1)] = None,
) -> TrialPage:
    """Add trials with chosen points, to run before those that the algorithm chooses; returns the trials. A repeated
    request with the same `Idempotency-Key` and body adds nothing: it returns 200 and these trials as they are now."""
    page, new = service.add_points(app_state, caller, search_id, body, idempotency_key)
    response.status_code = 201 if new else 200
    return page


@router.get("/{search_id}/trials.csv", response_class=StreamingResponse)
def table(search_id: str, app_state: StateDep, caller: MayReadJobs) -> StreamingResponse:
    """All trials as CSV, by number, one in each line."""
    headers = {"Content-Disposition": f'attachment; filename="{search_id}-trials.csv"'}
    return StreamingResponse(reading.table(app_state, caller, search_id), media_type="text/csv", headers=headers)


@router.get("/{search_id}/trials/{number}")
def trial(search_id: str, number: Number, app_state: StateDep, caller: MayReadJobs) -> TrialDetail:
    """One trial with everything that is known of it."""
    return reading.detail(app_state, caller, search_id, number)


@router.post("/{search_id}/trials/{number}/stop")
def stop_trial(search_id: str, number: Number, app_state: StateDep, caller: MayControlJobs) -> TrialView:
    """Stop a running trial at its next step: it is then pruned, and keeps its last value."""
    return service.stop_trial(app_state, caller, search_id, number)


@router.post("/{search_id}/trials/{number}/retry")
def retry_trial(search_id: str, number: Number, app_state: StateDep, caller: MayControlJobs) -> TrialView:
    """Retry a failed trial's values, beyond the budget; returns the new trial."""
    return service.retry_trial(app_state, caller, search_id, number)


@router.post("/{search_id}/trials/{number}/promote", status_code=201)
def promote(
    search_id: str,
    number: Number,
    app_state: StateDep,
    caller: MayPromote,
    response: Response,
    body: PromoteBody | None = None,
) -> JobView:
    """Submit a trial's spec, optionally with changes, as a pretraining job. A repeated promotion returns 200 and the
    same job."""
    job, new = service.promote(app_state, caller, search_id, number, body or PromoteBody())
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/{search_id}/trials/{number}/logs")
def logs(
    search_id: str,
    number: Number,
    app_state: StateDep,
    caller: MayReadJobs,
    attempt: Annotated[int | None, Query(ge=1, le=LAST_ATTEMPT, description="number of a start of the trial")] = None,
    source: Annotated[str | None, Query(description="rank-<n>")] = None,
    level: LogLevel = None,
    search: LogSearch = None,
    tail: LogTail = None,
    limit: LogLimit = 500,
    cursor: str | None = None,
) -> LogPage:
    """A trial's log lines, paged like those of `list_job_logs`."""
    log_filter = LogFilter(source, level, search, attempt)
    return reading.logs(app_state, caller, search_id, number, log_filter, cursor, limit, tail)


@router.get("/{search_id}/trials/{number}/metrics")
def metrics(
    search_id: str,
    number: Number,
    app_state: StateDep,
    caller: MayReadJobs,
    key: Annotated[list[str] | None, Query(description="metric key, repeatable; all by default")] = None,
    points: Annotated[int, Query(ge=1, le=10_000, description="points of each curve, at most")] = 1000,
) -> MetricsView:
    """A trial's metric curves by optimiser step, each of at most `points` points."""
    return reading.curves(app_state, caller, search_id, number, key or (), points)


@router.get("/{search_id}/trials/{number}/images")
def images(search_id: str, number: Number, app_state: StateDep, caller: MayReadJobs) -> Page[ImageView]:
    """A trial's images of reconstructions, by step."""
    return reading.images(app_state, caller, search_id, number)


@router.get("/{search_id}/trials/{number}/images/{name}", response_class=Response)
def image(search_id: str, number: Number, name: str, app_state: StateDep, caller: MayReadJobs) -> Response:
    """One image, as PNG."""
    return Response(reading.image(app_state, caller, search_id, number, name), media_type="image/png")


@router.get("/{search_id}/plots/{name}", response_model=PlotView)
def plot(
    search_id: str,
    name: PlotName,
    app_state: StateDep,
    caller: MayReadJobs,
    plots: PlotsDep,
    param: Annotated[list[str] | None, Query(max_length=50, description="path in the space; repeatable")] = None,
) -> Response:
    """A figure of the present trials, for plotly.js. `contour` needs two parameters."""
    job_id, spec = reading.spec_of(app_state, caller, search_id)
    figure = plots.figure(job_id, spec, name, tuple(param or ()))
    # Serialised here, on this thread, as the view is shared and large.
    return Response(figure.model_dump_json(), media_type="application/json")
