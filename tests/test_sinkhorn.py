"""Sinkhorn: numbers, a plain loop, SciPy's exact plans, limits, gradients, dtypes, bad input."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from ponderlearn.transport.sinkhorn import (
    exact_plan,
    point_cost,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_divergence_points,
)

INF = math.inf


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def rand(*size, seed=0, dtype=torch.float64):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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
TIGHT = {"tol": 1e-11, "max_iter": 20_000, "on_fail": "raise"}


# Numbers


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
    found = sinkhorn_divergence_points(X, Y, A, B, epsilon=epsilon, **TIGHT)
    numbers = found.xy.value, found.xy.transport_cost, kl(found.xy.plan, A, B), found.value
    for number, wanted in zip(numbers, (value, cost, information, divergence), strict=True):
        assert number.item() == pytest.approx(wanted, abs=1e-6)
    total = found.xy.transport_cost + epsilon * kl(found.xy.plan, A, B)
    assert torch.allclose(found.xy.value, total, rtol=1e-8)
    assert found.converged


def test_the_plan_of_three_points_and_two():
    wanted = f64([0.199876, 0.000124], [0.400116, 0.099884], [0.000007, 0.299993])
    found = sinkhorn(point_cost(X, Y), A, B, epsilon=0.5, **TIGHT)
    assert torch.allclose(found.plan, wanted, atol=1e-6)


@pytest.mark.parametrize("grad", ["envelope", "unroll", "none"])
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


# A plain loop, and SciPy


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
    assert torch.allclose(found.error, (found.plan.sum(0) - b).abs().sum(), atol=1e-12)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 999))
@settings(max_examples=30)
def test_the_exact_plan_is_a_cheapest_plan(n, m, seed):
    cost, a, b = rand(n, m, seed=seed), weights(n, seed=seed), weights(m, seed=seed + 1)
    exact = exact_plan(cost, a, b)
    assert torch.allclose(exact.sum(1), a) and torch.allclose(exact.sum(0), b)
    assert bool((exact >= 0).all()) and int((exact > 0).sum()) < n + m  # a corner
    for epsilon in (1.0, 0.02):
        found = sinkhorn(cost, a, b, epsilon=epsilon, on_fail="ignore")
        more = found.transport_cost - (exact * cost).sum()
        assert -1e-5 < more < epsilon * math.log(n * m) + 1e-5


def test_the_assignment_is_the_linear_program():
    cost = rand(7, 7)
    quick, slow = exact_plan(cost), exact_plan(cost, torch.full((7,), 1 / 7).double())
    assert torch.allclose(quick, slow, atol=1e-9) and int((quick > 0).sum()) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact_plan(rand(3, 4))


def test_tends_to_the_exact_plan_and_to_the_product():
    cost, a, b = rand(6, 5), weights(6), weights(5, seed=1)
    near = sinkhorn(cost, a, b, epsilon=1e-4, epsilon_scaling=0.8, max_iter=50_000)
    assert torch.allclose(near.plan, exact_plan(cost, a, b), atol=1e-3)
    far = sinkhorn(cost, a, b, epsilon=1e5)
    assert torch.allclose(far.plan, a[:, None] * b, atol=1e-5)


# Identities


@given(st.integers(2, 6), st.integers(2, 6), st.floats(0.05, 2), st.integers(0, 999))
@settings(max_examples=30)
def test_identities(n, m, epsilon, seed):
    cost, a, b = rand(n, m, seed=seed), weights(n, seed=seed), weights(m, seed=seed + 1)
    r, s = rand(n, seed=seed + 2), rand(m, seed=seed + 3)
    more = {"epsilon": epsilon, **TIGHT}
    found = sinkhorn(cost, a, b, **more)
    shifted = sinkhorn(cost + r[:, None] + s, a, b, **more)
    assert torch.allclose(found.plan, shifted.plan, atol=1e-8)
    assert torch.allclose(shifted.value - found.value, a @ r + b @ s, atol=1e-8)
    turned = sinkhorn(cost.T, b, a, **more)
    assert torch.allclose(found.plan, turned.plan.T, atol=1e-8)
    scaled = sinkhorn(3 * cost, a, b, **more | {"epsilon": 3 * epsilon})
    assert torch.allclose(scaled.value, 3 * found.value, atol=1e-8)


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 100.0])
def test_translation(epsilon):
    x, t = rand(20, 3), f64(0.4, -0.2, 0.5)
    found = sinkhorn_divergence_points(x, x + t, epsilon=epsilon, **TIGHT)
    assert found.value == pytest.approx(t.square().sum().item(), abs=1e-8)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_divergence_of_a_cloud_and_itself_is_zero(p):
    x, a = rand(15, 2), weights(15)
    found = sinkhorn_divergence_points(x, x, a, a, p=p, epsilon=0.05, **TIGHT)
    assert abs(found.value) < 1e-10
    other = sinkhorn_divergence_points(x, rand(15, 2, seed=1), a, a, p=p, epsilon=0.05, **TIGHT)
    assert other.value > 1e-3


@given(st.integers(2, 12), st.floats(0.01, 3), st.integers(0, 999))
@settings(max_examples=30)
def test_the_self_term_is_that_of_the_plain_problem(n, epsilon, seed):
    x, a = rand(n, 2, seed=seed), weights(n, seed=seed)
    cost = point_cost(x, x)
    found = sinkhorn_divergence(cost, cost, cost, a, a, epsilon=epsilon, on_fail="ignore").xx
    assert found.converged and found.n_iter <= 60
    assert torch.allclose(found.f, found.g, atol=1e-4)
    whole = sinkhorn(cost, a, a, epsilon=epsilon, max_iter=50_000)
    assert torch.allclose(found.value, whole.value, atol=1e-6)


def test_batches_equal_loops_and_axes_broadcast():
    cost, a, b = rand(3, 2, 6, 4), weights(2, 6), weights(3, 1, 4)
    whole = sinkhorn(cost, a, b, epsilon=0.1, **TIGHT)
    assert whole.value.shape == whole.error.shape == whole.converged.shape == (3, 2)
    assert whole.f.shape == (3, 2, 6) and whole.plan.shape == cost.shape
    for i in range(3):
        for j in range(2):
            one = sinkhorn(cost[i, j], a[j], b[i, 0], epsilon=0.1, **TIGHT)
            assert torch.allclose(whole.plan[i, j], one.plan, atol=1e-9)
            assert torch.allclose(whole.value[i, j], one.value, atol=1e-9)
    one = sinkhorn(cost[0, 0], a, epsilon=0.1, **TIGHT)
    assert one.value.shape == (2,) and one.plan.shape == (2, 6, 4)
    moved = sinkhorn_divergence_points(rand(2, 1, 5, 3), rand(4, 6, 3, seed=1), epsilon=0.5)
    assert moved.value.shape == (2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_zero_change_nothing(dtype):
    cost = rand(6, 5, dtype=dtype)
    cost[2] += 1000  # far beyond what exp(-cost / epsilon) can hold
    a, b = weights(6).to(dtype), weights(5).to(dtype)
    a[2], b[[0, 3]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    found = sinkhorn(cost, a, b, epsilon=0.1)
    rest = sinkhorn(cost[a > 0][:, b > 0], a[a > 0], b[b > 0], epsilon=0.1)
    tol = 1e-5 if dtype == torch.float64 else 1e-3
    assert torch.allclose(found.value, rest.value, atol=tol)
    assert torch.allclose(found.f[a > 0], rest.f, atol=tol)
    assert bool((found.plan[2] == 0).all())
    # the potential at a point without mass is what the other side gives it: no less, no more
    transform = -0.1 * torch.logsumexp((found.g - cost)[2] / 0.1 + b.log(), 0)
    assert torch.allclose(found.f[2], transform, atol=1e-3) and found.f[2] > 999


def test_points_without_mass_on_both_sides_do_not_see_each_other():
    x = torch.cat([10 * torch.eye(6), torch.zeros(1, 6)])
    cost, a = point_cost(x, x), torch.tensor([1 / 6] * 6 + [0.0])
    found = sinkhorn_divergence(cost, cost, cost, a, a, epsilon=0.3)
    assert abs(found.value) < 1e-5 and found.converged
    assert found.xy.f[6] == pytest.approx(99.73, abs=0.01)


def test_forbidden_pairs():
    cost = rand(4, 4)
    cost[0, 2:] = INF
    cost.requires_grad_()
    for grad in ("envelope", "unroll"):
        found = sinkhorn(cost, epsilon=0.1, grad=grad, **TIGHT)
        assert bool((found.plan[0, 2:] == 0).all()) and bool((found.plan[0, :2] > 0).all())
        for number in (found.value, found.transport_cost):
            (slope,) = torch.autograd.grad(number, cost, retain_graph=True)
            assert bool(slope.isfinite().all()) and bool((slope[0, 2:] == 0).all())


# Convergence


def cloud(n=60, seed=0, dtype=torch.float64):
    x, y = rand(2, n, 2, seed=seed, dtype=dtype)
    cost = point_cost(x, y.square())
    return cost / cost.mean()


@pytest.mark.parametrize("share", [0.1, 0.01, 0.006])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overrelaxation_ends_at_the_same_plan_sooner(share, dtype):
    cost = cloud(dtype=dtype)
    quick = sinkhorn(cost, epsilon=share, on_fail="raise")
    slow = sinkhorn(cost, epsilon=share, overrelax=False, max_iter=5000, on_fail="ignore")
    assert quick.n_iter < slow.n_iter * (0.8 if share == 0.1 else 0.4)
    tol = 1e-6 if dtype == torch.float64 else 1e-4
    assert quick.error <= tol and quick.converged
    assert torch.allclose(quick.value, slow.value, atol=tol)
    assert (quick.plan.sum(0) - 1 / 60).abs().sum() < 2 * tol


@given(st.integers(1, 30), st.integers(1, 30), st.floats(-6, 3), st.integers(0, 999))
@settings(max_examples=60)
def test_any_epsilon_gives_a_plan_and_a_lower_bound(n, m, power, seed):
    "Rows are right after any number of iterations, and the value rises to the optimum."
    cost, a, b = rand(n, m, seed=seed), weights(n, seed=seed), weights(m, seed=seed + 1)
    values, epsilon = [], 10.0**power
    for n_iter in (1, 13, 300):
        found = sinkhorn(cost, a, b, epsilon=epsilon, max_iter=n_iter, tol=0)
        assert torch.allclose(found.plan.sum(1), a, atol=1e-9) and found.n_iter == n_iter
        assert bool(found.f.isfinite().all() & found.g.isfinite().all())
        values.append(found.value.item())
    assert values[0] <= values[1] + 1e-9 and values[1] <= values[2] + 1e-9
    best = (exact_plan(cost, a, b) * cost).sum()
    assert values[2] <= best + epsilon * kl(exact_plan(cost, a, b), a, b) + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_of_ten_thousand_epsilon(dtype):
    cost = 1e3 * cloud(40, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sinkhorn(cost, epsilon=0.5, max_iter=300)
        scaled = sinkhorn(cost, epsilon=0.5, max_iter=20_000, epsilon_scaling=0.8)
    for one in (found, scaled):
        assert bool(one.plan.isfinite().all()) and one.plan.sum() == pytest.approx(1, abs=1e-3)
    assert scaled.converged and not found.converged
    assert found.value < scaled.value


def test_a_start_from_potentials_saves_iterations():
    cost = cloud()
    first = sinkhorn(cost, epsilon=0.01)
    again = sinkhorn(cost + 1e-4 * rand(60, 60, seed=5), epsilon=0.01, init=(first.f, first.g))
    assert again.n_iter < first.n_iter / 2
    same = sinkhorn(cost, epsilon=0.01, init=(first.f, first.g))
    assert same.n_iter <= 5 and torch.allclose(same.value, first.value, atol=1e-8)
    batch = sinkhorn(cost.expand(2, -1, -1), epsilon=0.01, init=(first.f, first.g))
    assert batch.n_iter <= 5


@pytest.mark.parametrize("scaling", [0.3, 0.5])
def test_epsilon_scaling_counts_its_levels(scaling):
    cost = cloud()
    levels = math.ceil(math.log(0.02 / (cost.max() - cost.min())) / math.log(scaling))
    found = sinkhorn(cost, epsilon=0.02, epsilon_scaling=scaling, max_iter=7, tol=0)
    assert found.n_iter == 7 + levels
    ends = sinkhorn(cost, epsilon=0.02, epsilon_scaling=scaling)
    assert torch.allclose(ends.value, sinkhorn(cost, epsilon=0.02).value, atol=1e-7)


@pytest.mark.parametrize("check_every", [1, 3, 50])
def test_looks_at_the_error(check_every):
    found = sinkhorn(cloud(), epsilon=0.02, check_every=check_every)
    assert found.converged and found.n_iter < 200


def test_failure_is_reported_as_asked():
    cost, words = cloud(), "Sinkhorn did not reach tol=1e-06 in 3 iterations"
    more = {"epsilon": 0.01, "max_iter": 3}
    with pytest.warns(RuntimeWarning, match=words) as caught:
        sinkhorn(cost, **more)
    assert caught[0].filename == __file__
    with pytest.raises(RuntimeError, match=words):
        sinkhorn(cost, on_fail="raise", **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not sinkhorn(cost, on_fail="ignore", **more).converged
        assert not sinkhorn(cost, tol=0, on_fail="raise", **more).converged
    with pytest.warns(RuntimeWarning, match="float64 would keep more digits"):
        sinkhorn(1e4 * cost.float(), epsilon=0.01, tol=0, max_iter=5)


# Gradients


def test_gradcheck():
    cost = rand(2, 4, 3).requires_grad_()
    more = {"epsilon": 0.2, **TIGHT}
    assert gradcheck(lambda c: sinkhorn(c, **more).value, cost)
    exact = {"epsilon": 0.2, "tol": 0, "max_iter": 12, "grad": "unroll"}
    assert gradcheck(lambda c: sinkhorn(c, **exact).plan, cost)
    assert gradcheck(lambda c: sinkhorn(c, **exact).transport_cost, cost)
    assert gradgradcheck(lambda c: sinkhorn(c[0], **exact).value, cost)
    x, y = rand(4, 2).requires_grad_(), rand(3, 2, seed=1).requires_grad_()
    assert gradcheck(lambda x, y: sinkhorn_divergence_points(x, y, **more).value, (x, y))
    for p in (1.0, 2.0, 3.0):
        assert gradcheck(lambda x, y, p=p: point_cost(x, y, p=p), (x, y))


def test_gradient_in_the_weights_is_the_potential_up_to_a_constant():
    cost = rand(5, 4)
    logits = [rand(5, seed=1).requires_grad_(), rand(4, seed=2).requires_grad_()]
    more = {"epsilon": 0.2, **TIGHT}
    assert gradcheck(lambda r, s: sinkhorn(cost, r.softmax(0), s.softmax(0), **more).value, logits)
    a, b = (x.detach().softmax(0).requires_grad_() for x in logits)
    found = sinkhorn(cost, a, b, **more)
    slopes = torch.autograd.grad(found.value, (a, b))
    for slope, potential in zip(slopes, (found.f, found.g), strict=True):
        assert torch.allclose(slope, potential)


def test_envelope_and_unroll_agree_at_the_end():
    cost, a = rand(5, 4).requires_grad_(), weights(5).requires_grad_()
    slopes = []
    for grad in ("envelope", "unroll"):
        found = sinkhorn(cost, a, epsilon=0.2, grad=grad, **TIGHT)
        in_cost, in_a = torch.autograd.grad(found.value, (cost, a))
        assert torch.allclose(in_cost, found.plan, atol=1e-8)
        assert in_cost.sum() == pytest.approx(1)
        slopes.append(in_a - in_a.mean())
    assert torch.allclose(*slopes, atol=1e-8)


def test_envelope_keeps_no_graph_and_none_no_gradient():
    cost = rand(5, 4).requires_grad_()
    found = sinkhorn(cost, epsilon=0.2)
    assert not found.f.requires_grad and found.value.requires_grad
    assert torch.allclose(found.value, sinkhorn(cost.detach(), epsilon=0.2).value)
    none = sinkhorn(cost, epsilon=0.2, grad="none")
    assert not none.value.requires_grad and not none.plan.requires_grad
    with torch.no_grad():
        assert not sinkhorn(cost, epsilon=0.2, grad="unroll").value.requires_grad


def test_gradients_at_weights_of_zero_are_finite():
    cost, a = rand(4, 3).requires_grad_(), f64(0.5, 0.0, 0.2, 0.3).requires_grad_()
    for grad in ("envelope", "unroll"):
        found = sinkhorn(cost, a, epsilon=0.2, grad=grad, **TIGHT)
        for number in (found.value, found.transport_cost):
            in_cost, in_a = torch.autograd.grad(number, (cost, a), retain_graph=True)
            assert bool(in_cost.isfinite().all() & in_a.isfinite().all())
    (in_a,) = torch.autograd.grad(sinkhorn(cost, a, epsilon=0.2, **TIGHT).value, a)
    bigger = f64(0.5, 1e-5, 0.2, 0.3 - 1e-5)
    more = sinkhorn(cost, bigger, epsilon=0.2, **TIGHT).value
    less = sinkhorn(cost, a, epsilon=0.2, **TIGHT).value
    assert ((more - less) / 1e-5).item() == pytest.approx((in_a[1] - in_a[3]).item(), abs=1e-3)


# Types and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    cost = cloud(20).to(dtype)
    found, wanted = sinkhorn(cost, epsilon=0.05), sinkhorn(cost.float(), epsilon=0.05)
    assert found.value.dtype == found.f.dtype == found.plan.dtype == torch.float32
    assert torch.equal(found.value, wanted.value)
    x = rand(5, 2).to(dtype)
    assert sinkhorn_divergence_points(x, x).value.dtype == point_cost(x, x).dtype == torch.float32


def test_autocast_changes_nothing():
    x, y = rand(30, 3).float(), rand(30, 3, seed=1).float()
    for points in ((x, y), (x.expand(2, -1, -1), y)):
        wanted = sinkhorn_divergence_points(*points, epsilon=0.05).value
        with torch.autocast("cpu", torch.bfloat16):
            found = sinkhorn_divergence_points(*points, epsilon=0.05).value
        assert torch.equal(found, wanted)


def test_float32_and_float64_agree():
    for share in (0.1, 0.01, 0.003):
        cost = cloud(150)
        more = {"epsilon": share, "max_iter": 20_000, "on_fail": "raise"}
        small, wide = sinkhorn(cost.float(), **more), sinkhorn(cost, **more)
        assert torch.allclose(small.value.double(), wide.value, atol=1e-4)
        assert (small.plan - wide.plan).abs().sum() < 0.05


def test_squares_are_not_negative_and_close_points_are_close():
    x = 1000 + rand(30, 3).float()
    cost = point_cost(x, x)
    wanted = torch.cdist(x.double(), x.double()).square()
    assert bool((cost >= 0).all()) and torch.allclose(cost.double(), wanted, atol=1e-5)
    assert point_cost(rand(2, 1, 4, 3), rand(5, 6, 3)).shape == (2, 5, 4, 6)


def test_moving_points_by_the_divergence_reaches_the_target():
    "Learning: Adam on 30 points; what is left is under a hundredth of the start."
    y, x = rand(30, 2, dtype=torch.float32), 0.1 * rand(30, 2, seed=1, dtype=torch.float32)
    x.requires_grad_()
    optimizer, values = torch.optim.Adam([x], 0.05), []
    for _ in range(60):
        loss = sinkhorn_divergence_points(x, y, epsilon=0.05).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0] / 100


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epsilon": 0}, ValueError, "epsilon must lie in"),
        ({"epsilon": -1.0}, ValueError, "epsilon must"),
        ({"epsilon": "small"}, TypeError, "epsilon must be a number"),
        ({"cost": torch.zeros(3)}, ValueError, r"cost must have shape \(..., n, m\)"),
        ({"cost": torch.zeros(3, 4).long()}, TypeError, "cost must be a tensor of float dtype"),
        ({"cost": torch.zeros(0, 4)}, ValueError, "cost must not be empty"),
        ({"cost": torch.full((3, 4), math.nan)}, ValueError, "cost must hold no NaN"),
        ({"cost": torch.full((3, 4), -INF)}, ValueError, "cost must have a finite entry"),
        ({"a": f64(0.5, 0.3, 0.1)}, ValueError, "a must be non-negative and sum to 1, got sum 0.9"),
        ({"a": f64(0.5, 0.7, -0.2)}, ValueError, "a must be non-negative"),
        ({"a": f64(0.5, 0.5, math.nan)}, ValueError, "a must be non-negative"),
        ({"a": weights(5)}, ValueError, r"a must have shape \(..., 3\)"),
        ({"b": weights(3)}, ValueError, r"b must have shape \(..., 4\)"),
        ({"b": [0.25] * 4}, TypeError, "b must be a tensor"),
        ({"a": weights(2, 3), "b": weights(5, 4)}, ValueError, "b must have leading axes"),
        ({"epsilon_scaling": 1.0}, ValueError, "epsilon_scaling must lie in"),
        ({"max_iter": 0}, ValueError, "max_iter must"),
        ({"tol": -1e-3}, ValueError, "tol must"),
        ({"check_every": 0}, ValueError, "check_every must"),
        ({"grad": "implicit"}, ValueError, "grad must be one of"),
        ({"on_fail": "print"}, ValueError, "on_fail must be one of"),
        ({"init": torch.zeros(3)}, TypeError, "init must be a pair"),
        ({"init": (torch.zeros(3), torch.zeros(3))}, ValueError, "init must have shape"),
        (
            {"init": (torch.zeros(3), torch.full((4,), INF))},
            ValueError,
            "init must hold finite values",
        ),
        (
            {"init": (torch.zeros(2, 3), torch.zeros(5, 4))},
            ValueError,
            "init must have leading axes",
        ),
        ({"overrelax": 1.5}, TypeError, "overrelax must be True or False"),
    ],
)
def test_bad_input(change, error, words):
    call = {"cost": rand(3, 4)} | change
    with pytest.raises(error, match=words):
        sinkhorn(call.pop("cost"), **call)


def test_rows_without_a_way_out():
    cost = rand(4, 4)
    cost[3] = INF
    with pytest.raises(ValueError, match="in each row and no -inf, got row 3 without one"):
        sinkhorn(cost)
    with pytest.raises(ValueError, match="got column 3 without one"):
        sinkhorn(cost.T)
    cost[3, 0] = 1
    with pytest.raises(ValueError, match="where the other weight is positive"):
        sinkhorn(cost, b=f64(0, 0.5, 0.25, 0.25), on_fail="ignore", max_iter=10)


def test_bad_input_of_the_others():
    cost = rand(3, 4)
    square = point_cost(rand(3, 2), rand(3, 2))
    with pytest.raises(ValueError, match=r"cost_xx must have shape \(..., 3, 3\)"):
        sinkhorn_divergence(cost, cost, cost)
    with pytest.raises(ValueError, match="cost_xx must be symmetric"):
        sinkhorn_divergence(square, rand(3, 3), square)
    with pytest.raises(TypeError, match="init"):
        sinkhorn_divergence(square, square, square, init=None)
    with pytest.raises(ValueError, match="y must have shape"):
        point_cost(rand(3, 2), rand(3, 4))
    with pytest.raises(ValueError, match="p must"):
        point_cost(rand(3, 2), rand(3, 2), p=0)
    with pytest.raises(ValueError, match="x must hold finite values"):
        sinkhorn_divergence_points(rand(3, 2) / 0, rand(3, 2))
    with pytest.raises(ValueError, match="cost must hold finite values"):
        exact_plan(cost / 0)
    with pytest.raises(ValueError, match="at most 250 000 entries"):
        exact_plan(torch.zeros(501, 500))
