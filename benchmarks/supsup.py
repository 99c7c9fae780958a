"""SupSup: finding one of 250 tasks beside a loop over all masks and beside the official form.

No package holds the method, so the peers are written here from its public descriptions. The loop
has the products of weights and masks ready as float tensors, runs each network without gradients
and takes the least entropy: the best case of a plain loop. The official form keeps the masks as
float tensors and lets automatic differentiation see the mixture of all of them. Ours reads the
bits. Answers are compared before the clock starts. A second part times one decision by One-Shot, by
Binary and by trying every mask, for several numbers of masks, images and outputs.

Run with `make bench`, or: python benchmarks/supsup.py
"""

import statistics
import time

import torch
import torch.nn.functional as F
from compare import interleaved, save

from ponderlearn._nested import mlp
from ponderlearn.multitask.supsup import SupSup, alpha_gradient, entropy_objective, infer_task

SIZES, TASKS = (196, 300, 100, 100), 250
WAYS = {"One-Shot": "one_shot", "Binary": "binary", "every mask": "exhaustive"}


def network(outputs: int = SIZES[-1], tasks: int = TASKS) -> SupSup:
    "A network with random masks: what they are does not matter for the time."
    sizes = (*SIZES[:-1], outputs)
    net, generator = SupSup(mlp(*sizes, bias=False)), torch.Generator().manual_seed(0)
    for _ in range(tasks):
        net.store.append(
            net.store.split(torch.rand(net.store.n_weights, generator=generator) < 0.5)
        )
    return net


def dense_masks(net: SupSup) -> list[torch.Tensor]:
    "All masks as float, one (tasks, out, in) tensor a layer."
    each = [net.store[i] for i in range(TASKS)]
    return [torch.stack([m[name] for m in each]).float() for name in net.store.shapes]


def forward(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for w in weights[:-1]:
        x = F.linear(x, w).relu()
    return F.linear(x, weights[-1])


@torch.no_grad()
def loop(networks: list[list[torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    "Entropy of every mask's network."
    return torch.stack([entropy_objective(forward(weights, x)) for weights in networks])


def official(fixed: list[torch.Tensor], masks: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    "Gradient of the entropy in the coefficients, through the mixture of all masks."
    alpha = torch.full((TASKS,), 1 / TASKS, requires_grad=True)
    weights = [w * (alpha[:, None, None] * m).sum(0) for w, m in zip(fixed, masks, strict=True)]
    return torch.autograd.grad(entropy_objective(forward(weights, x)), alpha)[0]


def compared(net: SupSup, n: int) -> list[dict]:
    "Both comparisons on a batch of `n` images, after the answers have been found equal."
    fixed, masks = [net.base.get_parameter(name) for name in net.store.shapes], dense_masks(net)
    networks = [[w * m[i] for w, m in zip(fixed, masks, strict=True)] for i in range(TASKS)]
    x = torch.randn(n, SIZES[0], generator=torch.Generator().manual_seed(1))
    images = f"{n} image" + "s" * (n > 1)
    close = {"atol": 1e-4, "rtol": 1e-3}
    torch.testing.assert_close(alpha_gradient(net, x), official(fixed, masks, x), **close)
    torch.testing.assert_close(
        infer_task(net, x, method="exhaustive").gradient, loop(networks, x), **close
    )
    return [
        {
            "what": f"One-Shot against a loop over {TASKS} masks, {images}",
            **interleaved(
                lambda: infer_task(net, x), lambda: loop(networks, x), repeats=61, warmup=2
            ),
        },
        {
            "what": f"gradient of {TASKS} coefficients against the official form, {images}",
            **interleaved(
                lambda: alpha_gradient(net, x),
                lambda: official(fixed, masks, x),
                repeats=15,
                warmup=2,
            ),
        },
    ]


def decisions(outputs: int, tasks: int, n: int, repeats: int = 15) -> list[dict]:
    "Median milliseconds of one decision in each way, the three by turns."
    net, generator = network(outputs, tasks), torch.Generator().manual_seed(1)
    x = torch.randn(n, SIZES[0], generator=generator)
    seconds = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, method in WAYS.items():
            start = time.perf_counter()
            infer_task(net, x, method=method)
            seconds[way].append(time.perf_counter() - start)
    known = {"masks": tasks, "images": n, "outputs": outputs}
    return [
        {"way": way, **known, "ms": round(1e3 * statistics.median(s[1:]), 3)}
        for way, s in seconds.items()
    ]


def main() -> None:
    torch.set_num_threads(1)
    net = network()
    rows = compared(net, 128) + compared(net, 1)
    points = [(100, k, n) for k in (10, 40, 250) for n in (1, 16, 128)] + [
        (n, 40, 16) for n in (10, 30, 500)
    ]
    cost = [row for point in points for row in decisions(*point)]
    print(*cost, sep="\n")
    print(save("supsup", "a loop, the official form", rows, cost=cost))


if __name__ == "__main__":
    main()
