import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.explain import latent_directions as ld

big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def fixed(make, *sizes, **how):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make(*sizes, **how)


def image_generator():
    return nn.Sequential(fixed(nn.Linear, 4, 48), nn.Unflatten(1, (3, 4, 4)))


def directions(kind="unit"):
    return ld.DirectionMatrix(4, 3, kind, generator=seeded())


def reconstructor():
    return fixed(ld.Reconstructor, 3, 4, 3, width=2, hidden_size=4)


def sample_latent(n, generator=None):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(n), device="cpu")


def callback(step, directions, reconstructor):
    return None


def factor_fn(z):
    return z[:, :2] * 2


def latents(*shape):
    return torch.randn(*(shape or (6, 4)), generator=seeded())


def columns():
    return torch.linalg.qr(latents(4, 3)).Q


EXAMPLES = {
    "sample_shifts": lambda: Call(
        ld.sample_shifts,
        n=5,
        n_directions=3,
        scale=ok(6.0, *big),
        min_abs=ok(0.5, 1.5),
        generator=seeded(),
        device=ok("cpu", "number"),
    ),
    "DirectionMatrix": lambda: Call(
        ld.DirectionMatrix,
        latent_dim=4,
        n_directions=3,
        kind="unit",
        columns=columns(),
        generator=seeded(),
    ).then(lambda d: d.matrix()),
    "DirectionMatrix.forward": lambda: Call(
        directions().forward,
        index=torch.tensor([0, 2]),
        epsilon=free(torch.tensor([1.0, -2.0]), "nan", "half", "float64"),
    ),
    "Reconstructor": lambda: Call(
        ld.Reconstructor, in_channels=3, image_size=4, n_directions=3, width=2, hidden_size=4
    ).then(lambda net: [p.shape for p in net.parameters()]),
    "Reconstructor.forward": lambda: Call(
        reconstructor().forward,
        x=ok(latents(2, 3, 4, 4), "nan", "axes swapped"),
        shifted=ok(latents(2, 3, 4, 4), "nan", "axes swapped"),
    ),
    "direction_loss": lambda: Call(
        ld.direction_loss,
        logits=free(latents(2, 3), "nan", "half", "float64"),
        predicted_epsilon=free(latents(2), "nan", "half", "float64"),
        target=torch.tensor([0, 2]),
        epsilon=free(latents(2), "nan", "half", "float64"),
        shift_weight=ok(0.25, 0, *big),
        reduction="sum",
    ),
    "discover_directions": lambda: Call(
        ld.discover_directions,
        image_generator=image_generator(),
        directions=directions(),
        reconstructor=reconstructor(),
        steps=2,
        batch_size=3,
        scale=ok(2.0, *big),
        min_abs=ok(0.5, 1.5),
        shift_weight=ok(0.25, 0, *big),
        noise=ok(0.1, 0, *big),
        lr=ok(1e-3, 1.5),
        lr_directions=ok(1e-2, 1.5),
        sample_latent=sample_latent,
        generator=seeded(),
        callback=callback,
    ).then(lambda found: found.history["loss"]),
    "reconstruction_accuracy": lambda: Call(
        ld.reconstruction_accuracy,
        image_generator=image_generator(),
        directions=directions(),
        reconstructor=reconstructor(),
        n=5,
        batch_size=3,
        scale=ok(2.0, *big),
        min_abs=ok(0.5, 1.5),
        noise=ok(0.1, 0, *big),
        sample_latent=sample_latent,
        generator=seeded(),
    ),
    "direction_shares": lambda: Call(
        ld.direction_shares,
        factor_fn=factor_fn,
        directions=free(columns(), "rows"),
        z=free(latents(), "rows"),
        epsilon=ok(1.0, -1, 0, *big),
        scale=torch.tensor([1.0, 2.0]),
        period=torch.tensor([9.0, 3.0]),
    ),
    "jacobian_directions": lambda: Call(
        ld.jacobian_directions,
        image_generator=image_generator(),
        z=free(latents()),
        n_directions=2,
        chunk_size=4,
    ).then(lambda found: found.eigenvalues),
    "pca_directions": lambda: Call(
        ld.pca_directions, x=free(latents(), "rows", "half", "float64"), n_directions=2
    ).then(lambda found: found.eigenvalues),
    "traverse": lambda: Call(
        ld.traverse,
        image_generator=image_generator(),
        z=free(latents(), "rows"),
        direction=latents(4),
        epsilon=free(latents(3), "rows"),
    ),
    "collapse_ratio": lambda: Call(
        ld.collapse_ratio,
        image_generator=image_generator(),
        directions=free(columns(), "rows"),
        z=free(latents(), "rows"),
        epsilon=ok(2.0, -1, 0, *big),
    ),
}
WITHOUT = {}
ALLOWED = {}
