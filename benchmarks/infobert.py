"""InfoBERT's terms beside the official code's structure, and beside a step of plain training.

The official code (AI-secure/InfoBERT) is a trainer, no library; its forms are rewritten here as
they stand there: the upper bound over all pairs (N, N, d), or with one random partner; anchors by
a sort and a loop with `.item()` for each sentence; their features gathered one by one and shuffled
(by sklearn there, by randperm here); the bound in chunks of 32 pairs, by a critic on features side
by side (N, N, 2d). Ours has the anchors of all other sentences as candidates, not 31 pairs.
N = 1024 words (32 sentences of 32), d = 128. A step is that of the chapter's classifier, and of
wider ones; "the same without the terms" keeps the backward pass that ranks the words. One thread.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/infobert.py
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from compare import both_ways, interleaved, save
from torch import nn

from ponderlearn.language.infobert import (
    InfoBERTLoss,
    PairCritic,
    anchor_mask,
    anchored_info,
    gaussian_channel_bound,
)


def all_pairs(y):
    apart = y.unsqueeze(0) - y.unsqueeze(1)
    return (apart**2 / 2).mean(1).sum(-1).mean()


def one_partner(y):
    other = y[torch.randint(len(y), (len(y),))]
    return ((y - other) ** 2 / 2).sum(-1).mean()


def official_anchors(grad, low=0.5, high=0.9):
    found = []
    for one in grad:
        _, index = torch.sort(torch.norm(one, dim=1))
        first, last = math.ceil(len(one) * low), math.ceil(len(one) * high)
        found.append([index[i].item() for i in range(first, last)])
    return found


def our_anchors(grad):
    return anchor_mask(grad.norm(dim=2), kind="official")


def side_by_side(critic, local, global_):
    n = len(local)
    t, z = local.unsqueeze(0).repeat(n, 1, 1), global_.unsqueeze(1).repeat(1, n, 1)
    return F.softplus(critic.second(critic.first(torch.cat([t, z], -1)).relu()))[..., 0]


def mean_lse(scores, t, z):
    return scores(t, z).logsumexp(1).mean()


def official_term(critic, grad, local, global_):
    "Anchors, their features one by one, shuffled, and the bound of chunks of 32 pairs."
    chosen = official_anchors(grad)
    pairs = [(local[i, k], global_[i]) for i, one in enumerate(chosen) for k in one]
    t, z = zip(*(pairs[i] for i in torch.randperm(len(pairs))), strict=True)
    bounds = []
    for i in range(0, len(t), 32):
        t_i, z_i = torch.stack(t[i : i + 32]), torch.stack(z[i : i + 32])
        own = F.softplus(critic.second(critic.first(torch.cat([t_i, z_i], -1)).relu()))
        rows = side_by_side(critic, t_i, z_i).logsumexp(1)
        bounds.append(own.mean() - (rows.mean() - math.log(len(t_i))))
    return torch.stack(bounds).mean()


def our_term(critic, grad, local, global_):
    return anchored_info(local, global_, our_anchors(grad), critic)


class Network(nn.Module):
    "The chapter's classifier: embeddings, LayerNorm, two blocks, the first token's feature."

    def __init__(self, d):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(1289, d), nn.LayerNorm(d)
        how = {"activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(d, 2, 4 * d, 0.1, **how)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(d, 8)
        self.terms = InfoBERTLoss(PairCritic(d, d, 128), 1.0, 0.1, max_pairs=64)

    def step(self, optimizer, tokens, labels, ranked, regularized):
        optimizer.zero_grad()
        e = self.embedding(tokens)
        t = self.norm(e)
        z = self.encoder(t)[:, 0]
        loss = F.cross_entropy(self.head(z), labels)
        if ranked and not regularized:
            torch.autograd.grad(loss, e, retain_graph=True)
        if regularized:
            loss = self.terms(loss, e, t, z).loss
        loss.backward()
        optimizer.step()


def steps_of(d, length):
    torch.manual_seed(0)
    network = Network(d)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    batch = torch.randint(1289, (32, length)), torch.randint(8, (32,))
    kinds = ((True, True), (True, False), (False, False))
    return (partial(network.step, optimizer, *batch, *kind) for kind in kinds)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []

    def add(what, beside, ours, theirs, repeats):
        rows.append({"what": what, "beside": beside, **interleaved(ours, theirs, repeats=repeats)})

    y = torch.randn(1024, 128, requires_grad=True)
    ours, pairs = both_ways(gaussian_channel_bound, y), both_ways(all_pairs, y)
    assert torch.allclose(ours().clone(), pairs(), atol=1e-6)
    add("upper bound, N = 1024, d = 128", "all pairs", ours, pairs, 5)
    add(
        "upper bound, N = 1024, d = 128", "one random partner", ours, both_ways(one_partner, y), 101
    )

    local, grad = torch.randn(32, 32, 128), torch.randn(32, 32, 128)
    for n, length in ((32, 32), (32, 128), (128, 8)):
        g = torch.randn(n, length, 128)
        for found, wanted in zip(our_anchors(g), official_anchors(g), strict=True):
            assert found.nonzero()[:, 0].tolist() == sorted(wanted)
        a, b = partial(our_anchors, g), partial(official_anchors, g)
        add(f"anchors, {n} texts of {length} words", "loop with .item()", a, b, 101)
    global_, critic = torch.randn(32, 128), PairCritic(128, 128)
    local, global_ = local.requires_grad_(), global_.requires_grad_()
    a = both_ways(partial(our_term, critic, grad), local, global_)
    b = both_ways(partial(official_term, critic, grad), local, global_)
    add("anchors and their bound, all 416 pairs", "chunks of 32, side by side", a, b, 21)

    for d in (128, 768):
        critic = PairCritic(d, d)
        t, z = (torch.randn(32, d, requires_grad=True) for _ in range(2))
        ours = both_ways(partial(mean_lse, critic), t, z)
        theirs = both_ways(partial(mean_lse, partial(side_by_side, critic)), t, z)
        assert torch.allclose(ours().clone(), theirs(), atol=1e-5)
        add(f"critic, 32 pairs, d = {d}", "side by side", ours, theirs, 41)

    for d, length, repeats in ((32, 24, 61), (128, 64, 21), (256, 64, 11)):
        full, ranked, plain = steps_of(d, length)
        what = f"step with both terms, d = {d}, 32 texts of {length} words"
        add(what, "the same without the terms", full, ranked, repeats)
        add(what, "plain step, no ranking pass", full, plain, repeats)
    print(save("infobert", "the official code's forms, rewritten, and a plain step", rows))


if __name__ == "__main__":
    main()
