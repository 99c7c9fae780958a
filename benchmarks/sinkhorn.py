"""Sinkhorn beside POT and GeomLoss, to the same accuracy.

Accuracy is the sum of |row sums - a| + |column sums - b| of the plan: at most 1e-4 in float32, 1e-6
in float64. Each peer makes as few iterations as reach it (in steps of 10), found before the clock
starts; its own looks at the error are part of it. POT makes the iteration that ours makes without
overrelaxation, so the search starts there. The row is beside the fastest solver that gets there
within 5000 iterations. All sides get the same cost matrix and weights, and return the plan. Digits
at 1 % of the mean cost are left out: there nearly all of POT's solvers fail or need more.

GeomLoss spends its iterations on falling epsilons, and its error falls as one over their number: it
does not get to 1e-4. It has rows of its own, to the error that it has after 100.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/sinkhorn.py
"""

import importlib.metadata
import statistics
import time
import warnings
from functools import partial

import ot
import torch
from compare import interleaved, save
from geomloss import ot as geomloss

from ponderlearn import data
from ponderlearn.transport.sinkhorn import point_cost, sinkhorn

MOST = 5000  # iterations


def pot(cost, a, b, epsilon, n, method="sinkhorn", numpy=False):
    "POT's plan after n iterations, on tensors or on the same memory as NumPy arrays."
    more = {"method": method, "numItermax": n, "stopThr": 0, "warn": False}
    if numpy:
        return torch.from_numpy(ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), epsilon, **more))
    return ot.sinkhorn(a, b, cost, epsilon, **more)


def loss(cost, a, b, epsilon, n):
    "GeomLoss's plan after n iterations, the first of them at larger epsilons."
    return geomloss.solve(cost, a=a, b=b, reg=epsilon, max_iter=n).plan


PEERS = {
    "POT sinkhorn": pot,
    "POT sinkhorn, NumPy": partial(pot, numpy=True),
    "POT sinkhorn_stabilized": partial(pot, method="sinkhorn_stabilized"),
    "POT sinkhorn_log": partial(pot, method="sinkhorn_log"),
}


def distance(plan, a, b) -> float:
    "How far the sums of the plan are from the weights; infinity for what is no plan."
    found = ((plan.sum(1) - a).abs().sum() + (plan.sum(0) - b).abs().sum()).item()
    return found if found < 1e9 else float("inf")


def fewest(peer, problem, tol: float, start: int, limit: float):
    """Iterations that a peer needs, from `start` on, and the seconds that they take.

    None if it does not get there in MOST iterations, or in tries that take `limit` seconds; it has
    three tries in any case."""
    n, spent = start, 0.0
    while n <= MOST and (spent < limit or n < start + 30):
        begin = time.perf_counter()
        plan = peer(*problem, n)
        seconds = time.perf_counter() - begin
        if distance(plan, *problem[1:3]) <= tol:
            return n, seconds
        n, spent = max(n + 10, 10 * round(1.05 * n / 10)), spent + seconds
    return None


def clouds(n: int, dtype) -> torch.Tensor:
    "Costs between n points in the square and n in its lower left."
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 2, generator=g).to(dtype), torch.rand(n, 2, generator=g).to(dtype) ** 2
    return point_cost(x, y)


def images(n: int, dtype) -> torch.Tensor:
    "Costs between the pixels of n digits and of n others."
    digits = data.mnist()
    x = torch.cat([part.x for part in (digits.train, digits.test, digits.valid)])
    x = x.flatten(1)[: 2 * n].to(dtype)
    return point_cost(x[:n], x[n:])


def measure(name: str, make, n: int, share: float, dtype) -> dict:
    """Time our side and the fastest peer on one problem; epsilon is a share of the mean cost.

    Without a peer that gets there the row says what it was and no more."""
    cost = make(n, dtype)
    a = b = torch.full((n,), 1 / n, dtype=dtype)
    epsilon = share * cost.mean().item()
    tol = 1e-6 if dtype == torch.float64 else 1e-4
    problem = cost, a, b, epsilon
    ours = sinkhorn(*problem[:3], epsilon=epsilon, tol=0.9 * tol, max_iter=5000, on_fail="raise")
    assert distance(ours.plan, a, b) <= tol
    what = f"{name}, n = {n}, epsilon {share:g} of the mean cost, "
    what += f"{str(dtype).removeprefix('torch.')}, {ours.n_iter} iterations"
    plain = sinkhorn(*problem[:3], epsilon=epsilon, tol=tol, max_iter=MOST, overrelax=False)
    found = {}
    for peer, f in PEERS.items() if bool(plain.converged) else ():
        start = max(10, 10 * (plain.n_iter // 10) - 10)
        if (needed := fewest(f, problem, tol, start, 20.0)) is not None:
            found[peer] = needed
    print(what, found, flush=True)
    if not found:
        return {"what": what}
    fastest = min(found, key=lambda peer: found[peer][1])
    count, seconds = found[fastest]
    plan = PEERS[fastest](*problem, count)
    assert (plan - ours.plan).abs().sum() <= 100 * tol

    def run():
        return sinkhorn(cost, a, b, epsilon=epsilon, tol=0.9 * tol, max_iter=5000).plan

    repeats = int(min(101, max(9, 8 / seconds)))
    row = interleaved(run, lambda: PEERS[fastest](*problem, count), repeats=repeats, warmup=1)
    row = {"what": what, "beside": f"{fastest}, {count} iterations", **row}
    print(row, flush=True)
    return row


def beside_geomloss(n: int, count: int = 100) -> dict:
    "Time our side to the accuracy that GeomLoss has after `count` iterations."
    cost = clouds(n, torch.float32)
    a = b = torch.full((n,), 1 / n)
    epsilon = 0.1 * cost.mean().item()
    tol = distance(loss(cost, a, b, epsilon, count), a, b)
    ours = sinkhorn(cost, a, b, epsilon=epsilon, tol=0.9 * tol)
    assert distance(ours.plan, a, b) <= tol
    row = interleaved(
        lambda: sinkhorn(cost, a, b, epsilon=epsilon, tol=0.9 * tol).plan,
        lambda: loss(cost, a, b, epsilon, count),
        repeats=9,
        warmup=1,
    )
    what = f"clouds, n = {n}, epsilon 0.1 of the mean cost, float32, to the error {tol:.3f}, "
    what += f"{ours.n_iter} iterations"
    return {"what": what, "beside": f"GeomLoss, {count} iterations", **row}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [
        measure(name, make, n, share, dtype)
        for name, make in (("clouds", clouds), ("digits", images))
        for share in ((0.1, 0.03, 0.01) if make is clouds else (0.1, 0.03))
        for n in (200, 600, 2000)
        for dtype in (torch.float32, torch.float64)
    ]
    missed = [row["what"] for row in rows if "ratio" not in row]
    rows = [row for row in rows if "ratio" in row]
    median = statistics.median(row["ratio"] for row in rows)
    low = statistics.median(row["low"] for row in rows)
    rows += [beside_geomloss(n) for n in (200, 600, 2000)]
    peers = [f"{p} {importlib.metadata.version(p)}" for p in ("POT", "geomloss")]
    more = {"median": median, "median_of_low": low, "no_peer_gets_there": missed}
    print(save("sinkhorn", " and ".join(peers), rows, **more), more)


if __name__ == "__main__":
    main()
