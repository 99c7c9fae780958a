"""Early stopping: closed forms against loops and integrals, limits, the two theorems, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import nn

from ponderlearn.robust import early_stopping as es
from ponderlearn.robust.early_stopping import (
    OneHiddenNet,
    best_epoch,
    cluster_covariance,
    clusterable_data,
    condition_number,
    corrupt,
    distance_from_init,
    empirical_gram,
    linearized_gd,
    nearest_label,
    overfit_distance_bound,
    spectral_energy,
)

LABELS = (-1.0, 0.1, 1.0)
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10**6)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def case(seed=100, radius=0.1, rate=0.1, width=1000, per_cluster=20):
    "Data, given labels, which are wrong, and a network, all float64."
    g = seeded(seed)
    data = clusterable_data(6, per_cluster, 40, radius, LABELS, generator=g, dtype=torch.float64)
    y, bad = corrupt(data.clean, data.cluster, LABELS, rate, generator=g)
    return data, y, bad, OneHiddenNet(40, width, generator=g, dtype=torch.float64)


def jacobian(model, x):
    "Rows (n, p), or (n C, p): autograd, one output at a time."
    weights = [p for p in model.parameters() if p.requires_grad]
    rows = [
        torch.cat([s.reshape(-1) for s in torch.autograd.grad(out, weights, retain_graph=True)])
        for row in x
        for out in model(row[None]).reshape(-1)
    ]
    return torch.stack(rows)


def descend(net, x, y, lr, n_steps):
    "Outputs and distances of plain gradient descent by autograd, before each step."
    w0, seen = net.weight.detach().clone(), []
    for _ in range(n_steps + 1):
        f = net(x)
        seen.append((f.detach(), (net.weight - w0).norm().item()))
        loss = 0.5 * (f - y).square().sum()
        net.weight.data -= lr * torch.autograd.grad(loss, net.weight)[0]
    return seen


# ---- data ----


@few
@given(st.integers(3, 8), st.integers(1, 9), st.integers(2, 12), st.floats(0, 0.99), seeds)
def test_points_are_of_unit_norm_and_within_the_radius(K, m, d, radius, seed):
    data = clusterable_data(K, m, d, radius, LABELS, generator=seeded(seed), dtype=torch.float64)
    assert data.x.shape == (K * m, d) and data.centers.shape == (K, d)
    assert torch.allclose(data.x.norm(dim=1), torch.ones(K * m, dtype=torch.float64))
    far = (data.x - data.centers[data.cluster]).norm(dim=1)
    assert far.max() <= radius + 1e-7
    assert torch.equal(data.cluster.bincount(), torch.full((K,), m))
    assert set(data.clean.tolist()) == {*LABELS} and data.delta == pytest.approx(0.9)
    for k in range(K):
        assert len(data.clean[data.cluster == k].unique()) == 1


def test_points_use_the_whole_radius():
    data = clusterable_data(3, 500, 2, 0.5, LABELS, generator=seeded(0), dtype=torch.float64)
    far = (data.x - data.centers[data.cluster]).norm(dim=1)
    assert far.max() > 0.49 and far.min() < 0.01


@few
@given(st.integers(1, 30), st.floats(0, 0.999), seeds)
def test_corrupt_flips_exactly_the_floor_in_each_cluster(m, rate, seed):
    data = clusterable_data(4, m, 3, 0.1, LABELS, generator=seeded(seed))
    y, bad = corrupt(data.clean, data.cluster, LABELS, rate, generator=seeded(seed))
    counts = data.cluster[bad].bincount(minlength=4).tolist()
    assert counts == [math.floor(rate * m + 1e-9)] * 4
    assert torch.equal(bad, y != data.clean)
    assert set(y.tolist()) <= {*torch.tensor(LABELS).tolist()}


def test_corrupt_takes_any_cluster_numbers_and_every_other_label():
    clean, cluster = torch.ones(3000), torch.tensor([7]).repeat(3000)
    y, bad = corrupt(clean, cluster, LABELS, 0.5, generator=seeded(0))
    assert bad.sum() == 1500
    assert (y == -1).sum() == pytest.approx(750, abs=100)
    order = bad.nonzero().squeeze(1).double()
    assert order.mean() == pytest.approx(1500, abs=100)  # not the first half
    assert torch.equal(corrupt(clean, cluster, LABELS, 0.0).given, clean)
    assert corrupt(clean, cluster, LABELS, 0.3).flipped.sum() == 900  # 0.3 * 3000 < 900 in floats


# ---- covariance ----


def test_closed_forms():
    sixty = f64([1, 0], [0.5, math.sqrt(0.75)])
    sigma = cluster_covariance(sixty)
    assert sigma[0].tolist() == pytest.approx([0.569410, 0.225079], abs=1e-6)
    assert torch.linalg.eigvalsh(sigma).tolist() == pytest.approx([0.344331, 0.794489], abs=1e-6)
    assert condition_number(sigma) == pytest.approx(2.307342, abs=1e-6)
    relu = cluster_covariance(sixty, "relu")
    assert relu[0].tolist() == pytest.approx([0.5, 1 / 6])
    wide = f64([1, 0], [-0.5, math.sqrt(0.75)])
    assert cluster_covariance(wide)[0, 1].item() == pytest.approx(-0.225079, abs=1e-6)
    assert cluster_covariance(wide, "relu")[0, 1].item() == pytest.approx(-1 / 12)
    assert cluster_covariance(torch.eye(3)).count_nonzero() == 3


def test_three_centers():
    centers = f64([1, 0], [0, 1], [0.5**0.5, 0.5**0.5])
    sigma = cluster_covariance(centers)
    assert sigma[0, 2].item() == pytest.approx(0.340288, abs=1e-6)
    values = torch.linalg.eigvalsh(sigma).tolist()
    assert values == pytest.approx([0.088171, 0.569410, 1.050649], abs=1e-6)
    relu = cluster_covariance(centers, "relu")
    assert relu[0, 2].item() == pytest.approx(0.265165, abs=1e-6)
    assert torch.linalg.eigvalsh(relu).tolist() == pytest.approx([0.125, 0.5, 0.875])
    assert torch.linalg.matrix_norm(centers, 2).item() ** 2 == pytest.approx(2)


@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize("r", [-0.9, -0.3, 0.2, 0.7, 0.95])
def test_covariance_against_an_integral(activation, r):
    "E[phi'(u) phi'(v)] of two normal numbers with correlation r, by SciPy's integration."
    s = math.sqrt(1 - r * r)
    normal = lambda u, w: math.exp(-(u * u + w * w) / 2) / (2 * math.pi)
    if activation == "erf":
        slope = lambda z: 2 / math.sqrt(math.pi) * math.exp(-z * z)
        f = lambda w, u: slope(u) * slope(r * u + s * w) * normal(u, w)
        mean = integrate.dblquad(f, -6, 6, -6, 6, epsabs=1e-9)[0]
    else:  # both positive: w > -r u / s where u > 0
        f = lambda u: (
            math.exp(-u * u / 2) / math.sqrt(2 * math.pi) * 0.5 * math.erfc(-r * u / s / 2**0.5)
        )
        mean = integrate.quad(f, 0, 12)[0]
    centers = f64([1, 0], [r, s])
    assert cluster_covariance(centers, activation)[0, 1].item() == pytest.approx(r * mean, abs=1e-7)


def test_equal_centers_have_an_infinite_condition_number():
    c = f64([1, 0], [0, 1], [1, 0])
    assert condition_number(cluster_covariance(c)) == math.inf
    assert condition_number(cluster_covariance(c.float())) == math.inf
    assert condition_number(torch.diag(f64(1, -1))) == math.inf
    assert condition_number(torch.zeros(2, 2)) == math.inf


def test_wide_network_on_the_centers_has_the_covariance_as_gram():
    centers = clusterable_data(5, 1, 8, generator=seeded(0), dtype=torch.float64).centers
    for activation in ("erf", "relu"):
        net = OneHiddenNet(8, 20_000, activation, generator=seeded(1), dtype=torch.float64)
        assert (net.gram(centers) - cluster_covariance(centers, activation)).abs().max() < 0.03


# ---- the network and Gram matrices ----


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_network_and_its_gram(activation):
    net = OneHiddenNet(5, 6, activation, generator=seeded(0), dtype=torch.float64)
    x = torch.randn(4, 5, generator=seeded(1), dtype=torch.float64)
    phi = torch.erf if activation == "erf" else torch.relu
    signs = f64(1, 1, 1, -1, -1, -1) / math.sqrt(6)
    for row, out in zip(x, net(x), strict=True):
        assert out.item() == pytest.approx(sum(signs * phi(net.weight @ row)).item())
    J = jacobian(net, x)
    assert torch.allclose(J @ J.T, net.gram(x), atol=1e-10)
    assert torch.allclose(empirical_gram(net, x, chunk_size=3), net.gram(x), atol=1e-10)
    assert [name for name, _ in net.named_parameters()] == ["weight"]


def test_gradients():
    net = OneHiddenNet(3, 4, generator=seeded(0), dtype=torch.float64)
    x = torch.randn(5, 3, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,))
    centers = nn.functional.normalize(x.detach()[:3], dim=1).requires_grad_()
    unit = lambda c: cluster_covariance(nn.functional.normalize(c, dim=1))
    assert torch.autograd.gradcheck(unit, (centers,))
    y = torch.zeros(5, dtype=torch.float64)
    loss = 0.5 * (net(x) - y).square().sum()  # the sum, not the mean
    (slope,) = torch.autograd.grad(loss, net.weight)
    assert torch.allclose(slope.reshape(-1), jacobian(net, x).T @ net(x).detach())


class Shared(nn.Module):
    "A linear layer that runs twice."

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    "An autoencoder whose decoder is the encoder's weight."

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 3)

    def forward(self, x):
        return torch.tanh(self.encoder(x)) @ self.encoder.weight


class Uncalled(nn.Module):
    "A linear layer of which only the weight is used."

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return torch.tanh(self.first(x)) @ self.second.weight.T


def models():
    frozen = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    frozen[0].weight.requires_grad_(False)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    return {
        "mlp": nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
        "no bias, one output": nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 1)
        ),
        "flat output": nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)),
        "in place": nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)),
        "frozen weight": frozen,
        "tied weights": tied,
        "runs twice": Shared(),
        "tied autoencoder": Tied(),
        "layer not called": Uncalled(),
        "layer norm": nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)),
        "dropout": nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2)),
        "steps in a row": nn.Sequential(
            nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
        ),
        "convolution": nn.Sequential(
            nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)
        ),
    }


@pytest.mark.parametrize("name", models())
def test_empirical_gram_against_autograd(name):
    model = models()[name].double()
    x = torch.randn(7, 4, generator=seeded(0), dtype=torch.float64)
    modes = [m.training for m in model.modules()]
    gram = empirical_gram(model, x, chunk_size=3)
    assert [m.training for m in model.modules()] == modes
    model.eval()
    J = jacobian(model, x)
    out = model(x)
    assert gram.shape == (*out.shape, *out.shape)
    assert torch.allclose(gram.reshape(len(J), len(J)), J @ J.T, atol=1e-10)
    assert all(not m._forward_hooks for m in model.modules())


def test_the_whole_jacobian_is_never_held():
    "The largest tensor made on the way is far smaller than n times the parameters."
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            for one in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(one, torch.Tensor):
                    self.size = max(self.size, one.numel())
            return out

    x = torch.randn(60, 40, generator=seeded(0))
    by_layers = nn.Sequential(nn.Linear(40, 100), nn.Tanh(), nn.Linear(100, 1))
    for model, limit in ((by_layers, 60 * 100), (OneHiddenNet(40, 100), 2 * 10 * 4000)):
        with Largest() as seen:
            empirical_gram(model, x, chunk_size=10)
        assert seen.size <= limit < 60 * 4000


# ---- spectrum and linearized descent ----


def test_equal_points_give_rank_k_and_the_cluster_mean():
    data, _, _, net = case(radius=0.0, per_cluster=10)
    gram = net.gram(data.x)
    values = torch.linalg.eigvalsh(gram)
    assert (values[:-6].abs() < 1e-10).all()
    centers = torch.linalg.eigvalsh(net.gram(data.centers))
    assert torch.allclose(values[-6:], 10 * centers)
    y = data.clean.clone()
    y[data.clean == 1] = f64(1, 1, 1, 1, 1, 1, 1, 1, 1, -1).repeat(2)
    end = linearized_gd(gram, net(data.x).detach() - y, 1 / values[-1].item(), [10**6])
    assert torch.allclose((end.residuals[0] + y)[data.clean == 1], torch.tensor(0.8).double())


def test_two_points_by_hand():
    gram = f64([1, 0.9], [0.9, 1])
    for y, wanted in (
        (f64(1, -1), [(0.05, -0.05), (0.0975, -0.0975), (0.142625, -0.142625)]),
        (f64(1, 0.8), [(0.86, 0.85), (0.9075, 0.888), (0.91415, 0.885625)]),
    ):
        out = linearized_gd(gram, -y, 0.5, [1, 2, 3]).residuals + y
        assert torch.allclose(out, f64(*wanted), atol=1e-6)


@few
@given(st.integers(1, 6), st.floats(0.05, 1.95), seeds)
def test_linearized_descent_against_its_steps(n, factor, seed):
    J = torch.randn(n, 9, generator=seeded(seed), dtype=torch.float64)
    r = torch.randn(n, generator=seeded(seed + 1), dtype=torch.float64)
    gram, w = J @ J.T, torch.zeros(9, dtype=torch.float64)
    lr = factor / torch.linalg.eigvalsh(gram)[-1].item()
    residual, moved = [r], [0.0]
    for _ in range(12):
        w = w - lr * J.T @ residual[-1]
        residual.append(r + J @ w)
        moved.append(w.norm().item())
    found = linearized_gd(gram, r, lr, range(13))
    assert torch.allclose(found.residuals, torch.stack(residual), atol=1e-9)
    assert found.distances.tolist() == pytest.approx(moved, abs=1e-9)


def test_directions_that_do_not_move():
    gram, r = torch.diag(f64(1, 1e-20, 0)), f64(1, 1, 1)
    found = linearized_gd(gram, r, 0.5, [0, 1, 10**6])
    assert found.residuals[-1].tolist() == [0, 1, 1]
    assert found.distances.tolist() == pytest.approx([0, 0.5, 1])
    tiny = linearized_gd(torch.diag(f64(1, 1e-12)), f64(0, 1), 0.5, [1])
    assert tiny.distances.item() == pytest.approx(0.5e-6, rel=1e-9)  # no cancellation


def test_spectral_energy():
    gram = torch.diag(f64(1, 3, 2))
    vectors = f64([0, 1, 0], [1, 0, 0], [3, 4, 0], [0, 0, 0])
    assert spectral_energy(gram, vectors, 2).tolist() == [1, 0, 0.64, 0]
    assert torch.allclose(spectral_energy(gram, vectors[:3], 3), torch.ones(3).double())


def test_real_descent_stays_near_the_linearized_one():
    data, y, _, net = case()
    gram, r = net.gram(data.x), net(data.x).detach() - y
    lr = 1 / torch.linalg.eigvalsh(gram)[-1].item()
    f, far = zip(*descend(net, data.x, y, lr, 100), strict=True)
    found = linearized_gd(gram, r, lr, [1, 100])
    assert far[1] == pytest.approx(found.distances[0].item(), rel=1e-9)
    assert far[100] == pytest.approx(found.distances[1].item(), rel=0.01)
    assert (f[100] - y - found.residuals[1]).abs().max() < 0.02


# ---- the two theorems ----


@pytest.mark.parametrize("seed", [100, 104, 117])
def test_all_labels_are_recovered(seed):
    "At twice |C|^2 / lambda(C) steps; on these seeds after 2 to 5 steps already."
    data, y, bad, net = case(seed)
    sigma = torch.linalg.eigvalsh(cluster_covariance(data.centers))
    stop = math.ceil(2 * torch.linalg.matrix_norm(data.centers, 2) ** 2 / sigma[0])
    lr = 1 / torch.linalg.eigvalsh(net.gram(data.x))[-1].item()
    f, far = descend(net, data.x, y, lr, stop)[-1]
    assert torch.equal(nearest_label(f, LABELS), data.clean) and bad.sum() == 12
    assert far < overfit_distance_bound(case(seed)[3], data.x, y, data.cluster)


def test_the_gap_and_the_energies():
    data, y, _, net = case()
    gram = net.gram(data.x)
    s = torch.linalg.eigvalsh(gram).flip(0).sqrt()
    assert s[5] / s[6] > 5
    near = case(radius=0.05)
    t = torch.linalg.eigvalsh(near[3].gram(near[0].x)).flip(0).sqrt()
    assert s[6] / t[6] == pytest.approx(2, rel=0.1)  # proportional to the radius
    both = torch.stack([net(data.x).detach() - data.clean, y - data.clean])
    clean, noise = spectral_energy(gram, both, 6).tolist()
    assert clean > 0.95 and noise < 0.2


def test_pair_bound_by_hand():
    gaps = (
        (1, 0.1, 100, 0, 6.849904),
        (0.9, 0.3, 1000, 35, 1.351165),
        (2, 0.01, 10_000, 110, 77.830032),
    )
    for gap, r, k, norm, wanted in gaps:
        assert es._pair_bound(f64(gap), f64(r), k, norm).item() == pytest.approx(wanted, abs=1e-6)
    args = f64(1), f64(0.1), 100, 10
    longer = es._pair_bound(*args, 1.01).item()
    assert es._pair_bound(*args).item() > longer  # longer points are moved more easily
    slope, bend = 2 / math.sqrt(math.pi), 2 * math.sqrt(2 / (math.pi * math.e)) * 1.01
    reached = 0.1 * longer * (slope + bend / 10 * (10 + longer / 2))
    assert reached == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_bound_is_never_above_a_network_that_fits(seed):
    g = seeded(seed)
    data = clusterable_data(2, 1, 6, 0.0, (-1.0, 1.0), generator=g, dtype=torch.float64)
    x = nn.functional.normalize(
        data.x[:1] + torch.cat([torch.zeros(1, 6), 0.3 * torch.randn(1, 6, generator=g)]), dim=1
    )
    y = f64(1, -1)
    net = OneHiddenNet(6, 50, generator=g, dtype=torch.float64)
    bound = overfit_distance_bound(net, x, 0.95 * y)
    lr = 1 / torch.linalg.eigvalsh(net.gram(x))[-1].item()
    seen = descend(net, x, y, lr, 300)
    assert (seen[-1][0] - y).abs().max() < 0.05  # so at least 1.9 apart
    assert 0 < bound < seen[-1][1]


def test_bound_at_its_limits():
    data, y, _, net = case(width=100)
    assert overfit_distance_bound(net, data.x, data.clean, data.cluster) == 0
    assert overfit_distance_bound(net, data.x, y) >= overfit_distance_bound(
        net, data.x, y, data.cluster
    )
    same = torch.cat([data.x[:1], data.x[:1]])
    assert overfit_distance_bound(net, same, f64(1, -1)) == math.inf


# ---- the small helpers ----


def test_nearest_label():
    out = nearest_label(torch.tensor([[-2.0, -0.45], [0.5, 0.6]]), LABELS)
    assert torch.allclose(out, torch.tensor([[-1, -1], [0.1, 1]])) and out.dtype == torch.float32
    assert nearest_label(
        torch.tensor([0.2]), torch.tensor([1.0, 0.1, -1.0])
    ).item() == pytest.approx(0.1)
    assert nearest_label(torch.tensor([math.nan]), LABELS).isnan().all()


def test_best_epoch():
    assert best_epoch([0.1]) == 0 and best_epoch([0.5, 0.5]) == 0
    assert best_epoch(torch.tensor([0.1, 0.9, 0.3])) == 1
    scores = [0.3, 0.5, 0.4, 0.4, 0.6]
    assert [best_epoch(scores, patience=p) for p in (1, 2, 3, None)] == [1, 1, 4, 4]


def test_distance_from_init():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    start = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net[0].weight += 1
        net[0].bias -= 1
    net(torch.randn(4, 2))  # moves buffers, which do not count
    assert distance_from_init(net, start) == pytest.approx(math.sqrt(6))
    norm = math.sqrt(sum(start[n].square().sum().item() for n, _ in net.named_parameters()))
    assert distance_from_init(net, start, relative=True) == pytest.approx(math.sqrt(6) / norm)


# ---- dtypes, transforms, errors ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    data = clusterable_data(4, 3, 5, generator=seeded(0), dtype=dtype)
    net = OneHiddenNet(5, 6, generator=seeded(1), dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    assert data.x.dtype == net(data.x).dtype == dtype
    assert net.gram(data.x).dtype == cluster_covariance(data.centers).dtype == wide
    exact = OneHiddenNet(5, 6, generator=seeded(1))
    assert torch.allclose(net.gram(data.x).float(), exact.gram(data.x.float()), atol=2e-2)
    gram, r = net.gram(data.x), net(data.x).detach()
    found = linearized_gd(gram, r, 0.1, [3])
    assert found.residuals.dtype == found.distances.dtype == wide
    assert corrupt(data.clean, data.cluster, data.clean.unique(), 0.4).given.dtype == dtype


def test_compile_and_vmap():
    net = OneHiddenNet(5, 6, generator=seeded(0))
    x = torch.randn(3, 4, 5, generator=seeded(1))
    together = torch.vmap(net)(x)
    assert torch.allclose(together, torch.stack([net(part) for part in x]), atol=1e-6)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x[0]), net(x[0]))


def test_same_generator_same_result():
    for make in (
        lambda g: clusterable_data(3, 4, 5, generator=g).x,
        lambda g: OneHiddenNet(5, 6, generator=g).weight.detach(),
    ):
        assert torch.equal(make(seeded(3)), make(seeded(3)))
        assert not torch.equal(make(seeded(3)), make(seeded(4)))


def bad_calls():
    unit, gram = torch.eye(3), torch.diag(torch.tensor([1.0, 4.0]))
    ones, one_cluster = torch.ones(4), torch.zeros(4, dtype=torch.long)
    net, x = OneHiddenNet(3, 4), torch.eye(3)
    return {
        "centers must have unit norm, got one of norm 2": lambda: cluster_covariance(2 * unit),
        "activation must be one of": lambda: cluster_covariance(unit, "tanh"),
        "hidden_size must be even, got 5": lambda: OneHiddenNet(3, 5),
        "lr must be below 2 / lambda_max = 0.5 or it diverges, got 0.5": lambda: linearized_gd(
            gram, torch.ones(2), 0.5, [1]
        ),
        "steps must be >= 0": lambda: linearized_gd(gram, torch.ones(2), 0.1, [-1]),
        "rate must lie in [0, 1)": lambda: corrupt(ones, one_cluster, (0.0, 1.0), 1.0),
        "labels must hold at least 2 different values": lambda: corrupt(
            ones, one_cluster, (1.0,), 0.1
        ),
        "labels must hold at least 2": lambda: clusterable_data(labels=(1.0, 1.0)),
        "n_clusters must be at least the 3 labels": lambda: clusterable_data(2),
        "radius must lie in [0, 1)": lambda: clusterable_data(radius=1.0),
        "clean must be the same within each cluster": lambda: corrupt(
            torch.tensor([1.0, 1, 0, 1]), one_cluster, (0.0, 1.0), 0.1
        ),
        "clean must hold labels of": lambda: corrupt(ones, one_cluster, (0.0, 2.0), 0.1),
        "matrix must be symmetric": lambda: condition_number(torch.tensor([[1.0, 2], [0, 1]])),
        "model must have a twice differentiable activation": lambda: overfit_distance_bound(
            OneHiddenNet(3, 4, "relu"), x, torch.ones(3)
        ),
        "x must have rows of unit norm": lambda: overfit_distance_bound(net, 2 * x, torch.ones(3)),
        "model must have a trainable parameter": lambda: empirical_gram(nn.ReLU(), x),
        "what model returns must have shape": lambda: empirical_gram(nn.Linear(3, 2), x[None]),
        "x must be an input that model takes": lambda: empirical_gram(
            nn.Linear(3, 1), torch.eye(2)
        ),
        "noisy_valid_accuracy must": lambda: best_epoch([]),
        "reference_state must hold 'weight'": lambda: distance_from_init(net, {}),
    }


@pytest.mark.parametrize("words", bad_calls())
def test_bad_inputs(words):
    with pytest.raises(ValueError) as found:
        bad_calls()[words]()
    assert str(found.value).startswith(words)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_rates_outside(rate):
    with pytest.raises(ValueError, match="rate must lie in"):
        corrupt(torch.ones(4), torch.zeros(4).long(), (0.0, 1.0), rate)
