"""DRS: acceptance, shifts, the budget rule, the sampler, KeepTraining, calibration, modes."""

import copy
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ponderlearn._nested import mlp
from ponderlearn.generative.drs import (
    DiscriminatorRejectionSampler,
    _follow,
    accept_logit,
    accept_prob,
    budget_accept_prob,
    calibrate_logits,
    gamma_for_percentile,
    gamma_for_rate,
    keep_training,
    log_accept_prob,
    mode_report,
    ratio_identities,
)

P_D, P_G = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], dtype=torch.float64)
LOGITS = (P_D / P_G).log()
LOG_M = math.log(2.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def kept(p):
    q = P_G * p
    return q.sum().item(), q / q.sum()


def three(n, generator=None):
    return torch.multinomial(P_G, n, replacement=True, generator=generator)


def three_points(generator=None, **how):
    return DiscriminatorRejectionSampler(
        partial(three, generator=generator), LOGITS.__getitem__, generator=generator, **how
    )


# ---- acceptance ----


def test_odds_by_hand():
    odds = accept_logit(LOGITS, LOG_M)
    assert odds[0] > 30
    assert odds[1:].tolist() == pytest.approx([-0.405465, -1.658228], abs=1e-6)
    assert accept_prob(LOGITS, LOG_M).tolist() == pytest.approx([1, 0.4, 0.16])


@pytest.mark.parametrize(
    ("gamma", "rate", "tv", "p"),
    [
        (1, 0.291827, 0.185338, (1, 0.196950, 0.065484)),
        (-1, 0.563890, 0.145321, (1, 0.644405, 0.341138)),
        (-2, 0.741686, 0.230344, None),
    ],
)
def test_shift_by_hand(gamma, rate, tv, p):
    found = accept_prob(LOGITS, LOG_M, gamma)
    share, out = kept(found)
    assert share == pytest.approx(rate, abs=1e-6)
    assert ((out - P_D).abs().sum() / 2).item() == pytest.approx(tv, abs=1e-6)
    assert p is None or found.tolist() == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize(
    ("gamma", "wanted"),
    [
        (3, (0.832042, 0.071276, 0.028159, 0.002602, 2.26e-6)),
        (-3, (0.999499, 0.968713, 0.921194, 0.512765, 9.1109e-4)),
    ],
)
def test_probabilities_in_both_dtypes(gamma, wanted):
    d = torch.tensor([-0.01, -0.5, -1, -3, -10])
    for x in (d, d.double()):
        assert accept_prob(x, 0.0, gamma).tolist() == pytest.approx(wanted, rel=2e-3, abs=1e-6)
        assert torch.allclose(accept_prob(x, 0.0), x.exp())
        assert accept_prob(x, 0.0, gamma).dtype == x.dtype


def test_extremes():
    d = torch.tensor([0.0, -50.0, -1e4, -math.inf])
    for gamma in (-5.0, 0.0, 5.0):
        p = accept_prob(d, 0.0, gamma)
        assert p[0] == 1 and p[3] == 0 and p.isfinite().all()
    assert log_accept_prob(d, 0.0).tolist() == [0.0, -50.0, -1e4, -math.inf]
    assert accept_prob(d[:2], 0.0, 100).tolist() == [1.0, 0.0]
    assert accept_prob(d[:2], 0.0, -100).tolist() == [1.0, 1.0]
    assert accept_prob(torch.tensor([3.0]), 0.0).item() == 1  # above the bound
    with pytest.raises(ValueError, match="logits must be at most log_m"):
        log_accept_prob(torch.tensor([3.0]), 0.0, clamp=False)


def test_epsilon():
    zero = torch.zeros(1)
    for x in (zero, zero.double()):
        assert accept_logit(x, 0.0, eps=1e-14).item() == pytest.approx(32.236191, abs=1e-5)
        assert accept_logit(x, 0.0, eps=1e-6).item() == pytest.approx(13.815511, abs=1e-5)
    coarse = torch.sigmoid(accept_logit(torch.tensor([0.0, -1.0]).double(), 0.0, eps=1e-2))
    # 1 / (1 + expm1-form): sigma(d - log(1 - e^(d - eps)))
    assert coarse.tolist() == pytest.approx([0.990148, 0.366538], abs=1e-6)


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=12),
    st.floats(-8, 8),
    st.floats(-8, 8),
    st.floats(-20, 20),
)
@settings(max_examples=60, deadline=None)
def test_invariances(values, gamma, other, constant):
    x = torch.tensor(values).double()
    p = accept_prob(x, x.max(), gamma)
    moved = accept_prob(x + constant, (x + constant).max(), gamma)
    assert torch.allclose(p, moved, atol=1e-6)
    assert torch.equal(accept_prob(x.flip(0), x.max(), gamma), p.flip(0))
    assert (p[x.argsort()].diff() >= -1e-12).all()
    low, high = sorted((gamma, other))
    assert (accept_prob(x, x.max(), low) >= accept_prob(x, x.max(), high) - 1e-12).all()
    assert (accept_prob(x, x.max() + 1, gamma) <= p + 1e-12).all()
    assert p[x.argmax()] == 1


