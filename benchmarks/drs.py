"""The sampler beside the per-batch class in NumPy and a loop over samples, with the same networks.

The class has the structure of public code (`class DRS` of self-diagnosing-gan and its copies):
logits go to NumPy batch by batch, gamma is the 80th percentile of each batch, and what is kept is
collected sample by sample. The loop proposes and judges one sample at a time, as `sample_plain` of
the chapter. All sides burn in before the clock starts; class and sampler keep about as many, ours
with the gamma of burn-in. Before the clock starts, both have to give samples with the same mean.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/drs.py [timed runs of each, 41]
"""

import math
import sys
from functools import partial

import numpy as np
import torch
from compare import interleaved, save
from torch import nn

from ponderlearn._nested import mlp
from ponderlearn.generative.drs import DiscriminatorRejectionSampler

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 41


class PerBatch:
    "Rejection with NumPy in the middle and lists of samples."

    def __init__(self, propose, net: nn.Module, batch_size: int):
        self.propose, self.net, self.batch_size, self.maximum = propose, net, batch_size, -100_000.0
        for _ in range(10):
            self.maximum = max(self.maximum, self.scored()[1].max())

    def scored(self):
        with torch.no_grad():
            x = self.propose(self.batch_size)
            return x, self.net(x).view(-1).cpu().numpy()

    def accepted(self, x, logits, eps: float = 1e-6) -> torch.Tensor:
        self.maximum = max(self.maximum, logits.max())
        d = logits.astype(np.float64) - self.maximum
        odds = d - np.log(1 - np.exp(d - eps))
        p = 1 / (1 + np.exp(-(odds - np.percentile(odds, 80))))
        psi = np.random.rand(len(p))  # noqa: NPY002, as in the public code
        kept = [x[i].detach().cpu().numpy() for i in range(len(p)) if p[i] > psi[i]]
        return torch.from_numpy(np.array(kept)) if kept else x[:0]

    def sample(self, n: int) -> torch.Tensor:
        parts, count = [], 0
        while count < n:
            parts.append(self.accepted(*self.scored()))
            count += len(parts[-1])
        return torch.cat(parts)[:n]


def by_loop(propose, net: nn.Module, n: int, log_m: float, gamma: float) -> torch.Tensor:
    "One sample at a time."
    kept = []
    with torch.no_grad():
        while len(kept) < n:
            x = propose(1)
            logit = float(net(x))
            log_m = max(log_m, logit)
            odds = math.expm1(min(log_m - logit, 700))
            if float(torch.rand(())) < 1 / (1 + math.exp(gamma) * odds):
                kept.append(x)
    return torch.cat(kept)


def networks(name: str) -> tuple:
    "A proposal and a discriminator, with random weights."
    torch.manual_seed(0)
    sizes = {"plane": (2, 128, 128, 128, 2), "digits": (16, 128, 128, 64), "none": (2, 2)}[name]
    G = mlp(*sizes).eval().requires_grad_(False)
    D = mlp(sizes[-1], *([] if name == "none" else [128, 128]), 1).requires_grad_(False)
    D[-1].weight *= 10  # logits that differ
    return (lambda n: G(torch.randn(n, sizes[0]))), D


def case(name: str, batch_size: int, n: int) -> list[dict]:
    propose, D = networks(name)
    sampler = DiscriminatorRejectionSampler(propose, D, percentile=80, batch_size=batch_size)
    sampler.burn_in()
    peer = PerBatch(propose, D, batch_size)
    ours, theirs = sampler.sample(4000), peer.sample(4000)
    error = (ours.var(0) + theirs.var(0)).div(4000).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 6 * error + 0.02 * ours.std(0)).all()
    what = f"{n} samples, {name}, batches of {batch_size}"
    if name == "none":
        what = f"{n} samples, networks of one layer, batches of {batch_size}"
    rows = [
        {"what": what, "beside": "a class in NumPy, batch by batch"}
        | interleaved(partial(sampler.sample, n), partial(peer.sample, n), repeats=REPEATS)
    ]
    few = min(n, 300)
    single = partial(by_loop, propose, D, few, float(sampler.log_m), float(sampler.gamma))
    what = what.replace(f"{n} samples", f"{few} samples")
    found = interleaved(
        partial(sampler.sample, few), single, repeats=max(5, REPEATS // 4), warmup=1
    )
    return [*rows, {"what": what, "beside": "a loop over samples"} | found]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, batch_size, n in (
        ("none", 256, 2000),
        ("none", 1024, 10_000),
        ("plane", 256, 2000),
        ("plane", 1024, 10_000),
        ("digits", 256, 2000),
        ("digits", 1024, 10_000),
    ):
        rows += case(name, batch_size, n)
    print(save("drs", "plain loops, after public code", rows))


if __name__ == "__main__":
    main()
