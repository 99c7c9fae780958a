"""Prism: SciPy and plain loops, projections, lengths, limits, dtypes, bad inputs; probes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from ponderlearn.language.prism import (
    PrismLayer,
    band_energy,
    band_pass,
    cycle_length,
    dct,
    dct_matrix,
    idct,
    prism_bands,
    segment_shuffle,
    spectral_filter,
)
from ponderlearn.metrics import linear_probe


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def by_scipy(x, low, high):
    "The filter of one array (N, D) by SciPy."
    coefficients = fft.dct(x.numpy(), axis=0, norm="ortho")
    index = np.arange(len(x))[:, None]
    kept = np.where((index >= low) & (index <= high), coefficients, 0)
    return torch.from_numpy(fft.idct(kept, axis=0, norm="ortho"))


@pytest.mark.parametrize("norm", ["ortho", "backward"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 511])
def test_transform_against_scipy(n, norm):
    x = noise(3, n)
    wanted = torch.from_numpy(fft.dct(x.numpy(), norm=norm))
    assert torch.allclose(dct(x, norm=norm), wanted, atol=1e-11)
    assert torch.allclose(idct(wanted, norm=norm), x, atol=1e-12)


def test_transform_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    hand = torch.tensor([20, -6.308644, 0, -0.448342], dtype=torch.float64)
    assert torch.allclose(dct(x, norm="backward"), hand, atol=1e-6)
    one = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    hand = torch.tensor([0.5, 0.653281, 0.5, 0.270598], dtype=torch.float64)
    assert torch.allclose(dct(one), hand, atol=1e-6)


def test_sines_leak_and_cosines_in_phase_do_not():
    n = torch.arange(16, dtype=torch.float64)
    found = dct(torch.cos(math.pi / 16 * (n + 0.5) * 3))
    assert found[3].item() == pytest.approx(math.sqrt(8))
    assert found.square().sum().item() == pytest.approx(8)
    found = dct(torch.sin(2 * math.pi * n / 8))
    odd = [0.909082, 1.923686, -1.082392, -1.454965, -0.377434]
    odd += [-0.175791, -0.093333, -0.047168, -0.014517]
    assert found[[1, 3, 4, 5, 7, 9, 11, 13, 15]].tolist() == pytest.approx(odd, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 45), st.integers(0, 10**6))
def test_filter_against_scipy(n, a, b, seed):
    x, (low, high) = noise(2, n, 3, seed=seed), sorted((a, b))
    found = band_pass(x, low, high)
    wanted = torch.stack([by_scipy(row, low, high) for row in x])
    assert torch.allclose(found, wanted, atol=1e-12)
    assert torch.allclose(band_pass(found, low, high), found, atol=1e-12)


@pytest.mark.parametrize("n", [5, 16, 64, 128])
def test_filters_are_projections_that_sum_to_the_identity(n):
    eye = torch.eye(n, dtype=torch.float64)
    total = 0
    for low, high in prism_bands(n).values():
        p = band_pass(eye, low, high, dim=0)
        assert torch.allclose(p, p.T, atol=1e-12) and torch.allclose(p @ p, p, atol=1e-12)
        assert p.trace().item() == pytest.approx(high - low + 1)
        total = total + p
    assert torch.allclose(total, eye, atol=1e-12)
    both = band_pass(band_pass(eye, 0, 3, dim=0), 2, n, dim=0)
    assert torch.allclose(both, band_pass(eye, 2, 3, dim=0), atol=1e-12)


def test_filters_by_hand():
    p = band_pass(torch.eye(4, dtype=torch.float64), 0, 1, dim=0)
    rows = [[0.676777, 0.426777, 0.073223, -0.176777], [0.426777, 0.323223, 0.176777, 0.073223]]
    assert torch.allclose(p[:2], torch.tensor(rows, dtype=torch.float64), atol=1e-6)
    line = band_pass(torch.arange(8, dtype=torch.float64), 0, 1, dim=0)
    hand = [0.340732, 0.821702, 1.710419, 2.871583, 4.128417, 5.289581, 6.178298, 6.659268]
    assert line.tolist() == pytest.approx(hand, abs=1e-6)


def test_reversal_commutes_and_a_shift_does_not():
    x = noise(1, 30, 2)
    kept = band_pass(x, 3, 9)
    assert torch.allclose(band_pass(x.flip(1), 3, 9), kept.flip(1), atol=1e-12)
    assert not torch.allclose(band_pass(x.roll(4, 1), 3, 9), kept.roll(4, 1), atol=0.1)
    mixed = x[:, torch.randperm(30, generator=seeded(1))]
    assert torch.allclose(band_pass(mixed, 0, 0), band_pass(x, 0, 0), atol=1e-12)


FIRST = {
    512: [0, 2, 9, 34, 130],
    256: [0, 1, 4, 17, 65],
    128: [0, 1, 2, 8, 32],
    64: [0, 1, 2, 4, 16],
    32: [0, 1, 2, 3, 8],
    16: [0, 1, 2, 3, 4],
    5: [0, 1, 2, 3, 4],
}


@pytest.mark.parametrize("n", FIRST)
def test_bands(n):
    bands = list(prism_bands(n).values())
    assert [a for a, _ in bands] == FIRST[n]
    assert [b for _, b in bands] == [a - 1 for a in FIRST[n][1:]] + [n - 1]


def test_bands_of_short_texts_and_other_edges():
    assert list(prism_bands(3).values()) == [(0, 0), (1, 1), (2, 2), (3, 2), (3, 2)]
    assert prism_bands(1)["LOW"] == (0, 0) and prism_bands(1)["HIGH"] == (1, 0)
    assert prism_bands(60, (10, 30), reference=60) == {
        "band 0": (0, 9),
        "band 1": (10, 29),
        "band 2": (30, 59),
    }
    layer = PrismLayer(5)
    out = layer(torch.ones(1, 2, 5))
    assert out[0, :, 0].tolist() == pytest.approx([1, 1]) and (out[..., 2:] == 0).all()


def test_cycles():
    known = {1: 1024, 2: 512, 9: 113.777778, 33: 31.030303, 130: 7.876923, 511: 2.003914}
    assert [cycle_length(k, 512) for k in known] == pytest.approx(list(known.values()))
    assert cycle_length(0, 512) == math.inf


def test_energy_of_noise_and_of_a_constant():
    x = noise(40, 512, 6, seed=3)
    shares = band_energy(x).mean((0, 2)).tolist()
    wanted = [0.00390625, 0.01367188, 0.04882812, 0.1875, 0.74609375]
    assert shares == pytest.approx(wanted, rel=0.12)
    assert torch.allclose(band_energy(x).sum(1), torch.ones(40, 6, dtype=torch.float64))
    assert (band_energy(torch.ones(2, 8, 3)) == 0).all()  # centered, nothing is left


def test_energy_against_a_loop():
    x, lengths = noise(3, 9, 2), torch.tensor([9, 5, 0])
    real = torch.cat([x[0], x[1, :5]])
    found = band_energy(x, lengths=lengths)
    for row, n in enumerate([9, 5]):
        power = torch.from_numpy(fft.dct((x[row, :n] - real.mean(0)).numpy(), axis=0, norm="ortho"))
        for b, (low, high) in enumerate(prism_bands(n).values()):
            share = power[low : high + 1].square().sum(0) / power.square().sum(0)
            assert torch.allclose(found[row, b], share)
    assert (found[2] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 10**6))
def test_lengths_are_rows_alone(sizes, seed):
    x, lengths = noise(len(sizes), 12, 6, seed=seed), torch.tensor(sizes)
    spoiled = x.clone()
    for row, n in enumerate(sizes):
        spoiled[row, n:] = torch.nan
    layer, weights = PrismLayer(6), torch.linspace(1, 0, 12, dtype=torch.float64)
    for call in (lambda x, n: band_pass(x, 1, 3, lengths=n), layer):
        found = call(spoiled, lengths)
        for row, n in enumerate(sizes):
            assert (found[row, n:] == 0).all()
            if n:
                alone = call(x[row : row + 1, :n], None)
                assert torch.allclose(found[row, :n], alone[0], atol=1e-12)
    assert spectral_filter(spoiled, weights, lengths=lengths).isfinite().all()
    mask = torch.arange(12) < lengths[:, None]
    assert torch.equal(layer(spoiled, mask=mask), layer(spoiled, lengths))


def test_soft_filter():
    x = noise(2, 12, 3)
    hard = (torch.arange(12) < 4).double()
    assert torch.allclose(spectral_filter(x, hard), band_pass(x, 0, 3), atol=1e-12)
    each = noise(12, 3, seed=1)
    wanted = idct(dct(x, 1) * each, 1)
    assert torch.allclose(spectral_filter(x, each), wanted, atol=1e-12)
    short = spectral_filter(x, hard, lengths=torch.tensor([12, 6]))
    by_hand = idct(dct(x[1:, :6], 1) * torch.tensor([1.0, 1, 0, 0, 0, 0]).double()[:, None], 1)
    assert torch.allclose(short[1, :6], by_hand[0], atol=1e-12)


def test_axis_and_memory_layout():
    x = noise(2, 7, 3)
    wanted = band_pass(x, 1, 2)
    assert torch.allclose(band_pass(x.movedim(1, 2), 1, 2, dim=2).movedim(2, 1), wanted)
    assert torch.allclose(band_pass(x.movedim(1, 0), 1, 2, dim=0).movedim(0, 1), wanted)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.allclose(band_pass(strided, 1, 2), wanted)
    assert torch.allclose(band_pass(x[..., None], 1, 2)[..., 0], wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    x = noise(2, 33, 5).to(dtype)
    for f in (lambda x: band_pass(x, 1, 3), PrismLayer(5), dct):
        assert f(x).dtype == dtype
        assert torch.allclose(f(x).float(), f(x.float()), atol=3e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(band_pass(x.float(), 1, 3), band_pass(x, 1, 3).float(), atol=3e-2)


def test_gradients():
    x = noise(2, 6, 5).requires_grad_(True)
    weights = noise(6, seed=2).requires_grad_(True)
    lengths = torch.tensor([6, 4])
    assert torch.autograd.gradcheck(lambda x: PrismLayer(5)(x, lengths), (x,))
    soft = lambda x, w: spectral_filter(x, w, lengths=lengths)
    assert torch.autograd.gradcheck(soft, (x, weights))
    assert torch.autograd.gradcheck(lambda x: band_energy(x), (x,))
    (grad,) = torch.autograd.grad(band_pass(x, 1, 3).square().sum() / 2, x)
    assert torch.allclose(grad, band_pass(x, 1, 3), atol=1e-12)


def test_after_inference_mode():
    "Waves that were first made in inference mode serve training later."
    with torch.inference_mode():
        band_pass(torch.ones(1, 23, 2), 1, 3)
    x = torch.ones(1, 23, 2, requires_grad=True)
    band_pass(x, 1, 3).sum().backward()
    assert x.grad is not None


def test_the_kept_waves_are_not_handed_out():
    dct_matrix(9).zero_()
    assert dct_matrix(9).abs().sum() > 1
    assert torch.allclose(dct_matrix(9) @ dct_matrix(9).T, torch.eye(9), atol=1e-6)


def test_vmap():
    x = noise(3, 8, 5)
    wanted = PrismLayer(5)(x)
    assert torch.allclose(torch.vmap(lambda row: PrismLayer(5)(row[None])[0])(x), wanted)
    assert torch.allclose(torch.vmap(lambda r: band_pass(r, 1, 2, dim=0))(x), band_pass(x, 1, 2))


@pytest.mark.slow
def test_compile():
    x, layer = noise(3, 8, 5, dtype=torch.float32), PrismLayer(5)
    assert torch.allclose(torch.compile(layer, backend="aot_eager")(x), layer(x), atol=1e-6)


def test_layer():
    x, layer = noise(2, 64, 20), PrismLayer(20, sectors=(2, 3, 4, 5, 6))
    y = layer(x)
    parts = zip(layer.sector_slices, prism_bands(64).values(), strict=True)
    assert torch.allclose(y, torch.cat([band_pass(x[..., s], *b) for s, b in parts], -1))
    assert torch.allclose(layer(y), y, atol=1e-12)
    assert len(layer.state_dict()) == 0 and PrismLayer(64).sectors == (13, 13, 13, 13, 12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 5), st.integers(0, 99)
)
def test_segments(segment, times, n_windows, rest, seed):
    window = segment * times
    n = window * n_windows + min(rest, window - 1)
    tokens, labels = torch.arange(n), torch.arange(n) // segment
    mixed, their = segment_shuffle(tokens, labels, segment, window, generator=seeded(seed))
    assert mixed.shape == their.shape == (n_windows, window)
    assert mixed.flatten().sort().values.tolist() == list(range(window * n_windows))
    assert torch.equal(labels[mixed], their)
    pieces = mixed.view(-1, segment)
    assert (pieces - pieces[:, :1] == torch.arange(segment)).all()


def test_a_linear_probe_without_index_0_ends_at_the_majority():
    y = (torch.arange(50) % 5 < 2).long()
    x = noise(50, 24, 6) + 3 * y[:, None, None]
    tokens = y[:, None].expand(50, 24).flatten()
    for kind in ("ridge", "logistic"):
        z = band_pass(x, 1, 23).flatten(0, 1)
        assert z.mean(0).abs().max() < 1e-12
        assert linear_probe(z, tokens, z, tokens, method=kind) == pytest.approx(0.6)
        z = band_pass(x, 0, 0).flatten(0, 1)
        assert linear_probe(z, tokens, z, tokens, method=kind) == 1


def test_the_best_band_walks():
    "Random words of 8 topics, 64 words a window: short segments are read in a faster band."
    g = seeded(5)
    vectors = torch.randn(80, 16, generator=g)
    topic = torch.arange(8).repeat_interleave(640)
    tokens = topic * 10 + torch.randint(10, (len(topic),), generator=g)
    best = {}
    for length in (4, 64):
        ids, y = segment_shuffle(tokens, topic, length, 64, generator=g)
        scores = []
        for low, high in prism_bands(64).values():
            z = band_pass(vectors[ids], low, high)
            parts = (z[:60].flatten(0, 1), y[:60].flatten(), z[60:].flatten(0, 1), y[60:].flatten())
            scores.append(linear_probe(*parts, method="ridge"))
        best[length] = int(np.argmax(scores))
    assert best[64] == 0 and best[4] >= 3


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: dct(torch.arange(3)), TypeError, "x must be a tensor of float dtype"),
        (lambda: dct(torch.ones(0)), ValueError, "x must have at least 1 token"),
        (lambda: dct(torch.ones(3), norm="forward"), ValueError, "norm must be one of"),
        (
            lambda: band_pass(torch.ones(1, 3, 1), 2, 1),
            ValueError,
            "high must be >= low = 2, got 1",
        ),
        (lambda: band_pass(torch.ones(3), 0, 1, dim=1), ValueError, "dim must lie in -1..0"),
        (lambda: prism_bands(0), ValueError, "length must lie in 1"),
        (
            lambda: prism_bands(8, (2, 2)),
            ValueError,
            "edges must rise strictly and lie inside 1..511",
        ),
        (lambda: prism_bands(8, (9, 600)), ValueError, "edges must rise strictly"),
        (
            lambda: PrismLayer(6, sectors=(1, 1, 1, 1, 1)),
            ValueError,
            "sectors must sum to embed_dim",
        ),
        (lambda: PrismLayer(6, sectors=(3, 3)), ValueError, "sectors must name 5 bands"),
        (lambda: PrismLayer(6)(torch.ones(1, 3, 5)), ValueError, "x must have shape"),
        (
            lambda: PrismLayer(2)(torch.ones(1, 3, 2), mask=torch.tensor([[True, False, True]])),
            ValueError,
            "mask must be True first and False after",
        ),
        (
            lambda: band_pass(torch.ones(1, 3, 2), 0, 1, lengths=torch.tensor([4])),
            ValueError,
            "lengths must lie in 0..3",
        ),
        (
            lambda: segment_shuffle(torch.arange(8), torch.arange(8), 3, 4),
            ValueError,
            "window must be a multiple of segment = 3",
        ),
        (lambda: cycle_length(8, 8), ValueError, "index must lie in 0..7"),
    ],
)
def test_bad_inputs(call, error, message):
    with pytest.raises(error, match=message):
        call()