def test_normal_pair_by_quadrature():
    x = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    target = torch.distributions.Normal(0.0, 1.0).log_prob(x)
    proposal = torch.distributions.Normal(0.0, 2.0).log_prob(x)
    step = (x[1] - x[0]).item()
    wanted = {
        -2: (0.723424, 1.313330, 0.163831),
        -1: (0.618896, 1.160892, 0.092201),
        0: (0.5, 1.0, 0.0),
        1: (0.379740, 0.840244, 0.109207),
        2: (0.271889, 0.690833, 0.227744),
    }
    for gamma, numbers in wanted.items():
        q = proposal.exp() * accept_prob(target - proposal, math.log(2), gamma) * step
        rate = q.sum()
        q = q / rate
        tv = (q - target.exp() * step).abs().sum() / 2
        assert [v.item() for v in (rate, (q * x * x).sum().sqrt(), tv)] == pytest.approx(
            numbers, abs=1e-5
        )
    for sharp, std in ((0.5, 1.264911), (2.0, 0.755929)):  # logits too flat, too sharp
        logits = sharp * (target - proposal)
        q = proposal.exp() * accept_prob(logits, logits.max())
        assert ((q * x * x).sum() / q.sum()).sqrt().item() == pytest.approx(std, abs=1e-5)


# ---- which shift ----


def test_percentile_is_numpys():
    d = torch.tensor([-4.0, -3, -2, -1, -0.5])
    gamma = gamma_for_percentile(d, 0.0, 80)
    assert gamma.item() == pytest.approx(-0.346509, abs=1e-6)
    assert accept_prob(d, 0.0, gamma).mean().item() == pytest.approx(0.282577, abs=1e-6)
    x = torch.randn(501, generator=seeded()).double()
    odds = accept_logit(x, x.max() + 0.1)
    for percentile in (0, 3.3, 50, 97, 100):
        mine = gamma_for_percentile(x, x.max() + 0.1, percentile).item()
        assert mine == pytest.approx(np.percentile(odds.numpy(), percentile), rel=1e-12)
    equal = torch.zeros(5)
    assert gamma_for_percentile(equal, 0.0).item() == 0  # all are at the bound
    assert gamma_for_percentile(x, x.max(), 100).isfinite()


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.6, 0.99, 1.0])
def test_rate_is_reached(rate):
    for x in (torch.randn(1000, generator=seeded()), torch.randn(1000).double() * 20):
        gamma = gamma_for_rate(x, x.max(), rate)
        assert gamma.shape == () and gamma.dtype == x.dtype
        assert accept_prob(x, x.max(), gamma).double().mean().item() == pytest.approx(
            rate, abs=1e-6
        )


def test_rates_by_hand():
    points = LOGITS.repeat_interleave(torch.tensor([2, 3, 5]))
    for rate, wanted, kls in (
        (0.6, -1.198118, (0.065964, 0.058892)),
        (0.8, -2.380508, (0.169894, 0.153909)),
    ):
        gamma = gamma_for_rate(points, LOG_M, rate)
        assert gamma.item() == pytest.approx(wanted, abs=1e-6)
        budget = budget_accept_prob(points, rate)
        rules = accept_prob(points, LOG_M, gamma), budget.prob
        for p, kl in zip(rules, kls, strict=True):
            share, out = kept(p[[0, 2, 5]])
            assert share == pytest.approx(rate, abs=1e-9)
            assert (P_D * (P_D / out).log()).sum().item() == pytest.approx(kl, abs=1e-6)
    assert math.exp(budget_accept_prob(points, 0.6).log_c) == pytest.approx(0.8)  # c M = 2


