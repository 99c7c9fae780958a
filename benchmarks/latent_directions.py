"""Steps of training beside the official structure, and E[J'J] beside the batch's full Jacobian.

The official structure fills one-hot shifts in a loop over the batch, makes both images with a
graph, and lets gradients reach the generator's weights. It needs functions that PyTorch no longer
has, so its structure was written anew: same networks, same draws, same losses, which have to agree
before the clock starts. The full Jacobian is that of all latents at once, by `torch.func`, in
reverse and in forward mode.

Run with `make bench`, or:
.venv-bench/bin/python benchmarks/latent_directions.py [timed runs of each, 21]
"""

import copy
import sys
from functools import partial

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn

from ponderlearn.explain.latent_directions import (
    DirectionMatrix,
    Reconstructor,
    discover_directions,
    jacobian_directions,
)
from ponderlearn.generative.gan import MappingNetwork, StyleGenerator

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 21
STEPS, D, K = 4, 32, 8


def official(image_generator, directions, reconstructor, batch_size: int, seed: int) -> list:
    "Losses of some steps."
    g = torch.Generator().manual_seed(seed)
    optimizers = [
        torch.optim.Adam(part.parameters(), lr=1e-4) for part in (directions, reconstructor)
    ]
    losses = []
    for _ in range(STEPS):
        for part in (image_generator, directions, reconstructor):
            part.zero_grad()
        z = torch.randn(batch_size, D, generator=g)
        index = torch.randint(K, (batch_size,), generator=g)
        epsilon = 6.0 * (2 * torch.rand(batch_size, generator=g) - 1)
        epsilon[(epsilon < 0.5) & (epsilon > 0)] = 0.5
        epsilon[(epsilon > -0.5) & (epsilon < 0)] = -0.5
        one_hot = torch.zeros(batch_size, K)
        for i, (k, value) in enumerate(zip(index, epsilon, strict=True)):
            one_hot[i][k] += value
        shift = one_hot @ directions.matrix().T
        images, shifted = image_generator(z), image_generator(z + shift)
        logits, guess = reconstructor(images, shifted)
        loss = F.cross_entropy(logits, index) + 0.25 * (guess - epsilon).abs().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def steps(channels: tuple, batch_size: int) -> dict:
    "Some steps of both."
    size = 4 * 2 ** (len(channels) - 1)
    net = nn.Sequential(MappingNetwork(D, 64), StyleGenerator(64, channels))
    parts = net, DirectionMatrix(D, K), Reconstructor(3, size, K)
    theirs, mine = copy.deepcopy(parts), copy.deepcopy(parts)

    def ours(seed=0):
        g = torch.Generator().manual_seed(seed)
        return discover_directions(*mine, steps=STEPS, batch_size=batch_size, generator=g)

    wanted = official(*theirs, batch_size, 0)
    assert torch.allclose(ours().history["loss"], torch.tensor(wanted), rtol=1e-3)
    found = interleaved(ours, partial(official, *theirs, batch_size, 0), repeats=REPEATS, warmup=1)
    return {"what": f"{STEPS} steps, {size} x {size}, batch {batch_size}"} | found


def spectral(mode, name: str, n: int) -> dict:
    "The mean of J'J over n latents."
    net = nn.Sequential(MappingNetwork(D, 64), StyleGenerator(64))
    z = torch.randn(n, D)

    def full():
        J = torch.func.vmap(mode(lambda row: net(row[None])[0].flatten()))(z)  # (n, pixels, d)
        return torch.linalg.eigvalsh(torch.einsum("npi,npj->ij", J, J) / n).flip(0)

    def ours():
        return jacobian_directions(net, z).eigenvalues

    assert torch.allclose(ours(), full(), rtol=1e-3, atol=1e-3)
    found = interleaved(ours, full, repeats=max(5, REPEATS // 4), warmup=1)
    return {"what": f"E[J'J], 16 x 16, {n} latents", "beside": f"all J at once, {name}"} | found


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = ((64, 48, 24), 32), ((64, 48, 24), 64), ((64, 64, 48, 24), 32)
    rows = [{**steps(*size), "beside": "official structure"} for size in sizes]
    rows += [spectral(torch.func.jacrev, "reverse mode", 16)]
    rows += [spectral(torch.func.jacfwd, "forward mode", 64)]
    print(save("latent_directions", "official structure and torch.func", rows))


if __name__ == "__main__":
    main()
