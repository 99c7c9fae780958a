"""Robust transport: closed forms against solvers and numbers by hand, identities, certificates,
gradients, dtypes, bad inputs."""

import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from ponderlearn.generative.gan import discriminator_loss
from ponderlearn.transport.robust_ot import (
    _DIVERGENCES,
    AveragedWeights,
    WeightNet,
    ball_weights,
    batch_weights,
    critic_loss,
    rho_elbow,
    rho_for_outliers,
    robust_mean,
    robust_ot,
    weight_divergence,
    weight_loss,
)
from ponderlearn.transport.sinkhorn import exact_plan, sinkhorn

LINE = torch.tensor([0.0, 1, 2, 10], dtype=torch.float64)
COST = (LINE[:, None] - torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)).abs()


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=seeded(seed))


def masses(n, seed=0):
    p = 0.1 + torch.rand(n, dtype=torch.float64, generator=seeded(seed))
    return p / p.sum()


def mixture(share, seed=0, n=40, at=(-6.0, 8.0)):
    x, y = 0.5 * randn(n, 2, seed=seed), 0.5 * randn(n, 2, seed=seed + 1000) + f64(2, 0)
    k = round(share * n)
    x[:k] = 0.3 * randn(n, 2, seed=seed + 2000)[:k] + torch.tensor(at)
    return x, y, k


