"""AUM: margin, accumulator, cut-off and decision, beside loops and the official program's rules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from ponderlearn import data
from ponderlearn.metrics import detection_scores
from ponderlearn.robust.aum import (
    AUM,
    aum_threshold,
    margin,
    mislabeled_mask,
    threshold_samples,
    with_threshold_labels,
)
from ponderlearn.training import fit_noisy, noisy_network


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def labels(n, c, seed=1):
    return torch.randint(c, (n,), generator=generator(seed))


def loop(logits, target):
    "The margin of each row by a plain loop."
    rows = zip(logits.tolist(), target.tolist(), strict=True)
    return torch.tensor(
        [z[y] - max(v for i, v in enumerate(z) if i != y) for z, y in rows], dtype=logits.dtype
    )


# ---- the margin ----


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(2, 7), st.integers(0, 1000))
def test_margin_is_the_loop(n, c, seed):
    z = numbers(n, c, seed=seed).round(decimals=1)  # ties happen
    y = labels(n, c, seed)
    m = margin(z, y)
    assert torch.equal(m, loop(z, y))
    unique = (z == z.amax(1, keepdim=True)).sum(1) == 1
    assert torch.equal(m > 0, (z.argmax(1) == y) & unique)


def test_shift_and_scale():
    z, y = numbers(20, 5), labels(20, 5)
    torch.testing.assert_close(margin(z + 7.5, y), margin(z, y))
    torch.testing.assert_close(margin(3 * z, y), 3 * margin(z, y))
    assert margin(torch.zeros(2, 3), torch.tensor([0, 2])).tolist() == [0, 0]


def test_two_classes():
    z = numbers(30, 2)
    one, zero = torch.ones(30, dtype=torch.long), torch.zeros(30, dtype=torch.long)
    assert torch.equal(margin(z, one), z[:, 1] - z[:, 0])
    assert torch.equal(margin(z, zero), -margin(z, one))
    s, y = z[:, 1] - z[:, 0], labels(30, 2)
    assert torch.equal(margin(s, y), margin(z, y))
    loss = cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(loss, nn.functional.softplus(-margin(z, y)))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_cross_entropy_lies_between_its_bounds(c, seed):
    z, y = 3 * numbers(10, c, seed=seed), labels(10, c, seed)
    m, loss = margin(z, y), cross_entropy(z, y, reduction="none")
    low, high = ((1 + k * (-m).exp()).log() for k in (1, c - 1))
    assert (low <= loss + 1e-9).all() and (loss <= high + 1e-9).all()


def test_gradient():
    z, y = numbers(6, 4).requires_grad_(), labels(6, 4)
    assert torch.autograd.gradcheck(lambda z: margin(z, y), z)
    (grad,) = torch.autograd.grad(margin(z, y).sum(), z)
    want = torch.zeros_like(z)
    rows = torch.arange(6)
    want[rows, y] = 1
    want[rows, z.detach().scatter(1, y[:, None], -math.inf).argmax(1)] = -1
    assert torch.equal(grad, want)
    s = numbers(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: margin(s, y % 2), s)


def test_infinite_logits():
    z = torch.tensor([[1.0, -math.inf, 0.0], [1.0, -math.inf, -math.inf]])
    assert margin(z, torch.tensor([0, 0])).tolist() == [1.0, math.inf]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    z, y = numbers(50, 10).to(dtype), labels(50, 10)
    assert margin(z, y).dtype == torch.float32
    assert torch.equal(margin(z, y), margin(z.float(), y))
    aum = AUM(50, skip_first=0)
    aum.update(z, y, torch.arange(50))
    assert torch.equal(aum.compute(), margin(z.float(), y).double())


def test_compile_and_vmap():
    z, y = numbers(4, 6, 5), labels(24, 5).view(4, 6)
    want = torch.stack([margin(a, b) for a, b in zip(z, y, strict=True)])
    assert torch.equal(torch.vmap(margin)(z, y), want)
    compiled = torch.compile(margin, backend="eager", fullgraph=True)
    assert torch.equal(compiled(z[0], y[0]), want[0])


@pytest.mark.parametrize(
    ("logits", "target", "error", "words"),
    [
        (torch.zeros(3, 1), torch.zeros(3).long(), ValueError, "logits must have at least 2 clas"),
        (torch.zeros(3, 2, 2), torch.zeros(3).long(), ValueError, "logits must have shape"),
        (torch.zeros(3, 2), torch.zeros(4).long(), ValueError, r"target must have shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3), TypeError, "target must be a tensor of integer dtype"),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), TypeError, "logits must be a tensor of"),
    ],
)
def test_margin_refuses(logits, target, error, words):
    with pytest.raises(error, match=f"^{words}"):
        margin(logits, target)
    with pytest.raises(error, match=f"^{words}"):
        AUM(5).update(logits, target, torch.arange(len(logits)))


# ---- the accumulator ----


def test_by_hand():
    aum = AUM(2, skip_first=0)
    one = [[2.0, 1, 0], [3, 1.5, -1], [4, 1, 0.5]], [[3.0, 1, 0], [2, 1, 1], [1, 0, 2]]
    margins = []
    for epoch in range(3):
        logits = torch.tensor([one[0][epoch], one[1][epoch]])
        margins.append(aum.update(logits, torch.tensor([0, 2]), torch.arange(2)).tolist())
    assert margins == [[1, -3], [1.5, -1], [3, 1]]
    torch.testing.assert_close(aum.compute(), torch.tensor([5.5 / 3, -1], dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(0, 1000))
def test_order_and_size_of_batches_do_not_matter(size, seed):
    n, epochs = 13, 3
    z, y = numbers(epochs, n, 4, seed=seed), labels(n, 4, seed)
    aum = AUM(n)
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator(seed + epoch))
        for i in order.split(size):
            aum.update(z[epoch, i], y[i], i.int())
        aum.end_epoch()
    want = torch.stack([loop(z[t], y) for t in range(1, epochs)]).mean(0)
    torch.testing.assert_close(aum.compute(), want, rtol=0, atol=1e-12)
    assert aum.counts.tolist() == [epochs - 1] * n and aum.epoch == epochs


def test_duplicates_add_and_single_rows_work():
    aum = AUM(3, skip_first=0)
    aum.update(torch.tensor([[2.0, 0], [5, 0]]), torch.tensor([0, 0]), torch.tensor([1, 1]))
    aum.update(torch.tensor([[0.0, 1]]), torch.tensor([0]), torch.tensor([1]))
    aum.update(torch.empty(0, 2), torch.empty(0).long(), torch.empty(0).long())
    assert aum.counts.tolist() == [0, 3, 0] and aum.compute()[1] == 2
    assert aum.compute()[[0, 2]].isnan().all()


def test_no_graph_is_kept():
    aum, z = AUM(4, skip_first=0), numbers(4, 3).requires_grad_()
    out = aum.update(z, labels(4, 3), torch.arange(4))
    assert not out.requires_grad and not aum.sums.requires_grad and not list(aum.parameters())


def test_merge_is_one_run():
    z, y = numbers(3, 10, 4), labels(10, 4)
    whole, workers = AUM(10), [AUM(10), AUM(10)]
    for epoch in range(3):
        order = torch.randperm(10, generator=generator(epoch))
        whole.update(z[epoch, order], y[order], order)
        for worker, i in zip(workers, order.split(5), strict=True):
            worker.update(z[epoch, i], y[i], i)
        for one in (whole, *workers):
            one.end_epoch()
    workers[0].merge(workers[1])
    torch.testing.assert_close(workers[0].compute(), whole.compute(), rtol=0, atol=1e-12)
    assert torch.equal(workers[0].counts, whole.counts) and workers[0].epoch == 3
    with pytest.raises(ValueError, match=r"^other must have 10 samples and skip_first 1, got 9"):
        whole.merge(AUM(9))
    with pytest.raises(TypeError, match=r"^other must be an AUM"):
        whole.merge(nn.Linear(1, 1))


def test_resume_in_the_middle_of_an_epoch(tmp_path):
    z, y = numbers(2, 10, 4), labels(10, 4)
    steps = [(t, i) for t in range(2) for i in torch.arange(10).split(3)]
    whole, first, second = AUM(10), AUM(10), AUM(10)
    for k, (t, i) in enumerate(steps):
        if k == 6:  # in the second epoch
            torch.save(first.state_dict(), tmp_path / "aum.pt")
            second.load_state_dict(torch.load(tmp_path / "aum.pt", weights_only=True))
        for one in (whole, first if k < 6 else second):
            one.update(z[t, i], y[i], i)
            if i[-1] == 9:
                one.end_epoch()
    assert torch.equal(second.compute(), whole.compute()) and second.epoch == 2


def test_memory_is_sixteen_bytes_an_example():
    aum = AUM(1000)
    assert sum(b.numel() * b.itemsize for b in aum.buffers()) == 16_000


def test_reset():
    aum = AUM(2, skip_first=0)
    aum.update(torch.eye(2), torch.arange(2), torch.arange(2))
    aum.end_epoch()
    aum.reset()
    assert aum.epoch == 0 and not aum.counts.any() and not aum.sums.any()
    with pytest.raises(RuntimeError, match=r"^AUM must have been updated"):
        aum.compute()


def test_compute_before_a_counted_update():
    aum = AUM(2)
    with pytest.raises(RuntimeError, match=r"^AUM must have been updated after the first 1 epoch"):
        aum.compute()
    aum.update(torch.eye(2), torch.arange(2), torch.arange(2))
    with pytest.raises(RuntimeError, match=r"^AUM must have .*, got no update since, in 0 epoch"):
        aum.compute()


def test_nan_logits_come_out_at_compute():
    aum = AUM(3, skip_first=0)
    z = torch.tensor([[1.0, 0], [math.nan, 0], [0, 1]])
    assert aum.update(z, torch.tensor([0, 0, 1]), torch.arange(3)).isnan().tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"^logits must hold numbers, got NaN for examples \[1\]"):
        aum.compute()
    skipped = AUM(3)
    skipped.update(z, torch.tensor([0, 0, 1]), torch.arange(3))
    assert not skipped.sums.isnan().any()


@pytest.mark.parametrize(
    ("target", "indices", "error", "words"),
    [
        ([0, 1], [0, 5], IndexError, r"indices must lie in 0 \.\. 4, got 5"),
        ([0, 1], [-1, 2], IndexError, r"indices must lie in 0 \.\. 4, got -1"),
        ([0, 3], [0, 1], IndexError, r"target must lie in 0 \.\. 2, got 3"),
        ([-1, 0], [0, 1], IndexError, r"target must lie in 0 \.\. 2, got -1"),
        ([0, 1], [0, 1, 2], ValueError, r"indices must have shape \(2,\)"),
        ([0], [0, 1], ValueError, r"(indices|target) must have shape"),
        ([0, 1], [0.0, 1.0], TypeError, "indices must be a tensor of integer dtype"),
    ],
)
def test_update_refuses(target, indices, error, words):
    aum = AUM(5, skip_first=0)
    with pytest.raises(error, match=f"^{words}"):
        aum.update(torch.zeros(2, 3), torch.tensor(target), torch.tensor(indices))
    assert not aum.counts.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_waits():
    aum, z, y = AUM(100).cuda(), numbers(100, 10).float().cuda(), labels(100, 10).cuda()
    where = torch.arange(100).cuda()
    aum.end_epoch()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    aum.update(z, y, where)
    torch.cuda.set_sync_debug_mode(before)
    torch.testing.assert_close(aum.compute().cpu(), loop(z.cpu(), y.cpu()).double())


# ---- threshold samples, cut-off, decision ----


@pytest.mark.parametrize(
    ("n", "c", "size"), [(45_000, 10, 4090), (50_000, 100, 495), (1257, 10, 114), (3500, 10, 318)]
)
def test_sizes(n, c, size):
    a, b = threshold_samples(n, c, generator=generator())
    assert len(a) == len(b) == size and len(set(a.tolist()) | set(b.tolist())) == 2 * size
    assert torch.equal(a, threshold_samples(n, c, 1, generator=generator())[0])


def test_too_many_sets():
    assert len(torch.cat(threshold_samples(30, 2, 3))) == 30
    with pytest.raises(ValueError, match=r"^n_sets must lie in 1\.\.3, got 4$"):
        threshold_samples(30, 2, 4)
    with pytest.raises(ValueError, match=r"^n_samples must be more than n_classes = 30, got 30$"):
        threshold_samples(30, 30)
    with pytest.raises(ValueError, match=r"^n_classes must be >= 2, got 1$"):
        threshold_samples(30, 1)


def test_threshold_labels():
    y, chosen = labels(20, 3), torch.tensor([4, 7])
    new = with_threshold_labels(y, chosen, 3)
    assert new[chosen].tolist() == [3, 3] and new is not y
    rest = torch.ones(20, dtype=torch.bool).index_fill(0, chosen, False)
    assert torch.equal(new[rest], y[rest])
    with pytest.raises(ValueError, match=r"^labels must be < 2, got 2$"):
        with_threshold_labels(y, chosen, 2)
    with pytest.raises(IndexError, match=r"^indices must lie in 0 \.\. 19, got 20$"):
        with_threshold_labels(y, torch.tensor([20]), 3)


def test_percentiles_by_hand():
    ten = torch.tensor([-3, -2.5, -1, -0.5, 0, 0.2, 0.4, 1, 1.5, 2], dtype=torch.float64)
    assert aum_threshold(ten, torch.arange(10), 0.9) == pytest.approx(1.55)
    assert aum_threshold(ten, torch.arange(10)) == pytest.approx(1.955)
    hundred = torch.arange(100.0)
    assert aum_threshold(hundred, torch.arange(100)) == pytest.approx(98.01)
    rank = aum_threshold(hundred, torch.arange(100), kind="rank")
    assert rank < 98 and (hundred <= rank).sum() == 98
    assert aum_threshold(ten, torch.arange(10), 0.0, kind="rank") == -math.inf


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 120),
    st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99, 1.0]),
    st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_rank_is_the_official_rule(n, q, seed, dtype):
    "Flagged if the share of threshold samples with a larger AUM exceeds 1 - q."
    values = numbers(n + 40, seed=seed).round(decimals=1).to(dtype)  # ties happen
    chosen = torch.arange(n)
    cut = aum_threshold(values, chosen, q, kind="rank")
    larger = (values[:, None] < values[chosen]).sum(1)
    percent = round(100 * (1 - q))
    assert torch.equal(values <= cut, 100 * larger > percent * n)


def test_never_seen_is_left_out():
    values = torch.tensor([0.0, math.nan, 2.0, 1.0])
    assert aum_threshold(values, torch.tensor([0, 1, 2]), 0.5) == 1
    assert mislabeled_mask([values], [5.0], [torch.tensor([0])]).tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"^aum must hold numbers at indices, got NaN$"):
        aum_threshold(values, torch.tensor([1]))


def official(aums, sets):
    "The official program: weight ceil(1 - flags / runs), where a run does not judge its own set."
    counts, bad = torch.zeros(len(aums[0])), torch.zeros(len(aums[0]))
    for aum, chosen in zip(aums, sets, strict=True):
        indicator = torch.zeros(len(aum), dtype=torch.bool).index_fill(0, chosen, True)
        larger = torch.lt(aum[:, None], aum[indicator][None]).float().mean(-1)
        counts += ~indicator
        bad += larger.gt(0.01).float() * ~indicator
    return (1 - bad / counts.clamp_min(1)).ceil() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_mask_is_the_official_program(seed, n_sets):
    sets = threshold_samples(300, 4, n_sets, generator=generator(seed))
    aums = [numbers(300, seed=seed + i) - 1 for i in range(n_sets)]
    for aum, chosen in zip(aums, sets, strict=True):
        aum[chosen] -= 1
    cuts = [aum_threshold(a, s, kind="rank") for a, s in zip(aums, sets, strict=True)]
    both = [mislabeled_mask(aums, cuts, sets, combine=c) for c in ("all", "any")]
    assert torch.equal(both[0], official(aums, sets))
    assert (both[0] <= both[1]).all()


def test_combine():
    aums = [torch.tensor([-1.0, -1, -9, -9]), torch.tensor([-2.0, 3, -1, -9])]
    sets = [torch.tensor([2, 3]), torch.tensor([3])]
    masks = [mislabeled_mask(aums, [0, 0.0], sets, combine=c).tolist() for c in ("all", "any")]
    assert masks == [[True, False, True, False], [True, True, True, False]]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"aums": []}, TypeError, "aums must be a list with an entry a run"),
        ({"thresholds": [0.0, 1.0]}, ValueError, "thresholds must have 1 entries, as many as aums"),
        ({"thresholds": [math.nan]}, TypeError, r"thresholds\[0\] must be a number, got nan"),
        (
            {"threshold_indices": [torch.tensor([9])]},
            IndexError,
            r"threshold_indices\[0\] must lie",
        ),
        ({"combine": "both"}, ValueError, "combine must be one of 'all', 'any', got both"),
    ],
)
def test_mask_refuses(arguments, error, words):
    good = {
        "aums": [torch.zeros(4)],
        "thresholds": [0.0],
        "threshold_indices": [torch.tensor([1])],
    }
    with pytest.raises(error, match=f"^{words}"):
        mislabeled_mask(**good | arguments)


# ---- learning ----


def test_it_finds_flipped_labels():
    "Half of what the chapter measures: AUC far above that of the last margin, most found."
    task = data.noisy_digits(0.4, seed=7)
    chosen = threshold_samples(len(task.x), 10, generator=generator())[0]
    given, aum, last = with_threshold_labels(task.labels, chosen, 10), AUM(len(task.x)), {}

    def loss_fn(model, batch):
        logits = model(batch[0])
        last["margin"] = aum.update(logits, batch[1], batch[2])
        return cross_entropy(logits, batch[1])

    def end_epoch(model, step):
        aum.end_epoch()
        last["model"] = margin(model(task.x), given)
        return {}

    model = noisy_network(64, 11, seed=7)
    how = dict(epochs=12, drops=(), loss_fn=loss_fn, evaluate=end_epoch)
    fit_noisy(model, task.x, given, seed=7, **how)
    area = aum.compute()
    ok = torch.ones(len(area), dtype=torch.bool).index_fill(0, chosen, False)
    found = detection_scores(area[ok], task.flipped[ok], higher_means_flipped=False)
    end = detection_scores(last["model"][ok], task.flipped[ok], higher_means_flipped=False)
    assert found.auc > 0.97 and found.auc > end.auc + 0.03
    wrong = mislabeled_mask([area], [aum_threshold(area, chosen)], [chosen])
    assert (wrong & task.flipped).sum() / (ok & task.flipped).sum() > 0.9
