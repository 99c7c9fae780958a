"""InfoNCE and its relatives: hand cases, plain loops, equalities, limits, bad inputs."""

import copy
import doctest
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.contrastive import infonce
from ponderlearn.contrastive.infonce import (
    InfoNCELoss,
    NegativeQueue,
    NTXentLoss,
    contrastive_logits,
    ema_update_,
    info_nce_from_logits,
    info_nce_loss,
    mi_lower_bound,
    nt_xent_loss,
)

D = torch.float64
Z1 = torch.tensor([[1, 0], [0, 1]], dtype=D)
Z2 = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=D)
NEGATIVES = torch.tensor([[0, 1], [-1, 0], [0.6, -0.8]], dtype=D)
SCORES = torch.tensor([[2, 0, 1], [0, 1, 0], [1, 1, 3]], dtype=D)


def views(n, d=3, dtype=D, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, dtype=D, generator=g).to(dtype).unbind()


def close(a, b, atol=1e-6):
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=atol)


# ---- plain loops ----


def plain_row(scores, positive, negatives, decoupled=False, weight=1.0):
    "The loss of one anchor from its list of scores."
    total = sum(math.exp(scores[j]) for j in negatives)
    if not decoupled:
        total += math.exp(scores[positive])
    return math.log(total) - weight * scores[positive]


def plain_nt_xent(z1, z2, temperature, real=None, decoupled=False, weights=None):
    "The losses of all anchors; None for rows that are not real."
    z = [v / v.norm() for v in (*z1, *z2)]
    b = len(z1)
    real = [True] * b if real is None else real
    found = []
    for i in range(2 * b):
        if not real[i % b]:
            found.append(0.0)
            continue
        scores = [float(z[i] @ z[j]) / temperature for j in range(2 * b)]
        partner = (i + b) % (2 * b)
        others = [j for j in range(2 * b) if j not in (i, partner) and real[j % b]]
        weight = 1.0 if weights is None else weights[i % b]
        found.append(plain_row(scores, partner, others, decoupled, weight))
    return found


@settings(max_examples=25)
@given(
    st.integers(2, 5),
    st.floats(0.1, 3),
    st.booleans(),
    st.sampled_from([None, 1, 3, 100]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_nt_xent_is_a_plain_loop(b, temperature, decoupled, chunk_size, masked, seed):
    z1, z2 = views(b, seed=seed)
    real = [True] * b
    if masked and b > 2:
        real[seed % b] = False
    got = nt_xent_loss(
        z1,
        z2,
        temperature=temperature,
        mask=torch.tensor(real) if masked else None,
        decoupled=decoupled,
        chunk_size=chunk_size,
        reduction="none",
    )
    assert close(got, plain_nt_xent(z1, z2, temperature, real, decoupled), 1e-10)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
def test_rows_of_logits_are_a_plain_loop(n, k, decoupled, seed):
    g = torch.Generator().manual_seed(seed)
    k += decoupled
    logits = torch.randn(n, k, dtype=D, generator=g) * 3
    target = torch.randint(k, (n,), generator=g)
    mask = (torch.rand(n, k, generator=g) < 0.7).scatter(1, target[:, None], True)
    mask[mask.sum(1) == 1] = True
    weight = torch.rand(n, dtype=D, generator=g)
    got = info_nce_from_logits(
        logits,
        target,
        mask=mask,
        decoupled=decoupled,
        positive_weight=weight,
        reduction="none",
    )
    rows = zip(logits.tolist(), target.tolist(), mask.tolist(), weight.tolist(), strict=True)
    for loss, (scores, t, real, w) in zip(got, rows, strict=True):
        others = [j for j in range(k) if j != t and real[j]]
        assert close(loss, plain_row(scores, t, others, decoupled, w), 1e-10)


# ---- cases worked by hand ----


@pytest.mark.parametrize(
    ("temperature", "one_way", "nt_xent", "decoupled"),
    [
        (1, 0.409278, 0.673577, -0.062512),
        (0.5, 0.286024, 0.430190, -0.736718),
        (0.1, 0.063464, 0.063780, -4.997524),
    ],
)
def test_two_pairs(temperature, one_way, nt_xent, decoupled):
    t = {"temperature": temperature}
    for got in (
        info_nce_loss(Z1, Z2, **t),
        info_nce_loss(Z2, Z1, **t),
        info_nce_loss(Z1, Z2, symmetric=True, **t),
        info_nce_from_logits(contrastive_logits(Z1, Z2, **t)),
        InfoNCELoss(temperature)(Z1, Z2),
    ):
        assert close(got, one_way)
    for c in (None, 1, 3):
        assert close(nt_xent_loss(Z1, Z2, chunk_size=c, **t), nt_xent)
        assert close(nt_xent_loss(Z1, Z2, chunk_size=c, decoupled=True, **t), decoupled)
    assert close(NTXentLoss(temperature)(Z1, Z2), nt_xent)


def test_gradient_of_two_pairs():
    z1 = Z1.clone().requires_grad_()
    loss = info_nce_loss(z1, Z2, temperature=0.5, normalize=False)
    (grad,) = torch.autograd.grad(loss, z1)
    assert close(grad, [[-0.080254, 0.011465], [0.561837, -0.080262]])


@pytest.mark.parametrize(
    ("temperature", "decoupled", "wanted"),
    [
        (1.0, False, [0.889272, 1.055227]),
        (0.1, False, [0.127223, 2.126968]),
        (1.0, True, [0.360020, 0.627343]),
        (0.1, True, [-1.997524, 2.000045]),
    ],
)
def test_explicit_negatives(temperature, decoupled, wanted):
    more = {"temperature": temperature, "decoupled": decoupled, "reduction": "none"}
    assert close(info_nce_loss(Z1, Z2, NEGATIVES, **more), wanted)
    assert close(info_nce_loss(Z1, Z2, NEGATIVES.expand(2, 3, 2), **more), wanted)
    one = [
        info_nce_loss(Z1[[i]], Z2[[i]], NEGATIVES[None], **more) for i in range(2)
    ]  # a set of its own for each
    assert close(torch.cat(one), wanted)
    mask = torch.tensor([True, True, False])
    two = info_nce_loss(Z1, Z2, NEGATIVES[:2], **more)
    assert torch.allclose(info_nce_loss(Z1, Z2, NEGATIVES, mask=mask, **more), two)
    assert torch.allclose(info_nce_loss(Z1, Z2, NEGATIVES, mask=mask.expand(2, 3), **more), two)


def test_scores_of_a_critic():
    rows = info_nce_from_logits(SCORES, reduction="none")
    assert close(rows, [0.407606, 0.551445, 0.239545])
    assert close(info_nce_from_logits(SCORES), 0.399532)
    assert close(info_nce_from_logits(SCORES.T), 0.479816)
    assert close(mi_lower_bound(SCORES), 0.699080)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]) > 0
    assert close(info_nce_from_logits(SCORES, mask=mask), 0.268434)
    assert close(mi_lower_bound(nn.functional.softplus(SCORES)), 0.581216)
    assert close(mi_lower_bound(SCORES.T), 0.618797)
    assert mi_lower_bound(SCORES[:1, :1]) == 0


