"""L-BFGS by gradients alone, on functions whose minimum is known."""

import pytest
import torch

from trainer.evaluation.lbfgs import minimise


def test_the_minimum_of_a_quadratic_is_the_solution_of_its_equations():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    matrix, right = root @ root.T + 0.01 * torch.eye(30), torch.randn(30, generator=generator, dtype=torch.float64)
    found = minimise(lambda x: matrix @ x - right, torch.zeros(30, dtype=torch.float64), 1e-9)
    assert found.gradient.abs().max() <= 1e-9
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix, right))


@pytest.mark.parametrize("start", [1e-3, 3.0, 500.0])
def test_a_first_step_that_is_far_too_long_or_too_short_is_mended(start):
    """The derivative of log(cosh(x)) / 100 + cosh(x / 100) is flat near 0 and steep far away."""
    found = minimise(lambda x: x.tanh() / 100 + (x / 100).sinh() / 100, torch.tensor([start]), 1e-6)
    assert found.gradient.abs().max() <= 1e-6
    assert found.x.abs().max() < 1e-3


def test_a_start_at_the_minimum_takes_no_iteration():
    found = minimise(lambda x: x - 1, torch.ones(2, 3), 1e-5)
    assert (found.iterations, found.x.tolist()) == (0, torch.ones(2, 3).tolist())


def test_it_ends_after_the_iterations_allowed():
    scales = torch.logspace(0, 6, 50)
    found = minimise(lambda x: scales * x, torch.ones(50), 1e-5, max_iterations=3)
    assert found.iterations == 3
    assert found.gradient.abs().max() > 1e-5


def test_it_ends_where_rounding_leaves_nothing_to_gain():
    """Far from zero a float32 has no neighbour with a smaller gradient than this: the caller learns of it."""
    found = minimise(lambda x: (x.double() - 1e6 - 0.03).float(), torch.tensor([1e6 + 5.0]), 1e-6)
    assert found.iterations < 50
    assert 1e-6 < found.gradient.abs().max() < 0.05
