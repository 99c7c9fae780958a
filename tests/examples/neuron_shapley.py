import torch
from mistakes import Call, free, ok

from ponderlearn._nested import mlp
from ponderlearn.explain import neuron_shapley

big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def value_fn(masks):
    weight = torch.arange(1.0, masks.shape[1] + 1, device="cpu").sqrt()
    return (masks.cpu().double() @ weight.double()).square()


def resample():
    return None


def net():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return mlp(3, 4, 2)


def data():
    return torch.randn(6, 3, generator=seeded())


def labels():
    return torch.tensor([0, 1, 1, 0, 1, 0])


MASKS = torch.rand(5, 4, generator=seeded()) < 0.5


def masking(**how):
    return neuron_shapley.ChannelMask(net(), ["1"], calibration=data(), **how)


def entered():
    return masking().__enter__()


def value(made):
    with made.masking:
        return made(MASKS)


EXAMPLES = {
    "shapley_exact": lambda: Call(
        neuron_shapley.shapley_exact, value_fn=value_fn, n_players=4, chunk_size=3
    ),
    "permutation_marginals": lambda: Call(
        neuron_shapley.permutation_marginals,
        value_fn=value_fn,
        perm=torch.tensor([2, 0, 1, 3]),
        active=torch.tensor([True, False, True, True]),
        truncate_below=ok(0.5, 0, -1, *big),
        chunk_size=2,
    ),
    "shapley_monte_carlo": lambda: Call(
        neuron_shapley.shapley_monte_carlo,
        value_fn=value_fn,
        n_players=4,
        n_permutations=3,
        antithetic=True,
        truncate_below=ok(0.5, 0, -1, *big),
        delta=0.1,
        value_range=ok(2.0, *big),
        chunk_size=3,
        resample=resample,
        generator=seeded(),
    ),
    "ShapleyEstimate.topk": lambda: Call(
        neuron_shapley.shapley_monte_carlo(value_fn, 4, 2, generator=seeded()).topk, k=2
    ),
    "linear_head_value_fn": lambda: Call(
        neuron_shapley.linear_head_value_fn,
        features=torch.randn(6, 4),
        weight=torch.randn(2, 4),
        bias=torch.randn(2),
        target=labels(),
        metric="log_likelihood",
    ).then(lambda game: game(MASKS)),
    "empirical_bernstein": lambda: Call(
        neuron_shapley.empirical_bernstein,
        variance=free(torch.tensor([0.1, 0.2])),
        counts=ok(torch.tensor([3, 4]), "entry past the end"),
        delta=0.2,
        value_range=ok(1.0, *big),
    ),
    "tmab_shapley": lambda: Call(
        neuron_shapley.tmab_shapley,
        value_fn=value_fn,
        n_players=5,
        k=2,
        delta=0.2,
        epsilon=ok(0.1, 0, *big),
        value_range=ok(2.0, *big),
        truncate_below=ok(0.5, 0, -1, *big),
        readmit=False,
        min_samples=3,
        max_steps=5,
        chunk_size=3,
        resample=resample,
        generator=seeded(),
    ),
    "ChannelMask": lambda: Call(
        neuron_shapley.ChannelMask,
        model=net(),
        layers=["1"],
        ablation="resample",
        calibration=free(data()),
        generator=seeded(),
    ).then(lambda mask: mask.fills),
    "ChannelMask.owner": lambda: Call(masking().owner, player=ok(2, 0)),
    "ChannelMask.set": lambda: Call(entered().set, mask=torch.tensor([True, False, True, True])),
    "ChannelMask.outputs": lambda: Call(
        entered().outputs, x=free(data()), masks=free(MASKS, "rows"), reuse_prefix=True
    ),
    "NetworkValue": lambda: Call(
        neuron_shapley.NetworkValue,
        masking=masking(),
        x=free(data()),
        target=labels(),
        metric="accuracy",
        batch_size=3,
        reuse_prefix=True,
        chunk_size=4,
        generator=seeded(),
    ).then(value),
    "removal_curve": lambda: Call(
        neuron_shapley.removal_curve,
        value_fn=value_fn,
        order=torch.tensor([2, 0, 1]),
        ks=ok([0, 1, 3], "entry less"),
        n_players=4,
    ),
}
WITHOUT = {}
ALLOWED = {}
