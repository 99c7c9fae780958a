import torch
from mistakes import Call, ok

from ponderlearn.transport import sinkhorn

positive = (1.5, 10**30)


def half(n):
    return ok(torch.full((n,), 1 / n), "axis more")


def costs(*size):
    return ok(torch.rand(*size), "axis more")


def value(result):
    return result.value  # float64 takes more iterations


def within(n):
    x = torch.rand(n, 1)
    return ok((x - x.T).square(), "axis more")


def transport():
    return Call(
        sinkhorn.sinkhorn,
        cost=costs(3, 4),
        a=half(3),
        b=half(4),
        epsilon=ok(0.5, *positive),
        max_iter=ok(50, 10**30),
        tol=ok(1e-6, 0, *positive),
        epsilon_scaling=0.5,
        init=(torch.zeros(3), torch.zeros(4)),
        check_every=5,
        overrelax=True,
        grad="envelope",
        on_fail="ignore",
    )


def divergence():
    return Call(
        sinkhorn.sinkhorn_divergence,
        cost_xy=costs(3, 4),
        cost_xx=within(3),
        cost_yy=within(4),
        a=half(3),
        b=half(4),
        epsilon=ok(0.5, *positive),
    ).then(value)


def points():
    return Call(
        sinkhorn.sinkhorn_divergence_points,
        x=ok(torch.rand(3, 2), "axis more", "rows"),
        y=ok(torch.rand(4, 2), "axis more", "rows"),
        a=half(3),
        b=half(4),
        p=ok(2.0, *positive),
        grad="none",
    ).then(value)


def distances():
    x, y = ok(torch.rand(3, 2), "axis more", "rows"), ok(torch.rand(4, 2), "axis more", "rows")
    return Call(sinkhorn.point_cost, x=x, y=y, p=ok(2.0, *positive))


EXAMPLES = {
    "sinkhorn": transport,
    "sinkhorn_divergence": divergence,
    "sinkhorn_divergence_points": points,
    "point_cost": distances,
    "exact_plan": lambda: Call(
        sinkhorn.exact_plan,
        cost=torch.rand(3, 4),
        a=torch.full((3,), 1 / 3),
        b=torch.full((4,), 1 / 4),
    ),
}
ALLOWED = {}
