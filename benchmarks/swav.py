"""SwAV beside the plain loop.

Run with `make bench`, or: python benchmarks/swav.py
"""

import torch
from compare import interleaved, save

from ponderlearn.contrastive.swav import soft_weights


def plain(scores):
    return torch.stack([torch.exp(row) / torch.exp(row).sum() for row in scores])


def measure(rows: int) -> dict:
    "Time both on this many rows, after a look whether they agree."
    scores = torch.randn(rows, 10)
    assert torch.allclose(soft_weights(scores), plain(scores), atol=1e-6)
    found = interleaved(lambda: soft_weights(scores), lambda: plain(scores))
    return {"what": f"{rows} rows", **found}


def main() -> None:
    torch.set_num_threads(1)
    print(save("swav", "plain loop", [measure(rows) for rows in (16, 256)]))


if __name__ == "__main__":
    main()
