"""Request and response models of the searches' routes. Pydantic only: the client imports this module."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, StrictBool, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from service.http.schemas import Body, Page, View
from service.jobs.schemas import TrialCounts
from service.jobs.state import State
from trainer.protocol.outcome import Reason
from trainer.spec.common import Hours
from trainer.spec.export import BackboneName


class TrialState(StrEnum):
    """The state of a trial."""

    WAITING = "waiting"
    """A request chose its values, and it has not started yet."""
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    """Ended early, and keeps its last value: by the scheduler, or by a request, whose `reason` is `stopped_by_user`."""
    FAILED = "failed"
    """Failed by an error, or because its values are invalid: see `reason`."""

    @property
    def ended(self) -> bool:
        return self in {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED}


PlotName = Literal["history", "curves", "parallel", "importance", "slice", "contour", "timeline", "pareto"]


class BudgetView(View):
    trials: int
    """Total number of trials, without repeats, retries and copies; no more than the space has points."""
    concurrency: int
    """Trials that run at a time: the requested number, or fewer where no more fit on the cluster."""
    concurrency_wanted: int
    """The requested number."""
    max_failed: int
    max_hours: float | None


class TrialProgress(View):
    """How far a running trial is."""

    epoch: float
    """Epochs completed, including the fraction of the current one; an evaluation has one."""
    epochs: int
    step: int
    """Optimiser steps completed; of an evaluation measurements."""
    steps: int | None
    """Those of the whole trial."""
    loss: float | None
    images_per_s: float | None
    """Throughput of training alone, since the last record."""
    eta_s: float | None
    """Seconds to its last epoch, at its average rate."""


class TrialView(View):
    """One trial of a search."""

    number: int
    """From 0, in the order of creation."""
    state: TrialState
    reason: str | None
    """Machine-readable cause of its end; null where it simply finished."""
    message: str
    """The cause in words."""
    values: list[float] | None
    """The objectives at its last evaluation, also where it was pruned; null before the first one."""
    params: dict[str, JsonValue]
    """Values by path in the base spec."""
    epoch: float | None
    """Epochs trained at its last evaluation; 1 for an evaluation that has ended."""
    progress: TrialProgress | None = None
    """How far it is, while it runs: null before it has trained some steps, and while MLflow is unreachable."""
    heartbeat_at: datetime | None = None
    """While it runs, the time of its last sign of life; null before the first one, and while MLflow is unreachable."""
    best: bool
    """Whether it is the best trial; with several objectives, whether it is on the Pareto front."""
    repeat_of: int | None
    """Number of the trial that it repeats with another seed."""
    retry_of: int | None
    """Number of the trial that it retries, which ended without a value."""
    copy_of: int | None = None
    """Number of the trial that has the same values of all parameters; it ended like that one, and did not train."""
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: float | None
    run_id: str | None
    """Its MLflow run, nested in the search's."""
    promoted: list[str] = Field(default_factory=list)
    """Ids of the jobs that it was promoted to."""

    @property
    def state_in_words(self) -> str:
        """Its state for people, which tells a trial that a user stopped from one that the scheduler stopped."""
        return "stopped by hand" if self.reason == Reason.STOPPED_BY_USER else self.state.value


class TrialPage(Page[TrialView]):
    """A page of trials in the requested order."""


class Intermediate(View):
    epoch: float
    value: float


class Difference(View):
    value: JsonValue
    """This trial's value; null where the parameter does not apply to it."""
    best: JsonValue
    """The best trial's value."""


class TrialDetail(TrialView):
    """One trial with all that is known of it."""

    intermediate: list[Intermediate]
    """The first objective at each evaluation."""
    metrics: dict[str, float]
    """All metrics of its last evaluation."""
    difference: dict[str, Difference]
    """Parameters whose values differ from those of the best trial."""
    attempts: list[int]
    """Numbers of its starts, each of which has its own logs."""
    spec: dict[str, Any]
    """The spec that it trains, with the values that the search determines; empty where its values are invalid."""


class RepeatView(View):
    """One of the best trials, with its repeats."""

    number: int
    params: dict[str, JsonValue]
    values: list[float]
    """Values of the trial and of each finished repeat."""
    mean: float
    low: float | None
    """Lower end of the 95 % confidence interval of the mean (Student's t); null for fewer than two values."""
    high: float | None


class SearchView(View):
    """A search: its objectives, its progress and its best trials so far."""

    id: str
    """Id of the search's job."""
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
    """Whether it was stopped: it starts no more trials."""
    best: list[TrialView]
    """The best trial; with several objectives, the Pareto front. Empty before a trial has a value."""
    repeats: list[RepeatView]
    """The best trials with their repeats, sorted by mean; empty where the spec asks for no repeats."""
    grid_size: int | None
    """Number of points of the space, each with only the parameters that apply there; null where it is infinite."""
    elapsed_s: float
    """Seconds for which its attempts have run."""
    eta_s: float | None
    """Seconds to the end of the budget at the average pace; null before a trial has ended, and while none runs."""
    gpu_hours: float
    promoted: dict[str, list[str]]
    """Ids of the jobs that its trials were promoted to, by the trial's number."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class SearchPatch(Body):
    """Changes to a search's budget, also while it runs; fields that are left out keep their values.

    A search that has succeeded continues with more trials, or with more hours where those had run out.
    """

    trials: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    concurrency: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    max_failed: Annotated[StrictInt, Field(ge=0, le=10_000)] | None = None
    max_hours: Hours | None = None
    """An explicit null removes the limit."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("nothing_given", "give trials, concurrency, max_failed or max_hours")
        for name in self.model_fields_set - {"max_hours"}:
            if getattr(self, name) is None:
                raise PydanticCustomError("nothing_given", f"give {name} a value, or leave it out")
        return self


class PointsBody(Body):
    """Trials to add to a search."""

    points: list[dict[str, JsonValue]] = Field(min_length=1, max_length=1000)
    """Values by path; the algorithm chooses those that are left out."""
    beyond_budget: StrictBool = False
    """Raise the budget's number of trials by the number of points."""


class PromoteBody(Body):
    """Changes to a promoted trial's spec; none by default."""

    overrides: dict[str, JsonValue] = Field({}, examples=[{"optimization.epochs": 400}])
    """New values by path in the spec."""
    register_as: BackboneName | None = None
    """Name under which to register the job's backbone; null keeps that of the base."""


class PlotView(View):
    """A figure for plotly.js."""

    name: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    trials: int
    """Number of ended trials that it shows."""
    note: str | None = None
    """What was left out to limit its size, or why it is empty."""
