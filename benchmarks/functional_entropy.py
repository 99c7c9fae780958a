"""One training step of the penalty beside the released form, rewritten: no package does this.

The peer draws ten noisy copies, as the released class does by default. "published" is its README:
a binary cross-entropy with softmax targets, its mean over all entries, one gradient call, the norm
of the inverses. "loop" has our f and calls for the gradient of each modality in turn. With as many
copies, "loop" gives the very numbers that we give, so the spread of the estimate is the same; with
two copies instead of ten the spread is larger by the root of five.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/functional_entropy.py
"""

from collections.abc import Callable

import torch
from compare import interleaved, save
from torch import Tensor, nn

from ponderlearn.robust.functional_entropy import (
    information_penalty,
    modality_information,
    output_cross_entropy,
    perturb,
)

COPIES = 10  # of the peer


class Parts(nn.Module):
    "An encoder a modality and a head, as in the chapter."

    def __init__(self, widths: list[int]):
        super().__init__()
        layers = [(nn.Linear(w, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()) for w in widths]
        self.encoders = nn.ModuleList(nn.Sequential(*some) for some in layers)
        self.head = nn.Sequential(nn.Linear(64 * len(widths), 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, *inputs: Tensor) -> Tensor:
        codes = [f(x) for f, x in zip(self.encoders, inputs, strict=True)]
        return self.head(torch.cat(codes, 1))


def published(model: nn.Module, inputs: list[Tensor], g: torch.Generator) -> Tensor:
    "The penalty of the released README."
    target = model(*inputs).softmax(1).repeat_interleave(COPIES, 0)
    noisy = perturb(inputs, COPIES, generator=g)
    loss = nn.functional.binary_cross_entropy_with_logits(model(*noisy), target)
    grads = torch.autograd.grad(loss, noisy, create_graph=True)
    info = torch.stack([(z.norm(dim=1) ** 2 / loss).mean() for z in grads])
    return 1e-10 * (1 / info).norm()


def looped(model: nn.Module, inputs: list[Tensor], g: torch.Generator) -> Tensor:
    "Our information with a gradient call a modality, (M,)."
    noisy, sigma = perturb(inputs, COPIES, generator=g), [x.std(0) for x in inputs]
    f = output_cross_entropy(model(*inputs).repeat_interleave(COPIES, 0), model(*noisy))
    found = []
    for z, s in zip(noisy, sigma, strict=True):
        (grad,) = torch.autograd.grad(f.sum(), z, create_graph=True)
        found.append(((s * grad).square().sum(1) / f).mean())
    return torch.stack(found)


def measure(widths: list[int], copies: int, peer: str, repeats: int, batch: int = 64) -> dict:
    "A step of the penalty with `copies` copies beside the peer with ten."
    torch.manual_seed(0)
    model, g = Parts(widths), torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch, w) for w in widths]

    def ours(n: int = copies) -> Tensor:
        return modality_information(model, inputs, n, generator=g).info

    def step(penalty: Callable[[], Tensor]) -> None:
        model.zero_grad()
        penalty().backward()

    state = g.get_state()
    once = ours(COPIES)
    g.set_state(state)
    assert torch.allclose(once, looped(model, inputs, g), rtol=1e-3)
    theirs = {
        "published": lambda: published(model, inputs, g),
        "loop": lambda: information_penalty(looped(model, inputs, g)),
    }[peer]
    row = interleaved(
        lambda: step(lambda: information_penalty(ours())), lambda: step(theirs), repeats=repeats
    )
    what = f"{len(widths)} modalities, {copies} copies beside {peer} with {COPIES}"
    return {"what": what, **row}


def main() -> None:
    torch.set_num_threads(1)
    two, four = [196, 3], [196, 49, 49, 3]
    rows = [measure(two, 2, "published", 201), measure(two, 2, "loop", 201)]
    rows += [measure(two, 10, "published", 101), measure(two, 10, "loop", 101)]
    rows += [measure(four, 2, "loop", 101), measure(four, 10, "loop", 101)]
    print(save("functional_entropy", "the released form, rewritten", rows))


if __name__ == "__main__":
    main()
