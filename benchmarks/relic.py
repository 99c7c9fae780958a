"""The loss of ReLIC beside plain code, and the weight 0 beside InfoNCE.

The one public package with this loss (`relic-pytorch`) also holds networks and training loops; its
loss is rewritten here as it stands there: one call, that is the cross-entropy of the rows and one
direction of the KL, softmax and log-softmax one after the other. Ours has both directions of both;
the mean of two calls in both orders of the views has the same gradient, and that is compared first.
"Plain" is the same formula as ours with log-softmaxes, left to autograd. Forward and backward on
one thread: of the Jeffreys term alone on given scores, and of the whole loss on features of 128
numbers.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/relic.py
"""

import torch
import torch.nn.functional as F
from compare import both_ways, interleaved, save

from ponderlearn.contrastive.infonce import info_nce_loss
from ponderlearn.contrastive.relic import _Tiles, relic_loss

TAU, WEIGHT = 0.2, 3.0


def plain_jeffreys(A):
    log_p, log_q = A.log_softmax(1), A.T.log_softmax(1)
    there = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    back = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    return (there + back) / 2


def tiled_jeffreys(A):
    return _Tiles.apply(A, 256)[1]


def plain_loss(z1, z2):
    A = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / TAU
    y = torch.arange(len(A))
    found = (F.cross_entropy(A, y) + F.cross_entropy(A.T, y)) / 2
    return found + WEIGHT * plain_jeffreys(A)


def package_loss(z1, z2):
    "As in relic-pytorch, without its learned temperature: rows alone, and KL(q|p)."
    A = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / TAU
    found = F.cross_entropy(A, torch.arange(len(A)))
    apart = F.kl_div(A.log_softmax(1), A.softmax(0).T, reduction="batchmean")
    return found + WEIGHT * apart


def both_orders(z1, z2):
    "What the package's loss is a half of."
    return (package_loss(z1, z2) + package_loss(z2, z1)) / 2


def ours(z1, z2):
    return relic_loss(z1, z2, divergence_weight=WEIGHT, temperature=TAU, chunk_size=256)


def no_weight(z1, z2):
    return relic_loss(z1, z2, divergence_weight=0.0, temperature=TAU)


def info_nce(z1, z2):
    return info_nce_loss(z1, z2, temperature=TAU, symmetric=True)


def compared(what, mine, peers, xs, repeats) -> list[dict]:
    "Rows of one function of ours beside others; (peer, what has our gradient) a name."
    rows = []
    for name, (peer, same) in peers.items():
        a, b = both_ways(mine, *xs), both_ways(peer, *xs)
        assert torch.allclose(a().clone(), both_ways(same, *xs)(), rtol=1e-4, atol=1e-7), name
        rows.append({"what": what, "beside": name, **interleaved(a, b, repeats=repeats)})
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n, repeats in ((256, 101), (1024, 41), (2048, 21)):
        z = [torch.randn(n, 128, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
        A = (2 * torch.randn(n, n, generator=torch.Generator().manual_seed(2))).requires_grad_()
        z = [x.requires_grad_() for x in z]
        plain = {"plain log-softmax code": (plain_jeffreys, plain_jeffreys)}
        rows += compared(f"Jeffreys term, B = {n}", tiled_jeffreys, plain, [A], repeats)
        peers = {"plain log-softmax code": (plain_loss, plain_loss)}
        peers |= {"relic-pytorch, one call": (package_loss, both_orders)}
        rows += compared(f"whole loss, B = {n}", ours, peers, z, repeats)
        zero = {"InfoNCE": (info_nce, info_nce)}
        rows += compared(f"weight 0, B = {n}", no_weight, zero, z, repeats)
    print(save("relic", "relic-pytorch, rewritten, and plain code", rows))


if __name__ == "__main__":
    main()
