"""Label distances beside matrix roots, as the official code takes them, and the cost table beside
broadcasting.

The official code (microsoft/otdd) is on no package index; its structure is rewritten here: the root
of each covariance of the first set is taken once, by an eigendecomposition, then one more root for
each pair of labels. The second peer is the best that we could make of the formula without the data:
roots once a class, then the eigenvalues alone for each pair. Both sides start from the examples,
and the distances are compared first.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/otdd.py
"""

from itertools import product

import torch
from compare import interleaved, save

from ponderlearn.transport.otdd import dataset_cost, label_distances, label_moments


def root(cov: torch.Tensor) -> torch.Tensor:
    "The symmetric root of a covariance (d, d)."
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def by_roots(x1, y1, x2, y2, eigenvalues_only: bool) -> torch.Tensor:
    "Squared label distances (C1, C2), one pair after the other."
    a, b = label_moments(x1, y1), label_moments(x2, y2)
    roots = [root(cov) for cov in a.covs]
    W = x1.new_zeros(len(a.covs), len(b.covs))
    for i, j in product(range(len(a.covs)), range(len(b.covs))):
        inner = roots[i] @ b.covs[j] @ roots[i]
        if eigenvalues_only:
            overlap = torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
        else:
            overlap = root(inner).trace()
        apart = (a.means[i] - b.means[j]).square().sum()
        W[i, j] = apart + a.covs[i].trace() + b.covs[j].trace() - 2 * overlap
    return W


def examples(classes: int, size: int, d: int, dtype: torch.dtype) -> list:
    "Two sets of `classes` classes with `size` examples of `d` correlated features each."
    torch.manual_seed(0)
    mix = torch.randn(d, d, dtype=dtype) / d**0.5
    sets = []
    for _ in range(2):
        y = torch.arange(classes).repeat_interleave(size)
        x = torch.randn(len(y), d, dtype=dtype) @ mix + torch.randn(classes, d, dtype=dtype)[y]
        sets += [x, y]
    return sets


def labels(classes: int, size: int, d: int, dtype: torch.dtype, repeats: int) -> list[dict]:
    "Rows for one size, beside both peers."
    sets, rows = examples(classes, size, d, dtype), []
    for only, beside in ((False, "roots, one pair after the other"), (True, "eigenvalues only")):

        def theirs(only=only):
            return by_roots(*sets, only)

        wanted = theirs()
        assert torch.allclose(label_distances(*sets).W, wanted, rtol=5e-3)
        found = interleaved(lambda: label_distances(*sets), theirs, repeats=repeats, warmup=1)
        what = f"label distances, {classes} x {classes} labels, {size} examples each, {d} features"
        what += f", {str(dtype).removeprefix('torch.')}"
        rows.append({"what": what, "beside": beside, **found})
    return rows


def costs(n: int, d: int, repeats: int) -> dict:
    "The table of costs beside broadcasting, which needs an (n, n, d) tensor."
    x1, y1, x2, y2 = examples(10, n // 10, d, torch.float32)
    W = label_distances(x1, y1, x2, y2, method="means")

    def broadcast():
        return (x1[:, None] - x2).square().sum(2) + W.W[y1][:, y2]

    assert torch.allclose(dataset_cost(x1, y1, x2, y2, *W), broadcast(), rtol=1e-3)
    found = interleaved(
        lambda: dataset_cost(x1, y1, x2, y2, *W), broadcast, repeats=repeats, warmup=1
    )
    return {"what": f"costs, {n} x {n} examples, {d} features", "beside": "broadcasting", **found}


def main() -> None:
    torch.set_num_threads(1)
    rows = labels(3, 50, 784, torch.float32, 11)
    rows += labels(3, 50, 784, torch.float64, 7)
    rows += labels(3, 200, 784, torch.float32, 7)
    rows += labels(10, 80, 64, torch.float32, 15)
    rows += [costs(300, 784, 31)]
    print(save("otdd", "the official code's structure, rewritten", rows))


if __name__ == "__main__":
    main()
