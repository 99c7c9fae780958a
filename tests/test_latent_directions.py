"""Latent directions: matrices, shifts, loss, training, RCA, shares, spectra, collapse."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.explain.latent_directions import (
    DirectionMatrix,
    Guess,
    Reconstructor,
    collapse_ratio,
    direction_loss,
    direction_shares,
    discover_directions,
    jacobian_directions,
    pca_directions,
    reconstruction_accuracy,
    sample_shifts,
    traverse,
)
from ponderlearn.generative.gan import MappingNetwork, StyleGenerator


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_images(d=4, channels=1, size=8, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(d, channels * size**2), nn.Unflatten(1, (channels, size, size))
        )
    return net


# ---- shifts and matrices ----


def test_shifts():
    index, epsilon = sample_shifts(100_000, 5, generator=seeded())
    assert epsilon.abs().mean().item() == pytest.approx(18.125 / 6, abs=0.02)
    assert abs(epsilon.mean().item()) < 0.04
    assert 0.5 <= epsilon.abs().min() and epsilon.abs().max() <= 6
    assert torch.bincount(index).tolist() == pytest.approx([20_000] * 5, rel=0.05)
    with pytest.raises(ValueError, match="min_abs must"):
        sample_shifts(3, 2, scale=1.0, min_abs=2.0)


def test_all_shifts_moved_up():
    _, epsilon = sample_shifts(100, 2, scale=0.5, min_abs=0.5, generator=seeded())
    assert set(epsilon.tolist()) == {0.5, -0.5}


def test_rotation_by_hand():
    directions = DirectionMatrix(2, 2)
    directions.weight.data = torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    wanted = [[0.877583, 0.479426], [-0.479426, 0.877583]]
    assert directions.matrix().tolist() == [pytest.approx(row, abs=1e-4) for row in wanted]


@pytest.mark.parametrize("kind", ["orthonormal", "qr", "random", "coordinate"])
@pytest.mark.parametrize(("d", "K"), [(6, 6), (9, 4), (3, 1)])
def test_orthonormal(kind, d, K):
    A = DirectionMatrix(d, K, kind, generator=seeded()).matrix()
    assert A.shape == (d, K)
    assert torch.allclose(A.T @ A, torch.eye(K), atol=1e-5)
    if kind == "orthonormal" and d == K:
        assert torch.det(A).item() == pytest.approx(1, abs=1e-5)


def test_unit():
    directions = DirectionMatrix(2, 3, "unit", columns=torch.tensor([[3.0, 1, 0], [4.0, 0, 2]]))
    assert directions.matrix()[:, 0].tolist() == pytest.approx([0.6, 0.8])
    before = directions.matrix().detach()
    with torch.no_grad():
        directions.weight *= 7
    assert torch.allclose(directions.matrix(), before)
    (directions.matrix() * torch.randn(2, 3, generator=seeded())).sum().backward()
    along = (directions.weight.grad * before).sum(0)
    assert along.abs().max() < 1e-6


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_shift_is_odd_and_as_long_as_epsilon(d, K, seed):
    directions = DirectionMatrix(d, K, "unit", generator=seeded(seed))
    index, epsilon = sample_shifts(7, K, generator=seeded(seed))
    shift = directions(index, epsilon)
    assert torch.equal(directions(index, -epsilon), -shift)
    assert torch.allclose(shift.norm(dim=1), epsilon.abs(), rtol=1e-4)
    assert torch.allclose(shift, directions.matrix().T[index] * epsilon[:, None])


def test_bad_matrices():
    with pytest.raises(ValueError, match="n_directions must be at most latent_dim, 3"):
        DirectionMatrix(3, 4)
    assert DirectionMatrix(3, 4, "unit").matrix().shape == (3, 4)
    with pytest.raises(ValueError, match="columns must be given"):
        DirectionMatrix(3, 2, "fixed")
    with pytest.raises(ValueError, match="columns must have columns of finite length above 0"):
        DirectionMatrix(3, 2, "fixed", columns=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="columns must be None"):
        DirectionMatrix(3, 2, "random", columns=torch.ones(3, 2))
    with pytest.raises(IndexError):
        DirectionMatrix(3, 2)(torch.tensor([-1]), torch.ones(1))


def test_only_trained_kinds_have_parameters():
    trained = {
        k
        for k in ("orthonormal", "qr", "unit", "random", "coordinate")
        if list(DirectionMatrix(4, 2, k).parameters())
    }
    assert trained == {"orthonormal", "qr", "unit"}


def test_state_dict_keeps_fixed_columns():
    one, other = (DirectionMatrix(4, 2, "random", generator=seeded(s)) for s in (0, 1))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.matrix(), other.matrix())


# ---- loss ----


def test_loss_by_hand():
    logits, k = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    found = direction_loss(logits, torch.tensor([1.5]), k, torch.tensor([2.0]))
    assert found.item() == pytest.approx(0.2948460, abs=1e-6)
    flat = direction_loss(torch.zeros(5, 7), torch.zeros(5), torch.arange(5), torch.zeros(5))
    assert flat.item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_loss_agrees_with_torch(reduction, dtype):
    g = seeded()
    logits, guess = torch.randn(6, 4, generator=g).to(dtype), torch.randn(6, generator=g).to(dtype)
    k, epsilon = torch.randint(4, (6,), generator=g), torch.randn(6, generator=g).to(dtype)
    how = dict(reduction=reduction)
    found = direction_loss(logits, guess, k, epsilon, shift_weight=0.7, **how)
    wide = torch.promote_types(dtype, torch.float32)
    wanted = F.cross_entropy(logits.to(wide), k, **how)
    wanted = wanted + 0.7 * F.l1_loss(guess.to(wide), epsilon.to(wide), **how)
    assert found.dtype == wide
    assert torch.allclose(found, wanted)


def test_gradcheck():
    g = seeded()
    logits = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    guess = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    k, epsilon = torch.tensor([0, 3, 1]), torch.zeros(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: direction_loss(a, b, k, epsilon), (logits, guess))


def test_permuting_directions_changes_nothing():
    g, order = seeded(), torch.tensor([2, 0, 1])
    logits, k = torch.randn(8, 3, generator=g), torch.randint(3, (8,), generator=g)
    zero = torch.zeros(8)
    there = direction_loss(logits, zero, k, zero)
    assert torch.allclose(there, direction_loss(logits[:, order], zero, order.argsort()[k], zero))


def test_vmap():
    logits = torch.randn(2, 5, 3, generator=seeded())
    rest = torch.zeros(5), torch.arange(5) % 3, torch.ones(5)
    found = torch.vmap(lambda x: direction_loss(x, *rest))(logits)
    assert torch.allclose(found, torch.stack([direction_loss(x, *rest) for x in logits]))


# ---- training ----


def parts(kind="unit", d=4, K=3, seed=0):
    torch.manual_seed(seed)
    return DirectionMatrix(d, K, kind, generator=seeded(seed)), Reconstructor(1, 8, K, width=4)


def test_generator_stays_as_it_is():
    net = nn.Sequential(linear_images(), nn.BatchNorm2d(1), nn.Dropout(0.5))
    net[2].eval()
    net[0][0].bias.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    discover_directions(net, *parts(), steps=3, batch_size=4)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    assert [m.training for m in net] == [True, True, False]


def test_flags_come_back_after_an_error():
    net = linear_images()

    def stop(step, directions, reconstructor):
        raise KeyError

    with pytest.raises(KeyError):
        discover_directions(net, *parts(), steps=3, callback=stop)
    assert all(p.requires_grad for p in net.parameters()) and net.training


@pytest.mark.parametrize("kind", ["orthonormal", "qr", "unit"])
def test_directions_move(kind):
    directions, reconstructor = parts(kind)
    before = directions.matrix().detach()
    discover_directions(linear_images(), directions, reconstructor, steps=2, lr_directions=0.1)
    assert (directions.matrix() - before).abs().max() > 0.01


def test_same_seed_same_result():
    found = [
        discover_directions(
            linear_images(), *parts(), steps=4, batch_size=5, noise=0.1, generator=seeded(3)
        )
        for _ in range(2)
    ]
    assert torch.equal(found[0].history["loss"], found[1].history["loss"])
    assert torch.equal(found[0].directions.matrix(), found[1].directions.matrix())


def test_small_cases():
    found = discover_directions(linear_images(), *parts(K=1), steps=3, batch_size=1, shift_weight=0)
    assert found.history["loss"].tolist() == [0, 0, 0]
    assert found.history["accuracy"].tolist() == [1, 1, 1]


def test_constant_images():
    found = discover_directions(
        lambda z: torch.zeros(len(z), 1, 8, 8) + 0 * z.sum(), *parts(), steps=150, lr=1e-2
    )
    floor = math.log(3) + 0.25 * 18.125 / 6
    assert found.history["loss"][-50:].mean().item() == pytest.approx(floor, abs=0.12)


def test_condition_is_shared_by_the_pair():
    seen = []

    def image_generator(z, condition):
        seen.append(condition)
        return linear_images()(z)

    def sample_condition(n, generator=None):
        return torch.rand(n, generator=generator)

    how = dict(steps=2, sample_condition=sample_condition, generator=seeded())
    discover_directions(image_generator, *parts(), **how)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


def test_loss_that_is_not_finite():
    with pytest.raises(FloatingPointError, match="the loss must stay finite"):
        discover_directions(lambda z: linear_images()(z) * torch.nan, *parts(), steps=1)


def test_learns():
    "Two of eight coordinates are visible: directions turn to them."
    weight = torch.zeros(64, 8)
    weight[:, :2] = torch.randn(64, 2, generator=seeded())

    def image_generator(z):
        return (z @ weight.T).view(-1, 1, 8, 8)

    directions, reconstructor = parts(d=8, K=2)
    before = directions.matrix()[:2].square().sum(0).mean().item()
    how = dict(steps=150, lr=3e-3, lr_directions=3e-2, scale=1.0, min_abs=0.1, noise=0.5)
    discover_directions(image_generator, directions, reconstructor, generator=seeded(), **how)
    after = directions.matrix()[:2].square().sum(0).mean().item()
    assert after > before + 0.25


# ---- measures ----


class Oracle(nn.Module):
    "Reads the shift off images that are latents."

    def __init__(self, A):
        super().__init__()
        self.A = A

    def forward(self, x, shifted):
        along = (shifted - x).flatten(1) @ self.A
        return Guess(along.abs(), along.sum(1))


def test_rca_of_an_oracle_and_of_chance():
    A = torch.eye(4)
    directions = DirectionMatrix(4, 4, "coordinate")

    def as_image(z):
        return z.view(-1, 1, 2, 2)

    assert reconstruction_accuracy(as_image, directions, Oracle(A), n=301) == 1
    torch.manual_seed(0)
    untrained = Reconstructor(1, 2, 4, width=2)
    chance = reconstruction_accuracy(as_image, directions, untrained, generator=seeded())
    assert 0.1 < chance < 0.45
    twins = DirectionMatrix(4, 4, "fixed", columns=A[:, [0, 1, 2, 2]])
    found = reconstruction_accuracy(
        as_image, twins, Oracle(twins.matrix()), n=8000, generator=seeded()
    )
    assert found == pytest.approx(0.75, abs=0.02)


def test_shares():
    tilted = torch.tensor([[3**0.5 / 2, 0.0], [0.5, 1.0]])
    z = torch.randn(50, 2, generator=seeded())
    found = direction_shares(nn.Identity(), tilted, z, 2.0, scale=torch.ones(2))
    assert found.shares.tolist() == [pytest.approx([0.75, 0.25]), pytest.approx([0, 1])]
    assert found.purity.tolist() == pytest.approx([0.75, 1])
    assert found.coverage == pytest.approx(0.875)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_shares_add_up(d, K, seed):
    g = seeded(seed)
    A, z = torch.randn(d, K, generator=g), torch.randn(20, d, generator=g)
    found = direction_shares(lambda z: torch.tanh(z) @ torch.ones(d, 3), A, z, 1.0)
    assert torch.allclose(found.shares.sum(1), torch.ones(K), atol=1e-4)


def test_shares_of_a_cyclic_factor_and_of_nothing():
    def factor_fn(z):
        return torch.stack([z[:, 0] % 1, z[:, 1]], 1)

    z = torch.rand(200, 3, generator=seeded())
    A = torch.eye(3)
    how = dict(scale=torch.ones(2), period=torch.tensor([1.0, torch.inf]))
    mixed = torch.tensor([[1.0], [1.0], [0.0]])
    found = direction_shares(factor_fn, mixed, z, 0.9, **how)  # 0.9 forward is 0.1 back
    assert found.shares[0].tolist() == pytest.approx([0.01 / 0.82, 0.81 / 0.82], rel=1e-3)
    assert direction_shares(factor_fn, A, z, 0.9, **how).shares[2].tolist() == [0, 0]


@pytest.mark.parametrize(("n", "wanted"), [(2, 0.8183), (3, 0.7009), (6, 0.5054), (16, 0.2843)])
def test_purity_of_random_directions(n, wanted):
    A = torch.linalg.qr(torch.randn(n, n, generator=seeded())).Q[:, :1]
    A = torch.cat([A, F.normalize(torch.randn(n, 4000, generator=seeded()), dim=0)], 1)
    found = direction_shares(nn.Identity(), A, torch.zeros(2, n), 1.0, scale=torch.ones(n))
    assert found.purity.mean().item() == pytest.approx(wanted, abs=0.01)


def test_spectrum_of_a_linear_generator():
    Q = torch.linalg.qr(torch.randn(3, 3, generator=seeded())).Q
    D = torch.diag(torch.tensor([3.0, 2.0, 1.0]))

    def image_generator(z):
        return (z @ (D @ Q).T).view(-1, 3, 1, 1)

    found = jacobian_directions(image_generator, torch.randn(5, 3), 2, chunk_size=2)
    assert found.eigenvalues.tolist() == pytest.approx([9, 4, 1], abs=1e-4)
    assert (found.directions * Q[:2].T).sum(0).abs().tolist() == pytest.approx([1, 1], abs=1e-4)


def test_spectrum_beside_the_full_jacobian():
    torch.manual_seed(0)
    net = nn.Sequential(MappingNetwork(5, 8), StyleGenerator(8, (6, 4)))
    z = torch.randn(6, 5, generator=seeded())
    M = 0
    for row in z:
        J = torch.autograd.functional.jacobian(lambda x: net(x[None]).flatten(), row)
        M = M + J.T @ J / len(z)
    found = jacobian_directions(net, z, chunk_size=4)
    assert torch.allclose(found.eigenvalues, torch.linalg.eigvalsh(M).flip(0), rtol=1e-3, atol=1e-3)
    assert torch.allclose(M @ found.directions, found.directions * found.eigenvalues, atol=1e-2)
    assert all(p.requires_grad for p in net.parameters())


def test_pca():
    x = torch.randn(5000, 3, generator=seeded()) * torch.tensor([1.0, 4.0, 2.0]) + 9
    found = pca_directions(x, 2)
    assert found.eigenvalues.tolist() == pytest.approx([16, 4, 1], rel=0.1)
    assert found.directions.abs().argmax(0).tolist() == [1, 2]


def test_traverse():
    net, z = linear_images(), torch.randn(2, 4, generator=seeded())
    a, sizes = torch.ones(4), torch.tensor([-1.0, 0.0, 2.0])
    found = traverse(net, z, a, sizes)
    assert torch.allclose(found[1], net(z)) and torch.allclose(found[2], net(z + 2 * a))
    assert not found.requires_grad


def test_collapse():
    def image_generator(z):
        gate = torch.sigmoid(-20 * (z[:, :1] - 3))  # to the right of 3 all images are black
        return (gate * z[:, 1:]).view(-1, 2, 1, 1)

    A = torch.eye(3)[:, :2]
    found = collapse_ratio(image_generator, A, torch.randn(500, 3, generator=seeded()), 6.0)
    assert found[0] < 0.05 and found[1] == pytest.approx(1, abs=0.2)


def test_bad_returns():
    with pytest.raises(ValueError, match="what image_generator returns must have shape"):
        discover_directions(nn.Identity(), *parts(), steps=1)
    with pytest.raises(TypeError, match="directions must be a DirectionMatrix"):
        discover_directions(linear_images(), torch.eye(4), parts()[1], steps=1)
    with pytest.raises(ValueError, match="the logits of reconstructor must have shape"):
        discover_directions(linear_images(), parts()[0], Reconstructor(1, 8, 2), steps=1)


def test_no_gradient_reaches_a_generator_in_a_function():
    net, reconstructor = linear_images(), Reconstructor(1, 8, 2).eval()
    discover_directions(lambda z: net(z), DirectionMatrix(4, 2), reconstructor, steps=2)
    assert all(p.grad is None for p in net.parameters())
    assert not reconstructor.training  # it trained, and is as it was


def test_images_that_cannot_be_measured():
    z, still = torch.randn(5, 3), lambda z: torch.zeros(len(z), 1, 8, 8)
    with pytest.raises(ValueError, match="image_generator must make images that vary"):
        collapse_ratio(still, torch.eye(3), z, 1.0)
    with pytest.raises(ValueError, match="Jacobian of image_generator must hold finite"):
        jacobian_directions(lambda z: (z.sum(1) * torch.nan).view(-1, 1, 1, 1), z)
