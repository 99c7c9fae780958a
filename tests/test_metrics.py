"""Metrics: intervals, Holm, accuracy, probes, calibration, beside SciPy, loops and by hand."""

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from ponderlearn.data import digits
from ponderlearn.metrics import (
    Interval,
    accuracy,
    calibration_error,
    detection_scores,
    frechet_distance,
    holm,
    knn_probe,
    linear_probe,
    paired_interval,
    precision_recall,
    reliability,
)

numbers = st.floats(-1e3, 1e3).map(lambda v: round(v, 4))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Intervals


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_interval_is_scipys(pairs, level):
    a, b = (list(v) for v in zip(*pairs, strict=True))
    interval = paired_interval(a, b, level)
    mean, low, high, *rest = interval
    assert low <= mean <= high and rest == [len(a), level, True]
    difference = np.subtract(a, b)
    if difference.std() > 1e-9:
        want = stats.ttest_rel(a, b).confidence_interval(level)
        assert (low, high) == pytest.approx((want.low, want.high), rel=1e-6, abs=1e-6)
    assert paired_interval(difference, level=level)[:3] == pytest.approx((mean, low, high))
    turned = paired_interval(b, a, level)
    assert turned[:3] == pytest.approx((-mean, -high, -low))
    assert turned[:3] == pytest.approx(interval.scaled(-1)[:3])


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        pd.Series,
        torch.tensor,
        lambda v: torch.tensor(v, dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_interval_takes_what_holds_numbers(make):
    mean, low, high, *_ = paired_interval(make([1.0, 2.0, 3.0]))
    assert (mean, low, high) == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert all(type(v) is float for v in (mean, low, high))


def test_interval_of_equal_values_has_no_width():
    same = paired_interval([3, 3, 3])
    assert same == (3, 3, 3, 3, 0.95, False) and (same.p(3), same.p(2.9)) == (1, 0)


def test_interval_of_one_value_has_no_ends():
    for one in (paired_interval([2.5]), paired_interval([3.5], [1])):
        assert one.mean == 2.5 and math.isnan(one.low) and math.isnan(one.high)
        assert one.n == 1 and one.p() is None and str(one) == "2.5" and f"{one:.2f}" == "2.50"


@settings(max_examples=100, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=12), st.sampled_from([0.8, 0.95]), numbers)
def test_p_is_below_5_percent_where_the_interval_leaves_the_null_out(values, level, null):
    interval = paired_interval(values, level=level)
    p, outside = interval.p(null), not interval.low <= null <= interval.high
    if min(abs(null - interval.low), abs(null - interval.high)) > 1e-9:
        assert (p < 1 - level) == outside
    if np.std(values) > 1e-6:
        assert p == pytest.approx(stats.ttest_1samp(values, null).pvalue, rel=1e-5, abs=1e-12)
        percent = interval.scaled(-100)  # the unit does not matter
        assert percent.p(-100 * null) == pytest.approx(p, rel=1e-6, abs=1e-12)


def test_p_needs_a_t_interval_and_a_number():
    assert Interval(1.5, 1.2, 1.9).p() is None
    with pytest.raises(TypeError, match=r"^null must be a number, got 'x'$"):
        paired_interval([1, 2]).p("x")


@pytest.mark.parametrize(
    ("interval", "spec", "words"),
    [
        (Interval(0.12, 0.1, 0.14), "", "0.12 [0.1, 0.14]"),
        (Interval(0.12, 0.1, 0.14), ".3f", "0.120 [0.100, 0.140]"),
        (Interval(-12.25, -15.5, -9.0), "", "-12.2 [-15.5, -9]"),
        (Interval(-12.25, -15.5, -9.0), "+.1f", "-12.2 [-15.5, -9.0]"),
        (Interval(1.5, 1.1, 1.9), "", "1.5 [1.1, 1.9]"),
        (Interval(0.00012, 0.0001, 0.00014), "", "0.00012 [0.0001, 0.00014]"),
        (Interval(1e-12, 0.9e-12, 1.1e-12), "", "1e-12 [9e-13, 1.1e-12]"),
        (Interval(3.0, 3.0, 3.0), "", "3 [3, 3]"),
        (Interval(0.5, math.nan, math.nan), ".1%", "50.0%"),
    ],
)
def test_an_interval_formats_itself(interval, spec, words):
    assert format(interval, spec) == words and (spec or str(interval) == words)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_the_step_down_procedure(p):
    adjusted = holm(p)
    for alpha in (0.01, 0.05, 0.3):
        survivors, left = set(), sorted(range(len(p)), key=p.__getitem__)
        while left and p[left[0]] * len(left) <= alpha:  # reject one after the other
            survivors.add(left.pop(0))
        assert {i for i, a in enumerate(adjusted) if a <= alpha} == survivors
    assert all(q <= a <= 1 for q, a in zip(p, adjusted, strict=True))


