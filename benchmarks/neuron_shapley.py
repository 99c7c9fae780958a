"""One order of removals beside a hook for each evaluation and Captum's Shapley sampling.

The loop has the structure of public code: before each evaluation it puts hooks with the present
mask on the layers, calls the network on the batch, and takes them off again. Captum's
`ShapleyValueSampling` gets the mask as its input, on the same players and images, once with that
loop behind it, one mask at a time, and once with our batched value behind it, as many masks at a
time as Captum takes. Before the clock starts, loop and ours have to give the same marginals, and
Captum the same sum.

Run with `make bench`, or:
.venv-bench/bin/python benchmarks/neuron_shapley.py [timed runs of each, 41]
"""

import copy
import sys
from functools import partial

import torch
from captum.attr import ShapleyValueSampling
from compare import interleaved, save
from torch import nn

from ponderlearn._nested import mlp
from ponderlearn.explain.neuron_shapley import (
    ChannelMask,
    NetworkValue,
    linear_head_value_fn,
    permutation_marginals,
)

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 41


def hooked_values(net, layers, sizes, fills, x, y, masks) -> torch.Tensor:
    "Accuracy under each mask, with hooks put on and taken off for each."
    modules, values = dict(net.named_modules()), []
    for mask in masks:
        hooks = []
        for name, on, fill in zip(layers, mask.split(sizes), fills, strict=True):

            def cut(module, args, out, on=on, fill=fill):
                ones = [1] * (out.ndim - 2)
                return torch.where(on.view(-1, *ones), out, fill.view(-1, *ones))

            hooks.append(modules[name].register_forward_hook(cut))
        with torch.no_grad():
            values.append((net(x).argmax(1) == y).double().mean())
        for hook in hooks:
            hook.remove()
    return torch.stack(values)


def by_loop(value_fn, order) -> torch.Tensor:
    "Marginals of one order, an evaluation after the other."
    on = torch.ones(len(order), dtype=torch.bool)
    v, marginals = value_fn(on[None])[0], torch.zeros(len(order)).double()
    for player in order.tolist():
        on[player] = False
        new = value_fn(on[None])[0]
        marginals[player], v = v - new, new
    return marginals


def by_captum(value_fn, n_players: int, at_once: int) -> torch.Tensor:
    "Captum's estimate from one order, shape (P,)."
    sampling = ShapleyValueSampling(lambda masks: value_fn(masks > 0.5))
    how = dict(n_samples=1, perturbations_per_eval=at_once)
    return sampling.attribute(torch.ones(1, n_players), torch.zeros(1, n_players), **how)[0]


def convolutions(n: int) -> tuple:
    "The chapter's network of 72 channels, with random weights."
    layers, inputs = [], 1
    for width, stride in ((16, 1), (24, 2), (32, 2)):
        layers += [nn.Conv2d(inputs, width, 3, stride, 1), nn.ReLU()]
        inputs = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
    return net.eval(), ["1", "3", "5"], torch.rand(n, 1, 8, 8)


def hidden_layer(n: int) -> tuple:
    "The chapter's network of 128 hidden neurons, with random weights."
    return mlp(64, 128, 10).double().eval(), ["1"], torch.rand(n, 64).double()


def case(what: str, net, layers, x, sums: bool) -> list[dict]:
    "Both ways beside ours; `sums`: ours is the cumulative sum of the last layer."
    bare = copy.deepcopy(net)  # the loop hooks a network of its own
    with torch.no_grad():
        y = net(x).argmax(1)
    with ChannelMask(net, layers, calibration=x) as masking:
        sizes, fills, P = masking.sizes, masking.fills, masking.n_players
        if sums:
            fills = [torch.zeros_like(fills[0])]
            with torch.no_grad():
                h = net[:2](x)
            game = linear_head_value_fn(h, net[2].weight.detach(), net[2].bias.detach(), y)
        else:
            game = NetworkValue(masking, x, y)
        order = torch.randperm(P)
        ours = partial(permutation_marginals, game, order)
        found = ours()
        single = partial(hooked_values, bare, layers, sizes, fills, x, y)
        assert torch.equal(by_loop(single, order), found.values)
        slow = by_captum(single, P, 1)
        assert abs(slow.sum() - found.values.sum()) < 1e-5
        how = dict(repeats=max(5, REPEATS // 2), warmup=1)
        loop = interleaved(ours, partial(by_loop, single, order), **how)
        captum = interleaved(ours, partial(by_captum, single, P, 1), **how)
        batched = interleaved(ours, partial(by_captum, game, P, P), repeats=REPEATS, warmup=1)
    return [
        {"what": what, "beside": "a hook for each evaluation"} | loop,
        {"what": what, "beside": "Captum, a hook for each evaluation"} | captum,
        {"what": what, "beside": "Captum, with our batched value"} | batched,
    ]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for n in (16, 100):
        rows += case(f"72 channels, {n} images", *convolutions(n), sums=False)
    for n in (50, 300):
        rows += case(f"128 hidden neurons, {n} images", *hidden_layer(n), sums=True)
    print(save("neuron_shapley", "Captum 0.9.0 and a hook loop", rows))


if __name__ == "__main__":
    main()
