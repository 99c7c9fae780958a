"""A retrieval step beside the exact prior, the search beside the official float64 form, and votes
of neighbors beside a (B, N, d) array.

The official code (sajadn/Exemplar-VAE) is on no package index; its distances (an expansion in
float64) and its classifier of codes (differences of all pairs, a block of queries at a time) are
rewritten here after its structure. A step is forward, backward and nothing else, with the paper's
network (784-300-300, 40 latent numbers), its plain layers in place of the gated ones; the exact
prior is `ExemplarVAE.elbo` with all exemplars encoded and one left out. Results are compared before
the clock starts: the same neighbors, the same votes, and a loss of the bound at least the exact.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/exemplar_vae.py
"""

import torch
from compare import interleaved, save
from torch import nn

from ponderlearn._nested import mlp
from ponderlearn.generative.exemplar_vae import (
    ExemplarCache,
    ExemplarVAE,
    knn_predict,
    leave_one_out,
    rat_step,
)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(784, 300, 300, 80)

    def forward(self, x):
        return self.net(x).chunk(2, dim=1)


def official_distances(z: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    "Squared distances (B, N) by expansion, in float64."
    z, means = z.double(), means.double()
    squares = (z**2).sum(1)[:, None].expand(-1, len(means)) + (means**2).sum(1).expand(len(z), -1)
    return squares - 2 * torch.mm(z, means.T)


def steps(n: int, k: int, repeats: int) -> dict:
    "One training step with retrieval and one with all n exemplars."
    torch.manual_seed(0)
    data = (torch.rand(n, 784) < 0.2).float()
    model = ExemplarVAE(Encoder(), mlp(40, 300, 300, 784), 40)
    cache = ExemplarCache(n, 40)
    with torch.no_grad():
        cache.update(torch.arange(n), model.centers(data))
    index, g = torch.randperm(n)[:100], torch.Generator()

    def back(loss):
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def ours():
        how = {"k": k, "generator": g.manual_seed(1)}
        return back(rat_step(model, cache, data, data[index], index, **how))

    def theirs():
        mask = leave_one_out(index, torch.arange(n))
        how = {"mask": mask, "generator": g.manual_seed(1)}
        return back(-model.elbo(data[index], model.centers(data), **how).elbo.mean())

    assert ours() >= theirs() - 1e-3
    found = interleaved(ours, theirs, repeats=repeats, warmup=2)
    return {"what": f"step, N = {n}, k = {k}", "beside": "exact prior", **found}


def search(n: int, k: int, repeats: int) -> dict:
    "The neighbors of 100 codes among n."
    torch.manual_seed(0)
    cache, z = ExemplarCache(n, 40), torch.randn(100, 40)
    cache.update(torch.arange(n), torch.randn(n, 40))

    def ours():
        return cache.nearest(z, k)

    def theirs():
        return official_distances(z, cache.means).topk(k, dim=1, largest=False).indices

    assert torch.equal(ours().sort(1).values, theirs().sort(1).values)
    found = interleaved(ours, theirs, repeats=repeats)
    return {"what": f"search, N = {n}, k = {k}", "beside": "float64, as official", **found}


def votes(n: int, queries: int, repeats: int) -> dict:
    "Five nearest codes vote on the class."
    torch.manual_seed(0)
    codes, labels, z = torch.randn(n, 40), torch.randint(10, (n,)), torch.randn(queries, 40)

    def ours():
        return knn_predict(codes, labels, z, 5)

    def theirs():
        found = []
        for block in z.split(100):
            apart = (block[:, None] - codes).square().sum(2)
            near = apart.topk(5, dim=1, largest=False).indices
            found.append(labels[near].mode(1).values)
        return torch.cat(found)

    near = torch.cdist(z, codes).topk(5, largest=False).indices
    most = torch.nn.functional.one_hot(labels[near], 10).sum(1).topk(2).values
    clear = most[:, 0] > most[:, 1]  # no tie: there the two may choose differently
    assert torch.equal(ours()[clear], theirs()[clear]) and clear.float().mean() > 0.3
    found = interleaved(ours, theirs, repeats=repeats, warmup=1)
    what = f"votes, {queries} codes among {n}"
    return {"what": what, "beside": "(B, N, d) array, as official", **found}


def main() -> None:
    torch.set_num_threads(1)
    rows = [steps(n, k, 15) for n, k in ((1197, 10), (4000, 5), (4000, 10), (12_000, 10))]
    rows += [search(n, 10, 51) for n in (4000, 25_000, 50_000)]
    rows += [votes(4000, 1000, 7)]
    print(save("exemplar_vae", "the official code's structure, rewritten", rows))


if __name__ == "__main__":
    main()
