"""Alignment and uniformity: losses, optimum, known distributions, the limit, dtypes, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from ponderlearn import data
from ponderlearn.contrastive.alignment_uniformity import (
    AlignUniformLoss,
    align_loss,
    alignment_uniformity,
    contrastive_limit,
    uniform_loss,
    uniform_optimum,
)
from ponderlearn.contrastive.infonce import info_nce_loss, nt_xent_loss
from ponderlearn.training import fit
from ponderlearn.views import small_encoder, two_views


def f64(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def unit(n, d, seed=0):
    "Uniform on the sphere, (n, d), float64."
    return F.normalize(torch.randn(n, d, generator=seeded(seed), dtype=torch.float64), dim=1)


def on_circle(angle):
    return torch.stack([angle.cos(), angle.sin()], 1)


def polygon(n):
    return on_circle(2 * torch.pi * torch.arange(n, dtype=torch.float64) / n)


def official(x, t=2.0):
    return torch.pdist(x).square().mul(-t).exp().mean().log()


# ---- the lowest value ----

FLOORS = {
    2: (-0.764086, -1.176006, -1.575027, -1.791815, -2.057028),
    3: (-0.838561, -1.404780, -2.079777, -2.484913, -2.995732),
    8: (-0.937885, -1.755925, -3.082527, -4.097875, -5.564406),
    32: (-0.984382, -1.937614, -3.751805, -5.446439, -8.502096),
    128: (-0.996094, -1.984377, -3.937530, -5.859527, -9.610540),
}


@pytest.mark.parametrize("dim", FLOORS)
def test_optimum_by_table(dim):
    for t, value in zip((0.5, 1, 2, 3, 5), FLOORS[dim], strict=True):
        assert uniform_optimum(t, dim) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("t", [0.1, 0.5, 2.0, 5.0, 12.0])
@pytest.mark.parametrize("dim", [2, 3, 8, 128])
def test_optimum_by_three_formulas(t, dim):
    m, found = dim, uniform_optimum(t, dim)
    assert found == pytest.approx(-2 * t + math.log(special.hyp0f1(m / 2, t * t)), abs=1e-11)
    if t <= 5:
        second = math.log(special.hyp1f1((m - 1) / 2, m - 1, -4 * t))
        assert found == pytest.approx(second, abs=1e-9)
    bessel = special.ive(m / 2 - 1, 2 * t)  # times e^(-2t)
    third = special.gammaln(m / 2) + (1 - m / 2) * math.log(t) + math.log(bessel)
    assert found == pytest.approx(third, abs=1e-11)


def test_optimum_at_the_ends():
    for t in (1e-6, 0.3, 40.0):
        assert uniform_optimum(t, 1) == pytest.approx(-2 * t + math.log(math.cosh(2 * t)), abs=1e-9)
    for t in (1e2, 1e4, 1e6, 1e9):
        assert uniform_optimum(t, 3) == pytest.approx(-math.log(4 * t), abs=1e-6)
    values = [uniform_optimum(2.0, m) for m in (1, 2, 3, 10, 100, 10**4, 10**9)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(-4, abs=1e-6)


def test_polygons_come_from_below():
    table = {2: -8, 3: -6, 4: -4.396349, 5: -3.445721, 8: -2.363109, 16: -1.869924}
    table |= {64: -1.637762, 512: -1.582552}
    for n, value in table.items():
        assert uniform_loss(polygon(n)).item() == pytest.approx(value, abs=1e-6)
        assert value < uniform_optimum(2.0, 2)
    assert uniform_loss(polygon(4), t=1).item() == pytest.approx(-2.339989, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_simplex(n):
    x = F.normalize(torch.eye(n, dtype=torch.float64) - 1 / n, dim=1)
    for t in (0.5, 2.0):
        assert uniform_loss(x, t=t).item() == pytest.approx(uniform_optimum(t, n - 1, n), abs=1e-9)
    others = [
        uniform_loss(unit(n, n - 1, seed) if n > 2 else unit(n, 2, seed)) for seed in range(9)
    ]
    assert n == 2 or min(others) >= uniform_optimum(2.0, n - 1, n) - 1e-9


def test_cross_polytope_and_random_points():
    for m, value in ((8, -4.067685), (64, -4.007760)):
        eye = torch.eye(m, dtype=torch.float64)
        assert uniform_loss(torch.cat([eye, -eye])).item() == pytest.approx(value, abs=1e-6)
    found = torch.stack([uniform_loss(unit(64, 128, seed)) for seed in range(200)])
    assert found.mean().item() == pytest.approx(-3.93773, abs=0.003)
    assert found.std().item() == pytest.approx(0.008, abs=0.002)


# ---- known values ----


def test_align_by_hand():
    x, y = f64([1, 0], [0, 1]), f64([0.6, 0.8], [0, 1])
    for alpha, value in ((1, 0.447214), (2, 0.4), (3, 0.357771)):
        assert align_loss(x, y, alpha).item() == pytest.approx(value, abs=1e-6)
        each = align_loss(x, y, alpha, reduction="none")
        assert each.tolist() == pytest.approx([2 * value, 0], abs=2e-6)
        total = align_loss(x, y, alpha, reduction="sum").item()
        assert total == pytest.approx(2 * value, abs=2e-6)


@pytest.mark.parametrize(
    "dim, values",
    [
        (2, (1.273240, 2, 3.395305, 6)),
        (3, (1.333333, 2, 3.2, 5.333333)),
        (8, (1.389328, 2, 2.963899, 4.5)),
        (128, (1.412822, 2, 2.836726, 4.031250)),
    ],
)
def test_align_of_independent_uniform_pairs(dim, values):
    x, y = unit(60_000, dim, 1), unit(60_000, dim, 2)
    for alpha, value in enumerate(values, 1):
        each = align_loss(x, y, alpha, reduction="none")
        error = each.std().item() / len(x) ** 0.5
        assert each.mean().item() == pytest.approx(value, abs=4 * error)


def test_wrapped_normals_on_the_circle():
    table = {0.1: -0.038309, 0.5: -0.534707, 1.0: -1.070482, 2.0: -1.543885}
    for sigma, value in table.items():
        x = on_circle(sigma * torch.randn(3000, generator=seeded(3), dtype=torch.float64))
        assert uniform_loss(x).item() == pytest.approx(value, abs=0.03)
        base = 2 * torch.pi * torch.rand(60_000, generator=seeded(4), dtype=torch.float64)
        noise = sigma * torch.randn(2, 60_000, generator=seeded(5), dtype=torch.float64)
        one = align_loss(on_circle(base), on_circle(base + noise[0])).item()
        two = align_loss(on_circle(base + noise[1]), on_circle(base + noise[0])).item()
        assert one == pytest.approx(2 * (1 - math.exp(-(sigma**2) / 2)), rel=0.03)
        assert two == pytest.approx(2 * (1 - math.exp(-(sigma**2))), rel=0.03)


def von_mises_fisher(n, kappa, seed):
    "Draws on the sphere in three dimensions around the third axis."
    u = torch.rand(2, n, generator=seeded(seed), dtype=torch.float64)
    w = 1 + torch.log(u[0] + (1 - u[0]) * math.exp(-2 * kappa)) / kappa
    r = (1 - w * w).clamp(min=0).sqrt()
    return torch.stack([r * (2 * torch.pi * u[1]).cos(), r * (2 * torch.pi * u[1]).sin(), w], 1)


@pytest.mark.parametrize(
    "kappa, mean, uniform",
    [(1, 0.313035, -1.873670), (5, 0.800091, -0.930152), (50, 0.98, -0.147227)],
)
def test_von_mises_fisher(kappa, mean, uniform):
    x = von_mises_fisher(4000, kappa, 0)
    axis = torch.zeros_like(x)
    axis[:, 2] = 1
    assert align_loss(x, axis).item() == pytest.approx(2 * (1 - mean), rel=0.05)
    assert uniform_loss(x).item() == pytest.approx(uniform, abs=0.03)


# ---- the uniformity loss ----


def along(x, g):
    "The part of the gradient along the sphere."
    return g - (g * x).sum(1, keepdim=True) * x


def test_gradient_by_hand():
    x = f64([1, 0], [0, 1], [-1, 0]).requires_grad_()
    uniform_loss(x).backward()
    wanted = f64([0, 1.981851], [0, 0], [0, 1.981851])
    assert torch.allclose(along(x.detach(), x.grad).abs(), wanted, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 6), st.floats(0.05, 10))
def test_uniform_equals_the_official_one(seed, n, d, t):
    x = unit(n, d, seed)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    ours, theirs = uniform_loss(a, t=t), official(b, t)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-10)
    ours.backward(), theirs.backward()
    assert torch.allclose(along(x, a.grad), along(x, b.grad), atol=1e-8)


def test_invariance():
    x, y = unit(20, 5), unit(20, 5, 1)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=seeded(2), dtype=torch.float64))[0]
    order = torch.randperm(20, generator=seeded(3))
    assert torch.allclose(uniform_loss(x @ turn), uniform_loss(x), atol=1e-12)
    assert torch.allclose(align_loss(x @ turn, y @ turn), align_loss(x, y), atol=1e-12)
    assert uniform_loss(x[order]).item() == pytest.approx(uniform_loss(x).item(), abs=1e-12)
    for alpha in (0.5, 1, 2, 3):
        assert torch.allclose(align_loss(x, y, alpha), align_loss(y, x, alpha))
    assert uniform_loss(x[:1].expand(6, 5)).item() == pytest.approx(0, abs=1e-12)
    assert uniform_loss(x) < 0


def test_with_a_queue():
    x, queue = unit(7, 4), unit(11, 4, 1)
    wanted = torch.cdist(x, queue).square().mul(-3).exp().mean().log()
    assert torch.allclose(uniform_loss(x, queue, 3.0), wanted)
    both = torch.cat([x, queue])
    n = len(both)
    inside = [uniform_loss(z).exp() * len(z) * (len(z) - 1) for z in (x, queue)]
    across = 2 * uniform_loss(x, queue).exp() * len(x) * len(queue)
    whole = uniform_loss(both).exp() * n * (n - 1)
    assert torch.allclose(sum(inside) + across, whole)
    assert torch.allclose(uniform_loss(x[:1], queue), uniform_loss(queue, x[:1]))


def test_gradcheck():
    x, y = unit(5, 3).requires_grad_(), unit(4, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: uniform_loss(x, t=1.5), x)
    assert torch.autograd.gradcheck(lambda x, y: uniform_loss(x, y, 1.5), (x, y))
    pair = unit(5, 3).requires_grad_(), unit(5, 3, 2).requires_grad_()
    for alpha in (1.0, 2.0, 3.0):
        assert torch.autograd.gradcheck(lambda x, y, a=alpha: align_loss(x, y, a), pair)
    assert torch.autograd.gradcheck(lambda x, y: sum(contrastive_limit(x, y, 0.5)), pair)
    assert torch.autograd.gradcheck(AlignUniformLoss(0.7, 0.3), pair)


def test_second_derivatives():
    x, y = unit(5, 3).requires_grad_(), unit(4, 3, 1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: uniform_loss(x, t=1.5), x)
    assert torch.autograd.gradgradcheck(lambda x, y: uniform_loss(x, y, 1.5), (x, y))
    assert torch.autograd.gradgradcheck(AlignUniformLoss(0.7, 0.3), (x, unit(5, 3, 2)))

    def plain(x):
        d = 2 - 2 * (x @ x.T)
        return (-2 * d).masked_fill(torch.eye(5, dtype=torch.bool), -math.inf).logsumexp((0, 1))

    ours, theirs = (
        torch.func.jacrev(torch.func.jacrev(f))(x.detach()) for f in (uniform_loss, plain)
    )
    assert torch.allclose(ours, theirs, atol=1e-10)
    each = torch.stack([unit(5, 3, s) for s in range(3)])
    hessians = torch.vmap(torch.func.jacrev(torch.func.jacrev(uniform_loss)))(each)
    assert torch.allclose(hessians[0], ours, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extremes(dtype):
    poles = torch.tensor([[1, 0], [-1, 0]], dtype=dtype)
    for t in (5.0, 30.0, 1e4):
        found = uniform_loss(poles, t=t)
        assert found.item() == pytest.approx(-4 * t) and found.dtype == torch.float32
    x = unit(30, 8).to(dtype)
    assert uniform_loss(x).item() == pytest.approx(uniform_loss(x.double()).item(), abs=1e-5)
    assert align_loss(x, x.flip(0)).dtype == torch.float32


def test_under_autocast_it_stays_in_float32():
    x = unit(30, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(uniform_loss(x), uniform_loss(x))
        inside = uniform_loss(x)
    assert torch.equal(inside, uniform_loss(x))


def test_measures_under_autocast_stay_in_float32():
    x, y = unit(30, 8).float(), unit(30, 8, 1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = [alignment_uniformity(x, y, t=50), contrastive_limit(x, y, 0.1)]
    assert inside == [alignment_uniformity(x, y, t=50), contrastive_limit(x, y, 0.1)]
    assert inside[1].uniform.dtype == torch.float32


def test_measures_scale_rows_that_are_nearly_of_unit_norm():
    x, y = unit(30, 8), unit(30, 8, 1)
    same = x[:1].expand(5, 8)
    assert alignment_uniformity(1.009 * same, 0.991 * same) == pytest.approx((0, 0), abs=1e-12)
    assert alignment_uniformity(1.009 * x, y) == pytest.approx(alignment_uniformity(x, y))
    off, exact = contrastive_limit(1.009 * x, y, 0.1), contrastive_limit(x, y, 0.1)
    assert torch.allclose(torch.stack(off), torch.stack(exact))
    coarse = F.normalize(torch.ones(1, 100), dim=1).bfloat16().expand(4, 100)
    assert alignment_uniformity(coarse, coarse, t=50).uniformity == pytest.approx(0, abs=1e-4)


def test_the_largest_sharpness_is_finite_and_more_is_refused():
    x, y = unit(5, 3).float(), unit(5, 3, 1).float()
    for call in (
        lambda t: uniform_loss(x, t=t),
        lambda t: AlignUniformLoss(t=t)(x, y),
        lambda t: torch.tensor(alignment_uniformity(x, y, t=t)),
    ):
        assert call(1e9).isfinite().all()
        with pytest.raises(ValueError, match="t must lie in"):
            call(2e9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_equal_rows_have_no_gradient(alpha):
    x = unit(4, 3).requires_grad_()
    align_loss(x, x.detach().clone(), alpha).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_zero_rows_are_finite():
    z1, z2 = torch.zeros(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    loss = AlignUniformLoss()(z1, z2)
    loss.backward()
    assert loss.isfinite() and z1.grad.isfinite().all() and z2.grad.isfinite().all()


def test_vmap():
    x, y = (torch.stack([unit(6, 3, 10 * k + s).float() for k in range(4)]) for s in (0, 1))
    loss = AlignUniformLoss(alpha=1.0)
    each = torch.stack([loss(a, b) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(torch.vmap(loss)(x, y), each, atol=1e-6)
    slopes = torch.vmap(torch.func.grad(uniform_loss))(x)
    assert torch.allclose(slopes[2], torch.func.grad(uniform_loss)(x[2]), atol=1e-6)


def test_compile():
    x, y = unit(6, 3).float(), unit(6, 3, 1).float()
    compiled = torch.compile(AlignUniformLoss(), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x, y), AlignUniformLoss()(x, y), atol=1e-6)


# ---- both ----


def test_direct_loss():
    z1, z2 = 3 * unit(9, 4), 0.5 * unit(9, 4, 1)
    x, y = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    wanted = 0.9 * align_loss(x, y, 1.0) + 0.2 * (official(x, 3.0) + official(y, 3.0)) / 2
    assert torch.allclose(AlignUniformLoss(0.9, 0.2, 1.0, 3.0)(z1, z2), wanted)
    loose = AlignUniformLoss(normalize=False)(x, y)
    assert torch.allclose(loose, AlignUniformLoss()(z1, z2))


# ---- measures of whole sets ----


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 10**6])
def test_measures_in_chunks(chunk_size):
    x, y = unit(50, 6), unit(50, 6, 1)
    found = alignment_uniformity(x, y, alpha=1.0, t=3.0, chunk_size=chunk_size)
    assert found.alignment == pytest.approx(align_loss(x, y, 1.0).item())
    both = (uniform_loss(x, t=3.0) + uniform_loss(y, t=3.0)) / 2
    assert found.uniformity == pytest.approx(both.item())
    assert all(isinstance(v, float) for v in found)


def test_limit_and_loss_and_jensen():
    x, y = unit(40, 5), unit(40, 5, 1)
    for tau in (0.1, 0.5, 2.0):
        align, uniform = contrastive_limit(x, y, tau)
        assert align.item() == pytest.approx(-(x * y).sum(1).mean().item() / tau)
        rows = []
        for z in (x, y):
            s = (z @ z.T / tau).exp()
            rows.append(((s.sum(1) - s.diagonal()) / (len(z) - 1)).log().mean())
        assert uniform.item() == pytest.approx(sum(rows).item() / 2)
        t = 1 / (2 * tau)
        bound = alignment_uniformity(x, y, t=t).uniformity + 2 * t
        assert uniform.item() <= bound + 1e-12


def test_second_term_of_a_uniform_encoder():
    table = {2: (0.235914, 0.823994, 3.304682, 7.942972), 128: (0.003906, 0.015623, 0.097583)}
    table[8] = (0.062115, 0.244075, 1.378051, 4.435594)
    for m, values in table.items():
        for tau, value in zip((1, 0.5, 0.2, 0.1), values, strict=False):
            assert uniform_optimum(1 / (2 * tau), m) + 1 / tau == pytest.approx(value, abs=1e-6)
    x = polygon(2000)
    for tau, value in zip((1, 0.5, 0.2), table[2], strict=False):
        assert contrastive_limit(x, x, tau).uniform.item() == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("tau, limit", [(1.0, -0.764086), (0.5, -1.176006), (0.2, -1.695318)])
def test_theorem_on_the_circle(tau, limit):
    assert uniform_optimum(1 / (2 * tau), 2) == pytest.approx(limit, abs=1e-6)
    g, values = seeded(0), []
    anchor = f64([1, 0]).expand(400, 2)
    for _ in range(5):
        angle = 2 * torch.pi * torch.rand(400, 2000, generator=g, dtype=torch.float64)
        negatives = torch.stack([angle.cos(), angle.sin()], 2)
        values.append(info_nce_loss(anchor, anchor, negatives, temperature=tau))
    found = torch.stack(values).mean().item() - math.log(2000)
    assert found == pytest.approx(limit, abs=0.01)


def test_the_rate_is_one_over_M():
    for M, value in ((1, 1.1262), (4, 0.4069), (16, 0.11548), (64, 0.02990)):
        n, g = 400_000 // M, seeded(1)
        angle = 2 * torch.pi * torch.rand(n, M, generator=g, dtype=torch.float64)
        logits = torch.cat([torch.ones(n, 1, dtype=torch.float64), angle.cos()], 1)
        loss = logits.logsumexp(1) - 1
        error = loss.std().item() / n**0.5
        found = loss.mean().item() - math.log(M) + 0.764086
        assert found == pytest.approx(value, abs=4 * error + 1e-4)


# ---- learning ----


def test_it_learns_and_collapses_as_it_should():
    images, found = data.digits().train.x[:400], {}
    batches = two_views(images, 64)
    for name, weights in {"both": (1, 0.4), "align": (1, 0), "uniform": (0, 1)}.items():
        net, loss = small_encoder(8, size=8, seed=0), AlignUniformLoss(*weights)

        def loss_fn(net, batch, loss=loss):
            return loss(*net(torch.cat(batch)).chunk(2))

        fit(net, loss_fn, batches, steps=60, lr=3e-3, seed=0, bar=False)
        with torch.no_grad():
            z = [F.normalize(net(v), dim=1) for v in batches(10**6, seeded(0))]
        found[name] = alignment_uniformity(*z)
    assert found["align"].uniformity > -0.05 and found["align"].alignment < 0.02
    assert found["uniform"].uniformity < -2.0 and found["both"].uniformity < -0.5
    assert found["both"].alignment < 0.7 * found["uniform"].alignment


# ---- bad input ----


def test_bad_input():
    x, y = unit(4, 3), unit(4, 3, 1)
    cases = [
        (lambda: align_loss(x, unit(5, 3)), r"y must have shape \(4, 3\)"),
        (lambda: align_loss(x, y, 0), "alpha must lie in"),
        (lambda: align_loss(x, y, reduction="all"), "reduction must be one of"),
        (lambda: uniform_loss(x[:1]), "x must have at least 2 rows"),
        (lambda: uniform_loss(x, t=0), "t must lie in"),
        (lambda: uniform_loss(x, unit(5, 4)), "other must have shape"),
        (lambda: uniform_loss(2 * x, check=True), "x must have rows of unit norm"),
        (lambda: uniform_loss(x, 2 * y, check=True), "other must have rows of unit norm"),
        (lambda: uniform_loss(x * torch.nan, check=True), "x must have rows of unit norm"),
        (lambda: uniform_optimum(2.0, 0), "dim must"),
        (lambda: uniform_optimum(2.0, 3, n=5), "n must lie in 2..4"),
        (lambda: AlignUniformLoss(align_weight=-1), "align_weight must lie in"),
        (lambda: AlignUniformLoss()(x[:1], y[:1]), "x must have at least 2 rows"),
        (lambda: alignment_uniformity(x, 1.1 * y), "y must have rows of unit norm"),
        (lambda: alignment_uniformity(x[:1], y[:1]), "x must have at least 2 rows"),
        (lambda: contrastive_limit(x, y, 0), "temperature must lie in"),
        (lambda: contrastive_limit(1.1 * x, y, 1), "x must have rows of unit norm"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="x must be a tensor of float dtype"):
        uniform_loss(x.long())


def test_with_many_negatives_the_loss_of_a_batch_is_near_the_two_terms():
    z1 = unit(600, 8)
    z2 = F.normalize(z1 + 0.2 * unit(600, 8, 1), dim=1)
    found = nt_xent_loss(z1, z2, temperature=0.5).item() - math.log(2 * 600 - 2)
    assert found == pytest.approx(sum(contrastive_limit(z1, z2, 0.5)).item(), abs=0.02)


@pytest.mark.parametrize("n", [256, 257, 700])
def test_uniform_loss_in_blocks_of_rows(n):
    x = F.normalize(torch.randn(n, 5, generator=seeded(0)).double(), dim=1).requires_grad_()
    potential = torch.exp(-3.0 * torch.cdist(x, x).square()).triu(1).sum()
    wanted = (potential / (n * (n - 1) / 2)).log()
    found = uniform_loss(x, t=3.0)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(loss, x)[0] for loss in (found, wanted)]
    tangents = [s - (s * x).sum(1, keepdim=True) * x for s in slopes]  # along the sphere
    torch.testing.assert_close(*tangents)
    both = torch.stack([x, x.flip(1)]).detach()
    torch.testing.assert_close(torch.vmap(uniform_loss)(both)[1], uniform_loss(both[1]))
    per_batch = torch.vmap(torch.func.grad(uniform_loss))(both)
    torch.testing.assert_close(per_batch[1], torch.func.grad(uniform_loss)(both[1]))
