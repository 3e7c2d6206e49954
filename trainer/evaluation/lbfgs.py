"""L-BFGS for convex functions, by their gradient alone (Nocedal and Wright, Numerical Optimization, algorithm 7.5).

Along a line a convex function's slope only rises, so its sign says on which side the minimum is. A line search that
never compares values works until the gradient itself is lost in rounding, long after differences of values are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor

HISTORY: Final = 10
FLATTER: Final = 0.8
"""A step is taken when the slope's size has fallen to this share: less would make line searches long for little."""
MAX_STEPS: Final = 25
"""Evaluations of a line search."""


class Minimum(NamedTuple):
    x: Tensor
    gradient: Tensor
    iterations: int


class _Pair(NamedTuple):
    """A step, the change of the gradient along it, and one over their product."""

    step: Tensor
    change: Tensor
    inverse: Tensor


def minimise(
    gradient: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_iterations: int = 1000
) -> Minimum:
    """The minimum of a convex function whose gradient at ``x`` is ``gradient(x)``, of the same shape.

    Ends once no entry of the gradient is larger than ``tolerance``, after ``max_iterations``, or where rounding leaves
    no direction to go down: the caller compares the returned gradient with the tolerance.
    """
    x, g = start, gradient(start)
    pairs: deque[_Pair] = deque(maxlen=HISTORY)
    iterations = 0
    while iterations < max_iterations and g.abs().max() > tolerance:
        direction = _direction(g, pairs)
        found = _search(gradient, x, direction, float(_dot(g, direction)))
        if found is None:
            break
        step, new = found
        change = new - g
        pairs.append(_Pair(step, change, 1 / _dot(step, change)))
        x, g = x + step, new
        iterations += 1
    return Minimum(x, g, iterations)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a.flatten().dot(b.flatten())


def _direction(g: Tensor, pairs: deque[_Pair]) -> Tensor:
    """Minus the gradient times the inverse curvature that the last steps have shown, by the two-loop recursion."""
    direction, shares = -g, []
    for step, change, inverse in reversed(pairs):
        shares.append(inverse * _dot(step, direction))
        direction = direction - shares[-1] * change
    if pairs:
        _, change, inverse = pairs[-1]
        direction = direction / (inverse * _dot(change, change))
    for step, change, inverse in pairs:
        direction = direction + (shares.pop() - inverse * _dot(change, direction)) * step
    return direction


def _search(
    gradient: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, slope: float
) -> tuple[Tensor, Tensor] | None:
    """A step along ``direction`` to where the function is flatter, and the gradient there; None if there is none."""
    low, low_slope, high, high_slope = 0.0, slope, None, 0.0
    length = 1.0
    for _ in range(MAX_STEPS):
        if not slope < 0:
            return None
        step = length * direction
        new = gradient(x + step)
        reached = float(_dot(new, direction))
        if abs(reached) <= FLATTER * abs(slope):
            return step, new
        if reached < 0:
            low, low_slope = length, reached
        else:
            high, high_slope = length, reached
        if high is None:
            length = 4 * low
        else:  # where the slope would be zero if it rose evenly, but well inside
            zero = low - low_slope * (high - low) / (high_slope - low_slope)
            length = min(max(zero, low + 0.1 * (high - low)), high - 0.1 * (high - low))
    return None
