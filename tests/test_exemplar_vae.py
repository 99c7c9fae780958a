"""Exemplar VAE: the mixture and its bounds, masks, search, cache, training steps, likelihood."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KernelDensity, KNeighborsClassifier
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ponderlearn._nested import mlp
from ponderlearn.generative import exemplar_vae as ev
from ponderlearn.generative.exemplar_vae import (
    ExemplarCache,
    ExemplarVAE,
    elbo_terms,
    exemplar_log_prior,
    iwae_log_likelihood,
    knn_log_prior,
    knn_predict,
    leave_one_out,
    mixture_kl_bound,
    rat_step,
    vamp_log_prior,
)

F64 = torch.float64
LINE = torch.tensor([[0.0], [1.0], [3.0], [6.0]], dtype=F64)
HALF = torch.tensor(0.5, dtype=F64).log()
AT = torch.tensor([[0.2]], dtype=F64)
OTHERS = torch.tensor([[False, True, True, True]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*size, seed=0, dtype=F64):
    return torch.randn(*size, generator=seeded(seed), dtype=dtype)


def close(a, b, tol=1e-6):
    return torch.allclose(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), atol=tol)


class Encoder(nn.Module):
    def __init__(self, input_size=6, hidden_size=16, latent_dim=2):
        super().__init__()
        self.net = mlp(input_size, hidden_size, 2 * latent_dim)

    def forward(self, x):
        return self.net(x).chunk(2, dim=1)


def model_of(likelihood="bernoulli", seed=0):
    torch.manual_seed(seed)
    return ExemplarVAE(Encoder(), mlp(2, 16, 6), 2, likelihood=likelihood)


def images(n=20, seed=1):
    return (torch.rand(n, 6, generator=seeded(seed)) < 0.4).float()


# ---- the mixture ----


def plain(z, centers, log_var, mask=None, n=None):
    "Loops over rows and exemplars."
    found = []
    for i, row in enumerate(z):
        kept = [j for j in range(len(centers)) if mask is None or mask[i, j]]
        total = sum(
            Normal(centers[j], (log_var / 2).exp().expand(len(row))).log_prob(row).sum().exp()
            for j in kept
        )
        found.append(total.log() - math.log(n or len(kept)))
    return torch.stack(found)


def test_case_by_hand():
    assert close(exemplar_log_prior(AT, LINE, HALF), [-1.560907])
    assert close(exemplar_log_prior(AT, LINE, HALF, mask=OTHERS), [-2.310231])
    assert close(exemplar_log_prior(AT, LINE, HALF, mask=OTHERS, n=4), [-2.597914], 1e-5)
    assert close(exemplar_log_prior(AT, LINE, HALF, mask=OTHERS, n=torch.tensor([4])), [-2.597914])
    z = AT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(exemplar_log_prior(z, LINE, HALF).sum(), z)
    assert close(slope, [[0.310087]])
    (slope,) = torch.autograd.grad(exemplar_log_prior(z, LINE, HALF, mask=OTHERS).sum(), z)
    assert close(slope, [[1.602984]])


def test_loops_agree():
    z, centers = randn(7, 3), randn(11, 3, seed=1)
    mask = torch.rand(7, 11, generator=seeded(2)) < 0.5
    mask[:, 0] = True
    for log_var in (HALF, randn(3, seed=3)):
        assert close(exemplar_log_prior(z, centers, log_var), plain(z, centers, log_var))
        masked = exemplar_log_prior(z, centers, log_var, mask=mask)
        assert close(masked, plain(z, centers, log_var, mask))
        for chunk_size in (1, 4, 100):
            chunked = exemplar_log_prior(z, centers, log_var, mask=mask, chunk_size=chunk_size)
            assert close(chunked, masked, 1e-9)


def test_kernel_density():
    z, centers = randn(30, 4), randn(50, 4, seed=1)
    peer = KernelDensity(bandwidth=0.5**0.5).fit(centers.numpy()).score_samples(z.numpy())
    assert close(exemplar_log_prior(z, centers, HALF), torch.from_numpy(peer))


def test_torch_mixture():
    z, centers, log_vars = randn(9, 3), randn(5, 3, seed=1), randn(5, 3, seed=2)
    mix = Categorical(torch.ones(5, dtype=F64))
    peer = MixtureSameFamily(mix, Independent(Normal(centers, (log_vars / 2).exp()), 1))
    assert close(vamp_log_prior(z, centers, log_vars), peer.log_prob(z))
    even = log_vars[:1].expand(5, 3)
    same = exemplar_log_prior(z, centers, log_vars[0])
    assert close(vamp_log_prior(z, centers, even), same)


def test_two_dimensions_by_hand():
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=F64)
    log_vars = torch.tensor([[1, 1], [0.25, 4]], dtype=F64).log()
    z = torch.ones(1, 2, dtype=F64)
    assert close(vamp_log_prior(z, means, log_vars), [-3.249874])
    assert close(exemplar_log_prior(z, means, HALF), [-3.144730])


def test_one_center_and_equal_centers():
    point, log_var = torch.tensor([[0.7]], dtype=F64), torch.zeros((), dtype=F64)
    for m in (1, 3, 10):
        centers = torch.zeros(m, 1, dtype=F64)
        assert close(exemplar_log_prior(point, centers, log_var), [-1.163939])


@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_symmetries(seed, shift, stretch):
    z, centers = randn(4, 3, seed=seed), randn(6, 3, seed=seed + 1)
    value = exemplar_log_prior(z, centers, HALF)
    order = torch.randperm(6, generator=seeded(seed))
    turn = torch.linalg.qr(randn(3, 3, seed=seed + 2))[0]
    assert close(exemplar_log_prior(z, centers[order], HALF), value)
    assert close(exemplar_log_prior(z + shift, centers + shift, HALF), value)
    assert close(exemplar_log_prior(z @ turn, centers @ turn, HALF), value)
    wide = exemplar_log_prior(z * stretch, centers * stretch, HALF + 2 * math.log(stretch))
    assert close(wide, value - 3 * math.log(stretch))


def test_integral_is_one():
    side = torch.linspace(-8, 8, 161, dtype=F64)
    grid = torch.cartesian_prod(side, side)
    density = exemplar_log_prior(grid, randn(5, 2), HALF, chunk_size=2).exp()
    assert abs(density.sum().item() * 0.1**2 - 1) < 1e-3


def test_gradients():
    z, centers = randn(3, 2).requires_grad_(), randn(5, 2, seed=1).requires_grad_()
    mask = torch.rand(3, 5, generator=seeded(2)) < 0.6
    mask[:, 4], mask[:, 3] = False, True
    for log_var in (HALF.clone().requires_grad_(), randn(2, seed=3).requires_grad_()):

        def f(z, centers, log_var):
            return exemplar_log_prior(z, centers, log_var, mask=mask, chunk_size=2)

        assert torch.autograd.gradcheck(f, (z, centers, log_var))
    (slope,) = torch.autograd.grad(f(z, centers, log_var).sum(), centers)
    assert (slope[4] == 0).all()


def test_far_exemplars():
    z = torch.zeros(2, 1, requires_grad=True)
    value = exemplar_log_prior(z, torch.tensor([[1500.0], [2000.0]]), torch.tensor(0.0))
    value.sum().backward()
    assert value.isfinite().all() and value[0] < -1e6 and z.grad.isfinite().all()


def test_far_from_the_origin():
    z, centers = randn(20, 8) + 1e3, randn(200, 8, seed=1) + 1e3
    exact = exemplar_log_prior(z, centers, HALF)
    assert close(exemplar_log_prior(z.float(), centers.float(), HALF.float()).double(), exact, 1e-2)


def test_dtypes():
    z, centers = randn(4, 3, dtype=torch.float32), randn(6, 3, seed=1, dtype=torch.float32)
    value = exemplar_log_prior(z, centers, HALF.float())
    half = exemplar_log_prior(z.bfloat16(), centers.bfloat16(), HALF.bfloat16())
    assert value.dtype == half.dtype == torch.float32
    assert close(half, value, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exemplar_log_prior(z, centers, HALF.float()), value)


def test_vmap():
    z, centers = randn(5, 4, 3), randn(6, 3, seed=1)
    together = torch.vmap(lambda z: exemplar_log_prior(z, centers, HALF))(z)
    assert close(together, torch.stack([exemplar_log_prior(row, centers, HALF) for row in z]))


@pytest.mark.slow
def test_compile():
    z, centers = randn(4, 3), randn(6, 3, seed=1)
    mask = leave_one_out(torch.arange(4), torch.arange(6))
    compiled = torch.compile(exemplar_log_prior, fullgraph=True)
    assert close(
        compiled(z, centers, HALF, mask=mask), exemplar_log_prior(z, centers, HALF, mask=mask)
    )


# ---- leave one out, subsets ----


def test_leave_one_out_compares_numbers():
    index, exemplars = torch.tensor([7, 2]), torch.tensor([2, 7, 7, 5])
    wanted = [[True, False, False, True], [False, True, True, True]]
    assert leave_one_out(index, exemplars).tolist() == wanted  # every copy is left out


def test_empty_row_is_refused():
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    for call in (
        lambda: exemplar_log_prior(AT.expand(2, 1), LINE, HALF, mask=mask),
        lambda: mixture_kl_bound(AT.expand(2, 1), AT.expand(2, 1), LINE, HALF, mask=mask),
    ):
        with pytest.raises(ValueError, match="no exemplar left for row 1"):
            call()
    with pytest.raises(ValueError, match="fewer than 3 left for row 0"):
        knn_log_prior(AT.expand(2, 1), LINE, HALF, 3, mask=mask)


def test_bandwidth():
    apart = leave_one_out(torch.arange(4), torch.arange(4))

    def total(variance, **how):
        return exemplar_log_prior(LINE, LINE, torch.tensor(variance, dtype=F64).log(), **how).sum()

    grid = torch.arange(8.5, 9.2, 0.001, dtype=F64)
    values = torch.stack([total(v.item(), mask=apart) for v in grid])
    assert abs(grid[values.argmax()].item() - 8.835) < 2e-3
    assert close(values.max(), -10.558638)
    assert close(total(1e-2), -0.010591, 1e-5) and close(total(1e-4), 9.199749, 1e-5)


# ---- neighbors ----


def test_neighbors_by_hand():
    lower = [knn_log_prior(AT, LINE, HALF, k, mask=OTHERS).item() for k in (1, 2, 3)]
    assert np.allclose(lower, [-2.310977, -2.310231, -2.310231], atol=1e-6)
    upper = [v + math.log(3 / k) for k, v in zip((1, 2, 3), lower, strict=True)]
    assert np.allclose(upper, [-1.212365, -1.904766, -2.310231], atol=1e-6)


@given(st.integers(0, 10**6), st.floats(-4, 2))
@settings(max_examples=30, deadline=None)
def test_neighbors_are_a_bound(seed, log_var):
    z, centers = randn(5, 3, seed=seed), randn(12, 3, seed=seed + 1)
    log_var = torch.tensor(log_var, dtype=F64)
    mask = leave_one_out(torch.arange(5), torch.arange(12))
    whole, before = exemplar_log_prior(z, centers, log_var, mask=mask), -torch.inf
    stale = centers + 0.3 * randn(12, 3, seed=seed + 2)
    for k in range(1, 12):
        bound = knn_log_prior(z, centers, log_var, k, mask=mask)
        shared = knn_log_prior(z, centers, log_var, k, mask=mask, share=True)
        old = knn_log_prior(z, centers, log_var, k, mask=mask, search_centers=stale)
        assert (bound >= before - 1e-9).all() and (bound <= shared + 1e-9).all()
        assert (shared <= whole + 1e-9).all() and (old <= bound + 1e-9).all()
        assert (whole <= bound + math.log(11 / k) + 1e-9).all()
        before = bound
    assert close(before, whole)


def test_neighbors_have_gradients():
    z, centers = randn(3, 2).requires_grad_(), randn(6, 2, seed=1).requires_grad_()
    log_var = HALF.clone().requires_grad_()
    for share in (False, True):
        call = lambda *args, share=share: knn_log_prior(*args, 2, share=share)
        assert torch.autograd.gradcheck(call, (z, centers, log_var))


def test_cache():
    cache, codes = ExemplarCache(30, 3), randn(30, 3, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="cache entry never written"):
        cache.nearest(codes[:2], 2)
    cache.update(torch.arange(30), codes.requires_grad_())
    assert not cache.means.requires_grad
    index, candidates = torch.arange(5), torch.randperm(30, generator=seeded(1))[:12]
    near = cache.nearest(codes[:5], 4, mask=leave_one_out(index, torch.arange(30)))
    distances = torch.cdist(codes[:5], codes).detach()
    distances[index, index] = torch.inf
    assert torch.equal(near.sort(1).values, distances.topk(4, largest=False).indices.sort(1).values)
    near = cache.nearest(codes[:5], 4, candidates=candidates)
    wanted = candidates[torch.cdist(codes[:5], codes[candidates]).topk(4, largest=False).indices]
    assert torch.equal(near.sort(1).values, wanted.sort(1).values)
    assert set(cache.state_dict()) == {"means", "written"}


def test_only_what_is_searched_must_be_written():
    cache = ExemplarCache(4, 1)
    cache.update(torch.tensor([1, 3]), torch.tensor([[1.0], [3.0]]))
    assert cache.nearest(torch.tensor([[2.9]]), 1, candidates=torch.tensor([1, 3])).item() == 3
    with pytest.raises(IndexError):
        cache.update(torch.tensor([4]), torch.tensor([[1.0]]))


def test_votes():
    x, y, z = randn(80, 3), torch.arange(80) % 4, randn(60, 3, seed=1)
    for k in (1, 7):
        peer = KNeighborsClassifier(k).fit(x.numpy(), y.numpy())
        votes = peer.predict_proba(z.numpy())
        clear = (votes == votes.max(1, keepdims=True)).sum(1) == 1
        found = knn_predict(x, y, z, k).numpy()
        assert (found[clear] == peer.predict(z.numpy())[clear]).all() and clear.sum() > 20
    train, labels = torch.tensor([[0.0], [1.0], [1.5], [9.0]]), torch.tensor([1, 0, 0, 1])
    assert knn_predict(train, labels, torch.tensor([[0.2]]), 2).item() == 1  # a tie: nearer wins


# ---- bounds of the KL ----


def test_kl_bound_by_hand():
    q = torch.tensor([[0.25]], dtype=F64).log()
    single = [mixture_kl_bound(AT, q, c[None], HALF).item() for c in LINE]
    assert np.allclose(single, [0.136574, 0.736574, 7.936574, 33.736574], atol=1e-6)
    assert close(mixture_kl_bound(AT, q, LINE, HALF), [1.085115])
    assert close(mixture_kl_bound(AT, q, LINE, HALF, mask=OTHERS), [1.834440])


def test_kl_bound_is_above_the_kl():
    mu, log_var_q, centers = randn(4, 2), randn(4, 2, seed=1), randn(9, 2, seed=2)
    noise = randn(200_000, 1, 2, seed=3)
    z = mu + (log_var_q / 2).exp() * noise
    log_q = Normal(mu, (log_var_q / 2).exp()).log_prob(z).sum(2).mean(0)
    log_p = exemplar_log_prior(z.flatten(0, 1), centers, HALF).view(-1, 4).mean(0)
    bound = mixture_kl_bound(mu, log_var_q, centers, HALF)
    assert (bound >= log_q - log_p - 0.02).all()
    i = int(torch.cdist(mu[:1], centers).argmin())  # one term: log N + KL to it
    single = mixture_kl_bound(mu[:1], log_var_q[:1], centers[i : i + 1], HALF)
    assert (log_q - log_p)[0] <= math.log(9) + single.item() + 0.02


@pytest.mark.parametrize(("n", "wanted"), [(4, 1.386294), (4000, 8.294050)])
def test_memory_costs_log_n(n, wanted):
    zero, centers = torch.zeros(1, 1, dtype=F64), 100 * torch.arange(n, dtype=F64)[:, None]
    assert close(mixture_kl_bound(zero, zero, centers, torch.zeros((), dtype=F64)), [wanted])
    z = randn(500, 1)
    kl = Normal(0, 1).log_prob(z)[:, 0] - exemplar_log_prior(z, centers, zero[0, 0])
    assert close(kl, torch.full((500,), wanted, dtype=F64))


# ---- the model ----


def linear_gaussian():
    "One latent number, decoder N(2 z, 1): log p(x | X) in closed form."
    centers, log_var = torch.tensor([[-1.0], [0.5], [2.0]], dtype=F64), HALF
    encode = lambda x: (0.4 * x, torch.full_like(x, math.log(0.3)))
    decode = lambda x, z: Normal(2 * z, 1).log_prob(x).sum(1)
    prior = lambda z: exemplar_log_prior(z, centers, log_var)
    x = torch.linspace(-4, 6, 9, dtype=F64)[:, None]
    exact = exemplar_log_prior(x, 2 * centers, torch.tensor(4 * 0.5 + 1, dtype=F64).log())
    return x, encode, decode, prior, exact


def test_elbo_and_iwae_against_the_closed_form():
    x, encode, decode, prior, exact = linear_gaussian()
    many = x.repeat_interleave(4000, 0)
    terms = elbo_terms(many, encode, decode, prior, generator=seeded())
    elbo = terms.elbo.view(9, 4000).mean(1)
    assert close(terms.elbo, terms.reconstruction - terms.kl)
    found = {
        n: iwae_log_likelihood(x, encode, decode, prior, n, generator=seeded()) for n in (5, 20_000)
    }
    five = iwae_log_likelihood(many, encode, decode, prior, 5, generator=seeded(1))
    five = five.view(9, 4000).mean(1)
    assert (elbo < five).all() and (five < exact).all()
    assert close(found[20_000], exact, 0.03)


def test_iwae_in_chunks():
    x, encode, decode, prior, _ = linear_gaussian()
    assert iwae_log_likelihood(x, encode, decode, prior, 25, chunk_size=10).shape == (9,)
    one = iwae_log_likelihood(x, encode, decode, prior, 1, generator=seeded(3))
    assert close(one, elbo_terms(x, encode, decode, prior, generator=seeded(3)).elbo, 1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_model(likelihood):
    model, x = model_of(likelihood), images()
    centers = model.centers(x, chunk_size=7)
    assert close(centers, model.encoder(x)[0]) and model.log_var_prior.item() == 0
    mask = leave_one_out(torch.arange(20), torch.arange(20))
    terms = model.elbo(x, centers, mask=mask, beta=0.5, generator=seeded(1))
    assert close(terms.elbo, terms.reconstruction - 0.5 * terms.kl)
    terms.elbo.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    z = randn(20, 2, dtype=torch.float32)
    out = model.decoder(z)
    if likelihood == "bernoulli":
        peer = torch.distributions.Bernoulli(logits=out).log_prob(x).sum(1)
        assert close(model.decode_mean(z), out.sigmoid())
    else:
        peer = Normal(out, 1).log_prob(x).sum(1)
        assert close(model.decode_mean(z), out)
    assert close(model.decode_log_prob(x, z), peer, 1e-4)


def test_children_step_by_sigma_of_the_prior():
    model, x = model_of("gaussian"), images()
    model.decoder = nn.Identity()  # a child is its code
    model.log_var_prior.data.fill_(math.log(0.09))
    centers = model.centers(x).detach()
    children = model.augment(x.repeat(2000, 1), generator=seeded()) - centers.repeat(2000, 1)
    assert close(children.mean(), 0, 5e-3) and close(children.std(), 0.3, 5e-3)
    samples = model.sample(40_000, centers, generator=seeded())
    steps = samples.x - centers[samples.index]
    assert close(steps.std(), 0.3, 5e-3) and samples.index.dtype == torch.int64
    assert torch.bincount(samples.index, minlength=20).min() > 1800


def test_log_variances_are_clamped():
    model = model_of()
    last = model.encoder.net[-1]
    last.bias.data[2:] = torch.tensor([50.0, -50.0])
    assert model.encode(images())[1].unique().tolist() == [-6.0, 2.0]


# ---- retrieval ----


def test_rat_step_with_all_neighbors_is_exact():
    model, x, cache = model_of(), images(), ExemplarCache(20, 2)
    cache.update(torch.arange(20), model.centers(x))
    index = torch.tensor([3, 5, 11])
    loss = rat_step(model, cache, x, x[index], index, k=19, generator=seeded(2))
    mask = leave_one_out(index, torch.arange(20))
    exact = -model.elbo(x[index], model.centers(x), mask=mask, generator=seeded(2)).elbo.mean()
    assert close(loss, exact, 1e-5)
    slopes = [torch.autograd.grad(v, list(model.parameters())) for v in (loss, exact)]
    assert all(close(a, b, 1e-4) for a, b in zip(*slopes, strict=True))


def test_rat_step_is_above_the_exact_loss():
    model, x, cache = model_of(), images(200), ExemplarCache(200, 2)
    cache.update(torch.arange(200), model.centers(x) + 0.1)  # an old cache
    index, candidates = torch.arange(4), torch.arange(2, 150)
    loss = rat_step(model, cache, x, x[:4], index, k=3, candidates=candidates, generator=seeded(2))
    mask = leave_one_out(index, candidates)
    centers = model.centers(x[candidates])
    exact = -model.elbo(x[:4], centers, mask=mask, generator=seeded(2)).elbo.mean()
    assert exact - 1e-6 <= loss <= exact + math.log(148 / 3)
    assert close(cache.means[:4], model.centers(x[:4]))  # the batch is written back
    assert close(cache.means[199], model.centers(x[199:])[0] + 0.1)


def test_rat_step_of_another_draw_of_the_data():
    "The batch may be binary where the exemplars are gray: codes in the cache are of the exemplars."
    model, gray, cache = model_of(), torch.rand(200, 6, generator=seeded(4)), ExemplarCache(200, 2)
    centers = model.centers(gray)
    cache.update(torch.arange(200), centers)
    index = torch.arange(4)
    x, mask = (gray[:4] > 0.5).float(), leave_one_out(index, torch.arange(200))
    exact = -model.elbo(x, centers, mask=mask, generator=seeded(2)).elbo.mean()
    for k in (1, 10, 199):
        loss = rat_step(model, cache, gray, x, index, k=k, generator=seeded(2))
        assert exact - 1e-6 <= loss <= exact + math.log(199 / k) + 1e-6
        assert close(cache.means, centers, 1e-5)
    assert close(loss, exact, 1e-5)


def test_copies_among_candidates_count_once():
    model, x, cache = model_of(), images(), ExemplarCache(20, 2)
    cache.update(torch.arange(20), model.centers(x))
    losses = [
        rat_step(model, cache, x, x[:3], torch.arange(3), k=5, candidates=c, generator=seeded(2))
        for c in (torch.tensor([5, 6, 7, 8, 9, 9, 9, 9]), torch.arange(5, 10))
    ]
    assert close(*losses)


def test_nan_in_a_center_is_seen():
    centers = randn(9, 2)
    centers[3, 1] = torch.nan
    for share in (False, True):
        assert knn_log_prior(randn(4, 2), centers, HALF, 2, share=share).isnan().all()
    with pytest.raises(ValueError, match="means must hold finite values"):
        ExemplarCache(9, 2).update(torch.arange(9), centers.float())


def test_learns_two_groups():
    "After training the exemplar prior is far better than the start, and children stay in group."
    g = seeded(5)
    x = torch.zeros(60, 6)
    x[:30, :3], x[30:, 3:] = 1.0, 1.0
    x = (x - (torch.rand(60, 6, generator=g) < 0.05).float()).abs()
    model = model_of(seed=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    mask = leave_one_out(torch.arange(60), torch.arange(60))
    found = []
    for _ in range(40):
        loss = -model.elbo(x, model.centers(x), mask=mask, generator=g).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    gained = found[0] - np.mean(found[-20:])
    assert gained > 1.2, gained  # 1.9 to 2.5 measured, six seeds
    with torch.no_grad():
        children = model.augment(x, generator=g)
    first = children[:, :3].mean(1) > children[:, 3:].mean(1)
    assert (first == (torch.arange(60) < 30)).float().mean() > 0.8


def test_public_names():
    assert {"ExemplarVAE", "rat_step", "iwae_log_likelihood"} <= set(ev.__all__)
