"""Modulated convolution: scaled activations beside kernels of each sample's own.

The other side is the form of the official StyleGAN2 code: make a kernel for each sample, demodulate
it, and run one grouped convolution over all samples. Forward and backward, gradients to
activations, kernel and style; values and gradients are compared first. No package with it installs
without a compiler, so its few lines stand here.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/gan.py
"""

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import Tensor

from ponderlearn.generative.gan import modulated_conv2d


def grouped(x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    "A kernel for each sample, then one convolution with a group for each sample."
    b, c, h, w = x.shape
    o, _, k, _ = weight.shape
    kernels = weight * style[:, None, :, None, None]
    kernels = kernels * (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x, kernels = x.reshape(1, b * c, h, w), kernels.reshape(b * o, c, k, k)
    return F.conv2d(x, kernels, padding=k // 2, groups=b).reshape(b, o, h, w)


def update(f, xs) -> Tensor:
    for x in xs:
        x.grad = None
    out = f(*xs)
    out.square().mean().backward()
    return out.detach()


def measure(batch_size: int, channels: int, size: int, repeats: int) -> dict:
    g = torch.Generator().manual_seed(0)
    shapes = (batch_size, channels, size, size), (channels, channels, 3, 3), (batch_size, channels)
    xs = [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]
    values, grads = [], []
    for f in (modulated_conv2d, grouped):
        values.append(update(f, xs))
        grads.append([x.grad for x in xs])
    assert torch.allclose(*values, atol=1e-5)
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()
    row = interleaved(
        lambda: update(modulated_conv2d, xs), lambda: update(grouped, xs), repeats=repeats, warmup=2
    )
    what = f"{channels} channels, {size} x {size}, B = {batch_size}"
    return {"what": what, "beside": "grouped convolution", **row}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    sizes = ((32, 64, 4, 51), (32, 64, 8, 51), (32, 48, 16, 31), (8, 64, 32, 31))
    for batch_size, channels, size, repeats in sizes:
        rows.append(measure(batch_size, channels, size, repeats))
        print(rows[-1], flush=True)
    save("gan", f"grouped convolution of torch {torch.__version__}", rows)


if __name__ == "__main__":
    main()