def test_holm_by_hand_and_refuses():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1, 1]
    with pytest.raises(
        ValueError, match=r"^p_values must lie in \[0, 1\], got a value outside it$"
    ):
        holm([0.5, 1.5])
    with pytest.raises(
        ValueError, match=r"^p_values must hold finite values, got NaN or infinity$"
    ):
        holm([0.5, float("nan")])


def test_the_ratio_of_a_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    from compare import ratio_interval

    assert ratio_interval(np.tile([2.0, 5.0], (9, 1))) == Interval(2.5, 2.5, 2.5)
    noise = np.random.default_rng(0).lognormal(sigma=0.2, size=(101, 2))
    ratio = ratio_interval(noise * [1, 3])
    assert 2.5 < ratio.low < ratio.mean < ratio.high < 3.6 and ratio.p(1) is None
    turned = ratio_interval((noise * [1, 3])[:, ::-1])
    assert turned[:3] == pytest.approx((1 / ratio.mean, 1 / ratio.high, 1 / ratio.low))


# Accuracy


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 99))
def test_accuracy_is_a_count(n, k, seed):
    logits = torch.randn(n, k, generator=generator(seed))
    labels = torch.randint(k, (n,), generator=generator(seed + 1))
    classes = [max(range(k), key=row.__getitem__) for row in logits.tolist()]
    right = sum(a == b for a, b in zip(classes, labels.tolist(), strict=True)) / n
    assert accuracy(logits, labels) == pytest.approx(right)
    assert accuracy(torch.tensor(classes), labels) == pytest.approx(right)
    square = labels.expand(3, n)
    assert accuracy(logits.expand(3, n, k).bfloat16(), square.int()) == pytest.approx(
        accuracy(logits.bfloat16(), labels)
    )


@pytest.mark.parametrize(
    ("prediction", "labels", "error", "words"),
    [
        (torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]), ValueError, "labels must be < 2, got a la"),
        (torch.zeros(4).long(), -torch.ones(4).long(), ValueError, "labels must be >= 0, got a la"),
        (torch.zeros(4, 1), torch.zeros(4).long(), ValueError, "prediction must have at least 2"),
        (torch.zeros(4), torch.zeros(4).long(), ValueError, r"prediction must have shape \(4, K\)"),
        (torch.zeros(4, 1).long(), torch.zeros(4).long(), ValueError, r"prediction must have sh"),
        (torch.zeros(4).bool(), torch.zeros(4).long(), TypeError, "prediction must be a tensor of"),
        (torch.zeros(4).long(), torch.zeros(4), TypeError, "labels must be a tensor of integer d"),
        (np.zeros(4), torch.zeros(4).long(), TypeError, "prediction must be a tensor, got ndarray"),
        (torch.zeros(0, 2), torch.zeros(0).long(), ValueError, "prediction must not be empty"),
        (torch.full((1, 2), torch.nan), torch.zeros(1).long(), ValueError, "prediction .* got NaN"),
    ],
)
def test_accuracy_refuses(prediction, labels, error, words):
    with pytest.raises(error, match=f"^{words}"):
        accuracy(prediction, labels)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (([],), ValueError, "a must have at least 1 value, got none"),
        (([1, 2], [1, 2, 3]), ValueError, "b must have 2 values, as many as a, got 3"),
        (([1, float("nan")],), ValueError, "a must hold finite values"),
        (([1, 2], [1, float("inf")]), ValueError, "b must hold finite values"),
        (([[1, 2], [3, 4]],), ValueError, r"a must have one axis, got shape \(2, 2\)"),
        ((["x", "y"],), TypeError, "a must be a sequence of numbers, got list"),
        ((3.0,), ValueError, r"a must have one axis, got shape \(\)"),
        ((["1", "2"],), TypeError, "a must be a sequence of numbers, got list"),
        (
            (torch.ones(3, dtype=torch.complex64),),
            TypeError,
            "a must be a sequence of numbers, got Tensor",
        ),
        (([1, 2], None, 95), ValueError, r"level must lie in \(0, 1\), got 95"),
    ],
)
def test_interval_refuses(args, error, words):
    with pytest.raises(error, match=f"^{words}"):
        paired_interval(*args)


