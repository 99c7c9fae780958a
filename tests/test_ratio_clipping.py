"""Ratio clipping: tilt, surrogates, ratios, weights, bounds, the generator's step, the rounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import nn

from ponderlearn.generative.gan import discriminator_loss, generator_loss, gradient_penalty
from ponderlearn.generative.ratio_clipping import (
    classifier_log_ratio,
    clipped_surrogate,
    donsker_varadhan,
    effective_sample_size,
    fake_weights,
    generator_surrogate,
    reverse_kl_objective,
    reweighted_critic_loss,
    tilt,
    train_ratio_clipping,
)

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
NEW = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
F = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
SCORES = torch.tensor([2.0, 1.0, 0.0, -1.0])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*size, seed=0):
    return torch.randn(*size, generator=seeded(seed), dtype=torch.float64)


# ---- the E and the M step ----


def test_tilt_by_hand():
    log_q, log_z = tilt(P.log(), F)
    assert torch.allclose(log_q.exp(), torch.tensor([0.784399, 0.173139, 0.042463]).double())
    assert log_z.item() == pytest.approx(0.549691, abs=1e-6)
    q = log_q.exp()
    assert (q * F).sum().item() == pytest.approx(0.741936, abs=1e-6)
    assert (q * (q / P).log()).sum().item() == pytest.approx(0.192245, abs=1e-6)


def test_tilt_agrees_with_scipy_and_broadcasts_over_problems():
    log_p, f = randn(4, 7).log_softmax(-1), randn(4, 7, seed=1)
    found = tilt(log_p, f)
    wanted = (log_p + f).numpy()
    assert np.allclose(found.log_z, special.logsumexp(wanted, axis=-1))
    assert np.allclose(found.log_q, special.log_softmax(wanted, axis=-1))


def test_a_tilted_normal_moves_by_the_slope():
    x, a = torch.linspace(-12, 12, 4801).double(), 1.5
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(x) + math.log(24 / 4800)
    log_q, log_z = tilt(log_p, a * x)
    assert log_z.item() == pytest.approx(a * a / 2, abs=1e-6)
    assert (log_q.exp() * x).sum().item() == pytest.approx(a, abs=1e-6)


def test_reverse_kl_by_hand_and_its_gap_to_log_z():
    value = reverse_kl_objective(NEW.log(), P.log(), F)
    assert value.item() == pytest.approx(-0.459922, abs=1e-6)
    assert reverse_kl_objective(P.log(), P.log(), F).item() == pytest.approx(-0.3)
    q, log_z = tilt(P.log(), F)
    gap = (NEW * (NEW.log() - q)).sum()
    assert torch.allclose(value, gap - log_z)


def test_a_point_that_the_new_policy_gave_up_counts_nothing():
    new = torch.tensor([0.5, 0.5, 0.0]).double().log()
    assert reverse_kl_objective(new, P.log(), F).isfinite()
    logits = torch.tensor([0.0, 0.0, -math.inf]).double().requires_grad_()
    reverse_kl_objective(logits.log_softmax(-1), P.log(), F).backward()
    assert logits.grad.isfinite().all()
    wrong = new.clone()
    wrong[0] = math.nan
    assert reverse_kl_objective(wrong, P.log(), F).isnan()


# ---- the clipped surrogate ----


@pytest.mark.parametrize(
    ("clip", "ppo", "upper"), [(0.1, 0.37, 0.45), (0.2, 0.44, 0.5), (0.4, 0.48, 0.5)]
)
def test_surrogate_under_the_old_policy(clip, ppo, upper):
    for rule, wanted in (("ppo", ppo), ("upper", upper)):
        terms = clipped_surrogate(F, (NEW / P).log(), clip, kind=rule, reduction="none")
        assert (P * terms).sum().item() == pytest.approx(wanted)


def test_surrogate_is_not_free_of_the_constant():
    def value(shift, rule, clip=0.2):
        terms = clipped_surrogate(F + shift, (NEW / P).log(), clip, kind=rule, reduction="none")
        return (P * terms).sum().item()

    assert value(2, "ppo") == pytest.approx(2.5)
    assert value(2, "upper") == pytest.approx(2.5)
    assert value(-2, "ppo") == pytest.approx(-1.68)
    assert value(-2, "upper") == pytest.approx(-1.5)
    assert value(-2, "ppo", None) == pytest.approx(value(2, "ppo", None) - 4)


def test_both_rules_at_five_ratios():
    r = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5]).log()
    plus, minus = torch.full((5,), 2.0), torch.full((5,), -2.0)
    how = {"clip": 0.2, "reduction": "none"}
    for rule in ("ppo", "upper"):
        found = clipped_surrogate(plus, r, kind=rule, **how)
        assert torch.allclose(found, torch.tensor([1.0, 1.8, 2.0, 2.2, 2.4]))
    ppo, upper = (clipped_surrogate(minus, r, kind=rule, **how) for rule in ("ppo", "upper"))
    assert torch.allclose(ppo, torch.tensor([-1.6, -1.8, -2.0, -2.2, -3.0]))
    assert torch.allclose(upper, torch.tensor([-1.0, -1.8, -2.0, -2.2, -2.4]))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-2, 2)), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_surrogate_is_the_minimum_written_out(pairs):
    f, log_r = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    r = log_r.exp()
    wanted = torch.minimum(r * f, r.clamp(0.7, 1.3) * f)
    assert torch.allclose(clipped_surrogate(f, log_r, 0.3, reduction="none"), wanted)
    upper = clipped_surrogate(f, log_r, 0.3, kind="upper", reduction="none")
    assert torch.allclose(upper, f * r.clamp(max=1.3))


def test_gradient_of_the_surrogate_in_the_log_ratio():
    f = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0, -2.0]).double()
    log_r = torch.tensor([1.5, 0.5, 0.5, 1.5, 1.0, 1.0]).double().log().requires_grad_()
    clipped_surrogate(f, log_r, 0.2, reduction="sum").backward()
    assert torch.allclose(log_r.grad, torch.tensor([0, 1, 0, -3, 2, -2]).double())
    inside = torch.tensor([0.1, -0.1, 0.05]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: clipped_surrogate(F + 0.1, r, 0.2), inside)


@pytest.mark.parametrize("rule", ["ppo", "upper"])
@pytest.mark.parametrize("clip", [0.2, None])
def test_huge_log_ratios_stay_finite_in_value_and_gradient(rule, clip):
    log_r = torch.tensor([1e3, -1e3, 1e3, -1e3]).requires_grad_()
    value = clipped_surrogate(torch.tensor([1.0, 1.0, -1.0, -1.0]), log_r, clip, kind=rule)
    value.backward()
    assert value.isfinite()
    assert log_r.grad.isfinite().all()


def test_effective_sample_size_of_tiny_and_huge_weights():
    for size in (1e-25, 1.0, 1e25):
        w = size * torch.tensor([1.0, 1.0, 0.0, 0.0])
        assert effective_sample_size(w).item() == pytest.approx(2)


def test_critic_and_classifier_are_two_modules():
    G, critic, _ = nets()
    with pytest.raises(ValueError, match="classifier must be another module than critic"):
        train_ratio_clipping(G, critic, critic, torch.randn(9, 2), latent_dim=3, steps=1)


def test_a_baseline_is_subtracted():
    log_r = torch.tensor([0.1, 0.0, -0.3, 0.5])
    wanted = clipped_surrogate(SCORES - 0.5, log_r)
    assert torch.equal(clipped_surrogate(SCORES, log_r, baseline=0.5), wanted)
    assert torch.equal(clipped_surrogate(SCORES, log_r, baseline=torch.tensor(0.5)), wanted)


# ---- the ratio from classifiers ----


def test_ratio_of_classifiers():
    new, old = torch.tensor([0.2]).logit(), torch.tensor([0.3]).logit()
    assert classifier_log_ratio(new, old).exp().item() == pytest.approx(1.714286, abs=1e-5)
    swapped = classifier_log_ratio(old, new)
    assert torch.equal(swapped, -classifier_log_ratio(new, old))
    far = classifier_log_ratio(torch.tensor([-1e3, 1e3]), torch.tensor([1e3, -1e3]))
    assert far.tolist() == [20, -20]
    assert classifier_log_ratio(far, 0 * far, bound=2.0).tolist() == [-2, 2]


# ---- weights and bounds ----


def test_weights_by_hand():
    w = fake_weights(SCORES)
    assert torch.allclose(w, torch.tensor([2.5757, 0.9475, 0.3486, 0.1282]), atol=1e-4)
    assert (w * SCORES).mean().item() == pytest.approx(1.4927, abs=1e-4)
    log_mean_exp = -donsker_varadhan(torch.zeros(2), SCORES).item()
    assert log_mean_exp == pytest.approx(1.0539, abs=1e-4)
    sizes = {1.0: 2.0861, 0.25: 1.0373, 4.0: 3.7162, math.inf: 4.0}
    for temperature, size in sizes.items():
        found = effective_sample_size(fake_weights(SCORES, temperature=temperature))
        assert found.item() == pytest.approx(size, abs=1e-4)


def test_weights_at_the_limits():
    assert torch.equal(fake_weights(torch.full((5,), 3.0)), torch.ones(5))
    assert torch.allclose(fake_weights(SCORES + 100), fake_weights(SCORES), atol=1e-5)
    assert fake_weights(SCORES, temperature=1e-9).tolist() == [4, 0, 0, 0]
    w = fake_weights(torch.tensor([1e4, -1e4, 0.0]))
    assert w.tolist() == [3, 0, 0]
    assert not fake_weights(SCORES.clone().requires_grad_()).requires_grad


def test_sampled_weights_find_the_mean_of_the_tilted_normal():
    x = randn(200_000)
    assert (fake_weights(0.7 * x) * x).mean().item() == pytest.approx(0.7, abs=0.02)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_rejection_keeps_no_more_than_the_effective_sample_size(scores):
    w = fake_weights(torch.tensor(scores, dtype=torch.float64))
    size = effective_sample_size(w) / len(w)
    assert size >= w.mean() / w.max() - 1e-9
    assert 1 / len(w) - 1e-9 <= size <= 1 + 1e-9


def test_the_gradient_is_donsker_varadhans():
    real, fake = randn(4, seed=1).requires_grad_(), randn(6).requires_grad_()
    ours = torch.autograd.grad(reweighted_critic_loss(real, fake), (real, fake))
    bound = torch.autograd.grad(-donsker_varadhan(real, fake), (real, fake))
    for a, b in zip(ours, bound, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert not torch.isclose(reweighted_critic_loss(real, fake), -donsker_varadhan(real, fake))
    assert torch.autograd.gradcheck(donsker_varadhan, (real, fake))


def test_the_bound_is_met_at_the_log_ratio():
    # 0.2, 0.3, 0.5 and 0.5, 0.3, 0.2 as tenths of a set of ten points
    ratio = (P.flip(0) / P).log()
    real = ratio.repeat_interleave(torch.tensor([2, 3, 5]))
    fake = ratio.repeat_interleave(torch.tensor([5, 3, 2]))
    assert donsker_varadhan(real, fake).item() == pytest.approx(0.274887, abs=1e-6)
    assert reweighted_critic_loss(real, fake, reweight=False).item() == pytest.approx(
        -0.549774, abs=1e-6
    )
    assert reweighted_critic_loss(real, fake).item() == pytest.approx(0, abs=1e-12)


def test_without_weights_it_is_wgans_loss():
    real, fake = torch.randn(5), torch.randn(7)
    wanted = discriminator_loss(real, fake, kind="wasserstein")
    assert torch.allclose(reweighted_critic_loss(real, fake, reweight=False), wanted)
    assert torch.allclose(reweighted_critic_loss(real, fake, temperature=math.inf), wanted)


def test_order_of_the_batch_and_half_precision():
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(fake_weights(SCORES[order]), fake_weights(SCORES)[order])
    assert torch.allclose(
        reweighted_critic_loss(SCORES[order], SCORES), reweighted_critic_loss(SCORES, SCORES)
    )
    for dtype in (torch.float16, torch.bfloat16):
        scores = SCORES.to(dtype)
        assert fake_weights(scores).dtype == torch.float32
        assert torch.equal(fake_weights(scores), fake_weights(SCORES))
        assert clipped_surrogate(scores, 0 * scores).dtype == torch.float32
        assert reweighted_critic_loss(scores, scores).dtype == torch.float32


def test_vmap_over_batches():
    scores = torch.randn(3, 6)
    found = torch.vmap(fake_weights)(scores)
    assert torch.allclose(found, torch.stack([fake_weights(s) for s in scores]))


# ---- the generator's step ----


def through(offset, through_ratio):
    x = torch.ones(1, 1, requires_grad=True)
    found = generator_surrogate(
        lambda z: 1 * z,
        lambda x: x + offset,
        lambda x: 2 * x,
        x,
        torch.tensor([2.0]),
        baseline=None,
        through_ratio=through_ratio,
    )
    return torch.autograd.grad(found.objective, x)[0].item()


def test_the_gradient_through_the_ratio():
    assert through(0.5, True) == pytest.approx(-2)
    assert through(-2.5, True) == pytest.approx(4)
    assert through(0.5, False) == through(-2.5, False) == 1


def moved(score, log_ratio, rule):
    "Gradient of the surrogate at a sample with this score and this ratio, as a gate."
    x = torch.ones(1, 1, requires_grad=True)
    old = torch.tensor([log_ratio])
    found = generator_surrogate(
        lambda z: 1 * z, lambda x: x - 1 + score, lambda x: 0 * x, x, old, baseline=None, kind=rule
    )
    return torch.autograd.grad(found.objective, x)[0].item()


def test_as_a_gate_the_ratio_lets_through_what_is_not_clipped():
    up, down = math.log(1.5), math.log(0.5)
    for rule in ("ppo", "upper"):
        assert moved(2.0, up, rule) == 0
        assert moved(2.0, down, rule) == pytest.approx(0.5)
    assert moved(-2.0, up, "ppo") == pytest.approx(1.5)
    assert moved(-2.0, down, "ppo") == 0
    assert moved(-2.0, up, "upper") == 0
    assert moved(-2.0, down, "upper") == pytest.approx(0.5)


def nets(*, latent=3):
    torch.manual_seed(0)
    return nn.Linear(latent, 2), nn.Linear(2, 1), nn.Linear(2, 1)


def test_with_equal_classifiers_and_a_detached_ratio_the_gradient_is_wgans():
    G, critic, C = nets()
    z = torch.randn(9, 3)
    old = C(G(z))[:, 0].detach()
    for baseline in (None, "fake", 3.0):
        found = generator_surrogate(G, critic, C, z, old, baseline=baseline)
        ours = torch.autograd.grad(found.objective, G.weight)[0]
        wanted = torch.autograd.grad(-generator_loss(critic(G(z)), kind="wasserstein"), G.weight)
        assert torch.allclose(ours, wanted[0], atol=1e-6)
        assert found.ratio.item() == pytest.approx(1)
        assert found.clip_fraction.item() == 0


@pytest.mark.parametrize("through_ratio", [True, False])
def test_critic_and_classifier_get_no_gradient(through_ratio):
    G, critic, C = nets()
    z = torch.randn(9, 3)
    how = {"baseline": "real", "real_scores": torch.randn(4), "through_ratio": through_ratio}
    generator_surrogate(G, critic, C, z, torch.zeros(9), **how).objective.backward()
    assert G.weight.grad is not None
    for p in (*critic.parameters(), *C.parameters()):
        assert p.grad is None
        assert p.requires_grad


def test_real_scores_are_asked_for():
    G, critic, C = nets()
    with pytest.raises(ValueError, match="real_scores must be given for baseline 'real'"):
        generator_surrogate(G, critic, C, torch.randn(4, 3), torch.zeros(4))


def test_messages():
    for clip in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="clip must"):
            clipped_surrogate(SCORES, SCORES, clip)
    with pytest.raises(ValueError, match="kind must be one of 'ppo', 'upper'"):
        clipped_surrogate(SCORES, SCORES, kind="lower")
    with pytest.raises(ValueError, match="temperature must"):
        fake_weights(SCORES, temperature=0.0)
    with pytest.raises(ValueError, match="scores must have shape"):
        fake_weights(SCORES[None])


# ---- the rounds ----

HOW = {"latent_dim": 3, "steps": 4, "batch_size": 8, "n_critic": 2, "n_steps": 2, "lr": 1e-2}


def test_one_plain_critic_update_agrees():
    real = torch.randn(50, 2)
    G, critic, _ = nets()
    how = HOW | {"steps": 1, "n_critic": 1, "n_steps": 1, "gradient_penalty_weight": 3.0}
    before = critic.weight.detach().clone()
    train_ratio_clipping(G, critic, None, real, generator=seeded(1), **how)
    moved = critic.weight.detach() - before
    G, critic, _ = nets()
    g = seeded(1)
    fake = G(torch.randn(8, 3, generator=g)).detach()
    x = real[torch.randint(50, (8,), generator=g)]
    scores = critic(fake)[:, 0]
    weights = 8 * torch.softmax(scores, 0).detach()
    loss = (weights * scores).mean() - critic(x).mean()
    loss = loss + 3 * gradient_penalty(critic, x, fake, generator=g)
    adam = torch.optim.Adam(critic.parameters(), 1e-2, (0.0, 0.9))
    loss.backward()
    adam.step()
    assert torch.allclose(critic.weight.detach() - before, moved, atol=1e-6)


@pytest.mark.parametrize("uses_classifier", [True, False])
def test_runs_repeat_and_report(uses_classifier):
    real, seen = torch.randn(50, 2), []

    def run():
        G, critic, C = nets()
        return train_ratio_clipping(
            G,
            critic,
            C if uses_classifier else None,
            real,
            generator=seeded(2),
            callback=lambda step, *_: seen.append(step),
            **HOW,
        )

    one, two = run(), run()
    assert torch.equal(one.image_generator.weight, two.image_generator.weight)
    assert seen == [1, 2, 3, 4, 1, 2, 3, 4]
    for column in one.history.values():
        assert column.shape == (4,)
        assert column.isfinite().all()
    share = one.history["effective_sample_size"]
    assert ((share > 0) & (share <= 1 + 1e-6)).all()


def test_a_raw_score_pushes_away_and_a_centered_one_does_not():
    "The finding of the chapter, in one update: f positive, gradient through the ratio."
    G, critic, C = nets()
    with torch.no_grad():
        for net in (critic, C):
            net.weight.copy_(torch.tensor([[1.0, 0.0]]))
            net.bias.zero_()
        critic.bias.fill_(9.0)
    z = torch.randn(64, 3, generator=seeded(3))
    old = C(G(z))[:, 0].detach()
    mean = critic(G(z)).mean().item()
    for baseline, wanted in ((None, False), (mean, True)):
        found = generator_surrogate(G, critic, C, z, old, baseline=baseline, through_ratio=True)
        (grad,) = torch.autograd.grad(found.objective, G.bias)
        assert (grad[0] > 0).item() is wanted


@pytest.mark.slow
def test_it_learns_where_the_data_are():
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    critic, C = (nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(2))
    real = 0.5 * torch.randn(2000, 2, generator=seeded(4)) + torch.tensor([2.0, -1.0])
    how = {"latent_dim": 2, "n_critic": 2, "n_steps": 2, "lr": (1e-3, 3e-3, 1e-3), "batch_size": 64}
    how |= {"gradient_penalty_weight": 1.0, "generator": seeded(5)}
    train_ratio_clipping(G, critic, C, real, steps=400, **how)
    with torch.no_grad():
        x = G(torch.randn(2000, 2, generator=seeded(6)))
    assert (x.mean(0) - real.mean(0)).abs().max() < 0.5
