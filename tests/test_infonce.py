"""InfoNCE and its relatives: hand cases, plain loops, equalities, limits, bad inputs."""

import copy
import io
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

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


# ---- equalities ----


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_chunks_change_nothing(decoupled, masked, dtype):
    "Values and gradients, that of the temperature among them."
    mask = torch.arange(37) % 5 != 2 if masked else None
    found = []
    for c in (None, 1, 8, 37, 50, 1000):
        xs = [x.requires_grad_() for x in views(37, 6, dtype, seed=3)]
        t = torch.tensor(0.2, dtype=dtype, requires_grad=True)
        more = {"decoupled": decoupled, "dcl_sigma": 0.5 if decoupled else None}
        losses = nt_xent_loss(*xs, temperature=t, mask=mask, chunk_size=c, reduction="none", **more)
        weights = torch.linspace(0.5, 2, len(losses), dtype=dtype)
        found.append([losses, *torch.autograd.grad((losses * weights).sum(), [*xs, t])])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            atol = (1e-12 if dtype == D else 1e-5) * max(1, float(one.detach().abs().max()))
            assert close(one, two, atol)


@pytest.mark.parametrize("decoupled", [False, True])
def test_where_the_negatives_come_from_does_not_matter(decoupled):
    q, k = views(5)
    more = {"temperature": 0.3, "decoupled": decoupled}
    inside = info_nce_loss(q, k, reduction="none", **more)
    others = torch.stack([torch.cat([k[:i], k[i + 1 :]]) for i in range(5)])
    assert torch.allclose(info_nce_loss(q, k, others, reduction="none", **more), inside)
    for i in range(5):
        queue = NegativeQueue(4, 3, dtype=D)
        queue.enqueue(others[i])
        got = info_nce_loss(q[[i]], k[[i]], queue.keys(), **more)
        assert torch.allclose(got, inside[i])


def test_as_cross_entropy_and_both_ways():
    q, k = views(6)
    logits = nn.functional.normalize(q) @ nn.functional.normalize(k).T / 0.1
    rows, columns = (nn.functional.cross_entropy(x, torch.arange(6)) for x in (logits, logits.T))
    assert torch.allclose(info_nce_loss(q, k), rows)
    assert torch.allclose(info_nce_loss(q, k, symmetric=True), (rows + columns) / 2)
    assert torch.allclose(contrastive_logits(q, k), logits)


def test_pairs_that_may_not_be_used():
    q, k = views(6)
    pairs = (torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.5) | torch.eye(
        6
    ).bool()
    logits = contrastive_logits(q, k).masked_fill(~pairs, -math.inf)
    rows, columns = (nn.functional.cross_entropy(x, torch.arange(6)) for x in (logits, logits.T))
    got = info_nce_loss(q, k, symmetric=True, mask=pairs)
    assert torch.allclose(got, (rows + columns) / 2)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_padding_is_not_read(symmetric, decoupled):
    real = torch.tensor([True, False, True, True, False])
    more = {"decoupled": decoupled, "temperature": 0.3}

    def both(*xs, mask=None):
        yield info_nce_loss(*xs, symmetric=symmetric, mask=mask, **more)
        for c in (None, 2):
            yield nt_xent_loss(*xs, mask=mask, chunk_size=c, **more)

    clean = [x.requires_grad_() for x in (v[real].clone() for v in views(5))]
    full = [x.clone().requires_grad_() for x in views(5)]
    with torch.no_grad():
        for x in full:
            x[~real] = math.nan
    for one, two in zip(both(*clean), both(*full, mask=real), strict=True):
        assert torch.allclose(one, two)
        wanted, got = torch.autograd.grad(one, clean), torch.autograd.grad(two, full)
        for a, b in zip(wanted, got, strict=True):
            assert torch.allclose(a, b[real]) and (b[~real] == 0).all()
    nobody = torch.zeros(5, dtype=torch.bool)
    if not decoupled:
        for loss in both(*full, mask=nobody):
            assert loss == 0 and all((g == 0).all() for g in torch.autograd.grad(loss, full))