# Probes


def blobs(n=60, d=4, n_classes=3, seed=0):
    g = generator(seed)
    y = torch.arange(n) % n_classes
    z = torch.randn(n, d, generator=g) + 1.5 * torch.randn(n_classes, d, generator=g)[y]
    return z[: n // 2], y[: n // 2], z[n // 2 :], y[n // 2 :]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 7), st.booleans())
def test_knn_is_a_plain_vote(seed, k, normalize):
    z, y, z_test, y_test = (t.double() if t.is_floating_point() else t for t in blobs(seed=seed))
    a, b = (v / v.norm(dim=1, keepdim=True) if normalize else v for v in (z, z_test))
    right = 0
    for row, label in zip(b, y_test, strict=True):
        nearest = (a - row).norm(dim=1).argsort()[:k]
        right += int(
            y[nearest].bincount().argmax() == label
        )  # argmax: the smaller class wins a tie
    assert knn_probe(z, y, z_test, y_test, n_neighbors=k, normalize=normalize) == pytest.approx(
        right / len(y_test)
    )


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("normalize", [False, True])
def test_knn_keeps_its_digits_at_an_offset(offset, normalize):
    z, y, z_test, y_test = (t.double() if t.is_floating_point() else t for t in blobs(n=200))
    moved, moved_test = z + offset, z_test + offset
    want = knn_probe(z, y, z_test, y_test)
    if normalize:  # one more feature carries the offset, so that directions keep all their digits
        moved, moved_test = (
            torch.cat([v / offset, torch.ones(len(v), 1).double()], 1) for v in (z, z_test)
        )
    got = knn_probe(moved, y, moved_test, y_test, normalize=normalize)
    assert got == pytest.approx(want, abs=0.021 if normalize else 0)


def test_linear_probe_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = digits()
    parts = data.train.x.flatten(1), data.train.y, data.test.x.flatten(1), data.test.y
    arrays = [t.numpy() for t in parts]
    for method, model in (
        ("ridge", RidgeClassifier(3.0)),
        ("logistic", LogisticRegression(C=1 / 3, max_iter=1000)),
    ):
        want = make_pipeline(StandardScaler(), model).fit(*arrays[:2]).score(*arrays[2:])
        got = linear_probe(*parts, method=method, l2_weight=3.0)
        assert type(got) is float and got == pytest.approx(want, abs=0.004) and got > 0.9


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_linear_probe_does_not_see_scale_shift_or_order(method):
    z, y, z_test, y_test = blobs(seed=3)
    want = linear_probe(z, y, z_test, y_test, method=method)
    scale, shift = torch.tensor([1e-3, 1.0, 50.0, 1e3]), torch.tensor([0.0, -7.0, 3.0, 100.0])
    order = torch.randperm(len(y), generator=generator())
    moved = (z * scale + shift)[order], y[order], z_test * scale + shift, y_test
    assert linear_probe(*moved, method=method) == pytest.approx(want)
    dead = (
        torch.cat([z, torch.ones(len(z), 1)], 1),
        y,
        torch.cat([z_test, torch.ones(len(z_test), 1)], 1),
        y_test,
    )
    assert linear_probe(*dead, method=method) == pytest.approx(want)


def test_ridge_probe_by_its_closed_form():
    z, y, z_test, y_test = (
        t.double() if t.is_floating_point() else t for t in blobs(n=200, seed=5)
    )
    mean, std = z.mean(0), z.std(0, unbiased=False)
    a, b = (z - mean) / std, (z_test - mean) / std
    targets = 2.0 * torch.nn.functional.one_hot(y).double() - 1
    weights = torch.linalg.solve(
        a.T @ a + 2.5 * torch.eye(a.shape[1], dtype=torch.float64), a.T @ targets
    )
    guess = (b @ weights + targets.mean(0)).argmax(1)
    assert linear_probe(z, y, z_test, y_test, method="ridge", l2_weight=2.5) == pytest.approx(
        (guess == y_test).double().mean().item()
    )


@pytest.mark.parametrize("probe", [knn_probe, linear_probe])
def test_probes_take_bfloat16_and_two_classes_with_gaps(probe):
    z, y = (
        torch.tensor([[0.0], [0.1], [5.0], [5.1]], dtype=torch.bfloat16),
        torch.tensor([2, 2, 7, 7]),
    )
    more = {"n_neighbors": 1} if probe is knn_probe else {}
    assert probe(z, y, z, y, **more) == 1.0
    assert probe(z.requires_grad_(), y, z, torch.tensor([2, 2, 2, 2]), **more) == 0.5


@pytest.mark.parametrize("probe", [knn_probe, linear_probe])
def test_probes_refuse(probe):
    z, y, z_test, y_test = blobs()
    bad = z.clone()
    bad[3, 1] = float("nan")
    for args, error, words in (
        ((z.numpy(), y, z_test, y_test), TypeError, "z_train must be a tensor, got ndarray"),
        ((z, y.float(), z_test, y_test), TypeError, "y_train must be a tensor of integer dtype"),
        (
            (z, y[:-1], z_test, y_test),
            ValueError,
            r"y_train must have shape \(n_train,\) with n_train = 30",
        ),
        (
            (z, y, z_test[:, :2], y_test),
            ValueError,
            r"z_test must have shape \(n_test, d\) with d = 4",
        ),
        (
            (z, y, z_test, y_test[:3]),
            ValueError,
            r"y_test must have shape \(n_test,\) with n_test = 30",
        ),
        (
            (bad, y, z_test, y_test),
            ValueError,
            r"z_train must hold finite values, got nan at index \(3, 1\)",
        ),
        ((z, y - 1, z_test, y_test), ValueError, "y_train must be >= 0, got a label -1"),
        (
            (z, 0 * y, z_test, y_test),
            ValueError,
            "y_train must hold at least 2 classes, got only class 0",
        ),
    ):
        with pytest.raises(error, match=f"^{words}"):
            probe(*args)


def test_probes_refuse_their_own_arguments():
    parts = blobs()
    with pytest.raises(ValueError, match=r"^n_neighbors must lie in 1\.\.30, got 31$"):
        knn_probe(*parts, n_neighbors=31)
    with pytest.raises(ValueError, match=r"^method must be one of 'logistic', 'ridge', got svm$"):
        linear_probe(*parts, method="svm")
    with pytest.raises(ValueError, match=r"^l2_weight must lie in \(0, inf\), got 0\.0$"):
        linear_probe(*parts, l2_weight=0)


def test_a_missing_extra_is_named(monkeypatch):
    for call, module in (
        (lambda: knn_probe(*blobs()), "sklearn.neighbors"),
        (lambda: linear_probe(*blobs()), "sklearn.linear_model"),
        (lambda: paired_interval([1, 2]), "scipy.stats"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ImportError, match=rf'^{module} is missing: pip install "ponderlearn\[course\]"$'
        ):
            call()


# Calibration


def by_definition(p, labels, n_bins, kind):
    "ECE sample by sample."
    confidence, guess = p.double().max(1)
    samples = sorted(
        zip(confidence.tolist(), (guess == labels).tolist(), strict=True), key=lambda s: s[0]
    )
    n, bins = len(samples), [[] for _ in range(n_bins)]
    for i, (c, right) in enumerate(samples):
        place = (
            i * n_bins // n
            if kind == "mass"
            else next(m for m in range(n_bins) if c <= (m + 1) / n_bins + 1e-12)
        )
        bins[place].append((c, right))
    return sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins) / n


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(2, 6),
    st.integers(1, 20),
    st.sampled_from(["width", "mass"]),
    st.integers(0, 99),
)
def test_error_is_its_definition(n, k, n_bins, kind, seed):
    p = (2 * torch.randn(n, k, generator=generator(seed), dtype=torch.float64)).softmax(1)
    labels = torch.randint(k, (n,), generator=generator(seed + 1))
    got = calibration_error(p, labels, n_bins=n_bins, kind=kind)
    assert type(got) is float and 0 <= got <= 1
    assert got == pytest.approx(by_definition(p, labels, n_bins, kind), abs=1e-9)
    table = reliability(p, labels, n_bins=n_bins, kind=kind)
    assert table.count.sum() == n and (table.count > 0).all() and len(table.count) <= n_bins
    assert (table.confidence[1:] >= table.confidence[:-1]).all()
    assert ((table.accuracy * table.count).sum() / n).item() == pytest.approx(
        (p.argmax(1) == labels).double().mean().item()
    )
    if kind == "mass":
        assert table.count.max() - table.count.min() <= 1


