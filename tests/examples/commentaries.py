import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.multitask import commentaries as co

LABELS = torch.tensor([0, 2, 1])
FEATURES, MAP = torch.ones(2, 3), torch.zeros(1, 1, 3, 3)


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


def implicit(**how):
    "A student of two tensors, a commentary of one; the losses as functions."
    theta, phi = [leaf(2), leaf(3)], [leaf(2)]

    def train():
        return ((theta[0] - phi[0]) ** 2).sum() + (theta[1] ** 2).sum() + theta[1].sum()

    def valid():
        return (theta[0] - 1).pow(2).sum() + theta[1].sum()

    return Call(
        co.hypergradient,
        train_loss=train,
        valid_loss=valid,
        params=theta,
        hyperparams=phi,
        direct=True,
        **how,
    )


def solver(**how):
    theta = [leaf(2), leaf(3)]
    loss = sum((t**2).sum() for t in theta)
    grads = list(torch.autograd.grad(loss, theta, create_graph=True))
    v = [torch.ones(2), torch.ones(3)]
    return Call(co.inverse_hvp, grads=grads, params=theta, v=v, **how)


INSIDE = ("axis fewer", "meta", "rows", "width")  # what loss_fn alone can tell


def inner_loss(params, phi, step):
    return ((params["a"] - phi[0]) ** 2).sum() + (params["b"] ** 2).sum()


def inner(**how):
    return Call(
        co.inner_loop,
        loss_fn=inner_loss,
        params=ok({"a": torch.zeros(2), "b": torch.zeros(3)}, "misspelt key"),
        hyperparams=ok([leaf(2)], "empty", *(f"{what} inside" for what in INSIDE)),
        n_steps=4,
        lr=ok(0.1, 1.5, 10**30),
        **how,
    )


def teacher():
    return co.ExampleWeights(nn.Linear(4, 1))


EXAMPLES = {
    "inverse_hvp": lambda: solver(
        method="neumann",
        n_terms=ok(2, 0),
        step_size=ok(0.1, 1.5, 10**30),
        damping=ok(0.1, 0, 1.5, 10**30),
    ),
    "inverse_hvp, exact": lambda: solver(method="exact"),
    "hypergradient": lambda: implicit(
        method="neumann",
        n_terms=ok(2, 0),
        step_size=ok(0.1, 1.5, 10**30),
        damping=ok(0.1, 0, 1.5, 10**30),
    ),
    "hypergradient, cg": lambda: implicit(method="cg", n_terms=ok(2, 0)),
    "inner_loop": lambda: inner(optimizer="sgd", create_graph=True),
    "inner_loop, checkpoints": lambda: inner(optimizer="adam", checkpoint_every=2),
    "ExampleWeights": lambda: Call(
        co.ExampleWeights, backbone=nn.Linear(4, 1), curriculum=True
    ).then(lambda made: made(FEATURES)),
    "ExampleWeights.forward": lambda: Call(
        teacher(), x=free(torch.randn(5, 3)), progress=ok(0.5, -1, 0, 1.5, 10**30)
    ),
    "weighted_loss": lambda: Call(
        co.weighted_loss,
        losses=torch.rand(3),
        weights=torch.rand(3),
        kind="relative",
        reduction="mean",
    ),
    "LabelBlend": lambda: Call(co.LabelBlend, num_classes=3, init=ok(-1.0, 0, 1.5, 10**30)).then(
        lambda made: made.coefficients()
    ),
    "LabelBlend.forward": lambda: Call(
        co.LabelBlend(3),
        x=free(torch.rand(3, 4)),
        y=LABELS,
        index=torch.tensor([1, 2, 0]),
        generator=torch.Generator().manual_seed(0),
    ),
    "blend_loss": lambda: Call(
        co.blend_loss,
        logits=ok(torch.randn(3, 4), "width"),
        y_a=LABELS,
        y_b=LABELS,
        lam=torch.rand(3),
        reduction="mean",
    ),
    "GaussianMask": lambda: Call(co.GaussianMask, sigma=ok(1.0, 1.5, 10**30)).then(
        lambda made: made(MAP)
    ),
    "GaussianMask.centers": lambda: Call(
        co.GaussianMask(1.0).centers, score_map=ok(torch.randn(2, 1, 3, 4), "width", "axes swapped")
    ),
    "GaussianMask.forward": lambda: Call(
        co.GaussianMask(1.0), score_map=ok(torch.randn(2, 1, 3, 4), "width", "axes swapped")
    ),
}
ALLOWED = {}
