"""SAM beside pytorch-optimizer and torchzero, and beside two plain passes; m-sharpness at once
beside its loop.

Both sides have the same network, batch and base step (SGD with momentum). The weights after two
steps are compared with pytorch-optimizer's first; torchzero takes the length of the climb tensor by
tensor, so it makes other steps for about the same work. The plain side makes two forward and
backward passes and one step of SGD: what any SAM must cost. pytorch-optimizer wants its first pass
made before `step`; torchzero calls the closure itself. Random numbers are not replayed here: the
peers do not, and no network has dropout.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/sam.py
"""

import importlib.metadata
from functools import partial
from itertools import pairwise

import pytorch_optimizer
import torch
import torch.nn.functional as F
import torchzero
from compare import interleaved, save
from torch import nn

from ponderlearn._nested import mlp
from ponderlearn.robust.sam import SAM, sam_gradient

LR, MOMENTUM, RHO = 1e-3, 0.9, 0.05


def convolutions() -> nn.Module:
    "Six convolutions with batch normalization on images of 16 x 16 pixels."
    widths, layers = (3, 32, 32, 64, 64, 128, 128), []
    for i, (a, b) in enumerate(pairwise(widths)):
        conv = nn.Conv2d(a, b, 3, padding=1, stride=1 + (i in (2, 4)), bias=False)
        layers += [conv, nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


NETS = {
    "digits, 6 tensors of 85 thousand weights": (lambda: mlp(64, 256, 256, 10), (64,)),
    "deep, 40 tensors of 1.3 million weights": (lambda: mlp(64, *[256] * 19, 10), (64,)),
    "convolutions, 20 tensors of 0.3 million weights": (convolutions, (3, 16, 16)),
}


def closure_of(net: nn.Module, batch: tuple):
    "What a training loop hands to `step`; gradients go first, so that each side may reuse memory."
    weights = list(net.parameters())

    def closure():
        for w in weights:
            w.grad = None
        loss = F.cross_entropy(net(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def through_torchzero(optimizer, closure) -> None:
    "torchzero tells its closures whether gradients are wanted."
    optimizer.step(lambda backward=True: closure() if backward else None)


def two_passes(sgd, closure) -> None:
    closure(), closure()
    sgd.step()


def sides(make, batch) -> dict:
    "name -> (network, function that makes one update), all from the same weights."
    made = {}
    for name in ("ours", "pytorch-optimizer", "torchzero", "two plain passes"):
        torch.manual_seed(0)
        net = make()
        closure, sgd = closure_of(net, batch), {"lr": LR, "momentum": MOMENTUM}
        if name == "ours":
            base = torch.optim.SGD(net.parameters(), **sgd)
            step = SAM(base, RHO, replay_rng=False).step
        elif name == "pytorch-optimizer":
            step = pytorch_optimizer.SAM(net.parameters(), torch.optim.SGD, rho=RHO, **sgd).step
        elif name == "torchzero":
            tz = torchzero.m
            parts = tz.SAM(RHO), tz.HeavyBall(MOMENTUM), tz.LR(LR)
            optimizer = torchzero.Optimizer(net.parameters(), *parts)
            step = partial(through_torchzero, optimizer)
        else:
            base = torch.optim.SGD(net.parameters(), **sgd)
            step = partial(two_passes, base)
        before = name == "pytorch-optimizer"
        made[name] = net, lambda c=closure, s=step, b=before: (c() if b else None, s(c))
    return made


def weights_of(net: nn.Module) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in net.parameters()])


def measure(what: str, batch_size: int, repeats: int) -> list[dict]:
    "Rows of one network: each peer beside ours."
    make, shape = NETS[what]
    torch.manual_seed(1)
    batch = torch.randn(batch_size, *shape), torch.randint(10, (batch_size,))
    made = sides(make, batch)
    start = weights_of(made["ours"][0])
    for _, update in made.values():
        update(), update()
    moved, theirs = (weights_of(made[k][0]) - start for k in ("ours", "pytorch-optimizer"))
    assert (theirs - moved).norm() < 1e-3 * moved.norm(), what
    rows = []
    for peer in list(made)[1:]:
        row = interleaved(made["ours"][1], made[peer][1], repeats=repeats)
        rows.append({"what": f"{what}, batch {batch_size}", "beside": peer, **row})
    return rows


def parts(m: int, repeats: int) -> dict:
    "m-sharpness on the digits' network: all parts at once beside the loop."
    torch.manual_seed(0)
    net = mlp(64, 256, 256, 10)
    params = {k: w.detach() for k, w in net.named_parameters()}
    batch = torch.randn(64, 64), torch.randint(10, (64,))

    def loss_fn(params, batch):
        logits = torch.func.functional_call(net, params, (batch[0],))
        return F.cross_entropy(logits, batch[1])

    def run(chunk_size):
        return sam_gradient(loss_fn, params, batch, 0.1, m=m, chunk_size=chunk_size)

    a, b = run(16), run(1)
    assert all(torch.allclose(a.grads[k], b.grads[k], atol=1e-6) for k in params)
    row = interleaved(lambda: run(16), lambda: run(1), repeats=repeats)
    return {"what": f"digits, batch 64, m = {m}, 16 parts at once", "beside": "one by one", **row}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for what, sizes in zip(NETS, ((64, 512), (128, 512), (64,)), strict=True):
        for batch_size in sizes:
            rows += measure(what, batch_size, 101 if batch_size < 512 else 51)
    rows += [parts(m, 31) for m in (16, 4, 1)]
    names = "pytorch-optimizer", "torchzero"
    print(save("sam", " and ".join(f"{n} {importlib.metadata.version(n)}" for n in names), rows))


if __name__ == "__main__":
    main()
