"""VAEBM: noise energy, chains and their bias, penalty, buffer, loss, likelihoods, learning."""

import copy
import io
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from ponderlearn.generative import vaebm as vb
from ponderlearn.generative.vaebm import (
    VAEBM,
    ReplayBuffer,
    contrastive_loss,
    gaussian_generator,
    langevin,
    lipschitz_swish,
    noise_energy,
    spectral_penalty,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def linear_decode(z):
    return z, z.new_full((), math.log(0.5))


def kappa(x):
    return (x[:, 0] - 1.5).square()


LINEAR = partial(noise_energy, generate=gaussian_generator(linear_decode), energy=kappa)
PRECISION, MEAN = double([3.0, 1], [1, 1.5]), double(0.857143, 0.428571)


def bowl(x):
    return x.square().flatten(1).sum(1) / 2 if x.ndim > 1 else x.square() / 2


def small_energy(dtype=torch.float32):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0)).to(dtype)


def curved(z):
    return torch.cat([z, z[:, :1].square()], 1), z[:, :1].tanh() - 1  # sigma depends on z


# ---- the energy of noise ----


def test_linear_gaussian():
    u = lambda eps: LINEAR(eps[None, :1], eps[None, 1:])[0]
    zero = torch.zeros(2, dtype=torch.float64)
    H = torch.autograd.functional.hessian(u, zero)
    slope = torch.autograd.functional.jacobian(u, zero)
    torch.testing.assert_close(H, PRECISION)
    assert torch.linalg.eigvalsh(H).tolist() == pytest.approx([1, 3.5])
    torch.testing.assert_close(-torch.linalg.solve(H, slope), MEAN, atol=1e-6, rtol=0)
    to_x = double(1.0, 0.5)
    assert (to_x @ MEAN).item() == pytest.approx(1.071429, abs=1e-6)
    assert (to_x @ torch.linalg.inv(H) @ to_x).item() == pytest.approx(0.357143, abs=1e-6)


def test_scales_cancel():
    "Against torch.distributions: U is minus the log-density of the noise, by change of variables."
    eps_z, eps_x = torch.randn(9, 2, generator=seeded()), torch.randn(9, 3, generator=seeded(1))
    energy = small_energy()
    found = noise_energy(eps_z, eps_x, gaussian_generator(curved), energy)
    mu, log_sigma = curved(eps_z)
    sigma = log_sigma.exp().expand(9, 3)
    x = mu + sigma * eps_x
    log_joint = Normal(0, 1).log_prob(eps_z).sum(1) + Normal(mu, sigma).log_prob(x).sum(1)
    wanted = energy(x) - log_joint - sigma.log().sum(1) - 5 * math.log(2 * math.pi) / 2
    torch.testing.assert_close(found, wanted)


def test_groups_and_prior():
    "A list of groups equals one vector; a prior with groups is used as given."
    eps = torch.randn(6, 4, generator=seeded())
    eps_x = torch.randn(6, 3, generator=seeded(1))
    decode = lambda z: (z[:, :3] * z[:, 3:], torch.zeros(()))

    def groups_prior(groups):
        first = groups[0]
        return torch.cat([first, first.exp() * groups[1]], 1)

    def vector_prior(vector):
        return groups_prior(vector.split(2, 1))

    energy = small_energy()
    a = noise_energy(
        list(eps.split(2, 1)), eps_x, gaussian_generator(decode, prior=groups_prior), energy
    )
    b = noise_energy(eps, eps_x, gaussian_generator(decode, prior=vector_prior), energy)
    torch.testing.assert_close(a, b)
    cold = gaussian_generator(decode, prior=vector_prior, temperature=0.5)
    torch.testing.assert_close(cold(2 * eps), gaussian_generator(decode, prior=vector_prior)(eps))


