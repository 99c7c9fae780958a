"""GANs: losses by formulas, penalties by loops, modulated convolution, style space, the loop."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from ponderlearn._nested import mlp
from ponderlearn.generative.gan import (
    MappingNetwork,
    ResidualDiscriminator,
    StyleGenerator,
    averaged,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    modulated_conv2d,
    pixel_norm,
    r1_penalty,
    train_gan,
    with_spectral_norm,
)

D = torch.float64
KINDS = ("ns", "minimax", "hinge", "wasserstein", "least_squares")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=seeded(seed), dtype=D).to(dtype)


# ---- losses ----


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


PLAIN = {  # real, fake, generator
    "ns": (
        lambda t: -math.log(sigmoid(t)),
        lambda t: -math.log(1 - sigmoid(t)),
        lambda t: -math.log(sigmoid(t)),
    ),
    "minimax": (
        lambda t: -math.log(sigmoid(t)),
        lambda t: -math.log(1 - sigmoid(t)),
        lambda t: math.log(1 - sigmoid(t)),
    ),
    "hinge": (lambda t: max(0, 1 - t), lambda t: max(0, 1 + t), lambda t: -t),
    "wasserstein": (lambda t: -t, lambda t: t, lambda t: -t),
    "least_squares": (
        lambda t: (t - 1) ** 2 / 2,
        lambda t: t**2 / 2,
        lambda t: (t - 1) ** 2 / 2,
    ),
}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.floats(-15, 15), min_size=1, max_size=5),
    st.lists(st.floats(-15, 15), min_size=1, max_size=5),
)
def test_losses_are_the_formulas(kind, real, fake):
    r, f = torch.tensor(real, dtype=D), torch.tensor(fake, dtype=D)
    on_real, on_fake, of_g = PLAIN[kind]
    reals, fakes = [on_real(t) for t in real], [on_fake(t) for t in fake]
    want = sum(reals) / len(reals) + sum(fakes) / len(fakes)
    close = {"rel": 1e-6, "abs": 1e-6}
    assert discriminator_loss(r, f, kind=kind).item() == pytest.approx(want, **close)
    total = discriminator_loss(r[:, None], f[:, None], kind=kind, reduction="sum")
    assert total.item() == pytest.approx(sum(reals) + sum(fakes), **close)
    each = generator_loss(f, kind=kind, reduction="none")
    assert each.tolist() == pytest.approx([of_g(t) for t in fake], **close)
    n = min(len(real), len(fake))
    both = discriminator_loss(r[:n], f[:n], kind=kind, reduction="none").tolist()
    assert both == pytest.approx([a + b for a, b in zip(reals, fakes, strict=False)], **close)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_differentiate(kind):
    t = (normal(4) * 2 + 0.3).requires_grad_()
    assert gradcheck(lambda t: discriminator_loss(t, t.flip(0), kind=kind), t)
    assert gradcheck(lambda t: generator_loss(t, kind=kind), t)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_16_bits_come_in_32(kind):
    t = torch.tensor([-3.0, 2.5])
    low = t.bfloat16()
    found = discriminator_loss(low, low, kind=kind), generator_loss(low, kind=kind)
    want = discriminator_loss(t, t, kind=kind), generator_loss(t, kind=kind)
    assert all(x.dtype == torch.float32 for x in found)
    assert torch.equal(torch.stack(found), torch.stack(want))  # these numbers have few bits


def test_weighted_scores_compose():
    "A robust critic weighs scores, or losses; both can be built from outside."
    t, w = normal(5), normal(5).exp()
    inside = discriminator_loss(w * t, t, kind="wasserstein")
    assert torch.isclose(inside, -(w * t).mean() + t.mean())
    outside = (w * discriminator_loss(t, t, reduction="none")).mean()
    assert torch.isclose(outside, (w * (F.softplus(-t) + F.softplus(t))).mean())


def test_losses_under_vmap():
    t = normal(3, 4)
    found = torch.vmap(generator_loss)(t)
    assert torch.allclose(found, torch.stack([generator_loss(row) for row in t]))


def test_the_best_loss_is_the_divergence():
    "2 log 2 minus twice the Jensen-Shannon divergence, at the log ratio."
    p, q = (F.softmax(normal(6, seed=s), 0) for s in (1, 2))
    t = (p / q).log()
    loss = (p * F.softplus(-t) + q * F.softplus(t)).sum()
    middle = (p + q) / 2
    js = sum((x * (x / middle).log()).sum() for x in (p, q)) / 2
    assert torch.isclose(loss, 2 * math.log(2) - 2 * js)


# ---- penalties ----


class Quadratic(nn.Module):
    "x^T A x / 2, with the gradient (A + A^T) x / 2."

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a.clone())

    def forward(self, x):
        return ((x @ self.a) * x).sum(1) / 2


def test_r1_of_a_quadratic_critic():
    critic, x = Quadratic(normal(3, 3)), normal(7, 3, seed=1)
    slope = x @ (critic.a + critic.a.T) / 2
    want = slope.square().sum(1).mean() / 2
    found = r1_penalty(critic, x)
    assert torch.isclose(found, want)
    pairs = (torch.autograd.grad(f, critic.a)[0] for f in (found, want))
    assert torch.allclose(*pairs)


def test_gradient_penalty_by_a_loop():
    critic = mlp(3, 8, 1).double()
    for layer in critic[::2]:
        nn.init.normal_(layer.weight, generator=seeded(0))
    real, fake = normal(6, 3, seed=1), normal(6, 3, seed=2)
    share = torch.rand(6, generator=seeded(5))
    total = 0
    for u, a, b in zip(share, real, fake, strict=True):
        x = (u * a + (1 - u) * b).requires_grad_()
        (slope,) = torch.autograd.grad(critic(x[None]).sum(), x, create_graph=True)
        total = total + (slope.norm() - 2.0) ** 2 / 4
    found = gradient_penalty(critic, real, fake, target=2.0, generator=seeded(5))
    assert torch.isclose(found, total / 6, rtol=1e-6)
    grads = [torch.autograd.grad(f, critic[0].weight)[0] for f in (found, total / 6)]
    assert torch.allclose(*grads, rtol=1e-5)


def test_penalties_of_a_constant_critic_are_finite():
    x = normal(4, 2).requires_grad_()
    bias = torch.zeros(1, dtype=D, requires_grad=True)
    critics = (
        lambda x: bias.expand(len(x)),
        lambda x: 0 * x[:, 0] + bias,
        lambda x: torch.zeros(len(x), dtype=D),
    )
    for critic in critics:
        assert r1_penalty(critic, x) == 0 and gradient_penalty(critic, x, -x) == 1
    loss = gradient_penalty(lambda x: (x * bias).sum(1), x, -x)
    assert torch.autograd.grad(loss, bias)[0].isfinite()


def test_penalties_leave_their_batches_alone():
    x, critic = normal(4, 2).requires_grad_(), mlp(2, 5, 1).double()
    with torch.no_grad():
        inside = r1_penalty(critic, x)
    (r1_penalty(critic, x) + gradient_penalty(critic, x, x + 1)).backward()
    assert x.grad is None and critic[0].weight.grad is not None
    assert torch.isclose(inside, r1_penalty(critic, x))


def test_penalties_through_images_and_16_bits():
    critic, x = ResidualDiscriminator((4, 4), 1), torch.randn(3, 1, 8, 8, generator=seeded(0))
    want = r1_penalty(critic, x)
    found = r1_penalty(copy.deepcopy(critic).bfloat16(), x.bfloat16())
    assert found.dtype == torch.float32 and torch.isclose(found, want, rtol=0.1)


# ---- averages and norms ----


def test_average_by_a_loop():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average, want = averaged(model, 0.8), None
    for step in range(5):
        model(torch.randn(4, 3, generator=seeded(step)))
        for p in model.parameters():
            p.data.copy_(torch.randn(p.shape, generator=seeded(step)))
        now = [p.detach().clone() for p in model.parameters()]
        pairs = zip(want or now, now, strict=True)
        want = now if want is None else [0.8 * a + 0.2 * b for a, b in pairs]
        average.update_parameters(model)
    for a, b in zip(average.module.parameters(), want, strict=True):
        assert torch.allclose(a, b, atol=1e-6) and not a.requires_grad
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)


def test_spectral_norm_limits_the_slope():
    critic = with_spectral_norm(mlp(4, 16, 16, 1))
    for _ in range(100):
        critic(torch.randn(8, 4, generator=seeded(0)))
    x, y = torch.randn(2, 50, 4, generator=seeded(1))
    with torch.no_grad():
        ratio = (critic(x) - critic(y)).abs()[:, 0] / (x - y).norm(dim=1)
    assert ratio.max() <= 1.01
    before = len(critic[0].parametrizations.weight)
    assert len(with_spectral_norm(critic)[0].parametrizations.weight) == before


# ---- modulated convolution ----


def grouped(x, weight, style, demodulate=True):
    "The official form: a kernel for each sample, one grouped convolution."
    b, _, h, w = x.shape
    kernels = weight[None] * style[:, None, :, None, None]
    if demodulate:
        kernels = kernels / (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    out = F.conv2d(x.reshape(1, -1, h, w), kernels.flatten(0, 1), groups=b, padding="same")
    return out.reshape(b, -1, h, w)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (D, 1e-12)])
@pytest.mark.parametrize("k, demodulate", [(1, True), (3, True), (3, False), (5, True)])
def test_modulation_is_the_grouped_form(dtype, atol, k, demodulate):
    xs = [
        normal(*shape, dtype=dtype, seed=i)
        for i, shape in enumerate([(4, 5, 6, 7), (3, 5, k, k), (4, 5)])
    ]
    xs = [x.requires_grad_() for x in xs]
    found = modulated_conv2d(*xs, demodulate=demodulate)
    want = grouped(*xs, demodulate)
    scale = want.abs().max().item()
    assert torch.allclose(found, want, rtol=0, atol=atol * max(1, scale))
    grads = [torch.autograd.grad(out.square().sum(), xs) for out in (found, want)]
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= 10 * atol * b.norm()


def test_modulation_by_hand():
    weight = torch.tensor([[1.0, 2], [0, -1]], dtype=D)[:, :, None, None]
    style = torch.tensor([[0.5, 2.0]], dtype=D).expand(2, 2)
    columns = torch.eye(2, dtype=D)[:, :, None, None]  # image b shows input channel b alone
    plain = modulated_conv2d(columns, weight, style, demodulate=False)[..., 0, 0].T
    assert plain.tolist() == [[0.5, 4.0], [0.0, -2.0]]
    found = modulated_conv2d(columns, weight, style)[..., 0, 0].T
    want = torch.tensor([[0.124035, 0.992278], [0, -1]], dtype=D)
    assert torch.allclose(found, want, atol=1e-6)
    assert torch.allclose(
        (found / plain.where(plain != 0, 1))[:, 1],
        torch.tensor([0.248069, 0.5], dtype=D),
        atol=1e-6,
    )


def test_modulation_differentiates():
    xs = [normal(*shape).requires_grad_() for shape in [(2, 2, 3, 3), (2, 2, 3, 3), (2, 2)]]
    assert gradcheck(modulated_conv2d, xs)


# ---- the style generator ----


def maker(channels=(6, 5, 4), colors=3, dtype=D, seed=0):
    torch.manual_seed(seed)
    return StyleGenerator(7, channels, colors).to(dtype)


def test_style_slices_cover_the_coordinates():
    g = maker()
    assert g.style_slices == {
        "conv4": slice(0, 6),
        "conv8": slice(6, 12),
        "conv16": slice(12, 17),
        "rgb4": slice(17, 23),
        "rgb8": slice(23, 28),
        "rgb16": slice(28, 32),
    }
    assert g.n_styles == 32 and g.image_size == 16 and g.n_layers == 3
    assert StyleGenerator(24, (48, 32, 24)).n_styles == 232  # sizes that chapters quote
    assert StyleGenerator(16, (40, 32), 1).n_styles == 152


def test_styles_shift_and_return():
    g, w, shift = maker(), normal(3, 7), normal(32, seed=3)
    image, styles = g(w, return_styles=True)
    assert image.shape == (3, 3, 16, 16) and torch.equal(styles, g.styles(w))
    assert torch.equal(g(styles=styles), image)
    moved, shifted = g(w, shift=shift, return_styles=True)
    assert torch.equal(shifted, styles + shift) and torch.equal(g(styles=shifted), moved)
    assert torch.equal(g(w, shift=shift.expand(3, -1)), moved)
    assert torch.allclose(g(w[1:2]), image[1:2], atol=1e-12)  # samples do not mix


def test_color_coordinates_are_linear_and_others_are_not():
    g, styles = maker(), normal(2, 32, seed=1)
    image, shift = g(styles=styles), torch.zeros(32, dtype=D)
    shift[g.style_slices["rgb4"].start :] = normal(15, seed=2)
    change = g(styles=styles, shift=shift) - image
    for f in (0.5, -3.0):
        found = g(styles=styles, shift=f * shift) - image
        assert torch.allclose(found, f * change, atol=1e-10)
    shift = torch.zeros(32, dtype=D)
    shift[2] = 1.0
    half = g(styles=styles, shift=shift / 2) - image
    assert (g(styles=styles, shift=shift) - image - 2 * half).abs().max() > 1e-3


def test_demodulation_takes_out_a_common_factor():
    g, styles = maker(), normal(2, 32, seed=1)
    for name in ("conv4", "conv8", "conv16"):
        scaled = styles.clone()
        scaled[:, g.style_slices[name]] *= 3
        assert torch.allclose(g(styles=scaled), g(styles=styles), atol=1e-6)


def test_a_state_is_all_that_a_layer_needs():
    g, styles = maker(), normal(2, 32, seed=1)
    states, image = g.states(styles), g(styles=styles)
    assert len(states) == 4 and torch.equal(states[-1].image, image) and states[0].image is None
    for layer, state in enumerate(states):
        assert torch.equal(g(styles=styles, from_layer=layer, state=state), image)
        garbage = styles.clone()
        for i, size in enumerate((4, 8, 16)):
            if i < layer:
                garbage[:, g.style_slices[f"conv{size}"]] = torch.nan
                garbage[:, g.style_slices[f"rgb{size}"]] = torch.nan
        assert torch.equal(g(styles=garbage, from_layer=layer, state=state), image)
    with pytest.raises(ValueError, match=r"^state must be given where from_layer > 0"):
        g(styles=styles, from_layer=1)
    with pytest.raises(ValueError, match=r"^state must have shape"):
        g(styles=styles, from_layer=2, state=states[1])
    with pytest.raises(ValueError, match=r"^styles must be given, or w, not both, got both"):
        g(normal(2, 7), styles=styles)


def test_dead_channels_have_no_effect():
    g, styles = maker(), normal(2, 32, seed=1)
    with torch.no_grad():
        g.kernels[1][:, 3] = 0
    shift = torch.zeros(32, dtype=D)
    shift[g.style_slices["conv8"].start + 3] = 5.0
    assert torch.equal(g(styles=styles, shift=shift), g(styles=styles))


def test_generator_differentiates_in_its_styles():
    g = maker((2, 2), 1)
    styles = normal(1, g.n_styles).requires_grad_()
    assert gradcheck(lambda s: g(styles=s).sum((1, 2, 3)), styles)


def test_pixel_norm_and_mapping():
    z = normal(4, 9)
    assert torch.allclose(pixel_norm(z).square().mean(1), torch.ones(4, dtype=D), atol=1e-7)
    f = MappingNetwork(9, 5, 2).double()
    assert torch.allclose(f(3 * z), f(z), atol=1e-7) and f(z).shape == (4, 5)
    assert pixel_norm(z.bfloat16()).dtype == torch.bfloat16


# ---- the discriminator ----


@pytest.mark.parametrize("n_logits", [1, 4])
def test_discriminator_shapes_and_second_derivatives(n_logits):
    d = ResidualDiscriminator((3, 4), 2, n_logits)
    x = torch.randn(5, 2, 8, 8, generator=seeded(0))
    assert d(x).shape == ((5,) if n_logits == 1 else (5, n_logits))
    assert d(x[:1]).isfinite().all()
    r1_penalty(lambda x: d(x).reshape(len(x), -1).sum(1), x).backward()
    assert all(p.grad.isfinite().all() for p in d.parameters() if p.grad is not None)


def test_only_the_spread_joins_the_batch():
    x = torch.randn(4, 1, 8, 8, generator=seeded(0))
    alone = ResidualDiscriminator((3, 4), 1, minibatch_std=False)
    assert torch.allclose(alone(x)[:2], alone(x[:2]), atol=1e-6)
    joined = ResidualDiscriminator((3, 4), 1)
    assert (joined(x)[:2] - joined(x[:2])).abs().max() > 1e-6
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(joined(x[order]), joined(x)[order], atol=1e-6)


# ---- the loop ----


def line(n, generator=None):
    return 3 + 0.5 * torch.randn(n, 1, generator=generator)


def nets(seed=0, width=16):
    torch.manual_seed(seed)
    return mlp(1, width, 1), mlp(1, width, 1)


def test_the_loop_is_the_plain_one():
    settings_ = dict(r1_weight=0.3, r1_every=2, gradient_penalty_weight=0.7, n_critic=2)
    data = normal(50, 1, dtype=torch.float32)
    image_generator, critic = nets()
    train_gan(
        image_generator,
        critic,
        data,
        latent_dim=1,
        steps=4,
        batch_size=8,
        lr=(1e-3, 2e-3),
        clip=0.5,
        generator=seeded(3),
        **settings_,
    )
    plain_g, plain_d = nets()
    g = seeded(3)
    opt_g = torch.optim.Adam(plain_g.parameters(), 1e-3, (0.0, 0.99))
    opt_d = torch.optim.Adam(plain_d.parameters(), 2e-3, (0.0, 0.99))
    for step in range(8):
        real = data[torch.randint(50, (8,), generator=g)]
        fake = plain_g(torch.randn(8, 1, generator=g)).detach()
        loss = F.softplus(-plain_d(real)).mean() + F.softplus(plain_d(fake)).mean()
        if step % 2 == 0:
            loss = loss + 2 * 0.3 * r1_penalty(plain_d, real)
        loss = loss + 0.7 * gradient_penalty(plain_d, real, fake, generator=g)
        opt_d.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain_d.parameters(), 0.5)
        opt_d.step()
        if step % 2 == 1:
            opt_g.zero_grad()
            F.softplus(-plain_d(plain_g(torch.randn(8, 1, generator=g)))).mean().backward()
            nn.utils.clip_grad_norm_(plain_g.parameters(), 0.5)
            opt_g.step()
    for a, b in zip(image_generator.parameters(), plain_g.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for a, b in zip(critic.parameters(), plain_d.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_loop_gives_the_average_and_calls_back():
    seen, (image_generator, critic) = [], nets()
    average = averaged(image_generator, 0.5)

    def callback(step, shown, discriminator):
        average.update_parameters(image_generator)
        pairs = zip(shown.parameters(), average.module.parameters(), strict=True)
        seen.append((step, discriminator is critic, all(torch.allclose(a, b) for a, b in pairs)))

    how = dict(sample_latent=lambda n, generator=None: torch.rand(n, 1, generator=generator))
    found = train_gan(
        image_generator,
        critic,
        line,
        steps=3,
        batch_size=4,
        kind="hinge",
        ema_decay=0.5,
        optimizers=[torch.optim.SGD(net.parameters(), 0.01) for net in (image_generator, critic)],
        generator=seeded(0),
        callback=callback,
        **how,
    )
    assert seen == [(1, True, True), (2, True, True), (3, True, True)]
    assert found.image_generator is not image_generator
    assert {k: v.shape for k, v in found.history.items()} == dict.fromkeys(
        ("generator_loss", "discriminator_loss", "penalty"), (3,)
    )


def test_the_loop_refuses_and_warns():
    image_generator, critic = nets()
    how = dict(steps=2, batch_size=4)
    with pytest.raises(ValueError, match=r"^latent_dim must be given, or sample_latent, not both"):
        train_gan(image_generator, critic, line, **how)
    with pytest.raises(ValueError, match=r"^real must hold finite values"):
        train_gan(image_generator, critic, torch.full((9, 1), math.nan), latent_dim=1, **how)
    with pytest.raises(ValueError, match=r"^what image_generator returns must have shape"):
        train_gan(image_generator, critic, torch.zeros(9, 2), latent_dim=1, **how)
    with pytest.raises(ValueError, match=r"^what real returns must have 4 rows"):
        train_gan(image_generator, critic, lambda n, generator: line(3), latent_dim=1, **how)
    with pytest.warns(RuntimeWarning, match="not finite"):
        train_gan(image_generator, critic, line, latent_dim=1, lr=1e30, kind="wasserstein", **how)


def test_a_normal_distribution_is_learned():
    torch.manual_seed(0)
    networks = mlp(1, 16, 1), mlp(1, 32, 1)
    found = train_gan(
        *networks,
        line,
        latent_dim=1,
        steps=300,
        lr=3e-3,
        r1_weight=0.1,
        ema_decay=0.98,
        generator=seeded(0),
    )
    with torch.no_grad():
        x = found.image_generator(torch.randn(2000, 1, generator=seeded(1)))
    assert abs(x.mean() - 3) < 0.3 and 0.25 < x.std() < 0.8
