import torch
from mistakes import Call, free, ok

from ponderlearn.generative import transgan as tg

big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def new_generator(**how):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        sizes = dict(bottom=2, embed_dim=8, num_layers=(1, 1), num_heads=2, mlp_ratio=2)
        return tg.TransGANGenerator(3, **sizes, out_channels=1, radii=(1, 2), **how)


def new_critic():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        sizes = dict(embed_dim=8, num_layers=2, num_heads=2, mlp_ratio=2)
        return tg.TransGANDiscriminator(4, 2, **sizes, in_channels=1)


def block():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return tg.TransformerBlock(4, 2, 2)


def images(*legal):
    return ok(torch.randn(3, 1, 4, 4), "axes swapped", "rows", "nan", *legal)


def noise():
    return ok(torch.randn(5, 3), "rows", "nan")


def tokens():
    return ok(torch.randn(2, 5, 4), "rows", "nan")


def mask():
    return ok(torch.eye(5, dtype=torch.bool), "axes swapped")


EXAMPLES = {
    "pixel_shuffle_tokens": lambda: Call(
        tg.pixel_shuffle_tokens,
        x=ok(torch.randn(2, 6, 8), "rows", "nan", "float64", "half"),
        height=2,
        width=3,
        factor=2,
    ),
    "local_attention_mask": lambda: Call(
        tg.local_attention_mask,
        height=3,
        width=4,
        radius=ok(1, 0, None, *big),
        kind="window",
        prefix=ok(1, 0),
        device=torch.device("cpu"),
    ),
    "window_schedule": lambda: Call(
        tg.window_schedule,
        step=ok(3, 0, 10**30),
        steps=ok(10, 10**30),
        radii=ok((1, 2), "entry less"),
        fractions=ok((0.25, 0.5), "entry less"),
    ),
    "TransformerBlock": lambda: Call(
        tg.TransformerBlock, embed_dim=4, num_heads=2, mlp_ratio=2
    ).then(lambda made: made.mlp[0].out_features),
    "TransformerBlock.forward": lambda: Call(block(), x=tokens(), mask=mask()),
    "TransformerBlock.attention_weights": lambda: Call(
        block().attention_weights, x=tokens(), mask=mask()
    ),
    "TransGANGenerator": lambda: Call(
        tg.TransGANGenerator,
        latent_dim=3,
        bottom=2,
        embed_dim=8,
        num_layers=ok((1, 1), "entry less"),
        num_heads=2,
        mlp_ratio=2,
        out_channels=1,
        radii=ok((1, 2), "entry less", "empty"),
        kind="band",
    ).then(lambda made: made.image_size),
    "TransGANGenerator.size": lambda: Call(tg.TransGANGenerator.size, name="S", latent_dim=3).then(
        lambda made: made.image_size
    ),
    "TransGANGenerator.forward": lambda: Call(new_generator(), z=noise(), radius=1),
    "TransGANGenerator.attention_maps": lambda: Call(
        new_generator().attention_maps, z=noise(), radius=1
    ),
    "TransGANGenerator.super_resolve": lambda: Call(
        new_generator().super_resolve, x=images(), radius=1
    ),
    "TransGANDiscriminator": lambda: Call(
        tg.TransGANDiscriminator,
        image_size=4,
        patch_size=2,
        embed_dim=8,
        num_layers=2,
        num_heads=2,
        mlp_ratio=2,
        in_channels=1,
    ).then(lambda made: made.image_size),
    "TransGANDiscriminator.forward": lambda: Call(new_critic(), x=images()),
    "TransGANDiscriminator.attention_maps": lambda: Call(new_critic().attention_maps, x=images()),
    "drift_penalty": lambda: Call(
        tg.drift_penalty, real_logits=free(torch.randn(5)), kind="mean_square"
    ),
    "diff_augment": lambda: Call(
        tg.diff_augment,
        x=free(torch.randn(3, 2, 8, 8)),
        policy="color,translation,cutout",
        generator=seeded(),
        translation=ok(0.125, 0, 1.5),
        cutout=ok(0.5, 0, 1.5),
        fill=ok(-1.0, 0, -1, *big),
    ),
}
WITHOUT = {}
ALLOWED = {}