def test_noise_energy_gradient_and_dtypes():
    eps = torch.randn(4, 2).double().requires_grad_(), torch.randn(4, 3).double().requires_grad_()
    f = partial(
        noise_energy, generate=gaussian_generator(curved), energy=small_energy(torch.float64)
    )
    assert torch.autograd.gradcheck(f, eps)
    half = [e.detach().bfloat16() for e in eps]
    f = partial(
        noise_energy, generate=gaussian_generator(curved), energy=small_energy(torch.bfloat16)
    )
    assert f(*half).dtype == torch.float32
    chain = langevin(f, tuple(half), 0.1, 3, generator=seeded())
    assert chain.state[0].dtype == torch.bfloat16 and chain.state[1].isfinite().all()
    hot = partial(noise_energy, generate=gaussian_generator(linear_decode), energy=kappa)
    one = torch.ones(1, 1)
    assert hot(one, one, temperature=2.0).item() == pytest.approx(1)  # E = 0 at x = 1.5
    assert hot(0 * one, one, temperature=2.0).item() == pytest.approx(1 / 2 + 0.5)
    assert noise_energy(one, None, gaussian_generator(linear_decode), kappa).item() == 0.75


def test_energy_of_shape_B_1_is_an_error():
    eps = torch.randn(5, 1), torch.randn(5, 1)
    with pytest.raises(ValueError, match=r"energy returns must have shape \(5,\), got .*\(5, 1\)"):
        noise_energy(*eps, gaussian_generator(linear_decode), lambda x: x)


def test_potential_compiles_and_maps():
    eps = torch.randn(5, 2), torch.randn(5, 3)
    f = partial(noise_energy, generate=gaussian_generator(curved), energy=small_energy())
    compiled = torch.compile(f, backend="eager")
    torch.testing.assert_close(compiled(*eps), f(*eps))
    one = lambda z, x: f(z[None], x[None])[0]
    torch.testing.assert_close(torch.vmap(one)(*eps), f(*eps))


# ---- chains ----


def loop(potential, state, step_size, n_steps, generator):
    "Plain steps, noise drawn as one matrix."
    state = [e.clone() for e in state]
    for _ in range(n_steps):
        state = [e.detach().requires_grad_() for e in state]
        slopes = torch.autograd.grad(potential(*state).sum(), state)
        widths = [e[0].numel() for e in state]
        noise = torch.randn(len(state[0]), sum(widths), generator=generator, dtype=state[0].dtype)
        state = [
            e - step_size / 2 * s + math.sqrt(step_size) * w.reshape(e.shape)
            for e, s, w in zip(state, slopes, noise.split(widths, 1), strict=True)
        ]
    return [e.detach() for e in state]


def test_langevin_equals_the_loop():
    state = torch.randn(7, 2).double(), torch.randn(7, 3).double()
    f = partial(
        noise_energy, generate=gaussian_generator(curved), energy=small_energy(torch.float64)
    )
    found = langevin(f, state, 0.1, 6, generator=seeded(), return_path=True)
    for a, b in zip(found.state, loop(f, state, 0.1, 6, seeded()), strict=True):
        torch.testing.assert_close(a, b)
    assert found.path[0].shape == (7, 7, 2) and found.path[1].shape == (7, 7, 3)
    assert torch.equal(found.path[0][0], state[0]) and torch.equal(
        found.path[1][-1], found.state[1]
    )
    short = langevin(f, state, 0.1, 4, generator=seeded()).state
    assert torch.equal(short[0], found.path[0][4])


def test_forms_of_the_state():
    "A tensor, a tuple and nested lists move alike; images too."
    x = torch.randn(5, 6)
    one = langevin(bowl, x, 0.2, 3, generator=seeded()).state
    two = langevin(
        lambda a, b: bowl(torch.cat([a, b], 1)),
        tuple(x.split([2, 4], 1)),
        0.2,
        3,
        generator=seeded(),
    ).state
    nested = langevin(
        lambda a, b: bowl(torch.cat([*a, b], 1)),
        (list(x[:, :4].split(2, 1)), x[:, 4:]),
        0.2,
        3,
        generator=seeded(),
    ).state
    image = langevin(bowl, x.view(5, 1, 2, 3), 0.2, 3, generator=seeded()).state
    torch.testing.assert_close(torch.cat(two, 1), one)
    torch.testing.assert_close(torch.cat([*nested[0], nested[1]], 1), one)
    torch.testing.assert_close(image.view(5, 6), one)


