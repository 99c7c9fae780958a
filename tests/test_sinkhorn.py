"""Sinkhorn: the table of the brief, a plain loop, SciPy's exact plan, limits, gradients, bad input."""

import doctest
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch.autograd import gradcheck

from ponderlearn.transport import sinkhorn as module
from ponderlearn.transport.sinkhorn import (
    exact_plan,
    point_cost,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_divergence_points,
)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def rand(*size, seed=0, dtype=torch.float64):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights(*size, seed=0):
    w = rand(*size, seed=seed) + 0.1
    return w / w.sum(-1, keepdim=True)


def plain(cost, a, b, epsilon, n_iter):
    "Sinkhorn's two lines with the kernel itself, one problem, columns first."
    K = torch.exp(-cost / epsilon)
    u = a
    for _ in range(n_iter):
        v = b / (K.T @ u)
        u = a / (K @ v)
    return u[:, None] * K * v


def kl(plan, a, b):
    return torch.special.xlogy(plan, plan / (a[:, None] * b)).sum()


X, A = f64(0, 1, 3)[:, None], f64(0.2, 0.5, 0.3)
Y, B = f64(0.5, 2)[:, None], f64(0.6, 0.4)


# The numbers


def test_two_by_two_by_hand():
    found = sinkhorn(f64([0, 1], [1, 0]), epsilon=0.5)
    assert found.value == pytest.approx(-0.5 * math.log((1 + math.exp(-2)) / 2), abs=1e-12)
    assert torch.allclose(found.plan, f64([0.440399, 0.059601], [0.059601, 0.440399]), atol=1e-6)
    assert found.transport_cost == pytest.approx(0.119203, abs=1e-6)


@pytest.mark.parametrize(
    ("epsilon", "value", "cost", "information", "divergence"),
    [
        (0.1, 0.592281, 0.550000, 0.422810, 0.507149),
        (0.5, 0.761340, 0.550415, 0.421849, 0.358370),
        (1, 0.967378, 0.574990, 0.392388, 0.268784),
        (10, 1.735798, 1.602406, 0.013339, 0.138160),
        (1e4, 1.869866, 1.869732, 0.000000, 0.090049),
    ],
)
def test_three_points_and_two(epsilon, value, cost, information, divergence):
    found = sinkhorn_divergence_points(X, Y, A, B, epsilon=epsilon, tol=1e-10, max_iter=5000)
    numbers = found.xy.value, found.xy.transport_cost, kl(found.xy.plan, A, B), found.value
    for number, wanted in zip(numbers, (value, cost, information, divergence), strict=True):
        assert number.item() == pytest.approx(wanted, abs=2e-6)
    assert found.xy.value == pytest.approx(
        (cost + epsilon * information), abs=2e-6 + 1e-6 * epsilon
    )
    assert found.converged


@pytest.mark.parametrize("grad", ["envelope", "unroll"])
def test_three_iterations_are_those_of_swav(grad):
    scores = f64([1, 0.2, -0.3], [0.9, 0.1, 0], [0.8, 0.7, 0.2], [0.95, -0.2, 0.1])
    found = sinkhorn(-scores, epsilon=0.05, max_iter=3, tol=0, grad=grad)
    wanted = f64(
        [0.998690, 0.001032, 0.000278],
        [0.545833, 0.000564, 0.453603],
        [0.000633, 0.787005, 0.212361],
        [0.306846, 0.000000, 0.693154],
    )
    assert found.n_iter == 3
    assert torch.allclose(4 * found.plan, wanted, atol=1e-6)
    assert torch.allclose(4 * found.plan.sum(1), torch.ones(4, dtype=torch.float64))


@given(
    st.integers(1, 7), st.integers(1, 7), st.floats(0.1, 5), st.integers(1, 25), st.integers(0, 999)
)
def test_agrees_with_a_plain_loop(n, m, epsilon, n_iter, seed):
    cost, a, b = rand(n, m, seed=seed), weights(n, seed=seed), weights(m, seed=seed + 1)
    found = sinkhorn(cost, a, b, epsilon=epsilon, max_iter=n_iter, tol=0)
    assert found.n_iter == n_iter
    assert torch.allclose(found.plan, plain(cost, a, b, epsilon, n_iter), atol=1e-12)
    assert torch.allclose(found.plan.sum(1), a)
    assert torch.allclose((a * found.f).sum(), (b * found.g).sum())
    error = (found.plan.sum(0) - b).abs().sum()
    assert torch.allclose(found.error, error, atol=1e-12)
