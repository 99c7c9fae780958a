"""Commentaries: closed forms, unrolling, checkpoints, weights, blends, masks, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from ponderlearn._nested import mlp
from ponderlearn.multitask.commentaries import (
    ExampleWeights,
    GaussianMask,
    LabelBlend,
    blend_loss,
    hypergradient,
    inner_loop,
    inverse_hvp,
    weighted_loss,
)

DOUBLE = {"dtype": torch.float64}
A = torch.tensor([[2, 0.5], [0.5, 1]], **DOUBLE)
B = torch.tensor([[1.0, 0], [1, -1]], **DOUBLE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ridge():
    "One number, three weighted examples: losses, theta at the optimum, weights."
    x, y = torch.tensor([[1, 2, -1], [1, 1, 2]], **DOUBLE)
    w = torch.tensor([0.5, 1, 0.2], requires_grad=True, **DOUBLE)
    theta = torch.tensor(0.4375, requires_grad=True, **DOUBLE)
    train = (w * (theta * x - y) ** 2).sum() / 2 + 0.05 * theta**2
    return train, (1.5 * theta - 1) ** 2 / 2, theta, w


def quadratic(params, phi, step):
    t = params["t"]
    return t @ A @ t / 2 - t @ B @ phi[0]


def outer(t):
    return ((t - torch.tensor([1.0, -1], **DOUBLE)) ** 2).sum() / 2


def at_optimum():
    phi = torch.tensor([0.5, 1.5], requires_grad=True, **DOUBLE)
    return torch.linalg.solve(A, B @ phi).detach().requires_grad_(), phi


@pytest.mark.parametrize(
    ("K", "share"), [(0, 0.48), (1, 0.7296), (2, 0.859392), (5, 0.980229), (20, 0.999999)]
)
def test_ridge_by_hand(K, share):
    train, val, theta, w = ridge()
    assert abs(val.item() - 0.059082) < 1e-6
    exact = torch.tensor([-0.060425, -0.026855, 0.261841], **DOUBLE)
    for method in ("exact", "cg"):
        found = hypergradient(train, val, [theta], [w], method=method)[0]
        assert torch.allclose(found, exact, atol=1e-6)
    found = hypergradient(train, val, [theta], [w], n_terms=K)[0]
    assert torch.allclose(found, share * exact, atol=1e-6)


@pytest.mark.parametrize(
    ("K", "wanted"),
    [
        (0, (-0.214286, 0.085714)),
        (1, (-0.293571, 0.126429)),
        (2, (-0.325607, 0.149143)),
        (50, (-0.367347, 0.204082)),
    ],
)
def test_two_dimensions_and_unrolling(K, wanted):
    theta, phi = at_optimum()
    losses = quadratic({"t": theta}, [phi], 0), outer(theta)
    found = hypergradient(*losses, [theta], [phi], n_terms=K, step_size=0.3)[0]
    assert torch.allclose(found, torch.tensor(wanted, **DOUBLE), atol=1e-6)
    for every in (None, 1, 3):
        how = {"lr": 0.3, "checkpoint_every": every}
        end = inner_loop(quadratic, {"t": theta.detach()}, [phi], K + 1, **how)["t"]
        assert torch.allclose(torch.autograd.grad(outer(end), phi)[0], found, atol=1e-10)


def test_solvers_agree():
    theta, phi = at_optimum()
    losses = quadratic({"t": theta}, [phi], 0), outer(theta)
    exact = hypergradient(*losses, [theta], [phi], method="exact")[0]
    assert torch.allclose(hypergradient(*losses, [theta], [phi], method="cg", n_terms=2)[0], exact)
    one = hypergradient(*losses, [theta], [phi], method="identity")[0]
    none = hypergradient(*losses, [theta], [phi], n_terms=0, step_size=1.0)[0]
    assert torch.allclose(one, none)
    damped = inverse_hvp(
        torch.autograd.grad(losses[0], [theta], create_graph=True),
        [theta],
        [torch.ones(2, **DOUBLE)],
        method="exact",
        damping=0.7,
    )[0]
    shifted = A + 0.7 * torch.eye(2, **DOUBLE)
    assert torch.allclose(damped, torch.linalg.solve(shifted, torch.ones(2, **DOUBLE)))


def test_divergence_beyond_the_largest_step():
    theta, phi = at_optimum()
    losses = quadratic({"t": theta}, [phi], 0), outer(theta)
    for step_size, grows in ((0.9, False), (0.92, True)):
        how = {"step_size": step_size}
        sizes = [
            hypergradient(*losses, [theta], [phi], n_terms=K, **how)[0].norm() for K in (200, 400)
        ]
        assert bool(sizes[1] > 2 * sizes[0]) == grows


def test_direct_term_and_what_nothing_depends_on():
    theta, phi = torch.ones(2, requires_grad=True), torch.tensor([0.3, 0.4], requires_grad=True)
    losses = (theta**2).sum(), (phi**2).sum()
    assert torch.allclose(hypergradient(*losses, [theta], [phi])[0], 2 * phi.detach())
    assert not hypergradient(*losses, [theta], [phi], direct=False)[0].any()
    linear = hypergradient(theta.sum(), theta.sum(), [theta], [phi])[0]
    assert torch.equal(linear, torch.zeros(2))
    with pytest.raises(ValueError, match="params must have an invertible Hessian"):
        hypergradient(theta.sum(), theta.sum(), [theta], [phi], method="exact")


def test_nothing_is_touched():
    theta, phi = at_optimum()
    net, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), torch.randn(8, 3)
    before = {k: t.clone() for k, t in net.state_dict().items()}
    params = dict(net.named_parameters())
    for name in ("sgd", "adam"):
        how = {"lr": 0.1, "optimizer": name}
        inner_loop(lambda p, _, i: functional_call(net, p, (x,)).sum(), params, (), 2, **how)
    hypergradient(quadratic({"t": theta}, [phi], 0), outer(theta), [theta], [phi])
    assert theta.grad is None and phi.grad is None
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())


def test_several_tensors_and_both_terms():
    torch.manual_seed(0)
    theta = [torch.randn(n, **DOUBLE).requires_grad_() for n in ((3, 2), (2,))]
    phi = [torch.rand(5, **DOUBLE).requires_grad_(), torch.rand((), **DOUBLE).requires_grad_()]
    x, y = torch.randn(5, 3, **DOUBLE), torch.randn(5, 2, **DOUBLE)

    def train(a, b, w, c):
        return (w[:, None] * (x @ a + b - y) ** 2).sum() + (c + 1) * ((a**2).sum() + (b**4).sum())

    def val(a, b, w, c):
        return (x @ a + b).sin().mean() + (w * c).sum() * b.sum()

    found = hypergradient(train(*theta, *phi), val(*theta, *phi), theta, phi, method="exact")
    sizes = [t.numel() for t in (*theta, *phi)]

    def flat(f):
        return lambda z: f(
            *(t.view(o.shape) for t, o in zip(z.split(sizes), (*theta, *phi), strict=True))
        )

    z = torch.cat([t.detach().flatten() for t in (*theta, *phi)])
    second, n = torch.autograd.functional.hessian(flat(train), z), sum(sizes[:2])
    slope = torch.autograd.functional.jacobian(flat(val), z)
    wanted = slope[n:] - second[n:, :n] @ torch.linalg.solve(second[:n, :n], slope[:n])
    assert torch.allclose(torch.cat([g.flatten() for g in found]), wanted, atol=1e-12)


def student(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 6, **DOUBLE), torch.randint(3, (20,))

    def loss_fn(params, phi, step):
        losses = F.cross_entropy(functional_call(net, params, (x,)), y, reduction="none")
        return weighted_loss(losses, phi["w"])

    w = torch.rand(20, **DOUBLE).requires_grad_()
    return net, {k: p.detach().clone() for k, p in net.named_parameters()}, loss_fn, w


@pytest.mark.parametrize(("name", "close"), [("sgd", 1e-12), ("adam", 1e-6)])
def test_inner_loop_is_the_optimizer(name, close):
    net, params, loss_fn, w = student()
    how = {"lr": 0.01, "optimizer": name, "create_graph": False}
    trained = inner_loop(loss_fn, params, {"w": w}, 15, **how)
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name](net.parameters(), lr=0.01)
    for i in range(15):
        optimizer.zero_grad()
        loss_fn(dict(net.named_parameters()), {"w": w.detach()}, i).backward()
        optimizer.step()
    for k, p in net.named_parameters():
        assert not trained[k].requires_grad
        assert torch.allclose(trained[k], p, atol=close)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_gradcheck_in_both(name):
    _, params, loss_fn, w = student()
    start = [p.requires_grad_() for p in params.values()]

    def end(w, *start):
        params_ = dict(zip(params, start, strict=True))
        trained = inner_loop(loss_fn, params_, {"w": w}, 3, lr=0.01, optimizer=name)
        return torch.cat([p.flatten() for p in trained.values()])

    assert torch.autograd.gradcheck(end, (w, *start))


@pytest.mark.parametrize("every", [1, 3, 7, 50])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_checkpoints_change_nothing(name, every):
    _, params, loss_fn, w = student()
    params["0.weight"].requires_grad_()
    found = []
    for k in (None, every):
        how = {"lr": 0.01, "optimizer": name, "checkpoint_every": k}
        trained = inner_loop(loss_fn, params, {"w": w}, 17, **how)
        loss = sum(p.sin().sum() for p in trained.values())
        found.append(torch.autograd.grad(loss, [w, params["0.weight"]]))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_checkpoints_remember_autocast(name):
    torch.manual_seed(0)
    net, x, y = mlp(6, 8, 3), torch.randn(20, 6), torch.randint(3, (20,))
    params, w = dict(net.named_parameters()), torch.rand(20, requires_grad=True)
    found = []

    def loss_fn(params, phi, step):
        logits = functional_call(net, params, (x,))
        return weighted_loss(F.cross_entropy(logits, y, reduction="none"), phi[0])

    for every in (None, 3):
        how = {"lr": 0.05, "optimizer": name, "checkpoint_every": every}
        with torch.autocast("cpu", torch.bfloat16):
            trained = inner_loop(loss_fn, params, [w], 6, **how)
        loss = sum(p.sin().sum() for p in trained.values())
        found.append(torch.autograd.grad(loss, w)[0])
    assert torch.allclose(*found, atol=1e-6)


def test_adam_with_a_gradient_of_zero():
    phi = torch.tensor([1.0], requires_grad=True)
    dead = {"a": torch.ones(2), "b": torch.ones(2)}
    end = inner_loop(
        lambda p, phi, i: (phi[0] * p["a"]).sum() + 0 * p["b"].sum(),
        dead,
        [phi],
        3,
        lr=0.1,
        optimizer="adam",
    )
    slope = torch.autograd.grad(end["a"].sum() + end["b"].sum(), phi)[0]
    assert slope.isfinite().all() and torch.equal(end["b"], torch.ones(2))


def test_students_in_one_vmap():
    nets = [mlp(4, 5, 3) for _ in range(3)]
    params, _ = stack_module_state(nets)
    x, y = torch.randn(6, 3, 8, 4), torch.randint(3, (6, 3, 8))
    scores = torch.zeros(8, requires_grad=True)

    def one(params, x, y, w):
        losses = F.cross_entropy(functional_call(nets[0], params, (x,)), y, reduction="none")
        return weighted_loss(losses, w)

    def together(params, phi, step):
        return vmap(one, (0, 0, 0, None))(params, x[step], y[step], phi[0].sigmoid()).sum()

    how = {"lr": 0.01, "optimizer": "adam"}
    stacked = inner_loop(together, params, [scores], 6, **how)
    for s, net in enumerate(nets):
        alone = inner_loop(
            lambda p, phi, i, s=s: one(p, x[i, s], y[i, s], phi[0].sigmoid()),
            dict(net.named_parameters()),
            [scores],
            6,
            **how,
        )
        for k, p in alone.items():
            assert torch.allclose(p, stacked[k][s], atol=1e-6)


def test_weights():
    teacher = ExampleWeights(nn.Linear(4, 1))
    x = torch.randn(5, 3, generator=seeded())
    assert torch.equal(teacher(x, 7.0), teacher(x, 1.0))  # clipped
    each = teacher(x, torch.full((5,), 0.3))
    assert torch.allclose(each, teacher(x, 0.3)) and bool(((each > 0) & (each < 1)).all())
    steady = ExampleWeights(nn.Linear(3, 1), curriculum=False)
    assert torch.equal(steady(x, 0.2), steady(x, 0.9))
    images = ExampleWeights(nn.Sequential(nn.Conv2d(3, 1, 5), nn.Flatten()))
    assert images(torch.randn(4, 2, 5, 5)).shape == (4,)
    with pytest.raises(ValueError, match="what backbone returns must have shape"):
        ExampleWeights(nn.Linear(4, 2))(x)
    with pytest.raises(ValueError, match="weights must have shape"):
        weighted_loss(torch.rand(3), torch.rand(4))


@given(st.floats(1e-3, 1e3), st.integers(1, 8))
@settings(deadline=None)
def test_relative_weights(factor, n):
    losses, w = torch.rand(n, generator=seeded(n), **DOUBLE), torch.rand(n, **DOUBLE) + 0.1
    same = torch.full((n,), factor, **DOUBLE)
    assert torch.allclose(weighted_loss(losses, same), losses.mean())
    assert torch.allclose(weighted_loss(losses, factor * w), weighted_loss(losses, w))
    w.requires_grad_()
    slope = torch.autograd.grad(weighted_loss(losses, w), w)[0]
    assert abs((slope * w).sum().item()) < 1e-9
    zero = torch.zeros(n, requires_grad=True, **DOUBLE)
    weighted_loss(losses, zero).backward()
    assert not weighted_loss(losses, zero).item() and zero.grad.isfinite().all()
    plain = weighted_loss(losses, w, kind="absolute", reduction="none")
    assert torch.allclose(plain, losses * w)


def test_blend():
    blend = LabelBlend(10)
    x, y = torch.rand(6, 2, 3, generator=seeded()), torch.tensor([0, 9, 3, 3, 1, 7])
    assert torch.allclose(blend.coefficients(), torch.tensor(0.865529))
    same = blend(x, y, index=torch.arange(6))
    assert torch.allclose(same.x, x)
    logits = torch.randn(6, 10)
    with torch.no_grad():
        blend.scores.fill_(-math.inf)
    mixed = blend(x, y, generator=seeded())
    assert torch.equal(mixed.lam, torch.ones(6)) and torch.equal(mixed.x, x)
    assert torch.allclose(blend_loss(logits, *mixed[1:]), F.cross_entropy(logits, y))
    with torch.no_grad():
        blend.scores.fill_(math.inf)
    mixed = blend(x, y, generator=seeded())
    swapped = blend_loss(logits, mixed.y_b, mixed.y_a, mixed.lam)
    assert torch.allclose(blend_loss(logits, *mixed[1:]), swapped)
    with torch.no_grad():
        blend.scores.copy_(torch.arange(100.0).view(10, 10) / 50 - 1)
    index = torch.tensor([1, 2, 3, 4, 5, 0])
    mixed = blend(x, y, index=index)
    for b in range(6):
        lam = 1 - torch.sigmoid(blend.scores[y[b], y[index[b]]]) / 2
        assert torch.allclose(mixed.x[b], lam * x[b] + (1 - lam) * x[index[b]])
    for bad in (-1, 10):
        with pytest.raises((IndexError, RuntimeError)):
            blend(x, torch.tensor([0, 1, 2, bad, 4, 5]))


def test_mask():
    mask = GaussianMask(1.0)
    found = mask(torch.zeros(2, 1, 3, 3))
    assert torch.allclose(found[1, 0, 0], torch.tensor([0.367879, 0.606531, 0.367879]), atol=1e-6)
    sharp = torch.full((1, 1, 8, 9), -60.0)
    sharp[0, 0, 2, 3] = 60
    moved = sharp.roll((3, 2), (2, 3))
    assert torch.allclose(mask.centers(moved), mask.centers(sharp) + torch.tensor([3.0, 2]))
    scores = torch.randn(1, 1, 4, 5, **DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(mask, (scores,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    wanted = torch.promote_types(dtype, torch.float32)
    x, y = torch.rand(4, 3).to(dtype), torch.tensor([0, 1, 2, 1])
    assert weighted_loss(x[:, 0], x[:, 1]).dtype == wanted
    assert LabelBlend(3).to(dtype)(x, y).x.dtype == dtype
    assert blend_loss(x, y, y, x[:, 0]).dtype == wanted
    assert GaussianMask(1.0)(x.view(1, 1, 4, 3)).dtype == wanted
    assert ExampleWeights(nn.Linear(4, 1)).to(dtype)(x, 0.5).dtype == wanted


def test_learns_which_examples_are_wrong():
    x = torch.linspace(0.2, 1, 20, **DOUBLE)
    wrong = torch.arange(20) % 4 == 0
    y = torch.where(wrong, -x, x)
    scores = torch.zeros(20, requires_grad=True, **DOUBLE)

    def loss_fn(params, phi, step):
        return weighted_loss((params["a"] * x - y) ** 2, phi[0].sigmoid())

    adam = torch.optim.Adam([scores], lr=0.3)
    for _ in range(30):
        a = inner_loop(loss_fn, {"a": torch.zeros((), **DOUBLE)}, [scores], 20, lr=0.5)["a"]
        adam.zero_grad()
        ((a * x - x) ** 2).mean().backward()
        adam.step()
    w = scores.detach().sigmoid()
    assert w[wrong].max() < 0.2 < 0.7 < w[~wrong].min()
    assert a > 0.9


def test_bad_settings():
    theta, phi = at_optimum()
    losses = quadratic({"t": theta}, [phi], 0), outer(theta)
    for how, words in (
        ({"method": "newton"}, "method must be one of"),
        ({"step_size": 0}, "step_size must lie in"),
        ({"n_terms": -1}, "n_terms must be >= 0"),
    ):
        with pytest.raises(ValueError, match=words):
            hypergradient(*losses, [theta], [phi], **how)
    many = torch.ones(2001, requires_grad=True)
    with pytest.raises(ValueError, match="params must hold at most 2000"):
        hypergradient((many**2).sum(), many.sum(), [many], [phi], method="exact")
    with pytest.raises(ValueError, match=r"params.0. must require a gradient"):
        hypergradient(*losses, [torch.ones(2)], [phi])