def test_width_bins_are_closed_on_the_right():
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], dtype=torch.float64)
    table = reliability(p, torch.tensor([0, 0, 0]), n_bins=4)
    assert table.confidence.tolist() == [0.5, 0.75, 1.0] and table.count.tolist() == [1, 1, 1]


def test_known_errors():
    sure = torch.eye(4)
    assert calibration_error(sure, torch.arange(4)) == 0
    assert calibration_error(sure, (torch.arange(4) + 1) % 4) == 1
    even = torch.full((4, 4), 0.25)
    assert calibration_error(even, torch.arange(4), n_bins=7) == 0
    assert calibration_error(even, torch.zeros(4, dtype=torch.long), kind="mass", n_bins=1) == 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    logits, labels = (
        torch.randn(500, 10, generator=generator()),
        torch.randint(10, (500,), generator=generator()),
    )
    p = logits.softmax(1).requires_grad_()
    want = calibration_error(p, labels)
    assert calibration_error(p.to(dtype), labels) == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize(
    ("p", "labels", "more", "error", "words"),
    [
        (
            torch.tensor([[0.5, 0.6]]),
            [0],
            {},
            ValueError,
            "probabilities must have rows that sum to 1, got a row that is off by 0.1",
        ),
        (
            torch.tensor([[1.5, -0.5]]),
            [0],
            {},
            ValueError,
            r"probabilities must hold values >= 0, got -0\.5 at index \(0, 1\)",
        ),
        (
            torch.tensor([[float("nan"), 1]]),
            [0],
            {},
            ValueError,
            "probabilities must hold values >= 0, got nan",
        ),
        (
            torch.tensor([[1, 0]]),
            [0],
            {},
            TypeError,
            "probabilities must be a tensor of float dtype",
        ),
        (
            torch.tensor([0.5, 0.5]),
            [0, 1],
            {},
            ValueError,
            r"probabilities must have shape \(n, K\)",
        ),
        (torch.zeros(0, 2), [], {}, ValueError, "probabilities must not be empty"),
        (torch.tensor([[0.5, 0.5]]), [2], {}, ValueError, "labels must be < 2, got a label 2"),
        (
            torch.tensor([[0.5, 0.5]]),
            [0, 1],
            {},
            ValueError,
            r"labels must have shape \(n,\) with n = 1",
        ),
        (torch.tensor([[0.5, 0.5]]), [0], {"n_bins": 0}, ValueError, "n_bins must be >= 1, got 0"),
        (
            torch.tensor([[0.5, 0.5]]),
            [0],
            {"kind": "depth"},
            ValueError,
            "kind must be one of 'width', 'mass', got depth",
        ),
    ],
)
def test_calibration_refuses(p, labels, more, error, words):
    for f in (calibration_error, reliability):
        with pytest.raises(error, match=f"^{words}"):
            f(p, torch.tensor(labels, dtype=torch.long), **more)