def test_symmetries():
    z1, z2 = views(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(views(3)[0])[0]
    wanted = nt_xent_loss(z1, z2)
    for a, b in ((z2, z1), (z1[order], z2[order]), (z1 @ turn, z2 @ turn), (3 * z1, 0.5 * z2)):
        assert torch.allclose(nt_xent_loss(a, b), wanted)
    logits = contrastive_logits(z1, z2)
    shifted = logits + torch.arange(7, dtype=D)[:, None]
    assert torch.allclose(info_nce_from_logits(shifted), info_nce_from_logits(logits))


def test_reductions():
    z1, z2 = views(6)
    mask = torch.arange(6) < 4
    for f, n in ((info_nce_loss, 6), (nt_xent_loss, 12)):
        each = f(z1, z2, reduction="none")
        assert each.shape == (n,)
        assert torch.allclose(f(z1, z2), each.mean())
        assert torch.allclose(f(z1, z2, reduction="sum"), each.sum())
        masked = f(z1, z2, reduction="none", mask=mask)
        assert torch.allclose(f(z1, z2, mask=mask), masked.sum() / (n * 4 / 6))


# ---- limits ----


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_equal_rows(temperature):
    same = torch.ones(6, 3, dtype=D)
    t = {"temperature": temperature}
    assert close(info_nce_loss(same, same, **t), math.log(6))
    assert close(nt_xent_loss(same, same, **t), math.log(11))
    assert close(nt_xent_loss(same, same, decoupled=True, **t), math.log(10))


def test_orthogonal_rows():
    e = torch.eye(4, dtype=D)
    for t, wanted in (
        (0.5, [0.340753, 0.594438, -0.208241]),
        (0.1, [0.000136, 0.000272, -8.208241]),
    ):
        got = [
            info_nce_loss(e, e, temperature=t),
            nt_xent_loss(e, e, temperature=t),
            nt_xent_loss(e, e, temperature=t, decoupled=True),
        ]
        assert close(torch.stack(got), wanted)


def test_softplus_of_the_decoupled_loss():
    z1, z2 = views(5)
    for f in (info_nce_loss, nt_xent_loss):
        plain, decoupled = (f(z1, z2, reduction="none", decoupled=d) for d in (False, True))
        assert torch.allclose(plain, nn.functional.softplus(decoupled))


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_extremes(chunk_size, dtype):
    z1 = Z1.to(dtype).requires_grad_()
    more = {"temperature": 1e-3, "chunk_size": chunk_size}
    far = nt_xent_loss(z1, -Z1.to(dtype), **more)
    assert close(far, 1000 + math.log(2), 1e-2)
    (grad,) = torch.autograd.grad(far, z1)
    assert grad.isfinite().all()
    zeros = torch.zeros(2, 2, dtype=dtype, requires_grad=True)
    loss = nt_xent_loss(zeros, Z2.to(dtype), chunk_size=chunk_size)
    (grad,) = torch.autograd.grad(loss, zeros)
    assert loss.isfinite() and grad.abs().max() < 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    z1, z2 = (x.to(dtype) for x in views(8, dtype=torch.float32))
    for f in (info_nce_loss, nt_xent_loss, lambda a, b: nt_xent_loss(a, b, chunk_size=4)):
        got, wanted = f(z1, z2), f(z1.float(), z2.float())
        assert got.dtype == torch.float32 and torch.equal(got, wanted)
        with torch.autocast("cpu", torch.bfloat16):
            a, b = z1.float().requires_grad_(), z2.float()
            inside = f(a, b)
            assert torch.equal(inside, wanted)
        (grad,) = torch.autograd.grad(inside, a)
        outside = z1.float().requires_grad_()
        assert torch.allclose(torch.autograd.grad(f(outside, b), outside)[0], grad)
    assert contrastive_logits(z1, z2).dtype == torch.float32
    assert info_nce_loss(z1, z2.double()).dtype == D


def test_on_a_device_without_autocast():
    z1, z2 = torch.empty(2, 4, 3, device="meta")
    mask = torch.ones(4, dtype=torch.bool, device="meta")
    losses = [nt_xent_loss(z1, z2, mask=mask, chunk_size=c) for c in (None, 2)]
    losses += [info_nce_loss(z1, z2), info_nce_loss(z1, z2, z2)]
    assert all(loss.is_meta and loss.shape == () for loss in losses)


# ---- derivatives, compiler, vmap ----


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize):
    z1, z2 = (x.requires_grad_() for x in views(3, 2))
    t = torch.tensor(0.4, dtype=D, requires_grad=True)
    negative = views(4, 2, seed=5)[0].requires_grad_()
    more = {"normalize": normalize}
    calls = [
        lambda a, b, t: info_nce_loss(a, b, temperature=t, symmetric=True, **more),
        lambda a, b, t: nt_xent_loss(a, b, temperature=t, **more),
        lambda a, b, t: nt_xent_loss(a, b, temperature=t, chunk_size=4, **more),
        lambda a, b, t: nt_xent_loss(
            a, b, temperature=t, chunk_size=2, decoupled=True, reduction="none", **more
        ),
    ]
    for f in calls:
        assert gradcheck(f, (z1, z2, t))
    assert gradcheck(
        lambda q, k, n, t: info_nce_loss(q, k, n, temperature=t, **more), (z1, z2, negative, t)
    )
    assert gradcheck(mi_lower_bound, (views(3)[0].requires_grad_(),))
    for c in (None, 4):
        assert gradgradcheck(lambda a, b, c=c: nt_xent_loss(a, b, chunk_size=c, **more), (z1, z2))