def test_rates_out_of_reach():
    x = torch.tensor([0.0, 0.0, -1.0, -2.0])  # half of them at the bound
    with pytest.raises(ValueError, match="rate must lie above 0\\.5"):
        gamma_for_rate(x, 0.0, 0.5)
    assert gamma_for_rate(x, 0.1, 0.3).isfinite()  # the bound is above all of them
    assert gamma_for_rate(torch.zeros(3), 0.0, 1.0).item() == 0
    never = torch.tensor([0.0, -1.0, -math.inf, -math.inf])
    for f in (partial(gamma_for_rate, never, 0.0), partial(budget_accept_prob, never)):
        with pytest.raises(ValueError, match="rate must be at most 0\\.5"):
            f(0.6)
    assert budget_accept_prob(never, 0.5).prob.tolist() == [1, 1, 0, 0]


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=30), st.floats(0.01, 1))
@settings(max_examples=80, deadline=None)
def test_budget_is_the_plain_rule(values, rate):
    x = torch.tensor(values).double()
    p, log_c = budget_accept_prob(x, rate)
    assert p.mean().item() == pytest.approx(rate, rel=1e-9)
    assert torch.allclose(p, (log_c + x).clamp(max=0).exp())


@pytest.mark.parametrize("divergence", ["kl", "reverse", "tv"])
def test_budget_is_best_at_its_rate(divergence):
    g = seeded(3)
    p_d, p_g = (torch.rand(40, generator=g).double() for _ in range(2))
    p_d, p_g = p_d / p_d.sum(), p_g / p_g.sum()

    def loss(p):
        q = p_g * p / (p_g * p).sum()
        if divergence == "tv":
            return (q - p_d).abs().sum().item() / 2
        pair = (p_d, q) if divergence == "kl" else (q, p_d)
        return (pair[0] * (pair[0] / pair[1]).log()).sum().item()

    count = (p_g * 10_000).round().long().clamp(min=1)
    p_g = count / count.sum()
    points = (p_d / p_g).log().repeat_interleave(count)
    first = count.cumsum(0) - count
    best = budget_accept_prob(points, 0.5).prob[first]
    shifted = accept_prob(points, points.max(), gamma_for_rate(points, points.max(), 0.5))[first]
    assert loss(best) <= loss(shifted) + 1e-12
    for _ in range(200):  # random rules of the same rate near it
        p = (best + 0.2 * torch.randn(40, generator=g).double()).clamp(1e-6, 1)
        p = p * 0.5 / (p_g * p).sum()
        if p.max() <= 1:
            assert loss(best) <= loss(p) + 1e-12


def test_many_logits():
    x = torch.randn(2**24 + 10, generator=seeded())  # torch.quantile refuses as many
    odds = accept_logit(x[:1000], 6.0)
    assert gamma_for_percentile(x[:1000], 6.0, 50).item() == pytest.approx(
        odds.median().item(), abs=0.02
    )
    assert gamma_for_percentile(x, 6.0, 50).item() == pytest.approx(-6.0, abs=0.01)


# ---- sampler ----


def test_samples_follow_the_data():
    sampler = three_points(seeded(1)).burn_in(2000)
    assert sampler.log_m.item() == LOGITS[0] and sampler.expected_rate == pytest.approx(
        0.4, abs=0.05
    )
    x = sampler.sample(100_000)
    counts = torch.bincount(x, minlength=3).numpy()
    assert stats.chisquare(counts, 100_000 * P_D.numpy()).pvalue > 1e-4
    error = math.sqrt(0.4 * 0.6 / sampler.n_proposed)
    assert abs(sampler.acceptance_rate - 0.4) < 4 * error
    assert sampler.n_bound_updates == 0


