import torch
from mistakes import Call, ok
from torch import nn

from ponderlearn.transport import robust_ot

positive = (1.5, 10**30)


def scores(n=6, *legal):
    torch.manual_seed(n)
    return ok(torch.randn(n), *legal)


def masses(n):
    return ok(torch.full((n,), 1 / n), "None")


def weights(n=6):
    torch.manual_seed(1)
    w = torch.rand(n)
    return ok(w / w.mean(), "nan")  # losses do not look at values


def costs():
    torch.manual_seed(0)
    return ok(torch.rand(5, 4), "width")


def facts(result):
    return result.transport_cost, result.lower


def elbow_facts(result):
    return result.values


def number(value, *legal):
    return ok(value, 0, *positive, *legal)


EXAMPLES = {
    "ball_weights": lambda: Call(
        robust_ot.ball_weights,
        scores=scores(6, "axis more"),
        rho=number(0.1),
        p=masses(6),
        divergence="chi2",
    ),
    "robust_mean": lambda: Call(
        robust_ot.robust_mean,
        scores=scores(6, "axis more"),
        rho=number(0.1),
        p=masses(6),
        divergence="kl",
        upper=False,
    ),
    "weight_divergence": lambda: Call(
        robust_ot.weight_divergence,
        w=ok(torch.rand(6), "axis more", "nan"),
        p=masses(6),
        divergence="tv",
    ),
    "rho_for_outliers": lambda: Call(
        robust_ot.rho_for_outliers, fraction=ok(0.1, 0), divergence="chi2"
    ),
    "robust_ot": lambda: Call(
        robust_ot.robust_ot,
        cost=ok(torch.rand(5, 4)),
        rho_a=number(0.1),
        rho_b=number(0.05),
        p=masses(5),
        q=masses(4),
        epsilon=ok(0.1, *positive),
        divergence="chi2",
        method="sinkhorn",
        max_iter=ok(20, 10**30),
        tol=number(1e-3),
        on_fail="ignore",
        sinkhorn_max_iter=ok(100, 10**30),
    ).then(facts),
    "rho_elbow": lambda: Call(
        robust_ot.rho_elbow,
        cost=costs(),
        rhos=ok(torch.linspace(0, 0.3, 6), "rows", "width"),
        side="a",
        p=masses(5),
        epsilon=ok(0.1, *positive),
        on_fail="ignore",
    ).then(elbow_facts),
    "batch_weights": lambda: Call(
        robust_ot.batch_weights, raw=scores(6, "nan", "width"), eps=ok(0.1, *positive)
    ),
    "WeightNet": lambda: Call(robust_ot.WeightNet, model=nn.Linear(3, 1), eps=ok(0.1, *positive)),
    "WeightNet.forward": lambda: Call(
        robust_ot.WeightNet(nn.Sequential(nn.Flatten(), nn.Linear(3, 1))),
        x=ok(torch.randn(6, 3), "nan", "rows"),
    ),
    "weight_loss": lambda: Call(
        robust_ot.weight_loss,
        w=weights(),
        scores=scores(6, "nan"),
        rho=number(0.05),
        penalty_weight=number(10.0),
        divergence="chi2",
    ),
    "critic_loss": lambda: Call(
        robust_ot.critic_loss,
        real=scores(6, "nan"),
        fake=scores(4, "nan", "width"),
        w=weights(),
        kind="hinge",
        inside=True,
    ),
    "AveragedWeights": lambda: Call(
        robust_ot.AveragedWeights,
        n=ok(6, 10**30),
        rho=number(0.1),
        decay=ok(0.9, 0),
        divergence="chi2",
    ),
    "AveragedWeights.update": lambda: Call(
        robust_ot.AveragedWeights(6, 0.1).update,
        scores=scores(3, "nan"),
        indices=ok(torch.tensor([0, 4, 2]), "int32"),
    ),
}
ALLOWED = {}
