"""SupSup: masks, the gradient identity, inference, the stores, files, bad input."""

import copy
import inspect
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ponderlearn._nested import mlp
from ponderlearn.multitask import supsup
from ponderlearn.multitask.supsup import (
    HopfieldStore,
    MaskStore,
    SupSup,
    TaskScores,
    alpha_gradient,
    coded_bytes,
    entropy_objective,
    infer_task,
    load_supsup,
    pack_bits,
    recover_mask,
    score_tasks,
    signed_constant_,
    superfluous_objective,
    supermask,
    unpack_bits,
)

W = torch.tensor([[0.5, -0.5, 1], [1, 0.5, -0.5]])
SCORES = torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.25, -0.05]])
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # what it imports takes seconds


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(*sizes):
    return mlp(*sizes, bias=False)


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5, bias=False)
    )


def random_net(base, k, seed=0):
    net, g = SupSup(base, seed=seed), seeded(seed)
    for _ in range(k):
        net.store.append(net.store.split(torch.rand(net.store.n_weights, generator=g) < 0.5))
    return net


def by_hand():
    net = SupSup(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net.base.weight.copy_(torch.tensor([[1.0, 1], [1, -1]]))
    for mask in ([[0, 1], [0, 1]], [[1, 0], [1, 0]], [[1, 1], [0, 0]]):
        net.store.append({"weight": torch.tensor(mask)})
    return net


def through_the_stack(net, x, objective=entropy_objective, alpha=None):
    "The gradient with automatic differentiation through all masks."
    k = len(net.store)
    alpha = (torch.full((k,), 1 / k) if alpha is None else alpha.clone()).requires_grad_()
    masks = torch.stack(
        [torch.cat([m.flatten() for m in net.store[i].values()]) for i in range(k)]
    ).float()
    return torch.autograd.grad(objective(net.run(net.weights() * (alpha @ masks), x)), alpha)[0]


# ---- masks ----


@pytest.mark.parametrize(
    ("density", "absolute", "mask", "loss", "grad"),
    [
        (
            None,
            False,
            [1, 0, 1, 0, 1, 0],
            0.078890,
            [-0.037929, 0.075858, -0.227575, 0.075858, 0.075858, -0.113787],
        ),
        (
            0.5,
            False,
            [1, 0, 1, 0, 1, 0],
            0.078890,
            [-0.037929, 0.075858, -0.227575, 0.075858, 0.075858, -0.113787],
        ),
        (
            0.5,
            True,
            [1, 0, 0, 1, 1, 0],
            1.701413,
            [-0.408787, -0.817574, -2.452723, -0.817574, 0.817574, 1.226362],
        ),
    ],
)
def test_masks_by_hand(density, absolute, mask, loss, grad):
    s = SCORES.clone().requires_grad_()
    m = supermask(s, density, absolute=absolute)
    assert m.flatten().tolist() == mask
    value = F.cross_entropy(torch.tensor([[1.0, 2, 3]]) @ (W * m).T, torch.tensor([0]))
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(s.grad.flatten(), torch.tensor(grad), atol=1e-6, rtol=1e-5)


@given(n=st.integers(1, 60), density=st.floats(0.01, 1), equal=st.booleans())
@settings(max_examples=60, deadline=None)
def test_exactly_the_share_is_kept(n, density, equal):
    scores = torch.zeros(n) if equal else torch.randn(n, generator=seeded(n))
    mask = supermask(scores, density)
    wanted = math.ceil(density * n - 1e-9)
    assert mask.sum() == wanted
    if equal:
        assert mask[:wanted].all()
    else:
        assert wanted == n or scores[mask.bool()].min() >= scores[~mask.bool()].max()


@pytest.mark.parametrize(
    ("n", "density", "ones"), [(10, 0.9, 9), (5, 0.5, 3), (7, 1.0, 7), (10, 0.1, 1)]
)
def test_counts_without_rounding_errors(n, density, ones):
    assert supermask(torch.zeros(n), density).sum() == ones


def test_straight_through_is_no_true_gradient():
    s = torch.randn(6, dtype=torch.float64, generator=seeded(), requires_grad=True)
    upstream = torch.randn(6, dtype=torch.float64, generator=seeded(1))
    assert torch.equal(torch.autograd.grad(supermask(s), s, upstream)[0], upstream)
    assert not torch.autograd.gradcheck(supermask, (s,), raise_exception=False)


@pytest.mark.parametrize(
    ("fan_in", "size"), [(784, 0.050508), (196, 0.101015), (300, 0.081650), (100, 0.141421)]
)
def test_signed_constant(fan_in, size):
    w = signed_constant_(torch.empty(200, fan_in), generator=seeded())
    torch.testing.assert_close(w.abs(), torch.full_like(w, size), atol=1e-6, rtol=0)
    assert abs((w > 0).float().mean() - 0.5) < 1.5 / math.sqrt(w.numel())
    kernel = signed_constant_(torch.empty(8, 4, 3, 3), density=0.5)
    assert kernel.abs().max() == pytest.approx(math.sqrt(2 / 18))


# ---- bits ----


def test_a_byte():
    assert pack_bits(torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])).tolist() == [178]