# Detection of wrong labels


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=15))
def test_auc_is_the_share_of_pairs(pairs):
    scores = torch.tensor([float(s) for s, _ in pairs])
    wrong = torch.tensor([w for _, w in pairs])
    if wrong.all() or not wrong.any():
        with pytest.raises(ValueError, match=r"^flipped must hold True and False"):
            detection_scores(scores, wrong, higher_means_flipped=True)
        return
    difference = scores[wrong][:, None] - scores[~wrong]
    share = ((difference > 0).double() + (difference == 0).double() / 2).mean().item()
    high = detection_scores(scores, wrong, higher_means_flipped=True)
    low = detection_scores(scores, wrong, higher_means_flipped=False)
    assert high.auc == pytest.approx(share) and low.auc == pytest.approx(1 - share)


def test_average_precision_by_counting():
    scores = torch.rand(50, generator=generator(3))
    wrong = torch.rand(50, generator=generator(4)) < 0.3
    order = scores.argsort()
    shares = wrong[order].double().cumsum(0) / torch.arange(1, 51)
    want = shares[wrong[order]].mean().item()
    got = detection_scores(scores, wrong, higher_means_flipped=False)
    assert got.average_precision == pytest.approx(want)
    with pytest.raises(ValueError, match=r"^scores must hold finite values, got nan at index"):
        detection_scores(scores / 0 * 0, wrong, higher_means_flipped=False)