def test_rate_and_percentile():
    sampler = three_points(seeded(2), rate=0.6).burn_in(20_000)
    sampler.sample(50_000)
    assert sampler.acceptance_rate == pytest.approx(0.6, abs=0.02)
    assert sampler.gamma.item() == pytest.approx(-1.198, abs=0.05)
    logits = torch.randn(5000, generator=seeded()).double()
    sampler = DiscriminatorRejectionSampler(
        lambda n: torch.arange(n) % 5000, logits.__getitem__, percentile=80, batch_size=5000
    ).burn_in(5000)
    assert sampler.gamma == gamma_for_percentile(logits, logits.max(), 80)


@pytest.mark.parametrize("how", [{}, {"rate": 0.7}, {"percentile": 80, "per_batch": True}])
def test_same_seed_same_samples(how):
    a, b = (three_points(seeded(5), **how).burn_in(500).sample(777) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (777,)


def test_against_a_plain_loop():
    "Proposals and lots are replayed one by one."
    x, lots = torch.randn(400, 2, generator=seeded()), torch.rand(400, generator=seeded(1)).double()
    logit = lambda x: 2 - x.square().sum(1)
    calls = [0]

    def propose(n):
        calls[0] += n
        return x[calls[0] - n : calls[0]]

    sampler = DiscriminatorRejectionSampler(propose, logit, gamma=-1.0, batch_size=50)
    sampler.burn_in(100)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "ponderlearn.generative.drs.draw", lambda f, n, **_: lots[calls[0] - n : calls[0]]
        )
        found = sampler.sample(60, return_logits=True)
    log_m, out = logit(x[:100]).max().item(), []
    for first in range(100, 400, 50):
        part = logit(x[first : first + 50])
        log_m = max(log_m, part.max().item())
        for i, value in enumerate(part.tolist()):
            p = 1 / (1 + math.exp(-1) * math.expm1(log_m - value)) if value < log_m else 1
            if lots[first + i] < p:
                out.append(x[first + i])
    wanted = torch.stack(out[:60])
    assert torch.equal(found.x[:40], wanted[:40])  # the last batches may be smaller
    assert torch.equal(logit(found.x), found.logits)


def test_the_bound_moves_before_the_batch_is_judged():
    values = torch.tensor([0.0, 1.0, 2.0, 0.0])

    def sampler(batch_size):
        at = [0]

        def propose(n):
            at[0] += n
            return torch.arange(at[0] - n, at[0]) % 4

        made = DiscriminatorRejectionSampler(propose, values.__getitem__, batch_size=batch_size)
        made.burn_in(1)
        at[0] = 0
        return made

    odds = []
    one = sampler(1)
    for _ in range(4):
        _, logits = one._scored(1)
        one._keep(logits)
        odds.append(accept_prob(logits, one.log_m).item())
    assert odds == pytest.approx([1, 1, 1, 0.135335], abs=1e-6) and one.n_bound_updates == 2
    four = sampler(4)
    _, logits = four._scored(4)
    four._keep(logits)
    assert accept_prob(logits, four.log_m).tolist() == pytest.approx(
        [0.135335, 0.367879, 1, 0.135335], abs=1e-6
    )


def test_no_finite_bound_shows():
    g = seeded(4)
    sampler = DiscriminatorRejectionSampler(
        lambda n: torch.randn(n, generator=g), lambda x: 5 / 18 * x**2 - math.log(1.5), generator=g
    ).burn_in(100)
    before = sampler.log_m.item()
    sampler.sample(3000)
    assert sampler.n_bound_updates > 1 and sampler.log_m.item() > before


def test_modes_gradients_and_inputs():
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    net[1].eval()
    state = copy.deepcopy(net.state_dict())
    sampler = DiscriminatorRejectionSampler(lambda n: torch.randn(n, 2), net).burn_in(500)
    x = sampler.sample(100)
    assert not x.requires_grad and not x.is_inference()
    assert net.training and not net[1].training and net[2].training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    x = torch.randn(300, generator=seeded()).to(dtype)
    wide = x.double() if dtype == torch.float64 else x.float()
    before = x.clone()
    for f in (accept_prob, accept_logit):
        assert torch.equal(f(x, 4.0), f(wide, 4.0)) and f(x, 4.0).dtype == wide.dtype
    assert gamma_for_rate(x, 4.0, 0.5) == gamma_for_rate(wide, 4.0, 0.5)
    assert torch.equal(budget_accept_prob(x, 0.5).prob, budget_accept_prob(wide, 0.5).prob)
    assert torch.equal(x, before)
    sampler = DiscriminatorRejectionSampler(lambda n: torch.randn(n).to(dtype), lambda x: -x.abs())
    found = sampler.burn_in(200).sample(50, return_logits=True)
    assert found.x.dtype == dtype and found.logits.dtype == wide.dtype
    assert not accept_prob(x.requires_grad_(), 4.0).requires_grad