def test_no_step_and_no_gradient():
    energy, start = small_energy(), torch.randn(4, 3, requires_grad=True)
    chain = langevin(energy, start, 0.1, 0)
    assert torch.equal(chain.state, start) and not chain.state.requires_grad
    assert chain.acceptance is None and chain.path is None
    for metropolis in (False, True):
        chain = langevin(energy, start, 0.1, 3, metropolis=metropolis, return_path=True)
        assert not chain.state.requires_grad and chain.path.grad_fn is None
    assert start.grad is None and all(
        p.grad is None and p.requires_grad for p in energy.parameters()
    )
    before = start.detach().clone()
    langevin(energy, start, 0.1, 3)
    assert torch.equal(before, start)
    with torch.inference_mode():
        assert langevin(energy, torch.randn(4, 3), 0.1, 3).state.shape == (4, 3)


def test_first_step_and_bias():
    zeros = tuple(torch.zeros(2, 12_000, 1, dtype=torch.float64))
    path = langevin(LINEAR, zeros, 0.1, 80, generator=seeded(), return_path=True).path
    noise = torch.randn(12_000, 2, generator=seeded(), dtype=torch.float64) * math.sqrt(0.1)
    torch.testing.assert_close(path[0][1] - noise[:, :1], zeros[0] + 0.15)
    torch.testing.assert_close(path[1][1] - noise[:, 1:], zeros[1] + 0.075)
    eps = torch.cat([p[-1] for p in path], 1)
    wanted = double([0.455617, -0.285012], [-0.285012, 0.883135])
    assert (torch.cov(eps.T) - wanted).abs().max() < 0.04
    assert abs((eps @ double(1.0, 0.5)).var() - 0.391389) < 0.02
    values, vectors = torch.linalg.eigh(PRECISION)
    formula = vectors @ torch.diag(1 / (values * (1 - 0.1 * values / 4))) @ vectors.T
    torch.testing.assert_close(formula, wanted, atol=1e-6, rtol=0)


