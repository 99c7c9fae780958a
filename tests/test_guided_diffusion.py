"""Guided diffusion: schedules, steps, bound, losses, samplers, guidance, networks."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from ponderlearn.generative.guided_diffusion import (
    AdaGroupNorm,
    DiffusionUNet,
    GaussianDiffusion,
    LossSecondMomentSampler,
    NoisyClassifier,
    beta_schedule,
    classifier_gradient,
    classifier_loss,
    diffusion_loss,
    free_guided,
    sample,
    strided_timesteps,
    timestep_embedding,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def process(kind="linear", n_steps=1000, **how):
    return GaussianDiffusion(beta_schedule(kind, n_steps), **how)


def small_net(out_channels=2, seed=0, dtype=torch.float32):
    "A network of x and t that is nothing special."
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = nn.Conv2d(1, out_channels, 3, padding=1).to(dtype)
    return lambda x, t: layer(x) * (1 + t[:, None, None, None] / 1000).to(x.dtype)


# ---- schedules ----


def test_linear_schedule():
    bar = process().alpha_bar
    assert bar[499].item() == pytest.approx(0.07858724, rel=1e-6)
    assert bar[-1].item() == pytest.approx(4.0358298e-5, rel=1e-6)
    assert process(n_steps=4000).alpha_bar[-1].item() == pytest.approx(4.246652e-5, rel=1e-6)


def test_cosine_schedule():
    betas = beta_schedule("cosine", 1000)
    bar = process("cosine").alpha_bar
    assert betas[0].item() == pytest.approx(4.128422e-5, rel=1e-6)
    assert bar[499].item() == pytest.approx(0.49384359, rel=1e-6)
    assert bar[-1].item() == pytest.approx(2.428767e-9, rel=1e-5)
    assert (betas == 0.999).sum() == 1
    small = process("cosine", 10)
    assert small.betas[0].item() == pytest.approx(0.02790726, rel=1e-6)
    assert small.alpha_bar[-1].item() == pytest.approx(2.409172e-5, rel=1e-6)


def test_tables_stay_double():
    moved = process().to(torch.bfloat16)
    assert moved.alpha_bar.dtype == torch.float64
    assert torch.equal(moved.alpha_bar, process().alpha_bar)
    again = copy.deepcopy(moved).respace(torch.tensor([0, 10]))
    assert again.timesteps.tolist() == [0, 10]


@settings(max_examples=20)
@given(st.integers(1, 50), st.integers(0, 10**6))
def test_strides_keep_alpha_bar(n_taken, seed):
    whole = process("cosine", 60)
    indices = torch.randperm(60, generator=seeded(seed))[:n_taken].sort().values
    part = whole.respace(indices)
    torch.testing.assert_close(part.alpha_bar, whole.alpha_bar[indices], rtol=1e-9, atol=0)
    torch.testing.assert_close(part.respace(torch.arange(n_taken)).betas, part.betas)


def test_strides():
    assert strided_timesteps(1000, 10).tolist() == list(range(0, 1000, 111))
    assert strided_timesteps(1000, 25, kind="ddim").tolist() == list(range(0, 1000, 40))
    assert strided_timesteps(10, [2, 3]).tolist() == [0, 4, 5, 7, 9]
    assert strided_timesteps(10, 1).tolist() == [9]  # from noise in one step
    with pytest.raises(ValueError, match="cannot take 6 steps from 5"):
        strided_timesteps(10, [6, 1])
    with pytest.raises(ValueError, match="no integer stride"):
        strided_timesteps(1000, 600, kind="ddim")


# ---- steps and bound ----


@pytest.mark.parametrize("n_taken", [1000, 20, 2])
def test_ddim_of_eta_one_is_ddpm(n_taken):
    diffusion, x, eps = process(variance="small"), double([0.3, -0.7]), double([0.5, 1.1])
    short = diffusion.respace(strided_timesteps(1000, n_taken))
    for i in {1, n_taken // 2, n_taken - 1}:
        p = short.p_mean_variance(eps, x, i, clip=False)
        bar, previous = short.alpha_bar[i], short.alpha_bar_previous[i]
        variance = (1 - previous) / (1 - bar) * (1 - bar / previous)
        mean = previous.sqrt() * p.x0 + (1 - previous - variance).sqrt() * eps
        torch.testing.assert_close(mean, p.mean)
        torch.testing.assert_close(variance, short.posterior_variance[i])


def test_samplers_of_one_noise_agree():
    "DDIM with eta 1 and DDPM with the small variance draw the same, step by step."
    diffusion, net = process("cosine", 40, variance="small"), small_net(1)
    start = torch.randn(3, 1, 4, 4, generator=seeded())
    runs = [
        sample(diffusion, net, start.shape, noise=start, generator=seeded(1), **how)
        for how in ({}, {"method": "ddim", "eta": 1.0})
    ]
    torch.testing.assert_close(*runs, atol=1e-4, rtol=1e-4)


def test_one_t_and_many():
    diffusion, out = process(), torch.randn(3, 2, 4, 4, generator=seeded())
    x = torch.randn(3, 1, 4, 4, generator=seeded(1))
    one = diffusion.p_mean_variance(out, x, 7)
    many = diffusion.p_mean_variance(out, x, torch.full((3,), 7))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b)


def test_decoder():
    diffusion = GaussianDiffusion(double(0.01, 0.2), variance="small")
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    t = torch.zeros(256, dtype=torch.int64)
    xt = torch.full_like(levels, 0.3)
    bits = diffusion.vlb_terms(torch.full_like(xt, 0.4), levels, xt, t)
    assert (2**-bits).sum().item() == pytest.approx(1)
    mean = diffusion.p_mean_variance(torch.full_like(xt, 0.4), xt, 0, clip=False).mean[0].item()
    std = diffusion.log_small[0].div(2).exp().item()
    normal = Normal(mean, std)
    wanted = normal.cdf(levels[40:180] + 1 / 255) - normal.cdf(levels[40:180] - 1 / 255)
    inside = wanted[:, 0] > 1e-12
    torch.testing.assert_close(2 ** -bits[40:180][inside], wanted[inside, 0].double())


def test_decoder_far_away_has_gradients():
    diffusion = process("cosine", 1000)
    x0 = torch.tensor([[-1.0, 1.0, 0.5, -0.25]])
    out = torch.tensor([[30.0, -30.0, 5.0, 0.0, 3.0, -3.0, 20.0, 1.0]]).requires_grad_()
    for t in (0, 1, 999):
        loss = diffusion.vlb_terms(out, x0, x0, torch.tensor([t])).sum()
        (slope,) = torch.autograd.grad(loss, out)
        assert loss.isfinite() and slope.isfinite().all()


def test_end_of_the_chain():
    nats = process().prior_bpd(torch.ones(1, 3).double()) * math.log(2)
    assert nats.item() == pytest.approx(2.01796e-5, rel=1e-4)
    assert abs(process().prior_bpd(torch.zeros(1, 3).double()).item()) < 1e-9


def test_vlb_is_a_kl():
    diffusion, out = process(), torch.randn(4, 2, 3, 3, generator=seeded()).double()
    x0 = torch.rand(4, 1, 3, 3, generator=seeded(1)).double() * 2 - 1
    t = torch.tensor([1, 50, 500, 999])
    xt = diffusion.q_sample(x0, t, torch.randn(x0.shape, generator=seeded(2)).double())
    true, mine = diffusion.q_posterior(x0, xt, t), diffusion.p_mean_variance(out, xt, t, clip=False)
    pair = Normal(true.mean, true.variance.sqrt()), Normal(mine.mean, (mine.log_variance / 2).exp())
    wanted = torch.distributions.kl_divergence(*pair).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(diffusion.vlb_terms(out, x0, xt, t), wanted)


def test_gradcheck_of_the_bound():
    diffusion, x0 = process("cosine", 10, n_levels=17), double([0.25, -1.0], [0.5, 1.0])
    t = torch.tensor([0, 4])
    xt = diffusion.q_sample(x0, t, torch.randn(2, 2, generator=seeded()).double())
    out = torch.randn(2, 4, generator=seeded(1)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: diffusion.vlb_terms(o, x0, xt, t), out)


# ---- losses ----


def test_hybrid_keeps_its_parts_apart():
    diffusion, x0 = process(), torch.rand(4, 1, 3, 3, generator=seeded()) * 2 - 1
    t, noise = torch.tensor([0, 1, 200, 999]), torch.randn(x0.shape, generator=seeded(1))
    out = torch.randn(4, 2, 3, 3, generator=seeded(2)).requires_grad_()
    slopes = {}
    for kind in ("simple", "hybrid"):
        loss = diffusion_loss(diffusion, lambda x, t: out, x0, t, kind=kind, noise=noise)
        slopes[kind] = torch.autograd.grad(loss, out)[0]
    assert torch.equal(slopes["simple"][:, :1], slopes["hybrid"][:, :1])
    assert not slopes["simple"][:, 1:].any() and slopes["hybrid"][:, 1:].any()


def test_importance_is_unbiased():
    sampler = LossSecondMomentSampler(3, history=2, uniform_share=0.0)
    sampler.update(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([4.0, 4, 1, 1, 3, 1]))
    wanted = double(0.5527864, 0.1381966, 0.3090170)
    torch.testing.assert_close(sampler.prob, wanted, atol=1e-7, rtol=0)
    t, weights = sampler.sample(2000, generator=seeded())
    per_step = double(*(weights[t == i][0] for i in range(3)))
    torch.testing.assert_close(per_step, 1 / (3 * wanted), atol=1e-5, rtol=0)
    losses = double(2.0, 7.0, 5.0)
    assert (sampler.prob * per_step * losses).sum().item() == pytest.approx(losses.mean().item())


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_history_is_that_of_a_loop(history, parts, steps):
    sampler, kept = LossSecondMomentSampler(4, history), {i: [] for i in range(4)}
    losses = torch.rand(len(steps), generator=seeded())
    for part in range(parts):
        chosen = slice(part * len(steps) // parts, (part + 1) * len(steps) // parts)
        t = torch.tensor(steps[chosen], dtype=torch.int64)
        if len(t):
            sampler.update(t, losses[chosen])
        for i, loss in zip(t.tolist(), losses[chosen].tolist(), strict=True):
            kept[i] = [*kept[i], loss][-history:]
    for i, found in kept.items():
        if len(found) == history:
            assert sorted(sampler.losses[i].tolist()) == pytest.approx(sorted(found))
    if any(len(found) < history for found in kept.values()):
        assert (sampler.prob == 0.25).all()


# ---- guidance ----


def noisy_classifier():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return NoisyClassifier(1, 3, (4, 4), width=8).eval()


def test_gradient_is_one_a_sample():
    net, t = noisy_classifier(), torch.tensor([0, 5, 900])
    x, y = torch.randn(3, 1, 4, 4, generator=seeded()), torch.tensor([2, 0, 1])
    with torch.no_grad():
        whole = classifier_gradient(net, x, t, y, 2.0)
    with torch.inference_mode():
        torch.testing.assert_close(classifier_gradient(net, x.clone(), t, y, 2.0), whole)
    for i in range(3):
        leaf = x[i : i + 1].clone().requires_grad_()
        net(leaf, t[i : i + 1]).log_softmax(1)[0, y[i]].backward()
        torch.testing.assert_close(2 * leaf.grad[0], whole[i], atol=1e-5, rtol=1e-4)
    assert all(p.grad is None or p.grad.abs().sum() >= 0 for p in net.parameters())


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_no_guidance_is_bit_for_bit(method):
    diffusion, net = process("cosine", 30), small_net()
    how = {"method": method, "n_steps": 7}
    runs = [
        sample(diffusion, net, (2, 1, 4, 4), generator=seeded(3), **how, **more)
        for more in (
            {},
            {},
            {"classifier": noisy_classifier(), "y": torch.tensor([0, 1]), "scale": 0},
        )
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("grad_at", ["x_t", "mean"])
def test_guided_ddpm_by_hand(grad_at):
    "The paper's Algorithm 1 as a loop over formulas."
    diffusion, net, guide = process("cosine", 30), small_net(), noisy_classifier()
    start, y = torch.randn(2, 1, 4, 4, generator=seeded()), torch.tensor([0, 2])
    how = {"noise": start, "classifier": guide, "y": y, "scale": 3.0, "grad_at": grad_at}
    ours = sample(diffusion, net, start.shape, n_steps=5, generator=seeded(4), **how)
    indices, g, x = strided_timesteps(30, 5).tolist(), seeded(4), start
    bar = torch.cumprod(1 - beta_schedule("cosine", 30), 0).tolist()
    for k in reversed(range(5)):
        now, before = bar[indices[k]], bar[indices[k - 1]] if k else 1.0
        beta = 1 - now / before
        small = (1 - before) / (1 - now) * beta
        if k == 0:
            second = bar[indices[1]]
            small = (1 - now) / (1 - second) * (1 - second / now)
        eps, place = net(x, torch.full((2,), indices[k])).detach().chunk(2, 1)
        x0 = ((x - math.sqrt(1 - now) * eps) / math.sqrt(now)).clamp(-1, 1)
        mean = math.sqrt(before) * beta / (1 - now) * x0
        mean = mean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        variance = torch.exp((place + 1) / 2 * math.log(beta) + (1 - place) / 2 * math.log(small))
        at, index = (x, indices[k]) if grad_at == "x_t" else (mean, indices[max(k - 1, 0)])
        slope = classifier_gradient(guide, at, torch.full((2,), index), y, 3.0)
        x = mean + variance * slope
        if k:
            x = x + variance.sqrt() * torch.randn(x.shape, generator=g)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-3)


def test_free_guidance_of_one_is_the_conditional_model():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = DiffusionUNet(1, width=8, num_classes=3)
        nn.init.normal_(net.out[-1].weight)
    x, t, y = torch.randn(2, 1, 4, 4), torch.tensor([3, 9]), torch.tensor([0, 2])
    torch.testing.assert_close(free_guided(net, y, 1.0)(x, t), net(x, t, y=y), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(free_guided(net, y, 0.0)(x, t)[:, :1], net(x, t)[:, :1])
    torch.testing.assert_close(net(x, t), net(x, t, y=torch.full((2,), 3)))


# ---- sampling ----


def exact_normal(diffusion, mean=0.3, tau=0.5):
    "The exact noise for data from one normal distribution."

    def model(x, t):
        bar = diffusion.alpha_bar[t][:, None].to(x.dtype)
        variance = bar * tau**2 + 1 - bar
        return (1 - bar).sqrt() * (x - bar.sqrt() * mean) / variance

    return model


@pytest.mark.parametrize(("kind", "wanted"), [("small", 0.322835), ("large", 0.598766)])
def test_spread_of_ten_steps(kind, wanted):
    diffusion = process(variance=kind)
    x = sample(diffusion, exact_normal(diffusion), (100_000, 1), n_steps=10, clip=False,
               generator=seeded())  # fmt: skip
    assert x.std().item() == pytest.approx(wanted, abs=0.005)


def test_ddim_there_and_back():
    diffusion = process(variance="small")
    model, x0 = exact_normal(diffusion), torch.linspace(-1, 1, 5)[:, None].double()
    errors = []
    for n in (50, 1000):
        short, x = diffusion.respace(strided_timesteps(1000, n)), x0
        for i in range(n - 1):
            eps = model(x, short.timesteps[i].expand(5))
            x = short.q_sample(short.predict_x0(x, i, eps), i + 1, eps)
        how = {"method": "ddim", "clip": False, "noise": x, "n_steps": n}
        errors.append((sample(diffusion, model, x0.shape, **how) - x0).abs().max().item())
    assert errors[1] < errors[0] / 5 and errors[1] < 0.02


def test_a_step_set_without_zero():
    x = sample(process(), small_net(), (2, 1, 4, 4), n_steps=torch.tensor([100, 900]))
    assert x.isfinite().all() and sample(process(), small_net(), (2, 1, 4, 4), n_steps=1).any()


def test_callback_sees_all_steps():
    seen = []
    sample(
        process(), small_net(), (1, 1, 4, 4), n_steps=4, callback=lambda i, x, x0: seen.append(i)
    )
    assert seen == [3, 2, 1, 0]


# ---- networks ----


def test_step_enters_by_waves():
    waves = timestep_embedding(torch.tensor([3]), 6)[0].double()
    angles = 3 * 10_000 ** -(double(0.0, 1, 2) / 3)
    torch.testing.assert_close(waves, torch.cat([angles.cos(), angles.sin()]), atol=1e-6, rtol=0)


def test_adaptive_norm_starts_plain():
    norm, h = AdaGroupNorm(2, 4, 6), torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(norm(h, torch.randn(3, 6)), nn.GroupNorm(2, 4)(h))


@pytest.mark.parametrize("norm", ["ada", "add"])
def test_unet_in_other_precisions(norm):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = DiffusionUNet(3, 8, (1, 2, 2), 1, (1, 2), norm=norm)
        nn.init.normal_(net.out[-1].weight, std=0.1)
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([0, 999])
    wanted = net(x, t)
    assert wanted.shape == (2, 6, 8, 12)
    exact = copy.deepcopy(net).double()(x.double(), t)
    torch.testing.assert_close(wanted.double(), exact, atol=1e-4, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, t)
        assert diffusion_loss(process(), net, x.clamp(-1, 1)).dtype == torch.float32
    torch.testing.assert_close(half.float(), wanted, atol=0.1, rtol=0.1)


def test_rows_do_not_mix():
    net, t = noisy_classifier(), torch.tensor([3, 700])
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(net(x, t)[:1], net(x[:1], t[:1]), atol=1e-5, rtol=1e-4)


def test_losses_draw_from_their_generator():
    net, x0 = small_net(), torch.zeros(4, 1, 4, 4)
    pair = [diffusion_loss(process(), net, x0, generator=seeded(5)).item() for _ in range(2)]
    assert pair[0] == pair[1]
    how = {"generator": seeded(5), "reduction": "none"}
    y = torch.tensor([0, 1, 2, 0])
    assert classifier_loss(process(), noisy_classifier(), x0, y, **how).shape == (4,)


# ---- learning ----


@pytest.mark.slow
def test_learns_two_images():
    "A U-Net that has seen two images draws them, and the wanted one with a classifier."
    torch.manual_seed(0)
    pair = torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4)]) * 0.7
    diffusion = process("cosine", 100)
    net = DiffusionUNet(1, width=16, multipliers=(1,))
    guide = NoisyClassifier(1, 2, (4, 4), width=8, multipliers=(1,))
    optimizer = torch.optim.Adam([*net.parameters(), *guide.parameters()], 2e-3)
    for _ in range(400):
        y = torch.randint(2, (32,))
        loss = diffusion_loss(diffusion, net, pair[y]) + classifier_loss(
            diffusion, guide, pair[y], y
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    draw = partial(sample, diffusion, net.eval(), (64, 1, 4, 4), n_steps=20, generator=seeded())
    free, y = draw().mean((1, 2, 3)), torch.arange(64) % 2
    assert (free.abs() > 0.5).float().mean() > 0.8
    guided = draw(classifier=guide.eval(), y=y, scale=2.0).mean((1, 2, 3))
    assert ((guided > 0) == (y == 0)).float().mean() > 0.9


def test_a_classifier_without_a_slope_is_named():
    x, t, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2])
    fixed = torch.zeros(2, 3, requires_grad=True)
    for classifier in (lambda x, t: x.detach(), lambda x, t: fixed):
        with pytest.raises(ValueError, match="classifier must be differentiable in x"):
            classifier_gradient(classifier, x, t, y)


def test_no_label_is_left_out_in_silence():
    with pytest.raises((IndexError, RuntimeError)):  # -100 is what cross_entropy would skip
        classifier_loss(process(), lambda x, t: x, torch.zeros(2, 3), torch.tensor([0, -100]))
