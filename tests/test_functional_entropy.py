"""Functional entropy: quadrature, SciPy, plain loops, the penalty's forms, bad inputs, learning."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma, rel_entr
from torch import nn
from torch.nn.functional import cross_entropy

from ponderlearn.robust.functional_entropy import (
    FunctionalEntropyRegularizer,
    functional_entropy,
    functional_fisher_information,
    functional_variance,
    information_penalty,
    information_share,
    log_sobolev_bound,
    modality_information,
    output_cross_entropy,
    perturb,
    poincare_bound,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def hermite(n=40, mean=0.0, sigma=1.0):
    z, w = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(n))
    return mean + sigma * z, w


def smooth(widths=(3, 4), n_classes=3, seed=0, dtype=torch.float64):
    "A smooth network of two modalities, the second an image of 2 rows if its width is even."
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(w, 5) for w in widths)
            self.head = nn.Linear(5, n_classes)

        def forward(self, *inputs):
            pairs = zip(self.parts, inputs, strict=True)
            return self.head(torch.tanh(sum(f(x.flatten(1)) for f, x in pairs)))

    return Net().to(dtype)


# ---- entropy, variance, bounds ----


def test_closed_forms_by_quadrature():
    "e^(0.7 z) under N(0.2, 0.5^2): log-Sobolev is an equality; z^2 under N(0, 1)."
    z, w = hermite(mean=0.2, sigma=0.5)
    f = (0.7 * z).exp()
    grad = 0.7 * f[:, None]
    want = 0.0749045
    assert functional_entropy(f, w).item() == pytest.approx(want, abs=1e-6)
    assert functional_fisher_information(f, grad, weights=w).item() == pytest.approx(
        0.599236, abs=1e-6
    )
    assert log_sobolev_bound(f, grad, 0.5, w).item() == pytest.approx(want, abs=1e-6)
    assert functional_variance(f, w).item() == pytest.approx(0.194900, abs=1e-6)
    assert poincare_bound(grad, 0.5, w).item() == pytest.approx(0.207081, abs=1e-6)
    z, w = hermite(n=200)
    want = digamma(1.5) + math.log(2)
    assert functional_entropy(z**2, w).item() == pytest.approx(want, abs=1e-3)
    assert functional_variance(z**2, w).item() == pytest.approx(2)
    assert poincare_bound(2 * z[:, None], 1.0, w).item() == pytest.approx(4)
    assert log_sobolev_bound(z**2, 2 * z[:, None], 1.0, w).item() == pytest.approx(2)


def test_linear_reaches_poincare():
    z, w = hermite(mean=-1, sigma=2)
    f = 30 + 0.3 * z
    grad = torch.full((40, 1), 0.3, dtype=torch.float64)
    torch.testing.assert_close(functional_variance(f, w), poincare_bound(grad, 2.0, w))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(0.1, 100))
def test_entropy_beside_scipy(n, seed, c):
    f = torch.rand(4, n, generator=generator(seed), dtype=torch.float64)
    w = torch.rand(4, n, generator=generator(seed + 1), dtype=torch.float64) + 1e-3
    p = w / w.sum(1, keepdim=True)
    mean = (p * f).sum(1, keepdim=True)
    want = rel_entr((p * f).numpy(), (p * mean).numpy()).sum(1)
    got = functional_entropy(f, w)
    torch.testing.assert_close(got, torch.from_numpy(want), atol=1e-12, rtol=1e-9)
    assert (got >= -1e-15).all()
    torch.testing.assert_close(functional_entropy(c * f, w), c * got, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(functional_variance(c * f, w), c**2 * functional_variance(f, w))
    torch.testing.assert_close(functional_entropy(f.T, w.T, 0), got)


def test_by_hand():
    f = torch.tensor([1.0, 2, 4], dtype=torch.float64)
    assert functional_entropy(f).item() == pytest.approx(0.333462, abs=1e-6)
    assert functional_variance(f).item() == pytest.approx(1.555556, abs=1e-6)
    assert functional_entropy(torch.full((7,), 3.0)).abs() < 1e-12
    assert functional_variance(torch.full((7,), 3.0)) < 1e-12
    assert functional_entropy(torch.zeros(5)) == 0
    assert functional_entropy(torch.tensor([0.0, 1])).item() == pytest.approx(math.log(2) / 2)
    tiny = 1 + 1e-9 * numbers(1000)
    ratio = functional_entropy(tiny) / (functional_variance(tiny) / 2)
    assert ratio.item() == pytest.approx(1, abs=1e-3)


def test_weights_lie_along_the_samples():
    "By hand along each axis; weights that would broadcast over another axis are refused."
    f, w = (
        torch.rand(3, 3, generator=generator(), dtype=torch.float64),
        torch.tensor([0.8, 0.1, 0.1]),
    )
    w, grad = w.double(), torch.rand(3, 3, 2, generator=generator(), dtype=torch.float64)
    mean = (w[:, None] * f).sum(0)
    want = (w[:, None] * f * f.log()).sum(0) - mean * mean.log()
    torch.testing.assert_close(functional_entropy(f, w[:, None], 0), want)
    torch.testing.assert_close(functional_entropy(f.T, w), want)
    torch.testing.assert_close(functional_variance(f, w[:, None], 0), (w @ f**2) - mean**2)
    for call in (
        lambda weights, dim: functional_entropy(f, weights, dim),
        lambda weights, dim: functional_variance(f, weights, dim),
        lambda weights, dim: functional_fisher_information(f, grad, 1.0, weights, dim),
        lambda weights, dim: log_sobolev_bound(f, grad, 1.0, weights, dim),
        lambda weights, dim: poincare_bound(grad, 1.0, weights, dim),
    ):
        call(w, -1), call(w[:, None], 0)
        for weights, dim in ((w, 0), (w[:, None], 1), (w[None], -2)):
            with pytest.raises(ValueError, match=f"^weights must fit .* vary along dim {dim}"):
                call(weights, dim)


def test_tensorization():
    table = torch.tensor([[1.0, 2], [3, 8]], dtype=torch.float64)
    parts = [functional_entropy(table, dim=dim).mean().item() for dim in (0, 1)]
    assert parts == pytest.approx([0.612674, 0.337260], abs=1e-6)
    assert functional_entropy(table.flatten()).item() == pytest.approx(0.944746, abs=1e-6)
    parts = [functional_variance(table, dim=dim).mean().item() for dim in (0, 1)]
    assert parts == [5, 3.25] and functional_variance(table.flatten()) == 7.25


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_products_and_sums_are_equalities(seed):
    g, h = (torch.rand(5, generator=generator(seed + i), dtype=torch.float64) for i in (0, 1))
    product, total = g[:, None] * h, g[:, None] + h
    for table, measure in ((product, functional_entropy), (total, functional_variance)):
        parts = sum(measure(table, dim=dim).mean() for dim in (0, 1))
        torch.testing.assert_close(measure(table.flatten()), parts)
    for measure in (functional_entropy, functional_variance):
        table = torch.rand(5, 5, generator=generator(seed), dtype=torch.float64)
        parts = sum(measure(table, dim=dim).mean() for dim in (0, 1))
        assert measure(table.flatten()) <= parts + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_for_a_network(seed):
    "On 1e5 noisy points, within three standard errors; and the sum over modalities is the whole."
    net, s = smooth(seed=seed), 100_000
    x, sigma = [numbers(1, 3, seed=seed), numbers(1, 4, seed=seed + 1)], 1.3
    z = perturb(x, s, scale=sigma, generator=generator(seed))
    f = output_cross_entropy(net(*x).detach().expand(s, -1), net(*z))
    grad = torch.cat(torch.autograd.grad(f.sum(), z), 1)
    f = f.detach()
    bound = log_sobolev_bound(f, grad, sigma)
    error = 3 * (sigma**2 * grad.square().sum(1) / f / 2).std() / s**0.5
    assert functional_entropy(f) <= bound + error
    assert functional_variance(f) <= poincare_bound(grad, sigma) * 1.02
    for kind, whole in (("entropy", 2 * bound), ("variance", poincare_bound(grad, sigma))):
        info = modality_information(
            net, x, s, scale=sigma, kind=kind, eps=0, generator=generator(seed)
        ).info
        torch.testing.assert_close(info.sum(), whole)


def test_zero_over_zero_counts_nothing():
    f, grad = torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [2.0]])
    assert functional_fisher_information(f, grad) == 2
    assert functional_fisher_information(f, grad + 1) == math.inf
    assert functional_fisher_information(f, grad, eps=1.0) == 1


# ---- the change of the answer ----


def test_softmax_by_hand():
    w = torch.tensor([[1.0, 0], [0, 1], [-1, 0.5]], dtype=torch.float64)
    x = torch.tensor([[0.5, -0.25]], dtype=torch.float64)
    z = torch.tensor([[1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    want = {
        "clean_to_perturbed": (1.024373, (0.088277, 0.036302), 0.0088939),
        "perturbed_to_clean": (0.951456, (-0.279356, 0.168129), 0.111731),
    }
    for direction, (value, slope, ratio) in want.items():
        f = output_cross_entropy(x @ w.T, z @ w.T, direction=direction)
        (grad,) = torch.autograd.grad(f.sum(), z)
        assert f.item() == pytest.approx(value, abs=1e-6)
        assert grad[0].tolist() == pytest.approx(slope, abs=1e-6)
        found = functional_fisher_information(f.detach(), grad)
        assert found.item() == pytest.approx(ratio, abs=1e-6)


def test_cross_entropy_is_torchs():
    a, b = 4 * numbers(20, 5), 4 * numbers(20, 5, seed=1)
    want = cross_entropy(b, a.softmax(1), reduction="none")
    torch.testing.assert_close(output_cross_entropy(a, b), want)
    back = output_cross_entropy(b, a, direction="perturbed_to_clean")
    torch.testing.assert_close(back, want)
    far = torch.tensor([[1e4, -1e4, 0.0]])
    assert output_cross_entropy(far, far) == 0
    assert output_cross_entropy(far, far.flip(1)).isfinite()


# ---- noise ----


def test_perturb_any_shapes():
    x = [numbers(4, 3).float(), numbers(4, 2, 5, 1), numbers(4)]
    z = perturb(x, 200, generator=generator())
    assert [tuple(t.shape) for t in z] == [(800, 3), (800, 2, 5, 1), (800,)]
    assert [t.dtype for t in z] == [t.dtype for t in x]
    assert all(t.is_leaf and t.requires_grad for t in z)
    for t, a in zip(z, x, strict=True):
        copies = t.detach().unflatten(0, (4, 200))
        torch.testing.assert_close(copies.mean(1), a, atol=0.4, rtol=0)
        sigma = a.std(0).expand_as(a)  # unbiased, as the released code
        torch.testing.assert_close(copies.std(1), sigma, atol=0, rtol=0.25)
    again = perturb(x, 200, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(z, again, strict=True))


def test_scales():
    x = [numbers(4, 3), numbers(4, 2)]
    zero = perturb(x, 2, scale=0.0)
    assert torch.equal(zero[0].detach(), x[0].repeat_interleave(2, 0))
    z = perturb(x, 2, scale=[0.0, torch.tensor([0.0, 3.0])])
    assert torch.equal(z[0].detach(), x[0].repeat_interleave(2, 0))
    still, moved = z[1].detach().T
    assert torch.equal(still, x[1][:, 0].repeat_interleave(2)) and (moved != 0).all()
    assert perturb([x[0][:1]], 2, scale=1.0)[0].shape == (2, 3)


def test_inputs_are_not_touched():
    x = [numbers(4, 3).requires_grad_(), numbers(4, 4)]
    net = smooth()
    modality_information(net, x, generator=generator()).info.sum().backward()
    assert x[0].grad is not None  # by the clean answer
    assert not x[1].requires_grad


# ---- information ----


@pytest.mark.parametrize("kind", ["entropy", "variance"])
@pytest.mark.parametrize("direction", ["clean_to_perturbed", "perturbed_to_clean"])
@pytest.mark.parametrize("weighted", [True, False])
def test_information_is_a_loop_over_rows(kind, direction, weighted):
    net, x, s = smooth(), [numbers(6, 3), 2 * numbers(6, 2, 2, seed=1)], 3
    how = dict(kind=kind, direction=direction, weight_by_scale=weighted, eps=0)
    got, logits = modality_information(net, x, s, reduction="none", generator=generator(), **how)
    noisy = perturb(x, s, generator=generator())
    want = torch.zeros(2, 6, dtype=torch.float64)
    for row in range(6 * s):
        b = row // s
        z = [t[row : row + 1].detach().requires_grad_() for t in noisy]
        p, q = net(*[t[b : b + 1] for t in x]).softmax(1), net(*z).softmax(1)
        if direction == "perturbed_to_clean":
            p, q = q, p
        f = -(p * q.log()).sum()
        for i, g in enumerate(torch.autograd.grad(f, z)):
            units = x[i].std(0) if weighted else 1
            square = (units * g[0]).square().sum()
            want[i, b] += (square / f if kind == "entropy" else square).detach() / s
    torch.testing.assert_close(got.detach(), want, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(logits, net(*x))
    mean = modality_information(net, x, s, generator=generator(), **how).info
    torch.testing.assert_close(mean.detach(), want.mean(1))


def test_no_noise_no_information():
    info = modality_information(smooth(), [numbers(5, 3), numbers(5, 4)], scale=0.0).info
    assert info.abs().max() < 1e-25


def test_an_ignored_modality():
    net, x = smooth(), [numbers(5, 3), numbers(5, 4)]
    how = dict(create_graph=False, scale=1.0)
    two = modality_information(net, x, generator=generator(), **how).info
    for factor in (None, 0):

        def model(a, b, c, factor=factor):
            return net(a, b) + (0 if factor is None else factor * c.sum())

        three = modality_information(model, [*x, numbers(5, 7)], generator=generator(), **how).info
        assert three[2] == 0
        torch.testing.assert_close(three[:2], two)


def test_the_gradient_reaches_the_weights():
    "By finite differences, through the clean answer and the second derivatives."
    net, x = smooth(), [numbers(4, 3), numbers(4, 4)]
    names = [name for name, _ in net.named_parameters()]

    def penalty(*values):
        def model(*inputs):
            return torch.func.functional_call(net, dict(zip(names, values, strict=True)), inputs)

        info = modality_information(model, x, 2, generator=generator()).info
        return information_penalty(info, form="balance"), information_penalty(100 * info)

    values = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(penalty, values, atol=1e-5, rtol=1e-3)


def test_to_look_at_only():
    net, x = smooth(), [numbers(4, 3), numbers(4, 4)]
    net(*x).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    trained = modality_information(net, x, generator=generator())
    looked = modality_information(net, x, generator=generator(), create_graph=False)
    with torch.no_grad():
        quiet = modality_information(net.eval(), x, generator=generator())
    assert trained.info.requires_grad and trained.logits.requires_grad
    assert not looked.info.requires_grad and looked.logits.requires_grad
    assert not quiet.info.requires_grad and not quiet.logits.requires_grad
    assert torch.equal(trained.info, looked.info) and torch.equal(looked.info, quiet.info)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    x = [numbers(8, 3), numbers(8, 4)]
    exact = modality_information(smooth(), x, 4, create_graph=False, generator=generator()).info
    half = [t.to(dtype) for t in x]
    net = smooth(dtype=dtype)
    info, logits = modality_information(net, half, 4, generator=generator())
    assert info.dtype == torch.float32 and logits.dtype == dtype
    torch.testing.assert_close(info.double(), exact, rtol=0.15, atol=0)
    information_penalty(info).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


# ---- penalty ----


def test_forms_by_hand():
    info = torch.tensor([1.0, 3.0], dtype=torch.float64)
    want = {"sum_inverse": 4 / 3, "inverse_sum": 0.25, "norm": 1.054093, "balance": 0.287682}
    for form, value in want.items():
        assert information_penalty(info, form=form).item() == pytest.approx(value, abs=1e-6)
    assert information_share(info).tolist() == [0.25, 0.75]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_balance(m, seed, c):
    info = torch.rand(m, 3, generator=generator(seed), dtype=torch.float64) + 0.01
    found = information_penalty(info, form="balance")
    assert found.shape == (3,) and (found >= -1e-11).all()  # eps is 1e-12 a modality
    torch.testing.assert_close(information_penalty(c * info, form="balance"), found)
    equal = information_penalty(torch.full((m,), c), form="balance")
    assert equal.abs() < 1e-5
    scaled = information_penalty(c * info)
    torch.testing.assert_close(scaled * c, information_penalty(info), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_balance_is_free_of_the_scale(dtype):
    "At any size of the information, and without information it is large, not balanced."
    info = torch.tensor([1.0, 9.0], dtype=dtype)
    want = torch.tensor(-math.log(0.2 * 1.8), dtype=dtype)
    for c in (1e-20, 1e-12, 1e-9, 1.0, 1e6):
        torch.testing.assert_close(information_penalty(c * info, form="balance"), want)
    nothing = information_penalty(torch.zeros(2, dtype=dtype), form="balance")
    assert nothing.item() == pytest.approx(2 * math.log(1e12), rel=1e-6)


def test_balance_of_little_noise():
    "Information goes with the fourth power of the noise; shares and penalty settle."
    net, x = smooth(), [numbers(6, 3), 2 * numbers(6, 4, seed=1)]
    found = []
    for scale in (0.01, 0.001):
        how = dict(scale=[scale, 5 * scale], create_graph=False, generator=generator())
        info = modality_information(net, x, 50, **how).info
        share = information_share(info)
        found.append(information_penalty(info, form="balance").item())
        assert found[-1] == pytest.approx(-(2 * share).log().sum().item(), abs=1e-9)
    assert found[0] > 0.5 and found[1] == pytest.approx(found[0], rel=0.05)


def test_penalty_of_nothing_is_finite():
    for form in ("sum_inverse", "norm", "inverse_sum", "balance"):
        for values in ([0.0, 1.0], [0.0, 0.0]):
            info = torch.tensor(values, requires_grad=True)
            found = information_penalty(info, form=form)
            found.backward()
            assert found.isfinite() and info.grad.isfinite().all()
    assert information_share(torch.zeros(2)).isnan().all()


def test_compile_and_vmap():
    info, logits = torch.rand(5, 2) + 0.1, numbers(5, 2, 4, 3).float()
    for form in ("sum_inverse", "balance"):

        def penalty(i, form=form):
            return information_penalty(i, form=form)

        want = torch.stack([penalty(i) for i in info])
        assert torch.allclose(torch.vmap(penalty)(info), want)
        assert torch.allclose(
            torch.compile(penalty, backend="eager", fullgraph=True)(info[0]), want[0]
        )
    pairs = logits.unbind(1)
    want = torch.stack([output_cross_entropy(a, b) for a, b in zip(*pairs, strict=True)])
    assert torch.allclose(torch.vmap(output_cross_entropy)(*pairs), want)


def test_regularizer():
    net, x = smooth(), [numbers(6, 3), numbers(6, 4)]
    reg = FunctionalEntropyRegularizer(0.7, n_samples=2, kind="variance", generator=generator())
    logits, penalty = reg(net, x)
    how = dict(kind="variance", generator=generator())
    info, clean = modality_information(net, x, 2, **how)
    assert reg.penalty_weight == 0.7 and not list(reg.parameters())
    torch.testing.assert_close(penalty, information_penalty(info, form="balance"))
    torch.testing.assert_close(logits, clean)
    assert torch.equal(reg.last_info, info.detach()) and not reg.last_info.requires_grad


# ---- bad inputs ----


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: functional_entropy(torch.tensor([1.0, -1])), ValueError, "f must be non-negative"),
        (
            lambda: functional_entropy(torch.ones(2), torch.zeros(2)),
            ValueError,
            "weights must be non-negative with positive sum",
        ),
        (
            lambda: functional_variance(torch.ones(2), torch.tensor([2.0, -1])),
            ValueError,
            "weights must be non-negative with positive sum",
        ),
        (
            lambda: log_sobolev_bound(-torch.ones(2), torch.ones(2, 1)),
            ValueError,
            "f must be non-negative",
        ),
        (
            lambda: functional_fisher_information(torch.ones(2), torch.ones(3, 1)),
            ValueError,
            r"grad must have shape f.shape \+ \(d,\)",
        ),
        (
            lambda: output_cross_entropy(torch.ones(2, 3), torch.ones(2, 3), direction="both"),
            ValueError,
            "direction must be one of 'clean_to_perturbed', 'perturbed_to_clean'",
        ),
        (
            lambda: perturb([torch.ones(2, 3).long()]),
            TypeError,
            r"inputs\[0\] must be a tensor of float dtype, got int64; embed token ids first",
        ),
        (lambda: perturb([torch.ones(2, 3)], 0), ValueError, "n_samples must lie in"),
        (
            lambda: perturb([torch.ones(1, 3)]),
            ValueError,
            "inputs must hold at least 2 examples with scale='batch'",
        ),
        (
            lambda: perturb([torch.ones(2, 3), torch.ones(3, 3)]),
            ValueError,
            r"inputs\[1\] must have shape \(B, 3\) with B = 2",
        ),
        (
            lambda: modality_information(lambda a: a[:1], [torch.ones(2, 3)]),
            ValueError,
            "what model returns must have 2 rows",
        ),
        (
            lambda: modality_information(lambda a: a[:2], [torch.ones(2, 3)], 2),
            ValueError,
            "what model returns must have 4 rows",
        ),
        (
            lambda: modality_information(lambda a: a[:, :1], [torch.ones(2, 3)]),
            ValueError,
            "what model returns must have at least 2 classes",
        ),
        (
            lambda: output_cross_entropy(torch.ones(2, 1), torch.ones(2, 1)),
            ValueError,
            "clean_logits must have at least 2 classes",
        ),
        (
            lambda: modality_information(lambda a: torch.ones(len(a), 2), [torch.ones(2, 3)]),
            ValueError,
            "model must depend on its inputs",
        ),
        (
            lambda: information_penalty(torch.ones(2), form="max_ent"),
            ValueError,
            "form must be one of 'sum_inverse', 'norm', 'inverse_sum', 'balance'",
        ),
    ],
)
def test_refuses(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


# ---- learning ----


def test_balance_moves_the_share():
    "An easy and a hard modality: the balanced form lifts the hard one's share. Half of the margin."

    def train(weight):
        torch.manual_seed(0)
        net = nn.ModuleList([nn.Linear(10, 16), nn.Linear(2, 16), nn.Linear(16, 2)])
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        reg = FunctionalEntropyRegularizer(weight, n_samples=2, generator=generator())
        g = generator(1)

        def model(a, b):
            return net[2](torch.relu(net[0](a) + net[1](b)))

        def batch(n):
            y = torch.randint(2, (n,), generator=g)
            easy = 2.0 * y[:, None] - 1 + 0.1 * torch.randn(n, 2, generator=g)
            hard = 0.5 * (2.0 * y[:, None] - 1) + torch.randn(n, 10, generator=g)
            return [hard, easy], y

        for _ in range(150):
            inputs, y = batch(64)
            logits, penalty = reg(model, inputs)
            loss = cross_entropy(logits, y) + weight * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        inputs, _ = batch(500)
        info = modality_information(model, inputs, create_graph=False, generator=generator()).info
        return information_share(info)[0].item()

    plain, balanced = train(0.0), train(1.0)
    assert balanced > plain + 0.1 and 0.35 < balanced < 0.65