@given(step=st.floats(0.1, 1.5), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_no_energy_leaves_the_vae_alone(step, seed):
    "Variance 1 / (1 - eta / 4), or 1 with metropolis, whatever sigma(z) is."
    g = seeded(seed)
    start = torch.randn(4000, 2, generator=g), torch.randn(4000, 3, generator=g)
    flat = lambda x: 0 * x.sum(1)
    f = partial(noise_energy, generate=gaussian_generator(curved), energy=flat)
    n = int(8 / step) + 5
    eps = torch.cat(langevin(f, start, step, n, generator=g).state, 1)
    assert eps.mean(0).abs().max() < 0.09
    assert eps.var().item() == pytest.approx(1 / (1 - step / 4), rel=0.06)
    exact = langevin(f, start, step, 4, metropolis=True, generator=g)
    assert torch.cat(exact.state, 1).var().item() == pytest.approx(1, abs=0.06)
    assert (exact.acceptance >= 0).all() and (exact.acceptance <= 1).all()


def test_stability_limit():
    "Eigenvalue 3.5: stable below eta = 8/7."
    start = tuple(torch.zeros(2, 50, 1))
    assert langevin(LINEAR, start, 1.13, 800, generator=seeded()).state[0].abs().max() < 100
    with pytest.raises(
        RuntimeError, match=r"potential must stay finite, got .* at step \d+ of 500"
    ):
        langevin(LINEAR, start, 1.3, 500, generator=seeded())


def test_acceptance_ratio_by_hand():
    x, y, z = double(1.0), double(0.5), double(1.5)
    ratio = partial(vb._log_acceptance, step_size=0.5)
    one = lambda a, b: ratio([a], a**2 / 2, [a], [b], b**2 / 2, [b])
    assert one(x, y).item() == pytest.approx(0.046875) and one(y, z).item() == pytest.approx(-0.125)


def test_metropolis_has_no_bias():
    start = tuple(torch.zeros(2, 20_000, 1, dtype=torch.float64))
    chain = langevin(LINEAR, start, 0.8, 60, metropolis=True, generator=seeded())
    eps = torch.cat(chain.state, 1)
    assert (eps.mean(0) - MEAN).abs().max() < 0.03
    assert (torch.cov(eps.T) - torch.linalg.inv(PRECISION)).abs().max() < 0.03
    assert 0.4 < chain.acceptance.mean() < 0.95


def test_importance_resampling_and_langevin_agree():
    "Means of some functions under h, by weights and by a long exact chain."
    energy = lambda x: 2 * (x[:, 0] * x[:, 1]).sin() + x[:, 0].square()
    decode = lambda z: (z + 0.5 * z.sin(), torch.full((), -0.7))
    generate = gaussian_generator(decode)
    f = partial(noise_energy, generate=generate, energy=energy)
    start = tuple(torch.randn(2, 8000, 2, generator=seeded()))
    x = generate(*langevin(f, start, 0.3, 60, metropolis=True, generator=seeded(1)).state)
    y = generate(*torch.randn(2, 200_000, 2, generator=seeded(2)))
    weights = torch.softmax(-energy(y), 0)
    for g in (lambda x: x[:, 0], lambda x: x[:, 1].square(), lambda x: (x[:, 0] * x[:, 1]).cos()):
        mean = (weights * g(y)).sum()
        error = 4 * g(x).std() / 8000**0.5
        error += 4 * (weights.square() * (g(y) - mean).square()).sum().sqrt()
        assert abs(g(x).mean() - mean) < error


def test_short_run_arithmetic():
    chain = langevin(lambda x: 0 * x.sum(1), torch.zeros(50_000, 1), 8e-5, 10, generator=seeded())
    assert chain.state.std().item() == pytest.approx(0.028284, rel=0.02)
    assert (1 - 8e-5 / 2) ** 10 == pytest.approx(0.9996)


def test_constant_potential_is_refused():
    with pytest.raises(ValueError, match="potential must depend on state"):
        langevin(lambda x: torch.zeros(len(x)), torch.zeros(3, 1), 0.1, 2)


# ---- penalty, activation, loss, buffer ----


def test_spectral_penalty_by_hand():
    layer = nn.Linear(2, 2).double()
    layer.weight.data = double([3.0, 1], [0, 2])
    penalty, _ = spectral_penalty(layer, generator=seeded())
    penalty.backward()
    assert penalty.item() == pytest.approx(3.256617, abs=1e-6)
    wanted = double([0.843844, 0.451611], [0.255495, 0.136737])
    torch.testing.assert_close(layer.weight.grad, wanted, atol=1e-5, rtol=0)
    layer.weight.data = double([3.0, 0], [0, 1])
    assert spectral_penalty(layer, generator=seeded()).penalty.item() == pytest.approx(3)


@given(out=st.integers(1, 8), width=st.integers(1, 8), seed=st.integers(0, 999))
@settings(max_examples=12, deadline=None)
def test_spectral_penalty_is_never_above_the_norm(out, width, seed):
    layer = nn.Linear(width, out)
    layer.weight.data = torch.randn(out, width, generator=seeded(seed))
    true = torch.linalg.matrix_norm(layer.weight, 2).item()
    rough, state = spectral_penalty(layer, n_iter=1, generator=seeded(seed))
    fine, _ = spectral_penalty(layer, state, n_iter=500)
    assert rough.item() <= true * (1 + 1e-5)
    assert fine.item() == pytest.approx(true, rel=1e-3)


def test_spectral_penalty_of_convolutions_and_state():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 4))
    penalty, state = spectral_penalty(net, n_iter=50, generator=seeded())
    wanted = sum(torch.linalg.matrix_norm(net[i].weight.flatten(1), 2) for i in (0, 3))
    torch.testing.assert_close(penalty, wanted, rtol=1e-4, atol=0)
    again = spectral_penalty(net, state, n_iter=1)
    torch.testing.assert_close(again.penalty, penalty, rtol=1e-4, atol=0)
    assert list(state) == ["0", "3"] and not any(u.requires_grad for u in state.values())
    with pytest.raises(ValueError, match="module must have a weight matrix"):
        spectral_penalty(nn.ReLU())
    with pytest.raises(ValueError, match="state must have the keys"):
        spectral_penalty(net, {"0": state["0"]})


def test_lipschitz_swish():
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64, requires_grad=True)
    lipschitz_swish(x).sum().backward()
    steepest = x.grad.argmax()
    assert x.grad[steepest].item() == pytest.approx(0.999854, abs=1e-6)
    assert x[steepest].item() == pytest.approx(2.399357, abs=1e-4)
    assert (x.grad >= -0.1).all()


