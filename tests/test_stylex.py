"""StylEx: losses, training, effects, AttFind, counterfactuals, sufficiency."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.explain.stylex import (
    Attribute,
    ImageEncoder,
    apply_attributes,
    attfind,
    classifier_consistency_loss,
    condition,
    conditional_logit,
    greedy_for_image,
    rank_for_image,
    realism_check,
    reconstruction_loss,
    style_effects,
    style_range,
    sufficiency,
    train_stylex,
)
from ponderlearn.generative.gan import (
    ResidualDiscriminator,
    StyleGenerator,
    discriminator_loss,
    generator_loss,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(make, *sizes, seed=0, **how):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make(*sizes, **how)


def reader(n_classes=2, size=8, scale=3.0, seed=1):
    "A linear classifier of images."
    net = nn.Sequential(nn.Flatten(), made(nn.Linear, 3 * size**2, n_classes, seed=seed))
    net[1].weight.data *= scale
    return net.eval()


def small(seed=0, channels=(6, 5), w_dim=4, n=7):
    net = made(StyleGenerator, w_dim, channels, seed=seed)
    return net, torch.randn(n, w_dim, generator=seeded(seed))


class Linear(nn.Module):
    "Images (N, 1, 1, P) that are linear in the styles; styles are w."

    def __init__(self, A):
        super().__init__()
        self.A = A

    def styles(self, w):
        return w

    def forward(self, styles):
        return (styles @ self.A.T)[:, None, None, :]


class Two(nn.Module):
    "Two classes, whose logits differ by v'x."

    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, x):
        logit = x.flatten(1) @ self.v
        return torch.stack([torch.zeros_like(logit), logit], 1)


# ---- conditions and losses ----


def test_condition():
    w, p = torch.randn(5, 3, generator=seeded()), torch.rand(5, 4, generator=seeded()).softmax(1)
    out = condition(w, p)
    assert torch.equal(out[:, :3], w) and torch.equal(out[:, 3:], p)
    with pytest.raises(ValueError, match="prob must be non-negative with rows that sum to one"):
        condition(w, 2 * p)
    with pytest.raises(ValueError, match="prob must be non-negative"):
        condition(w, torch.full((5, 4), float("nan")))
    with pytest.raises(ValueError, match="prob must have shape"):
        condition(w, p[:4])


def test_conditional_logit():
    logits, p = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.75, 0.25]])
    one = conditional_logit(logits, p)
    assert one.item() == pytest.approx(1.25)
    assert generator_loss(one).item() == pytest.approx(0.251929, abs=1e-6)
    both = discriminator_loss(torch.tensor([100.0]), one).item()
    assert both == pytest.approx(1.501929, abs=1e-6)
    hot = torch.eye(3)[[2, 0]]
    some = torch.randn(2, 3, generator=seeded())
    assert torch.equal(conditional_logit(some, hot), some[[0, 1], [2, 0]])
    with pytest.raises(ValueError, match="prob must have shape"):
        conditional_logit(some, hot[:, :2])


def test_consistency_by_hand():
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
    assert classifier_consistency_loss(q, p).item() == pytest.approx(0.226289, abs=1e-6)
    assert classifier_consistency_loss(p, q).item() == pytest.approx(0.311239, abs=1e-6)
    assert classifier_consistency_loss(p + 5, p - 3).item() == pytest.approx(0, abs=1e-6)
    huge = torch.tensor([[1e4, -1e4]])
    assert classifier_consistency_loss(-huge, huge).isfinite()


def test_consistency_of_impossible_classes():
    "A logit of -inf is probability 0, and 0 log 0 is 0."
    real = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 0.0, -math.inf], [0.0, -math.inf, 0.0]])
    rec = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -math.inf], [0.0, -math.inf, 0.0]])
    rec.requires_grad_()
    found = classifier_consistency_loss(rec, real, reduction="none")
    p, q = real.softmax(1), rec.softmax(1)
    wanted = torch.stack([(p[i, :2] * (p[i, :2] / q[i, :2]).log()).sum() for i in (0, 1)])
    assert torch.allclose(found[:2], wanted) and found[2] == 0
    found.sum().backward()
    assert torch.allclose(rec.grad, (q - p).detach(), atol=1e-6)
    one, both = torch.tensor([[0.0, -math.inf]]), torch.zeros(1, 2)
    assert classifier_consistency_loss(one, both) == math.inf  # what is possible is ruled out
    assert classifier_consistency_loss(both, one).item() == pytest.approx(math.log(2))
    bad = torch.tensor([[0.0, math.nan]])
    assert classifier_consistency_loss(both, bad).isnan()
    assert classifier_consistency_loss(bad, one).isnan()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_consistency_agrees_with_torch(reduction, dtype):
    a, b = (torch.randn(6, 4, generator=seeded(s)).to(dtype) for s in (0, 1))
    found = classifier_consistency_loss(a, b, reduction=reduction)
    wide = torch.promote_types(dtype, torch.float32)
    log_q, p = a.to(wide).log_softmax(1), b.to(wide).softmax(1)
    wanted = F.kl_div(log_q, p, reduction="none").sum(1)
    wanted = wanted if reduction == "none" else getattr(wanted, reduction)()
    assert found.dtype == wide and torch.allclose(found, wanted, atol=1e-5)


def test_consistency_gradients():
    rec = torch.randn(3, 2, dtype=torch.float64, generator=seeded()).requires_grad_()
    real = torch.randn(3, 2, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    classifier_consistency_loss(rec, real).backward()
    assert real.grad is None and rec.grad.abs().max() > 0
    torch.autograd.gradcheck(lambda r: classifier_consistency_loss(r, real.detach()), (rec,))


def test_reconstruction_by_hand():
    x, w = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)
    far = lambda a, b: (a - b).abs().flatten(1).sum(1)
    total, terms = reconstruction_loss(x, x + 0.5, w, w - 2, perceptual=far, latent_weight=0.5)
    assert terms["pixels"] == 0.5 and terms["latent"] == 2 and terms["perceptual"] == 24
    assert total.item() == pytest.approx(0.5 + 2.4 + 1)
    total, terms = reconstruction_loss(x, x, w, w)
    assert total == 0 and set(terms) == {"pixels", "perceptual", "latent"}
    with pytest.raises(ValueError, match="what perceptual returns must have shape"):
        reconstruction_loss(x, x, w, w, perceptual=lambda a, b: torch.zeros(3))


@pytest.mark.parametrize("size", [4, 8, 12, 16, 32])
def test_encoder(size):
    E = ImageEncoder(3, 7, size=size, width=4)
    assert E(torch.randn(2, 3, size, size)).shape == (2, 7)
    with pytest.raises(ValueError, match="x must have shape"):
        E(torch.randn(2, 3, size + 1, size))


# ---- training ----


def parts(conditioned=True, seed=0):
    more = 2 * conditioned
    E = made(ImageEncoder, 3, 4, size=8, width=4, seed=seed)
    G = made(StyleGenerator, 4 + more, (6, 5), seed=seed)
    D = made(ResidualDiscriminator, (4, 4), 3, 2 if conditioned else 1, seed=seed)
    return E, G, D


def test_one_step_agrees_with_a_plain_one():
    x, C = torch.randn(6, 3, 8, 8, generator=seeded()), reader()
    order = torch.randint(6, (4,), generator=seeded(5))
    E, G, D = parts()
    both = [*E.parameters(), *G.parameters()]
    opt, opt_d = (torch.optim.Adam(p, 2e-3, (0.0, 0.99)) for p in (both, D.parameters()))
    b = x[order]
    p = C(b).softmax(1).detach()
    w = E(b)
    fake = G(torch.cat([w, p], 1))
    real_logit = (p * D(b)).sum(1)
    loss_d = F.softplus(-real_logit).mean() + F.softplus((p * D(fake.detach())).sum(1)).mean()
    opt_d.zero_grad()
    loss_d.backward()
    opt_d.step()
    loss = 0.1 * F.softplus(-(p * D(fake)).sum(1)).mean() + 10 * (b - fake).abs().mean()
    loss = loss + 0.1 * (w - E(fake)).abs().mean()
    loss = loss + (p * (p.log() - C(fake).log_softmax(1))).sum(1).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    how = dict(steps=1, batch_size=4, r1_weight=0.0, ema_decay=None, classifier_weight=1.0)
    E2, G2, history = train_stylex(*(mine := parts()), C, x, generator=seeded(5), **how)
    assert history["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert history["discriminator"].item() == pytest.approx(loss_d.item(), rel=1e-5)
    for old, new in ((E, E2), (G, G2), (D, mine[2])):
        for a, b in zip(old.parameters(), new.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_classifier_stays_and_gets_no_gradients():
    C = reader()
    before, C[1].weight.requires_grad = copy.deepcopy(C.state_dict()), True
    C.train()
    x = torch.randn(6, 3, 8, 8, generator=seeded())
    train_stylex(*parts(), C, x, steps=2, batch_size=3)
    assert all(torch.equal(v, before[k]) for k, v in C.state_dict().items())
    assert C[1].weight.grad is None and C[1].weight.requires_grad and C.training


def test_without_condition_and_without_loss():
    x = torch.randn(6, 3, 8, 8, generator=seeded())
    history = train_stylex(
        *parts(False), reader(), x, steps=2, conditioned=False, classifier_weight=0.0
    ).history
    assert "classifier" not in history and history["pixels"].shape == (2,)


def test_training_that_diverges():
    x = torch.randn(6, 3, 8, 8, generator=seeded())
    C = reader()
    C[1].bias.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="a loss must stay finite"):
        train_stylex(*parts(), C, x, steps=2)


@pytest.mark.slow
def test_training_restores_images_and_answers():
    "Half of the margin that was measured."
    from ponderlearn.data import sprites

    ranges = {"hue": (0.0, 0.66), "size": (0.25, 0.5), "rotation": (0.0, 0.0)}
    x = sprites(500, size=16, ranges=ranges, generator=seeded()).x
    light = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    light[2].weight.data = torch.tensor([[-5.0] * 3, [5.0] * 3])
    light[2].bias.data = -light[2].weight.data @ x.mean((0, 2, 3))
    C = light.eval()
    E, G = made(ImageEncoder, 3, 8), made(StyleGenerator, 10, (16, 12, 8))
    D = made(ResidualDiscriminator, (4, 6, 8), 3, 2)
    E, G, history = train_stylex(E, G, D, C, x, steps=120, generator=seeded())
    with torch.no_grad():
        p = C(x).softmax(1)
        agree = (C(G(condition(E(x), p))).argmax(1) == p.argmax(1)).float().mean()
    assert history["pixels"][-20:].mean() < 0.7 * history["pixels"][:5].mean()
    assert agree > 0.8


# ---- effects ----


def test_range_and_shift():
    net = Linear(torch.eye(1))
    w = torch.tensor([[1.0], [-1.0], [3.0]])
    lo, hi = style_range(net, w)
    assert (lo.item(), hi.item()) == (-1, 3)
    one = Attribute(0, -1, 0.0, torch.arange(1))
    other = one._replace(direction=1)
    for shift, down, up in ((1.0, -1, 3), (0.5, 0, 2)):
        assert apply_attributes(net, w[:1], [one], lo, hi, shift=shift).item() == down
        assert apply_attributes(net, w[:1], [other], lo, hi, shift=shift).item() == up
    effects, _ = style_effects(net, Two(torch.ones(1)), w, lo, hi, target=1)
    assert effects[1, 0, 0] == 0 and effects[2, 1, 0] == 0 and effects[1, 1, 0] > 0
    quarter = style_range(net, torch.arange(5.0)[:, None], quantile=0.25)
    assert (quarter.lo.item(), quarter.hi.item()) == (1, 3)


def plain_effects(net, classifier, w, lo, hi, shift=1.0):
    S = net.styles(w)
    out = torch.zeros(len(w), 2, S.shape[1], classifier(net(styles=S)).shape[1])
    base = classifier(net(styles=S)).softmax(1)
    for j in range(S.shape[1]):
        for d, end in enumerate((lo, hi)):
            moved = S.clone()
            moved[:, j] += shift * (end[j] - S[:, j])
            out[:, d, j] = classifier(net(styles=moved)).softmax(1) - base
    return out


@pytest.mark.parametrize("channels", [(6,), (6, 5), (4, 6, 3)])
@pytest.mark.parametrize("shift", [1.0, 0.3])
def test_effects_agree_with_a_loop(channels, shift):
    net, w = small(channels=channels)
    C = reader(3, 4 * 2 ** (len(channels) - 1))
    ends = style_range(net, w)
    with torch.no_grad():
        wanted = plain_effects(net, C, w, *ends, shift)
    assert wanted.abs().max() > 0.01
    for chunk_size in (1, 5, 1024):
        found = style_effects(net, C, w, *ends, shift=shift, chunk_size=chunk_size).effects
        assert torch.allclose(found, wanted, atol=1e-6)
    one = style_effects(net, C, w, *ends, shift=shift, target=2).effects
    assert torch.allclose(one, wanted[..., 2], atol=1e-6)
    own = torch.arange(len(w)) % 3
    each = style_effects(net, C, w, *ends, shift=shift, target=own).effects
    assert torch.allclose(each, wanted[torch.arange(len(w)), :, :, own], atol=1e-6)
    full = style_effects(net, C, w, *ends, shift=shift, target=2, screen=net.n_styles).effects
    assert torch.allclose(full, one, atol=1e-6)


def test_effects_of_some_coordinates():
    net, w = small()
    ends, C = style_range(net, w), reader()
    full = style_effects(net, C, w, *ends, target=1).effects
    some = style_effects(net, C, w, *ends, target=1, coords=[3, 12]).effects
    assert torch.allclose(some[..., [3, 12]], full[..., [3, 12]], atol=1e-7)
    some[..., [3, 12]] = 0
    assert not some.any()
    screened = style_effects(net, C, w, *ends, target=1, screen=4).effects
    tried = screened.abs().amax(1) > 0
    assert (tried.sum(1) <= 4).all() and tried.any()
    assert torch.allclose(screened[screened != 0], full[screened != 0], atol=1e-7)
    nothing = style_effects(net, C, w, ends.lo, ends.lo, target=1).effects
    assert not nothing[:, :, :][(net.styles(w) == ends.lo)[:, None].expand_as(nothing)].any()


def test_screen_looks_at_each_images_own_target():
    net, w = small(n=9)
    ends, C = style_range(net, w), reader(4)
    logits = C(net(w))
    own = logits.topk(2, 1).indices[:, 1]
    free = style_effects(net, C, w, *ends, screen=3).effects
    given = style_effects(net, C, w, *ends, screen=3, target=own).effects
    picked = free.gather(3, own[:, None, None, None].expand(-1, 2, free.shape[2], 1))[..., 0]
    assert torch.equal(picked, given)


def test_small_shifts_follow_the_gradient():
    net, w = small()
    net, w, C = net.double(), w.double(), reader().double()
    lo, hi = style_range(net, w)
    found = style_effects(net, C, w, lo, hi, target=1, shift=1e-5).effects / 1e-5
    s = net.styles(w).detach().requires_grad_()
    p = C(net(styles=s)).softmax(1)[:, 1].sum()
    (slope,) = torch.autograd.grad(p, s)
    wanted = slope[:, None] * (torch.stack([lo, hi]) - s.detach()[:, None])
    assert torch.allclose(found, wanted, atol=1e-4)


def test_linear_world():
    net, C = Linear(torch.eye(3)), Two(torch.ones(3))
    w = torch.zeros(1, 3)
    lo, hi = torch.tensor([0.0, -2.0, 0.0]), torch.tensor([1.0, 0.0, 0.5])
    effects = style_effects(net, C, w, lo, hi, target=1).effects[0]
    assert effects[1, 0].item() == pytest.approx(0.231059, abs=1e-6)
    assert effects[0, 1].item() == pytest.approx(-0.380797, abs=1e-6)
    assert effects[1, 2].item() == pytest.approx(0.122459, abs=1e-6)
    rises = style_effects(net, C, w, lo, hi, target=1, output="logit").effects[0]
    assert rises[0, 1].item() == -2 and rises[1, 0].item() == 1


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_log_odds(n_classes):
    net, w = small()
    ends, C = style_range(net, w), reader(n_classes)
    with torch.no_grad():
        p = C(net(w)).double().softmax(1)
    base = style_effects(net, C, w, *ends, output="logit").base
    assert torch.allclose(base.double(), torch.logit(p), atol=1e-4)
    sure = reader(n_classes, scale=1e4)
    for screen in (None, 5):
        found = style_effects(net, sure, w, *ends, output="logit", screen=screen).effects
        assert found.isfinite().all() and found.any()
    shifted = lambda x: C(x) + 40
    again = style_effects(net, shifted, w, *ends, output="logit").base
    assert torch.allclose(base, again, atol=1e-3)


def test_dead_channel_has_no_effect():
    net, w = small()
    net.kernels[1].data[:, 2] = 0  # what channel 2 of the second convolution hands on
    j = net.style_slices["conv8"].start + 2
    effects = style_effects(net, reader(), w, *style_range(net, w)).effects
    assert effects[:, :, j].abs().max() < 1e-6


def test_colors_are_linear():
    net, w = small()
    ends, j = style_range(net, w), net.style_slices["rgb4"].start
    one = [Attribute(j, 1, 0.0, torch.arange(7))]
    base = apply_attributes(net, w, [], *ends)
    whole = apply_attributes(net, w, one, *ends) - base
    half = apply_attributes(net, w, one, *ends, shift=0.5) - base
    assert torch.allclose(half, whole / 2, atol=1e-6) and whole.abs().max() > 0.01


def test_bad_effects():
    net, w = small()
    lo, hi = style_range(net, w)
    with pytest.raises(ValueError, match="lo must not exceed hi"):
        style_effects(net, reader(), w, hi, lo)
    with pytest.raises(ValueError, match=r"shift must lie in \(0, 1\]"):
        style_effects(net, reader(), w, lo, hi, shift=0)
    with pytest.raises(ValueError, match="w must hold finite values"):
        style_effects(net, reader(), w * float("nan"), lo, hi)
    with pytest.raises(ValueError, match="what classifier returns must have at least 2 classes"):
        style_effects(net, reader(1), w, lo, hi)
    with pytest.raises(TypeError, match="image_generator must have a method styles"):
        style_effects(nn.Linear(4, 3), reader(), w, lo, hi)


def masked(classifier, value, *classes):
    "The classifier with other logits for some classes."

    def logits(images):
        out = classifier(images).clone()
        out[:, list(classes)] = value
        return out

    return logits


@pytest.mark.parametrize("value, classes", [(math.nan, [1]), (math.inf, [0]), (-math.inf, [0, 1])])
def test_logits_that_make_no_probabilities(value, classes):
    net, w = small()
    ends, bad = style_range(net, w), masked(reader(), value, *classes)
    for output in ("prob", "logit"):
        with pytest.raises(ValueError, match="what classifier returns must hold finite numbers"):
            style_effects(net, bad, w, *ends, output=output)
    with pytest.raises(ValueError, match="what classifier returns must hold finite numbers"):
        sufficiency(net, bad, w, [], *ends)
    late = lambda x: reader()(x) if len(x) == 7 else bad(x)  # only for images that were moved
    with pytest.raises(ValueError, match="what classifier returns must hold finite numbers"):
        style_effects(net, late, w, *ends)


@pytest.mark.parametrize("output", ["prob", "logit"])
def test_effects_on_a_classifier_that_rules_a_class_out(output):
    net, w = small()
    ends, three = style_range(net, w), reader(3)
    without = style_effects(net, lambda x: three(x)[:, :2], w, *ends, output=output)
    found = style_effects(net, masked(three, -math.inf, 2), w, *ends, output=output)
    assert torch.allclose(found.effects[..., :2], without.effects, atol=1e-5)
    assert torch.allclose(found.base[:, :2], without.base, atol=1e-5)
    assert not found.effects[..., 2].any()
    assert (found.base[:, 2] == (0 if output == "prob" else -math.inf)).all()


# ---- AttFind ----

TABLE = torch.tensor([[0.0, 0.1, 0.5, 0.0], [0.0, 0.1, 0.4, 0.0], [0.0, 0.3, 0.0, 0.1]])


def test_attfind_by_hand():
    effects = TABLE.unflatten(1, (2, 2))
    first, second = attfind(effects, 3)
    assert first[:2] == (0, 1) and first.effect == pytest.approx(0.3)
    assert first.images.tolist() == [0, 1, 2]
    assert second[:2] == (1, -1) and second.images.tolist() == [2]
    assert second.effect == pytest.approx(0.3)
    later = attfind(effects, 2, max_image_effect=0.45)[1]
    assert later[:2] == (1, -1) and later.effect == pytest.approx(0.2)
    assert later.images.tolist() == [1, 2]
    free = attfind(effects, 9, max_image_effect=1e9)
    assert [a[:2] for a in free] == [(0, 1), (1, -1), (1, 1)]


def test_attfind_with_a_fraction():
    effects = TABLE.unflatten(1, (2, 2))
    kept = attfind(effects, 9, max_image_effect=0.2, min_fraction=0.5)
    assert [a[:2] for a in kept] == [(0, 1)]


def plain_attfind(effects, M, t):
    columns = effects.clamp(min=0).flatten(1).tolist()
    total, found = [0.0] * len(columns), []
    while len(found) < M:
        voters = [i for i, a in enumerate(total) if a < t]
        if not voters:
            break
        means = [sum(columns[i][k] for i in voters) / len(voters) for k in range(len(columns[0]))]
        best = max(range(len(means)), key=means.__getitem__)
        if means[best] <= 0:
            break
        found.append((best % effects.shape[2], 2 * (best // effects.shape[2]) - 1))
        for i, row in enumerate(columns):
            total[i] += row[best]
            row[best] = 0.0
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 6), st.floats(0.05, 2), st.integers(0, 10**6))
def test_attfind_agrees_with_a_loop(n, K, t, seed):
    effects = torch.randn(n, 2, K, generator=seeded(seed), dtype=torch.float64) - 0.5
    found = [a[:2] for a in attfind(effects, 5, max_image_effect=t)]
    assert found == plain_attfind(effects, 5, t)
    shuffled = attfind(effects[torch.randperm(n, generator=seeded(1))], 5, max_image_effect=t)
    assert [a[:2] for a in shuffled] == found
    order = torch.randperm(K, generator=seeded(2))
    turned = attfind(effects[:, :, order], 5, max_image_effect=t)
    assert [(order[a.coord].item(), a.direction) for a in turned] == found
    dead = torch.cat([effects, torch.zeros(n, 2, 1, dtype=torch.float64)], 2)
    assert [a[:2] for a in attfind(dead, 5, max_image_effect=t)] == found


def test_attfind_of_nothing():
    assert attfind(-torch.ones(3, 2, 4)) == []
    with pytest.raises(ValueError, match="effects must hold finite values"):
        attfind(torch.full((3, 2, 4), math.nan))
    with pytest.raises(ValueError, match="effects must have shape"):
        attfind(torch.zeros(3, 8))


# ---- one image ----


def test_independent():
    effects = torch.tensor([[0.0, 0.4, -1.0], [0.3, 0.1, -2.0]])
    found = rank_for_image(effects)
    assert [a[:2] for a in found] == [(1, -1), (0, 1)]
    assert len(rank_for_image(effects, 1)) == 1


def test_subset_in_a_linear_world_takes_the_largest_rises():
    v = torch.tensor([1.0, -2.0, 0.5])
    net, C = Linear(torch.eye(3)), Two(v)
    lo, hi = -torch.ones(3), torch.ones(3)
    found = greedy_for_image(net, C, torch.zeros(1, 3), lo, hi, 1, k=2)
    assert [a[:2] for a in found] == [(1, -1), (0, 1)]
    assert [a.effect for a in found] == [pytest.approx(2), pytest.approx(1)]
    few = greedy_for_image(net, C, torch.zeros(1, 3), lo, hi, 0, coords=[2])
    assert [a[:2] for a in few] == [(2, -1)]


def test_subset_sees_what_single_effects_do_not():
    "Only both coordinates together flip: the logit of class 1 is 20 (s0 + s1) - 30."
    net = Linear(torch.eye(2))

    class Both(nn.Module):
        def forward(self, x):
            logit = 20 * x.flatten(1).sum(1) - 30
            return torch.stack([torch.zeros_like(logit), logit], 1)

    w, ends = torch.zeros(1, 2), (torch.zeros(2), torch.ones(2))
    assert style_effects(net, Both(), w, *ends, target=1).effects.abs().max() < 1e-4
    found = greedy_for_image(net, Both(), w, *ends, 1)
    assert len(found) == 2
    assert sufficiency(net, Both(), w, found, *ends, ks=[1, 2]).target.tolist() == [0, 1]


# ---- counterfactuals ----


def test_sufficiency():
    net, C = Linear(torch.eye(2)), Two(torch.tensor([1.0, 0.0]))
    w = torch.tensor([[-0.5, 0.0], [-3.0, 0.0], [1.0, 0.0]])
    ends = torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 1.0])
    up = Attribute(0, 1, 0.0, torch.arange(3))
    idle = Attribute(1, 1, 0.0, torch.arange(3))
    found = sufficiency(net, C, w, [idle, up], *ends, target=1, ks=[0, 1, 2])
    assert found.target.tolist() == pytest.approx([0, 0, 2 / 3])
    assert found.base.tolist() == [0, 0, 1] and found.realistic is None and found.valid is None
    half = sufficiency(net, C, w, [up], *ends, target=1, ks=[1], shift=0.5)
    assert half.target.item() == pytest.approx(1 / 3)
    none = sufficiency(net, C, w, [], *ends)
    assert none.any.shape == (10,) and not none.any.any()
    judged = sufficiency(
        net, C, w, [up], *ends, target=1, ks=[1], is_real=lambda x: x[:, 0, 0, 0] < 0
    )
    assert judged.realistic.item() == 0 and judged.valid.item() == 0


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 4), st.integers(0, 10**5))
def test_any_is_at_least_target(n_classes, seed):
    net, w = small(seed=seed)
    C, ends = reader(n_classes, scale=8.0, seed=seed), style_range(net, w)
    found = attfind(style_effects(net, C, w, *ends, target=1).effects)
    out = sufficiency(net, C, w, found, *ends, target=1)
    assert (out.any >= out.target).all()
    if n_classes == 2:
        out = sufficiency(net, C, w, found, *ends)
        assert torch.equal(out.any, out.target)


def test_no_attribute_changes_nothing():
    net, w = small()
    ends = style_range(net, w)
    assert torch.equal(apply_attributes(net, w, [], *ends), net(w).detach())
    twice = [Attribute(2, 1, 0.0, w), Attribute(2, -1, 0.0, w)]
    first = apply_attributes(net, w, twice[:1], *ends)
    assert torch.equal(apply_attributes(net, w, twice, *ends), first)
    with pytest.raises(ValueError, match="attributes must lie in"):
        apply_attributes(net, w, [Attribute(10**3, 1, 0.0, w)], *ends)


def test_realism():
    real = torch.randn(300, 1, 2, 2, generator=seeded())
    judge = realism_check(nn.Flatten(), real)
    assert judge(torch.randn(300, 1, 2, 2, generator=seeded(1))).float().mean() > 0.9
    assert not judge(real[:5] + 9).any() and judge(real[:5]).all()
    strict = realism_check(nn.Flatten(), real, quantile=0.1)
    assert strict(real + 0.3).float().mean() < judge(real + 0.3).float().mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    net, w = small()
    net, w, C = net.to(dtype), w.to(dtype), reader().to(dtype)
    ends = style_range(net, w)
    assert ends.lo.dtype == dtype
    effects, base = style_effects(net, C, w, *ends, target=1)
    assert effects.dtype == base.dtype == torch.promote_types(dtype, torch.float32)
    assert apply_attributes(net, w, attfind(effects, 2), *ends).dtype == dtype