def test_decoupled_weights():
    z2 = torch.tensor([[0.6, 0.8], [0, 1]], dtype=D)
    weights = infonce._positive_weights(torch.cat([Z1, z2]), 0.5, None)
    assert close(weights, [1.379949, 0.620051] * 2) and close(weights.mean(), 1.0, 1e-12)
    more = {"temperature": 0.3, "decoupled": True, "reduction": "none"}
    got = nt_xent_loss(Z1, z2, dcl_sigma=0.5, **more)
    wanted = plain_nt_xent(Z1, z2, 0.3, decoupled=True, weights=weights[:2].tolist())
    assert close(got, wanted, 1e-10)
    pad = [torch.cat([z, torch.full((1, 2), math.nan, dtype=D)]) for z in (Z1, z2)]
    mask = torch.tensor([True, True, False])
    for c in (None, 2):
        masked = nt_xent_loss(*pad, dcl_sigma=0.5, mask=mask, chunk_size=c, **more)
        assert close(masked[[0, 1, 3, 4]], got, 1e-12) and (masked[[2, 5]] == 0).all()


# ---- bad input ----


def says(error, message, call, *args, **kwargs):
    with pytest.raises(error) as e:
        call(*args, **kwargs)
    assert message in str(e.value)


def test_messages():
    a, b = Z1, Z2
    says(ValueError, "positive_key must have shape (2, 2)", info_nce_loss, a, b[:1])
    says(ValueError, "query must have shape (N, D)", info_nce_loss, a[0], b[0])
    says(
        ValueError, "temperature must lie in (0, inf), got 0.0", info_nce_loss, a, b, temperature=0
    )
    says(ValueError, "temperature must have shape ()", info_nce_loss, a, b, temperature=a[0])
    says(
        ValueError,
        "symmetric must be False beside negative_keys",
        info_nce_loss,
        a,
        b,
        NEGATIVES,
        symmetric=True,
    )
    says(ValueError, "negative_keys must have shape (M, 2)", info_nce_loss, a, b, torch.ones(4, 3))
    many = torch.ones(3, 4, 2)
    says(ValueError, "negative_keys must have shape (2, M, 2)", info_nce_loss, a, b, many)
    three = torch.ones(3, dtype=torch.bool)
    says(ValueError, "mask must have shape (2,)", info_nce_loss, a, b, mask=three)
    says(ValueError, "mask must have shape (2,)", nt_xent_loss, a, b, mask=three)
    says(TypeError, "mask must be a tensor of bool dtype", nt_xent_loss, a, b, mask=a[0])
    says(ValueError, "z2 must have shape (2, 2)", nt_xent_loss, a, b.repeat(2, 1))
    says(ValueError, "dcl_sigma must be None unless decoupled", nt_xent_loss, a, b, dcl_sigma=0.5)
    says(ValueError, "chunk_size must be >= 1", nt_xent_loss, a, b, chunk_size=0)
    says(ValueError, "logits must have a column for each row", info_nce_from_logits, SCORES[:, :2])
    says(ValueError, "reduction must be one of", nt_xent_loss, a, b, reduction="avg")
    says(ValueError, "scores must have shape (K, K)", mi_lower_bound, SCORES[:2])