def test_loss_by_hand():
    "Three states: E is its own parameter."
    p_data, p_vae = double(0.5, 0.3, 0.2), double(0.25, 0.25, 0.5)
    E = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(3).repeat_interleave(torch.tensor([50, 30, 20]))
    other = torch.arange(3).repeat_interleave(torch.tensor([25, 25, 50]))
    contrastive_loss(E[rows], E[other]).backward()
    torch.testing.assert_close(E.grad, double(0.25, 0.05, -0.30))
    weights = p_vae * (E.grad).exp()  # E = -gradient after a step of size 1
    Z = weights.sum()
    assert Z.item() == pytest.approx(0.954233, abs=1e-6)
    torch.testing.assert_close(weights / Z, double(0.336402, 0.275423, 0.388175), atol=1e-6, rtol=0)
    assert -(p_data * (weights / Z).log()).sum().item() == pytest.approx(1.120818, abs=1e-6)


def test_loss_constant_and_magnitude():
    a, b = torch.tensor([1.0, 3.0]), torch.tensor([2.0])
    assert contrastive_loss(a, b).item() == 0
    assert contrastive_loss(a + 7, b + 7).item() == 0
    assert contrastive_loss(a, b, magnitude_weight=0.1).item() == pytest.approx(0.9)
    assert contrastive_loss(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_buffer():
    buffer = ReplayBuffer(4, (1,))
    assert buffer.draw(3, 1.0, generator=seeded()).shape == (3, 1) and len(buffer) == 0
    torch.testing.assert_close(
        buffer.draw(3, 1.0, generator=seeded()), torch.randn(3, 1, generator=seeded())
    )
    for i in range(1, 4):
        buffer.push(torch.tensor([[10.0 * i], [10.0 * i + 1]]))
    assert sorted(buffer.memory[:, 0].tolist()) == [20, 21, 30, 31] and len(buffer) == 4
    drawn = buffer.draw(2000, 0.25, generator=seeded())[:, 0]
    assert (drawn > 5).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert set(drawn[drawn > 5].tolist()) == {20, 21, 30, 31}
    assert (buffer.draw(50, 1.0) > 5).all() and (buffer.draw(50, 0.0) < 6).all()
    buffer.push(torch.arange(9.0)[:, None])
    assert sorted(buffer.memory[:, 0].tolist()) == [5, 6, 7, 8]
    other = ReplayBuffer(4, (1,))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.memory, buffer.memory) and (other.place, len(other)) == (
        buffer.place,
        4,
    )
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
        buffer.draw(3, 1.5)


# ---- the model ----


def model(dtype=torch.float32):
    decoder = nn.Linear(2, 3).to(dtype)
    return VAEBM(lambda z: (decoder(z), z.new_full((), -0.5)), small_energy(dtype), 2, (3,))


def test_log_partition():
    linear = VAEBM(linear_decode, small_energy(), 1, (1,))
    linear.energy = Kappa()
    found = linear.log_partition(400_000, generator=seeded())
    assert found.log_z == pytest.approx(-1.269237, abs=0.006) and math.exp(
        -1.269237
    ) == pytest.approx(0.281046, abs=1e-6)
    weights = -kappa(linear.generate(*linear.noise(400_000, generator=seeded())))
    w = weights.double().exp()
    assert found.ess_share == pytest.approx(
        (w.sum() ** 2 / (len(w) * (w**2).sum())).item(), rel=1e-6
    )


class Kappa(nn.Module):
    "The energy of the linear case, plus a constant."

    def __init__(self, constant=0.0):
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(constant))

    def forward(self, x):
        return kappa(x) + self.constant


def test_constant_of_the_energy():
    plain, shifted = (VAEBM(linear_decode, Kappa(c), 1, (1,)) for c in (0.0, 3.0))
    a, b = (m.sample(40, 5, 0.1, generator=seeded()) for m in (plain, shifted))
    torch.testing.assert_close(a, b)
    gap = (
        plain.log_partition(999, generator=seeded()).log_z
        - shifted.log_partition(999, generator=seeded()).log_z
    )
    assert gap == pytest.approx(3, abs=1e-4)
    x = torch.randn(5, 1)
    one, two = (
        m.log_weight(x) - m.log_partition(999, generator=seeded()).log_z for m in (plain, shifted)
    )
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_sample_temperature_mean_and_modes():
    net = model()
    net.energy = nn.Sequential(nn.Dropout(0.5), net.energy)
    net.train()
    x = net.sample(6, 4, 0.1, generator=seeded())
    assert net.energy.training and net.energy[0].training
    torch.testing.assert_close(net.sample(6, 4, 0.1, generator=seeded()), x)  # dropout is off
    eps_z, eps_x = net.noise(6, generator=seeded())
    torch.testing.assert_close(net.sample(6, 0, 0.1, generator=seeded()), net.generate(eps_z))
    cold = net.sample(6, 0, 0.1, temperature=0.5, mean=False, generator=seeded())
    torch.testing.assert_close(cold, net.generate(0.5 * eps_z, eps_x))
    assert not x.requires_grad and all(p.grad is None for p in net.parameters())


