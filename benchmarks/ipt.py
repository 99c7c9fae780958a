"""Tiles in batches beside crop after crop; the contrastive term beside the table of all pairs.

No package has either. Crop after crop: the official structure, rewritten: each tile is cut, passed
through the model and added by itself, with the same weights of blending. The full table: all
cosines of the batch, the positives picked from it, as in the published training code, in the
paper's formula. Both agree before they are timed. Memory is what torch's profiler says that one
update of the loss holds at most.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/ipt.py
"""

import sys
from functools import partial

import torch
import torch.nn.functional as F
from compare import interleaved, peak_megabytes, save

from ponderlearn.architectures.ipt import IPT, patch_contrastive_loss, tiled_forward
from ponderlearn.architectures.ipt import _tile_axis as tile_axis


def crop_after_crop(model, x: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
    "One tile after the other through the model."
    out = torch.zeros_like(x)
    rows, columns = (tile_axis(n, tile, overlap, "linear", x.device) for n in x.shape[-2:])
    for top, wy in zip(*rows, strict=True):
        for left, wx in zip(*columns, strict=True):
            place = ..., slice(top, top + tile), slice(left, left + tile)
            out[place] += model(x[place]) * wy[:, None] * wx
    return out


def tiles(channels: int, tile: int, size: int, repeats: int) -> dict:
    torch.manual_seed(0)
    how = {"channels": channels, "patch_size": 3, "image_size": tile, "num_layers": 2}
    model = partial(IPT({"denoise": 1}, **how).eval(), task="denoise")
    x, overlap = torch.rand(1, 3, size, size), tile // 4

    def ours():
        return tiled_forward(model, x, tile=tile, overlap=overlap, batch_size=16)

    def theirs():
        return crop_after_crop(model, x, tile, overlap)

    with torch.no_grad():
        assert torch.allclose(ours(), theirs(), atol=1e-4)
        found = interleaved(ours, theirs, repeats=repeats, warmup=1)
    what = f"tiles of {tile} on {size} x {size}, C = {channels}"
    return {"what": what, "beside": "crop after crop", **found}


def full_table(tokens: torch.Tensor) -> torch.Tensor:
    "The paper's formula from the table of all pairs (B N, B N)."
    B, N, _ = tokens.shape
    z = F.normalize(tokens, dim=-1).flatten(0, 1)
    scores = (z @ z.t()).view(B, N, B, N)
    own = torch.eye(B, dtype=torch.bool)[:, None, :, None]
    positive = scores.diagonal(dim1=0, dim2=2)  # (N, N, B)
    return scores.masked_fill(own, -torch.inf).logsumexp(2).mean() - positive.mean()


def losses(B: int, N: int, D: int, chunk_size: int, repeats: int) -> dict:
    torch.manual_seed(0)
    tokens = torch.randn(B, N, D).requires_grad_()

    def update(f):
        loss = f(tokens)
        return loss, torch.autograd.grad(loss, tokens)[0]

    mine = partial(patch_contrastive_loss, chunk_size=chunk_size)
    for x, y in zip(update(mine), update(full_table), strict=True):
        assert torch.allclose(x, y, atol=1e-5), (B, N)
    both = (lambda: update(mine)), (lambda: update(full_table))
    found = interleaved(*both, repeats=repeats, warmup=0)  # both ran above
    memory = [round(peak_megabytes(lambda f=f: update(f))) for f in (mine, full_table)]
    what = f"contrastive term and gradient, B = {B}, N = {N}, chunks of {chunk_size}"
    what += f" ({memory[0]} MB against {memory[1]} MB)"
    return {"what": what, "beside": "table of all pairs", **found}


def main() -> None:
    torch.set_num_threads(1)
    few = "--quick" in sys.argv
    rows = [tiles(8, 24, 96, 5 if few else 31), tiles(16, 48, 192, 3 if few else 11)]
    rows += [losses(32, 36, 32, 128, 5 if few else 51), losses(128, 128, 32, 64, 1 if few else 5)]
    print(save("ipt", "crop after crop, and the table of all pairs", rows))


if __name__ == "__main__":
    main()
