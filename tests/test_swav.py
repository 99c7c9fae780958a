"""SwAV: codes against transport, the official form and SciPy; loss, prototypes, queue, crops."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn

from ponderlearn import data
from ponderlearn.contrastive.swav import (
    Prototypes,
    SwAVLoss,
    cluster_accuracy,
    code_perplexity,
    forward_multi_crop,
    multi_crop,
    sinkhorn_codes,
    swapped_prediction_loss,
)
from ponderlearn.training import seeded
from ponderlearn.transport.sinkhorn import sinkhorn


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


S1 = rows([0.9, 0.1, 0], [0.8, 0.3, 0.1], [0.7, 0.6, 0.2], [0.6, 0.5, 0.4])
S2 = rows([0.5, 0.4, 0.1], [0.9, 0.2, 0], [0.3, 0.7, 0.1], [0.2, 0.6, 0.5])


def unit(*size, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*size, generator=seeded(seed), dtype=dtype), dim=-1)


def cosines(n, k, seed=0, d=16, dtype=torch.float64):
    return unit(n, d, seed=seed, dtype=dtype) @ unit(k, d, seed=seed + 1, dtype=dtype).t()


def plain(scores, epsilon, n_iter):
    "The iteration in the logarithm, as the formula says it."
    L = scores.double() / epsilon
    for _ in range(n_iter):
        L = L - L.logsumexp(-2, keepdim=True)
        L = L - L.logsumexp(-1, keepdim=True)
    return L.exp()


def official(scores, epsilon, n_iter):
    "The structure of the official code: K x B, exponentials without a shift."
    Q = torch.exp(scores / epsilon).t()
    K, B = Q.shape
    Q = Q / Q.sum()
    for _ in range(n_iter):
        Q = Q / Q.sum(1, keepdim=True) / K
        Q = Q / Q.sum(0, keepdim=True) / B
    return (Q * B).t()


# ---- codes ----


def test_codes_by_hand():
    q, error = sinkhorn_codes(S1, return_marginal_error=True)
    wanted = rows(
        [0.998239, 0.000149, 0.001613],
        [0.870902, 0.052271, 0.076827],
        [0.005413, 0.968514, 0.026073],
        [0.000471, 0.084275, 0.915254],
    )
    assert torch.allclose(q, wanted, atol=1e-6)
    for n, mass in (
        (0, [2.810647, 0.177416, 0.011938]),
        (1, [1.485768, 0.816769, 0.697462]),
        (3, [1.406268, 0.828906, 0.764826]),
        (10, [1.055066, 0.962148, 0.982786]),
        (200, [1, 1, 1]),
    ):
        found, off = sinkhorn_codes(S1, n_iter=n, return_marginal_error=True)
        assert (found.mean(0) * 3).tolist() == pytest.approx(mass, abs=1e-5)
        assert off == pytest.approx(max(abs(m - 1) for m in mass), abs=1e-5)
    assert error == pytest.approx(0.406268, abs=1e-5)
    wide = rows(
        [0.502863, 0.222027, 0.275111],
        [0.381581, 0.306987, 0.311432],
        [0.249498, 0.446720, 0.303781],
        [0.199639, 0.357449, 0.442911],
    )
    assert torch.allclose(sinkhorn_codes(S1, 0.5), wide, atol=1e-6)
    settled = rows(
        [0.979038, 0.001845, 0.019117],
        [0.353826, 0.268955, 0.377219],
        [0.000430, 0.974536, 0.025034],
        [0.000039, 0.087998, 0.911963],
    )
    assert torch.allclose(sinkhorn_codes(S1, n_iter=200), settled, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    k=st.integers(1, 12),
    epsilon=st.sampled_from([1e-4, 1e-3, 0.01, 0.05, 0.5, 5.0]),
    n_iter=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_codes_are_those_of_the_plain_loop(n, k, epsilon, n_iter, seed, scale):
    scores = scale * cosines(n, k, seed)
    found = sinkhorn_codes(scores, epsilon, n_iter)
    assert torch.allclose(found, plain(scores, epsilon, n_iter), atol=1e-9)
    assert torch.allclose(found.sum(1), torch.ones(n).double(), atol=1e-12)


@pytest.mark.parametrize("n_iter", [1, 3, 8])
def test_codes_are_the_plan_of_transport(n_iter):
    scores = cosines(9, 5)
    plan = sinkhorn(-scores, epsilon=0.05, max_iter=n_iter, tol=0, on_fail="ignore").plan
    assert torch.allclose(sinkhorn_codes(scores, 0.05, n_iter), 9 * plan, atol=1e-10)


def test_converged_codes_are_the_plan_and_the_official_form():
    scores = cosines(30, 7)
    plan = sinkhorn(-scores, epsilon=0.1, max_iter=5000, tol=1e-12).plan
    assert torch.allclose(sinkhorn_codes(scores, 0.1, 2000), 30 * plan, atol=1e-8)
    for n in (1, 3, 10):
        assert torch.allclose(
            sinkhorn_codes(scores, 0.05, n), official(scores, 0.05, n), atol=1e-12
        )


def test_small_epsilon_is_the_best_balanced_assignment():
    scores = rows([0.9, 0.8, 0.1], [0.85, 0.2, 0], [0.7, 0.6, 0.5])
    assert sinkhorn_codes(scores, 0.05)[0].tolist() == pytest.approx(
        [0.162896, 0.836960, 0.000144], abs=1e-6
    )
    hard = sinkhorn_codes(scores, 0.01, 10_000)  # converges as slowly as 1 / n
    assert hard.argmax(1).tolist() == [1, 0, 2]
    assert hard[0].tolist() == pytest.approx([0, 1, 0], abs=1e-4)
    for seed in range(5):
        scores = cosines(8, 8, seed)
        q = sinkhorn_codes(scores, 0.002, 20_000)
        assert q.argmax(1).tolist() == linear_sum_assignment(scores, maximize=True)[1].tolist()
    assert torch.allclose(sinkhorn_codes(scores, 1e30), torch.full((8, 8), 1 / 8).double())


@pytest.mark.parametrize("epsilon", [0.02, 0.005, 1e-3, 1e-4, 1e-12, 1e-300])
@pytest.mark.parametrize("n_iter", [1, 3, 4, 50])
def test_float32_is_right_where_exponentials_underflow(epsilon, n_iter):
    scores = torch.rand(64, 20, generator=seeded(0)) * 2 - 1
    found = sinkhorn_codes(scores, epsilon, n_iter)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert torch.allclose(found.sum(1), torch.ones(64), atol=1e-5)
    if epsilon >= 1e-3:
        assert torch.allclose(found.double(), plain(scores, epsilon, n_iter), atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    scores = cosines(20, 6).to(dtype)
    found = sinkhorn_codes(scores, 0.05)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), plain(scores, 0.05, 3), atol=1e-5)


def test_autocast_does_not_reach_the_codes():
    scores = cosines(20, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn_codes(scores)
        loss_fn = SwAVLoss(Prototypes(8, 5, generator=seeded(0)))
        loss = loss_fn([torch.randn(6, 8, generator=seeded(i)) for i in range(2)])
    assert torch.equal(found, sinkhorn_codes(scores))
    assert loss.dtype == torch.float32
    exact = loss_fn([torch.randn(6, 8, generator=seeded(i)) for i in range(2)])
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


def test_shifts_and_permutations():
    a = torch.randn(3, generator=seeded(0)).double()
    b = torch.randn(4, 1, generator=seeded(1)).double()
    for n in (1, 2, 3, 7):
        moved = sinkhorn_codes(S1 + a, 0.5, n)
        assert torch.allclose(moved, sinkhorn_codes(S1, 0.5, n), atol=1e-12)
    gaps = [
        (sinkhorn_codes(S1 + b, 0.5, n) - sinkhorn_codes(S1, 0.5, n)).abs().max().item()
        for n in (1, 10, 100)
    ]
    assert gaps[0] > 1e-3 > gaps[1] > gaps[2] and gaps[2] < 1e-10
    order, columns = [2, 0, 3, 1], [1, 2, 0]
    turned = sinkhorn_codes(S1[order][:, columns])
    assert torch.allclose(turned, sinkhorn_codes(S1)[order][:, columns], atol=1e-12)


def test_edges_of_the_codes():
    equal = S1[:1].expand(4, 3)
    for epsilon in (1e-6, 0.05, 10):
        third = torch.full((4, 3), 1 / 3).double()
        assert torch.allclose(sinkhorn_codes(equal, epsilon, 1), third, atol=1e-12)
    assert sinkhorn_codes(equal, n_iter=0)[0].argmax() == 0
    assert torch.allclose(sinkhorn_codes(S1[:1]), torch.full((1, 3), 1 / 3).double())  # B = 1
    assert torch.equal(sinkhorn_codes(S1[:, :1]), torch.ones(4, 1).double())  # K = 1
    wide = cosines(3, 10)  # fewer samples than prototypes
    assert torch.allclose(sinkhorn_codes(wide, n_iter=500).mean(0) * 10, torch.ones(10).double())
    dirty = S1.clone()
    dirty[0, 0] = math.nan
    assert sinkhorn_codes(dirty).isnan().any()


def test_batched_codes_and_no_gradient():
    both = torch.stack([S1, S2]).requires_grad_()
    found, error = sinkhorn_codes(both, return_marginal_error=True)
    assert not found.requires_grad and error.shape == (2,)
    for one, scores in zip(found, (S1, S2), strict=True):
        assert torch.allclose(one, sinkhorn_codes(scores))
    before = both.detach().clone()
    assert torch.equal(both, before)  # the scores are not changed


def test_nothing_looks_at_the_data():
    "On the meta device there are no values to look at, so a GPU would not have to wait."
    assert sinkhorn_codes(torch.rand(4, 3, device="meta"), 1e-4, 7).shape == (4, 3)
    loss_fn = SwAVLoss(Prototypes(8, 5), queue_size=6).to("meta")
    loss_fn.start_queue()
    for _ in range(3):
        loss_fn([torch.rand(6, 8, device="meta")] * 3)
    assert len(loss_fn.queues[0]) == 6 and loss_fn.stats.gap.device.type == "meta"


def test_codes_and_loss_compile():
    codes = torch.compile(sinkhorn_codes, backend="eager", fullgraph=True)
    assert torch.allclose(codes(S1), sinkhorn_codes(S1))
    loss = torch.compile(swapped_prediction_loss, backend="eager", fullgraph=True)
    q = [sinkhorn_codes(S1), sinkhorn_codes(S2)]
    assert torch.allclose(loss([S1, S2], q), swapped_prediction_loss([S1, S2], q))


# ---- the loss ----


def test_loss_by_hand():
    q = [sinkhorn_codes(S1), sinkhorn_codes(S2)]
    assert swapped_prediction_loss([S1, S2], q).item() == pytest.approx(1.637877, abs=1e-6)
    own = swapped_prediction_loss([S1, S2], q, code_views=(1, 0))
    assert own.item() == pytest.approx(0.963946, abs=1e-6)
    first = swapped_prediction_loss([S1, S2], q[1:], code_views=(1,))
    assert first.item() == pytest.approx(2.567276, abs=1e-6)
    stacked = swapped_prediction_loss(torch.stack([S1, S2]), torch.stack(q))
    assert stacked.item() == pytest.approx(1.637877, abs=1e-6)


@pytest.mark.parametrize("n_small", [0, 1, 4])
def test_loss_is_the_mean_over_the_pairs(n_small):
    scores = [cosines(6, 5, seed) for seed in range(2 + n_small)]
    q = [sinkhorn_codes(s) for s in scores[:2]]
    terms = [
        -(q[i] * (scores[v] / 0.1).log_softmax(1)).sum(1).mean()
        for i in range(2)
        for v in range(2 + n_small)
        if v != i
    ]
    found = swapped_prediction_loss(scores, q)
    assert torch.allclose(found, torch.stack(terms).mean())


def test_gradients():
    scores = [cosines(6, 5, seed).requires_grad_() for seed in range(3)]
    q = [sinkhorn_codes(s).requires_grad_() for s in scores[:2]]
    assert torch.autograd.gradcheck(lambda *s: swapped_prediction_loss(s, q), scores)
    swapped_prediction_loss(scores, q).backward()
    assert q[0].grad is None
    p = [(s.detach() / 0.1).softmax(1) for s in scores]
    for v, codes in ((0, [q[1]]), (1, [q[0]]), (2, q)):
        wanted = sum(p[v] - c.detach() for c in codes) / (0.1 * 6 * 4)
        assert torch.allclose(scores[v].grad, wanted, atol=1e-12)
    one = cosines(6, 5, 7).requires_grad_()
    other = one.detach().clone().requires_grad_()
    swapped_prediction_loss([one, other], [q[0]], code_views=(0,)).backward()
    assert not one.grad.any() and other.grad.any()


def test_collapse_costs_log_k():
    flat = torch.zeros(4, 3000)
    q = sinkhorn_codes(flat)
    assert swapped_prediction_loss([flat, flat], [q, q]).item() == pytest.approx(8.006368, abs=1e-5)
    equal = S1[:1].expand(4, 3)
    codes = [sinkhorn_codes(equal)] * 2
    loss = swapped_prediction_loss([equal, equal], codes).item()
    assert loss == pytest.approx(5.667125, abs=1e-5) and loss > math.log(3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_in_half_precision_and_with_certain_predictions(dtype):
    scores = [cosines(6, 5, seed).to(dtype) for seed in range(2)]
    q = [sinkhorn_codes(s) for s in scores]
    found = swapped_prediction_loss(scores, q)
    wanted = swapped_prediction_loss([s.double() for s in scores], q)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(wanted.item(), rel=1e-4)
    sure = torch.eye(3) * 1e4  # a softmax whose logarithm would be -inf
    assert swapped_prediction_loss([sure, sure.flip(0)], [sure / 1e4] * 2).isfinite()


# ---- prototypes, the module, the queue ----


def test_prototypes():
    made = Prototypes(8, 5, generator=seeded(0))
    assert torch.allclose(made.weight.norm(dim=1), torch.ones(5))
    z = torch.randn(3, 8)
    assert torch.allclose(made(z), F.normalize(z, dim=1) @ made.weight.t(), atol=1e-6)
    assert torch.equal(Prototypes(8, 5, normalize_input=False)(z * 0), torch.zeros(3, 5))
    made.weight.data *= 3
    weight = made.weight
    assert made.normalize_().weight is weight
    assert torch.allclose(made.weight.norm(dim=1), torch.ones(5))


def test_frozen_prototypes_stay_whatever_the_optimizer():
    made = Prototypes(8, 5)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1, weight_decay=0.5)
    made(torch.randn(3, 8)).sum().backward()
    optimizer.step()  # the optimizer has a state by now
    before = made.freeze().weight.clone()
    made(torch.randn(3, 8, requires_grad=True)).sum().backward()
    optimizer.step()
    assert made.weight.grad is None and torch.equal(made.weight, before)
    made.freeze(False)(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(made.weight, before)


def test_gradients_accumulate_over_calls_of_freeze():
    made, x = Prototypes(8, 5, generator=seeded(0)), torch.randn(3, 8, generator=seeded(1))
    made.freeze(False)(x).sum().backward()
    once = made.weight.grad.clone()
    made.freeze(False)(x).sum().backward()
    assert once.any() and torch.allclose(made.weight.grad, 2 * once)
    assert made.freeze().weight.grad is None


def test_two_forward_passes_before_a_backward_pass():
    loss_fn = SwAVLoss(Prototypes(8, 5))
    batches = [[torch.randn(6, 8, requires_grad=True) for _ in range(2)] for _ in range(2)]
    sum(loss_fn(views) for views in batches).backward()
    assert all(v.grad.isfinite().all() for views in batches for v in views)


@pytest.mark.parametrize("n_code_views", [1, 2, 3])
def test_module_is_its_parts(n_code_views):
    made = Prototypes(8, 5, generator=seeded(0))
    views = [torch.randn(6, 8, generator=seeded(i)) * 3 for i in range(4)]
    loss_fn = SwAVLoss(made, epsilon=0.1, n_iter=2, temperature=0.2, n_code_views=n_code_views)
    found = loss_fn(views)
    scores = [F.normalize(v, dim=1) @ made.weight.t() for v in views]
    q = [sinkhorn_codes(s, 0.1, 2) for s in scores[:n_code_views]]
    how = {"temperature": 0.2, "code_views": tuple(range(n_code_views))}
    assert torch.allclose(found, swapped_prediction_loss(scores, q, **how), atol=1e-6)
    assert torch.allclose(loss_fn(torch.stack(views)), found)
    stats = loss_fn.stats
    near = torch.cat(scores).argmax(1)
    assert stats.used == len(near.unique()) and not stats.gap.requires_grad
    assert stats.gap.item() == pytest.approx(math.log(5) - found.item(), abs=1e-5)
    assert stats.perplexity == pytest.approx(code_perplexity(F.one_hot(near, 5).float()).item())
    mean = F.normalize(torch.cat(views), dim=1).mean(0)
    assert stats.spread.item() == pytest.approx(1 - mean.square().sum().item(), abs=1e-5)


def test_stats_name_a_collapse():
    loss_fn = SwAVLoss(Prototypes(8, 5), n_iter=0)
    loss_fn([torch.ones(6, 8)] * 2)
    assert loss_fn.stats.used == 1 and loss_fn.stats.perplexity == pytest.approx(1)
    assert loss_fn.stats.spread == pytest.approx(0, abs=1e-5)


def queue_loss(size=12, **how):
    made = Prototypes(8, 5, generator=seeded(0))
    return SwAVLoss(made, queue_size=size, **how)


def test_queue_is_used_when_it_is_full_and_with_the_present_prototypes():
    loss_fn, bare = queue_loss(), queue_loss(0)
    views = [[torch.randn(6, 8, generator=seeded(10 * i + j)) for j in range(3)] for i in range(4)]
    assert loss_fn(views[0]) == bare(views[0])  # not started
    assert len(loss_fn.queues[0]) == 0
    loss_fn.start_queue()
    for batch in views[:2]:
        assert loss_fn(batch) == bare(batch)  # filling
    with torch.no_grad():
        loss_fn.prototypes.weight.copy_(unit(5, 8, seed=5, dtype=torch.float32))
    found = loss_fn(views[2])
    C, scores = loss_fn.prototypes.weight, []
    for v in views[2]:
        scores.append(F.normalize(v, dim=1) @ C.t())
    q = []
    for j in range(2):
        old = F.normalize(torch.cat([views[0][j], views[1][j]]), dim=1) @ C.t()
        q.append(sinkhorn_codes(torch.cat([old, scores[j]]))[-6:])
    assert torch.allclose(found, swapped_prediction_loss(scores, q), atol=1e-6)
    for j in range(2):
        kept = F.normalize(torch.cat([views[1][j], views[2][j]]), dim=1)
        assert torch.allclose(loss_fn.queues[j].keys(), kept, atol=1e-6)


def test_a_queue_of_the_batch_itself_changes_nothing():
    scores = cosines(6, 5)
    for n in (1, 3, 50):
        doubled = sinkhorn_codes(torch.cat([scores, scores]), n_iter=n)[-6:]
        assert torch.allclose(doubled, sinkhorn_codes(scores, n_iter=n), atol=1e-12)


def test_a_saved_state_goes_on_the_same():
    loss_fn, twin = queue_loss(), queue_loss()
    loss_fn.start_queue()
    batches = [
        [torch.randn(6, 8, generator=seeded(10 * i + j)) for j in range(2)] for i in range(4)
    ]
    for views in batches[:3]:
        loss_fn(views)
    twin.load_state_dict(copy.deepcopy(loss_fn.state_dict()))
    assert twin(batches[3]) == loss_fn(batches[3])
    assert torch.equal(twin.queues[1].keys(), loss_fn.queues[1].keys())


def test_memory_of_the_queues():
    loss_fn = SwAVLoss(Prototypes(128, 10), queue_size=3840)
    size = sum(b.numel() * b.element_size() for b in loss_fn.buffers())
    assert 3.9e6 < size < 4.0e6  # two of 3840 x 128 floats; MoCo's bank takes 34 MB


def test_gradient_reaches_features_and_prototypes_but_not_through_the_codes():
    made = Prototypes(8, 5, generator=seeded(0)).double()
    views = [torch.randn(6, 8, generator=seeded(i)).double().requires_grad_() for i in range(3)]
    loss_fn = SwAVLoss(made)
    loss_fn(views).backward()
    scores = [made(v) for v in views]
    q = [sinkhorn_codes(s) for s in scores[:2]]
    grads = torch.autograd.grad(swapped_prediction_loss(scores, q), [*views, made.weight])
    for x, wanted in zip([*views, made.weight], grads, strict=True):
        assert torch.allclose(x.grad, wanted, atol=1e-12) and wanted.any()


# ---- multi-crop ----


def test_a_crop_of_all_is_the_image():
    x = torch.rand(3, 2, 9, 9, generator=seeded(0)).double()
    how = {"large_size": 9, "small_size": 4, "n_small": 0, "large_scale": (1.0, 1.0)}
    for crop in multi_crop(x, ratio=(1.0, 1.0), **how):
        assert torch.allclose(crop, x, atol=1e-6)


def test_crops_of_a_ramp_lie_inside_and_have_the_area():
    "On a ramp the resampled value is the place that was looked at."
    H, W = 40, 60
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    ramp = torch.stack([x, y]).double()[None].expand(200, 2, H, W)
    how = {"large_size": 8, "small_size": 5, "n_large": 1, "n_small": 3, "generator": seeded(0)}
    crops = multi_crop(ramp, small_scale=(0.2, 0.2), ratio=(0.5, 2.0), **how)
    assert [tuple(c.shape) for c in crops] == [(200, 2, 8, 8)] + [(200, 2, 5, 5)] * 3
    for crop in crops[1:]:
        sides = (crop[..., -1, -1] - crop[..., 0, 0]) * 5 / 4 / torch.tensor([W, H])
        assert torch.allclose(sides.prod(1), torch.full((200,), 0.2).double(), atol=1e-5)
        shape = sides[:, 0] / sides[:, 1]
        assert 0.49 < shape.min() < 0.6 and 1.7 < shape.max() < 2.01
    assert not torch.equal(crops[1], crops[2])


def test_a_side_longer_than_the_image_is_cut_to_it():
    "Then the crop has less than its area; a side is a share of the image, also where H is not W."
    H, W = 40, 60
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    ramp = torch.stack([x, y]).double()[None].expand(5, 2, H, W)
    how = {"large_size": 8, "small_size": 5, "n_large": 1, "n_small": 1, "generator": seeded(0)}
    how |= {"large_scale": (0.9, 0.9), "small_scale": (0.25, 0.25)}
    for ratio in (1.0, 1.6):  # 0.9 * 1.6 > 1
        large, small = multi_crop(ramp, ratio=(ratio, ratio), **how)
        ends = (large[..., -1, -1] - large[..., 0, 0]) * 8 / 7 / torch.tensor([W, H])
        wanted = (min(1, (0.9 * ratio) ** 0.5), (0.9 / ratio) ** 0.5)
        assert torch.allclose(ends, torch.tensor(wanted).double().expand(5, 2), atol=1e-5)
        ends = (small[..., -1, -1] - small[..., 0, 0]) * 5 / 4 / torch.tensor([W, H])
        wanted = ((0.25 * ratio) ** 0.5, (0.25 / ratio) ** 0.5)
        assert torch.allclose(ends, torch.tensor(wanted).double().expand(5, 2), atol=1e-5)


def test_shrinking_does_not_smooth():
    "Stripes one pixel wide stay stripes, or become one color: there is no antialiasing."
    x = (torch.arange(64) % 2).double().expand(1, 1, 64, 64)
    how = {"large_size": 32, "small_size": 8, "n_large": 1, "n_small": 0, "ratio": (1.0, 1.0)}
    (crop,) = multi_crop(x, large_scale=(0.5, 0.5), **how, generator=seeded(0))
    smooth = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    assert crop.std() > 0.2 and smooth.std() < 0.1


def test_rotation_is_in_pixels():
    H, W = 40, 60
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    ramp = torch.stack([x, y]).double()[None].expand(100, 2, H, W)
    how = {"large_size": 6, "small_size": 5, "n_large": 1, "n_small": 0, "generator": seeded(0)}
    (crop,) = multi_crop(ramp, large_scale=(0.1, 0.1), ratio=(2 / 3, 2 / 3), rotation=30, **how)
    across, down = crop[..., 0, -1] - crop[..., 0, 0], crop[..., -1, 0] - crop[..., 0, 0]
    inside = ((crop > 1) & (crop < torch.tensor([W - 2, H - 2])[:, None, None])).flatten(1).all(1)
    assert inside.sum() > 50
    across, down = across[inside], down[inside]
    assert torch.allclose((across * down).sum(1), torch.zeros(len(down)).double(), atol=1e-4)
    assert torch.allclose(across.norm(dim=1), down.norm(dim=1), rtol=1e-4)
    angle = torch.atan2(across[:, 1], across[:, 0]).rad2deg()
    assert 20 < angle.abs().max() < 30.01


def test_crops_repeat_with_the_generator_and_keep_the_dtype():
    x = torch.rand(3, 1, 12, 12)
    how = {"large_size": 6, "small_size": 4}
    a, b = (multi_crop(x, generator=seeded(3), **how) for _ in range(2))
    assert all(torch.equal(c, d) for c, d in zip(a, b, strict=True))
    assert multi_crop(x.half(), **how)[0].dtype == torch.float16


def test_one_pass_a_resolution():
    calls = []

    def backbone(x):
        calls.append(tuple(x.shape))
        return x.mean((2, 3))

    head = nn.Linear(2, 3)
    crops = [torch.rand(4, 2, s, s) for s in (6, 6, 3, 3, 3)]
    found = forward_multi_crop(backbone, head, crops)
    assert calls == [(8, 2, 6, 6), (12, 2, 3, 3)]
    for z, crop in zip(found, crops, strict=True):
        assert torch.allclose(z, head(crop.mean((2, 3))), atol=1e-6)


# ---- clusters ----


def test_perplexity():
    assert code_perplexity(torch.eye(5)[:1].expand(7, 5)) == pytest.approx(1)
    assert code_perplexity(torch.full((7, 5), 0.2)) == pytest.approx(5)
    assert code_perplexity(torch.eye(4)[[0, 1]]) == pytest.approx(2)


def test_cluster_accuracy():
    labels = torch.arange(3).repeat(10)
    assert cluster_accuracy(torch.tensor([7, 2, 5])[labels], labels) == 1.0
    many = torch.cat([labels[:15] + 3, labels[15:]])  # every class in two clusters
    assert cluster_accuracy(many, labels) == 0.5
    assert cluster_accuracy(labels * 0, labels) == pytest.approx(1 / 3)
    random = torch.randint(4, (30,), generator=seeded(0))
    order = torch.tensor([2, 0, 3, 1])
    assert cluster_accuracy(order[random], labels) == cluster_accuracy(random, labels)


# ---- bad input ----


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: sinkhorn_codes(S1[0]), "scores must have shape"),
        (lambda: sinkhorn_codes(S1, 0.0), "epsilon must"),
        (lambda: sinkhorn_codes(S1, n_iter=-1), "n_iter must"),
        (lambda: sinkhorn_codes(S1[:0]), "scores must not be empty"),
        (lambda: swapped_prediction_loss([S1], [S1]), "scores must have at least 2 views"),
        (lambda: swapped_prediction_loss([S1, S1], [S1[:3]]), r"codes\[0\] must have shape"),
        (lambda: swapped_prediction_loss([S1, S1], [S1]), "code_views must name 1"),
        (lambda: Prototypes(8, 1), "n_prototypes must"),
        (
            lambda: multi_crop(
                torch.rand(2, 1, 8, 8), large_size=4, small_size=2, large_scale=(0, 1)
            ),
            "large_scale must",
        ),
        (
            lambda: multi_crop(
                torch.rand(2, 1, 8, 8), large_size=4, small_size=2, small_scale=(0.5, 0.4)
            ),
            "small_scale must satisfy 0 < low <= high",
        ),
        (lambda: SwAVLoss(Prototypes(8, 5))([torch.rand(6, 8)]), "features must have at least 2"),
        (lambda: SwAVLoss(Prototypes(8, 5), n_code_views=3)([torch.rand(6, 8)] * 2), "at least 3"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_queue_that_is_not_there_cannot_start():
    with pytest.raises(RuntimeError, match="queue_size must be > 0"):
        SwAVLoss(Prototypes(8, 5)).start_queue()


# ---- learning ----


def tiny_run(epsilon, n_iter, steps=60):
    x = data.digits().train.x
    with torch.random.fork_rng([]):
        torch.manual_seed(100)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
        head = nn.Linear(64, 16)
    loss_fn = SwAVLoss(Prototypes(16, 30, generator=seeded(1)), epsilon=epsilon, n_iter=n_iter)
    optimizer = torch.optim.Adam(
        [*body.parameters(), *head.parameters(), *loss_fn.parameters()], 5e-3
    )
    how = {"large_size": 8, "small_size": 4, "n_small": 0, "large_scale": (0.6, 1.0)}
    batches = data.minibatches((x,), 128)
    g = seeded(0)
    for step in range(1, steps + 1):
        views = multi_crop(batches(step, g)[0], generator=g, **how)
        loss = loss_fn(forward_multi_crop(body, head, views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss_fn.stats


def test_learning():
    healthy, stuck, collapsed = tiny_run(0.03, 3), tiny_run(2.0, 3), tiny_run(0.03, 0)
    assert healthy.gap > 0.5 and healthy.used > 20 and healthy.spread > 0.3
    assert abs(stuck.gap) < 0.05
    assert collapsed.used <= 5 and collapsed.gap > 3  # a loss near zero is the collapse
