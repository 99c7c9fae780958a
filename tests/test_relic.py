"""ReLIC: predictions, divergences, pairings, the loss, refinement, measures, colors."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from ponderlearn import data
from ponderlearn.contrastive.infonce import info_nce_loss
from ponderlearn.contrastive.relic import (
    RelicLoss,
    coarsen,
    colorize,
    divergence,
    fisher_ratio,
    is_refinement,
    linear_r2,
    relic_loss,
    similarity_log_probs,
    spurious_hues,
)
from ponderlearn.training import fit
from ponderlearn.views import random_view, small_encoder

KINDS = "kl", "reverse_kl", "jeffreys", "js"
PAIRINGS = "swap", "shared", "same"
LOGITS = [[2, 0.5, -0.3], [0.2, 1.5, 0.4], [-0.1, 0.6, 1.8]]


def f64(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*size, seed=0):
    return torch.randn(*size, generator=seeded(seed), dtype=torch.float64)


def unit(n, d, seed=0):
    return F.normalize(randn(n, d, seed=seed), dim=1)


def two_by_two():
    return f64([1, 0], [0, 1]), f64([0.8, 0.6], [-0.6, 0.8])


def three():
    return torch.eye(3).double(), f64([0.6, 0.8, 0], [0, 0.8, 0.6], [0, 0, 1])


def swapped(A):
    return A.log_softmax(1), A.T.log_softmax(1)


def parts(z1, z2, **how):
    return relic_loss(z1, z2, **{"normalize": False, "return_parts": True} | how)


# ---- known values ----


def test_two_images_by_hand():
    z1, z2 = two_by_two()
    p = similarity_log_probs(z1, z2, temperature=1.0).exp()
    assert torch.allclose(p, f64([0.802184, 0.197816], [0.450166, 0.549834]), atol=1e-6)
    table = {1.0: ((0.140342, 0.162478), 0.409278), 0.5: ((0.316404, 0.509167), 0.286024)}
    table[0.1] = ((0.126917, 1.303508), 0.063464)
    for tau, (rows, contrastive) in table.items():
        found = divergence(*swapped(z1 @ z2.T / tau), reduction="none")
        assert found.tolist() == pytest.approx(rows, abs=2e-6)
        both = parts(z1, z2, temperature=tau, kind="kl")
        assert both.divergence.item() == pytest.approx(sum(rows) / 2, abs=2e-6)
        assert both.contrastive.item() == pytest.approx(contrastive, abs=1e-6)
        assert both.loss.item() == pytest.approx(contrastive + sum(rows) / 2, abs=2e-6)


def test_three_images_tell_the_direction():
    z1, z2 = three()
    table = {
        1.0: ((0.068812, 0.139661, 0.036705), (0.074605, 0.134990, 0.033457), 0.789663),
        0.5: (0.276244, 0.270430, 0.602496),
        0.1: (1.874862, 2.072861, 0.495165),
    }
    for tau, (there, back, contrastive) in table.items():
        one = divergence(*swapped(z1 @ z2.T / tau), reduction="none")
        other = divergence(*swapped(z1 @ z2.T / tau), kind="reverse_kl", reduction="none")
        pick = (lambda x: x.tolist()) if tau == 1 else (lambda x: x.mean().item())
        assert pick(one) == pytest.approx(there, abs=1e-6)
        assert pick(other) == pytest.approx(back, abs=1e-6)
        assert parts(z1, z2, temperature=tau).contrastive.item() == pytest.approx(
            contrastive, abs=1e-6
        )


def test_logits_by_hand():
    p, q = swapped(f64(*LOGITS))
    rows = divergence(p, q, reduction="none").tolist()
    assert rows == pytest.approx([0.008134, 0.007719, 0.004172], abs=1e-6)
    rows = divergence(p, q, kind="reverse_kl", reduction="none").tolist()
    assert rows == pytest.approx([0.007805, 0.007906, 0.004056], abs=1e-6)
    for kind, value in zip(KINDS, (0.006675, 0.006589, 0.006632, 0.001655), strict=True):
        assert divergence(p, q, kind=kind).item() == pytest.approx(value, abs=1e-6)
        assert divergence(p, q, kind=kind, reduction="sum").item() == pytest.approx(
            3 * value, abs=3e-6
        )


@pytest.mark.parametrize(
    "detach, wanted",
    [
        ("none", (-0.001954, 0.027390, -0.025162)),
        ("reference", (0.006970, 0.012520, -0.013414)),
        ("entropy", (-0.109545, 0.087686, 0.023006)),
    ],
)
def test_gradients_by_hand(detach, wanted):
    A = f64(*LOGITS).requires_grad_()
    divergence(*swapped(A), detach=detach).backward()
    found = [A.grad[0, 0].item(), A.grad[0, 1].item(), A.grad[1, 0].item()]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_shared_candidates_by_hand():
    z1, z2 = two_by_two()
    candidates = f64([0, 1], [-1, 0], [0.6, -0.8])
    table = {1.0: (0.156778, 0.065831), 0.5: (0.627563, 0.192289), 0.1: (5.970328, 0.126519)}
    for tau, rows in table.items():
        p, q = (similarity_log_probs(z, candidates, temperature=tau) for z in (z1, z2))
        assert divergence(p, q, reduction="none").tolist() == pytest.approx(rows, abs=1e-6)
        how = {"temperature": tau, "kind": "kl", "pairing": "shared"}
        found = parts(z1, z2, reference=candidates, **how)
        assert found.divergence.item() == pytest.approx(sum(rows) / 2, abs=1e-6)
    p, q = (similarity_log_probs(z, candidates, temperature=1.0) for z in (z1, z2))
    back = divergence(p, q, kind="reverse_kl", reduction="none").tolist()
    assert back == pytest.approx((0.153038, 0.072341), abs=1e-6)


# ---- independent implementations ----


def by_loops(A, kind):
    "Swapped divergence of scores in plain Python with SciPy."
    A, total = A.numpy(), 0.0
    for i in range(len(A)):
        p, q = special.softmax(A[i]), special.softmax(A[:, i])
        m = (p + q) / 2
        total += {
            "kl": stats.entropy(p, q),
            "reverse_kl": stats.entropy(q, p),
            "jeffreys": (stats.entropy(p, q) + stats.entropy(q, p)) / 2,
            "js": (stats.entropy(p, m) + stats.entropy(q, m)) / 2,
        }[kind]
    return total / len(A)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.floats(0.05, 3), st.sampled_from(KINDS))
def test_loss_by_loops(seed, n, tau, kind):
    z1, z2 = randn(n, 4, seed=seed), randn(n, 4, seed=seed + 1)
    A = F.normalize(z1, dim=1) @ F.normalize(z2, dim=1).T / tau
    found = relic_loss(z1, z2, divergence_weight=0.7, temperature=tau, kind=kind, return_parts=True)
    assert found.divergence.item() == pytest.approx(by_loops(A, kind), rel=1e-9, abs=1e-12)
    there, back = (F.cross_entropy(X, torch.arange(n)) for X in (A, A.T))
    assert found.contrastive.item() == pytest.approx((there + back).item() / 2)
    wanted = found.contrastive + 0.7 * found.divergence
    assert torch.allclose(found.loss, wanted)


def test_torch_kl_div_is_the_other_direction():
    z1, z2 = unit(9, 4), unit(9, 4, 1)
    A = z1 @ z2.T / 0.2
    theirs = F.kl_div(A.log_softmax(1), A.softmax(0).T, reduction="batchmean")
    found = parts(z1, z2, temperature=0.2, kind="reverse_kl")
    assert torch.allclose(found.divergence, theirs)


def without_self(a, b, tau):
    "Predictions (n, n - 1) with the image itself dropped."
    n = len(a)
    keep = ~torch.eye(n, dtype=torch.bool)
    return (a @ b.T / tau)[keep].view(n, n - 1).log_softmax(1)


def kl(p, q):
    return (p.exp() * (p - q)).sum(1).mean()


def test_same_and_shared_by_dropping_the_diagonal():
    z1, z2, tau = unit(7, 4), unit(7, 4, 1), 0.3
    found = parts(z1, z2, temperature=tau, pairing="same", kind="kl").divergence
    assert torch.allclose(found, kl(without_self(z1, z1, tau), without_self(z2, z2, tau)))
    found = parts(z1, z2, temperature=tau, pairing="shared", kind="kl").divergence
    first = kl(without_self(z1, z2, tau), without_self(z2, z2, tau))
    second = kl(without_self(z2, z1, tau), without_self(z1, z1, tau))
    assert torch.allclose(found, (first + second) / 2)


def test_targets():
    (z1, z2), (t1, t2) = (unit(6, 4, s) for s in (0, 1)), (unit(6, 4, s) for s in (2, 3))
    A, B = z1 @ t2.T / 0.3, z2 @ t1.T / 0.3
    found = parts(z1, z2, target1=t1, target2=t2, temperature=0.3, kind="kl")
    assert torch.allclose(found.divergence, kl(A.log_softmax(1), B.log_softmax(1)))
    y = torch.arange(6)
    assert torch.allclose(found.contrastive, (F.cross_entropy(A, y) + F.cross_entropy(B, y)) / 2)
    how = {"target1": t1, "target2": t2, "temperature": 0.3, "kind": "kl", "pairing": "same"}
    same = kl(without_self(z1, t1, 0.3), without_self(z2, t2, 0.3))
    assert torch.allclose(parts(z1, z2, **how).divergence, same)


def test_a_reference_gets_a_gradient():
    refs = unit(6, 3, 2).requires_grad_()
    relic_loss(unit(5, 3), unit(5, 3, 1), reference=refs, pairing="shared").backward()
    assert refs.grad.abs().sum() > 0


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_targets_get_no_gradient(pairing):
    zs = [unit(5, 3, s).requires_grad_() for s in range(4)]
    relic_loss(zs[0], zs[1], target1=zs[2], target2=zs[3], pairing=pairing).backward()
    assert zs[0].grad.abs().sum() > 0 and zs[1].grad.abs().sum() > 0
    assert zs[2].grad is None and zs[3].grad is None


# ---- identities and limits ----


def jeffreys(A):
    return divergence(*swapped(A), kind="jeffreys", reduction="none")


def test_identity_of_jeffreys():
    A = 3 * randn(9, 9)
    p, q = (x.exp() for x in swapped(A))
    assert torch.allclose(jeffreys(A), ((p - q) * (A - A.T)).sum(1) / 2, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_zero_exactly_for_symmetric_scores(seed):
    z, M = randn(8, 5, seed=seed), randn(5, 5, seed=seed + 1)
    scale = torch.diag(randn(5, seed=seed + 2))
    for other in (z, -z, z @ scale, z @ (M + M.T)):
        for pairing_free in KINDS:
            found = parts(z, other, temperature=2.0, kind=pairing_free).divergence
            assert abs(found.item()) < 1e-12
    for other in (z @ torch.linalg.qr(M).Q, z @ (M - M.T)):
        assert parts(z, other, temperature=2.0).divergence > 1e-6


def test_shared_is_stricter_than_swap():
    z = unit(6, 4)
    assert parts(z, -z).divergence.abs() < 1e-12
    assert parts(z, -z, pairing="shared").divergence > 0.1
    candidates = torch.cat([randn(5, 2), torch.zeros(5, 2)], 1)
    moved = z + torch.cat([torch.zeros(6, 2), randn(6, 2, seed=2)], 1)
    how = {"pairing": "shared", "reference": candidates}
    assert parts(z, moved, **how).divergence.abs() < 1e-12


def test_second_order():
    A = f64(*LOGITS)
    symmetric, skew = (A + A.T) / 2, (A - A.T) / 2
    s = symmetric.softmax(1)
    for epsilon, ratio in ((1, 1.006313), (0.1, 1.000646), (0.01, 1.000065)):
        gap = 2 * epsilon * skew
        half = ((s * gap.square()).sum(1) - (s * gap).sum(1).square()).mean() / 2
        found = divergence(*swapped(symmetric + epsilon * skew))
        assert (found / half).item() == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_invariance(pairing, kind):
    z1, z2, how = unit(7, 4), unit(7, 4, 1), {"pairing": pairing, "kind": kind}
    here = parts(z1, z2, **how)
    turn, order = torch.linalg.qr(randn(4, 4)).Q, torch.randperm(7, generator=seeded(0))
    for a, b in ((z1 @ turn, z2 @ turn), (z1[order], z2[order])):
        assert torch.allclose(torch.stack(parts(a, b, **how)), torch.stack(here), atol=1e-10)
    back = parts(z2, z1, **how)
    assert torch.allclose(back.contrastive, here.contrastive)
    other = {"kl": "reverse_kl", "reverse_kl": "kl"}.get(kind, kind)
    if pairing == "shared":
        other = kind  # both views lend their candidates
    assert torch.allclose(parts(z2, z1, pairing=pairing, kind=other).divergence, here.divergence)


def test_extremes():
    row = unit(1, 4).expand(6, 4)
    for pairing in PAIRINGS:
        found = parts(row, row, pairing=pairing)
        assert found.contrastive.item() == pytest.approx(math.log(6))
        assert found.divergence.item() == pytest.approx(0, abs=1e-12)
    z1, z2 = f64([1, 0], [0, 1]), f64([0, 1], [-1, 0])
    assert parts(z1, z2, temperature=0.1, kind="kl").divergence.item() == pytest.approx(9.999092)
    assert parts(z1, z2, temperature=1e-3, kind="kl").divergence.item() == pytest.approx(1000)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_one_image(pairing):
    z1, z2 = unit(1, 4).requires_grad_(), unit(1, 4, 1).requires_grad_()
    found = relic_loss(z1, z2, pairing=pairing, return_parts=True)
    found.loss.backward()
    assert [v.item() for v in found] == [0, 0, 0]
    assert z1.grad.abs().max() < 1e-12 and z2.grad.abs().max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 2), st.sampled_from(PAIRINGS))
def test_bounds(seed, tau, pairing):
    z1, z2 = unit(6, 3, seed), unit(6, 3, seed + 1)
    for kind in KINDS:
        found = parts(z1, z2, temperature=tau, pairing=pairing, kind=kind).divergence.item()
        most = math.log(2) if kind == "js" else 4 / tau
        assert -1e-12 <= found <= most + 1e-12


def test_without_weight_it_is_info_nce():
    z1, z2 = randn(9, 4), randn(9, 4, seed=1)
    wanted = info_nce_loss(z1, z2, symmetric=True, temperature=0.3)
    for chunk_size in (None, 4):
        how = {"divergence_weight": 0.0, "temperature": 0.3, "chunk_size": chunk_size}
        found = relic_loss(z1, z2, return_parts=True, **how)
        assert torch.allclose(found.loss, wanted) and found.divergence == 0


# ---- numbers of other kinds ----


def test_where_nobody_has_mass():
    p, q = f64([0.5, 0.5, 0], [1, 0, 0]).log(), f64([0.25, 0.75, 0], [1, 0, 0]).log()
    for kind in KINDS:
        a, b = p.clone().requires_grad_(), q.clone().requires_grad_()
        rows = divergence(a, b, kind=kind, reduction="none")
        dropped = divergence(p[:1, :2], q[:1, :2], kind=kind)
        assert rows[0].item() == pytest.approx(dropped.item()) and rows[1] == 0
        rows.sum().backward()
        assert a.grad.isfinite().all() and b.grad.isfinite().all()
    one = f64([1, 0]).log()
    half = f64([0.5, 0.5]).log()
    assert divergence(half, one).item() == math.inf
    assert divergence(one, half).item() == pytest.approx(math.log(2))
    assert divergence(half, one, kind="js").item() == pytest.approx(0.215762, abs=1e-6)
    assert divergence(one, half, detach="entropy").item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_half_precision(dtype, pairing):
    z1, z2 = (unit(9, 4, s).to(dtype).requires_grad_() for s in (0, 1))
    loss = relic_loss(z1, z2, temperature=0.01, pairing=pairing)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert z1.grad.dtype == dtype and z1.grad.isfinite().all()
    wanted = relic_loss(
        z1.detach().double(), z2.detach().double(), temperature=0.01, pairing=pairing
    )
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_under_autocast_it_stays_in_float32():
    z1, z2 = unit(9, 4).float(), unit(9, 4, 1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = relic_loss(z1, z2)
    assert torch.equal(inside, relic_loss(z1, z2))


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, pairing):
    zs = randn(4, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()
    how = {"kind": kind, "pairing": pairing, "temperature": 0.7}
    assert torch.autograd.gradcheck(lambda a, b: relic_loss(a, b, **how), zs)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(
    "kind, detach",
    [
        ("kl", "reference"),
        ("reverse_kl", "reference"),
        ("jeffreys", "reference"),
        ("kl", "entropy"),
    ],
)
def test_what_is_detached_has_no_gradient(kind, detach, pairing):
    "The gradient is that of a function in which the detached part is a constant."
    tau, n = 0.7, 5

    def predictions(a, b):
        if pairing == "swap":
            return [((a @ b.T / tau).log_softmax(1), (b @ a.T / tau).log_softmax(1))]
        if pairing == "same":
            return [(without_self(a, a, tau), without_self(b, b, tau))]
        there = without_self(a, b, tau), without_self(b, b, tau)
        return [there, (without_self(b, a, tau), without_self(a, a, tau))]

    def by_hand(a, b):
        total = 0
        for p, q in predictions(a, b):
            fixed_p, fixed_q = p.detach(), q.detach()
            if detach == "entropy":
                total += -(p.exp() * q).sum() / n
            else:
                legs = [-(fixed_p.exp() * q).sum() / n, -(fixed_q.exp() * p).sum() / n]
                total += {"kl": legs[0], "reverse_kl": legs[1], "jeffreys": sum(legs) / 2}[kind]
        return total / (2 if pairing == "shared" else 1)

    zs = [unit(n, 3, s).requires_grad_() for s in (0, 1)]
    how = {"kind": kind, "detach": detach, "pairing": pairing, "temperature": tau}
    grad = partial(torch.autograd.grad, materialize_grads=True)
    found = grad(parts(*zs, **how).divergence, zs)
    wanted = grad(by_hand(*zs), zs)
    assert torch.allclose(torch.cat(found), torch.cat(wanted), atol=1e-10)


def test_learned_temperature():
    z1, z2 = unit(6, 4), unit(6, 4, 1)
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: relic_loss(z1, z2, temperature=t), tau)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_vmap(pairing):
    z1, z2 = (torch.stack([unit(6, 3, 10 * k + s) for k in range(4)]) for s in (0, 1))
    loss = RelicLoss(pairing=pairing, temperature=0.5)
    each = torch.stack([loss(a, b) for a, b in zip(z1, z2, strict=True)])
    assert torch.allclose(torch.vmap(loss)(z1, z2), each)


def test_compile():
    z1, z2, loss = unit(6, 3).float(), unit(6, 3, 1).float(), RelicLoss(pairing="same")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(z1, z2), loss(z1, z2), atol=1e-6)


def test_module_is_the_function():
    zs, refs = [unit(5, 3, s) for s in range(4)], unit(7, 3, 9)
    how = {"divergence_weight": 2.0, "temperature": 0.3, "kind": "kl", "detach": "reference"}
    how |= {"normalize": False}
    assert torch.equal(RelicLoss(**how)(*zs[:2]), relic_loss(*zs[:2], **how))
    targets = {"target1": zs[2], "target2": zs[3]}
    assert torch.equal(RelicLoss(**how)(*zs), relic_loss(*zs[:2], **targets, **how))
    how |= {"pairing": "shared"}
    found = RelicLoss(**how)(*zs[:2], reference=refs)
    assert torch.equal(found, relic_loss(*zs[:2], reference=refs, **how))


# ---- tiles ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.04, 1e-3])
@pytest.mark.parametrize("chunk_size", [1, 5, 16, 10**6])
def test_tiles_give_the_same_numbers(chunk_size, temperature, dtype):
    found = []
    for size in (None, chunk_size):
        zs = [randn(23, 5, seed=s).to(dtype).requires_grad_() for s in (0, 1)]
        how = {"temperature": temperature, "divergence_weight": 3.0, "chunk_size": size}
        both = relic_loss(*zs, return_parts=True, **how)
        both.loss.backward()
        found.append((torch.stack(both).detach(), torch.cat([z.grad for z in zs])))
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9}
    for plain, tiled in zip(*found, strict=True):
        assert torch.allclose(tiled, plain, **close)


def test_tiles_gradcheck_each_part():
    zs = randn(7, 3).requires_grad_(), randn(7, 3, seed=1).requires_grad_()

    def both(a, b):
        return relic_loss(a, b, chunk_size=3, temperature=0.5, return_parts=True)[1:]

    assert torch.autograd.gradcheck(both, zs)
    assert torch.autograd.gradgradcheck(both, zs)


def test_tiles_of_scores_far_apart_fall_back():
    z1, z2 = 1e3 * randn(8, 3), 1e3 * randn(8, 3, seed=1)
    how = {"normalize": False, "temperature": 1.0}
    assert torch.equal(relic_loss(z1, z2, chunk_size=4, **how), relic_loss(z1, z2, **how))


@pytest.mark.parametrize(
    "how",
    [
        {"pairing": "same"},
        {"kind": "kl"},
        {"detach": "reference"},
        {"target1": unit(4, 3), "target2": unit(4, 3)},
    ],
)
def test_tiles_are_for_the_plain_swap_only(how):
    with pytest.raises(ValueError, match="chunk_size must be None unless"):
        relic_loss(unit(4, 3), unit(4, 3, 1), chunk_size=2, **how)
    if "target1" not in how:
        with pytest.raises(ValueError, match="chunk_size must be None unless"):
            RelicLoss(chunk_size=2, **how)


def test_tiles_of_the_module():
    z1, z2 = unit(7, 3), unit(7, 3, 1)
    found = RelicLoss(chunk_size=3, divergence_weight=2.0)(z1, z2)
    assert torch.allclose(found, relic_loss(z1, z2, divergence_weight=2.0))
    with pytest.raises(ValueError, match="chunk_size must be None unless"):
        RelicLoss(chunk_size=3)(z1, z2, target1=z1, target2=z2)


# ---- refinement ----


def test_coarsen_by_hand():
    p, q = swapped(f64(*LOGITS))
    groups = torch.tensor([0, 0, 1])
    coarse = divergence(coarsen(p, groups), coarsen(q, groups), reduction="none")
    assert coarse.tolist() == pytest.approx([0.002319, 0.001374, 0.004172], abs=1e-6)
    fine = divergence(p, q, reduction="none")
    assert coarse[2].item() == pytest.approx(fine[2].item(), abs=1e-12)
    one = torch.zeros(3, dtype=torch.long)
    assert coarsen(p, one).abs().max() < 1e-12
    wide = coarsen(p, groups, n_groups=4)
    assert wide.shape == (3, 4) and torch.equal(wide[:, :2], coarsen(p, groups))
    assert (wide[:, 2:] == -math.inf).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 5), st.sampled_from(KINDS))
def test_coarse_is_never_farther_apart(seed, k, n_groups, kind):
    g = seeded(seed)
    p, q = (3 * randn(4, k, seed=seed + s) for s in (1, 2))
    p, q = p.log_softmax(1), q.log_softmax(1)
    groups = torch.randint(n_groups, (k,), generator=g)
    a, b = coarsen(p, groups, n_groups), coarsen(q, groups, n_groups)
    assert torch.allclose(a.exp().sum(1), torch.ones(4, dtype=a.dtype))
    fine = divergence(p, q, kind=kind, reduction="none")
    coarse = divergence(a, b, kind=kind, reduction="none")
    assert (coarse <= fine + 1e-12).all()


def test_coarsen_of_very_unequal_rows():
    x = f64([0, -2000, -3000], [-800, -900, 0]).log_softmax(1).requires_grad_()
    found = coarsen(x, torch.tensor([0, 1, 1]))
    assert found[1].tolist() == pytest.approx([-800, 0])
    found[1].sum().backward()
    assert x.grad.isfinite().all()
    assert coarsen(x.detach().half(), torch.tensor([0, 1, 1])).dtype == torch.float32


def test_is_refinement():
    fine, halves = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])
    for coarse in (fine, halves, torch.tensor([5, 5, 5, 5]), torch.tensor([0, 1, 1, 1])):
        assert is_refinement(fine, coarse)
    assert is_refinement(halves, torch.tensor([5, 5, 5, 5]))
    assert not is_refinement(halves, torch.tensor([0, 1, 1, 1]))
    assert not is_refinement(halves, fine)


# ---- measures ----


def test_fisher_by_hand_and_by_loops():
    x, y = f64([0, 0], [2, 0], [4, 3], [4, 5]), torch.tensor([0, 0, 1, 1])
    assert fisher_ratio(x, y)[0, 1] == 12.5 == fisher_ratio(x, y)[1, 0]
    assert fisher_ratio(x, y, reduction="sum")[0, 1] == 3.125
    x, y = randn(60, 5), torch.randint(4, (60,), generator=seeded(0))
    found = fisher_ratio(x, y)
    assert found.diagonal().isnan().all()
    for i, j in itertools.permutations(range(4), 2):
        a, b = x[y == i], x[y == j]
        wanted = (a.mean(0) - b.mean(0)).square().sum() / torch.cdist(a, a).square().mean()
        assert found[i, j].item() == pytest.approx(wanted.item())
    assert torch.allclose(fisher_ratio(5 * x + 100, y), found, equal_nan=True)


def test_fisher_at_the_edges():
    x = f64([1, 1], [1, 1], [0, 0], [2, 0])
    found = fisher_ratio(x, torch.tensor([0, 0, 1, 1]))
    assert found[0, 1] == math.inf and found[1, 0] == 0.5
    with pytest.raises(ValueError, match="labels must have examples of each class"):
        fisher_ratio(x, torch.tensor([0, 0, 2, 2]))
    with pytest.raises(ValueError, match="labels must have examples of each class"):
        fisher_ratio(x, torch.tensor([0, 0, 1, 1]), n_classes=3)
    with pytest.raises(ValueError, match="labels must be below"):
        fisher_ratio(x, torch.tensor([0, 0, 1, 1]), n_classes=1)


def test_linear_r2_is_ridge_regression():
    from sklearn.linear_model import LinearRegression, Ridge

    z, t = randn(80, 5), randn(40, 5, seed=1)
    W = randn(5, 2, seed=2)
    s, u = z @ W + 0.5 * randn(80, 2, seed=3), t @ W + 0.5 * randn(40, 2, seed=4)
    fitted = LinearRegression().fit(z.numpy(), s.numpy())
    left = np.square(u.numpy() - fitted.predict(t.numpy())).sum()
    spread = (u - u.mean(0)).square().sum().item()
    assert linear_r2(z, s, t, u, l2_weight=0.0) == pytest.approx(1 - left / spread)
    weight = 0.3 * z.var(0, unbiased=False).mean().item() * len(z)
    fitted = Ridge(weight).fit(z.numpy(), s.numpy())
    left = np.square(u.numpy() - fitted.predict(t.numpy())).sum()
    assert linear_r2(z, s, t, u, l2_weight=0.3) == pytest.approx(1 - left / spread)
    for scale in (1e-6, 1e6):
        assert linear_r2(scale * z + 3, s, scale * t + 3, u) == pytest.approx(
            linear_r2(z, s, t, u), abs=1e-6
        )


def test_linear_r2_at_the_edges():
    z, t = randn(50, 3), randn(20, 3, seed=1)
    assert linear_r2(z, z[:, 0], t, t[:, 0]) == pytest.approx(1, abs=1e-4)
    assert linear_r2(0 * z, z[:, 0], 0 * t, t[:, 0]) <= 0
    noise = linear_r2(z, randn(50, seed=2), t, randn(20, seed=3))
    assert noise < 0.3
    with pytest.raises(ValueError, match="s_test must vary"):
        linear_r2(z, z[:, 0], t, torch.ones(20).double())
    with pytest.raises(ValueError, match="z_train must hold finite values"):
        linear_r2(z * math.nan, z[:, 0], t, t[:, 0])


# ---- colors ----


def test_colorize():
    x = torch.rand(3, 1, 4, 4, generator=seeded(0))
    found = colorize(x, torch.tensor([0.0, 1 / 6, 0.5]))
    assert found.shape == (3, 3, 4, 4)
    assert torch.equal(found[0, 0], x[0, 0]) and found[0, 1:].abs().max() == 0
    assert torch.allclose(found.amax(1, keepdim=True), x)


def test_spurious_hues():
    y = torch.arange(10).repeat(3000)
    for correlation, offset in ((0.9, 0), (0.5, 5), (0.0, 0), (1.0, 3)):
        hue = spurious_hues(y, correlation=correlation, offset=offset, generator=seeded(1))
        assert hue.dtype == torch.float32 and 0 <= hue.min() and hue.max() < 1
        gap = (hue - (y + offset) % 10 / 10 + 0.5) % 1 - 0.5
        near = (gap.abs() <= 0.03 + 1e-6).float().mean().item()
        assert near == pytest.approx(correlation + (1 - correlation) * 0.06, abs=0.01)
    again = spurious_hues(y, generator=seeded(1))
    assert torch.equal(again, spurious_hues(y, generator=seeded(1)))
    for labels in (torch.tensor([10]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9"):
            spurious_hues(labels)


# ---- wrong arguments that the examples do not show ----


def test_messages():
    z = unit(4, 3)
    cases = [
        ({"divergence_weight": -1.0}, "divergence_weight must lie in"),
        ({"target1": z}, "target2 must be given together with target1"),
        ({"target2": z}, "target2 must be given together with target1"),
        ({"pairing": "swop"}, "pairing must be one of"),
        ({"kind": "KL"}, "kind must be one of"),
        ({"kind": "js", "detach": "reference"}, "detach must be 'none' with kind 'js'"),
        ({"kind": "jeffreys", "detach": "entropy"}, "detach must be 'entropy' with kind 'kl'"),
        ({"reference": z}, "reference must be None unless pairing is 'shared'"),
        ({"temperature": 0.0}, "temperature must lie in"),
    ]
    for how, words in cases:
        with pytest.raises(ValueError, match=words):
            relic_loss(z, z, **how)
        if not set(how) & {"target1", "target2", "reference"}:
            with pytest.raises(ValueError, match=words):
                RelicLoss(**how)
    with pytest.raises(ValueError, match="z2 must have shape"):
        relic_loss(z, z[:3])
    with pytest.raises(ValueError, match="candidates must be as many as the anchors"):
        similarity_log_probs(z, z[:3], exclude_self=True)
    with pytest.raises(ValueError, match="log_q must have shape"):
        divergence(z, z[:, :2])
    with pytest.raises(ValueError, match="images must have shape"):
        colorize(torch.rand(2, 3, 4, 4), torch.rand(2))
    with pytest.raises(ValueError, match="correlation must lie in"):
        spurious_hues(torch.tensor([1]), correlation=1.1)


def test_exclude_self():
    z = unit(5, 3)
    found = similarity_log_probs(z, z, exclude_self=True)
    assert (found.diagonal() == -math.inf).all()
    keep = ~torch.eye(5, dtype=torch.bool)
    assert torch.allclose(found[keep].view(5, 4), without_self(z, z, 0.1))


# ---- learning ----


def agreement(z1, z2):
    "Mean correlation of the similarities of both views with all other images: blind to flatness."
    keys = F.normalize(z1 + z2, dim=1)
    keep = ~torch.eye(len(z1), dtype=torch.bool)
    rows = [(F.normalize(z, dim=1) @ keys.T)[keep].view(len(z), -1) for z in (z1, z2)]
    a, b = (F.normalize(r - r.mean(1, keepdim=True), dim=1) for r in rows)
    return (a * b).sum(1).mean().item()


def test_penalty_makes_predictions_agree():
    "Not by flatness alone: images are told apart, and similarities correlate better."
    x = data.mnist(size=14).train.x[:512]
    apart, agree = {}, {}
    for weight in (0.0, 3.0):
        net = small_encoder(16, channels=3, seed=0)

        def view(images, g):
            return colorize(random_view(images, generator=g), torch.rand(len(images), generator=g))

        fresh = data.minibatches((x,), 64)

        def batches(step, g, fresh=fresh):
            (some,) = fresh(step, g)
            return view(some, g), view(some, g)

        def loss_fn(net, batch, weight=weight):
            return relic_loss(
                *net(torch.cat(batch)).chunk(2), divergence_weight=weight, temperature=0.2
            )

        fit(net, loss_fn, batches, steps=60, lr=2e-3, seed=0, bar=False)
        g = seeded(5)
        with torch.no_grad():
            z1, z2 = net(view(x, g)), net(view(x, g))
            found = relic_loss(z1, z2, temperature=0.2, pairing="shared", return_parts=True)
        apart[weight], agree[weight] = found.divergence.item(), agreement(z1, z2)
        assert found.contrastive < math.log(512) - 0.1
    assert apart[3.0] < apart[0.0] / 2
    assert agree[3.0] > agree[0.0] + 0.05