def test_probabilities_are_told_apart():
    propose = lambda n: torch.randn(n)
    with pytest.warns(UserWarning, match="before the sigmoid"):
        DiscriminatorRejectionSampler(propose, torch.sigmoid).burn_in(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiscriminatorRejectionSampler(propose, lambda x: x).burn_in(1000)
        DiscriminatorRejectionSampler(propose, lambda x: 0 * x).burn_in(1000)


def test_the_end_of_patience():
    hard = lambda x: torch.where(x > 3.5, 0.0, -30.0)
    sampler = DiscriminatorRejectionSampler(lambda n: torch.randn(n, generator=g), hard)
    g = seeded(6)
    sampler.burn_in(20_000)
    with pytest.raises(RuntimeError, match=r"no more than \d+ of 1000 samples accepted after 5000"):
        sampler.sample(1000, max_proposals=5000)
    assert sampler.n_proposed == 5000
    with pytest.raises(RuntimeError, match="burn_in must run before sample"):
        DiscriminatorRejectionSampler(torch.randn, hard).sample(3)
    with pytest.raises(ValueError, match="rate must lie above"):
        DiscriminatorRejectionSampler(torch.randn, lambda x: 0 * x, rate=0.5).burn_in(100)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_logit_ends_at_once_and_leaves_the_sampler(value):
    g = seeded(8)
    sampler = DiscriminatorRejectionSampler(
        lambda n: torch.randn(n, generator=g), lambda x: -(x**2)
    )
    bound = sampler.burn_in(1000).log_m.clone()
    fine = sampler.logit_fn
    sampler.logit_fn = lambda x: torch.where(x == x.max(), value, -(x**2))
    with pytest.raises(ValueError, match="what logit_fn returns must hold numbers below infinity"):
        sampler.sample(500)
    assert sampler.n_proposed == 0 and sampler.log_m == bound
    sampler.logit_fn = fine
    assert len(sampler.sample(500)) == 500


@pytest.mark.parametrize("how", [{"rate": 0.2}, {"percentile": 95.0}, {"percentile": 50.0}])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_rate_holds_when_the_bound_rises(how, scale):
    "Normal logits have no largest value: the bound goes on rising, the target must not."
    g = seeded(9)
    sampler = DiscriminatorRejectionSampler(
        lambda n: scale * torch.randn(n, generator=g), lambda x: x, generator=g, **how
    ).burn_in(10_000)
    bound, gamma = sampler.log_m.item(), sampler.gamma.item()
    half = bound - math.log1p(math.exp(-gamma))  # kept half of the time
    sampler.logit_fn = lambda x: torch.where(x == x.max(), x + 15, x)  # outliers far above it
    sampler.sample(20_000)
    assert sampler.log_m > bound + 10 and sampler.gamma < gamma
    assert accept_prob(torch.tensor([half]), sampler.log_m, sampler.gamma).item() == pytest.approx(
        0.5, abs=1e-4
    )
    assert sampler.acceptance_rate == pytest.approx(sampler.expected_rate, rel=0.1)


def test_a_given_gamma_stays():
    sampler = DiscriminatorRejectionSampler(torch.randn, lambda x: x, gamma=-2.0).burn_in(10)
    sampler.sample(2000)
    assert sampler.gamma == -2.0 and sampler.n_bound_updates > 0


def test_extreme_shifts_follow_too():
    for gamma in (-60.0, -5.0, 0.0, 5.0, 60.0):
        start = torch.tensor(gamma)
        assert _follow(start, torch.tensor(0.0)) == start
        moved = _follow(start, torch.tensor(2.0)).item()
        distance = 2.0 + math.log1p(math.exp(-gamma))
        assert moved == pytest.approx(-math.log(math.expm1(distance)), rel=1e-5)


class CountSyncs(TorchDispatchMode):
    "Counts the operations for which a device is waited for."

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("how", [{}, {"rate": 0.2}, {"percentile": 80.0, "per_batch": True}])
def test_one_wait_a_batch(how):
    calls = []

    def propose(n):
        calls.append(n)
        return torch.randn(n)

    sampler = DiscriminatorRejectionSampler(propose, lambda x: x, batch_size=64, **how).burn_in(500)
    calls.clear()
    with CountSyncs() as mode:
        sampler.sample(300)
    assert len(mode.found) == len(calls) > 3


def test_exact_ratio_in_the_plane():
    "Chi-square of what the sampler keeps over 60 cells, with a ratio that has a finite bound."
    g = seeded(10)
    target, proposal = (torch.distributions.Normal(0.0, s) for s in (1.0, 2.0))
    sampler = DiscriminatorRejectionSampler(
        lambda n: 2 * torch.randn(n, 2, generator=g),
        lambda x: (target.log_prob(x) - proposal.log_prob(x)).sum(1),
        generator=g,
    ).burn_in(10_000)
    x = sampler.sample(20_000)
    assert abs(sampler.acceptance_rate - 0.25) < 4 * math.sqrt(0.25 * 0.75 / sampler.n_proposed)
    cell = (stats.norm.cdf(x.numpy()) * [6, 10]).astype(int)
    counts = np.bincount(cell[:, 0] * 10 + cell[:, 1], minlength=60)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_bad_samplers():
    make = partial(DiscriminatorRejectionSampler, torch.randn, torch.abs)
    with pytest.raises(ValueError, match="give only one of gamma, percentile, rate"):
        make(rate=0.5, percentile=80)
    with pytest.raises(ValueError, match="give only one of gamma, percentile, rate"):
        make(rate=0.5, gamma=1.0)
    with pytest.raises(ValueError, match="per_batch must be False without percentile"):
        make(per_batch=True)
    with pytest.raises(ValueError, match="what logit_fn returns must have shape"):
        DiscriminatorRejectionSampler(torch.randn, lambda x: x[:, None, None]).burn_in(5)
    with pytest.raises(ValueError, match="what logit_fn returns must hold numbers"):
        DiscriminatorRejectionSampler(torch.randn, lambda x: x * math.nan).burn_in(5)
    with pytest.raises(ValueError, match="what propose returns must have 5 rows"):
        DiscriminatorRejectionSampler(lambda n: torch.randn(n + 1), torch.abs).burn_in(5)
    with pytest.raises(ValueError, match="logits must hold numbers"):
        accept_prob(torch.tensor([math.nan]), 0.0)


def test_state_dict():
    a = three_points(seeded(7), rate=0.5).burn_in(2000)
    a.sample(50)
    b = three_points(seeded(8), rate=0.5)
    b.load_state_dict(a.state_dict())
    assert b.state_dict() == a.state_dict() and len(b.sample(100)) == 100
    with pytest.raises(ValueError, match="state must hold"):
        b.load_state_dict({"log_m": 1.0})


def test_metropolis_hastings_has_the_same_limit():
    g = seeded(9)
    x = three(10_000, g)
    for _ in range(40):
        new = three(10_000, g)
        better = torch.rand(10_000, generator=g).double().log() < LOGITS[new] - LOGITS[x]
        x = torch.where(better, new, x)
    counts = torch.bincount(x, minlength=3).numpy()
    assert stats.chisquare(counts, 10_000 * P_D.numpy()).pvalue > 1e-4


# ---- KeepTraining ----


def shifted(n, generator=None):
    return torch.randn(n, 2, generator=generator) + torch.tensor([1.0, 0.0])


def test_the_ratio_is_learned():
    "Two normal distributions: the best logit is linear, 1/2 - x."
    net = nn.Linear(2, 1)
    g = seeded(1)
    real = torch.randn(20_000, 2, generator=g)
    found = keep_training(
        net, real, partial(shifted, generator=g), steps=400, batch_size=1024, generator=g,
        optimizer=partial(torch.optim.Adam, lr=0.03),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=400),
    )  # fmt: skip
    assert net.weight[0].tolist() == pytest.approx([-1, 0], abs=0.1)
    assert net.bias.item() == pytest.approx(0.5, abs=0.1)
    # the least loss is log 4 - 2 JS, by quadrature
    x = torch.linspace(-12, 13, 100_001, dtype=torch.float64)
    p, q = (torch.distributions.Normal(m, 1.0).log_prob(x) for m in (0.0, 1.0))
    least = (p.exp() * F.softplus(q - p) + q.exp() * F.softplus(p - q)).sum() * (x[1] - x[0])
    assert min(found.valid_losses) == pytest.approx(least.item(), abs=0.03)
    assert found.steps[0] == 0 and found.steps[-1] == 400 and found.best_step in found.steps


