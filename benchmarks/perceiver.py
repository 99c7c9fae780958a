"""Perceiver: the absorbed cross-attention beside the plain form and beside perceiver-pytorch.

One input of M elements with C = 261 numbers, N = 128 latents of D = 256, one head as wide as the
input. All three give the same latents (checked) and have the same MLP behind them. Then the same
with the backward pass, and the network: one pass over a long input beside four over a quarter of
it, which says whether time is linear in M.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/perceiver.py
"""

import importlib.metadata
from collections.abc import Callable

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import Tensor, nn

from ponderlearn.architectures.perceiver import CrossAttention, Perceiver

C, N, D = 261, 128, 256


def plain(layer: CrossAttention, z: Tensor, x: Tensor) -> Tensor:
    "The cross-attend as its formula says, keys and values of the input's size."
    c = F.layer_norm(x, x.shape[2:]) * layer.gain + layer.shift
    q, k, v = layer.query(layer.norm(z)), layer.key(c), layer.value(c)
    weights = (q @ k.transpose(1, 2) / layer.qkv_dim**0.5).softmax(-1)
    z = z + layer.out(weights @ v)
    return z + layer.mlp(z)


def peer_of(layer: CrossAttention) -> Callable:
    "perceiver-pytorch's attention with the weights of our layer, and our MLP behind it."
    from perceiver_pytorch.perceiver_pytorch import Attention, PreNorm

    theirs = PreNorm(D, Attention(D, C, heads=1, dim_head=C), context_dim=C)
    with torch.no_grad():
        theirs.fn.to_q.weight.copy_(layer.query.weight)
        theirs.fn.to_kv.weight.copy_(torch.cat([layer.key.weight, layer.value.weight]))
        theirs.fn.to_out.load_state_dict(layer.out.state_dict())

    def run(z: Tensor, x: Tensor) -> Tensor:
        z = z + theirs(z, context=x)
        return z + layer.mlp(z)

    return run


def attention(M: int, repeats: int, backward: bool = False) -> list[dict]:
    "Rows for one size of the input."
    torch.manual_seed(0)
    layer = CrossAttention(D, C)  # no shifts at the start, which the peer does not have
    z, x = torch.randn(1, N, D), torch.randn(1, M, C)
    sides = {"the plain form": lambda z, x: plain(layer, z, x), "perceiver-pytorch": peer_of(layer)}

    def timed(f: Callable) -> Callable:
        def run() -> None:
            with torch.set_grad_enabled(backward):
                out = f(z, x)
            if backward:
                out.sum().backward()

        return run

    rows = []
    for beside, theirs in sides.items():
        assert torch.allclose(layer(z, x), theirs(z, x), atol=1e-4)
        what = f"cross-attend, M = {M}" + (", forward and backward" if backward else "")
        row = interleaved(timed(layer), timed(theirs), repeats=repeats)
        rows.append({"what": what, "beside": beside, **row})
    return rows


@torch.no_grad()
def linear(M: int, repeats: int) -> dict:
    "One pass over M elements beside four passes over M / 4."
    torch.manual_seed(0)
    sizes = {"n_latents": N, "embed_dim": D, "n_iterations": 4, "num_layers": 2}
    net = Perceiver(C, 10, **sizes).eval()
    x = torch.randn(1, M, C)
    parts = x.split(M // 4, 1)
    return {
        "what": f"network of 4 looks, one pass over M = {M}",
        "beside": f"four passes over {M // 4}",
        **interleaved(lambda: net(x), lambda: [net(part) for part in parts], repeats=repeats),
    }


@torch.no_grad()
def network(M: int, repeats: int) -> dict:
    "Four looks with shared weights beside the same with keys and values made in each look."
    torch.manual_seed(0)
    sizes = {"n_latents": N, "embed_dim": D, "n_iterations": 4, "num_layers": 2}
    net: nn.Module = Perceiver(C, 10, **sizes).eval()
    x = torch.randn(1, M, C)

    def looped() -> Tensor:
        z = net.latents[None]
        for cross, transformer in net.rounds():
            z = transformer(plain(cross, z, x))
        return net.classifier(z.mean(1))

    assert torch.allclose(net(x), looped(), atol=1e-4)
    return {
        "what": f"network of 4 looks, M = {M}",
        "beside": "the plain form",
        **interleaved(lambda: net(x), looped, repeats=repeats),
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for M in (1024, 4096, 12544) for row in attention(M, 41)]
    rows += attention(12544, 21, backward=True)
    rows += [network(12544, 21), linear(16384, 21)]
    version = importlib.metadata.version("perceiver-pytorch")
    print(save("perceiver", f"perceiver-pytorch {version}", rows))


if __name__ == "__main__":
    main()
