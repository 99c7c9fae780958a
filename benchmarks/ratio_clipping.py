"""Rounds of `train_ratio_clipping` beside the structure of the official loop, same updates.

The official structure, rewritten: critic and classifier judge data and samples in calls of their
own, each term has its own backward pass, the classifier ends in a sigmoid, a generator update
computes G(z) twice, and gradients of frozen networks are computed and thrown away. Its consistency
term and its clip of the classifier's gradient are left out on both sides. Before the clock starts
both have to end with the same generator. The second part sets the exact policy's problems in one
batch beside a loop over them.

Run with `make bench`, or:
.venv-bench/bin/python benchmarks/ratio_clipping.py [timed runs of each, 41]
"""

import copy
import sys
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn

from ponderlearn.generative.ratio_clipping import clipped_surrogate, train_ratio_clipping

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 41
N_CRITIC, K, CLIP, WEIGHT, ROUNDS = 5, 5, 0.4, 5.0, 4  # official, but for the rounds


def net(*sizes: int) -> nn.Sequential:
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers[:-1])


def streams(x: torch.Tensor, latent_dim: int) -> tuple:
    "Two functions (n, generator=) that draw data and latents, each from its own stream."
    g, h = (torch.Generator().manual_seed(s) for s in (1, 2))

    def real(n, generator=None):
        return x[torch.randint(len(x), (n,), generator=g)]

    def latents(n, generator=None):
        return torch.randn(n, latent_dim, generator=h)

    return real, latents


def official(nets: list, real, latents, batch_size: int, lr: float, generator) -> None:
    "Algorithm 1 in the structure of the public loop."
    G, f, C = nets
    adams = [torch.optim.Adam(m.parameters(), lr, (0.0, 0.9)) for m in nets]
    bce = nn.BCELoss()
    for _ in range(ROUNDS):
        for _ in range(N_CRITIC):
            f.zero_grad()
            x = real(batch_size)
            (-f(x).mean()).backward(retain_graph=True)
            noise = latents(batch_size)
            fake = G(noise)
            scores = f(fake.detach())[:, 0]
            with torch.no_grad():
                weights = batch_size * F.softmax(scores, 0)
            (weights * scores).mean().backward()
            share = torch.rand(batch_size, 1, generator=generator).expand_as(x)
            mixed = torch.lerp(fake.detach(), x, share).requires_grad_()
            out = f(mixed)
            ones = torch.ones_like(out)
            (grad,) = torch.autograd.grad(out, mixed, ones, create_graph=True, retain_graph=True)
            (WEIGHT * (grad.norm(2, dim=1) - 1).square().mean()).backward()
            adams[1].step()
        with torch.no_grad():
            old = torch.sigmoid(C(fake.detach()))[:, 0]
            odds = (1 - old) / old.clamp(min=1e-7)
        for _ in range(K):
            C.zero_grad()
            out = torch.sigmoid(C(real(batch_size)))
            bce(out, torch.ones_like(out)).backward()
            out = torch.sigmoid(C(G(latents(batch_size)).detach()))
            bce(out, torch.zeros_like(out)).backward()
            adams[2].step()
            G.zero_grad()
            moved = G(noise)
            new = torch.sigmoid(C(G(noise)))[:, 0]
            ratio = (1 - new) / (new * odds).clamp(min=1e-7)
            scores = f(moved)[:, 0]
            first, second = ratio * scores, ratio.clamp(1 - CLIP, 1 + CLIP) * scores
            target = torch.where(scores > 0, torch.min(first, second), torch.max(first, second))
            (-target.mean()).backward()
            adams[0].step()


def ours(nets: list, real, latents, batch_size: int, lr: float, generator) -> None:
    train_ratio_clipping(
        *nets,
        real,
        sample_latent=latents,
        steps=ROUNDS,
        batch_size=batch_size,
        n_critic=N_CRITIC,
        n_steps=K,
        clip=CLIP,
        kind="upper",
        baseline=None,
        through_ratio=True,
        lr=lr,
        gradient_penalty_weight=WEIGHT,
        generator=generator,
    )


def case(name: str, sizes: tuple, batch_size: int) -> dict:
    latent_dim, width, dim = sizes
    torch.manual_seed(0)
    nets = [net(latent_dim, width, width, dim), *(net(dim, width, width, 1) for _ in range(2))]
    x = torch.randn(1000, dim) + 1

    def run(loop):
        mine = copy.deepcopy(nets)
        loop(mine, *streams(x, latent_dim), batch_size, 1e-4, torch.Generator().manual_seed(3))
        return torch.cat([p.detach().flatten() for p in mine[0].parameters()])

    start = torch.cat([p.detach().flatten() for p in nets[0].parameters()])
    one, two = run(ours), run(official)
    assert (one - two).abs().mean() < 0.02 * (two - start).abs().mean(), (one - two).abs().max()
    found = interleaved(partial(run, ours), partial(run, official), repeats=REPEATS, warmup=2)
    what = f"{ROUNDS} rounds, {name}, batches of {batch_size}"
    return {"what": what, "beside": "official structure"} | found


def policy_steps(theta, data, f, drawn) -> torch.Tensor:
    "Ten steps on the clipped surrogate for all problems in these tensors."
    theta = theta.clone().requires_grad_()
    old = theta.detach().log_softmax(-1).gather(-1, drawn)
    scores = f.gather(-1, drawn).flatten()
    adam = torch.optim.Adam([theta], 0.05)
    for _ in range(10):
        log_ratio = (theta.log_softmax(-1).gather(-1, drawn) - old).flatten()
        adam.zero_grad()
        (-clipped_surrogate(scores, log_ratio, 0.2, reduction="sum")).backward()
        adam.step()
    return theta.detach()


def policies(n: int) -> dict:
    torch.manual_seed(0)
    data = (1.5 * torch.randn(n, 25)).log_softmax(-1)
    theta, drawn = torch.zeros(n, 25), torch.randint(25, (n, 64))
    tensors = theta, data, data - data.mean(-1, keepdim=True), drawn

    def loop():
        return torch.cat([policy_steps(*(t[i : i + 1] for t in tensors)) for i in range(n)])

    together = partial(policy_steps, *tensors)
    assert torch.allclose(together(), loop(), atol=1e-4)
    found = interleaved(together, loop, repeats=max(5, REPEATS // 4), warmup=1)
    what = f"a round of {n} exact policies"
    return {"what": what, "beside": "a loop over the problems"} | found


def main() -> None:
    torch.set_num_threads(1)
    sizes = {"eight Gaussians": (4, 64, 2), "digits": (16, 128, 64), "wide": (64, 512, 784)}
    rows = [case(name, sizes[name], b) for name in ("eight Gaussians", "digits") for b in (32, 128)]
    rows += [case("wide", sizes["wide"], 64), policies(16), policies(80)]
    print(save("ratio_clipping", "official structure, rewritten; a loop over problems", rows))


if __name__ == "__main__":
    main()
