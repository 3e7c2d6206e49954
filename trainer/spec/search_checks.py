"""Checks of a search's sections against each other, which raise the error of `refuse`; and of its promotions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trainer.spec import metric_keys
from trainer.spec.base import Problem, SpecError, refuse
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.evaluation import PROBE_OF
from trainer.spec.measurements import score_keys
from trainer.spec.search_sections import INCOMPARABLE, METRICS, ObjectiveSpec, PromoteSpec
from trainer.spec.space import CategoricalParameter, Parameter, misfit

if TYPE_CHECKING:
    from trainer.spec.search import SearchSpec

NAMED_IN_BASE: Final = (
    "the classifier of a promoted evaluation is named in the search's base: {name: finetune, register_as: NAME} among "
    "its protocols"
)


def check_objectives(spec: SearchSpec) -> None:
    """An objective is measured by the trials, and comparable between them."""
    objectives, base = spec.objectives, spec.base_spec
    if not 1 <= len(objectives) <= 3:
        raise refuse("objective", "must be one objective, or a list of two or three", len(objectives))
    if len({each.metric for each in objectives}) < len(objectives):
        raise refuse("objective", "must not name a metric twice", [each.metric for each in objectives])
    for index, each in enumerate(objectives):
        field = "objective.metric" if isinstance(spec.objective, ObjectiveSpec) else f"objective.{index}.metric"
        if isinstance(base, EvaluateSpec):
            keys = score_keys(base)
            if each.metric not in keys:
                text = f"is not measured by the trials: the protocols in base give {', '.join(keys)}"
                raise refuse(field, text, each.metric)
            continue
        if each.metric not in METRICS:
            text = f"is not a metric that a search can optimise: there are {', '.join(METRICS)}"
            raise refuse(field, text, each.metric)
        searched = [path for path in INCOMPARABLE.get(each.metric, ()) if path in spec.space]
        if searched:
            text = (
                f"cannot be compared between trials, because {searched[0]} is searched: use {metric_keys.LINEAR_TOP1}"
            )
            raise refuse(field, text, each.metric)
        probe, probes = PROBE_OF.get(each.metric), base.evaluation.probes
        if probe and probes != "auto" and probe not in probes:
            text = f"is not measured, because base.evaluation.probes is [{', '.join(probes)}]: add {probe} to it"
            raise refuse(field, text, each.metric)


def check_scheduler(spec: SearchSpec) -> None:
    """Trials have results early enough for the scheduler to stop them."""
    scheduler, base, epochs = spec.scheduler, spec.base_spec, spec.epochs
    if scheduler.name == "none":
        return
    if isinstance(base, EvaluateSpec):
        text = (
            "cannot stop trials that are evaluations: their objective is a mean over seeds, or is measured at "
            "once, and is known at their end alone: use none, or leave scheduler out"
        )
        raise refuse("scheduler.name", text, scheduler.name)
    every = base.evaluation.every_epochs
    if len(spec.objectives) > 1:
        text = "cannot compare trials by several objectives: use none"
        raise refuse("scheduler.name", text, scheduler.name)
    if every >= epochs:
        text = f"never has a result: trials have {epochs} epochs and are evaluated every {every}: lower "
        raise refuse("scheduler.name", f"{text}base.evaluation.every_epochs, or use none", scheduler.name)
    if spec.grace_epochs % every:
        text = f"must be a multiple of base.evaluation.every_epochs {every}: trials have no results in between"
        raise refuse("scheduler.grace_epochs", text, scheduler.grace_epochs)
    if spec.grace_epochs >= epochs:
        raise refuse("scheduler.grace_epochs", f"must be below a trial's {epochs} epochs", scheduler.grace_epochs)


def check_algorithm(spec: SearchSpec) -> None:
    """The algorithm can choose values of every parameter."""
    for path, parameter in spec.space.items():
        if spec.algorithm.name == "grid" and parameter.size() is None:
            raise refuse(f"space.{path}", "has too many values for a grid: give it choices or a step", parameter.type)
        if spec.algorithm.name in {"grid", "cmaes"} and parameter.when:
            text = f"algorithm {spec.algorithm.name} does not support conditions: use tpe or random"
            raise refuse(("space", path, "when"), text, None)
        if spec.algorithm.name == "cmaes" and isinstance(parameter, CategoricalParameter):
            raise refuse(("space", path, "type"), "algorithm cmaes supports only numbers: use tpe", parameter.type)
    if spec.warm_start and spec.algorithm.name in {"random", "grid", "qmc"}:
        text = f"algorithm {spec.algorithm.name} does not learn from trials: use tpe, gp or cmaes"
        raise refuse("warm_start", text, list(spec.warm_start))
    if spec.algorithm.name == "cmaes" and len(spec.objectives) > 1:
        raise refuse("algorithm.name", "cmaes supports only one objective: use tpe", spec.algorithm.name)


def check_condition(spec: SearchSpec, path: str, parameter: Parameter) -> None:
    """A parameter's condition names values that others can have, and is not circular."""
    field = ("space", path, "when")
    for other, values in (parameter.when or {}).items():
        condition = spec.space.get(other)
        if condition is None or other == path:
            raise refuse(field, f"{other!r} is not another parameter of this space: name one of its paths", other)
        if condition.size() is None:
            raise refuse(field, f"{other} has too many values for a condition: give it choices or a step", other)
        for value in values:
            if misfit(condition, value):
                raise refuse(field, f"{other} is never {value!r}: use one of its values", value)
    visited, pending = set[str](), [path]
    while pending:
        for other in spec.space[pending.pop()].when or ():
            if other == path:
                raise refuse(field, "is circular: a condition must not depend on the parameter itself", other)
            if other not in visited:
                visited.add(other)
                pending.append(other)


def check_evaluated(promote: PromoteSpec) -> None:
    """Raise `SpecError` for overrides by which a promoted evaluation would read another backbone or another job.

    Whether somebody may see that is checked where it is submitted.
    """
    if promote.register_as:
        raise SpecError([Problem("register_as", "/register_as", promote.register_as, NAMED_IN_BASE)])
    for path, value in promote.overrides.items():
        if path.partition(".")[0] == "backbone" or path in {"protocols", "kind"} or path.endswith(".reference"):
            text = "stays as the search has it: submit an evaluation of its own, with the trial's settings"
            raise SpecError([Problem(path, f"/{path.replace('.', '/')}", value, text)])
        if path.endswith(".register_as"):
            raise SpecError([Problem(path, f"/{path.replace('.', '/')}", value, NAMED_IN_BASE)])
