"""Commentaries beside `higher`, and beside the loops of the official code.

`higher` (0.2.1, which the official code uses for Algorithm 1) and `inner_loop` go through the same
training: 40 steps of a student 64-32-10 on batches of 64 with weighted losses, then back to the
weights. With gradient descent the gradients are equal. With Adam the trained students are, and the
gradients are not: `higher` adds Adam's constant outside the root, where the step has a large slope
at gradients near 0. (`tests/test_commentaries.py` compares ours with finite differences.) The
official code of Algorithm 2 is rewritten as it stands: a loop over the pairs of a batch for their
coefficients, and lists of tensors for Neumann's series. Ours takes a plain function of tensors, so
the student is one; `higher` takes a module, as it must. Two rows compare with no peer: they say
what a commentary costs beside plain training.

Run with `make bench`, or:
.venv-bench/bin/python benchmarks/commentaries.py [timed runs of each, 41]
"""

import sys
from functools import partial

import higher
import torch
import torch.nn.functional as F
from compare import interleaved, peak_megabytes, save
from torch.func import stack_module_state, vmap

from ponderlearn._nested import mlp
from ponderlearn.multitask.commentaries import (
    ExampleWeights,
    LabelBlend,
    hypergradient,
    inner_loop,
    weighted_loss,
)

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 41
T, BATCH, LR = 40, 64, 0.005
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def student(params: dict, x):
    "The logits of a network with one hidden layer."
    first, shift, second, last = params.values()
    return F.linear(F.relu(F.linear(x, first, shift)), second, last)


class Problem:
    "Batches, weights of their examples, and students."

    def __init__(self, n_students: int = 1, n_steps: int = T):
        torch.manual_seed(0)
        self.x = torch.rand(n_steps, n_students, BATCH, 64)
        self.y = torch.randint(10, (n_steps, n_students, BATCH))
        self.valid = torch.rand(200, 64), torch.randint(10, (200,))
        self.nets = [mlp(64, 32, 10) for _ in range(n_students)]
        self.scores = torch.zeros(n_steps, n_students, BATCH, requires_grad=True)
        stacked, _ = stack_module_state(self.nets)
        self.params = {k: p.detach() for k, p in stacked.items()}
        self.one = {k: p[0] for k, p in self.params.items()}

    def loss(self, params: dict, x, y, scores):
        losses = F.cross_entropy(student(params, x), y, reduction="none")
        return (scores.sigmoid() * losses).mean()

    def judge(self, params: dict):
        return F.cross_entropy(student(params, self.valid[0]), self.valid[1])

    def trained(self, optimizer: str, every: int | None = None) -> dict:
        "One student after all steps."

        def loss_fn(params, phi, step):
            return self.loss(params, self.x[step, 0], self.y[step, 0], phi[0][step, 0])

        how = {"lr": LR, "optimizer": optimizer, "checkpoint_every": every}
        return inner_loop(loss_fn, self.one, [self.scores], len(self.x), **how)

    def ours(self, optimizer: str, every: int | None = None) -> torch.Tensor:
        "The gradient of its validation loss."
        loss = self.judge(self.trained(optimizer, every))
        return torch.autograd.grad(loss, self.scores)[0]

    def together(self, optimizer: str) -> torch.Tensor:
        "All students in one vmap."

        def loss_fn(params, phi, step):
            batch = self.x[step], self.y[step], phi[0][step]
            return vmap(self.loss)(params, *batch).sum()

        how = {"lr": LR, "optimizer": optimizer}
        trained = inner_loop(loss_fn, self.params, [self.scores], len(self.x), **how)
        return torch.autograd.grad(vmap(self.judge)(trained).sum(), self.scores)[0]

    def peer(self, optimizer: str, s: int) -> tuple[torch.Tensor, torch.Tensor]:
        "`higher`: the gradient of a student's validation loss, and the loss."
        net = self.nets[s]
        with higher.innerloop_ctx(net, OPTIMIZERS[optimizer](net.parameters(), lr=LR)) as made:
            copy, update = made
            for i in range(len(self.x)):
                losses = F.cross_entropy(copy(self.x[i, s]), self.y[i, s], reduction="none")
                update.step((self.scores[i, s].sigmoid() * losses).mean())
            loss = F.cross_entropy(copy(self.valid[0]), self.valid[1])
            return torch.autograd.grad(loss, self.scores)[0], loss.detach()

    def theirs(self, optimizer: str) -> torch.Tensor:
        "`higher`, one student after the other."
        return sum(self.peer(optimizer, s)[0] for s in range(len(self.nets)))


def agree(problem: Problem) -> None:
    "The answers, before the clock starts."
    torch.testing.assert_close(problem.ours("sgd"), problem.theirs("sgd"))
    torch.testing.assert_close(problem.ours("adam", every=6), problem.ours("adam"))
    losses = problem.judge(problem.trained("adam")).detach(), problem.peer("adam", 0)[1]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)


def official_coefficients(blend: LabelBlend, y_a, y_b) -> torch.Tensor:
    "One look into the table a pair, as the official script does it."
    table = 1 - 0.5 * blend.scores.sigmoid()
    return torch.stack([table[a, b] for a, b in zip(y_a.tolist(), y_b.tolist(), strict=True)])


