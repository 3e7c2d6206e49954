"""Routes of evaluations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.context.app_state import MayReadEvaluations, StateDep
from service.evaluations import service
from service.evaluations.listing import SORT, Filters
from service.evaluations.schemas import EvaluationDetailView, EvaluationSummaryView, EvaluationTableView
from service.http.routing import ApiRoute
from service.http.schemas import Moment, Page

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"], route_class=ApiRoute)

Limit = Annotated[int, Query(ge=1, le=500)]
Backbone = Annotated[
    str | None, Query(max_length=600, description="the registered backbone: `name`, `name:3` or `name@champion`")
]
TrainedBy = Annotated[str | None, Query(description="the job that trained what was measured")]
Dataset = Annotated[
    str | None, Query(max_length=2000, description="URI, title or fingerprint of the images for training")
]
TestSet = Annotated[
    str | None, Query(max_length=2000, description="URI, title or fingerprint of the images for the test")
]
Protocols = Annotated[
    list[str] | None, Query(max_length=20, description="such as `linear`; with several, any of them will do")
]
Owner = Annotated[str | None, Query(description="the owner of the evaluation's job")]
Labels = Annotated[
    list[str] | None, Query(max_length=32, description="name:value; the evaluation's job has to have all of them")
]


async def _filters(
    backbone: Backbone = None,
    job: TrainedBy = None,
    dataset: Dataset = None,
    test: TestSet = None,
    protocol: Protocols = None,
    owner: Owner = None,
    label: Labels = None,
    created_after: Moment | None = None,
) -> Filters:
    """Declared async so that FastAPI does not run it on a thread."""
    return Filters(backbone, job, dataset, test, protocol or (), owner, label or (), created_after)


FiltersDep = Annotated[Filters, Depends(_filters)]


@router.get("")
def listing(
    state: StateDep,
    caller: MayReadEvaluations,
    filters: FiltersDep,
    sort: Annotated[
        str | None,
        Query(
            pattern=f"^{SORT}$",
            description="`created_at`, `finished_at`, or a score such as `eval/linear_top1`; a leading `-` sorts the "
            "greatest first. Evaluations without the score come last. By default the newest are first",
        ),
    ] = None,
    limit: Limit = 50,
    cursor: str | None = None,
) -> Page[EvaluationSummaryView]:
    """Evaluations that have succeeded, with their scores."""
    return service.page(state, caller, filters, sort, limit, cursor)


@router.get("/table")
def table(
    state: StateDep,
    caller: MayReadEvaluations,
    filters: FiltersDep,
) -> EvaluationTableView:
    """Backbones against measurements: in each cell the newest score, its interval and the baselines beside it.

    A column has scores that can be compared: of one metric, with the same images for training and test. `best` marks
    the highest score of a column only where its interval lies above those of all others.
    """
    return service.show_table(state, caller, filters)


@router.get("/{job_id}")
def show(job_id: str, state: StateDep, caller: MayReadEvaluations) -> EvaluationDetailView:
    """Everything that an evaluation has found, with links to its pictures and tables."""
    return service.show(state, caller, job_id)
