import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.robust import sam

g = lambda: [torch.randn(2, 3), torch.randn(4)]
params = lambda: {"w": torch.rand(3), "b": torch.rand(1)}
# the batch goes to the reader's own loss_fn, which may take any shape and dtype
batch = lambda: free(torch.rand(6, 3), "bool", "int")


def loss_fn(params, batch):
    return ((batch * params["w"]).sum(-1) + params["b"]).square().mean()


def made(x):
    "A network with an optimizer of SGD."
    net = nn.Linear(3, 2)
    return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def closure_of(net, optimizer, x):
    def closure():
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        return loss

    return closure


def constructed():
    x = torch.rand(5, 3)
    net, base = made(x)

    def stepped(optimizer):
        optimizer.step(closure_of(net, optimizer, x))
        return [w.detach().clone() for w in net.parameters()]

    rho, p = ok(0.05, 0, 1.5, 10**30), ok(2.0, 1.5, 10**30, float("inf"))
    flags = {"adaptive": False, "replay_rng": True}
    return Call(sam.SAM, base_optimizer=base, rho=rho, p=p, model=net, **flags).then(stepped)


def stepping():
    x = torch.rand(5, 3)
    net, base = made(x)
    optimizer = sam.SAM(base)
    return Call(optimizer.step, closure=closure_of(net, optimizer, x))


def loading():
    x = torch.rand(5, 3)
    net, base = made(x)
    optimizer = sam.SAM(base)
    optimizer.step(closure_of(net, optimizer, x))
    return Call(optimizer.load_state_dict, state_dict=optimizer.state_dict())


def moved():
    weights = g()

    def inside(context):
        with context:
            return [w.clone() for w in weights]

    # half inside: the copy is moved, and `weights` are looked at
    kept = ok(weights, "half inside")
    return Call(sam.perturbed, params=kept, perturbation=g()).then(inside)


def frozen():
    norm, x = nn.BatchNorm1d(3), torch.rand(5, 3)

    def inside(context):
        with context:
            return norm(x), norm.running_mean.clone()

    unread = "returns nothing", "returns a list", "returns a row less"  # it is not called
    return Call(sam.frozen_batchnorm_stats, model=ok(norm, *unread)).then(inside)


EXAMPLES = {
    "sam_perturbation": lambda: Call(
        sam.sam_perturbation,
        grads=g(),
        rho=ok(0.05, 0, 1.5, 10**30),
        p=2.0,
        params=g(),
        adaptive=True,
        eps=ok(1e-12, 1.5, 10**30),
    ),
    "sam_perturbation, cubes": lambda: Call(
        sam.sam_perturbation,
        grads=ok(g(), "entry less", "rows inside", "width inside", "axis fewer inside"),
        p=ok(3.0, 1.5, 10**30, float("inf")),
        adaptive=False,
    ),
    "perturbed": moved,
    "frozen_batchnorm_stats": frozen,
    "SAM": constructed,
    "SAM.step": stepping,
    "SAM.load_state_dict": loading,
    "sam_gradient": lambda: Call(
        sam.sam_gradient,
        loss_fn=loss_fn,
        params=params(),
        batch=batch(),
        rho=ok(0.05, 0, 1.5, 10**30),
        m=2,
        p=ok(2.0, 1.5, 10**30, float("inf")),
        adaptive=False,
        allow_ragged=False,
        chunk_size=1,
    ),
    "sharpness": lambda: Call(
        sam.sharpness,
        loss_fn=loss_fn,
        params=params(),
        batch=batch(),
        rho=ok(0.05, 0, 1.5, 10**30),
        n_steps=2,
        p=ok(2.0, 1.5, 10**30, float("inf")),
        adaptive=False,
    ),
    "hessian_top_eigenvalues": lambda: Call(
        sam.hessian_top_eigenvalues,
        loss_fn=loss_fn,
        params=params(),
        batch=batch(),
        k=2,
        n_iter=ok(4, 10**30),
        generator=torch.Generator().manual_seed(1),
    ),
    "pac_bayes_bound": lambda: Call(
        sam.pac_bayes_bound,
        worst_train_loss=ok(0.1, 0, 1.5, 10**30),
        weight_norm_sq=ok(9.0, 0, 1.5, 10**30),
        rho=ok(0.05, 1.5, 10**30),
        n_samples=1000,
        n_params=100,
        delta=0.05,
    ),
}
WHY = "loss_fn is the reader's own: its KeyError names the key"
ALLOWED = {
    ("sam_gradient", "params", "misspelt key"): WHY,
    ("sharpness", "params", "misspelt key"): WHY,
    ("hessian_top_eigenvalues", "params", "misspelt key"): WHY,
}
