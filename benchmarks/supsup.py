"""SupSup beside what one would write without it: loops, the official form, masks held ready.

No package holds the method, so the peers are written here. A loop over all masks has the products
of weights and masks ready as float tensors: its best case. The official form keeps the masks as
float tensors and lets automatic differentiation see the mixture of all of them. For one stored task
the peer holds that mask ready as floats. For the gradient of all masks and the search over them at
0.7 million weights it unpacks bits by a table of 256 x 8 bytes and multiplies. For training it is a
straight-through estimator of two lines, layer by layer. Answers are compared before the clock
starts. A second part times one decision by One-Shot, by Binary and by trying every mask, for
several numbers of masks, images and outputs.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/supsup.py [timed runs of each, 41]
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from compare import interleaved, save

from ponderlearn._nested import mlp
from ponderlearn.multitask.supsup import SupSup, alpha_gradient, entropy_objective, infer_task

SIZES, TASKS = (196, 300, 100, 100), 250
LARGE = (784, 500, 500, 100)  # 692 000 weights
REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 41
CLOSE = {"atol": 1e-3, "rtol": 1e-3}
WAYS = {"One-Shot": "one_shot", "Binary": "binary", "every mask": "exhaustive"}


def network(tasks: int = TASKS, sizes: tuple[int, ...] = SIZES) -> SupSup:
    "A network with random masks: what they are does not matter for the time."
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
    torch.testing.assert_close(alpha_gradient(net, x), official(fixed, masks, x), **CLOSE)
    torch.testing.assert_close(
        infer_task(net, x, method="exhaustive").gradient, loop(networks, x), **CLOSE
    )
    return [
        timed(
            f"One-Shot, {TASKS} masks, {images}",
            "a loop over all masks, held ready",
            lambda: infer_task(net, x),
            lambda: loop(networks, x),
        ),
        timed(
            f"gradient of {TASKS} coefficients, {images}",
            "the official form",
            lambda: alpha_gradient(net, x),
            lambda: official(fixed, masks, x),
            repeats=min(15, REPEATS),
        ),
    ]


def timed(what: str, beside: str, ours, theirs, repeats: int = REPEATS) -> dict:
    "A row of the table."
    return {"what": what, "beside": beside} | interleaved(ours, theirs, repeats=repeats, warmup=2)


def stored(net: SupSup, n: int) -> dict:
    "A call with one stored task beside the mask held ready."
    masks = [m.float() for m in net.store[1].values()]
    fixed = [net.base.get_parameter(name) for name in net.store.shapes]
    x = torch.randn(n, fixed[0].shape[1], generator=torch.Generator().manual_seed(1))

    def peer() -> torch.Tensor:
        return forward([w * m for w, m in zip(fixed, masks, strict=True)], x)

    torch.testing.assert_close(net(x, task=1), peer())
    what = f"net(x, task=), {net.store.n_weights} weights, {n} image" + "s" * (n > 1)
    return timed(what, "the mask held ready", lambda: net(x, task=1), peer)


class Straight(torch.autograd.Function):
    "The peer's estimator."

    @staticmethod
    def forward(ctx, scores):
        return (scores >= 0).float()

    @staticmethod
    def backward(ctx, upstream):
        return upstream


def training(net: SupSup) -> dict:
    "Loss and gradient of a batch of 128."
    fixed, generator = [net.base.get_parameter(n) for n in net.store.shapes], torch.Generator()
    x = torch.randn(128, fixed[0].shape[1], generator=generator.manual_seed(1))
    y = torch.randint(10, (128,), generator=generator)
    flat = net.new_task(generator=generator)
    parts = net.store.split(flat.detach()).values()
    scores = [part.clone().requires_grad_() for part in parts]

    def ours() -> None:
        flat.grad = None
        F.cross_entropy(net(x), y).backward()

    def peer() -> None:
        for part in scores:
            part.grad = None
        weights = [w * Straight.apply(part) for w, part in zip(fixed, scores, strict=True)]
        F.cross_entropy(forward(weights, x), y).backward()

    ours(), peer()
    torch.testing.assert_close(flat.grad, torch.cat([part.grad.flatten() for part in scores]))
    row = timed(f"a training step, {net.store.n_weights} weights", "two lines", ours, peer)
    net.abandon()
    return row


def by_table(net: SupSup) -> list[dict]:
    "One-Shot and the search over every mask beside bits unpacked by a table."
    table = (torch.arange(256)[:, None] >> torch.arange(7, -1, -1) & 1).to(torch.uint8)
    fixed, store = [net.base.get_parameter(name) for name in net.store.shapes], net.store
    x = torch.randn(128, fixed[0].shape[1], generator=torch.Generator().manual_seed(1))
    k, P = len(store), store.n_weights
    bits = store.bits[:k]

    def gradient() -> torch.Tensor:
        mean = store.split(store.mean()).values()
        mixed = [(w * m).requires_grad_() for w, m in zip(fixed, mean, strict=True)]
        slopes = torch.autograd.grad(entropy_objective(forward(mixed, x)), mixed)
        v = torch.cat([(w * g).flatten() for w, g in zip(fixed, slopes, strict=True)])
        return torch.cat([table[b.long()].flatten(1)[:, :P].float() @ v for b in bits.split(16)])

    @torch.no_grad()
    def search() -> torch.Tensor:
        found = []
        for row in bits:
            masks = store.split(table[row.long()].flatten()[:P]).values()
            weights = [w * m for w, m in zip(fixed, masks, strict=True)]
            found.append(entropy_objective(forward(weights, x)))
        return torch.stack(found)

    def every() -> torch.Tensor:
        return infer_task(net, x, method="exhaustive").gradient

    torch.testing.assert_close(alpha_gradient(net, x), gradient(), **CLOSE)
    torch.testing.assert_close(every(), search(), **CLOSE)
    words, few = f"{k} masks of {P} weights, 128 images", min(15, REPEATS)
    beside = "bits by a table, then a product"
    return [
        timed(f"One-Shot, {words}", beside, lambda: infer_task(net, x), gradient, few),
        timed(f"every mask, {words}", beside, every, search, few),
    ]


def decisions(outputs: int, tasks: int, n: int) -> list[dict]:
    "Median milliseconds of one decision in each way, the three by turns."
    net, generator = network(tasks, (*SIZES[:-1], outputs)), torch.Generator().manual_seed(1)
    x = torch.randn(n, SIZES[0], generator=generator)
    seconds = {way: [] for way in WAYS}
    for _ in range(min(15, REPEATS)):
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
    net, large = network(), network(3, LARGE)
    rows = compared(net, 128) + compared(net, 1)
    rows += [stored(each, n) for each in (net, large) for n in (1, 128)]
    rows += [training(net), training(large)]
    for k in (10, 40, 100):
        rows += by_table(network(k, LARGE))
    points = [(100, k, n) for k in (10, 40, 250) for n in (1, 16, 128)] + [
        (n, 40, 16) for n in (10, 30, 500)
    ]
    cost = [row for point in points for row in decisions(*point)]
    print(*cost, sep="\n")
    print(save("supsup", "a loop, the official form", rows, cost=cost))


if __name__ == "__main__":
    main()