def test_the_best_weights_come_back():
    "A discriminator that memorizes 40 real samples gets worse on held-out ones."
    torch.manual_seed(0)
    net, real = mlp(2, 128, 128, 1), torch.randn(40, 2, generator=seeded())
    g = seeded(2)
    how = {"steps": 400, "eval_every": 10, "optimizer": partial(torch.optim.Adam, lr=0.01)}
    found = keep_training(
        net, real, lambda n: torch.randn(n, 2, generator=g), valid_fraction=0.5, generator=g, **how
    )
    best = found.steps.index(found.best_step)
    assert found.valid_losses[best] == min(found.valid_losses)
    assert found.valid_losses[-1] > 1.5 * found.valid_losses[best]
    early = keep_training(
        copy.deepcopy(net), real, lambda n: torch.randn(n, 2), patience=3, valid_fraction=0.5, **how
    )
    assert len(early.steps) < len(found.steps)
    assert early.steps[-1] - early.best_step == 30


def test_only_the_discriminator_learns():
    generator = nn.Linear(3, 2)
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    keep_training(
        net, torch.randn(100, 2), lambda n: generator(torch.randn(n, 3)) + 3, steps=20, eval_every=5
    )
    assert generator.weight.grad is None
    assert torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[2].weight, before["2.weight"])
    assert net.training and not net[1].training


