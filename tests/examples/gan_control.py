import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.explain import gan_control as gc

big = 1.5, 10**30
TERMS = {"hue": dict(tau_pos=0.1, tau_neg=0.5, weight=2.0, kind="l1")}


def seeded():
    return torch.Generator().manual_seed(1)


def fixed(make, *sizes):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make(*sizes)


def numbers(*shape):
    return torch.randn(*shape, generator=seeded())


def groups():
    return gc.LatentGroups({"hue": 2, "other": 3})


def styles():
    return gc.LatentGroups({"hue": 4, "other": 4})


def mapping():
    return fixed(gc.GroupedMapping, groups(), styles())


def pairwise():
    return torch.cdist(numbers(4, 2), numbers(4, 2))


def lower(n=4):
    same = torch.zeros(n, n, dtype=torch.bool)
    same[1, 0] = True
    return same


def attributes(x):
    return {"hue": x[:, :2]}


def callback(step, image_generator):
    return None


def doubled(z):
    return 2 * z


def shifted(x):
    return x + 1


EXAMPLES = {
    "LatentGroups": lambda: Call(gc.LatentGroups, sizes={"hue": 2, "other": 3}).then(
        lambda g: g.dim
    ),
    "LatentGroups.split": lambda: Call(
        groups().split, z=free(numbers(4, 5), "rows", "nan", "half", "float64")
    ),
    "LatentGroups.join": lambda: Call(
        groups().join, parts={"hue": numbers(4, 2), "other": numbers(4, 3)}
    ),
    "LatentGroups.replace": lambda: Call(
        groups().replace,
        z=ok(numbers(4, 5), "nan", "half", "float64"),
        hue=ok(numbers(4, 2), "nan", "half", "float64"),
    ),
    "paired_latents": lambda: Call(
        gc.paired_latents,
        groups=groups(),
        pairs=ok(2, 10**6),
        generator=seeded(),
        device=ok("cpu", "number"),
        dtype=torch.float32,
    ).then(lambda found: found.z),
    "pairwise_distance": lambda: Call(
        gc.pairwise_distance,
        f=free(numbers(4, 3), "rows", "nan", "half", "float64"),
        g=ok(numbers(2, 3), "rows", "nan", "half", "float64"),
        kind="l1",
    ),
    "margin_contrastive_loss": lambda: Call(
        gc.margin_contrastive_loss,
        distance=ok(pairwise(), "nan", "half", "float64"),
        same=lower(),
        tau_pos=ok(0.2, 0),
        tau_neg=ok(0.6, *big),
        reduction="sum",
    ),
    "attribute_loss": lambda: Call(
        gc.attribute_loss,
        features={"hue": free(numbers(4, 3), "nan", "half", "float64").value},
        same={"hue": lower()},
        terms=TERMS,
    ).then(lambda found: found.total),
    "quantile_margins": lambda: Call(
        gc.quantile_margins,
        f=free(numbers(9, 3), "rows", "half", "float64"),
        kind="l1",
        low=ok(0.05, 0),
        high=ok(0.25, 1),
    ).then(lambda found: found.tau_neg),
    "GroupedMapping": lambda: Call(
        gc.GroupedMapping, groups_in=groups(), groups_out=styles(), num_layers=2
    ).then(lambda net: [p.shape for p in net.parameters()]),
    "GroupedMapping.forward": lambda: Call(mapping().forward, z=ok(numbers(4, 5), "rows", "nan")),
    "train_controlled_gan": lambda: Call(
        gc.train_controlled_gan,
        image_generator=fixed(nn.Linear, 5, 4),
        discriminator=fixed(nn.Linear, 4, 1),
        attributes=attributes,
        real=free(numbers(9, 4), "rows"),
        groups=groups(),
        terms=TERMS,
        steps=2,
        pairs=1,
        noise=ok(0.1, 0, *big),
        lr=ok(1e-3, 1.5),
        betas=(0.0, 0.9),
        r1_weight=ok(0.5, 0, *big),
        r1_every=2,
        ema_decay=ok(0.9, 0),
        generator=seeded(),
        callback=callback,
    ).then(lambda found: found.history["generator_loss"]),
    "AttributeEncoder": lambda: Call(
        gc.AttributeEncoder, input_size=2, output_size=3, hidden_size=4, num_layers=2
    ).then(lambda net: [p.shape for p in net.parameters()]),
    "AttributeEncoder.forward": lambda: Call(
        fixed(gc.AttributeEncoder, 2, 3).forward, y=ok(numbers(4, 2), "rows", "nan")
    ),
    "fit_attribute_encoder": lambda: Call(
        gc.fit_attribute_encoder,
        encoder=fixed(gc.AttributeEncoder, 2, 3),
        y=numbers(9, 2),
        w=numbers(9, 3),
        steps=2,
        batch_size=4,
        lr=ok(1e-3, 1.5),
        kind="l1",
        generator=seeded(),
    ),
    "control_matrix": lambda: Call(
        gc.control_matrix,
        image_generator=doubled,
        predictor=shifted,
        groups=groups(),
        attributes={"hue": [0, 1]},
        n=6,
        generator=seeded(),
        device=ok("cpu", "number"),
    ),
    "own_share": lambda: Call(
        gc.own_share, matrix=free(numbers(3, 2).abs(), "nan", "half", "float64")
    ),
}
WITHOUT = {}

ALLOWED = {}
