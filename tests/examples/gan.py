import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.generative import gan

RETURNS = "returns nothing", "returns a row less", "returns a list"
large = (1.5, 10**30)
logits = lambda n=3: free(torch.randn(n))


def critic():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 1))


def maker():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def score(x):
    return (x**2).sum(1)


def style_generator():
    torch.manual_seed(0)
    return gan.StyleGenerator(5, (4, 3), 2)


def modulated():
    x, weight, style = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 1, 1), torch.randn(2, 3)
    return Call(
        gan.modulated_conv2d,
        x=ok(x, "axes swapped", "width"),
        weight=weight,
        style=style,
        demodulate=True,
        eps=ok(1e-8, 0, *large),
    )


def train():
    networks, given = (maker(), critic()), torch.randn(9, 2)
    return Call(
        gan.train_gan,
        image_generator=networks[0],
        discriminator=networks[1],
        real=ok(given, "rows"),
        latent_dim=3,
        steps=2,
        batch_size=4,
        kind="hinge",
        lr=ok((1e-3, 1e-3)),
        betas=ok((0.0, 0.99)),
        r1_weight=ok(0.5, 0, *large),
        r1_every=2,
        gradient_penalty_weight=ok(0.5, 0, *large),
        n_critic=1,
        clip=ok(1.0, *large),
        ema_decay=ok(0.5, 0),
        callback=lambda step, image_generator, discriminator: None,
    ).then(lambda found: found.history["penalty"].shape)


def optimizers_and_sources():
    networks, z, x = (maker(), critic()), torch.randn(4, 3), torch.randn(4, 2)
    return Call(
        gan.train_gan,
        image_generator=networks[0],
        discriminator=networks[1],
        real=lambda n, generator=None: x[:n],
        sample_latent=ok(lambda n, generator=None: z[:n], *RETURNS),
        steps=2,
        batch_size=4,
        optimizers=[torch.optim.SGD(net.parameters(), 0.1) for net in networks],
    ).then(lambda found: found.history["penalty"].shape)


def forward():
    generator = style_generator()
    return Call(
        generator,
        w=torch.randn(2, 5),
        shift=ok(torch.randn(2, generator.n_styles), "axis fewer"),
        return_styles=True,
        from_layer=ok(0, 1),
        state=None,
    )


def forward_from_state():
    generator = style_generator()
    styles = torch.randn(2, generator.n_styles)
    state = generator.states(styles)[1]
    return Call(generator, styles=styles, from_layer=ok(1, 0), state=state)


EXAMPLES = {
    "discriminator_loss": lambda: Call(
        gan.discriminator_loss,
        real_logits=logits(),
        fake_logits=logits(),
        kind="hinge",
        reduction="none",
    ),
    "generator_loss": lambda: Call(
        gan.generator_loss, fake_logits=logits(), kind="minimax", reduction="none"
    ),
    "r1_penalty": lambda: Call(gan.r1_penalty, discriminator=score, real=free(torch.randn(3, 2))),
    "gradient_penalty": lambda: Call(
        gan.gradient_penalty,
        discriminator=score,
        real=torch.randn(3, 2),
        fake=torch.randn(3, 2),
        target=ok(1.0, *large),
        generator=torch.Generator(),
    ),
    "averaged": lambda: Call(gan.averaged, model=maker(), decay=ok(0.9, 0)),
    "with_spectral_norm": lambda: Call(gan.with_spectral_norm, model=critic()),
    "modulated_conv2d": modulated,
    "pixel_norm": lambda: Call(gan.pixel_norm, z=free(torch.randn(3, 4))),
    "train_gan": train,
    "train_gan, optimizers": optimizers_and_sources,
    "MappingNetwork": lambda: Call(gan.MappingNetwork, latent_dim=3, w_dim=4, num_layers=2).then(
        lambda made: len(made.layers)
    ),
    "MappingNetwork.forward": lambda: Call(gan.MappingNetwork(3, 4), z=torch.randn(2, 3)),
    "StyleGenerator": lambda: Call(
        gan.StyleGenerator, w_dim=5, channels=ok((4, 3), "entry less"), out_channels=2
    ).then(lambda made: made.n_styles),
    "StyleGenerator.styles": lambda: Call(style_generator().styles, w=torch.randn(2, 5)),
    "StyleGenerator.states": lambda: Call(style_generator().states, styles=torch.randn(2, 15)).then(
        lambda found: found[-1].image
    ),
    "StyleGenerator.forward": forward,
    "StyleGenerator.forward, state": forward_from_state,
    "ResidualDiscriminator": lambda: Call(
        gan.ResidualDiscriminator,
        channels=ok((4, 3), "entry less"),
        in_channels=2,
        n_logits=2,
        minibatch_std=False,
    ).then(lambda made: made.image_size),
    "ResidualDiscriminator.forward": lambda: Call(
        gan.ResidualDiscriminator((4, 3), 2), x=ok(torch.randn(2, 2, 8, 8), "axes swapped")
    ),
}
WITHOUT = {}
ALLOWED = {}