@given(n=st.integers(1, 40), rows=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_bits_come_back(n, rows):
    mask = torch.rand(rows, n, generator=seeded(n)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, -(-n // 8))
    assert torch.equal(unpack_bits(packed, n), mask)


@pytest.mark.parametrize(
    ("sizes", "n_bytes"),
    [
        ((784, 300, 100, 10), 33_275),
        ((784, 300, 100, 500), 39_400),
        ((784, 1024, 1024, 500), 295_424),
        ((196, 300, 100, 100), 12_350),
    ],
)
def test_bytes_of_a_mask(sizes, n_bytes):
    net = SupSup(dense(*sizes))
    net.new_task(generator=seeded())
    net.commit()
    assert net.store.nbytes == n_bytes
    assert net.store.bits.nbytes == n_bytes and net.store.bits.dtype == torch.uint8


@pytest.mark.parametrize(
    ("share", "bits"), [(0.5, 1), (0.1, 0.468996), (0.05, 0.286397), (0.01, 0.080793)]
)
def test_coded_bytes(share, bits):
    n = 1_000_000
    mask = torch.arange(n) < round(share * n)
    assert coded_bytes(mask, "entropy") == pytest.approx(bits * n / 8, abs=2)
    assert coded_bytes(mask) == n // 8 and coded_bytes(mask, "index16") == 2 * round(share * n)


@given(k=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_store_against_dense_masks(k, seed):
    store, g = MaskStore({"a": (7, 5), "b": (3, 7)}), seeded(seed)
    dense = torch.rand(k, 56, generator=g) < 0.5
    for row in dense:
        store.append(store.split(row))
    vec, alpha = torch.randn(4, 56, generator=g), torch.randn(k, generator=g)
    torch.testing.assert_close(store.project(vec[0]), dense.float() @ vec[0])
    torch.testing.assert_close(store.project(vec[0], chunk_size=3), dense.float() @ vec[0])
    torch.testing.assert_close(store.project(vec), vec @ dense.float().T)
    some = torch.arange(k - 1, -1, -2)
    torch.testing.assert_close(store.project(vec[0], tasks=some), dense[some].float() @ vec[0])
    torch.testing.assert_close(store.project(vec, tasks=some), vec @ dense[some].float().T)
    torch.testing.assert_close(store.mix(alpha), alpha @ dense.float())
    part = alpha * (torch.arange(k) % 2)
    torch.testing.assert_close(store.mix(part), part @ dense.float())
    (slope,) = torch.autograd.grad(store.mix(part.requires_grad_()) @ vec[0], part)
    torch.testing.assert_close(slope, dense.float() @ vec[0])
    torch.testing.assert_close(store.mean(), dense.float().mean(0))
    assert len(store) == k and torch.equal(store[k - 1]["b"], dense[k - 1, 35:].view(3, 7))
    assert store.bits.nbytes <= 2 * store.nbytes


def test_store_in_a_state_dict():
    net = random_net(dense(6, 9, 4), 5)
    other = SupSup(dense(6, 9, 4), seed=9)
    other.load_state_dict(net.state_dict())
    x = torch.randn(3, 6, generator=seeded())
    assert len(other.store) == 5 and torch.equal(other(x, task=3), net(x, task=3))
    torch.testing.assert_close(other.store.mean(), net.store.mean())


# ---- the gradient ----


def test_one_shot_by_hand():
    net, x = by_hand(), torch.tensor([[1.0, 2]])
    y = net(x, alpha=torch.full((3,), 1 / 3))
    torch.testing.assert_close(y, torch.tensor([[2.0, -1 / 3]]))
    assert entropy_objective(y).item() == pytest.approx(0.298820, abs=1e-6)
    g = alpha_gradient(net, x)
    torch.testing.assert_close(g, torch.tensor([-0.752128, 0, -0.564096]), atol=1e-6, rtol=0)
    assert g.mean().item() == pytest.approx(-0.438742, abs=1e-6)
    values = infer_task(net, x, method="exhaustive")
    torch.testing.assert_close(
        values.gradient, torch.tensor([0.090095, 0.693147, 0.190865]), atol=1e-6, rtol=0
    )
    assert [infer_task(net, x, method=m).task for m in ("one_shot", "binary", "exhaustive")] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("make", [lambda: dense(6, 20, 12, 5), conv])
@pytest.mark.parametrize("objective", [entropy_objective, lambda y: superfluous_objective(y, 2)])
@pytest.mark.parametrize("uniform", [True, False])
def test_identity_equals_autograd_through_the_masks(make, objective, uniform):
    net = random_net(make(), 9)
    shape = (7, 6) if isinstance(net.base[0], nn.Linear) else (7, 1, 6, 6)
    x = torch.randn(shape, generator=seeded(3))
    alpha = None if uniform else torch.rand(9, generator=seeded(4))
    expected = through_the_stack(net, x, objective, alpha)
    with torch.no_grad():
        found = alpha_gradient(net, x, objective, alpha)
        each = alpha_gradient(net, x, objective, alpha, per_example=True, chunk_size=3)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(each.mean(0), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        each[2], through_the_stack(net, x[2:3], objective, alpha), atol=2e-5, rtol=1e-4
    )


class Largest(TorchDispatchMode):
    "Remembers the largest number of entries of any tensor that an operation makes."

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.most = max([self.most, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return out


def test_nothing_of_tasks_times_weights():
    net, x = random_net(dense(40, 60, 50, 30), 200), torch.randn(8, 40, generator=seeded())
    with Largest() as seen:
        infer_task(net, x)
    assert net.store.n_weights < seen.most <= net.store.nbytes
    assert net.store.nbytes == 200 * -(-net.store.n_weights // 8)


def test_sum_rule_of_three_layers():
    net, x = random_net(dense(6, 20, 12, 5), 8), torch.randn(7, 6, generator=seeded(3))
    y = net(x, alpha=torch.full((8,), 1 / 8))
    p = y.softmax(-1)
    variance = ((p * y**2).sum(-1) - (p * y).sum(-1) ** 2).mean()
    torch.testing.assert_close(alpha_gradient(net, x).mean(), -3 * variance, atol=1e-5, rtol=1e-4)


def test_entropy_and_its_gradient():
    y = torch.tensor([2.0, 0, -1, 1], requires_grad=True)
    H = entropy_objective(y)
    assert H.item() == pytest.approx(0.947537, abs=1e-6)
    wanted = torch.tensor([-0.326688, 0.130076, 0.079911, 0.116701])
    torch.testing.assert_close(torch.autograd.grad(H, y)[0], wanted, atol=1e-6, rtol=0)
    assert entropy_objective(y.bfloat16()).dtype == torch.float32
    assert torch.autograd.gradcheck(
        entropy_objective, torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    )


def test_superfluous_objective():
    y = torch.tensor([2.0, 0, -1, 1], requires_grad=True)
    cases = (
        (True, 2.440190, [0, 0, 0.032059, 0.236883]),
        (False, 1.126928, [0, 0, 0.119203, 0.880797]),
    )
    for full, value, grad in cases:
        G = superfluous_objective(y, 2, full=full)
        assert G.item() == pytest.approx(value, abs=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(G, y)[0], torch.tensor(grad), atol=1e-6, rtol=0
        )
    assert entropy_objective(torch.zeros(3, 4), reduction="none").shape == (3,)


def test_one_image_both_forms_of_g_agree():
    net = random_net(dense(6, 30, 8), 12)
    forms = [lambda y, f=f: superfluous_objective(y, 3, full=f) for f in (True, False)]
    for image in torch.randn(10, 1, 6, generator=seeded(5)):
        full, rest = (alpha_gradient(net, image, form) for form in forms)
        assert full.argmin() == rest.argmin()


def test_tasks_are_treated_alike():
    net, x = random_net(dense(6, 20, 5), 5), torch.randn(4, 6, generator=seeded())
    turned = SupSup(dense(6, 20, 5))
    order = [3, 0, 4, 1, 2]
    for i in order:
        turned.store.append(net.store[i])
    torch.testing.assert_close(
        alpha_gradient(turned, x), alpha_gradient(net, x)[order], atol=1e-5, rtol=1e-4
    )
    net.store.append(net.store[1])
    g = alpha_gradient(net, x)
    assert g[1] == g[5]


# ---- inference ----


@pytest.mark.parametrize(("k", "rounds"), [(2, 1), (3, 2), (5, 3), (8, 3), (9, 4)])
def test_binary_takes_log2_rounds(monkeypatch, k, rounds):
    net, calls = random_net(dense(6, 20, 5), k), []
    original = supsup.alpha_gradient
    monkeypatch.setattr(
        supsup, "alpha_gradient", lambda *a, **kw: calls.append(1) or original(*a, **kw)
    )
    x = torch.randn(4, 6, generator=seeded())
    found = infer_task(net, x, method="binary")
    assert len(calls) == rounds and 0 <= found.task < k
    if k == 2:
        assert found.task == infer_task(net, x).task


def test_one_mask_needs_no_pass(monkeypatch):
    net = random_net(dense(6, 20, 5), 1)
    monkeypatch.setattr(supsup, "alpha_gradient", None)
    found = infer_task(net, torch.zeros(1, 6))
    assert found.task == 0 and math.isnan(found.score) and math.isnan(found.margin)
    assert infer_task(net, torch.zeros(1, 6), epsilon=0.1).task == -1


def test_ties_go_to_the_first():
    net = random_net(dense(6, 20, 5), 1)
    for _ in range(4):
        net.store.append(net.store[0])
    x = torch.randn(4, 6, generator=seeded())
    for method in ("one_shot", "binary"):
        found = infer_task(net, x, method=method)
        assert found.task == 0 and found.score == pytest.approx(1, abs=1e-5)
    assert infer_task(net, x, epsilon=1e-3).task == -1


def test_score_and_threshold(monkeypatch):
    net = random_net(dense(6, 20, 5), 4)
    monkeypatch.setattr(
        supsup, "alpha_gradient", lambda *a, **k: torch.tensor([-1.2, -0.9, -1.0, -0.8])
    )
    x = torch.zeros(1, 6)
    assert infer_task(net, x).score == pytest.approx(1.238440, abs=1e-6)
    assert (
        infer_task(net, x, epsilon=1 / 8).task == 0 and infer_task(net, x, epsilon=1 / 4).task == -1
    )
    assert infer_task(net, x, center=torch.tensor([-1.2, 0, 0, 0])).task == 2


def test_exhaustive_refuses_a_value_that_means_nothing():
    net, x = random_net(dense(6, 20, 5), 3), torch.randn(2, 6, generator=seeded())
    with pytest.raises(ValueError, match="full=False"):
        infer_task(net, x, method="exhaustive", objective=lambda y: superfluous_objective(y, 2))
    infer_task(
        net, x, method="exhaustive", objective=lambda y: superfluous_objective(y, 2, full=False)
    )


def test_learns_and_finds_tasks():
    net, batches, kept = SupSup(dense(12, 64, 20), seed=1), [], []
    for t in range(4):
        x = torch.randn(256, 12, generator=seeded(10 + t)) * (torch.arange(12) % 4 == t)
        y = (x.sum(1) > 0).long()
        batches.append((x, y))
        optimizer = torch.optim.RMSprop([net.new_task(generator=seeded(t))], lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        assert net.commit() == t
        kept.append(net(batches[0][0], task=0))
        assert torch.equal(kept[0], kept[-1])
    assert all(not p.requires_grad for p in net.parameters())
    for t, (x, y) in enumerate(batches):
        assert (net(x, task=t).argmax(1) == y).float().mean() > 0.8
        assert infer_task(net, x[:32]).task == t


@pytest.mark.parametrize("init", ["random", "mean", 1])
def test_starts_of_a_task(init):
    net = random_net(dense(6, 20, 5), 2)
    scores = net.new_task(init, generator=seeded(3))
    assert scores.abs()[:120].max() <= 1 / math.sqrt(6) + 1e-6
    if init == 1:
        mask = torch.cat([m.flatten() for m in net.store[1].values()])
        assert torch.equal(scores >= 0, mask)


def test_density_is_kept_in_each_layer():
    net = SupSup(dense(6, 20, 5), density=0.3)
    net.new_task(generator=seeded())
    net.commit()
    assert [int(m.sum()) for m in net.store[0].values()] == [36, 30]


# ---- Hopfield ----


def loops(patterns):
    "Storkey's rule as it is written, sum by sum."
    d = patterns.shape[1]
    psi = torch.zeros(d, d, dtype=torch.float64)
    for z in patterns.double():
        h = torch.zeros(d, d, dtype=torch.float64)
        for u in range(d):
            for v in range(d):
                h[u, v] = sum(psi[u, w] * z[w] for w in range(d) if w not in (u, v))
        new = psi.clone()
        for u in range(d):
            for v in range(d):
                new[u, v] += (z[u] * z[v] - z[u] * h[v, u] - h[u, v] * z[v]) / d if u != v else 0
        psi = new
    return psi


def test_hopfield_by_hand():
    z = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]])
    for rule, low, entry in (("storkey", [-1.5, -1.5], -0.75), ("hebb", [-1.0, -1.0], -0.5)):
        hop = HopfieldStore(4, rule)
        for row in z:
            hop.append(row)
        assert hop.psi[0, 3] == hop.psi[1, 2] == entry and hop.psi.abs().sum() == -4 * entry
        assert hop.energy(z).tolist() == low and hop.energy(-z).tolist() == low
        assert all(torch.equal(hop.recall(row), row) for row in z)


def test_storkey_against_loops():
    z = 2.0 * (torch.rand(4, 7, generator=seeded(1)) < 0.5) - 1
    hop = HopfieldStore(7)
    for row in z:
        hop.append(row)
    torch.testing.assert_close(hop.psi.double(), loops(z), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hop.mean, z.mean(0))
    one = HopfieldStore(7)
    one.append(z[0])
    torch.testing.assert_close(one.psi, (torch.outer(z[0], z[0]) - torch.eye(7)) / 7)


@given(seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_recall_rolls_downhill(seed):
    g, hop = seeded(seed), HopfieldStore(30)
    for _ in range(4):
        hop.append(2.0 * (torch.rand(30, generator=g) < 0.5) - 1)
    z = 2.0 * (torch.rand(30, generator=g) < 0.5) - 1
    energies = [hop.energy(hop.recall(z, max_steps=n)).item() for n in (1, 2, 4, 30)]
    path = [hop.energy(z).item(), *energies]
    assert all(a + 1e-5 >= b for a, b in itertools.pairwise(path))
    torch.testing.assert_close(hop.psi, hop.psi.T)


@pytest.mark.parametrize(
    ("method", "energy_weight", "lr"), [("straight_through", 0.01, 5.0), ("projected", 0.3, 0.05)]
)
def test_recover_mask_finds_the_pattern_of_low_entropy(method, energy_weight, lr):
    g, stores = seeded(2), [HopfieldStore(60), HopfieldStore(40)]
    patterns = [2.0 * (torch.rand(3, s.d, generator=g) < 0.5) - 1 for s in stores]
    for store, rows in zip(stores, patterns, strict=True):
        for row in rows:
            store.append(row)
    wanted = [rows[1] for rows in patterns]
    fn = lambda masks, _: sum(
        ((2 * m - 1 - z) ** 2).mean() for m, z in zip(masks, wanted, strict=True)
    )
    found = recover_mask(fn, stores, [None] * 60, energy_weight=energy_weight, lr=lr, method=method)
    assert all(torch.equal(m, z > 0) for m, z in zip(found, wanted, strict=True))


# ---- files ----


def test_save_and_load(tmp_path):
    net, x = random_net(dense(6, 20, 5), 7, seed=11), torch.randn(4, 6, generator=seeded())
    net.save(tmp_path / "net")
    again = load_supsup(tmp_path / "net", dense(6, 20, 5))
    assert torch.equal(again.weights(), net.weights()) and len(again.store) == 7
    assert all(torch.equal(again(x, task=t), net(x, task=t)) for t in range(7))
    torch.testing.assert_close(alpha_gradient(again, x), alpha_gradient(net, x))
    assert (tmp_path / "net").stat().st_size < net.store.nbytes + 600
    assert again.store.append(net.store[0]) == 7
    empty = SupSup(dense(6, 20, 5))
    empty.save(tmp_path / "empty")
    assert len(load_supsup(tmp_path / "empty", dense(6, 20, 5)).store) == 0


def test_wrong_files_are_refused(tmp_path):
    net, path = random_net(dense(6, 20, 5), 3, seed=1), tmp_path / "net"
    net.save(path)
    raw = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"network with 0.weight \(21, 6\), got one with 0.weight \(20, 6\)"
    ):
        load_supsup(path, dense(6, 21, 5))
    cases = [
        (raw.replace(b"SupSup 2", b"SupSup 1"), "begin with 'ponderlearn SupSup 2'"),
        (b"\x80\x04", "begin with"),
        (b"ponderlearn SupSup 2\n{", "damaged"),
        (raw.replace(b'"seed": 1', b'"seed": 2'), "damaged"),
        (raw[:-3], "damaged"),
    ]
    cases += [(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :], "net must") for i in range(len(raw))]
    for damaged, words in cases:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=words):
            load_supsup(path, dense(6, 20, 5))


@pytest.mark.parametrize("change", ["other seed", "touched", "kept"])
def test_weights_that_no_seed_gives_are_stored_or_refused(tmp_path, change):
    net, other = random_net(dense(6, 20, 5), 3, seed=1), random_net(dense(6, 20, 5), 3, seed=2)
    if change == "other seed":
        other.load_state_dict(net.state_dict())
        other.save(tmp_path / "net")  # the seed came along
        load_supsup(tmp_path / "net", dense(6, 20, 5))
        other.seed, net = 2, other
    elif change == "touched":
        net.base[0].weight[0, 0] *= 2
    else:
        net = SupSup(dense(6, 20, 5), keep_weights=True)
        net.store.append(other.store[0])
    with pytest.raises(RuntimeError, match="store_weights must be True, since the fixed weights"):
        net.save(tmp_path / "net")
    net.save(tmp_path / "net", store_weights=True)
    again, x = load_supsup(tmp_path / "net", dense(6, 20, 5)), torch.randn(4, 6)
    assert torch.equal(again(x, task=0), net(x, task=0))
    assert torch.equal(again.weights(), net.weights())
    with pytest.raises(ValueError, match=r"a network with 0\.weight"):
        load_supsup(tmp_path / "net", dense(6, 21, 5))


# ---- bad input ----


def test_networks_that_share_trained_parts_are_refused():
    with pytest.raises(ValueError, match=r"biases or norm parameters .*got 0\.bias"):
        SupSup(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)))
    with pytest.raises(ValueError, match=r"1\.weight, 1\.bias"):
        SupSup(nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4)))
    for affine in (True, False):
        with pytest.raises(ValueError, match=r"running statistics.*nn\.GroupNorm\(groups"):
            SupSup(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=affine)))
    SupSup(nn.Sequential(nn.Linear(3, 4, bias=False), nn.GroupNorm(2, 4, affine=False)))
    with pytest.raises(ValueError, match="Linear or Conv"):
        SupSup(nn.ReLU())
    net = SupSup(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), allow_extra=True)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda n: n(torch.zeros(1, 6)), RuntimeError, "call new_task first"),
        (lambda n: n(torch.zeros(1, 6), task=3), IndexError, "task 3 of 3"),
        (lambda n: n(torch.zeros(1, 6), task=-1), IndexError, "task -1 of 3"),
        (
            lambda n: n(torch.zeros(1, 6), alpha=torch.ones(2)),
            ValueError,
            "alpha must have 3 entries",
        ),
        (lambda n: n(torch.zeros(1, 6), task=0, alpha=torch.ones(3)), ValueError, "not both"),
        (lambda n: n.commit(), RuntimeError, "call new_task first"),
        (lambda n: n.new_task("median"), ValueError, "init must be one of"),
        (lambda n: n.new_task(7), IndexError, "task 7 of 3"),
        (
            lambda n: n.store.append(SupSup(dense(6, 21, 5)).store.split(torch.zeros(231))),
            ValueError,
            "must have shape",
        ),
        (
            lambda n: n.store.append({"0.weight": torch.zeros(20, 6)}),
            ValueError,
            "must have the names",
        ),
        (
            lambda n: n.store.append(n.store.split(torch.full((220,), 0.5))),
            ValueError,
            "only 0 and 1",
        ),
        (lambda n: n.store.project(torch.zeros(3)), ValueError, "vec must have shape"),
        (
            lambda n: infer_task(n, torch.zeros(1, 6), center=torch.zeros(2)),
            ValueError,
            "center must have 3 entries",
        ),
        (
            lambda n: infer_task(n, torch.zeros(1, 6), method="two_shot"),
            ValueError,
            "method must be one of",
        ),
        (
            lambda n: infer_task(SupSup(dense(6, 3)), torch.zeros(1, 6)),
            RuntimeError,
            "no tasks learned",
        ),
        (lambda n: infer_task(n, torch.zeros(0, 6)), ValueError, "not be empty"),
        (
            lambda n: superfluous_objective(torch.zeros(2, 3), 3),
            ValueError,
            "n_real must be smaller",
        ),
        (lambda n: supermask(torch.zeros(3), 0.0), ValueError, r"density must lie in \(0, 1\]"),
        (lambda n: supermask(torch.zeros(3), absolute=True), ValueError, "density must be given"),
        (lambda n: supermask(torch.zeros(3, dtype=torch.int64)), TypeError, "float dtype"),
        (lambda n: signed_constant_(torch.zeros(3)), ValueError, "at least 2 dimensions"),
        (
            lambda n: HopfieldStore(4).append(torch.tensor([1.0, 0, 1, -1])),
            ValueError,
            "patterns of -1 or 1",
        ),
        (lambda n: HopfieldStore(4).append(torch.ones(5)), ValueError, "shape"),
        (lambda n: HopfieldStore(4, "oja"), ValueError, "kind must be one of"),
        (
            lambda n: recover_mask(None, [HopfieldStore(4)], [1], energy_weight=1, lr=1),
            RuntimeError,
            "at least one pattern",
        ),
        (
            lambda n: recover_mask(
                None, [HopfieldStore(4)], [1], energy_weight=1, lr=1, method="soft"
            ),
            ValueError,
            "method must",
        ),
        (lambda n: coded_bytes(torch.ones(3), "zip"), ValueError, "coding must be one of"),
        (lambda n: coded_bytes(torch.full((3,), 0.5)), ValueError, "mask must hold only 0 and 1"),
        (lambda n: pack_bits(torch.tensor([0, 2])), ValueError, "mask must hold only 0 and 1"),
        (lambda n: SupSup(dense(6, 3), absolute=True), ValueError, "density must be given"),
        (
            lambda n: n.store.project(torch.zeros(220), tasks=torch.tensor([0, 3])),
            IndexError,
            r"tasks must lie in 0\.\.2",
        ),
        (
            lambda n: alpha_gradient(n, torch.zeros(1, 6), tasks=torch.tensor([-1])),
            IndexError,
            r"tasks must lie in 0\.\.2",
        ),
        (
            lambda n: n.store.project(torch.zeros(220), chunk_size=-1),
            ValueError,
            "chunk_size must be >= 1",
        ),
        (
            lambda n: infer_task(n, torch.full((2, 6), math.nan)),
            ValueError,
            "x must lead to finite gradients",
        ),
        (
            lambda n: infer_task(n, torch.zeros(1, 6), method="exhaustive", epsilon=0.1),
            ValueError,
            "epsilon must be None with method='exhaustive'",
        ),
        (lambda n: (n.new_task(), n.new_task()), RuntimeError, r"commit or abandon it first"),
        (lambda n: n.abandon(), RuntimeError, "call new_task first"),
        (lambda n: n.remove(3), IndexError, "task 3 of 3"),
        (lambda n: n(torch.zeros(2, 5), task=0), ValueError, "x must fit the network"),
        (lambda n: n(torch.zeros(6), task=0), ValueError, "a row for each of its rows"),
        (
            lambda n: entropy_objective(torch.zeros(0, 3)),
            ValueError,
            "logits must not be empty",
        ),
    ],
)
def test_messages(call, error, words):
    with pytest.raises(error, match=words):
        call(random_net(dense(6, 20, 5), 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("store_weights", [True, False])
def test_files_of_other_dtypes(tmp_path, dtype, store_weights):
    net, x = random_net(dense(6, 20, 5), 3).to(dtype), torch.randn(4, 6, dtype=dtype)
    net.save(tmp_path / "net", store_weights=store_weights)
    again = load_supsup(tmp_path / "net", dense(6, 20, 5).to(dtype))
    assert torch.equal(again(x, task=2), net(x, task=2))
    with pytest.raises(ValueError, match=r"another dtype|bytes of weights"):
        load_supsup(tmp_path / "net", dense(6, 20, 5))


def test_no_pickle_in_the_file(tmp_path):
    random_net(dense(6, 20, 5), 2).save(tmp_path / "net")
    magic, _, head, bits = (tmp_path / "net").read_bytes().split(b"\n", 3)
    assert (
        magic == b"ponderlearn SupSup 2" and json.loads(head)["tasks"] == 2 and len(bits) == 2 * 28
    )


# Where its numbers come from


def test_outputs_of_minus_infinity_count_nothing():
    y = torch.tensor([[0.3, -math.inf, 1.2]], requires_grad=True)
    H = entropy_objective(y)
    torch.testing.assert_close(H, entropy_objective(torch.tensor([[0.3, 1.2]])))
    (slope,) = torch.autograd.grad(H, y)
    assert slope.isfinite().all() and slope[0, 1] == 0
    G = superfluous_objective(y, 1)
    assert G.isfinite() and torch.autograd.grad(G, y)[0].isfinite().all()


def test_no_rows():
    net = random_net(dense(6, 20, 5), 2)
    assert net(torch.zeros(0, 6), task=1).shape == (0, 5)
    assert entropy_objective(torch.zeros(0, 5), reduction="sum") == 0
    assert superfluous_objective(torch.zeros(0, 5), 2, reduction="none").shape == (0,)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_other_dtypes(dtype, close):
    net, x = random_net(dense(6, 20, 12, 5), 300), torch.randn(16, 6, generator=seeded())
    wanted, mean, output = alpha_gradient(net, x), net.store.mean(), net(x, task=7)
    for other in (SupSup(copy.deepcopy(net.base).to(dtype)), copy.deepcopy(net).to(dtype)):
        other.store.load_state_dict(net.store.state_dict())
        torch.testing.assert_close(other.store.mean(), mean, atol=0, rtol=0)
        for each in (
            alpha_gradient(other, x.to(dtype)),
            alpha_gradient(other, x.to(dtype), per_example=True).mean(0),
        ):
            assert each.dtype == torch.promote_types(dtype, torch.float32)
            assert (each - wanted).abs().max() < close * wanted.abs().max()
        found = other(x.to(dtype), task=7)
        assert found.dtype == dtype and (found - output).abs().max() < close * output.abs().max()
        alpha = torch.full((300,), 1 / 300)
        assert (other(x.to(dtype), alpha=alpha) - net(x, alpha=alpha)).abs().max() < close
        other.new_task(generator=seeded())
        other(x.to(dtype)).float().sum().backward()
        assert other.scores.grad.isfinite().all() and other.commit() == 300


def test_autocast():
    net, x = random_net(dense(6, 20, 12, 5), 40), torch.randn(16, 6, generator=seeded())
    vec, alpha = torch.randn(2, net.store.n_weights, generator=seeded(1)), torch.rand(40)
    memory, z = HopfieldStore(300), torch.randn(3, 300, generator=seeded(2)).sign()
    plain = [net.store.project(vec), net.store.project(vec[0]), net.store.mix(alpha)]
    exact = HopfieldStore(300)
    for row in z:
        exact.append(row)
    plain += [exact.field(z), exact.energy(z)]
    slope = alpha_gradient(net, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for row in z:
            memory.append(row)
        here = [net.store.project(vec), net.store.project(vec[0]), net.store.mix(alpha)]
        here += [memory.field(z), memory.energy(z)]
        net.new_task(generator=seeded())
        F.cross_entropy(net(x), torch.zeros(16, dtype=torch.int64)).backward()
        assert net.scores.grad.dtype == torch.float32 and net.scores.grad.isfinite().all()
        net.abandon()
        assert net(x, task=0).dtype == torch.bfloat16
        for method in ("one_shot", "binary", "exhaustive"):
            assert 0 <= infer_task(net, x, method=method).task < 40
        assert (alpha_gradient(net, x) - slope).abs().max() < 0.1 * slope.abs().max()
    assert all(torch.equal(a, b) for a, b in zip(plain, here, strict=True))


def test_inference_mode():
    net, x = random_net(dense(6, 20, 5), 4), torch.randn(8, 6, generator=seeded())
    wanted = [infer_task(net, x, method=m).task for m in ("one_shot", "binary", "exhaustive")]
    with torch.inference_mode():
        y = x + 0
        found = [infer_task(net, y, method=m).task for m in ("one_shot", "binary", "exhaustive")]
        net(y, task=2)
        alpha_gradient(net, y, per_example=True)
    assert found == wanted
    image = x.clone().requires_grad_()
    net(image, task=2).sum().backward()  # with the mask that was unpacked in inference mode
    assert image.grad.isfinite().all()


def test_the_last_mask_is_kept_and_never_stale(monkeypatch):
    net, x, count = random_net(dense(6, 20, 5), 3), torch.randn(8, 6, generator=seeded()), []
    original = supsup._unpack
    monkeypatch.setattr(supsup, "_unpack", lambda *a: count.append(1) or original(*a))
    first, second = net(x, task=0), net(x, task=1)
    assert torch.equal(net(x, task=1), second) and len(count) == 2
    with torch.no_grad():
        net.base[0].weight.mul_(2)
    torch.testing.assert_close(net(x, task=1), 2 * second)
    net.remove(0)
    torch.testing.assert_close(net(x, task=0), 2 * second)
    net.double()
    assert net(x.double(), task=0).dtype == torch.float64
    net.float().load_state_dict(random_net(dense(6, 20, 5), 3).state_dict())
    assert torch.equal(net(x, task=0), first)


@pytest.mark.parametrize("k", [1, 23, 24, 60])
def test_both_ways_to_project(k):
    store, g = MaskStore({"a": (33, 41)}), seeded(k)
    rows = torch.rand(k, store.n_weights, generator=g) < 0.5
    for row in rows:
        store.append(store.split(row))
    vec = torch.randn(store.n_weights, generator=g, dtype=torch.float64)
    wanted = rows.double() @ vec
    for chunk_size in (None, 1, 7, 10**6):
        torch.testing.assert_close(store.project(vec, chunk_size=chunk_size), wanted)
        found = store.project(vec.float(), chunk_size=chunk_size)
        torch.testing.assert_close(found, wanted.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(store.project(vec[None])[0], wanted)


def test_gradients_of_single_images_keep_to_their_memory():
    net, x = random_net(dense(700, 1000, 10), 3), torch.randn(64, 700, generator=seeded())
    with Largest() as seen:
        alpha_gradient(net, x, per_example=True)
    assert 64 * net.store.n_weights > 2 * 2**23 and seen.most <= 2**23


# Tasks: removed, abandoned, taken out, with outputs of their own


def test_remove():
    net, x = random_net(dense(6, 20, 5), 4), torch.randn(8, 6, generator=seeded())
    net.n_outputs = {1: 2, 2: 3}
    kept = [net(x, task=t) for t in (0, 2, 3)]
    net.remove(1)
    assert len(net.store) == 3 and net.n_outputs == {1: 3}
    assert all(torch.equal(net(x, task=t), y) for t, y in enumerate(kept))
    masks = [torch.cat([m.flatten() for m in net.store[t].values()]) for t in range(3)]
    torch.testing.assert_close(net.store.mean(), torch.stack(masks).float().mean(0))


def test_abandon():
    net = random_net(dense(6, 20, 5), 2)
    net.new_task(n_outputs=3)
    net.abandon()
    assert net.scores is None and net.n_outputs == {} and len(net.store) == 2
    net.new_task()
    assert net.commit() == 2


def test_a_task_as_a_plain_network():
    net, x = random_net(conv(), 3), torch.randn(2, 1, 6, 6, generator=seeded())
    plain = conv()
    plain.load_state_dict(net.task_state_dict(1))
    assert torch.equal(plain(x), net(x, task=1))


@pytest.mark.parametrize("shared", ["a layer twice", "a weight in two layers"])
def test_shared_weights(shared):
    one, two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    two.weight = one.weight
    base = nn.Sequential(one, nn.ReLU(), one if shared == "a layer twice" else two)
    net, x = random_net(base, 2), torch.randn(3, 4, generator=seeded())
    assert list(net.store.shapes) == ["0.weight"]
    w = net.base[0].weight * net.store[1]["0.weight"]
    for _ in range(2):
        torch.testing.assert_close(net(x, task=1), (x @ w.T).relu() @ w.T)
    plain = copy.deepcopy(base)
    plain.load_state_dict(net.task_state_dict(1))
    assert torch.equal(plain(x), net(x, task=1))
    assert infer_task(net, x, method="binary").task in (0, 1)


def test_given_weights_stay():
    base, x = dense(6, 20, 5), torch.randn(2, 6, generator=seeded())
    net = SupSup(base, keep_weights=True)
    net.store.append({name: torch.ones(s) for name, s in net.store.shapes.items()})
    assert torch.equal(net(x, task=0), base(x))


def test_outputs_of_their_own(tmp_path):
    net, x = SupSup(dense(6, 20, 7)), torch.randn(4, 6, generator=seeded())
    for n in (2, None, 5):
        net.new_task(n_outputs=n, generator=seeded())
        assert net(x).shape == (4, 7)
        net.commit()
    net.save(tmp_path / "net")
    again = SupSup(dense(6, 20, 7))
    again.load_state_dict(net.state_dict())
    for each in (net, again, load_supsup(tmp_path / "net", dense(6, 20, 7))):
        assert [each(x, task=t).shape[1] for t in range(3)] == [2, 7, 5]
        assert infer_task(each, x, method="exhaustive").gradient.shape == (3,)


def test_scores_over_tasks():
    net, x = random_net(dense(6, 20, 5), 3), torch.randn(50, 6, generator=seeded())
    tasks = [(x, net(x, task=t).argmax(1)) for t in range(3)]
    tasks[1] = x, (tasks[1][1] + (torch.arange(50) < 10)) % 5
    found = score_tasks(net, tasks, chunk_size=7)
    assert found.each.tolist() == pytest.approx([1, 0.8, 1])
    assert found.accuracy == pytest.approx(2.8 / 3) and found.forgetting == 0
    earlier = (
        TaskScores(1.0, 0.0, torch.tensor([1.0])),
        TaskScores(0.9, 0.0, torch.tensor([0.9, 1])),
    )
    assert score_tasks(net, tasks, before=earlier).forgetting == pytest.approx((0 + 0.2) / 2)
    assert score_tasks(lambda x, task: net(x, task=0), tasks).accuracy < 0.9


# States


def test_a_state_knows_its_network():
    net = random_net(nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)), 2)
    other = SupSup(nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False)))
    with pytest.raises(RuntimeError, match="state must be of weights"):
        other.store.load_state_dict(net.store.state_dict())
    old = net.store.state_dict()
    del old["_extra_state"]
    with pytest.raises(RuntimeError, match="_extra_state"):
        other.store.load_state_dict(old)
    for kind in ({"density": 0.5}, {"density": 0.3, "absolute": True}):
        with pytest.raises(RuntimeError, match=r"state must have .*'density': None"):
            random_net(dense(6, 3), 1).load_state_dict(SupSup(dense(6, 3), **kind).state_dict())