def test_frozen_batch_norm_stays_as_it_is():
    backbone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval().requires_grad_(False)
    net = nn.Sequential(backbone, nn.Linear(3, 1))
    before = copy.deepcopy(backbone.state_dict())
    keep_training(net, torch.randn(100, 3) + 2, lambda n: torch.randn(n, 3), steps=10)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert net[1].training and not backbone.training


def test_probabilities_are_told_apart_everywhere():
    net = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    with pytest.warns(UserWarning, match="before the sigmoid"):
        keep_training(net, torch.randn(100, 2), shifted, steps=5)
    p, q = torch.rand(50, generator=seeded()), torch.rand(50, generator=seeded(1))
    for f in (ratio_identities, calibrate_logits):
        with pytest.warns(UserWarning, match="before the sigmoid"):
            f(p, q)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            f(p - 0.5, q - 0.5)


def test_noise_takes_a_giveaway_away():
    "Real values on a lattice are told from smooth ones; noise hides the lattice."
    g = seeded(3)
    real = (torch.rand(2000, 1, generator=g) * 4).round() / 4
    found = []
    for noise in (0.0, 0.5):
        torch.manual_seed(0)
        net = mlp(1, 64, 64, 1)
        how = {"steps": 300, "noise": noise, "optimizer": partial(torch.optim.Adam, lr=0.01)}
        kept = keep_training(net, real, lambda n: torch.rand(n, 1, generator=g), generator=g, **how)
        found.append(min(kept.valid_losses))
    assert found[0] < 1.0 < 1.3 < found[1]


def test_diverging():
    net = mlp(2, 4, 1)
    how = {"steps": 20, "optimizer": partial(torch.optim.SGD, lr=1e30), "eval_every": 1}
    with pytest.raises(FloatingPointError, match="held-out loss must stay finite"):
        keep_training(net, 1e3 * torch.randn(50, 2), shifted, **how)


# ---- calibration and identities ----