def test_the_vae_is_frozen():
    class Decode(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)

        def forward(self, z):
            return self.norm(self.body(z)), torch.zeros(())

    decode = Decode()
    net = VAEBM(decode, small_energy(), 2, (3,)).train()
    assert not decode.training and net.energy.training
    before = copy.deepcopy(decode.state_dict())
    optimizer = torch.optim.SGD(net.energy.parameters(), 0.1)
    net.train_step(torch.randn(8, 3), optimizer, n_steps=2, step_size=0.1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), decode.state_dict().values(), strict=True)
    )
    assert all(p.grad is None for p in decode.parameters())


def test_train_step_equals_its_pieces():
    net, other = model(torch.float64), model(torch.float64)
    other.decode = net.decode
    x = torch.randn(5, 3).double()
    buffers = [ReplayBuffer(20, (2,)) for _ in range(2)]
    for buffer in buffers:
        buffer.push(torch.ones(3, 2))
    how = {"n_steps": 3, "step_size": 0.1, "p": 0.5}
    optimizer = torch.optim.SGD(net.energy.parameters(), 0.1)
    step = net.train_step(x, optimizer, buffers[0], magnitude_weight=0.2, generator=seeded(), **how)
    fake = other.negatives(5, buffer=buffers[1], generator=seeded(), **how)
    loss = contrastive_loss(other.energy(x), other.energy(fake), magnitude_weight=0.2)
    loss.backward()
    assert step.loss.item() == pytest.approx(loss.item())
    for p, q in zip(net.energy.parameters(), other.energy.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)
    assert torch.equal(buffers[0].memory, buffers[1].memory) and len(buffers[0]) == 8
    assert net.steps == 1


def test_explosion_is_named_and_leaves_the_weights():
    net = model()
    optimizer = torch.optim.SGD(net.energy.parameters(), 0.1)
    net.train_step(torch.randn(4, 3), optimizer, n_steps=1, step_size=0.01)
    before = copy.deepcopy(net.energy.state_dict())
    with pytest.raises(
        RuntimeError, match=r"energy gap .* must stay within 1 in size, got .* at step 2"
    ):
        net.train_step(1e4 * torch.ones(4, 3), optimizer, n_steps=1, step_size=0.01, max_gap=1.0)
    with pytest.raises(RuntimeError, match="got nan at step 2"):
        net.train_step(math.nan * torch.ones(4, 3), optimizer, n_steps=1, step_size=0.01)
    assert all(torch.equal(p, before[k]) for k, p in net.energy.state_dict().items())
    with pytest.raises(ValueError, match="negatives must be None"):
        net.train_step(torch.randn(4, 3), optimizer, negatives=torch.randn(4, 3), n_steps=3)


def test_explosion_leaves_the_buffer():
    net, buffer = model(), ReplayBuffer(50, (2,))
    optimizer = torch.optim.SGD(net.energy.parameters(), 0.1)
    how = {"n_steps": 1, "step_size": 0.01, "p": 0.5}
    net.train_step(torch.randn(4, 3), optimizer, buffer, **how)
    before = buffer.memory.clone()
    with pytest.raises(RuntimeError, match="energy gap"):
        net.train_step(1e4 * torch.ones(4, 3), optimizer, buffer, max_gap=1.0, **how)
    assert len(buffer) == 4 and torch.equal(buffer.memory, before)