def by_solver(s, rho, p, divergence):
    "The smallest mean by SciPy's general solver."
    f = {
        "chi2": lambda w: (w - 1) ** 2 / 2,
        "kl": lambda w: w * torch.log(w.clamp(min=1e-300)),
    }[divergence]
    s, p = s.numpy(), p.numpy()
    found = minimize(
        lambda w: float(p @ (w * s)),
        torch.ones(len(s)).numpy(),
        jac=lambda w: p * s,
        bounds=[(0, None)] * len(s),
        constraints=[
            {"type": "eq", "fun": lambda w: float(p @ w - 1)},
            {"type": "ineq", "fun": lambda w: rho - float(p @ f(torch.as_tensor(w)).numpy())},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return found.fun


# ---- weights ----


def test_weights_by_hand():
    for s, rho, w, mean in [
        (f64(0, 1, 2, 3), 0.05, (1.424264, 1.141421, 0.858579, 0.575736), 1.146447),
        (f64(0, 1, 2, 3), 0.5, (2.488034, 1.333333, 0.178633, 0), 0.422650),
        (f64(0, 1, 2, 3), 2.0, (4, 0, 0, 0), 0),
        (f64(1, 2, 4), 0.1, (1.478091, 1.119523, 0.402386), 1.775560),
        (f64(0, 0, 0, 0, 10), 0.05, (*(1.158114,) * 4, 0.367544), 0.735089),
        (f64(0, 0, 0, 0, 10), 0.125, (*(1.25,) * 4, 0), 0),
    ]:
        assert ball_weights(s, rho).tolist() == pytest.approx(w, abs=1e-6)
        assert robust_mean(s, rho).item() == pytest.approx(mean, abs=1e-6)
    rho = (1.5 * math.log(1.5) + 0.5 * math.log(0.5)) / 2
    assert rho == pytest.approx(0.130812, abs=1e-6)
    assert ball_weights(f64(0, 1), rho, divergence="kl").tolist() == pytest.approx([1.5, 0.5])
    for rho, w, mean in [(0.1, (1.4, 1, 1, 0.6), 1.2), (0.3, (2.2, 1, 0.8, 0), 0.65)]:
        assert ball_weights(f64(0, 1, 2, 3), rho, divergence="tv").tolist() == pytest.approx(w)
        assert robust_mean(f64(0, 1, 2, 3), rho, divergence="tv").item() == pytest.approx(mean)


@pytest.mark.parametrize("divergence", ["chi2", "kl"])
@pytest.mark.parametrize("rho", [0.01, 0.2, 1.0])
def test_weights_agree_with_a_general_solver(divergence, rho):
    for seed in range(3):
        s, p = randn(7, seed=seed), masses(7, seed)
        found = robust_mean(s, rho, p, divergence=divergence).item()
        assert found == pytest.approx(by_solver(s, rho, p, divergence), abs=1e-5)


def test_tv_agrees_with_a_linear_program():
    from scipy.optimize import linprog

    for seed, rho in itertools.product(range(4), (0.05, 0.3, 0.8)):
        s, p = randn(6, seed=seed).numpy(), masses(6, seed).numpy()
        n, zero = 6, [0.0] * 6
        rows = [
            [*(sign * (i == j) for j in range(n)), *(-float(i == j) for j in range(n))]
            for sign in (1, -1)
            for i in range(n)
        ]
        rows.append([*zero, *(p / 2)])
        limit = [*(1.0,) * n, *(-1.0,) * n, rho]
        found = linprog([*(p * s), *zero], A_ub=rows, b_ub=limit, A_eq=[[*p, *zero]], b_eq=[1])
        ours = robust_mean(torch.as_tensor(s), rho, torch.as_tensor(p), divergence="tv")
        assert ours.item() == pytest.approx(found.fun, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    rho=st.floats(1e-6, 3),
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
    divergence=st.sampled_from(_DIVERGENCES),
)
def test_properties_of_weights(n, rho, seed, ties, divergence):
    s, p = randn(n, seed=seed), masses(n, seed)
    if ties:
        s = s.round()
    w = ball_weights(s, rho, p, divergence=divergence)
    assert bool((w >= 0).all()) and (p * w).sum().item() == pytest.approx(1, abs=1e-9)
    size = weight_divergence(w, p, divergence=divergence).item()
    assert size <= rho + 1e-8
    alone = (w > 0).sum() == (s == s.min()).sum()
    if not alone and s.max() > s.min():
        assert size == pytest.approx(rho, abs=1e-7)
    order = s.argsort()
    assert bool((w[order].diff() <= 1e-9).all())
    again = ball_weights(3 * s - 7, rho, p, divergence=divergence)
    assert torch.allclose(again, w, atol=1e-6)
    mixed = torch.randperm(n, generator=seeded(seed))
    there = ball_weights(s[mixed], rho, p[mixed], divergence=divergence)
    assert torch.allclose(there, w[mixed], atol=1e-9)
    twice = ball_weights(torch.cat([s, s]), rho, torch.cat([p, p]) / 2, divergence=divergence)
    assert torch.allclose(twice, torch.cat([w, w]), atol=1e-7)
    m, top = (robust_mean(s, rho, p, divergence=divergence, upper=u).item() for u in (False, True))
    assert m <= (p @ s).item() + 1e-9 and top >= (p @ s).item() - 1e-9
    if divergence == "chi2":
        mean = (p @ s).item()
        assert m >= mean - (2 * rho * (p @ (s - mean).square()).item()) ** 0.5 - 1e-9


@pytest.mark.parametrize("divergence", _DIVERGENCES)
def test_limits_of_weights(divergence):
    s, p = randn(9), masses(9)
    how = {"divergence": divergence}
    assert torch.equal(ball_weights(s, 0, p, **how), torch.ones(9).double())
    assert torch.equal(ball_weights(torch.full((5,), 3.0), 0.7, **how), torch.ones(5))
    assert robust_mean(s, 1e4, p, **how).item() == pytest.approx(s.min().item())
    tiny = robust_mean(s, 1e-12, p, **how).item()
    assert tiny == pytest.approx((p @ s).item(), abs=1e-5)
    assert ball_weights(f64(7), 0.3, **how).item() == 1
    rhos = torch.linspace(0, 1.5, 30, dtype=torch.float64).tolist()
    values = f64(*(robust_mean(s, r, p, **how).item() for r in rhos))
    assert bool((values.diff() <= 1e-12).all()) and bool((values.diff().diff() >= -1e-9).all())


@pytest.mark.parametrize("divergence", _DIVERGENCES)
def test_batches_of_weights(divergence):
    s, p = randn(2, 3, 6), masses(6)
    w = ball_weights(s, 0.3, p, divergence=divergence)
    for i, j in itertools.product(range(2), range(3)):
        assert torch.allclose(w[i, j], ball_weights(s[i, j], 0.3, p, divergence=divergence))


@pytest.mark.parametrize("divergence", _DIVERGENCES)
def test_examples_without_mass_do_not_count(divergence):
    s, p = f64(-5, 0, 1, 2, 9), f64(0, 0.25, 0.25, 0.5, 0)
    w = ball_weights(s, 0.1, p, divergence=divergence)
    assert torch.allclose(w[1:4], ball_weights(s[1:4], 0.1, p[1:4], divergence=divergence))
    assert bool(w.isfinite().all()) and (p @ w).item() == pytest.approx(1)


def test_large_and_many_scores():
    s = torch.randn(200_000, generator=seeded(0)) + 1e4
    w = ball_weights(s, 0.05)
    assert w.mean().item() == pytest.approx(1, abs=1e-5)
    assert weight_divergence(w).item() == pytest.approx(0.05, abs=1e-5)
    assert bool(ball_weights(f64(0, 1e200, -1e100), 0.1).isfinite().all())


def test_gradient_of_the_mean_is_the_weighted_mass():
    s, p = randn(6).requires_grad_(), masses(6)
    for divergence, upper in itertools.product(("chi2", "kl"), (False, True)):
        how = {"divergence": divergence, "upper": upper}
        assert torch.autograd.gradcheck(lambda s, how=how: robust_mean(s, 0.1, p, **how), (s,))
    (slope,) = torch.autograd.grad(robust_mean(s, 0.1, p), s)
    assert torch.allclose(slope, p * ball_weights(s, 0.1, p))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    s = randn(50).to(dtype)
    w = ball_weights(s, 0.1)
    assert w.dtype == torch.float32 and torch.equal(w, ball_weights(s.float(), 0.1))
    assert robust_mean(s, 0.1).dtype == torch.float32
    assert batch_weights(s).dtype == torch.float32
    assert critic_loss(s, s).dtype == torch.float32
    assert weight_loss(batch_weights(s), s, 0.1).dtype == torch.float32
    found = robust_ot(COST.to(dtype), 0.05, on_fail="ignore")
    assert found.value.dtype == torch.float32


def test_rho_for_outliers():
    wanted = {0.05: 0.02632, 0.1: 0.05556, 0.2: 0.125, 0.3: 0.21429}
    for share, rho in wanted.items():
        assert rho_for_outliers(share) == pytest.approx(rho, abs=1e-5)
    for divergence in _DIVERGENCES:
        w = torch.cat([torch.zeros(3), torch.full((7,), 10 / 7)])
        size = weight_divergence(w, divergence=divergence).item()
        assert rho_for_outliers(0.3, divergence=divergence) == pytest.approx(size, abs=1e-6)


# ---- transport ----


def test_transport_by_hand():
    for rho, value, last in [
        (0.05, 1.291486, 0.113069),
        (0.1, 0.894456, 0.056351),
        (1 / 6, 0.5, 0),
        (0.3, 0.5, None),
    ]:
        found = robust_ot(COST, rho, method="exact", tol=1e-9, max_iter=200, on_fail="ignore")
        assert found.transport_cost.item() == pytest.approx(value, abs=1e-4)
        assert found.lower.item() == pytest.approx(value, abs=1e-4)
        if last is not None:
            assert found.a[3].item() == pytest.approx(last, abs=1e-4)
            assert found.a[:3].tolist() == pytest.approx([(1 - last) / 3] * 3, abs=1e-4)
    both = robust_ot(COST, 0.05, 0.05, method="exact", on_fail="ignore")
    assert both.lower <= 1.291486 + 1e-5


def test_radius_zero_is_sinkhorn():
    cost, p, q = torch.cdist(randn(7, 2), randn(5, 2, seed=1)), masses(7), masses(5, 1)
    found, wanted = robust_ot(cost, p=p, q=q), sinkhorn(cost, p, q)
    assert torch.equal(found.value, wanted.value) and torch.equal(found.plan, wanted.plan)
    assert torch.equal(found.a, p) and torch.equal(found.b, q) and found.n_iter == 1


@pytest.mark.parametrize("divergence", _DIVERGENCES)
def test_transport_agrees_with_a_joint_solver(divergence):
    "SciPy on plan and marginals at once, one side and two."
    if divergence == "tv":
        pytest.skip("no smooth constraint")
    cost = torch.cdist(randn(4, 2), randn(3, 2, seed=1) + 1)
    flat, n, m = cost.flatten().numpy(), 4, 3

    def size(masses, count):
        w = torch.as_tensor(masses * count).clamp(min=1e-300)
        return weight_divergence(w, divergence=divergence).item()

    for rhos in ((0.1, 0.0), (0.1, 0.05)):
        tests = [{"type": "ineq", "fun": lambda x, r=rhos: r[0] - size(x.reshape(n, m).sum(1), n)}]
        if rhos[1]:
            extra = {"fun": lambda x, r=rhos: r[1] - size(x.reshape(n, m).sum(0), m)}
            tests += [{"type": "ineq", **extra}, {"type": "eq", "fun": lambda x: x.sum() - 1}]
        else:
            tests += [{"type": "eq", "fun": lambda x: x.reshape(n, m).sum(0) - 1 / m}]
        start = torch.full((n * m,), 1 / (n * m)).double().numpy()
        best = minimize(
            lambda x: float(flat @ x),
            start,
            jac=lambda x: flat,
            bounds=[(0, None)] * (n * m),
            constraints=tests,
            options={"maxiter": 1000, "ftol": 1e-12},
        ).fun
        how = {"divergence": divergence, "on_fail": "ignore"}
        exact = robust_ot(cost, *rhos, method="exact", max_iter=60, tol=1e-3, **how)
        assert exact.lower.item() - 1e-4 <= best <= exact.transport_cost.item() + 1e-4
        assert exact.gap.item() < 0.06
        soft = robust_ot(cost, *rhos, epsilon=0.01, sinkhorn_max_iter=5000, **how)
        assert soft.lower.item() - 1e-4 <= best <= soft.transport_cost.item() + 1e-4


@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(4, 12),
    m=st.integers(4, 12),
    rho=st.floats(0.01, 0.2),
    seed=st.integers(0, 10**6),
    divergence=st.sampled_from(_DIVERGENCES),
)
def test_properties_of_transport(n, m, rho, seed, divergence):
    cost = torch.cdist(randn(n, 2, seed=seed), randn(m, 2, seed=seed + 1))
    how = {"divergence": divergence, "epsilon": 0.1, "on_fail": "ignore"}
    how["sinkhorn_max_iter"] = 300
    found = robust_ot(cost, rho, **how)
    plain = robust_ot(cost, **how)
    assert found.lower <= found.transport_cost + 1e-9 and found.gap >= -1e-9
    assert 0 <= found.value <= plain.value + 1e-6
    assert weight_divergence(found.weights_a, divergence=divergence) <= rho + 1e-6
    assert torch.allclose(found.plan.sum(1), found.a, atol=1e-6)
    assert torch.allclose(found.a * n, found.weights_a) and found.a.sum().item() == pytest.approx(1)
    turned = robust_ot(cost.T, 0.0, rho, **how)
    both = bool(found.converged & turned.converged)
    assert not both or turned.value.item() == pytest.approx(found.value.item(), abs=5e-3)
    scaled = robust_ot(3 * cost, rho, **how | {"epsilon": 0.3, "tol": 3e-3})
    assert scaled.value.item() == pytest.approx(3 * found.value.item(), abs=1e-5)
    more = robust_ot(cost, 2 * rho, **how)
    more = robust_ot(cost, 2 * rho, **how)
    assert not bool(more.converged) or more.value <= found.value + 2e-3


def test_the_entropy_and_its_certificate():
    "The case of the brief: exact 2.023, and an entropic value above the cost."
    x, y, _ = mixture(0.2, n=60)
    cost, rho = torch.cdist(x, y), rho_for_outliers(0.2)
    exact = robust_ot(cost, rho, method="exact", on_fail="ignore")
    for epsilon in (0.1, 0.05, 0.02):
        found = robust_ot(cost, rho, epsilon=epsilon)
        assert found.lower <= exact.transport_cost + 1e-6
        assert exact.lower - 1e-6 <= found.transport_cost <= found.value
        assert found.gap < 1.2 * epsilon + 2e-3
    assert abs(found.transport_cost - exact.transport_cost) < 0.01


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_the_right_radius_brings_the_clean_distance(share):
    x, y, k = mixture(share, seed=7, n=100)
    cost = torch.cdist(x, y)
    clean, plain = (robust_ot(c, epsilon=0.02).transport_cost for c in (cost[k:], cost))
    found = robust_ot(cost, rho_for_outliers(share), epsilon=0.02)
    assert abs(found.transport_cost / clean - 1) < 0.03 and plain / clean > 1.15
    assert found.a[:k].sum() < 0.01 and found.n_iter <= 10 and bool(found.converged)


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_of_the_theorem(seed):
    u = torch.rand(4, generator=seeded(seed)).tolist()
    at = (1 + 9 * u[0]) * math.cos(6 * u[1]), (1 + 9 * u[0]) * math.sin(6 * u[1])
    x, y, k = mixture(0.05 + 0.25 * u[2], seed, 40, at)
    share, rho = k / 40, 2 * u[3] * rho_for_outliers(k / 40)
    w_clean, w_apart = (
        (exact_plan(c) * c).sum() for c in (torch.cdist(x[k:], y), torch.cdist(x[:k], x[k:]))
    )
    found = robust_ot(torch.cdist(x, y), rho, method="exact", on_fail="ignore")
    left = max(0.0, share - (2 * rho * share * (1 - share)) ** 0.5)
    assert found.lower <= w_clean + left * w_apart + 1e-9
    assert found.transport_cost <= w_clean + left * w_apart + 1e-3


def test_no_triangle_inequality():
    rho, zero, one = rho_for_outliers(0.1), f64([0]), f64([1])
    Q, q = f64([0], [1]), f64(0.9, 0.1)
    pq = robust_ot(torch.cdist(Q, zero), rho, p=q, epsilon=0.01).transport_cost
    qr = robust_ot(torch.cdist(Q, one), rho, p=q, epsilon=0.01).transport_cost
    assert pq.item() == pytest.approx(0, abs=1e-6) and qr.item() == pytest.approx(0.8, abs=1e-6)


def test_points_without_mass_stay_dear():
    "A dropped outlier does not come back: its potential is the price of the way."
    found = robust_ot(COST, 1 / 6, method="exact", on_fail="ignore", max_iter=30)
    assert found.a[3] < 1e-6 and found.f[3] > found.f[:3].max() + 6
    p = f64(0.4, 0.3, 0.3, 0)
    found = robust_ot(COST, 0.05, p=p)
    alone = robust_ot(COST[:3], 0.05, p=p[:3])
    assert found.transport_cost.item() == pytest.approx(alone.transport_cost.item(), abs=1e-6)


def test_gradient_in_the_cost_is_the_plan():
    cost = COST.clone().requires_grad_()
    found = robust_ot(cost, 0.1, epsilon=0.2, tol=1e-7, on_fail="ignore")
    (slope,) = torch.autograd.grad(found.value, cost)
    assert torch.allclose(slope, found.plan)
    assert not found.transport_cost.requires_grad and not found.plan.requires_grad
    eps = 1e-3
    for i, j in ((0, 0), (3, 2)):
        ends = []
        for sign in (1, -1):
            moved = COST.clone()
            moved[i, j] += sign * eps
            how = {"epsilon": 0.2, "tol": 1e-7, "on_fail": "ignore"}
            ends.append(robust_ot(moved, 0.1, **how).value)
        assert ((ends[0] - ends[1]) / (2 * eps)).item() == pytest.approx(
            slope[i, j].item(), abs=2e-3
        )


def test_float32_follows_float64():
    x, y, _ = mixture(0.1, n=60)
    cost = torch.cdist(x, y)
    a, b = (robust_ot(c, 0.0556, epsilon=0.05) for c in (cost, cost.float()))
    assert b.value.dtype == torch.float32 and b.value.item() == pytest.approx(
        a.value.item(), rel=2e-3
    )
    assert b.lower <= a.transport_cost + 1e-4


def test_it_says_so_when_it_has_not_converged():
    x, y, _ = mixture(0.2, n=40)
    cost = torch.cdist(x, y)
    with pytest.warns(RuntimeWarning, match="robust_ot did not reach tol=1e-12"):
        found = robust_ot(cost, 0.1, tol=1e-12, max_iter=2)
    assert not bool(found.converged) and found.n_iter == 2
    with pytest.raises(RuntimeError, match="did not reach tol"):
        robust_ot(cost, 0.1, tol=1e-12, max_iter=2, on_fail="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robust_ot(cost, 0.1, tol=1e-12, max_iter=2, on_fail="ignore")
        assert bool(robust_ot(cost, 0.1).converged)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_elbow(share):
    x, y, _ = mixture(share, n=100)
    cost = torch.cdist(x, y)
    found = rho_elbow(cost, epsilon=0.05)
    assert 1 / 1.5 < found.rho / rho_for_outliers(share) < 1.5 and found.slope_ratio < 0.5
    assert found.fraction == pytest.approx(2 * found.rho / (1 + 2 * found.rho))
    assert len(found.rhos) == len(found.values) == 32
    other = rho_elbow(cost.T, epsilon=0.05, side="b")
    assert other.rho == pytest.approx(found.rho, rel=0.1)


def test_no_elbow_without_outliers():
    x, y, _ = mixture(0.0, n=100)
    assert rho_elbow(torch.cdist(x, y), epsilon=0.05).slope_ratio > 0.7


# ---- networks ----


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_weights(size):
    w = batch_weights(torch.randn(size, generator=seeded(0)))
    assert bool((w > 0).all()) and w.mean().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(batch_weights(-torch.ones(size)), torch.ones(size), atol=1e-6)


def test_weight_net():
    net = WeightNet(nn.Linear(3, 1))
    x = torch.randn(5, 3)
    assert torch.equal(net(x), batch_weights(net.model(x)[:, 0]))
    assert net.state_dict().keys() == {"model.weight", "model.bias"}
    net(x).square().sum().backward()
    with pytest.raises(ValueError, match="x must be what model takes"):
        net(torch.randn(5, 4))


def test_weight_loss():
    scores = torch.randn(6, generator=seeded(0), requires_grad=True)
    w = batch_weights(torch.rand(6, generator=seeded(1))).requires_grad_()
    inside, outside = weight_divergence(w).item() + 0.1, weight_divergence(w).item() - 0.01
    (slope,) = torch.autograd.grad(weight_loss(w, scores, inside), w)
    assert torch.allclose(slope, scores.detach() / 6)  # no penalty inside the ball
    assert weight_loss(w, scores, inside).item() == pytest.approx((w * scores).mean().item())
    more = weight_loss(w, scores, outside) - weight_loss(w, scores, inside)
    assert more.item() == pytest.approx(1, rel=1e-3)
    weight_loss(w, scores, outside).backward()
    assert scores.grad is None and w.grad is not None


@pytest.mark.parametrize("kind", ["wasserstein", "ns", "hinge"])
def test_critic_loss(kind):
    real, fake = torch.randn(6, generator=seeded(0)), torch.randn(4, generator=seeded(1))
    plain = discriminator_loss(real, fake, kind=kind)
    for inside in (True, False):
        assert torch.allclose(critic_loss(real, fake, kind=kind, inside=inside), plain)
        ones = critic_loss(real[:, None], fake[:, None], torch.ones(6), kind=kind, inside=inside)
        assert torch.allclose(ones, plain)
    w = batch_weights(torch.rand(6, generator=seeded(2))).requires_grad_()
    judge = {
        "wasserstein": lambda s: -s,
        "ns": lambda s: F.softplus(-s),
        "hinge": lambda s: (1 - s).clamp(min=0),
    }[kind]
    theirs = judge(-fake).mean()
    assert torch.allclose(critic_loss(real, fake, w, kind=kind), judge(w * real).mean() + theirs)
    outside = critic_loss(real, fake, w, kind=kind, inside=False)
    assert torch.allclose(outside, (w * judge(real)).mean() + theirs)
    assert not outside.requires_grad  # weights are constants


def test_losses_compile_and_map():
    real, fake, w = torch.randn(3, 6), torch.randn(3, 4), torch.rand(3, 6)
    compiled = torch.compile(critic_loss, backend="eager")
    each = [critic_loss(*row) for row in zip(real, fake, w, strict=True)]
    assert torch.allclose(compiled(real[0], fake[0], w[0]), each[0])
    assert torch.allclose(torch.vmap(critic_loss)(real, fake, w), torch.stack(each))
    assert torch.allclose(torch.vmap(batch_weights)(real)[1], batch_weights(real[1]))
    losses = torch.vmap(lambda w, s: weight_loss(w, s, 0.1))(w, real)
    assert torch.allclose(losses[2], weight_loss(w[2], real[2], 0.1))


def test_averaged_weights():
    s = torch.randn(8, generator=seeded(0))
    slow = AveragedWeights(8, 0.1, decay=0.9)
    assert torch.equal(slow.weights, torch.ones(8))
    slow.update(s)
    assert torch.allclose(slow.weights, ball_weights(s, 0.1))
    slow.update(torch.tensor([5.0, 7.0]), torch.tensor([2, 2]))
    assert slow.scores[2].item() == pytest.approx(0.9 * s[2].item() + 0.6)
    assert torch.equal(slow.scores[3:], s[3:])
    other = AveragedWeights(8, 0.1)
    other.load_state_dict(slow.state_dict())
    assert torch.equal(other.weights, slow.weights)
    fresh = AveragedWeights(4, 0.1)
    fresh.update(torch.tensor([1.0, 3.0]), torch.tensor([0, 1]))
    assert torch.allclose(fresh.weights, ball_weights(torch.tensor([1.0, 3.0, 2.0, 2.0]), 0.1))
    fresh.update(torch.tensor([torch.nan]), torch.tensor([0]))
    with pytest.raises(ValueError, match="scores must hold finite values"):
        fresh.weights  # noqa: B018


def test_slow_weights_leave_outliers_to_a_critic_that_sees_them():
    "Learning: a linear critic trained on weighted scores, weights from averaged ones."
    x = torch.cat([randn(190, 2), randn(10, 2, seed=1) * 0.1 + f64(6, 6)]).float()
    fake = randn(200, 2, seed=2).float()
    critic, slow = nn.Linear(2, 1), AveragedWeights(200, rho_for_outliers(0.05), decay=0.5)
    nn.init.zeros_(critic.weight)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    for _ in range(30):
        scores = critic(x)[:, 0]
        slow.update(scores.detach())
        loss = critic_loss(scores, critic(fake), slow.weights) + critic.weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    w = slow.weights
    assert w[190:].mean() < 0.3 < 0.9 < w[:190].mean()


# ---- bad inputs ----


def test_bad_inputs():
    s = f64(0, 1, 2)
    for error, match, call in [
        (ValueError, r"rho must lie in \[0, inf\), got -0.1", lambda: ball_weights(s, -0.1)),
        (
            ValueError,
            "p must be non-negative and sum to 1, got sum 0.97",
            lambda: ball_weights(s, 0.1, f64(0.5, 0.27, 0.2)),
        ),
        (ValueError, "p must be non-negative", lambda: ball_weights(s, 0.1, f64(1.5, -0.5, 0))),
        (ValueError, r"p must have shape", lambda: ball_weights(s, 0.1, f64(0.5, 0.5))),
        (ValueError, "scores must hold finite values", lambda: ball_weights(s / 0, 0.1)),
        (
            ValueError,
            "divergence must be one of 'chi2', 'kl', 'tv'",
            lambda: ball_weights(s, 0.1, divergence="js"),
        ),
        (TypeError, "scores must be a tensor of float dtype", lambda: ball_weights(s.long(), 0.1)),
        (ValueError, r"fraction must lie in \[0, 1\)", lambda: rho_for_outliers(1.0)),
        (ValueError, "rho_a must lie", lambda: robust_ot(COST, -0.1)),
        (ValueError, "cost must hold finite values", lambda: robust_ot(COST / 0)),
        (ValueError, r"cost must have shape \(n, m\)", lambda: robust_ot(COST[None])),
        (ValueError, "method must be one of", lambda: robust_ot(COST, method="simplex")),
        (ValueError, "sinkhorn_options must", lambda: robust_ot(COST, 0.1, init=(s, s))),
        (TypeError, "max_iters", lambda: robust_ot(COST, 0.1, max_iters=3)),
        (
            ValueError,
            "cost must have at most 250 000",
            lambda: robust_ot(torch.zeros(501, 500), method="exact"),
        ),
        (ValueError, "rhos must be at least 5 rising", lambda: rho_elbow(COST, f64(0, 1, 2))),
        (ValueError, "side must be one of", lambda: rho_elbow(COST, side="c")),
        (ValueError, r"w must have shape \(3,\)", lambda: critic_loss(s, s, f64(1, 1))),
        (ValueError, "real must have shape", lambda: critic_loss(torch.zeros(3, 2), s)),
        (ValueError, "kind must be one of", lambda: critic_loss(s, s, kind="w")),
        (ValueError, r"decay must lie", lambda: AveragedWeights(3, 0.1, decay=1.0)),
        (
            IndexError,
            "indices must lie in 0..2",
            lambda: AveragedWeights(3, 0.1).update(s[:1], torch.tensor([3])),
        ),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_kl_ball_with_one_score_very_far_away():
    for far in (1e3, 1e14, 1e16, 1e25):
        s = torch.tensor([0.0, 1.0, 2.0, far], dtype=torch.float64)
        w = ball_weights(s, 0.5, divergence="kl")
        assert abs(weight_divergence(w, divergence="kl") - 0.5) < 1e-6
        assert w[3] < 1e-6 or far < 1e4


def test_elbow_curve_never_rises_and_warns_of_more_than_one_half():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rough = {"epsilon": 0.05, "max_iter": 4, "sinkhorn_max_iter": 50, "on_fail": "ignore"}
    found = rho_elbow(torch.cdist(x, y), **rough)
    assert (found.values.diff() <= 0).all() and found.slope_ratio > -1e-6
    far = torch.cat([torch.zeros(9, 1), torch.full((1, 1), 9.0)]).double()
    with pytest.warns(RuntimeWarning, match="above one half"):
        rho_elbow(far, torch.linspace(0, 40, 9, dtype=torch.float64), on_fail="ignore")
