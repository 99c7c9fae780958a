import torch
from mistakes import Call, ok
from torch import nn

from ponderlearn.contrastive import swav

# sizes all different: B = 6 or 7 images, K = 5 prototypes, D = 4 features
big = 1.5, 10**30


def views(n, *shape):
    return [torch.rand(*shape) for _ in range(n)]


def trained():
    "Prototypes and a loss over them, the same each time."
    return swav.Prototypes(4, 5, generator=torch.Generator().manual_seed(0))


def prototypes():
    z = torch.rand(6, 4)
    generator = torch.Generator().manual_seed(1)
    how = {"dim": 4, "n_prototypes": ok(5, 10**30), "normalize_input": True}
    return Call(swav.Prototypes, **how, generator=generator).then(lambda made: made(z))


def loss():
    features = views(3, 6, 4)
    numbers = {"temperature": ok(0.1, *big), "epsilon": ok(0.05, *big), "n_iter": ok(3, 0, 10**30)}
    numbers |= {"queue_size": ok(8, 0), "n_code_views": 2}
    made = Call(swav.SwAVLoss, prototypes=trained(), **numbers)
    return made.then(lambda loss_fn: loss_fn(features))


def backbone(x):
    return x.mean((2, 3))


EXAMPLES = {
    "sinkhorn_codes": lambda: Call(
        swav.sinkhorn_codes,
        scores=ok(torch.rand(6, 5), "axis more", "axes swapped", "width", "rows"),
        epsilon=ok(0.05, *big),
        n_iter=ok(3, 0),
        return_marginal_error=True,
    ),
    "swapped_prediction_loss": lambda: Call(
        swav.swapped_prediction_loss,
        scores=ok(views(4, 6, 5), "entry less"),  # a view less is a legal loss
        codes=[swav.sinkhorn_codes(s) for s in views(2, 6, 5)],
        temperature=ok(0.1, *big),
        code_views=(0, 1),
    ),
    "Prototypes": prototypes,
    "Prototypes.forward": lambda: Call(
        trained(), z=ok(torch.rand(6, 4), "axis more", "axis fewer")
    ),
    "Prototypes.freeze": lambda: Call(trained().freeze, frozen=True).then(
        lambda made: made.weight.requires_grad
    ),
    "SwAVLoss": loss,
    "SwAVLoss.forward": lambda: Call(
        swav.SwAVLoss(trained()), features=ok(views(3, 6, 4), "entry less")
    ),
    "multi_crop": lambda: Call(
        swav.multi_crop,
        images=ok(torch.rand(3, 2, 12, 10), "axes swapped", "width"),
        large_size=7,
        small_size=4,
        n_large=2,
        n_small=ok(3, 0),
        large_scale=(0.4, 1.0),
        small_scale=(0.15, 0.4),
        ratio=(0.75, 1.5),
        rotation=ok(15.0, 0, 1.5),
        generator=torch.Generator().manual_seed(1),
    ),
    "forward_multi_crop": lambda: Call(
        swav.forward_multi_crop,
        backbone=backbone,
        head=nn.Linear(2, 5),
        crops=ok([*views(2, 3, 2, 6, 6), *views(2, 3, 2, 4, 4)], "entry less", "width inside"),
    ),
    "code_perplexity": lambda: Call(
        swav.code_perplexity, codes=ok(torch.rand(6, 5).softmax(1), "axes swapped", "width", "rows")
    ),
    "cluster_accuracy": lambda: Call(
        swav.cluster_accuracy,
        assignments=ok(torch.tensor([2, 2, 0, 1, 3]), "entry past the end"),  # any number
        labels=ok(torch.tensor([0, 0, 1, 1, 2]), "entry past the end"),
    ),
}
WITHOUT = {"SwAVLoss.set_extra_state": "called by load_state_dict"}
ALLOWED = {}