@pytest.mark.parametrize("decoupled", [False, True])
def test_vmap_and_functional_gradients(decoupled):
    a, b = views(4 * 5)
    a, b = a.view(4, 5, 3), b.view(4, 5, 3)
    for f in (info_nce_loss, nt_xent_loss):
        loss = partial(f, decoupled=decoupled)
        wanted = torch.stack([loss(x, y) for x, y in zip(a, b, strict=True)])
        assert torch.allclose(torch.vmap(loss)(a, b), wanted)
        grads = torch.vmap(torch.func.grad(loss))(a, b)
        x = a[2].clone().requires_grad_()
        assert torch.allclose(grads[2], torch.autograd.grad(loss(x, b[2]), x)[0])
    chunked = torch.func.grad(partial(nt_xent_loss, decoupled=decoupled, chunk_size=3))
    assert torch.allclose(chunked(a[2], b[2]), grads[2])


@pytest.mark.slow
def test_compile():
    z1, z2 = views(6)
    mask = torch.arange(6) < 5
    for f in (
        lambda a, b: info_nce_loss(a, b, symmetric=True, mask=mask),
        lambda a, b: nt_xent_loss(a, b, mask=mask, decoupled=True),
        lambda a, b: nt_xent_loss(a, b, chunk_size=4),
    ):
        made = torch.compile(f, backend="aot_eager", fullgraph=True)
        a, b = z1.clone().requires_grad_(), z1.clone().requires_grad_()
        one, two = f(a, z2), made(b, z2)
        assert torch.allclose(one, two)
        one.backward(), two.backward()
        assert torch.allclose(a.grad, b.grad)


# ---- information ----


def correlated(k, total, rho=0.9):
    "Scores of the ideal critic for normal pairs with this correlation: (total / k, k, k)."
    g = torch.Generator().manual_seed(k)
    x, noise = torch.randn(2, total // k, k, dtype=D, generator=g)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    given = torch.distributions.Normal(rho * x[:, :, None], math.sqrt(1 - rho**2))
    free = torch.distributions.Normal(torch.zeros((), dtype=D), 1.0)
    return given.log_prob(y[:, None]) - free.log_prob(y[:, None])


@pytest.mark.parametrize(("k", "wanted"), [(2, 0.3371), (128, 0.8194)])
def test_bound_of_normal_pairs(k, wanted):
    found = torch.vmap(mi_lower_bound)(correlated(k, 2**16))
    error = 4 * found.std() / math.sqrt(len(found))
    assert abs(found.mean() - wanted) < error < 0.03
    assert (found <= math.log(k)).all()


# ---- learning ----


def test_partners_are_found():
    "Two linear encoders of noisy views learn to find the partner among 64."
    g = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 4, 20, generator=g)

    def batch(n):
        shared = torch.randn(n, 4, generator=g)
        return [shared @ m + torch.randn(n, 20, generator=g) for m in (one, two)]

    def accuracy():
        a, b = (f(x) for f, x in zip(encoders, test, strict=True))
        return (contrastive_logits(a, b).argmax(1) == torch.arange(64)).double().mean().item()

    torch.manual_seed(0)
    test, encoders = batch(64), nn.ModuleList([nn.Linear(20, 4) for _ in range(2)])
    optimizer, before = torch.optim.Adam(encoders.parameters(), 0.02), accuracy()
    for _ in range(150):
        a, b = (f(x) for f, x in zip(encoders, batch(64), strict=True))
        loss = nt_xent_loss(a, b, temperature=0.2, chunk_size=64)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(before, accuracy())
    assert accuracy() - before > 0.5 * MARGIN


MARGIN = 0.8


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
    empty = NEGATIVES[:0]
    assert info_nce_loss(Z1, Z2, empty) == 0
    words = "negative_keys must have at least 1 row for the decoupled loss"
    says(ValueError, words, info_nce_loss, Z1, Z2, empty, decoupled=True)


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
