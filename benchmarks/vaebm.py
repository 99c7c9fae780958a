"""The negative phase of VAEBM beside a loop of the official structure, at equal networks.

A negative phase: draw starts from the replay buffer, ten Langevin steps, push the last states. The
peer is written here after the structure of the official code: a buffer that is a list of tensors,
one tensor a group of noise, log-densities of z and x in the potential, `.backward()` of the batch
mean times the batch size, so that the weights of energy and decoder collect gradients too, noise
drawn group by group. (The stray log sigma of its densities is left out, so that both have the same
target.) One step of both is compared in float64 with the same noise before the clock starts. Beside
times, the memory of a chain of 5 and of 40 steps.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/vaebm.py [timed runs of each, 31]
"""

import copy
import math
import random
import sys
from functools import partial
from itertools import pairwise

import torch
from compare import interleaved, peak_megabytes, save
from torch import nn

from ponderlearn.generative.vaebm import VAEBM, ReplayBuffer, langevin

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 31
STEP_SIZE, N_STEPS = 0.01, 10


def network(*sizes: int) -> nn.Sequential:
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def energy(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*network(*sizes, 1), nn.Flatten(0))


class World(nn.Module):
    "Decoder and energy, and how many rows of noise a chain has."

    def __init__(self, name, decoder, energy, sizes, rows):
        super().__init__()
        self.name, self.decoder, self.energy = name, decoder, energy
        self.log_sigma = nn.Parameter(torch.tensor(-1.0))
        self.sizes, self.rows = sizes, rows

    def decode(self, z):
        return self.decoder(z), self.log_sigma

    def official_potential(self, eps_z, eps_x):
        mu, log_sigma = self.decode(eps_z)
        x = mu + log_sigma.exp() * eps_x
        constant = math.log(2 * math.pi) / 2
        log_pz = (-eps_z.square() / 2 - constant).sum(1)
        normed = (x - mu) / log_sigma.exp()
        log_px = (-normed.square() / 2 - constant).sum(1)
        return self.energy(x) - log_pz - log_px

    def start(self, dtype=torch.float32):
        g = torch.Generator().manual_seed(0)
        return tuple(torch.randn(self.rows, d, generator=g, dtype=dtype) for d in self.sizes)


def digits(width: int) -> World:
    nets = network(8, width, width, 64), energy(64, width, width)
    return World(f"digits, 64 rows, networks of {width}", *nets, (8, 64), 64)


def worlds() -> list[World]:
    conv = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)
    big = [nn.Unflatten(1, (1, 28, 28)), conv(1, 16), nn.SiLU(), conv(16, 32), nn.SiLU()]
    big += [nn.Flatten(), nn.Linear(32 * 49, 1), nn.Flatten(0)]
    return [
        World(
            "plane, 256 rows, networks of 64",
            network(2, 64, 64, 2),
            energy(2, 64, 64),
            (2, 2),
            256,
        ),
        *map(digits, (128, 512)),
        World(
            "28 x 28, 32 rows, convolutions",
            network(16, 256, 256, 784),
            nn.Sequential(*big),
            (16, 784),
            32,
        ),
    ]


class OfficialBuffer:
    "A list of single tensors, as in the code this comes from."

    def __init__(self):
        self.samples = []

    def push(self, eps):
        self.samples += list(eps.detach().cpu())
        self.samples = self.samples[-10_000:]

    def draw(self, n, d, p):
        if not self.samples:
            return torch.randn(n, d)
        replayed = sum(random.random() < p for _ in range(n))
        old = random.choices(self.samples, k=replayed)
        return torch.stack([*old, *torch.randn(n - replayed, d)])


def official(world: World, buffer: OfficialBuffer) -> torch.Tensor:
    "The negative phase with gradients of everything."
    state = buffer.draw(world.rows, world.sizes[0], 0.6), torch.randn(world.rows, world.sizes[1])
    state = tuple(e.requires_grad_() for e in state)
    for _ in range(N_STEPS):
        noise = [torch.randn_like(e) for e in state]
        u = world.official_potential(*state).mean()
        u.backward()
        for e, omega in zip(state, noise, strict=True):
            e.data.add_(e.grad.data * len(e), alpha=-STEP_SIZE / 2)
            e.data.add_(omega, alpha=math.sqrt(STEP_SIZE))
            e.grad.detach_()
            e.grad.zero_()
    world.zero_grad()
    buffer.push(state[0])
    with torch.no_grad():
        mu, log_sigma = world.decode(state[0])
        return mu + log_sigma.exp() * state[1]


def joined(world: World) -> VAEBM:
    return VAEBM(world.decode, world.energy, world.sizes[0], world.sizes[1:])


def agree(world: World) -> None:
    "One step of both from one state, with the noise taken out by a second run."
    exact = copy.deepcopy(world).double()
    start = exact.start(torch.float64)
    torch.manual_seed(0)
    mine = langevin(joined(exact).potential, start, STEP_SIZE, 1).state
    torch.manual_seed(0)
    noise = torch.randn(exact.rows, sum(exact.sizes), dtype=torch.float64).split(exact.sizes, 1)
    state = tuple(e.clone().requires_grad_() for e in start)
    slopes = torch.autograd.grad(exact.official_potential(*state).sum(), state)
    for e, slope, omega, m in zip(start, slopes, noise, mine, strict=True):
        new = e - STEP_SIZE / 2 * slope + math.sqrt(STEP_SIZE) * omega
        torch.testing.assert_close(m, new)


def measure(world: World) -> dict:
    agree(world)
    model, buffer, theirs = joined(world), ReplayBuffer(10_000, world.sizes[:1]), OfficialBuffer()
    ours = partial(model.negatives, world.rows, N_STEPS, STEP_SIZE, buffer=buffer, p=0.6)
    found = interleaved(ours, partial(official, world, theirs), repeats=REPEATS, warmup=2)
    return {"what": f"negative phase, {world.name}", **found}


def main() -> None:
    torch.set_num_threads(1)
    made = worlds()
    rows = [measure(world) for world in made]
    largest = joined(made[2])
    chain = partial(langevin, largest.potential, made[2].start(), STEP_SIZE)
    memory = {str(n): peak_megabytes(partial(chain, n)) for n in (5, 40)}
    print("peak megabytes by steps", memory)
    print(save("vaebm", "a loop of the official structure", rows, peak_megabytes=memory))


if __name__ == "__main__":
    main()
