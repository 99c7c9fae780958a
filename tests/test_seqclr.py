"""SeqCLR: windows, loss, views, decoders and scores against plain loops and enumeration."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ponderlearn import data
from ponderlearn.contrastive import seqclr
from ponderlearn.contrastive.infonce import nt_xent_loss
from ponderlearn.contrastive.seqclr import (
    AttentionDecoder,
    FrameProjection,
    SeqCLR,
    ctc_best_path,
    digit_strips,
    edit_distance,
    map_to_instances,
    order_preserving_views,
    recognition_scores,
    seqclr_loss,
    window_iou,
)
from ponderlearn.training import fit, seeded


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=seeded(seed), dtype=dtype)


# ---- mapping ----

COUNTING = torch.arange(1.0, 11).view(1, 10, 1).double()


@pytest.mark.parametrize(
    "n, length, wanted",
    [
        (4, None, [2, 4, 7, 9]),
        (3, None, [2.5, 5.5, 8.5]),
        (3, 7, [2, 4, 6]),
        (1, 7, [4]),
        (5, 3, [1, 2, 3, 0, 0]),
    ],
)
def test_windows_by_hand(n, length, wanted):
    lengths = None if length is None else torch.tensor([length])
    found = map_to_instances(COUNTING, n_instances=n, lengths=lengths)
    assert found.instances.flatten().tolist() == pytest.approx(wanted)
    assert found.mask.tolist() == [[k < (length or 10) for k in range(n)]]


def test_windows_of_the_paper():
    start, end, _ = seqclr._bounds(5, torch.tensor([26]))
    bounds = list(zip(start[0].tolist(), end[0].tolist(), strict=True))
    assert bounds == [(0, 6), (5, 11), (10, 16), (15, 21), (20, 26)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 14))
def test_windows_are_those_of_adaptive_pooling(lengths, n):
    frames = normal(len(lengths), 12, 3)
    found = map_to_instances(frames, n_instances=n, lengths=torch.tensor(lengths))
    for row, length, z, real in zip(frames, lengths, *found, strict=True):
        own = min(n, length)
        wanted = F.adaptive_avg_pool1d(row[:length].t(), own).t()
        assert torch.allclose(z[:own], wanted, atol=1e-12)
        assert real.sum() == own and real[:own].all() and not z[own:].any()


def test_all_and_frame_mapping():
    frames, lengths = normal(3, 7, 4), torch.tensor([7, 4, 1])
    whole = map_to_instances(frames, "all", lengths=lengths)
    means = [row[:n].mean(0) for row, n in zip(frames, lengths, strict=True)]
    assert torch.allclose(whole.instances[:, 0], torch.stack(means)) and whole.mask.all()
    each = map_to_instances(frames, "frame", lengths=lengths)
    assert torch.equal(each.mask, torch.arange(7) < lengths[:, None])
    assert torch.equal(each.instances[each.mask], frames[each.mask])
    assert torch.equal(map_to_instances(frames, n_instances=7).instances, frames)


@pytest.mark.parametrize("kind", ["none", "mlp", "bilstm"])
@pytest.mark.parametrize("mapping", ["all", "window", "frame"])
def test_padding_is_not_read(mapping, kind):
    frames, lengths = normal(4, 9, 6, dtype=torch.float32), torch.tensor([9, 5, 2, 1])
    real = torch.arange(9) < lengths[:2].repeat(2)[:, None]
    lengths = lengths[:2].repeat(2)  # both views
    head = FrameProjection(6, 6, kind=kind)
    found = []
    for filled in (frames, frames.masked_fill(~real[..., None], math.nan)):
        x = filled.clone().requires_grad_()
        head.zero_grad()
        z = map_to_instances(head(x, lengths), mapping, n_instances=7, lengths=lengths)
        loss = seqclr_loss(*z.instances.chunk(2), mask=z.mask[:2])
        loss.backward()
        found.append([loss.detach(), x.grad, *(p.grad.clone() for p in head.parameters())])
    assert not found[0][1][~real].any()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


def test_lstm_reads_each_row_as_if_alone():
    head = FrameProjection(3, 4, kind="bilstm", hidden_size=5).double()
    frames, lengths = normal(3, 8, 3), torch.tensor([5, 8, 2])
    found = head(frames, lengths)
    for row, n, z in zip(frames, lengths, found, strict=True):
        assert torch.allclose(z[:n], head(row[None, :n])[0], atol=1e-12)


# ---- loss ----

A = torch.tensor([[[1, 0], [1, 0], [0, 1], [0, 1]], [[0, 1], [1, 0], [1, 0], [0, 1]]]).double()
B = torch.tensor(
    [[[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], [[0, 1], [0.6, 0.8], [1, 0], [-0.6, 0.8]]]
).double()


@pytest.mark.parametrize(
    "temperature, wanted",
    [
        (1.0, [1.121316, 1.712209, 2.385335]),
        (0.5, [1.145152, 1.544600, 2.249100]),
        (0.1, [1.377733, 1.123368, 2.631576]),
    ],
)
def test_loss_by_hand(temperature, wanted):
    found = []
    for mapping in ("all", "window", "frame"):
        z = [map_to_instances(x, mapping, n_instances=2).instances for x in (A, B)]
        found.append(seqclr_loss(*z, temperature=temperature).item())
    assert found == pytest.approx(wanted, abs=1e-6)


def plain_loss(a, b, temperature, mask=None, same=True):
    "Anchor by anchor; also the counts of negatives, of the same and of other images."
    places = [(v, i, k) for v in (0, 1) for i in range(len(a)) for k in range(a.shape[1])]
    places = [p for p in places if mask is None or mask[p[1:]]]
    z = {p: F.normalize((a, b)[p[0]][p[1:]], dim=0) for p in places}
    losses, counts = [], []
    for v, i, k in places:
        partner = (1 - v, i, k)
        others = [u for u in places if u not in ((v, i, k), partner)]
        own = sum(u[1] == i for u in others)
        if not same:
            others = [u for u in others if u[1] != i]
        counts.append((own, len(others)))
        scores = torch.stack([z[v, i, k] @ z[u] / temperature for u in [partner, *others]])
        losses.append(scores.logsumexp(0) - scores[0])
    return torch.stack(losses).mean(), counts


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("same", [True, False])
def test_loss_is_that_of_the_plain_loop(same, masked):
    a, b = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    mask = torch.arange(4) < torch.tensor([4, 2, 1])[:, None] if masked else None
    wanted, counts = plain_loss(a, b, 0.3, mask, same)
    how = {"mask": mask, "temperature": 0.3, "same_image_negatives": same}
    assert torch.allclose(seqclr_loss(a, b, **how), wanted, atol=1e-12)
    rows = seqclr_loss(a, b, reduction="none", **how)
    assert rows.shape == (24,)
    n = 12 if mask is None else int(mask.sum())
    assert torch.allclose(rows.sum() / (2 * n), wanted, atol=1e-12)
    assert torch.allclose(seqclr_loss(a, b, reduction="sum", **how), wanted * 2 * n, atol=1e-10)
    if not masked:  # 2 (K - 1) negatives of the same image, 2 N - 2 in all
        assert set(counts) == {(6, 22 if same else 16)}


def test_limits_of_the_loss():
    for n in (2, 4, 8):
        assert seqclr_loss(torch.ones(1, n, 3), torch.ones(1, n, 3)).item() == pytest.approx(
            math.log(2 * n - 1), abs=1e-6
        )
    axes = torch.eye(8).view(2, 4, 8)
    for temperature in (0.1, 0.05, 0.03):  # in float32, where exp-sum minus self cancels
        wanted = math.log(14 + math.exp(-1 / temperature)) + 1 / temperature
        found = seqclr_loss(axes, -axes, temperature=temperature).item()
        assert found == pytest.approx(wanted, rel=1e-6)
    one = torch.ones(1, 1, 3)
    assert seqclr_loss(one, one) == 0 == seqclr_loss(one, one, same_image_negatives=False)
    assert seqclr_loss(torch.eye(3)[None], torch.eye(3)[None]) > 0  # one image still trains


def test_special_cases_are_nt_xent():
    a, b = normal(4, 6, 5), normal(4, 6, 5, seed=1)
    z = [map_to_instances(x, "all").instances for x in (a, b)]
    mean = nt_xent_loss(a.mean(1), b.mean(1), temperature=0.1)
    assert torch.allclose(seqclr_loss(*z), mean, atol=1e-12)
    flat = nt_xent_loss(a.flatten(0, 1), b.flatten(0, 1), temperature=0.1)
    assert torch.equal(seqclr_loss(a, b), flat)
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]
    trimmed = nt_xent_loss(a[mask], b[mask], temperature=0.1)
    assert torch.allclose(seqclr_loss(a, b, mask=mask), trimmed, atol=1e-12)
    for chunk in (1, 7, 100):
        assert torch.allclose(seqclr_loss(a, b, mask=mask, chunk_size=chunk), trimmed, atol=1e-12)


def test_order_matters():
    a, b = normal(3, 5, 4), normal(3, 5, 4, seed=1) * 0.3 + normal(3, 5, 4)
    loss = seqclr_loss(a, b)
    assert torch.allclose(seqclr_loss(b, a), loss)
    assert torch.allclose(seqclr_loss(a[[2, 0, 1]], b[[2, 0, 1]]), loss)
    assert torch.allclose(seqclr_loss(a.flip(1), b.flip(1)), loss)
    assert seqclr_loss(a, b.flip(1)) > loss + 1


class Largest(TorchDispatchMode):
    "Size of the largest tensor that any operation returns."

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_chunks_make_no_large_table():
    a = normal(32, 8, 16, dtype=torch.float32).requires_grad_()
    b, n = normal(32, 8, 16, seed=1, dtype=torch.float32), 512  # anchors
    sizes = {}
    for chunk in (None, 32):
        with Largest() as seen:
            seqclr_loss(a, b, chunk_size=chunk).backward()
        sizes[chunk] = seen.numel
    assert sizes[None] >= n * n and sizes[32] <= 32 * n


@pytest.mark.parametrize("same", [True, False])
def test_gradients(same):
    frames = normal(4, 6, 3).requires_grad_()
    lengths = torch.tensor([6, 4, 6, 4])

    def f(x):
        z = map_to_instances(x, n_instances=3, lengths=lengths)
        half = z.instances.chunk(2)
        return seqclr_loss(*half, mask=z.mask[:2], temperature=0.5, same_image_negatives=same)

    assert torch.autograd.gradcheck(f, frames)


def test_second_derivatives_of_windows():
    frames, lengths = normal(3, 6, 2).requires_grad_(), torch.tensor([6, 4, 1])

    def f(x):
        return map_to_instances(x, n_instances=4, lengths=lengths).instances ** 2

    assert torch.autograd.gradcheck(f, frames)
    assert torch.autograd.gradgradcheck(f, frames)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    frames = normal(4, 8, 6, dtype=torch.float32)
    z = map_to_instances(frames.to(dtype), n_instances=3).instances
    assert z.dtype == dtype
    lengths, rounded = torch.tensor([8, 5, 2, 1]), frames.to(dtype).requires_grad_()
    part = map_to_instances(rounded, n_instances=3, lengths=lengths).instances
    exact = map_to_instances(rounded.double(), n_instances=3, lengths=lengths).instances
    assert part.dtype == dtype and torch.allclose(part.double(), exact, rtol=0.01, atol=1e-3)
    part.float().sum().backward()
    assert rounded.grad.dtype == dtype and rounded.grad.isfinite().all()
    loss = seqclr_loss(*z.chunk(2))
    wanted = seqclr_loss(*map_to_instances(frames, n_instances=3).instances.chunk(2))
    assert loss.dtype == torch.float32 and torch.allclose(loss, wanted, atol=0.15)
    axes = torch.eye(8).view(2, 4, 8).to(dtype)
    assert seqclr_loss(axes, -axes, temperature=0.03).isfinite()


def test_vmap():
    x, y = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1)

    def f(a, b):
        return seqclr_loss(*(map_to_instances(t, n_instances=2).instances for t in (a, b)))

    wanted = torch.stack([f(a, b) for a, b in zip(x, y, strict=True)])
    assert torch.allclose(torch.vmap(f)(x, y), wanted)
    lengths = torch.tensor([4, 1])

    def g(a):
        return map_to_instances(a, n_instances=2, lengths=lengths).instances

    assert torch.allclose(torch.vmap(g)(x), torch.stack([g(a) for a in x]))
    slope = torch.func.vmap(torch.func.grad(lambda a: (g(a) ** 2).sum()))(x)
    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad(sum((g(a) ** 2).sum() for a in leaf), leaf)[0]
    assert torch.allclose(slope, wanted)


@pytest.mark.slow
def test_compile():
    frames, lengths = normal(4, 9, 6, dtype=torch.float32), torch.tensor([9, 4, 9, 4])

    def f(x, n):
        z = map_to_instances(x, n_instances=5, lengths=n)
        return seqclr_loss(*z.instances.chunk(2), mask=z.mask[:2])

    found = torch.compile(f, fullgraph=True, backend="aot_eager")(frames, lengths)
    assert torch.allclose(found, f(frames, lengths), atol=1e-5)
    leaves = [frames.clone().requires_grad_() for _ in range(2)]
    torch.compile(f, fullgraph=True, backend="aot_eager")(leaves[0], lengths).backward()
    f(leaves[1], lengths).backward()
    assert torch.allclose(leaves[0].grad, leaves[1].grad, atol=1e-5)


def test_model_is_its_parts():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, (16, 4), (1, 2))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.conv(x)[:, :, 0].mT

    encoder, head = Encoder(), FrameProjection(6, 4)
    a, b = torch.rand(3, 1, 16, 64), torch.rand(3, 1, 16, 64)
    lengths = torch.tensor([31, 12, 3])
    loss = SeqCLR(encoder, head, n_instances=8)(a, b, lengths)
    assert encoder.calls == 1  # batch normalization sees both views
    z = [map_to_instances(head(encoder(x)), n_instances=8, lengths=lengths) for x in (a, b)]
    wanted = seqclr_loss(z[0].instances, z[1].instances, mask=z[0].mask)
    assert torch.allclose(loss, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="what encoder returns must"):
        SeqCLR(conv, head)(a, b)


@pytest.mark.parametrize("given", [False, True])
def test_more_windows_than_frames(given):
    "31 frames: 100 windows are 31, and what is masked enters the loss in no way."
    torch.manual_seed(0)
    conv, head = nn.Conv2d(1, 6, (16, 4), (1, 2)), FrameProjection(6, 4)

    def encoder(x):
        return conv(x)[:, :, 0].mT

    a, b = torch.rand(2, 3, 1, 16, 64)
    lengths = torch.full((3,), 31) if given else None
    found = SeqCLR(encoder, head, n_instances=100)(a, b, lengths)
    assert torch.allclose(found, SeqCLR(encoder, head, n_instances=31)(a, b), atol=1e-5)
    assert torch.allclose(found, SeqCLR(encoder, head, mapping="frame")(a, b), atol=1e-5)


class Strided(nn.Module):
    "Strips to 16 frames of 24 numbers."

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 24, (16, 9), 4, (0, 4)), nn.ReLU())

    def forward(self, x):
        return self.net(x)[:, :, 0].mT


def test_it_learns_to_find_partners():
    "Share of windows whose nearest one in the other view is the partner: new strips and views."
    torch.manual_seed(0)
    digits = data.mnist(size=14)
    train, new = ((s.x[..., 1:13], s.y) for s in (digits.train, digits.test))
    model = SeqCLR(Strided(), FrameProjection(24, 24), n_instances=8)

    def batches(step, generator):
        x = digit_strips(*train, 16, generator=generator).images
        return [order_preserving_views(x, generator=generator) for _ in range(2)]

    def found():
        x, g = digit_strips(*new, 16, generator=seeded(5)).images, seeded(6)
        z = [
            map_to_instances(
                model.projection(model.encoder(order_preserving_views(x, generator=g))),
                n_instances=8,
            ).instances.flatten(0, 1)
            for _ in range(2)
        ]
        nearest = (F.normalize(z[0], dim=1) @ F.normalize(z[1], dim=1).t()).argmax(1)
        return (nearest == torch.arange(len(nearest))).float().mean().item()

    before = found()
    fit(model, lambda m, v: m(*v), batches, steps=60, lr=4e-3, bar=False)
    assert found() > before + 0.1


# ---- views and overlap ----


def test_overlap_of_windows():
    for n, shift, wanted in (
        (4, 1, 0.777778),
        (8, 1, 0.6),
        (32, 1, 0),
        (4, 4, 0.333333),
        (8, 4, 0),
        (32, 4, 0),
        (1, 4, 0.777778),
        (8, 0, 1),
    ):
        assert window_iou(32, n, shift) == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 12))
def test_overlap_counts_pixels(n, shift):
    width = 24 // n
    both = len(set(range(width)) & set(range(shift, shift + width)))
    assert window_iou(width * n, n, shift) == pytest.approx(both / (2 * width - both))


STILL = dict.fromkeys(("vertical", "shift", "scaling", "shear", "contrast", "blur", "noise"), 0.0)


def test_views_by_their_strengths():
    x = torch.rand(64, 1, 16, 64, generator=seeded(0))
    assert torch.allclose(order_preserving_views(x, **STILL), x, atol=1e-5)
    one = order_preserving_views(x, generator=seeded(1))
    assert torch.equal(one, order_preserving_views(x, generator=seeded(1)))
    assert one.min() >= 0 and one.max() <= 1
    blurred = order_preserving_views(x, **STILL | {"blur": 1.0})
    kernel = torch.tensor([1.0, 2, 1]) / 4
    wanted = F.conv2d(x, (kernel[:, None] * kernel)[None, None], padding=1)
    assert torch.allclose(blurred, wanted, atol=1e-5)
    half = order_preserving_views(x, **STILL | {"blur": 0.5}, generator=seeded(2))
    changed = ((half - x).abs().amax((1, 2, 3)) > 1e-3).float().mean()
    assert 0.3 < changed < 0.7


@pytest.mark.parametrize("name, strength", [("shift", 0.05), ("shear", 0.24), ("vertical", 0.3)])
def test_views_move_as_far_as_they_say(name, strength):
    "A bar of one column (or row) ends where the strength allows, and not always there."
    x = torch.zeros(400, 1, 16, 64)
    if name == "vertical":
        x[:, :, 8] = 1
    else:
        x[:, :, :, 32] = 1
    view = order_preserving_views(x, **STILL | {name: strength}, generator=seeded(0))
    if name == "vertical":
        place = (view[:, 0].sum(2) * torch.arange(16)).sum(1) / view.sum((1, 2, 3))
        moved = (place - 8).abs()
        most = 16 * strength / 2  # half as much vertical shift
    else:
        row = view[:, 0, 0 if name == "shear" else 8]
        moved = ((row * torch.arange(64)).sum(1) / row.sum(1) - 32).abs()
        most = 64 * strength if name == "shift" else 7.5 * strength
    assert 0.7 * most < moved.max() < 1.35 * most and moved.min() < 0.3 * most


# ---- CTC ----


def labellings(p):
    "Probability of every text, by all paths; p (T, C), blank 0."
    found = {}
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        text = tuple(k for k, _ in itertools.groupby(path) if k)
        weight = math.prod(float(p[t, k]) for t, k in enumerate(path))
        found[text] = found.get(text, 0) + weight
    return found


def ctc(p, target):
    one = torch.tensor([len(target)])
    n = torch.tensor([len(p)])
    return F.ctc_loss(p.log()[:, None], torch.tensor([target]), n, one, reduction="sum").item()


def test_ctc_by_all_paths():
    even = torch.full((3, 3), 1 / 3).double()
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]).double()
    for scores, wanted in (
        (even, {(1,): 1.504077, (1, 2): 1.686399, (1, 1): 3.295837, (1, 2, 1): 3.295837}),
        (p, {(1, 2): 0.846298, (1,): 1.801810}),
    ):
        found = labellings(scores)
        assert sum(found.values()) == pytest.approx(1)
        for text, loss in wanted.items():
            assert -math.log(found[text]) == pytest.approx(loss, abs=1e-6)
            assert ctc(scores, text) == pytest.approx(loss, abs=1e-6)
    assert labellings(p)[(2,)] == pytest.approx(0.254)
    assert ctc_best_path(p[None]) == [[1, 2]]


def test_best_path():
    p = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).double()
    assert ctc_best_path(p[None]) == [[]] and labellings(p)[(1,)] == pytest.approx(0.64)
    paths = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0], [0] * 8, [2, 0, 2, 2, 2, 2, 2, 1]])
    scores = F.one_hot(paths, 3).float()
    assert ctc_best_path(scores) == [[1, 1, 2], [], [2, 2, 1]]
    lengths = torch.tensor([3, 1, 7])
    assert ctc_best_path(scores, lengths) == [[1], [], [2, 2]]
    spoiled = scores.masked_fill(~(torch.arange(8) < lengths[:, None])[..., None], math.nan)
    assert ctc_best_path(spoiled, lengths) == [[1], [], [2, 2]]
    with pytest.raises(ValueError, match="log_probs must hold no NaN"):
        ctc_best_path(spoiled)
    assert ctc_best_path(scores, blank=2)[0] == [0, 1, 0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_best_path_is_group_and_drop(path):
    scores = F.one_hot(torch.tensor([path]), 4).float()
    assert ctc_best_path(scores) == [[k for k, _ in itertools.groupby(path) if k]]


# ---- scores ----


def recursive_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    last = recursive_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(last, recursive_distance(a[1:], b) + 1, recursive_distance(a, b[1:]) + 1)


def test_edit_distance_by_hand():
    for a, b, wanted in (
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("12345", "1245", 1),
        ("333", "33", 1),
        ("abc", "cab", 2),
    ):
        assert edit_distance(a, b) == wanted == edit_distance(b, a)
    assert edit_distance(torch.tensor([1, 2, 3]), [1, 3]) == 1


texts = st.text("ab1", max_size=5)


@settings(max_examples=60, deadline=None)
@given(texts, texts, texts)
def test_edit_distance_is_a_distance(a, b, c):
    assert edit_distance(a, b) == recursive_distance(a, b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert (edit_distance(a, b) == 0) == (a == b)


def test_scores():
    assert recognition_scores([[1, 2, 3, 4, 5]], [[7, 8]]).cer == 2.5
    found = recognition_scores([[1], [2, 2], []], [[1], [2], []])
    assert found == (2 / 3, 0.5)
    with pytest.raises(ValueError, match="predictions must be 2, as the targets, got 1"):
        recognition_scores([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="targets must hold at least one symbol"):
        recognition_scores([[1]], [[]])


# ---- attention decoder ----


def test_attention_looks_at_real_frames_only():
    decoder = AttentionDecoder(4, 10, hidden_size=6).double()
    frames, mask = normal(3, 7, 4), torch.arange(7) < torch.tensor([7, 3, 1])[:, None]
    targets = torch.tensor([[1, 2, 3], [4, 0, 0], [9, 9, 0]])
    found = decoder(frames, targets, mask, return_weights=True)
    assert found.weights.shape == (3, 4, 7) and found.logits.shape == (3, 4, 11)
    assert torch.allclose(found.weights.sum(-1), torch.ones(3, 4).double())
    assert (found.weights == 0).equal(~mask[:, None].expand(3, 4, 7))
    spoiled = decoder(frames.masked_fill(~mask[..., None], math.nan), targets, mask)
    assert torch.equal(spoiled, found.logits)
    for row, n, y, logits in zip(frames, (7, 3, 1), targets, found.logits, strict=True):
        assert torch.allclose(decoder(row[None, :n], y[None])[0], logits, atol=1e-10)


def test_attention_does_not_look_ahead():
    decoder, frames = AttentionDecoder(4, 10, hidden_size=6), normal(2, 5, 4).float()
    a, b = torch.tensor([[1, 2, 3]] * 2), torch.tensor([[1, 2, 7]] * 2)
    found = [decoder(frames, y) for y in (a, b)]
    assert torch.equal(found[0][:, :3], found[1][:, :3])
    assert not torch.allclose(found[0][:, 3], found[1][:, 3])


def test_decoding_feeds_back_its_own_symbols():
    torch.manual_seed(0)
    decoder, frames = AttentionDecoder(4, 3, hidden_size=6, max_steps=9), torch.randn(20, 5, 4)
    read = decoder.decode(frames)
    assert read == decoder.decode(frames)
    assert max(map(len, read)) <= 9
    logits = decoder(frames)
    for text, row in zip(read, logits.argmax(-1).tolist(), strict=True):
        assert text == list(itertools.takewhile(lambda k: k != 0, row[:9]))
    longest = max(read, key=len)
    i = read.index(longest)
    forced = decoder(frames[i : i + 1], torch.tensor([longest]))[0]  # what it wrote itself
    assert forced.argmax(-1)[:-1].tolist() == longest
    mask = torch.arange(5) < torch.tensor([5, 3, 2, 1] * 5)[:, None]
    for row, real, text in zip(frames, mask, decoder.decode(frames, mask), strict=True):
        assert text == decoder.decode(row[None, real])[0]
    spoiled = frames.masked_fill(~mask[..., None], math.nan)
    assert decoder.decode(spoiled, mask) == decoder.decode(frames, mask)
    with torch.no_grad():
        decoder.out.bias[0] = 100
    assert decoder.decode(frames) == [[]] * 20


# ---- strips ----


def test_strips():
    images = torch.rand(30, 1, 14, 12, generator=seeded(0)) * 0.9 + 0.1
    labels = torch.arange(30) % 10
    strips = digit_strips(images, labels, 200, generator=seeded(1))
    again = digit_strips(images, labels, 200, generator=seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(strips, again, strict=True))
    assert set(strips.target_lengths.tolist()) == {3, 4, 5}
    for x, y, n, spans in zip(*strips, strict=True):
        assert (y[:n] > 0).all() and not y[n:].any() and not spans[n:].any()
        left, right = spans[:n].t()
        assert (right - left == 12).all() and (left[1:] >= right[:-1] - 1).all()
        assert left[0] >= 0 and right[-1] <= 64
        inked = torch.zeros(64, dtype=torch.bool)
        for a, b, label in zip(left, right, y[:n] - 1, strict=True):
            inked[a:b] = True
            piece = x[0, :, a + 1 : b - 1]  # neighbors overlap in one column at most
            fits = [
                torch.equal(piece[top : top + 14], image[0, :, 1:-1])
                for image in images[labels == label]
                for top in range(3)
            ]
            assert any(fits)
        assert torch.equal((x[0] > 0).any(0), inked)
    repeats = (strips.targets[:, 1:] == strips.targets[:, :-1]) & (strips.targets[:, 1:] > 0)
    assert (strips.target_lengths + repeats.sum(1) <= 32).all()  # CTC can write them in 32 frames


def test_strips_refuse_what_does_not_fit():
    images, labels = torch.rand(3, 1, 14, 12), torch.arange(3)
    assert digit_strips(images, labels, 50, width=56).images.shape[-1] == 56
    with pytest.raises(ValueError, match="width must be at least 56 for 5 digits, got 55"):
        digit_strips(images, labels, 2, width=55)
    with pytest.raises(ValueError, match="length must satisfy low <= high"):
        digit_strips(images, labels, 2, length=(5, 3))


# ---- bad input of the brief ----


def test_errors():
    frames = torch.rand(2, 6, 4)
    with pytest.raises(ValueError, match=r"frames must have shape \(B, T, D\)"):
        map_to_instances(frames[0])
    with pytest.raises(ValueError, match="mapping must be one of 'all', 'window', 'frame'"):
        map_to_instances(frames, "windows")
    for lengths in ([0, 3], [7, 3]):
        with pytest.raises(ValueError, match="lengths must be between 1 and 6"):
            map_to_instances(frames, lengths=torch.tensor(lengths))
    with pytest.raises(ValueError, match=r"instances_b must have shape \(2, 6, 4\)"):
        seqclr_loss(frames, frames[:, :3])
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 6\)"):
        seqclr_loss(frames, frames, mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must leave at least one pair"):
        seqclr_loss(frames, frames, mask=torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="chunk_size must be None without same-image negatives"):
        seqclr_loss(frames, frames, same_image_negatives=False, chunk_size=4)
    with pytest.raises(ValueError, match="output_size must be input_size"):
        FrameProjection(6, 4, kind="none")
    with pytest.raises(ValueError, match="mask must leave a frame in each row"):
        AttentionDecoder(4, 3)(frames, mask=torch.zeros(2, 6, dtype=torch.bool))
