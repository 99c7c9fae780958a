"""SwAV's codes beside the structure of the official code, and beside the plain loop.

The official code (facebookresearch/swav, rewritten here in its structure) exponentiates without a
shift and scales the whole matrix in each half-step; all three are compared before they are timed.
Scores are cosines of unit vectors in 128 dimensions, epsilon 0.05, three rounds.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/swav.py
"""

import torch
import torch.nn.functional as F
from compare import interleaved, save

from ponderlearn.contrastive.swav import sinkhorn_codes


def official(scores: torch.Tensor, epsilon: float = 0.05, n_iter: int = 3) -> torch.Tensor:
    "In the structure of the official code: K x B, exponentials without a shift, scaled in place."
    table = (scores / epsilon).exp().T
    n_prototypes, n_images = table.shape
    table.div_(table.sum())
    for _ in range(n_iter):
        table.div_(table.sum(1, keepdim=True)).div_(n_prototypes)
        table.div_(table.sum(0, keepdim=True)).div_(n_images)
    return table.mul_(n_images).T


def plain(scores: torch.Tensor, epsilon: float = 0.05, n_iter: int = 3) -> torch.Tensor:
    L = scores / epsilon
    for _ in range(n_iter):
        L = L - L.logsumexp(0, keepdim=True)
        L = L - L.logsumexp(1, keepdim=True)
    return L.exp()


PEERS = {"official form": official, "plain loop": plain}


@torch.no_grad()
def measure(B: int, K: int, repeats: int) -> list[dict]:
    "Rows of one size, after a look whether all agree."
    torch.manual_seed(0)
    scores = F.normalize(torch.randn(B, 128), dim=1) @ F.normalize(torch.randn(128, K), dim=0)
    wanted = plain(scores.double())
    rows = []
    for name, peer in PEERS.items():
        for codes in (sinkhorn_codes, peer):
            assert torch.allclose(codes(scores).double(), wanted, atol=1e-5), (name, B, K)
        found = interleaved(
            lambda: sinkhorn_codes(scores), lambda p=peer: p(scores), repeats=repeats
        )
        rows.append({"what": f"codes, B = {B}, K = {K}", "beside": name, **found})
    return rows


def main() -> None:
    torch.set_num_threads(1)
    sizes = (64, 300, 301), (256, 1000, 201), (256, 3000, 201), (4096, 3000, 21)
    rows = [row for size in sizes for row in measure(*size)]
    print(save("swav", "the official structure, and the plain loop", rows))


if __name__ == "__main__":
    main()
