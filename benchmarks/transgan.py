"""A generator step beside the structure of the released code, with the same weights.

A step is images from noise, the critic's score of them, gradients, clipping and Adam. Ours: fused
attention, torch's GELU, masks as bool buffers, gradients of the generator's weights alone, fused
Adam. The other side has the released structure, written anew: attention that stores its table of
weights and goes through dropout layers of rate 0, GELU by its formula, a mask of floats that is
compared with 0 at each call and filled with -1e9; and the released step, which takes gradients of
the critic's weights too, and Adam with its defaults. Before the clock starts both have to make the
same images and scores.

The last rows have our own step without a mask as the other side: a ratio near 1 says that a mask
costs nothing.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/transgan.py [timed runs of each, 15]
"""

import copy
import math
import sys
from functools import partial

import torch
from compare import interleaved, save
from torch import nn

from ponderlearn.generative.transgan import (
    TransformerBlock,
    TransGANDiscriminator,
    TransGANGenerator,
)

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 15


class ReleasedBlock(nn.Module):
    "A block with the released structure and the weights of one of ours."

    def __init__(self, block: TransformerBlock):
        super().__init__()
        self.norm1, self.norm2, self.qkv = block.norm1, block.norm2, block.qkv
        self.proj, self.fc1, self.fc2 = block.join, block.mlp[0], block.mlp[2]
        self.num_heads = block.num_heads
        self.drop = nn.Dropout(0.0)

    def attend(self, x, mask):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = (q @ k.transpose(-2, -1)) * (C // self.num_heads) ** -0.5
        if mask is not None:
            attn = attn.masked_fill(mask == 0, -1e9)
        attn = self.drop(attn.softmax(dim=-1))
        return self.drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, C)))

    def forward(self, x, mask=None):
        x = x + self.attend(self.norm1(x), mask)
        h = self.fc1(self.norm2(x))
        h = self.drop(h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0))))
        return x + self.drop(self.fc2(h))


def released(net: nn.Module) -> nn.Module:
    "A copy with the released blocks, and masks of floats."
    net = copy.deepcopy(net)
    for name, mask in net.named_buffers():
        setattr(net, name, mask.float())
    for blocks in net.stages if isinstance(net, TransGANGenerator) else [net.blocks]:
        for i, block in enumerate(blocks):
            blocks[i] = ReleasedBlock(block)
    return net


def step(G, D, optimizer, z, radius):
    "One update of the generator, as in the chapter."
    optimizer.zero_grad()
    (-D(G(z, radius)).mean()).backward(inputs=list(G.parameters()))
    nn.utils.clip_grad_norm_(G.parameters(), 5.0)
    optimizer.step()


def released_step(G, D, optimizer, z, radius):
    "One update of the generator, as released."
    optimizer.zero_grad()
    (-D(G(z, radius)).mean()).backward()
    nn.utils.clip_grad_norm_(G.parameters(), 5.0)
    optimizer.step()


def case(what: str, batch_size: int, radius: int | None, patch_size: int, **sizes) -> list[dict]:
    torch.manual_seed(0)
    G = TransGANGenerator(64, radii=(2,), **sizes)
    heads = dict(num_heads=sizes["num_heads"], num_layers=2, in_channels=sizes["out_channels"])
    D = TransGANDiscriminator(G.image_size, patch_size, embed_dim=sizes["embed_dim"], **heads)
    adam = partial(torch.optim.Adam, lr=1e-4, betas=(0.0, 0.99))
    nets = [(G, D), (released(G), released(D)), (copy.deepcopy(G), copy.deepcopy(D))]
    z = torch.randn(batch_size, 64)
    with torch.no_grad():
        mine, theirs = (g(z, radius) for g, _ in nets[:2])
        assert torch.allclose(mine, theirs, atol=1e-4)
        assert torch.allclose(nets[0][1](mine), nets[1][1](mine), atol=1e-4)
    kinds = (step, True), (released_step, False), (step, True)
    steps = [
        partial(one, g, d, adam(g.parameters(), fused=fused), z, radius)
        for (g, d), (one, fused) in zip(nets, kinds, strict=True)
    ]
    how = dict(repeats=REPEATS, warmup=2)
    masked = "" if radius is None else ", masked"
    rows = [
        {"what": f"{what}, batch {batch_size}{masked}", "beside": "released structure"}
        | interleaved(steps[0], steps[1], **how)
    ]
    if radius is not None:
        free = partial(step, *steps[2].args[:-1], None)
        rows.append(
            {"what": f"{what}, batch {batch_size}, masked", "beside": "ours without a mask"}
            | interleaved(steps[0], free, **how)
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    digits = dict(bottom=2, embed_dim=96, num_layers=(1, 1, 1), num_heads=2, out_channels=1)
    color = dict(bottom=8, embed_dim=96, num_layers=(2, 1, 1), num_heads=2, out_channels=3)
    wide = dict(bottom=8, embed_dim=192, num_layers=(3, 2, 2), num_heads=4, out_channels=3)
    rows = []
    for what, batch_size, patch_size, sizes in (
        ("8 x 8, width 96", 32, 2, digits),
        ("32 x 32, width 96", 8, 4, color),
        ("32 x 32, width 192", 4, 4, wide),
    ):
        for radius in (None, 2):
            rows += case(what, batch_size, radius, patch_size, **sizes)
    print(save("transgan", "the released structure, rewritten", rows))


if __name__ == "__main__":
    main()