def test_masked_positives():
    off = ~torch.eye(3, dtype=torch.bool)
    message = "mask must be True at the positive of each row, got False in row 0"
    says(ValueError, message, info_nce_from_logits, SCORES, mask=off)
    says(ValueError, message, info_nce_loss, SCORES, SCORES, mask=off)
    last = torch.tensor([True, True, False])
    says(ValueError, "got False in row 2", info_nce_from_logits, SCORES, mask=last)
    target = torch.tensor([0, 1, 1])
    wanted = info_nce_from_logits(SCORES[:, :2], target)
    assert torch.equal(info_nce_from_logits(SCORES, target, mask=last), wanted)


def test_one_row():
    for c in (None, 1, 2):
        assert nt_xent_loss(Z1[:1], Z2[:1], chunk_size=c) == 0
    assert info_nce_loss(Z1[:1], Z2[:1]) == 0
    words = "must have at least 2 rows for the decoupled loss"
    says(ValueError, f"query {words}", info_nce_loss, Z1[:1], Z2[:1], decoupled=True)
    says(ValueError, f"z1 {words}", nt_xent_loss, Z1[:1], Z2[:1], decoupled=True)
    one = torch.tensor([True, False])
    says(ValueError, "mask must leave", nt_xent_loss, Z1, Z2, mask=one, decoupled=True)
    says(ValueError, "mask must leave", info_nce_loss, Z1, Z2, mask=one, decoupled=True)
    empty = NEGATIVES[:0]
    assert info_nce_loss(Z1, Z2, empty) == 0
    says(
        ValueError, "logits must have at least 2 col", info_nce_loss, Z1, Z2, empty, decoupled=True
    )


# ---- queue ----


def test_queue():
    queue = NegativeQueue(5, 1)
    rows = torch.arange(20.0)[:, None]
    queue.enqueue(rows[:3])
    assert len(queue) == 3 and queue.keys()[:, 0].tolist() == [0, 1, 2]
    queue.enqueue(rows[3:6])
    assert len(queue) == 5 and queue.keys()[:, 0].tolist() == [1, 2, 3, 4, 5]
    saved = io.BytesIO()
    torch.save(queue.state_dict(), saved)
    saved.seek(0)
    again = NegativeQueue(5, 1)
    again.load_state_dict(torch.load(saved, weights_only=True))
    for q in (queue, again, copy.deepcopy(queue)):
        assert len(q) == 5 and q.keys()[:, 0].tolist() == [1, 2, 3, 4, 5]
        q.enqueue(rows[6:13])
        assert q.keys()[:, 0].tolist() == [8, 9, 10, 11, 12]
        q.enqueue(rows[13:14])
        assert q.keys()[:, 0].tolist() == [9, 10, 11, 12, 13]
    before = queue.keys()
    queue.enqueue(rows[:0])
    queue.enqueue(rows[14:16])
    assert before[:, 0].tolist() == [9, 10, 11, 12, 13]  # a copy
    says(ValueError, "keys must have shape (B, 1), got", queue.enqueue, torch.ones(2, 3))


# ---- momentum ----


def test_momentum_update():
    slow, fast = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    fast(torch.randn(8, 2))
    old = copy.deepcopy(slow.state_dict())
    assert ema_update_(slow, fast, 0.9) is slow
    for name, x in slow.named_parameters():
        assert torch.allclose(x, 0.9 * old[name] + 0.1 * fast.state_dict()[name])
        assert x.requires_grad and x.grad is None
    assert slow[1].num_batches_tracked == 1
    assert torch.equal(slow[1].running_mean, fast[1].running_mean)
    says(TypeError, "target must have the parameters of source", ema_update_, slow, fast[0], 0.9)
    says(ValueError, "source.weight must have", ema_update_, nn.Linear(2, 1), nn.Linear(3, 1), 0.9)
    says(ValueError, "decay must lie in [0, 1]", ema_update_, slow, fast, 1.1)


def test_examples_in_docstrings():
    assert doctest.testmod(infonce).failed == 0
