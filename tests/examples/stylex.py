import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.explain import stylex
from ponderlearn.generative.gan import ResidualDiscriminator, StyleGenerator

big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def fixed(make, *sizes, **how):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make(*sizes, **how)


def numbers(*shape):
    return torch.randn(*shape, generator=seeded())


def image_generator(w_dim=4):
    return fixed(StyleGenerator, w_dim, (3, 3))


def classifier():
    return nn.Sequential(nn.Flatten(), fixed(nn.Linear, 192, 2))


def encoder():
    return fixed(stylex.ImageEncoder, 3, 4, size=8, width=2)


def discriminator():
    return fixed(ResidualDiscriminator, (2, 2), 3, 2)


def probabilities():
    return numbers(5, 2).softmax(1)


def ends():
    return dict(lo=-torch.ones(12), hi=torch.ones(12) * 2)


def attributes():
    none = torch.zeros(0, dtype=torch.int64)
    return [stylex.Attribute(2, 1, 0.5, none), stylex.Attribute(7, -1, 0.3, none)]


def perceptual(x, x_rec):
    return (x - x_rec).square().mean()


def is_real(images):
    return images.mean((1, 2, 3)) > 0


def net(**more):
    return dict(image_generator=image_generator(), classifier=classifier(), **more)


EXAMPLES = {
    "condition": lambda: Call(
        stylex.condition, w=free(numbers(5, 4), "nan"), prob=free(probabilities())
    ),
    "conditional_logit": lambda: Call(
        stylex.conditional_logit,
        logits=free(numbers(5, 2), "nan", "half", "float64"),
        prob=free(probabilities(), "nan", "half", "float64"),
    ),
    "reconstruction_loss": lambda: Call(
        stylex.reconstruction_loss,
        x=ok(numbers(2, 3, 4, 4), "nan", "axes swapped", "half", "float64"),
        x_rec=ok(numbers(2, 3, 4, 4) + 1, "nan", "axes swapped", "half", "float64"),
        w=free(numbers(2, 5), "nan", "half", "float64"),
        w_rec=free(numbers(2, 5) - 1, "nan", "half", "float64"),
        perceptual=perceptual,
        pixel_weight=ok(1.0, 0, *big),
        perceptual_weight=ok(0.1, 0, *big),
        latent_weight=ok(0.1, 0, *big),
    ).then(lambda out: out[0]),
    "classifier_consistency_loss": lambda: Call(
        stylex.classifier_consistency_loss,
        logits_rec=free(numbers(5, 2), "nan", "half", "float64"),
        logits_real=free(numbers(5, 2) + 1, "nan", "half", "float64"),
        reduction="sum",
    ),
    "ImageEncoder": lambda: Call(stylex.ImageEncoder, in_channels=3, w_dim=4, size=8, width=2).then(
        lambda net: [p.shape for p in net.parameters()]
    ),
    "ImageEncoder.forward": lambda: Call(
        encoder().forward, x=ok(numbers(2, 3, 8, 8), "nan", "axes swapped")
    ),
    "train_stylex": lambda: Call(
        stylex.train_stylex,
        encoder=encoder(),
        image_generator=image_generator(6),
        discriminator=discriminator(),
        classifier=classifier(),
        real=ok(numbers(6, 3, 8, 8), "axes swapped"),
        steps=2,
        batch_size=3,
        conditioned=True,
        adversarial_weight=ok(0.1, 0, *big),
        pixel_weight=ok(10.0, 0, *big),
        perceptual_weight=ok(1.0, 0, *big),
        latent_weight=ok(0.1, 0, *big),
        classifier_weight=ok(1.0, 0, *big),
        perceptual=perceptual,
        lr=ok(1e-3, 1.5),
        r1_weight=ok(0.5, 0, 1.5),
        r1_every=2,
        ema_decay=0.5,
        generator=seeded(),
    ).then(lambda out: out.history["loss"]),
    "style_range": lambda: Call(
        stylex.style_range,
        image_generator=image_generator(),
        w=free(numbers(5, 4), "rows"),
        quantile=ok(0.1, 0),
        chunk_size=3,
    ).then(lambda out: out.lo),
    "style_effects": lambda: Call(
        stylex.style_effects,
        **net(),
        w=free(numbers(5, 4), "rows"),
        **ends(),
        target=ok(1, 0),
        shift=ok(0.5),
        coords=free(torch.tensor([1, 4, 9])),
        output="logit",
        screen=2,
        chunk_size=3,
    ).then(lambda out: out.effects),
    "attfind": lambda: Call(
        stylex.attfind,
        effects=free(numbers(5, 2, 3), "half", "float64"),
        n_attributes=2,
        max_image_effect=ok(0.2, *big),
        min_fraction=ok(0.1, 0),
    ).then(lambda found: [a[:2] for a in found]),
    "rank_for_image": lambda: Call(
        stylex.rank_for_image, effects=free(numbers(2, 3), "half", "float64"), k=2
    ).then(lambda found: [a[:2] for a in found]),
    "greedy_for_image": lambda: Call(
        stylex.greedy_for_image,
        **net(),
        w=numbers(1, 4),
        **ends(),
        target=ok(1, 0),
        k=2,
        shift=ok(0.5),
        coords=ok([1, 4, 9], "entry less"),
        chunk_size=3,
    ).then(lambda found: [a[:2] for a in found]),
    "apply_attributes": lambda: Call(
        stylex.apply_attributes,
        image_generator=image_generator(),
        w=free(numbers(5, 4), "rows"),
        attributes=ok(attributes(), "empty", "entry less"),
        **ends(),
        shift=ok(0.5, -1, 0),
    ),
    "sufficiency": lambda: Call(
        stylex.sufficiency,
        **net(),
        w=free(numbers(5, 4), "rows"),
        attributes=ok(attributes(), "empty", "entry less"),
        **ends(),
        target=ok(1, 0),
        ks=ok([0, 1, 2], "entry less"),
        shift=ok(0.5),
        is_real=is_real,
    ).then(lambda out: out.any),
    "realism_check": lambda: Call(
        stylex.realism_check,
        feature_fn=nn.Flatten(),
        real=ok(numbers(9, 1, 2, 2), "axes swapped", "rows", "half", "float64"),
        quantile=ok(0.9),
    ).then(lambda judge: 0),
}
WITHOUT = {}
ALLOWED = {}