def test_calibration_is_the_logistic_regression():
    g = seeded(5)
    real, fake = 3 * torch.randn(400, generator=g) + 2, 3 * torch.randn(150, generator=g) - 1
    x = torch.cat([real, fake]).double().numpy()
    y = np.repeat([1.0, -1.0], [400, 150])
    weight = np.where(y > 0, 1 / 400, 1 / 150) / 2
    loss = lambda t: (weight * np.logaddexp(0, -y * (t[0] * x + t[1]))).sum()
    wanted = optimize.minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-9}).x
    assert list(calibrate_logits(real, fake)) == pytest.approx(wanted, abs=1e-5)
    assert list(calibrate_logits(real[:, None], fake[:, None])) == pytest.approx(wanted, abs=1e-5)
    c = calibrate_logits(100 * real + 7, 100 * fake + 7)  # undone by the calibration
    assert [100 * c.scale, c.bias + 7 * c.scale] == pytest.approx(wanted, abs=1e-5)


def test_true_logits_are_calibrated():
    g = seeded(6)
    logit = lambda x: 1 / 8 * 4 * -x.square() * 0.75 + math.log(2)  # N(0, 1) over N(0, 4)
    real, fake = torch.randn(200_000, generator=g), 2 * torch.randn(200_000, generator=g)
    logits = [-0.375 * x.square() + math.log(2) for x in (real, fake)]
    assert list(calibrate_logits(*logits)) == pytest.approx([1, 0], abs=0.02)
    assert calibrate_logits(*(3 * x for x in logits)).scale == pytest.approx(1 / 3, abs=0.01)
    found = ratio_identities(*logits)
    assert found.mean_ratio_fake == pytest.approx(1, abs=0.01)
    assert found.effective_sample_size / 200_000 > logits[1].exp().mean() / logits[1].exp().max()
    del logit


def test_calibration_without_overlap():
    with pytest.raises(ValueError, match="fake_logits must overlap"):
        calibrate_logits(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.0]))
    with pytest.raises(ValueError, match="fake_logits must overlap"):
        calibrate_logits(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    assert calibrate_logits(torch.ones(3), torch.ones(5)) == (0.0, 0.0)


@pytest.mark.filterwarnings("ignore:a discriminator must return logits")
@given(st.lists(st.floats(-300, 300), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_identities_in_log_space(values):
    x = torch.tensor(values).double()
    found = ratio_identities(x, x)
    w = np.exp(x.numpy() - x.max().item())
    assert found.effective_sample_size == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-9)
    assert found.mean_ratio_fake == pytest.approx(np.exp(x.numpy()).mean(), rel=1e-9)
    assert found.effective_sample_size / len(x) >= w.mean() - 1e-12


# ---- modes ----


def test_modes_against_a_loop():
    g = seeded(7)
    x, centers = 3 * torch.randn(500, 3, generator=g), 3 * torch.randn(6, 3, generator=g)
    report = mode_report(x, centers, 0.4, radius=3.0)
    counts, squares, good = np.zeros(6), 0.0, 0
    for point in x.double():
        distance = (centers.double() - point).norm(dim=1)
        k = int(distance.argmin())
        if distance[k] <= 1.2:
            counts[k] += 1
            squares += float(distance[k] ** 2)
            good += 1
    assert report.high_quality == good / 500 and report.n_recovered == (counts > 0).sum()
    assert report.std == pytest.approx(math.sqrt(squares / good / 3))
    assert report.masses.tolist() == pytest.approx((counts / good).tolist())
    assert report.kl_to_uniform == pytest.approx(stats.entropy(counts / good, np.full(6, 1 / 6)))


def test_modes_without_quality():
    report = mode_report(torch.full((4, 2), 9.0), torch.eye(2), 0.1)
    assert report.high_quality == 0 == report.n_recovered and report.masses.tolist() == [0, 0]
    assert math.isnan(report.std) and math.isnan(report.kl_to_uniform)
    one = mode_report(torch.eye(2)[:1].repeat(10, 1), torch.eye(2), 0.1)
    assert one.kl_to_uniform == pytest.approx(math.log(2)) and one.std == 0
    with pytest.raises(ValueError, match=r"samples must be \(n, d\) and centers \(k, d\)"):
        mode_report(torch.zeros(4), torch.eye(2), 0.1)