def blending(n: int) -> dict:
    "Coefficients and blended images of a batch."
    blend, g = LabelBlend(10), torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 1, 28, 28, generator=g), torch.randint(10, (n,), generator=g)
    index = torch.randperm(n, generator=g)

    def theirs():
        lam = official_coefficients(blend, y, y[index]).view(-1, 1, 1, 1)
        return lam * x + (1 - lam) * x[index]

    def ours():
        return blend(x, y, index=index).x

    torch.testing.assert_close(ours(), theirs())
    row = {"what": f"blending a batch of {n}", "beside": "the official loop over pairs"}
    return row | interleaved(ours, theirs, repeats=REPEATS)


def official_neumann(train, val, params, phi, n_terms, lr):
    "The official hypergradient: lists of tensors."
    v = torch.autograd.grad(val, params, retain_graph=True)
    slope = torch.autograd.grad(train, params, create_graph=True)
    p, c = [t.detach() for t in v], [t.detach() for t in v]
    for _ in range(n_terms):
        product = torch.autograd.grad(slope, params, grad_outputs=c, retain_graph=True)
        c = [a - lr * b for a, b in zip(c, product, strict=True)]
        p = [a + b for a, b in zip(p, c, strict=True)]
    found = torch.autograd.grad(slope, phi, grad_outputs=[lr * a for a in p])
    return [-g for g in found]


def implicit(n_terms: int) -> dict:
    "One hypergradient at the student 64-128-128-10 of the experiment."
    torch.manual_seed(0)
    net, scores = mlp(64, 128, 128, 10), torch.zeros(BATCH, requires_grad=True)
    x, y = torch.rand(2, BATCH, 64), torch.randint(10, (2, BATCH))
    params = list(net.parameters())

    def losses():
        train = scores.sigmoid() * F.cross_entropy(net(x[0]), y[0], reduction="none")
        return train.mean(), F.cross_entropy(net(x[1]), y[1])

    how = {"n_terms": n_terms, "step_size": 0.01, "direct": False}

    def ours():
        return hypergradient(*losses(), params, [scores], **how)

    def theirs():
        return official_neumann(*losses(), params, [scores], n_terms, 0.01)

    torch.testing.assert_close(ours(), theirs())
    row = {"what": f"hypergradient, Neumann, K = {n_terms}", "beside": "the official lists"}
    return row | interleaved(ours, theirs, repeats=REPEATS)


def costs() -> list[dict]:
    "What learning a commentary costs beside plain training, and what a student pays for its use."
    torch.manual_seed(0)
    x, y = torch.rand(T, BATCH, 196), torch.randint(10, (T, BATCH))
    valid = torch.rand(400, 196), torch.randint(10, (400,))
    net, teacher = mlp(196, 32, 10), ExampleWeights(mlp(197, 32, 1))
    own, outer = dict(net.named_parameters()), torch.optim.Adam(teacher.parameters(), lr=1e-9)
    adam = torch.optim.Adam(net.parameters(), lr=1e-9)
    progress = torch.arange(T).repeat_interleave(BATCH) / T

    def losses(params, i):
        return F.cross_entropy(student(params, x[i]), y[i], reduction="none")

    def plain(use: bool = False):
        for i in range(T):
            adam.zero_grad()
            loss = losses(own, i)
            with torch.no_grad():
                weights = teacher(x[i], i / T) if use else None
            (weighted_loss(loss, weights) if use else loss.mean()).backward()
            adam.step()

    def meta():
        weights = teacher(x.flatten(0, 1), progress).view(T, BATCH)

        def loss_fn(params, weights, i):
            return weighted_loss(losses(params, i), weights[0][i])

        trained = inner_loop(loss_fn, own, [weights], T, lr=LR, optimizer="adam")
        outer.zero_grad()
        F.cross_entropy(student(trained, valid[0]), valid[1]).backward()
        outer.step()

    first = {"what": f"{T} plain updates", "beside": f"a meta-step through {T} updates"}
    second = {"what": f"{T} plain updates", "beside": f"{T} updates with a commentary's weights"}
    use = partial(plain, True)
    return [
        row | interleaved(plain, other, repeats=REPEATS, warmup=2)
        for row, other in ((first, meta), (second, use))
    ]


def memory_of(n_steps: int, every: int) -> dict:
    "Megabytes at most, by torch's profiler."
    long = Problem(n_steps=n_steps)
    ways = {"whole": partial(long.ours, "adam"), "checkpoints": partial(long.ours, "adam", every)}
    ways["higher"] = partial(long.theirs, "adam")
    return {"steps": n_steps} | {name: peak_megabytes(way) for name, way in ways.items()}


def main() -> None:
    torch.set_num_threads(1)
    one, five = Problem(), Problem(5)
    agree(one)
    torch.testing.assert_close(five.together("sgd"), five.theirs("sgd"))
    rows = []
    for name, words in (("adam", "Adam"), ("sgd", "gradient descent")):
        for problem, ours, n in (
            (one, one.ours, "one student"),
            (five, five.together, "5 in vmap"),
        ):
            row = {"what": f"{T} steps of {words}, {n}", "beside": "higher"}
            sides = partial(ours, name), partial(problem.theirs, name)
            rows.append(row | interleaved(*sides, repeats=REPEATS, warmup=2))
    row = {"what": f"{T} steps of Adam, a checkpoint every 6", "beside": "higher"}
    sides = partial(one.ours, "adam", 6), partial(one.theirs, "adam")
    rows.append(row | interleaved(*sides, repeats=REPEATS, warmup=2))
    rows += [blending(128), implicit(1), implicit(20), *costs()]
    memory = [memory_of(*sizes) for sizes in ((16, 4), (64, 8), (256, 16))]
    print(*memory, sep="\n")
    print(save("commentaries", "higher 0.2.1, the official loops", rows, memory=memory))


if __name__ == "__main__":
    main()
