"""Meta-augmentation beside loops: MAML with `higher`, episodes by a loop over tasks.

One MAML step is losses and gradients of T tasks after one inner step with second derivatives, as in
the chapter, and the query losses before the step, without gradients, which `maml_losses` always
gives. `higher` makes a copy of the network for each task; a second peer is the plain loop with
`torch.autograd.grad` and `functional_call`. Gradients are compared in float64 before the clock
starts.
Episodes are drawn beside a loop that draws classes and images task by task.

Run with `make bench`, or:
.venv-bench/bin/python benchmarks/meta_augmentation.py [timed runs of each, 41]
"""

import copy
import sys
from functools import partial

import higher
import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn
from torch.func import functional_call

from ponderlearn._nested import mlp
from ponderlearn.multitask.meta_augmentation import Episodes, maml_losses, sample_episodes

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 41
LR = 0.4


def maml(net: nn.Module, batch: Episodes) -> torch.Tensor:
    return maml_losses(net, batch, loss_fn=F.cross_entropy, lr=LR).post_loss.mean()


def before(net: nn.Module, x_q: torch.Tensor, y_q: torch.Tensor) -> torch.Tensor:
    "The query loss before the inner step."
    with torch.no_grad():
        return F.cross_entropy(net(x_q), y_q)


def by_higher(net: nn.Module, batch: Episodes) -> torch.Tensor:
    "A copy of the network and an inner optimizer for each task."
    inner, losses = torch.optim.SGD(net.parameters(), lr=LR), []
    for x_s, y_s, x_q, y_q in zip(*batch[:4], strict=True):
        before(net, x_q, y_q)
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (own, step):
            step.step(F.cross_entropy(own(x_s), y_s))
            losses.append(F.cross_entropy(own(x_q), y_q))
    return torch.stack(losses).mean()


def by_loop(net: nn.Module, batch: Episodes) -> torch.Tensor:
    "The plain loop of the chapter."
    losses, params = [], dict(net.named_parameters())
    for x_s, y_s, x_q, y_q in zip(*batch[:4], strict=True):
        before(net, x_q, y_q)
        loss = F.cross_entropy(functional_call(net, params, (x_s,)), y_s)
        slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        moved = {k: p - LR * g for (k, p), g in zip(params.items(), slopes, strict=True)}
        losses.append(F.cross_entropy(functional_call(net, moved, (x_q,)), y_q))
    return torch.stack(losses).mean()


def gradient(net: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(net.parameters()))


def timed(net: nn.Module, batch: Episodes, loss) -> list[torch.Tensor]:
    return gradient(net, loss(net, batch))


def step(n_tasks: int, sizes: tuple[int, ...]) -> list[dict]:
    "One MAML step beside both loops."
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(1000, sizes[0], generator=generator), torch.arange(50).repeat(20)
    batch = sample_episodes(x, y, 5, 1, 5, n_tasks, generator=generator)
    net, rows = mlp(*sizes), []
    exact = (
        copy.deepcopy(net).double(),
        batch._replace(x_s=batch.x_s.double(), x_q=batch.x_q.double()),
    )
    for name, peer in (("a loop with higher", by_higher), ("the plain loop", by_loop)):
        pair = (gradient(exact[0], f(*exact)) for f in (maml, peer))
        for a, b in zip(*pair, strict=True):
            torch.testing.assert_close(a, b)
        what = f"MAML step, {n_tasks} tasks, network {'-'.join(map(str, sizes))}"
        found = interleaved(
            partial(timed, net, batch, maml),
            partial(timed, net, batch, peer),
            repeats=REPEATS,
            warmup=2,
        )
        rows.append({"what": what, "beside": name} | found)
    return rows


def loop_of_episodes(x, y, n_tasks: int) -> list:
    "Draws task by task and class by class."
    rows = [torch.nonzero(y == c)[:, 0] for c in range(int(y.max()) + 1)]
    tasks = []
    for _ in range(n_tasks):
        picked = torch.randperm(len(rows))[:5]
        each = [rows[c][torch.randperm(len(rows[c]))[:6]] for c in picked]
        s, q = torch.cat([r[:1] for r in each]), torch.cat([r[1:] for r in each])
        tasks.append((x[s], torch.arange(5), x[q], torch.arange(5).repeat_interleave(5)))
    return [torch.stack(part) for part in zip(*tasks, strict=True)]


def episodes(n_tasks: int) -> dict:
    "Drawing 5-way episodes beside the loop."
    x, y = torch.rand(1000, 144), torch.arange(50).repeat(20)
    ours, theirs = sample_episodes(x, y, 5, 1, 5, n_tasks), loop_of_episodes(x, y, n_tasks)
    assert [p.shape for p in ours[:4]] == [p.shape for p in theirs]
    found = interleaved(
        lambda: sample_episodes(x, y, 5, 1, 5, n_tasks),
        lambda: loop_of_episodes(x, y, n_tasks),
        repeats=REPEATS,
    )
    return {"what": f"{n_tasks} episodes", "beside": "a loop over tasks"} | found


def main() -> None:
    torch.set_num_threads(1)
    small, wide = (144, 64, 64, 5), (784, 256, 256, 5)
    rows = [row for sizes in (small, wide) for n in (8, 32) for row in step(n, sizes)]
    rows += [episodes(n) for n in (8, 32)]
    print(save("meta_augmentation", "higher 0.2.1, and plain loops", rows))


if __name__ == "__main__":
    main()
