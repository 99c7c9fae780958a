import torch
from mistakes import Call, ok

from ponderlearn import metrics

scores = lambda: ok(torch.tensor([0.1, 0.4, 0.3, 0.7]), "width", "int", "bool", "meta")
labels = lambda n: torch.arange(n) % 3
classes = lambda n: ok(labels(n), "entry past the end", "bool", "meta")  # any, from 0 on
shares = lambda: torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.4, 0.3, 0.3]])
chances = lambda: ok(shares(), "meta")  # all goes to the CPU


def probe(f, **arguments):
    z_train, z_test = torch.randn(9, 2), torch.randn(6, 2)
    z_train, z_test = z_train + labels(9)[:, None], z_test + labels(6)[:, None]
    return Call(
        f,
        z_train=ok(z_train, "meta"),
        y_train=classes(9),
        z_test=ok(z_test, "meta"),
        y_test=classes(6),
        **arguments,
    )


features = lambda: ok(torch.randn(6, 2), "array", "rows", "meta")


EXAMPLES = {
    "paired_interval": lambda: Call(
        metrics.paired_interval, a=scores(), b=ok(torch.rand(4), "int", "bool", "meta"), level=0.9
    ),
    "Interval.p": lambda: Call(
        metrics.paired_interval([0.1, 0.4, 0.3]).p, null=ok(0.25, -1, 0, 1.5, 10**30)
    ),
    "Interval.scaled": lambda: Call(
        metrics.paired_interval([0.1, 0.4, 0.3]).scaled, factor=ok(100.0, -1, 0, 1.5, 10**30)
    ),
    "holm": lambda: Call(metrics.holm, p_values=ok(torch.rand(4), "width", "int", "bool")),
    "accuracy": lambda: Call(
        metrics.accuracy,
        prediction=ok(shares(), "meta"),
        labels=ok(labels(4), "meta"),
    ),
    "linear_probe": lambda: probe(
        metrics.linear_probe, method="ridge", l2_weight=ok(1.0, 1.5, 10**30)
    ),
    "linear_probe, logistic": lambda: probe(metrics.linear_probe, method="logistic"),
    "knn_probe": lambda: probe(metrics.knn_probe, n_neighbors=3, normalize=True),
    "reliability": lambda: Call(
        metrics.reliability,
        probabilities=chances(),
        labels=ok(labels(4), "meta"),
        n_bins=3,
        kind="mass",
    ),
    "calibration_error": lambda: Call(
        metrics.calibration_error,
        probabilities=chances(),
        labels=ok(labels(4), "meta"),
        n_bins=3,
        kind="mass",
    ),
    "detection_scores": lambda: Call(
        metrics.detection_scores,
        scores=ok(torch.tensor([0.1, 0.4, 0.3, 0.7]), "meta"),
        flipped=ok(torch.tensor([True, False, True, False]), "meta"),
        higher_means_flipped=True,
    ),
    "frechet_distance": lambda: Call(
        metrics.frechet_distance,
        real_features=features(),
        fake_features=features(),
    ),
    "precision_recall": lambda: Call(
        metrics.precision_recall,
        real_features=features(),
        fake_features=features(),
        k=ok(2, 1),
        chunk_size=3,
    ),
}
ALLOWED = {}
