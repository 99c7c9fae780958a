"""SIRE: hand cases, the regularizer by enumeration, groups, lengths, networks, messages."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from ponderlearn.architectures import sire
from ponderlearn.architectures.sire import (
    AggregationRNN,
    DeepSets,
    SetRNN,
    SetTransformer,
    commutator,
    output_invariance_loss,
    permutation_gap,
    shuffle_within,
    sire_loss,
)

D = torch.float64
HALVES = torch.tensor([0, 0, 0, 1, 1, 1])
LAYERS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def column(*values):
    return torch.tensor(values, dtype=D)[:, None]


def xor(x, s):
    return torch.relu(s + x) - 2 * torch.relu(s + x - 1)


def layer(kind, d=2, hidden=5, **kwargs):
    torch.manual_seed(0)
    if kind == "AggregationRNN":
        return AggregationRNN(d, hidden)
    return LAYERS[kind](d, hidden, batch_first=True, **kwargs)


every_layer = pytest.mark.parametrize("kind", [*LAYERS, "AggregationRNN"])
LENGTHS = torch.tensor([6, 4, 2, 1])


class Nested(nn.Module):
    "A layer of one's own: a dict of states, each with a learned start."

    batch_first, bidirectional = True, False

    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(2, 3), nn.RNNCell(2, 5)])
        self.starts = nn.ParameterList([torch.randn(1, 1, 3), torch.randn(1, 1, 5)])

    def forward(self, x, state=None):
        if state is None:
            a, b = (s.expand(1, len(x), -1) for s in self.starts)
        else:
            a, (b,) = state["gru"], state["rest"]
        a, b = a[0], b[0]
        for u in x.unbind(1):
            a, b = self.cells[0](u, a), self.cells[1](u, b)
        return a[:, None], {"gru": a[None], "rest": (b[None],)}


def networks():
    torch.manual_seed(0)
    return {
        "SetRNN": SetRNN(nn.GRU(3, 4, 2, batch_first=True), nn.Linear(4, 2)),
        "aggregation": SetRNN(AggregationRNN(5, 4), nn.Linear(4, 2), nn.Linear(3, 5)),
        "sum": DeepSets(3, 4, 2),
        "mean": DeepSets(3, 4, 2, pool="mean"),
        "max": DeepSets(3, 4, 2, pool="max"),
        "all pairs": SetTransformer(3, 4, 2),
        "inducing": SetTransformer(3, 4, 2, n_inducing=2),
    }


every_network = pytest.mark.parametrize("name", list(networks()))


def test_docstrings_name_equations_and_errors():
    for name in sire.__all__:
        x = getattr(sire, name)
        for text in [x.__doc__, *([x.forward.__doc__] if isinstance(x, type) else [])]:
            assert ">>> " in text and "(sire-" in text, name
            assert "Error" in text or "raises nothing" in text, name


# --- the commutator


def test_mean_of_xor():
    grid = torch.tensor(list(itertools.product([0, 0.5, 1], repeat=3)), dtype=D)
    assert abs(commutator(xor, *grid.split(1, 1)).mean() - 0.074074) < 1e-6


def test_tanh_gru_lstm_by_hand():
    tanh = lambda x, s: torch.tanh(0.5 * s + x + 0.1)
    assert abs(commutator(tanh, column(0.2), column(1.0), column(-0.5)).item() - 0.525505) < 1e-6
    for cell, state, wanted in (
        (nn.GRUCell(1, 1), column(0.2), 0.011604),
        (nn.LSTMCell(1, 1), (column(0.2), column(0.1)), 0.028600),
    ):
        cell = cell.double()
        for name, p in cell.named_parameters():
            nn.init.constant_(p, 0.5 if "weight" in name else 0.0)
        assert abs(commutator(cell, state, column(1.0), column(-0.5)).item() - wanted) < 1e-6


@given(st.floats(-5, 5), st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_linear_cell_does_not_depend_on_the_state(a, b):
    W, U = torch.tensor([[0.5, 1], [0, 0.5]], dtype=D), torch.tensor([[1.0], [2]], dtype=D)
    linear = lambda x, s: s @ W.T + x @ U.T
    value = commutator(linear, torch.tensor([[a, b]], dtype=D), column(1.0), column(4.0))
    assert abs(value.item() - 29.25) < 1e-9


def test_cells_that_collect_commute():
    s, x1, x2 = torch.randn(3, 100, 1, dtype=D, generator=generator())
    assert commutator(lambda x, s: s + x.sin(), s, x1, x2).max() < 1e-28
    assert commutator(lambda x, s: torch.maximum(s, x), s, x1, x2).max() == 0
    assert commutator(nn.GRUCell(1, 1).double(), s, x1, x1).max() == 0


# --- the regularizer


@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, {"num_layers": n}) for kind in LAYERS for n in (1, 2)), ("AggregationRNN", {})],
)
def test_two_elements(kind, more):
    rnn, x = layer(kind, **more).double(), torch.randn(7, 2, 2, dtype=D, generator=generator())
    a, b = rnn(x)[1], rnn(x.flip(1))[1]
    parts = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    wanted = sum((p - q).square().sum((0, 2)) for p, q in parts)
    assert torch.allclose(sire_loss(rnn, x, shuffle=False, reduction="none"), wanted)
    assert torch.allclose(sire_loss(rnn, x), wanted.mean())
    assert torch.allclose(sire_loss(rnn, x, reduction="sum"), wanted.sum())


def by_hand(rnn, x, k):
    "Commutator (B,) at place k of the sequences as they stand, for a GRU of one layer."
    step = lambda x, s: rnn(x[:, None], s[None])[1][0]
    s = rnn(x[:, :k])[1][0] if k else x.new_zeros(len(x), rnn.hidden_size)
    return commutator(step, s, x[:, k], x[:, k + 1])


def test_all_places_of_the_given_order():
    rnn, x = layer("GRU").double(), torch.randn(6, 5, 2, dtype=D, generator=generator())
    wanted = torch.stack([by_hand(rnn, x, k) for k in range(4)])
    for n_pairs in (4, 50):
        found = sire_loss(rnn, x, shuffle=False, n_pairs=n_pairs, reduction="none")
        assert torch.allclose(found, wanted.mean(0))
    one = sire_loss(rnn, x, shuffle=False, generator=generator(3))
    assert any(torch.allclose(one, w.mean()) for w in wanted)


def test_lengths_leave_out_padding_and_short_rows():
    rnn, x = layer("GRU").double(), torch.randn(4, 5, 2, dtype=D, generator=generator())
    lengths = torch.tensor([5, 3, 2, 1])
    full = torch.stack([by_hand(rnn, x, k) for k in range(4)])
    wanted = torch.stack(
        [full[:, 0].mean(), full[:2, 1].mean(), full[0, 2], torch.zeros((), dtype=D)]
    )
    found = sire_loss(rnn, x, lengths=lengths, shuffle=False, n_pairs=4, reduction="none")
    assert torch.allclose(found, wanted)
    assert torch.allclose(
        sire_loss(rnn, x, lengths=lengths, shuffle=False, n_pairs=4), wanted[:3].mean()
    )
    other = torch.where((torch.arange(5) < lengths[:, None])[..., None], x, 1e3)
    a, b = (
        sire_loss(rnn, v, lengths=lengths, n_pairs=4, generator=generator(2)) for v in (x, other)
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize("n_pairs", [1, 3, 5])
def test_a_layer_of_ones_own_with_a_nested_state_and_its_own_start(n_pairs):
    torch.manual_seed(0)
    rnn, x = Nested().double(), torch.randn(4, 6, 2, dtype=D, generator=generator())
    each = []
    for k in range(5):
        swapped = torch.cat([x[:, :k], x[:, k : k + 2].flip(1)], 1)
        a, b = rnn(x[:, : k + 2])[1], rnn(swapped)[1]
        gaps = (a["gru"] - b["gru"])[0], (a["rest"][0] - b["rest"][0])[0]
        each.append(sum(gap.square().sum(1) for gap in gaps))
    places = torch.randperm(5, generator=generator(3))[:n_pairs]
    found = sire_loss(
        rnn, x, shuffle=False, n_pairs=n_pairs, reduction="none", generator=generator(3)
    )
    assert torch.allclose(found, torch.stack(each)[places].mean(0))
    assert torch.autograd.grad(sire_loss(rnn, x, n_pairs=5), rnn.starts[0])[0].abs().sum() > 0


@every_layer
def test_packed_sequences(kind):
    rnn, x = layer(kind), torch.randn(4, 6, 2, generator=generator())
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True)
    for n_pairs in (1, 5):
        a = sire_loss(rnn, packed, n_pairs=n_pairs, generator=generator(1))
        b = sire_loss(rnn, x, lengths=LENGTHS, n_pairs=n_pairs, generator=generator(1))
        assert torch.equal(a, b) and a > 0
    says(ValueError, "lengths must be None for a packed", sire_loss, rnn, packed, lengths=LENGTHS)


@every_layer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_padding_reaches_no_loss_and_no_gradient(kind, bad):
    rnn, x = layer(kind), torch.randn(4, 6, 2, generator=generator())
    real = (torch.arange(6) < LENGTHS[:, None])[..., None]
    found = []
    for padding in (0.0, bad):
        y = torch.where(real, x, padding).requires_grad_()
        loss = sire_loss(rnn, y, lengths=LENGTHS, n_pairs=5, generator=generator(1))
        found.append([loss, *torch.autograd.grad(loss, [y, *rnn.parameters()])])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))


def test_groups():
    rnn, x = layer("GRU").double(), torch.randn(3, 6, 2, dtype=D, generator=generator())
    wanted = torch.stack([by_hand(rnn, x, k) for k in (0, 1, 3, 4)]).mean(0)
    assert torch.allclose(
        sire_loss(rnn, x, groups=HALVES, shuffle=False, n_pairs=9, reduction="none"), wanted
    )


@every_layer
def test_nothing_to_exchange(kind):
    rnn = layer(kind)
    for x, groups in ((torch.randn(3, 1, 2), None), (torch.randn(3, 6, 2), torch.arange(6))):
        with (
            pytest.warns(UserWarning, match="at least 2 elements")
            if groups is None
            else nullcontext()
        ):
            loss = sire_loss(rnn, x, groups=groups)
            loss.backward()
            assert loss.item() == 0 and all((p.grad == 0).all() for p in rnn.parameters())
            assert sire_loss(rnn, x, groups=groups, reduction="none").shape == (3,)


@every_layer
def test_layers_devices_and_dtypes(kind):
    rnn, x = (
        layer(kind, **({} if kind == "AggregationRNN" else {"num_layers": 2})),
        torch.randn(3, 6, 2),
    )
    before = torch.get_rng_state()
    a, b = (sire_loss(rnn, x, n_pairs=3, generator=generator(5)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(before, torch.get_rng_state())
    assert sire_loss(rnn, x, generator=generator()).requires_grad
    half = copy.deepcopy(rnn).bfloat16()
    low = sire_loss(half, x.bfloat16(), generator=generator())
    assert low.dtype == torch.float32 and low.isfinite()


def test_gradient():
    rnn = AggregationRNN(1, 2, 3).double()
    x = torch.randn(2, 4, 1, dtype=D, generator=generator()).requires_grad_()
    f = lambda v: sire_loss(rnn, v, n_pairs=2, generator=generator(1))
    assert torch.autograd.gradcheck(f, (x,))
    gru = layer("GRU").double()
    y = torch.randn(2, 6, 2, dtype=D, generator=generator()).requires_grad_()
    kept, cut = (
        torch.autograd.grad(
            sire_loss(gru, y, shuffle=False, detach_prefix=d, generator=generator(8)), y
        )[0]
        for d in (False, True)
    )
    assert (kept[:, 0] != 0).any() and (cut[:, 0] == 0).all()


# --- orders


@given(st.integers(1, 12), st.integers(0, 2**31 - 1), st.data())
@settings(max_examples=40, deadline=None)
def test_shuffle_keeps_groups_and_padding(T, seed, data):
    groups = torch.tensor(
        sorted(data.draw(st.lists(st.integers(0, 3), min_size=T, max_size=T)), reverse=True)
    )
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, T), min_size=4, max_size=4)))
    place = torch.arange(float(T)).expand(4, T)[..., None]
    out = shuffle_within(place, groups, lengths=lengths, generator=generator(seed))[..., 0].long()
    assert torch.equal(out.sort(1).values, place[..., 0].long()) and torch.equal(
        groups[out], groups.expand(4, T)
    )
    padding = torch.arange(T) >= lengths[:, None]
    assert torch.equal(out[padding], place[..., 0].long()[padding])


@pytest.mark.parametrize("kind", ["transposition", "adjacent", "permutation"])
@pytest.mark.parametrize("groups", [None, HALVES])
def test_output_loss_moves_what_it_says(kind, groups):
    seen = []

    def model(x):
        seen.append(x)
        return x[..., 0] ** 2

    x = torch.arange(6.0).expand(400, 6)[..., None]
    loss = output_invariance_loss(
        model, x, kind=kind, groups=groups, reduction="none", generator=generator()
    )
    moved = seen[0][400:, :, 0].long()
    assert torch.allclose(loss, (moved.float() ** 2 - x[..., 0] ** 2).square().sum(1))
    changed = moved != torch.arange(6)
    if kind != "permutation":
        assert (changed.sum(1) == 2).all()
        pairs = {tuple(row.nonzero()[:, 0].tolist()) for row in changed}
        every = itertools.combinations(range(6), 2)
        allowed = {
            (i, j)
            for i, j in every
            if (kind != "adjacent" or j == i + 1) and (groups is None or i // 3 == j // 3)
        }
        assert pairs == allowed
    if groups is not None:
        assert torch.equal(HALVES[moved], HALVES.expand(400, 6))


@pytest.mark.parametrize("kind", ["transposition", "adjacent", "permutation"])
@pytest.mark.parametrize("groups", [None, HALVES])
def test_output_loss_with_lengths_leaves_padding_where_it_is(kind, groups):
    seen = []

    def model(x, lengths):
        seen.append((x, lengths))
        return x[..., 0]

    lengths = LENGTHS.repeat(200)
    x = torch.arange(6.0).expand(800, 6)[..., None]
    more = {"kind": kind, "groups": groups, "generator": generator()}
    loss = output_invariance_loss(model, x, lengths=lengths, reduction="none", **more)
    moved, given = seen[0][0][800:, :, 0].long(), seen[0][1]
    assert torch.equal(given, lengths.repeat(2))
    changed = moved != torch.arange(6)
    assert not changed[torch.arange(6) >= lengths[:, None]].any() and (loss[3::4] == 0).all()
    if kind != "permutation":
        for row, n in enumerate(LENGTHS.tolist()):
            pairs = {tuple(r.nonzero()[:, 0].tolist()) for r in changed[row::4]}
            wanted = {
                (i, j)
                for i, j in itertools.combinations(range(n), 2)
                if (kind != "adjacent" or j == i + 1) and (groups is None or i // 3 == j // 3)
            }
            assert pairs == (wanted or {()})


@every_network
def test_lengths_are_as_good_as_rows_of_their_own(name):
    net, x = networks()[name], torch.randn(4, 6, 3, generator=generator())
    gap = permutation_gap(net, x, 500, lengths=LENGTHS, generator=generator())
    assert gap.shape == (4,) and gap[3] < 1e-6
    if name in ("SetRNN", "aggregation"):
        alone = [permutation_gap(net, x[i : i + 1, :n], 500) for i, n in enumerate(LENGTHS)]
        assert torch.allclose(gap, torch.cat(alone), rtol=0.2, atol=1e-6)
    else:
        assert gap.max() < 1e-5
        assert output_invariance_loss(net, x, lengths=LENGTHS) < 1e-10
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True)
    assert torch.equal(net(packed), net(x, LENGTHS))


@every_network
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_padding_reaches_no_answer_and_no_gradient(name, bad):
    net, x = networks()[name], torch.randn(4, 6, 3, generator=generator())
    real = (torch.arange(6) < LENGTHS[:, None])[..., None]
    found = []
    for padding in (0.0, bad):
        y = torch.where(real, x, padding).requires_grad_()
        out = net(y, LENGTHS)
        found.append([out, *torch.autograd.grad(out.sum(), [y, *net.parameters()])])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found, strict=True))


@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_of_networks(name, dtype):
    net, x = networks()[name], torch.randn(4, 6, 3, generator=generator()).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x, LENGTHS).dtype == torch.bfloat16
        gap = permutation_gap(net, x, lengths=LENGTHS)
        loss = output_invariance_loss(net, x, lengths=LENGTHS)
    assert gap.dtype == loss.dtype == torch.float32 and gap.isfinite().all()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_of_the_regularizer(kind, dtype):
    rnn, x = layer(kind), torch.randn(4, 6, 2, generator=generator()).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sire_loss(rnn, x, lengths=LENGTHS, n_pairs=3)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in rnn.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, D])
@every_network
def test_networks_in_other_dtypes(name, dtype):
    net, x = networks()[name].to(dtype), torch.randn(4, 6, 3, generator=generator()).to(dtype)
    assert net(x, LENGTHS).dtype == dtype
    loss = output_invariance_loss(net, x)
    assert loss.dtype == (D if dtype == D else torch.float32) and loss.isfinite()
    says(TypeError, "x must be (bfloat16|float64) like the weights", net, x.float())


def test_answers_of_every_layout():
    x = torch.randn(5, 8, 2, generator=generator())
    first = x[:, 0]

    def gap(model):
        return permutation_gap(model, x, 6, generator=generator())

    turned = gap(lambda v: v[:, :3].flatten(1).t().contiguous().t())  # not contiguous
    assert torch.equal(turned, gap(lambda v: v[:, :3].flatten(1)))
    together = gap(lambda v: v[:, 0])
    pieces = gap(lambda v: {"a": v[:, 0, 0], "b": (v[:, 0, 1:],)})
    assert torch.allclose(pieces, together) and first.shape == (5, 2)
    more = {"kind": "adjacent", "reduction": "none"}
    a = output_invariance_loss(lambda v: v[:, 0], x, generator=generator(), **more)
    b = output_invariance_loss(lambda v: (v[:, 0, 0], v[:, 0, 1]), x, generator=generator(), **more)
    assert torch.allclose(a, b)
    says(ValueError, "what model returns must have 30 rows", gap, lambda v: v.movedim(0, 1))
    says(TypeError, "what model returns must be a tensor", gap, lambda v: None)


def test_permutation_gap_leaves_every_module_in_its_mode():
    net = SetRNN(nn.GRU(2, 3, batch_first=True), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)))
    net.train()
    net.readout[1].eval()
    permutation_gap(net, torch.randn(4, 3, 2))
    assert net.training and net.readout[0].training and not net.readout[1].training


def test_permutation_gap():
    x = torch.randn(5, 8, 1, generator=generator())
    first = lambda v: v[:, 0]
    gap = permutation_gap(first, x, 4000, generator=generator())
    assert gap.shape == (5,) and torch.allclose(gap, x[..., 0].std(1, correction=0), rtol=0.06)
    assert permutation_gap(lambda v: v.sum(1), x, generator=generator()).max() < 1e-5
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 1))
    permutation_gap(net, x)
    assert net.training


def test_half_range_and_neighbors():
    v = torch.randint(0, 100, (300, 10), generator=generator()).float()
    assert sire.half_range(torch.tensor([[1.0, 5, 2, 7]])).tolist() == [3.0]
    halves = torch.arange(10) // 5
    assert torch.equal(
        sire.half_range(shuffle_within(v[..., None], halves)[..., 0]), sire.half_range(v)
    )
    assert (sire.half_range(shuffle_within(v[..., None])[..., 0]) != sire.half_range(v)).any()
    for T in (1, 2, 7, 8):
        place = torch.arange(T).expand(200, T)[..., None]
        moved = sire.exchange_neighbors(place, generator=generator())[..., 0]
        assert (moved - torch.arange(T)).abs().max() <= 2 and (
            moved.sort(1).values == torch.arange(T)
        ).all()
        assert torch.equal(sire.exchange_neighbors(place, 0.0), place)


# --- networks


def test_explicit_networks():
    long = torch.randint(0, 2, (2, 2000, 1), generator=generator()).float()
    assert torch.equal(
        sire.parity_rnn().bfloat16()(long.bfloat16())[:, 0].float(), long.sum((1, 2)) % 2
    )
    plain = nn.RNN(1, 2, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(torch.tensor([[1.0, -2.0], [1.0, -2.0]]))
        plain.weight_ih_l0.fill_(1.0)
        plain.bias_ih_l0.copy_(torch.tensor([0.0, -1.0]))
        plain.bias_hh_l0.zero_()
    assert torch.equal(plain(long)[0] @ torch.tensor([1.0, -2.0]), long[..., 0].cumsum(1) % 2)
    x = torch.randn(2000, 9, 1, generator=generator())
    top = sire.max_rnn().rnn(x[:, 1:], x[None, :, 0])[1][0, :, 0]
    assert (top - x.amax((1, 2))).abs().max() < 3e-6
    assert sire_loss(sire.max_rnn().rnn, x.double().float()) < 1e-12


@pytest.mark.parametrize(
    "K, deep, n",
    [
        (1, False, 1),
        (7, False, 7),
        (4, True, 4),
        (256, True, 16),
    ],
)
def test_parity_deepsets(K, deep, n):
    net = sire.parity_deepsets(K, deep=deep)
    ones = torch.arange(K + 1)
    x = (torch.arange(K) < ones[:, None]).float()[..., None]
    assert (net(x)[:, 0] - ones % 2).abs().max() < 1e-3
    assert sum(m.out_features for m in net.rho if isinstance(m, nn.Linear)) - 1 == n


@pytest.mark.parametrize(
    "make",
    [
        lambda: DeepSets(3, 8, 2),
        lambda: DeepSets(3, 8, 2, pool="mean"),
        lambda: DeepSets(3, 8, 2, pool="max"),
        lambda: SetTransformer(3, 8, 2),
        lambda: SetTransformer(3, 8, 2, num_heads=2, n_inducing=3),
    ],
)
def test_invariant_networks(make):
    torch.manual_seed(0)
    net, x, lengths = make(), torch.randn(4, 7, 3), torch.tensor([7, 4, 2, 1])
    assert permutation_gap(net, x).max() < 1e-5
    alone = torch.cat([net(x[i : i + 1, :n]) for i, n in enumerate(lengths)])
    assert torch.allclose(net(x, lengths), alone, atol=1e-5)


@every_layer
def test_set_rnn_reads_the_last_real_element(kind):
    net, x = SetRNN(layer(kind), nn.Linear(5, 1), nn.Linear(3, 2)), torch.randn(4, 7, 3)
    lengths = torch.tensor([7, 4, 2, 1])
    alone = torch.cat([net(x[i : i + 1, :n]) for i, n in enumerate(lengths)])
    assert torch.allclose(net(x, lengths), alone, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_aggregation_is_its_formula(residual):
    rnn = AggregationRNN(2, 3, 4, residual=residual).double()
    x, s = torch.randn(2, 5, 2, dtype=D), torch.randn(2, 3, dtype=D)
    out, last = rnn(x, s[None])
    for t in range(5):
        update = rnn.output(torch.relu(rnn.recurrent(s) + rnn.input(x[:, t])))
        s = s + update if residual else update
        assert torch.allclose(out[:, t], s)
    assert torch.equal(last[0], out[:, -1])


# --- messages


def says(error, message, f, *args, **kwargs):
    with pytest.raises(error, match=message):
        f(*args, **kwargs)


def test_messages():
    x, gru = torch.randn(2, 4, 3), nn.GRU(3, 5, batch_first=True)
    says(ValueError, "rnn must be batch_first", sire_loss, nn.GRU(3, 5), x)
    says(
        ValueError,
        "rnn must be unidirectional",
        sire_loss,
        nn.GRU(3, 5, batch_first=True, bidirectional=True),
        x,
    )
    says(
        ValueError,
        "rnn must have dropout 0",
        sire_loss,
        nn.GRU(3, 5, 2, batch_first=True, dropout=0.1),
        x,
    )
    says(TypeError, "rnn must be a module", sire_loss, lambda x, s: x, x)
    says(ValueError, "n_pairs must be >= 1, got 0", sire_loss, gru, x, n_pairs=0)
    says(
        ValueError,
        "reduction must be one of 'mean', 'none', 'sum'",
        sire_loss,
        gru,
        x,
        reduction="batch",
    )
    says(
        ValueError,
        "groups must be contiguous",
        sire_loss,
        gru,
        x,
        groups=torch.tensor([0, 1, 0, 1]),
    )
    says(
        ValueError, r"groups must have shape \(4,\)", sire_loss, gru, x, groups=torch.tensor([0, 1])
    )
    nets = SetRNN(gru, nn.Identity()), DeepSets(3, 4, 1), SetTransformer(3, 4, 1)
    for bad in (0, 5):
        wrong = torch.tensor([bad, 2])
        for f in (
            lambda lengths: sire_loss(gru, x, lengths=lengths),
            *(lambda n, m=m: m(x, n) for m in nets),
        ):
            says(ValueError, rf"lengths must lie in 1\.\.4, got {bad}", f, wrong)
    says(
        TypeError,
        "lengths must be a tensor of integer dtype",
        sire_loss,
        gru,
        x,
        lengths=torch.tensor([1.0, 2.0]),
    )
    says(ValueError, "x must have shape", sire_loss, gru, x[0])
    says(ValueError, "x must not be empty", sire_loss, gru, x[:, :0])
    says(ValueError, "kind must be one of", output_invariance_loss, lambda x: x, x, kind="swap")
    says(ValueError, "n_orders must be >= 2", permutation_gap, lambda x: x, x, 1)
    says(ValueError, "pool must be one of", DeepSets, 1, 2, 1, pool="median")
    says(
        ValueError, "embed_dim must be a multiple of num_heads = 4, got 6", SetTransformer, 1, 6, 1
    )
    says(ValueError, "n_bits must be a power of two", sire.parity_deepsets, 6, deep=True)
    says(ValueError, "values must have an even length T", sire.half_range, torch.randn(2, 3))
    two = torch.zeros(1, 2)
    lstm = nn.LSTMCell(2, 2)
    says(TypeError, r"state must be a pair \(h, c\)", commutator, lstm, two, two, two)
    says(ValueError, "state must have the shapes", commutator, xor, two[:, :1], two, two)
    assert commutator(lstm, None, two, two).item() == 0
    says(
        ValueError, "x2 must have shape", commutator, nn.GRUCell(2, 2), two, two, torch.zeros(2, 2)
    )
    says(ValueError, "state must have shape", AggregationRNN(3, 4), x, torch.zeros(1, 3, 4))
    says(ValueError, "x must not be empty", sire_loss, gru, x[:0])
    noisy = Nested()
    noisy.cells.append(nn.Dropout(0.5))
    says(ValueError, "rnn must have dropout 0", sire_loss, noisy, x[..., :2])
    assert sire_loss(noisy.eval(), x[..., :2]).isfinite()
    more = torch.ones(1, 4, 1)
    says(ValueError, "x must have at most 3 elements", sire.parity_deepsets(3), more)
    assert sire.parity_deepsets(3)(more[:, :2]).item() == 0


# --- learning


@pytest.mark.slow
def test_a_small_network_learns_to_commute():
    gap = {}
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        net, g = SetRNN(AggregationRNN(1, 8), nn.Linear(8, 1)), generator(1)
        optimizer, x = (
            torch.optim.Adam(net.parameters(), lr=1e-2),
            torch.randn(100, 6, 1, generator=g),
        )
        y = x.amax(1) - x.amin(1)
        y = (y - y.mean()) / y.std()
        for _ in range(300):
            loss = (net(x) - y).square().mean() + weight * sire_loss(net.rnn, x, generator=g)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (net(x) - y).square().mean() < 0.5
        gap[weight] = sire_loss(net.rnn, x, n_pairs=5, generator=generator(2)).item()
    assert gap[3.0] < gap[0.0] / 2
