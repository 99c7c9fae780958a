"""Data set distances: the definitions against SciPy and plain loops, identities, bounds, gradients,
dtypes, bad inputs."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from ponderlearn.transport.otdd import (
    _METHODS,
    bures_squared,
    coupling_class_mass,
    dataset_cost,
    gaussian_w2_squared,
    label_distances,
    label_moments,
    otdd,
)
from ponderlearn.transport.sinkhorn import exact_plan

EXACT = {"tol": 1e-7, "max_iter": 3000, "on_fail": "ignore"}
SURE = {"epsilon": 0.5, **EXACT}


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=seeded(seed))


def labeled(n=12, d=3, classes=3, seed=0, shift=0.0):
    "Features (n, d) that depend on their label, and the labels, every class at least twice."
    y = torch.arange(n) % classes
    return randn(n, d, seed=seed) + y[:, None] * randn(d, seed=99) + shift, y


def four_points():
    x1, x2 = f64(0, 1, 2, 3)[:, None], f64(0, 2, 1, 3)[:, None]
    y = torch.tensor([0, 0, 1, 1])
    return x1, y, x2, y.clone()


def exact(x1, y1, x2, y2, method="gaussian", **how):
    "The squared distance by SciPy's plan."
    cost = dataset_cost(x1, y1, x2, y2, *label_distances(x1, y1, x2, y2, method=method), **how)
    return (exact_plan(cost) * cost).sum().item()


def covariance(*lead, d=4, rank=None, seed=0):
    A = randn(*lead, rank or 2 * d, d, seed=seed)
    return A.mT @ A / A.shape[-2]


# ---- labels ----


def test_moments_agree_with_a_loop():
    x, y = labeled(n=23)
    y = y * 10 - 7  # any names
    for unbiased in (False, True):
        m = label_moments(x, y, unbiased=unbiased)
        assert m.classes.tolist() == [-7, 3, 13] and m.counts.tolist() == [8, 8, 7]
        for c, mean, cov in zip(m.classes, m.means, m.covs, strict=True):
            assert torch.allclose(mean, x[y == c].mean(0))
            assert torch.allclose(cov, x[y == c].T.cov(correction=int(unbiased)))
    variances = label_moments(x, y, diagonal=True).covs
    assert torch.allclose(variances, label_moments(x, y).covs.diagonal(dim1=1, dim2=2))
    two = label_moments(x, y, torch.tensor([13, -7]))
    assert torch.allclose(two.means, label_moments(x, y).means[[2, 0]]) and len(two.covs) == 2


def test_weights_enter_the_moments():
    x, y = labeled(n=9)
    weights = torch.rand(9, generator=seeded(0), dtype=torch.float64)
    weights /= weights.sum()
    m = label_moments(x, y, weights=weights)
    for c in range(3):
        w = weights[y == c] / weights[y == c].sum()
        assert torch.allclose(m.means[c], w @ x[y == c])
        cov = x[y == c].T.cov(correction=0, aweights=w)
        assert torch.allclose(m.covs[c], cov)
    twice = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
    halves = f64(*[1 / 10] * 10)
    heavier = f64(2 / 10, *[1 / 10] * 8)
    a, b = label_moments(*twice, weights=halves), label_moments(x, y, weights=heavier)
    assert torch.allclose(a.covs, b.covs) and torch.allclose(a.means, b.means)


def test_a_class_of_one_is_a_point_with_a_warning():
    x, y = f64(0, 2, 5)[:, None], torch.tensor([0, 0, 3])
    for unbiased in (False, True):
        with pytest.warns(RuntimeWarning, match=r"one example count as points: \[3\] of y"):
            m = label_moments(x, y, unbiased=unbiased)
        assert m.covs[1].item() == 0 and m.means[1].item() == 5
    with pytest.warns(RuntimeWarning, match="count as points"):
        assert otdd(x, y, x + 1, y, epsilon=1.0, **EXACT).squared.item() == pytest.approx(2)


def test_points_as_classes_double_the_transport():
    x1, x2, y = randn(5, 2), randn(5, 2, seed=1), torch.arange(5)
    cost = torch.cdist(x1, x2).square()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = exact(x1, y, x2, y)
    assert found == pytest.approx(2 * (exact_plan(cost) * cost).sum().item())


@pytest.mark.parametrize("d", [1, 2, 5])
def test_bures_agrees_with_scipy(d):
    one, two = covariance(3, 1, d=d), covariance(4, d=d, seed=1)
    found = bures_squared(one, two)
    assert found.shape == (3, 4)
    for i, j in itertools.product(range(3), range(4)):
        a, b = one[i, 0].numpy(), two[j].numpy()
        r = sqrtm(a)
        wanted = a.trace() + b.trace() - 2 * sqrtm(r @ b @ r).real.trace()
        assert found[i, j].item() == pytest.approx(wanted, abs=1e-9)


def test_numbers_by_hand():
    assert gaussian_w2_squared(f64(0), f64(1)[None], f64(3), f64(4)[None]).item() == 10
    one, two = f64([2, 0.5], [0.5, 1]), f64([1, -0.3], [-0.3, 0.5])
    assert bures_squared(one, two).item() == pytest.approx(0.553301, abs=1e-6)
    found = gaussian_w2_squared(f64(1, 0), one, f64(0, 1), two)
    assert found.item() == pytest.approx(2.553301, abs=1e-6)
    roots = [torch.as_tensor(sqrtm(c.numpy())) for c in (one, two)]
    assert (roots[0] - roots[1]).square().sum().item() == pytest.approx(0.563078, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 5), rank=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_bures_is_a_distance(d, rank, seed):
    a, b, c = covariance(3, d=d, rank=rank, seed=seed)
    ab, bc, ac = (bures_squared(*p) for p in ((a, b), (b, c), (a, c)))
    assert ac.sqrt() <= ab.sqrt() + bc.sqrt() + 1e-6
    assert abs(ab - bures_squared(b, a)) < 1e-8 * (1 + ab) and bures_squared(a, a) < 1e-8
    assert ab <= a.trace() + b.trace() + 1e-9
    r = [torch.linalg.eigh(m) for m in (a, b)]
    r = [v * e.clamp(min=0).sqrt() @ v.T for e, v in r]
    assert ab <= (r[0] - r[1]).square().sum() + 1e-8


def test_low_rank_and_full_agree():
    x, y = labeled(n=30, d=12)
    full = label_distances(x[:, :5], y).W  # ten examples a class, 5 features
    wide = torch.cat([x[:, :5], torch.zeros(30, 20, dtype=torch.float64)], 1)
    assert torch.allclose(label_distances(wide, y).W, full, atol=1e-8)
    m = label_moments(wide, y)
    by_moments = gaussian_w2_squared(m.means[:, None], m.covs[:, None], m.means, m.covs)
    assert torch.allclose(by_moments, full, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(4, 12), m=st.integers(4, 12), d=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_bounds(n, m, d, seed):
    (x1, y1), (x2, y2) = labeled(n, d, 2, seed), labeled(m, d, 2, seed + 1)
    W = {k: label_distances(x1, y1, x2, y2, method=k).W for k in _METHODS if k != "sinkhorn"}
    order = ("means", "gaussian", "exact", "upper")
    for low, high in itertools.pairwise(order):
        assert (W[low] <= W[high] + 1e-7).all()
    assert (W["means"] <= W["diagonal"] + 1e-9).all()


def test_division_by_one_less_is_no_lower_bound():
    x1, x2, y = f64(0, 1)[:, None], f64(0, 2)[:, None], torch.zeros(2, dtype=torch.int64)
    found = {k: label_distances(x1, y, x2, y, method=k).W.item() for k in _METHODS[:5]}
    assert found["exact"] == pytest.approx(0.5) and found["gaussian"] == pytest.approx(0.5)
    assert label_distances(x1, y, x2, y, unbiased=True).W.item() == pytest.approx(0.75)


def test_clouds_by_hand():
    x1, x2, y = f64(0, 1, 5)[:, None], f64(0, 2, 3)[:, None], torch.zeros(3, dtype=torch.int64)
    wanted = {"exact": 1.666667, "gaussian": 0.944731, "upper": 6.333333}
    for method, value in wanted.items():
        found = label_distances(x1, y, x2, y, method=method).W.item()
        assert found == pytest.approx(value, abs=1e-6)


def test_sinkhorn_clouds_tend_to_the_exact_ones():
    (x1, y1), (x2, y2) = labeled(9, 2, 3), labeled(14, 2, 3, seed=4)
    wanted = label_distances(x1, y1, x2, y2, method="exact").W
    errors = [
        (label_distances(x1, y1, x2, y2, method="sinkhorn", epsilon=e).W - wanted).abs().max()
        for e in (1.0, 0.1, 0.01)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_padded_classes_do_not_matter():
    (x1, y1), (x2, y2) = labeled(9, 2, 2), labeled(7, 2, 3, seed=4)
    for method in _METHODS:
        W = label_distances(x1, y1, x2, y2, method=method).W
        for c, k in itertools.product(range(2), range(3)):
            alone = label_distances(
                x1[y1 == c], y1[y1 == c], x2[y2 == k], y2[y2 == k], method=method
            )
            assert W[c, k].item() == pytest.approx(alone.W.item(), abs=1e-6)


def test_one_set_with_itself():
    x, y = labeled()
    for method in _METHODS:
        W = label_distances(x, y, method=method).W
        assert torch.equal(W, W.T) and torch.allclose(
            W, label_distances(x, y, x, y, method=method).W, atol=1e-9
        )
        if method != "upper":
            assert W.diagonal().abs().max() < 1e-6


# ---- the distance ----


def test_four_points():
    x1, y1, x2, y2 = four_points()
    W = label_distances(x1, y1, x2, y2)
    assert torch.allclose(W.W, f64([0.5, 2.5], [2.5, 0.5]))
    assert dataset_cost(x1, y1, x2, y2, *W)[0].tolist() == pytest.approx([0.5, 4.5, 3.5, 11.5])
    assert exact(x1, y1, x2, y2, label_weight=0) == 0
    for weight, value in ((1, 1.0), (0.25, 0.375), (4, 2.5)):
        assert exact(x1, y1, x2, y2, label_weight=weight) == pytest.approx(value)
    W = label_distances(x1, y1, x2, y2, unbiased=True)
    cost = dataset_cost(x1, y1, x2, y2, *W)
    assert (exact_plan(cost) * cost).sum().item() == pytest.approx(1.25)


def test_four_points_with_entropy():
    pair = four_points()
    how = {"max_iter": 20_000, "on_fail": "ignore"}
    for epsilon, value, bound in ((0.1, 1.0, 2e-6), (0.5, 0.982558, 1e-6), (1, 0.898413, 1e-6)):
        found = otdd(*pair, epsilon=epsilon, **how)
        assert found.squared.item() == pytest.approx(value, abs=bound)
        assert found.distance.item() == pytest.approx(value**0.5, abs=bound)


@pytest.mark.parametrize("method", [m for m in _METHODS if m != "upper"])
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 10.0])
def test_translation(method, epsilon):
    x, y = labeled()
    moved = x + f64(0.4, -0.2, 0.1)
    found = otdd(x, y, moved, y, epsilon=epsilon, method=method, **EXACT)
    assert found.squared.item() == pytest.approx(0.42, abs=1e-5)


def test_translation_exactly():
    x, y = labeled()
    assert exact(x, y, x + f64(0.4, -0.2, 0.1), y) == pytest.approx(0.42)


def test_what_changes_nothing():
    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3, shift=0.3)
    value = otdd(x1, y1, x2, y2, **SURE).squared.item()
    turn = torch.linalg.qr(randn(3, 3, seed=8)).Q
    order = torch.randperm(12, generator=seeded(0))
    names = torch.tensor([11, -4, 7, 0])
    same = {
        "symmetry": (x2, y2, x1, y1),
        "names": (x1, names[y1], x2, names[y2] + 100),
        "order": (x1[order], y1[order], x2, y2),
        "copies": (torch.cat([x1, x1]), torch.cat([y1, y1]), x2, y2),
        "a turn": (x1 @ turn, y1, x2 @ turn, y2),
        "shapes": (x1[:, None, :], y1, x2[:, :, None], y2.int()),
    }
    for name, pair in same.items():
        assert otdd(*pair, **SURE).squared.item() == pytest.approx(value, rel=1e-6), name
    scaled = otdd(3 * x1, y1, 3 * x2, y2, epsilon=4.5, **EXACT)
    assert scaled.squared.item() == pytest.approx(9 * value, rel=1e-6)
    halves = otdd(x1, y1, x2, y2, weights1=torch.full((12,), 1 / 12).double(), **SURE)
    assert halves.squared.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("method", _METHODS)
def test_a_set_and_itself(method):
    x, y = labeled()
    assert abs(otdd(x, y, x, y, method=method, **SURE).squared.item()) < 1e-6
    apart = otdd(x, y, x, y, debiased=False, **SURE)
    assert apart.squared.item() > 1e-3  # the entropic plan spreads


def test_without_labels_it_is_the_sinkhorn_divergence():
    from ponderlearn.transport.sinkhorn import sinkhorn_divergence_points

    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3)
    wanted = sinkhorn_divergence_points(x1, x2, epsilon=0.3, **EXACT).value
    found = otdd(x1, y1, x2, y2, epsilon=0.3, label_weight=0, **EXACT)
    assert torch.allclose(found.squared, wanted)


def test_small_epsilon_tends_to_the_exact_distance():
    (x1, y1), (x2, y2) = labeled(), labeled(12, 3, 4, seed=3)
    for debiased in (True, False):
        how = {"epsilon": 0.005, "debiased": debiased, "max_iter": 20_000}
        found = otdd(x1, y1, x2, y2, **how)
        assert found.squared.item() == pytest.approx(exact(x1, y1, x2, y2), abs=0.02)


def test_an_example_of_no_weight_is_not_there():
    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3)
    weights = torch.cat([torch.full((12,), 1 / 12), torch.zeros(1)]).double()
    more = torch.cat([x1, 3 + x1[:1]]), torch.cat([y1, y1[:1]])
    a, b = otdd(*more, x2, y2, weights1=weights, **SURE), otdd(x1, y1, x2, y2, **SURE)
    assert a.squared.item() == pytest.approx(b.squared.item(), rel=1e-6)
    assert a.plan[-1].abs().max() == 0


def test_a_cost_of_ones_own():
    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3)
    wanted = otdd(x1, y1, x2, y2, feature_weight=2, **SURE).squared
    own = lambda a, b: 2 * torch.cdist(a, b).square()
    assert torch.allclose(otdd(x1, y1, x2, y2, feature_cost=own, **SURE).squared, wanted)


def test_sampling():
    x, y = labeled(60)
    assert abs(otdd(x, y, x, y, max_samples=20, generator=seeded(0), **SURE).squared) < 1e-6
    some = [otdd(x, y, x + 1, y, max_samples=20, generator=seeded(s), **SURE) for s in (0, 0, 1)]
    assert some[0].plan.shape == (20, 20) and some[0].squared == some[1].squared
    assert some[0].squared != some[2].squared
    weights = torch.full((60,), 1 / 60).double()
    how = {"max_samples": 20, "weights1": weights, "generator": seeded(0)}
    assert torch.allclose(otdd(x, y, x + 1, y, **how, **SURE).squared, some[0].squared)


def test_class_mass():
    plan = torch.rand(5, 4, generator=seeded(0), dtype=torch.float64)
    y1, y2 = torch.tensor([3, 1, 3, 1, 1]), torch.tensor([0, 0, 9, 9])
    found = coupling_class_mass(plan, y1, y2)
    for (i, c), (j, k) in itertools.product(enumerate((1, 3)), enumerate((0, 9))):
        assert found[i, j].item() == pytest.approx(plan[y1 == c][:, y2 == k].sum().item())


@pytest.mark.slow
def test_a_shift_is_undone_by_descent():
    "Learning: gradient descent on the features brings a set home, its labels too."
    x, y = labeled(20, 2, 2)
    moved = (x.float() + torch.tensor([1.0, -0.5])).requires_grad_()
    optimizer = torch.optim.SGD([moved], lr=7.0)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        found = otdd(moved, y, x.float(), y, epsilon=0.1)
        found.squared.backward()
        optimizer.step()
        values.append(found.squared.item())
    assert values[0] == pytest.approx(2.5, abs=0.01) and values[-1] < 0.05


# ---- gradients and dtypes ----


def test_gradcheck_bures():
    one, two = (covariance(2, d=3, seed=s).requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(bures_squared, (one, two))


def test_gradient_where_eigenvalues_coincide():
    one = torch.eye(3, dtype=torch.float64).requires_grad_()
    bures_squared(one, 4 * torch.eye(3, dtype=torch.float64)).backward()
    assert torch.allclose(one.grad, -torch.eye(3, dtype=torch.float64))  # of 3 (1 - 2)^2


@pytest.mark.parametrize("method", ["gaussian", "diagonal", "means", "sinkhorn", "upper"])
@pytest.mark.parametrize("d", [2, 4])
def test_gradcheck_distance(method, d):
    (x1, y1), (x2, y2) = labeled(6, d, 2), labeled(6, d, 2, seed=5)

    def value(x1, x2):
        return otdd(x1, y1, x2, y2, method=method, epsilon=3.0, tol=1e-11, max_iter=2000).squared

    assert torch.autograd.gradcheck(
        value, (x1.requires_grad_(), x2.requires_grad_()), atol=1e-4, rtol=1e-3, fast_mode=True
    )


@pytest.mark.parametrize("d", [2, 30])
def test_singular_covariances(d):
    x, y = labeled(8, 4, 2)
    x = torch.cat([x, torch.zeros(8, d, dtype=torch.float64)], 1).requires_grad_()
    for method in _METHODS:
        found = otdd(x, y, x.detach() + 1, y, method=method, epsilon=5.0, tol=1e-6).squared
        (slope,) = torch.autograd.grad(found, x)
        assert bool(found.isfinite()) and bool(slope.isfinite().all())
        mean = slope.sum(0)  # the gradient to a shift of the whole set
        parts = 1 if method == "exact" else 2  # SciPy's plan has a gradient in the cost alone
        assert parts == 1 or torch.allclose(mean, torch.full_like(mean, -4), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3)
    half = x1.to(dtype), y1, x2.to(dtype), y2
    whole = half[0].float(), y1, half[2].float(), y2
    a, b = otdd(*half, epsilon=1.0), otdd(*whole, epsilon=1.0)
    assert a.squared.dtype == torch.float32 and torch.allclose(a.squared, b.squared)
    cov = covariance(d=3).to(dtype)
    assert bures_squared(cov, cov).dtype == torch.float32


def test_float32_follows_float64():
    (x1, y1), (x2, y2) = labeled(40, 60), labeled(50, 60, 4, seed=3)
    for method in _METHODS:
        a = otdd(x1, y1, x2, y2, method=method, epsilon=5.0)
        b = otdd(x1.float(), y1, x2.float(), y2, method=method, epsilon=5.0)
        assert b.squared.dtype == torch.float32 and torch.allclose(
            a.squared.float(), b.squared, rtol=1e-3
        )


def test_compiles():
    compiled = torch.compile(bures_squared, backend="eager")
    one, two = covariance(2), covariance(2, seed=1)
    assert torch.allclose(compiled(one, two), bures_squared(one, two))


def test_no_tensor_of_all_three_sizes(monkeypatch):
    "The costs of 200 x 200 examples with 500 features, in less than the 80 MB of (n, m, d)."
    from torch.profiler import profile

    (x1, y1), (x2, y2) = labeled(200, 500, 2), labeled(200, 500, 2, seed=1)
    with profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p:
        W = label_distances(x1, y1, x2, y2, method="means")
        dataset_cost(x1, y1, x2, y2, *W)
    most = max(e.cpu_memory_usage for e in p.events())
    assert 0 < most < 200 * 200 * 500 * 8 / 10


# ---- bad inputs ----


def test_bad_inputs():
    x, y = labeled()
    for error, match, call in [
        (ValueError, r"x2 must have 3 features as x1, got 2", lambda: otdd(x, y, x[:, :2], y)),
        (ValueError, r"y1 must have shape \(12,\)", lambda: otdd(x, y[:4], x, y)),
        (TypeError, "x1 must be a tensor of float dtype", lambda: otdd(x.long(), y, x, y)),
        (TypeError, "y2 must be a tensor of integer dtype", lambda: otdd(x, y, x, y.float())),
        (ValueError, "epsilon must", lambda: otdd(x, y, x, y, epsilon=0)),
        (ValueError, "epsilon must", lambda: otdd(x, y, x, y, epsilon=-1.0)),
        (ValueError, "method must be one of 'gaussian'", lambda: otdd(x, y, x, y, method="bures")),
        (
            ValueError,
            "weights1 must be non-negative and sum to 1, got sum 12",
            lambda: otdd(x, y, x, y, weights1=torch.ones(12).double()),
        ),
        (ValueError, "x1 must hold finite values", lambda: otdd(x * torch.nan, y, x, y)),
        (ValueError, "max_samples must be >= 1", lambda: otdd(x, y, x, y, max_samples=0)),
        (TypeError, "max_iters", lambda: otdd(x, y, x, y, max_iters=3)),
        (
            ValueError,
            r"classes must have examples in y, got none of class \[3\]",
            lambda: label_moments(x, y, torch.tensor([0, 3])),
        ),
        (
            ValueError,
            "weights1 must give weight to each class",
            lambda: label_distances(x, y, weights1=f64(*[1 / 8, 1 / 8, 0] * 4)),
        ),
        (
            ValueError,
            r"y1 must hold labels of classes1, got a label \[2\]",
            lambda: dataset_cost(x, y, x, y, torch.zeros(2, 3), torch.arange(2), torch.arange(3)),
        ),
        (
            ValueError,
            "W must hold finite values",
            lambda: dataset_cost(
                x, y, x, y, torch.full((3, 3), torch.nan), torch.arange(3), torch.arange(3)
            ),
        ),
        (
            ValueError,
            "cov1 must have shape",
            lambda: bures_squared(torch.zeros(2, 3), torch.eye(3)),
        ),
        (ValueError, "cov2 must have shape", lambda: bures_squared(torch.eye(2), torch.eye(3))),
        (
            ValueError,
            "cov1 must hold finite values",
            lambda: bures_squared(torch.eye(2) / 0, torch.eye(2)),
        ),
        (ValueError, "feature_cost", lambda: otdd(x, y, x, y, feature_cost=lambda a, b: a)),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_a_transport_that_has_not_converged_says_so():
    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3)
    with pytest.warns(RuntimeWarning):
        found = otdd(x1, y1, x2, y2, epsilon=0.001, max_iter=1)
    assert not bool(found.converged) and found.error > 0


# ---- faults found by a reading ----


def test_label_distances_that_have_not_converged_say_so():
    (x1, y1), (x2, y2) = labeled(60), labeled(60, seed=3)
    with pytest.warns(RuntimeWarning, match="did not reach tol"):
        label_distances(x1, y1, x2, y2, method="sinkhorn", epsilon=0.001)
    how = {"method": "sinkhorn", "epsilon": 0.02}
    with pytest.warns(RuntimeWarning, match="did not reach tol"):
        found = otdd(x1, y1, x2, y2, label_weight=0, max_iter=20, **how)
    assert not bool(found.converged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(otdd(x1, y1, x2, y2, max_iter=20_000, **how).converged)
        assert bool(label_distances(x1, y1, x2, y2, method="sinkhorn", epsilon=1.0).W.all())


def test_options_reach_the_label_distances():
    (x1, y1), (x2, y2) = labeled(60), labeled(60, seed=3)
    how = {"method": "sinkhorn", "epsilon": 0.02, "on_fail": "ignore"}
    few, many = (otdd(x1, y1, x2, y2, max_iter=n, **how).label_distances for n in (2, 20_000))
    wanted = label_distances(x1, y1, x2, y2, method="exact").W
    assert (many - wanted).abs().max() < (few - wanted).abs().max()
    with pytest.raises(RuntimeError, match="did not reach tol"):
        otdd(x1, y1, x2, y2, max_iter=2, **how | {"on_fail": "raise"})


def test_weights_have_no_gradient():
    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3)
    weights = torch.full((12,), 1 / 12, dtype=torch.float64, requires_grad=True)
    found = otdd(x1, y1, x2, y2, weights1=weights, **SURE)
    assert not found.squared.requires_grad and not found.plan.requires_grad
    assert not label_distances(x1, y1, weights1=weights).W.requires_grad
    assert not label_moments(x1, y1, weights=weights).means.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_of_a_sample(dtype):
    x, y = labeled(16)
    x, weights = x.to(dtype), torch.full((16,), 1 / 16, dtype=dtype)
    how = {"max_samples": 7, "epsilon": 1.0}
    found, wanted = (
        otdd(x, y, x + 1, y, weights1=w, generator=seeded(0), **how).squared
        for w in (weights, None)
    )
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_cost_that_is_not_finite(value):
    x, y = labeled()
    W = label_distances(x, y)
    bad = lambda a, b: torch.full((12, 12), value, dtype=torch.float64)
    for call in (
        lambda: dataset_cost(x, y, x, y, *W, feature_cost=bad),
        lambda: otdd(x, y, x, y, feature_cost=bad),
    ):
        with pytest.raises(ValueError, match="what feature_cost returns must hold finite values"):
            call()


def test_upper_and_means_agree_when_debiased():
    (x1, y1), (x2, y2) = labeled(), labeled(15, 3, 4, seed=3)
    values = [otdd(x1, y1, x2, y2, method=m, **SURE).squared for m in ("upper", "means")]
    assert torch.allclose(*values)
    values = [
        otdd(x1, y1, x2, y2, method=m, debiased=False, **SURE).squared for m in ("upper", "means")
    ]
    assert values[0] > values[1] + 1
