"""Neuron Shapley: closed forms, independent sums, the bandit, masks against weights cut by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn._nested import mlp
from ponderlearn.explain.neuron_shapley import (
    ChannelMask,
    NetworkValue,
    empirical_bernstein,
    linear_head_value_fn,
    permutation_marginals,
    removal_curve,
    shapley_exact,
    shapley_monte_carlo,
    tmab_shapley,
)

TABLE = torch.tensor([0.0, 0.2, 0.3, 0.6, 0.1, 0.4, 0.5, 1.0], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table_game(masks):
    return TABLE[(masks.long() * torch.tensor([1, 2, 4])).sum(1)]


def random_game(n_players, seed=0):
    values = torch.rand(2**n_players, generator=seeded(seed), dtype=torch.float64)
    place = 2 ** torch.arange(n_players)
    return lambda masks: values[(masks.long() * place).sum(1)]


def by_sets(value_fn, n_players):
    "The sum over subsets with factorials, on Python sets."
    phi = []
    for i in range(n_players):
        rest, total = [j for j in range(n_players) if j != i], 0.0
        for size in range(n_players):
            for chosen in itertools.combinations(rest, size):
                mask = torch.zeros(1, n_players, dtype=torch.bool)
                mask[0, list(chosen)] = True
                low = value_fn(mask).item()
                mask[0, i] = True
                weight = math.factorial(size) * math.factorial(n_players - size - 1)
                total += weight * (value_fn(mask).item() - low)
        phi.append(total / math.factorial(n_players))
    return torch.tensor(phi, dtype=torch.float64)


# ---- exact values ----


def test_table_game():
    wanted = [1 / 3, 13 / 30, 7 / 30]
    assert shapley_exact(table_game, 3).tolist() == pytest.approx(wanted)


def test_known_games():
    def glove(masks):
        return torch.minimum(masks[:, 0].long(), masks[:, 1:].sum(1)).double()

    assert shapley_exact(glove, 3).tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert shapley_exact(lambda m: m.all(1).double(), 3).tolist() == pytest.approx([1 / 3] * 3)
    assert shapley_exact(lambda m: m.double()[:, 0], 1).tolist() == [1]


@given(st.integers(1, 6), st.integers(0, 10**6), st.integers(1, 70))
@settings(max_examples=15, deadline=None)
def test_exact_agrees_with_a_sum_over_sets(n_players, seed, chunk_size):
    game = random_game(n_players, seed)
    found = shapley_exact(game, n_players, chunk_size=chunk_size)
    assert torch.allclose(found, by_sets(game, n_players), atol=1e-12)


def test_linearity_symmetry_null_player():
    v, w = random_game(5, 1), random_game(5, 2)
    both = shapley_exact(lambda m: 2 * v(m) - 3 * w(m), 5)
    assert torch.allclose(both, 2 * shapley_exact(v, 5) - 3 * shapley_exact(w, 5), atol=1e-12)

    def alike(masks):  # players 0 and 1 are alike, 4 does nothing
        return v(torch.cat([masks[:, :2].sort(1).values, masks[:, 2:4], masks[:, :1] & False], 1))

    phi = shapley_exact(alike, 5)
    assert math.isclose(phi[0], phi[1], abs_tol=1e-12)
    assert phi[4] == 0
    assert shapley_monte_carlo(alike, 5, 7, generator=seeded()).values[4] == 0


# ---- orders ----


def test_all_orders_give_the_exact_values():
    game = random_game(4)
    orders = [
        permutation_marginals(game, torch.tensor(order)).values
        for order in itertools.permutations(range(4))
    ]
    assert torch.allclose(torch.stack(orders).mean(0), shapley_exact(game, 4), atol=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_each_order_is_efficient_and_chunks_do_not_matter(seed, chunk_size):
    game, order = random_game(7, seed), torch.randperm(7, generator=seeded(seed))
    found = permutation_marginals(game, order, chunk_size=chunk_size)
    ends = game(torch.tensor([[True], [False]]).expand(2, 7))
    assert math.isclose(found.values.sum(), ends[0] - ends[1], abs_tol=1e-12)
    assert found.n_evaluations == 8
    assert torch.equal(found.values, permutation_marginals(game, order).values)


def test_players_that_are_not_active():
    game, order = random_game(6), torch.tensor([3, 0, 5, 1, 4, 2])
    active = torch.tensor([True, False, False, False, True, True])
    found = permutation_marginals(game, order, active=active)
    assert torch.equal(found.values.isnan(), ~active)
    assert torch.equal(found.values[active], permutation_marginals(game, order).values[active])
    assert found.n_evaluations == 5  # before and after 0 and 5 (adjacent), before and after 4
    none = permutation_marginals(game, order, active=torch.zeros(6, dtype=torch.bool))
    assert none.n_evaluations == 0 and bool(none.values.isnan().all())


def test_truncation():
    cut = [
        permutation_marginals(table_game, torch.tensor(o), truncate_below=0.55, chunk_size=1)
        for o in itertools.permutations(range(3))
    ]
    values = torch.stack([one.values for one in cut]).mean(0)
    assert values.tolist() == pytest.approx([0.216667, 0.266667, 0.133333], abs=1e-6)
    whole = permutation_marginals(table_game, torch.tensor([0, 1, 2]), truncate_below=0.55)
    one = permutation_marginals(
        table_game, torch.tensor([0, 1, 2]), truncate_below=0.55, chunk_size=1
    )
    assert torch.equal(whole.values, one.values) and whole.n_evaluations > one.n_evaluations


def test_monte_carlo_within_its_errors():
    game = random_game(10)
    exact = shapley_exact(game, 10)
    for antithetic in (False, True):
        found = shapley_monte_carlo(game, 10, 400, antithetic=antithetic, generator=seeded(3))
        error = (found.variance / found.counts).sqrt()
        assert ((found.values - exact).abs() < 4.5 * error).all()
        assert found.counts.tolist() == [400] * 10
        assert found.n_evaluations == 11 * 400 * (1 + antithetic)


def test_welford_agrees_with_two_passes():
    game, g = random_game(5), seeded(4)
    orders = [torch.randperm(5, generator=g) for _ in range(30)]
    rows = torch.stack([permutation_marginals(game, o).values for o in orders])
    found = shapley_monte_carlo(game, 5, 30, generator=seeded(4))
    assert torch.allclose(found.values, rows.mean(0), atol=1e-12)
    assert torch.allclose(found.variance, rows.var(0), atol=1e-12)
    half = empirical_bernstein(found.variance, found.counts, 0.05)
    assert torch.equal(found.half_width, half)


def test_antithetic_pairs_are_exact_for_squares():
    found = shapley_monte_carlo(lambda m: m.sum(1).double() ** 2, 4, 5, antithetic=True)
    assert found.values.tolist() == [4] * 4 and found.variance.tolist() == [0] * 4


def test_topk_and_one_sample():
    found = shapley_monte_carlo(table_game, 3, 1, generator=seeded())
    assert found.half_width.tolist() == [1] * 3 and found.variance.tolist() == [0] * 3
    assert not found.active.any() and found.history == []
    many = shapley_monte_carlo(table_game, 3, 400, generator=seeded())
    assert many.topk(2).tolist() == [1, 0]


# ---- interval and bandit ----


@pytest.mark.parametrize(
    ("variance", "count", "wanted"),
    [(0.04, 10, 0.732689), (0.04, 100, 0.097189), (0.0, 100, 0.054270), (0.04, 1, 1.0)],
)
def test_interval_by_hand(variance, count, wanted):
    found = empirical_bernstein(torch.tensor([variance]), torch.tensor([count]), 0.2)
    assert found.item() == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_interval_dtypes(dtype):
    found = empirical_bernstein(torch.tensor([0.25]).to(dtype), torch.tensor([50]), 0.1)
    assert found.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


def test_interval_covers():
    "Of coins: the share of intervals that miss must stay below delta."
    g, misses = seeded(), 0
    for _ in range(300):
        x = (torch.rand(80, generator=g) < 0.2).double()
        half = empirical_bernstein(x.var()[None], torch.tensor([80]), 0.2)
        misses += abs(x.mean() - 0.2) > half[0]
    assert misses / 300 < 0.2


def test_additive_game_stops_as_soon_as_the_interval_allows():
    weights = torch.tensor([0.1, 0.4, 0.2, 0.05], dtype=torch.float64)

    def additive(masks):
        return masks.double() @ weights

    epsilon, delta = 0.05, 0.2
    found = tmab_shapley(additive, 4, 2, epsilon=epsilon, delta=delta, generator=seeded())
    assert torch.allclose(found.values, weights, atol=1e-12)
    assert sorted(found.topk(2).tolist()) == [1, 2] and not found.active.any()
    need = 7 * math.log(2 / delta) / (3 * epsilon)  # the k-th player: half-width <= epsilon
    assert len(found.history) == found.counts.max() == math.ceil(need + 1)
    assert found.counts[1] < found.counts[2]  # the winner left earlier than the border


def test_bandit_without_tolerance_stops_at_one_player():
    weights = torch.tensor([0.1, 0.4, 0.25], dtype=torch.float64)
    found = tmab_shapley(lambda m: m.double() @ weights, 3, 1, epsilon=0, generator=seeded())
    assert found.history[-1] == 1 and found.active.sum() == 1


def test_bandit_agrees_with_monte_carlo_while_all_are_in_play():
    game = random_game(6)
    bandit = tmab_shapley(game, 6, 2, max_steps=5, generator=seeded(2))
    plain = shapley_monte_carlo(game, 6, 5, delta=0.2, generator=seeded(2))
    assert bandit.history == [6] * 5 and bool(bandit.active.all())
    assert torch.equal(bandit.values, plain.values)
    assert bandit.n_evaluations == plain.n_evaluations


def test_players_that_left_stay_out_without_readmit():
    game = random_game(8, 5)
    how = dict(epsilon=0.01, generator=seeded(1), value_range=0.1)
    found = tmab_shapley(game, 8, 3, readmit=False, max_steps=400, **how)
    assert (np.diff(found.history) <= 0).all()
    assert found.counts.min() >= 2
    assert found.counts.sum() >= sum(found.history)


def test_fresh_batches_and_seeds():
    drawn = []
    how = dict(resample=lambda: drawn.append(1), max_steps=7)
    first = tmab_shapley(random_game(5), 5, 2, generator=seeded(1), **how)
    again = tmab_shapley(random_game(5), 5, 2, generator=seeded(1), **how)
    assert len(drawn) == 14 and torch.equal(first.values, again.values)


# ---- the last layer ----


@pytest.mark.parametrize("metric", ["accuracy", "log_likelihood"])
def test_linear_head_agrees_with_the_masked_layer(metric):
    g = seeded()
    h = torch.randn(30, 8, generator=g, dtype=torch.float64)
    head = nn.Linear(8, 5).double().requires_grad_(False)
    y = torch.randint(0, 5, (30,), generator=g)
    game = linear_head_value_fn(h, head.weight, head.bias, y, metric)
    every = (torch.arange(256)[:, None] >> torch.arange(8) & 1).bool()
    logits = head(h * every[:, None])
    if metric == "accuracy":
        wanted = (logits.argmax(-1) == y).double().mean(1)
    else:
        wanted = torch.stack([-F.cross_entropy(one, y) for one in logits])
    mixed = torch.randperm(256, generator=g)
    assert torch.allclose(game(every[mixed]), wanted[mixed], atol=1e-9)  # far from each other
    path = torch.ones(9, 8, dtype=torch.bool).tril(-1)  # one more on each time
    assert torch.allclose(game(path), game(path[torch.randperm(9, generator=g)]).sort().values) or (
        torch.allclose(game(path), torch.cat([game(row[None]) for row in path]), atol=1e-9)
    )


def test_ties_go_to_the_first_class():
    eye, target = torch.eye(2), torch.tensor([0, 1])
    game = linear_head_value_fn(eye, eye, torch.zeros(2), target)
    off = torch.zeros(1, 2, dtype=torch.bool)
    assert game(off).item() == 0.5  # argmax of equal logits is class 0


def test_orders_are_efficient_without_a_bias():
    "The empty mask is one tie: rounding must not decide it."
    g = seeded(7)
    x, net = torch.randn(50, 16, generator=g).double(), nn.Linear(16, 10, bias=False).double()
    target = torch.randint(10, (50,), generator=g)
    bare = nn.Sequential(nn.Identity(), net)
    game = linear_head_value_fn(x, net.weight, torch.zeros(10).double(), target)
    ends = game(torch.tensor([[True], [False]]).expand(2, 16))
    for seed in range(6):
        order = torch.randperm(16, generator=seeded(seed))
        found = permutation_marginals(game, order).values
        assert found.sum().item() == pytest.approx((ends[0] - ends[1]).item(), abs=1e-12)
        with ChannelMask(bare, ["0"], ablation="zero", calibration=x) as masking:
            wanted = permutation_marginals(NetworkValue(masking, x, target), order).values
        assert torch.allclose(found, wanted, atol=1e-12)


# ---- masks on a network ----


def network(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(45, 3),
    )
    return net.to(dtype), torch.rand(6, 1, 8, 8, dtype=dtype)


def test_all_on_is_the_bare_network_and_hooks_go():
    net, x = network()
    net.train()
    net[5].eval()
    before = [m.training for m in net.modules()]
    with ChannelMask(net, ["2", "4"], calibration=x) as mask:
        assert mask.n_players == 9 and mask.owner(5) == ("4", 1)
        assert not net.training
        mask.set(torch.ones(9, dtype=torch.bool))
        inside = net(x)
        with pytest.raises(RuntimeError, match="once at a time"):
            mask.__enter__()
    assert [m.training for m in net.modules()] == before
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.equal(inside, net.eval()(x))
    with pytest.raises(ZeroDivisionError), ChannelMask(net, ["2"], calibration=x):
        raise ZeroDivisionError
    assert not any(m._forward_hooks for m in net.modules())
    with pytest.raises(RuntimeError, match="entered"):
        mask.set(None)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("reuse_prefix", [True, False])
def test_masks_agree_with_channels_cut_by_hand(ablation, reuse_prefix):
    net, x = network(torch.float64)
    net.eval()
    masks = torch.rand(12, 9, generator=seeded(1)) < 0.6
    masks[3] = masks[7]
    with torch.no_grad():
        first = net[:3](x)
        second = net[3:5](first)
        fills = [h.mean((0, 2, 3)) * (ablation == "mean") for h in (first, second)]
        wanted = []
        for mask in masks:
            h = net[:3](x)
            h[:, ~mask[:4]] = fills[0][~mask[:4], None, None]
            h = net[3:5](h)
            h[:, ~mask[4:]] = fills[1][~mask[4:], None, None]
            wanted.append(net[6:](h))
        with ChannelMask(net, ["2", "4"], ablation=ablation, calibration=x) as mask:
            found = mask.outputs(x, masks, reuse_prefix=reuse_prefix)
            mask.set(masks[5])
            single = net(x)
    assert torch.allclose(found, torch.stack(wanted), atol=1e-12)
    assert torch.allclose(single, wanted[5], atol=1e-12)


def test_layers_in_another_order_than_they_run():
    net, x = network(torch.float64)
    masks = torch.rand(7, 9, generator=seeded(2)) < 0.5
    turned = torch.cat([masks[:, 4:], masks[:, :4]], 1)
    with torch.no_grad(), ChannelMask(net, ["2", "4"], calibration=x) as mask:
        wanted = mask.outputs(x, masks)
    with torch.no_grad(), ChannelMask(net, ["4", "2"], calibration=x) as mask:
        assert torch.allclose(mask.outputs(x, turned), wanted)


def test_zero_mask_is_a_network_with_zeroed_weights():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x, mask = torch.rand(5, 1, 8, 8), torch.tensor([True, False, True, False])
    with torch.no_grad(), ChannelMask(net, ["0"], ablation="zero") as masking:
        masking.set(mask)
        found = net(x)
        none = masking.outputs(x, torch.zeros(1, 4, dtype=torch.bool))[0]
        masking.set(None)
        weights = net[0].weight.clone()
    assert torch.equal(weights, net[0].weight)
    with torch.no_grad():
        net[0].weight[~mask] = 0
    assert torch.equal(found, net(x))
    assert torch.allclose(none, net[3].bias.expand(5, 3))


class Skip(nn.Module):
    "Something goes around the layer."

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x + self.layer(x))


@pytest.mark.parametrize("reuse_prefix", [False, True])
def test_resampling_by_hand(reuse_prefix):
    net, data = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    x, donors = torch.randn(7, 3), torch.randperm(5, generator=seeded(3))
    how = dict(ablation="resample", calibration=data, generator=seeded(3))
    mask = torch.tensor([True, False, False, True])
    with ChannelMask(net, ["1"], **how) as masking:
        found = masking.outputs(x, torch.stack([mask, ~mask]), reuse_prefix=reuse_prefix)
        assert masking.n_players == 4
    other = net[:2](data)[donors].repeat(2, 1)[:7]
    for row, on in zip(found, (mask, ~mask), strict=True):
        assert torch.allclose(row, net[2](torch.where(on, net[:2](x), other)), atol=1e-6)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

    def forward(self, x):
        return self.head(torch.cat([self.one(x), self.two(x)], 1))


def test_branches():
    net, masks = Branches(), torch.rand(6, 9, generator=seeded()) < 0.5
    with ChannelMask(net, ["one", "two"], ablation="zero") as masking:
        assert masking.outputs(torch.randn(4, 3), masks, reuse_prefix=False).shape == (6, 4, 2)
        with pytest.raises(ValueError, match="reuse_prefix must be False"):
            masking.outputs(torch.randn(4, 3), masks)


def test_skip_connections():
    net, x, masks = Skip(), torch.randn(3, 4), torch.rand(5, 4) < 0.5
    with torch.no_grad(), ChannelMask(net, ["layer"], calibration=x) as mask:
        found = mask.outputs(x, masks, reuse_prefix=False)
        for one, wanted in zip(masks, found, strict=True):
            mask.set(one)
            assert torch.allclose(net(x), wanted, atol=1e-6)
        with pytest.raises(RuntimeError):
            mask.outputs(x, masks)


def test_half_precision():
    net, x = network(torch.bfloat16)
    masks = torch.rand(4, 9) < 0.5
    with torch.no_grad(), ChannelMask(net, ["2", "4"], calibration=x) as mask:
        assert mask.outputs(x, masks).dtype == torch.bfloat16
        value = NetworkValue(mask, x, torch.tensor([0, 1, 2, 0, 1, 2]), metric="log_likelihood")
        assert value(masks).dtype == torch.float64


@pytest.mark.parametrize("chunk_size", [1, 13, 4096])
def test_network_value(chunk_size):
    net, x = network(torch.float64)
    y, masks = torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(10, 9) < 0.7
    with torch.no_grad(), ChannelMask(net, ["2", "4"], calibration=x) as mask:
        logits = mask.outputs(x, masks)
        found = NetworkValue(mask, x, y, chunk_size=chunk_size)(masks)
        assert torch.allclose(found, (logits.argmax(-1) == y).double().mean(1))
        part = NetworkValue(mask, x, y, batch_size=2, generator=seeded(1))
        once, twice = part(masks), part(masks)
        assert torch.equal(once, twice)  # one batch until resample
        drawn = set()
        for _ in range(20):
            part.resample()
            drawn.add(tuple(part(masks).tolist()))
        assert len(drawn) > 1


def test_network_and_head_agree():
    net, x = mlp(6, 9, 4).double(), torch.randn(20, 6, dtype=torch.float64)
    y, order = torch.randint(0, 4, (20,)), torch.randperm(9, generator=seeded())
    with torch.no_grad():
        head = linear_head_value_fn(net[:2](x), net[2].weight, net[2].bias, y)
    with ChannelMask(net, ["1"], ablation="zero", calibration=x) as mask:
        value = NetworkValue(mask, x, y)
        assert torch.equal(
            permutation_marginals(value, order).values, permutation_marginals(head, order).values
        )


def test_removal_curve():
    game = random_game(6)
    order = torch.tensor([4, 1, 5])
    found = removal_curve(game, order, [0, 3, 1], n_players=6)
    masks = torch.ones(3, 6, dtype=torch.bool)
    masks[1, [4, 1, 5]] = False
    masks[2, 4] = False
    assert torch.equal(found, game(masks))


def test_it_finds_the_neurons_that_matter():
    "Only two of eight hidden neurons carry the answer; leave-one-out is blind to their copies."
    g = seeded()
    x = torch.randn(400, 2, generator=g)
    y = (x[:, 0] > 0).long()
    h = torch.cat([x[:, :1], x[:, :1], torch.randn(400, 6, generator=g)], 1)
    weight = torch.zeros(2, 8)
    weight[1, :2], weight[1, 2:] = 3.0, 0.1
    game = linear_head_value_fn(h, weight, torch.zeros(2), y)
    found = tmab_shapley(game, 8, 2, epsilon=0.02, value_range=2, generator=g, max_steps=400)
    assert sorted(found.topk(2).tolist()) == [0, 1]
    alone = game(torch.ones(1, 8, dtype=torch.bool)) - game(~torch.eye(8, dtype=torch.bool)[:2])
    assert alone.abs().max() < 0.05 < 0.2 < found.values[:2].min()


# ---- bad inputs of the brief ----


def test_messages():
    game = table_game
    with pytest.raises(ValueError, match="n_players must be <= 20"):
        shapley_exact(game, 21)
    for k in (0, 3):
        with pytest.raises(ValueError, match="k must"):
            tmab_shapley(game, 3, k)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="delta must"):
            tmab_shapley(game, 3, 1, delta=delta)
    with pytest.raises(ValueError, match="epsilon must"):
        tmab_shapley(game, 3, 1, epsilon=-0.1)
    with pytest.raises(ValueError, match=r"what value_fn returns must have shape \(8,\)"):
        shapley_exact(lambda m: m.double(), 3)
    with pytest.raises(ValueError, match="what value_fn returns must hold finite"):
        shapley_monte_carlo(lambda m: m.double().sum(1) / 0, 3, 1)
    for wrong in ([0, 0, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="perm must be a permutation"):
            permutation_marginals(game, torch.tensor(wrong))
    net, x = network()
    with pytest.raises(ValueError, match="mean ablation needs calibration data"):
        ChannelMask(net, ["2"])
    with pytest.raises(ValueError, match="layers must name submodules"):
        ChannelMask(net, ["nine"], calibration=x)
    with pytest.raises(ValueError, match="calibration must be given, to count"):
        ChannelMask(net, ["2"], ablation="zero")
    with pytest.raises(ValueError, match="order must hold different"):
        removal_curve(game, torch.tensor([0, 0]), [1], n_players=3)
