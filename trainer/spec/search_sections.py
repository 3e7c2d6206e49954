"""The sections of a search's spec: objective, algorithm, scheduler, budget, repeats and promotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from trainer.spec import metric_keys
from trainer.spec.base import SpecModel
from trainer.spec.common import Auto, Hours, Interval, Seed
from trainer.spec.export import BackboneName

METRICS: Final[dict[str, Literal["min", "max"]]] = {
    metric_keys.LINEAR_TOP1: "max",
    metric_keys.KNN_TOP1: "max",
    metric_keys.RECONSTRUCTION_RATIO: "min",
    metric_keys.LOSS: "min",
    metric_keys.LOSS_RECONSTRUCTION: "min",
    metric_keys.IMAGES_PER_S: "max",
}
"""The metrics of pretraining that a search can optimise, each with its default mode."""

_TASK_FIELDS: Final = (
    "method.mask_ratio",
    "method.norm_pix_loss",
    "model.patch_size",
    "model.img_size",
    "model.preset",
)
INCOMPARABLE: Final[dict[str, tuple[str, ...]]] = {
    metric_keys.LOSS: (*_TASK_FIELDS, "method.name", "method.consistency_weight"),
    metric_keys.LOSS_RECONSTRUCTION: _TASK_FIELDS,
    metric_keys.RECONSTRUCTION_RATIO: _TASK_FIELDS,
}
"""Fields that must not vary, or the metric would not be comparable between trials."""


class ObjectiveSpec(SpecModel):
    """The metric that a search optimises."""

    metric: str = Field(metric_keys.LINEAR_TOP1, examples=list(METRICS))
    """A metric of the trials; its value at a trial's last evaluation counts. Where trials are evaluations: one that the
    base's protocols give, such as `eval/finetune_top1` or `eval/mce`."""
    mode: Literal["min", "max"]
    """Whether lower or higher values are better; the default depends on the metric."""

    @model_validator(mode="before")
    @classmethod
    def _usual_mode(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "mode" in data:
            return data
        metric = data.get("metric", metric_keys.LINEAR_TOP1)
        lower = metric == metric_keys.MEAN_CORRUPTION_ERROR or (
            isinstance(metric, str) and METRICS.get(metric) == "min"
        )
        return data | {"mode": "min" if lower else "max"}


def pareto_front(costs: Mapping[int, Sequence[float]]) -> list[int]:
    """The trials that no other trial beats: none is nowhere worse and somewhere better. Sorted by their first cost.

    ``costs`` has a cost for each objective, by the trial's number; less is better.
    """
    front: list[int] = []
    for number in sorted(costs, key=lambda each: (list(costs[each]), each)):  # none beats an earlier one
        if not any(_beats(costs[other], costs[number]) for other in front):
            front.append(number)
    return front


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return list(one) != list(other) and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def _form(objective: object) -> str:
    return "[many]" if isinstance(objective, list | tuple) else "[one]"


Objectives = Annotated[
    Annotated[ObjectiveSpec, Tag("[one]")] | Annotated[tuple[ObjectiveSpec, ...], Tag("[many]")], Discriminator(_form)
]


class AlgorithmSpec(SpecModel):
    """The algorithm that chooses the next trial's values."""

    name: Literal["tpe", "random", "grid", "qmc", "cmaes", "gp"] = "tpe"
    """`tpe` learns from earlier trials, with conditions too; `gp` (a Gaussian process) needs fewer trials if there are
    few parameters; `cmaes` suits many numeric parameters; `qmc` spreads points evenly; `grid` tries every
    combination."""
    seed: Seed = 0
    """Seed of the algorithm's random choices."""


class SchedulerSpec(SpecModel):
    """Which trials are stopped early."""

    name: Literal["asha", "median", "none"] = "asha"
    """`asha` lets the best trials of each rung continue; `median` stops trials that are worse than the median of the
    others. Trials that are evaluations are never stopped early: `none`, which is then the default."""
    grace_epochs: Interval | Auto = "auto"
    """Epochs before which no trial is stopped: a multiple of `base.evaluation.every_epochs`, which is also the value of
    `auto`."""
    reduction_factor: int = Field(3, ge=2, le=100)
    """For `asha`: each rung has this many times the epochs of the previous one, and one in this many trials reaches
    it."""


class BudgetSpec(SpecModel):
    """How many trials run. All fields can be changed while the search runs and after it has ended."""

    trials: int = Field(32, ge=1, le=10_000)
    """Trials in total, including infeasible and failed ones."""
    concurrency: int = Field(4, ge=1, le=1000)
    """Trials that run at a time, if the cluster has room for them."""
    max_failed: int = Field(8, ge=0, le=10_000)
    """Trials that may fail by errors of their own; one more ends the search."""
    max_hours: Hours | None = None
    """Hours after which no new trial starts; running trials finish. Null: no limit."""


class RepeatsSpec(SpecModel):
    """Repeats of the best trials with other seeds, to tell good values from a lucky run."""

    best: int = Field(0, ge=0, le=20)
    """How many of the best trials are repeated."""
    seeds: int = Field(3, ge=1, le=20)
    """How many other seeds each of them is repeated with."""


class PromoteSpec(SpecModel):
    """How a trial becomes a job of its own."""

    overrides: dict[str, JsonValue] = Field(default_factory=dict, examples=[{"optimization.epochs": 400}])
    """Values that differ from the trial's, by their path in the spec."""
    register_as: BackboneName | None = None
    """Name under which the job's backbone is registered; null: the name in the base."""
