"""The uniformity loss beside the official one, and the direct loss beside the contrastive one.

The official functions (SsnL/align_uniform, on no package index) are written here as they stand
there: all distances by `pdist`, squared. Forward and backward of each; the tangential parts of the
gradients are compared first, for the official form follows the norm as well. Ours also stands
beside the same formula left to autograd, and the direct loss of two views beside NT-Xent on the
same features.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/alignment_uniformity.py
"""

import math

import torch
import torch.nn.functional as F
from compare import both_ways, interleaved, save

from ponderlearn.contrastive.alignment_uniformity import AlignUniformLoss, uniform_loss
from ponderlearn.contrastive.infonce import nt_xent_loss


def official_uniform(x, t=2.0):
    return torch.pdist(x, p=2).pow(2).mul(-t).exp().mean().log()


def official_align(x, y, alpha=2):
    return (x - y).norm(p=2, dim=1).pow(alpha).mean()


def official_direct(x, y):
    return official_align(x, y) + (official_uniform(x) + official_uniform(y)) / 2


def plain_uniform(x, t=2.0):
    "One table of inner products, the rest by autograd."
    s = (2 * t * (x @ x.T)).fill_diagonal_(-math.inf)
    return s.flatten().logsumexp(0) - math.log(len(x) * (len(x) - 1)) - 2 * t


def unit(n: int, seed: int) -> torch.Tensor:
    x = torch.randn(n, 128, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x, dim=1)


def along(x, g):
    return g - (g * x).sum(1, keepdim=True) * x


def uniform_rows(n: int, repeats: int) -> list[dict]:
    x = unit(n, 0).requires_grad_()
    ours, rows = both_ways(uniform_loss, x), []
    peers = {"official (pdist)": official_uniform, "same table, autograd": plain_uniform}
    for name, peer in peers.items():
        theirs = both_ways(peer, x)
        a, b = (along(x.detach(), f().clone()) for f in (ours, theirs))
        assert torch.allclose(a, b, atol=1e-7), name
        row = interleaved(ours, theirs, repeats=repeats)
        rows.append({"what": f"uniform_loss, batch {n}", "beside": name, **row})
    return rows


def direct_rows(n: int, repeats: int) -> list[dict]:
    x, y = (unit(n, seed).requires_grad_() for seed in (0, 1))
    ours = both_ways(AlignUniformLoss(), x, y)
    peers = {"official": official_direct, "NT-Xent": nt_xent_loss}
    return [
        {
            "what": f"direct loss, {n} pairs",
            "beside": name,
            **interleaved(ours, both_ways(peer, x, y), repeats=repeats),
        }
        for name, peer in peers.items()
    ]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n, repeats in ((256, 101), (768, 51), (2048, 51)):
        rows += uniform_rows(n, repeats)
    for n, repeats in ((256, 51), (1024, 51)):
        rows += direct_rows(n, repeats)
    print(save("alignment_uniformity", "SsnL/align_uniform, rewritten", rows))


if __name__ == "__main__":
    main()
