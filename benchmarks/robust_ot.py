"""Weights in closed form, and whole robust transports, beside a cone solver.

The official code (yogeshbalaji/robustOT) is on no package index. It hands both problems to cvxpy:
the weights of 50 000 scores, and the transport of two sets with their two balls. Here the same
cone programs are written once as cvxpy takes them best (vectors, no Python loop over constraints,
unlike the official code) and solved by Clarabel, the default of cvxpy for them; the weights by SCS,
the official code's solver, as well. The results are compared first.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/robust_ot.py
"""

import cvxpy
import numpy as np
import torch
from compare import interleaved, save

from ponderlearn.transport.robust_ot import ball_weights, rho_for_outliers, robust_ot


def by_cone(scores: np.ndarray, rho: float, solver: str) -> np.ndarray:
    "Weights by a second-order cone program."
    n = len(scores)
    w = cvxpy.Variable(n, nonneg=True)
    inside = [cvxpy.sum(w) == n, cvxpy.norm(w - 1) <= (2 * rho * n) ** 0.5]
    cvxpy.Problem(cvxpy.Minimize(scores @ w / n), inside).solve(solver=solver)
    return w.value


def transport_by_cone(cost: np.ndarray, rho: float) -> float:
    "The robust distance with a ball around the rows, n m variables."
    n, m = cost.shape
    plan, a = cvxpy.Variable((n, m), nonneg=True), cvxpy.Variable(n)
    inside = [cvxpy.sum(plan, axis=1) == a, cvxpy.sum(plan, axis=0) == 1 / m]
    inside += [cvxpy.norm(n * a - 1) <= (2 * rho * n) ** 0.5]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(cost, plan))), inside)
    return problem.solve(solver="CLARABEL")


def weights(n: int, solver: str, repeats: int) -> dict:
    "One row: n scores, a tenth of them high."
    torch.manual_seed(0)
    scores = torch.randn(n, dtype=torch.float64)
    scores[: n // 10] += 4
    rho, plain = rho_for_outliers(0.1), scores.numpy()
    found, wanted = ball_weights(scores, rho), by_cone(plain, rho, solver)
    excess = (torch.as_tensor(wanted) - found) @ scores / n
    assert abs(excess) < 1e-3, excess
    times = interleaved(
        lambda: ball_weights(scores, rho),
        lambda: by_cone(plain, rho, solver),
        repeats=repeats,
        warmup=1,
    )
    return {"what": f"weights, {n} scores", "beside": f"cvxpy, {solver}", **times}


def blobs(n: int) -> torch.Tensor:
    "Costs between two blobs of n points, a tenth of the first far away."
    torch.manual_seed(0)
    x, y = 0.5 * torch.randn(2, n, 2, dtype=torch.float64)
    y[:, 0] += 2
    x[: n // 10] += torch.tensor([-6.0, 8.0])
    return torch.cdist(x, y)


def transports(n: int, beside: str, repeats: int) -> dict:
    "One row: a robust transport of n against n points, certified to a half percent."
    cost, rho = blobs(n), rho_for_outliers(0.1)

    def ours():
        return robust_ot(cost, rho, epsilon=0.01)

    def theirs():
        if beside == "exact plans":
            return robust_ot(cost, rho, method="exact").transport_cost.item()
        return transport_by_cone(cost.numpy(), rho)

    found, wanted = ours(), theirs()
    assert found.lower - 1e-3 <= wanted <= found.transport_cost + 1e-3
    assert abs(found.transport_cost / wanted - 1) < 0.005
    times = interleaved(ours, theirs, repeats=repeats, warmup=1)
    return {"what": f"robust transport, {n} x {n} points", "beside": beside, **times}


def main() -> None:
    torch.set_num_threads(1)
    rows = [weights(1000, "CLARABEL", 31), weights(50_000, "CLARABEL", 7)]
    rows += [weights(50_000, "SCS", 7)]
    rows += [transports(50, "cvxpy, CLARABEL", 7), transports(50, "exact plans", 7)]
    rows += [transports(200, "cvxpy, CLARABEL", 5)]
    print(save("robust_ot", f"cvxpy {cvxpy.__version__}", rows))


if __name__ == "__main__":
    main()
