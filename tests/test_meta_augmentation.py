"""Meta-augmentation: episodes, keys, entropies, MAML in its forms, the CNP, the exchange gap."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from ponderlearn._nested import mlp
from ponderlearn.multitask import meta_augmentation as ma
from ponderlearn.multitask.meta_augmentation import (
    ConditionalNeuralProcess,
    conditional_entropy,
    count_tasks,
    maml_adapt,
    maml_losses,
    permute_labels,
    sample_episodes,
    shift_targets,
    support_shuffle_gap,
)

KINDS = "non_me", "intrashuffle", "intershuffle"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def classes_of(n_classes=10, n_each=6):
    "Inputs that are their own row numbers."
    y = torch.arange(n_classes).repeat(n_each)
    return torch.arange(len(y)), y


# ---- episodes ----


@pytest.mark.parametrize(
    ("n_classes", "n_way", "counts"),
    [
        (4, 2, (2, 4, 12)),
        (64, 5, (12, 1440, 914_941_440)),
        (50, 5, (10, 1200, 254_251_200)),
        (7, 3, (2, 12, 210)),
        (3, 3, (1, 6, 6)),
    ],
)
def test_counts(n_classes, n_way, counts):
    assert tuple(count_tasks(n_classes, n_way, kind) for kind in KINDS) == counts


@pytest.mark.parametrize("kind", KINDS)
def test_episodes(kind):
    x, y = classes_of()
    e = sample_episodes(x, y, 3, 2, 4, 500, kind, generator=seeded())
    assert e.x_s.shape == (500, 6) and e.x_q.shape == (500, 12) and e.classes.shape == (500, 3)
    assert torch.equal(e.classes.gather(1, e.y_s), y[e.x_s])
    assert torch.equal(e.classes.gather(1, e.y_q), y[e.x_q])
    assert e.y_s[0].tolist() == [0, 0, 1, 1, 2, 2] and e.y_q[7, :5].tolist() == [0, 0, 0, 0, 1]
    rows = torch.cat([e.x_s, e.x_q], 1)
    assert all(len(set(row)) == 18 for row in rows.tolist())
    seen = {tuple(row) for row in e.classes.tolist()}
    groups = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    if kind == "non_me":
        assert seen == set(groups)
    elif kind == "intrashuffle":
        assert seen == {p for group in groups for p in permutations(group)}
    else:
        assert len(seen) > 300 and 9 in e.classes and all(len(set(s)) == 3 for s in seen)


def test_images_are_drawn_evenly():
    x, y = classes_of(4, 6)
    e = sample_episodes(x, y, 4, 1, 1, 6000, generator=seeded(1))
    counts = torch.bincount(e.x_s.flatten(), minlength=24).double()
    assert (
        (counts - 1000) ** 2 / 1000
    ).sum() < 50  # chi-square, 20 degrees of freedom: 45 at 0.001


def test_classes_of_unequal_size_and_any_number():
    y = torch.tensor([5] * 3 + [-2] * 7 + [100] * 4)[torch.randperm(14, generator=seeded())]
    e = sample_episodes(torch.arange(14), y, 2, 1, 2, 300, generator=seeded(2))
    assert set(e.classes.flatten().tolist()) == {-2, 5, 100}
    assert torch.equal(e.classes.gather(1, e.y_q), y[e.x_q])
    assert set(e.x_s.flatten().tolist()) == set(range(14))
    with pytest.raises(ValueError, match=r"y must hold at least .* = 4 .*, got 3 of class 5"):
        sample_episodes(torch.arange(14), y, 2, 1, 3, 5)
    with pytest.raises(ValueError, match="n_way must be at most 3"):
        sample_episodes(torch.arange(14), y, 5, 1, 1, 5)
    with pytest.raises(ValueError, match="kind must be one of"):
        sample_episodes(torch.arange(14), y, 2, 1, 1, 5, "inter")


def test_the_generator_decides():
    x, y = classes_of()
    a, b = (sample_episodes(x, y, 5, 1, 2, 9, generator=seeded(3)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# ---- keys ----


def test_permutations():
    y_s = torch.arange(3).repeat(6000, 2)
    y_q = torch.randint(3, (6000, 5), generator=seeded())
    new = permute_labels(y_s, y_q, 3, generator=seeded(1))
    back = new.permutation.argsort(1)
    assert torch.equal(back.gather(1, new.y_s), y_s) and torch.equal(back.gather(1, new.y_q), y_q)
    counts = Counter(map(tuple, new.permutation.tolist()))
    assert len(counts) == 6
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 20.5  # 0.001 at 5 degrees
    assert permute_labels(y_s.int(), y_q.int(), 3).y_q.dtype == torch.int32
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=r"y_q must hold labels in 0 .. n_way - 1 = 2"):
            permute_labels(y_s, torch.full((6000, 1), bad), 3)


@given(
    scale=st.floats(0.1, 5),
    n_values=st.one_of(st.none(), st.integers(1, 7)),
    modulus=st.one_of(st.none(), st.floats(0.5, 3)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_shifts(scale, n_values, modulus, seed):
    g = seeded(seed)
    y_s, y_q = torch.rand(4, 3, 2, generator=g).double(), torch.rand(4, 5, 2, generator=g).double()
    how = {"kind": "uniform" if n_values is None else "discrete", "n_values": n_values}
    new = shift_targets(y_s, y_q, scale=scale, modulus=modulus, generator=g, **how)
    assert new.epsilon.shape == (4,) and new.epsilon.dtype == torch.float64
    if n_values is None:
        assert (new.epsilon.abs() <= scale).all()
    else:
        steps = new.epsilon * n_values / scale
        assert torch.allclose(steps, steps.round()) and (steps < n_values - 0.5).all()
    for old, moved in ((y_s, new.y_s), (y_q, new.y_q)):
        rest = moved - old - new.epsilon[:, None, None]
        if modulus is not None:
            assert (moved >= 0).all() and (moved < modulus).all()
            rest = rest / modulus
            rest = rest - rest.round()
        assert rest.abs().max() < 1e-9


def test_shift_by_hand():
    y = torch.tensor([[0.0, 0.1, 0.5, 0.9]])
    keys = set()
    for seed in range(40):
        how = {"kind": "discrete", "n_values": 4, "modulus": 1.0, "generator": seeded(seed)}
        new = shift_targets(y, y, **how)
        keys.add(round(new.epsilon.item(), 2))
        if new.epsilon.item() == 0.75:
            torch.testing.assert_close(new.y_q, torch.tensor([[0.75, 0.85, 0.25, 0.65]]))
    assert keys == {0, 0.25, 0.5, 0.75}
    one = shift_targets(y, y, kind="discrete", n_values=1)
    assert torch.equal(one.y_s, y) and torch.equal(one.epsilon, torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_never_the_modulus_itself(dtype):
    y = torch.tensor([[-1e-9, 1 - 1e-8, 0.999, -1e-30]], dtype=dtype).repeat(500, 1)
    new = shift_targets(y, y, scale=1e-8, modulus=1.0, generator=seeded())
    assert new.y_s.dtype == dtype and (new.y_s < 1).all() and (new.y_s >= 0).all()


def test_support_and_query_share_the_key():
    y = torch.rand(50, 6, generator=seeded())
    a = shift_targets(y, y, generator=seeded(1))
    assert torch.equal(a.y_s, a.y_q) and len(a.epsilon.unique()) == 50
    with pytest.raises(ValueError, match="n_values must be given"):
        shift_targets(y, y, kind="discrete")
    with pytest.raises(ValueError, match="n_values must be None"):
        shift_targets(y, y, n_values=3)


# ---- entropy ----


def table(rows):
    return torch.tensor(rows, dtype=torch.float64)


def keyed(joint, keys):
    return torch.stack([joint.roll(k, 1) for k in keys]).mean(0)


@pytest.mark.parametrize(
    ("joint", "value"),
    [
        (table([[1.0, 0], [0, 1]]), 0),
        (keyed(torch.eye(4).double(), range(4)), 1.386294),
        (table([[1.0, 1]]), 0.693147),
        (table([[3.0, 1], [6, 2]]), 0.562335),
        (keyed(table([[1.0, 1, 0, 0]]), range(4)), 1.386294),
        (keyed(table([[1.0, 1, 0, 0]]), (0, 2)), 1.386294),
        (keyed(table([[1.0, 1, 0, 0]]), (0, 1)), 1.039721),
        (table([[1.0, 1], [0, 0]]), 0.693147),
    ],
)
def test_entropies(joint, value):
    assert conditional_entropy(joint).item() == pytest.approx(value, abs=1e-6)
    many = conditional_entropy(torch.stack([joint, 7 * joint]), base=2) * math.log(2)
    assert many.tolist() == pytest.approx([value] * 2, abs=1e-6)


@given(
    n_x=st.integers(1, 5), n=st.integers(2, 6), n_keys=st.integers(1, 6), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_bounds_of_a_shift(n_x, n, n_keys, seed):
    n_keys = min(n_keys, n)
    joint = torch.rand(n_x, n, generator=seeded(seed)).double()
    before, key = conditional_entropy(joint).item(), math.log(n_keys)
    after = conditional_entropy(keyed(joint, range(n_keys))).item()
    assert max(before, key) - 1e-9 <= after <= before + key + 1e-9


def test_entropy_of_a_permutation():
    labels = torch.tensor(list(permutations(range(5))))  # (120, 5)
    task = torch.zeros(1, 120).double() + 1
    assert conditional_entropy(task).item() == pytest.approx(4.787492, abs=1e-6)
    assert conditional_entropy(task, base=2).item() == pytest.approx(6.906891, abs=1e-6)
    single = torch.stack([torch.bincount(column, minlength=5) for column in labels.T]).double()
    assert conditional_entropy(single).item() == pytest.approx(math.log(5))


def test_entropy_bad_tables():
    for bad in ([[1.0, -1]], [[math.nan, 1]], [[0.0, 0]], [[math.inf, 1]]):
        with pytest.raises(ValueError, match="joint must"):
            conditional_entropy(torch.tensor(bad))
    huge = torch.full((2, 2), 3e38)
    assert conditional_entropy(huge).item() == pytest.approx(math.log(2))
    assert conditional_entropy(torch.ones(2, 2).bfloat16()).dtype == torch.float32


# ---- MAML ----


class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return self.theta.expand(len(x), 1)


def double(*rows):
    return torch.tensor(rows, dtype=torch.float64)[..., None]


@pytest.mark.parametrize(("first_order", "slope"), [(False, -2.88), (True, -3.6)])
def test_maml_by_hand(first_order, slope):
    net, one = Number(), double([1.0])
    batch = one, one, one, 2 * one
    found = maml_losses(net, batch, loss_fn=F.mse_loss, lr=0.1, first_order=first_order)
    found.post_loss.sum().backward()
    assert found.post_loss.item() == pytest.approx(3.24) and found.pre_loss.item() == 4
    assert found.post_pred.item() == pytest.approx(0.2)
    assert net.theta.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("low_rank", [True, False])
@pytest.mark.parametrize(
    ("first_order", "slopes"),
    [(False, (-0.485333, -0.821333)), (True, (-1.12, -1.306667))],
)
def test_line_by_hand(monkeypatch, low_rank, first_order, slopes):
    net = nn.Linear(1, 1).double()
    with torch.no_grad():
        net.weight.fill_(0.5), net.bias.fill_(-0.2)
    batch = double([0.0, 1, 2]), double([1.0, 2, 2]), double([-1.0, 3]), double([0.0, 3])
    monkeypatch.setattr(ma, "_chain", lambda *_: [net] if low_rank else None)
    found = maml_losses(net, batch, loss_fn=F.mse_loss, lr=0.1, first_order=first_order)
    found.post_loss.sum().backward()
    assert found.pre_loss.item() == pytest.approx(1.69)
    assert found.post_loss.item() == pytest.approx(0.429022, abs=1e-6)
    assert net.weight.grad.item() == pytest.approx(slopes[0], abs=1e-6)
    assert net.bias.grad.item() == pytest.approx(slopes[1], abs=1e-6)
    params = dict(net.named_parameters())
    moved = maml_adapt(net, params, *(x[0] for x in batch[:2]), loss_fn=F.mse_loss, lr=0.1)
    assert moved["weight"].item() == pytest.approx(0.773333, abs=1e-6)
    assert moved["bias"].item() == pytest.approx(0.073333, abs=1e-6)


def loop(net, batch, loss_fn, lr, n_steps, first_order):
    "Post losses, task by task."
    losses = []
    for x_s, y_s, x_q, y_q in zip(*batch[:4], strict=True):
        params = dict(net.named_parameters())
        for _ in range(n_steps):
            loss = loss_fn(functional_call(net, params, (x_s,)), y_s)
            slopes = torch.autograd.grad(
                loss, list(params.values()), create_graph=not first_order, allow_unused=True
            )
            params = {
                k: p if g is None else p - lr * g
                for (k, p), g in zip(params.items(), slopes, strict=True)
            }
        losses.append(loss_fn(functional_call(net, params, (x_q,)), y_q))
    return torch.stack(losses)


class Odd(nn.Module):
    "No chain of layers: a residual connection and a convolution."

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(1, 3, 3, padding=1), nn.Linear(18, 4)

    def forward(self, x):
        return self.out((self.conv(x[:, None]) + x[:, None]).tanh().flatten(1))


NETS = {
    "mlp": lambda: nn.Sequential(
        nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9, bias=False), nn.GELU(), nn.Linear(9, 4)
    ),
    "wide": lambda: mlp(6, 90, 90, 4),
    "odd": Odd,
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("n_steps", [0, 1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_all_forms_equal_the_loop(name, n_steps, first_order):
    torch.manual_seed(0)
    net = NETS[name]().double()
    x, y = torch.randn(60, 6, generator=seeded()).double(), torch.arange(10).repeat(6)
    batch = sample_episodes(x, y, 4, 1, 3, 5, generator=seeded(1))
    how = {"loss_fn": F.cross_entropy, "lr": 0.3, "n_steps": n_steps, "first_order": first_order}
    low_rank = name == "wide" or (name == "mlp" and n_steps == 0)
    assert (ma._chain(net, batch.x_s, n_steps) is not None) == low_rank
    expected = loop(net, batch, **how)
    found = maml_losses(net, batch, **how)
    torch.testing.assert_close(found.post_loss, expected, atol=1e-10, rtol=1e-10)
    params = list(net.parameters())
    for a, b in zip(
        torch.autograd.grad(found.post_loss.sum(), params),
        torch.autograd.grad(expected.sum(), params),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(found.pre_pred, torch.stack([net(q) for q in batch.x_q]).detach())
    if n_steps == 0:
        torch.testing.assert_close(found.pre_loss, found.post_loss.detach())
    with torch.no_grad():
        still = maml_losses(net, batch, **how)
    torch.testing.assert_close(still.post_pred, found.post_pred.detach())


def tied(kind):
    "The same layer twice, or two layers that share their parameters: the same function."
    torch.manual_seed(0)
    a, b, again, c = nn.Linear(6, 90), nn.Linear(90, 90), nn.Linear(90, 90), nn.Linear(90, 4)
    again.weight, again.bias = b.weight, b.bias
    again = b if kind == "layer" else again
    return nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), again, nn.Tanh(), c).double()


@pytest.mark.parametrize("kind", ["layer", "weights"])
def test_tied_weights(kind):
    net = tied(kind)
    x, y = torch.randn(60, 6, generator=seeded()).double(), torch.arange(10).repeat(6)
    batch = sample_episodes(x, y, 4, 1, 3, 5, generator=seeded(1))
    how = {"loss_fn": F.cross_entropy, "lr": 0.3}
    found = maml_losses(net, batch, **how).post_loss
    assert all(isinstance(m.weight, nn.Parameter) for m in net if isinstance(m, nn.Linear))
    expected = loop(tied("weights"), batch, n_steps=1, first_order=False, **how)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("first_order", [False, True])
def test_gradient_of_the_support_inputs(monkeypatch, first_order):
    "Both forms agree; the first-order one lets nothing through."
    net = mlp(6, 90, 90, 4).double()
    x_s, x_q = torch.randn(3, 5, 6).double().requires_grad_(), torch.randn(3, 7, 6).double()
    batch = x_s, torch.randint(4, (3, 5)), x_q, torch.randint(4, (3, 7))
    found = []
    for chain in (ma._chain, lambda *_: None):
        monkeypatch.setattr(ma, "_chain", chain)
        losses = maml_losses(net, batch, loss_fn=F.cross_entropy, lr=0.3, first_order=first_order)
        how = {"allow_unused": True, "materialize_grads": True}
        found += torch.autograd.grad(losses.post_loss.sum(), x_s, **how)
    torch.testing.assert_close(*found)
    assert (found[0].abs().max() == 0) == first_order


@pytest.mark.parametrize("hidden", [3, 90])  # through vmap, and of low rank
@pytest.mark.parametrize("change", [lambda x: x[..., :2], lambda x: x.long(), torch.Tensor.double])
def test_inputs_that_do_not_fit(hidden, change):
    net, x, y = mlp(6, hidden, hidden, 4), torch.randn(3, 5, 6), torch.randint(4, (3, 5))
    assert (ma._chain(net, x, 1) is None) == (hidden == 3)
    batch = change(x), y, change(x), y
    with pytest.raises(ValueError, match="batch: x_s must be what model takes, got"):
        maml_losses(net, batch, loss_fn=F.cross_entropy, lr=0.1)


def test_which_form_is_taken():
    x = torch.zeros(8, 5, 144)
    net = mlp(144, 64, 64, 5)
    assert ma._chain(net, x, 1) is not None
    assert ma._chain(net, torch.zeros(8, 500, 144), 1) is None  # many support examples
    assert ma._chain(net, x, 100) is None
    assert ma._chain(nn.Sequential(nn.Flatten(), nn.Linear(144, 64)), x, 1) is None
    assert ma._chain(net, x[..., None], 1) is None
    assert ma._chain(nn.Sequential(nn.Linear(144, 64), nn.Dropout()), x, 1) is None
    net[0].register_forward_hook(lambda *_: None)
    assert ma._chain(net, x, 1) is None


def test_maml_gradcheck_and_vmap():
    x, y = torch.randn(3, 4, 2).double(), torch.randn(3, 4, 1).double()
    net = mlp(2, 5, 1).double()

    def post(w):
        def one(x_s, y_s):
            params = dict(net.named_parameters()) | {"0.weight": w}
            moved = maml_adapt(net, params, x_s, y_s, loss_fn=F.mse_loss, lr=0.1, n_steps=2)
            return F.mse_loss(functional_call(net, moved, (x_s,)), y_s)

        return vmap(one)(x, y)

    assert torch.autograd.gradcheck(post, net[0].weight.detach().clone().requires_grad_())

    def mean_loss(w):
        with torch.no_grad():
            net[0].weight.copy_(w)
        return maml_losses(net, (x, y, x, y), loss_fn=F.mse_loss, lr=0.1).post_loss.mean()

    w = net[0].weight.detach().clone()
    slope = torch.autograd.grad(mean_loss(w), net[0].weight)[0]
    for i, j in ((0, 0), (3, 1)):
        step = torch.zeros_like(w)
        step[i, j] = 1e-6
        numeric = (mean_loss(w + step) - mean_loss(w - step)) / 2e-6
        assert slope[i, j].item() == pytest.approx(numeric.item(), rel=1e-4, abs=1e-8)


def test_task_gradients_stay_apart():
    net = mlp(3, 30, 2)
    x, y = torch.randn(4, 6, 3), torch.randn(4, 6, 2)
    both = maml_losses(net, (x, y, x, y), loss_fn=F.mse_loss, lr=0.1).post_loss
    alone = maml_losses(net, (x[1:2], y[1:2]) * 2, loss_fn=F.mse_loss, lr=0.1).post_loss
    torch.testing.assert_close(both[1:2], alone)


def test_maml_takes_a_functional_gradient():
    net = mlp(3, 30, 2)
    x, y = torch.randn(2, 4, 6, 3), torch.randn(2, 4, 6, 2)

    def loss(scale, x, y):
        batch = x * scale, y, x * scale, y
        return maml_losses(net, batch, loss_fn=F.mse_loss, lr=0.1).post_loss.mean()

    slopes = vmap(grad(loss), (None, 0, 0))(torch.ones(()), x, y)
    for k in range(2):
        scale = torch.ones((), requires_grad=True)
        (one,) = torch.autograd.grad(loss(scale, x[k], y[k]), scale)
        torch.testing.assert_close(slopes[k], one, atol=1e-5, rtol=1e-4)


# ---- the neural process ----


def test_cnp_symmetries():
    net = ConditionalNeuralProcess(3, 2, hidden_size=8)
    x_s, y_s, x_q = torch.randn(4, 6, 3), torch.randn(4, 6, 2), torch.randn(4, 5, 3)
    out = net(x_s, y_s, x_q)
    order = torch.randperm(6)
    torch.testing.assert_close(net(x_s[:, order], y_s[:, order], x_q), out)
    torch.testing.assert_close(net(x_s.repeat(1, 3, 1), y_s.repeat(1, 3, 1), x_q), out)
    torch.testing.assert_close(net(x_s, y_s, x_q.flip(1)), out.flip(1))
    plain = [
        torch.cat([net.summary(torch.cat([a, b], -1)).mean(0, keepdim=True).expand(5, -1), q], -1)
        for a, b, q in zip(x_s, y_s, x_q, strict=True)
    ]
    torch.testing.assert_close(torch.stack([net.decoder(p) for p in plain]), out)


def test_cnp_encoder():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    net = ConditionalNeuralProcess(3, 2, hidden_size=8, encoder=encoder)
    x_s, y_s, x_q = torch.randn(4, 6, 1, 4, 4), torch.randn(4, 6, 2), torch.randn(4, 5, 1, 4, 4)
    assert net(x_s, y_s, x_q).shape == (4, 5, 2)
    assert any(p is encoder[1].weight for p in net.parameters())
    with pytest.raises(ValueError, match="what encoder returns"):
        ConditionalNeuralProcess(7, 2, encoder=encoder)(x_s, y_s, x_q)
    with pytest.raises(ValueError, match="y_s must have shape"):
        net(x_s, y_s[:, :3], x_q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cnp_dtypes(dtype):
    net = ConditionalNeuralProcess(3, 2, hidden_size=8).to(dtype)
    x = torch.randn(4, 6, 3, dtype=dtype)
    assert net(x, x[..., :2], x).dtype == dtype


def test_cnp_compiles():
    net = ConditionalNeuralProcess(3, 2, hidden_size=8)
    x = torch.randn(4, 6, 3)
    fast = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(fast(x, x[..., :2], x), net(x, x[..., :2], x))


# ---- the gap ----


def test_gap_of_a_blind_predictor():
    x, y = torch.randn(7, 5, 3), torch.randn(7, 5, 2)
    for targets_only in (False, True):
        gap = support_shuffle_gap(
            lambda x_s, y_s, x_q: x_q[..., :2], (x, y, x, y), F.mse_loss, targets_only=targets_only
        )
        assert gap.own == gap.other


@given(n=st.integers(2, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_nobody_keeps_the_own_support(n, seed):
    tag = torch.arange(n)[:, None, None].float()
    seen = []

    def predict(x_s, y_s, x_q):
        seen.append((x_s.flatten().tolist(), y_s.flatten().tolist()))
        return x_q

    for targets_only in (False, True):
        how = {"targets_only": targets_only, "generator": seeded(seed)}
        support_shuffle_gap(predict, (tag, tag, tag, tag), F.mse_loss, **how)
    own, (x, y), _, (kept, y2) = seen
    assert sorted(y) == own[1] and x == y and all(a != b for a, b in zip(y, own[1], strict=True))
    assert kept == own[0] and y2 == y


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_exchange_within_a_group(sizes, seed):
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=seeded(seed))]
    tag, n = groups[:, None, None].float(), len(groups)
    seen = []

    def predict(x_s, y_s, x_q):
        seen.append(y_s.flatten().long())
        return x_q

    how = {"groups": groups, "generator": seeded(seed)}
    if 2 * max(sizes) > n:
        with pytest.raises(ValueError, match=f"groups must have at most {n // 2} tasks a group"):
            support_shuffle_gap(predict, (tag,) * 4, F.mse_loss, **how)
        return
    support_shuffle_gap(predict, (tag,) * 4, F.mse_loss, **how)
    own, other = seen
    assert (own != other).all() and torch.equal(own.sort().values, other.sort().values)


def test_gap_needs_two_tasks():
    x = torch.randn(1, 5, 3)
    with pytest.raises(ValueError, match="batch must hold at least 2 tasks, got 1"):
        support_shuffle_gap(lambda a, b, q: q, (x, x, x, x), F.mse_loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:3], "batch must hold x_s"),
        (lambda b: (b[0][:2], *b[1:]), "batch: y_s must have 2 tasks"),
        (lambda b: (b[0], b[1][:, :1], *b[2:]), "batch: y_s must have 4 rows"),
        (lambda b: (*b[:2], b[2][..., :1], b[3]), "batch: x_q must have dtype and rows"),
        (lambda b: (*b[:2], b[2].double(), b[3]), "batch: x_q must have dtype and rows"),
    ],
)
def test_bad_batches(change, message):
    x, y = torch.randn(3, 4, 2), torch.randn(3, 4, 1)
    with pytest.raises((ValueError, TypeError), match=message):
        maml_losses(nn.Linear(2, 1), change((x, y, x, y)), loss_fn=F.mse_loss, lr=0.1)


# ---- learning ----


def test_a_key_ends_memorization():
    "Three objects whose target is their number: learned by heart without a key."

    def trained(keys, steps=250):
        torch.manual_seed(0)
        net, g = ConditionalNeuralProcess(3, 1, hidden_size=32), seeded(1)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(steps):
            x = torch.eye(3)[torch.randint(3, (16, 1), generator=g)].expand(-1, 8, -1)
            y = x.argmax(-1, keepdim=True) / 3
            y_s, y_q = y[:, :4], y[:, 4:]
            if keys:
                y_s, y_q, _ = shift_targets(y_s, y_q, generator=g)
            loss = F.mse_loss(net(x[:, :4], y_s, x[:, 4:]), y_q)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
        batch = x[:, :4], y[:, :4] + 0.5, x[:, 4:], y[:, 4:] + 0.5  # a key that is in force
        return F.mse_loss(net(*batch[:3]), batch[3]).item()

    assert trained(True) < 0.05 < trained(False)
