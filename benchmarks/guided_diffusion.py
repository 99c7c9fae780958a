"""Sampling beside a loop of the official structure and beside the scheduler of diffusers.

All sides have the same U-Net, the same steps and the same start. The first peer is written here
after the structure of the official code: schedules as NumPy arrays, copied to the device at each
look-up and looked up for each image, the step numbers mapped at each call, a dictionary with all
that a step computes. The second is the scheduler of diffusers 0.42.1, which takes one step at a
time. Outputs are compared before the clock starts, with the noise of one seed.

Run with `make bench`, or:
.venv-bench/bin/python benchmarks/guided_diffusion.py [timed runs of each, 31]
"""

import sys
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from compare import interleaved, save
from diffusers import DDIMScheduler, DDPMScheduler

from ponderlearn.generative.guided_diffusion import (
    DiffusionUNet,
    GaussianDiffusion,
    NoisyClassifier,
    beta_schedule,
    sample,
    strided_timesteps,
)

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 11
STEPS = 25
BETAS = beta_schedule("linear", 1000)


def extract(array: np.ndarray, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    "A copy of the table on the device, one entry an image, spread over its pixels."
    found = torch.from_numpy(array).to(t.device)[t].float()
    return found.view(-1, *[1] * (x.ndim - 1)).expand(x.shape)


class Official:
    "The reverse process on NumPy tables."

    def __init__(self, indices: torch.Tensor):
        bar = np.cumprod(1 - BETAS.numpy())[indices.numpy()]
        self.map = indices.tolist()
        self.bar, self.before = bar, np.append(1.0, bar[:-1])
        self.betas = 1 - self.bar / self.before
        self.small = self.betas * (1 - self.before) / (1 - bar)
        self.log_small = np.log(np.append(self.small[1], self.small[1:]))
        self.weight_x0 = self.betas * np.sqrt(self.before) / (1 - bar)
        self.weight_xt = (1 - self.before) * np.sqrt(1 - self.betas) / (1 - bar)

    def told(self, net, x, t, *more):
        "The network with the steps of the whole chain."
        return net(x, torch.tensor(self.map, device=t.device)[t], *more)

    def mean_variance(self, net, x, t):
        out, place = self.told(net, x, t).chunk(2, 1)
        low, high = extract(self.log_small, t, x), extract(np.log(self.betas), t, x)
        share = (place + 1) / 2
        log_variance = share * high + (1 - share) * low
        first, second = np.sqrt(1 / self.bar), np.sqrt(1 / self.bar - 1)
        x0 = extract(first, t, x) * x - extract(second, t, x) * out
        x0 = x0.clamp(-1, 1)
        mean = extract(self.weight_x0, t, x) * x0 + extract(self.weight_xt, t, x) * x
        return {"mean": mean, "variance": log_variance.exp(), "log": log_variance, "x0": x0}

    def eps(self, x, t, x0):
        first, second = np.sqrt(1 / self.bar), np.sqrt(1 / self.bar - 1)
        return (extract(first, t, x) * x - x0) / extract(second, t, x)

    def slope(self, classifier, x, t, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_prob = F.log_softmax(self.told(classifier, x, t), dim=-1)
            return torch.autograd.grad(log_prob[range(len(y)), y.view(-1)].sum(), x)[0]

    @torch.no_grad()
    def run(self, net, x, ddim=False, classifier=None, y=None, generator=None):
        for i in reversed(range(len(self.map))):
            t = torch.tensor([i] * len(x))
            found = self.mean_variance(net, x, t)
            if ddim:
                if classifier is not None:
                    eps = self.eps(x, t, found["x0"])
                    bar = extract(self.bar, t, x)
                    eps = eps - (1 - bar).sqrt() * self.slope(classifier, x, t, y)
                    first, second = np.sqrt(1 / self.bar), np.sqrt(1 / self.bar - 1)
                    found["x0"] = extract(first, t, x) * x - extract(second, t, x) * eps
                eps, before = self.eps(x, t, found["x0"]), extract(self.before, t, x)
                noise = torch.randn(x.shape, generator=generator)  # drawn, and times 0
                x = found["x0"] * before.sqrt() + (1 - before).sqrt() * eps + 0 * noise
                continue
            noise = torch.randn(x.shape, generator=generator)
            used = (t != 0).float().view(-1, *[1] * (x.ndim - 1))
            if classifier is not None:
                shift = found["variance"] * self.slope(classifier, x, t, y)
                found["mean"] = found["mean"] + shift
            x = found["mean"] + used * torch.exp(0.5 * found["log"]) * noise
        return x


@torch.no_grad()
def by_scheduler(scheduler, net, x, generator, half: bool) -> torch.Tensor:
    "The loop that the documents of diffusers show; `half`: DDIM reads the noise alone."
    for t in scheduler.timesteps:
        out = net(x, t.expand(len(x)))
        out = out.chunk(2, 1)[0] if half else out
        how = {"use_clipped_model_output": True} if half else {}
        x = scheduler.step(out, t, x, generator=generator, **how).prev_sample
    return x


def schedulers() -> dict:
    how = {"trained_betas": BETAS.numpy(), "clip_sample": True}
    ddim = DDIMScheduler(**how, set_alpha_to_one=True, timestep_spacing="leading")
    ddpm = DDPMScheduler(**how, variance_type="learned_range", timestep_spacing="leading")
    for scheduler in (ddim, ddpm):
        scheduler.set_timesteps(STEPS)
    return {"ddim": ddim, "ddpm": ddpm}


def network(width: int, size: int) -> tuple:
    "A U-Net whose last layer is not 0, and a classifier."
    torch.manual_seed(0)
    levels = (1, 2) if size == 8 else (1, 2, 2)
    net = DiffusionUNet(1, width, levels, attention=(len(levels) - 1,))
    torch.nn.init.normal_(net.out[-1].weight, std=0.02)
    guide = NoisyClassifier(1, 10, (size, size), width, levels)
    return net.eval().requires_grad_(False), guide.eval().requires_grad_(False)


def measure(width: int, size: int, rows: int) -> list[dict]:
    net, guide = network(width, size)
    start = torch.randn(rows, 1, size, size, generator=torch.Generator().manual_seed(0))
    y = torch.arange(rows) % 10
    diffusion = GaussianDiffusion(BETAS)
    leading = torch.arange(0, 1000, 1000 // STEPS)  # the steps that diffusers takes
    even, made, what = strided_timesteps(1000, STEPS), schedulers(), f"{size} x {size}, {rows} rows"
    official, found = Official(even), []

    def seeded():
        return torch.Generator().manual_seed(1)

    def ours(steps, **how):
        return sample(
            diffusion, net, start.shape, noise=start, n_steps=steps, generator=seeded(), **how
        )

    guided = {"classifier": guide, "y": y}
    pairs = {
        "official, DDPM": (partial(ours, even), partial(official.run, net, start)),
        "official, DDPM guided": (
            partial(ours, even, **guided),
            partial(official.run, net, start, **guided),
        ),
        "official, DDIM guided": (
            partial(ours, even, method="ddim", **guided),
            partial(official.run, net, start, True, **guided),
        ),
        "diffusers, DDPM": (
            partial(ours, leading),
            partial(by_scheduler, made["ddpm"], net, start, half=False),
        ),
        "diffusers, DDIM": (
            partial(ours, leading, method="ddim"),
            partial(by_scheduler, made["ddim"], net, start, half=True),
        ),
    }
    for name, (mine, theirs) in pairs.items():
        peer = lambda theirs=theirs: theirs(generator=seeded())  # noqa: E731
        torch.testing.assert_close(mine(), peer(), atol=2e-3, rtol=1e-3)
        row = interleaved(mine, peer, repeats=REPEATS, warmup=2)
        found.append({"what": f"{name}, {what}, width {width}", **row})
    return found


def main() -> None:
    torch.set_num_threads(1)
    rows = measure(8, 8, 4) + measure(16, 8, 64) + measure(32, 32, 2)
    peer = "a loop of the official structure; diffusers 0.42.1"
    print(save("guided_diffusion", peer, rows))


if __name__ == "__main__":
    main()