def test_a_state_with_a_task_in_training():
    def updates(net, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    x, y = torch.randn(32, 6, generator=seeded()), torch.randint(5, (32,), generator=seeded(1))
    net = random_net(dense(6, 20, 5), 2, seed=4)
    optimizer = torch.optim.SGD([net.new_task(generator=seeded(2))], lr=0.1)
    updates(net, optimizer, 3)
    state = copy.deepcopy(net.state_dict())
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    updates(net, optimizer, 3)
    again = SupSup(dense(6, 20, 5))
    again.load_state_dict(state)
    updates(again, torch.optim.SGD([again.scores], lr=0.1), 3)
    assert torch.equal(again.scores, net.scores) and again.seed == 4
    again.load_state_dict(random_net(dense(6, 20, 5), 1).state_dict())
    assert again.scores is None and len(again.store) == 1


# What an answer is worth


def test_margin(monkeypatch):
    net, x = random_net(dense(6, 20, 5), 4), torch.zeros(1, 6)
    slope = torch.tensor([-1.0, -3.0, -1.2, -0.8])
    monkeypatch.setattr(supsup, "alpha_gradient", lambda *a, **k: slope)
    found = infer_task(net, x)
    assert found.task == 1 and found.margin == pytest.approx(2 / 0.2)
    assert math.isnan(infer_task(net, x, method="exhaustive").score)


@pytest.mark.parametrize("k", [10, 40, 250])
def test_margin_of_noise(k):
    "What the docstring of TaskInference says of 3.5."
    noise = torch.randn(2000, k, generator=seeded(k))
    assert 0.01 < sum(supsup._margin(row) > 3.5 for row in noise) / 2000 < 0.08


# The examples


def documented():
    names = supsup.__all__
    for name, made in [(n, getattr(supsup, n)) for n in names]:
        yield name, made
        if isinstance(made, type) and issubclass(made, nn.Module):
            for key, part in vars(made).items():
                if inspect.isfunction(part) and key[0] != "_":
                    yield f"{name}.{key}", part


def test_public_names_have_examples():
    "`tests/test_docstrings.py` runs them."
    results = {"TaskInference", "TaskScores"}  # NamedTuples
    without = {n for n, o in documented() if ">>> " not in (o.__doc__ or "")} - results
    hooks = {"get_extra_state", "set_extra_state"}  # torch calls them
    assert not {n for n in without if n.rpartition(".")[2] not in hooks}