def test_a_diverging_chain_names_update_and_gap():
    energy = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    net = VAEBM(curved, energy, 2, (3,))
    optimizer = torch.optim.SGD(energy.parameters(), 1e-6)
    gap = net.train_step(torch.randn(4, 3), optimizer, n_steps=1, step_size=0.01).gap
    with pytest.raises(RuntimeError, match=r"finite, got .* at step \d+ of 90.* in update 2") as e:
        net.train_step(torch.randn(4, 3), optimizer, n_steps=90, step_size=1e6)
    assert f"energy gap was {gap:g}" in str(e.value) and net.steps == 1


def test_replaying_needs_a_buffer():
    with pytest.raises(ValueError, match=r"p must be 0 where there is no buffer, got 0\.9"):
        model().negatives(3, 1, 0.1, p=0.9)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_chains_of_the_class_equal_langevin(shape):
    "The slope of the squares by hand, against the graph's."
    body = nn.Linear(2, math.prod(shape)).double().requires_grad_(False)
    flat = nn.Sequential(nn.Linear(math.prod(shape), 4), nn.SiLU(), nn.Linear(4, 1)).double()
    energy = nn.Sequential(nn.Flatten(), flat, nn.Flatten(0))

    def decode(z):
        mu = body(z).view(-1, *shape)
        return mu, mu.tanh()

    net = VAEBM(decode, energy, 2, shape)
    start = net.noise(5, generator=seeded())
    ended = langevin(net.potential, start, 0.3, 6, generator=seeded(1)).state
    mine = vb._noise_chain(net, *start, 0.3, 6, seeded(1))
    for a, b in zip(mine, ended, strict=True):
        torch.testing.assert_close(a, b)
    constant = VAEBM(decode, Nothing(), 2, shape)  # shrinks and shakes the noise
    ended = langevin(constant.potential, start, 0.3, 6, generator=seeded(1)).state
    for a, b in zip(vb._noise_chain(constant, *start, 0.3, 6, seeded(1)), ended, strict=True):
        torch.testing.assert_close(a, b)


class Nothing(nn.Module):
    "An energy that looks at nothing."

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return x.new_zeros(len(x))


def test_log_weight_is_that_of_eval_mode():
    net = model()
    net.energy = nn.Sequential(nn.Dropout(0.5), net.energy)
    net.train()
    x = torch.randn(6, 3)
    assert torch.equal(net.log_weight(x), net.log_weight(x)) and net.energy[0].training


def test_spectral_penalty_after_a_layer_of_zeros():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    nn.init.zeros_(net[1].weight)
    _, state = spectral_penalty(net, generator=seeded())
    nn.init.constant_(net[1].weight, 2.0)
    penalty, _ = spectral_penalty(net, state, n_iter=200)
    norms = sum(torch.linalg.matrix_norm(layer.weight, 2) for layer in net)
    assert penalty.item() == pytest.approx(norms.item(), rel=1e-4)


def test_checkpoint_holds_the_vectors():
    net = model()
    optimizer = torch.optim.SGD(net.energy.parameters(), 0.01)
    for _ in range(2):
        net.train_step(torch.randn(4, 3), optimizer, n_steps=1, step_size=0.01, spectral_weight=0.1)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    new = model()
    new.load_state_dict(torch.load(file, weights_only=True))
    assert new.steps == 2
    assert all(torch.equal(new.spectral[k], u) for k, u in net.spectral.items())


@pytest.mark.slow
def test_learning():
    "A VAE twice as wide as the data: exact negatives bring the likelihood most of the way."
    torch.manual_seed(0)
    decode = lambda z: (2 * z, torch.full((), math.log(0.3)))  # N(0, 4.09)
    energy = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1), nn.Flatten(0))
    net = VAEBM(decode, energy, 1, (1,))
    optimizer, g = torch.optim.Adam(energy.parameters(), 5e-3), seeded()
    for _ in range(300):
        x = torch.randn(256, 1, generator=g)
        net.train_step(x, optimizer, n_steps=10, step_size=0.1, spectral_weight=1e-3, generator=g)
    x = torch.randn(20_000, 1, generator=seeded(1))
    base = Normal(0, 4.09**0.5).log_prob(x).mean()
    with torch.no_grad():
        gain = net.log_weight(x).mean() - net.log_partition(100_000, generator=g).log_z
    best = Normal(0, 1.0).log_prob(x).mean() - base  # 0.33 nats
    assert gain > best / 2
    sampled = net.sample(5000, 20, 0.1, mean=False, generator=g)
    assert sampled.std() < 1.5