# Distances of two sets


def two_sets(n=60, m=45, d=4, seed=0):
    g = generator(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    real = torch.randn(n, d, generator=g, dtype=torch.float64)
    return real, torch.randn(m, d, generator=g, dtype=torch.float64) @ mix + 1


@pytest.mark.parametrize("n, m, d", [(60, 45, 4), (5, 30, 8), (3, 4, 6), (50, 50, 1)])
def test_frechet_distance_is_the_usual_form(n, m, d):
    real, fake = two_sets(n, m, d)
    means = [x.mean(0).numpy() for x in (real, fake)]
    covariances = [np.atleast_2d(np.cov(x.numpy().T)) for x in (real, fake)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    want = ((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances) - 2 * root.real)
    tolerance = 1e-6 if min(n, m) > d else 1e-5  # sqrtm of a singular product is rough
    assert frechet_distance(real, fake) == pytest.approx(want, rel=tolerance, abs=tolerance)


def test_frechet_distance_properties():
    real, fake = two_sets()
    assert frechet_distance(real, real) < 1e-12
    assert frechet_distance(real, fake) == pytest.approx(frechet_distance(fake, real))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator(1), dtype=torch.float64)).Q
    moved = frechet_distance(1e3 + real @ turn, 1e3 + fake @ turn)
    assert moved == pytest.approx(frechet_distance(real, fake), rel=1e-9)
    assert frechet_distance(real, real + 2) == pytest.approx(16)
    assert frechet_distance(real.numpy(), fake.numpy()) == frechet_distance(real, fake)
    assert frechet_distance(real, real * 0) == pytest.approx(
        real.mean(0).square().sum().item() + real.var(0).sum().item()
    )


def plain_share(x, centers, k):
    "Share of x in a ball, pair by pair."
    radii = [sorted((a - b).norm().item() for b in centers)[k] for a in centers]
    return sum(
        any((p - c).norm().item() <= r for c, r in zip(centers, radii, strict=True)) for p in x
    ) / len(x)


@pytest.mark.parametrize("k, chunk_size", [(1, 7), (3, 512), (5, 1)])
def test_precision_and_recall_by_a_plain_loop(k, chunk_size):
    real, fake = two_sets(25, 20, 2, seed=3)
    found = precision_recall(real, fake, k, chunk_size=chunk_size)
    assert found == (plain_share(fake, real, k), plain_share(real, fake, k))


def test_precision_and_recall_limits():
    real, _ = two_sets()
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    center = real.mean(0, keepdim=True)
    point = center + 1e-3 * torch.randn(50, 4, generator=generator(0), dtype=torch.float64)
    collapsed = precision_recall(real, point)
    assert collapsed.precision == 1 and collapsed.recall < 0.1
    with pytest.raises(ValueError, match=r"^fake_features must have at least 6 rows, got"):
        precision_recall(real, real[:5])
    with pytest.raises(ValueError, match=r"^fake_features must have shape"):
        frechet_distance(real, real[:, :2])
