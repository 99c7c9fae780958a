import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.robust import early_stopping as es

LABELS = (-1.0, 0.1, 1.0)
generator = lambda: torch.Generator().manual_seed(1)


def clusters():
    return es.clusterable_data(3, 4, 5, 0.2, LABELS, generator=generator())


def net():
    return es.OneHiddenNet(5, 6, generator=generator())


def symmetric(n=4):
    a = torch.randn(n, n, generator=generator())
    return a @ a.T + torch.eye(n)


def labels(*legal):
    return ok(LABELS, *legal)


def one_hidden_net():
    one = torch.randn(3, 5)
    return Call(
        es.OneHiddenNet,
        input_size=5,
        hidden_size=6,
        activation="erf",
        generator=generator(),
        dtype=ok(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    ).then(lambda made: made(one.to(made.weight.dtype)))


def bound():
    data = clusters()
    given = es.corrupt(data.clean, data.cluster, LABELS, 0.5, generator=generator()).given
    return Call(
        es.overfit_distance_bound,
        model=net(),
        x=data.x,
        given=given,
        cluster=ok(data.cluster, "entry -1", "entry past the end"),
    )


def moved():
    model = nn.Linear(3, 2)
    start = {name: value.clone() + 1 for name, value in model.state_dict().items()}
    return Call(es.distance_from_init, model=model, reference_state=start, relative=True)


EXAMPLES = {
    "clusterable_data": lambda: Call(
        es.clusterable_data,
        n_clusters=3,
        per_cluster=4,
        dim=5,
        radius=ok(0.2, 0),
        labels=labels("entry less"),
        generator=generator(),
        dtype=ok(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    ),
    "corrupt": lambda: Call(
        es.corrupt,
        clean=clusters().clean,
        cluster=ok(clusters().cluster, "entry past the end"),
        labels=labels(),
        rate=ok(0.5, 0),
        generator=generator(),
    ),
    "OneHiddenNet": one_hidden_net,
    "OneHiddenNet.forward": lambda: Call(net(), x=torch.randn(3, 5)),
    "OneHiddenNet.gram": lambda: Call(net().gram, x=torch.randn(3, 5)),
    "cluster_covariance": lambda: Call(
        es.cluster_covariance, centers=clusters().centers, activation="erf"
    ),
    "condition_number": lambda: Call(es.condition_number, matrix=symmetric()),
    "linearized_gd": lambda: Call(
        es.linearized_gd,
        gram=symmetric(),
        residual0=torch.randn(4),
        lr=0.01,
        steps=ok([0, 1, 5], "entry less"),
    ),
    "spectral_energy": lambda: Call(
        es.spectral_energy,
        gram=symmetric(),
        vectors=ok(torch.randn(2, 4), "axis more", "axis fewer"),
        rank=2,
    ),
    "overfit_distance_bound": bound,
    "distance_from_init": moved,
    "nearest_label": lambda: Call(
        es.nearest_label, outputs=free(torch.randn(2, 3)), labels=labels("entry less")
    ),
    "best_epoch": lambda: Call(
        es.best_epoch, noisy_valid_accuracy=[0.5, 0.7, 0.6], patience=ok(2, 10**30)
    ),
    "empirical_gram": lambda: Call(
        es.empirical_gram,
        model=nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
        x=torch.randn(3, 5),
        chunk_size=2,
    ),
    "empirical_gram, chunks": lambda: Call(
        es.empirical_gram, model=net(), x=torch.randn(3, 5), chunk_size=2
    ),
}
ALLOWED = {}
