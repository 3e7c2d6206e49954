"""Filters of lists that are texts of their own: labels and comparisons of results. They know no domain."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from service.http.problems import ApiProblem
from trainer.spec.base import Problem

OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
COMPARISON: Final = re.compile(
    r"\s*(?P<key>[a-z]+/[A-Za-z0-9_./-]{1,200}?)\s*(?P<operator><=|>=|<|>|=)\s*"
    r"(?P<value>[+-]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?)\s*"
)
GRAMMAR: Final = "write a result, one of < <= > >= = and a number, for example eval/linear_top1 >= 0.5"


@dataclass(frozen=True)
class Comparison:
    """A condition on a result, such as `eval/linear_top1 >= 0.5`."""

    key: str
    """The result's metric key."""
    operator: str
    """One of `OPERATORS`."""
    value: float

    def holds(self, results: dict[str, float]) -> bool:
        """Whether there is such a result among some, by metric key, and the condition holds for it."""
        return self.key in results and OPERATORS[self.operator](results[self.key], self.value)


def comparisons(texts: Sequence[str], parameter: str = "filter") -> list[Comparison]:
    """The conditions in the values of a query parameter. Raises the API's 422 for one that cannot be read."""
    return [_comparison(text, parameter) for text in texts]


def _comparison(text: str, parameter: str) -> Comparison:
    match = COMPARISON.fullmatch(text)
    if match is None or not math.isfinite(float(match["value"])):
        raise _refused(parameter, text, GRAMMAR)
    return Comparison(match["key"], match["operator"], float(match["value"]))


def check_keys(wanted: Sequence[Comparison], known: Collection[str], parameter: str = "filter") -> None:
    """Raises the API's 422 for a condition on a result that is not among those known, if any are; it names the nearest
    one.
    """
    for each in wanted:
        if known and each.key not in known:
            nearest = difflib.get_close_matches(each.key, known, n=1, cutoff=0.5)
            help_text = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(known))}"
            raise _refused(parameter, each.key, f"nothing here has this result; {help_text}")


def label_pairs(labels: Sequence[str], parameter: str = "label") -> list[tuple[str, str]]:
    """Name and value of each label. Raises the API's 422 for a label without a colon."""
    for label in labels:
        if ":" not in label:
            raise _refused(parameter, label, "write name:value, for example team:vision")
    return [(name, value) for name, _, value in (label.partition(":") for label in labels)]


def _refused(parameter: str, value: str, text: str) -> ApiProblem:
    problem = Problem(parameter, "", value, text)
    return ApiProblem(422, "parameter_invalid", str(problem), (problem,))
