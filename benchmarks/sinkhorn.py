"""Sinkhorn beside POT and GeomLoss, to the same accuracy.

Accuracy is the sum of |row sums - a| + |column sums - b| of the plan: at most 1e-4 in float32, 1e-6
in float64. Each peer makes as few iterations as reach it, found before the clock starts; looks of
its own at the error are part of the peer. The row is beside the fastest peer that gets there. All
sides get the same cost matrix and weights as tensors, and return the plan.

Run with `make bench`, or: python benchmarks/sinkhorn.py
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

COUNTS = sorted({10 * round(1.15**k) for k in range(43)})  # 10 to 3500


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
    "POT sinkhorn_log": partial(pot, method="sinkhorn_log"),
    "POT sinkhorn_stabilized": partial(pot, method="sinkhorn_stabilized"),
    "GeomLoss": loss,
}


def distance(plan, a, b) -> float:
    "How far the sums of the plan are from the weights; infinity for what is no plan."
    found = ((plan.sum(1) - a).abs().sum() + (plan.sum(0) - b).abs().sum()).item()
    return found if found < 1e9 else float("inf")


def fewest(peer, problem, tol: float, limit: float):
    """Iterations that a peer needs and the seconds that they take; None if it does not get there
    within `limit` seconds."""
    for n in COUNTS:
        start = time.perf_counter()
        plan = peer(*problem, n)
        seconds = time.perf_counter() - start
        if distance(plan, *problem[1:3]) <= tol:
            return n, seconds
        if seconds > limit:
            break
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


def measure(name: str, make, n: int, share: float, dtype, peers=PEERS) -> dict:
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
    found = {}
    for peer, f in peers.items():
        fastest = min((seconds for _, seconds in found.values()), default=3.0)
        if (needed := fewest(f, problem, tol, 3 * fastest)) is not None:
            found[peer] = needed
    print(what, found, flush=True)
    if not found:
        return {"what": what}
    fastest = min(found, key=lambda peer: found[peer][1])
    count, seconds = found[fastest]
    plan = peers[fastest](*problem, count)
    assert (plan - ours.plan).abs().sum() <= 100 * tol

    def run():
        return sinkhorn(cost, a, b, epsilon=epsilon, tol=0.9 * tol, max_iter=5000).plan

    repeats = int(min(201, max(9, 20 / seconds)))
    row = interleaved(run, lambda: peers[fastest](*problem, count), repeats=repeats, warmup=1)
    return {"what": what, "beside": f"{fastest}, {count} iterations", **row}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [
        measure(name, make, n, share, dtype)
        for name, make in (("clouds", clouds), ("digits", images))
        for share in (0.1, 0.03, 0.01)
        for n in (200, 600, 2000)
        for dtype in (torch.float32, torch.float64)
    ]
    missed = [row["what"] for row in rows if "ratio" not in row]
    rows = [row for row in rows if "ratio" in row]
    median = statistics.median(row["ratio"] for row in rows)
    low = statistics.median(row["low"] for row in rows)
    for n in (200, 600):
        rows.append(measure("clouds", clouds, n, 0.1, torch.float32, {"GeomLoss": loss}))
    peers = [f"{p} {importlib.metadata.version(p)}" for p in ("POT", "geomloss")]
    more = {"median": median, "median_of_low": low, "no_peer_gets_there": missed}
    print(save("sinkhorn", " and ".join(peers), rows, **more), more)


if __name__ == "__main__":
    main()
