"""Ready-made searches over a pretraining spec, by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from trainer.spec.base import Problem, SpecError
from trainer.spec.metric_keys import LINEAR_TOP1
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search_sections import AlgorithmSpec, BudgetSpec, ObjectiveSpec, RepeatsSpec, SchedulerSpec

Parameter = dict[str, Any]
"""A parameter as it is written in a search's space."""

MOMENTA: Final = (0.9, 0.95, 0.98, 0.99, 0.996, 0.998, 0.999, 0.9995, 0.9999)
"""The teacher averages over about 1 / (1 - momentum) steps, here 10 to 10,000, each about twice the one before: in an
even range of momenta nearly all would be below 100."""


class ReadySearch(NamedTuple):
    """A ready-made search."""

    about: str
    """What it searches, in a sentence."""
    space: Mapping[str, Callable[[PretrainSpec], Parameter]]
    """By path, the function that makes the parameter for a base spec."""
    algorithm: Literal["tpe", "grid"]
    trials: int


def _base_lr(base: PretrainSpec) -> Parameter:
    """Two orders of magnitude around the base's own: of the paper's 1.5e-4 they are 1e-5 to 1e-3."""
    low, high = (float(f"{base.optimization.base_lr * factor:.3g}") for factor in (1 / 15, 100 / 15))
    return {"type": "float", "low": low, "high": high, "log": True}


def _warmup(base: PretrainSpec) -> Parameter:
    return {"type": "float", "low": 0.0, "high": max(base.optimization.epochs / 10, base.optimization.warmup_epochs)}


READY: Final[dict[str, ReadySearch]] = {
    "teacher": ReadySearch(
        "How slowly the teacher follows the student, and how much agreeing with it counts.",
        {
            "method.teacher.momentum": lambda _: {"type": "categorical", "choices": list(MOMENTA)},
            "method.consistency_weight": lambda _: {"type": "float", "low": 0.0, "high": 2.0},
        },
        algorithm="tpe",
        trials=32,
    ),
    "masking": ReadySearch(
        "How much of an image is hidden: every twentieth from a half to nine tenths.",
        {"method.mask_ratio": lambda _: {"type": "float", "low": 0.5, "high": 0.9, "step": 0.05}},
        algorithm="grid",
        trials=9,
    ),
    "learning-rate": ReadySearch(
        "The learning rate, with the weight decay and the warm-up that go with it.",
        {
            "optimization.base_lr": _base_lr,
            "optimization.weight_decay": lambda _: {"type": "float", "low": 0.005, "high": 0.5, "log": True},
            "optimization.warmup_epochs": _warmup,
        },
        algorithm="tpe",
        trials=32,
    ),
}
"""The ready-made searches by name."""


def ready_search(name: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """A search's document over ``base``, a pretraining spec as it would be submitted alone, kept as it was written.

    It seeks the linear probe's accuracy, for which images need labels. Raises `SpecError` for a name that there is none
    of, and for a base that is no pretraining spec.
    """
    if name not in READY:
        raise SpecError([Problem("name", "/name", name, f"is no ready-made search: there are {', '.join(READY)}")])
    ready, document = READY[name], copy.deepcopy({"kind": "pretrain"} | dict(base))
    spec = PretrainSpec.parse(document)
    if name == "teacher" and spec.method.teacher and spec.method.teacher.schedule == "constant":
        document["method"]["teacher"].pop("final_momentum", None)  # it follows the momentum that is searched
    space = {path: parameter(spec) for path, parameter in ready.space.items()}
    return {
        "kind": "search",
        "name": f"{name}-{spec.name}"[:200],
        "base": document,
        "space": space,
        "objective": ObjectiveSpec.model_validate({"metric": LINEAR_TOP1}).model_dump(mode="json"),
        "algorithm": AlgorithmSpec(name=ready.algorithm).model_dump(mode="json"),
        "scheduler": _scheduler(spec, space).model_dump(mode="json"),
        "budget": BudgetSpec(trials=ready.trials).model_dump(mode="json"),
        "repeats": RepeatsSpec().model_dump(mode="json"),
    }


def _scheduler(base: PretrainSpec, space: Mapping[str, Parameter]) -> SchedulerSpec:
    """Trials are compared at the base's evaluations, and none while the slowest of them may still warm up."""
    every, epochs = base.evaluation.every_epochs, base.optimization.epochs
    searched = space.get("optimization.warmup_epochs")
    longest = searched["high"] if searched else base.optimization.warmup_epochs
    grace = every * max(1, math.ceil(longest / every))
    return SchedulerSpec(name="asha", grace_epochs=grace) if grace < epochs else SchedulerSpec(name="none")
