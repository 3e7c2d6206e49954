"""What the searches' routes take and give. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from service.http.schemas import Body, Page, View
from service.jobs.schemas import State, TrialCounts
from trainer.spec.export import BackboneName


class TrialState(StrEnum):
    """Where a trial is in its life."""

    WAITING = "waiting"
    """Somebody chose its values, and no place has been free for it."""
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    """Ended early: by the scheduler, or because somebody stopped it; its last value is kept."""
    FAILED = "failed"
    """By an error of its own, or because its values are no spec: `reason` says."""

    @property
    def ended(self) -> bool:
        return self in {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED}


PlotName = Literal["history", "curves", "parallel", "importance", "slice", "contour", "timeline", "pareto"]


class BudgetView(View):
    trials: int
    """In all, without repeats and failed ones tried again; of a grid no more than its combinations."""
    concurrency: int
    """Trials at a time that fit on the cluster: what is asked for, or less."""
    concurrency_wanted: int
    """What is asked for."""
    max_failed: int
    max_hours: float | None


class TrialView(View):
    """One trial of a search."""

    number: int
    """From 0, in the order in which they were made."""
    state: TrialState
    reason: str | None
    """Typed cause of its end; null where it simply finished."""
    message: str
    """The same for people."""
    values: list[float] | None
    """One for each objective: of its last evaluation, also where it was pruned; null before there was one."""
    params: dict[str, JsonValue]
    """By path in the base spec."""
    epoch: float | None
    """Epochs it had at its last evaluation."""
    best: bool
    """Whether no other is better; of several objectives, whether none beats it in all of them."""
    repeat_of: int | None
    """The trial whose values it has, with another seed."""
    retry_of: int | None
    """The failed trial whose values it has."""
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: float | None
    run_id: str | None
    """Its MLflow run, below the search's."""
    promoted: list[str] = Field(default_factory=list)
    """Jobs that it was promoted to."""


class TrialPage(Page[TrialView]):
    """Trials in the order asked for."""


class Intermediate(View):
    epoch: float
    value: float


class Difference(View):
    value: JsonValue
    """This trial's; null where the parameter does not apply to it."""
    best: JsonValue
    """The best trial's."""


class TrialDetail(TrialView):
    """One trial with all that is known of it."""

    intermediate: list[Intermediate]
    """The first objective at each evaluation."""
    metrics: dict[str, float]
    """All that its last evaluation measured."""
    difference: dict[str, Difference]
    """Parameters whose value is another than the best trial's."""
    attempts: list[int]
    """Numbers of its starts, each with logs of its own."""
    spec: dict[str, Any]
    """What it trains, as far as the search settles it; empty where its values are no spec."""


class RepeatView(View):
    """One of the best trials, with its repeats."""

    number: int
    params: dict[str, JsonValue]
    values: list[float]
    """The trial's own and each finished repeat's."""
    mean: float
    low: float | None
    """Of the interval that holds the true mean with 95 % probability (Student's t); null for fewer than two values."""
    high: float | None


class SearchView(View):
    """A search: what it seeks, how far it is, and what is best so far."""

    id: str
    """The job's."""
    name: str
    state: State
    reason: str | None
    message: str
    owner: str
    objectives: list[dict[str, str]]
    """`metric` and `mode` of each."""
    algorithm: str
    scheduler: str
    space: dict[str, dict[str, JsonValue]]
    budget: BudgetView
    trials: TrialCounts
    draining: bool
    """Whether it was told to start no other trial."""
    best: list[TrialView]
    """The best trial; of several objectives all that no other beats; none before one has a value."""
    repeats: list[RepeatView]
    """The best trials with their repeats, by their mean; none where no repeats were asked for."""
    grid_size: int | None
    """Combinations of the space; null where they cannot be counted."""
    elapsed_s: float
    """Seconds in which its attempts have run."""
    eta_s: float | None
    """Seconds to the end of its budget at its pace so far; null before a trial has ended, and while it does not run."""
    gpu_hours: float
    promoted: dict[str, list[str]]
    """Jobs that its trials were promoted to, by the trial's number."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class SearchPatch(Body):
    """What may be changed about a search, also while it runs; what is left out stays.

    More trials than before let a search that has succeeded go on, and so do more hours where those had run out.
    """

    trials: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    concurrency: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    max_failed: Annotated[StrictInt, Field(ge=0, le=10_000)] | None = None
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Null, where it is given, is no limit."""

    @model_validator(mode="after")
    def _something_given(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing_given", "give trials, concurrency, max_failed or max_hours")
        for name in self.model_fields_set - {"max_hours"}:
            if getattr(self, name) is None:
                raise PydanticCustomError("nothing_given", f"give {name} a value, or leave it out")
        return self


class PointsBody(Body):
    """Trials that somebody wants to see tried."""

    points: list[dict[str, JsonValue]] = Field(min_length=1, max_length=1000)
    """Values by path; what one leaves out the algorithm chooses."""
    beyond_budget: StrictBool = False
    """Raise the budget's number of trials by as many."""


class PromoteBody(Body):
    """What a trial becomes; without any, the trial's spec as it is."""

    overrides: dict[str, JsonValue] = Field({}, examples=[{"optimization.epochs": 400}])
    """Other values than the trial's, by their path in the spec."""
    register_as: BackboneName | None = None
    """Name under which the job's backbone is registered; null is what the base says."""


class PlotView(View):
    """A figure for plotly.js."""

    name: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    trials: int
    """Ended ones that it shows."""
    note: str | None = None
    """What was left out to keep it small, or why it is empty."""
