"""Generator, attribute pass and loss beside the official structure, forward and backward.

The official program (CUDA, seven networks to be collected by hand) does not run here, so its
structure was written anew: modulated convolutions as grouped ones with a kernel for each picture,
a network for each attribute, and a loss whose masks are filled in loops. Both sides have to agree
before the clock starts; where one network stands against four, the four are copies of it.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/gan_control.py [timed runs of each, 31]
"""

import copy
import sys

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn

from ponderlearn.explain.gan_control import LatentGroups, attribute_loss, paired_latents
from ponderlearn.generative import gan

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 31
COLUMNS = {"hue": [0, 1], "size": [2], "position": [3, 4], "gray": [5]}
TERMS = {name: dict(tau_pos=0.15, tau_neg=0.5, weight=0.5) for name in COLUMNS}


def grouped(x, weight, style, *, demodulate=True, eps=1e-8):
    "A kernel for each picture, in one convolution with as many groups."
    B, C, H, W = x.shape
    kernels = weight * style[:, None, :, None, None]  # (B, O, C, k, k)
    if demodulate:
        kernels = kernels * (kernels.square().sum((2, 3, 4), keepdim=True) + eps).rsqrt()
    out = F.conv2d(
        x.reshape(1, B * C, H, W), kernels.flatten(0, 1), padding=weight.shape[2] // 2, groups=B
    )
    return out.reshape(B, -1, H, W)


def pictures(channels: tuple, batch_size: int) -> dict:
    "The whole generator."
    net = gan.StyleGenerator(80, channels)
    w, kept = torch.randn(batch_size, 80), gan.modulated_conv2d

    def ours():
        image = net(w)
        image.square().sum().backward()
        return image.detach()

    def theirs():
        gan.modulated_conv2d = grouped
        try:
            return ours()
        finally:
            gan.modulated_conv2d = kept

    assert torch.allclose(ours(), theirs(), atol=1e-3)
    found = interleaved(ours, theirs, repeats=REPEATS, warmup=2)
    size = net.image_size
    return {
        "what": f"generator {channels}, {size} x {size}, B = {batch_size}",
        "beside": "grouped convolution for each picture",
    } | found


def backbone(outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU()]
    layers += [nn.Conv2d(48, 96, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(384, 96), nn.ReLU(), nn.Linear(96, outputs))


def official_mask(n: int, start: int, pairs: int):
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(start, start + 2 * pairs, 2):
        mask[i + 1, i] = 1
    return mask


def official_loss(features: dict, pairs: int):
    "Masks filled pair by pair, entries taken out by them."
    total, n = 0.0, len(features["hue"])
    valid = torch.ones(n, n).tril(-1).bool()
    for k, (name, f) in enumerate(features.items()):
        same = official_mask(n, 2 * pairs * k, pairs)
        D = (f[:, None] - f[None]).abs().mean(2)
        alike = torch.clamp(D[same] - TERMS[name]["tau_pos"], min=0).mean()
        different = torch.clamp(TERMS[name]["tau_neg"] - D[~same & valid], min=0).mean()
        total = total + TERMS[name]["weight"] * (alike + different)
    return total


def attributes(pairs: int) -> dict:
    "What all attributes add to a step: networks and loss, gradients to the pictures."
    groups = LatentGroups(dict.fromkeys((*COLUMNS, "other"), 8))
    net = backbone(6).requires_grad_(False)
    four = {name: copy.deepcopy(net) for name in COLUMNS}
    same = paired_latents(groups, pairs).same
    x = torch.rand(10 * pairs, 3, 16, 16).requires_grad_()

    def ours():
        y = net(x)
        loss = attribute_loss({name: y[:, at] for name, at in COLUMNS.items()}, same, TERMS).total
        return torch.cat([loss[None], torch.autograd.grad(loss, x)[0].flatten()])

    def theirs():
        features = {name: four[name](x)[:, at] for name, at in COLUMNS.items()}
        loss = official_loss(features, pairs)
        return torch.cat([loss[None], torch.autograd.grad(loss, x)[0].flatten()])

    assert torch.allclose(ours(), theirs(), atol=1e-5)
    found = interleaved(ours, theirs, repeats=REPEATS, warmup=2)
    return {
        "what": f"four attributes and their loss, 16 x 16, B = {10 * pairs}",
        "beside": "a network for each",
    } | found


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = ((48, 32, 16), 20), ((64, 48, 24), 20), ((64, 64, 48, 24), 20), ((64, 64), 20)
    rows = [pictures(*size) for size in sizes]
    rows += [attributes(pairs) for pairs in (2, 6)]
    print(save("gan_control", "the official structure", rows))


if __name__ == "__main__":
    main()
