"""Early stopping: the Gram matrix beside a loop over the samples, the closed form beside the steps
of gradient descent that it replaces.

The loop is what one writes first: autograd for each row (and output), the rows stacked, their
products. Gradient descent is written out by hand, with two products of matrices a step.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/early_stopping.py
"""

import math
from itertools import pairwise

import torch
from compare import interleaved, save
from torch import nn

from ponderlearn.robust.early_stopping import (
    OneHiddenNet,
    clusterable_data,
    corrupt,
    empirical_gram,
    linearized_gd,
)

LABELS = (-1.0, 0.1, 1.0)


def by_rows(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    "The Gram matrix from the whole Jacobian, a row at a time."
    weights, rows = list(model.parameters()), []
    for row in x:
        for out in model(row[None]).reshape(-1):
            slopes = torch.autograd.grad(out, weights, retain_graph=True)
            rows.append(torch.cat([slope.reshape(-1) for slope in slopes]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def gram(what: str, model: nn.Module, x: torch.Tensor, repeats: int, ours=None) -> dict:
    "Time both sides on one network, after a look whether they agree."
    ours = ours or (lambda: empirical_gram(model, x))
    made, loop = ours().reshape(-1), by_rows(model, x).reshape(-1)
    assert torch.allclose(made, loop, rtol=1e-4, atol=1e-4 * loop.abs().max().item())
    row = interleaved(ours, lambda: by_rows(model, x), repeats=repeats, warmup=2)
    return {"what": what, "beside": "loop over the samples", **row}


def mlp(*sizes: int) -> nn.Sequential:
    parts = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*parts[:-1])


def clusters() -> tuple:
    "Points, labels, network, Gram matrix, residual and step size of the chapter's example."
    g = torch.Generator().manual_seed(100)
    data = clusterable_data(6, 20, 40, 0.1, LABELS, generator=g, dtype=torch.float64)
    y = corrupt(data.clean, data.cluster, LABELS, 0.1, generator=g).given
    net = OneHiddenNet(40, 1000, generator=g, dtype=torch.float64)
    matrix = net.gram(data.x)
    lr = 1 / torch.linalg.eigvalsh(matrix)[-1].item()
    return data.x, y, net, matrix, net(data.x).detach() - y, lr


def descent(x, y, net, lr, n_steps) -> torch.Tensor:
    "Residuals after gradient descent on the network, by hand, in float32."
    x, y, v, w = x.float(), y.float(), net.v.float(), net.weight.detach().float().clone()
    step = lr * 2 / math.sqrt(math.pi)
    for _ in range(n_steps):
        z = x @ w.T
        r = torch.erf(z) @ v - y
        w -= step * ((r[:, None] * torch.exp(-z * z) * v).T @ x)
    return torch.erf(x @ w.T) @ v - y


def recursion(matrix, residual, lr, n_steps) -> torch.Tensor:
    "Residuals of the linearized network, step by step."
    for _ in range(n_steps):
        residual = residual - lr * (matrix @ residual)
    return residual


def closed_form() -> list[dict]:
    "The closed form at 10 000 steps beside the recursion and beside the network itself."
    x, y, net, matrix, residual, lr = clusters()

    def ours():
        return linearized_gd(matrix, residual, lr, [10_000]).residuals[0]

    def steps():
        return recursion(matrix, residual, lr, 10_000)

    assert torch.allclose(ours(), steps(), atol=1e-8)
    what = "linearized descent, 120 points, 10 000 steps"
    rows = [
        {"what": what, "beside": "step by step", **interleaved(ours, steps, repeats=15, warmup=1)}
    ]
    found = interleaved(ours, lambda: descent(x, y, net, lr, 10_000), repeats=3, warmup=0)
    beside = "gradient descent on the network, width 1000"
    return [*rows, {"what": what, "beside": beside, **found}]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for sizes, repeats in (
        ((8, 32, 1), 31),
        ((20, 64, 1), 31),
        ((20, 1000, 1), 15),
        ((64, 256, 256, 1), 9),
    ):
        name = "-".join(map(str, sizes))
        rows.append(
            gram(f"Gram matrix, n = 200, {name}", mlp(*sizes), torch.randn(200, sizes[0]), repeats)
        )
    rows.append(
        gram("Gram matrix, n = 50, 64-256-256-10", mlp(64, 256, 256, 10), torch.randn(50, 64), 9)
    )
    net, x = OneHiddenNet(20, 1000), torch.randn(200, 20)
    name = "OneHiddenNet, n = 200, 20-1000-1"
    rows.append(gram(f"{name}, its own formula", net, x, 15, lambda: net.gram(x)))
    rows.append(gram(f"{name}, chunks of 64 rows", net, x, 9))
    shape = nn.Unflatten(1, (1, 14, 14))
    conv = nn.Sequential(shape, nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(1152, 1))
    images = torch.randn(200, 196)
    rows.append(gram("convolution, n = 200, chunks of 64 rows", conv, images, 9))
    rows += closed_form()
    print(save("early_stopping", "plain loops", rows))


if __name__ == "__main__":
    main()
