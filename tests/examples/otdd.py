import torch
from mistakes import Call, ok

from ponderlearn.transport import otdd

positive = (1.5, 10**30)


def features(n, d=2):
    "Any number of axes after the first is flattened."
    torch.manual_seed(n)
    return ok(torch.randn(n, d), "axis more", "width")


def labels(*values):
    "Labels are names: any integer may be one."
    return ok(torch.tensor(values), "entry -1", "entry past the end")


def weights(n):
    return torch.full((n,), 1 / n)


def covariance(seed):
    torch.manual_seed(seed)
    A = torch.randn(5, 3, 3)
    return ok(A.mT @ A, "axis more", "axis fewer", "rows")


def mean(seed):
    torch.manual_seed(seed)
    return ok(torch.randn(5, 3), "axis more", "axis fewer")


def feature_cost(x1, x2):
    return torch.cdist(x1, x2).square()


def pair():
    return {
        "x1": features(6),
        "y1": labels(0, 0, 1, 1, 2, 2),
        "x2": features(4),
        "y2": labels(0, 0, 1, 1),
    }


def squared(result):
    return result.squared  # float64 takes more iterations


def distance():
    return Call(
        otdd.otdd,
        **pair(),
        method="gaussian",
        epsilon=ok(0.5, *positive),
        debiased=True,
        feature_weight=ok(1.0, 0, *positive),
        label_weight=ok(1.0, 0, *positive),
        weights1=weights(6),
        weights2=weights(4),
        max_samples=ok(10, 10**30),
        generator=torch.Generator().manual_seed(0),
        feature_cost=feature_cost,
    ).then(squared)


EXAMPLES = {
    "label_moments": lambda: Call(
        otdd.label_moments,
        x=features(6),
        y=labels(0, 0, 1, 1, 2, 2),
        classes=ok(torch.tensor([2, 0, 1]), "width", "rows"),
        diagonal=False,
        unbiased=False,
        weights=weights(6),
    ),
    "bures_squared": lambda: Call(otdd.bures_squared, cov1=covariance(0), cov2=covariance(1)),
    "gaussian_w2_squared": lambda: Call(
        otdd.gaussian_w2_squared,
        mean1=mean(0),
        cov1=covariance(0),
        mean2=mean(1),
        cov2=covariance(1),
    ),
    "label_distances": lambda: Call(
        otdd.label_distances,
        **pair(),
        method="gaussian",
        epsilon=ok(0.5, *positive),
        unbiased=False,
        weights1=weights(6),
        weights2=weights(4),
    ),
    "dataset_cost": lambda: Call(
        otdd.dataset_cost,
        **pair(),
        W=torch.rand(3, 2),
        classes1=torch.tensor([0, 1, 2]),
        classes2=torch.tensor([0, 1]),
        feature_weight=ok(1.0, 0, *positive),
        label_weight=ok(1.0, 0, *positive),
        feature_cost=feature_cost,
    ),
    "otdd": distance,
    "coupling_class_mass": lambda: Call(
        otdd.coupling_class_mass,
        plan=torch.rand(6, 4),
        y1=labels(0, 0, 1, 1, 2, 2),
        y2=labels(0, 0, 1, 1),
    ),
}
ALLOWED = {}
